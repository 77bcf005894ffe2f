//! The instant at which a disk is being made whole by its QEMU, and a part of it has come.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use testkit::pair::WEB;
use testkit::vms::PATIENCE;
use testkit::world::World;
use tokio::time::{Instant, sleep};

/// A part of the guest's image, which has 26 MiB.
const BROUGHT_BYTES: u64 = 4 << 20;
/// Shorter than it takes to bring the rest.
const PAUSE: Duration = Duration::from_millis(1);

/// Asks for it and waits until a part of what the disk is over has been brought into it.
pub(super) async fn in_a_stream(world: &World, disk: &Path) -> anyhow::Result<()> {
    let held = || anyhow::Ok(fs::metadata(disk)?.blocks() * 512);
    let before = held()?;
    world.act(WEB, "flatten").await?;
    let asked = Instant::now();
    while held()? < before + BROUGHT_BYTES {
        ensure!(asked.elapsed() < PATIENCE, "nothing is brought into the disk");
        sleep(PAUSE).await;
    }
    Ok(())
}

/// What stands in the header of a qcow2 file.
pub(super) fn names_a_base(disk: &Path) -> anyhow::Result<bool> {
    let mut at = [0; 8];
    fs::File::open(disk)?.read_exact_at(&mut at, 8)?;
    Ok(at != [0; 8])
}
