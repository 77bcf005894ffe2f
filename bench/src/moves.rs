//! Live migrations: the same guest moved by Sterna and by a bare script, in turn.
//!
//! **Owns:** which guests are moved, in which order, and what of it becomes a row.
//!
//! **Does not know:** how either side moves one.
//!
//! **Start here:** [`measure`].

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use qemu::command_line::{LaunchSpec, Start};
use testkit::console::Console;
use testkit::world::{World, guest_image};

use crate::bare::{self, Credentials, Machine, Place, Recipe, Took};
use crate::row;
use crate::stats::Series;
use crate::sterna;

/// Prints once a second for how long it did not wake.
const COUNTER: &str = "probe tick > /dev/console 2>&1 &";
/// Of the counter's reports after a move the first may have been cut in two by it.
const REPORTS: usize = 2;
const REPORT_PATIENCE: Duration = Duration::from_secs(10);

/// A kind of guest.
#[derive(Clone, Copy)]
pub(crate) struct Guest {
    memory_mib: u32,
    counts: bool,
}

impl Guest {
    /// Does nothing.
    pub(crate) fn idle(memory_mib: u32) -> Self {
        Self {
            memory_mib,
            counts: false,
        }
    }

    /// Wakes every millisecond and tells the largest gap.
    pub(crate) fn counting(memory_mib: u32) -> Self {
        Self {
            memory_mib,
            counts: true,
        }
    }

    fn label(self) -> String {
        let does = if self.counts {
            "with a 1 ms counter"
        } else {
            "idle"
        };
        format!("{} MiB {does}", self.memory_mib)
    }

    fn script(self) -> &'static str {
        if self.counts { COUNTER } else { "" }
    }

    /// The scripts that it is moved by, besides Sterna.
    pub(crate) fn recipes(self) -> &'static [Recipe] {
        if self.counts {
            &[Recipe::Same]
        } else {
            &[Recipe::Same, Recipe::Plain, Recipe::Defaults]
        }
    }
}

/// What one way of moving took, run by run.
#[derive(Default)]
struct Moves {
    total: Series,
    stopped: Series,
    gap: Series,
}

impl Moves {
    fn push(&mut self, took: &Took) {
        self.total.push(took.total_ms);
        self.stopped.push(took.stopped_ms);
        if let Some(gap_ms) = took.gap_ms {
            self.gap.push(gap_ms);
        }
    }
}

/// Everything about moving one kind of guest.
pub(crate) async fn measure(
    world: &World,
    root: &Path,
    guest: Guest,
    recipes: &[Recipe],
    runs: usize,
    credentials: &Credentials,
) -> anyhow::Result<()> {
    let name = if guest.counts { "counting" } else { "idle" };
    let name = format!("{name}-{}", guest.memory_mib);
    let spec = sterna::plain("h1", guest.memory_mib.into(), guest.script());
    sterna::create(world, &name, spec).await?;
    let places = [Place::on(world, "h1")?, Place::on(world, "h2")?];
    let mut bare = BareGuest::boot(root, &name, guest, credentials, places).await?;
    let mut hosts = ["h2", "h1"].into_iter().cycle();
    // In turn, one of each: what either leaves in caches is then the same for both.
    for recipe in recipes {
        let (mut ours, mut theirs) = (Moves::default(), Moves::default());
        for run in 0..=runs {
            let to = hosts.next().unwrap_or_default();
            let moved = sterna::migrate(world, &name, to, guest.counts).await?;
            let bare_moved = bare.migrate(*recipe).await?;
            // The first run warms caches.
            if run > 0 {
                ours.push(&moved);
                theirs.push(&bare_moved);
            }
        }
        print(guest, recipe.label(), &ours, &theirs);
    }
    world.delete_vm(&name).await
}

fn print(guest: Guest, how: &str, ours: &Moves, theirs: &Moves) {
    let label = guest.label();
    row(
        &format!("{label}, request to Done ({how})"),
        &ours.total,
        &theirs.total,
    );
    row(
        &format!("{label}, STOP to running ({how})"),
        &ours.stopped,
        &theirs.stopped,
    );
    if guest.counts {
        row(
            &format!("{label}, the largest gap it saw ({how})"),
            &ours.gap,
            &theirs.gap,
        );
    }
}

/// The largest gap of which the counter tells next.
pub(crate) async fn largest_gap(console: &mut Console) -> anyhow::Result<f64> {
    let mut largest_ms = 0.0_f64;
    for _ in 0..REPORTS {
        let told = console.until("the counter's report", REPORT_PATIENCE, |line| {
            let text = line.split(' ').find_map(|word| word.strip_prefix("gap_ms="))?;
            text.parse::<f64>().ok()
        });
        largest_ms = largest_ms.max(told.await?);
    }
    Ok(largest_ms)
}

/// A bare guest that moves from QEMU to QEMU.
pub(crate) struct BareGuest<'a> {
    root: &'a Path,
    name: &'a str,
    credentials: &'a Credentials,
    /// Where it is, and where it moves next.
    places: [Place; 2],
    machine: Option<Machine>,
    target: LaunchSpec,
    counts: bool,
    moves: u32,
}

impl<'a> BareGuest<'a> {
    /// Boots it on the first of two places.
    pub(crate) async fn boot(
        root: &'a Path,
        name: &'a str,
        guest: Guest,
        credentials: &'a Credentials,
        places: [Place; 2],
    ) -> anyhow::Result<Self> {
        let image = guest_image()?;
        let disk = bare::overlay(root, name, &image)?;
        let spec = bare::spec(&disk, &image, guest.memory_mib, Start::Boot);
        let mut machine = Machine::start(root, &format!("{name}-0"), &spec, &places[0]).await?;
        machine.run().await?;
        machine.ready().await?;
        if guest.counts {
            machine.execute(COUNTER).await?;
        }
        let target = bare::spec(&disk, &image, guest.memory_mib, Start::Incoming);
        Ok(Self {
            root,
            name,
            credentials,
            places,
            machine: Some(machine),
            target,
            counts: guest.counts,
            moves: 0,
        })
    }

    /// Moves it to the place where it is not.
    pub(crate) async fn migrate(&mut self, recipe: Recipe) -> anyhow::Result<Took> {
        self.moves += 1;
        let name = format!("{}-{}", self.name, self.moves);
        let source = self.machine.take().context("an earlier move failed")?;
        self.places.swap(0, 1);
        let [place, _] = &self.places;
        let moving = bare::migrate(
            self.root,
            &name,
            source,
            &self.target,
            place,
            recipe,
            self.credentials,
        );
        let (machine, mut took) = moving.await?;
        if self.counts {
            took.gap_ms = Some(largest_gap(&mut machine.console()).await?);
        }
        self.machine = Some(machine);
        Ok(took)
    }
}
