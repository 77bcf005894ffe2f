//! Profiles: sizes that many VMs share. The default family is shown and used as the others are, and not written.

use api::Problem;
use api::kinds::{Profile, ProfileSpec, ProfileStatus};
use model::limits::check_labels;
use model::{Kind, Object, profile};
use planner::profiles::is_of_family;
use planner::view::At;
use planner::{Plan, View};
use uuid::Uuid;

use super::catalog::check_sizes;
use super::{Served, remove_at_once};
use crate::service::Context;
use crate::shared::Heard;

impl Served for Profile {
    type Stored = profile::ProfileSpec;

    fn stored(view: &View, id: Uuid) -> Option<&At<Object<Self::Stored>>> {
        view.profiles.get(id)
    }

    fn spec(_: &View, stored: &Self::Stored) -> ProfileSpec {
        ProfileSpec {
            vcpus: stored.vcpus,
            memory_mib: stored.memory_mib,
            disk_bytes: stored.disk_bytes,
            host_labels: stored.host_labels.clone(),
        }
    }

    fn status(_: &Heard, _: &View, id: Uuid) -> Option<ProfileStatus> {
        Some(ProfileStatus {
            is_default: is_of_family(id),
        })
    }

    fn create(_: &Context<'_>, _: &str, spec: ProfileSpec, _: &mut Plan) -> Result<Self::Stored, Problem> {
        check_sizes(spec.vcpus, spec.memory_mib, spec.disk_bytes)?;
        check_labels(&spec.host_labels)?;
        Ok(profile::ProfileSpec {
            vcpus: spec.vcpus,
            memory_mib: spec.memory_mib,
            disk_bytes: spec.disk_bytes,
            host_labels: spec.host_labels,
        })
    }

    fn change(
        context: &Context<'_>,
        old: &Object<Self::Stored>,
        spec: ProfileSpec,
    ) -> Result<Self::Stored, Problem> {
        check_own(&old.meta.name, old.meta.id)?;
        Self::create(context, "", spec, &mut Plan::default())
    }

    fn delete(
        context: &Context<'_>,
        at: &At<Object<Self::Stored>>,
        plan: &mut Plan,
    ) -> Result<Uuid, Problem> {
        check_own(&at.value.meta.name, at.value.meta.id)?;
        remove_at_once::<Self>(context, at, plan)
    }
}

/// The default family is the release's.
fn check_own(name: &str, id: Uuid) -> Result<(), Problem> {
    if !is_of_family(id) {
        return Ok(());
    }
    let kind = Kind::Profile;
    let detail = format!(
        "{kind} {name} is one of the default family, which stays as it is: `sterna {kind} create {name}` makes one of your own \
         that takes its place"
    );
    Err(Problem::conflict("default-profile", detail))
}
