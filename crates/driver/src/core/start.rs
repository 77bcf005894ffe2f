//! When the steps of a start began and ended: for people, who want to know where the time goes.
//!
//! **Does not know:** what the steps are for. Nothing depends on these times, and an agent that is started again knows
//! none of those before it.

use model::report::{StartStep, StepTime};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct StartTimes {
    /// When the first step began.
    begun_us: Option<u64>,
    /// The effect under way began.
    effect_us: u64,
    /// The step under way, and when it began.
    now: Option<(StartStep, u64)>,
    ended: Vec<StepTime>,
}

impl StartTimes {
    /// An effect begins, and with it a step if it is one.
    pub(super) fn begins(&mut self, step: Option<StartStep>, now_us: u64) {
        self.begun_us.get_or_insert(now_us);
        self.effect_us = now_us;
        self.now = step.map(|step| (step, now_us));
    }

    /// The effect under way consisted of these steps, counted from its own beginning.
    pub(super) fn had(&mut self, steps: &[StepTime]) {
        let before_ms = self.since_begin_ms(self.effect_us);
        for step in steps {
            self.keep(StepTime {
                begun_ms: before_ms + step.begun_ms,
                ..*step
            });
        }
    }

    /// The step under way has ended, and this one begins.
    pub(super) fn follows(&mut self, step: StartStep, now_us: u64) {
        self.follows_nothing(now_us);
        self.now = Some((step, now_us));
    }

    /// The last step has ended.
    pub(super) fn follows_nothing(&mut self, now_us: u64) {
        if let Some((step, from_us)) = self.now.take() {
            self.keep(StepTime {
                step,
                begun_ms: self.since_begin_ms(from_us),
                took_ms: now_us.saturating_sub(from_us) / 1000,
            });
        }
    }

    /// What follows is not the start's time.
    pub(super) fn ends(&mut self) {
        self.now = None;
    }

    pub(super) fn is_at(&self, step: StartStep) -> bool {
        self.now.is_some_and(|(now, _)| now == step)
    }

    /// Those that have ended, in their order.
    pub(super) fn steps(&self) -> &[StepTime] {
        &self.ended
    }

    /// A step that was made again counts as it was made last.
    fn keep(&mut self, step: StepTime) {
        self.ended.retain(|other| other.step != step.step);
        self.ended.push(step);
    }

    fn since_begin_ms(&self, us: u64) -> u64 {
        us.saturating_sub(self.begun_us.unwrap_or(us)) / 1000
    }
}
