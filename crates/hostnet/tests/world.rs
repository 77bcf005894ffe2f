//! Worlds of real namespaces, as root and as an ordinary user, two at a time.
//!
//! This is a program of its own, without the usual harness: it starts itself as the world and as the hosts in it, which
//! must enter their namespaces before they have threads. Start here: [`live`], what a world goes through.

use std::collections::BTreeSet;
use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use hostnet::world::{HostIndex, World, enter_host, enter_world, enter_world_beside};
use hostnet::{
    BridgeSpec, LinkKind, LinkName, Mac, Netlink, TapSpec, VXLAN_PORT, VxlanSpec, link_name, probe_kernel,
};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, eth, recv, socket_with};
use tokio::runtime::Runtime;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const NOBODY: u32 = 65534;
const MTU: u32 = 1450;
const VM_MAC: Mac = Mac([2, 0, 0, 0, 0, 0x77]);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["role-world", ..] => live(),
        ["role-rescue", pid] => rescue(pid),
        ["role-host", path, index] => serve(Path::new(path), index),
        _ if args.iter().any(|arg| arg == "--list") => list(&args),
        _ => test(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("failed: {error} ({:?})", error.source().map(ToString::to_string));
            ExitCode::FAILURE
        }
    }
}

fn list(args: &[String]) -> Outcome {
    if !args.iter().any(|arg| arg == "--ignored") {
        println!("as_root: test\nas_user: test");
    }
    Ok(())
}

fn test(args: &[String]) -> Outcome {
    let filters: Vec<_> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let wanted =
        |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()));
    let is_root = rustix::process::geteuid().is_root();
    if wanted("as_root") && is_root {
        two_worlds("as_root", None)?;
    } else if wanted("as_root") {
        println!("as_root: skipped, this user is not root");
    }
    if wanted("as_user") {
        two_worlds("as_user", is_root.then_some(NOBODY))?;
    }
    Ok(())
}

/// Two worlds at once, and nothing of theirs in the machine's own namespace.
fn two_worlds(name: &str, uid: Option<u32>) -> Outcome {
    let runtime = Runtime::new()?;
    let links = || runtime.block_on(async { Netlink::open()?.links("").await });
    let before: BTreeSet<_> = links()?.into_iter().map(|link| link.name).collect();
    let start = || {
        let mut command = Command::new("/proc/self/exe");
        command.arg("role-world");
        if let Some(uid) = uid {
            command.uid(uid).gid(uid);
        }
        command.spawn()
    };
    let worlds = [start()?, start()?];
    for mut world in worlds {
        ensure(world.wait()?.success(), "the world failed")?;
    }
    let ours =
        |name: &String| ["underlay", "h0", "h1", "h2", "eth0"].contains(&name.as_str()) || name.len() == 15;
    let new: Vec<_> = links()?
        .into_iter()
        .map(|link| link.name)
        .filter(|name| !before.contains(name))
        .collect();
    ensure(!new.iter().any(ours), &format!("left behind: {new:?}"))?;
    println!("{name}: ok");
    Ok(())
}

/// What a world goes through.
fn live() -> Outcome {
    enter_world()?;
    let runtime = Runtime::new()?;
    let begun = Instant::now();
    let mut world = runtime.block_on(World::open())?;
    let mut paths = Vec::new();
    for index in 0..3 {
        paths.push(runtime.block_on(world.add_host(host(index)))?);
    }
    println!("three hosts after {:?}", begun.elapsed());
    runtime.block_on(world.add_host(host(2)))?;
    let begun = Instant::now();
    let [mut a, mut b] = [Host::start(&paths[0], 0)?, Host::start(&paths[1], 1)?];
    a.ask("build 10.99.0.1")?;
    b.ask("build 10.99.0.2")?;
    a.ask("echo 10.99.0.1")?;
    b.ask("call 10.99.0.1")?;
    println!("a frame over the tunnel after {:?}", begun.elapsed());

    runtime.block_on(world.cut_link(host(1)))?;
    ensure(b.ask("call 10.99.0.1").is_err(), "a cut host must be cut off")?;
    runtime.block_on(world.heal_link(host(1)))?;
    b.ask("call 10.99.0.1")?;

    b.tell("hear")?;
    b.answer()?;
    a.ask("announce")?;
    b.answer()?;

    // A host's agent that is killed comes back to its links.
    drop(b);
    let mut b = Host::start(&paths[1], 1)?;
    b.ask("call 10.99.0.1")?;
    b.ask("ports")?;
    b.ask("qemu")?;
    b.ask("repair")?;
    for lack in runtime.block_on(probe_kernel()) {
        println!("lacks {}: {}; {}", lack.what, lack.consequence, lack.detail);
    }
    drop(runtime);
    drop(world);

    // The namespace of host 0 outlives this world's descriptors by the process in it; another world takes it over.
    let rescue = Command::new("/proc/self/exe")
        .arg("role-rescue")
        .arg(a.child.id().to_string())
        .status()?;
    ensure(rescue.success(), "a world could not take a host over")
}

/// A second world, which takes over the host that a process of the first one is in.
fn rescue(pid: &str) -> Outcome {
    enter_world_beside(pid.parse()?)?;
    let runtime = Runtime::new()?;
    let mut world = runtime.block_on(World::open())?;
    runtime.block_on(world.adopt_host(host(0), pid.parse()?))?;
    let path = runtime.block_on(world.add_host(host(1)))?;
    let mut b = Host::start(&path, 1)?;
    b.ask("build 10.99.0.2")?;
    b.ask("call 10.99.0.1")
}

#[expect(clippy::unwrap_used, reason = "only small numbers are written here")]
fn host(index: u8) -> HostIndex {
    HostIndex::new(index).unwrap()
}

fn ensure(holds: bool, what: &str) -> Outcome {
    if holds { Ok(()) } else { Err(what.into()) }
}

/// A process in a host's namespace, which answers each line by one that begins with `ok` if all is well.
struct Host {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Host {
    fn start(namespace: &PathBuf, index: u8) -> Outcome<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg("role-host").arg(namespace).arg(index.to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let requests = child.stdin.take().ok_or("no stdin")?;
        let answers = BufReader::new(child.stdout.take().ok_or("no stdout")?);
        Ok(Self {
            child,
            requests,
            answers,
        })
    }

    fn tell(&mut self, request: &str) -> Outcome {
        writeln!(self.requests, "{request}").map_err(Into::into)
    }

    fn answer(&mut self) -> Outcome {
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        ensure(answer.starts_with("ok"), answer.trim())
    }

    fn ask(&mut self, request: &str) -> Outcome {
        self.tell(request)?;
        self.answer()
            .map_err(|error| format!("{request}: {error}").into())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The process in a host's namespace.
fn serve(namespace: &Path, index: &str) -> Outcome {
    enter_host(namespace)?;
    let index = host(index.parse()?);
    let runtime = Runtime::new()?;
    let netlink = runtime.block_on(async { Netlink::open() })?;
    for line in std::io::stdin().lines() {
        let line = line?;
        let outcome = match line.split(' ').collect::<Vec<_>>().as_slice() {
            ["build", address] => runtime.block_on(build(&netlink, index, address.parse()?)),
            ["echo", address] => echo(address),
            ["call", address] => call(address),
            ["hear"] => hear(),
            ["announce"] => runtime.block_on(announce(&netlink)),
            ["qemu"] => runtime.block_on(qemu(&netlink)),
            ["ports"] => runtime.block_on(ports(&netlink)),
            ["repair"] => runtime.block_on(repair(&netlink, index)),
            _ => Err("unknown".into()),
        };
        match outcome {
            Ok(()) => println!("ok"),
            Err(error) => println!("failed: {error} ({:?})", error.source().map(ToString::to_string)),
        }
    }
    Ok(())
}

fn name(kind: LinkKind) -> LinkName {
    link_name(1, kind, b"network")
}

fn tap() -> TapSpec {
    TapSpec {
        name: name(LinkKind::Tap),
        owner: None,
        mtu: MTU,
    }
}

fn vxlan(index: HostIndex) -> VxlanSpec {
    VxlanSpec {
        name: name(LinkKind::Vxlan),
        vni: 4711,
        local: index.address(),
        port: VXLAN_PORT,
        mtu: MTU,
    }
}

/// Bridge, tunnel and tap, each of them twice.
async fn build(netlink: &Netlink, index: HostIndex, address: Ipv4Addr) -> Outcome {
    let bridge = name(LinkKind::Bridge);
    let mac = Some(Mac([2, 0, 0, 0, 1, address.octets()[3]]));
    let vxlan = vxlan(index);
    let peers: BTreeSet<_> = (0..3).map(|index| host(index).address()).collect();
    for _ in 0..2 {
        netlink
            .ensure_bridge(&BridgeSpec {
                name: bridge.clone(),
                mac,
                mtu: MTU,
            })
            .await?;
        netlink.ensure_vxlan(&vxlan).await?;
        netlink.set_vxlan_peers(&vxlan.name, &peers).await?;
        netlink.attach(&vxlan.name, &bridge).await?;
        netlink.ensure_tap(&tap()).await?;
        netlink.open_port(&tap().name, &bridge, VM_MAC).await?;
        netlink.add_address(&bridge, address, 24).await?;
    }
    let flooded = netlink.vxlan_peers(&vxlan.name).await?;
    ensure(
        flooded.len() == 2 && !flooded.contains(&index.address()),
        &format!("floods to {flooded:?}"),
    )
}

/// Answers whatever comes to port 7, for as long as the process lives.
fn echo(address: &str) -> Outcome {
    let socket = UdpSocket::bind((address, 7))?;
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..len], from).ok();
        }
    });
    Ok(())
}

/// A packet as large as one frame holds, there and back.
fn call(address: &str) -> Outcome {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    socket.connect((address, 7))?;
    let sent = [42; MTU as usize - 28];
    let mut got = [0; 2048];
    for _ in 0..10 {
        if socket.send(&sent).is_ok() && socket.recv(&mut got).is_ok_and(|len| got[..len] == sent) {
            return Ok(());
        }
    }
    Err("no answer".into())
}

/// Answers once when it listens, and once when it has heard where the VM is.
fn hear() -> Outcome {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, Some(eth::RARP))?;
    let limit = Some(Duration::from_secs(30));
    rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, limit)?;
    println!("ok, listening");
    let mut frame = [0; 128];
    let (_, len) = recv(&socket, &mut frame, RecvFlags::empty())?;
    ensure(len >= 60 && frame[6..12] == VM_MAC.0, "somebody else's frame")
}

async fn announce(netlink: &Netlink) -> Outcome {
    netlink
        .announce(
            &name(LinkKind::Bridge),
            VM_MAC,
            Some(Ipv4Addr::new(10, 99, 0, 77)),
        )
        .await?;
    Ok(())
}

/// Ports open and close, each of it twice.
async fn ports(netlink: &Netlink) -> Outcome {
    let (tap, bridge) = (name(LinkKind::Tap), name(LinkKind::Bridge));
    let state = async || Outcome::Ok(netlink.link(&tap).await?.ok_or("the tap is gone")?.bridge);
    let index = netlink.link(&bridge).await?.ok_or("the bridge is gone")?.index;
    ensure(state().await? == Some(index), "the port must be open still")?;
    for _ in 0..2 {
        netlink.close_port(&tap).await?;
        ensure(state().await?.is_none(), "the port must be closed")?;
    }
    for _ in 0..2 {
        netlink.open_port(&tap, &bridge, VM_MAC).await?;
        ensure(state().await? == Some(index), "the port must be open")?;
    }
    Ok(())
}

/// QEMU, where there is one, can open the tap; while it does, the tap is left as it is.
async fn qemu(netlink: &Netlink) -> Outcome {
    let options = format!("tap,id=net,ifname={},script=no,downscript=no", tap().name);
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args("-machine none -nodefaults -display none -monitor stdio -netdev".split(' '))
        .arg(options);
    // It warns that there is no machine which the tap could belong to.
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let Ok(mut qemu) = command.spawn() else {
        return Ok(());
    };
    let mut monitor = BufReader::new(qemu.stdout.take().ok_or("no stdout")?);
    monitor.read_line(&mut String::new())?;
    let before = netlink.link(&tap().name).await?;
    netlink.ensure_tap(&tap()).await?;
    ensure(before == netlink.link(&tap().name).await?, "the same tap")?;
    writeln!(qemu.stdin.take().ok_or("no stdin")?, "quit")?;
    std::io::copy(&mut monitor, &mut std::io::sink())?;
    ensure(qemu.wait()?.success(), "QEMU cannot open the tap")?;
    ensure(netlink.link_exists(&tap().name).await?, "the tap outlives QEMU")
}

/// What is there under a wanted name, and is wrong, is replaced; deleting twice is fine.
async fn repair(netlink: &Netlink, index: HostIndex) -> Outcome {
    let tunnel = VxlanSpec {
        vni: 5,
        ..vxlan(index)
    };
    repair_tunnel(netlink, &tunnel).await?;
    let bridge = BridgeSpec {
        name: tunnel.name,
        mac: None,
        mtu: 1400,
    };
    netlink.ensure_bridge(&bridge).await?;
    let mtu = netlink.link(&bridge.name).await?.map(|link| link.mtu);
    ensure(mtu == Some(1400), "a bridge of 1400")?;
    repair_tap(netlink).await?;
    for name in [bridge.name, tap().name] {
        netlink.delete_link(&name).await?;
        netlink.delete_link(&name).await?;
        ensure(!netlink.link_exists(&name).await?, "deleted")?;
    }
    Ok(())
}

async fn repair_tunnel(netlink: &Netlink, tunnel: &VxlanSpec) -> Outcome {
    let name = &tunnel.name;
    netlink.ensure_vxlan(tunnel).await?;
    ensure(
        netlink.vxlan_peers(name).await?.is_empty(),
        "a new tunnel has no peers",
    )?;
    for peers in [vec![2, 3, 4], vec![3, 5], vec![]] {
        let peers = peers
            .into_iter()
            .map(|last| Ipv4Addr::new(198, 18, 0, last))
            .collect();
        netlink.set_vxlan_peers(name, &peers).await?;
        ensure(
            netlink.vxlan_peers(name).await? == peers,
            "the peers are those that were set",
        )?;
    }
    let before = netlink.link(name).await?;
    netlink.ensure_vxlan(tunnel).await?;
    ensure(
        before == netlink.link(name).await?,
        "what is right is left as it is",
    )?;
    let twin = VxlanSpec {
        name: "twin".parse()?,
        ..tunnel.clone()
    };
    let refused = netlink
        .ensure_vxlan(&twin)
        .await
        .err()
        .ok_or("two tunnels of one VNI")?;
    ensure(refused.cause == hostnet::Cause::Conflict, &refused.to_string())
}

async fn repair_tap(netlink: &Netlink) -> Outcome {
    let owned = TapSpec {
        owner: Some(0),
        ..tap()
    };
    let index = async || Outcome::Ok(netlink.link(&owned.name).await?.map(|link| link.index));
    let before = index().await?;
    netlink.ensure_tap(&owned).await?;
    let replaced = index().await?;
    ensure(before != replaced, "a new tap")?;
    netlink.ensure_tap(&owned).await?;
    ensure(replaced == index().await?, "the same tap")
}
