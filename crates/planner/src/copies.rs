//! Copies of VMs' root disks: a VM, or an image, that is a copy of a VM's disk waits until that is made, which is done by that
//! VM's incarnation.
//!
//! **Owns:** which copies are due, which of them a source makes now, and what becomes of those that wait.
//!
//! **Does not know:** how a disk is copied.
//!
//! Only the holder of a VM's open incarnation touches its disk, so a copy is made by that: beside the guest while it runs,
//! or by an incarnation for nothing else (`Goal::Copy`) while it does not, so that it cannot start elsewhere meanwhile. The
//! order is in the source's intent, as its migration is: what excludes each other is decided by compares.
//!
//! **Start here:** [`Step::copies`] and [`Step::awaited_copy`].

use std::collections::BTreeSet;

use model::copy::{CopyShape, CopyTo};
use model::host::Reserved;
use model::image::ImageStatus;
use model::report::{CopyState, RunState, RunStatus};
use model::vm::{Consistency, Copied, Ended, Goal, Open, Outcome, Start, VmIntent};
use model::{HostId, ImageId, Incarnation, Kind, Reason, Timestamp, VmId, key};

use crate::flatten::{disk_bytes_of, image_of};
use crate::plan::{Decision, Plan};
use crate::view::View;
use crate::vm::{Step, reserve};

/// How many copies of one disk are made at once; the others wait for their turn.
pub const COPIES_PER_SOURCE: usize = 2;
/// How many copies are made on one host at once.
pub const COPIES_PER_HOST: usize = 4;

/// Of what kind a copy of this VM's disk is: whole for an image, and for a VM that shall not depend on its source's image.
pub(crate) fn shape(view: &View, source: VmId, to: CopyTo) -> CopyShape {
    let CopyTo::Vm(to) = to else {
        return CopyShape {
            whole: true,
            bytes: None,
        };
    };
    let (Some(of), Some(own)) = (view.vms.get(&source), view.vms.get(&to)) else {
        return CopyShape::default();
    };
    let bytes = disk_bytes_of(view, own);
    let is_over_none = own
        .object
        .as_ref()
        .is_some_and(|at| at.value.spec.image.is_none());
    CopyShape {
        whole: image_of(of).is_some() && is_over_none,
        bytes: bytes.filter(|bytes| Some(*bytes) > disk_bytes_of(view, of)),
    }
}

/// Where a VM stands whose disk is not the copy yet that it shall be.
pub(crate) enum Awaited {
    /// It waits, and for what.
    Comes(Reason),
    /// There is nothing any more to be copied.
    NeverComes(Reason),
}

impl Step<'_> {
    /// What waits for a copy of this one's disk now.
    fn due(&self) -> impl Iterator<Item = CopyTo> + '_ {
        let others = self.view.copies_of(self.id).filter(|to| match to {
            CopyTo::Vm(id) => {
                let step = Step::of(self.view, *id, self.now);
                step.is_some_and(|step| step.starts())
            }
            CopyTo::Image(image) => self.may_be_captured(*image),
            CopyTo::Itself { .. } => true,
        });
        others.chain(self.flatten_due())
    }

    /// Whether its host makes copies of its disk that are still wanted.
    pub(crate) fn copies_are_under_way(&self, open: &Open) -> bool {
        self.due().any(|to| open.copies.contains(&to))
    }

    /// The copies that its host shall make with this goal. None is begun while something else waits for those before it.
    pub(crate) fn copies(&self, open: &Open, goal: Goal) -> BTreeSet<CopyTo> {
        if !matches!(goal, Goal::Run { .. } | Goal::Copy) {
            return BTreeSet::new();
        }
        let is_wanted =
            self.is_asked(&self.intent()) || self.view.active_migrations(self.id).next().is_some();
        let due = self.apart(self.due(), &open.copies);
        let gives_way = match goal {
            Goal::Copy => self.waits_at_rest(),
            _ => is_wanted,
        };
        let goes_on = |to: &&CopyTo| open.copies.contains(to) && !(gives_way && to.is_itself());
        let mut copies: BTreeSet<CopyTo> = due.iter().filter(goes_on).copied().collect();
        let run = self.vm.runs.get(&open.incarnation);
        let is_here =
            run.is_some_and(|run| run.ran && matches!(run.state, RunState::Running | RunState::Paused));
        if is_here && !is_wanted && goal != Goal::Copy && !open.has_to_go_on(run) {
            let room = self.room(self.intent().host, open).saturating_sub(copies.len());
            let more: Vec<CopyTo> = due.difference(&copies).copied().take(room).collect();
            copies.extend(more);
        }
        copies
    }

    /// How many copies of this VM may be made at once.
    fn room(&self, host: Option<HostId>, own: &Open) -> usize {
        let on_host: usize = host.map_or(0, |host| copies_on(self.view, host));
        let by_others = on_host.saturating_sub(own.copies.len());
        COPIES_PER_SOURCE.min(COPIES_PER_HOST.saturating_sub(by_others))
    }

    /// From now on there may be files of that VM: a part of its disk, at first. The plan holds only while it is not deleted.
    pub(crate) fn own_files(&self, plan: &mut Plan, to: VmId) {
        if let Some(step) = Step::of(self.view, to, self.now) {
            step.rely_on_object(plan);
            step.set_intent(
                plan,
                &VmIntent {
                    has_volumes: true,
                    ..step.intent()
                },
            );
        }
    }

    /// What its host has said of copies, as far as somebody waits for it.
    pub(crate) fn note_copies(&self, open: &Open, run: &RunStatus) -> Option<Plan> {
        let mut plan = self.begin("note the copies of");
        for to in self.due() {
            let state = run.copies.get(&to);
            // It ended without a word: to ask again by itself might be in vain for ever.
            let has_ended = run.state.is_closed() && open.goal == Goal::Copy && open.copies.contains(&to);
            let ended = has_ended.then(|| ended_reason(run));
            let id = match to {
                CopyTo::Vm(id) => id,
                CopyTo::Image(image) => {
                    let reason = match state {
                        Some(CopyState::Failed { reason }) => Some(reason.clone()),
                        _ => ended,
                    };
                    if let Some(reason) = reason {
                        fail_image(self.view, &mut plan, image, reason);
                    }
                    continue;
                }
                CopyTo::Itself { request } => {
                    self.note_flatten(&mut plan, request, state, ended);
                    continue;
                }
            };
            let clone = Step::of(self.view, id, self.now)?;
            match state {
                Some(CopyState::Made { is_frozen }) => {
                    let copied = Copied {
                        at: self.now,
                        consistency: self.consistency(open, *is_frozen),
                    };
                    clone.rely_on_object(&mut plan);
                    let intent = VmIntent {
                        copied: Some(copied),
                        has_volumes: true,
                        placement: None,
                        // One that is whole is over nothing.
                        layer: self.intent().layer.filter(|_| clone.spec().image.is_some()),
                        flattening: self.whole_of_copy(&clone),
                        ..clone.intent()
                    };
                    clone.set_intent(&mut plan, &intent);
                }
                Some(CopyState::Failed { reason }) => clone.fail(&mut plan, reason.clone()),
                _ if has_ended => clone.fail(&mut plan, ended_reason(run)),
                _ => {}
            }
        }
        let revision = self.vm.run_revisions.get(&open.incarnation).copied()?;
        plan.rely(key::vm_run(self.id, open.incarnation), revision);
        (!plan.writes.is_empty()).then_some(plan)
    }

    /// What the file systems in a copy are.
    fn consistency(&self, open: &Open, is_frozen: bool) -> Consistency {
        let ended = self.intent().ended.map(|ended| ended.outcome);
        match (open.goal, &open.start) {
            (Goal::Copy, Start::Disk) if matches!(ended, None | Some(Outcome::Off)) => Consistency::Off,
            _ if is_frozen => Consistency::Frozen,
            _ => Consistency::CrashConsistent,
        }
    }

    /// Its disk will not be made, until somebody asks again.
    fn fail(&self, plan: &mut Plan, reason: Reason) {
        let intent = self.intent();
        let ended = Ended {
            incarnation: intent.last_incarnation,
            at: self.now,
            outcome: Outcome::Failed,
            reason: Some(reason),
        };
        self.rely_on_object(plan);
        self.set_intent(
            plan,
            &VmIntent {
                answered_request: self.spec().power_request,
                ended: Some(ended),
                placement: None,
                ..intent
            },
        );
    }

    /// The same as a plan of its own.
    pub(crate) fn fail_copy(&self, reason: Reason) -> Plan {
        let mut plan = self.begin("give up the copy for");
        self.fail(&mut plan, reason);
        plan
    }

    /// Nothing of it runs: an incarnation for the copies that are due, if there are any.
    pub(crate) fn copy_at_rest(&self) -> Decision {
        let intent = self.intent();
        let is_clear = || {
            self.view
                .active_migrations(self.id)
                .all(|(_, migration)| migration.intent.is_none())
        };
        let due = self.apart(self.due(), &BTreeSet::new());
        let due: BTreeSet<CopyTo> = due.into_iter().take(COPIES_PER_SOURCE).collect();
        if due.is_empty() || !intent.has_volumes || !is_clear() {
            return Decision::nothing();
        }
        let Some(host) = self.copying_host(intent.host) else {
            return Decision::wait_for_room();
        };
        let incarnation = intent.last_incarnation.next();
        let mut plan = self.begin("copy the disk of");
        for to in due.iter().filter_map(|to| to.vm()) {
            self.own_files(&mut plan, to);
        }
        // It takes nothing of what is there for guests.
        let reserved = Reserved {
            incarnation,
            memory_mib: 0,
            vcpus: 0,
        };
        reserve(self.view, &mut plan, host, self.id, reserved);
        let open = Open {
            incarnation,
            granted_at: self.now,
            goal: Goal::Copy,
            start: intent.saved.clone().map_or(Start::Disk, Start::Saved),
            memory_mib: 0,
            vcpus: 0,
            resume: false,
            reboot: None,
            copies: due,
        };
        let intent = VmIntent {
            last_incarnation: incarnation,
            host: Some(host),
            saved: None,
            open: Some(open),
            ..intent
        };
        self.set_intent(&mut plan, &intent);
        plan.into()
    }

    /// A host that is heard: its own, or else any that has no more to copy than it may.
    fn copying_host(&self, own: Option<HostId>) -> Option<HostId> {
        let can = |id: &HostId| {
            let host = self.view.hosts.get(id);
            let is_heard =
                host.is_some_and(|host| !host.is_dead() && !host.is_silent() && host.status.is_some());
            is_heard && copies_on(self.view, *id) < COPIES_PER_HOST
        };
        let is_open = |id: &HostId| {
            let host = self.view.hosts.get(id);
            host.is_some_and(|host| !host.is_cordoned() && host.drain().is_none())
        };
        let others = || self.view.hosts.keys().copied().filter(is_open);
        own.into_iter().chain(others()).find(can)
    }

    /// Why this VM cannot be placed yet: its disk is to be a copy, and is not made.
    pub(crate) fn awaited_copy(&self) -> Option<Awaited> {
        let source = self.spec().clone_of?;
        if self.intent().copied.is_some() {
            return None;
        }
        let step = Step::of(self.view, source, self.now);
        let step = step.filter(|step| step.object.value.meta.deleted_at.is_none());
        let Some(step) = step else {
            let message = "the VM that it is a copy of was deleted before its disk was copied: delete this one too, and \
                           create it of another VM or of an image";
            return Some(Awaited::NeverComes(Reason::new("clone-source-gone", message)));
        };
        let name = &step.object.value.meta.name;
        let (code, message) = step.stands(self.id.into(), name);
        Some(Awaited::Comes(Reason::new(code, message)))
    }

    /// What a copy of this VM waits for.
    fn stands(&self, to: CopyTo, name: &str) -> (&'static str, String) {
        let what = match to {
            CopyTo::Vm(_) => "its disk",
            CopyTo::Image(_) | CopyTo::Itself { .. } => "its content",
        };
        let intent = self.intent();
        let Some(open) = &intent.open else {
            return if !intent.has_volumes && !self.starts() {
                (
                    "clone-source-empty",
                    format!("VM {name} has no disk yet to be copied: start it"),
                )
            } else if self.starts() {
                (
                    "clone-source-starts",
                    format!("{what} is copied from VM {name} when that runs: `sterna vm explain {name}`"),
                )
            } else {
                (
                    "clone-waits",
                    format!("{what} is copied from VM {name} when a host has a turn for it"),
                )
            };
        };
        let host = intent.host.and_then(|host| self.view.hosts.get(&host));
        if host.is_some_and(|host| host.is_silent()) {
            let message = format!(
                "{what} is copied from VM {name}, whose host is not heard: `sterna vm explain {name}`"
            );
            return ("clone-source-unknown", message);
        }
        if open.copies.contains(&to) {
            return ("disk-copying", format!("{what} is being copied from VM {name}"));
        }
        if Self::is_made_whole(open) {
            let message = format!(
                "{what} is copied from VM {name} when that VM's own disk is made whole (`sterna vm flatten`)"
            );
            return ("clone-waits", message);
        }
        if open.copies.is_empty() {
            let message =
                format!("{what} is copied from VM {name} when that is not being started, stopped or moved");
            return ("clone-source-busy", message);
        }
        let message = format!("{what} is copied from VM {name} after the copies of it that are being made");
        ("clone-waits", message)
    }

    /// Whether a host may still write into this VM's directory: it makes its disk, or has not said that it does not any more.
    pub(crate) fn is_being_written(&self) -> bool {
        let Some(source) = self.spec().clone_of.and_then(|source| self.view.vms.get(&source)) else {
            return false;
        };
        let open = source.intent.as_ref().and_then(|at| at.value.open.as_ref());
        open.is_some_and(|open| {
            let run = source.runs.get(&open.incarnation);
            let own = CopyTo::Vm(self.id);
            let is_at_it = run.is_some_and(|run| !run.state.is_closed() && run.copies.contains_key(&own));
            open.copies.contains(&own) || is_at_it
        })
    }
}

/// How many copies are made on a host.
fn copies_on(view: &View, host: HostId) -> usize {
    let open = |vm: VmId| view.vms.get(&vm)?.intent.as_ref()?.value.open.as_ref();
    view.vms_of_host(host)
        .filter_map(open)
        .map(|open| open.copies.len())
        .sum()
}

fn ended_reason(run: &RunStatus) -> Reason {
    let unknown = || {
        Reason::new(
            "copy-failed",
            "the host that copied its disk ended that without saying why: try again with `sterna vm retry`",
        )
    };
    run.reason.clone().unwrap_or_else(unknown)
}

/// There will be no content, until somebody asks again.
fn fail_image(view: &View, plan: &mut Plan, image: ImageId, reason: Reason) {
    let Some(found) = view.images.get(&image.0) else {
        return;
    };
    let Some(object) = &found.object else { return };
    let revision = found.status.as_ref().map_or(0, |at| at.revision);
    plan.rely(key::object(Kind::Image, image.0), object.revision);
    plan.replace(key::image_status(image), revision, &ImageStatus::failed(reason));
}

/// What waits for a copy of this VM's disk, by kind and name: it is not deleted under them.
pub fn waiting_for(view: &View, source: VmId) -> Vec<(Kind, &str)> {
    let spec = view.vms.get(&source).and_then(|vm| vm.object.as_ref());
    let own = spec.and_then(|at| Some(at.value.spec.builds.as_ref()?.image));
    let waits = |to: CopyTo| {
        // The image that it is there for goes with it.
        if own.is_some_and(|own| to == own.into()) {
            return None;
        }
        let (kind, id) = match to {
            CopyTo::Vm(vm) => (Kind::Vm, vm.0),
            CopyTo::Image(image) => (Kind::Image, image.0),
            CopyTo::Itself { .. } => return None,
        };
        let meta = view.meta(kind, id)?;
        let waits = to.vm().is_none_or(|id| {
            let step = Step::of(view, id, meta.updated_at);
            meta.deleted_at.is_none() && step.is_some_and(|step| step.starts())
        });
        waits.then_some((kind, meta.name.as_str()))
    };
    view.copies_of(source).filter_map(waits).collect()
}

/// What an image waits for that is a copy of a VM's disk; `Err`: that there is nothing any more to be copied.
pub fn awaited_by_image(view: &View, image: ImageId, now: Timestamp) -> Option<Result<Reason, Reason>> {
    let source = view.images.get(&image.0)?.object.as_ref()?.value.spec.from_vm?;
    let step = Step::of(view, source, now);
    let step = step.filter(|step| step.object.value.meta.deleted_at.is_none());
    let Some(step) = step else {
        let message = "the VM that it is a copy of was deleted before its disk was copied: make it of another VM, or delete it";
        return Some(Err(Reason::new("clone-source-gone", message)));
    };
    let (code, message) = step.stands(image.into(), &step.object.value.meta.name);
    Some(Ok(Reason::new(code, message)))
}

/// Who has made a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copier {
    /// The host.
    pub host: HostId,
    /// The incarnation of the VM whose disk it is.
    pub incarnation: Incarnation,
    /// Whether the guest's file systems were frozen.
    pub is_frozen: bool,
}

/// Of which instant the copy is that whoever has made it was told to make for an image.
pub fn made_for_image(view: &View, image: ImageId, by: Copier, now: Timestamp) -> Option<Copied> {
    let source = view.images.get(&image.0)?.object.as_ref()?.value.spec.from_vm?;
    let step = Step::of(view, source, now)?;
    let intent = step.intent();
    let open = intent.open.as_ref().filter(|_| intent.host == Some(by.host))?;
    let is_told = open.incarnation == by.incarnation && open.copies.contains(&image.into());
    is_told.then(|| Copied {
        at: now,
        consistency: step.consistency(open, by.is_frozen),
    })
}
