//! The agent's clocks: one that never goes back, for deadlines of its own, and the cloud's time, for those that a server
//! wrote.
//!
//! **Owns:** how far this machine's calendar is from the server's.
//!
//! **Does not know:** what the times are for.
//!
//! **Start here:** [`Clock::now`]. What a server wrote is compared with the server's time, as its last answer said it: a
//! calendar that is off, or is set, must not cut a guest's power before its time is over.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use api::agent::TIME_HEADER;
use driver::types::Now;
use model::Timestamp;
use reqwest::header::HeaderMap;

/// An answer takes time to come: a difference of less is none.
const UNSURE_S: i64 = 3;

/// The agent's clocks. Copies are the same ones.
#[derive(Debug, Clone)]
pub struct Clock {
    start: Instant,
    heard: Arc<Mutex<Option<Heard>>>,
}

/// What a server said last.
#[derive(Debug, Clone, Copy)]
struct Heard {
    /// The cloud's time then.
    time: Timestamp,
    at: Instant,
    /// How much this machine's calendar was ahead of it.
    ahead_s: i64,
}

impl Clock {
    /// Starts now.
    pub fn start() -> Self {
        Self {
            start: Instant::now(),
            heard: Arc::default(),
        }
    }

    /// The time as cores see it.
    pub fn now(&self) -> Now {
        Now {
            monotonic_us: u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX),
            wall: self.cloud(),
        }
    }

    /// The instant that a core means.
    pub fn instant(&self, at_us: u64) -> tokio::time::Instant {
        (self.start + Duration::from_micros(at_us)).into()
    }

    /// The cloud's time; this machine's as long as no server has answered.
    pub fn cloud(&self) -> Timestamp {
        let heard = self
            .last()
            .map(|heard| heard.time.checked_add(heard.at.elapsed()));
        heard.and_then(Result::ok).unwrap_or_else(crate::chance::now)
    }

    /// How much this machine's calendar is ahead of the server's, as the last answer showed.
    pub fn ahead_s(&self) -> Option<i64> {
        self.last().map(|heard| heard.ahead_s)
    }

    /// A server has answered just now.
    pub fn hear(&self, headers: &HeaderMap) {
        let said = headers.get(TIME_HEADER).and_then(|value| value.to_str().ok());
        if let Some(server) = said.and_then(|text| text.parse().ok()) {
            self.set(crate::chance::now(), server);
        }
    }

    fn set(&self, own: Timestamp, server: Timestamp) {
        let ahead_s = own.duration_since(server).as_secs();
        let is_apart = ahead_s.abs() >= UNSURE_S;
        let heard = Heard {
            time: if is_apart { server } else { own },
            at: Instant::now(),
            ahead_s: if is_apart { ahead_s } else { 0 },
        };
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(heard);
    }

    fn last(&self) -> Option<Heard> {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_clouds_time_is_the_servers_wherever_the_own_calendar_is() {
        const DAY_S: i64 = 86_400;
        for ahead_s in [-DAY_S, -5, 5, DAY_S] {
            let clock = Clock::start();
            clock.set(at(1_700_000_000 + ahead_s), at(1_700_000_000));
            assert_eq!(clock.ahead_s(), Some(ahead_s));
            let since = clock.cloud().duration_since(at(1_700_000_000)).as_secs();
            assert!((0..60).contains(&since), "{since}");
        }
    }

    #[test]
    fn what_an_answer_cannot_show_is_no_difference() {
        let clock = Clock::start();
        assert_eq!(clock.ahead_s(), None);
        clock.set(at(1_700_000_001), at(1_700_000_000));
        assert_eq!(clock.ahead_s(), Some(0));
        let since = clock.cloud().duration_since(at(1_700_000_001)).as_secs();
        assert!((0..60).contains(&since), "{since}");
    }

    #[test]
    fn a_servers_time_is_in_the_head_of_its_answers() {
        let clock = Clock::start();
        let mut headers = HeaderMap::new();
        headers.insert(TIME_HEADER, "no time".parse().unwrap());
        clock.hear(&headers);
        assert_eq!(clock.ahead_s(), None);
        headers.insert(TIME_HEADER, "1994-11-06T08:49:37.5Z".parse().unwrap());
        clock.hear(&headers);
        let since = clock.cloud().duration_since(at(784_111_777)).as_secs();
        assert!((0..60).contains(&since), "{since}");
        assert!(clock.ahead_s().unwrap() > 0);
    }
}
