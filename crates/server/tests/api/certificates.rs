//! Certificates that are made anew while everything goes on.

use std::time::Duration;

use api::agent::JoinResponse;
use jiff::SignedDuration;
use serde_json::json;

use super::agents::Agent;
use super::world::{Keys, PATIENCE, Said, World, client, joined};

async fn renew(world: &World, agent: &Agent, keys: &Keys) -> Said {
    let body = json!({ "agent_csr_pem": keys.request, "migration_csr_pem": Keys::new().request });
    let asked = agent
        .http
        .post(format!("{}/agent/v1/renew", world.url))
        .json(&body);
    world.send(asked).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_renews_its_certificates_and_a_lost_answer_shuts_nobody_out() {
    let world = World::new().await;
    let keys = Keys::new();
    let token = world.join_token(Some("h1")).await;
    let first = joined(world.join(&token, &keys, "h1").await);
    let due = first.renew_at.expect("it is said when to renew");
    assert!(due > model::Timestamp::UNIX_EPOCH);
    let mut one = Agent::of(&world, &keys, &first);
    one.hello(&world, 4096).await;
    // The answer is lost: the present certificate asks again, and again.
    renew(&world, &one, &keys).await.ok(200);
    let second: JoinResponse = serde_json::from_value(renew(&world, &one, &keys).await.ok(200)).unwrap();
    assert_eq!(second.host_id, first.host_id);
    assert_ne!(second.agent_certificate_pem, first.agent_certificate_pem);
    let two = Agent::of(&world, &keys, &second);
    let report = one.report(None, Vec::new());
    for agent in [&one, &two] {
        agent.send(&world, &report).await.ok(204);
    }
    let third: JoinResponse = serde_json::from_value(renew(&world, &two, &keys).await.ok(200)).unwrap();
    let three = Agent::of(&world, &keys, &third);
    // The first one is history, and whoever shows it is sent away to come back with another.
    let report = one.report(None, Vec::new());
    let asked = one
        .http
        .post(format!("{}/agent/v1/report", world.url))
        .json(&report);
    let refused = asked.send().await.unwrap();
    assert_eq!(refused.status(), 403);
    for agent in [&two, &three] {
        agent.send(&world, &report).await.ok(204);
    }
    // A certificate is for its host alone, renewed or not.
    let stranger = client(&world.ca, None).post(format!("{}/agent/v1/renew", world.url));
    world
        .send(stranger.json(&json!({})))
        .await
        .refused(401, "no-certificate");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_outlives_its_certificate_without_a_restart() {
    let world = World::short_lived(SignedDuration::from_secs(20)).await;
    let keep = world
        .request(reqwest::Method::GET, "/v1/vms?watch=true")
        .send()
        .await
        .unwrap();
    // More than a life, renewed in the middle: whoever comes anew is shown a certificate that is good, every time.
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_secs(24) {
        let fresh = client(&world.ca, None);
        let asked = fresh.get(format!("{}/healthz", world.url)).send().await;
        assert!(asked.is_ok(), "after {:?}: {asked:?}", began.elapsed());
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    // Whoever was there stayed.
    let mut keep = keep;
    world.furnish().await;
    world.vm("web").await;
    let line = tokio::time::timeout(PATIENCE, keep.chunk()).await.unwrap();
    assert!(line.unwrap().is_some());
}
