//! As whom QEMU runs: a user of its own for each VM, where this host can do that.
//!
//! **Owns:** which user a VM's QEMU gets, and finding out what the host can do.
//!
//! **Does not know:** how a process becomes that user.
//!
//! **Start here:** [`Way::find`], then [`Users::of`].
//!
//! A VM's number follows from its id, so that it is mostly the same on every host, and is another one only if a VM that is
//! here has it already. It belongs to the VM until the host forgets the VM. No file is that user's, so nothing is left
//! when the number comes to be another's.

use std::collections::BTreeMap;
use std::fs;
use std::ops::RangeInclusive;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use model::VmId;
use model::host::{QemuUser, QemuUserName};
use qemu::spawn::{User, try_user};

use crate::config::HostDir;
use crate::vm::live::Launch;

/// The user for all QEMUs of a host that cannot give each its own.
const COMMON_USER: &str = "sterna-qemu";
const USERS_FILE: &str = "/etc/passwd";
/// With which QEMU opens its guest's network ports.
const TUN_DEVICE: &str = "/dev/net/tun";

/// What a host can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// A user for each VM.
    Each(RangeInclusive<u32>),
    /// One for all VMs.
    Common(User),
    /// The agent's own.
    Agent,
}

/// There are more VMs than users.
#[derive(Debug, thiserror::Error)]
#[error("every user from {first} to {last} has a VM on this host: start its agent with more `--qemu-uids`")]
pub struct UsedUp {
    first: u32,
    last: u32,
}

impl Way {
    /// Tries, and says why it is not better.
    pub async fn find(uids: RangeInclusive<u32>, qemu: &Path) -> (Self, QemuUser) {
        let qemu = qemu.to_owned();
        let tried = tokio::task::spawn_blocking(move || Self::try_all(uids, &qemu)).await;
        tried.unwrap_or_else(|error| (Self::Agent, said(QemuUserName::Agent, Some(error.to_string()))))
    }

    fn try_all(uids: RangeInclusive<u32>, qemu: &Path) -> (Self, QemuUser) {
        let can_be = |user| can_use_ports().and_then(|()| try_user(qemu, user));
        let why = match can_be(User { id: *uids.start() }) {
            Ok(()) => return (Self::Each(uids), said(QemuUserName::Vm, None)),
            Err(why) => why,
        };
        let users = fs::read_to_string(USERS_FILE).unwrap_or_default();
        match common_user(&users).filter(|user| can_be(*user).is_ok()) {
            Some(user) => (Self::Common(user), said(QemuUserName::Host, Some(why))),
            None => (Self::Agent, said(QemuUserName::Agent, Some(why))),
        }
    }
}

fn said(name: QemuUserName, why: Option<String>) -> QemuUser {
    QemuUser { name, why }
}

/// The third word of `sterna-qemu:x:110:…`.
fn common_user(users: &str) -> Option<User> {
    let mut lines = users.lines().map(|line| line.split(':'));
    let mut line = lines.find(|line| line.clone().next() == Some(COMMON_USER))?;
    let id = line.nth(2)?.parse().ok()?;
    Some(User { id })
}

fn can_use_ports() -> Result<(), String> {
    const READ_AND_WRITE: u32 = 0o006;
    match fs::metadata(TUN_DEVICE) {
        Ok(tun) if tun.permissions().mode() & READ_AND_WRITE != READ_AND_WRITE => Err(format!(
            "{TUN_DEVICE} is closed to other users: `chmod 0666 {TUN_DEVICE}`, and start the agent again"
        )),
        _ => Ok(()),
    }
}

/// The users of this host's VMs.
#[derive(Debug)]
pub struct Users {
    way: Way,
    taken: Mutex<BTreeMap<VmId, u32>>,
}

impl Users {
    /// With what the QEMUs have that an earlier agent started.
    pub fn open(way: Way, dir: &HostDir) -> Self {
        let vms = fs::read_dir(dir.vms()).into_iter().flatten().flatten();
        let taken = vms.filter_map(|vm| {
            let id: VmId = vm.file_name().to_str()?.parse().ok()?;
            let runs = fs::read_dir(vm.path()).into_iter().flatten().flatten();
            let mut users = runs.filter_map(|run| Launch::read(&run.path()).ok()?.user);
            Some((id, users.next()?))
        });
        Self {
            way,
            taken: Mutex::new(taken.collect()),
        }
    }

    /// The user of a VM; the agent's own if `None`.
    pub fn of(&self, vm: VmId) -> Result<Option<User>, UsedUp> {
        match &self.way {
            Way::Each(uids) => self.own(vm, uids).map(Some),
            Way::Common(user) => Ok(Some(*user)),
            Way::Agent => Ok(None),
        }
    }

    fn own(&self, vm: VmId, uids: &RangeInclusive<u32>) -> Result<User, UsedUp> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = taken.get(&vm).filter(|id| uids.contains(id)) {
            return Ok(User { id: *id });
        }
        let (first, last) = (*uids.start(), *uids.end());
        let count = u64::from(last - first) + 1;
        // An id's last bits are random.
        let wanted = (vm.0.as_u128() as u64 % count) as u32;
        let mut ids = uids.clone().skip(wanted as usize).chain(uids.clone());
        let id = ids.find(|id| taken.values().all(|other| other != id));
        let id = id.ok_or(UsedUp { first, last })?;
        taken.insert(vm, id);
        Ok(User { id })
    }

    /// The host has forgotten the VM.
    pub fn forget(&self, vm: VmId) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.remove(&vm);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn vm(bits: u128) -> VmId {
        VmId(Uuid::from_u128(bits))
    }

    fn users(uids: RangeInclusive<u32>, dir: &HostDir) -> Users {
        Users::open(Way::Each(uids), dir)
    }

    #[test]
    fn a_vm_has_the_same_user_on_every_host_and_shares_it_with_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let dir = HostDir(dir.path().to_owned());
        let (one, other) = (users(100..=109, &dir), users(100..=109, &dir));
        let id = |users: &Users, vm| users.of(vm).unwrap().unwrap().id;
        assert_eq!(id(&one, vm(17)), 107);
        assert_eq!(id(&other, vm(17)), 107);
        // Both would like the same.
        assert_eq!(id(&one, vm(27)), 108);
        assert_eq!(id(&one, vm(19)), 109);
        assert_eq!(id(&one, vm(29)), 100);
        assert_eq!(id(&one, vm(17)), 107);
        one.forget(vm(17));
        assert_eq!(id(&one, vm(37)), 107);
    }

    #[test]
    fn more_vms_than_users_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let users = users(100..=101, &HostDir(dir.path().to_owned()));
        users.of(vm(1)).unwrap();
        users.of(vm(2)).unwrap();
        let refusal = users.of(vm(3)).unwrap_err().to_string();
        assert!(refusal.contains("--qemu-uids"), "{refusal}");
        users.of(vm(1)).unwrap();
    }

    #[test]
    fn what_an_earlier_agent_started_keeps_its_user() {
        let dir = tempfile::tempdir().unwrap();
        let dir = HostDir(dir.path().to_owned());
        let run = dir.vm(vm(17)).run(model::Incarnation(1));
        fs::create_dir_all(&run).unwrap();
        let launch = Launch {
            incoming: false,
            user: Some(103),
            has_cdrom: false,
        };
        launch.write(&run).unwrap();
        let users = users(100..=109, &dir);
        assert_eq!(users.of(vm(17)).unwrap(), Some(User { id: 103 }));
        assert_eq!(users.of(vm(13)).unwrap(), Some(User { id: 104 }));
    }

    #[test]
    fn the_common_user_is_found_by_its_name() {
        let users = "root:x:0:0::/root:/bin/sh\nsterna-qemu-2:x:5:5::/:/x\nsterna-qemu:x:998:997::/:/x\n";
        assert_eq!(common_user(users), Some(User { id: 998 }));
        assert_eq!(common_user("root:x:0:0::/root:/bin/sh\n"), None);
    }
}
