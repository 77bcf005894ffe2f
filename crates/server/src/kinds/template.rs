//! Templates: what VMs are made from, and their versions.

use std::collections::BTreeMap;

use api::Problem;
use api::kinds::{Template, TemplateSpec, TemplateStatus};
use api::template::{KeepWarm, TemplateVersion};
use model::limits::{NICS_MAX, VERSIONS_MAX, check_range};
use model::profile::ProfileSpec;
use model::template::{self, FIRST_VERSION, FromProfile, Made, made};
use model::{ImageId, Kind, NetworkId, Object, ProfileId, TemplateId, key};
use planner::view::At;
use planner::{Plan, View};
use uuid::Uuid;

use super::base::DEFAULT_NETWORK;
use super::catalog::{check_sizes, guest, guest_spec, hide_texts};
use super::{Served, base, find, media, name_of, remove_at_once, warm};
use crate::service::Context;
use crate::shared::Heard;

impl Served for Template {
    type Stored = template::TemplateSpec;

    fn stored(view: &View, id: Uuid) -> Option<&At<Object<Self::Stored>>> {
        view.templates.get(&id)
    }

    fn spec(view: &View, stored: &Self::Stored) -> TemplateSpec {
        let networks = stored.networks.iter();
        let networks = networks.map(|id| name_of(view, Kind::Network, id.0)).collect();
        let from = stored.profile.as_ref();
        let is_own = |is_from: fn(&FromProfile) -> bool| !from.is_some_and(is_from);
        TemplateSpec {
            image: name_of(view, Kind::Image, stored.image.0),
            profile: from.map(|from| name_of(view, Kind::Profile, from.profile.0)),
            vcpus: is_own(|from| from.vcpus).then_some(stored.vcpus),
            memory_mib: is_own(|from| from.memory).then_some(stored.memory_mib),
            disk_bytes: stored.disk_bytes.filter(|_| is_own(|from| from.disk)),
            networks: Some(networks),
            guest: guest_spec(&stored.guest),
            firmware: Some(stored.firmware),
            keep_warm: stored.keep_warm.as_ref().map(|keep| KeepWarm {
                datastore: Some(name_of(view, Kind::Datastore, keep.datastore.0)),
            }),
        }
    }

    fn hide_secrets(spec: &mut TemplateSpec) {
        hide_texts(&mut spec.guest);
    }

    fn status(_: &Heard, view: &View, id: Uuid) -> Option<TemplateStatus> {
        let stored = &view.templates.get(&id)?.value.spec;
        Some(TemplateStatus {
            vcpus: stored.vcpus,
            memory_mib: stored.memory_mib,
            disk_bytes: stored.disk_bytes,
            version: stored.version,
            built_from: stored.made.as_ref().and_then(|made| made.built_from.clone()),
            warm: warm::warmth(view, TemplateId(id)),
        })
    }

    fn create(
        context: &Context<'_>,
        _: &str,
        spec: TemplateSpec,
        _: &mut Plan,
    ) -> Result<Self::Stored, Problem> {
        let sizes = Sizes::of(context, &spec)?;
        let networks = spec.networks.unwrap_or_else(|| vec![DEFAULT_NETWORK.to_owned()]);
        check_range(
            "the number of networks",
            networks.len() as u64,
            0,
            NICS_MAX as u64,
        )?;
        let networks: Result<Vec<_>, Problem> = networks
            .iter()
            .map(|name| find(context, Kind::Network, name).map(NetworkId))
            .collect();
        let image = ImageId(find(context, Kind::Image, &spec.image)?);
        if let Some(content) = context.view.image_content(image) {
            media::check_is_disk(content, &spec.image)?;
        }
        let firmware = spec.firmware.unwrap_or_default();
        let keep_warm = spec.keep_warm.map(|keep| warm::kept(context, keep));
        Ok(template::TemplateSpec {
            image,
            vcpus: sizes.vcpus,
            memory_mib: sizes.memory_mib,
            disk_bytes: sizes.disk_bytes,
            networks: networks?,
            guest: guest(spec.guest)?,
            firmware,
            profile: sizes.from,
            version: FIRST_VERSION,
            made: None,
            keep_warm: keep_warm.transpose()?,
        })
    }

    fn change(
        context: &Context<'_>,
        old: &Object<Self::Stored>,
        spec: TemplateSpec,
    ) -> Result<Self::Stored, Problem> {
        // What a profile says now is taken with the next change, and not with a repeat.
        let shown = Self::spec(context.view, &old.spec);
        if spec == shown {
            return Ok(old.spec.clone());
        }
        let gives = |spec: &TemplateSpec| TemplateSpec {
            keep_warm: None,
            ..spec.clone()
        };
        if gives(&spec) == gives(&shown) {
            let keep = spec.keep_warm;
            let kept = keep.map(|keep| warm::kept(context, keep));
            return Ok(template::TemplateSpec {
                keep_warm: kept.transpose()?,
                ..old.spec.clone()
            });
        }
        let mut new = Self::create(context, &old.meta.name, spec, &mut Plan::default())?;
        let is_same = new.gives_the_same(&old.spec);
        new.version = old.spec.version.saturating_add(u64::from(!is_same));
        new.made = if is_same {
            old.spec.made.clone()
        } else {
            Some(Made {
                at: context.now,
                by: context.user.name.clone(),
                built_from: None,
            })
        };
        Ok(new)
    }

    fn keep(
        context: &Context<'_>,
        old: &At<Object<Self::Stored>>,
        new: &Self::Stored,
        plan: &mut Plan,
    ) -> Result<(), Problem> {
        let (meta, spec) = (&old.value.meta, &old.value.spec);
        let number = spec.version;
        if new.version == number {
            return Ok(());
        }
        // The one that is kept now, and the new one.
        let all = context
            .view
            .template_versions
            .of(meta.id)
            .count()
            .saturating_add(2);
        if all > VERSIONS_MAX {
            let name = &meta.name;
            let detail = format!(
                "template {name} has {VERSIONS_MAX} versions, and there can be no more: delete one that is not needed, as with \
                 `sterna template delete {name}@N`; `sterna template versions {name}` shows which VMs are made from"
            );
            return Err(Problem::conflict("too-many-versions", detail));
        }
        let kept = template::TemplateVersion {
            made: made(&old.value),
            spec: template::TemplateSpec {
                keep_warm: None,
                ..spec.clone()
            },
        };
        plan.create(key::template_version(TemplateId(meta.id), number), &kept);
        Ok(())
    }

    fn delete(
        context: &Context<'_>,
        at: &At<Object<Self::Stored>>,
        plan: &mut Plan,
    ) -> Result<Uuid, Problem> {
        let id = at.value.meta.id;
        for (number, version) in context.view.template_versions.of(id) {
            plan.remove(key::template_version(TemplateId(id), number), version.revision);
        }
        remove_at_once::<Self>(context, at, plan)
    }
}

/// What a template's versions give, the newest's first.
fn specs<'v>(
    view: &'v View,
    template: &'v Object<template::TemplateSpec>,
) -> impl Iterator<Item = &'v template::TemplateSpec> {
    let earlier = view.template_versions.of(template.meta.id);
    std::iter::once(&template.spec).chain(earlier.map(|(_, at)| &at.value.spec))
}

/// The versions of a template as they are shown, the newest first.
pub(crate) fn versions(view: &View, id: Uuid) -> Vec<TemplateVersion> {
    let Some(template) = view.templates.get(&id).map(|at| &at.value) else {
        return Vec::new();
    };
    let vms = view.vms.values().filter_map(|vm| vm.object.as_ref());
    let mut used: BTreeMap<u64, usize> = BTreeMap::new();
    for vm in vms.filter(|vm| vm.value.spec.template == Some(TemplateId(id))) {
        let number = vm.value.spec.template_version;
        let count = used.entry(number.unwrap_or(FIRST_VERSION)).or_default();
        *count = count.saturating_add(1);
    }
    let shown = |spec: &template::TemplateSpec, made: Made| TemplateVersion {
        version: spec.version,
        made_at: made.at,
        made_by: made.by,
        built_from: made.built_from,
        vms: used.get(&spec.version).copied().unwrap_or_default(),
        vcpus: spec.vcpus,
        memory_mib: spec.memory_mib,
        disk_bytes: spec.disk_bytes,
        spec: Template::spec(view, spec),
    };
    let mut all = vec![shown(&template.spec, made(template))];
    let earlier: Vec<_> = view.template_versions.of(id).collect();
    let earlier = earlier.into_iter().rev().map(|(_, at)| &at.value);
    all.extend(earlier.map(|version| shown(&version.spec, version.made.clone())));
    all
}

/// Deletes a version that is not the newest. VMs that were made from it keep what they were given.
pub(crate) fn delete_version(
    view: &View,
    at: &At<Object<template::TemplateSpec>>,
    number: u64,
    plan: &mut Plan,
) -> Result<Uuid, Problem> {
    let (id, name) = (at.value.meta.id, &at.value.meta.name);
    if number == at.value.spec.version {
        let detail = format!(
            "version {number} of template {name} is the newest, which is what it gives: change the template, or delete all of it \
             with `sterna template delete {name}`"
        );
        return Err(Problem::conflict("newest-version", detail));
    }
    let found = view.template_versions.get(id, number);
    let found = found.ok_or_else(|| no_version(view, &at.value, number, 404))?;
    plan.action = format!("delete template {name}@{number}");
    plan.remove(key::template_version(TemplateId(id), number), found.revision);
    Ok(id)
}

/// What a reference such as `web` or `web@3` stands for: a version, the newest if it names none.
pub(super) fn named<'v>(
    context: &Context<'v>,
    reference: &str,
) -> Result<(TemplateId, &'v template::TemplateSpec), Problem> {
    let (name, number) = match reference.split_once('@') {
        None => (reference, None),
        Some((name, number)) => (name, Some(number)),
    };
    let id = find(context, Kind::Template, name)?;
    let newest = context.view.templates.get(&id);
    let newest = &newest
        .ok_or_else(|| Problem::not_found(Kind::Template, name))?
        .value;
    let Some(number) = number else {
        return Ok((TemplateId(id), &newest.spec));
    };
    let number: u64 = number.parse().map_err(|_| {
        let detail = format!("{reference:?} names no version of a template: give a number, as in {name}@1");
        Problem::invalid("invalid-version", detail)
    })?;
    let found = specs(context.view, newest).find(|spec| spec.version == number);
    let found = found.ok_or_else(|| no_version(context.view, newest, number, 422))?;
    Ok((TemplateId(id), found))
}

/// Whether a reference stands for a template by its name, and for this version if it names one.
pub(super) fn is_same(given: Option<&str>, shown: Option<&str>, version: Option<u64>) -> bool {
    let named = given.map(|given| given.split_once('@').unwrap_or((given, "")));
    let same_version = |number: &str| number.is_empty() || version.is_some_and(|it| number == it.to_string());
    named.map(|(name, _)| name) == shown && named.is_none_or(|(_, number)| same_version(number))
}

fn no_version(view: &View, template: &Object<template::TemplateSpec>, number: u64, status: u16) -> Problem {
    let mut all: Vec<u64> = specs(view, template).map(|spec| spec.version).collect();
    all.sort_unstable();
    let all: Vec<String> = all.iter().map(u64::to_string).collect();
    let name = &template.meta.name;
    let detail = format!(
        "template {name} has no version {number}: there are {}, and `sterna template versions {name}` says more",
        all.join(", ")
    );
    Problem::new(status, "not-found", detail)
}

/// The sizes of what is made from a template.
struct Sizes {
    vcpus: u32,
    memory_mib: u64,
    disk_bytes: Option<u64>,
    from: Option<FromProfile>,
}

impl Sizes {
    /// Its own, and the profile's where it has none.
    fn of(context: &Context<'_>, spec: &TemplateSpec) -> Result<Self, Problem> {
        let named = spec.profile.as_deref();
        let profile = named.map(|name| base::profile(context, name)).transpose()?;
        let (id, shared) = profile.unzip();
        let missing = || {
            let detail = "a template without a `profile` needs `memory_mib`";
            Problem::invalid("memory-missing", detail)
        };
        let vcpus = spec.vcpus.or(shared.map(|shared| shared.vcpus)).unwrap_or(1);
        let memory_mib = spec.memory_mib.or(shared.map(|shared| shared.memory_mib));
        let memory_mib = memory_mib.ok_or_else(missing)?;
        let disk_bytes = spec.disk_bytes.or(shared.and_then(|shared| shared.disk_bytes));
        check_sizes(vcpus, memory_mib, disk_bytes)?;
        Ok(Self {
            vcpus,
            memory_mib,
            disk_bytes,
            from: id.map(|id| from_profile(id, shared, spec)),
        })
    }
}

fn from_profile(profile: ProfileId, shared: Option<&ProfileSpec>, spec: &TemplateSpec) -> FromProfile {
    FromProfile {
        profile,
        vcpus: spec.vcpus.is_none(),
        memory: spec.memory_mib.is_none(),
        disk: spec.disk_bytes.is_none(),
        host_labels: shared.map_or_else(BTreeMap::new, |shared| shared.host_labels.clone()),
    }
}
