//! The OpenAPI document is checked in, so that a change of the API is seen in its review.
//! `UPDATE=1 cargo test -p api --test openapi` writes it again.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;

use serde_json::Value;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
const PROBLEMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/problems.md");

const PROBLEMS_HEAD: &str = "# Problems

What is refused or failed is answered with problem details (RFC 9457, `application/problem+json`). `type` is
`urn:sterna:problem:CODE`; `code` is stable, for programs; `detail` says what was attempted, why it was not done and what
to do about it; `remedy` is the last column. With 429 and 503, `Retry-After` says when to try again. The page is made from
`crates/api/src/problem/codes.rs`.

| status | code | what it means | what helps |
|---|---|---|---|
";

#[test]
fn the_page_of_problems_is_the_one_that_is_checked_in() {
    let rows = api::problem::CODES.iter().map(|code| {
        format!(
            "| {} | `{}` | {} | {} |\n",
            code.status, code.code, code.means, code.remedy
        )
    });
    let made = format!("{PROBLEMS_HEAD}{}", rows.collect::<String>());
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(PROBLEMS, &made).unwrap();
    }
    let same = made == std::fs::read_to_string(PROBLEMS).unwrap_or_default();
    assert!(
        same,
        "codes changed: `UPDATE=1 cargo test -p api --test openapi` writes docs/problems.md again"
    );
}

#[test]
fn the_document_is_the_one_that_is_checked_in() {
    let made = format!("{:#}\n", api::openapi::document());
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(PATH, &made).unwrap();
    }
    let kept = std::fs::read_to_string(PATH).unwrap_or_default();
    let same = made == kept;
    assert!(
        same,
        "the API changed: `UPDATE=1 cargo test -p api --test openapi` writes openapi.json again"
    );
}

fn visit(value: &Value, found: &mut dyn FnMut(&str, &Value)) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            found(key, value);
            visit(value, found);
        }),
        Value::Array(all) => all.iter().for_each(|value| visit(value, found)),
        _ => {}
    }
}

#[test]
fn every_reference_leads_somewhere() {
    let document = api::openapi::document();
    let mut references = 0;
    visit(&document, &mut |key, value| {
        if key == "$ref" {
            references += 1;
            let pointer = value
                .as_str()
                .and_then(|text| text.strip_prefix('#'))
                .expect("a local reference");
            assert!(document.pointer(pointer).is_some(), "{pointer} leads nowhere");
        }
    });
    assert!(references > 50, "{references}");
}

#[test]
fn every_operation_has_an_id_of_its_own_and_says_how_it_fails() {
    let document = api::openapi::document();
    let mut ids = BTreeSet::new();
    let methods = ["get", "post", "put", "patch", "delete"];
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item
            .as_object()
            .unwrap()
            .iter()
            .filter(|(key, _)| methods.contains(&key.as_str()))
        {
            let id = operation["operationId"].as_str().unwrap();
            assert!(ids.insert(id.to_owned()), "{id} twice");
            assert!(
                id.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'),
                "{id}"
            );
            for status in ["400", "401", "429", "503"] {
                assert!(
                    operation["responses"][status].is_object(),
                    "{method} {path} {status}"
                );
            }
        }
        let takes_name = path.contains("{name}");
        assert_eq!(item["parameters"].is_array(), takes_name, "{path}");
    }
}

#[test]
fn every_schema_is_called_after_what_it_is() {
    let document = api::openapi::document();
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let numbered: Vec<_> = schemas
        .keys()
        .filter(|name| name.ends_with(|last: char| last.is_ascii_digit()))
        .collect();
    assert_eq!(numbered, Vec::<&String>::new());
    for name in [
        "Vm",
        "VmList",
        "VmChange",
        "VmChanges",
        "VmCreate",
        "Datastore",
        "EventList",
    ] {
        assert!(schemas.contains_key(name), "{name}");
    }
}
