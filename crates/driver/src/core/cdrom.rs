//! The drive for media of a guest that is here: what is in it, and whether it is booted from.
//!
//! A machine has its drive from its start with the medium that was wanted then; what is wanted later is changed in QEMU. What
//! QEMU says is in the drive decides, so a change that a crash cut short is made again.
//!
//! A guest that is saved or handed over takes along what it knows of its drive, and the QEMU that loads it gets what is
//! wanted. So both wait until the two are the same.

use super::{Core, Desired, Plan};
use crate::types::{Effect, QemuState};

impl Core {
    /// The next step towards what is wanted of the drive; `None` if there is none, or no drive.
    pub(super) fn plan_cdrom(&self, state: &QemuState) -> Option<Plan> {
        let Desired::Ordered(document) = &self.desired else {
            return None;
        };
        let machine = &document.machine;
        let (wanted, present) = (machine.cdrom.as_ref()?, state.cdrom.as_ref()?);
        let medium = wanted.medium.as_ref().map(|image| &image.sha256);
        if medium != present.medium.as_ref() {
            Some(Plan::act(Effect::ChangeMedium))
        } else if machine.boot != present.boot {
            Some(Plan::act(Effect::SetBoot))
        } else {
            None
        }
    }
}
