//! Disks' files, looked at from outside.

use std::path::Path;
use std::process::Command;

use anyhow::ensure;
use testkit::world::World;

/// A qcow2 file is whole, and its chain has so many files, itself among them.
pub(super) fn is_clean(disk: &Path, files: usize) -> anyhow::Result<()> {
    qemu_img(&["check", "-q", "-f", "qcow2"], &[disk])?;
    let info = qemu_img(&["info", "--output=json", "--backing-chain"], &[disk])?;
    let chain: Vec<serde_json::Value> = serde_json::from_str(&info)?;
    ensure!(chain.len() == files, "{info}");
    Ok(())
}

pub(super) fn same(one: &Path, other: &Path) -> anyhow::Result<()> {
    qemu_img(&["compare", "-q"], &[one, other]).map(drop)
}

pub(super) fn qemu_img(words: &[&str], disks: &[&Path]) -> anyhow::Result<String> {
    let ran = Command::new("qemu-img").args(words).args(disks).output()?;
    let said = String::from_utf8_lossy(&ran.stderr);
    ensure!(ran.status.success(), "qemu-img {words:?} {disks:?}: {said}");
    Ok(String::from_utf8(ran.stdout)?)
}

/// No disk, and no part of one, is left.
pub(super) fn is_empty(world: &World) -> anyhow::Result<()> {
    let left: Vec<_> = std::fs::read_dir(world.volumes())?.collect::<Result<_, _>>()?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}
