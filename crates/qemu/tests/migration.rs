//! The recipe of a live migration, its refusals and its cuts, and suspend to a file, with the real QEMU.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use qemu::command_line::Start;
use qemu::migration_settings::{
    Side, capabilities, downtime_limit_parameter, file_capabilities, file_parameters, parameters,
};
use qemu::migration_tls::{
    TlsParameters, source_objects, source_parameters, target_objects, target_parameters,
};
use qemu::qmp::commands::RunState;
use qemu::qmp::migration::{MigrationChannel, MigrationStatus};
use qemu::spawn::log_tail;
use serde_json::{Value, json};
use support::{Authority, Vm, guest_disk, spec};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use uuid::Uuid;

const VM: Uuid = Uuid::from_u128(0x0190_b2a4_0000_7000_8000_0000_0000_0001);
/// As an agent begins with.
const DOWNTIME_LIMIT_MS: u64 = 20;

/// A VM's QEMU on its source and on its target.
struct Pair {
    source: Vm,
    target: Vm,
}

async fn pair(root: &Path) -> Pair {
    let disk = guest_disk(root);
    let source = Vm::start(root, "source", &spec(VM, &disk, Start::Boot)).await;
    let target = Vm::start(root, "target", &spec(VM, &disk, Start::Incoming)).await;
    source.qmp.cont().await.unwrap();
    source.wait_for_guest().await;
    Pair { source, target }
}

async fn prepare(vm: &Vm, side: Side, objects: Vec<Value>, tls: Option<&TlsParameters>) {
    for object in objects {
        vm.qmp.object_add(object).await.unwrap();
    }
    let capabilities = capabilities(side);
    vm.qmp.migrate_set_capabilities(capabilities).await.unwrap();
    let parameters = parameters(tls, DOWNTIME_LIMIT_MS);
    vm.qmp.migrate_set_parameters(parameters).await.unwrap();
}

async fn listen(target: &Vm) -> SocketAddr {
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let channel = MigrationChannel::Tcp(any_port);
    target.qmp.migrate_incoming(&channel).await.unwrap();
    let info = target.qmp.query_migrate().await.unwrap();
    SocketAddr::from((Ipv4Addr::LOCALHOST, info.listening_port().unwrap()))
}

async fn run_state(vm: &Vm) -> RunState {
    vm.qmp.query_status().await.unwrap().status
}

/// Sends from the source to the target up to the end, and lets the guest run there.
async fn migrate_to_the_end(what: &str, pair: &mut Pair, address: SocketAddr) {
    let Pair { source, target } = pair;
    let started = Instant::now();
    let channel = MigrationChannel::Tcp(address);
    source.qmp.migrate(&channel).await.unwrap();
    source
        .wait_for(|status| *status == MigrationStatus::PreSwitchover)
        .await;
    let stopped = Instant::now();
    let status = source.qmp.query_status().await.unwrap();
    assert!(!status.running);
    source.qmp.migrate_continue().await.unwrap();
    let info = source.wait_for(MigrationStatus::is_final).await;
    assert_eq!(info.status, MigrationStatus::Completed, "{info:?}");
    let loaded = target.wait_for(MigrationStatus::is_final).await;
    assert_eq!(loaded.status, MigrationStatus::Completed, "{loaded:?}");
    assert_eq!(run_state(source).await, RunState::PostMigrate);
    assert_eq!(run_state(target).await, RunState::Paused);
    target.qmp.cont().await.unwrap();
    println!(
        "{what}: exec to QMP {:?} and {:?}; total {:?}, pre-switchover to cont {:?}; QEMU: {} ms total, {} ms downtime",
        source.start_time,
        target.start_time,
        started.elapsed(),
        stopped.elapsed(),
        info.total_time_ms.unwrap(),
        info.downtime_ms.unwrap(),
    );
    target.qmp.announce_self().await.unwrap();
    target.assert_guest_writes().await;
    assert_eq!(run_state(target).await, RunState::Running);
}

#[tokio::test]
async fn a_guest_moves_over_tls_by_the_recipe() {
    let root = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let source_credentials = authority.credentials(root.path(), "h1");
    let target_credentials = authority.credentials(root.path(), "h2");
    let mut pair = pair(root.path()).await;
    let target_objects = target_objects(&target_credentials, "CN=h1");
    let target_tls = target_parameters();
    prepare(&pair.target, Side::Target, target_objects, Some(&target_tls)).await;
    let source_tls = source_parameters("h2");
    let source_objects = source_objects(&source_credentials);
    prepare(&pair.source, Side::Source, source_objects, Some(&source_tls)).await;
    let address = listen(&pair.target).await;
    migrate_to_the_end("with TLS", &mut pair, address).await;
}

#[tokio::test]
async fn a_guest_moves_without_tls() {
    let root = tempfile::tempdir().unwrap();
    let mut pair = pair(root.path()).await;
    prepare(&pair.target, Side::Target, vec![], None).await;
    prepare(&pair.source, Side::Source, vec![], None).await;
    let address = listen(&pair.target).await;
    migrate_to_the_end("without TLS", &mut pair, address).await;
}

#[tokio::test]
async fn a_host_that_was_not_named_is_refused_and_its_guest_runs_on() {
    let root = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let intruder = authority.credentials(root.path(), "h3");
    let target_credentials = authority.credentials(root.path(), "h2");
    let mut pair = pair(root.path()).await;
    let target_objects = target_objects(&target_credentials, "CN=h1");
    let target_tls = target_parameters();
    prepare(&pair.target, Side::Target, target_objects, Some(&target_tls)).await;
    let source_tls = source_parameters("h2");
    let source_objects = source_objects(&intruder);
    prepare(&pair.source, Side::Source, source_objects, Some(&source_tls)).await;
    let address = listen(&pair.target).await;
    let channel = MigrationChannel::Tcp(address);
    pair.source.qmp.migrate(&channel).await.unwrap();
    let info = pair.source.wait_for(MigrationStatus::is_final).await;
    assert_eq!(info.status, MigrationStatus::Failed, "{info:?}");
    println!("source: {:?}", info.error_desc);
    println!("target: {}", log_tail(&pair.target.directory));
    let target = pair.target.qmp.query_migrate().await.unwrap();
    println!("target: {:?} {:?}", target.status, target.error_desc);
    assert_ne!(target.status, MigrationStatus::Completed);
    assert_eq!(run_state(&pair.source).await, RunState::Running);
    pair.source.assert_guest_writes().await;
}

/// Passes bytes on until it is told to stop; then it keeps the connections open and silent.
async fn cuttable_link(to: SocketAddr, cut: tokio::sync::watch::Receiver<bool>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut cut = cut.clone();
            tokio::spawn(async move {
                let mut far = TcpStream::connect(to).await.unwrap();
                tokio::select! {
                    _ = copy_bidirectional(&mut near, &mut far) => return,
                    _ = cut.changed() => {}
                }
                std::future::pending::<()>().await;
            });
        }
    });
    address
}

/// Begins a transfer that takes long, and cuts its link in the midst of it.
async fn send_until_the_link_is_cut(pair: &mut Pair) {
    let slow = json!({"max-bandwidth": 200_000});
    pair.source.qmp.migrate_set_parameters(slow).await.unwrap();
    let (cut, is_cut) = tokio::sync::watch::channel(false);
    let address = cuttable_link(listen(&pair.target).await, is_cut).await;
    let channel = MigrationChannel::Tcp(address);
    pair.source.qmp.migrate(&channel).await.unwrap();
    pair.source
        .wait_for(|status| *status == MigrationStatus::Active)
        .await;
    cut.send(true).unwrap();
}

#[tokio::test]
async fn a_cut_link_leaves_the_migration_active_until_it_is_cancelled() {
    let root = tempfile::tempdir().unwrap();
    let mut pair = pair(root.path()).await;
    prepare(&pair.target, Side::Target, vec![], None).await;
    prepare(&pair.source, Side::Source, vec![], None).await;
    send_until_the_link_is_cut(&mut pair).await;
    sleep(Duration::from_millis(1500)).await;
    let info = pair.source.qmp.query_migrate().await.unwrap();
    assert_eq!(info.status, MigrationStatus::Active, "{info:?}");
    let cancelled = Instant::now();
    pair.source.qmp.migrate_cancel().await.unwrap();
    let info = pair.source.wait_for(MigrationStatus::is_final).await;
    println!("cancelled in {:?}", cancelled.elapsed());
    assert_eq!(info.status, MigrationStatus::Cancelled, "{info:?}");
    assert_eq!(run_state(&pair.source).await, RunState::Running);
    pair.source.assert_guest_writes().await;
}

/// QEMU's own cancel would say good-bye on each connection, and hang on a full one, its guest with it.
#[tokio::test]
async fn a_transfer_over_a_cut_link_fails_when_it_is_shut_and_its_guest_runs_on() {
    let root = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let target_objects = target_objects(&authority.credentials(root.path(), "h2"), "CN=h1");
    let source_objects = source_objects(&authority.credentials(root.path(), "h1"));
    let mut pair = pair(root.path()).await;
    let target_tls = target_parameters();
    prepare(&pair.target, Side::Target, target_objects, Some(&target_tls)).await;
    let source_tls = source_parameters("h2");
    prepare(&pair.source, Side::Source, source_objects, Some(&source_tls)).await;
    send_until_the_link_is_cut(&mut pair).await;
    let shut = Instant::now();
    pair.source.qmp.yank_migration().await.unwrap();
    let info = pair.source.wait_for(MigrationStatus::is_final).await;
    println!("ended in {:?}", shut.elapsed());
    assert_eq!(info.status, MigrationStatus::Failed, "{info:?}");
    assert_eq!(run_state(&pair.source).await, RunState::Running);
    pair.source.assert_guest_writes().await;
    // QEMU says that the transfer has failed a moment before it has let go of its connection.
    let deadline = Instant::now() + Duration::from_secs(10);
    while pair.source.qmp.yank_migration().await.is_ok() {
        assert!(Instant::now() < deadline, "there is something left");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_cancel_at_pre_switchover_lets_the_source_run_on() {
    let root = tempfile::tempdir().unwrap();
    let mut pair = pair(root.path()).await;
    prepare(&pair.target, Side::Target, vec![], None).await;
    prepare(&pair.source, Side::Source, vec![], None).await;
    let limit = downtime_limit_parameter(300);
    pair.source.qmp.migrate_set_parameters(limit).await.unwrap();
    let channel = MigrationChannel::Tcp(listen(&pair.target).await);
    pair.source.qmp.migrate(&channel).await.unwrap();
    pair.source
        .wait_for(|status| *status == MigrationStatus::PreSwitchover)
        .await;
    pair.source.qmp.migrate_cancel().await.unwrap();
    let info = pair.source.wait_for(MigrationStatus::is_final).await;
    assert_eq!(info.status, MigrationStatus::Cancelled, "{info:?}");
    let again = pair.source.qmp.migrate_continue().await.unwrap_err();
    assert!(again.to_string().contains("not in expected state"), "{again}");
    // QEMU lets a guest run on by itself that ran when the migration began.
    assert_eq!(run_state(&pair.source).await, RunState::Running);
    pair.source.assert_guest_writes().await;
}

#[tokio::test]
async fn a_guest_is_suspended_to_a_file_and_restored() {
    let root = tempfile::tempdir().unwrap();
    let disk = guest_disk(root.path());
    let mut before = Vm::start(root.path(), "before", &spec(VM, &disk, Start::Boot)).await;
    before.qmp.cont().await.unwrap();
    before.wait_for_guest().await;
    before.qmp.stop().await.unwrap();
    let state = root.path().join("state, of it");
    let channel = MigrationChannel::State;
    let file = std::fs::File::create(&state).unwrap();
    before.qmp.hand_over_state(file).await.unwrap();
    file_settings(&before).await;
    let started = Instant::now();
    before.qmp.migrate(&channel).await.unwrap();
    let info = before.wait_for(MigrationStatus::is_final).await;
    assert_eq!(info.status, MigrationStatus::Completed, "{info:?}");
    println!("saved in {:?}: {info:?}", started.elapsed());
    before.qmp.quit().await.unwrap();
    before.process.gone().await.unwrap();
    let mut after = Vm::start(root.path(), "after", &spec(VM, &disk, Start::Incoming)).await;
    file_settings(&after).await;
    let started = Instant::now();
    let file = std::fs::File::open(&state).unwrap();
    after.qmp.hand_over_state(file).await.unwrap();
    after.qmp.migrate_incoming(&channel).await.unwrap();
    let info = after.wait_for(MigrationStatus::is_final).await;
    assert_eq!(info.status, MigrationStatus::Completed, "{info:?}");
    println!("restored in {:?}", started.elapsed());
    assert_eq!(run_state(&after).await, RunState::Paused);
    after.qmp.cont().await.unwrap();
    after.assert_guest_writes().await;
}

async fn file_settings(vm: &Vm) {
    let capabilities = file_capabilities();
    vm.qmp.migrate_set_capabilities(capabilities).await.unwrap();
    let parameters = file_parameters();
    vm.qmp.migrate_set_parameters(parameters).await.unwrap();
}

#[tokio::test]
async fn a_damaged_file_is_refused_and_its_error_can_be_read() {
    let root = tempfile::tempdir().unwrap();
    let disk = guest_disk(root.path());
    let state = root.path().join("state");
    std::fs::write(&state, vec![7; 100_000]).unwrap();
    let mut target = Vm::start(root.path(), "target", &spec(VM, &disk, Start::Incoming)).await;
    file_settings(&target).await;
    let file = std::fs::File::open(&state).unwrap();
    target.qmp.hand_over_state(file).await.unwrap();
    let channel = MigrationChannel::State;
    target.qmp.migrate_incoming(&channel).await.unwrap();
    let info = target.wait_for(MigrationStatus::is_final).await;
    assert_eq!(info.status, MigrationStatus::Failed);
    println!("error: {:?}", info.error_desc);
    assert!(info.error_desc.is_some());
}
