//! What a step does: to a host, to its QEMUs and agents, to the store; and the checks of each.

use driver::types::{Effect, MigrationWord, RunStatusWord};
use model::Incarnation;
use model::document::{Order, Stop};

use super::agents::{FORGOTTEN, In};
use super::machine::{Machine, Next, Step, is_nothing, spend};
use super::qemu::Process;
use super::store::slot_of;
use super::world::{Class, Host, Late, SLOTS, Violation, World};

/// What becomes of an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Answered,
    /// It takes place, and the agent dies before it learns so.
    Crash,
    /// It does not take place, and is said to have failed.
    Refused,
    /// It takes place, and is said to have failed.
    Unclear,
}

impl Machine {
    /// An input for a core, and the checks of what it reports.
    pub(crate) fn feed(&mut self, world: &mut World, at: usize, input: In) -> Result<(), Violation> {
        let out = self.agents.step(&mut self.stores, world.slots[at].core, input);
        let slot = &mut world.slots[at];
        slot.core = out.core;
        if out.report == 0 {
            return Ok(());
        }
        slot.said = out.report;
        let told = self.agents.told(out.report);
        if told.is_unforeseen {
            return Err(Violation::Unforeseen);
        }
        let marks = self.agents.marks.get(slot.marks);
        if told.is_closed && (slot.process.is_some() || !marks.closed) {
            return Err(Violation::ClosedUntrue);
        }
        if let Some(to) = told.promises {
            let is_true =
                { slot.process }.is_none_or(|process| !process.is_sending() && !process.has_completed());
            if !is_true || !marks.no_switch.contains(&Incarnation(u64::from(to) + 1)) {
                return Err(Violation::PromiseUntrue);
            }
            slot.promised |= 1 << to;
        }
        Ok(())
    }

    pub(crate) fn feed_all(&mut self, world: &mut World, host: usize, input: In) -> Result<(), Violation> {
        for at in 0..SLOTS {
            if usize::from(world.slots[at].host) == host && world.slots[at].core != 0 {
                self.feed(world, at, input)?;
            }
        }
        Ok(())
    }

    /// A document that counts: it is on the host's disk before the cores have it.
    pub(crate) fn accept(&mut self, world: &mut World, host: usize, document: u32) -> Result<(), Violation> {
        let is_news = document != world.hosts[host].document;
        world.hosts[host].document = document;
        world.hosts[host].is_fresh = true;
        self.welcome(world, host, document);
        if is_news {
            self.feed_all(world, host, In::Desired(document, true))?;
            self.overtake(world, host);
        }
        self.feed_all(world, host, In::Fresh)
    }

    /// A late document that an agent has heard a newer one than. It does not count, so it need not come.
    fn overtake(&self, world: &mut World, host: usize) {
        if let Some(Late::Document { host: other, .. }) = world.late
            && usize::from(other) == host
            && !self.rules.takes_older_documents
        {
            world.late = None;
        }
    }

    /// The incarnation that a document names gets a core, if it has none.
    fn welcome(&mut self, world: &mut World, host: usize, document: u32) {
        let named = self
            .stores
            .documents
            .get(document)
            .as_ref()
            .map(|about| about.incarnation);
        let Some(at) = named.map(slot_of) else { return };
        if world.slots[at].core == 0 {
            let marks = world.slots[at].marks;
            world.slots[at].host = host as u8;
            world.slots[at].core = self.agents.start(at, host, marks);
        }
    }

    /// The agent dies and is started again: it has its journal and its last document.
    pub(crate) fn crash(&mut self, world: &World, host: usize) -> Next {
        let mut next = *world;
        let was_fresh = next.hosts[host].is_fresh && self.rules.stays_fresh;
        (next.hosts[host].is_online, next.hosts[host].is_fresh) = (was_fresh, was_fresh);
        for at in 0..SLOTS {
            let slot = &mut next.slots[at];
            if usize::from(slot.host) != host || slot.core == 0 {
                continue;
            }
            slot.said = 0;
            slot.core = if is_nothing(slot.marks) {
                0
            } else {
                self.agents.start(at, host, slot.marks)
            };
        }
        let document = next.hosts[host].document;
        if document != 0 {
            self.welcome(&mut next, host, document);
            self.feed_all(&mut next, host, In::Desired(document, true))?;
        }
        if was_fresh {
            self.feed_all(&mut next, host, In::Fresh)?;
        }
        Ok(next)
    }

    pub(crate) fn host_dies(&mut self, world: &World, host: usize) -> Next {
        let mut next = *world;
        next.hosts[host].is_off = true;
        next.hosts[host].is_online = false;
        for at in 0..SLOTS {
            if usize::from(next.slots[at].host) == host {
                next.slots[at].core = 0;
                next.slots[at].said = 0;
                end_process(&mut next, at)?;
            }
        }
        Ok(next)
    }

    /// A late message comes.
    pub(crate) fn deliver(&mut self, world: &World, late: Late) -> Next {
        let mut next = *world;
        next.late = None;
        match late {
            Late::Document { host, document } => {
                let host = usize::from(host);
                if world.hosts[host].is_online && !world.hosts[host].is_off {
                    self.accept(&mut next, host, document)?;
                }
            }
            Late::Report { host, status } => {
                let store = self.stores.report(next.store, usize::from(host), status);
                self.enter(&mut next, store)?;
            }
            Late::Go { from, to } => self.hear_go(&mut next, usize::from(from), usize::from(to))?,
            Late::Plan { plan, .. } => return self.commit(&next, plan),
        }
        Ok(next)
    }

    /// Commits a plan that nothing has overtaken.
    pub(crate) fn commit(&mut self, world: &World, plan: u32) -> Next {
        let mut next = *world;
        let store = self.stores.commit(world.store, plan);
        self.enter(&mut next, store)?;
        Ok(next)
    }

    /// The store changes. What was granted must have been free to be granted.
    pub(crate) fn enter(&mut self, world: &mut World, store: u32) -> Result<(), Violation> {
        let (before, after) = (self.stores.facts(world.store), self.stores.facts(store));
        if let Some(Late::Plan { plan, decided_on }) = world.late {
            let is_overtaken = self.stores.overtakes(plan, decided_on, store);
            if is_overtaken && !self.rules.commits_blindly {
                world.late = None;
            }
        }
        world.store = store;
        if after.last > SLOTS as u64 {
            return Err(Violation::BeyondBound);
        }
        if after.last > before.last {
            let granted = slot_of(Incarnation(after.last));
            world.slots[granted].host = after.last_host;
            let mut may_run = (0..granted).filter(|at| self.may_run(world, *at));
            let is_hand_over = after.is_moving && before.open == after.open;
            let moved_from = before
                .open
                .filter(|_| is_hand_over)
                .map(|open| slot_of(Incarnation(open)));
            if may_run.any(|at| Some(at) != moved_from) {
                return Err(Violation::GrantedTooEarly);
            }
        }
        Ok(())
    }

    /// Whether an incarnation that was granted is neither closed nor fenced.
    fn may_run(&self, world: &World, at: usize) -> bool {
        let slot = &world.slots[at];
        let is_off = world.hosts[usize::from(slot.host)].is_off;
        !is_off && !slot.is_over && !self.agents.marks.get(slot.marks).closed
    }

    pub(crate) fn carry_out(&mut self, world: &World, at: usize, effect: &Effect, fate: Fate) -> Next {
        let mut next = *world;
        let host = usize::from(world.slots[at].host);
        if fate == Fate::Refused {
            self.feed(&mut next, at, In::Failed)?;
            return Ok(next);
        }
        let is_done = self.perform(&mut next, at, effect)?;
        match fate {
            Fate::Crash => return self.crash(&next, host),
            // It is gone, and its core with it.
            _ if *effect == Effect::Forget => {}
            Fate::Answered if is_done => self.feed(&mut next, at, In::Done)?,
            _ => self.feed(&mut next, at, In::Failed)?,
        }
        if self.is_eager && next.slots[at].core != 0 {
            self.look_now(&mut next, at)?;
        }
        Ok(next)
    }

    /// The look that a core waits for.
    pub(crate) fn look_now(&mut self, world: &mut World, at: usize) -> Result<(), Violation> {
        let effect = self.agents.pending(world.slots[at].core);
        if effect.as_deref() == Some(&Effect::Look) {
            let said = world.slots[at].process.map(|process| process.machine);
            self.feed(world, at, In::Observed(said, false))?;
        }
        Ok(())
    }

    /// Answers whether it succeeded.
    fn perform(&mut self, world: &mut World, at: usize, effect: &Effect) -> Result<bool, Violation> {
        match effect {
            Effect::Journal(_) => {
                let slot = &mut world.slots[at];
                slot.marks = self.agents.written(slot.core, slot.marks);
                Ok(true)
            }
            Effect::Spawn { incoming } => self.spawn(world, at, *incoming),
            Effect::Kill if self.loses_memory(world, at) => Err(Violation::MemoryLost),
            Effect::Kill => end_process(world, at).map(|()| true),
            Effect::Forget => self.forget(world, at).map(|()| true),
            Effect::Prepare { .. }
            | Effect::OpenPorts
            | Effect::Announce
            | Effect::Release
            | Effect::RemoveVolumes
            | Effect::Settle
            | Effect::Build
            | Effect::Identify
            | Effect::RemoveSaved { .. } => Ok(true),
            effect if world.slots[at].process.is_some() => self.command(world, at, effect),
            _ => Ok(false),
        }
    }

    /// Nothing is left of an incarnation. It is begun anew if its host was told something of it in the meantime.
    fn forget(&mut self, world: &mut World, at: usize) -> Result<(), Violation> {
        let slot = &mut world.slots[at];
        (slot.core, slot.marks, slot.said) = (0, FORGOTTEN, 0);
        slot.is_over = true;
        let at_host = usize::from(slot.host);
        let host = world.hosts[at_host];
        if host.document == 0 {
            return Ok(());
        }
        self.welcome(world, at_host, host.document);
        if world.slots[at].core == 0 {
            return Ok(());
        }
        self.feed(world, at, In::Desired(host.document, true))?;
        match host {
            Host { is_fresh: true, .. } => self.feed(world, at, In::Fresh),
            Host { is_online: true, .. } => self.feed(world, at, In::Stale),
            _ => Ok(()),
        }
    }

    /// Whether its host was told to save a guest that is nowhere else, and ends it unsaved, or as one whose state nobody
    /// will look for.
    fn loses_memory(&self, world: &World, at: usize) -> bool {
        let slot = &world.slots[at];
        let document = world.hosts[usize::from(slot.host)].document;
        let about = self.stores.documents.get(document).as_ref();
        let is_to_be_saved = about.is_some_and(|about| matches!(about.order, Order::Stop(Stop::Suspend)));
        let marks = self.agents.marks.get(slot.marks);
        let is_whole = slot.process.is_some_and(|process| process.has_completed());
        let is_saved = slot.process.is_some_and(|process| process.is_saved());
        is_to_be_saved && (is_whole && !marks.closed || is_saved && marks.saved_bytes.is_none())
    }

    fn spawn(&mut self, world: &mut World, at: usize, incoming: bool) -> Result<bool, Violation> {
        let slot = &mut world.slots[at];
        let marks = self.agents.marks.get(slot.marks);
        if slot.was_spawned {
            return Err(Violation::LaunchedTwice);
        }
        if slot.process.is_some() || marks.closed || !marks.launched && self.rules.lost.is_none() {
            return Err(Violation::LaunchedWrongly);
        }
        slot.was_spawned = true;
        slot.process = Some(Process::spawn(incoming));
        Ok(true)
    }

    fn command(&mut self, world: &mut World, at: usize, effect: &Effect) -> Result<bool, Violation> {
        match effect {
            Effect::Listen => {
                change(world, at, |process| process.machine.is_listening = true);
                Ok(true)
            }
            Effect::Continue => self.cont(world, at),
            Effect::Pause => {
                change(world, at, |process| process.machine.stop());
                Ok(true)
            }
            Effect::AskShutdown => {
                change(world, at, |process| {
                    if process.executes() {
                        process.machine.run = RunStatusWord::Shutdown;
                    }
                });
                Ok(true)
            }
            Effect::Save { .. } => {
                let mut may = false;
                change(world, at, |process| may = process.save());
                Ok(may)
            }
            Effect::Migrate { to } => migrate(world, at, slot_of(*to)),
            Effect::MigrateContinue { .. } => {
                let is_there = asks_to_switch(world, at);
                if is_there {
                    change(world, at, |process| {
                        process.machine.migration = MigrationWord::Device
                    });
                }
                Ok(is_there)
            }
            Effect::MigrateCancel => {
                give_up(world, at, MigrationWord::Cancelled, true)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn cont(&mut self, world: &mut World, at: usize) -> Result<bool, Violation> {
        let slot = &world.slots[at];
        let Some(process) = slot.process else {
            return Ok(false);
        };
        let marks = self.agents.marks.get(slot.marks);
        if !marks.ran && self.rules.lost.is_none() || marks.closed {
            return Err(Violation::ContinuedWrongly);
        }
        if process.has_completed() {
            let target = &world.slots[usize::from(process.to)];
            let ended = self.agents.marks.get(target.marks);
            let never_ran = target.is_over || ended.closed && !ended.ran;
            if target.process.is_some() || !never_ran {
                return Err(Violation::SourceAfterHandOver);
            }
        }
        if process.has_loaded() && !process.executes() {
            let may_run = |other: &Process| other.is_sending() && usize::from(other.to) == at;
            let sources = world.slots.iter().filter_map(|slot| slot.process.as_ref());
            if sources.into_iter().any(may_run) {
                return Err(Violation::TargetTooEarly);
            }
        }
        let mut may = false;
        change(world, at, |process| may = process.cont());
        check(world).map(|()| may)
    }

    /// What happens to a QEMU and its transfer by itself, and by faults.
    pub(crate) fn qemu_steps(&mut self, world: &World, at: usize, out: &mut Vec<(Step, Next)>) {
        let Some(process) = world.slots[at].process else {
            return;
        };
        if let Some(mut spent) = spend(world, Class::Qemu) {
            let result = end_process(&mut spent, at);
            out.push((Step::QemuDies(at), result.map(|()| spent)));
        }
        if let Some(mut spent) = spend(world, Class::Guest).filter(|_| process.executes()) {
            change(&mut spent, at, |process| {
                process.machine.run = RunStatusWord::Shutdown
            });
            out.push((Step::GuestEnds(at), Ok(spent)));
        }
        if !process.is_sending() || process.is_cut {
            return;
        }
        self.transfer_step(world, at, process, out);
        let Some(spent) = spend(world, Class::Link) else {
            return;
        };
        let mut next = spent;
        let result = give_up(&mut next, at, MigrationWord::Failed, true);
        out.push((Step::LinkFailsRunsOn(at), result.map(|()| next)));
        if process.machine.run == RunStatusWord::FinishMigrate {
            let mut next = spent;
            let result = give_up(&mut next, at, MigrationWord::Failed, false);
            out.push((Step::LinkFailsStands(at), result.map(|()| next)));
        }
        let mut next = spent;
        change(&mut next, at, |process| process.is_cut = true);
        out.push((Step::LinkGoesSilent(at), Ok(next)));
    }

    fn transfer_step(&mut self, world: &World, at: usize, process: Process, out: &mut Vec<(Step, Next)>) {
        let to = usize::from(process.to);
        let Some(target) = world.slots[to].process else {
            return;
        };
        let mut next = *world;
        match process.machine.migration {
            MigrationWord::Active if target.machine.awaits_stream() => {
                change(&mut next, at, |process| process.machine.pre_switchover());
                out.push((Step::MemorySent(at), Ok(next)));
            }
            MigrationWord::Device if target.machine.awaits_stream() => {
                let sent = process.machine.guest_sent();
                change(&mut next, to, |target| target.machine.load(sent));
                if self.rules.targets_start_running {
                    change(&mut next, to, |target| {
                        target.machine.run = RunStatusWord::Running
                    });
                }
                let result = check(&mut next);
                out.push((Step::Loads(at), result.map(|()| next)));
            }
            MigrationWord::Device if target.has_loaded() => {
                change(&mut next, at, |process| process.machine.complete());
                let result = if world.slots[at].promised & 1 << to != 0 {
                    Err(Violation::PromiseBroken)
                } else {
                    Ok(next)
                };
                out.push((Step::Acknowledged(at), result));
            }
            _ => {}
        }
    }
}

fn change(world: &mut World, at: usize, change: impl FnOnce(&mut Process)) {
    if let Some(process) = &mut world.slots[at].process {
        change(process);
    }
}

/// What must hold whenever a guest may have begun to execute.
fn check(world: &mut World) -> Result<(), Violation> {
    if world.executing() > 1 {
        return Err(Violation::TwoRun);
    }
    let goes_on_old = |process: &Process| process.executes() && process.is_old;
    if world
        .slots
        .iter()
        .filter_map(|slot| slot.process.as_ref())
        .any(goes_on_old)
    {
        return Err(Violation::OldMemoryRuns);
    }
    world.note_writes();
    Ok(())
}

fn asks_to_switch(world: &World, at: usize) -> bool {
    let process = world.slots[at].process;
    process.is_some_and(|process| {
        process.machine.migration == MigrationWord::PreSwitchover && process.is_sending()
    })
}

fn migrate(world: &mut World, at: usize, to: usize) -> Result<bool, Violation> {
    let mut may = false;
    change(world, at, |process| may = process.migrate(to as u8));
    let listens = { world.slots[to].process }.is_some_and(|target| target.machine.awaits_stream());
    if may && !listens {
        give_up(world, at, MigrationWord::Failed, true)?;
    }
    Ok(may)
}

/// A transfer ends badly, at both ends unless nothing comes through.
fn give_up(world: &mut World, at: usize, word: MigrationWord, goes_on: bool) -> Result<(), Violation> {
    let Some(process) = world.slots[at].process.filter(Process::is_sending) else {
        return Ok(());
    };
    if !process.is_cut {
        change(world, usize::from(process.to), |target| {
            if target.machine.awaits_stream() {
                target.machine.break_off();
            }
        });
    }
    change(world, at, |process| process.give_up(word, goes_on));
    check(world)
}

/// A process is gone; the other end of its transfer notices.
pub(crate) fn end_process(world: &mut World, at: usize) -> Result<(), Violation> {
    let Some(process) = world.slots[at].process.take() else {
        return Ok(());
    };
    if process.is_sending() && !process.is_cut {
        change(world, usize::from(process.to), |target| {
            if target.machine.awaits_stream() {
                target.machine.break_off();
            }
        });
    }
    for other in 0..SLOTS {
        let sends_here = |process: Process| process.is_sending() && usize::from(process.to) == at;
        if world.slots[other]
            .process
            .is_some_and(|process| sends_here(process) && !process.is_cut)
        {
            give_up(world, other, MigrationWord::Failed, true)?;
        }
    }
    Ok(())
}
