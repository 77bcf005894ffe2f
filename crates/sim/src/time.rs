//! Virtual time, and the servers' view of it.
//!
//! **Owns:** the one clock of a world, who sleeps until when, and the ids that servers give.
//!
//! **Does not know:** what happens at a time: see [`crate::world`].
//!
//! **Start here:** [`Time`], then [`SimEnv`].

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use controller::Env;
use model::Timestamp;
use rand::rngs::ChaCha8Rng;
use rand::{Rng, SeedableRng};
use store::BoxFuture;
use uuid::{Builder, Uuid};

/// When a world begins, for those who read a calendar.
const BEGINNING_US: i64 = 1_800_000_000_000_000;

/// The clock of a world.
#[derive(Debug, Default)]
pub(crate) struct Time(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    now_us: u64,
    next: u64,
    /// By when, then by who came first.
    sleepers: BTreeMap<(u64, u64), Waker>,
}

impl Time {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since the world's beginning.
    pub(crate) fn now_us(&self) -> u64 {
        self.lock().now_us
    }

    /// The calendar of somebody whose clock is off by this much.
    pub(crate) fn wall(&self, offset_us: i64) -> Timestamp {
        let since = i64::try_from(self.now_us()).unwrap_or(i64::MAX);
        let at_us = BEGINNING_US.saturating_add(since).saturating_add(offset_us);
        Timestamp::from_microsecond(at_us).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// When the next sleeper wakes.
    pub(crate) fn next_us(&self) -> Option<u64> {
        self.lock().sleepers.keys().next().map(|(at_us, _)| *at_us)
    }

    /// Moves on, and wakes those whose time has come.
    pub(crate) fn reach(&self, at_us: u64) {
        let mut inner = self.lock();
        inner.now_us = inner.now_us.max(at_us);
        let later = inner.sleepers.split_off(&(at_us.saturating_add(1), 0));
        let due = std::mem::replace(&mut inner.sleepers, later);
        drop(inner);
        due.into_values().for_each(Waker::wake);
    }

    /// Ends when so much time has passed.
    pub(crate) fn sleep(self: &Arc<Self>, for_us: u64) -> Sleep {
        let mut inner = self.lock();
        inner.next += 1;
        let key = (inner.now_us.saturating_add(for_us), inner.next);
        drop(inner);
        Sleep {
            time: self.clone(),
            key,
        }
    }
}

/// Somebody who sleeps.
pub(crate) struct Sleep {
    time: Arc<Time>,
    key: (u64, u64),
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut inner = self.time.lock();
        if inner.now_us >= self.key.0 {
            return Poll::Ready(());
        }
        inner.sleepers.insert(self.key, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.time.lock().sleepers.remove(&self.key);
    }
}

/// What a simulated server has for a machine.
pub(crate) struct SimEnv {
    pub(crate) time: Arc<Time>,
    ids: Mutex<(ChaCha8Rng, u16)>,
    /// How far its calendar is off.
    pub(crate) offset_us: AtomicI64,
}

impl SimEnv {
    pub(crate) fn new(time: Arc<Time>, seed: u64) -> Self {
        Self {
            time,
            ids: Mutex::new((ChaCha8Rng::seed_from_u64(seed), 0)),
            offset_us: AtomicI64::new(0),
        }
    }
}

impl Env for SimEnv {
    fn now(&self) -> Timestamp {
        self.time.wall(self.offset_us.load(Ordering::Relaxed))
    }

    fn monotonic(&self) -> Duration {
        Duration::from_micros(self.time.now_us())
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let for_us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        Box::pin(self.time.sleep(for_us))
    }

    /// As on a machine, the ids of a moment rise.
    fn next_id(&self) -> Uuid {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        ids.1 = ids.1.wrapping_add(1) & 0x0fff;
        let mut random = [0; 10];
        ids.0.fill_bytes(&mut random);
        random[..2].copy_from_slice(&ids.1.to_be_bytes());
        let ms = u64::try_from(self.now().as_millisecond()).unwrap_or_default();
        Builder::from_unix_timestamp_millis(ms, &random).into_uuid()
    }
}
