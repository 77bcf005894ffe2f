//! What disks lie over, and the content that hosts give images.
//!
//! **Owns:** that nothing goes which a disk is over.
//!
//! **Does not know:** who asked for a disk or an image: see [`crate::users`] and [`crate::templates`].
//!
//! **Start here:** [`World::lies_over`], [`World::check_bases`].

use driver::types::{CopyJobState, Effect, EffectId, Input, Outcome};
use model::audit::Actor;
use model::copy::CopyTo;
use model::document::Disk;
use model::image::ImageContent;
use model::{ImageId, VmId, samples};
use planner::copies::Copier;
use server::images::upload::store_copy;

use crate::agents::{DEADLINE_US, failure};
use crate::host::Key;
use crate::script::Node;
use crate::world::{AgentEvent, Said, World};

/// What a disk is over: the image by its digest, and the warm VM whose disk is in between.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Under {
    image: Option<String>,
    pub(crate) layer: Option<VmId>,
}

/// What became of a content that a host has given to a server.
pub(crate) struct Given {
    pub(crate) host: usize,
    pub(crate) epoch: u64,
    pub(crate) key: Key,
    pub(crate) effect: EffectId,
    pub(crate) server: usize,
    pub(crate) is_frozen: bool,
    pub(crate) is_taken: bool,
}

/// An image's content that is no other's.
fn content(image: ImageId) -> Option<ImageContent> {
    let sample = samples::image_status().content?;
    Some(ImageContent {
        sha256: format!("{:064x}", image.0.as_u128()),
        ..sample
    })
}

impl World {
    /// A VM's disk is made, over what its document says.
    pub(crate) fn lies_over(&mut self, vm: VmId, disk: &Disk) {
        let under = Under {
            image: disk.image.as_ref().map(|image| image.sha256.clone()),
            layer: disk.layer,
        };
        self.unders.insert(vm, under);
    }

    /// The image and the warm VM that each disk is over are there.
    pub(crate) fn check_bases(&mut self) {
        let statuses = self.checks.view.images.values();
        let contents = statuses.filter_map(|image| image.status.as_ref()?.value.content.as_ref());
        let contents: std::collections::BTreeSet<&str> =
            contents.map(|content| content.sha256.as_str()).collect();
        let is_bare = |(vm, under): &(&VmId, &Under)| {
            let has_image = under
                .image
                .as_deref()
                .is_none_or(|image| contents.contains(image));
            // One that could not start from memory gets another disk: that over the warm VM's is nothing any more.
            let intent = self.checks.view.vms.get(*vm).and_then(|vm| vm.intent.as_ref());
            let is_given_up = intent.is_some_and(|at| at.value.layer != under.layer);
            let has_layer = under.layer.is_none_or(|layer| self.overlays.contains(&layer)) || is_given_up;
            !(self.wholes.contains(*vm) || has_image && has_layer)
        };
        let bare = self.unders.iter().find(is_bare);
        let bare = bare.map(|(vm, under)| format!("the disk of {vm:?} lies over what is gone: {under:?}"));
        self.checks.must(bare.is_none(), || bare.unwrap_or_default());
    }

    /// The image whose content is whole on a host with this effect, and whether its file systems were frozen.
    pub(crate) fn content_of(&self, n: usize, key: Key, effect: &Effect) -> Option<(ImageId, bool)> {
        match effect {
            Effect::CopyAtRest {
                to: CopyTo::Image(image),
            } => Some((*image, false)),
            Effect::Copy {
                to: to @ CopyTo::Image(image),
            } => {
                let process = self.hosts[n].qemus.get(&key)?;
                let is_whole = process.copies.get(to) == Some(&CopyJobState::Done);
                (is_whole && !process.is_silent).then_some((*image, true))
            }
            _ => None,
        }
    }

    /// A host gives an image's content to its server, whose own code takes it, or not.
    pub(crate) fn give_content(
        &mut self,
        n: usize,
        key: Key,
        effect: EffectId,
        (image, is_frozen): (ImageId, bool),
    ) {
        let late = Input::Failed(effect, failure("image-not-taken", true));
        self.tell_agent(n, DEADLINE_US, AgentEvent::Told(key, late));
        let (server, epoch, id) = (self.hosts[n].server, self.hosts[n].epoch, self.hosts[n].id);
        let cloud = self.servers[server].cloud.clone();
        let cloud =
            cloud.filter(|_| self.reaches(Node::Host(n), Node::Server(server)) && !self.hosts[n].is_full);
        let (Some(cloud), Some(content)) = (cloud, content(image)) else {
            return;
        };
        let actor = Actor {
            name: format!("agent:{}", self.hosts[n].name()),
            from: None,
            request: None,
        };
        let by = Copier {
            host: id,
            incarnation: key.1,
            is_frozen,
        };
        self.have_done(server, async move {
            let taken = store_copy(&cloud, image.0, by, &actor, content).await;
            let has_it = |problem: &api::Problem| problem.code == "image-has-content";
            Said::Given(Given {
                host: n,
                epoch,
                key,
                effect,
                server,
                is_frozen,
                is_taken: taken.as_ref().err().is_none_or(has_it),
            })
        });
    }

    /// The server's answer.
    pub(crate) fn note_given(&mut self, given: &Given) {
        let Given {
            host, key, effect, ..
        } = *given;
        let is_heard = self.reaches(Node::Server(given.server), Node::Host(host));
        if self.hosts[host].epoch != given.epoch || !is_heard {
            return;
        }
        let input = if given.is_taken {
            Input::Done(
                effect,
                Outcome::Copied {
                    is_frozen: given.is_frozen,
                },
            )
        } else {
            Input::Failed(effect, failure("image-not-taken", true))
        };
        let for_us = self.latency_us();
        self.tell_agent(host, for_us, AgentEvent::Told(key, input));
    }
}
