//! How long the steps of one effect take.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use model::report::{StartStep, StepTime};

pub(super) struct Stopwatch {
    begun: Instant,
    steps: Mutex<Vec<StepTime>>,
}

impl Stopwatch {
    pub(super) fn start() -> Self {
        Self {
            begun: Instant::now(),
            steps: Mutex::default(),
        }
    }

    /// Waits for a step and notes how long it took, however it ends.
    pub(super) async fn time<T>(&self, step: StartStep, work: impl Future<Output = T>) -> T {
        let begun = self.begun.elapsed();
        let ended = work.await;
        let took = self.begun.elapsed().saturating_sub(begun);
        self.steps
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(StepTime {
                step,
                begun_ms: ms(begun),
                took_ms: ms(took),
            });
        ended
    }

    /// Those that have ended.
    pub(super) fn steps(&self) -> Vec<StepTime> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
