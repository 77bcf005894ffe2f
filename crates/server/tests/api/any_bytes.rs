//! Anything at all where the interface takes something: every answer is a refusal in the one form, or the thing that was
//! asked for; never a fault of the server's.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use reqwest::Method;
use serde_json::{Value, json};

use super::agents::Agent;
use super::world::{Said, World};

/// How many bodies each route gets.
const BODIES: usize = 24;

/// Values that are not meant, at the places of those that are.
fn spoiled(example: &Value) -> BoxedStrategy<Value> {
    let odd = prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        "\\PC{0,40}".prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        Just(json!([[[[[[{ "a": [null] }]]]]]])),
        Just(json!("x".repeat(70_000))),
    ];
    match example {
        Value::Object(map) => {
            let fields = map.iter().map(|(key, value)| {
                let key = key.clone();
                prop_oneof![3 => Just(value.clone()).boxed(), 2 => spoiled(value), 1 => odd.clone().boxed()]
                    .prop_map(move |value| (key.clone(), value))
                    .boxed()
            });
            let whole = fields
                .collect::<Vec<_>>()
                .prop_map(|fields| fields.into_iter().collect());
            prop_oneof![8 => whole, 1 => odd].boxed()
        }
        _ => odd.boxed(),
    }
}

/// The same bytes in every run.
fn runner() -> TestRunner {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    TestRunner::new_with_rng(Config::default(), rng)
}

fn is_fault(said: &Said) -> bool {
    said.status >= 500 || (said.status >= 400 && said.body["code"].as_str().is_none())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_body_is_the_servers_fault() {
    let world = World::new().await;
    world.vm("web").await;
    let document = api::openapi::document();
    let mut runner = runner();
    let mut sent = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, described) in item.as_object().unwrap() {
            let Ok(method) = method.to_ascii_uppercase().parse::<Method>() else {
                continue;
            };
            let example = &described["requestBody"]["content"]["application/json"]["example"];
            if example.is_null() {
                continue;
            }
            let bodies = prop_oneof![
                4 => spoiled(example).prop_map(|value| value.to_string().into_bytes()),
                1 => prop::collection::vec(any::<u8>(), 0..200),
            ];
            for n in 0..BODIES {
                let body = bodies.new_tree(&mut runner).unwrap().current();
                let name = ["web", "small", "none"][n % 3];
                let path = path.replace("{name}", name);
                let asked = world.request(method.clone(), &path).body(body.clone());
                let said = world.send(asked).await;
                let shown = String::from_utf8_lossy(&body);
                assert!(!is_fault(&said), "{method} {path} {:.300}: {said:?}", shown);
                sent += 1;
            }
        }
    }
    assert!(sent > 500, "{sent}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_an_agent_or_a_stranger_sends_is_the_servers_fault() {
    let unlimited = server::Rates {
        stranger_per_s: 0,
        ..server::Rates::default()
    };
    let store = std::sync::Arc::new(store::MemoryStore::new(store::system_clock()));
    let world = World::with(store, unlimited).await;
    world.furnish().await;
    let mut agent = Agent::join(&world, "h1").await;
    agent.hello(&world, 4096).await;
    let report = serde_json::to_value(agent.report(None, Vec::new())).unwrap();
    let join =
        json!({ "token": "join-0", "name": "h2", "agent_csr_pem": "-----BEGIN", "migration_csr_pem": "" });
    let known = world.join_token(None).await;
    let mut runner = runner();
    for (path, example) in [("/agent/v1/report", report), ("/agent/v1/join", join)] {
        let bodies = prop_oneof![
            4 => spoiled(&example).prop_map(|value| value.to_string().into_bytes()),
            1 => prop::collection::vec(any::<u8>(), 0..200),
        ];
        for n in 0..200 {
            let mut body = bodies.new_tree(&mut runner).unwrap().current();
            if n % 2 == 0 {
                let text = String::from_utf8_lossy(&body).replace("join-0", &known);
                body = text.into_bytes();
            }
            let asked = agent.http.post(format!("{}{path}", world.url)).body(body.clone());
            let said = world.send(asked).await;
            assert!(
                !is_fault(&said),
                "{path} {:.300}: {said:?}",
                String::from_utf8_lossy(&body)
            );
        }
    }
    // It still goes on.
    world.get("/v1/hosts/h1").await.ok(200);
}
