//! The drive for media: changed while the guest runs, waited for before it is saved or moved, whatever fails.

use driver::types::{Effect, Mark};
use model::document::{Cdrom, ImageFile, MigrateTo, Order, Stop};
use model::image::ImageFormat;
use model::report::{CdromState, RunState};
use model::vm::{BootDevice, SavedIn};

use crate::life::{run, stop};
use crate::world::{FAULTS, M, SOURCE, TARGET, World};

fn drive(medium: Option<&str>) -> Option<Cdrom> {
    let file = |sha256: &str| ImageFile {
        sha256: sha256.to_owned(),
        format: ImageFormat::Raw,
    };
    Some(Cdrom {
        medium: medium.map(file),
        force: false,
    })
}

/// A world whose guest runs from a medium.
fn installing() -> World {
    let mut world = World::new();
    world.machine.cdrom = drive(Some("aa"));
    world.order(SOURCE, run(false));
    world.settle(1_000_000);
    assert_eq!(medium(&world).as_deref(), Some("aa"));
    world.hosts[SOURCE].log.clear();
    world
}

/// What is said to be in the drive.
fn medium(world: &World) -> Option<String> {
    world.hosts[SOURCE].last().cdrom.as_ref()?.medium.clone()
}

fn log(world: &World) -> Vec<Effect> {
    let log = world.hosts[SOURCE].log.iter();
    log.filter(|effect| **effect != Effect::Look).cloned().collect()
}

#[test]
fn what_is_in_the_drive_and_what_is_booted_follow_the_document() {
    for paused in [false, true] {
        let mut world = installing();
        world.order(SOURCE, run(paused));
        world.settle(1_000_000);
        world.hosts[SOURCE].log.clear();
        world.machine.cdrom = drive(None);
        world.order(SOURCE, run(paused));
        world.settle(3_000_000);
        assert_eq!(log(&world), [Effect::ChangeMedium], "paused: {paused}");
        let last = world.hosts[SOURCE].last().cdrom.clone().unwrap();
        assert_eq!((last.medium, last.is_open), (None, true));
        world.hosts[SOURCE].log.clear();
        world.machine.cdrom = drive(Some("bb"));
        world.machine.boot = vec![BootDevice::Cdrom];
        world.order(SOURCE, run(paused));
        world.settle(3_000_000);
        assert_eq!(log(&world), [Effect::ChangeMedium, Effect::SetBoot]);
        let wanted = CdromState {
            medium: Some("bb".to_owned()),
            is_open: false,
            boot: vec![BootDevice::Cdrom],
        };
        assert_eq!(world.hosts[SOURCE].last().cdrom, Some(wanted));
    }
}

#[test]
fn a_change_is_made_whatever_fails_meanwhile() {
    let begin = |world: &mut World| {
        world.machine.cdrom = drive(Some("bb"));
        world.order(SOURCE, run(false));
    };
    let mut calm = installing();
    let before = calm.effects;
    begin(&mut calm);
    calm.settle(3_000_000);
    let effects = calm.effects - before;
    assert!(effects > 1);
    // A QEMU that dies is the guest's end, and none of the drive's.
    for fault in FAULTS
        .into_iter()
        .filter(|fault| *fault != crate::world::Fault::QemuDies)
    {
        for at in 0..effects {
            let mut world = installing();
            let at = world.effects + 1 + at;
            world.faults.insert(at, (SOURCE, fault));
            begin(&mut world);
            world.settle(30_000_000);
            assert_eq!(medium(&world).as_deref(), Some("bb"), "{fault:?} at {at}");
            assert_eq!(world.hosts[SOURCE].state(), Some(RunState::Running));
        }
    }
}

#[test]
fn a_guest_that_holds_its_medium_is_asked_again_and_is_not_saved_before_it_gives_it() {
    let mut world = installing();
    world.hosts[SOURCE].holds_medium = true;
    world.machine.cdrom = drive(None);
    world.order(SOURCE, run(false));
    world.settle(20_000_000);
    let asked = log(&world);
    assert!(asked.len() > 2 && asked.iter().all(|effect| *effect == Effect::ChangeMedium));
    let last = world.hosts[SOURCE].last();
    assert_eq!(last.reason.as_ref().unwrap().code, "medium-held");
    assert_eq!(last.state, RunState::Running);
    world.order(SOURCE, stop(Stop::Suspend));
    world.settle(20_000_000);
    assert!(
        world.hosts[SOURCE].executes(),
        "it is saved with a medium that is to go"
    );
    world.hosts[SOURCE].holds_medium = false;
    world.settle(20_000_000);
    assert_eq!(world.hosts[SOURCE].last().saved_bytes, Some(4096));
    let saved = Effect::Save {
        saved_in: SavedIn::Host,
    };
    let at = |wanted: &Effect| log(&world).iter().rposition(|effect| effect == wanted);
    assert!(at(&Effect::ChangeMedium) < at(&saved));
}

#[test]
fn a_guest_is_moved_with_the_medium_that_its_target_has() {
    let mut world = installing();
    world.machine.cdrom = drive(Some("bb"));
    world.order(
        SOURCE,
        Some(Order::MigrateTo(MigrateTo {
            to: M,
            host: world.hosts[TARGET].id.host,
            host_name: "h2".to_owned(),
            stream: Some("tcp:192.0.2.2:4000".to_owned()),
            peer: None,
            granted: true,
            cancel: false,
            paused: false,
            timeout_ms: 60_000,
        })),
    );
    world.settle(100_000);
    let log = log(&world);
    let at = |wanted: &Effect| log.iter().position(|effect| effect == wanted);
    let (changed, sent) = (
        at(&Effect::ChangeMedium),
        at(&Effect::Journal(Mark::Sent { to: M })),
    );
    assert!(
        changed.is_some() && sent.is_none_or(|sent| changed < Some(sent)),
        "{log:?}"
    );
    world.settle(1_000_000);
    assert!(
        world.hosts[SOURCE]
            .log
            .contains(&Effect::Journal(Mark::Sent { to: M }))
    );
}
