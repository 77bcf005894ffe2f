//! A person at a VM's console, on a terminal of its own: keys reach the guest, the person follows the VM to another host,
//! and the terminal is as it was before, however it ends.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use model::lifecycle::Phase;
use model::migration::MigrationPhase;
use testkit::process;
use testkit::vms;
use testkit::world::World;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::{Instant, timeout_at};

const WEB: &str = "web";
const PATIENCE: Duration = Duration::from_secs(60);
/// Ctrl-].
const ESCAPE: &str = "\x1d";
/// What `stty -a` says of a terminal that takes lines and echoes, as a shell leaves it to its commands.
const COOKED: [&str; 3] = ["\nisig ", " icanon ", " echo "];

#[tokio::test]
async fn people_are_at_a_console() -> anyhow::Result<()> {
    let world = World::up(2).await?;
    world.make_template(192).await?;
    world.create_vm(WEB, vms::spec(None, "")).await?;
    world.until_ready(WEB).await?;
    one_types_and_leaves(&world).await?;
    one_is_terminated(&world).await?;
    two_are_there_and_the_vm_moves(&world).await?;
    the_guest_ends(&world).await?;
    world.down().await
}

/// What is typed comes to the guest's shell, and Ctrl-C ends nothing here.
async fn one_types_and_leaves(world: &World) -> anyhow::Result<()> {
    let mut person = Person::sits_down(world).await?;
    person.does("echo $((6 * 7))th\r", "42th").await?;
    person.does("\x03\recho $((7 * 7))th\r", "49th").await?;
    person.types(ESCAPE).await?;
    person.leaves_with("left the console of web").await
}

async fn one_is_terminated(world: &World) -> anyhow::Result<()> {
    let mut person = Person::sits_down(world).await?;
    person.does("echo $((8 * 8))th\r", "64th").await?;
    person.terminate()?;
    person.leaves_with("left the console of web").await
}

/// Each is told of the other, and both see the same; both are at the next host's console after the move.
async fn two_are_there_and_the_vm_moves(world: &World) -> anyhow::Result<()> {
    let mut one = Person::sits_down(world).await?;
    one.does("echo $((9 * 9))th\r", "81th").await?;
    let mut other = Person::sits_down(world).await?;
    other.sees("also at this console: admin").await?;
    one.sees("at this console, too").await?;
    let home = world.get_vm(WEB).await?.status.host.context("no host")?;
    let target = if home == "h1" { "h2" } else { "h1" };
    let asked = world.migrate(WEB, target).await?;
    let ended = world.until_migration_ended(&asked.name).await?;
    ensure!(ended.status.phase == MigrationPhase::Done, "{:?}", ended.status);
    one.sees(&format!("web is on {target} now")).await?;
    other.sees(&format!("web is on {target} now")).await?;
    one.does("echo $((10 * 10))th\r", "100th").await?;
    other.sees("100th").await?;
    for person in [&mut one, &mut other] {
        person.types(ESCAPE).await?;
    }
    one.leaves_with("left the console").await?;
    other.leaves_with("left the console").await
}

/// The stream ends with the reason; the log is there still, and a console is not.
async fn the_guest_ends(world: &World) -> anyhow::Result<()> {
    let mut person = Person::sits_down(world).await?;
    person.does("echo $((11 * 11))th\r", "121th").await?;
    world.act(WEB, "shutdown").await?;
    world.until_phase(WEB, Phase::Off).await?;
    person.leaves_with("web is Off").await?;
    let mut late = Person::asks(world, "")?;
    late.leaves_with("web is Off, and only a VM that has a process has a console")
        .await?;
    let mut reader = Person::asks(world, "--log")?;
    reader.leaves_with("121th").await
}

/// Somebody at a terminal (of `script`, which makes one), whose shell says at the end what the terminal is like.
struct Person {
    script: Child,
    keyboard: ChildStdin,
    screen: ChildStdout,
    seen: String,
}

impl Person {
    async fn sits_down(world: &World) -> anyhow::Result<Self> {
        let mut person = Self::asks(world, "")?;
        person.sees("Ctrl-] leaves").await?;
        Ok(person)
    }

    fn asks(world: &World, options: &str) -> anyhow::Result<Self> {
        let program = std::env::var("STERNA_BIN").context("STERNA_BIN is not set")?;
        let env = world.directory().join("env");
        let line = format!(
            ". {}; {program} vm console {WEB} {options}; stty -a",
            env.display()
        );
        let mut script = Command::new("script")
            .args(["--quiet", "--return", "--command", &line, "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("starting script")?;
        let keyboard = script.stdin.take().context("no keyboard")?;
        let screen = script.stdout.take().context("no screen")?;
        Ok(Self {
            script,
            keyboard,
            screen,
            seen: String::new(),
        })
    }

    async fn types(&mut self, text: &str) -> anyhow::Result<()> {
        self.keyboard.write_all(text.as_bytes()).await?;
        Ok(self.keyboard.flush().await?)
    }

    async fn does(&mut self, text: &str, answer: &str) -> anyhow::Result<()> {
        self.types(text).await?;
        self.sees(answer).await
    }

    /// Waits until this is on the screen, after what was waited for before.
    async fn sees(&mut self, text: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = [0; 4096];
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return Ok(());
            }
            match timeout_at(deadline, self.screen.read(&mut buffer)).await {
                Ok(Ok(read @ 1..)) => self.seen.push_str(&String::from_utf8_lossy(&buffer[..read])),
                Ok(_) => bail!("the terminal ended without {text:?}: {:?}", self.seen),
                Err(_) => bail!(
                    "not on the screen within {PATIENCE:?}: {text:?}; but {:?}",
                    self.seen
                ),
            }
        }
    }

    fn terminate(&self) -> anyhow::Result<()> {
        let script = self.script.id().context("script has ended")?.cast_signed();
        let is_console = |one: &process::Process| {
            one.command_line
                .get(1..3)
                .is_some_and(|words| words == ["vm", "console"])
        };
        let console = process::descendants(script).into_iter().find(is_console);
        let console = console.context("nobody is at the console")?;
        ensure!(
            process::terminate(console.id.pid, PATIENCE),
            "the console does not end"
        );
        Ok(())
    }

    /// Waits for the end: this was said, and the terminal is as it was.
    async fn leaves_with(&mut self, text: &str) -> anyhow::Result<()> {
        self.sees(text).await?;
        let mut rest = Vec::new();
        let ended = timeout_at(Instant::now() + PATIENCE, self.screen.read_to_end(&mut rest)).await;
        ended.context("the terminal does not end")??;
        self.seen.push_str(&String::from_utf8_lossy(&rest));
        for setting in COOKED {
            ensure!(self.seen.contains(setting), "not {setting:?}: {}", self.seen);
        }
        Ok(())
    }
}
