//! What an agent is told when it starts, and where it keeps what.
//!
//! **Owns:** [`Config`] and the names of the files in the host's directory.
//!
//! **Does not know:** what is in those files.
//!
//! **Start here:** [`HostDir`].

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::{Incarnation, VmId};

/// The settings of one agent.
#[derive(Debug, Clone)]
pub struct Config {
    /// The host's own directory, `DIR/hosts/NAME`.
    pub data_dir: PathBuf,
    /// Where a server answers, as `https://NAME:PORT`.
    pub server: String,
    /// A file with the certificates (PEM) that the server's certificate is checked with.
    pub server_ca: PathBuf,
    /// What lets the host join; not looked at once it has joined.
    pub join_token: Option<JoinToken>,
    /// The name that the host would like.
    pub name: Option<String>,
    /// Where to listen for other agents. Port 0 takes any.
    pub peer_listen: SocketAddr,
    /// Where other agents reach this one; if absent, the underlay address with the port that is listened on.
    pub peer_advertise: Option<SocketAddr>,
    /// The host's address between hosts: of VXLAN tunnels and migration streams.
    pub underlay_address: IpAddr,
    /// The memory that agent and kernel keep for themselves.
    pub reserved_mib: u64,
    /// The size of the buffers of migrations' sockets, if it is not the kernel's business.
    pub migration_buffer: Option<usize>,
    /// Users that are nobody else's, for the VMs' QEMUs.
    pub qemu_uids: RangeInclusive<u32>,
    /// How long a file of an image that is no more is kept in a datastore, and for how long once more after it was put aside.
    pub unneeded_kept_for: Duration,
}

/// What lets a host join, once.
#[derive(Clone)]
pub enum JoinToken {
    /// The token itself.
    Text(String),
    /// A file that holds it.
    File(PathBuf),
}

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(_) => f.write_str("Text(…)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// The files of a host.
///
/// ```text
/// lock             held by the agent that runs
/// host.json        id and name, once joined
/// journal          see the module of that name
/// document.json    the last document
/// accelerator.json what the probe found, for this start of the machine
/// speaker          what the agent said of its machine when a server took it last
/// pki/             the agent's key and certificate; pki/migration for QEMU's streams
/// vms/ID/          see VmDir
/// ```
#[derive(Debug, Clone)]
pub struct HostDir(pub PathBuf);

impl HostDir {
    /// Held by the agent that runs.
    pub fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// Id and name of the host.
    pub fn identity(&self) -> PathBuf {
        self.0.join("host.json")
    }

    /// The journal.
    pub fn journal(&self) -> PathBuf {
        self.0.join("journal")
    }

    /// The last document.
    pub fn document(&self) -> PathBuf {
        self.0.join("document.json")
    }

    /// What the accelerator's probe found.
    pub fn accelerator(&self) -> PathBuf {
        self.0.join("accelerator.json")
    }

    /// What the agent said of its machine when a server took it last.
    pub fn speaker(&self) -> PathBuf {
        self.0.join("speaker")
    }

    /// The agent's key and certificates.
    pub fn pki(&self) -> PathBuf {
        self.0.join("pki")
    }

    /// QEMU's key and certificates, for migration streams.
    pub fn migration_pki(&self) -> PathBuf {
        self.0.join("pki").join("migration")
    }

    /// All VMs.
    pub fn vms(&self) -> PathBuf {
        self.0.join("vms")
    }

    /// One VM.
    pub fn vm(&self, vm: VmId) -> VmDir {
        VmDir(self.vms().join(vm.to_string()))
    }
}

/// The files of a VM on a host.
///
/// ```text
/// description.json  from which the store can be rebuilt
/// console.log       what the guest wrote, console.log.1 and .2 before it
/// saved-N.state     the memory that incarnation N saved
/// N/                the run directory of incarnation N: sockets, lock, seed, QEMU's log, and credentials while it reads them
/// ```
#[derive(Debug, Clone)]
pub struct VmDir(pub PathBuf);

impl VmDir {
    /// From which the store can be rebuilt.
    pub fn description(&self) -> PathBuf {
        self.0.join("description.json")
    }

    /// What the guest wrote on its console.
    pub fn console_log(&self) -> PathBuf {
        self.0.join("console.log")
    }

    /// The memory that an incarnation saved.
    pub fn saved_state(&self, incarnation: Incarnation) -> PathBuf {
        self.0.join(format!("saved-{incarnation}.state"))
    }

    /// The run directory of an incarnation. Its QEMU works in it.
    pub fn run(&self, incarnation: Incarnation) -> PathBuf {
        self.0.join(incarnation.to_string())
    }
}

/// The disks of a VM in a datastore.
pub fn volume_dir(datastore: &Path, vm: VmId) -> PathBuf {
    volumes_dir(datastore).join(vm.to_string())
}

/// The disks of all VMs in a datastore.
pub fn volumes_dir(datastore: &Path) -> PathBuf {
    datastore.join("volumes")
}

/// The memory that an incarnation saved into a datastore, beside its disks.
pub fn saved_state(datastore: &Path, vm: VmId, incarnation: Incarnation) -> PathBuf {
    volume_dir(datastore, vm).join(format!("saved-{incarnation}.state"))
}

/// The images of a datastore.
pub fn image_dir(datastore: &Path) -> PathBuf {
    datastore.join("images")
}
