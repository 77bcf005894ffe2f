//! How a stage of a move is met: by processes that stand still, so that the move cannot leave it.
//!
//! **Owns:** [`Held`]. **Does not know:** what is done then.
//!
//! | stage | who stands still | why the move is there, and stays |
//! |---|---|---|
//! | pre-copy | the target's QEMU | the source's guest runs; the kernel holds less than is to be sent |
//! | pre-switchover | the source's agent | the source's guest stands still; only its agent may say that QEMU goes on. The kernel holds less than the rest, so a source whose link is cut then waits in the middle of sending it |
//! | switch-over | the target's QEMU, before the rest is sent | the rest waits in the kernel, which has room for it |
//! | switched | the source's agent again; the target's QEMU no more | the source has closed the streams; only its agent may tell the target |
//!
//! A move that was faster has moved the guest, and the next one goes back.
//!
//! **Start here:** [`Held::meet`].

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::bail;
use testkit::counter::Heard;
use testkit::executing::{until_it_executes, until_it_stands_still};
use testkit::link::Queues;
use testkit::pair::{Pair, WEB};
use testkit::process::Frozen;
use testkit::vms::{self, MigrationObject};
use testkit::wait;
use testkit::world::World;
use tokio::time::{Instant, sleep, timeout};

use super::moves::Before;
use super::table::Stage;

/// How often a move may have been faster.
const ATTEMPTS: usize = 8;
/// How long each step towards the instant may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// A connection on which nothing changes for so long is at rest.
const REST: Duration = Duration::from_millis(200);
/// A source waits five seconds for the last acknowledgement.
const HASTE: Duration = Duration::from_secs(4);
/// Enough for all that can be sent after the guest has stopped.
const MUCH_BYTES: u64 = 256 << 20;
/// Less than there is to send in pre-copy.
const LITTLE_BYTES: u64 = 1 << 20;
/// What a source may have sent ahead: enough, and less than the rest.
const AHEAD_BYTES: u64 = 4 << 20;
const LITTLE_AHEAD_BYTES: u64 = 64 << 10;

/// A move that is at a stage, and stays there until [`Held::release`].
pub(super) struct Held {
    pub(super) migration: MigrationObject,
    pub(super) source: Side,
    pub(super) target: Side,
    /// The connections between the two hosts when memory arrived.
    streams: u64,
    still: Vec<Frozen>,
    /// The source's agent gives a target so much time from then on.
    counting_since: Option<Instant>,
}

/// One end of a move.
pub(super) struct Side {
    pub(super) host: String,
    pub(super) address: Ipv4Addr,
    pub(super) qemu: i32,
    agent: i32,
}

impl Side {
    /// The guest, if this is where it should be.
    pub(super) fn with(&self, heard: Heard) -> Before {
        Before {
            host: self.host.clone(),
            process: self.qemu,
            heard,
        }
    }
}

impl Held {
    /// Begins moves until one is met at the stage.
    pub(super) async fn meet(world: &World, pair: &mut Pair<'_>, stage: Stage) -> anyhow::Result<Self> {
        for attempt in 1..=ATTEMPTS {
            let room = if stage == Stage::PreCopy {
                LITTLE_BYTES
            } else {
                MUCH_BYTES
            };
            world.make_room(pair.free()?, room).await?;
            let ahead = if stage == Stage::PreSwitchover {
                LITTLE_AHEAD_BYTES
            } else {
                AHEAD_BYTES
            };
            world.bound_sending(&pair.home()?, ahead).await?;
            let mut held = Self::begin(world, pair).await?;
            if held.reach(stage).await {
                println!("{stage:?} met at attempt {attempt}");
                return Ok(held);
            }
            held.release();
            world.until_migration_ended(&held.migration.name).await?;
            pair.web = world.until_ready(WEB).await?;
            pair.has_one_process().await?;
        }
        bail!("{ATTEMPTS} moves were over before they could be stopped at {stage:?}")
    }

    /// Begins a move, and waits until memory arrives.
    async fn begin(world: &World, pair: &Pair<'_>) -> anyhow::Result<Self> {
        let vm = vms::id(&pair.web);
        let side = |host: &str, qemu| {
            anyhow::Ok(Side {
                host: host.to_owned(),
                address: world.address(host)?,
                qemu,
                agent: world.agent_pid(host)?,
            })
        };
        let source = side(&pair.home()?, pair.has_one_process().await?)?;
        let mut target = side(pair.free()?, 0)?;
        let migration = world.migrate(WEB, &target.host).await?;
        target.qemu = world.until_memory_arrives(vm, &migration).await?.id().pid;
        let streams = open(&source, &target);
        Ok(Self {
            migration,
            source,
            target,
            streams,
            still: Vec::new(),
            counting_since: None,
        })
    }

    /// Whether the stage was reached. Otherwise the move goes on, or is over.
    async fn reach(&mut self, stage: Stage) -> bool {
        match stage {
            Stage::PreCopy => self.reach_pre_copy().await,
            Stage::PreSwitchover => self.reach_pre_switchover().await,
            Stage::SwitchOver => self.reach_pre_switchover().await && self.reach_switch_over().await,
            _ => {
                self.reach_pre_switchover().await
                    && self.reach_switch_over().await
                    && self.reach_switched().await
            }
        }
    }

    async fn reach_pre_copy(&mut self) -> bool {
        self.stop(self.target.qemu);
        let runs = until_it_executes(self.source.qemu, PATIENCE).await;
        runs && self.is_connected() && self.waiting().is_some_and(|(unread, _)| unread > 0)
    }

    async fn reach_pre_switchover(&mut self) -> bool {
        self.stop(self.source.agent);
        until_it_stands_still(self.source.qemu, PATIENCE).await
            && self.rests(|unread| unread == 0).await
            && until_it_stands_still(self.source.qemu, PATIENCE).await
            && self.is_connected()
    }

    async fn reach_switch_over(&mut self) -> bool {
        let agent = std::mem::take(&mut self.still);
        self.stop(self.target.qemu);
        drop(agent);
        self.counting_since = Some(Instant::now());
        // What comes now is the rest, and all of it comes.
        self.rests(|unread| unread > 0).await && self.is_connected()
    }

    async fn reach_switched(&mut self) -> bool {
        let target = std::mem::take(&mut self.still);
        self.stop(self.source.agent);
        if self.may_be_given_up() {
            return false;
        }
        self.counting_since = None;
        drop(target);
        let has_closed = || !self.is_connected();
        wait::until_it_holds("the source has closed the streams", PATIENCE, has_closed)
            .await
            .is_ok()
    }

    /// One that has ended cannot be stopped; then the stage is not reached either.
    fn stop(&mut self, pid: i32) {
        self.still.extend(Frozen::stop(pid).ok());
    }

    /// Whether the source has closed none of the streams that memory came by.
    fn is_connected(&self) -> bool {
        open(&self.source, &self.target) >= self.streams
    }

    /// What waits at the target to be read, and at the source to be sent.
    fn waiting(&self) -> Option<(u64, u64)> {
        let sent = Queues::between(self.source.qemu, self.target.address).ok()?;
        let came = Queues::between(self.target.qemu, self.source.address).ok()?;
        Some((came.unread, sent.unacknowledged))
    }

    /// Whether nothing moves any more in time: all that the source sent has come, and so much of it waits to be read.
    async fn rests(&self, is_it: fn(u64) -> bool) -> bool {
        let resting = async {
            let mut before = None;
            while let Some(now) = self.waiting() {
                if before == Some(now) && now.1 == 0 && is_it(now.0) {
                    return true;
                }
                before = Some(now);
                sleep(REST).await;
            }
            false
        };
        timeout(PATIENCE, resting).await.unwrap_or(false)
    }

    /// Whether the source's agent may have given up the move by itself, because this machine is slow.
    pub(super) fn may_be_given_up(&self) -> bool {
        self.counting_since.is_some_and(|since| since.elapsed() > HASTE)
    }

    /// Lets the move go on.
    pub(super) fn release(&mut self) {
        self.still.clear();
    }
}

fn open(source: &Side, target: &Side) -> u64 {
    Queues::between(source.qemu, target.address).map_or(0, |queues| queues.open)
}
