//! The earlier versions of templates: what each gives does not change any more.

use std::collections::BTreeMap;
use std::sync::Arc;

use model::template::TemplateVersion;
use uuid::Uuid;

use crate::view::At;

/// The versions of all templates but the newest of each. They may be large, and views are copied.
#[derive(Debug, Clone, Default)]
pub struct Versions(BTreeMap<Uuid, BTreeMap<u64, Arc<At<TemplateVersion>>>>);

impl Versions {
    /// Those of a template, the oldest first.
    pub fn of(&self, template: Uuid) -> impl Iterator<Item = (u64, &At<TemplateVersion>)> {
        let versions = self.0.get(&template).into_iter().flatten();
        versions.map(|(number, at)| (*number, at.as_ref()))
    }

    /// One of them.
    pub fn get(&self, template: Uuid, number: u64) -> Option<&At<TemplateVersion>> {
        Some(self.0.get(&template)?.get(&number)?.as_ref())
    }

    pub(crate) fn set(&mut self, template: Uuid, number: u64, version: Option<At<TemplateVersion>>) {
        let versions = self.0.entry(template).or_default();
        match version {
            Some(version) => drop(versions.insert(number, Arc::new(version))),
            None => drop(versions.remove(&number)),
        }
        if versions.is_empty() {
            self.0.remove(&template);
        }
    }
}
