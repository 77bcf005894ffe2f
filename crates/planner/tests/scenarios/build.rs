//! Templates that are made of VMs: what follows when, and that nothing is left when a step fails.

use model::build::{Builds, Built, BuiltFrom};
use model::image::{ImageSpec, ImageStatus};
use model::lifecycle::Phase;
use model::limits::VERSIONS_MAX;
use model::operation::{Action, Applied, OperationPhase, OperationStatus};
use model::report::{CopyState, RunState};
use model::template::{FIRST_VERSION, Made, TemplateSpec, TemplateVersion};
use model::vm::{Firmware, GuestConfig, Power, VmSpec};
use model::{ImageId, Incarnation, Kind, Object, Reason, TemplateId, VmId, key, samples};
use planner::{Plan, operation};
use uuid::Uuid;

use super::world::World;

const BUILDER: VmId = VmId(Uuid::from_u128(0xb1));
const TEMPLATE: TemplateId = TemplateId(Uuid::from_u128(0xb2));
const IMAGE: ImageId = ImageId(Uuid::from_u128(0xb3));

fn gives(image: ImageId) -> TemplateSpec {
    TemplateSpec {
        image,
        vcpus: 1,
        memory_mib: 256,
        disk_bytes: None,
        networks: Vec::new(),
        guest: GuestConfig::default(),
        firmware: Firmware::Bios,
        profile: None,
        version: FIRST_VERSION,
        made: None,
        keep_warm: None,
    }
}

fn web(world: &mut World) -> TemplateId {
    let image = world.image();
    TemplateId(world.create(Kind::Template, "web", gives(image)))
}

/// As a server asks for it: of a running VM's disk, or of a template's newest version.
fn asked(world: &mut World, golden: Option<VmId>, template: Option<TemplateId>) {
    let image = world.image();
    let datastore = world.view.find(Kind::Datastore, None, "default").unwrap();
    let builds = Builds {
        template: template.unwrap_or(TEMPLATE),
        template_name: "web".to_owned(),
        image: IMAGE,
        gives: template.is_none().then(|| gives(IMAGE)),
        from: BuiltFrom::default(),
        script: Some("secret".to_owned()),
    };
    let spec = VmSpec {
        power: Power::Running,
        clone_of: golden,
        builds: Some(Box::new(builds)),
        ..samples::vm_spec(image, datastore.into())
    };
    let vm = samples::object(Kind::Vm, BUILDER.0, "web-build-1", world.now, spec);
    let of = ImageSpec {
        from_vm: Some(BUILDER),
        ..ImageSpec::default()
    };
    let image = samples::object(Kind::Image, IMAGE.0, "web-v1", world.now, of);
    let mut plan = Plan::new("create vm web-build-1");
    put(&mut plan, Kind::Vm, &vm);
    put(&mut plan, Kind::Image, &image);
    world.commit(plan).unwrap();
    world.settle();
}

fn put<S: model::record::Spec>(plan: &mut Plan, kind: Kind, object: &Object<S>) {
    let meta = &object.meta;
    plan.create(key::object(kind, meta.id), object);
    plan.create(
        key::name_index(kind, meta.project.as_deref(), &meta.name),
        &meta.id,
    );
}

/// Its guest is up.
fn up(world: &mut World) {
    world.run(BUILDER, |run| {
        run.state = RunState::Running;
        run.ready = true;
    });
}

fn built(world: &mut World, reason: Option<Reason>) {
    let applied = Applied {
        output: "hello".to_owned(),
        ..Applied::default()
    };
    world.run(BUILDER, |run| run.built = Some(Built { applied, reason }));
}

/// All up to the image's content.
fn captured(world: &mut World) {
    up(world);
    built(world, None);
    let host = world.host_of(BUILDER);
    let open = world.open(BUILDER);
    world.close(&host, BUILDER, open, None);
    world.write(key::image_status(IMAGE), &samples::image_status());
    world.settle();
}

fn ended(world: &World) -> OperationStatus {
    let is_build = |one: &&planner::view::Operation| {
        one.object
            .as_ref()
            .is_some_and(|at| at.value.spec.action == Action::Build)
    };
    operation::status(world.view.operations.values().find(is_build).unwrap())
}

/// The builder goes, when its host says so, and its record stays.
fn is_gone(world: &mut World) {
    if world.view.vms.contains_key(&BUILDER) {
        let host = world.host_of(BUILDER);
        let incarnation = world.intent(BUILDER).last_incarnation;
        world.report(&host, BUILDER, incarnation, |run| run.state = RunState::Removed);
    }
    assert!(!world.view.vms.contains_key(&BUILDER), "{:?}", world.log);
    ended(world);
}

fn failed(world: &mut World, code: &str) {
    let status = ended(world);
    assert_eq!(status.phase, OperationPhase::Failed);
    assert_eq!(status.reason.unwrap().code, code);
    assert!(!world.view.images.contains_key(&IMAGE.0));
    is_gone(world);
}

#[test]
fn a_template_is_made_of_a_vm_step_by_step() {
    let mut world = World::new(1);
    let golden = world.running("golden", "h1");
    asked(&mut world, Some(golden), None);
    assert_eq!(ended(&world).reason.unwrap().code, "build-copies");
    world.run(golden, |run| {
        run.copies
            .insert(BUILDER.into(), CopyState::Made { is_frozen: true });
    });
    assert_eq!(world.told("h1", BUILDER), "run 1 from disk");
    assert!(world.order("h1", BUILDER).unwrap().copies.is_empty());
    assert_eq!(ended(&world).reason.unwrap().code, "build-boots");
    up(&mut world);
    assert!(world.order("h1", BUILDER).unwrap().machine.build.is_some());
    built(&mut world, None);
    assert_eq!(world.told("h1", BUILDER), "stop 1 shutdown");
    world.close("h1", BUILDER, Incarnation(1), None);
    assert_eq!(world.told("h1", BUILDER), "stop 2 prepare");
    assert!(
        world
            .order("h1", BUILDER)
            .unwrap()
            .copies
            .contains_key(&IMAGE.into())
    );
    assert_eq!(ended(&world).reason.unwrap().code, "build-captures");
    world.write(key::image_status(IMAGE), &samples::image_status());
    world.settle();
    let template = &world.view.templates[&TEMPLATE.0].value;
    assert_eq!((template.meta.name.as_str(), template.spec.image), ("web", IMAGE));
    assert!(template.spec.made.as_ref().unwrap().built_from.is_some());
    let status = ended(&world);
    assert_eq!(status.phase, OperationPhase::Done);
    assert_eq!(status.applied.unwrap().output, "hello");
    is_gone(&mut world);
    assert!(world.view.images.contains_key(&IMAGE.0));
    assert_eq!(world.phase(golden), Phase::Running);
    // What it was told and what it printed are for nobody who reads the audit trail.
    let audit = world.store.iter().filter(|(key, _)| key.starts_with("/audit/"));
    for (key, (value, _)) in audit {
        let text = String::from_utf8_lossy(value);
        assert!(
            !text.contains("secret") && !text.contains("hello"),
            "{key}: {text}"
        );
    }
}

#[test]
fn a_refresh_is_the_next_version_and_keeps_what_else_the_newest_gives() {
    let mut world = World::new(1);
    let id = web(&mut world);
    asked(&mut world, None, Some(id));
    // It is changed meanwhile.
    let mut object = world.view.templates[&id.0].value.clone();
    object.spec.vcpus = 3;
    world.write(key::object(Kind::Template, id.0), &object);
    captured(&mut world);
    let newest = &world.view.templates[&id.0].value.spec;
    assert_eq!((newest.image, newest.vcpus, newest.version), (IMAGE, 3, 2));
    let before = &world.view.template_versions.get(id.0, 1).unwrap().value.spec;
    assert_eq!((before.image, before.vcpus), (world.image(), 3));
    assert_eq!(ended(&world).phase, OperationPhase::Done);
    is_gone(&mut world);
}

#[test]
fn whichever_step_fails_is_named_and_leaves_nothing() {
    let mut world = World::new(1);
    asked(&mut world, None, None);
    up(&mut world);
    built(&mut world, Some(Reason::new("build-script-failed", "status 3")));
    assert_eq!(ended(&world).applied.unwrap().output, "hello");
    failed(&mut world, "build-script-failed");

    // Its QEMU is killed, or its guest ends by itself, before it is done.
    for code in ["qemu-exited", "guest-shutdown"] {
        let mut world = World::new(1);
        asked(&mut world, None, None);
        up(&mut world);
        world.close("h1", BUILDER, Incarnation(1), Some(code));
        failed(&mut world, code);
    }

    let mut world = World::new(1);
    asked(&mut world, None, None);
    up(&mut world);
    built(&mut world, None);
    world.close("h1", BUILDER, Incarnation(1), None);
    let status = ImageStatus::failed(Reason::new("disk-full", "no room"));
    world.write(key::image_status(IMAGE), &status);
    world.settle();
    failed(&mut world, "disk-full");

    let mut world = World::new(1);
    asked(&mut world, None, None);
    world.run(BUILDER, |run| run.state = RunState::Running);
    world.pass(1000);
    world.settle();
    failed(&mut world, "build-late");
}

#[test]
fn nothing_is_looked_at_by_a_time_that_is_past() {
    let looks = |world: &World| {
        let decision = planner::vm::plan(&world.view, BUILDER, world.now);
        decision.plan.is_none() && decision.look_again_at.is_none_or(|at| at > world.now)
    };
    // Its host says nothing any more, so it is there still when it was given up.
    let mut world = World::new(1);
    asked(&mut world, None, None);
    world.run(BUILDER, |run| run.state = RunState::Running);
    world.pass(1000);
    world.settle();
    assert!(world.view.vms.contains_key(&BUILDER));
    world.pass(1000);
    assert!(looks(&world));
    // Its guest is done, and goes down slowly.
    let mut world = World::new(1);
    asked(&mut world, None, None);
    up(&mut world);
    built(&mut world, None);
    world.pass(20);
    assert!(looks(&world));
}

#[test]
fn one_whose_host_is_dead_is_not_begun_anew() {
    let mut world = World::new(2);
    asked(&mut world, None, None);
    up(&mut world);
    let host = world.host_of(BUILDER);
    world.confirm_dead(&host);
    let status = ended(&world);
    assert_eq!(status.reason.unwrap().code, "host-dead");
    assert!(!world.view.images.contains_key(&IMAGE.0));
}

#[test]
fn a_template_that_is_there_or_gone_by_then_is_named() {
    let mut world = World::new(1);
    asked(&mut world, None, None);
    up(&mut world);
    web(&mut world);
    world.settle();
    failed(&mut world, "template-exists");

    let mut world = World::new(1);
    let id = web(&mut world);
    asked(&mut world, None, Some(id));
    world.remove(key::object(Kind::Template, id.0));
    failed(&mut world, "template-gone");
}

#[test]
fn a_template_that_has_all_its_versions_by_then_gets_no_more() {
    let mut world = World::new(1);
    let id = web(&mut world);
    asked(&mut world, None, Some(id));
    for number in 1..VERSIONS_MAX as u64 {
        let version = TemplateVersion {
            made: Made {
                at: world.now,
                by: "ann".to_owned(),
                built_from: None,
            },
            spec: gives(world.image()),
        };
        world.write(key::template_version(id, number + 1000), &version);
    }
    captured(&mut world);
    assert_eq!(world.view.templates[&id.0].value.spec.version, FIRST_VERSION);
    failed(&mut world, "too-many-versions");
}

#[test]
fn who_deletes_the_vm_gives_it_up() {
    let mut world = World::new(1);
    asked(&mut world, None, None);
    up(&mut world);
    assert!(planner::copies::waiting_for(&world.view, BUILDER).is_empty());
    assert!(planner::build::under_way(&world.view, "web", Some("default")).is_some());
    world.delete(BUILDER);
    assert!(!world.view.images.contains_key(&IMAGE.0));
    assert_eq!(ended(&world).phase, OperationPhase::Superseded);
    assert!(planner::build::under_way(&world.view, "web", Some("default")).is_none());
    is_gone(&mut world);
}
