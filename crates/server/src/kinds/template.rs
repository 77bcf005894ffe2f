//! Templates: what VMs are made from.

use std::collections::BTreeMap;

use api::Problem;
use api::kinds::{Template, TemplateSpec, TemplateStatus};
use model::limits::{NICS_MAX, check_range};
use model::profile::ProfileSpec;
use model::template::{self, FromProfile};
use model::{ImageId, Kind, NetworkId, Object, ProfileId};
use planner::view::At;
use planner::{Plan, View};
use uuid::Uuid;

use super::catalog::{check_sizes, guest, guest_spec, hide_texts};
use super::{Served, base, find, media, name_of};
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
        })
    }

    fn create(
        context: &Context<'_>,
        _: &str,
        spec: TemplateSpec,
        _: &mut Plan,
    ) -> Result<Self::Stored, Problem> {
        let sizes = Sizes::of(context, &spec)?;
        let networks = spec.networks.unwrap_or_else(|| vec!["default".to_owned()]);
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
        Ok(template::TemplateSpec {
            image,
            vcpus: sizes.vcpus,
            memory_mib: sizes.memory_mib,
            disk_bytes: sizes.disk_bytes,
            networks: networks?,
            guest: guest(spec.guest)?,
            profile: sizes.from,
        })
    }

    fn change(
        context: &Context<'_>,
        old: &Object<Self::Stored>,
        spec: TemplateSpec,
    ) -> Result<Self::Stored, Problem> {
        // What a profile says now is taken with the next change, and not with a repeat.
        if spec == Self::spec(context.view, &old.spec) {
            return Ok(old.spec.clone());
        }
        Self::create(context, "", spec, &mut Plan::default())
    }
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
