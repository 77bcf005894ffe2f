//! What operations are put together from: parameters, bodies, answers and refusals.

use std::collections::BTreeMap;

use model::Kind;
use schemars::SchemaGenerator;
use serde_json::{Map, Value, json};

use crate::problem::{CODES, MEDIA_TYPE, Problem, title};

/// An operation under way to the document.
pub(super) struct Operation(Value);

/// An operation with what it takes and answers.
pub(super) fn operation(summary: &str, tag: &str, parameters: Vec<Value>, responses: Value) -> Operation {
    let id = summary
        .split_whitespace()
        .filter(|word| *word != "a")
        .collect::<Vec<_>>()
        .join("-")
        .replace('\'', "");
    Operation(json!({
        "operationId": id, "summary": summary, "tags": [tag], "parameters": parameters, "responses": responses,
    }))
}

impl Operation {
    /// The same with a body in JSON.
    pub(super) fn with_body(mut self, schema: &Value, example: Value) -> Self {
        let body = json!({ "schema": schema, "example": example });
        self.0["requestBody"] = json!({ "required": true, "content": { "application/json": body } });
        self
    }

    /// The finished operation, with how it is refused.
    pub(super) fn refuses(mut self, problems: Problems) -> Value {
        for status in ALWAYS.iter().chain(problems.statuses()) {
            let reference = format!("#/components/responses/{}", response_name(*status));
            self.0["responses"][status.to_string()] = json!({ "$ref": reference });
        }
        self.0
    }
}

/// How every operation can be refused.
const ALWAYS: [u16; 6] = [400, 401, 405, 429, 500, 503];

/// How an operation can be refused beside that.
#[derive(Debug, Clone, Copy)]
pub(super) enum Problems {
    /// It reads many objects.
    List,
    /// It reads one object.
    Read,
    /// It is about one object, and takes nothing that could be invalid.
    Named,
    /// It makes something new.
    Create,
    /// It changes one object.
    Change,
    /// It is for administrators, and ends a token.
    Revoke,
    /// It becomes a stream of bytes.
    Console,
    /// It is for administrators, and reads.
    Administer,
    /// It is for administrators, and changes how the store is.
    Resume,
}

impl Problems {
    const fn statuses(self) -> &'static [u16] {
        match self {
            Self::List => &[410, 422],
            Self::Read => &[404, 422],
            Self::Named => &[404],
            Self::Create => &[403, 409, 413, 422],
            Self::Change => &[403, 404, 409, 413, 422],
            Self::Console => &[403, 404, 409, 426],
            Self::Revoke => &[403, 404, 409],
            Self::Administer => &[403, 409],
            Self::Resume => &[403, 409, 413, 422],
        }
    }
}

/// What a refusal is called in the document: its title in one word.
fn response_name(status: u16) -> String {
    let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
    title(status).split(' ').map(capital).collect()
}

/// The refusals, each with its codes.
pub(super) fn responses(generator: &mut SchemaGenerator) -> Map<String, Value> {
    let problem = generator.subschema_for::<Problem>().to_value();
    let mut by_status: BTreeMap<u16, Vec<&str>> = BTreeMap::new();
    for code in CODES {
        by_status.entry(code.status).or_default().push(code.code);
    }
    let responses = by_status.into_iter().map(|(status, codes)| {
        let codes = codes.iter().map(|code| format!("`{code}`")).collect::<Vec<_>>().join(", ");
        let mut response = json!({
            "description": format!("{}: {codes}.", title(status)),
            "content": { MEDIA_TYPE: { "schema": problem } },
        });
        if matches!(status, 429 | 503) {
            let seconds = json!({ "description": "After how many seconds to try again.", "schema": { "type": "integer" } });
            response["headers"] = json!({ "Retry-After": seconds });
        }
        (response_name(status), response)
    });
    responses.collect()
}

/// What generic types are called: `VmList`, not `List` or `List2`.
#[derive(Debug, Default)]
pub(super) struct Names(BTreeMap<String, String>);

impl Names {
    /// The schema that is referred to so is the kind's.
    pub(super) fn add(&mut self, reference: &Value, kind: Kind, suffix: &str) {
        let generated = reference
            .get("$ref")
            .and_then(Value::as_str)
            .and_then(|text| text.rsplit('/').next());
        let (first, rest) = kind.name().split_at(1);
        let name = format!("{}{rest}{suffix}", first.to_uppercase());
        self.0
            .extend(generated.map(|generated| (generated.to_owned(), name)));
    }

    /// Renames schemas and what refers to them.
    pub(super) fn apply(&self, document: &mut Value) {
        self.refer(document);
        if let Some(schemas) = document
            .pointer_mut("/components/schemas")
            .and_then(Value::as_object_mut)
        {
            let renamed = std::mem::take(schemas).into_iter();
            *schemas = renamed
                .map(|(name, schema)| (self.0.get(&name).cloned().unwrap_or(name), schema))
                .collect();
        }
    }

    fn refer(&self, value: &mut Value) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(reference)) = map.get_mut("$ref") {
                    let generated = reference.rsplit('/').next().unwrap_or_default();
                    if let Some(name) = self.0.get(generated) {
                        *reference = format!("#/components/schemas/{name}");
                    }
                }
                map.values_mut().for_each(|value| self.refer(value));
            }
            Value::Array(all) => all.iter_mut().for_each(|value| self.refer(value)),
            _ => {}
        }
    }
}

/// An answer in JSON.
pub(super) fn answer(schema: &Value, description: &str) -> Value {
    json!({ "description": description, "content": { "application/json": { "schema": schema } } })
}

/// A parameter behind the `?`.
pub(super) fn query(name: &str, kind: &str, description: &str) -> Value {
    json!({ "name": name, "in": "query", "description": description, "schema": { "type": kind } })
}

/// Which labels objects must have.
pub(super) fn label() -> Value {
    query(
        "label",
        "string",
        "Only objects with these labels: `key=value`, several with commas.",
    )
}

/// Which objects are meant.
pub(super) fn filter() -> Value {
    query(
        "filter",
        "string",
        "Only objects for which these conditions hold: `status.phase=running,spec.vcpus>=2`.",
    )
}

/// What of objects is shown.
pub(super) fn fields() -> Value {
    query(
        "fields",
        "string",
        "Show these fields and no others: `name,status.phase`.",
    )
}

/// What a repeat is recognised by.
pub(super) fn request_id() -> Value {
    query(
        "request_id",
        "string",
        "A repeat with the same id gets the same answer.",
    )
}

/// A rehearsal.
pub(super) fn dry_run() -> Value {
    query("dry_run", "boolean", "Say what would be done, and do nothing.")
}

/// What may stand behind the `?` of a write to an object that is there.
pub(super) fn change_parameters() -> Vec<Value> {
    let refuse = "Refuse if the object was changed after this revision.";
    vec![
        request_id(),
        query("expected_revision", "integer", refuse),
        dry_run(),
    ]
}

/// The object that a path is about.
pub(super) fn name_parameter() -> Value {
    json!({ "name": "name", "in": "path", "required": true, "description": "Name or id.", "schema": { "type": "string" } })
}

/// What a schema's words mean, by word.
pub const MEANINGS: &str = "x-meanings";

/// Makes a choice between words one `enum`. The generator writes such a choice as a union of constants with a description
/// each, which clients' generators take for a union of types.
pub(super) fn fold_words(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(fold_words);
            let words = map
                .get("oneOf")
                .and_then(Value::as_array)
                .and_then(|all| words(all.as_slice()));
            if let Some(words) = words {
                map.remove("oneOf");
                map.insert("type".to_owned(), "string".into());
                map.insert(
                    "enum".to_owned(),
                    words.iter().map(|(word, _)| word.clone()).collect(),
                );
                map.insert(MEANINGS.to_owned(), Value::Object(words.into_iter().collect()));
            }
        }
        Value::Array(all) => all.iter_mut().for_each(fold_words),
        _ => {}
    }
}

/// The words of a choice with their meanings, if it is one between words only.
fn words(all: &[Value]) -> Option<Vec<(String, Value)>> {
    let mut words = Vec::new();
    for one in all {
        let meaning = one.get("description").cloned().unwrap_or_default();
        match (one.get("const"), one.get("enum")) {
            (Some(Value::String(word)), _) => words.push((word.clone(), meaning)),
            (_, Some(Value::Array(several))) => {
                let several = several
                    .iter()
                    .map(|word| Some((word.as_str()?.to_owned(), Value::Null)));
                words.extend(several.collect::<Option<Vec<_>>>()?);
            }
            _ => return None,
        }
    }
    Some(words)
}
