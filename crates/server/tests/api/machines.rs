//! Which machine a host is: two hosts are never one, and a machine that lost its keys is told how to come back.

use serde_json::json;

use super::agents::Agent;
use super::world::{Keys, Said, World, joined};

const ONE: &str = "11aa11aa11aa11aa11aa11aa11aa11aa11aa11aa11aa11aa11aa11aa11aa11aa";
const OTHER: &str = "22bb22bb22bb22bb22bb22bb22bb22bb22bb22bb22bb22bb22bb22bb22bb22bb";

/// A machine with keys of its own asks to become a host.
async fn ask(world: &World, machine: Option<&str>, name: &str) -> Said {
    let token = world.join_token(Some(name)).await;
    world.join_from(machine, &token, &Keys::new(), name).await
}

/// A refusal that has all of these words.
#[track_caller]
fn says(said: &Said, words: &[&str]) {
    said.refused(409, "machine-taken");
    let detail = said.body["detail"].as_str().unwrap();
    for word in words {
        assert!(detail.contains(word), "{word:?} is not in {detail:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_a_hosts_disk_is_refused_with_what_to_do() {
    let world = World::new().await;
    let keys = Keys::new();
    let token = world.join_token(Some("h1")).await;
    let first = joined(world.join_from(Some(ONE), &token, &keys, "h1").await);
    // The same machine, whose answer was lost.
    let again = joined(world.join_from(Some(ONE), &token, &keys, "h1").await);
    assert_eq!(first.host_id, again.host_id);
    let copy = ask(&world, Some(ONE), "h2").await;
    says(
        &copy,
        &[
            "host h2",
            "host h1",
            "systemd-machine-id-setup",
            "sterna host remove h1",
        ],
    );
    // Other machines, and those that do not say, join.
    ask(&world, Some(OTHER), "h2").await.ok(200);
    ask(&world, None, "h3").await.ok(200);
    ask(&world, None, "h4").await.ok(200);
    let text = ask(&world, Some("0123456789abcdef"), "h5").await;
    text.refused(400, "bad-json");
    // Installed anew, it takes the place of what it was.
    world.delete("/v1/hosts/h1").await.ok(200);
    ask(&world, Some(ONE), "h5").await.ok(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_copies_that_join_at_once_one_is_a_host() {
    let world = World::new().await;
    let names = ["h1", "h2", "h3", "h4"];
    let answers = futures_util::future::join_all(names.map(|name| ask(&world, Some(ONE), name))).await;
    let (taken, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|said| said.status == 200);
    assert_eq!(taken.len(), 1, "{answers:#?}");
    refused.into_iter().for_each(|said| says(said, &["machine id"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_lost_its_keys_comes_back_when_nothing_of_it_can_run() {
    let world = World::new().await;
    let first = joined(ask(&world, Some(ONE), "h1").await);
    let lost = ask(&world, Some(ONE), "h1").await;
    says(
        &lost,
        &["restart the machine", "confirm-dead h1", "sterna host remove h1"],
    );
    // Another machine is not told so.
    ask(&world, Some(OTHER), "h1").await.refused(409, "name-taken");
    // Of one that is dead nothing runs: it may come back as itself, or its machine as another host.
    let host = first.host_id;
    mark_dead(&world, host).await;
    ask(&world, Some(ONE), "h2").await.ok(200);
    let taken = ask(&world, Some(ONE), "h1").await;
    says(&taken, &["host h1", "host h2"]);
    world.delete("/v1/hosts/h2").await.ok(200);
    let back = joined(ask(&world, Some(ONE), "h1").await);
    assert_eq!(back.host_id, host);
}

/// As `sterna host confirm-dead` does, without waiting until the host is silent.
async fn mark_dead(world: &World, host: model::HostId) {
    let key = model::key::object(model::Kind::Host, host.0);
    let found = world.store.range(store::RangeRequest::key(&key)).await.unwrap();
    let mut stored: serde_json::Value = serde_json::from_slice(&found.items[0].value).unwrap();
    stored["data"]["spec"]["confirmed_dead_at"] = json!("2026-01-02T03:04:05Z");
    let put = store::Op::put(key, stored.to_string().into_bytes());
    world.store.txn(store::Txn::new().then(put)).await.unwrap();
    world
        .until("/v1/hosts/h1", |host| host["status"]["state"] == "dead")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_of_before_says_its_machine_when_it_renews() {
    let world = World::new().await;
    let keys = Keys::new();
    let token = world.join_token(Some("h1")).await;
    let agent = Agent::of(&world, &keys, &joined(world.join(&token, &keys, "h1").await));
    let body = json!({
        "machine": ONE, "agent_csr_pem": keys.request, "migration_csr_pem": Keys::new().request,
    });
    let asked = agent.http.post(format!("{}/agent/v1/renew", world.url));
    world.send(asked.json(&body)).await.ok(200);
    says(&ask(&world, Some(ONE), "h2").await, &["host h1"]);
}
