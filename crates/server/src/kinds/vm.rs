//! Virtual machines: made from a template or an image, changed, and told what to do.

use std::net::IpAddr;

use api::Problem;
use api::kinds::{GuestSpec, NicSpec, Placement, PlacementSpec, Vm, VmMemory, VmSpec, VmStatus};
use model::lifecycle::{self, Phase};
use model::limits::{NICS_MAX, check_range};
use model::network::{AddressHolder, NetworkSpec};
use model::vm::{Goal, GuestConfig, Nic, Power, VmIntent, calculated_mac};
use model::{DatastoreId, ImageId, Kind, NetworkId, Object, Reason, Timestamp, VmId, key};
use planner::placement::with_qemu_mib;
use planner::view::At;
use planner::{Plan, View};
use uuid::Uuid;

use super::action::next_commands;
use super::base::Base;
use super::catalog::{check_guest_size, check_sizes, guest, guest_spec, hide_texts};
use super::{
    Served, build, clone, find, flatten, host_name, immutable, media, name_of, placement, start, template,
    warm,
};
use crate::service::Context;
use crate::shared::Heard;

impl Served for Vm {
    type Stored = model::vm::VmSpec;

    fn stored(view: &View, id: Uuid) -> Option<&At<Object<Self::Stored>>> {
        view.vms.get(&VmId(id))?.object.as_ref()
    }

    fn spec(view: &View, stored: &Self::Stored) -> VmSpec {
        let nic = |nic: &Nic| NicSpec {
            network: name_of(view, Kind::Network, nic.network.0),
            mac: Some(nic.mac.clone()),
            address: nic.address,
        };
        VmSpec {
            template: stored.template.map(|id| name_of(view, Kind::Template, id.0)),
            profile: stored.profile.map(|id| name_of(view, Kind::Profile, id.0)),
            vcpus: Some(stored.vcpus),
            memory_mib: Some(stored.memory_mib),
            image: flatten::image_of(view, stored).map(|image| name_of(view, Kind::Image, image.0)),
            disk_bytes: stored.disk_bytes,
            datastore: Some(name_of(view, Kind::Datastore, stored.datastore.0)),
            nics: Some(stored.nics.iter().map(nic).collect()),
            guest: Some(guest_spec(&stored.guest)),
            placement: placement::shown(view, &stored.placement),
            power: Some(stored.power),
            cdrom: media::cdrom_spec(view, stored),
            boot: Some(planner::document::boot(stored)),
            clone_of: stored.clone_of.map(|id| name_of(view, Kind::Vm, id.0)),
            firmware: Some(stored.firmware),
            clone_full: stored
                .clone_of
                .map(|_| stored.image.is_none())
                .filter(|full| *full),
            start: Some(stored.start).filter(|start| !start.is_usual()),
            warms: stored.warms.map(|id| name_of(view, Kind::Template, id.0)),
            builds: build::shown(view, stored),
        }
    }

    fn hide_secrets(spec: &mut VmSpec) {
        spec.guest.iter_mut().for_each(hide_texts);
        spec.builds.iter_mut().for_each(build::hide_script);
    }

    fn status(heard: &Heard, view: &View, id: Uuid) -> Option<VmStatus> {
        let vm = view.vms.get(&VmId(id))?;
        let facts = view.facts(VmId(id))?;
        let (phase, availability) = view.phase(VmId(id))?;
        let intent = vm.intent.as_ref().map(|at| &at.value);
        let open = intent.and_then(|intent| intent.open.as_ref());
        let run = open.and_then(|open| vm.runs.get(&open.incarnation));
        let ended = intent
            .and_then(|intent| intent.ended.as_ref())
            .map(|ended| ended.incarnation);
        let migration = intent
            .and_then(|intent| intent.migration)
            .map(|id| name_of(view, Kind::Migration, id.0));
        let host = intent
            .and_then(|intent| intent.host)
            .filter(|id| view.hosts.contains_key(id))
            .map(|id| host_name(view, id));
        let memory = memory(heard, view, VmId(id), intent);
        Some(VmStatus {
            phase,
            availability,
            incarnation: open.map(|open| open.incarnation).or(ended),
            addresses: run.map(|run| run.addresses.clone()).unwrap_or_default(),
            ready: run.is_some_and(|run| run.ready),
            reason: held_back(view, VmId(id), phase)
                .or_else(|| lifecycle::reason(facts, phase))
                .or_else(|| memory.and_then(over_reservation))
                .or_else(|| warm::staleness(view, VmId(id))),
            memory,
            placement: intent
                .and_then(|intent| intent.placement.clone())
                .map(|record| Placement {
                    decided_at: record.decided_at,
                    chosen: record.chosen,
                    considered: record.considered,
                    refused: record.refused,
                }),
            steps: start::steps(view, VmId(id), open, run),
            next_commands: next_commands(view, VmId(id), phase),
            at_next_start: at_next_start(facts.spec, intent),
            operation: planner::operation::under_way(view, VmId(id)).map(|meta| meta.name.clone()),
            host,
            migration,
            cdrom: run
                .and_then(|run| run.cdrom.as_ref())
                .map(|state| media::cdrom_status(view, facts.spec, state)),
            copied: clone::status(view, VmId(id)),
            template_version: facts.spec.template_version,
            layer: intent
                .and_then(|intent| intent.layer)
                .map(|id| name_of(view, Kind::Vm, id.0)),
            booted_instead: intent.and_then(|intent| intent.booted_instead.clone()),
            disk: flatten::status(heard, view, VmId(id)),
        })
    }

    fn create(
        context: &Context<'_>,
        _: &str,
        spec: VmSpec,
        plan: &mut Plan,
    ) -> Result<Self::Stored, Problem> {
        if let Some(builds) = spec.builds.clone() {
            return build::create(context, builds, spec, plan);
        }
        match (spec.clone_of.clone(), spec.warms.clone()) {
            (None, Some(template)) => return warm::create(context, &template, spec, plan),
            (Some(source), _) => return clone::create(context, &source, spec, plan),
            (None, None) => {}
        }
        let base = Base::of(context, &spec)?;
        let image = match &spec.image {
            Some(name) => Some(ImageId(find(context, Kind::Image, name)?)),
            None => base.image(),
        };
        let cdrom = spec
            .cdrom
            .map(|cdrom| media::cdrom(context, &cdrom))
            .transpose()?;
        let vcpus = spec.vcpus.or_else(|| base.vcpus()).unwrap_or(1);
        let memory_mib = spec.memory_mib.or_else(|| base.memory_mib());
        let memory_mib = memory_mib.ok_or_else(memory_missing)?;
        let disk_bytes = spec.disk_bytes.or_else(|| base.disk_bytes());
        check_sizes(vcpus, memory_mib, disk_bytes)?;
        match image {
            Some(image) => check_image(context.view, image, disk_bytes)?,
            None => media::check_blank(cdrom.as_ref(), disk_bytes)?,
        }
        check_largest_host(context, memory_mib, vcpus)?;
        let wanted = PlacementSpec {
            host_labels: base.host_labels(spec.placement.host_labels),
            ..spec.placement
        };
        let datastore = find(
            context,
            Kind::Datastore,
            spec.datastore.as_deref().unwrap_or("default"),
        )?;
        Ok(model::vm::VmSpec {
            template: base.template_id(),
            template_version: base.version(),
            profile: base.profile_id(),
            vcpus,
            memory_mib,
            image,
            disk_bytes,
            datastore: DatastoreId(datastore),
            nics: nics(context, spec.nics.unwrap_or_else(|| base.nics(context)), plan)?,
            guest: merged_guest(spec.guest, base.guest())?,
            placement: placement::rule(context, wanted)?,
            power: spec.power.unwrap_or(Power::Running),
            force: false,
            power_request: 1,
            reboot: None,
            boot: media::boot(spec.boot.unwrap_or_default(), cdrom.as_ref())?,
            cdrom,
            clone_of: None,
            firmware: spec.firmware.unwrap_or_else(|| base.firmware()),
            start: warm::start_choice(context, spec.start, base.template_id())?,
            warms: None,
            flatten_request: 0,
            builds: None,
        })
    }

    fn change(
        context: &Context<'_>,
        old: &Object<Self::Stored>,
        spec: VmSpec,
    ) -> Result<Self::Stored, Problem> {
        check_kept(context, old, &spec)?;
        let vcpus = spec.vcpus.unwrap_or(old.spec.vcpus);
        let memory_mib = spec.memory_mib.unwrap_or(old.spec.memory_mib);
        warm::check_unchanged(context.view, old, &spec)?;
        check_sizes(vcpus, memory_mib, None)?;
        check_largest_host(context, memory_mib, vcpus)?;
        let power = spec.power.unwrap_or(old.spec.power);
        if power == Power::Prepared && old.spec.power != power {
            let detail = "only a new VM is prepared: create another one, or switch this one off";
            return Err(Problem::invalid("immutable", detail));
        }
        let asked = u64::from(power != old.spec.power);
        let cdrom = media::changed_cdrom(context, old, spec.cdrom)?;
        let boot = spec.boot.unwrap_or_else(|| old.spec.boot.clone());
        Ok(model::vm::VmSpec {
            vcpus,
            memory_mib,
            guest: spec
                .guest
                .map(guest)
                .transpose()?
                .unwrap_or_else(|| old.spec.guest.clone()),
            placement: placement::rule(context, spec.placement)?,
            power,
            power_request: old.spec.power_request.saturating_add(asked),
            boot: media::boot(boot, cdrom.as_ref())?,
            cdrom,
            ..old.spec.clone()
        })
    }

    fn relies_on(view: &View, old: &Object<Self::Stored>, new: &Self::Stored) -> Option<(String, u64)> {
        media::relies_on(view, old, new)
    }

    fn next_step(view: &View, id: Uuid, now: Timestamp) -> Option<Plan> {
        planner::vm::plan(view, VmId(id), now).plan
    }

    fn delete(
        context: &Context<'_>,
        at: &At<Object<Self::Stored>>,
        plan: &mut Plan,
    ) -> Result<Uuid, Problem> {
        if at.value.meta.deleted_at.is_some() {
            return Ok(at.value.meta.id);
        }
        clone::check_deletable(context.view, at)?;
        warm::check_deletable(context.view, at)?;
        plan.action = format!("delete vm {}", at.value.meta.name);
        let delete = |object: &mut Object<model::vm::VmSpec>| object.meta.deleted_at = Some(context.now);
        Ok(crate::service::replace_object(
            context,
            Kind::Vm,
            at,
            delete,
            plan,
        ))
    }
}

/// Refuses a change of what a VM keeps for its life.
fn check_kept(context: &Context<'_>, old: &Object<model::vm::VmSpec>, spec: &VmSpec) -> Result<(), Problem> {
    let shown = <Vm as Served>::spec(context.view, &old.spec);
    // Of a source that is gone nobody knows the name.
    let source = old.spec.clone_of.filter(|id| context.view.vms.contains_key(id));
    // Nor that of an image which a whole disk needs no more.
    let image_is_gone = old.spec.image.is_some() && shown.image.is_none();
    for (differs, what) in [
        (
            !template::is_same(
                spec.template.as_deref(),
                shown.template.as_deref(),
                old.spec.template_version,
            ),
            "the template",
        ),
        (
            spec.profile.is_some() && spec.profile != shown.profile,
            "the profile",
        ),
        (
            spec.image.is_some() && spec.image != shown.image && !image_is_gone,
            "the image",
        ),
        (spec.disk_bytes != shown.disk_bytes, "the disk's size"),
        (
            spec.firmware.is_some() && spec.firmware != shown.firmware,
            "the firmware",
        ),
        (
            spec.start.is_some() && spec.start != shown.start,
            "how it was started first",
        ),
        (spec.warms != shown.warms, "what it is the warm form of"),
        (spec.builds != shown.builds, "what it builds"),
        (
            spec.clone_of != shown.clone_of && (source.is_some() || old.spec.clone_of.is_none()),
            "what it is a copy of",
        ),
        (
            spec.clone_full.is_some() && spec.clone_full.filter(|full| *full) != shown.clone_full,
            "whether it is a full copy",
        ),
        (
            spec.datastore.is_some() && spec.datastore != shown.datastore,
            "the datastore",
        ),
        (
            spec.nics
                .as_ref()
                .is_some_and(|nics| !are_same(nics, shown.nics.as_deref())),
            "the network interfaces",
        ),
    ] {
        if differs {
            return Err(immutable(Kind::Vm, what));
        }
    }
    Ok(())
}

/// What the open incarnation takes of its host's memory.
fn memory(heard: &Heard, view: &View, id: VmId, intent: Option<&VmIntent>) -> Option<VmMemory> {
    let (host, open) = intent.and_then(|intent| intent.host.zip(intent.open.as_ref()))?;
    let reservations = view.hosts.get(&host)?.reservations.as_ref()?;
    let reserved_mib = reservations.value.vms.get(&id)?.memory_mib;
    Some(VmMemory {
        reserved_mib,
        qemu_reserved_mib: reserved_mib.saturating_sub(open.memory_mib),
        qemu_mib: heard.qemu_mib(host, id),
    })
}

/// Whether a VM's QEMU takes more than is reserved for it; none while that is not measured.
pub(crate) fn exceeds_reservation(heard: &Heard, view: &View, id: VmId) -> Option<bool> {
    let intent = view.vms.get(&id)?.intent.as_ref();
    let memory = memory(heard, view, id, intent.map(|at| &at.value))?;
    memory.qemu_mib.map(|mib| mib > memory.qemu_reserved_mib)
}

/// Why nothing is decided about a VM.
fn held_back(view: &View, id: VmId, phase: Phase) -> Option<Reason> {
    if view.unreadable_vms().contains(&id) {
        let message = "something that is stored of it cannot be read, and nothing is decided about it until that is mended: \
                       `sterna store check` names what it is, and a backup may have it";
        return Some(Reason::new("unreadable", message));
    }
    let is_held = view.is_held() && phase == Phase::Pending;
    is_held.then(|| {
        Reason::new(
            "store-held",
            "the store was restored, and nothing is decided until it goes on: `sterna store status` says what is in the way",
        )
    })
}

/// Its host may run out of memory with all reservations kept.
fn over_reservation(memory: VmMemory) -> Option<Reason> {
    let takes_mib = memory.qemu_mib.filter(|mib| *mib > memory.qemu_reserved_mib)?;
    let message = format!(
        "its QEMU takes {takes_mib} MiB beside the guest's memory, and {} MiB are reserved for that: its host may run short; \
         moving it to another host starts a new QEMU",
        memory.qemu_reserved_mib
    );
    Some(Reason::new("memory-over-reservation", message))
}

/// The sizes that were changed after the guest got its own. A saved guest keeps them.
fn at_next_start(spec: &model::vm::VmSpec, intent: Option<&VmIntent>) -> Vec<String> {
    // One that only copies its disk has no guest.
    let open = intent.and_then(|intent| intent.open.as_ref());
    let open = open.filter(|open| open.goal != Goal::Copy);
    let saved = intent.and_then(|intent| intent.saved.as_ref());
    let present = open.map(|open| (open.memory_mib, open.vcpus));
    let Some((memory_mib, vcpus)) = present.or(saved.map(|saved| (saved.memory_mib, saved.vcpus))) else {
        return Vec::new();
    };
    let parts = [
        ("memory_mib", spec.memory_mib != memory_mib),
        ("vcpus", spec.vcpus != vcpus),
    ];
    let later = parts.into_iter().filter(|(_, differs)| *differs);
    later.map(|(part, _)| part.to_owned()).collect()
}

/// Whether these are the interfaces that are there. What is left out of one was calculated, and stays.
fn are_same(given: &[NicSpec], present: Option<&[NicSpec]>) -> bool {
    let present = present.unwrap_or_default();
    let is_same = |(given, present): (&NicSpec, &NicSpec)| {
        let mac = given.mac.as_ref().map(|mac| mac.to_ascii_lowercase());
        given.network == present.network
            && (mac.is_none() || mac == present.mac)
            && (given.address.is_none() || given.address == present.address)
    };
    given.len() == present.len() && given.iter().zip(present).all(is_same)
}

/// What the request says, and of the template's, or of the source's, what it does not say.
pub(super) fn merged_guest(given: Option<GuestSpec>, base: GuestConfig) -> Result<GuestConfig, Problem> {
    let Some(given) = given else {
        return Ok(base);
    };
    let seed = given.seed.unwrap_or(base.seed);
    let given = guest(given)?;
    let merged = GuestConfig {
        hostname: given.hostname.or(base.hostname),
        ssh_keys: if given.ssh_keys.is_empty() {
            base.ssh_keys
        } else {
            given.ssh_keys
        },
        user_data: given.user_data.or(base.user_data),
        vendor_data: given.vendor_data.or(base.vendor_data),
        seed,
    };
    check_guest_size(&merged)?;
    Ok(merged)
}

fn check_image(view: &View, image: ImageId, disk_bytes: Option<u64>) -> Result<(), Problem> {
    let name = name_of(view, Kind::Image, image.0);
    let content = media::content(view, image)?;
    media::check_is_disk(content, &name)?;
    let least = content.virtual_bytes;
    if disk_bytes.is_some_and(|bytes| bytes < least) {
        let detail = format!("the disk would be smaller than image {name}: give at least disk_bytes {least}");
        return Err(Problem::invalid("disk-too-small", detail));
    }
    Ok(())
}

/// Memory that no host could ever give is an error now, not a VM that waits for ever.
pub(super) fn check_largest_host(context: &Context<'_>, memory_mib: u64, vcpus: u32) -> Result<(), Problem> {
    let hosts = context.view.hosts.values().map(|host| {
        let memory_mib = planner::hardware::capacity(host).memory_mib;
        (memory_mib, host.name())
    });
    let largest = hosts.filter(|(has_mib, _)| *has_mib > 0).max();
    let needs = with_qemu_mib(memory_mib, vcpus);
    match largest {
        Some((has_mib, host)) if needs > has_mib => {
            let detail = format!(
                "memory_mib {memory_mib} is more than any host can give: the largest, {host}, has {has_mib} MiB for guests, \
                 and a VM takes {} MiB more than its memory",
                needs.saturating_sub(memory_mib)
            );
            Err(Problem::invalid("larger-than-any-host", detail))
        }
        _ => Ok(()),
    }
}

fn memory_missing() -> Problem {
    let detail = "a VM without a `template` or a `profile` needs `memory_mib`";
    Problem::invalid("memory-missing", detail)
}

/// The interfaces with what is calculated: the MAC from the VM's id, the address from the network's pool.
pub(super) fn nics(
    context: &Context<'_>,
    wanted: Vec<NicSpec>,
    plan: &mut Plan,
) -> Result<Vec<Nic>, Problem> {
    check_range("the number of nics", wanted.len() as u64, 0, NICS_MAX as u64)?;
    let mut nics: Vec<Nic> = Vec::new();
    for (index, nic) in wanted.into_iter().enumerate() {
        let id = find(context, Kind::Network, &nic.network)?;
        let Some(network) = context.view.networks.get(&id).map(|at| &at.value) else {
            continue;
        };
        let taken: Vec<IpAddr> = nics
            .iter()
            .filter(|nic| nic.network.0 == id)
            .filter_map(|nic| nic.address)
            .collect();
        let address = address(
            context,
            id,
            &network.spec,
            &network.meta.name,
            nic.address,
            &taken,
        )?;
        plan.create(
            key::network_address(NetworkId(id), address),
            &AddressHolder {
                vm: VmId(context.new_id),
            },
        );
        let mac = nic.mac.map_or_else(
            || Ok(calculated_mac(context.new_id, index)),
            |mac| checked_mac(&mac),
        )?;
        nics.push(Nic {
            network: NetworkId(id),
            mac,
            address: Some(address),
            prefix_len: network.spec.prefix_len,
        });
    }
    Ok(nics)
}

/// The address that was asked for, or a free one: after the last in use, or else the first gap.
fn address(
    context: &Context<'_>,
    id: Uuid,
    network: &NetworkSpec,
    name: &str,
    asked: Option<IpAddr>,
    taken: &[IpAddr],
) -> Result<IpAddr, Problem> {
    let used = context.view.addresses.get(&id);
    let is_used =
        |address: &IpAddr| taken.contains(address) || used.is_some_and(|used| used.contains(address));
    if let Some(address) = asked {
        let fits = matches!(address, IpAddr::V4(v4) if network.has_host(v4));
        if !fits {
            let detail = format!(
                "{address} is not an address for VMs in network {name}: leave it out, or take another"
            );
            return Err(Problem::invalid("address-not-in-network", detail));
        }
        if is_used(&address) {
            let detail = format!("{address} is in use in network {name}: leave it out, or take another");
            return Err(Problem::conflict("address-taken", detail));
        }
        return Ok(address);
    }
    let last = used.and_then(|used| used.last().copied());
    let next = last.and_then(|last| match last {
        IpAddr::V4(v4) => u32::from(v4).checked_add(1).map(std::net::Ipv4Addr::from),
        IpAddr::V6(_) => None,
    });
    let after_last = next.filter(|next| network.has_host(*next)).map(IpAddr::V4);
    let upwards = after_last
        .into_iter()
        .flat_map(|first| network.hosts().map(IpAddr::V4).filter(move |a| *a >= first));
    let mut free = upwards
        .chain(network.hosts().map(IpAddr::V4))
        .filter(|address| !is_used(address));
    // Requests that were overtaken spread out, so that many at once do not all want the same address.
    let spread = 1u128 << context.attempt.min(10);
    let skip = usize::try_from(context.new_id.as_u128() % spread).unwrap_or(0);
    let first = free.next();
    let chosen = if skip == 0 {
        first
    } else {
        free.nth(skip - 1).or(first)
    };
    chosen.ok_or_else(|| {
        let detail =
            format!("network {name} has no free address: delete a VM in it, or take another network");
        Problem::conflict("network-full", detail)
    })
}

fn checked_mac(mac: &str) -> Result<String, Problem> {
    let mac = mac.to_ascii_lowercase();
    let parts: Vec<_> = mac.split(':').collect();
    let octet = |part: &&str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let unicast = parts
        .first()
        .and_then(|part| u8::from_str_radix(part, 16).ok())
        .is_some_and(|n| n & 1 == 0);
    if parts.len() == 6 && parts.iter().all(octet) && unicast {
        return Ok(mac);
    }
    let detail = format!("{mac:?} is not the MAC of one interface: give six octets like 52:54:00:12:34:56");
    Err(Problem::invalid("invalid-mac", detail))
}
