//! Real QEMUs for tests: a guest of one disk sector, certificates, and guards that end what was started.
//!
//! *Owns:* temporary directories and the processes in them. *Does not know:* what is tested.
//! *Start here:* [`Vm::start`].

#![allow(dead_code, reason = "each test binary uses its part")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use model::vm::BootDevice;
use qemu::command_line::{
    AGENT_SOCKET, Accelerator, Access, CONSOLE_SOCKET, Cache, Disk, ImageFormat, LaunchSpec, MACHINE_TYPE,
    Memory, QMP_SOCKET, Start, TCG_CPU_MODEL, command_line,
};
use qemu::migration_tls::{DH_PARAMETERS_FILE, DH_PARAMETERS_PEM};
use qemu::qmp::migration::{MigrationInfo, MigrationStatus};
use qemu::qmp::{Events, Qmp};
use qemu::spawn::{self, QemuProcess};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose,
};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::time::timeout;
use uuid::Uuid;

pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
const QEMU: &str = "qemu-system-x86_64";

/// The program, or a failure that says what to do.
pub(crate) fn program() -> &'static Path {
    let found = std::process::Command::new(QEMU).arg("--version").output();
    assert!(
        found.is_ok_and(|output| output.status.success()),
        "{QEMU} is missing: run make setup"
    );
    Path::new(QEMU)
}

/// One QEMU with its directory. Dropping it kills the process.
pub(crate) struct Vm {
    pub(crate) directory: PathBuf,
    pub(crate) process: QemuProcess,
    pub(crate) qmp: Qmp,
    pub(crate) events: Events,
    /// From before the start to the monitor's answer.
    pub(crate) start_time: Duration,
}

impl Drop for Vm {
    fn drop(&mut self) {
        end(&self.process);
    }
}

/// Kills a child and reaps it, so that a test leaves nothing, not even a number.
pub(crate) fn end(process: &QemuProcess) {
    let _ = process.send_kill();
    if let Some(pid) = Pid::from_raw(process.id().pid) {
        let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED);
    }
}

/// What two QEMUs of one VM have in common.
pub(crate) fn spec(vm: Uuid, disk: &Path, start: Start) -> LaunchSpec {
    LaunchSpec {
        vm,
        name: "test, with a comma".to_owned(),
        memory_mib: 128,
        memory: Memory::Own,
        vcpus: 1,
        machine_type: MACHINE_TYPE.to_owned(),
        cpu_model: TCG_CPU_MODEL.to_owned(),
        accelerator: Accelerator::Tcg { tb_size_mib: 16 },
        disks: vec![Disk {
            slot: 0,
            path: disk.to_owned(),
            format: ImageFormat::Raw,
            base: None,
            cache: Cache::HostPageCache,
            access: Access::ReadOnly,
        }],
        cdrom: None,
        boot: BootDevice::USUAL.into(),
        uefi: None,
        seed: None,
        nics: Vec::new(),
        start,
    }
}

impl Vm {
    /// Starts a QEMU in `root`/`name`.
    pub(crate) async fn start(root: &Path, name: &str, spec: &LaunchSpec) -> Self {
        let directory = root.join(name);
        std::fs::create_dir(&directory).unwrap();
        let before = Instant::now();
        let process = spawn::spawn(program(), &command_line(spec).unwrap(), &directory, None).unwrap();
        let connected = spawn::connect(&process, &directory, QMP_SOCKET, DEADLINE).await;
        let (qmp, events) = match connected {
            Ok(connected) => connected,
            Err(error) => {
                end(&process);
                panic!("{error}");
            }
        };
        Self {
            directory,
            process,
            qmp,
            events,
            start_time: before.elapsed(),
        }
    }

    /// Waits by events until the migration's status satisfies `wanted`.
    pub(crate) async fn wait_for(&mut self, wanted: impl Fn(&MigrationStatus) -> bool) -> MigrationInfo {
        let waited = timeout(DEADLINE, async {
            loop {
                let info = self.qmp.query_migrate().await.unwrap();
                if wanted(&info.status) {
                    return info;
                }
                self.events.next().await.expect("QEMU is gone");
            }
        });
        match waited.await {
            Ok(info) => info,
            Err(_) => panic!("stuck: {:?}", self.qmp.query_migrate().await),
        }
    }

    /// Proves that the guest runs: its program writes to the console, for ever.
    pub(crate) async fn assert_guest_writes(&self) {
        let path = self.directory.join(CONSOLE_SOCKET);
        let mut console = UnixStream::connect(path).await.unwrap();
        let mut marks = [0; 16];
        let read = timeout(DEADLINE, console.read_exact(&mut marks)).await;
        read.expect("the guest is silent").unwrap();
        assert_eq!(marks, [b'#'; 16]);
    }

    /// Waits for the guest's program, after the firmware's messages.
    pub(crate) async fn wait_for_guest(&self) {
        let path = self.directory.join(CONSOLE_SOCKET);
        let mut console = UnixStream::connect(path).await.unwrap();
        let mut seen = Vec::new();
        let marks = timeout(DEADLINE, async {
            while !seen.ends_with(b"########") {
                assert_ne!(console.read_buf(&mut seen).await.unwrap(), 0);
            }
        });
        marks.await.expect("the guest did not start");
    }

    pub(crate) fn agent_socket(&self) -> PathBuf {
        self.directory.join(AGENT_SOCKET)
    }
}

/// A disk whose program touches 512 KiB of memory and writes to the console, in an endless loop.
pub(crate) fn guest_disk(root: &Path) -> PathBuf {
    let code = [
        0xfa, // cli: the firmware shall not write in between
        0xb8, 0x00, 0x20, // again: mov ax, 0x2000
        0x8e, 0xc0, // page: mov es, ax
        0x26, 0xff, 0x06, 0x00, 0x00, // inc word [es:0]
        0x05, 0x00, 0x01, // add ax, 0x100 (a page)
        0x3d, 0x00, 0x90, // cmp ax, 0x9000
        0x72, 0xf1, // jb page
        0xb0, b'#', // mov al, '#'
        0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xee, // out dx, al
        0xeb, 0xe6, // jmp again
    ];
    let mut disk = vec![0; 1024 * 1024];
    disk[..code.len()].copy_from_slice(&code);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let path = root.join("guest.img");
    std::fs::write(&path, disk).unwrap();
    path
}

/// The certificates' authority of a cloud's migrations.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = common_name("migration authority");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(parameters, key).unwrap())
    }

    /// Makes the credentials' directory of host `name`, as QEMU expects it.
    pub(crate) fn credentials(&self, root: &Path, name: &str) -> String {
        let mut parameters = CertificateParams::new([name.to_owned()]).unwrap();
        parameters.distinguished_name = common_name(name);
        parameters.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        parameters.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.0).unwrap();
        let directory = root.join(format!("tls-{name}"));
        std::fs::create_dir(&directory).unwrap();
        let write = |file: &str, text: &str| std::fs::write(directory.join(file), text).unwrap();
        write("ca-cert.pem", &self.0.pem());
        for role in ["client", "server"] {
            write(&format!("{role}-cert.pem"), &certificate.pem());
            write(&format!("{role}-key.pem"), &key.serialize_pem());
        }
        write(DH_PARAMETERS_FILE, DH_PARAMETERS_PEM);
        directory.to_str().unwrap().to_owned()
    }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}
