//! The OpenAPI 3.1 document, made from the kinds' types: every kind has the same routes.

mod parts;

pub use parts::MEANINGS;

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::apply::ApplyBody;
use crate::document::{CheckAnswer, CheckBody};
use crate::drain::HostActionBody;
use crate::history::History;
use crate::kinds::{
    ActionBody, Datastore, Event, Host, Image, JoinToken, JoinTokenBody, Migration, Network, Operation,
    Profile, Template, UploadStatus, Vm,
};
use crate::placement::Explanation;
use crate::resource::{Change, Changes, Create, List, Object, Resource};
use crate::store::{ResumeBody, StoreStatus};
use crate::template::{TemplateVersion, TemplateVersions};
use crate::token::{NewToken, Token, TokenBody, Tokens};
use model::Kind;
use model::image::ImportProgress;
use model::migration::Progress;
use parts::{
    Names, Problems, answer, change_parameters, dry_run, name_parameter, operation, query, request_id,
};

/// What can be asked of a VM by `POST /v1/vms/NAME/actions/ACTION`.
pub const VM_ACTIONS: [&str; 11] = [
    "start", "shutdown", "reboot", "pause", "suspend", "stop", "resume", "hold", "release", "retry",
    "flatten",
];
/// What can be asked of an image.
pub const IMAGE_ACTIONS: [&str; 1] = ["import"];
/// What can be asked of a host.
pub const HOST_ACTIONS: [&str; 5] = ["cordon", "uncordon", "drain", "undrain", "confirm-dead"];

/// What holds for all operations, in Markdown.
fn introduction() -> String {
    include_str!("intro.md").replace("QUERY", include_str!("../query.md").trim())
}

/// The whole document.
pub fn document() -> Value {
    let mut generator = SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into())
        .into_generator();
    let (mut paths, mut names) = (Map::new(), Names::default());
    kind::<Vm>(&mut generator, &mut paths, &mut names);
    kind::<Host>(&mut generator, &mut paths, &mut names);
    kind::<Image>(&mut generator, &mut paths, &mut names);
    kind::<Template>(&mut generator, &mut paths, &mut names);
    kind::<Profile>(&mut generator, &mut paths, &mut names);
    kind::<Network>(&mut generator, &mut paths, &mut names);
    kind::<Datastore>(&mut generator, &mut paths, &mut names);
    kind::<Migration>(&mut generator, &mut paths, &mut names);
    kind::<Operation>(&mut generator, &mut paths, &mut names);
    kind::<Event>(&mut generator, &mut paths, &mut names);
    extras(&mut generator, &mut paths);
    store(&mut generator, &mut paths);
    tokens(&mut generator, &mut paths);
    let responses = parts::responses(&mut generator);
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Sterna",
            "version": "v1",
            "description": introduction(),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "security": [{ "token": [] }],
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
            "responses": responses,
        },
    });
    names.apply(&mut document);
    parts::fold_words(&mut document);
    document
}

/// What every kind has.
struct Schemas {
    object: Value,
    list: Value,
    change: Value,
    changes: Value,
    create: Value,
}

impl Schemas {
    fn of<R: Resource>(generator: &mut SchemaGenerator, names: &mut Names) -> Self {
        let schemas = Self {
            object: generator.subschema_for::<Object<R::Spec, R::Status>>().to_value(),
            list: generator
                .subschema_for::<List<Object<R::Spec, R::Status>>>()
                .to_value(),
            change: generator
                .subschema_for::<Change<Object<R::Spec, R::Status>>>()
                .to_value(),
            changes: generator
                .subschema_for::<Changes<Object<R::Spec, R::Status>>>()
                .to_value(),
            create: generator.subschema_for::<Create<R::Spec>>().to_value(),
        };
        names.add(&schemas.object, R::KIND, "");
        names.add(&schemas.list, R::KIND, "List");
        names.add(&schemas.change, R::KIND, "Change");
        names.add(&schemas.changes, R::KIND, "Changes");
        names.add(&schemas.create, R::KIND, "Create");
        schemas
    }
}

fn kind<R: Resource>(generator: &mut SchemaGenerator, paths: &mut Map<String, Value>, names: &mut Names) {
    let schemas = Schemas::of::<R>(generator, names);
    let (name, plural) = (R::KIND.name(), R::KIND.plural());
    let one = || answer(&schemas.object, "The object.");
    let mut all = json!({ "get": list(plural, &schemas) });
    let get = operation(
        &format!("get a {name}"),
        plural,
        vec![parts::fields()],
        json!({ "200": one() }),
    );
    let mut single = json!({ "get": get.refuses(Problems::Read) });
    if R::CREATES {
        let answers = json!({ "201": one(), "200": one() });
        let post = operation(
            &format!("create a {name}"),
            plural,
            vec![request_id(), dry_run()],
            answers,
        );
        all["post"] = post
            .with_body(&schemas.create, example(R::KIND))
            .refuses(Problems::Create);
    }
    if R::CHANGES {
        let change = |word: &str| {
            operation(
                &format!("{word} a {name}"),
                plural,
                change_parameters(),
                json!({ "200": one() }),
            )
        };
        let patch = json!({ "type": "object", "description": "A JSON merge patch of `labels` and `spec`." });
        let labels = json!({ "labels": { "tier": "front" } });
        single["put"] = change("replace")
            .with_body(&schemas.create, example(R::KIND))
            .refuses(Problems::Change);
        single["patch"] = change("patch")
            .with_body(&patch, labels)
            .refuses(Problems::Change);
        single["delete"] = change("delete").refuses(Problems::Change);
    }
    single["parameters"] = json!([name_parameter()]);
    paths.insert(format!("/v1/{plural}"), all);
    paths.insert(format!("/v1/{plural}/{{name}}"), single);
    paths.insert(
        format!("/v1/changes/{plural}"),
        json!({ "get": poll(plural, &schemas) }),
    );
    let history = generator.subschema_for::<History>().to_value();
    let parameters = vec![
        query("limit", "integer", "The most writes, at most 1000."),
        query("reports", "boolean", "Also what agents and servers reported."),
    ];
    let answers = json!({ "200": answer(&history, "The writes, oldest first.") });
    let history = operation(&format!("history of a {name}"), plural, parameters, answers);
    paths.insert(
        format!("/v1/{plural}/{{name}}/history"),
        json!({ "parameters": [name_parameter()], "get": history.refuses(Problems::Named) }),
    );
}

fn list(plural: &str, schemas: &Schemas) -> Value {
    let parameters = vec![
        parts::label(),
        parts::filter(),
        query(
            "sort",
            "string",
            "By which fields, `-` before one for downwards: `name,-created_at`.",
        ),
        parts::fields(),
        query("limit", "integer", "Objects per page, at most 1000."),
        query("after", "string", "The `next` of the page before."),
        query("watch", "boolean", "Stream a line per change instead."),
        query(
            "from",
            "integer",
            "With `watch`: only changes after this revision.",
        ),
    ];
    let answers = json!({ "200": {
        "description": "A page, or with `watch` a line per change. With `fields`, objects have only those.",
        "content": {
            "application/json": { "schema": schemas.list },
            "application/x-ndjson": { "schema": schemas.change },
        },
    } });
    operation(&format!("list {plural}"), plural, parameters, answers).refuses(Problems::List)
}

fn poll(plural: &str, schemas: &Schemas) -> Value {
    let mut from = query("from", "integer", "Only changes after this revision.");
    from["required"] = true.into();
    let timeout = query(
        "timeout_s",
        "integer",
        "How long to wait if nothing changes, at most 55 seconds; 30 if left out.",
    );
    let parameters = vec![from, timeout, parts::label(), parts::filter(), parts::fields()];
    let answers = json!({ "200": answer(&schemas.changes, "The changes; none if the time is over.") });
    operation(&format!("poll {plural}"), plural, parameters, answers).refuses(Problems::List)
}

/// The body that creates an object of a kind.
fn example(kind: Kind) -> Value {
    match kind {
        Kind::Vm => json!({ "name": "web", "labels": { "app": "web" }, "spec": { "template": "small" } }),
        Kind::Host => json!({ "labels": { "disk": "ssd" }, "spec": { "cordoned": true } }),
        Kind::Image => {
            json!({ "name": "tiny", "spec": { "source": { "url": "https://images.example/tiny.qcow2" } } })
        }
        Kind::Template => {
            json!({ "name": "small", "spec": { "image": "tiny", "memory_mib": 256, "vcpus": 1 } })
        }
        Kind::Profile => json!({ "name": "wide", "spec": { "vcpus": 8, "memory_mib": 8192 } }),
        Kind::Network => json!({ "name": "front", "spec": { "cidr": "10.1.0.0/24" } }),
        Kind::Datastore => json!({ "name": "shared", "spec": { "path": "/srv/sterna", "coherent": true } }),
        Kind::Migration => json!({ "spec": { "vm": "web", "to": "h2" } }),
        Kind::Operation | Kind::Event => json!({}),
    }
}

fn extras(generator: &mut SchemaGenerator, paths: &mut Map<String, Value>) {
    let vm = generator
        .subschema_for::<Object<<Vm as Resource>::Spec, <Vm as Resource>::Status>>()
        .to_value();
    let host = generator
        .subschema_for::<Object<<Host as Resource>::Spec, <Host as Resource>::Status>>()
        .to_value();
    let image = generator
        .subschema_for::<Object<<Image as Resource>::Spec, <Image as Resource>::Status>>()
        .to_value();
    let action = generator.subschema_for::<ActionBody>().to_value();
    let host_action = generator.subschema_for::<HostActionBody>().to_value();
    let actions = VM_ACTIONS.map(|word| ("vms", word, &vm, &action)).into_iter();
    let host_actions = HOST_ACTIONS.map(|word| ("hosts", word, &host, &host_action));
    let image_spec = generator.subschema_for::<<Image as Resource>::Spec>().to_value();
    let image_actions = IMAGE_ACTIONS.map(|word| ("images", word, &image, &image_spec));
    for (plural, word, object, body) in actions.chain(host_actions).chain(image_actions) {
        let answers = json!({ "200": answer(object, "The object.") });
        let post = operation(&format!("{word} {plural}"), plural, change_parameters(), answers);
        let post = post.with_body(body, json!({})).refuses(Problems::Change);
        let path = format!("/v1/{plural}/{{name}}/actions/{word}");
        paths.insert(path, json!({ "parameters": [name_parameter()], "post": post }));
    }
    uploads(generator, &image, paths);
    applies(generator, paths);
    console_and_explanation(generator, paths);
    versions(generator, paths);
    progresses(generator, paths);
    let body = generator.subschema_for::<JoinTokenBody>().to_value();
    let token = generator.subschema_for::<JoinToken>().to_value();
    let answers = json!({ "201": answer(&token, "The token.") });
    let post = operation("make a join token", "hosts", Vec::new(), answers)
        .with_body(&body, json!({ "name": "h4" }));
    paths.insert(
        "/v1/join-tokens".to_owned(),
        json!({ "post": post.refuses(Problems::Create) }),
    );
    let body = generator.subschema_for::<CheckBody>().to_value();
    let checked = generator.subschema_for::<CheckAnswer>().to_value();
    let answers = json!({ "200": answer(&checked, "What writing each would lead to.") });
    let network = json!({ "kind": "network", "name": "front", "spec": { "cidr": "10.1.0.0/24" } });
    let post = operation("check documents", "documents", Vec::new(), answers);
    let post = post
        .with_body(&body, json!({ "documents": [network] }))
        .refuses(Problems::Create);
    paths.insert("/v1/check".to_owned(), json!({ "post": post }));
}

fn uploads(generator: &mut SchemaGenerator, image: &Value, paths: &mut Map<String, Value>) {
    let parameters = vec![
        query(
            "from",
            "integer",
            "How much of the content was sent before: the body is what follows that.",
        ),
        query(
            "held_sha256",
            "string",
            "With `from`: the SHA-256 of what was sent before, by which it is known to be the same.",
        ),
    ];
    let answers = json!({ "200": answer(image, "The image.") });
    let mut upload =
        operation("send an image's content", "images", parameters, answers).refuses(Problems::Change);
    upload["requestBody"] =
        json!({ "required": true, "content": { "application/octet-stream": { "schema": bytes() } } });
    paths.insert(
        "/v1/images/{name}/content".to_owned(),
        json!({ "parameters": [name_parameter()], "put": upload }),
    );
    let status = generator.subschema_for::<UploadStatus>().to_value();
    let answers = json!({ "200": answer(&status, "How much lies on this server.") });
    let sent = operation(
        "how much of an image's content was sent",
        "images",
        Vec::new(),
        answers,
    );
    paths.insert(
        "/v1/images/{name}/upload".to_owned(),
        json!({ "parameters": [name_parameter()], "get": sent.refuses(Problems::Named) }),
    );
}

/// Content that is no text.
fn bytes() -> Value {
    json!({ "type": "string", "format": "binary" })
}

fn store(generator: &mut SchemaGenerator, paths: &mut Map<String, Value>) {
    let status = generator.subschema_for::<StoreStatus>().to_value();
    let body = generator.subschema_for::<ResumeBody>().to_value();
    let answers = || json!({ "200": answer(&status, "How the store is.") });
    let get = operation("show the store", "store", Vec::new(), answers());
    paths.insert(
        "/v1/store".to_owned(),
        json!({ "get": get.refuses(Problems::Administer) }),
    );
    let post = operation("resume a restored store", "store", Vec::new(), answers());
    let post = post.with_body(&body, json!({ "end_unknown": false }));
    paths.insert(
        "/v1/store/resume".to_owned(),
        json!({ "post": post.refuses(Problems::Resume) }),
    );
    let header = |what: &str| json!({ "description": what, "schema": { "type": "string" } });
    let file = json!({ "200": {
        "description": "A SQLite database, as `sterna store restore` takes it. For administrators.",
        "headers": {
            "Repr-Digest": header("Its SHA-256 (RFC 9530)."),
            "Sterna-Revision": header("The revision that it holds."),
        },
        "content": { "application/octet-stream": { "schema": bytes() } },
    } });
    let get = operation("back up the store", "store", Vec::new(), file);
    paths.insert(
        "/v1/store/backup".to_owned(),
        json!({ "get": get.refuses(Problems::Administer) }),
    );
}

fn tokens(generator: &mut SchemaGenerator, paths: &mut Map<String, Value>) {
    let all = generator.subschema_for::<Tokens>().to_value();
    let one = generator.subschema_for::<Token>().to_value();
    let made = generator.subschema_for::<NewToken>().to_value();
    let body = generator.subschema_for::<TokenBody>().to_value();
    let listed = json!({ "200": answer(&all, "The tokens, without their secrets. For administrators.") });
    let list = operation("list tokens", "tokens", Vec::new(), listed);
    let answers = json!({ "201": answer(&made, "The token with its secret, which is shown this once. For administrators.") });
    let post = operation("create a token", "tokens", Vec::new(), answers);
    let example = json!({ "name": "prometheus", "role": "reader" });
    let post = post.with_body(&body, example).refuses(Problems::Create);
    let get = list.refuses(Problems::Administer);
    paths.insert("/v1/tokens".to_owned(), json!({ "get": get, "post": post }));
    let revoked = json!({ "200": answer(&one, "The token that counts no more. For administrators.") });
    let delete = operation("revoke a token", "tokens", Vec::new(), revoked).refuses(Problems::Revoke);
    paths.insert(
        "/v1/tokens/{name}".to_owned(),
        json!({ "parameters": [name_parameter()], "delete": delete }),
    );
}

/// What can be followed to its end.
fn progresses(generator: &mut SchemaGenerator, paths: &mut Map<String, Value>) {
    let progress = generator.subschema_for::<Progress>().to_value();
    let lines = json!({ "200": {
        "description": "A line per sample, until the transfer ends.",
        "content": { "application/x-ndjson": { "schema": progress } },
    } });
    let follow = operation("follow a migration's progress", "migrations", Vec::new(), lines);
    paths.insert(
        "/v1/migrations/{name}/progress".to_owned(),
        json!({ "parameters": [name_parameter()], "get": follow.refuses(Problems::Named) }),
    );
    let progress = generator.subschema_for::<ImportProgress>().to_value();
    let lines = json!({ "200": {
        "description": "A line per change, until the import ends.",
        "content": { "application/x-ndjson": { "schema": progress } },
    } });
    let follow = operation("follow an image's import", "images", Vec::new(), lines);
    paths.insert(
        "/v1/images/{name}/progress".to_owned(),
        json!({ "parameters": [name_parameter()], "get": follow.refuses(Problems::Named) }),
    );
}

fn applies(generator: &mut SchemaGenerator, paths: &mut Map<String, Value>) {
    let body = generator.subschema_for::<ApplyBody>().to_value();
    let made = generator
        .subschema_for::<Object<<Operation as Resource>::Spec, <Operation as Resource>::Status>>()
        .to_value();
    let answers =
        json!({ "202": answer(&made, "The operation that tells how far it is, and how it ended.") });
    let post = operation(
        "apply to a vm's guest",
        "vms",
        vec![request_id(), dry_run()],
        answers,
    );
    let example = json!({ "script": "#!/bin/sh\nsystemctl reload nginx\n", "timeout_s": 60 });
    let post = post.with_body(&body, example).refuses(Problems::Change);
    paths.insert(
        "/v1/vms/{name}/apply".to_owned(),
        json!({ "parameters": [name_parameter()], "post": post }),
    );
}

fn versions(generator: &mut SchemaGenerator, paths: &mut Map<String, Value>) {
    let template = generator
        .subschema_for::<Object<<Template as Resource>::Spec, <Template as Resource>::Status>>()
        .to_value();
    let all = generator.subschema_for::<TemplateVersions>().to_value();
    let one = generator.subschema_for::<TemplateVersion>().to_value();
    let shown = json!({ "200": answer(&all, "The versions.") });
    let list = operation("list a template's versions", "templates", Vec::new(), shown);
    paths.insert(
        "/v1/templates/{name}/versions".to_owned(),
        json!({ "parameters": [name_parameter()], "get": list.refuses(Problems::Named) }),
    );
    let shown = json!({ "200": answer(&one, "The version.") });
    let get = operation("get a template's version", "templates", Vec::new(), shown);
    let left = json!({ "200": answer(&template, "The template.") });
    let delete = operation(
        "delete a template's version",
        "templates",
        change_parameters(),
        left,
    );
    let number = json!({ "name": "version", "in": "path", "required": true, "description": "Its number.",
        "schema": { "type": "integer", "minimum": 1 } });
    paths.insert(
        "/v1/templates/{name}/versions/{version}".to_owned(),
        json!({ "parameters": [name_parameter(), number], "get": get.refuses(Problems::Named),
            "delete": delete.refuses(Problems::Change) }),
    );
}

fn console_and_explanation(generator: &mut SchemaGenerator, paths: &mut Map<String, Value>) {
    let messages = json!({ "101": { "description": "A WebSocket. Binary messages are the console's bytes, in either \
        direction; text messages are words for the person at it; the reason of the close says why it ended." } });
    let log = query(
        "log",
        "boolean",
        "Send the last part of the console's log, and end.",
    );
    let attach = operation("attach to a vm's console", "vms", vec![log], messages);
    paths.insert(
        "/v1/vms/{name}/console".to_owned(),
        json!({ "parameters": [name_parameter()], "get": attach.refuses(Problems::Console) }),
    );
    let explanation = generator.subschema_for::<Explanation>().to_value();
    let explained = json!({ "200": answer(&explanation, "The explanation.") });
    let explain = operation("explain a vm's place", "vms", Vec::new(), explained);
    paths.insert(
        "/v1/vms/{name}/explain".to_owned(),
        json!({ "parameters": [name_parameter()], "get": explain.refuses(Problems::Named) }),
    );
}
