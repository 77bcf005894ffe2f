//! Places for those who follow what changes: by a watch, by a poll, or how far a transfer is.
//!
//! **Owns:** how many there are at a time, in all and on one connection; by which kinds they are taken, which `/metrics`
//! shows.
//!
//! **Does not know:** what they are told, and when they leave.
//!
//! Followers of one HTTP/2 connection leave some of its streams to requests that end by themselves. Else the next request
//! would wait for a stream for as long as a watch is open, and its client would not know why.
//!
//! **Start here:** [`Places::take`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::Problem;
use model::Kind;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits::Rates;

/// How many follow something on one HTTP/2 connection.
pub const CONNECTION_MAX: u32 = 200;

/// How somebody follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// A stream of what happens.
    Watch,
    /// A request for the next thing that happens.
    Poll,
}

/// The places of a server, each of which is free or taken.
#[derive(Debug)]
pub struct Places {
    watches: usize,
    polls: usize,
    taken: Mutex<BTreeMap<(Way, Kind), usize>>,
}

/// The places of one HTTP/2 connection.
#[derive(Debug, Clone)]
pub struct OfConnection(Arc<Semaphore>);

impl Default for OfConnection {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(CONNECTION_MAX as usize)))
    }
}

impl Places {
    /// As many as that, all free.
    pub fn new(rates: Rates) -> Self {
        Self {
            watches: rates.watches,
            polls: rates.polls,
            taken: Mutex::default(),
        }
    }

    /// Somebody follows a kind, for as long as the place is kept. A connection that takes one request at a time has no
    /// places of its own.
    pub fn take(
        self: &Arc<Self>,
        way: Way,
        kind: Kind,
        connection: Option<&OfConnection>,
    ) -> Result<Place, Problem> {
        let of_connection = connection.map(|own| own.0.clone().try_acquire_owned());
        let of_connection = of_connection.transpose().map_err(|_| way.none_on_connection())?;
        let mut taken = self.taken();
        let of_way = taken.iter().filter(|((other, _), _)| *other == way);
        if of_way.map(|(_, count)| count).sum::<usize>() >= self.max(way) {
            return Err(way.none());
        }
        *taken.entry((way, kind)).or_default() += 1;
        drop(taken);
        Ok(Place {
            places: self.clone(),
            way,
            kind,
            _of_connection: of_connection,
        })
    }

    /// How many follow each kind that was ever followed.
    pub fn taken_by_kind(&self) -> BTreeMap<Kind, usize> {
        let mut kinds = BTreeMap::new();
        for ((_, kind), count) in self.taken().iter() {
            *kinds.entry(*kind).or_default() += count;
        }
        kinds
    }

    fn max(&self, way: Way) -> usize {
        match way {
            Way::Watch => self.watches,
            Way::Poll => self.polls,
        }
    }

    fn taken(&self) -> MutexGuard<'_, BTreeMap<(Way, Kind), usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place that is taken.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    way: Way,
    kind: Kind,
    _of_connection: Option<OwnedSemaphorePermit>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(count) = self.places.taken().get_mut(&(self.way, self.kind)) {
            *count = count.saturating_sub(1);
        }
    }
}

impl Way {
    const fn code(self) -> &'static str {
        match self {
            Self::Watch => "too-many-watches",
            Self::Poll => "too-many-polls",
        }
    }

    fn none(self) -> Problem {
        let detail = match self {
            Self::Watch => "as many watches are open as may be: end those that nobody reads, or try again",
            Self::Poll => "as many clients wait for changes as may: try again, or use a watch (`watch=true`)",
        };
        Problem::new(429, self.code(), detail)
    }

    fn none_on_connection(self) -> Problem {
        let detail = format!(
            "{CONNECTION_MAX} watches and polls are open on this HTTP/2 connection, which is as many as may be: end some \
             of them, or open another connection"
        );
        Problem::new(429, self.code(), detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_taken_until_it_is_left_and_counted_once() {
        let rates = Rates {
            watches: 2,
            polls: 1,
            ..Rates::default()
        };
        let places = Arc::new(Places::new(rates));
        let watch = |kind| places.take(Way::Watch, kind, None);
        let (vm, image) = (watch(Kind::Vm).unwrap(), watch(Kind::Image).unwrap());
        assert_eq!(watch(Kind::Vm).unwrap_err().code, "too-many-watches");
        let poll = places.take(Way::Poll, Kind::Vm, None).unwrap();
        let refused = places.take(Way::Poll, Kind::Image, None).unwrap_err();
        assert_eq!(refused.code, "too-many-polls");
        let taken = || places.taken_by_kind();
        assert_eq!(taken(), BTreeMap::from([(Kind::Vm, 2), (Kind::Image, 1)]));
        drop((vm, poll));
        assert_eq!(taken(), BTreeMap::from([(Kind::Vm, 0), (Kind::Image, 1)]));
        watch(Kind::Vm).unwrap();
        drop(image);
    }

    #[test]
    fn one_connection_does_not_take_the_places_of_another() {
        let places = Arc::new(Places::new(Rates::default()));
        let (one, other) = (OfConnection::default(), OfConnection::default());
        let take = |on| places.take(Way::Watch, Kind::Vm, Some(on));
        let mut kept: Vec<_> = (0..CONNECTION_MAX).map(|_| take(&one).unwrap()).collect();
        assert_eq!(take(&one).unwrap_err().code, "too-many-watches");
        take(&other).unwrap();
        kept.pop();
        take(&one).unwrap();
    }
}
