//! Runs of scripts: once, twice to see that a seed repeats, and again and again to find the shortest script that fails.
//!
//! **Owns:** what is said of a run.
//!
//! **Does not know:** what happens in one: see [`crate::world`].
//!
//! **Start here:** [`check`].

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::bugs::Bug;
use crate::script::{Script, Size};
use crate::world::World;

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What was wrong, if anything was.
    pub wrong: Option<String>,
    /// The digest of all that happened, in its order.
    pub digest: u64,
    /// How many events that were.
    pub events: u64,
    /// How long it was, in virtual time.
    pub virtual_us: u64,
    /// What happened, if it was asked for.
    pub log: Vec<String>,
}

/// A seed that fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What was wrong.
    pub wrong: String,
    /// The shortest script that was found to fail.
    pub script: Script,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {} fails: {}", self.script.seed, self.wrong)?;
        writeln!(f, "the shortest script that was found to fail:")?;
        write!(f, "{}", self.script)?;
        let (seed, size) = (self.script.seed, self.script.size);
        writeln!(f, "to see all of it: sterna sim check --seed {seed} {size} --log")
    }
}

/// What was run of many seeds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// How many.
    pub seeds: u64,
    /// What happened in them.
    pub events: u64,
    /// How long they were together, in virtual time. Each was run twice.
    pub virtual_us: u64,
    /// How many faults there were of each class.
    pub faults: BTreeMap<&'static str, u64>,
}

impl Tally {
    /// Checks a seed, and counts it.
    pub fn check(&mut self, seed: u64, size: Size) -> Result<(), Failure> {
        let outcome = check(seed, size)?;
        self.seeds += 1;
        self.events += outcome.events;
        self.virtual_us += outcome.virtual_us;
        let steps = Script::of(seed, size).steps;
        for fault in steps.iter().filter_map(|(_, step)| step.fault()) {
            *self.faults.entry(fault).or_default() += 1;
        }
        Ok(())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hours = Duration::from_micros(self.virtual_us).as_secs_f64() / 3600.0;
        let faults: u64 = self.faults.values().sum();
        let classes: Vec<String> = { &self.faults }
            .iter()
            .map(|(class, count)| format!("{class} {count}"))
            .collect();
        let (seeds, events, classes) = (self.seeds, self.events, classes.join(", "));
        write!(
            f,
            "{seeds} seeds, {hours:.1} h of virtual time, {events} events, {faults} faults ({classes})"
        )
    }
}

/// Runs a script. With `keep_log` what happens is written down.
pub fn run(script: &Script, bug: Option<Bug>, keep_log: bool) -> Outcome {
    let mut world = World::new(script.clone(), bug);
    world.log = keep_log.then(Vec::new);
    let wrong = world.run().err();
    let (digest, events) = world.digest();
    Outcome {
        wrong,
        digest,
        events,
        virtual_us: world.time.now_us(),
        log: world.log.take().unwrap_or_default(),
    }
}

/// Runs a seed twice: it must repeat itself, and nothing may be wrong.
pub fn check(seed: u64, size: Size) -> Result<Outcome, Failure> {
    let script = Script::of(seed, size);
    let (first, second) = (run(&script, None, false), run(&script, None, false));
    if first != second {
        let wrong = format!(
            "two runs differ: {:016x} after {} events, {:016x} after {}",
            first.digest, first.events, second.digest, second.events
        );
        return Err(Failure { wrong, script });
    }
    match first.wrong {
        Some(_) => Err(shrink(&script, None)),
        None => Ok(first),
    }
}

/// The shortest script that fails, of those that come of taking steps out: first halves of it, then smaller parts
/// (Zeller and Hildebrandt's `ddmin`).
pub fn shrink(script: &Script, bug: Option<Bug>) -> Failure {
    let fails = |script: &Script| run(script, bug, false).wrong;
    let mut best = script.clone();
    let mut wrong = fails(script).unwrap_or_default();
    let mut parts = 2;
    while best.steps.len() > 1 {
        let size = best.steps.len().div_ceil(parts);
        let without = (0..best.steps.len()).step_by(size).find_map(|from| {
            let kept = best.steps.iter().enumerate();
            let kept = kept.filter(|(at, _)| !(from..from + size).contains(at));
            let shorter = best.with(kept.map(|(_, step)| step.clone()).collect());
            fails(&shorter).map(|wrong| (shorter, wrong))
        });
        match without {
            Some((shorter, why)) => {
                (best, wrong) = (shorter, why);
                parts = parts.saturating_sub(1).max(2);
            }
            None if size == 1 => break,
            None => parts = (parts * 2).min(best.steps.len()),
        }
    }
    Failure { wrong, script: best }
}
