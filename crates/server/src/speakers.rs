//! Which machine speaks for a host. The copy of a host's whole disk has the host's keys, and is told from it here.
//!
//! An agent says with each request what tells this start of its machine, and the directory that it works in, from all
//! others: its *speaker*. (Two agents in one directory of one machine exclude each other by themselves.) The stored contact
//! names the speaker that counts:
//!
//! - the first one that says anything becomes it, and whatever it asks is answered at once;
//! - any other is refused, whatever it asks: it is told nothing, and nothing that it reports counts. It may be the same
//!   machine after a restart, so it becomes the speaker when it has asked for [`SILENT_AFTER`] in which nothing was heard of
//!   the one that counts. While two others ask, neither does;
//! - an agent of before, which does not say, is a speaker like another.
//!
//! What was asked is kept in memory: a server that starts, or that was cut off from all of its hosts, waits as long as for
//! every host, and whoever spoke before goes on at once.
//!
//! **Several servers** agree by the contact. It changes in a transaction that compares it, and only while it says that the
//! host is silent everywhere ([`crate::contact`]). A server that has not heard of the change answers whoever spoke
//! before, for the moment that the store takes to tell it, by what was so before the change. Each server says of those that
//! it refuses itself.
//!
//! **Owns:** who may speak for a host, and who asked to.
//!
//! **Does not know:** certificates: see [`crate::auth`]; when a host is silent.
//!
//! **Start here:** [`Speakers::admit`], then `Turn::hear` for the rule.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::Problem;
use controller::commit::{CommitError, commit};
use model::host::HostContact;
use model::{HostId, Reason, key};
use planner::{Plan, View};

use crate::answer::commit_problem;
use crate::auth::Agent;
use crate::contact::SILENT_AFTER;
use crate::shared::Cloud;

/// How often it is tried again to write down who speaks, when others overtake it.
const ATTEMPTS: u32 = 20;

/// Who speaks for each host.
#[derive(Debug, Default)]
pub struct Speakers {
    turns: Mutex<BTreeMap<HostId, Arc<tokio::sync::Mutex<Turn>>>>,
    twice: Mutex<BTreeMap<HostId, Twice>>,
}

impl Speakers {
    /// Lets an agent speak for its host, or refuses it. Requests for one host are looked at one after the other.
    pub async fn admit(&self, cloud: &Cloud, agent: &Agent) -> Result<(), Problem> {
        let turn = self.turn(agent.host);
        let mut turn = turn.lock().await;
        for _ in 0..ATTEMPTS {
            let voice = Voice {
                speaker: agent.speaker.as_deref(),
                from: agent.from.ip(),
            };
            let stored = Stored::of(&cloud.cache.view(), agent.host);
            let now = cloud.env.monotonic();
            let verdict = turn.hear(voice, now, &stored);
            if let Some(twice) = turn.twice.take() {
                lock(&self.twice).insert(agent.host, twice);
            }
            match verdict {
                Verdict::Speaks => return Ok(()),
                Verdict::Refused => return Err(refused(&agent.name)),
                Verdict::BecomesSpeaker => match stored.become_speaker(cloud, agent).await {
                    Ok(()) => {
                        turn.begin(now);
                        return Ok(());
                    }
                    Err(CommitError::Conflict { .. }) => {
                        let next = cloud.cache.revision().saturating_add(1);
                        cloud.cache.reach(next, Duration::from_millis(10)).await;
                    }
                    Err(error) => return Err(commit_problem(error)),
                },
            }
        }
        Err(commit_problem(CommitError::Conflict {
            key: key::host_contact(agent.host),
        }))
    }

    fn turn(&self, host: HostId) -> Arc<tokio::sync::Mutex<Turn>> {
        lock(&self.turns).entry(host).or_default().clone()
    }

    /// Forgets what was long ago.
    pub(crate) fn look(&self, now: Duration) {
        lock(&self.twice).retain(|_, twice| now.saturating_sub(twice.at) < SILENT_AFTER);
    }

    /// That two machines speak for a host, for the people who have to end one of them.
    pub(crate) fn reason(&self, host: HostId) -> Option<Reason> {
        let from = lock(&self.twice).get(&host)?.from;
        let message = format!(
            "two machines speak for it, as a host and a copy of its disk do: the one at {from} is refused, and told nothing. End \
             the agent of the one that is the copy, and remove the agent's directory and /etc/machine-id from it before \
             it joins as a host of its own"
        );
        Some(Reason::new("host-twice", message))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refused(name: &str) -> Problem {
    let detail = format!(
        "another machine, or another start of this one, speaks for host {name}. If this one was just restarted, it is taken \
         when the other has been silent for {} s. If its disk is a copy of {name}'s, end this agent, remove its directory \
         and /etc/machine-id (then `systemd-machine-id-setup`), and let it join with a token of its own",
        SILENT_AFTER.as_secs()
    );
    Problem::conflict("host-twice", detail)
}

/// Whether an agent is the one that speaks for its host, as the store says.
pub(crate) fn speaks(view: &View, agent: &Agent) -> bool {
    Stored::of(view, agent.host).contact.speaker == agent.speaker
}

/// What the store says of a host.
#[derive(Debug, Clone, Default)]
struct Stored {
    contact: HostContact,
    revision: u64,
    /// It is heard nowhere, or never was.
    is_silent: bool,
}

impl Stored {
    fn of(view: &View, host: HostId) -> Self {
        let host = view.hosts.get(&host);
        let contact = host.and_then(|host| host.contact.as_ref());
        Self {
            contact: contact.map(|at| at.value.clone()).unwrap_or_default(),
            revision: contact.map_or(0, |at| at.revision),
            is_silent: host.is_none_or(|host| host.is_silent() || host.status.is_none()),
        }
    }

    /// Writes down that it is this agent from now on.
    async fn become_speaker(self, cloud: &Cloud, agent: &Agent) -> Result<(), CommitError> {
        let mut plan = Plan::new(format!("note which machine speaks for host {}", agent.name));
        let contact = HostContact {
            speaker: agent.speaker.clone(),
            ..self.contact
        };
        plan.replace(key::host_contact(agent.host), self.revision, &contact);
        let revision = commit(cloud.writer(&agent.actor()), plan).await?;
        cloud.cache.reach(revision, Duration::from_secs(5)).await;
        tracing::info!(host = agent.name, from = %agent.from, "this machine, in this start of it, speaks for the host from now on");
        Ok(())
    }
}

/// One who asks in a host's name.
#[derive(Debug, Clone, Copy)]
struct Voice<'a> {
    speaker: Option<&'a str>,
    from: IpAddr,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It is answered.
    Speaks,
    /// It is answered when it is written down that this one speaks from now on.
    BecomesSpeaker,
    /// It is not answered.
    Refused,
}

/// Two machines that spoke for a host.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Twice {
    /// When that was so last.
    at: Duration,
    /// Where the one is that is refused.
    from: IpAddr,
}

/// One that is not the speaker and asks.
#[derive(Debug, Clone)]
struct Asking {
    speaker: Option<String>,
    from: IpAddr,
    since: Duration,
    last: Duration,
}

/// What was heard lately in one host's name. Times are of the server's monotonic clock.
#[derive(Debug, Default)]
struct Turn {
    /// When the speaker was heard last.
    spoke: Option<Duration>,
    asking: Option<Asking>,
    /// Found since this was taken last.
    twice: Option<Twice>,
}

impl Turn {
    /// What becomes of a request.
    fn hear(&mut self, voice: Voice<'_>, now: Duration, stored: &Stored) -> Verdict {
        let is_old = |at: Duration| now.saturating_sub(at) >= SILENT_AFTER;
        self.asking.take_if(|asking| is_old(asking.last));
        let speaker = stored.contact.speaker.as_deref();
        if voice.speaker == speaker {
            self.spoke = Some(now);
            self.note_twice(now);
            return Verdict::Speaks;
        }
        if speaker.is_none() {
            return Verdict::BecomesSpeaker;
        }
        let since = self.ask(voice, now);
        if stored.is_silent && is_old(since) && self.spoke.is_none_or(is_old) {
            Verdict::BecomesSpeaker
        } else {
            Verdict::Refused
        }
    }

    /// One who is not the speaker asks; since when.
    fn ask(&mut self, voice: Voice<'_>, now: Duration) -> Duration {
        let is_same = |asking: &&mut Asking| asking.speaker.as_deref() == voice.speaker;
        if let Some(asking) = self.asking.as_mut().filter(is_same) {
            asking.last = now;
            return asking.since;
        }
        self.note_twice(now);
        self.asking = Some(Asking {
            speaker: voice.speaker.map(str::to_owned),
            from: voice.from,
            since: now,
            last: now,
        });
        now
    }

    /// Another one than who asks now asked lately.
    fn note_twice(&mut self, now: Duration) {
        self.twice = self.asking.as_ref().map(|asking| Twice {
            at: now,
            from: asking.from,
        });
    }

    /// Who asked is the speaker now.
    fn begin(&mut self, now: Duration) {
        *self = Self {
            spoke: Some(now),
            ..Self::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use model::Timestamp;

    use super::*;

    const HOST: &str = "the host";
    const COPY: &str = "a copy";
    const THIRD: &str = "another copy";
    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const THERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

    fn stored(speaker: Option<&str>, is_silent: bool) -> Stored {
        let contact = HostContact {
            silent_since: is_silent.then_some(Timestamp::UNIX_EPOCH),
            speaker: speaker.map(str::to_owned),
            ..HostContact::default()
        };
        Stored {
            contact,
            revision: 1,
            is_silent,
        }
    }

    /// What becomes of a request of one of them at this second.
    fn hear(turn: &mut Turn, speaker: Option<&str>, second: u64, stored: &Stored) -> Verdict {
        let from = if speaker == Some(HOST) { HERE } else { THERE };
        turn.hear(Voice { speaker, from }, Duration::from_secs(second), stored)
    }

    #[test]
    fn the_first_that_says_anything_speaks_and_goes_on() {
        let mut turn = Turn::default();
        let nobody = stored(None, false);
        assert_eq!(hear(&mut turn, Some(HOST), 0, &nobody), Verdict::BecomesSpeaker);
        turn.begin(Duration::ZERO);
        for second in [1, 2, 500] {
            let known = stored(Some(HOST), second == 500);
            assert_eq!(hear(&mut turn, Some(HOST), second, &known), Verdict::Speaks);
        }
        assert_eq!(turn.twice, None);
    }

    #[test]
    fn an_agent_of_before_speaks_until_one_says_more_and_then_is_like_another() {
        let mut turn = Turn::default();
        assert_eq!(hear(&mut turn, None, 0, &stored(None, false)), Verdict::Speaks);
        assert_eq!(
            hear(&mut turn, Some(HOST), 1, &stored(None, false)),
            Verdict::BecomesSpeaker
        );
        turn.begin(Duration::from_secs(1));
        let known = stored(Some(HOST), false);
        assert_eq!(hear(&mut turn, None, 2, &known), Verdict::Refused);
        // The release of before was installed again.
        let silent = stored(Some(HOST), true);
        assert_eq!(hear(&mut turn, None, 11, &silent), Verdict::Refused);
        assert_eq!(hear(&mut turn, None, 12, &silent), Verdict::BecomesSpeaker);
    }

    #[test]
    fn a_copy_is_refused_for_as_long_as_the_host_is_heard_and_both_are_named() {
        let mut turn = Turn::default();
        let known = stored(Some(HOST), false);
        for second in (0..100).step_by(2) {
            assert_eq!(hear(&mut turn, Some(HOST), second, &known), Verdict::Speaks);
            assert_eq!(hear(&mut turn, Some(COPY), second + 1, &known), Verdict::Refused);
        }
        let twice = turn.twice.take().unwrap();
        assert_eq!((twice.at, twice.from), (Duration::from_secs(98), THERE));
        // Also when the host's contact is late to say that it is heard.
        let late = stored(Some(HOST), true);
        assert_eq!(hear(&mut turn, Some(COPY), 101, &late), Verdict::Refused);
        assert_eq!(turn.twice, None);
    }

    #[test]
    fn a_machine_that_was_restarted_speaks_when_it_has_asked_for_long_enough() {
        let mut turn = Turn::default();
        let known = stored(Some(HOST), false);
        assert_eq!(hear(&mut turn, Some(HOST), 0, &known), Verdict::Speaks);
        assert_eq!(hear(&mut turn, Some(COPY), 4, &known), Verdict::Refused);
        // Nothing is heard here, but the store does not say that nobody hears it.
        assert_eq!(hear(&mut turn, Some(COPY), 13, &known), Verdict::Refused);
        assert_eq!(hear(&mut turn, Some(COPY), 15, &known), Verdict::Refused);
        let silent = stored(Some(HOST), true);
        assert_eq!(hear(&mut turn, Some(COPY), 16, &silent), Verdict::BecomesSpeaker);
        assert_eq!(turn.twice, None, "only one of them was there");
        turn.begin(Duration::from_secs(16));
        let taken = stored(Some(COPY), true);
        assert_eq!(hear(&mut turn, Some(COPY), 16, &taken), Verdict::Speaks);
        assert_eq!(turn.twice, None, "it is not another one than itself");
        // The one of before comes back, and is the other one now.
        assert_eq!(hear(&mut turn, Some(HOST), 17, &taken), Verdict::Refused);
        assert_eq!(hear(&mut turn, Some(COPY), 18, &taken), Verdict::Speaks);
        assert_eq!(turn.twice.take().unwrap().from, HERE);
        assert_eq!(hear(&mut turn, Some(HOST), 26, &taken), Verdict::Refused);
        assert_eq!(hear(&mut turn, Some(HOST), 27, &taken), Verdict::Refused);
        assert_eq!(hear(&mut turn, Some(HOST), 28, &taken), Verdict::BecomesSpeaker);
    }

    #[test]
    fn after_long_silence_the_host_itself_comes_first() {
        // The server was cut off from both, or has just been started.
        let silent = stored(Some(HOST), true);
        let mut turn = Turn::default();
        assert_eq!(hear(&mut turn, Some(COPY), 100, &silent), Verdict::Refused);
        assert_eq!(hear(&mut turn, Some(COPY), 109, &silent), Verdict::Refused);
        assert_eq!(hear(&mut turn, Some(HOST), 109, &silent), Verdict::Speaks);
        assert_eq!(hear(&mut turn, Some(COPY), 110, &silent), Verdict::Refused);
    }

    #[test]
    fn one_that_asks_now_and_then_has_not_asked_for_long() {
        let silent = stored(Some(HOST), true);
        let mut turn = Turn::default();
        for second in [0, 10, 20, 30] {
            assert_eq!(hear(&mut turn, Some(COPY), second, &silent), Verdict::Refused);
        }
    }

    #[test]
    fn of_two_that_ask_neither_speaks() {
        let silent = stored(Some(HOST), true);
        let mut turn = Turn::default();
        for second in (0..100).step_by(2) {
            assert_eq!(hear(&mut turn, Some(COPY), second, &silent), Verdict::Refused);
            assert_eq!(
                hear(&mut turn, Some(THIRD), second + 1, &silent),
                Verdict::Refused
            );
        }
        assert!(turn.twice.is_some());
        for second in 100..109 {
            assert_eq!(hear(&mut turn, Some(THIRD), second, &silent), Verdict::Refused);
        }
        assert_eq!(
            hear(&mut turn, Some(THIRD), 109, &silent),
            Verdict::BecomesSpeaker
        );
    }
}
