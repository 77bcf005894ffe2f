//! A server's way to the store: the one in memory, with a disk that takes its time, fills up and fails.
//!
//! **Owns:** when a write happens and when its answer comes: a crash may fall before, between and after.
//!
//! **Does not know:** what is written.
//!
//! **Start here:** [`SimStore`].

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use controller::Env;
use futures_util::{StreamExt, stream};
use model::key::SERVER_PREFIX;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use store::{
    Backup, BoxFuture, Lease, LeaseId, MemoryStore, RangeRequest, RangeResponse, Revision, Status, Store,
    StoreError, Txn, TxnResponse, WatchRequest, WatchStream,
};

use crate::bugs::Bug;
use crate::time::SimEnv;

/// How the store's disk is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Weather {
    /// There is no room.
    pub(crate) is_full: bool,
    /// One write in so many fails, some of them after they were made.
    pub(crate) fails_one_in: Option<u32>,
    /// How much longer a write takes.
    pub(crate) slow_us: u64,
    /// How much later changes are seen.
    pub(crate) lag_us: u64,
}

/// The store as one start of a server has it.
pub(crate) struct SimStore {
    memory: Arc<MemoryStore>,
    env: Arc<SimEnv>,
    weather: Arc<Mutex<Weather>>,
    chance: Arc<Mutex<ChaCha8Rng>>,
    /// How much later this server sees changes than others may.
    lag_us: u64,
    bug: Option<Bug>,
}

/// What the disk does to a write.
enum Fate {
    Good,
    LostBefore,
    LostAfter,
}

impl SimStore {
    pub(crate) fn new(
        memory: Arc<MemoryStore>,
        env: Arc<SimEnv>,
        weather: Arc<Mutex<Weather>>,
        seed: u64,
        bug: Option<Bug>,
    ) -> Self {
        let mut chance = ChaCha8Rng::seed_from_u64(seed);
        let lag_us = match bug {
            Some(Bug::ServerBehind) => 500_000,
            _ => [0, 0, 5_000, 50_000][chance.random_range(0..4_usize)],
        };
        let chance = Arc::new(Mutex::new(chance));
        Self {
            memory,
            env,
            weather,
            chance,
            lag_us,
            bug,
        }
    }

    fn weather(&self) -> Weather {
        *self.weather.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn draw(&self, range: std::ops::Range<u64>) -> u64 {
        let mut chance = self.chance.lock().unwrap_or_else(PoisonError::into_inner);
        chance.random_range(range)
    }

    async fn takes(&self, from_us: u64, to_us: u64) {
        let for_us = self.draw(from_us..to_us) + self.weather().slow_us;
        self.env.sleep(Duration::from_micros(for_us)).await;
    }

    fn fate(&self) -> Fate {
        let Some(one_in) = self.weather().fails_one_in else {
            return Fate::Good;
        };
        match self.draw(0..u64::from(one_in) * 2) {
            0 => Fate::LostBefore,
            1 => Fate::LostAfter,
            _ => Fate::Good,
        }
    }

    async fn write(&self, mut txn: Txn) -> Result<TxnResponse, StoreError> {
        self.takes(50, 300).await;
        if self.weather().is_full {
            return Err(StoreError::Full {
                attempt: "txn",
                object: "the simulated disk".to_owned(),
            });
        }
        if let Some(bug) = self.bug {
            let overtaken_us = bug.spoil(&mut txn);
            self.takes(overtaken_us / 20, overtaken_us + 1).await;
        }
        let fate = self.fate();
        if !matches!(fate, Fate::LostBefore) {
            let answer = self.memory.txn(txn).await?;
            self.takes(50, 300).await;
            if matches!(fate, Fate::Good) {
                return Ok(answer);
            }
        }
        Err(StoreError::Unavailable {
            attempt: "txn",
            detail: "the simulated disk failed".to_owned(),
            retryable: true,
        })
    }
}

impl Store for SimStore {
    fn range(&self, request: RangeRequest) -> BoxFuture<'_, Result<RangeResponse, StoreError>> {
        if self.bug == Some(Bug::ServersUnseen) && request.range.contains(SERVER_PREFIX) {
            return self.memory.range(RangeRequest::key("/nothing"));
        }
        self.memory.range(request)
    }

    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        Box::pin(async {
            let is_asked = self.bug != Some(Bug::ServerBehind);
            let nothing = self.memory.range(RangeRequest::key("/")).await?;
            Ok(if is_asked { nothing.revision } else { 0 })
        })
    }

    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnResponse, StoreError>> {
        Box::pin(self.write(txn))
    }

    /// Changes come one after the other, each a while after it was made.
    fn watch(&self, request: WatchRequest) -> BoxFuture<'_, Result<WatchStream, StoreError>> {
        Box::pin(async move {
            let changes = self.memory.watch(request).await?;
            let (env, weather, chance) = (self.env.clone(), self.weather.clone(), self.chance.clone());
            let (loses, lags_us) = (self.bug == Some(Bug::WakeUpLost), self.lag_us);
            let later = stream::unfold(changes, move |mut changes| {
                let (env, weather, chance) = (env.clone(), weather.clone(), chance.clone());
                async move {
                    loop {
                        let item = changes.next().await?;
                        let lag_us = weather.lock().unwrap_or_else(PoisonError::into_inner).lag_us;
                        let (own_us, is_lost) = {
                            let mut chance = chance.lock().unwrap_or_else(PoisonError::into_inner);
                            (
                                chance.random_range(20..200),
                                loses && chance.random_range(0..30) == 0,
                            )
                        };
                        env.sleep(Duration::from_micros(own_us + lag_us + lags_us)).await;
                        if !is_lost {
                            return Some((item, changes));
                        }
                    }
                }
            });
            Ok(Box::pin(later) as WatchStream)
        })
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        self.memory.compact(revision)
    }

    fn grant_lease(&self, ttl: Duration) -> BoxFuture<'_, Result<Lease, StoreError>> {
        self.memory.grant_lease(ttl)
    }

    fn keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<Lease, StoreError>> {
        self.memory.keep_alive(lease)
    }

    fn revoke_lease(&self, lease: LeaseId) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.memory.revoke_lease(lease)
    }

    fn status(&self) -> BoxFuture<'_, Result<Status, StoreError>> {
        self.memory.status()
    }

    fn backup<'a>(&'a self, target: &'a Path) -> BoxFuture<'a, Result<Backup, StoreError>> {
        self.memory.backup(target)
    }
}
