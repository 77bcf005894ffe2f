//! What effects do to a host, and the rules that each one has to keep.

use driver::types::{CopyJobState, Effect, Failure, MigrationWord, Outcome, Qemu, RunStatusWord};
use model::build::Built;
use model::document::Order;
use model::report::{StartStep, StepTime};
use model::template::ANOTHER_BUILD;

use crate::world::{Answer, Host, M, SOURCE, TARGET, World, failure};
use driver::qemu_model::Process;

const STREAM: &str = "tcp:192.0.2.2:4000";

impl World {
    /// Carries an effect out, as a shell would.
    pub(crate) fn carry_out(&mut self, at: usize, effect: &Effect) -> Answer {
        if let Some(is_retryable) = self.hosts[at].broken.get(name(effect)) {
            let is_load = matches!(effect, Effect::LoadWarm { .. });
            let code = if is_load { ANOTHER_BUILD } else { "broken" };
            return Answer::Failed(failure(code, *is_retryable));
        }
        match effect {
            Effect::Journal(mark) => {
                self.hosts[at].marks.set(mark);
                Answer::Done(Outcome::Ok)
            }
            Effect::Look => Answer::Seen(self.hosts[at].process.as_ref().map_or(Qemu::None, Process::look)),
            Effect::Spawn { incoming } => self.spawn(at, *incoming),
            Effect::Kill => {
                self.kill(at);
                Answer::Done(Outcome::Ok)
            }
            Effect::Release => {
                assert_eq!(self.hosts[at].process, None, "released under a process");
                assert!(self.hosts[at].marks.closed, "released before it was closed");
                Answer::Done(Outcome::Ok)
            }
            Effect::RemoveVolumes => {
                assert!(
                    self.hosts[at].marks.closed,
                    "volumes removed before it was closed"
                );
                self.hosts[at].saved.clear();
                Answer::Done(Outcome::Ok)
            }
            Effect::RemoveSaved { incarnation, .. } => {
                let host = &mut self.hosts[at];
                assert!(host.marks.used_saved, "a state is deleted before it is used");
                host.saved.remove(incarnation);
                Answer::Done(Outcome::Ok)
            }
            Effect::OpenPorts => {
                assert!(self.hosts[at].marks.ran, "ports opened before ran");
                Answer::Done(Outcome::Ok)
            }
            Effect::Prepare { .. } => {
                let disk = StepTime {
                    step: StartStep::Disk,
                    begun_ms: 0,
                    took_ms: 0,
                };
                Answer::Done(Outcome::Prepared { steps: vec![disk] })
            }
            Effect::Announce | Effect::Settle | Effect::Identify => Answer::Done(Outcome::Ok),
            Effect::Build => Answer::Done(Outcome::Built(Built::default())),
            Effect::CopyAtRest { .. } => {
                assert_eq!(self.hosts[at].process, None, "a disk is copied under a process");
                Answer::Done(Outcome::Copied { is_frozen: false })
            }
            Effect::DropCopy { to } => {
                if let Some(process) = &mut self.hosts[at].process {
                    process.copies.remove(to);
                }
                Answer::Done(Outcome::Ok)
            }
            effect => self.command(at, effect),
        }
    }

    fn spawn(&mut self, at: usize, incoming: bool) -> Answer {
        let host = &mut self.hosts[at];
        assert!(
            host.marks.launched && !host.marks.closed,
            "launched without its mark, or closed"
        );
        assert_eq!(host.process, None, "launched over a process");
        host.spawns += 1;
        let mut process = Process::spawn(0, incoming);
        process.limit_ms = Some(20);
        if let Some((_, Some(document))) = &host.document {
            process.add_cdrom(&document.machine);
        }
        host.process = Some(process);
        Answer::Done(Outcome::Ok)
    }

    fn kill(&mut self, at: usize) {
        if self.hosts[at].process.take().is_some() {
            self.stream_breaks(at);
        }
    }

    /// What needs a monitor that answers.
    fn command(&mut self, at: usize, effect: &Effect) -> Answer {
        let done = match effect {
            Effect::Continue => self.cont(at),
            Effect::Migrate { .. } | Effect::MigrateContinue { .. } | Effect::MigrateCancel => {
                self.migrate(at, effect)
            }
            effect => command_alone(&mut self.hosts[at], effect),
        };
        done.map_or_else(Answer::Failed, Answer::Done)
    }

    fn cont(&mut self, at: usize) -> Result<Outcome, Failure> {
        let target_ran = self.hosts[TARGET].marks.ran;
        let target_lives = self.hosts[TARGET].process.is_some();
        let handed_over = self.handed_over;
        let host = &mut self.hosts[at];
        let is_saved = matches!(
            order(host),
            Some(Order::Run {
                start: model::document::StartFrom::Saved { .. },
                ..
            })
        );
        let Some(process) = &mut host.process else {
            return Err(failure("no-qemu", true));
        };
        assert!(
            host.marks.ran && !host.marks.closed,
            "continued without ran, or closed"
        );
        if process.is_incoming && is_saved {
            assert!(host.marks.used_saved, "a saved state is used without its mark");
        } else if process.is_incoming && at == TARGET {
            assert!(handed_over, "the target runs while its source may");
        }
        if process.has_completed() && handed_over {
            assert!(
                !target_ran && !target_lives,
                "a source that completed goes on beside its target"
            );
        }
        process.cont().map_err(|cause| failure(cause, true))?;
        if at == SOURCE {
            self.handed_over = false;
        }
        Ok(Outcome::Ok)
    }

    fn migrate(&mut self, at: usize, effect: &Effect) -> Result<Outcome, Failure> {
        let is_sent = self.hosts[at].marks.sent.contains(&M);
        let is_promised = self.hosts[at].marks.no_switch.contains(&M);
        let Some(process) = &mut self.hosts[at].process else {
            return Err(failure("no-qemu", true));
        };
        match effect {
            Effect::MigrateCancel => {
                assert!(
                    process.migration != MigrationWord::Device || is_promised,
                    "cancelled in the device phase without the mark"
                );
                if process.is_transferring() {
                    process.fail(MigrationWord::Cancelled, true);
                    self.stream_breaks(at);
                }
            }
            Effect::Migrate { .. } => {
                assert!(
                    is_sent && !is_promised,
                    "migrates without sent, or in spite of the promise"
                );
                process.migrate().map_err(|cause| failure(cause, true))?;
                let listens = self.hosts[TARGET]
                    .process
                    .as_ref()
                    .is_some_and(|process| process.is_listening);
                if !listens {
                    self.hosts[at]
                        .process
                        .as_mut()
                        .unwrap()
                        .fail(MigrationWord::Failed, true);
                }
            }
            _ => {
                assert!(!is_promised, "switches over in spite of the promise");
                if process.migration != MigrationWord::PreSwitchover {
                    return Err(failure("not-at-pre-switchover", true));
                }
                process.migration = MigrationWord::Device;
            }
        }
        Ok(Outcome::Ok)
    }
}

fn command_alone(host: &mut Host, effect: &Effect) -> Result<Outcome, Failure> {
    let incarnation = host.id.incarnation;
    let machine = host
        .document
        .as_ref()
        .and_then(|(_, document)| Some(document.as_ref()?.machine.clone()));
    let Some(process) = &mut host.process else {
        return Err(failure("no-qemu", true));
    };
    match effect {
        Effect::Pause => process.stop(),
        Effect::AskShutdown => {
            if host.listens && process.executes() {
                process.run = RunStatusWord::Shutdown;
            }
        }
        Effect::AskReboot => {
            if host.listens && process.executes() {
                process.resets += 1;
            }
        }
        Effect::Reset => process.resets += 1,
        Effect::ChangeMedium if host.holds_medium => return Err(failure("medium-held", true)),
        Effect::ChangeMedium => process.set_medium(&machine.ok_or_else(|| failure("no-document", true))?),
        Effect::SetBoot => process.set_boot(&machine.ok_or_else(|| failure("no-document", true))?),
        Effect::Copy { to } if process.copies.get(to) == Some(&CopyJobState::Done) => {
            return Ok(Outcome::Copied { is_frozen: true });
        }
        Effect::Copy { to } => {
            process.copies.insert(*to, CopyJobState::Copies);
        }
        Effect::SetDowntimeLimit { ms } => process.limit_ms = Some(*ms),
        Effect::Listen => {
            process.is_listening = true;
            return Ok(Outcome::Listening {
                stream: STREAM.to_owned(),
            });
        }
        Effect::Save { .. } => {
            let is_there = host.saved.contains_key(&incarnation) && process.has_completed();
            if !is_there {
                process.stop();
                process.migrate().map_err(|cause| failure(cause, true))?;
                process.complete();
            }
            host.saved.insert(incarnation, 4096);
            return Ok(Outcome::Saved { bytes: 4096 });
        }
        Effect::Warm => {
            process.stop();
            process.migrate().map_err(|cause| failure(cause, true))?;
            process.complete();
            return Ok(Outcome::Saved { bytes: 4096 });
        }
        Effect::LoadWarm { .. } => process.load(RunStatusWord::Paused),
        Effect::LoadSaved { incarnation, .. } => {
            if !host.saved.contains_key(incarnation) {
                return Err(failure("no-such-state", false));
            }
            process.load(RunStatusWord::Paused);
        }
        effect => panic!("{effect:?} is not for a shell"),
    }
    Ok(Outcome::Ok)
}

fn order(host: &Host) -> Option<&Order> {
    let (_, document) = host.document.as_ref()?;
    document.as_ref().map(|document| &document.order)
}

/// Names for [`Host::broken`].
fn name(effect: &Effect) -> &'static str {
    match effect {
        Effect::Prepare { .. } => "prepare",
        Effect::Spawn { .. } => "spawn",
        Effect::Save { .. } => "save",
        Effect::LoadSaved { .. } => "load-saved",
        Effect::LoadWarm { .. } => "load-warm",
        Effect::Identify => "identify",
        Effect::Warm => "warm",
        Effect::Listen => "listen",
        Effect::Release => "release",
        Effect::Migrate { .. } => "migrate",
        Effect::OpenPorts => "open-ports",
        Effect::CopyAtRest { .. } => "copy-at-rest",
        _ => "",
    }
}
