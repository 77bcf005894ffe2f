//! VMs outlive `sterna up --keep`, and the next `sterna up` finds them again, with their networks.

use anyhow::ensure;
use model::VmId;
use model::migration::MigrationPhase;
use rustix::process::Signal;
use testkit::executing::until_it_executes;
use testkit::vms::{self, PATIENCE};
use testkit::watcher::{self, Watcher};
use testkit::world::{Keep, Left, Owner, World};

const WEB: &str = "web";
const EYE: &str = "eye";
/// Memory that the guest writes to: its processor never rests.
const WORK: &str = "probe dirty 16 100 >/dev/null &";

#[tokio::test]
async fn guests_outlive_up() -> anyhow::Result<()> {
    let story = Story::begin(Owner::Tester).await?;
    let mut story = story.leave_and_return(Signal::KILL, Keep::Vms).await?;
    story.moves().await?;
    let (left, pids) = story.leave(Signal::KILL).await?;
    left.down()?;
    ensure!(pids.len() == 2, "there were {} guests", pids.len());
    Ok(())
}

/// In the user namespace of those who went before; and the last `up`, which keeps nothing, takes all with it.
#[tokio::test]
async fn guests_of_an_ordinary_user_outlive_up() -> anyhow::Result<()> {
    let is_root = std::fs::read_to_string("/proc/self/status")?.contains("\nUid:\t0\t");
    let owner = if is_root { Owner::Nobody } else { Owner::Tester };
    let story = Story::begin(owner).await?;
    let mut story = story.leave_and_return(Signal::TERM, Keep::Nothing).await?;
    story.moves().await?;
    story.world.down().await
}

/// Two guests on two hosts, one of which reads a stream of the other.
struct Story {
    world: World,
    web: VmId,
    eye: VmId,
    watcher: Watcher,
}

impl Story {
    async fn begin(owner: Owner) -> anyhow::Result<Self> {
        let world = World::up_kept(owner, 2).await?;
        world.make_template(192).await?;
        let web = world.create_vm(WEB, vms::spec(Some("h1"), WORK)).await?;
        let script = watcher::script(&vms::address(&web)?);
        let eye = world.create_vm(EYE, vms::spec(Some("h2"), &script)).await?;
        tokio::try_join!(world.until_ready(WEB), world.until_ready(EYE))?;
        let (web, eye) = (vms::id(&web), vms::id(&eye));
        let mut watcher = Watcher::new(world.console("h2", eye));
        watcher.goes_on().await?;
        Ok(Self {
            world,
            web,
            eye,
            watcher,
        })
    }

    fn pids(&self) -> Vec<i32> {
        let all = [self.web, self.eye]
            .into_iter()
            .flat_map(|vm| self.world.living(vm));
        all.map(|(_, _, pid)| pid).collect()
    }

    /// Without `sterna up` both guests go on.
    async fn leave(self, how: Signal) -> anyhow::Result<(Left, Vec<i32>)> {
        let pids = self.pids();
        ensure!(pids.len() == 2, "two guests have the processes {pids:?}");
        let left = self.world.leave(how).await?;
        for pid in &pids {
            ensure!(
                until_it_executes(*pid, PATIENCE).await,
                "process {pid} stands still, or is gone"
            );
        }
        Ok((left, pids))
    }

    /// The next `sterna up` has the same processes, and the stream between the guests goes on where it was.
    async fn leave_and_return(self, how: Signal, keep: Keep) -> anyhow::Result<Self> {
        let (web, eye) = (self.web, self.eye);
        let (left, pids) = self.leave(how).await?;
        let world = left.up(keep).await?;
        tokio::try_join!(world.until_ready(WEB), world.until_ready(EYE))?;
        let mut watcher = Watcher::new(world.console("h2", eye));
        watcher.goes_on_again().await?;
        let story = Self {
            world,
            web,
            eye,
            watcher,
        };
        ensure!(
            story.pids() == pids,
            "the guests' processes were {pids:?}, and are {:?}",
            story.pids()
        );
        Ok(story)
    }

    /// A guest that was found again can be moved, and the stream goes on.
    async fn moves(&mut self) -> anyhow::Result<()> {
        let asked = self.world.migrate(WEB, "h2").await?;
        self.world
            .until_migration(&asked.name, MigrationPhase::Done)
            .await?;
        self.watcher.goes_on().await.map(drop)
    }
}
