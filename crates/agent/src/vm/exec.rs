//! Carries out effects: each maps to real work with a deadline, and comes back as an input.
//!
//! **Owns:** the state of one incarnation that is not in the core: its QEMU, its newest document.
//!
//! **Does not know:** why an effect is asked for. Every effect may be repeated, and each of its steps too.
//!
//! **Start here:** [`Vm::carry_out`]. Streams are in `migrate`, saved states in `saved`.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use driver::types::{Effect, EffectId, Failure, Identity, Input, Mark, Outcome, Qemu};
use hostnet::Mac;
use model::Reason;
use model::document::{ImageFile, Machine, Order, VmDocument};
use model::host::AcceleratorName;
use model::report::StartStep;
use model::vm::Firmware;
use qemu::command_line::{
    Accelerator, Access, Base, Cache, Disk, ImageFormat, LaunchSpec, MACHINE_TYPE, Memory, Nic, QMP_SOCKET,
    Start, Uefi, command_line,
};
use qemu::guest_agent::ShutdownMode;
use qemu::qmp::QmpError;
use qemu::spawn::{self, Exit, Found, User};
use tokio::sync::{Mutex as AsyncMutex, Notify, watch};
use tokio::time::timeout;

use super::copies::Copying;
use super::live::{Launch, Listeners, Live, QMP_DEADLINE};
use super::stopwatch::Stopwatch;
use super::turns::{Turn, Work};
use super::{Host, cdrom, guest, retryable, terminal};
use crate::config::VmDir;
use crate::journal::Entry;
use crate::network::{GUEST_MTU, NetworkError};
use crate::storage::{self, Description, StorageError};
use crate::{config, firmware, seed};

/// How long QEMU may take from its start to its monitor's greeting.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How long an image may take to come; silence within it has a deadline of its own.
const FETCH_DEADLINE: Duration = Duration::from_secs(3600);
/// How long an end is waited for that a closed monitor announces.
const END_PATIENCE: Duration = Duration::from_secs(2);
const SEED_FILE: &str = "seed.img";

/// One incarnation, as the shell sees it.
pub struct Vm {
    /// Which one.
    pub id: Identity,
    /// The host.
    pub host: Arc<Host>,
    /// Told when a look may be worth it.
    pub look: Arc<Notify>,
    desired: Mutex<Option<Box<VmDocument>>>,
    /// The newest document's order for it.
    pub(super) order: watch::Sender<Option<Order>>,
    /// Held from `Prepare` to the end of `Spawn`, or for one effect.
    turn: Mutex<Option<Turn>>,
    live: AsyncMutex<Option<Arc<Live>>>,
    /// When QEMU said last that the guest goes on.
    continued_at: Mutex<Option<Instant>>,
    /// How its QEMU ended, until that is told.
    ended: Mutex<Option<String>>,
    guest: guest::Known,
    /// The medium that is being fetched for its drive.
    pub(super) medium: cdrom::Coming,
    /// What is being done for copies of its disk.
    pub(super) copying: Copying,
}

impl Vm {
    /// With nothing known yet.
    pub fn new(id: Identity, host: Arc<Host>) -> Self {
        Self {
            id,
            host,
            look: Arc::default(),
            desired: Mutex::default(),
            order: watch::Sender::default(),
            turn: Mutex::default(),
            live: AsyncMutex::default(),
            continued_at: Mutex::default(),
            ended: Mutex::default(),
            guest: guest::Known::default(),
            medium: cdrom::Coming::default(),
            copying: Copying::default(),
        }
    }

    /// Remembers the newest order, for what effects leave out.
    pub fn follow(&self, document: Option<&VmDocument>) {
        self.order.send_if_modified(|order| {
            let newest = document.map(|document| document.order.clone());
            let is_news = *order != newest;
            *order = newest;
            is_news
        });
        if let Some(document) = document {
            *self.desired.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(document.clone()));
        }
    }

    /// What the log says with every line: which incarnation, and what is done for it now.
    pub(super) fn span(&self) -> tracing::Span {
        let desired = self.desired.lock().unwrap_or_else(PoisonError::into_inner);
        let cause = desired.as_ref().and_then(|document| document.cause.as_ref());
        let operation = cause.map(|cause| cause.operation.to_string());
        let request = cause.and_then(|cause| cause.request.as_deref());
        tracing::info_span!("vm", vm = %self.id.vm, incarnation = %self.id.incarnation, operation, request)
    }

    /// The newest document that was about this incarnation.
    pub(super) fn desired(&self) -> Result<Box<VmDocument>, Failure> {
        let desired = self
            .desired
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        desired.ok_or_else(|| Failure {
            reason: Reason::new(
                "no-document",
                "no document has described this incarnation since the agent's start",
            ),
            is_retryable: true,
        })
    }

    pub(super) fn dir(&self) -> VmDir {
        self.host.dir.vm(self.id.vm)
    }

    pub(super) fn run_dir(&self) -> PathBuf {
        self.dir().run(self.id.incarnation)
    }

    /// Carries out an effect and says what came of it.
    pub async fn carry_out(self: Arc<Self>, id: EffectId, effect: Effect) -> Input {
        if matches!(effect, Effect::Look) {
            return Input::Observed(self.observe().await);
        }
        let (name, deadline) = (format!("{effect:?}"), deadline(&effect));
        let (keeps_turn, gives_way) = (keeps_turn(&effect), gives_way(&effect));
        let mut orders = self.order.subscribe();
        let watch = Stopwatch::start();
        let result = match self.make_way(&effect, &watch).await {
            Ok(Way::Clear) => tokio::select! {
                result = within(&name, deadline, self.act(effect, &watch)) => result,
                Ok(()) = orders.changed(), if gives_way => return Input::NotBegun(id),
            },
            Ok(Way::GivenUp) => return Input::NotBegun(id),
            Err(failure) => Err(failure),
        };
        if !keeps_turn || result.is_err() {
            self.end_turn();
        }
        match result {
            Ok(outcome) => Input::Done(id, outcome),
            Err(failure) => {
                tracing::warn!(
                    effect = name,
                    code = failure.reason.code,
                    message = failure.reason.message,
                    "an effect failed"
                );
                Input::Failed(id, failure)
            }
        }
    }

    /// What an effect needs before its time begins: the image, and its turn.
    async fn make_way(&self, effect: &Effect, watch: &Stopwatch) -> Result<Way, Failure> {
        if matches!(effect, Effect::Journal(_) | Effect::Spawn { .. }) {
            return Ok(Way::Clear);
        }
        // What it was for was not begun.
        self.end_turn();
        if matches!(effect, Effect::Prepare { as_target: true }) {
            within("fetching the medium", FETCH_DEADLINE, self.fetch_images()).await?;
        }
        let Some(work) = Work::of(effect) else {
            return Ok(Way::Clear);
        };
        let mut orders = self.order.subscribe();
        if work == Work::Start {
            let fetch = within("fetching the image", FETCH_DEADLINE, self.fetch_images());
            watch.time(StartStep::Image, fetch).await?;
        }
        let reordered = async {
            let _ = orders.changed().await;
        };
        let turn = self.host.turns.take(work, reordered);
        let Some(turn) = watch.time(StartStep::Turn, turn).await else {
            return Ok(Way::GivenUp);
        };
        *self.turn.lock().unwrap_or_else(PoisonError::into_inner) = Some(turn);
        Ok(Way::Clear)
    }

    fn end_turn(&self) {
        *self.turn.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// What its disk is over, or will be, and its medium.
    async fn fetch_images(&self) -> Result<(), Failure> {
        let Machine { disk, cdrom, .. } = self.desired()?.machine;
        let medium = cdrom.and_then(|cdrom| cdrom.medium);
        for image in disk.image.iter().chain(&medium) {
            let fetched = self.host.storage.image(Path::new(&disk.datastore), image).await;
            fetched.map_err(storage_failure)?;
        }
        Ok(())
    }

    async fn act(&self, effect: Effect, watch: &Stopwatch) -> Result<Outcome, Failure> {
        match effect {
            Effect::Journal(mark) => self.mark(mark).await?,
            Effect::Prepare { as_target } => return self.prepare(as_target, watch).await,
            Effect::Spawn { incoming } => self.spawn(incoming).await?,
            Effect::Listen => return self.listen().await,
            Effect::LoadSaved {
                incarnation,
                saved_in,
            } => self.load_saved(incarnation, saved_in).await?,
            Effect::RemoveSaved {
                incarnation,
                saved_in,
            } => self.remove_saved(incarnation, saved_in)?,
            Effect::LoadWarm { vm, incarnation } => self.load_warm(vm, incarnation).await?,
            Effect::Identify => self.identify().await?,
            Effect::Settle => self.settle().await?,
            Effect::Build => return self.build().await,
            Effect::Warm => return self.keep_warm().await,
            Effect::OpenPorts => self.open_ports().await?,
            Effect::Continue => self.cont().await?,
            Effect::Announce => self.announce().await?,
            Effect::Pause => self.live().await?.qmp.stop().await.map_err(qmp_failure)?,
            Effect::Save { saved_in } => return self.save(saved_in).await,
            Effect::AskShutdown => self.ask_shutdown().await?,
            Effect::AskReboot => self.live().await?.ask(ShutdownMode::Reboot),
            Effect::Reset => self.live().await?.qmp.system_reset().await.map_err(qmp_failure)?,
            Effect::ChangeMedium => self.change_medium().await?,
            Effect::SetBoot => self.set_boot().await?,
            Effect::Copy { to } => return self.copy(to).await,
            Effect::CopyAtRest { to } => return self.copy_at_rest(to).await,
            Effect::DropCopy { to } => self.drop_copy(to).await?,
            Effect::Kill => self.kill().await?,
            Effect::Release => self.release().await?,
            Effect::RemoveVolumes => self.remove_volumes()?,
            Effect::Migrate { to } => self.migrate(to).await?,
            Effect::MigrateContinue { .. } => self
                .live()
                .await?
                .qmp
                .migrate_continue()
                .await
                .map_err(qmp_failure)?,
            Effect::MigrateCancel => self.cancel().await?,
            Effect::SetDowntimeLimit { ms } => self.set_downtime_limit(ms).await?,
            Effect::SendGo { to, host, peer, .. } => return self.send_go(to, host, &peer).await,
            Effect::Forget => self.forget().await?,
            // These three are the task's own.
            Effect::Look | Effect::Timer { .. } | Effect::Report { .. } => {}
        }
        Ok(Outcome::Ok)
    }

    async fn cont(&self) -> Result<(), Failure> {
        self.live().await?.qmp.cont().await.map_err(qmp_failure)?;
        *self.continued_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        Ok(())
    }

    /// When QEMU said last that the guest goes on, if this agent had it go on.
    pub fn continued_at(&self) -> Option<Instant> {
        *self.continued_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn mark(&self, mark: Mark) -> Result<(), Failure> {
        let entry = Entry::Mark {
            vm: self.id.vm,
            incarnation: self.id.incarnation,
            mark,
        };
        self.host
            .journal
            .append(entry)
            .await
            .map_err(|error| retryable("journal-failed", &error))
    }

    /// What QEMU says. A process that is not known yet, or not any more, is looked for.
    async fn observe(&self) -> Qemu {
        let mut held = self.live.lock().await;
        if held.as_ref().is_none_or(|live| live.qmp.is_closed()) {
            // A monitor closes when its process ends: then there is nothing to look for.
            if let Some(lost) = held.take() {
                self.learn_end(&lost).await;
            }
            match self.find().await {
                Ok(Some(live)) => *held = Some(Arc::new(live)),
                Ok(None) => return Qemu::None,
                Err(reason) => {
                    tracing::warn!(reason, "QEMU is silent");
                    return Qemu::Silent;
                }
            }
        }
        let Some(live) = held.clone() else {
            return Qemu::Silent;
        };
        drop(held);
        match live.look().await {
            Ok(state) => {
                self.host.board.set_transfer(self.id.vm, state.progress.clone());
                self.host.board.set_flattened(self.id.vm, live.flattened());
                Qemu::Answers(state)
            }
            Err(error) => self.silent_or_gone(&live, &error).await,
        }
    }

    /// Its QEMU is about to be seen as gone: how it ended is known from its process.
    async fn learn_end(&self, lost: &Live) {
        if let Ok(Ok(exit)) = timeout(END_PATIENCE, lost.process.gone()).await {
            let how = ending(exit, spawn::last_line(&self.run_dir()));
            *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(how);
        }
    }

    /// How its QEMU ended, once.
    pub fn take_ended(&self) -> Option<String> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    async fn silent_or_gone(&self, live: &Live, error: &QmpError) -> Qemu {
        match spawn::is_occupied(&self.run_dir()) {
            Ok(false) => {
                self.learn_end(live).await;
                Qemu::None
            }
            _ => {
                tracing::warn!(%error, "QEMU is silent");
                Qemu::Silent
            }
        }
    }

    /// Finds the QEMU that an earlier agent started.
    async fn find(&self) -> Result<Option<Live>, String> {
        let directory = self.run_dir();
        let found = spawn::find(&directory, self.id.vm.0, QMP_DEADLINE)
            .await
            .map_err(|error| error.to_string())?;
        match found {
            Found::Nothing => Ok(None),
            Found::Unproven { reason, .. } => Err(reason),
            Found::Running(running) => {
                let live = Live::attach(running.process, running.qmp, running.events, self.listeners()).await;
                live.map(Some).map_err(|error| error.to_string())
            }
        }
    }

    fn listeners(&self) -> Listeners {
        Listeners {
            vm: self.id.vm,
            board: Arc::clone(&self.host.board),
            consoles: self.host.consoles.clone(),
            guests: self.host.guests.clone(),
            directory: self.run_dir(),
            console_log: self.dir().console_log(),
            look: Arc::clone(&self.look),
            guest: self.guest.clone(),
        }
    }

    /// The QEMU that was seen at the last look.
    pub(super) async fn live(&self) -> Result<Arc<Live>, Failure> {
        self.live.lock().await.clone().ok_or_else(|| Failure {
            reason: Reason::new("qemu-gone", "its QEMU is not there or does not answer"),
            is_retryable: true,
        })
    }

    async fn prepare(&self, as_target: bool, watch: &Stopwatch) -> Result<Outcome, Failure> {
        let desired = self.desired()?;
        let machine = &desired.machine;
        let directory = self.run_dir();
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory);
        made.map_err(|error| retryable("storage-failed", &error))?;
        let seed = async {
            storage::write_whole(&directory.join(SEED_FILE), &seed::image(machine, GUEST_MTU))?;
            let description = Description {
                schema: 1,
                vm: self.id.vm,
                incarnation: self.id.incarnation,
                machine,
            };
            let json = serde_json::to_vec_pretty(&description).unwrap_or_default();
            storage::write_whole(&self.dir().description(), &json)
        };
        let disk = async {
            watch.time(StartStep::Seed, seed).await.map_err(storage_failure)?;
            if as_target {
                return Ok(());
            }
            let disk = async {
                let disk = self.host.storage.disk(self.id.vm, &machine.disk).await?;
                if machine.firmware == Firmware::Uefi {
                    firmware::variables(self.id.vm, &machine.disk)?;
                }
                Ok(disk)
            };
            watch
                .time(StartStep::Disk, disk)
                .await
                .map(drop)
                .map_err(storage_failure)
        };
        let user = self.user()?;
        let ports = async {
            let ports = self.host.network.prepare(self.id, &machine.nics, user);
            watch
                .time(StartStep::Network, ports)
                .await
                .map_err(network_failure)
        };
        tokio::try_join!(disk, ports)?;
        Ok(Outcome::Prepared { steps: watch.steps() })
    }

    /// As whom its QEMU runs.
    pub(super) fn user(&self) -> Result<Option<User>, Failure> {
        let user = self.host.users.of(self.id.vm);
        user.map_err(|error| terminal("qemu-users-used-up", &error))
    }

    async fn spawn(&self, incoming: bool) -> Result<(), Failure> {
        let desired = self.desired()?;
        let directory = self.run_dir();
        let as_target = matches!(desired.order, Order::Target(_));
        let memory = self.memory(&desired.machine, as_target)?;
        let spec = self.launch_spec(&desired.machine, memory, incoming)?;
        let line = command_line(&spec).map_err(|error| terminal("machine-invalid", &error))?;
        let user = self.user()?;
        let launch = Launch {
            incoming,
            user: user.map(|user| user.id),
            has_cdrom: spec.cdrom.is_some(),
        };
        launch
            .write(&directory)
            .map_err(|error| retryable("storage-failed", &error))?;
        let mut held = self.live.lock().await;
        let process = spawn::spawn(&self.host.qemu, &line, &directory, user)
            .map_err(|error| terminal("qemu-not-started", &error))?;
        let (qmp, events) = spawn::connect(&process, &directory, QMP_SOCKET, START_DEADLINE)
            .await
            .map_err(|error| terminal("qemu-not-started", &error))?;
        let live = Live::attach(process, qmp, events, self.listeners()).await;
        *held = Some(Arc::new(
            live.map_err(|error| terminal("qemu-not-started", &error))?,
        ));
        Ok(())
    }

    fn launch_spec(&self, machine: &Machine, memory: Memory, incoming: bool) -> Result<LaunchSpec, Failure> {
        let narrow = |what: &str| Failure {
            reason: Reason::new("machine-invalid", format!("{what} is out of range")),
            is_retryable: false,
        };
        let memory_mib = machine.memory_mib.try_into().map_err(|_| narrow("memory_mib"))?;
        Ok(LaunchSpec {
            vm: machine.uuid,
            name: machine.name.clone(),
            memory_mib,
            vcpus: machine.vcpus.try_into().map_err(|_| narrow("vcpus"))?,
            machine_type: MACHINE_TYPE.to_owned(),
            cpu_model: self.host.cpu_model.clone(),
            accelerator: match self.host.accelerator.name {
                AcceleratorName::Kvm => Accelerator::Kvm,
                // A host that is simulated has no agent of this sort.
                AcceleratorName::Tcg | AcceleratorName::Simulated => Accelerator::tcg(memory_mib, &memory),
            },
            memory,
            disks: vec![self.disk(machine)?],
            cdrom: cdrom::drive(machine)?,
            boot: machine.boot.clone(),
            uefi: self.uefi(machine),
            seed: Some(self.run_dir().join(SEED_FILE)),
            nics: self.nics(machine)?,
            start: if incoming { Start::Incoming } else { Start::Boot },
        })
    }

    fn uefi(&self, machine: &Machine) -> Option<Uefi> {
        (machine.firmware == Firmware::Uefi).then(|| Uefi {
            code: PathBuf::from(firmware::CODE),
            variables: firmware::path(self.id.vm, &machine.disk),
            cache: cache(&machine.disk),
        })
    }

    fn disk(&self, machine: &Machine) -> Result<Disk, Failure> {
        let disk = &machine.disk;
        let base = |image: &ImageFile| {
            let path = storage::image_path(Path::new(&disk.datastore), image)?;
            let format = storage::qemu_format(image.format);
            Ok(Base {
                path,
                format,
                base: None,
            })
        };
        let image = disk.image.as_ref().map(base).transpose();
        let image = image.map_err(storage_failure)?;
        let layer = storage::layer_path(disk).map(|path| Base {
            path,
            format: ImageFormat::Qcow2,
            base: image.clone().map(Box::new),
        });
        Ok(Disk {
            slot: 0,
            path: storage::disk_path(self.id.vm, disk),
            format: ImageFormat::Qcow2,
            base: layer.or(image),
            cache: cache(disk),
            access: Access::ReadWrite,
        })
    }

    fn nics(&self, machine: &Machine) -> Result<Vec<Nic>, Failure> {
        let nic = |(slot, port): (u8, &model::document::Port)| {
            let mac: Mac = port
                .mac
                .parse()
                .map_err(|error| terminal("machine-invalid", &error))?;
            let tap = self
                .host
                .network
                .tap(self.id, usize::from(slot))
                .as_str()
                .to_owned();
            Ok(Nic {
                slot,
                tap,
                mac: mac.0,
            })
        };
        (0..).zip(&machine.nics).map(nic).collect()
    }

    async fn open_ports(&self) -> Result<(), Failure> {
        let desired = self.desired()?;
        // A machine whose memory is kept for others is nobody's neighbour.
        if desired.machine.keeps_memory {
            return Ok(());
        }
        let plugged = self.host.network.plug(self.id, &desired.machine.nics).await;
        plugged.map_err(network_failure)?;
        self.raise_links().await
    }

    /// By QEMU, from each of the guest's cards, and by the host, also for addresses of IPv4.
    async fn announce(&self) -> Result<(), Failure> {
        let desired = self.desired()?;
        let live = self.live().await?;
        live.qmp.announce_self().await.map_err(qmp_failure)?;
        self.host
            .network
            .announce(&desired.machine.nics)
            .await
            .map_err(network_failure)
    }

    async fn ask_shutdown(&self) -> Result<(), Failure> {
        let live = self.live().await?;
        live.ask(ShutdownMode::Powerdown);
        live.qmp.system_powerdown().await.map_err(qmp_failure)
    }

    async fn kill(&self) -> Result<(), Failure> {
        let mut held = self.live.lock().await;
        let directory = self.run_dir();
        let not_gone = |error: &dyn std::error::Error| retryable("qemu-not-ended", error);
        if let Some(live) = held.take() {
            let killed = spawn::kill(&live.process, &directory, deadline(&Effect::Kill)).await;
            killed.map_err(|error| not_gone(&error))?;
        }
        let found = spawn::find(&directory, self.id.vm.0, QMP_DEADLINE)
            .await
            .map_err(|error| not_gone(&error))?;
        let process = match found {
            Found::Nothing => return Ok(()),
            Found::Running(running) => Some(running.process),
            Found::Unproven { process, .. } => process,
        };
        let process = process.ok_or_else(|| not_gone(&io::Error::other("its process is not known")))?;
        let killed = spawn::kill(&process, &directory, deadline(&Effect::Kill)).await;
        killed.map(drop).map_err(|error| not_gone(&error))
    }

    async fn release(&self) -> Result<(), Failure> {
        *self.live.lock().await = None;
        self.host.board.set_qemu_mib(self.id.vm, None);
        self.host.board.set_flattened(self.id.vm, None);
        self.host
            .network
            .release(self.id)
            .await
            .map_err(network_failure)?;
        self.end_copies().await?;
        let directory = self.run_dir();
        let sockets = fs::read_dir(&directory)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path());
        let goes = |path: &PathBuf| {
            path.extension()
                .is_some_and(|extension| extension == "sock" || extension == "img")
        };
        sockets
            .filter(goes)
            .try_for_each(|path| storage::remove(&path))
            .map_err(storage_failure)
    }

    fn remove_volumes(&self) -> Result<(), Failure> {
        let machine = match self.desired() {
            Ok(desired) => desired.machine,
            Err(_) => self.described()?,
        };
        let dir = self.dir();
        let volumes = config::volume_dir(Path::new(&machine.disk.datastore), self.id.vm);
        storage::remove(&volumes).map_err(storage_failure)?;
        let entries = fs::read_dir(&dir.0).into_iter().flatten().flatten();
        // Run directories stay until their incarnation is forgotten.
        let files = entries.map(|entry| entry.path()).filter(|path| !path.is_dir());
        files
            .into_iter()
            .try_for_each(|path| storage::remove(&path))
            .map_err(storage_failure)
    }

    fn described(&self) -> Result<Machine, Failure> {
        #[derive(serde::Deserialize)]
        struct Described {
            machine: Machine,
        }
        let bytes =
            fs::read(self.dir().description()).map_err(|error| retryable("no-description", &error))?;
        let described: Described =
            serde_json::from_slice(&bytes).map_err(|error| terminal("no-description", &error))?;
        Ok(described.machine)
    }

    async fn forget(&self) -> Result<(), Failure> {
        storage::remove(&self.run_dir()).map_err(storage_failure)?;
        // Goes only if nothing else is in it.
        if fs::remove_dir(&self.dir().0).is_ok() {
            self.host.users.forget(self.id.vm);
        }
        let entry = Entry::Forget {
            vm: self.id.vm,
            incarnation: self.id.incarnation,
        };
        self.host
            .journal
            .append(entry)
            .await
            .map_err(|error| retryable("journal-failed", &error))?;
        self.host.board.forget_run(self.id.vm, self.id.incarnation);
        self.host.board.set_transfer(self.id.vm, None);
        Ok(())
    }
}

/// The end of a QEMU in words.
fn ending(exit: Exit, last_line: Option<String>) -> String {
    let how = match exit {
        Exit::Signal(signal) => format!("by signal {signal}"),
        Exit::Code(code) => format!("with exit code {code}"),
        Exit::NotOurChild => "how is not known, since its agent was started after it".to_owned(),
    };
    let said = last_line.map_or("its log is empty".to_owned(), |line| {
        format!("the last line of its log is {line:?}")
    });
    format!("{how}, and {said}")
}

/// Whether an effect may begin.
enum Way {
    Clear,
    /// The VM's order changed while it waited.
    GivenUp,
}

/// Whether the turn that an effect has goes on after it: making a VM ready and starting its process are one.
fn keeps_turn(effect: &Effect) -> bool {
    matches!(effect, Effect::Prepare { .. } | Effect::Journal(_))
}

/// Whether an effect is left when the VM is to do something else: it only waits for the guest, and may be done again.
fn gives_way(effect: &Effect) -> bool {
    matches!(effect, Effect::Identify | Effect::Settle)
}

/// Does something, but not for ever.
async fn within<T>(
    name: &str,
    deadline: Duration,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    timeout(deadline, work).await.unwrap_or_else(|_| {
        let message = format!("{name} was not done within {} s", deadline.as_secs());
        Err(Failure {
            reason: Reason::new("timed-out", message),
            is_retryable: true,
        })
    })
}

/// How long an effect may take, from its turn on.
fn deadline(effect: &Effect) -> Duration {
    let seconds = match effect {
        Effect::Save { .. } | Effect::LoadSaved { .. } | Effect::Warm => 1800,
        Effect::Settle => 1890,
        Effect::Identify => 270,
        Effect::Build => 90,
        Effect::Prepare { .. } | Effect::Spawn { .. } | Effect::RemoveVolumes | Effect::Copy { .. } => 60,
        Effect::Kill | Effect::Journal(_) | Effect::SendGo { .. } => 30,
        _ => 15,
    };
    Duration::from_secs(seconds)
}

pub(super) fn qmp_failure(error: QmpError) -> Failure {
    retryable("qemu-refused", &error)
}

pub(super) fn storage_failure(error: StorageError) -> Failure {
    Failure {
        is_retryable: error.is_retryable(),
        ..retryable(error.code(), &error)
    }
}

fn network_failure(error: NetworkError) -> Failure {
    Failure {
        is_retryable: error.is_retryable(),
        ..retryable("network-failed", &error)
    }
}

/// How QEMU uses the host's page cache for what is in a disk's datastore.
const fn cache(disk: &model::document::Disk) -> Cache {
    if disk.coherent {
        Cache::HostPageCache
    } else {
        Cache::Direct
    }
}
