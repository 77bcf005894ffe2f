//! A core without times and numbers: for a search, which lets every timer ring at every step.
//!
//! What is left decides what follows. Every wait is over, every deadline has just begun, and the next effect is the
//! first; so two cores that differ only in when they came to a state are equal.

use super::Core;
use super::pace::Pace;
use crate::types::{Effect, EffectId};

impl Core {
    /// The effect that is waited for.
    pub fn under_way(&self) -> Option<(EffectId, &Effect)> {
        self.under_way.as_ref().map(|(id, effect)| (*id, effect))
    }

    /// Forgets times, tries and numbers. The document that is held is of revision 1 from now on.
    pub fn forget_time(&mut self) {
        self.revision = self.revision.min(1);
        self.last_effect = 0;
        self.timer_us = None;
        self.pace = Pace::new(self.id);
        self.memory.forget_time();
        if let Some((id, _)) = &mut self.under_way {
            *id = EffectId(0);
        }
        if let Some(reported) = &mut self.reported {
            reported.status.document_revision = self.revision;
            reported.status.steps.clear();
        }
    }
}
