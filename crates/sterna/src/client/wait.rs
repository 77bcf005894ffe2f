//! Waiting for objects to become what a command leads to.
//!
//! **Owns:** whether an object has reached a goal, or no longer can ([`Goal`]); following the watch until all have.
//!
//! **Does not know:** how to ask for it: that has happened before.
//!
//! **Start here:** [`Goal`], then [`until`].

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use api::client::{ClientError, ObjectOf};
use api::kinds::{Image, ImageState, Migration, Vm};
use api::{ChangeType, Resource};
use futures_util::StreamExt;
use model::lifecycle::{Availability, Phase};
use model::migration::MigrationPhase;
use model::vm::Power;
use model::{Kind, Reason};
use serde_json::Value;
use tokio::time::Instant;
use uuid::Uuid;

use super::{Context, report};
use crate::cli::{Rebooted, WaitState};
use crate::units;

/// The first pause before a broken watch is taken up again; it doubles up to [`PAUSE_MAX`].
pub(super) const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Where an object stands on its way to a goal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is there.
    Reached,
    /// It will not get there, and why.
    Impossible(String),
    /// It may get there.
    NotYet,
}

/// What is waited for.
pub(super) trait Goal<R: Resource> {
    /// Where an object stands.
    fn judge(&self, object: &ObjectOf<R>) -> Verdict;

    /// What the object shall be, in a word.
    fn word(&self) -> String;

    /// What it means that the object is gone.
    fn gone(&self) -> Verdict {
        Verdict::Impossible("it was deleted".to_owned())
    }
}

/// The object's end.
pub(super) struct Gone;

impl<R: Resource> Goal<R> for Gone {
    fn judge(&self, _: &ObjectOf<R>) -> Verdict {
        Verdict::NotYet
    }

    fn word(&self) -> String {
        "gone".to_owned()
    }

    fn gone(&self) -> Verdict {
        Verdict::Reached
    }
}

impl Goal<Vm> for WaitState {
    fn judge(&self, vm: &ObjectOf<Vm>) -> Verdict {
        let phase = vm.status.phase;
        if vm.deleted_at.is_some() || matches!(phase, Phase::Epilog | Phase::Done) {
            return Verdict::Impossible("it is being deleted".to_owned());
        }
        if phase == self.phase() {
            let is_there = *self != Self::Ready || vm.status.ready;
            return if is_there {
                Verdict::Reached
            } else {
                Verdict::NotYet
            };
        }
        let wanted = vm.spec.power.unwrap_or(Power::Running);
        let why = vm.status.reason.as_ref();
        match (self, phase) {
            (_, Phase::Failed) => Verdict::Impossible(because("it is Failed", why)),
            (
                Self::Running | Self::Ready | Self::Paused,
                Phase::Off | Phase::Suspended | Phase::Stopped | Phase::Hold,
            )
            | (Self::Suspended | Self::Stopped, Phase::Off | Phase::Hold)
            | (Self::Suspended, Phase::Stopped)
            | (Self::Stopped, Phase::Suspended)
            | (Self::Off, Phase::Suspended | Phase::Stopped | Phase::Hold) => {
                Verdict::Impossible(because(&format!("it is {phase}"), why))
            }
            // A guest may switch itself off, so that alone can follow from other wishes.
            _ if *self != Self::Off && wanted != power(*self) => Verdict::Impossible(format!(
                "it shall be {} now, as was asked meanwhile",
                shown(wanted)
            )),
            _ => Verdict::NotYet,
        }
    }

    fn word(&self) -> String {
        if *self == Self::Ready {
            "ready".to_owned()
        } else {
            self.phase().to_string()
        }
    }
}

impl Goal<Vm> for Rebooted {
    fn judge(&self, vm: &ObjectOf<Vm>) -> Verdict {
        let (phase, status) = (vm.status.phase, &vm.status);
        if !matches!(phase, Phase::Running | Phase::Migrating | Phase::Unknown) {
            return Verdict::Impossible(because(&format!("it is {phase}"), status.reason.as_ref()));
        }
        let is_there = status.operation.is_none() && (*self == Self::Done || status.ready);
        if is_there {
            Verdict::Reached
        } else {
            Verdict::NotYet
        }
    }

    fn word(&self) -> String {
        match self {
            Self::Done => "rebooted".to_owned(),
            Self::Ready => "rebooted and ready".to_owned(),
        }
    }
}

/// The drive for media is as its VM's spec wants it, or will be when it is started.
pub(super) struct DriveChanged;

impl Goal<Vm> for DriveChanged {
    fn judge(&self, vm: &ObjectOf<Vm>) -> Verdict {
        if vm.deleted_at.is_some() {
            return Verdict::Impossible("it is being deleted".to_owned());
        }
        let Some(drive) = &vm.status.cdrom else {
            let runs = matches!(
                vm.status.availability,
                Availability::Active | Availability::Paused
            );
            return if runs { Verdict::NotYet } else { Verdict::Reached };
        };
        let wanted = vm.spec.cdrom.as_ref().and_then(|cdrom| cdrom.image.as_ref());
        let is_booted = vm.spec.boot.as_ref().is_none_or(|boot| *boot == drive.boot);
        if wanted == drive.image.as_ref() && is_booted {
            Verdict::Reached
        } else {
            Verdict::NotYet
        }
    }

    fn word(&self) -> String {
        "changed".to_owned()
    }
}

/// The disk needs nothing under it.
pub(super) struct DiskWhole;

impl Goal<Vm> for DiskWhole {
    fn judge(&self, vm: &ObjectOf<Vm>) -> Verdict {
        let disk = vm.status.disk.clone().unwrap_or_default();
        if vm.deleted_at.is_some() {
            Verdict::Impossible("it is being deleted".to_owned())
        } else if disk.whole {
            Verdict::Reached
        } else if disk.flattening {
            Verdict::NotYet
        } else {
            Verdict::Impossible(because("its disk is not being made whole", disk.reason.as_ref()))
        }
    }

    fn word(&self) -> String {
        "whole".to_owned()
    }
}

const fn power(state: WaitState) -> Power {
    match state {
        WaitState::Running | WaitState::Ready => Power::Running,
        WaitState::Paused => Power::Paused,
        WaitState::Suspended => Power::Suspended,
        WaitState::Stopped => Power::Stopped,
        WaitState::Off => Power::Off,
        WaitState::Hold => Power::Hold,
    }
}

const fn shown(power: Power) -> &'static str {
    match power {
        Power::Running => "Running",
        Power::Paused => "Paused",
        Power::Suspended => "Suspended",
        Power::Stopped => "Stopped",
        Power::Off => "Off",
        Power::Prepared => "Off, its disk made",
        Power::Hold => "Hold",
    }
}

pub(super) fn because(what: &str, why: Option<&Reason>) -> String {
    why.map_or_else(
        || what.to_owned(),
        |why| format!("{what}: {} ({})", why.message, why.code),
    )
}

/// How a migration shall end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MigrationGoal {
    /// The VM is at its target.
    Done,
    /// The VM stays where it is.
    Aborted,
}

impl Goal<Migration> for MigrationGoal {
    fn judge(&self, migration: &ObjectOf<Migration>) -> Verdict {
        let why = migration.status.reason.as_ref();
        match (self, migration.status.phase) {
            (Self::Done, MigrationPhase::Done) | (Self::Aborted, MigrationPhase::Aborted) => Verdict::Reached,
            (Self::Done, MigrationPhase::Aborted) => {
                Verdict::Impossible(because("it is Aborted, and the VM is where it was", why))
            }
            (Self::Aborted, MigrationPhase::Done) => {
                Verdict::Impossible("it was too late: it is Done, and the VM is at its target".to_owned())
            }
            _ => Verdict::NotYet,
        }
    }

    fn word(&self) -> String {
        format!("{self:?}")
    }
}

/// An image that the server takes from its source.
pub(super) struct Imported;

impl Goal<Image> for Imported {
    fn judge(&self, image: &ObjectOf<Image>) -> Verdict {
        match image.status.state {
            ImageState::Ready => Verdict::Reached,
            ImageState::Importing => Verdict::NotYet,
            ImageState::Failed => {
                Verdict::Impossible(because("the import failed", image.status.reason.as_ref()))
            }
            ImageState::Pending => Verdict::Impossible("it has no source any more".to_owned()),
        }
    }

    fn word(&self) -> String {
        "ready".to_owned()
    }
}

/// How waiting ended.
pub(super) struct Ended<R: Resource> {
    /// Every object as it was seen last, in the order in which they were given.
    pub(super) objects: Vec<ObjectOf<R>>,
    /// Whether all reached the goal.
    pub(super) all_reached: bool,
}

impl<R: Resource> Ended<R> {
    /// The exit code, if it was this one before.
    pub(super) fn code_after(&self, code: ExitCode) -> ExitCode {
        if self.all_reached { code } else { ExitCode::FAILURE }
    }
}

/// Follows the objects until each has reached the goal or cannot any more, or until the deadline. What fails is reported.
pub(super) async fn until<R: Resource, G: Goal<R>>(
    context: &Context,
    objects: Vec<ObjectOf<R>>,
    goal: &G,
) -> Ended<R> {
    until_at(context, objects, goal, context.deadline()).await
}

/// The same with a deadline of its own.
pub(super) async fn until_at<R: Resource, G: Goal<R>>(
    context: &Context,
    objects: Vec<ObjectOf<R>>,
    goal: &G,
    deadline: Instant,
) -> Ended<R> {
    let mut waiting = Waiting::<R, G>::new(context, goal);
    for object in objects {
        waiting.begin(object);
    }
    let late = tokio::time::timeout_at(deadline, waiting.all()).await.is_err();
    if late {
        waiting.give_up();
    }
    waiting.ended()
}

/// One object that is waited for.
struct Target<R: Resource> {
    object: ObjectOf<R>,
    is_pending: bool,
}

struct Waiting<'a, R: Resource, G> {
    context: &'a Context,
    goal: &'a G,
    order: Vec<Uuid>,
    targets: BTreeMap<Uuid, Target<R>>,
    all_reached: bool,
    last_error: Option<ClientError>,
}

impl<'a, R: Resource, G: Goal<R>> Waiting<'a, R, G> {
    fn new(context: &'a Context, goal: &'a G) -> Self {
        Self {
            context,
            goal,
            order: Vec::new(),
            targets: BTreeMap::new(),
            all_reached: true,
            last_error: None,
        }
    }

    fn begin(&mut self, object: ObjectOf<R>) {
        let id = object.id;
        let verdict = self.goal.judge(&object);
        if self
            .targets
            .insert(
                id,
                Target {
                    object,
                    is_pending: true,
                },
            )
            .is_none()
        {
            self.order.push(id);
        }
        self.settle(id, verdict);
    }

    fn pending(&self) -> Vec<Uuid> {
        self.targets
            .iter()
            .filter(|(_, target)| target.is_pending)
            .map(|(id, _)| *id)
            .collect()
    }

    fn is_over(&self) -> bool {
        !self.targets.values().any(|target| target.is_pending)
    }

    /// Looks, then watches, again and again.
    async fn all(&mut self) {
        let mut pause = PAUSE_MIN;
        while !self.is_over() {
            match self.round(&mut pause).await {
                Ok(()) => {}
                Err(error) if is_passing(&error) => self.last_error = Some(error),
                Err(error) => {
                    self.fail_pending(&error.to_string());
                    return;
                }
            }
            if !self.is_over() {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }

    /// Looks at each object, then follows the changes since until all are settled or the stream ends.
    async fn round(&mut self, pause: &mut Duration) -> Result<(), ClientError> {
        let revision = self.look().await?;
        if self.is_over() {
            return Ok(());
        }
        let mut changes = self.context.client.watch::<R>(Some(revision)).await?;
        while let Some(change) = changes.next().await {
            let change = change?;
            *pause = PAUSE_MIN;
            let id = change.object.id;
            if !self.targets.get(&id).is_some_and(|target| target.is_pending) {
                continue;
            }
            match change.change_type {
                ChangeType::Deleted => self.settle(id, self.goal.gone()),
                ChangeType::Added | ChangeType::Modified => self.see(change.object),
            }
            if self.is_over() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The revision that what was looked at is at least as new as.
    async fn look(&mut self) -> Result<u64, ClientError> {
        let client = &self.context.client;
        let pending = self.pending();
        if let [id] = pending[..] {
            let revision = client.revision::<R>().await?;
            match client.get::<R>(&id.to_string()).await {
                Ok(object) => self.see(object),
                Err(error) if is_not_found(&error) => self.settle(id, self.goal.gone()),
                Err(error) => return Err(error),
            }
            return Ok(revision);
        }
        let (objects, revision) = client.list::<R>().await?;
        let mut found: BTreeMap<Uuid, ObjectOf<R>> =
            objects.into_iter().map(|object| (object.id, object)).collect();
        for id in pending {
            match found.remove(&id) {
                Some(object) => self.see(object),
                None => self.settle(id, self.goal.gone()),
            }
        }
        Ok(revision)
    }

    /// Takes note of how an object is now.
    fn see(&mut self, object: ObjectOf<R>) {
        let id = object.id;
        let Some(target) = self.targets.get_mut(&id) else {
            return;
        };
        let (before, after) = (stage::<R>(&target.object), stage::<R>(&object));
        if before != after {
            let elapsed = units::elapsed(self.context.started.elapsed());
            self.context
                .note(&format!("{}  {before} → {after}  {elapsed}", object.name));
        }
        let verdict = self.goal.judge(&object);
        target.object = object;
        self.settle(id, verdict);
    }

    fn settle(&mut self, id: Uuid, verdict: Verdict) {
        let Some(target) = self.targets.get_mut(&id) else {
            return;
        };
        match verdict {
            Verdict::NotYet => {}
            Verdict::Reached => target.is_pending = false,
            Verdict::Impossible(why) => {
                let (name, next) = (target.object.name.clone(), next_commands::<R>(&target.object));
                self.fail(
                    id,
                    &format!("{} {name} will not be {}: {why}{next}", R::KIND, self.goal.word()),
                );
            }
        }
    }

    /// Takes an object out of those that are waited for, and says why.
    fn fail(&mut self, id: Uuid, why: &str) {
        let Some(target) = self.targets.get_mut(&id) else {
            return;
        };
        target.is_pending = false;
        self.all_reached = false;
        self.context
            .progress
            .suspend(|| report(&anyhow::anyhow!(why.to_owned())));
    }

    /// Nothing can be found out any more.
    fn fail_pending(&mut self, why: &str) {
        for id in self.pending() {
            let name = self
                .targets
                .get(&id)
                .map(|target| target.object.name.clone())
                .unwrap_or_default();
            self.fail(id, &format!("waiting for {} {name}: {why}", R::KIND));
        }
    }

    /// The deadline has come.
    fn give_up(&mut self) {
        let limit = units::elapsed(self.context.deadline() - self.context.started);
        for id in self.pending() {
            let Some(target) = self.targets.get(&id) else {
                continue;
            };
            let (name, kind, word) = (&target.object.name, R::KIND, self.goal.word());
            let mut why = format!(
                "{kind} {name} is not {word} after {limit}: it is {}",
                stage::<R>(&target.object)
            );
            if let Some(reason) = reason::<R>(&target.object) {
                why = format!("{why}: {} ({})", reason.message, reason.code);
            }
            if let Some(error) = &self.last_error {
                why = format!("{why}; the last error was: {error}");
            }
            let look = if kind == Kind::Vm { "explain" } else { "get" };
            why = format!("{why}; wait longer with --timeout, or look with `sterna {kind} {look} {name}`");
            self.fail(id, &why);
        }
    }

    fn ended(mut self) -> Ended<R> {
        let objects = self
            .order
            .iter()
            .filter_map(|id| self.targets.remove(id))
            .map(|target| target.object);
        Ended {
            objects: objects.collect(),
            all_reached: self.all_reached,
        }
    }
}

/// Whether the next try may go better.
fn is_passing(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable { .. } => true,
        ClientError::Problem(problem) => {
            problem.status >= 500 || problem.status == 429 || problem.code == "compacted"
        }
        _ => false,
    }
}

fn is_not_found(error: &ClientError) -> bool {
    matches!(error, ClientError::Problem(problem) if problem.status == 404)
}

/// Where an object is in its life: what its table shows first.
fn stage<R: Resource>(object: &ObjectOf<R>) -> String {
    R::row(object).into_iter().next().unwrap_or_default()
}

/// The commands that lead on, as the end of a sentence.
fn next_commands<R: Resource>(object: &ObjectOf<R>) -> String {
    let status = serde_json::to_value(&object.status).unwrap_or_default();
    let commands = status.get("next_commands").and_then(Value::as_array);
    let commands: Vec<&str> = commands.into_iter().flatten().filter_map(Value::as_str).collect();
    if commands.is_empty() {
        String::new()
    } else {
        format!("; what leads on: `{}`", commands.join("`, `"))
    }
}

fn reason<R: Resource>(object: &ObjectOf<R>) -> Option<Reason> {
    let status = serde_json::to_value(&object.status).ok()?;
    serde_json::from_value(status.get("reason")?.clone()).ok()
}

#[cfg(test)]
mod tests;
