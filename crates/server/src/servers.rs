//! The servers on one store: which of them are there.
//!
//! **Owns:** this one's key, which its lease keeps, so that it goes when the server does; and the list of the others.
//!
//! **Does not know:** what servers divide among them: see [`crate::contact`].
//!
//! **Start here:** [`Servers::look`]. Nothing is written while all is as it was: to keep a lease alive is no write.

use std::collections::BTreeSet;
use std::time::Duration;

use model::{key, record};
use store::{LeaseId, Op, RangeRequest, StoreError, Txn};
use uuid::Uuid;

use crate::shared::Cloud;

/// How long a server counts as there after it was heard last.
const PRESENT_FOR: Duration = Duration::from_secs(10);
/// How often it says that it is.
const KEPT_EVERY: Duration = Duration::from_secs(3);
/// How often the others are looked for.
const LOOKED_EVERY: Duration = Duration::from_millis(500);

/// What one server knows of those on its store.
pub struct Servers {
    /// This run of this server.
    pub own: Uuid,
    lease: Option<LeaseId>,
    kept_at: Duration,
    looked_at: Option<Duration>,
    others: BTreeSet<Uuid>,
}

impl Servers {
    /// Of a run that nobody knows of yet.
    pub fn new(own: Uuid) -> Self {
        Self {
            own,
            lease: None,
            kept_at: Duration::ZERO,
            looked_at: None,
            others: BTreeSet::new(),
        }
    }

    /// Whether there are others.
    pub fn has_others(&self) -> bool {
        !self.others.is_empty()
    }

    /// Whether it is another one that is there.
    pub fn is_another(&self, server: Option<Uuid>) -> bool {
        server.is_some_and(|server| self.others.contains(&server))
    }

    /// Says that this one is there, and looks which others are, when either is due. While the store does not answer, what
    /// was last known is taken to be so.
    pub async fn look(&mut self, cloud: &Cloud) {
        let now = cloud.env.monotonic();
        if self
            .looked_at
            .is_some_and(|at| now.saturating_sub(at) < LOOKED_EVERY)
        {
            return;
        }
        self.looked_at = Some(now);
        if let Err(error) = self.keep(cloud, now).await {
            tracing::debug!(%error, "this server could not be said to be there; trying again");
        }
        match cloud.store.range(RangeRequest::prefix(key::SERVER_PREFIX)).await {
            Ok(found) => {
                let ids = found.items.iter();
                let ids = ids.filter_map(|kv| kv.key.strip_prefix(key::SERVER_PREFIX)?.parse().ok());
                self.others = ids.filter(|id| *id != self.own).collect();
            }
            Err(error) => tracing::debug!(%error, "the other servers could not be read; trying again"),
        }
    }

    async fn keep(&mut self, cloud: &Cloud, now: Duration) -> Result<(), StoreError> {
        match self.lease {
            Some(_) if now.saturating_sub(self.kept_at) < KEPT_EVERY => return Ok(()),
            // One that is over is not kept alive: there is another one at the next look.
            Some(lease) => {
                self.lease = None;
                self.lease = Some(cloud.store.keep_alive(lease).await?.id);
            }
            None => self.lease = Some(self.appear(cloud).await?),
        }
        self.kept_at = now;
        Ok(())
    }

    async fn appear(&self, cloud: &Cloud) -> Result<LeaseId, StoreError> {
        let lease = cloud.store.grant_lease(PRESENT_FOR).await?.id;
        let put = Op::put_leased(key::server(self.own), record::encode(&self.own), lease);
        cloud.store.txn(Txn::new().then(put)).await?;
        Ok(lease)
    }
}
