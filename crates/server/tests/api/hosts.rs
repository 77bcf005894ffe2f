//! What an operator does with hosts: drains them, labels them, removes them.

use model::report::RunState;
use serde_json::json;

use super::agents::{Agent, id};
use super::world::World;

/// A host with a VM that runs.
pub(super) async fn furnished() -> (World, Agent) {
    let world = World::new().await;
    let (mut agent, vm) = Agent::with_a_vm(&world).await;
    let report = agent.report(None, vec![agent.run(vm, RunState::Running)]);
    agent.send(&world, &report).await.ok(204);
    (world, agent)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_says_first_what_cannot_leave_and_is_ended_by_undrain_or_uncordon() {
    let (world, _agent) = furnished().await;
    let drain = "/v1/hosts/h1/actions/drain";
    let tried = world
        .post(&format!("{drain}?dry_run=true"), &json!({}))
        .await
        .ok(200);
    let planned = &tried["status"]["drain"];
    assert_eq!(
        (
            &planned["state"],
            &planned["total"],
            &planned["vms"][0]["standing"]
        ),
        (&json!("stuck"), &json!(1), &json!("stays")),
        "{planned:#}"
    );
    assert_eq!(planned["vms"][0]["vm"], "web");
    assert_eq!(
        world.get("/v1/hosts/h1").await.ok(200)["status"]["drain"],
        json!(null)
    );
    world
        .post(drain, &json!({ "parallel": 0 }))
        .await
        .refused(422, "out-of-range");
    world
        .patch("/v1/hosts/h1", &json!({ "spec": { "draining": true } }))
        .await
        .refused(422, "draining-by-action");
    for end in ["undrain", "uncordon"] {
        let begun = world.post(drain, &json!({ "parallel": 3 })).await.ok(200);
        assert_eq!(
            (&begun["spec"]["draining"], &begun["status"]["drain"]["parallel"]),
            (&json!(true), &json!(3))
        );
        assert_eq!(begun["status"]["reason"]["code"], "drain-stuck");
        let ended = world
            .post(&format!("/v1/hosts/h1/actions/{end}"), &json!({}))
            .await
            .ok(200);
        assert_eq!(ended["spec"]["draining"], false);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_is_removed_when_nothing_is_on_it_and_is_labelled() {
    let (world, mut agent) = furnished().await;
    let refused = world.delete("/v1/hosts/h1").await;
    refused.refused(409, "host-holds-vms");
    assert!(
        refused.body["detail"].as_str().unwrap().contains("web"),
        "{refused:#?}"
    );
    let labels = json!({ "labels": { "disk": "ssd", "rack": "a" } });
    world.patch("/v1/hosts/h1", &labels).await.ok(200);
    let labelled = world
        .patch("/v1/hosts/h1", &json!({ "labels": { "rack": null } }))
        .await
        .ok(200);
    assert_eq!(labelled["labels"], json!({ "disk": "ssd" }));
    world
        .post("/v1/vms/web/actions/shutdown", &json!({}))
        .await
        .ok(200);
    let vm = world
        .until("/v1/vms/web", |vm| vm["status"]["phase"] == "Shutdown")
        .await;
    let mut closed = agent.run(id(&vm), RunState::Closed);
    closed.run.ran = true;
    let report = agent.report(None, vec![closed]);
    agent.send(&world, &report).await.ok(204);
    world
        .until("/v1/vms/web", |vm| vm["status"]["phase"] == "Off")
        .await;
    world.delete("/v1/hosts/h1").await.ok(200);
    assert_eq!(
        world.get("/v1/vms/web").await.ok(200)["status"]["host"],
        json!(null)
    );
    let report = agent.report(None, Vec::new());
    agent.send(&world, &report).await.refused(403, "host-removed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_are_shown_as_they_were_given_and_contradictions_are_named() {
    let (world, _agent) = furnished().await;
    let create = |name: &str, placement: serde_json::Value| json!({ "name": name, "spec": { "template": "small", "placement": placement } });
    let rules = json!({
        "anti_affinity": [{ "to": { "hosts": ["h1"] } }, { "to": { "vms": { "app": "web" } }, "soft": true }],
        "strategy": "pack",
    });
    let made = world.post("/v1/vms", &create("db", rules)).await.ok(201);
    let placement = &made["spec"]["placement"];
    assert_eq!(
        (
            &placement["anti_affinity"][0]["to"]["hosts"],
            &placement["strategy"]
        ),
        (&json!(["h1"]), &json!("pack"))
    );
    let why = world.get("/v1/vms/db/explain").await.ok(200);
    assert_eq!(
        why["hosts"][0]["obstacles"][0]["code"], "anti-affinity-host",
        "{why:#}"
    );
    assert_eq!(
        why["smallest_change"],
        "drop the anti-affinity to h1: `sterna vm edit`"
    );
    let here = world.get("/v1/vms/web/explain").await.ok(200);
    assert_eq!(
        (&here["hosts"][0]["is_here"], &here["host"]),
        (&json!(true), &json!("h1"))
    );
    let both = json!({
        "affinity": [{ "to": { "hosts": ["h1"] } }], "anti_affinity": [{ "to": { "hosts": ["h1"] } }],
    });
    let refused = world.post("/v1/vms", &create("x", both)).await;
    refused.refused(422, "rules-contradict");
    let detail = refused.body["detail"].as_str().unwrap();
    assert!(
        detail.contains("affinity to hosts h1 and anti_affinity to hosts h1"),
        "{detail}"
    );
    let empty = json!({ "affinity": [{ "to": { "vms": {} } }] });
    world
        .post("/v1/vms", &create("x", empty))
        .await
        .refused(422, "empty-rule");
    let batch = json!({ "batch": { "id": "01890000-0000-7000-8000-000000000001", "size": 1000 } });
    world
        .post("/v1/vms", &create("x", batch))
        .await
        .refused(422, "out-of-range");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_promises_what_its_operator_says() {
    let (world, _agent) = furnished().await;
    let over =
        |percent: u32| json!({ "spec": { "overcommit": { "memory_percent": percent, "vcpus_per_cpu": 4 } } });
    let host = world.patch("/v1/hosts/h1", &over(150)).await.ok(200);
    assert_eq!(host["status"]["memory_mib"], 4096 * 3 / 2);
    world
        .patch("/v1/hosts/h1", &over(1000))
        .await
        .refused(422, "out-of-range");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_whose_clock_is_apart_is_named() {
    let (world, mut agent) = furnished().await;
    for (ahead_s, said) in [
        (None, None),
        (Some(3), None),
        (Some(-86_400), Some("24h behind")),
        (Some(90), Some("1m 30s ahead")),
        (Some(0), None),
    ] {
        let mut report = agent.report(None, Vec::new());
        report.samples.clock_ahead_s = ahead_s;
        agent.send(&world, &report).await.ok(204);
        let status = &world.get("/v1/hosts/h1").await.ok(200)["status"];
        assert_eq!(status["clock_ahead_s"], json!(ahead_s));
        let Some(said) = said else {
            assert_eq!(status["reason"], json!(null));
            continue;
        };
        assert_eq!(status["reason"]["code"], "clocks-apart");
        let message = status["reason"]["message"].as_str().unwrap();
        assert!(message.contains(said), "{message}");
    }
}
