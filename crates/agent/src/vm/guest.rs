//! What the guest's agent says, asked apart from everything else: a guest may answer late or never.
//!
//! **Owns:** the only connection to the guest agent's socket, and what it said last.
//!
//! **Does not know:** what follows from it.
//!
//! **Start here:** [`watch`]. A request waits in the socket until the guest's agent opens its end, so that the first
//! answer comes as soon as there can be one.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use driver::types::Guest;
use qemu::guest_agent::{GuestAgent, GuestAgentError, Interface, ShutdownMode};
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, timeout};

/// How long one request may wait in the socket.
const ANSWER_DEADLINE: Duration = Duration::from_millis(1500);
/// Between requests until the first answer.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Between looks at the addresses while there are none.
const SEARCH_PAUSE: Duration = Duration::from_millis(250);
/// Between looks at the addresses.
const PAUSE: Duration = Duration::from_secs(5);

/// What is known of the guest, shared between the one who asks and those who look.
#[derive(Debug, Clone, Default)]
pub struct Known(Arc<Mutex<Guest>>);

impl Known {
    /// What was said last.
    pub fn get(&self) -> Guest {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Nothing was said yet.
    pub fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Guest::default();
    }

    /// Whether that is news.
    fn set(&self, guest: Guest) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = *known != guest;
        *known = guest;
        is_news
    }
}

/// Asks the guest for as long as its QEMU lives; whoever sends to `shutdowns` has it asked to power off.
pub async fn watch(socket: PathBuf, known: Known, news: Arc<Notify>, mut shutdowns: mpsc::Receiver<()>) {
    loop {
        match GuestAgent::connect(&socket, ANSWER_DEADLINE, rand::random()).await {
            Ok(agent) => converse(agent, &known, &news, &mut shutdowns).await,
            Err(error) => tracing::debug!(%error, "no connection to the guest's agent"),
        }
        sleep(PAUSE).await;
    }
}

/// Until the socket closes.
async fn converse(mut agent: GuestAgent, known: &Known, news: &Notify, shutdowns: &mut mpsc::Receiver<()>) {
    let mut pause = FIRST_PAUSE;
    loop {
        match look(&mut agent, known, news).await {
            Ok(guest) if guest.addresses.is_empty() => pause = SEARCH_PAUSE,
            Ok(_) => pause = PAUSE,
            Err(GuestAgentError::Closed { .. }) => return,
            Err(_) => {}
        }
        if let Ok(Some(())) = timeout(pause, shutdowns.recv()).await
            && let Err(error) = agent.shutdown(ShutdownMode::Powerdown).await
        {
            tracing::debug!(%error, "the guest's agent was not asked to shut down");
        }
    }
}

async fn look(agent: &mut GuestAgent, known: &Known, news: &Notify) -> Result<Guest, GuestAgentError> {
    if !known.get().ready {
        agent.ping().await?;
        known.set(Guest { ready: true, addresses: Vec::new() });
        news.notify_one();
    }
    let guest = match agent.network_interfaces().await {
        Ok(interfaces) => Guest { ready: true, addresses: addresses(interfaces) },
        // A guest agent that does not know the command has answered all the same.
        Err(GuestAgentError::Command { .. }) => Guest { ready: true, addresses: Vec::new() },
        Err(error) => return Err(error),
    };
    if known.set(guest.clone()) {
        news.notify_one();
    }
    Ok(guest)
}

/// All that others can reach: neither loopback nor link-local.
fn addresses(interfaces: Vec<Interface>) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = interfaces.into_iter().flat_map(|interface| interface.addresses).collect();
    all.retain(|address| match address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
    });
    all.sort();
    all.dedup();
    all
}
