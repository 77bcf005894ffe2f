//! From a state to the next ones: every step that any party may take.

use std::sync::Arc;

use driver::types::Effect;

use super::agents::{Agents, BLANK, FORGOTTEN, In};
use super::effects::Fate;
use super::rules::Rules;
use super::store::{Act, HOSTS, Item, MIGRATIONS, Stores};
use super::world::{CLASSES, Class, Late, SLOTS, Violation, World};

/// A step, by its name; numbers are slots (the incarnation before N = 1) or hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    CarryOut(usize),
    CarryOutAndCrash(usize),
    Refuse(usize),
    CarryOutUnclear(usize),
    Look(usize),
    LookLate(usize),
    GoArrives(usize),
    GoArrivesAndIsKept(usize),
    GoAnswered(usize),
    GoGivenUp(usize),
    Post(usize),
    KeepReport(usize),
    Crash(usize),
    Disconnect(usize),
    Connect(usize),
    Document(usize),
    KeepDocument(usize),
    LateMessage,
    QemuDies(usize),
    GuestEnds(usize),
    HostDies(usize),
    MemorySent(usize),
    Loads(usize),
    Acknowledged(usize),
    LinkFailsRunsOn(usize),
    LinkFailsStands(usize),
    LinkGoesSilent(usize),
    Plan(Item),
    PlanLate(Item),
    KeepPlan(Item),
    Wish(Act),
}

impl Step {
    /// Whether it needs neither a fault nor a person's change of mind.
    pub(crate) fn leads_on(self) -> bool {
        !matches!(
            self,
            Self::CarryOutAndCrash(_)
                | Self::Refuse(_)
                | Self::CarryOutUnclear(_)
                | Self::GoArrivesAndIsKept(_)
                | Self::KeepReport(_)
                | Self::Crash(_)
                | Self::Disconnect(_)
                | Self::KeepDocument(_)
                | Self::QemuDies(_)
                | Self::GuestEnds(_)
                | Self::HostDies(_)
                | Self::LinkFailsRunsOn(_)
                | Self::LinkFailsStands(_)
                | Self::LinkGoesSilent(_)
                | Self::KeepPlan(_)
        ) && !matches!(self, Self::Wish(act) if !matches!(act, Act::ConfirmDead(_)))
    }
}

/// Everything that steps are computed with.
pub(crate) struct Machine {
    pub(crate) rules: Rules,
    pub(crate) stores: Stores,
    pub(crate) agents: Agents,
    /// What a person may wish for, each once.
    pub(crate) wishes: Vec<Act>,
    /// Reports are posted at once, and QEMU is looked at right after each effect.
    pub(crate) is_eager: bool,
}

/// The state after a step, or what is wrong with it.
pub(crate) type Next = Result<World, Violation>;

impl Machine {
    pub(crate) fn new(rules: Rules, wishes: Vec<Act>, is_eager: bool) -> Self {
        Self {
            rules,
            stores: Stores::new(rules),
            agents: Agents::new(rules),
            wishes,
            is_eager,
        }
    }

    /// Every step from a state, in a fixed order. Those that change nothing are left out.
    pub(crate) fn steps(&mut self, world: &World, out: &mut Vec<(Step, Next)>) {
        for at in 0..SLOTS {
            self.slot_steps(world, at, out);
        }
        for at in 0..HOSTS {
            self.host_steps(world, at, out);
        }
        self.server_steps(world, out);
        self.wish_steps(world, out);
        if let Some(late) = world.late {
            let next = self.deliver(world, late);
            out.push((Step::LateMessage, next));
        }
        if self.is_eager {
            for (_, next) in out.iter_mut() {
                *next = next.and_then(|next| self.hurry(next));
            }
        }
        out.retain(|(_, next)| next.as_ref() != Ok(world));
    }

    /// What the servers can have heard they have heard.
    fn hurry(&mut self, mut world: World) -> Next {
        for at in 0..SLOTS {
            let slot = world.slots[at];
            let host = usize::from(slot.host);
            if slot.said != 0 && world.hosts[host].is_online {
                let store = self.stores.report(world.store, host, slot.said);
                self.enter(&mut world, store)?;
            }
        }
        Ok(world)
    }

    fn slot_steps(&mut self, world: &World, at: usize, out: &mut Vec<(Step, Next)>) {
        let slot = &world.slots[at];
        let is_off = world.hosts[usize::from(slot.host)].is_off;
        if slot.core != 0 && !is_off {
            match self.agents.pending(slot.core) {
                None => self.look_steps(world, at, out),
                Some(effect) => self.effect_steps(world, at, &effect, out),
            }
        }
        if slot.said != 0 && !is_off && world.hosts[usize::from(slot.host)].is_online {
            self.post_steps(world, at, out);
        }
        if slot.process.is_some() {
            self.qemu_steps(world, at, out);
        }
    }

    fn look_steps(&mut self, world: &World, at: usize, out: &mut Vec<(Step, Next)>) {
        for (step, is_late) in [(Step::Look(at), false), (Step::LookLate(at), true)] {
            let mut next = *world;
            let result = self.look(&mut next, at, is_late);
            out.push((step, result.map(|()| next)));
        }
    }

    /// A core that is looked to by a timer or an event, and its look.
    fn look(&mut self, world: &mut World, at: usize, is_late: bool) -> Result<(), Violation> {
        self.feed(world, at, In::LookAgain)?;
        let effect = self.agents.pending(world.slots[at].core);
        if effect.as_deref() == Some(&Effect::Look) {
            let said = world.slots[at].process.map(|process| process.machine);
            self.feed(world, at, In::Observed(said, is_late))?;
        }
        Ok(())
    }

    fn effect_steps(&mut self, world: &World, at: usize, effect: &Arc<Effect>, out: &mut Vec<(Step, Next)>) {
        match &**effect {
            Effect::Look => {
                for (step, is_late) in [(Step::Look(at), false), (Step::LookLate(at), true)] {
                    let said = world.slots[at].process.map(|process| process.machine);
                    let mut next = *world;
                    let result = self.feed(&mut next, at, In::Observed(said, is_late));
                    out.push((step, result.map(|()| next)));
                }
            }
            Effect::SendGo { to, .. } => self.go_steps(world, at, super::store::slot_of(*to), out),
            effect => self.ordinary_steps(world, at, effect, out),
        }
    }

    fn ordinary_steps(&mut self, world: &World, at: usize, effect: &Effect, out: &mut Vec<(Step, Next)>) {
        out.push((
            Step::CarryOut(at),
            self.carry_out(world, at, effect, Fate::Answered),
        ));
        if let Some(spent) = spend(world, Class::Agent) {
            let next = self.carry_out(&spent, at, effect, Fate::Crash);
            out.push((Step::CarryOutAndCrash(at), next));
        }
        if let Some(spent) = spend(world, Class::Effect) {
            let next = self.carry_out(&spent, at, effect, Fate::Refused);
            out.push((Step::Refuse(at), next));
            let next = self.carry_out(&spent, at, effect, Fate::Unclear);
            out.push((Step::CarryOutUnclear(at), next));
        }
    }

    fn go_steps(&mut self, world: &World, from: usize, to: usize, out: &mut Vec<(Step, Next)>) {
        let target = &world.slots[to];
        let is_reachable = target.core != 0 && !world.hosts[usize::from(target.host)].is_off;
        let runs = is_reachable
            && self
                .agents
                .status(target.core)
                .is_some_and(|status| super::agents::Told::of(status).runs);
        if is_reachable {
            let mut next = *world;
            let result = self.hear_go(&mut next, from, to);
            out.push((Step::GoArrives(from), result.map(|()| next)));
        }
        if let Some(mut spent) = spend(world, Class::Go).filter(|_| world.late.is_none()) {
            spent.late = Some(Late::Go {
                from: from as u8,
                to: to as u8,
            });
            let result = self.hear_go(&mut spent, from, to);
            out.push((Step::GoArrivesAndIsKept(from), result.map(|()| spent)));
        }
        let (step, input) = if runs {
            (Step::GoAnswered(from), In::Done)
        } else {
            (Step::GoGivenUp(from), In::Failed)
        };
        let mut next = *world;
        let result = self.feed(&mut next, from, input);
        out.push((step, result.map(|()| next)));
    }

    pub(crate) fn hear_go(&mut self, world: &mut World, from: usize, to: usize) -> Result<(), Violation> {
        let target = &world.slots[to];
        if target.core == 0 || world.hosts[usize::from(target.host)].is_off {
            return Ok(());
        }
        self.feed(world, to, In::Go(from as u8, to as u8))
    }

    fn post_steps(&mut self, world: &World, at: usize, out: &mut Vec<(Step, Next)>) {
        let slot = world.slots[at];
        let mut next = *world;
        let store = self.stores.report(world.store, usize::from(slot.host), slot.said);
        let result = self.enter(&mut next, store);
        out.push((Step::Post(at), result.map(|()| next)));
        if let Some(mut spent) = spend(world, Class::Report).filter(|_| world.late.is_none()) {
            spent.late = Some(Late::Report {
                host: slot.host,
                status: slot.said,
            });
            out.push((Step::KeepReport(at), Ok(spent)));
        }
    }

    fn host_steps(&mut self, world: &World, at: usize, out: &mut Vec<(Step, Next)>) {
        let host = world.hosts[at];
        let holds = world
            .slots
            .iter()
            .any(|slot| usize::from(slot.host) == at && slot.core != 0);
        if host.is_off {
            if let Some(store) = self.stores.ask(world.store, Act::ConfirmDead(at)) {
                let mut next = *world;
                let result = self.enter(&mut next, store);
                out.push((Step::Wish(Act::ConfirmDead(at)), result.map(|()| next)));
            }
            return;
        }
        if let Some(spent) = spend(world, Class::Agent).filter(|_| holds) {
            out.push((Step::Crash(at), self.crash(&spent, at)));
        }
        if let Some(spent) = spend(world, Class::Host).filter(|_| holds) {
            out.push((Step::HostDies(at), self.host_dies(&spent, at)));
        }
        if !host.is_online {
            let mut next = *world;
            next.hosts[at].is_online = true;
            let result = self.feed_all(&mut next, at, In::Stale);
            out.push((Step::Connect(at), result.map(|()| next)));
            return;
        }
        self.document_steps(world, at, out);
        if let Some(mut spent) = spend(world, Class::Connection).filter(|_| holds) {
            (spent.hosts[at].is_online, spent.hosts[at].is_fresh) = (false, false);
            let result = self.feed_all(&mut spent, at, In::Offline);
            out.push((Step::Disconnect(at), result.map(|()| spent)));
        }
    }

    fn document_steps(&mut self, world: &World, at: usize, out: &mut Vec<(Step, Next)>) {
        let document = self.stores.document(world.store, at);
        let host = world.hosts[at];
        if document == host.document && host.is_fresh || self.is_elsewhere(world, at, document) {
            return;
        }
        let mut next = *world;
        let result = self.accept(&mut next, at, document);
        out.push((Step::Document(at), result.map(|()| next)));
        let is_news = document != host.document && world.late.is_none();
        if let Some(mut spent) = spend(world, Class::Document).filter(|_| is_news) {
            spent.late = Some(Late::Document {
                host: at as u8,
                document,
            });
            out.push((Step::KeepDocument(at), Ok(spent)));
        }
    }

    /// Whether a document names an incarnation that another host has not forgotten: an incarnation has one place here, so what
    /// is left of a VM is removed by another host after that.
    fn is_elsewhere(&self, world: &World, at: usize, document: u32) -> bool {
        let about = self.stores.documents.get(document).as_ref();
        let slot = about.map(|about| world.slots[super::store::slot_of(about.incarnation)]);
        slot.is_some_and(|slot| slot.core != 0 && usize::from(slot.host) != at)
    }

    fn server_steps(&mut self, world: &World, out: &mut Vec<(Step, Next)>) {
        let items = std::iter::once(Item::Vm).chain((0..MIGRATIONS).map(Item::Migration));
        for item in items {
            let plan = self.stores.decide(world.store, item, false);
            if plan != 0 {
                out.push((Step::Plan(item), self.commit(world, plan)));
                let spent = spend(world, Class::Controller).filter(|_| world.late.is_none());
                if let Some(mut spent) = spent {
                    spent.late = Some(Late::Plan {
                        plan,
                        decided_on: world.store,
                    });
                    out.push((Step::KeepPlan(item), Ok(spent)));
                }
            }
            let late = self.stores.decide(world.store, item, true);
            if late != 0 && late != plan && plan == 0 && item != Item::Vm {
                out.push((Step::PlanLate(item), self.commit(world, late)));
            }
        }
    }

    fn wish_steps(&mut self, world: &World, out: &mut Vec<(Step, Next)>) {
        for at in 0..self.wishes.len() {
            let (act, bit) = (self.wishes[at], 1 << at);
            if world.wishes & bit == 0 || world.wishes_left == 0 {
                continue;
            }
            if let Some(store) = self.stores.ask(world.store, act) {
                let mut next = *world;
                next.wishes &= !bit;
                next.wishes_left -= 1;
                let result = self.enter(&mut next, store);
                out.push((Step::Wish(act), result.map(|()| next)));
            }
        }
    }

    /// What a step is about, for a trace.
    pub(crate) fn tell(&mut self, world: &World, step: Step) -> String {
        let effect = match step {
            Step::CarryOut(at)
            | Step::CarryOutAndCrash(at)
            | Step::Refuse(at)
            | Step::CarryOutUnclear(at) => self.agents.pending(world.slots[at].core),
            _ => None,
        };
        let what = match (step, effect) {
            (_, Some(effect)) => format!("{effect:?}").chars().take(60).collect(),
            (Step::Plan(item) | Step::PlanLate(item) | Step::KeepPlan(item), _) => {
                let plan = self
                    .stores
                    .decide(world.store, item, matches!(step, Step::PlanLate(_)));
                self.stores.action(plan).to_owned()
            }
            (Step::Document(at) | Step::KeepDocument(at), _) => {
                let document = self.stores.document(world.store, at);
                let about = self.stores.documents.get(document).as_ref();
                about.map_or("nothing".to_owned(), |about| {
                    format!("{} {:?}", about.incarnation, about.order)
                })
            }
            (Step::Post(at) | Step::KeepReport(at), _) => {
                let status = self.stores.statuses.get(world.slots[at].said);
                format!("{:?} ran={} {:?}", status.state, status.ran, status.outgoing)
            }
            _ => String::new(),
        };
        format!("{step:?} {what}   [{}]", self.stores.words(world.store))
    }
}

/// The state with one fault less to come; `None`: there is none left.
pub(crate) fn spend(world: &World, class: Class) -> Option<World> {
    let at = CLASSES.iter().position(|known| *known == class)?;
    let mut spent = *world;
    spent.budget[at] = spent.budget[at].checked_sub(1)?;
    Some(spent)
}

/// Whether an agent that starts has nothing to do with an incarnation, for what its journal says.
pub(crate) const fn is_nothing(marks: u32) -> bool {
    marks == BLANK || marks == FORGOTTEN
}
