//! What effects do to a host, and the rules that each one has to keep.
//!
//! **Owns:** how long each takes, the streams between QEMUs, and where an agent's crash falls between two effects.
//!
//! **Does not know:** why an effect is asked for.
//!
//! **Start here:** [`World::begin_effect`].

use driver::journal::Entry;
use driver::types::{
    CopyJobState, Effect, EffectId, Failure, Input, Mark, MigrationWord, Outcome, Qemu, RunStatusWord,
};
use model::build::Built;
use model::copy::CopyTo;
use model::document::{Order, StartFrom};
use model::template::ANOTHER_BUILD;
use model::vm::SavedIn;
use model::{Incarnation, VmId};
use rand::RngExt;

use crate::agents::failure;
use crate::bugs::Bug;
use crate::host::Key;
use crate::qemu::Process;
use crate::script::Node;
use crate::world::{AgentEvent, Event, QemuEvent, World};

type Answer = Result<Outcome, Failure>;

const DONE: Answer = Ok(Outcome::Ok);

impl World {
    /// An effect is carried out now; its answer comes later.
    pub(crate) fn begin_effect(&mut self, n: usize, key: Key, id: EffectId, effect: Effect) {
        let crash = match &mut self.hosts[n].crash_at {
            Some((left, is_after)) => {
                *left = left.saturating_sub(1);
                (*left == 0).then_some(*is_after)
            }
            None => None,
        };
        if crash == Some(false) {
            return self.crash_agent(n, 500_000);
        }
        let takes_us = self.takes_us(n, &effect);
        let input = match effect {
            Effect::Look => Some(Input::Observed(self.look(n, key))),
            Effect::SendGo { to, host, .. } => {
                if let Some(target) = self.hosts.iter().position(|other| other.id == host) {
                    self.send_go(n, key, id, target, (key.0, to));
                }
                None
            }
            effect => {
                self.must_be_at_rest(key, &effect);
                if let Some(content) = self.content_of(n, key, &effect) {
                    self.give_content(n, key, id, content);
                    None
                } else {
                    Some(match self.carry_out(n, key, &effect) {
                        Ok(outcome) => Input::Done(id, outcome),
                        Err(failure) => Input::Failed(id, failure),
                    })
                }
            }
        };
        if let Some(input) = input {
            self.tell_agent(n, takes_us, AgentEvent::Told(key, input));
        }
        if crash == Some(true) {
            self.crash_agent(n, 500_000);
        }
    }

    pub(crate) fn crash_agent(&mut self, n: usize, for_us: u64) {
        self.hosts[n].end_agent();
        self.after(for_us, Event::StartAgent(n));
    }

    fn takes_us(&mut self, n: usize, effect: &Effect) -> u64 {
        let most_us = match effect {
            Effect::Prepare { .. } => 200_000,
            Effect::Spawn { .. } => 300_000,
            Effect::Save { .. } | Effect::LoadSaved { .. } => 2_000_000,
            Effect::Kill => 50_000,
            Effect::Migrate { .. } | Effect::Listen => 20_000,
            _ => 3_000,
        };
        let takes_us = self.chance.random_range(most_us / 20..most_us);
        takes_us * if self.hosts[n].is_slow { 20 } else { 1 }
    }

    fn look(&self, n: usize, key: Key) -> Qemu {
        self.hosts[n].qemus.get(&key).map_or(Qemu::None, Process::look)
    }

    fn carry_out(&mut self, n: usize, key: Key, effect: &Effect) -> Answer {
        match effect {
            Effect::Journal(mark) => self.keep_mark(n, key, mark),
            Effect::Prepare { as_target } => self.prepare(n, key, *as_target),
            Effect::Spawn { incoming } => self.spawn(n, key, *incoming),
            Effect::Kill => {
                if self.bug == Some(Bug::KillIgnored) {
                    let ghost = self.hosts[n].qemus.get(&key).cloned();
                    self.hosts[n].ghosts.extend(ghost.map(|ghost| (key, ghost)));
                }
                self.end_qemu(n, key);
                DONE
            }
            Effect::Release => {
                self.checks.must(!self.hosts[n].qemus.contains_key(&key), || {
                    format!("{key:?} was released under its process")
                });
                self.hosts[n].ports.remove(&key);
                DONE
            }
            Effect::RemoveVolumes => {
                self.remove_volumes(n, key.0);
                DONE
            }
            Effect::RemoveSaved {
                incarnation,
                saved_in,
            } => {
                self.saved(n, *saved_in).remove(&(key.0, *incarnation));
                DONE
            }
            Effect::Forget => {
                self.forget(n, key);
                DONE
            }
            Effect::OpenPorts => {
                self.check_identity(n, key);
                DONE
            }
            Effect::Announce | Effect::Identify => DONE,
            Effect::Settle if self.comes_to_nothing() => Err(failure("guest-not-settled", false)),
            Effect::Settle => DONE,
            Effect::Build => self.build(),
            Effect::CopyAtRest { to } => self.copied(n, key, *to, false),
            Effect::DropCopy { to } => {
                if let Some(process) = self.hosts[n].qemus.get_mut(&key) {
                    process.copies.remove(to);
                }
                DONE
            }
            effect => self.command(n, key, effect),
        }
    }

    /// What is done in guests fails now and then.
    fn comes_to_nothing(&mut self) -> bool {
        !self.is_mended && self.chance.random_range(0..5) == 0
    }

    /// It takes a while, and is asked for again until it has ended.
    fn build(&mut self) -> Answer {
        if self.chance.random_range(0..3) > 0 {
            return DONE;
        }
        let reason = self
            .comes_to_nothing()
            .then(|| failure("build-script-failed", false).reason);
        Ok(Outcome::Built(Built {
            reason,
            ..Built::default()
        }))
    }

    fn must_be_at_rest(&mut self, key: Key, effect: &Effect) {
        let mut processes = self.hosts.iter().flat_map(|host| host.qemus.keys());
        let is_off = !matches!(effect, Effect::CopyAtRest { .. }) || processes.all(|other| other.0 != key.0);
        self.checks.must(is_off, || {
            format!("{key:?} copies a disk at rest that a QEMU has")
        });
    }

    fn keep_mark(&mut self, n: usize, key: Key, mark: &Mark) -> Answer {
        let host = &mut self.hosts[n];
        if host.is_full {
            return Err(failure("disk-full", true));
        }
        let is_kept = self.bug != Some(Bug::PromiseNotKept) || !matches!(mark, Mark::Launched);
        if is_kept {
            host.journal.apply(Entry::Mark {
                vm: key.0,
                incarnation: key.1,
                mark: mark.clone(),
            });
        }
        DONE
    }

    fn prepare(&mut self, n: usize, key: Key, as_target: bool) -> Answer {
        if self.hosts[n].is_full {
            return Err(failure("disk-full", true));
        }
        self.hosts[n].ports.insert(key);
        if !as_target {
            let object = self.checks.view.vms.get(&key.0).and_then(|vm| vm.object.as_ref());
            let is_clone = object.is_some_and(|at| at.value.spec.clone_of.is_some());
            self.checks.must(!is_clone || self.copies.contains(&key.0), || {
                format!("{key:?} is made ready before its disk is copied")
            });
            let disk = self
                .task(n, key)
                .and_then(|task| Some(task.desired.as_ref()?.machine.disk.clone()));
            if let Some(disk) = disk {
                self.lies_over(key.0, &disk);
            }
            self.overlays.insert(key.0);
            self.check_bases();
        }
        DONE
    }

    /// A copy is begun beside the guest; when it has ended it is kept.
    fn copy(&mut self, n: usize, key: Key, to: CopyTo) -> Answer {
        let Some(process) = self.hosts[n].qemus.get_mut(&key) else {
            return Err(failure("qemu-gone", true));
        };
        let serial = process.serial;
        match process.copies.get(&to) {
            Some(CopyJobState::Done) => return self.copied(n, key, to, true),
            Some(_) => {}
            None => {
                process.copies.insert(to, CopyJobState::Copies);
                self.in_qemu((200_000, 5_000_000), n, key, serial, QemuEvent::Copied(to));
            }
        }
        DONE
    }

    /// A copy is whole: a disk of that VM, or the disk itself.
    fn copied(&mut self, n: usize, key: Key, to: CopyTo, is_frozen: bool) -> Answer {
        if self.hosts[n].is_full {
            return Err(failure("disk-full", true));
        }
        match to {
            CopyTo::Vm(to) => {
                let task = self.task(n, key);
                let disk = task.and_then(|task| Some(task.desired.as_ref()?.machine.disk.clone()));
                if disk.as_ref().is_some_and(|disk| disk.image.is_none()) {
                    self.wholes.insert(to);
                }
                if let Some(disk) = &disk {
                    self.lies_over(to, disk);
                }
                self.overlays.insert(to);
                self.copies.insert(to);
            }
            CopyTo::Itself { .. } => drop(self.wholes.insert(key.0)),
            CopyTo::Image(_) => {}
        }
        Ok(Outcome::Copied { is_frozen })
    }

    fn spawn(&mut self, n: usize, key: Key, incoming: bool) -> Answer {
        self.next_serial += 1;
        let mut process = Process::spawn(self.next_serial, incoming);
        if let Some(desired) = self.task(n, key).and_then(|task| task.desired.as_ref()) {
            process.add_cdrom(&desired.machine);
        }
        self.check_base(n, key);
        let host = &mut self.hosts[n];
        let launches = host.launches.entry(key).or_default();
        *launches += 1;
        let (is_first, is_alone) = (*launches == 1, !host.qemus.contains_key(&key));
        host.qemus.insert(key, process);
        self.builds.insert(key, self.hosts[n].build);
        self.checks.must(is_first && is_alone, || {
            format!("{key:?} was launched twice on {}", n + 1)
        });
        DONE
    }

    /// A disk is opened over what it needs: without an image only if it has all by itself.
    fn check_base(&mut self, n: usize, key: Key) {
        let view = &self.checks.view;
        let object = view.vms.get(&key.0).and_then(|vm| vm.object.as_ref());
        let is_over_image = object.is_some_and(|at| at.value.spec.image.is_some());
        let task = self.task(n, key);
        let disk = task.and_then(|task| Some(&task.desired.as_ref()?.machine.disk));
        let is_bare = is_over_image && disk.is_some_and(|disk| disk.image.is_none());
        let is_whole = self.wholes.contains(&key.0);
        self.checks.must(!is_bare || is_whole, || {
            format!("{key:?} is started without the image that its disk is over")
        });
    }

    /// Where states are kept.
    fn saved(&mut self, n: usize, saved_in: SavedIn) -> &mut std::collections::BTreeSet<Key> {
        match saved_in {
            SavedIn::Host => &mut self.hosts[n].saved,
            SavedIn::Datastore => &mut self.stored,
        }
    }

    fn remove_volumes(&mut self, n: usize, vm: VmId) {
        self.overlays.remove(&vm);
        let under = self.unders.remove(&vm);
        if self.bug == Some(Bug::LayerTakenAlong)
            && let Some(layer) = under.and_then(|under| under.layer)
        {
            self.overlays.remove(&layer);
        }
        self.check_bases();
        self.copies.remove(&vm);
        self.wholes.remove(&vm);
        self.hosts[n].saved.retain(|(of, _)| *of != vm);
        self.stored.retain(|(of, _)| *of != vm);
    }

    fn forget(&mut self, n: usize, key: Key) {
        let time = self.time.clone();
        let now_us = self.hosts[n].now(&time).monotonic_us;
        self.hosts[n].journal.forget(key.0, key.1);
        if let Some(agent) = self.agent(n) {
            agent.board.forget_run(now_us, key.0, key.1);
        }
        self.plan_post(n);
    }

    /// A process is gone, and with it its end of a stream.
    pub(crate) fn end_qemu(&mut self, n: usize, key: Key) {
        if let Some(process) = self.hosts[n].qemus.remove(&key) {
            self.stream_breaks(n, key, &process);
        }
    }

    /// One end of a stream is gone: the other notes it.
    pub(crate) fn stream_breaks(&mut self, n: usize, key: Key, gone: &Process) {
        let vm = key.0;
        for other in 0..self.hosts.len() {
            let keys: Vec<Key> = self.hosts[other].qemus.keys().copied().collect();
            for other_key in keys.into_iter().filter(|other| other.0 == vm && *other != key) {
                let Some(process) = self.hosts[other].qemus.get_mut(&other_key) else {
                    continue;
                };
                if gone.is_incoming && process.is_transferring() && other_key.1 < key.1 {
                    process.fail(MigrationWord::Failed, true);
                } else if gone.is_transferring() && process.is_loading() && process.is_listening {
                    process.break_off();
                } else {
                    continue;
                }
                self.feed(other, other_key, Input::LookAgain);
            }
        }
        let _ = n;
    }

    /// What needs a monitor that answers.
    fn command(&mut self, n: usize, key: Key, effect: &Effect) -> Answer {
        let desired = self.task(n, key).and_then(|task| task.desired.clone());
        let (order, machine) = desired.map(|document| (document.order, document.machine)).unzip();
        let Some(process) = self.hosts[n].qemus.get_mut(&key) else {
            return Err(failure("qemu-gone", true));
        };
        if process.is_silent {
            return Err(failure("qemu-silent", true));
        }
        let serial = process.serial;
        match effect {
            Effect::Continue => return self.cont(n, key, order.as_ref()),
            Effect::Pause => process.stop(),
            Effect::AskShutdown => {
                if process.executes() && process.is_ready {
                    self.in_qemu((200_000, 3_000_000), n, key, serial, QemuEvent::PowersOff);
                }
            }
            Effect::AskReboot | Effect::Reset => {
                if process.executes() && process.is_ready || *effect == Effect::Reset {
                    process.resets += 1;
                    process.is_ready = false;
                    self.in_qemu((1_000_000, 4_000_000), n, key, serial, QemuEvent::Ready);
                }
            }
            Effect::ChangeMedium => {
                if let Some(machine) = &machine {
                    process.set_medium(machine);
                }
            }
            Effect::SetBoot => {
                if let Some(machine) = &machine {
                    process.set_boot(machine);
                }
            }
            Effect::Copy { to } => return self.copy(n, key, *to),
            Effect::SetDowntimeLimit { ms } => process.limit_ms = Some(*ms),
            Effect::Listen => {
                process.is_listening = true;
                let stream = format!("tcp:192.0.2.{}:4000", n + 1);
                return Ok(Outcome::Listening { stream });
            }
            Effect::Save { saved_in } => return self.save(n, key, *saved_in),
            Effect::LoadSaved {
                incarnation,
                saved_in,
            } => return self.load_saved(n, key, *incarnation, *saved_in),
            Effect::Warm => return self.save(n, key, SavedIn::Datastore),
            Effect::LoadWarm { vm, incarnation } => return self.load_warm(n, key, (*vm, *incarnation)),
            Effect::Migrate { to } => return self.migrate(n, key, *to, order.as_ref()),
            Effect::MigrateContinue { .. } => {
                if process.migration != MigrationWord::PreSwitchover {
                    return Err(failure("not-at-pre-switchover", true));
                }
                process.migration = MigrationWord::Device;
                self.in_qemu((3_000, 15_000), n, key, serial, QemuEvent::SentAll);
            }
            Effect::MigrateCancel => {
                if process.is_transferring() {
                    let gone = process.clone();
                    process.fail(MigrationWord::Cancelled, true);
                    self.stream_breaks(n, key, &gone);
                }
            }
            effect => self
                .checks
                .must(false, || format!("{effect:?} is not for a shell")),
        }
        DONE
    }

    fn cont(&mut self, n: usize, key: Key, order: Option<&Order>) -> Answer {
        let marks = self.hosts[n].journal.marks_of(key.0, key.1);
        let is_saved = matches!(
            order,
            Some(Order::Run {
                start: StartFrom::Saved { .. },
                ..
            })
        );
        let Some(process) = self.hosts[n].qemus.get_mut(&key) else {
            return Err(failure("qemu-gone", true));
        };
        let (serial, is_incoming) = (process.serial, process.is_incoming);
        process.cont().map_err(|cause| failure(cause, true))?;
        let is_ready = process.is_ready;
        let keeps_promises = self.bug == Some(Bug::PromiseNotKept) || marks.ran && !marks.closed;
        self.checks.must(keeps_promises, || {
            format!("{key:?} goes on without its mark: {marks:?}")
        });
        self.checks
            .must(!is_saved || !is_incoming || marks.used_saved, || {
                format!("{key:?} uses a saved state without its mark")
            });
        if !is_ready {
            self.in_qemu((1_000_000, 4_000_000), n, key, serial, QemuEvent::Ready);
        }
        DONE
    }

    /// Asked again, it finds what it has saved; if the guest has gone on since, that is no more what it is.
    fn save(&mut self, n: usize, key: Key, saved_in: SavedIn) -> Answer {
        let is_full = self.hosts[n].is_full;
        let is_there = self.saved(n, saved_in).contains(&key);
        let Some(process) = self.hosts[n].qemus.get_mut(&key) else {
            return Err(failure("qemu-gone", true));
        };
        if !is_there || !process.has_completed() {
            process.stop();
            process.migrate().map_err(|cause| failure(cause, true))?;
            if is_full {
                process.fail(MigrationWord::Failed, true);
                return Err(failure("disk-full", true));
            }
            process.complete();
        }
        self.saved(n, saved_in).insert(key);
        Ok(Outcome::Saved { bytes: 4096 })
    }

    fn load_saved(&mut self, n: usize, key: Key, from: Incarnation, saved_in: SavedIn) -> Answer {
        if !self.saved(n, saved_in).contains(&(key.0, from)) {
            return Err(failure("saved-state-missing", false));
        }
        let spoils = self.hosts[n].spoils_loads;
        match self.hosts[n].qemus.get_mut(&key) {
            Some(process) if spoils => {
                process.break_off();
                Err(failure("saved-state-unusable", false))
            }
            Some(process) => {
                process.load(RunStatusWord::Paused);
                DONE
            }
            None => Err(failure("qemu-gone", true)),
        }
    }

    fn load_warm(&mut self, n: usize, key: Key, from: Key) -> Answer {
        let spoils = self.hosts[n].spoils_loads;
        let is_there = self.stored.contains(&from);
        if self.builds.get(&from) != self.builds.get(&key) {
            return Err(failure(ANOTHER_BUILD, false));
        }
        match self.hosts[n].qemus.get_mut(&key) {
            Some(process) if is_there && !spoils => {
                process.load(RunStatusWord::Paused);
                DONE
            }
            Some(process) => {
                process.break_off();
                Err(failure("instant-refused", false))
            }
            None => Err(failure("qemu-gone", true)),
        }
    }

    /// A guest that began as a copy of another's memory is let onto the network when it is somebody of its own.
    fn check_identity(&mut self, n: usize, key: Key) {
        let order = self.task(n, key).and_then(|task| task.desired.clone());
        let is_warm_start = order.is_some_and(|document| {
            matches!(
                document.order,
                Order::Run {
                    start: StartFrom::Warm { .. },
                    ..
                }
            )
        });
        let marks = self.hosts[n].journal.marks_of(key.0, key.1);
        self.checks.must(!is_warm_start || marks.identified, || {
            format!("{key:?} is let onto the network as a copy of another guest")
        });
    }

    fn migrate(&mut self, n: usize, key: Key, to: Incarnation, order: Option<&Order>) -> Answer {
        let Some(Order::MigrateTo(order)) = order else {
            return Err(failure("overtaken", true));
        };
        let target = self.hosts.iter().position(|host| host.id == order.host);
        let listens = target.is_some_and(|target| {
            let process = self.hosts[target].qemus.get(&(key.0, to));
            process.is_some_and(|process| process.is_listening && process.is_loading())
                && self.is_linked(n, target)
        });
        let Some(process) = self.hosts[n].qemus.get_mut(&key) else {
            return Err(failure("qemu-gone", true));
        };
        let serial = process.serial;
        process.migrate().map_err(|cause| failure(cause, true))?;
        if listens {
            self.in_qemu((50_000, 3_000_000), n, key, serial, QemuEvent::Sent);
        } else {
            process.fail(MigrationWord::Failed, true);
        }
        DONE
    }

    /// Whether streams get through.
    fn is_linked(&self, n: usize, other: usize) -> bool {
        self.reaches(Node::Host(n), Node::Host(other)) && self.reaches(Node::Host(other), Node::Host(n))
    }

    fn in_qemu(&mut self, (from_us, to_us): (u64, u64), n: usize, key: Key, serial: u64, what: QemuEvent) {
        let for_us = self.chance.random_range(from_us..to_us);
        let event = Event::Qemu {
            host: n,
            key,
            serial,
            what,
        };
        self.after(for_us, event);
    }

    pub(crate) fn happen_in_qemu(&mut self, n: usize, key: Key, serial: u64, what: QemuEvent) {
        let process = self.hosts[n].qemus.get_mut(&key);
        let Some(process) = process.filter(|process| process.serial == serial) else {
            return;
        };
        match what {
            QemuEvent::Ready => process.is_ready = process.executes(),
            QemuEvent::PowersOff if process.executes() => {
                process.run = RunStatusWord::Shutdown;
            }
            QemuEvent::PowersOff => {}
            QemuEvent::Answers => process.is_silent = false,
            QemuEvent::Copied(to) => {
                if let Some(state) = process.copies.get_mut(&to) {
                    *state = CopyJobState::Done;
                }
            }
            QemuEvent::Sent => return self.sent(n, key),
            QemuEvent::SentAll => return self.sent_all(n, key),
        }
        self.feed(n, key, Input::LookAgain);
    }

    /// The target of a process that sends: the next incarnation's.
    fn target_of(&self, key: Key) -> Option<(usize, Key)> {
        let takes = |(n, host): (usize, &crate::host::Host)| {
            let found = host.qemus.iter().find(|(other, process)| {
                other.0 == key.0 && other.1 > key.1 && process.is_loading() && process.is_listening
            });
            found.map(|(other, _)| (n, *other))
        };
        self.hosts.iter().enumerate().find_map(takes)
    }

    /// All but the last part arrived, unless the link is cut: then it goes on when the link does.
    fn sent(&mut self, n: usize, key: Key) {
        let target = self.target_of(key);
        let is_linked = target.is_none_or(|(target, _)| self.is_linked(n, target));
        let Some(process) = self.hosts[n].qemus.get_mut(&key) else {
            return;
        };
        if process.migration != MigrationWord::Active || process.is_loading() {
            return;
        }
        let serial = process.serial;
        if !is_linked {
            return self.in_qemu((100_000, 500_000), n, key, serial, QemuEvent::Sent);
        }
        process.pre_switchover();
        self.feed(n, key, Input::LookAgain);
    }

    /// The last part arrived, or not; its acknowledgement too, or not.
    fn sent_all(&mut self, n: usize, key: Key) {
        let target = self.target_of(key);
        let process = self.hosts[n].qemus.get(&key);
        let Some(sent) = process.filter(|process| process.migration == MigrationWord::Device) else {
            return;
        };
        let sent = sent.guest_sent();
        let there = target.filter(|(target, _)| self.reaches(Node::Host(n), Node::Host(*target)));
        let Some((target, target_key)) = there else {
            return self.transfer_fails(n, key);
        };
        if self.hosts[target].spoils_loads {
            if let Some(process) = self.hosts[target].qemus.get_mut(&target_key) {
                process.break_off();
            }
            self.transfer_fails(n, key);
            return self.feed(target, target_key, Input::LookAgain);
        }
        if let Some(process) = self.hosts[target].qemus.get_mut(&target_key) {
            process.load(sent);
        }
        let is_lost = !self.is_mended && self.chance.random_range(0..8) == 0;
        if !is_lost && self.reaches(Node::Host(target), Node::Host(n)) {
            if let Some(process) = self.hosts[n].qemus.get_mut(&key) {
                process.complete();
            }
            self.feed(n, key, Input::LookAgain);
        } else {
            self.transfer_fails(n, key);
        }
        self.feed(target, target_key, Input::LookAgain);
        self.hurry(target, target_key);
    }

    /// The source says that it failed. It runs on by itself, or stands still.
    fn transfer_fails(&mut self, n: usize, key: Key) {
        let goes_on = self.chance.random_range(0..2) == 0;
        if let Some(process) = self.hosts[n].qemus.get_mut(&key) {
            process.fail(MigrationWord::Failed, goes_on);
        }
        self.feed(n, key, Input::LookAgain);
    }
}
