//! The calendars of server and hosts, set while they run.
//!
//! **Owns:** a library that is put before the C library of every process of a world, and the files that it looks into. Clocks
//! that never go back are the machine's, and so is all that QEMU sees.
//!
//! **Does not know:** what becomes of it.
//!
//! **Start here:** [`World::set_clock`].

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use crate::world::World;

/// As whom [`World::set_clock`] takes the server.
pub const SERVER: &str = "server";
/// Where the files of a world are in its directory.
const DIRECTORY: &str = "clocks";
const LIBRARY: &str = "clocks.so";
const SOURCE: &str = include_str!("clocks.c");

impl World {
    /// Sets the clock of the server or of a host, so far ahead of the machine's or, if negative, back. The world must have
    /// been started with clocks.
    pub fn set_clock(&self, who: &str, ahead_s: i64) -> anyhow::Result<()> {
        let path = self.root().join(DIRECTORY).join(who);
        let file = File::options().write(true).open(&path);
        let file = file.with_context(|| format!("opening {}", path.display()))?;
        Ok(file.write_all_at(&ahead_s.to_ne_bytes(), 0)?)
    }
}

/// Makes what a world needs; what its processes need in their environment.
pub(crate) fn prepare(root: &Path, hosts: u8) -> anyhow::Result<[(&'static str, String); 2]> {
    let directory = root.join(DIRECTORY);
    fs::create_dir(&directory).with_context(|| format!("making {}", directory.display()))?;
    let named = (1..=hosts).map(|number| format!("h{number}"));
    for who in named.chain([SERVER.to_owned()]) {
        fs::write(directory.join(who), 0_i64.to_ne_bytes())?;
    }
    let (source, library) = (directory.join("clocks.c"), directory.join(LIBRARY));
    fs::write(&source, SOURCE)?;
    let made = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([&library, &source])
        .output()
        .context("starting cc")?;
    ensure!(
        made.status.success(),
        "cc: {}",
        String::from_utf8_lossy(&made.stderr)
    );
    let text = |path: &Path| path.to_string_lossy().into_owned();
    Ok([
        ("LD_PRELOAD", text(&library)),
        ("STERNA_TEST_CLOCKS", text(&directory)),
    ])
}
