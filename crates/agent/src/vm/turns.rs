//! Whose turn it is: of the work that loads a host, only so much is done at once, and the rest waits in a queue.
//!
//! **Owns:** how many starts and how many transfers of saved states a host does at a time, and the order in which VMs get
//! there: that in which they came. A VM waits for one thing at a time, and after its turn it comes last, so that none is
//! kept waiting by another one's repeats.
//!
//! **Does not know:** what is done in a turn, nor how long it may take: that counts from the turn on, never from the
//! request.
//!
//! What guests wait for or what frees a host (a kill, a switch-over, a shutdown) needs no turn. Migrations need none
//! either: the controller bounds how many a host takes part in.
//!
//! **Start here:** [`Turns::take`].

use std::sync::Arc;

use driver::types::Effect;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many saved states are written or read at once. More of them would not be faster on one disk, and a guest stands
/// still while its state is written.
const STATES: usize = 2;
/// How many VMs are being made ready and their processes started at once, at least; as many as processors if that is more.
const STARTS_MIN: usize = 2;

/// The queues of a host.
#[derive(Debug)]
pub struct Turns {
    starts: Arc<Semaphore>,
    states: Arc<Semaphore>,
}

/// A turn; it is over when this is dropped.
#[derive(Debug)]
pub struct Turn {
    _permit: OwnedSemaphorePermit,
}

/// What a turn is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Disk, ports and process.
    Start,
    /// Memory, from or to a file.
    State,
}

impl Work {
    /// What an effect needs, if anything. The turn of `Prepare` lasts until the process is there.
    pub fn of(effect: &Effect) -> Option<Self> {
        match effect {
            Effect::Prepare { as_target: false } => Some(Self::Start),
            Effect::Save { .. } | Effect::LoadSaved { .. } | Effect::Warm => Some(Self::State),
            _ => None,
        }
    }
}

impl Turns {
    /// The queues of a host with so many processors.
    pub fn new(cpus: usize) -> Self {
        Self {
            starts: Arc::new(Semaphore::new(cpus.max(STARTS_MIN))),
            states: Arc::new(Semaphore::new(STATES)),
        }
    }

    /// Waits for a turn, unless `given_up` ends first.
    pub async fn take(&self, work: Work, given_up: impl Future<Output = ()>) -> Option<Turn> {
        let queue = match work {
            Work::Start => &self.starts,
            Work::State => &self.states,
        };
        tokio::select! {
            biased;
            // It is never closed.
            permit = Arc::clone(queue).acquire_owned() => permit.ok().map(|permit| Turn { _permit: permit }),
            () = given_up => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::Mutex;
    use std::time::Duration;

    use tokio::task::JoinSet;
    use tokio::time::sleep;

    use super::*;

    const VMS: usize = 100;
    const TIMES: usize = 3;

    #[tokio::test(start_paused = true)]
    async fn a_hundred_vms_get_their_turns_one_after_the_other_and_few_at_once() {
        let turns = Arc::new(Turns::new(4));
        // Who began, and how many were at it.
        let begun = Arc::new(Mutex::new((Vec::new(), 0_usize, 0_usize)));
        let mut all = JoinSet::new();
        for vm in 0..VMS {
            let (turns, begun) = (Arc::clone(&turns), Arc::clone(&begun));
            all.spawn(async move {
                for _ in 0..TIMES {
                    let turn = turns.take(Work::Start, pending()).await;
                    {
                        let mut begun = begun.lock().unwrap();
                        begun.0.push(vm);
                        begun.1 += 1;
                        begun.2 = begun.1.max(begun.2);
                    }
                    sleep(Duration::from_secs(1)).await;
                    begun.lock().unwrap().1 -= 1;
                    drop(turn);
                }
            });
        }
        while all.join_next().await.is_some() {}
        let (order, _, most) = std::mem::take(&mut *begun.lock().unwrap());
        assert_eq!(most, 4);
        // Nobody has a second turn before everybody has had the first.
        for round in order.chunks(VMS) {
            let mut round = round.to_vec();
            round.sort_unstable();
            assert_eq!(round, (0..VMS).collect::<Vec<_>>());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_leaves_no_gap_and_states_do_not_wait_for_starts() {
        let turns = Turns::new(1);
        let held: Vec<_> = [
            turns.take(Work::Start, pending()).await,
            turns.take(Work::Start, pending()).await,
        ]
        .into();
        let given_up = turns.take(Work::Start, sleep(Duration::from_secs(1))).await;
        assert!(given_up.is_none());
        assert!(turns.take(Work::State, pending()).await.is_some());
        drop(held);
        assert!(turns.take(Work::Start, async {}).await.is_some());
    }
}
