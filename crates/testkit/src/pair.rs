//! Two VMs on two of three hosts: one that moves, and one that watches it.
//!
//! **Owns:** their making, and what must hold after whatever was done to the one that moves.
//!
//! **Does not know:** what is done to it.
//!
//! **Start here:** [`Pair::create`], [`Pair::is_well`].

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use api::kinds::VmSpec;
use model::migration::MigrationPhase;
use tokio::time::{sleep, timeout};

use crate::counter::{self, Ear};
use crate::executing::RunsOnce;
use crate::vms::{self, MigrationObject, PATIENCE, VmObject};
use crate::watcher::{self, Stream, Watcher};
use crate::world::World;

/// The VM that moves.
pub const WEB: &str = "web";
/// The VM that watches.
pub const EYE: &str = "eye";
/// The hosts that a pair needs.
pub const HOSTS: [&str; 3] = ["h1", "h2", "h3"];
/// The memory for each of the two.
pub const MEMORY_MIB: u64 = 256;
/// What the moving guest keeps in use and writes to: memory that a migration has to chase.
const WORK: &str = "probe dirty 96 1000 >/dev/null &";

/// What the moving guest runs: it works and counts.
fn moving_script() -> String {
    format!("{WORK}\n{}", counter::COUNT)
}

/// What the watching guest runs.
fn watching_script(address: &str) -> String {
    format!("{}\n{}", watcher::script(address), counter::HEAR)
}

const PAUSE: Duration = Duration::from_millis(20);

/// The two VMs.
#[derive(Debug)]
pub struct Pair<'a> {
    world: &'a World,
    /// The one that moves, as it was seen last.
    pub web: VmObject,
    /// The host of the one that watches. Nothing is done to it.
    pub watch: &'static str,
    /// What the other sees.
    pub watcher: Watcher,
    /// What the other hears of the one that moves, which counts all the time.
    pub ear: Ear,
    runs_once: RunsOnce,
}

impl<'a> Pair<'a> {
    /// Makes both, and waits until their agents answer. The template must be there.
    pub async fn create(world: &'a World) -> anyhow::Result<Self> {
        Self::create_on(world, None).await
    }

    /// As [`Pair::create`], the disk of the one that moves in this datastore.
    pub async fn create_on(world: &'a World, datastore: Option<&str>) -> anyhow::Result<Self> {
        let spec = VmSpec {
            datastore: datastore.map(str::to_owned),
            ..vms::spec(None, &moving_script())
        };
        world.create_vm(WEB, spec).await?;
        let web = world
            .until_vm(WEB, "placed", |vm| vm.status.host.is_some().into())
            .await?;
        let home = host(&web)?;
        let watch = HOSTS
            .into_iter()
            .rev()
            .find(|name| *name != home)
            .context("there is one host only")?;
        let script = watching_script(&vms::address(&web)?);
        let eye = world.create_vm(EYE, vms::spec(Some(watch), &script)).await?;
        let runs_once = RunsOnce::begin(world, vms::id(&web));
        let (web, _) = tokio::try_join!(world.until_ready(WEB), world.until_ready(EYE))?;
        let console = world.console(watch, vms::id(&eye));
        Ok(Self {
            world,
            web,
            watch,
            watcher: Watcher::new(console.clone()),
            ear: Ear::new(console),
            runs_once,
        })
    }

    /// Waits until the stream flows and pings are sent.
    pub async fn is_watched(&mut self) -> anyhow::Result<Stream> {
        self.watcher.pings().await?;
        self.watcher.goes_on().await
    }

    /// Where the moving VM was seen last.
    pub fn home(&self) -> anyhow::Result<String> {
        host(&self.web)
    }

    /// The host that neither of the two is on.
    pub fn free(&self) -> anyhow::Result<&'static str> {
        let home = self.home()?;
        let free = HOSTS
            .into_iter()
            .find(|name| *name != home && *name != self.watch);
        free.context("no host is free")
    }

    /// Begins a move to the free host and waits until it is in full swing.
    pub async fn begin_move(&self) -> anyhow::Result<MigrationObject> {
        let asked = self.world.migrate(WEB, self.free()?).await?;
        self.world
            .until_memory_arrives(vms::id(&self.web), &asked)
            .await?;
        Ok(asked)
    }

    /// Waits until a move has ended. The VM must run where the record says, in one copy, and the stream must go on without
    /// an error.
    pub async fn is_well_after(&mut self, migration: &MigrationObject) -> anyhow::Result<MigrationObject> {
        let ended = self.world.until_migration_ended(&migration.name).await?;
        let expected = match ended.status.phase {
            MigrationPhase::Done => &ended.status.target,
            _ => &ended.status.source,
        };
        self.is_well().await?;
        ensure!(
            self.web.status.host == *expected,
            "the VM is not where {} says: {:?}",
            ended.name,
            self.web.status
        );
        Ok(ended)
    }

    /// The VM must run, in one copy, and the stream must go on without an error.
    pub async fn is_well(&mut self) -> anyhow::Result<Stream> {
        self.web = self.world.until_ready(WEB).await?;
        ensure!(
            self.web.status.reason.is_none(),
            "something is wrong: {:?}",
            self.web.status.reason
        );
        self.has_one_process().await?;
        self.watcher.goes_on().await
    }

    /// Waits until the copy that the VM's status names is the only one with a process; that process.
    pub async fn has_one_process(&self) -> anyhow::Result<i32> {
        let alone = async {
            loop {
                let living = self.world.living(vms::id(&self.web));
                if let [(host, incarnation, pid)] = &living[..]
                    && Some(host) == self.web.status.host.as_ref()
                    && Some(*incarnation) == self.web.status.incarnation
                {
                    return *pid;
                }
                sleep(PAUSE).await;
            }
        };
        let Ok(pid) = timeout(PATIENCE, alone).await else {
            let living = self.world.living(vms::id(&self.web));
            bail!(
                "the VM should have one process, by {:?}; it has {living:?}",
                self.web.status
            );
        };
        Ok(pid)
    }

    /// Ends the watch, and fails if two copies ever executed at once, or the counter went back.
    pub async fn ran_once(mut self) -> anyhow::Result<()> {
        self.ear.next().await?;
        self.runs_once.end().await
    }
}

fn host(vm: &VmObject) -> anyhow::Result<String> {
    vm.status
        .host
        .clone()
        .with_context(|| format!("VM {} has no host", vm.name))
}
