//! Something that is to be done in a guest, all of it, before anything else is asked of it.
//!
//! **Owns:** the steps of an errand, their order, and its end: one step's failure ends it.
//!
//! **Does not know:** the connection to the guest's agent, which is [`super::guest`]'s, and what errands are for.
//!
//! **Start here:** [`Errand::run`].

use std::time::Duration;

use driver::types::Failure;
use model::{Reason, Timestamp};
use qemu::guest_agent::{ExecStatus, GuestAgent, GuestAgentError};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::exec::Vm;
use super::warm::Waiting;
use crate::clock::Clock;

const SHELL: &str = "/bin/sh";
/// What the guest's processes are called.
const NAME: &str = "sterna-errand";
/// Between looks whether a command in the guest has ended, at first: half as long again after each.
const FIRST_PAUSE: Duration = Duration::from_millis(4);
/// The longest pause between looks: each takes some of the guest's own time.
const PAUSE: Duration = Duration::from_secs(2);

/// One step.
#[derive(Debug)]
pub enum Step {
    /// A script of the guest's shell, with arguments, and with its standard input in Base64.
    Shell {
        /// For people.
        what: &'static str,
        /// The script.
        script: String,
        /// Its arguments.
        arguments: Vec<String>,
        /// Its standard input.
        input: String,
        /// The time when it begins is its first argument, in seconds since 1970.
        clock: Option<Clock>,
    },
    /// Nothing is asked of the guest, from when that is told until the other is dropped.
    Rest(oneshot::Sender<()>, oneshot::Receiver<()>),
    /// A process is started that waits to be told who its guest is; which one is told.
    Wait(oneshot::Sender<Waiting>),
    /// It is told: random numbers, the time, and all else.
    Tell {
        /// Which one.
        waiting: Waiting,
        /// Before the time.
        seed: String,
        /// The time when it is told.
        clock: Clock,
        /// After the time.
        words: Vec<String>,
    },
}

/// Steps, and who waits for them.
#[derive(Debug)]
pub struct Errand {
    steps: Vec<Step>,
    deadline: Instant,
    done: oneshot::Sender<Ended>,
}

/// What the last step printed; or why an errand ended before.
pub type Ended = Result<String, Trouble>;

/// Why an errand was not done.
#[derive(Debug)]
pub struct Trouble {
    /// For people.
    pub message: String,
    /// The guest's agent does not do such things, and would not the next time.
    pub is_refused: bool,
}

impl Trouble {
    const fn new(message: String) -> Self {
        Self {
            message,
            is_refused: false,
        }
    }
}

impl From<GuestAgentError> for Trouble {
    fn from(error: GuestAgentError) -> Self {
        Self {
            is_refused: matches!(error, GuestAgentError::Command { .. }),
            message: error.to_string(),
        }
    }
}

impl Errand {
    /// With where it is told that it is done, or why not.
    pub fn new(steps: Vec<Step>, patience: Duration) -> (Self, oneshot::Receiver<Ended>) {
        let (done, is_done) = oneshot::channel();
        let deadline = Instant::now() + patience;
        (
            Self {
                steps,
                deadline,
                done,
            },
            is_done,
        )
    }

    /// Does all of it. A guest that does not answer yet is waited for.
    pub async fn run(mut self, agent: &mut GuestAgent) {
        let mut result = Ok(String::new());
        for step in std::mem::take(&mut self.steps) {
            result = self.step(agent, step).await;
            if result.is_err() {
                break;
            }
        }
        // Nobody may wait any more.
        let _ = self.done.send(result);
    }

    async fn step(&self, agent: &mut GuestAgent, step: Step) -> Ended {
        match step {
            Step::Shell {
                what,
                script,
                arguments,
                input,
                clock,
            } => {
                let now = clock.as_ref().map(|clock| seconds(clock.cloud()));
                let mut words = vec!["-c", script.as_str(), NAME];
                words.extend(now.as_deref());
                words.extend(arguments.iter().map(String::as_str));
                let ended = self.shell(agent, &words, &input).await;
                ended.map_err(|trouble| Trouble {
                    message: format!("{what}: {}", trouble.message),
                    ..trouble
                })
            }
            Step::Rest(begun, over) => {
                // Nobody may wait any more.
                let _ = begun.send(());
                let _ = over.await;
                Ok(String::new())
            }
            Step::Wait(whom) => {
                let waiting = Waiting::start(agent).await.map_err(Trouble::new)?;
                // Nobody may wait any more.
                let _ = whom.send(waiting);
                Ok(String::new())
            }
            Step::Tell {
                waiting,
                seed,
                clock,
                words,
            } => {
                let line = format!("{seed} {} {}\n", seconds(clock.cloud()), words.join(" "));
                let told = waiting.tell(agent, &line, self.deadline).await;
                told.map(|()| String::new()).map_err(Trouble::new)
            }
        }
    }

    async fn shell(&self, agent: &mut GuestAgent, words: &[&str], input: &str) -> Ended {
        let pid = loop {
            match agent.exec_with(SHELL, words, input).await {
                Ok(pid) => break pid,
                // It may be run twice: all that is run here may be.
                Err(GuestAgentError::Timeout { .. }) if Instant::now() < self.deadline => {}
                Err(error) => return Err(error.into()),
            }
        };
        let mut pause = FIRST_PAUSE;
        loop {
            sleep(pause).await;
            match agent.exec_status(pid).await {
                Ok(ExecStatus::Ended(output)) if output.exit_code == Some(0) => {
                    return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
                }
                Ok(ExecStatus::Ended(output)) => return Err(Trouble::new(output.complaint())),
                Ok(ExecStatus::Running) | Err(GuestAgentError::Timeout { .. }) => {
                    if Instant::now() >= self.deadline {
                        return Err(Trouble::new("it did not end in time".to_owned()));
                    }
                }
                Err(error) => return Err(error.into()),
            }
            pause = (pause * 3 / 2).min(PAUSE);
        }
    }
}

impl Vm {
    /// Has all of it done in the guest, and says how that ended. It ends without a word of the guest when its QEMU does.
    pub(super) async fn done_in_guest(&self, steps: Vec<Step>, patience: Duration) -> Result<Ended, Failure> {
        let (errand, done) = Errand::new(steps, patience);
        self.live().await?.give(errand).await;
        done.await.map_err(|_| Failure {
            reason: Reason::new("qemu-gone", "its QEMU ended meanwhile"),
            is_retryable: true,
        })
    }
}

fn seconds(time: Timestamp) -> String {
    format!("{}.{:09}", time.as_second(), time.subsec_nanosecond())
}
