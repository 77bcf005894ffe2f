//! How often may be asked: a bucket of tokens for each user, and one for each address that shows no valid token.
//!
//! **Owns:** the buckets, at most [`BUCKETS_MAX`] of each sort.
//!
//! **Does not know:** the time, and who somebody is: both are told.
//!
//! A bucket holds [`BURST_S`] seconds' worth of requests and fills at the rate. Whoever has shown a valid token lately is
//! not kept waiting by others at the same address. Agents and health checks never come here.
//!
//! **Start here:** [`Limits::request`].

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use api::Problem;

/// How many seconds' worth of requests may come at once.
const BURST_S: f64 = 5.0;
/// How long idle buckets are not looked for again.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);
/// How many buckets of a sort are kept; whoever comes beyond shares one.
const BUCKETS_MAX: usize = 10_000;

/// How often may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// Requests a second that each user may make; any number if 0.
    pub user_per_s: u32,
    /// Requests a second without a valid token that may come from an address; any number if 0.
    pub stranger_per_s: u32,
    /// How many polls may wait at a time.
    pub polls: usize,
    /// How many watches may be open at a time.
    pub watches: usize,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            user_per_s: 500,
            stranger_per_s: 10,
            polls: 1000,
            watches: 12_000,
        }
    }
}

/// Who has asked how often.
#[derive(Debug)]
pub struct Limits {
    users: Mutex<Buckets<String>>,
    strangers: Mutex<Buckets<Option<IpAddr>>>,
    /// The digests of tokens that were found valid lately.
    known: Mutex<Buckets<String>>,
}

impl Limits {
    /// Nobody has asked yet.
    pub fn new(rates: Rates) -> Self {
        Self {
            users: Mutex::new(Buckets::new(rates.user_per_s)),
            strangers: Mutex::new(Buckets::new(rates.stranger_per_s)),
            known: Mutex::new(Buckets::new(1)),
        }
    }

    /// A user asks.
    pub fn request(&self, user: &str, now: Instant) -> Result<(), Problem> {
        lock(&self.users).take(user.to_owned(), now).map_err(|wait| {
            let detail = format!(
                "{user} asks more often than is allowed: wait as long as `Retry-After` says, or watch"
            );
            Problem::new(429, "too-many-requests", detail).retry_after(wait)
        })
    }

    /// Somebody shows a token, before it is looked up. The digest is the token's.
    pub fn knock(&self, digest: Option<&str>, from: Option<IpAddr>, now: Instant) -> Result<(), Problem> {
        if digest.is_some_and(|digest| lock(&self.known).has(digest)) {
            return Ok(());
        }
        lock(&self.strangers)
            .peek(&from.map(network), now)
            .map_err(too_many_attempts)
    }

    /// The token was none.
    pub fn turned_away(&self, from: Option<IpAddr>, now: Instant) -> Result<(), Problem> {
        lock(&self.strangers)
            .take(from.map(network), now)
            .map_err(too_many_attempts)
    }

    /// The token was a valid one.
    pub fn let_in(&self, digest: &str, now: Instant) {
        let _ = lock(&self.known).take(digest.to_owned(), now);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn too_many_attempts(wait: Duration) -> Problem {
    let detail = "too many requests without a valid token came from this address: check the token, and wait as long as \
                  `Retry-After` says";
    Problem::new(429, "too-many-attempts", detail).retry_after(wait)
}

/// An address as far as strangers are told apart: an IPv6 network is one, since a host has as many addresses as it likes.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address => address,
    }
}

/// Buckets of one size.
#[derive(Debug)]
struct Buckets<K> {
    per_s: f64,
    all: BTreeMap<K, Bucket>,
    /// For all who came when there were too many.
    shared: Option<Bucket>,
    swept_at: Option<Instant>,
}

/// How full a bucket was when it was last looked at.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl<K: Ord> Buckets<K> {
    fn new(per_s: u32) -> Self {
        Self {
            per_s: f64::from(per_s),
            all: BTreeMap::new(),
            shared: None,
            swept_at: None,
        }
    }

    fn has<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: std::borrow::Borrow<Q>,
    {
        self.all.contains_key(key)
    }

    fn full(&self) -> f64 {
        self.per_s * BURST_S
    }

    fn tokens(&self, bucket: Option<Bucket>, now: Instant) -> f64 {
        bucket.map_or(self.full(), |bucket| {
            let filled = now.saturating_duration_since(bucket.at).as_secs_f64() * self.per_s;
            (bucket.tokens + filled).min(self.full())
        })
    }

    fn wait(&self, tokens: f64) -> Result<(), Duration> {
        if self.per_s == 0.0 || tokens >= 1.0 {
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - tokens) / self.per_s))
    }

    /// Whether a token could be taken, or how long until then.
    fn peek(&self, key: &K, now: Instant) -> Result<(), Duration> {
        let is_crowded = self.all.len() >= BUCKETS_MAX;
        let bucket = self.all.get(key).copied().or(self.shared.filter(|_| is_crowded));
        self.wait(self.tokens(bucket, now))
    }

    /// Takes a token, or says how long until there is one.
    fn take(&mut self, key: K, now: Instant) -> Result<(), Duration> {
        if !self.all.contains_key(&key) && self.all.len() >= BUCKETS_MAX {
            self.forget(now);
        }
        let is_shared = !self.all.contains_key(&key) && self.all.len() >= BUCKETS_MAX;
        let bucket = if is_shared {
            self.shared
        } else {
            self.all.get(&key).copied()
        };
        let tokens = self.tokens(bucket, now);
        self.wait(tokens)?;
        let bucket = Bucket {
            tokens: (tokens - 1.0).max(0.0),
            at: now,
        };
        if is_shared {
            self.shared = Some(bucket);
        } else {
            self.all.insert(key, bucket);
        }
        Ok(())
    }

    /// Full buckets are as good as none. Looking for them takes a while, so it is not done for every stranger.
    fn forget(&mut self, now: Instant) {
        let is_recent = |at| now.saturating_duration_since(at) < SWEEP_PAUSE;
        if self.swept_at.is_some_and(is_recent) {
            return;
        }
        self.swept_at = Some(now);
        let (per_s, full) = (self.per_s, self.full());
        let is_full = |bucket: &Bucket| {
            bucket.tokens + now.saturating_duration_since(bucket.at).as_secs_f64() * per_s >= full
        };
        self.all.retain(|_, bucket| !is_full(bucket));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: Rates = Rates {
        user_per_s: 10,
        stranger_per_s: 1,
        polls: 1,
        watches: 1,
    };

    #[test]
    fn a_burst_is_taken_then_the_rate_and_nobody_waits_for_others() {
        let (limits, start) = (Limits::new(RATES), Instant::now());
        let taken = (0..100)
            .take_while(|_| limits.request("ann", start).is_ok())
            .count();
        assert_eq!(taken, 50);
        let problem = limits.request("ann", start).unwrap_err();
        assert_eq!((problem.status, problem.retry_after_s), (429, Some(1)));
        limits.request("bob", start).unwrap();
        let later = start + Duration::from_secs(2);
        let taken = (0..100)
            .take_while(|_| limits.request("ann", later).is_ok())
            .count();
        assert_eq!(taken, 20);
        // A clock that stands still, or goes back, gives nothing.
        assert!(limits.request("ann", start).is_err());
        let unlimited = Limits::new(Rates {
            user_per_s: 0,
            ..RATES
        });
        assert!((0..10_000).all(|_| unlimited.request("ann", start).is_ok()));
    }

    #[test]
    fn strangers_wait_and_those_who_are_known_at_the_same_address_do_not() {
        let (limits, start) = (Limits::new(RATES), Instant::now());
        let here = Some(IpAddr::from([192, 0, 2, 1]));
        limits.knock(Some("good"), here, start).unwrap();
        limits.let_in("good", start);
        let taken = (0..100)
            .take_while(|_| limits.turned_away(here, start).is_ok())
            .count();
        assert_eq!(taken, 5);
        assert_eq!(
            limits.knock(Some("bad"), here, start).unwrap_err().code,
            "too-many-attempts"
        );
        limits.knock(Some("good"), here, start).unwrap();
        limits
            .knock(Some("bad"), Some(IpAddr::from([192, 0, 2, 2])), start)
            .unwrap();
        limits
            .knock(Some("bad"), here, start + Duration::from_secs(1))
            .unwrap();
    }

    #[test]
    fn addresses_of_one_network_are_one_stranger() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }

    #[test]
    fn memory_is_bounded_and_idle_buckets_are_forgotten() {
        let (mut buckets, start) = (Buckets::new(1), Instant::now());
        let asked = 3 * BUCKETS_MAX;
        let taken = (0..asked).filter(|n| buckets.take(*n, start).is_ok()).count();
        assert_eq!(taken, BUCKETS_MAX + 5, "those who came too late share one");
        assert_eq!(buckets.all.len(), BUCKETS_MAX);
        assert!(buckets.peek(&asked, start).is_err());
        buckets.take(asked, start + Duration::from_secs(60)).unwrap();
        assert_eq!(buckets.all.len(), 1);
    }
}
