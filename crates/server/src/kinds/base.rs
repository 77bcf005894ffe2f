//! What a new VM is given that its request does not say: from its profile, then from its template.

use std::collections::BTreeMap;

use api::Problem;
use api::kinds::{NicSpec, VmSpec};
use model::profile::ProfileSpec;
use model::template::TemplateSpec;
use model::vm::{Firmware, GuestConfig};
use model::{ImageId, Kind, NetworkId, ProfileId, TemplateId};

use super::{find, template};
use crate::service::Context;

/// The network of VMs and templates that name none.
pub(super) const DEFAULT_NETWORK: &str = "default";

/// What a new VM is made from.
#[derive(Default)]
pub(super) struct Base<'v> {
    template: Option<(TemplateId, &'v TemplateSpec)>,
    profile: Option<(ProfileId, &'v ProfileSpec)>,
}

impl<'v> Base<'v> {
    /// What a request names.
    pub(super) fn of(context: &Context<'v>, spec: &VmSpec) -> Result<Self, Problem> {
        let mut base = Self::default();
        if let Some(name) = &spec.template {
            base.template = Some(template::named(context, name)?);
        }
        if let Some(name) = &spec.profile {
            base.profile = Some(profile(context, name)?);
        }
        Ok(base)
    }

    fn template(&self) -> Option<&'v TemplateSpec> {
        self.template.map(|(_, template)| template)
    }

    fn profile(&self) -> Option<&'v ProfileSpec> {
        self.profile.map(|(_, profile)| profile)
    }

    pub(super) fn template_id(&self) -> Option<TemplateId> {
        self.template.map(|(id, _)| id)
    }

    /// The version of the template.
    pub(super) fn version(&self) -> Option<u64> {
        self.template().map(|template| template.version)
    }

    /// The profile that was asked for, or the one that the template's sizes are of.
    pub(super) fn profile_id(&self) -> Option<ProfileId> {
        let from = || Some(self.template()?.profile.as_ref()?.profile);
        self.profile.map(|(id, _)| id).or_else(from)
    }

    pub(super) fn image(&self) -> Option<ImageId> {
        self.template().map(|template| template.image)
    }

    pub(super) fn vcpus(&self) -> Option<u32> {
        let own = self.profile().map(|profile| profile.vcpus);
        own.or(self.template().map(|template| template.vcpus))
    }

    pub(super) fn memory_mib(&self) -> Option<u64> {
        let own = self.profile().map(|profile| profile.memory_mib);
        own.or(self.template().map(|template| template.memory_mib))
    }

    pub(super) fn disk_bytes(&self) -> Option<u64> {
        let own = self.profile().and_then(|profile| profile.disk_bytes);
        own.or(self.template().and_then(|template| template.disk_bytes))
    }

    /// An interface in each of the template's networks; in the network `default`, if there is one, without a template.
    pub(super) fn nics(&self, context: &Context<'_>) -> Vec<NicSpec> {
        let networks = match self.template() {
            Some(template) => template.networks.iter().map(NetworkId::to_string).collect(),
            None if find(context, Kind::Network, DEFAULT_NETWORK).is_ok() => vec![DEFAULT_NETWORK.to_owned()],
            None => Vec::new(),
        };
        let nic = |network| NicSpec {
            network,
            mac: None,
            address: None,
        };
        networks.into_iter().map(nic).collect()
    }

    pub(super) fn guest(&self) -> GuestConfig {
        self.template()
            .map(|template| template.guest.clone())
            .unwrap_or_default()
    }

    pub(super) fn firmware(&self) -> Firmware {
        self.template()
            .map(|template| template.firmware)
            .unwrap_or_default()
    }

    /// The labels of hosts that are asked for, those of the profile among them where nothing else is said of a key.
    pub(super) fn host_labels(&self, asked: BTreeMap<String, String>) -> BTreeMap<String, String> {
        let from_template = || self.template()?.profile.as_ref().map(|from| &from.host_labels);
        let own = self.profile().map(|profile| &profile.host_labels);
        let mut labels = own.or_else(from_template).cloned().unwrap_or_default();
        labels.extend(asked);
        labels
    }
}

/// The profile of a name.
pub(super) fn profile<'v>(
    context: &Context<'v>,
    name: &str,
) -> Result<(ProfileId, &'v ProfileSpec), Problem> {
    let id = find(context, Kind::Profile, name)?;
    let found = context.view.profiles.get(id);
    let found = found.ok_or_else(|| Problem::not_found(Kind::Profile, name))?;
    Ok((ProfileId(id), &found.value.spec))
}
