//! Agents with real QEMU and the test guest, driven by documents made by hand.
//!
//! **Owns:** the stories. **Does not know:** the server. **Start here:** [`a_guest_outlives_its_agent`].

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;

use std::time::{Duration, Instant};

use common::{Bench, PATIENCE, Side, document};
use model::document::{
    Disk, ImageFile, Machine, MigrateTo, Order, Port, StartFrom, Stop, Target, TargetState,
};
use model::image::ImageFormat;
use model::report::{OutgoingState, RunState, RunStatus};
use model::vm::{BootDevice, GuestConfig};
use model::{Incarnation, VmId};
use rustix::process::{Pid, Signal, kill_process};

/// Longer than a guest that runs goes without a look.
const LOOKED_AT: Duration = Duration::from_millis(2_500);

fn machine(bench: &Bench, vm: VmId) -> Machine {
    Machine {
        name: "web".to_owned(),
        uuid: vm.0,
        vcpus: 1,
        memory_mib: 256,
        disk: Disk {
            datastore: bench
                .directory
                .path()
                .join("datastore")
                .to_string_lossy()
                .into_owned(),
            coherent: true,
            image: Some(ImageFile {
                sha256: bench.sha256.clone(),
                format: ImageFormat::Qcow2,
            }),
            bytes: 256 << 20,
            layer: None,
        },
        nics: nics(),
        guest: GuestConfig::default(),
        cdrom: None,
        boot: BootDevice::USUAL.into(),
        firmware: model::vm::Firmware::Bios,
        keeps_memory: false,
        build: None,
    }
}

/// None unless the test may make links: in a network namespace of its own, where two hosts would not fit.
fn nics() -> Vec<Port> {
    let port = Port {
        vni: 77,
        mac: "52:54:00:12:34:56".to_owned(),
        address: Some([10, 77, 0, 2].into()),
        prefix_len: 24,
    };
    Vec::from_iter(std::env::var_os("STERNA_TEST_NETWORK").map(|_| port))
}

fn run(start: StartFrom) -> Order {
    Order::Run {
        paused: false,
        resume: false,
        start,
    }
}

async fn boot(side: &mut Side, vm: VmId, machine: &Machine) -> Duration {
    let begin = Instant::now();
    side.order(vm, Some(document(1, run(StartFrom::Disk), machine)));
    let run = side.wait(vm, 1, "ready", |run| run.ready).await;
    assert_eq!(run.state, RunState::Running);
    let took = begin.elapsed();
    eprintln!("ready after {took:?}; steps {:?}", run.steps);
    took
}

/// What a suspend leaves that was taken back when all was saved: not what the guest is now.
fn leave_earlier_state(side: &Side, vm: VmId) {
    let folder = side.data_dir.join("vms").join(vm.to_string());
    for stale in ["saved-1.state", "saved-1.state.part"] {
        std::fs::write(folder.join(stale), "an earlier state").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_outlives_its_agent() {
    let Some(bench) = Bench::new() else { return };
    let mut side = bench.side("h1").await;
    let vm = VmId(agent::chance::unique());
    let machine = machine(&bench, vm);
    boot(&mut side, vm, &machine).await;
    let pids = side.pids();
    assert_eq!(pids.len(), 1);

    side.kill_agent().await;
    side.start_agent();
    let again = side
        .wait(vm, 1, "found again", |run| run.state == RunState::Running)
        .await;
    assert!(again.ready, "what the guest said is forgotten");
    let has_address = |run: &RunStatus| run.addresses.len() >= nics().len();
    side.wait(vm, 1, "at its address", has_address).await;
    assert_eq!(side.pids(), pids);

    leave_earlier_state(&side, vm);
    let begin = Instant::now();
    side.order(vm, Some(document(1, Order::Stop(Stop::Suspend), &machine)));
    let saved = side.wait(vm, 1, "suspended", |run| run.state.is_closed()).await;
    eprintln!(
        "suspended after {:?}: {:?} bytes",
        begin.elapsed(),
        saved.saved_bytes
    );
    assert!(
        saved.saved_bytes.is_some_and(|bytes| bytes > 1 << 20),
        "{saved:#?}"
    );
    assert_eq!(side.pids(), Vec::<i32>::new());

    let begin = Instant::now();
    let start = StartFrom::Saved {
        incarnation: Incarnation(1),
        saved_in: model::vm::SavedIn::Host,
    };
    side.order(vm, Some(document(2, run(start), &machine)));
    side.wait(vm, 2, "resumed", |run| {
        run.ready && run.state == RunState::Running
    })
    .await;
    eprintln!("resumed after {:?}", begin.elapsed());

    let last = is_killed(&mut side, vm, &machine, 2).await + 1;
    is_killed_while_it_is_asked(&mut side, vm, &machine, last).await;
    side.order(vm, Some(document(last, Order::Stop(Stop::Remove), &machine)));
    side.wait(vm, last, "removed", |run| run.state == RunState::Removed)
        .await;
    assert!(
        !std::path::Path::new(&machine.disk.datastore)
            .join("volumes")
            .join(vm.to_string())
            .exists()
    );
    let log = side.data_dir.join("vms").join(vm.to_string()).join("console.log");
    assert!(!log.exists());
}

fn signal(side: &Side, signal: Signal) {
    let pid = Pid::from_raw(side.pids()[0]).unwrap();
    kill_process(pid, signal).unwrap();
}

/// Kills its QEMU, waits until the end is reported with its cause, and says how long that took.
async fn ends_by_a_kill(side: &mut Side, vm: VmId, incarnation: u64) -> Duration {
    let begin = Instant::now();
    signal(side, Signal::KILL);
    let is_closed = |run: &RunStatus| run.state.is_closed();
    let closed = side.wait(vm, incarnation, "closed", is_closed).await;
    let (took, reason) = (begin.elapsed(), closed.reason.unwrap());
    eprintln!("a killed QEMU was reported after {took:?}: {reason:?}");
    assert_eq!(reason.code, "qemu-exited");
    assert!(reason.message.contains("by signal 9, and "), "{reason:?}");
    assert_eq!(side.pids(), Vec::<i32>::new());
    took
}

/// A process that is killed by somebody else is noticed at once, not by the next look, and never started again. A machine
/// with other things to do may be late, so it is tried again. Answers the last incarnation.
async fn is_killed(side: &mut Side, vm: VmId, machine: &Machine, first: u64) -> u64 {
    for incarnation in first..first + 3 {
        if incarnation > first {
            side.order(vm, Some(document(incarnation, run(StartFrom::Disk), machine)));
            let is_running = |run: &RunStatus| run.state == RunState::Running;
            side.wait(vm, incarnation, "running", is_running).await;
        }
        if ends_by_a_kill(side, vm, incarnation).await < Duration::from_secs(1) {
            return incarnation;
        }
    }
    panic!("the end of a process is never noticed at once");
}

/// A look that waits for its answer when the process ends learns how it ended, too.
async fn is_killed_while_it_is_asked(side: &mut Side, vm: VmId, machine: &Machine, incarnation: u64) {
    side.order(vm, Some(document(incarnation, run(StartFrom::Disk), machine)));
    let is_running = |run: &RunStatus| run.state == RunState::Running;
    side.wait(vm, incarnation, "running", is_running).await;
    // Of a process that stands still the next look, which comes within two seconds, waits for five.
    signal(side, Signal::STOP);
    tokio::time::sleep(Duration::from_millis(3500)).await;
    ends_by_a_kill(side, vm, incarnation).await;
}

/// A host that cannot keep the newest document obeys it when it can, though no server says it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_could_not_be_kept_is_obeyed_when_it_can_be() {
    let Some(bench) = Bench::new() else { return };
    let mut side = bench.side("h1").await;
    let (kept, unkept) = (
        side.data_dir.join("document.json"),
        side.data_dir.join("document.new"),
    );
    until(|| kept.exists()).await;
    std::fs::remove_file(&kept).unwrap();
    std::fs::create_dir_all(kept.join("in the way")).unwrap();
    let vm = VmId(agent::chance::unique());
    let machine = machine(&bench, vm);
    side.order(vm, Some(document(1, Order::Stop(Stop::Prepare), &machine)));
    let is_tried = || std::fs::read_to_string(&unkept).is_ok_and(|text| text.contains(&vm.to_string()));
    until(is_tried).await;
    assert!(!side.has_said(vm), "it obeys what it could not keep");
    std::fs::remove_dir_all(&kept).unwrap();
    side.wait(vm, 1, "prepared", |run| run.state.is_closed()).await;
    assert!(kept.is_file() && side.pids().is_empty());
}

async fn until(is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_moves_to_another_host() {
    let Some(bench) = Bench::new() else { return };
    let mut source = bench.side("h1").await;
    let mut target = bench.side("h2").await;
    let vm = VmId(agent::chance::unique());
    let machine = machine(&bench, vm);
    boot(&mut source, vm, &machine).await;

    let begin = Instant::now();
    let take = |state| {
        Order::Target(Target {
            from: Incarnation(1),
            host: source.host,
            host_name: source.name.clone(),
            state,
            paused: false,
            timeout_ms: 60_000,
        })
    };
    target.order(vm, Some(document(2, take(TargetState::Prepare), &machine)));
    let stream = target
        .wait(vm, 2, "listening", |run| run.stream.is_some())
        .await
        .stream;
    eprintln!("the target listens at {stream:?} after {:?}", begin.elapsed());
    let send = MigrateTo {
        to: Incarnation(2),
        host: target.host,
        host_name: target.name.clone(),
        stream,
        peer: target.peer(),
        granted: true,
        cancel: false,
        paused: false,
        timeout_ms: 60_000,
    };
    target.order(vm, Some(document(2, take(TargetState::Granted), &machine)));
    let granted = Instant::now();
    source.order(vm, Some(document(1, Order::MigrateTo(send), &machine)));
    target
        .wait(vm, 2, "running", |run| run.state == RunState::Running && run.ran)
        .await;
    eprintln!(
        "the target runs {:?} after the grant, {:?} in all",
        granted.elapsed(),
        begin.elapsed()
    );
    let is_measured = |run: &RunStatus| {
        run.outgoing.as_ref().is_some_and(|outgoing| {
            outgoing.state == OutgoingState::Completed && outgoing.downtime_us.is_some()
        })
    };
    let run_there = source.wait(vm, 1, "completed", is_measured).await;
    eprintln!("{:?}", run_there.outgoing);

    source.order(vm, Some(document(1, Order::Stop(Stop::Release), &machine)));
    source.wait(vm, 1, "closed", |run| run.state.is_closed()).await;
    target.order(vm, Some(document(2, run(StartFrom::Never), &machine)));
    target
        .wait(vm, 2, "ready", |run| run.ready && run.state == RunState::Running)
        .await;
    assert_eq!(source.pids(), Vec::<i32>::new());
    assert_eq!(target.pids().len(), 1);

    // Its cause is known also if QEMU stands still, so that it leaves a question open, when it is killed.
    signal(&target, Signal::STOP);
    tokio::time::sleep(LOOKED_AT).await;
    ends_by_a_kill(&mut target, vm, 2).await;
}
