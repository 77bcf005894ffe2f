//! Breadth first over all states, so that the first thing that is found wrong has the shortest way to it; then backwards
//! over all steps that need no fault, so that every state is shown to have a way on.

use std::collections::BTreeSet;

use model::lifecycle::Phase;
use model::vm::Power;

use super::intern::{Map, Print, print_of};
use super::machine::{Machine, Step};
use super::rules::Rules;
use super::store::{Act, HOSTS};
use super::world::{CLASSES, Class, Violation, World};

/// What is searched.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) name: String,
    pub(crate) faults: Vec<(Class, u8)>,
    /// What a person may do at any step, each once.
    pub(crate) wishes: Vec<Act>,
    /// How many of them.
    pub(crate) most_wishes: u8,
    /// Reports are posted at once, and QEMU is looked at right after each effect: fewer states for more faults.
    pub(crate) is_eager: bool,
    /// A search that meets more states than this has failed.
    pub(crate) most_states: usize,
}

/// What was found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) states: usize,
    pub(crate) steps: usize,
    pub(crate) stores: usize,
    pub(crate) cores: usize,
    pub(crate) wrong: Option<Wrong>,
}

/// A rule that is broken, with the steps that lead there.
#[derive(Debug)]
pub(crate) struct Wrong {
    pub(crate) what: Violation,
    pub(crate) trace: Vec<String>,
}

/// Searches everything that follows from a VM that runs and whose migration was asked for.
pub(crate) fn search(plan: &Plan, rules: Rules) -> Found {
    let mut machine = Machine::new(rules, plan.wishes.clone(), plan.is_eager);
    let first = match start(&mut machine) {
        Ok(first) => first,
        Err(what) => {
            let wrong = Wrong {
                what,
                trace: vec!["before the migration".to_owned()],
            };
            return Search::new(machine).found(Some(wrong));
        }
    };
    let mut search = Search::new(machine);
    let mut root = first;
    for (class, count) in &plan.faults {
        let at = CLASSES.iter().position(|known| known == class).unwrap();
        root.budget[at] = *count;
    }
    root.wishes = u8::try_from((1_u32 << plan.wishes.len()) - 1).unwrap();
    root.wishes_left = plan.most_wishes;
    let wrong = search.forward(root, plan);
    let wrong = wrong.or_else(|| search.backward(root));
    let stays = !search.has_moved && wrong.is_none();
    let wrong = wrong.or_else(|| stays.then(|| search.wrong(root, 0, None, Violation::NeverMoves)));
    search.found(wrong)
}

/// A world in which the VM runs, everything is said and done, and a migration was just asked for.
fn start(machine: &mut Machine) -> Result<World, Violation> {
    let store = machine.stores.first();
    let mut world = World::first(store);
    for host in &mut world.hosts {
        host.is_online = true;
    }
    for _ in 0..200 {
        let mut steps = Vec::new();
        machine.steps(&world, &mut steps);
        let is_late = |step: &Step| matches!(step, Step::LookLate(_) | Step::PlanLate(_));
        let next = steps.into_iter().find(|(step, _)| !is_late(step));
        match next {
            Some((_, next)) => world = next?,
            None => break,
        }
    }
    if machine.stores.facts(world.store).phase != Some(Phase::Running) {
        return Err(Violation::DeadEnd);
    }
    let asked = machine.stores.ask(world.store, Act::Migrate).unwrap();
    machine.enter(&mut world, asked)?;
    Ok(world)
}

struct Search {
    machine: Machine,
    seen: Map<Print, u32>,
    /// From which state, by which of its steps.
    parents: Vec<(u32, u16)>,
    settled: Vec<bool>,
    /// Steps that need no fault, from where to where.
    ways: Vec<(u32, u32)>,
    steps: usize,
    /// The VM was seen to run at its target, with everything over.
    has_moved: bool,
}

impl Search {
    fn new(machine: Machine) -> Self {
        Self {
            machine,
            seen: Map::default(),
            parents: Vec::new(),
            settled: Vec::new(),
            ways: Vec::new(),
            steps: 0,
            has_moved: false,
        }
    }

    fn found(self, wrong: Option<Wrong>) -> Found {
        Found {
            states: self.parents.len(),
            steps: self.steps,
            stores: self.machine.stores.len(),
            cores: self.machine.agents.len(),
            wrong,
        }
    }

    fn note(&mut self, world: &World, parent: u32, by: u16) -> (u32, bool) {
        let next = u32::try_from(self.parents.len()).unwrap();
        let id = *self.seen.entry(print_of(world)).or_insert(next);
        if id == next {
            self.parents.push((parent, by));
            let is_settled = self.is_settled(world);
            self.settled.push(is_settled);
            let facts = self.machine.stores.facts(world.store);
            self.has_moved |= is_settled && facts.open == Some(2) && facts.phase == Some(Phase::Running);
        }
        (id, id == next)
    }

    fn forward(&mut self, root: World, plan: &Plan) -> Option<Wrong> {
        let mut level = vec![(0, root)];
        self.note(&root, 0, 0);
        let mut steps = Vec::new();
        while !level.is_empty() {
            let mut next_level = Vec::new();
            for (id, world) in level {
                steps.clear();
                self.machine.steps(&world, &mut steps);
                for (by, (step, next)) in steps.iter().enumerate() {
                    self.steps += 1;
                    let next = match next {
                        Ok(next) => next,
                        Err(Violation::BeyondBound) => {
                            self.settled[id as usize] = true;
                            continue;
                        }
                        Err(what) => return Some(self.wrong(root, id, Some(*step), *what)),
                    };
                    let (to, is_new) = self.note(next, id, u16::try_from(by).unwrap());
                    if step.leads_on() {
                        self.ways.push((to, id));
                    }
                    if is_new {
                        next_level.push((to, *next));
                    }
                }
            }
            assert!(
                self.parents.len() <= plan.most_states,
                "{}: more than {} states",
                plan.name,
                plan.most_states
            );
            level = next_level;
        }
        None
    }

    /// The nearest state from which nothing leads to where the VM is as it should be.
    fn backward(&mut self, root: World) -> Option<Wrong> {
        self.ways.sort_unstable();
        let mut good = self.settled.clone();
        let mut open: Vec<u32> = (0..)
            .zip(&good)
            .filter(|(_, is)| **is)
            .map(|(id, _)| id)
            .collect();
        while let Some(to) = open.pop() {
            let first = self.ways.partition_point(|(other, _)| *other < to);
            let ways = self.ways[first..].iter().take_while(|(other, _)| *other == to);
            for (_, from) in ways {
                if !std::mem::replace(&mut good[*from as usize], true) {
                    open.push(*from);
                }
            }
        }
        let bad = good.iter().position(|is| !is)?;
        Some(self.wrong(root, u32::try_from(bad).unwrap(), None, Violation::DeadEnd))
    }

    /// Replays the steps to a state, and the last one.
    fn wrong(&mut self, root: World, id: u32, last: Option<Step>, what: Violation) -> Wrong {
        let mut path = Vec::new();
        let mut at = id;
        while at != 0 {
            let (parent, by) = self.parents[at as usize];
            path.push(by);
            at = parent;
        }
        let mut world = root;
        let mut trace = Vec::new();
        for by in path.into_iter().rev() {
            let mut steps = Vec::new();
            self.machine.steps(&world, &mut steps);
            let (step, next) = steps.swap_remove(usize::from(by));
            trace.push(self.machine.tell(&world, step));
            world = next.unwrap();
        }
        trace.extend(last.map(|step| self.machine.tell(&world, step)));
        trace.push(format!("at {:?} {:?}", world.slots, world.hosts));
        if what == Violation::DeadEnd {
            self.go_on(world, &mut trace);
        }
        Wrong { what, trace }
    }

    /// Where a dead end leads to: its first steps that need no fault, until nothing is new.
    fn go_on(&mut self, mut world: World, trace: &mut Vec<String>) {
        let mut been = BTreeSet::from([print_of(&world)]);
        loop {
            let mut steps = Vec::new();
            self.machine.steps(&world, &mut steps);
            let next = steps.into_iter().find_map(|(step, next)| {
                let next = next.ok().filter(|_| step.leads_on())?;
                been.insert(print_of(&next)).then_some((step, next))
            });
            let Some((step, next)) = next else { break };
            trace.push(format!("then {}", self.machine.tell(&world, step)));
            world = next;
        }
        trace.push(format!("at {:?} {:?}", world.slots, world.hosts));
    }

    /// Whether the VM is as it should be, or waits for a person who is told so.
    fn is_settled(&self, world: &World) -> bool {
        let facts = self.machine.stores.facts(world.store);
        let processes = world.slots.iter().filter(|slot| slot.process.is_some()).count();
        let open = facts.open.map(|open| usize::try_from(open - 1).unwrap());
        let runs = |paused: bool| {
            let process = open.and_then(|open| world.slots[open].process);
            processes == 1 && process.is_some_and(|process| process.executes() != paused)
        };
        match facts.phase {
            _ if facts.is_moving => false,
            Some(Phase::Running) => {
                let is_wanted = facts.power == Power::Running || facts.is_taken_back;
                runs(false) && facts.has_answered && is_wanted
            }
            Some(Phase::Paused) => runs(true) && facts.has_answered && facts.power == Power::Paused,
            Some(Phase::Off | Phase::Failed | Phase::Suspended) => processes == 0,
            // Every host is gone.
            Some(Phase::Pending) => (0..HOSTS).all(|at| world.hosts[at].is_off),
            None => processes == 0,
            _ => false,
        }
    }
}
