//! What makes a guest's disk a template's: its user's script, and then that it forgets who it is.
//!
//! **Owns:** what is done in the guest, and how it is heard how far that is.
//!
//! **Does not know:** what becomes of the disk.
//!
//! All of it is one program in the guest, begun once: it goes on whatever becomes of the guest's agent, of this one or of the
//! host that the guest is on. Whoever asks again is told that it is at it, or how it ended. In the guest, `begin.sh` asks and begins,
//! `run.sh` is that program, and `generalise.sh` its last part.
//!
//! **Start here:** [`Vm::build`].

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use driver::types::{Failure, Outcome};
use model::Reason;
use model::build::Built;
use model::operation::Applied;

use super::errand::{Step, Trouble};
use super::exec::Vm;

const BEGIN: &str = include_str!("begin.sh");
const RUN: &str = include_str!("run.sh");
const GENERALISE: &str = include_str!("generalise.sh");

/// How long a guest may take to answer how far it is: while it boots or its script runs it may be busy for long.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long the script may take.
const SCRIPT_MAX: Duration = Duration::from_secs(3600);
/// How much of what the script printed is kept.
const OUTPUT_MAX_BYTES: usize = 2048;
/// It is at it.
const UNDER_WAY: &str = "under-way";
/// It has not begun.
const NOT_BEGUN: &str = "not-begun";

impl Vm {
    /// Begins it, or hears how far it is.
    pub(super) async fn build(&self) -> Result<Outcome, Failure> {
        let machine = self.desired()?.machine;
        let token = machine.uuid.simple().to_string();
        let ask = |input: String, words: &[&str]| Step::Shell {
            what: "preparing the guest for a template",
            script: BEGIN.to_owned(),
            arguments: [token.as_str()]
                .iter()
                .chain(words)
                .map(|word| (*word).to_owned())
                .collect(),
            input,
            clock: None,
        };
        let said = self.hear(ask(String::new(), &[])).await?;
        if said.trim() != NOT_BEGUN {
            return Ok(outcome(&said));
        }
        let script = machine.build.and_then(|work| work.script);
        let timeout_s = SCRIPT_MAX.as_secs().to_string();
        let has_script = if script.is_some() { "script" } else { "-" };
        let kept = OUTPUT_MAX_BYTES.to_string();
        let words = [has_script, timeout_s.as_str(), kept.as_str(), RUN, GENERALISE];
        let input = STANDARD.encode(script.map(executable).unwrap_or_default());
        let said = self.hear(ask(input, &words)).await?;
        Ok(outcome(&said))
    }

    async fn hear(&self, step: Step) -> Result<String, Failure> {
        let ended = self.done_in_guest(vec![step], PATIENCE).await?;
        ended.map_err(|trouble| refused(&trouble))
    }
}

/// A script that says by what it is read.
fn executable(script: String) -> String {
    if script.starts_with("#!") {
        script
    } else {
        format!("#!/bin/sh\n{script}")
    }
}

/// What a guest that is asked for nothing it could do lacks.
fn refused(trouble: &Trouble) -> Failure {
    let message = format!(
        "its guest cannot be made a template's: {}; it needs the QEMU guest agent with guest-exec allowed, and /bin/sh",
        trouble.message
    );
    Failure {
        reason: Reason::new("guest-not-generalised", message),
        is_retryable: !trouble.is_refused,
    }
}

/// What the guest said: that it is at it; or a line with how the last step ended, one with what there is to say of it, and what
/// the script printed last.
fn outcome(said: &str) -> Outcome {
    let mut parts = said.splitn(3, '\n');
    let first = parts.next().unwrap_or_default();
    if first.trim() == UNDER_WAY {
        return Outcome::Ok;
    }
    let words: Vec<&str> = first.split_whitespace().collect();
    let message = parts.next().unwrap_or_default();
    let output = parts.next().unwrap_or_default();
    let number = |at: usize| words.get(at).and_then(|word| word.parse::<i64>().ok());
    let status = number(1).and_then(|status| i32::try_from(status).ok());
    let applied = |steps_done: usize| Applied {
        steps_done,
        exit_status: status,
        output: output.chars().take(OUTPUT_MAX_BYTES).collect(),
        output_bytes: number(2).and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0),
    };
    let shown = message.chars().take(300).collect::<String>();
    let shown = shown.escape_debug();
    let (steps_done, reason) = match words.first().copied() {
        Some("done") => (2, None),
        Some("script") => {
            let status = status.map_or_else(|| "no status".to_owned(), |status| format!("status {status}"));
            let message = format!("the script ended with {status}: see what it printed");
            (0, Some(Reason::new("build-script-failed", message)))
        }
        Some("late") => {
            let message = format!(
                "the script had not ended after {} s, and was killed",
                SCRIPT_MAX.as_secs()
            );
            (0, Some(Reason::new("build-script-failed", message)))
        }
        Some("generalise") => {
            let message = format!("its guest cannot be generalised: {shown}");
            (1, Some(Reason::new("guest-not-generalised", message)))
        }
        Some("lost") => (
            0,
            Some(Reason::new(
                "build-lost",
                format!("what was begun in the guest is not there any more: {shown}"),
            )),
        ),
        _ => {
            let message = format!(
                "the guest gave no readable answer: {}",
                first.chars().take(200).collect::<String>().escape_debug()
            );
            (0, Some(Reason::new("guest-not-generalised", message)))
        }
    };
    Outcome::Built(Built {
        applied: applied(steps_done),
        reason,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built(said: &str) -> Built {
        match outcome(said) {
            Outcome::Built(built) => built,
            other => panic!("{said:?} was read as {other:?}"),
        }
    }

    #[test]
    fn what_a_guest_says_is_read_whatever_it_is() {
        assert_eq!(outcome("under-way\n"), Outcome::Ok);
        let done = built("done 0 7\n\nhello\nx");
        assert_eq!((done.reason, done.applied.output.as_str()), (None, "hello\nx"));
        assert_eq!(
            (done.applied.exit_status, done.applied.output_bytes),
            (Some(0), 7)
        );
        let failed = built("script 3 4\n\noops");
        assert_eq!(failed.reason.unwrap().code, "build-script-failed");
        assert_eq!(
            (failed.applied.exit_status, failed.applied.output.as_str()),
            (Some(3), "oops")
        );
        let refused = built("generalise 1 0\nno \u{1b}keys\n");
        assert_eq!(
            refused.reason.unwrap().message,
            "its guest cannot be generalised: no \\u{1b}keys"
        );
        for said in ["", "\n\n", "what", "script x y", "done"] {
            built(said);
        }
    }
}
