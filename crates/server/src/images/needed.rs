//! What images have, and so what is not collected: by this server of its own files, by agents of those in datastores.
//!
//! **Owns:** that nothing is said where it is not known for certain.
//!
//! **Does not know:** what is collected, and when.

use std::collections::BTreeSet;

use api::agent::Contents;
use axum::Json;
use axum::extract::State;
use model::{Kind, key};
use planner::View;
use planner::view::Change;
use store::{KeyValue, RangeRequest, StoreError};
use uuid::Uuid;

use super::upload;
use crate::answer::{Refused, store_problem};
use crate::auth::Agent;
use crate::routes::App;

/// Tells an agent what images have, and where hosts keep it. `null`: that is not known now.
pub async fn contents(State(app): State<App>, _: Agent) -> Result<Json<Option<Contents>>, Refused> {
    // In this order: a datastore that is named has no file of an image that is newer than the answer.
    let datastores = |view: &View| {
        let all = view.datastores.values();
        all.map(|at| at.value.spec.path.clone()).collect()
    };
    let datastores = datastores(&app.cache.view());
    let needed = Needed::now(&app).await.map_err(|error| store_problem(&error))?;
    Ok(Json(needed.map(|needed| Contents {
        datastores,
        sha256: needed.contents,
    })))
}

/// What images have, and which of them take content.
#[derive(Debug, Default)]
pub(super) struct Needed {
    pub(super) contents: BTreeSet<String>,
    takers: BTreeSet<Uuid>,
}

impl Needed {
    pub(super) fn by(view: &View) -> Self {
        let mut needed = Self::default();
        for (id, image) in &view.images {
            let content = image.status.as_ref().and_then(|at| at.value.content.as_ref());
            match content {
                Some(content) => needed.contents.insert(content.sha256.clone()),
                None => needed.takers.insert(*id),
            };
        }
        needed
    }

    /// By the store itself, since the view may be behind.
    pub(super) async fn now(app: &App) -> Result<Option<Self>, StoreError> {
        let images = RangeRequest::prefix(key::kind_prefix(Kind::Image));
        let images = app.store.range(images).await?;
        Ok(Self::stored(&images.items, app.cache.view().is_held()))
    }

    /// By what is stored. `None` if that does not tell: a restored store may not know all that it will, and an image that
    /// cannot be read may have any content.
    fn stored(images: &[KeyValue], is_held: bool) -> Option<Self> {
        let mut view = View::default();
        for kv in images {
            view.apply(Change {
                key: &kv.key,
                value: Some(&kv.value),
                revision: kv.mod_revision,
            });
        }
        (!is_held && view.unreadable.is_empty()).then(|| Self::by(&view))
    }

    pub(super) fn has(&self, name: &str) -> bool {
        match upload::image_of(name) {
            Some(image) => self.takers.contains(&image),
            None => !model::limits::is_sha256(name) || self.contents.contains(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use model::image::ImageSpec;
    use model::{ImageId, Timestamp, record, samples};

    use super::*;

    const IMAGE: Uuid = Uuid::from_u128(7);

    fn kv(key: String, value: Vec<u8>) -> KeyValue {
        KeyValue {
            key: key.into(),
            value: Bytes::from(value),
            create_revision: 1,
            mod_revision: 1,
            version: 1,
            lease: None,
        }
    }

    fn image() -> [KeyValue; 2] {
        let object = samples::object(
            Kind::Image,
            IMAGE,
            "disk",
            Timestamp::UNIX_EPOCH,
            ImageSpec::default(),
        );
        [
            kv(key::object(Kind::Image, IMAGE), record::encode(&object)),
            kv(
                key::image_status(ImageId(IMAGE)),
                record::encode(&samples::image_status()),
            ),
        ]
    }

    #[test]
    fn a_held_store_does_not_tell_what_is_needed() {
        assert!(Needed::stored(&image(), true).is_none());
        let needed = Needed::stored(&image(), false).unwrap();
        assert_eq!(needed.contents.len(), 1);
    }

    #[test]
    fn an_image_that_cannot_be_read_may_need_anything() {
        for damaged in 0..2 {
            let mut images = image();
            images[damaged].value = Bytes::from_static(b"{}");
            assert!(Needed::stored(&images, false).is_none(), "{damaged}");
        }
    }
}
