//! A VM's drive for installation media: what may be put in and when, and how it looks.
//!
//! A guest has to be told of another medium, by the QEMU that it runs in. So one that is saved or on its way to another host
//! keeps its medium until it goes on.

use api::Problem;
use api::kinds::{CdromSpec, CdromStatus};
use model::image::ImageContent;
use model::lifecycle::{Availability, Phase};
use model::report::CdromState;
use model::vm::{BootDevice, Cdrom, Power, VmIntent, VmSpec};
use model::{ImageId, Kind, Object, VmId, key};
use planner::View;

use super::action::leads_on;
use super::{find, name_of};
use crate::service::Context;

/// An image's content, or what has to be done to have it.
pub(super) fn content(view: &View, image: ImageId) -> Result<&ImageContent, Problem> {
    view.image_content(image).ok_or_else(|| {
        let name = name_of(view, Kind::Image, image.0);
        let detail = format!("image {name} has no content yet: `sterna image import {name} --file PATH`");
        Problem::conflict("image-not-ready", detail)
    })
}

/// Whether content can be that of a disk.
pub(super) fn check_is_disk(content: &ImageContent, name: &str) -> Result<(), Problem> {
    if !content.is_medium {
        return Ok(());
    }
    let detail = format!(
        "image {name} is an installation medium and no disk's content: put it into a VM's drive (`sterna vm create --iso {name} \
         --disk 20GiB`)"
    );
    Err(Problem::invalid("image-is-medium", detail))
}

/// The drive with what shall be in it.
pub(super) fn cdrom(context: &Context<'_>, spec: &CdromSpec) -> Result<Cdrom, Problem> {
    let medium = spec.image.as_deref().map(|name| medium(context, name));
    Ok(Cdrom {
        medium: medium.transpose()?,
        force: spec.force,
    })
}

fn medium(context: &Context<'_>, name: &str) -> Result<ImageId, Problem> {
    let image = ImageId(find(context, Kind::Image, name)?);
    if content(context.view, image)?.is_medium {
        return Ok(image);
    }
    let detail = format!(
        "image {name} is the content of a disk and no installation medium: give it as `image` (`--image {name}`), or import \
         an ISO 9660 file"
    );
    Err(Problem::invalid("image-is-no-medium", detail))
}

/// Whether a VM without an image can come to anything.
pub(super) fn check_blank(cdrom: Option<&Cdrom>, disk_bytes: Option<u64>) -> Result<(), Problem> {
    if cdrom.is_none() {
        let detail = "a VM needs a `template`, an `image`, or a `cdrom` with a medium that installs it";
        return Err(Problem::invalid("image-missing", detail));
    }
    if disk_bytes.is_none() {
        let detail = "without an image its disk is blank: give its size as `disk_bytes` (`--disk 20GiB`)";
        return Err(Problem::invalid("disk-size-missing", detail));
    }
    Ok(())
}

/// The order of booting, if it can be kept.
pub(super) fn boot(boot: Vec<BootDevice>, cdrom: Option<&Cdrom>) -> Result<Vec<BootDevice>, Problem> {
    let is_twice = (1..boot.len()).any(|at| boot[at..].contains(&boot[at - 1]));
    if is_twice {
        let detail =
            "`boot` names a device twice: name each that is booted from once, the first choice first";
        return Err(Problem::invalid("invalid-boot", detail));
    }
    // The usual order is not kept, so that it is whatever the release says.
    if boot == BootDevice::USUAL {
        return Ok(Vec::new());
    }
    if boot.contains(&BootDevice::Cdrom) && cdrom.is_none() {
        return Err(no_drive("boot from one"));
    }
    Ok(boot)
}

fn no_drive(what: &str) -> Problem {
    let detail = format!(
        "the VM has no drive for media to {what}: `sterna vm media NAME --insert IMAGE` gives it one while it is off"
    );
    Problem::conflict("no-drive", detail)
}

/// The drive as it shall be from now on.
pub(super) fn changed_cdrom(
    context: &Context<'_>,
    old: &Object<VmSpec>,
    wanted: Option<CdromSpec>,
) -> Result<Option<Cdrom>, Problem> {
    let present = &old.spec.cdrom;
    let Some(wanted) = wanted else {
        return Ok(present.clone());
    };
    let next = Some(cdrom(context, &wanted)?);
    if next == *present {
        return Ok(next);
    }
    let view = context.view;
    let id = VmId(old.meta.id);
    let (phase, _) = view.phase(id).unwrap_or((Phase::Unknown, Availability::Inactive));
    let refuse = |why: &str| {
        let next = leads_on(view, id, phase);
        let detail = format!("VM {} is {phase}: {why}; {next}", old.meta.name);
        Err(Problem::conflict("wrong-phase", detail))
    };
    match standing(
        view.vms
            .get(&id)
            .and_then(|vm| vm.intent.as_ref())
            .map(|at| &at.value),
    ) {
        Standing::Nowhere => Ok(next),
        Standing::Saved => refuse("its saved guest has its medium still: resume it first"),
        Standing::Moving => refuse("its medium is changed when its migration is over"),
        Standing::Open if present.is_none() => {
            let detail = format!(
                "VM {} has no drive for media and cannot get one while it runs: `sterna vm shutdown {} --wait` first",
                old.meta.name, old.meta.name
            );
            Err(Problem::conflict("no-drive", detail))
        }
        Standing::Open if !stays(phase, old.spec.power) => {
            refuse("its medium is changed while it runs or is paused, or when it is off")
        }
        Standing::Open => Ok(next),
    }
}

/// Where a VM's guest is, as far as its drive is concerned.
enum Standing {
    Nowhere,
    Saved,
    Moving,
    Open,
}

fn standing(intent: Option<&VmIntent>) -> Standing {
    match intent {
        Some(intent) if intent.migration.is_some() => Standing::Moving,
        Some(intent) if intent.open.is_some() => Standing::Open,
        Some(intent) if intent.saved.is_some() => Standing::Saved,
        _ => Standing::Nowhere,
    }
}

/// Whether the guest is there and shall stay so.
fn stays(phase: Phase, power: Power) -> bool {
    matches!(phase, Phase::Running | Phase::Paused) && matches!(power, Power::Running | Power::Paused)
}

/// A change of the drive holds only where the guest is what it was when that was decided.
pub(super) fn relies_on(view: &View, old: &Object<VmSpec>, new: &VmSpec) -> Option<(String, u64)> {
    let id = VmId(old.meta.id);
    let intent = view.vms.get(&id).and_then(|vm| vm.intent.as_ref());
    (old.spec.cdrom != new.cdrom).then(|| (key::vm_intent(id), intent.map_or(0, |at| at.revision)))
}

/// The drive as it is wanted.
pub(super) fn cdrom_spec(view: &View, spec: &VmSpec) -> Option<CdromSpec> {
    let cdrom = spec.cdrom.as_ref()?;
    Some(CdromSpec {
        image: cdrom.medium.map(|image| name_of(view, Kind::Image, image.0)),
        force: cdrom.force,
    })
}

/// The drive as its host sees it. A medium whose image is gone meanwhile has its digest for a name.
pub(super) fn cdrom_status(view: &View, spec: &VmSpec, state: &CdromState) -> CdromStatus {
    let wanted = spec.cdrom.as_ref().and_then(|cdrom| cdrom.medium);
    let all = view.images.keys().map(|id| ImageId(*id));
    let has = |sha256: &str, image: ImageId| {
        let content = view.image_content(image);
        content.is_some_and(|content| content.sha256 == sha256)
    };
    let name = |sha256: &String| {
        let found = wanted.into_iter().chain(all).find(|image| has(sha256, *image));
        found.map_or_else(|| sha256.clone(), |image| name_of(view, Kind::Image, image.0))
    };
    CdromStatus {
        image: state.medium.as_ref().map(name),
        is_open: state.is_open,
        boot: state.boot.clone(),
    }
}

#[cfg(test)]
mod tests {
    use model::host::{HostContact, HostSpec};
    use model::report::{RunState, RunStatus};
    use model::token::Role;
    use model::vm::{Goal, Open, SavedState, Start};
    use model::{HostId, Incarnation, MigrationId, Timestamp, record, samples};
    use planner::view::Change;
    use uuid::Uuid;

    use super::*;
    use crate::auth::User;

    const VM: VmId = VmId(Uuid::from_u128(1));
    const HOST: HostId = HostId(Uuid::from_u128(2));
    const TOOLS: ImageId = ImageId(Uuid::from_u128(3));

    fn put<T: record::Stored>(view: &mut View, key: &str, value: &T) {
        let value = record::encode(value);
        view.apply(Change {
            key,
            value: Some(&value),
            revision: view.revision + 1,
        });
    }

    fn open() -> VmIntent {
        VmIntent {
            host: Some(HOST),
            open: Some(Open {
                incarnation: Incarnation(1),
                granted_at: Timestamp::UNIX_EPOCH,
                goal: Goal::Run { paused: false },
                start: Start::Disk,
                memory_mib: 256,
                vcpus: 1,
                resume: false,
                reboot: None,
                copies: Default::default(),
            }),
            ..VmIntent::default()
        }
    }

    fn saved() -> VmIntent {
        let saved = SavedState {
            host: HOST,
            saved_in: Default::default(),
            build: None,
            refused_by: Default::default(),
            cpu_model: None,
            incarnation: Incarnation(1),
            bytes: 1,
            memory_mib: 256,
            vcpus: 1,
        };
        VmIntent {
            saved: Some(saved),
            ..VmIntent::default()
        }
    }

    fn user() -> User {
        User {
            name: "ann".to_owned(),
            role: Role::Operator,
            digest: String::new(),
            from: None,
            request: None,
        }
    }

    /// What comes of another medium for a VM, which has a drive or none.
    fn asked(
        has_drive: bool,
        power: Power,
        intent: Option<&VmIntent>,
        state: RunState,
    ) -> Result<(), String> {
        let mut view = View::default();
        let mut status = samples::image_status();
        status.content.as_mut().unwrap().is_medium = true;
        let tools = samples::object(
            Kind::Image,
            TOOLS.0,
            "tools",
            Timestamp::UNIX_EPOCH,
            model::image::ImageSpec::default(),
        );
        put(&mut view, &key::object(Kind::Image, TOOLS.0), &tools);
        put(&mut view, &key::image_status(TOOLS), &status);
        let spec = VmSpec {
            cdrom: has_drive.then(Cdrom::default),
            power,
            ..samples::vm_spec(TOOLS, Uuid::nil().into())
        };
        let vm = samples::object(Kind::Vm, VM.0, "web", Timestamp::UNIX_EPOCH, spec);
        put(&mut view, &key::object(Kind::Vm, VM.0), &vm);
        let host = samples::object(
            Kind::Host,
            HOST.0,
            "h1",
            Timestamp::UNIX_EPOCH,
            HostSpec::default(),
        );
        put(&mut view, &key::object(Kind::Host, HOST.0), &host);
        put(&mut view, &key::host_contact(HOST), &HostContact::default());
        if let Some(intent) = intent {
            let run = RunStatus {
                ran: true,
                ..samples::run_status(Incarnation(1), HOST, state)
            };
            put(&mut view, &key::vm_run(VM, Incarnation(1)), &run);
            put(&mut view, &key::vm_intent(VM), intent);
        }
        let user = user();
        let context = Context {
            view: &view,
            now: Timestamp::UNIX_EPOCH,
            new_id: Uuid::from_u128(4),
            user: &user,
            attempt: 0,
        };
        let wanted = CdromSpec {
            image: Some("tools".to_owned()),
            force: false,
        };
        let changed = changed_cdrom(&context, &vm, Some(wanted)).map_err(|problem| problem.detail)?;
        assert_eq!(changed.as_ref().and_then(|cdrom| cdrom.medium), Some(TOOLS));
        // What is decided about its place meanwhile overtakes it.
        let next = VmSpec {
            cdrom: changed,
            ..vm.spec.clone()
        };
        let revision = intent.map_or(0, |_| view.revision);
        assert_eq!(relies_on(&view, &vm, &next), Some((key::vm_intent(VM), revision)));
        assert_eq!(relies_on(&view, &vm, &vm.spec), None);
        Ok(())
    }

    #[test]
    fn a_medium_is_changed_where_the_guest_can_be_told_or_there_is_none() {
        use RunState::{Booting, Paused, Preparing, Running};
        let moving = VmIntent {
            migration: Some(MigrationId(Uuid::from_u128(9))),
            ..open()
        };
        for (intent, state, power, refused) in [
            (None, Running, Power::Running, None),
            (Some(VmIntent::default()), Running, Power::Off, None),
            (Some(open()), Running, Power::Running, None),
            (Some(open()), Paused, Power::Paused, None),
            (Some(open()), Preparing, Power::Running, Some("while it runs")),
            (Some(open()), Booting, Power::Running, Some("while it runs")),
            (Some(open()), Running, Power::Suspended, Some("while it runs")),
            (Some(moving), Running, Power::Running, Some("migration is over")),
            (Some(saved()), Running, Power::Suspended, Some("resume it first")),
        ] {
            let said = asked(true, power, intent.as_ref(), state);
            match (refused, &said) {
                (None, said) => assert_eq!(*said, Ok(()), "{intent:?}"),
                (Some(why), Err(detail)) => assert!(detail.contains(why), "{detail}"),
                (Some(why), Ok(())) => panic!("not refused: {why}"),
            }
        }
        let without = asked(false, Power::Running, Some(&open()), Running);
        assert!(without.unwrap_err().contains("vm shutdown web"));
        assert_eq!(
            asked(false, Power::Off, Some(&VmIntent::default()), Running),
            Ok(())
        );
    }
}
