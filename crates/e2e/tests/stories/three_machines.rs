//! The page `docs/three-machines.md`, word by word: every command in it runs, on three machines that are network
//! namespaces with roots of their own, and with the rights that the packaged units give.
//!
//! What a namespace cannot have is played by `three_machines/stubs/`: systemd, apt, ssh, NFS, a download.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use testkit::clean::Machine;
use testkit::{process, world};

const FENCE: &str = "```";
/// Of which each VM gets one, unless `--qemu-uids` says others.
const VM_USERS: std::ops::RangeInclusive<u32> = 1_879_048_192..=1_879_113_727;

#[test]
fn the_page_can_be_followed() -> anyhow::Result<()> {
    let before = Machine::look();
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(own.join("../../docs/three-machines.md"))?;
    let dir = tempfile::Builder::new().prefix("sterna-room-").tempdir()?;
    make_room(dir.path(), &steps(&page)?)?;
    let said = follow(own, dir.path())?;
    let seen = |words: &str| said.contains(words);
    ensure!(seen("phase: Done"), "the VM was not moved:\n{said}");
    if is_root()? {
        let user = said.lines().find_map(|line| line.strip_prefix("QEMU is user "));
        let is_own = user.is_some_and(|user| user.parse().is_ok_and(|user| VM_USERS.contains(&user)));
        let is_harmless = is_own && seen("QEMU has the rights 0000000000000000");
        ensure!(
            is_harmless,
            "QEMU is user {user:?}, or has rights that it does not need:\n{said}"
        );
    }
    let left = testkit::clean::processes(dir.path(), &[]);
    let left: Vec<String> = left.iter().map(process::Process::describe).collect();
    ensure!(left.is_empty(), "left behind: {left:?}");
    ensure!(
        before.additions().is_empty(),
        "left behind: {:?}",
        before.additions()
    );
    Ok(())
}

/// A block of the page, and the machine that it is for.
struct Step {
    machine: String,
    commands: String,
}

/// What stands between fences, once for each machine that the fence names.
fn steps(page: &str) -> anyhow::Result<Vec<Step>> {
    let mut steps = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(machines) = line.strip_prefix(FENCE) else {
            continue;
        };
        let mut words = machines.split_whitespace();
        ensure!(
            words.next() == Some("sh"),
            "{line}: every block of the page is for a shell"
        );
        let commands: Vec<&str> = lines.by_ref().take_while(|line| *line != FENCE).collect();
        let commands = format!("{}\n", commands.join("\n"));
        steps.extend(words.map(|machine| Step {
            machine: machine.to_owned(),
            commands: commands.clone(),
        }));
    }
    ensure!(steps.len() > 10, "the page has lost its commands");
    Ok(steps)
}

fn make_room(dir: &Path, steps: &[Step]) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    // The daemons are other users.
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    fs::create_dir(dir.join("steps"))?;
    for (number, step) in steps.iter().enumerate() {
        let path = dir.join("steps").join(format!("{}-{}", number + 1, step.machine));
        fs::write(path, &step.commands)?;
    }
    Ok(())
}

/// Runs the room; what was said in it.
fn follow(own: &Path, dir: &Path) -> anyhow::Result<String> {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "unshare", "--mount", "--net"]);
    if !is_root()? {
        command.arg("--map-root-user");
    }
    let log = dir.join("log");
    let (out, err) = (
        fs::File::create(&log)?,
        fs::File::options().append(true).open(&log)?,
    );
    let status = command
        .arg(own.join("tests/stories/three_machines/room.sh"))
        .arg(dir)
        .env("STERNA", world::program()?)
        .env("GUEST", world::guest_image()?)
        .env("PACKAGING", packaging(own)?)
        .stdout(out)
        .stderr(err)
        .status()
        .context("starting the room by setpriv and unshare")?;
    let said = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    if !status.success() {
        bail!(
            "the page cannot be followed ({status}):\n{said}\n{}",
            daemons(dir)
        );
    }
    Ok(said)
}

/// An ordinary user is root of the machines, and all of their users; only root has several.
fn is_root() -> anyhow::Result<bool> {
    Ok(fs::read_to_string("/proc/self/status")?.contains("\nUid:\t0\t"))
}

fn packaging(own: &Path) -> anyhow::Result<PathBuf> {
    own.join("../../packaging")
        .canonicalize()
        .context("finding packaging/")
}

/// The ends of the daemons' logs.
fn daemons(dir: &Path) -> String {
    let logs = ["m1", "m2", "m3"].map(|machine| dir.join(machine).join("var/log"));
    let entries = logs.iter().filter_map(|logs| fs::read_dir(logs).ok()).flatten();
    let paths = entries.filter_map(Result::ok).map(|entry| entry.path());
    let ends = paths.map(|path| {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let end = lines[lines.len().saturating_sub(20)..].join("\n");
        format!("--- {}\n{end}\n", path.display())
    });
    ends.collect()
}
