//! Tokens: what each role may do, until when, and whose word makes and ends them.

use std::sync::Arc;
use std::time::Duration;

use api::openapi::document;
use reqwest::Method;
use serde_json::{Value, json};
use store::MemoryStore;

use super::world::{PATIENCE, Said, World};

/// A World whose answers are asked for with other tokens.
pub(crate) async fn with(
    world: &World,
    token: &str,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Said {
    let mut request = world.http.request(method, format!("{}{path}", world.url));
    request = request.bearer_auth(token);
    if let Some(body) = body {
        request = request.json(body);
    }
    world.send(request).await
}

pub(crate) async fn make(world: &World, name: &str, role: &str) -> String {
    let made = world
        .post("/v1/tokens", &json!({ "name": name, "role": role }))
        .await
        .ok(201);
    assert_eq!(
        (&made["name"], &made["user"], &made["role"]),
        (&json!(name), &json!(name), &json!(role))
    );
    made["secret"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_made_listed_and_revoked() {
    let world = World::new().await;
    let secret = make(&world, "ci", "operator").await;
    world
        .post("/v1/tokens", &json!({ "name": "ci", "role": "reader" }))
        .await
        .refused(409, "name-taken");
    for taken in ["first", "admin"] {
        let body = json!({ "name": taken, "role": "reader" });
        world.post("/v1/tokens", &body).await.refused(409, "name-taken");
    }
    let past = json!({ "name": "late", "role": "reader", "expires_at": "2020-01-01T00:00:00Z" });
    world
        .post("/v1/tokens", &past)
        .await
        .refused(422, "expires-in-the-past");
    let odd = json!({ "name": "odd", "role": "king" });
    world.post("/v1/tokens", &odd).await.refused(422, "invalid-body");
    let listed = world.get("/v1/tokens").await.ok(200);
    let names: Vec<_> = listed["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| &token["name"])
        .collect();
    assert_eq!(names, [&json!("ci"), &json!("first")]);
    assert!(!listed.to_string().contains(&secret));
    with(&world, &secret, Method::GET, "/v1/vms", None).await.ok(200);
    world.delete("/v1/tokens/ci").await.ok(200);
    with(&world, &secret, Method::GET, "/v1/vms", None)
        .await
        .refused(401, "bad-token");
    world.delete("/v1/tokens/ci").await.refused(404, "not-found");
    // The name is free again, and the old secret stays worthless.
    let other = make(&world, "ci", "reader").await;
    with(&world, &secret, Method::GET, "/v1/vms", None)
        .await
        .refused(401, "bad-token");
    with(&world, &other, Method::GET, "/v1/vms", None).await.ok(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_role_may_not_do_is_refused_on_every_route() {
    let unlimited = server::Rates {
        user_per_s: 0,
        ..server::Rates::default()
    };
    let world = World::with(Arc::new(MemoryStore::new(store::system_clock())), unlimited).await;
    let reader = make(&world, "eyes", "reader").await;
    let operator = make(&world, "hands", "operator").await;
    let for_admins = [
        "/v1/tokens",
        "/v1/tokens/{name}",
        "/v1/join-tokens",
        "/v1/store/backup",
        "/v1/store/resume",
    ];
    let document = document();
    let mut asked = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, described) in item.as_object().unwrap() {
            let Ok(method) = method.to_ascii_uppercase().parse::<Method>() else {
                continue;
            };
            if described["responses"].is_null() {
                continue;
            }
            let body = described["requestBody"]["content"]["application/json"]["example"].clone();
            let body = Some(&body).filter(|body| !body.is_null());
            let name = path.replace("{name}", "none");
            let is_for_admins = for_admins.contains(&path.as_str());
            let said = with(&world, &reader, method.clone(), &name, body).await;
            let is_console = path.ends_with("/console");
            let is_refused = method != Method::GET || is_for_admins || is_console;
            assert_eq!(
                said.status == 403,
                is_refused,
                "a reader's {method} {path}: {said:?}"
            );
            let said = with(&world, &operator, method.clone(), &name, body).await;
            assert_eq!(
                said.status == 403,
                is_for_admins,
                "an operator's {method} {path}: {said:?}"
            );
            if is_for_admins {
                said.refused(403, "not-admin");
            }
            asked += 1;
        }
    }
    assert!(asked > 60, "{asked}");
    with(&world, &reader, Method::GET, "/metrics", None).await.ok(200);
}

/// A token that ends soon. On a slow machine it may have ended before it was made: the next one lives longer.
async fn short_lived(world: &World) -> String {
    for life_ms in [1_500, 6_000, 24_000] {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis();
        let soon = i64::try_from(now + life_ms).unwrap();
        let soon = model::Timestamp::from_millisecond(soon).unwrap();
        let body = json!({ "name": "short", "role": "reader", "expires_at": soon });
        let made = world.post("/v1/tokens", &body).await;
        if made.status == 201 {
            return made.body["secret"].as_str().unwrap().to_owned();
        }
        made.refused(422, "expires-in-the-past");
    }
    panic!("this machine takes a day for an answer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_ends_by_itself() {
    let world = World::new().await;
    let secret = short_lived(&world).await;
    let begun = std::time::Instant::now();
    while with(&world, &secret, Method::GET, "/v1/vms", None).await.status != 401 {
        assert!(begun.elapsed() < PATIENCE, "it never ended");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
