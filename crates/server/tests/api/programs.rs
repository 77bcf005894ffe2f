//! What programs rely on: every route refuses in the same form and as it is described, asking too often is answered with
//! how long to wait, and the pages that describe it all are served by the server itself.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use api::kinds::Vm;
use api::problem::CODES;
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use server::Rates;
use store::MemoryStore;

use super::world::{Said, World};

/// An operation of the document.
struct Operation {
    method: Method,
    path: String,
    described: Value,
}

fn operations() -> Vec<Operation> {
    let document = api::openapi::document();
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, described) in item.as_object().unwrap() {
            if method == "parameters" {
                continue;
            }
            let method = method.to_uppercase().parse().unwrap();
            let (path, described) = (path.clone(), described.clone());
            all.push(Operation {
                method,
                path,
                described,
            });
        }
    }
    all
}

impl Operation {
    /// Holds a refusal to be of the form that every one has, with a code that is listed, and to be described.
    #[track_caller]
    fn refused(&self, said: &Said, status: u16, code: &str) {
        let what = format!("{} {}", self.method, self.path);
        assert_eq!(
            (said.status, &said.body["code"]),
            (status, &json!(code)),
            "{what}: {said:#?}"
        );
        said.refused(status, code);
        let known = CODES.iter().find(|known| known.code == code);
        assert!(
            known.is_some_and(|known| said.body["remedy"] == known.remedy),
            "{what}: {said:#?}"
        );
        let answers = &self.described["responses"];
        assert!(
            answers[status.to_string()].is_object(),
            "{what} does not say that it may answer {status}"
        );
    }

    async fn ask(&self, world: &World, query: &str, body: Option<&str>) -> Said {
        let path = format!(
            "{}{query}",
            self.path.replace("{name}", "none").replace("{version}", "1")
        );
        let mut request = world.request(self.method.clone(), &path);
        if let Some(body) = body {
            request = request.body(body.to_owned());
        }
        world.send(request).await
    }

    fn has_parameters(&self) -> bool {
        self.described["parameters"]
            .as_array()
            .is_some_and(|all| !all.is_empty())
    }

    fn takes_json(&self) -> bool {
        self.described["requestBody"]["content"]["application/json"].is_object()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_refuses_alike_and_as_described() {
    let unlimited = Rates {
        user_per_s: 0,
        stranger_per_s: 0,
        ..Rates::default()
    };
    let world = World::with(Arc::new(MemoryStore::new(store::system_clock())), unlimited).await;
    let all = operations();
    assert!(all.len() > 60, "{}", all.len());
    for operation in &all {
        let path = operation.path.replace("{name}", "none").replace("{version}", "1");
        let stranger = world
            .http
            .request(operation.method.clone(), format!("{}{path}", world.url));
        operation.refused(&world.send(stranger).await, 401, "no-token");
        let is_console = operation.path.ends_with("/console");
        if operation.has_parameters() && !is_console {
            let body = operation.takes_json().then_some("{}");
            operation.refused(
                &operation.ask(&world, "?colour=red", body).await,
                400,
                "bad-query",
            );
        }
        if operation.takes_json() {
            operation.refused(&operation.ask(&world, "", Some("{")).await, 400, "bad-json");
            let said = operation.ask(&world, "", Some(r#"{"colour":1}"#)).await;
            let code = if operation.method == Method::PATCH {
                "invalid-patch"
            } else {
                "invalid-body"
            };
            operation.refused(&said, 422, code);
        }
        if operation.path.contains("{name}") && !is_console {
            let example = &operation.described["requestBody"]["content"]["application/json"]["example"];
            let body = operation.takes_json().then(|| example.to_string());
            operation.refused(
                &operation.ask(&world, "", body.as_deref()).await,
                404,
                "not-found",
            );
        }
        if operation.described["responses"]["405"].is_object() {
            let trace = world.request(Method::TRACE, &path);
            operation.refused(&world.send(trace).await, 405, "no-method");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_examples_of_the_document_can_be_sent() {
    let world = World::new().await;
    let tiny = json!({ "name": "tiny", "spec": {} });
    world.post("/v1/images", &tiny).await.ok(201);
    for path in ["/v1/datastores", "/v1/networks", "/v1/templates", "/v1/vms"] {
        let document = api::openapi::document();
        let mut example =
            document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"].clone();
        if path == "/v1/templates" {
            // One of this name is there already.
            example["name"] = json!("smaller");
        }
        world.post(path, &example).await.ok(201);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_too_often_is_told_how_long_to_wait_and_the_client_does() {
    let rates = Rates {
        user_per_s: 1,
        stranger_per_s: 0,
        ..Rates::default()
    };
    let world = World::with(Arc::new(MemoryStore::new(store::system_clock())), rates).await;
    // More at once than the bucket holds, even if answering takes a minute.
    let answers = join_all((0..100).map(|_| world.get("/v1/vms"))).await;
    let refused: Vec<_> = answers.iter().filter(|said| said.status != 200).collect();
    assert!(!refused.is_empty() && answers.len() > refused.len());
    for said in refused {
        said.refused(429, "too-many-requests");
        assert!(
            said.body["retry_after_s"]
                .as_u64()
                .is_some_and(|seconds| seconds >= 1),
            "{said:#?}"
        );
    }
    // The bucket is empty, so the client has to wait, and comes through.
    world.typed().list::<Vm>().await.unwrap();
    let healthy = join_all((0..100).map(|_| world.get("/healthz"))).await;
    assert!(
        healthy.iter().all(|said| said.status == 200),
        "health checks are not limited"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_limited_by_address_and_others_there_are_not() {
    let rates = Rates {
        user_per_s: 0,
        stranger_per_s: 1,
        ..Rates::default()
    };
    let world = World::with(Arc::new(MemoryStore::new(store::system_clock())), rates).await;
    world.get("/v1/vms").await.ok(200);
    let url = format!("{}/v1/vms", world.url);
    let strange = join_all((0..100).map(|_| world.send(world.http.get(&url).bearer_auth("wrong")))).await;
    assert!(strange.iter().any(|said| said.status == 401), "{strange:#?}");
    let refused: Vec<_> = strange.iter().filter(|said| said.status == 429).collect();
    assert!(!refused.is_empty());
    refused
        .iter()
        .for_each(|said| said.refused(429, "too-many-attempts"));
    let joins = join_all((0..100).map(|_| async {
        let body = json!({ "token": "wrong", "name": null, "agent_csr_pem": "", "migration_csr_pem": "" });
        world
            .send(
                world
                    .http
                    .post(format!("{}/agent/v1/join", world.url))
                    .json(&body),
            )
            .await
    }));
    assert!(
        joins.await.iter().any(|said| said.status == 429),
        "join tokens cannot be guessed either"
    );
    world.get("/v1/vms").await.ok(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pages_need_nothing_from_outside() {
    let world = World::new().await;
    for (path, media_type, has) in [
        ("/docs", "text/html; charset=utf-8", "id=\"list-vms\""),
        ("/docs/style.css", "text/css; charset=utf-8", "body {"),
        ("/openapi.json", "application/json", "\"list-vms\""),
    ] {
        let answer = world
            .http
            .get(format!("{}{path}", world.url))
            .send()
            .await
            .unwrap();
        let headers = answer.headers().clone();
        assert_eq!(headers["content-type"], media_type);
        let policy = headers["content-security-policy"].to_str().unwrap();
        assert!(
            policy.starts_with("default-src 'none'; style-src 'self';"),
            "{policy}"
        );
        assert!(answer.text().await.unwrap().contains(has), "{path}");
    }
}

/// The text of every source below a directory.
fn sources(dir: &Path, all: &mut String) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("codes.rs") {
            all.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}

/// What stands as the first text after each call of a function, with a number before it or none.
fn first_texts<'a>(source: &'a str, call: &str) -> Vec<&'a str> {
    let after = source.split(call).skip(1);
    let texts = after.filter_map(|rest| {
        let rest = rest
            .trim_start()
            .trim_start_matches(|c: char| c.is_ascii_digit() || c == ',')
            .trim_start();
        rest.strip_prefix('"')?.split('"').next()
    });
    texts.collect()
}

#[test]
fn every_code_is_listed_and_every_listed_one_is_used() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (mut own, mut all) = (String::new(), String::new());
    sources(&crates.join("server/src"), &mut own);
    sources(&crates.join("api/src"), &mut own);
    let calls = [
        "Problem::new(",
        "Problem::invalid(",
        "Problem::conflict(",
        "refuse(",
    ];
    let limits = std::fs::read_to_string(crates.join("model/src/limits.rs")).unwrap();
    let used = calls.iter().flat_map(|call| first_texts(&own, call));
    let used: BTreeSet<&str> = used.chain(first_texts(&limits, "Reason::new(")).collect();
    let is_code = |text: &&&str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    // What a client makes up of an answer that is no problem, and what its tests make up.
    let outside = BTreeSet::from(["not-understood"]);
    let listed: BTreeSet<&str> = CODES.iter().map(|code| code.code).collect();
    let missing: Vec<_> = used
        .iter()
        .filter(is_code)
        .filter(|code| !listed.contains(*code) && !outside.contains(*code))
        .collect();
    assert!(
        missing.is_empty(),
        "not in crates/api/src/problem/codes.rs: {missing:?}"
    );
    assert!(used.len() > 50, "{used:?}");
    for dir in [
        "server/src",
        "api/src",
        "model/src",
        "planner/src",
        "scheduler/src",
    ] {
        sources(&crates.join(dir), &mut all);
    }
    let unused: Vec<_> = listed
        .iter()
        .filter(|code| !all.contains(&format!("\"{code}\"")))
        .collect();
    assert!(unused.is_empty(), "listed, and given by nothing: {unused:?}");
}
