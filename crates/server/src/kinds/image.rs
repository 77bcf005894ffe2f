//! Images: what may be said of them, how they look, and what is done when one is to be imported.

use std::iter;

use api::Problem;
use api::kinds::{Image, ImageSource, ImageSpec, ImageState, ImageStatus, ImageUsers};
use model::image as stored;
use model::limits::is_sha256;
use model::vm::Copied;
use model::{ImageId, Kind, Object, Reason, Timestamp, VmId, key, record};
use planner::copies::Copier;
use planner::view::At;
use planner::{Plan, View};
use url::Url;
use uuid::Uuid;

use super::{Served, USERS_NAMED, clone, find, immutable, name_of};
use crate::images::import::source;
use crate::service::{self, Context};
use crate::shared::Heard;

impl Served for Image {
    type Stored = stored::ImageSpec;

    fn stored(view: &View, id: Uuid) -> Option<&At<Object<Self::Stored>>> {
        view.images.get(&id)?.object.as_ref()
    }

    fn spec(view: &View, stored: &Self::Stored) -> ImageSpec {
        ImageSpec {
            expected_sha256: stored.expected_sha256.clone(),
            source: stored.source.as_ref().map(|source| ImageSource {
                url: source.url.clone(),
                sha256sums_url: source.sha256sums_url.clone(),
                s3: source.s3.as_ref().map(source::shown_store),
            }),
            from_vm: stored.from_vm.map(|id| name_of(view, Kind::Vm, id.0)),
        }
    }

    fn status(heard: &Heard, view: &View, id: Uuid) -> Option<ImageStatus> {
        let spec = &Self::stored(view, id)?.value.spec;
        let status = status(view, id);
        let awaited = awaited(view, id, &status);
        let state = state(spec, &status);
        let content = status.content.as_ref();
        let progress = heard
            .import(ImageId(id))
            .filter(|_| state == ImageState::Importing);
        Some(ImageStatus {
            state,
            sha256: content.map(|content| content.sha256.clone()),
            source_sha256: content.and_then(|content| content.source_sha256.clone()),
            format: content.map(|content| content.format),
            is_medium: content.map(|content| content.is_medium),
            file_bytes: content.map(|content| content.file_bytes),
            virtual_bytes: content.map(|content| content.virtual_bytes),
            progress,
            copied: status.copied.map(clone::copied),
            reason: status.failure.or_else(|| awaited?.ok()),
            next_commands: next_commands(view, state, &name_of(view, Kind::Image, id), spec),
            used_by: users(view, id),
        })
    }

    fn create(
        context: &Context<'_>,
        _: &str,
        spec: ImageSpec,
        plan: &mut Plan,
    ) -> Result<Self::Stored, Problem> {
        let stored = checked_with(context, spec.clone(), plan)?;
        sign(ImageId(context.new_id), &spec, plan)?;
        Ok(stored)
    }

    fn change(
        context: &Context<'_>,
        old: &Object<Self::Stored>,
        spec: ImageSpec,
    ) -> Result<Self::Stored, Problem> {
        let shown = Self::spec(context.view, &old.spec);
        // Of a VM that is gone nobody knows the name.
        let is_gone = |vm: VmId| !context.view.vms.contains_key(&vm);
        let is_same =
            spec.from_vm == shown.from_vm || spec.from_vm.is_some() && old.spec.from_vm.is_some_and(is_gone);
        let asked = stored::ImageSpec {
            from_vm: old.spec.from_vm,
            ..checked(spec)?
        };
        if is_same && asked == old.spec {
            return Ok(old.spec.clone());
        }
        Err(immutable(Kind::Image, "the digest and the source"))
    }
}

fn users(view: &View, id: Uuid) -> ImageUsers {
    let users = view.users_of_image(id);
    ImageUsers {
        count: users.len(),
        first: users
            .take(USERS_NAMED)
            .map(|(kind, user)| format!("{kind} {}", name_of(view, kind, user)))
            .collect(),
    }
}

fn stored_status(view: &View, id: Uuid) -> stored::ImageStatus {
    let stored = view.images.get(&id).and_then(|image| image.status.as_ref());
    stored.map(|at| at.value.clone()).unwrap_or_default()
}

/// How it stands: what is stored, and that what it was to be a copy of is gone.
fn status(view: &View, id: Uuid) -> stored::ImageStatus {
    let mut status = stored_status(view, id);
    if let Some(Err(reason)) = awaited(view, id, &status) {
        status.failure = Some(reason);
    }
    status
}

fn state(spec: &stored::ImageSpec, status: &stored::ImageStatus) -> ImageState {
    let comes_by_itself = spec.source.is_some() || spec.from_vm.is_some();
    match (&status.content, &status.failure) {
        (Some(_), _) => ImageState::Ready,
        (None, Some(_)) => ImageState::Failed,
        (None, None) if comes_by_itself => ImageState::Importing,
        (None, None) => ImageState::Pending,
    }
}

/// What a copy of a VM's disk waits for; `Err`: it will not come, since the VM is gone.
fn awaited(view: &View, id: Uuid, status: &stored::ImageStatus) -> Option<Result<Reason, Reason>> {
    let is_over = status.content.is_some() || status.failure.is_some();
    let object = &view.images.get(&id)?.object.as_ref()?.value;
    let awaited = || planner::copies::awaited_by_image(view, ImageId(id), object.meta.updated_at);
    (!is_over).then(awaited).flatten()
}

/// The import as it would be asked for again.
fn next_commands(view: &View, state: ImageState, name: &str, spec: &stored::ImageSpec) -> Vec<String> {
    if matches!(state, ImageState::Ready | ImageState::Importing) {
        return Vec::new();
    }
    if let Some(vm) = spec.from_vm {
        let again = |vm: &str| format!("sterna image create {name} --from-vm {vm}");
        return match view.meta(Kind::Vm, vm.0).filter(|meta| meta.deleted_at.is_none()) {
            Some(meta) => vec![again(&meta.name)],
            None => vec![again("VM"), format!("sterna image delete {name}")],
        };
    }
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let command = match &spec.source {
        None => format!("sterna image import {name} --file PATH"),
        Some(source) => {
            let list = source.sha256sums_url.as_deref();
            let list = list.map(|url| format!(" --sha256sums={}", quoted(url)));
            let digest = spec.expected_sha256.as_deref();
            let digest = digest.map(|digest| format!(" --sha256 {digest}"));
            let check = list.or(digest).unwrap_or_default();
            let store = source.s3.as_ref().map(|store| {
                let style = if store.path_style { " --path-style" } else { "" };
                let (endpoint, region) = (quoted(&store.endpoint), quoted(&store.region));
                format!(" --endpoint {endpoint} --region {region}{style}")
            });
            let store = store.unwrap_or_default();
            format!(
                "sterna image import {name} --url {}{store}{check}",
                quoted(&source.url)
            )
        }
    };
    vec![command]
}

/// The same, whose datastores are there, or the VM whose disk it shall be.
fn checked_with(
    context: &Context<'_>,
    spec: ImageSpec,
    plan: &mut Plan,
) -> Result<stored::ImageSpec, Problem> {
    let from_vm = spec.from_vm.clone();
    let mut spec = checked(spec)?;
    spec.from_vm = from_vm
        .map(|vm| clone::for_image(context, &vm, plan))
        .transpose()?;
    let source = spec.source.iter();
    for url in source.flat_map(|source| iter::once(&source.url).chain(&source.sha256sums_url)) {
        let url = Url::parse(url).ok();
        if let Some(datastore) = url.as_ref().and_then(source::datastore) {
            find(context, Kind::Datastore, datastore)?;
        }
    }
    Ok(spec)
}

fn checked(spec: ImageSpec) -> Result<stored::ImageSpec, Problem> {
    if spec.from_vm.is_some() && (spec.source.is_some() || spec.expected_sha256.is_some()) {
        let detail =
            "`from_vm` has neither `source` nor `expected_sha256` beside it: leave those or that out";
        return Err(Problem::invalid("copy-has-its-source", detail));
    }
    let hash = spec.expected_sha256.map(|hash| hash.to_ascii_lowercase());
    if hash.as_ref().is_some_and(|hash| !is_sha256(hash)) {
        let detail = "expected_sha256 is not a SHA-256: give 64 hexadecimal digits";
        return Err(Problem::invalid("invalid-digest", detail));
    }
    let source = spec.source.as_ref().map(source::checked_source).transpose()?;
    let has_list = source
        .as_ref()
        .is_some_and(|source| source.sha256sums_url.is_some());
    if has_list && hash.is_some() {
        let detail = "there are both expected_sha256 and source.sha256sums_url: give one of them";
        return Err(Problem::invalid("invalid-digest", detail));
    }
    Ok(stored::ImageSpec {
        expected_sha256: hash,
        source,
        from_vm: None,
    })
}

/// Keeps apart what lets a server take the content.
fn sign(image: ImageId, spec: &ImageSpec, plan: &mut Plan) -> Result<(), Problem> {
    let Some(source) = &spec.source else { return Ok(()) };
    if let Some(signature) = source::signature(source)? {
        let kept = Some(record::encode(&signature.to_owned()));
        plan.writes.insert(key::image_signature(image), kept);
    }
    Ok(())
}

/// Has a server take an image's content from a source, if it has none: the one given, or the one that it has.
pub fn image_import(
    context: &Context<'_>,
    at: &At<Object<stored::ImageSpec>>,
    spec: ImageSpec,
    plan: &mut Plan,
) -> Result<Uuid, Problem> {
    let meta = &at.value.meta;
    let asked = if spec == ImageSpec::default() {
        Image::spec(context.view, &at.value.spec)
    } else {
        spec
    };
    let spec = checked_with(context, asked.clone(), plan)?;
    if spec.source.is_none() && spec.from_vm.is_none() {
        let detail = format!(
            "image {} has no source: give `source`, or send its content",
            meta.name
        );
        return Err(Problem::invalid("source-missing", detail));
    }
    let status = status(context.view, meta.id);
    let is_as_asked = spec == at.value.spec;
    match state(&at.value.spec, &status) {
        ImageState::Ready | ImageState::Importing if is_as_asked => Ok(meta.id),
        ImageState::Ready => Err(has_content(&meta.name)),
        ImageState::Importing => Err(is_imported(&meta.name, "another source")),
        ImageState::Pending | ImageState::Failed => {
            plan.action = format!("import image {}", meta.name);
            sign(ImageId(meta.id), &asked, plan)?;
            let stored = context
                .view
                .images
                .get(&meta.id)
                .and_then(|image| image.status.as_ref());
            if let Some(stored) = stored {
                plan.remove(key::image_status(ImageId(meta.id)), stored.revision);
            }
            let change = |object: &mut Object<stored::ImageSpec>| object.spec = spec;
            Ok(service::replace_object(context, Kind::Image, at, change, plan))
        }
    }
}

/// Whether an image may be given content by a client, or why not.
pub(crate) fn takes_content(view: &View, id: Uuid) -> Result<(), Problem> {
    let name = name_of(view, Kind::Image, id);
    let spec = Image::stored(view, id)
        .map(|at| at.value.spec.clone())
        .unwrap_or_default();
    match state(&spec, &status(view, id)) {
        ImageState::Ready => Err(has_content(&name)),
        ImageState::Importing => Err(is_imported(&name, "a file")),
        ImageState::Pending | ImageState::Failed => Ok(()),
    }
}

/// Whether an image may be given its content by this host, which copies a VM's disk for it: of which instant that is.
pub(crate) fn takes_copy(view: &View, id: Uuid, by: Copier, now: Timestamp) -> Result<Copied, Problem> {
    if Image::stored(view, id).is_none() {
        return Err(Problem::not_found(Kind::Image, &id.to_string()));
    }
    let name = name_of(view, Kind::Image, id);
    // A copy that is being made of what is to go may be the last that there is of it.
    let status = stored_status(view, id);
    if status.content.is_some() {
        return Err(has_content(&name));
    }
    let made = planner::copies::made_for_image(view, ImageId(id), by, now);
    made.filter(|_| status.failure.is_none()).ok_or_else(|| {
        let detail =
            format!("the host is not told to copy a disk for image {name}: wait for the next document");
        Problem::conflict("not-copied-here", detail)
    })
}

fn has_content(name: &str) -> Problem {
    let detail = format!("image {name} has its content, which never changes: create another image");
    Problem::conflict("image-has-content", detail)
}

fn is_imported(name: &str, instead: &str) -> Problem {
    let detail = format!(
        "the server imports image {name} from its source: wait for its end, or `sterna image delete {name}` first to \
         import it from {instead}"
    );
    Problem::conflict("under-way", detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_on_is_the_same_import_whatever_is_in_its_url() {
        let spec = stored::ImageSpec {
            expected_sha256: None,
            source: Some(stored::ImageSource {
                url: "http://a/b?c&d='e".to_owned(),
                sha256sums_url: Some("http://a/SHA256SUMS".to_owned()),
                s3: None,
            }),
            from_vm: None,
        };
        assert_eq!(
            next_commands(&View::default(), ImageState::Failed, "x", &spec),
            [r"sterna image import x --url 'http://a/b?c&d='\''e' --sha256sums='http://a/SHA256SUMS'"]
        );
        assert!(next_commands(&View::default(), ImageState::Importing, "x", &spec).is_empty());
    }
}
