//! What the guest's agent says, asked apart from everything else: a guest may answer late or never.
//!
//! **Owns:** the only connection to the guest agent's socket, and what it said last. Who has something done in the guest
//! takes turns with the looks.
//!
//! **Does not know:** what follows from it, and what is done in the guest ([`super::apply`]).
//!
//! **Start here:** [`watch`]. A request waits in the socket until the guest's agent opens its end, so that the first
//! answer comes as soon as there can be one.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use driver::types::Guest;
use qemu::guest_agent::{GuestAgent, GuestAgentError, Interface};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::apply::{Job, Work};
use super::live::{Ask, EndAsk, FreezeAsk};

/// How long one look may wait in the socket.
const ANSWER_DEADLINE: Duration = Duration::from_millis(1500);
/// How long what is done in a guest may: a busy guest takes long to begin a process, and asked again it would begin another.
const WORK_DEADLINE: Duration = Duration::from_secs(10);
/// Between requests until the first answer.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Between looks at the addresses while there are none, at first: twice as long after each. Many guests never have one.
const SEARCH_PAUSE: Duration = Duration::from_millis(250);
/// Between looks at the addresses.
const PAUSE: Duration = Duration::from_secs(5);

/// For how long a guest's file systems are frozen at most.
const FROZEN_MAX: Duration = Duration::from_secs(10);
/// How often it is tried to thaw them.
const THAW_TRIES: u32 = 5;
/// Where it is kept over a restart of the agent, in the run directory.
const GUEST_FILE: &str = "guest.json";

/// What is known of the guest, shared between the one who asks and those who look.
#[derive(Debug, Clone, Default)]
pub struct Known(Arc<Mutex<Remembered>>);

#[derive(Debug, Default)]
struct Remembered {
    /// Without the time that it has been up: that is no news.
    guest: Guest,
    up_ms: Option<u64>,
    file: Option<PathBuf>,
}

/// The guest's part of the run directory.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    ready: bool,
    addresses: Vec<IpAddr>,
}

impl Known {
    fn lock(&self) -> MutexGuard<'_, Remembered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was said last.
    pub fn get(&self) -> Guest {
        let known = self.lock();
        Guest {
            up_ms: known.up_ms,
            ..known.guest.clone()
        }
    }

    /// What an earlier agent was told by the same QEMU's guest.
    pub fn recall(&self, run_directory: &Path) {
        let file = run_directory.join(GUEST_FILE);
        let kept = std::fs::read(&file)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Kept>(&bytes).ok());
        let guest = kept.map(|kept| Guest {
            ready: kept.ready,
            addresses: kept.addresses,
            up_ms: None,
        });
        *self.lock() = Remembered {
            guest: guest.unwrap_or_default(),
            up_ms: None,
            file: Some(file),
        };
    }

    /// The guest was reset: what it said was said by one that is gone.
    pub fn begin_anew(&self) {
        self.set(Guest::default());
        self.lock().up_ms = None;
    }

    /// Whether that is news.
    fn set(&self, guest: Guest) -> bool {
        let mut known = self.lock();
        let is_news = known.guest != guest;
        known.guest = guest;
        let file = known.file.clone().filter(|_| is_news);
        let kept = Kept {
            ready: known.guest.ready,
            addresses: known.guest.addresses.clone(),
        };
        drop(known);
        if let Some(file) = file
            && let Err(error) =
                crate::storage::write_whole(&file, &serde_json::to_vec(&kept).unwrap_or_default())
        {
            tracing::warn!(
                error = crate::link::chain(&error),
                "what the guest said is asked again after a restart"
            );
        }
        is_news
    }
}

/// What others want of the guest's agent.
#[derive(Debug)]
pub struct Wanted {
    /// That the guest powers off or reboots.
    asks: mpsc::Receiver<Ask>,
    /// That something is done in it.
    jobs: mpsc::Receiver<Job>,
    /// What is being done, and when it goes on.
    present: Option<(Work, Instant)>,
}

impl Wanted {
    /// With nothing begun.
    pub fn new(asks: mpsc::Receiver<Ask>, jobs: mpsc::Receiver<Job>) -> Self {
        Self {
            asks,
            jobs,
            present: None,
        }
    }
}

/// Asks the guest for as long as its QEMU lives, and has done what is wanted.
pub async fn watch(socket: PathBuf, known: Known, news: Arc<Notify>, mut wanted: Wanted) {
    loop {
        match GuestAgent::connect(&socket, ANSWER_DEADLINE, crate::chance::nonce()).await {
            Ok(agent) => converse(agent, &known, &news, &mut wanted).await,
            Err(error) => tracing::debug!(%error, "no connection to the guest's agent"),
        }
        sleep(PAUSE).await;
    }
}

/// Until the socket closes.
async fn converse(mut agent: GuestAgent, known: &Known, news: &Notify, wanted: &mut Wanted) {
    let mut pause = FIRST_PAUSE;
    let mut search_pause = SEARCH_PAUSE;
    let mut is_new = true;
    loop {
        // An agent before this one may have ended in the instant that it had the guest frozen for.
        if is_new && known.get().ready {
            match agent.is_frozen().await {
                Ok(is_frozen) => {
                    is_new = false;
                    if is_frozen {
                        tracing::warn!("the guest's file systems were left frozen");
                        thaw(&mut agent).await;
                    }
                }
                Err(GuestAgentError::Command { .. }) => is_new = false,
                Err(GuestAgentError::Closed { .. }) => return,
                Err(_) => {}
            }
        }
        let looked = match first_answer(&mut agent, known, news).await {
            Ok(()) => {
                while let Ok(ask) = wanted.asks.try_recv() {
                    answer(&mut agent, ask).await;
                }
                look(&mut agent, known, news).await
            }
            Err(error) => Err(error),
        };
        match looked {
            Ok(guest) if guest.addresses.is_empty() => {
                pause = search_pause;
                search_pause = (2 * search_pause).min(PAUSE);
            }
            Ok(_) => pause = PAUSE,
            Err(GuestAgentError::Closed { .. }) => return,
            Err(_) => {}
        }
        serve(&mut agent, wanted, pause).await;
    }
}

/// Has done what is wanted until it is time for a look.
async fn serve(agent: &mut GuestAgent, wanted: &mut Wanted, pause: Duration) {
    let until = Instant::now() + pause;
    loop {
        let due = wanted.present.as_ref().map(|(_, due)| *due);
        tokio::select! {
            biased;
            Some(ask) = wanted.asks.recv() => {
                answer(agent, ask).await;
                return;
            }
            () = sleep_until(due.unwrap_or(until).min(until)) => {
                if due.is_none_or(|due| due > until) {
                    return;
                }
                agent.set_deadline(WORK_DEADLINE);
                if let Some((work, _)) = wanted.present.take() {
                    let next = work.advance(agent).await;
                    wanted.present = next.map(|(work, pause)| (work, Instant::now() + pause));
                }
                agent.set_deadline(ANSWER_DEADLINE);
            }
            Some(job) = wanted.jobs.recv(), if due.is_none() => {
                wanted.present = Work::of(job).map(|work| (work, Instant::now()));
            }
        }
    }
}

async fn answer(agent: &mut GuestAgent, ask: Ask) {
    match ask {
        Ask::End(ask) => end(agent, &ask).await,
        Ask::Errand(errand) => {
            agent.set_deadline(WORK_DEADLINE);
            errand.run(agent).await;
            agent.set_deadline(ANSWER_DEADLINE);
        }
        Ask::Freeze(ask) => freeze(agent, ask).await,
    }
}

async fn end(agent: &mut GuestAgent, ask: &EndAsk) {
    if ask.is_current()
        && let Err(error) = agent.shutdown(ask.mode).await
    {
        tracing::debug!(%error, mode = ?ask.mode, "the guest's agent was not asked to end its guest");
    }
}

/// Nothing else is asked of a guest between its freezing and its thawing: its agent would refuse it.
async fn freeze(agent: &mut GuestAgent, ask: FreezeAsk) {
    let is_frozen = match agent.freeze().await {
        Ok(count) => count > 0,
        // It knows no freezing, or will not: then it is not frozen.
        Err(GuestAgentError::Command { desc, .. }) => {
            tracing::debug!(desc, "the guest's agent does not freeze its file systems");
            return;
        }
        Err(error) => {
            tracing::warn!(%error, "whether the guest's file systems are frozen is not known");
            false
        }
    };
    // Whoever asked may have given up.
    if ask.frozen.send(is_frozen).is_ok() && is_frozen {
        let _ = timeout(FROZEN_MAX, ask.over).await;
    }
    thaw(agent).await;
    drop(ask.thawed);
}

async fn thaw(agent: &mut GuestAgent) {
    for _ in 0..THAW_TRIES {
        match agent.thaw().await {
            Ok(()) | Err(GuestAgentError::Closed { .. }) => return,
            Err(error) => tracing::warn!(%error, "the guest's file systems are still frozen"),
        }
    }
}

async fn first_answer(agent: &mut GuestAgent, known: &Known, news: &Notify) -> Result<(), GuestAgentError> {
    if !known.get().ready {
        agent.ping().await?;
        known.set(answered(Vec::new()));
        news.notify_one();
    }
    Ok(())
}

async fn look(agent: &mut GuestAgent, known: &Known, news: &Notify) -> Result<Guest, GuestAgentError> {
    // A guest agent that does not know a command has answered all the same.
    let guest = match agent.network_interfaces().await {
        Ok(interfaces) => answered(addresses(interfaces)),
        Err(GuestAgentError::Command { .. }) => answered(Vec::new()),
        Err(error) => return Err(error),
    };
    if known.set(guest.clone()) {
        news.notify_one();
    }
    known.lock().up_ms = agent.up_ms().await.ok();
    Ok(guest)
}

fn answered(addresses: Vec<IpAddr>) -> Guest {
    Guest {
        ready: true,
        addresses,
        up_ms: None,
    }
}

/// All that others can reach: neither loopback nor link-local.
fn addresses(interfaces: Vec<Interface>) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = interfaces
        .into_iter()
        .flat_map(|interface| interface.addresses)
        .collect();
    all.retain(|address| match address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
    });
    all.sort();
    all.dedup();
    all
}
