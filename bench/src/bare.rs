//! The same guest without Sterna: a QEMU with the same command line started by hand, and two of them driven by a QMP
//! script with the same settings, credentials and limits.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use driver::passes::LIMITS_MS;
use model::vm::BootDevice;
use qemu::command_line::{
    AGENT_SOCKET, Accelerator, Access, Base, CONSOLE_SOCKET, Cache, Disk, ImageFormat, LaunchSpec,
    MACHINE_TYPE, Memory, QMP_SOCKET, Start, TCG_CPU_MODEL, command_line,
};
use qemu::guest_agent::GuestAgent;
use qemu::migration_settings::{Side, capabilities, parameters};
use qemu::migration_tls::{OBJECT_IDS, source_objects, source_parameters, target_objects, target_parameters};
use qemu::qmp::migration::{MigrationChannel, MigrationInfo, MigrationStatus};
use qemu::qmp::{Events, Hint, Qmp};
use qemu::spawn::{self, QemuProcess};
use serde_json::json;
use testkit::console::Console;
use testkit::world::World;
use tokio::net::UnixStream;
use uuid::Uuid;

const QEMU: &str = "qemu-system-x86_64";
const CONSOLE_LOG: &str = "console.log";
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a guest's agent is asked whether it is there.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// Where a QEMU runs: on a host of the world, so that both sides' guests move over the same link.
#[derive(Clone)]
pub(crate) struct Place {
    entering: Vec<String>,
    address: Ipv4Addr,
}

impl Place {
    /// A host.
    pub(crate) fn on(world: &World, host: &str) -> anyhow::Result<Self> {
        Ok(Self {
            entering: world.entering(host)?,
            address: world.address(host)?,
        })
    }
}

/// One QEMU. Dropping it kills the process.
pub(crate) struct Machine {
    directory: PathBuf,
    process: QemuProcess,
    qmp: Qmp,
    events: Events,
    /// Held as Sterna holds it: a guest whose agent's port nobody has open after a move spins, and is not idle.
    agent: Option<GuestAgent>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.send_kill();
        if let Some(pid) = rustix::process::Pid::from_raw(self.process.id().pid) {
            let _ = rustix::process::waitid(
                rustix::process::WaitId::Pid(pid),
                rustix::process::WaitIdOptions::EXITED,
            );
        }
    }
}

/// A disk copied on write from the guest's image.
pub(crate) fn overlay(root: &Path, name: &str, image: &Path) -> anyhow::Result<PathBuf> {
    let path = root.join(format!("{name}.qcow2"));
    let made = std::process::Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
        .arg(image)
        .arg(&path)
        .status()?;
    if !made.success() {
        bail!("qemu-img create: {made}");
    }
    Ok(path)
}

/// What both QEMUs of a guest have in common, as Sterna starts it without a network interface.
pub(crate) fn spec(disk: &Path, image: &Path, memory_mib: u32, start: Start) -> LaunchSpec {
    LaunchSpec {
        vm: Uuid::from_u128(0x0190_b2a4_0000_7000_8000_0000_0000_0001),
        name: "bare".to_owned(),
        memory_mib,
        memory: Memory::Own,
        vcpus: 1,
        machine_type: MACHINE_TYPE.to_owned(),
        cpu_model: TCG_CPU_MODEL.to_owned(),
        accelerator: Accelerator::Tcg { tb_size_mib: 16 },
        disks: vec![Disk {
            slot: 0,
            path: disk.to_owned(),
            format: ImageFormat::Qcow2,
            base: Some(Base {
                path: image.to_owned(),
                format: ImageFormat::Qcow2,
                base: None,
            }),
            cache: Cache::HostPageCache,
            access: Access::ReadWrite,
        }],
        cdrom: None,
        boot: BootDevice::USUAL.into(),
        uefi: None,
        seed: None,
        nics: Vec::new(),
        start,
    }
}

impl Machine {
    /// Starts a QEMU in a new directory.
    pub(crate) async fn start(
        root: &Path,
        name: &str,
        spec: &LaunchSpec,
        place: &Place,
    ) -> anyhow::Result<Self> {
        let directory = root.join(name);
        std::fs::create_dir(&directory)?;
        let mut line = command_line(spec)?;
        line.arguments = [&place.entering[..], &[QEMU.to_owned()], &line.arguments].concat();
        let program = line.arguments.remove(0);
        let process = spawn::spawn(Path::new(&program), &line, &directory, None)?;
        let (qmp, events) = spawn::connect(&process, &directory, QMP_SOCKET, PATIENCE).await?;
        log_console(&directory).await?;
        let mut machine = Self {
            directory,
            process,
            qmp,
            events,
            agent: None,
        };
        machine.hold_agent(ASK_EVERY).await?;
        Ok(machine)
    }

    /// Opens the port of the guest's agent, with this patience for each answer.
    async fn hold_agent(&mut self, patience: Duration) -> anyhow::Result<&mut GuestAgent> {
        // It takes one connection at a time.
        self.agent = None;
        let agent = GuestAgent::connect(&self.directory.join(AGENT_SOCKET), patience, 7).await?;
        Ok(self.agent.insert(agent))
    }

    /// Lets the guest run.
    pub(crate) async fn run(&self) -> anyhow::Result<()> {
        Ok(self.qmp.cont().await?)
    }

    /// Waits until the guest's agent answers.
    pub(crate) async fn ready(&mut self) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while tokio::time::Instant::now() < deadline {
            if self.hold_agent(ASK_EVERY).await?.ping().await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(ASK_EVERY / 5).await;
        }
        bail!("the guest's agent did not answer")
    }

    /// What the guest writes to its console.
    pub(crate) fn console(&self) -> Console {
        Console::new(self.directory.join(CONSOLE_LOG))
    }

    /// Runs a line of shell in the guest.
    pub(crate) async fn execute(&mut self, script: &str) -> anyhow::Result<()> {
        let agent = self.hold_agent(PATIENCE).await?;
        agent.exec("/bin/sh", &["-c", script]).await?;
        Ok(())
    }

    async fn wait_for(&mut self, wanted: impl Fn(&MigrationStatus) -> bool) -> anyhow::Result<MigrationInfo> {
        let waited = tokio::time::timeout(PATIENCE, async {
            loop {
                let info = self.qmp.query_migrate().await?;
                if wanted(&info.status) {
                    return Ok(info);
                }
                self.events.next().await.context("QEMU is gone")?;
            }
        });
        waited.await.context("the migration does not go on")?
    }
}

/// A console that nobody reads stops its guest.
async fn log_console(directory: &Path) -> anyhow::Result<()> {
    let mut console = UnixStream::connect(directory.join(CONSOLE_SOCKET)).await?;
    let mut log = tokio::fs::File::create(directory.join(CONSOLE_LOG)).await?;
    tokio::spawn(async move { tokio::io::copy(&mut console, &mut log).await });
    Ok(())
}

/// How a migration is driven.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recipe {
    /// Sterna's settings over TLS.
    Same,
    /// Sterna's settings without TLS.
    Plain,
    /// QEMU's own settings, without TLS.
    Defaults,
}

impl Recipe {
    /// For people.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Same => "same settings, TLS",
            Self::Plain => "same settings, no TLS",
            Self::Defaults => "QEMU's defaults, no TLS",
        }
    }
}

/// What one migration took, in milliseconds.
pub(crate) struct Took {
    /// From the request, or before the target's start, to the record's Done, or the source's end.
    pub(crate) total_ms: f64,
    /// From the source's STOP to the target's `cont` answered.
    pub(crate) stopped_ms: f64,
    /// The largest gap that the guest saw, if it looked.
    pub(crate) gap_ms: Option<f64>,
}

/// The credentials' directories of both sides.
pub(crate) struct Credentials {
    pub(crate) source: String,
    pub(crate) target: String,
}

/// Moves a running guest to a new QEMU, target's start and source's end included; returns the target.
pub(crate) async fn migrate(
    root: &Path,
    name: &str,
    mut source: Machine,
    spec: &LaunchSpec,
    place: &Place,
    recipe: Recipe,
    credentials: &Credentials,
) -> anyhow::Result<(Machine, Took)> {
    let begun = Instant::now();
    let target = Machine::start(root, name, spec, place).await?;
    settle(&target, Side::Target, recipe, credentials).await?;
    let any_port = SocketAddr::from((place.address, 0));
    target
        .qmp
        .migrate_incoming(&MigrationChannel::Tcp(any_port))
        .await?;
    let port = target
        .qmp
        .query_migrate()
        .await?
        .listening_port()
        .context("the target does not listen")?;
    settle(&source, Side::Source, recipe, credentials).await?;
    let stop = tokio::spawn(stop_heard(source.qmp.events()));
    source
        .qmp
        .migrate(&MigrationChannel::Tcp(SocketAddr::from((place.address, port))))
        .await?;
    if recipe != Recipe::Defaults {
        source
            .wait_for(|status| *status == MigrationStatus::PreSwitchover)
            .await?;
        source.qmp.migrate_continue().await?;
    }
    let ended = source.wait_for(MigrationStatus::is_final).await?;
    if ended.status != MigrationStatus::Completed {
        bail!(
            "the bare migration ended as {:?}: {:?}",
            ended.status,
            ended.error_desc
        );
    }
    let mut target = target;
    target
        .wait_for(|status| *status == MigrationStatus::Completed)
        .await?;
    target.qmp.cont().await?;
    let running = Instant::now();
    let stopped = tokio::time::timeout(PATIENCE, stop)
        .await??
        .context("the source never stopped")?;
    drop(source);
    let ms = |from: Instant, to: Instant| to.duration_since(from).as_secs_f64() * 1000.0;
    Ok((
        target,
        Took {
            total_ms: ms(begun, Instant::now()),
            stopped_ms: ms(stopped, running),
            gap_ms: None,
        },
    ))
}

/// When the guest's stop is heard, beside the script's own waiting.
async fn stop_heard(mut events: Events) -> Option<Instant> {
    while let Some(hint) = events.next().await {
        if matches!(&hint, Hint::Event(event) if event.name == "STOP") {
            return Some(Instant::now());
        }
    }
    None
}

/// Puts a QEMU's settings to what the recipe wants, whatever an earlier move left there.
async fn settle(
    machine: &Machine,
    side: Side,
    recipe: Recipe,
    credentials: &Credentials,
) -> anyhow::Result<()> {
    let qmp = &machine.qmp;
    for id in OBJECT_IDS {
        let _ = qmp.object_del(id).await;
    }
    let tls = match (recipe, side) {
        (Recipe::Plain | Recipe::Defaults, _) => None,
        (Recipe::Same, Side::Source) => Some((source_objects(&credentials.source), source_parameters("h2"))),
        (Recipe::Same, Side::Target) => {
            Some((target_objects(&credentials.target, "CN=h1"), target_parameters()))
        }
    };
    let Some((objects, tls)) = tls else {
        qmp.migrate_set_parameters(json!({ "tls-creds": "", "tls-hostname": "", "tls-authz": "" }))
            .await?;
        return without_tls(qmp, side, recipe).await;
    };
    for object in objects {
        qmp.object_add(object).await?;
    }
    qmp.migrate_set_capabilities(capabilities(side)).await?;
    Ok(qmp
        .migrate_set_parameters(parameters(Some(&tls), LIMITS_MS[0]))
        .await?)
}

async fn without_tls(qmp: &Qmp, side: Side, recipe: Recipe) -> anyhow::Result<()> {
    if recipe == Recipe::Plain {
        qmp.migrate_set_capabilities(capabilities(side)).await?;
        return Ok(qmp.migrate_set_parameters(parameters(None, LIMITS_MS[0])).await?);
    }
    let kept = ["events", "return-path"];
    let mut all = capabilities(side);
    for capability in all.as_array_mut().into_iter().flatten() {
        let is_kept = capability["capability"]
            .as_str()
            .is_some_and(|name| kept.contains(&name));
        capability["state"] = json!(is_kept);
    }
    qmp.migrate_set_capabilities(all).await?;
    // QEMU's own: 128 MiB/s and 300 ms.
    let own =
        json!({ "max-bandwidth": 134_217_728u64, "downtime-limit": 300, "zero-page-detection": "legacy" });
    Ok(qmp.migrate_set_parameters(own).await?)
}
