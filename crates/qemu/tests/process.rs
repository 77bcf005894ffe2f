//! A QEMU with all kinds of devices, and one that is found again by a restarted agent, with the real QEMU.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use model::report::CdromState;
use model::vm::BootDevice;
use qemu::command_line::{
    Access, Base, Cache, Cdrom, Disk, ImageFormat, LaunchSpec, Medium, QMP_SECOND_SOCKET, QMP_SOCKET, Start,
    command_line,
};
use qemu::guest_agent::{GuestAgent, GuestAgentError};
use qemu::image::QemuImg;
use qemu::qmp::commands::RunState;
use qemu::qmp::{Qmp, QmpError};
use qemu::spawn::{self, ConnectError, Exit, Found, QemuProcess, RECORD_FILE};
use serde_json::json;
use support::{DEADLINE, Vm, end, guest_disk, program, spec};
use tempfile::TempDir;
use uuid::Uuid;

const VM: Uuid = Uuid::from_u128(0x0190_b2a4_0000_7000_8000_0000_0000_0002);

/// Kills a process whose [`Vm`] was given up.
struct Guard(QemuProcess);

impl Drop for Guard {
    fn drop(&mut self) {
        end(&self.0);
    }
}

/// A QEMU whose monitors nobody is connected to, as after the end of an agent.
async fn left_behind() -> (TempDir, PathBuf, Guard) {
    let root = tempfile::tempdir().unwrap();
    let disk = guest_disk(root.path());
    let line = command_line(&spec(VM, &disk, Start::Boot)).unwrap();
    let directory = root.path().to_owned();
    let guard = Guard(spawn::spawn(program(), &line, &directory, None).unwrap());
    let connected = spawn::connect(&guard.0, &directory, QMP_SOCKET, DEADLINE).await;
    drop(connected.unwrap());
    (root, directory, guard)
}

#[tokio::test]
async fn a_restarted_agent_finds_its_qemu_by_lock_record_and_uuid() {
    let (_root, directory, guard) = left_behind().await;
    let found = spawn::find(&directory, VM, DEADLINE).await.unwrap();
    let Found::Running(running) = found else {
        panic!("{found:?}");
    };
    assert_eq!(running.process.id(), guard.0.id());
    let status = running.qmp.query_status().await.unwrap();
    assert_eq!(status.status, RunState::Prelaunch);
    let second = directory.join(QMP_SECOND_SOCKET);
    let (second, _events) = Qmp::connect(&second, DEADLINE).await.unwrap();
    assert_eq!(second.query_uuid().await.unwrap(), VM);
    let exit = spawn::kill(&running.process, &directory, DEADLINE).await;
    assert_eq!(exit.unwrap(), Exit::Signal(9));
    let found = spawn::find(&directory, VM, DEADLINE).await.unwrap();
    assert!(matches!(found, Found::Nothing));
}

#[tokio::test]
async fn a_guests_processors_give_way_and_the_rest_of_its_qemu_does_not() {
    let (_root, directory, guard) = left_behind().await;
    let (qmp, _events) = Qmp::connect(&directory.join(QMP_SOCKET), DEADLINE).await.unwrap();
    let vcpus = qmp.vcpu_threads().await.unwrap();
    let niceness = |thread: i32| {
        let thread = rustix::process::Pid::from_raw(thread);
        rustix::process::getpriority_process(thread).unwrap()
    };
    let usual = niceness(guard.0.id().pid);
    spawn::yield_to_others(&vcpus).unwrap();
    assert_eq!(vcpus.len(), 1);
    assert!(niceness(vcpus[0]) > usual);
    assert_eq!(niceness(guard.0.id().pid), usual);
}

#[tokio::test]
async fn without_a_record_the_listener_of_its_socket_is_believed() {
    let (_root, directory, guard) = left_behind().await;
    std::fs::remove_file(directory.join(RECORD_FILE)).unwrap();
    for _ in 0..2 {
        let found = spawn::find(&directory, VM, DEADLINE).await.unwrap();
        let Found::Running(running) = found else {
            panic!("{found:?}");
        };
        assert_eq!(running.process.id(), guard.0.id());
    }
    assert!(directory.join(RECORD_FILE).exists());
}

#[tokio::test]
async fn another_vms_qemu_is_not_ours_to_touch_and_a_taken_monitor_is_named() {
    let (_root, directory, _guard) = left_behind().await;
    let found = spawn::find(&directory, Uuid::nil(), DEADLINE).await;
    let Found::Unproven {
        process: None,
        reason,
    } = found.unwrap()
    else {
        panic!("it was believed");
    };
    assert!(reason.contains(&VM.to_string()), "{reason}");
    let (_occupier, _events) = Qmp::connect(&directory.join(QMP_SOCKET), DEADLINE).await.unwrap();
    let found = spawn::find(&directory, VM, Duration::from_millis(300)).await;
    assert!(matches!(found.unwrap(), Found::Unproven { process: Some(_), .. }));
}

async fn full_spec(root: &Path) -> LaunchSpec {
    let base = guest_disk(root);
    let seed = root.join("seed.img");
    std::fs::write(&seed, vec![0; 512 * 1024]).unwrap();
    let overlay = root.join(r#"over"lay, odd.qcow2"#);
    let data = root.join("data.qcow2");
    let qemu_img = QemuImg::default();
    let created = qemu_img.create_overlay(&overlay, &base, ImageFormat::Raw, None);
    created.await.unwrap();
    qemu_img.create_empty(&data, 64 << 20).await.unwrap();
    let mut spec = spec(VM, &overlay, Start::Boot);
    spec.disks[0].format = ImageFormat::Qcow2;
    spec.disks[0].base = Some(Base {
        path: base,
        format: ImageFormat::Raw,
        base: None,
    });
    spec.disks[0].access = Access::ReadWrite;
    spec.disks.push(Disk {
        slot: 11,
        path: data,
        format: ImageFormat::Qcow2,
        base: None,
        cache: Cache::HostPageCache,
        access: Access::ReadWrite,
    });
    spec.seed = Some(seed);
    spec
}

#[tokio::test]
async fn a_vm_with_overlay_data_disk_and_seed_boots_and_its_image_is_locked() {
    let root = tempfile::tempdir().unwrap();
    let spec = full_spec(root.path()).await;
    let vm = Vm::start(root.path(), "vm", &spec).await;
    let devices = vm.qmp.query_block().await.unwrap();
    let mut nodes: Vec<&str> = devices
        .iter()
        .filter_map(|device| device.inserted.as_ref())
        .map(|node| node.node_name.as_str())
        .collect();
    nodes.sort_unstable();
    assert_eq!(nodes, ["disk0", "disk11", "seed"]);
    let extra = json!({"driver": "virtio-rng-pci", "id": "extra", "bus": "hot3", "rng": "entropy"});
    vm.qmp.execute("device_add", extra).await.unwrap();
    vm.qmp.cont().await.unwrap();
    vm.wait_for_guest().await;
    let info = QemuImg::default()
        .info(&spec.disks[0].path, Some(ImageFormat::Qcow2))
        .await;
    assert!(info.unwrap().backing_path.is_some());
    // A second start on the same image.
    let directory = root.path().join("second");
    std::fs::create_dir(&directory).unwrap();
    let line = command_line(&spec).unwrap();
    let second = Guard(spawn::spawn(program(), &line, &directory, None).unwrap());
    let connected = spawn::connect(&second.0, &directory, QMP_SOCKET, DEADLINE).await;
    let error = connected.unwrap_err();
    let exit = Exit::Code(1);
    assert!(
        matches!(&error, ConnectError::Ended { exit: code, .. } if *code == exit),
        "{error:?}"
    );
    assert!(error.to_string().contains("lock"), "{error}");
    println!("{error}");
}

/// A file by which a medium is known.
fn medium(root: &Path, sha256: &str) -> Medium {
    let path = root.join(format!("{sha256}.raw"));
    std::fs::write(&path, vec![0; 64 * 1024]).unwrap();
    Medium {
        path,
        sha256: sha256.to_owned(),
    }
}

#[tokio::test]
async fn a_medium_is_taken_out_and_another_put_in_and_the_order_of_booting_changed() {
    let root = tempfile::tempdir().unwrap();
    let disk = guest_disk(root.path());
    let mut spec = spec(VM, &disk, Start::Boot);
    let [first, second] = ["aa", "bb"].map(|sha256| medium(root.path(), sha256));
    spec.cdrom = Some(Cdrom {
        medium: Some(first.clone()),
    });
    let vm = Vm::start(root.path(), "vm", &spec).await;
    let state = async || vm.qmp.query_cdrom().await.unwrap().unwrap();
    let mut expected = CdromState {
        medium: Some("aa".to_owned()),
        is_open: false,
        boot: BootDevice::USUAL.into(),
    };
    assert_eq!(state().await, expected);
    for _ in 0..2 {
        vm.qmp.eject_medium(false).await.unwrap();
        (expected.medium, expected.is_open) = (None, true);
        assert_eq!(state().await, expected);
    }
    // Into an empty drive, in place of another, and the same again.
    for medium in [&second, &first, &first] {
        let file = std::fs::File::open(&medium.path).unwrap();
        vm.qmp.insert_medium(file, &medium.sha256, false).await.unwrap();
        (expected.medium, expected.is_open) = (Some(medium.sha256.clone()), false);
        assert_eq!(state().await, expected);
        let sets = vm.qmp.execute("query-fdsets", json!({})).await.unwrap();
        assert_eq!(sets.to_string().matches("medium:").count(), 1, "{sets}");
    }
    for boot in [
        vec![BootDevice::Cdrom, BootDevice::Disk],
        vec![BootDevice::Cdrom],
        BootDevice::USUAL.into(),
    ] {
        vm.qmp.set_boot(&boot).await.unwrap();
        assert_eq!(state().await.boot, boot);
    }
}

#[tokio::test]
async fn what_a_guest_without_agent_and_a_wrong_command_answer() {
    let root = tempfile::tempdir().unwrap();
    let disk = guest_disk(root.path());
    let vm = Vm::start(root.path(), "vm", &spec(VM, &disk, Start::Boot)).await;
    let deadline = Duration::from_millis(200);
    let mut agent = GuestAgent::connect(&vm.agent_socket(), deadline, 1)
        .await
        .unwrap();
    assert!(matches!(agent.ping().await, Err(GuestAgentError::Timeout { .. })));
    let wrong = vm.qmp.migrate_continue().await;
    assert!(matches!(wrong, Err(QmpError::Command { .. })), "{wrong:?}");
    println!("{}", wrong.unwrap_err());
    vm.qmp.quit().await.unwrap();
    assert_eq!(vm.process.gone().await.unwrap(), Exit::Code(0));
}
