//! Warm VMs, whose memory is kept for others, and the VMs that start from it.
//!
//! **Owns:** when a warm VM's memory is kept, from which of them a new VM starts, and what becomes of one that could not.
//!
//! **Does not know:** how memory is kept and mapped.
//!
//! A warm VM is booted once, by an incarnation of its own; when that has left its memory nothing of it is ever written again,
//! and it holds no host. A VM that starts from it has its disk over the warm VM's. If its start fails before its guest is
//! somebody of its own, it was never heard of by anybody: it gets another disk, over the image, and boots.

use model::report::{RunState, RunStatus};
use model::template::{ANOTHER_BUILD, TemplateSpec};
use model::vm::{
    Firmware, Goal, Nic, Open, PlacementRule, Power, SavedState, Start, StartChoice, VmIntent, VmSpec,
    calculated_mac,
};
use model::{DatastoreId, HostId, NetworkId, Reason, TemplateId, VmId, key};
use uuid::Uuid;

use crate::plan::Plan;
use crate::view::View;
use crate::vm::Step;

/// Whether a template's warm VM can be used for a VM.
enum Fit<'v> {
    Fits(VmId, &'v SavedState),
    No(Reason),
    /// There is none.
    None,
}

impl Step<'_> {
    /// What a new VM starts from, and why not from memory if it was to.
    pub(crate) fn first_start(&self, intent: &VmIntent) -> (Start, Option<VmId>, Option<Reason>) {
        let spec = self.spec();
        let is_new = intent.last_incarnation.0 == 0 && intent.copied.is_none();
        if spec.start == StartChoice::Boot || !is_new || spec.power != Power::Running {
            return (Start::Disk, intent.layer, intent.booted_instead.clone());
        }
        match warm_form_for(self.view, spec) {
            Fit::Fits(vm, saved) => {
                let incarnation = saved.incarnation;
                (Start::Warm { vm, incarnation }, Some(vm), None)
            }
            Fit::No(reason) => (Start::Disk, None, Some(reason)),
            Fit::None if spec.start == StartChoice::Auto => (Start::Disk, None, None),
            Fit::None => (Start::Disk, None, Some(booted("its template is not warm"))),
        }
    }

    /// Whether it has left its memory for others, and is never started again.
    pub(crate) fn is_kept_warm(&self) -> bool {
        self.spec().warms.is_some() && self.intent().saved.is_some()
    }

    /// What its host shall do with a warm VM: keep its memory as soon as its guest's agent has answered.
    pub(crate) fn warming_goal(&self, open: &Open, goal: Goal) -> Goal {
        let run = self.vm.runs.get(&open.incarnation);
        let is_up = run.is_some_and(|run| run.ready && run.state == RunState::Running);
        match goal {
            Goal::Run { .. } if self.spec().warms.is_some() && is_up => Goal::Warm,
            goal => goal,
        }
    }

    /// An incarnation that started from memory ended before its guest was somebody of its own: nothing of it is used.
    pub(crate) fn give_up_instant(&self, open: &Open, run: Option<&RunStatus>, intent: &mut VmIntent) {
        let has_identity = run.is_some_and(|run| run.has_identity);
        if !matches!(open.start, Start::Warm { .. }) || has_identity {
            return;
        }
        let why = run.and_then(|run| run.reason.as_ref());
        let why = why.map_or("its host was lost meanwhile", |reason| &reason.message);
        intent.layer = None;
        intent.booted_instead = Some(booted(why));
        if matches!(open.goal, Goal::Run { .. }) {
            intent.ended = None;
        }
    }

    /// The first VM whose disk lies over its own.
    pub(crate) fn layer_of(&self) -> Option<VmId> {
        self.spec().warms?;
        users_of(self.view, self.id).next()
    }
}

/// The VMs whose disks lie over this warm VM's, and those of which that cannot be read.
pub fn users_of(view: &View, warm: VmId) -> impl Iterator<Item = VmId> + '_ {
    let unreadable = view.unreadable_vms();
    let uses = move |intent: &VmIntent| intent.layer == Some(warm);
    let used = view.vms.iter().filter(move |(id, vm)| {
        let is_known = vm.intent.as_ref().is_some_and(|at| uses(&at.value));
        is_known || (**id != warm && unreadable.contains(id))
    });
    used.map(|(id, _)| *id)
}

/// The warm VMs of a template, the newest last.
pub fn warm_forms(view: &View, template: TemplateId) -> impl Iterator<Item = VmId> + '_ {
    view.warm_forms(template)
}

/// A VM that shall be the warm form of a template's newest version. Its guest has interfaces, which are plugged in nowhere,
/// and no addresses.
pub fn form_spec(id: TemplateId, template: &TemplateSpec, new_id: Uuid, datastore: DatastoreId) -> VmSpec {
    let nic = |(index, network): (usize, &NetworkId)| Nic {
        network: *network,
        mac: calculated_mac(new_id, index),
        address: None,
        prefix_len: 0,
    };
    let from = template.profile.as_ref();
    VmSpec {
        template: Some(id),
        template_version: Some(template.version),
        profile: from.map(|from| from.profile),
        vcpus: template.vcpus,
        memory_mib: template.memory_mib,
        image: Some(template.image),
        disk_bytes: template.disk_bytes,
        datastore,
        nics: template.networks.iter().enumerate().map(nic).collect(),
        guest: template.guest.clone(),
        placement: PlacementRule {
            host_labels: from.map(|from| from.host_labels.clone()).unwrap_or_default(),
            ..PlacementRule::default()
        },
        power: Power::Running,
        force: false,
        power_request: 1,
        reboot: None,
        cdrom: None,
        boot: Vec::new(),
        clone_of: None,
        firmware: template.firmware,
        start: StartChoice::Boot,
        warms: Some(id),
        flatten_request: 0,
        builds: None,
    }
}

/// Why VMs cannot start from a warm VM's memory any more.
pub fn outdated(view: &View, id: VmId) -> Option<Reason> {
    staleness(view, id).or_else(|| of_another_build(view, id))
}

/// Whether no host can go on from a warm VM's memory: what they run is of another build than what kept it.
fn of_another_build(view: &View, id: VmId) -> Option<Reason> {
    let vm = view.vms.get(&id)?;
    let saved = vm.intent.as_ref()?.value.saved.as_ref()?;
    let object = vm.object.as_ref().map(|at| &at.value.spec);
    let needs_uefi = object.is_some_and(|spec| spec.firmware == Firmware::Uefi);
    let living = view.hosts.iter().filter(|(_, host)| !host.is_dead());
    let living = living.filter_map(|(id, host)| Some((id, &host.status.as_ref()?.value)));
    let able = living.filter(|(_, status)| status.uefi || !needs_uefi);
    let mut builds = able.map(|(id, status)| (id, status.build()));
    let first = builds.next()?;
    let fits = |(host, build): &(&HostId, String)| {
        !saved.refused_by.contains(host) && saved.build.as_ref().is_none_or(|kept| kept == build)
    };
    if fits(&first) || builds.any(|other| fits(&other)) {
        return None;
    }
    let kept = saved.build.as_deref().unwrap_or("another QEMU");
    let message = format!(
        "its memory was kept by {kept}, and no host can go on from that ({} here): {}",
        first.1,
        remedy(view, id)
    );
    Some(Reason::new(ANOTHER_BUILD, message))
}

/// The host of an incarnation that could not go on from a warm VM's memory is not asked to again.
pub(crate) fn note_refusal(
    view: &View,
    plan: &mut Plan,
    open: &Open,
    run: Option<&RunStatus>,
    host: Option<HostId>,
) {
    let is_refused = run
        .and_then(|run| run.reason.as_ref())
        .is_some_and(|why| why.code == ANOTHER_BUILD);
    let (Start::Warm { vm, .. }, Some(host), true) = (&open.start, host, is_refused) else {
        return;
    };
    let Some(at) = view.vms.get(vm).and_then(|vm| vm.intent.as_ref()) else {
        return;
    };
    let mut intent = at.value.clone();
    let is_new = intent
        .saved
        .as_mut()
        .is_some_and(|saved| saved.refused_by.insert(host));
    if is_new {
        plan.replace(key::vm_intent(*vm), at.revision, &intent);
    }
}

/// Why a warm VM is not like its template any more.
pub fn staleness(view: &View, id: VmId) -> Option<Reason> {
    let spec = &view.vms.get(&id)?.object.as_ref()?.value.spec;
    let template = &view.templates.get(&spec.warms?.0)?.value.spec;
    let parts = [
        ("image", Some(template.image) == spec.image),
        ("firmware", template.firmware == spec.firmware),
        ("vcpus", template.vcpus == spec.vcpus),
        ("memory_mib", template.memory_mib == spec.memory_mib),
        ("disk_bytes", template.disk_bytes == spec.disk_bytes),
        ("networks", template.networks.len() == spec.nics.len()),
        ("guest", template.guest == spec.guest),
    ];
    let changed = parts.into_iter().filter(|(_, is_same)| !is_same);
    let changed: Vec<&str> = changed.map(|(part, _)| part).collect();
    (!changed.is_empty()).then(|| {
        let message = format!(
            "its template has changed since ({}): {}",
            changed.join(", "),
            remedy(view, id)
        );
        Reason::new("warm-form-stale", message)
    })
}

/// What comes after a warm VM that is of no more use.
fn remedy(view: &View, id: VmId) -> String {
    let template = || view.vms.get(&id)?.object.as_ref()?.value.spec.warms;
    let template = template().and_then(|id| view.templates.get(&id.0));
    match template.map(|at| &at.value) {
        Some(template) if template.spec.keep_warm.is_none() => format!(
            "`sterna template warm {}` has another made, and this VM deleted when no other needs it",
            template.meta.name
        ),
        _ => "another is made by itself, and this VM deleted when no other needs it".to_owned(),
    }
}

/// The newest warm VM that a VM can start from.
fn warm_form_for<'v>(view: &'v View, spec: &VmSpec) -> Fit<'v> {
    let Some(template) = spec.template else {
        return Fit::None;
    };
    let mut why = None;
    let forms: Vec<VmId> = warm_forms(view, template).collect();
    for id in forms.into_iter().rev() {
        match fits(view, id, spec) {
            Ok(saved) => return Fit::Fits(id, saved),
            Err(reason) => why = why.or(Some(reason)),
        }
    }
    why.map_or(Fit::None, |why| Fit::No(booted(&why)))
}

fn fits<'v>(view: &'v View, id: VmId, spec: &VmSpec) -> Result<&'v SavedState, String> {
    let unknown = || "its template's warm form is gone".to_owned();
    let vm = view.vms.get(&id).ok_or_else(unknown)?;
    let object = &vm.object.as_ref().ok_or_else(unknown)?.value;
    if object.meta.deleted_at.is_some() {
        return Err(unknown());
    }
    let name = &object.meta.name;
    if let Some(stale) = outdated(view, id) {
        return Err(format!("of {name}, {}", stale.message));
    }
    let warm = &object.spec;
    let told = |spec: &VmSpec| {
        (
            spec.guest.ssh_keys.clone(),
            spec.guest.user_data.clone(),
            spec.guest.vendor_data.clone(),
        )
    };
    let parts = [
        ("image", warm.image == spec.image),
        ("firmware", warm.firmware == spec.firmware),
        ("vcpus", warm.vcpus == spec.vcpus),
        ("memory_mib", warm.memory_mib == spec.memory_mib),
        ("disk_bytes", warm.disk_bytes == spec.disk_bytes),
        ("datastore", warm.datastore == spec.datastore),
        ("number of interfaces", warm.nics.len() == spec.nics.len()),
        ("cdrom", warm.cdrom.is_some() == spec.cdrom.is_some()),
        ("guest", told(warm) == told(spec)),
    ];
    let other = parts.into_iter().find(|(_, is_same)| !is_same);
    if let Some((part, _)) = other {
        let versions = (spec.template_version, warm.template_version);
        return Err(match versions {
            (Some(own), Some(newest)) if own != newest => format!(
                "it is of version {own} of its template and {name} of version {newest}, which has another `{part}`"
            ),
            _ => format!("it has another `{part}` than {name}"),
        });
    }
    let saved = vm.intent.as_ref().and_then(|at| at.value.saved.as_ref());
    saved.ok_or_else(|| format!("the memory of {name} is not kept yet"))
}

fn booted(why: &str) -> Reason {
    Reason::new(
        "booted-instead",
        format!("it was booted, not started from memory: {why}"),
    )
}
