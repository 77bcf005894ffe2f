//! Sitting down at a VM's serial console, and leaving with the terminal as it was.
//!
//! Keys go to the guest one by one as they are pressed, Ctrl-C too. The terminal is put back by a guard's drop: at the
//! escape key, when the stream ends, at a panic, and at SIGTERM and SIGHUP, which are waited for like everything else.

use std::io::{Read, Write};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use api::console::{Console, Said};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::Context;
use crate::cli::ConsoleArgs;

/// Ctrl-], as in telnet and virsh.
const ESCAPE: u8 = 0x1d;
/// What is read from the terminal at once.
const CHUNK_BYTES: usize = 1024;
/// What waits to be shown or sent: a terminal that is not read holds the stream up, and nothing else.
const MAX_WAITING: usize = 64;

pub(super) async fn console(context: &Context, args: &ConsoleArgs) -> anyhow::Result<ExitCode> {
    if args.log {
        return log(context.client.console(&args.name, true).await?).await;
    }
    if !isatty(std::io::stdin()) || !isatty(std::io::stdout()) {
        bail!(
            "a console needs a terminal: `sterna vm console {} --log` prints what the guest wrote last",
            args.name
        );
    }
    let console = context.client.console(&args.name, false).await?;
    let raw = Raw::enter()?;
    eprint!(
        "at the console of {}: Ctrl-] leaves, Enter may bring up a prompt\r\n",
        args.name
    );
    let left = sit(console).await;
    drop(raw);
    let why = left?;
    eprintln!(
        "\nleft the console of {}{}{why}",
        args.name,
        if why.is_empty() { "" } else { ": " }
    );
    Ok(ExitCode::SUCCESS)
}

async fn log(mut console: Console) -> anyhow::Result<ExitCode> {
    loop {
        match console.next().await {
            Said::Bytes(bytes) => std::io::stdout().write_all(&bytes)?,
            Said::Notice(text) => eprintln!("{text}"),
            Said::Ended(why) if why.is_empty() => return Ok(ExitCode::SUCCESS),
            Said::Ended(why) => bail!("the log ended: {why}"),
        }
    }
}

/// The terminal without echo, lines and keys of its own, until this is dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> anyhow::Result<Self> {
        let before = tcgetattr(std::io::stdin()).context("reading the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        let guard = Self(before);
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw)
            .context("changing the terminal's settings")?;
        Ok(guard)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Until the person leaves or the stream ends; why it did.
async fn sit(mut console: Console) -> anyhow::Result<String> {
    let (mut keys, screen) = (keys(), screen());
    let (mut terminated, mut hung_up) = (signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    loop {
        tokio::select! {
            said = console.next() => {
                let shown = match said {
                    Said::Bytes(bytes) => bytes,
                    Said::Notice(text) => format!("\r\n[{text}]\r\n").into_bytes(),
                    Said::Ended(why) => return Ok(why),
                };
                tokio::select! {
                    shown = screen.send(shown) => if shown.is_err() { break },
                    _ = terminated.recv() => break,
                    _ = hung_up.recv() => break,
                }
            }
            typed = keys.recv() => {
                let Some(typed) = typed else { break };
                let (typed, leaves) = up_to_escape(typed);
                if !typed.is_empty() && !console.send(typed).await {
                    return Ok("the connection was lost".to_owned());
                }
                if leaves {
                    break;
                }
            }
            _ = terminated.recv() => break,
            _ = hung_up.recv() => break,
        }
    }
    console.end("").await;
    Ok(String::new())
}

/// What was typed before the escape key, and whether it was pressed.
fn up_to_escape(mut typed: Vec<u8>) -> (Vec<u8>, bool) {
    let escape = typed.iter().position(|byte| *byte == ESCAPE);
    typed.truncate(escape.unwrap_or(typed.len()));
    (typed, escape.is_some())
}

/// What is typed, read by a thread of its own: a read cannot be given up, and the process ends without waiting for it.
fn keys() -> mpsc::Receiver<Vec<u8>> {
    let (sender, keys) = mpsc::channel(MAX_WAITING);
    std::thread::spawn(move || {
        let mut buffer = [0; CHUNK_BYTES];
        while let Ok(read @ 1..) = std::io::stdin().read(&mut buffer) {
            if sender.blocking_send(buffer[..read].to_vec()).is_err() {
                return;
            }
        }
    });
    keys
}

/// What is shown, written by a thread of its own for the same reason.
fn screen() -> mpsc::Sender<Vec<u8>> {
    let (screen, mut shown) = mpsc::channel::<Vec<u8>>(MAX_WAITING);
    std::thread::spawn(move || {
        let mut out = std::io::stdout();
        while let Some(bytes) = shown.blocking_recv() {
            if out.write_all(&bytes).and_then(|()| out.flush()).is_err() {
                return;
            }
        }
    });
    screen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_typed_before_the_escape_key_is_sent() {
        assert_eq!(up_to_escape(b"ls\r".to_vec()), (b"ls\r".to_vec(), false));
        assert_eq!(up_to_escape(b"ls\x1dmore".to_vec()), (b"ls".to_vec(), true));
        assert_eq!(up_to_escape(vec![ESCAPE]), (Vec::new(), true));
    }
}
