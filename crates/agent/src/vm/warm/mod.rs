//! Memory that is kept for others: by a warm VM, and mapped by those that start from it.
//!
//! **Owns:** a warm VM's files, and that they are only read once they are whole; what ties them to a build of QEMU; what makes
//! a copy of a guest somebody of its own.
//!
//! **Does not know:** which VM starts from which.
//!
//! The files are in the warm VM's directory in the datastore: `memory-N.ram` is the memory, mapped by QEMU, `saved-N.state`
//! the state of the devices, that of UEFI's flash chips too, and `warm-N.json`, which comes last, what they were made by. The directory is closed to all but
//! the agent; QEMU opens the memory by the descriptor that it inherits, so the file itself has to let its user in.
//!
//! **Start here:** [`Vm::keep_warm`], [`Vm::load_warm`], [`Vm::identify`].

mod waiting;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use driver::types::{Failure, Outcome};
use model::document::{Machine, Order, Port, StartFrom};
use model::template::ANOTHER_BUILD;
use model::vm::Firmware;
use model::{Incarnation, Reason, VmId};
use qemu::command_line::{MACHINE_TYPE, Memory};
use qemu::migration_settings::warm_capabilities;
use qemu::qmp::Qmp;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::timeout;

use self::waiting::KEYS;
pub(super) use self::waiting::Waiting;
use super::errand::{Errand, Step};
use super::exec::{Vm, qmp_failure, storage_failure};
use super::retryable;
use crate::{chance, config, firmware, storage};

const SETTLE: &str = include_str!("settle.sh");
const ENTROPY: &str = include_str!("entropy.sh");
const IDENTITY: &str = include_str!("identity.sh");

/// How long a guest may take to end its boot.
const SETTLE_PATIENCE: Duration = Duration::from_secs(1800);
/// How long it may take until nothing is asked of a guest any more.
const REST_PATIENCE: Duration = Duration::from_secs(5);
/// How long what waits in a guest may take to give it an identity, before scripts are to do it: of that, keys for its services take
/// most. Where many start at once on an emulated processor it is long, and a boot instead would be far longer.
const TELL_PATIENCE: Duration = Duration::from_secs(120);
/// How long scripts may take to give a guest an identity.
const IDENTITY_PATIENCE: Duration = Duration::from_secs(120);
/// What waits in a guest that is being warmed, in its run directory.
const WAITING_FILE: &str = "waiting.json";
/// What a guest's random numbers are drawn anew from.
const ENTROPY_BYTES: usize = 64;
const MIB: u64 = 1 << 20;

/// What a warm VM's memory and state were made by. Only a QEMU of which all of this is true can go on from them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct MadeBy {
    qemu: String,
    machine_type: String,
    cpu_model: String,
    accelerator: String,
    memory_mib: u64,
    vcpus: u32,
    /// The program of UEFI, of what is started by that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uefi: Option<String>,
}

/// The description of a warm VM's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct WarmForm {
    made_by: MadeBy,
    /// The MAC addresses that the guest knows its interfaces by.
    macs: Vec<String>,
    /// What waits in it to be told who it is.
    #[serde(default)]
    waiting: Option<Waiting>,
}

/// What one incarnation of a warm VM leaves.
struct Files {
    directory: PathBuf,
    memory: PathBuf,
    state: PathBuf,
    form: PathBuf,
}

impl Files {
    fn of(datastore: &str, vm: VmId, incarnation: Incarnation) -> Self {
        let datastore = Path::new(datastore);
        let directory = config::volume_dir(datastore, vm);
        Self {
            memory: directory.join(format!("memory-{incarnation}.ram")),
            state: config::saved_state(datastore, vm, incarnation),
            form: directory.join(format!("warm-{incarnation}.json")),
            directory,
        }
    }

    /// The memory's file, empty, for a QEMU that runs as this user, or as the agent's.
    fn make_memory(&self, memory_mib: u64, is_others: bool) -> std::io::Result<()> {
        let _ = fs::remove_file(&self.memory);
        let mut file = fs::File::options();
        let file = file.write(true).create_new(true).open(&self.memory)?;
        file.set_len(memory_mib * MIB)?;
        let mode = if is_others { 0o666 } else { 0o600 };
        file.set_permissions(fs::Permissions::from_mode(mode))
    }

    /// From now on nobody writes them: they are durable, and only read.
    fn seal(&self, volumes: &[PathBuf], form: &WarmForm) -> std::io::Result<()> {
        for path in [&self.memory, &self.state].into_iter().chain(volumes) {
            fs::File::open(path)?.sync_all()?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o444))?;
        }
        let part = self.form.with_extension("part");
        fs::write(&part, serde_json::to_vec_pretty(form)?)?;
        fs::File::open(&part)?.sync_all()?;
        fs::rename(&part, &self.form)?;
        fs::File::open(&self.directory)?.sync_all()
    }
}

impl Vm {
    /// What its guest's memory is made of: a file only for an incarnation that begins here.
    pub(super) fn memory(&self, machine: &Machine, as_target: bool) -> Result<Memory, Failure> {
        let order = self.desired()?.order;
        if as_target {
            return Ok(Memory::Own);
        }
        if let Some((vm, incarnation)) = source(&order) {
            return Ok(Memory::CopyOf(
                Files::of(&machine.disk.datastore, vm, incarnation).memory,
            ));
        }
        if !machine.keeps_memory {
            return Ok(Memory::Own);
        }
        let files = Files::of(&machine.disk.datastore, self.id.vm, self.id.incarnation);
        let made = files.make_memory(machine.memory_mib, self.user()?.is_some());
        made.map_err(|error| retryable("storage-failed", &error))?;
        Ok(Memory::Kept(files.memory))
    }

    /// The guest's boot is over, and all that it had to write is on its disk.
    pub(super) async fn settle(&self) -> Result<(), Failure> {
        let steps = vec![Step::Shell {
            what: "waiting for the end of its boot",
            script: SETTLE.to_owned(),
            arguments: Vec::new(),
            input: String::new(),
            clock: None,
        }];
        self.run_errand(steps, SETTLE_PATIENCE).await?;
        self.have_it_wait().await
    }

    /// Something waits in the guest to be told who it is. Where nothing can, scripts are run later.
    async fn have_it_wait(&self) -> Result<(), Failure> {
        let file = self.run_dir().join(WAITING_FILE);
        storage::remove(&file).map_err(storage_failure)?;
        let (whom, waiting) = oneshot::channel();
        let started = self.run_errand(vec![Step::Wait(whom)], SETTLE_PATIENCE).await;
        match started {
            Ok(()) => {}
            Err(failure) if failure.is_retryable => return Err(failure),
            Err(failure) => {
                let reason = failure.reason.message;
                tracing::warn!(
                    reason,
                    "nothing waits in the guest to be told who it is: scripts will tell it"
                );
                return Ok(());
            }
        }
        let Ok(waiting) = waiting.await else { return Ok(()) };
        let bytes = serde_json::to_vec(&waiting).map_err(|error| retryable("storage-failed", &error))?;
        storage::write_whole(&file, &bytes).map_err(storage_failure)
    }

    /// Stops the guest and leaves its memory and its devices' state for others. Asked again, it goes on where it was.
    pub(super) async fn keep_warm(&self) -> Result<Outcome, Failure> {
        let machine = self.desired()?.machine;
        let files = Files::of(&machine.disk.datastore, self.id.vm, self.id.incarnation);
        let has_memory = fs::metadata(&files.memory).is_ok_and(|file| file.len() == machine.memory_mib * MIB);
        if !has_memory {
            let message = "its memory is not in a file: it has moved to another host meanwhile";
            return Err(terminal("memory-not-kept", message.to_owned()));
        }
        // Each copy of the guest would answer first what it is asked now.
        let rest = timeout(REST_PATIENCE, self.let_rest()).await;
        let bytes = self.save_to(&files.state, warm_capabilities()).await?;
        drop(rest);
        let form = WarmForm {
            made_by: self.made_by(&self.live().await?.qmp, &machine).await?,
            macs: machine.nics.iter().map(|nic| nic.mac.clone()).collect(),
            waiting: self.waiting(),
        };
        let mut volumes = vec![storage::disk_path(self.id.vm, &machine.disk)];
        if machine.firmware == Firmware::Uefi {
            volumes.push(firmware::path(self.id.vm, &machine.disk));
        }
        let sealed = tokio::task::spawn_blocking(move || files.seal(&volumes, &form)).await;
        let sealed = sealed.map_err(|error| retryable("storage-failed", &error))?;
        sealed.map_err(|error| retryable("storage-failed", &error))?;
        Ok(Outcome::Saved { bytes })
    }

    /// The guest is asked nothing until what is given here is dropped.
    async fn let_rest(&self) -> Option<oneshot::Sender<()>> {
        let (begun, has_begun) = oneshot::channel();
        let (rest, over) = oneshot::channel();
        let (errand, _) = Errand::new(vec![Step::Rest(begun, over)], REST_PATIENCE);
        self.live().await.ok()?.give(errand).await;
        has_begun.await.ok()?;
        Some(rest)
    }

    fn waiting(&self) -> Option<Waiting> {
        let bytes = fs::read(self.run_dir().join(WAITING_FILE)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    async fn made_by(&self, qmp: &Qmp, machine: &Machine) -> Result<MadeBy, Failure> {
        Ok(MadeBy {
            qemu: qmp.query_version().await.map_err(qmp_failure)?,
            machine_type: MACHINE_TYPE.to_owned(),
            cpu_model: self.host.cpu_model.clone(),
            accelerator: format!("{:?}", self.host.accelerator.name),
            memory_mib: machine.memory_mib,
            vcpus: machine.vcpus,
            uefi: match machine.firmware {
                Firmware::Bios => None,
                Firmware::Uefi => Some(firmware::program().map_err(storage_failure)?),
            },
        })
    }

    /// Loads the state that goes with the memory that QEMU has mapped, and takes the guest's links down.
    pub(super) async fn load_warm(&self, vm: VmId, incarnation: Incarnation) -> Result<(), Failure> {
        let machine = self.desired()?.machine;
        let files = Files::of(&machine.disk.datastore, vm, incarnation);
        let form = read_form(&files.form)?;
        let qmp = self.live().await?.qmp.clone();
        let here = self.made_by(&qmp, &machine).await?;
        if form.made_by != here {
            let message = format!(
                "it was made by {:?}, and here is {here:?}: a VM starts at once here when the template has another warm form, which is \
                 made by itself if it is kept warm (`sterna template warm`)",
                form.made_by
            );
            return Err(terminal(ANOTHER_BUILD, message));
        }
        self.load_from(&files.state, warm_capabilities()).await?;
        set_links(&qmp, &machine.nics, false).await
    }

    /// Random numbers of its own first, then all else that tells it from its siblings.
    pub(super) async fn identify(&self) -> Result<(), Failure> {
        let document = self.desired()?;
        let machine = &document.machine;
        let Some((vm, incarnation)) = source(&document.order) else {
            return Err(terminal(
                "no-warm-form",
                "it was not started from kept memory".to_owned(),
            ));
        };
        let form = read_form(&Files::of(&machine.disk.datastore, vm, incarnation).form)?;
        let words = identity(machine, &form.macs);
        if let Some(waiting) = form.waiting {
            match self.tell(waiting, words.clone()).await {
                Err(failure) if !failure.is_retryable => {
                    let reason = failure.reason.message;
                    tracing::warn!(
                        reason,
                        "what waited in the guest gave it no identity: scripts shall"
                    );
                }
                done => return done,
            }
        }
        // All at once: each command of the guest's agent costs a copy of its own start.
        let steps = vec![Step::Shell {
            what: "drawing its random numbers anew, then its time, name and addresses",
            script: format!("(\n{ENTROPY}) || exit\n{IDENTITY}{KEYS}"),
            arguments: words,
            input: STANDARD.encode(chance::entropy::<ENTROPY_BYTES>()),
            clock: Some(self.host.clock.clone()),
        }];
        self.run_errand(steps, IDENTITY_PATIENCE).await
    }

    async fn tell(&self, waiting: Waiting, words: Vec<String>) -> Result<(), Failure> {
        let seed = chance::entropy::<ENTROPY_BYTES>();
        let steps = vec![Step::Tell {
            waiting,
            seed: seed.iter().map(|byte| format!("{byte:02x}")).collect(),
            clock: self.host.clock.clone(),
            words,
        }];
        self.run_errand(steps, TELL_PATIENCE).await
    }

    /// A guest whose links were down until it was somebody of its own.
    pub(super) async fn raise_links(&self) -> Result<(), Failure> {
        let document = self.desired()?;
        if source(&document.order).is_none() {
            return Ok(());
        }
        let qmp = self.live().await?.qmp.clone();
        set_links(&qmp, &document.machine.nics, true).await
    }

    async fn run_errand(&self, steps: Vec<Step>, patience: Duration) -> Result<(), Failure> {
        let ended = self.done_in_guest(steps, patience).await?;
        let done = ended.map(drop);
        done.map_err(|trouble| terminal("guest-refused", trouble.message))
    }
}

/// The warm VM from which it starts.
fn source(order: &Order) -> Option<(VmId, Incarnation)> {
    match order {
        Order::Run {
            start: StartFrom::Warm { vm, incarnation },
            ..
        } => Some((*vm, *incarnation)),
        _ => None,
    }
}

/// The arguments of the script that names a guest.
fn identity(machine: &Machine, macs: &[String]) -> Vec<String> {
    let name = machine.guest.hostname.as_deref().unwrap_or(&machine.name);
    let mut words = vec![name.to_owned(), machine.uuid.simple().to_string()];
    for (present, nic) in macs.iter().zip(&machine.nics) {
        let address = nic.address.map(|address| format!("{address}/{}", nic.prefix_len));
        words.extend([
            present.clone(),
            nic.mac.clone(),
            address.unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    words
}

async fn set_links(qmp: &Qmp, nics: &[Port], up: bool) -> Result<(), Failure> {
    for slot in 0..nics.len() {
        qmp.set_link(&format!("nic{slot}"), up)
            .await
            .map_err(qmp_failure)?;
    }
    Ok(())
}

fn read_form(path: &Path) -> Result<WarmForm, Failure> {
    let bytes = fs::read(path)
        .map_err(|error| storage_failure(storage::file("read the template's warm form", path)(error)))?;
    serde_json::from_slice(&bytes).map_err(|error| super::terminal("warm-form-unreadable", &error))
}

fn terminal(code: &str, message: String) -> Failure {
    Failure {
        reason: Reason::new(code, message),
        is_retryable: false,
    }
}
