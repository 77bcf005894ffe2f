//! What servers have under way: futures of the product's own code, polled in an order that a seed repeats.
//!
//! **Owns:** the futures, and which of them was woken.
//!
//! **Does not know:** what they do, and the time that they wait for: see [`crate::time`].
//!
//! **Start here:** [`Tasks::run`].

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use tokio::sync::Notify;

/// What is done somewhere.
pub(crate) type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

type Woken = Arc<Mutex<BTreeSet<u64>>>;

struct Alarm {
    task: u64,
    woken: Woken,
    bell: Arc<Notify>,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
        woken.insert(self.task);
        drop(woken);
        self.bell.notify_one();
    }
}

struct Task {
    owner: usize,
    work: Work,
    waker: Waker,
}

/// All that is under way.
#[derive(Default)]
pub(crate) struct Tasks {
    tasks: BTreeMap<u64, Task>,
    woken: Woken,
    /// Rings when something is woken, for whoever has nothing else to do.
    pub(crate) bell: Arc<Notify>,
    next: u64,
}

impl Tasks {
    /// Begins something at the next [`Tasks::run`]; it ends with its owner.
    pub(crate) fn spawn(&mut self, owner: usize, work: impl Future<Output = ()> + Send + 'static) {
        self.next += 1;
        let alarm = Arc::new(Alarm {
            task: self.next,
            woken: self.woken.clone(),
            bell: self.bell.clone(),
        });
        alarm.clone().wake();
        let task = Task {
            owner,
            work: Box::pin(work),
            waker: alarm.into(),
        };
        self.tasks.insert(self.next, task);
    }

    /// An owner is gone: what it had under way stays where it is.
    pub(crate) fn end(&mut self, owner: usize) {
        self.tasks.retain(|_, task| task.owner != owner);
    }

    /// Goes on with everything until all of it waits. The oldest that was woken comes first: in which order wakers were
    /// called is not the seed's to say.
    pub(crate) fn run(&mut self) {
        loop {
            let next = {
                let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
                woken.pop_first()
            };
            let Some(id) = next else { return };
            let Some(task) = self.tasks.get_mut(&id) else {
                continue;
            };
            let waker = task.waker.clone();
            if task.work.as_mut().poll(&mut Context::from_waker(&waker)) == Poll::Ready(()) {
                self.tasks.remove(&id);
            }
        }
    }
}
