//! What is done in guests: what is refused, what the agent is told, and what is written down of it.

use api::agent::CallFor;
use api::apply::{ApplyAnswer, ApplyOrder, ApplyStep, Secret, WAITING_MAX};
use api::console::{Console, Said};
use model::operation::Applied;
use model::report::RunState;
use reqwest::Method;
use serde_json::{Value, json};
use store::RangeRequest;

use super::agents::Agent;
use super::console::{dial, listen, next_call, running};
use super::tokens::{make, with};
use super::world::World;

const SCRIPT: &str = "#!/bin/sh\necho planted-script\n";
const APPLY: &str = "/v1/vms/web/apply";

/// A VM that runs, and whose guest's agent has answered.
async fn ready(world: &World) -> Agent {
    let mut agent = running(world).await;
    let vm = super::agents::id(&world.get("/v1/vms/web").await.ok(200));
    let mut run = agent.run(vm, RunState::Running);
    run.run.ready = true;
    let report = agent.report(None, vec![run]);
    agent.send(world, &report).await.ok(204);
    world
        .until("/v1/vms/web", |vm| vm["status"]["ready"] == true)
        .await;
    agent
}

/// Asks for something, and takes the order that the agent gets of it.
async fn ask(world: &World, agent: &Agent, path: &str, body: &Value) -> (Value, Console, ApplyOrder) {
    let stream = listen(world, agent).await;
    let made = world.post(path, body).await.ok(202);
    let call = next_call(stream).await;
    assert_eq!(call.what, CallFor::Apply);
    let mut line = Console::dial(dial(world, agent, &call.id)).await.unwrap();
    let Said::Notice(length) = line.next().await else {
        panic!("the length comes first")
    };
    let mut order = Vec::new();
    while order.len() < length.parse::<usize>().unwrap() {
        let Said::Bytes(bytes) = line.next().await else {
            panic!("then the order")
        };
        order.extend(bytes);
    }
    (made, line, serde_json::from_slice(&order).unwrap())
}

async fn ended(world: &World, name: &str) -> Value {
    let path = format!("/v1/operations/{name}");
    world
        .until(&path, |operation| !operation["status"]["ended_at"].is_null())
        .await;
    world.get(&path).await.ok(200)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_guest_that_answers_is_told_anything() {
    let world = World::new().await;
    let body = json!({ "script": SCRIPT });
    world.post(APPLY, &body).await.refused(404, "not-found");
    let agent = running(&world).await;
    world.post(APPLY, &body).await.refused(409, "guest-not-ready");
    world.vm("other").await;
    let said = world.post("/v1/vms/other/apply", &body).await;
    said.refused(409, "wrong-phase");
    drop(agent);
    world.post(APPLY, &json!({})).await.refused(422, "invalid-body");
    let said = world.post(APPLY, &json!({ "script": ["planted-script"] })).await;
    said.refused(422, "invalid-body");
    assert!(!said.body.to_string().contains("planted"), "{said:?}");
    let reader = make(&world, "eyes", "reader").await;
    let said = with(&world, &reader, Method::POST, APPLY, Some(&body)).await;
    said.refused(403, "read-only-token");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_agent_says_is_written_down_and_the_content_is_not() {
    let world = World::new().await;
    let agent = ready(&world).await;
    let body = json!({ "script": SCRIPT, "users": [{ "name": "ann", "password": "planted-password" }] });
    let dry = world.post("/v1/vms/web/apply?dry_run=true", &body).await.ok(200);
    assert_eq!(
        dry["spec"]["steps"],
        json!(["user ann", "password of ann", "script"])
    );
    world
        .get("/v1/operations/web-apply-1")
        .await
        .refused(404, "not-found");
    let path = "/v1/vms/web/apply?request_id=r1";
    let (made, mut line, order) = ask(&world, &agent, path, &body).await;
    assert_eq!(
        (&made["name"], &made["spec"]["action"]),
        (&json!("web-apply-1"), &json!("apply"))
    );
    let expected = ApplyStep::Script {
        content: Secret("IyEvYmluL3NoCmVjaG8gcGxhbnRlZC1zY3JpcHQK".to_owned()),
    };
    assert_eq!(order.steps.last(), Some(&expected));
    // A repeat is the same request, and nothing is done again.
    let again = world.post(path, &body).await.ok(202);
    assert_eq!(again["id"], made["id"]);
    let answer = ApplyAnswer {
        applied: Applied {
            steps_done: 3,
            exit_status: Some(0),
            output: "planted-output".to_owned(),
            output_bytes: 14,
        },
        reason: None,
    };
    assert!(line.notice(serde_json::to_string(&answer).unwrap()).await);
    let operation = ended(&world, "web-apply-1").await;
    assert_eq!(operation["status"]["phase"], "Done");
    assert_eq!(operation["status"]["applied"]["output"], "planted-output");
    let reader = make(&world, "eyes", "reader").await;
    for path in [
        "/v1/operations/web-apply-1",
        "/v1/operations",
        "/v1/operations/web-apply-1/history",
    ] {
        let seen = with(&world, &reader, Method::GET, path, None).await.ok(200);
        assert!(!seen.to_string().contains("planted"), "{path}: {seen}");
    }
    let kept = world.store.range(RangeRequest::prefix("/")).await.unwrap();
    for kv in kept.items {
        let text = String::from_utf8_lossy(&kv.value);
        assert!(
            !text.contains("planted-script") && !text.contains("planted-password"),
            "{}",
            kv.key
        );
        let is_status = kv.key.starts_with("/operation/");
        assert!(
            is_status || !text.contains("planted-output"),
            "{}: {text}",
            kv.key
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_lost_leaves_it_unknown_and_one_that_is_away_undone() {
    let world = World::new().await;
    let agent = ready(&world).await;
    let body = json!({ "script": SCRIPT });
    let made = world.post(APPLY, &body).await.ok(202);
    let away = ended(&world, made["name"].as_str().unwrap()).await;
    assert_eq!(away["status"]["reason"]["code"], "agent-away");
    let (made, line, _) = ask(&world, &agent, APPLY, &body).await;
    line.end("").await;
    let lost = ended(&world, made["name"].as_str().unwrap()).await;
    assert_eq!(lost["status"]["reason"]["code"], "apply-lost");
    assert_eq!(lost["status"]["attempt"], 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_many_may_wait_and_no_more() {
    let world = World::new().await;
    let agent = ready(&world).await;
    let body = json!({ "script": SCRIPT });
    let mut lines = Vec::new();
    for _ in 0..WAITING_MAX {
        let (_, line, _) = ask(&world, &agent, APPLY, &body).await;
        lines.push(line);
    }
    let said = world.post(APPLY, &body).await;
    said.refused(409, "under-way");
}
