//! What a server wants done in a guest, carried out through the guest's agent, one order after the other.
//!
//! **Owns:** the orders that wait for each VM ([`Guests`]), how far the present one is ([`Work`]), and how each step is done.
//! Contents go to the guest as the standard input of a shell there: they are in no argument list, and come whole or not
//! at all. The agent's own commands for files are not used, since it makes files that everybody in the guest may write.
//!
//! **Does not know:** who asks, and the connection to the guest's agent, which is [`super::guest`]'s.
//!
//! **Start here:** [`Guests::give`], then [`Work::advance`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::apply::{ApplyAnswer, ApplyOrder, ApplyStep, OUTPUT_MAX_BYTES, WAITING_MAX};
use model::operation::Applied;
use model::{Reason, VmId};
use qemu::guest_agent::{ExecOutput, ExecStatus, GuestAgent, GuestAgentError};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// What makes a user, with its name as the argument.
const USER: &str = include_str!("apply/user.sh");
/// What writes a file, with path, mode and owner as arguments.
const FILE: &str = include_str!("apply/file.sh");
/// What runs a script, with its time in seconds and the bound of its output as arguments.
const SCRIPT: &str = include_str!("apply/script.sh");
/// What the guest's processes are called.
const NAME: &str = "sterna-apply";
const SHELL: &str = "/bin/sh";
/// Between looks whether a command in the guest has ended, at first: twice as long after each.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// The longest pause between looks.
const PAUSE: Duration = Duration::from_millis(500);
/// How long after the deadline the end of what was killed in the guest is waited for.
const LATE_PATIENCE: Duration = Duration::from_secs(10);

/// An order that waits for its turn.
#[derive(Debug)]
pub struct Job {
    steps: VecDeque<ApplyStep>,
    deadline: Instant,
    answer: oneshot::Sender<ApplyAnswer>,
}

/// Where orders for VMs that have a QEMU here are taken.
#[derive(Debug, Clone, Default)]
pub struct Guests(Arc<Mutex<BTreeMap<VmId, mpsc::Sender<Job>>>>);

impl Guests {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<VmId, mpsc::Sender<Job>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What comes for a VM, from now on.
    pub fn publish(&self, vm: VmId) -> mpsc::Receiver<Job> {
        let (sender, jobs) = mpsc::channel(WAITING_MAX);
        let mut all = self.lock();
        all.retain(|_, sender| !sender.is_closed());
        all.insert(vm, sender);
        jobs
    }

    /// Gives an order for a VM, and where its answer comes; nothing comes if its QEMU ends.
    pub fn give(&self, vm: VmId, order: ApplyOrder) -> Result<oneshot::Receiver<ApplyAnswer>, Reason> {
        let (answer, answered) = oneshot::channel();
        let job = Job {
            steps: order.steps.into(),
            deadline: Instant::now() + Duration::from_millis(order.patience_ms),
            answer,
        };
        let sender = self.lock().get(&vm).cloned();
        match sender.map(|sender| sender.try_send(job)) {
            Some(Ok(())) => Ok(answered),
            Some(Err(mpsc::error::TrySendError::Full(_))) => Err(Reason::new(
                "apply-busy",
                "nothing was done: too many wait for this guest; try again when some have ended",
            )),
            _ => Err(Reason::new(
                "apply-no-guest",
                "nothing was done: the VM has no process on its host now; see `sterna vm explain`",
            )),
        }
    }
}

/// An order that is being carried out.
#[derive(Debug)]
pub struct Work {
    job: Job,
    /// The commands that the guest's agent has, and whether it lets them be used, once that is known.
    commands: Option<BTreeMap<String, bool>>,
    /// What runs in the guest.
    running: Option<Running>,
    applied: Applied,
}

#[derive(Debug)]
struct Running {
    step: ApplyStep,
    pid: i64,
    /// Until it is looked at again.
    pause: Duration,
}

/// Why an order ends before all of it is done.
type Stop = Reason;

impl Work {
    /// One that begins; `None` if nobody waits for it any more.
    pub fn of(job: Job) -> Option<Self> {
        (!job.answer.is_closed()).then(|| Self {
            job,
            commands: None,
            running: None,
            applied: Applied::default(),
        })
    }

    /// Goes on by one command of the guest's agent, and says for how long there is nothing to do after it; `None` if it has
    /// ended, and whoever gave it was told. It may not be dropped halfway: the guest may have been told something.
    pub async fn advance(mut self, agent: &mut GuestAgent) -> Option<(Self, Duration)> {
        let reason = match self.step(agent).await {
            Ok(Some(pause)) => return Some((self, pause)),
            Ok(None) => None,
            Err(reason) => Some(reason),
        };
        let answer = ApplyAnswer {
            applied: self.applied,
            reason,
        };
        // Whoever does not wait any more finds what was done in the guest.
        let _ = self.job.answer.send(answer);
        None
    }

    /// How long there is nothing to do then; `None` when all is done.
    async fn step(&mut self, agent: &mut GuestAgent) -> Result<Option<Duration>, Stop> {
        if let Some(running) = self.running.take() {
            return self.look(agent, running).await.map(Some);
        }
        if self.commands.is_none() {
            let commands = agent.commands().await.map_err(|error| silent(&error))?;
            // Before anything is done: what cannot be done as a whole is not begun.
            for step in &self.job.steps {
                check(&commands, step)?;
            }
            self.commands = Some(commands);
            return Ok(Some(Duration::ZERO));
        }
        let Some(step) = self.job.steps.pop_front() else {
            return Ok(None);
        };
        if Instant::now() >= self.job.deadline {
            return Err(not_begun(&step));
        }
        match self.begin(agent, &step).await {
            Ok(None) => self.applied.steps_done += 1,
            Ok(Some(pid)) => {
                let pause = FIRST_PAUSE;
                self.running = Some(Running { step, pid, pause });
                return Ok(Some(pause));
            }
            Err(error) => return Err(self.refused(&step, error)),
        }
        Ok(Some(Duration::ZERO))
    }

    /// Tells the guest's agent to do a step; the number of the process that does it, if it is not done at once.
    async fn begin(&self, agent: &mut GuestAgent, step: &ApplyStep) -> Result<Option<i64>, GuestAgentError> {
        let shell = |script: &str, arguments: &[&str]| -> Vec<String> {
            let words = ["-c", script, NAME].into_iter().chain(arguments.iter().copied());
            words.map(str::to_owned).collect()
        };
        let (words, input) = match step {
            // Where nothing may be run, the user has to be there.
            ApplyStep::User { .. } if !self.may(EXEC) => return Ok(None),
            ApplyStep::User { name } => (shell(USER, &[name]), ""),
            ApplyStep::File {
                path,
                content,
                mode,
                owner,
            } => (shell(FILE, &[path, mode, owner]), content.0.as_str()),
            ApplyStep::Script { content } => {
                let left = self.job.deadline.saturating_duration_since(Instant::now());
                let seconds = left.as_secs().max(1).to_string();
                let bound = OUTPUT_MAX_BYTES.to_string();
                (shell(SCRIPT, &[&seconds, &bound]), content.0.as_str())
            }
            ApplyStep::Password { user, password } => {
                return agent.set_user_password(user, &password.0).await.map(|()| None);
            }
            ApplyStep::SshKeys { user, keys } => return agent.add_ssh_keys(user, keys).await.map(|()| None),
        };
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        agent.exec_with(SHELL, &words, input).await.map(Some)
    }

    fn may(&self, command: &str) -> bool {
        let found = self.commands.as_ref().and_then(|commands| commands.get(command));
        found.copied().unwrap_or(false)
    }

    /// Whether what runs in the guest has ended. A guest that does not answer may be busy.
    async fn look(&mut self, agent: &mut GuestAgent, mut running: Running) -> Result<Duration, Stop> {
        let is_over = Instant::now() >= self.job.deadline + LATE_PATIENCE;
        match agent.exec_status(running.pid).await {
            Ok(ExecStatus::Ended(output)) => {
                self.end(&running.step, output)?;
                self.applied.steps_done += 1;
                return Ok(Duration::ZERO);
            }
            Ok(ExecStatus::Running) if is_over => return Err(late(&running.step)),
            Ok(ExecStatus::Running) => {}
            Err(GuestAgentError::Timeout { .. }) if !is_over => {}
            Err(error) => return Err(lost(&running.step, &error)),
        }
        running.pause = (2 * running.pause).min(PAUSE);
        let pause = running.pause;
        self.running = Some(running);
        Ok(pause)
    }

    /// What a process in the guest that has ended says of its step.
    fn end(&mut self, step: &ApplyStep, ended: ExecOutput) -> Result<(), Stop> {
        let status = ended
            .exit_code
            .or_else(|| ended.signal.map(|signal| signal.saturating_add(128)));
        self.applied.exit_status = status;
        let told = Told::of(&ended.stderr);
        match (step, told) {
            (ApplyStep::Script { .. }, Some(told)) => {
                self.applied.output_bytes = told.bytes;
                self.applied.output = shown(&ended.stdout);
                if told.is_late {
                    return Err(late(step));
                }
            }
            _ => {
                self.applied.output_bytes = ended.stderr.len() as u64;
                self.applied.output = shown(&ended.stderr);
            }
        }
        if status == Some(0) {
            return Ok(());
        }
        let status = status.map_or_else(|| "no status".to_owned(), |status| format!("status {status}"));
        let message = format!(
            "{} ended with {status}: what it printed last stands beside this",
            step.words()
        );
        Err(Reason::new("apply-failed", message))
    }

    /// The guest's agent was asked for a step and has not begun it, or did not say so.
    fn refused(&mut self, step: &ApplyStep, error: GuestAgentError) -> Stop {
        let GuestAgentError::Command { desc, .. } = error else {
            return lost(step, &error);
        };
        self.applied.output_bytes = desc.len() as u64;
        self.applied.output = shown(desc.as_bytes());
        let message = format!(
            "{} was refused by the guest's agent: what it said stands beside this",
            step.words()
        );
        Reason::new("apply-failed", message)
    }
}

const EXEC: &str = "guest-exec";

/// The commands of the guest's agent that a step cannot do without.
fn needed(step: &ApplyStep) -> &'static [&'static str] {
    match step {
        ApplyStep::User { .. } => &[],
        ApplyStep::Password { .. } => &["guest-set-user-password"],
        ApplyStep::SshKeys { .. } => &["guest-ssh-add-authorized-keys"],
        ApplyStep::File { .. } | ApplyStep::Script { .. } => &[EXEC, "guest-exec-status"],
    }
}

fn check(commands: &BTreeMap<String, bool>, step: &ApplyStep) -> Result<(), Stop> {
    let missing = needed(step)
        .iter()
        .find(|command| commands.get(**command) != Some(&true));
    let Some(command) = missing else { return Ok(()) };
    let words = step.words();
    if commands.contains_key(*command) {
        let message = format!(
            "nothing was done, since the guest's agent does not allow {command}, which {words} needs: take it out of `block-rpcs` \
             (or put it into `allow-rpcs`) in the guest's /etc/qemu/qemu-ga.conf, on Red Hat's systems in FILTER_RPC_ARGS of \
             /etc/sysconfig/qemu-ga, restart qemu-guest-agent there, and apply again"
        );
        return Err(Reason::new("guest-command-disabled", message));
    }
    let message = format!(
        "nothing was done, since the guest's agent has no {command}, which {words} needs: install a newer qemu-guest-agent there"
    );
    Err(Reason::new("guest-command-missing", message))
}

fn silent(error: &GuestAgentError) -> Stop {
    let why = without_guests_words(error);
    let message =
        format!("nothing was done: {why}; look whether qemu-guest-agent runs in the guest, and apply again");
    Reason::new("guest-agent-silent", message)
}

fn lost(step: &ApplyStep, error: &GuestAgentError) -> Stop {
    let (step, why) = (step.words(), without_guests_words(error));
    let message = format!("whether {step} was done is not known: {why}; look at the guest, and apply again");
    Reason::new("apply-lost", message)
}

/// An error without what the guest said, which is data that not everybody may see.
fn without_guests_words(error: &GuestAgentError) -> String {
    match error {
        GuestAgentError::Command { command, .. } => format!("the guest's agent refused `{command}`"),
        GuestAgentError::Garbage { command, .. } => {
            format!("the guest sent no readable answer to `{command}`")
        }
        error => error.to_string(),
    }
}

fn not_begun(step: &ApplyStep) -> Stop {
    let message = format!(
        "{} was not begun: the time was over, which others that are done in this guest may have taken; give more with --timeout",
        step.words()
    );
    Reason::new("apply-late", message)
}

fn late(step: &ApplyStep) -> Stop {
    let message = match step {
        ApplyStep::Script { .. } => {
            "the script still ran when its time was over, and was killed; give it more with --timeout"
                .to_owned()
        }
        step => format!("{} was not done in time: give more with --timeout", step.words()),
    };
    Reason::new("apply-late", message)
}

/// What the shell around a script says of it on its last line.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    bytes: u64,
    is_late: bool,
}

impl Told {
    fn of(stderr: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(stderr);
        let mut words = text.lines().last()?.split(' ');
        if words.next() != Some(NAME) {
            return None;
        }
        Some(Self {
            bytes: words.next()?.parse().ok()?,
            is_late: words.next()? == "late",
        })
    }
}

/// The last that was printed, as text.
fn shown(printed: &[u8]) -> String {
    let from = printed.len().saturating_sub(OUTPUT_MAX_BYTES);
    String::from_utf8_lossy(&printed[from..]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shell_around_a_script_tells_of_it_on_its_last_line() {
        let told = |bytes, is_late| Some(Told { bytes, is_late });
        assert_eq!(Told::of(b"sterna-apply 12 ended\n"), told(12, false));
        assert_eq!(Told::of(b"Killed\nsterna-apply 0 late\n"), told(0, true));
        for odd in ["", "mktemp: no such file", "sterna-apply", "sterna-apply x late"] {
            assert_eq!(Told::of(odd.as_bytes()), None, "{odd}");
        }
    }

    #[test]
    fn the_end_of_what_was_printed_is_shown() {
        assert_eq!(shown(b"ab\xffc"), "ab\u{fffd}c");
        let long = [b'a'; OUTPUT_MAX_BYTES + 1];
        assert_eq!(shown(&long).len(), OUTPUT_MAX_BYTES);
    }

    #[test]
    fn what_the_guests_agent_does_not_allow_is_named_with_the_setting() {
        let commands = BTreeMap::from([(EXEC.to_owned(), false)]);
        let step = ApplyStep::Script {
            content: api::apply::Secret("planted".to_owned()),
        };
        let reason = check(&commands, &step).unwrap_err();
        assert_eq!(reason.code, "guest-command-disabled");
        assert!(reason.message.contains("FILTER_RPC_ARGS"), "{}", reason.message);
        let commands = BTreeMap::from([(EXEC.to_owned(), true)]);
        let reason = check(&commands, &step).unwrap_err();
        assert_eq!(reason.code, "guest-command-missing");
    }
}
