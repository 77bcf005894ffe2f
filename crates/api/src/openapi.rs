//! The OpenAPI 3.1 document, made from the kinds' types: every kind has the same routes.

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::document::{CheckAnswer, CheckBody};
use crate::drain::HostActionBody;
use crate::history::History;
use crate::kinds::{
    ActionBody, Datastore, Event, Host, Image, JoinToken, JoinTokenBody, Migration, Network, Operation,
    Template, Vm,
};
use crate::placement::Explanation;
use crate::problem::{MEDIA_TYPE, Problem};
use crate::resource::{Change, Create, List, Object, Resource};
use crate::store::{ResumeBody, StoreStatus};
use model::migration::Progress;

/// What can be asked of a VM by `POST /v1/vms/NAME/actions/ACTION`.
pub const VM_ACTIONS: [&str; 7] = [
    "start", "shutdown", "pause", "suspend", "resume", "hold", "release",
];
/// What can be asked of a host.
pub const HOST_ACTIONS: [&str; 5] = ["cordon", "uncordon", "drain", "undrain", "confirm-dead"];

/// The whole document.
pub fn document() -> Value {
    let mut generator = SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into())
        .into_generator();
    let mut paths = Map::new();
    kind::<Vm>(&mut generator, &mut paths);
    kind::<Host>(&mut generator, &mut paths);
    kind::<Image>(&mut generator, &mut paths);
    kind::<Template>(&mut generator, &mut paths);
    kind::<Network>(&mut generator, &mut paths);
    kind::<Datastore>(&mut generator, &mut paths);
    kind::<Migration>(&mut generator, &mut paths);
    kind::<Operation>(&mut generator, &mut paths);
    kind::<Event>(&mut generator, &mut paths);
    extras(&mut generator, &mut paths);
    store(&mut generator, &mut paths);
    let problem = generator.subschema_for::<Problem>();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Sterna",
            "version": "v1",
            "description": "A virtual infrastructure manager. Every kind has the same routes; errors are problem details.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "security": [{ "token": [] }],
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
            "responses": {
                "Problem": {
                    "description": "Refused or failed, with what to do about it.",
                    "content": { MEDIA_TYPE: { "schema": problem } },
                },
            },
        },
    })
}

fn kind<R: Resource>(generator: &mut SchemaGenerator, paths: &mut Map<String, Value>) {
    let object = generator.subschema_for::<Object<R::Spec, R::Status>>().to_value();
    let list = generator
        .subschema_for::<List<Object<R::Spec, R::Status>>>()
        .to_value();
    let change = generator
        .subschema_for::<Change<Object<R::Spec, R::Status>>>()
        .to_value();
    let name = R::KIND.name();
    let plural = R::KIND.plural();
    let one = || answer(&object, "The object.");
    let mut all = json!({
        "get": operation(&format!("list {plural}"), vec![
            query("after", "string", "The `next` of the page before."),
            query("limit", "integer", "Objects per page, at most 1000."),
            query("label", "string", "Only objects with these labels: `key=value`, several with commas."),
            query("watch", "boolean", "Stream a line per change instead."),
            query("from", "integer", "With `watch`: only changes after this revision."),
        ], None, json!({ "200": {
            "description": "A page, or with `watch` a line per change.",
            "content": { "application/json": { "schema": list }, "application/x-ndjson": { "schema": change } },
        } })),
    });
    let mut single =
        json!({ "get": operation(&format!("get a {name}"), Vec::new(), None, json!({ "200": one() })) });
    let body = generator.subschema_for::<Create<R::Spec>>().to_value();
    if R::CREATES {
        let parameters = vec![request_id(), dry_run()];
        let answers = json!({ "201": one(), "200": one() });
        all["post"] = operation(
            &format!("create a {name}"),
            parameters,
            Some(body.clone()),
            answers,
        );
    }
    if R::CHANGES {
        let patch = json!({ "type": "object", "description": "A JSON merge patch of `labels` and `spec`." });
        let change = |word: &str, body| {
            operation(
                &format!("{word} a {name}"),
                change_parameters(),
                body,
                json!({ "200": one() }),
            )
        };
        single["put"] = change("replace", Some(body));
        single["patch"] = change("patch", Some(patch));
        single["delete"] = change("delete", None);
    }
    single["parameters"] = json!([name_parameter()]);
    paths.insert(format!("/v1/{plural}"), all);
    paths.insert(format!("/v1/{plural}/{{name}}"), single);
    let history = generator.subschema_for::<History>().to_value();
    let parameters = vec![
        query("limit", "integer", "The most writes, at most 1000."),
        query("reports", "boolean", "Also what agents and servers reported."),
    ];
    let answers = json!({ "200": answer(&history, "The writes, oldest first.") });
    let history = operation(&format!("history of a {name}"), parameters, None, answers);
    paths.insert(
        format!("/v1/{plural}/{{name}}/history"),
        json!({ "parameters": [name_parameter()], "get": history }),
    );
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
    for (plural, word, object, body) in actions.chain(host_actions) {
        let one = answer(object, "The object.");
        let post = operation(
            &format!("{word} {plural}"),
            change_parameters(),
            Some(body.clone()),
            json!({ "200": one }),
        );
        let path = format!("/v1/{plural}/{{name}}/actions/{word}");
        paths.insert(path, json!({ "parameters": [name_parameter()], "post": post }));
    }
    let mut upload = operation(
        "send an image's content",
        Vec::new(),
        None,
        json!({ "200": answer(&image, "The image.") }),
    );
    upload["requestBody"] = json!({ "required": true, "content": { "application/octet-stream": {} } });
    paths.insert(
        "/v1/images/{name}/content".to_owned(),
        json!({ "parameters": [name_parameter()], "put": upload }),
    );
    console_and_explanation(generator, paths);
    let progress = generator.subschema_for::<Progress>().to_value();
    let lines = json!({ "200": {
        "description": "A line per sample, until the transfer ends.",
        "content": { "application/x-ndjson": { "schema": progress } },
    } });
    let follow = operation("follow a migration's progress", Vec::new(), None, lines);
    paths.insert(
        "/v1/migrations/{name}/progress".to_owned(),
        json!({ "parameters": [name_parameter()], "get": follow }),
    );
    let body = generator.subschema_for::<JoinTokenBody>().to_value();
    let token = generator.subschema_for::<JoinToken>().to_value();
    let post = operation(
        "make a join token",
        Vec::new(),
        Some(body),
        json!({ "201": answer(&token, "The token.") }),
    );
    paths.insert("/v1/join-tokens".to_owned(), json!({ "post": post }));
    let body = generator.subschema_for::<CheckBody>().to_value();
    let checked = generator.subschema_for::<CheckAnswer>().to_value();
    let answers = json!({ "200": answer(&checked, "What writing each would lead to.") });
    let post = operation("check documents", Vec::new(), Some(body), answers);
    paths.insert("/v1/check".to_owned(), json!({ "post": post }));
}

fn store(generator: &mut SchemaGenerator, paths: &mut Map<String, Value>) {
    let status = generator.subschema_for::<StoreStatus>().to_value();
    let body = generator.subschema_for::<ResumeBody>().to_value();
    let answers = || json!({ "200": answer(&status, "How the store is.") });
    let get = operation("show the store", Vec::new(), None, answers());
    paths.insert("/v1/store".to_owned(), json!({ "get": get }));
    let post = operation("resume a restored store", Vec::new(), Some(body), answers());
    paths.insert("/v1/store/resume".to_owned(), json!({ "post": post }));
    let header = |what: &str| json!({ "description": what, "schema": { "type": "string" } });
    let file = json!({ "200": {
        "description": "A SQLite database, as `sterna store restore` takes it. For administrators.",
        "headers": {
            "Repr-Digest": header("Its SHA-256 (RFC 9530)."),
            "Sterna-Revision": header("The revision that it holds."),
        },
        "content": { "application/vnd.sqlite3": {} },
    } });
    let get = operation("back up the store", Vec::new(), None, file);
    paths.insert("/v1/store/backup".to_owned(), json!({ "get": get }));
}

fn console_and_explanation(generator: &mut SchemaGenerator, paths: &mut Map<String, Value>) {
    let messages = json!({ "101": { "description": "A WebSocket. Binary messages are the console's bytes, in either \
        direction; text messages are words for the person at it; the reason of the close says why it ended." } });
    let log = query(
        "log",
        "boolean",
        "Send the last part of the console's log, and end.",
    );
    paths.insert(
        "/v1/vms/{name}/console".to_owned(),
        json!({ "parameters": [name_parameter()], "get": operation("attach to a vm's console", vec![log], None, messages) }),
    );
    let explanation = generator.subschema_for::<Explanation>().to_value();
    let explained = json!({ "200": answer(&explanation, "The explanation.") });
    paths.insert(
        "/v1/vms/{name}/explain".to_owned(),
        json!({
            "parameters": [name_parameter()],
            "get": operation("explain a vm's place", Vec::new(), None, explained),
        }),
    );
}

fn operation(summary: &str, parameters: Vec<Value>, body: Option<Value>, mut responses: Value) -> Value {
    responses["default"] = json!({ "$ref": "#/components/responses/Problem" });
    let id = summary
        .split_whitespace()
        .filter(|word| *word != "a")
        .collect::<Vec<_>>()
        .join("-")
        .replace('\'', "");
    let mut operation =
        json!({ "operationId": id, "summary": summary, "parameters": parameters, "responses": responses });
    if let Some(body) = body {
        operation["requestBody"] =
            json!({ "required": true, "content": { "application/json": { "schema": body } } });
    }
    operation
}

fn answer(schema: &Value, description: &str) -> Value {
    json!({ "description": description, "content": { "application/json": { "schema": schema } } })
}

fn query(name: &str, kind: &str, description: &str) -> Value {
    json!({ "name": name, "in": "query", "description": description, "schema": { "type": kind } })
}

fn request_id() -> Value {
    query(
        "request_id",
        "string",
        "A repeat with the same id gets the same answer.",
    )
}

fn dry_run() -> Value {
    query("dry_run", "boolean", "Say what would be done, and do nothing.")
}

/// What may stand behind the `?` of a write to an object that is there.
fn change_parameters() -> Vec<Value> {
    let refuse = "Refuse if the object was changed after this revision.";
    vec![
        request_id(),
        query("expected_revision", "integer", refuse),
        dry_run(),
    ]
}

fn name_parameter() -> Value {
    json!({ "name": "name", "in": "path", "required": true, "description": "Name or id.", "schema": { "type": "string" } })
}
