//! Which machine speaks for a host: a copy of its disk beside it is refused everything, a restarted machine is taken.

use serde_json::{Value, json};

use super::agents::Agent;
use super::world::{Keys, PATIENCE, World, joined};

const OWN: &str = "11aa11aa11aa11aa11aa11aa11aa11aa11aa11aa11aa11aa11aa11aa11aa11aa";
const OTHER: &str = "22bb22bb22bb22bb22bb22bb22bb22bb22bb22bb22bb22bb22bb22bb22bb22bb";

/// A host that is heard, and whoever else has its keys.
struct Two {
    world: World,
    keys: Keys,
    joined: api::agent::JoinResponse,
    own: Agent,
    other: Agent,
}

impl Two {
    async fn begin() -> Self {
        let world = World::in_held_time().await;
        let keys = Keys::new();
        let token = world.join_token(Some("h1")).await;
        let joined = joined(world.join(&token, &keys, "h1").await);
        let mut own = Agent::speaking(&world, &keys, &joined, OWN);
        own.hello(&world, 4096).await;
        let other = Agent::speaking(&world, &keys, &joined, OTHER);
        Self {
            world,
            keys,
            joined,
            own,
            other,
        }
    }

    async fn until_host(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let host = self
            .world
            .until("/v1/hosts/h1", |host| wanted(&host["status"]))
            .await;
        host["status"].clone()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_beside_its_host_is_refused_everything_and_the_host_says_so() {
    let mut two = Two::begin().await;
    let world = &two.world;
    two.other.beat(world).await.refused(409, "host-twice");
    for path in ["document", "calls", "calls/x", "images", "images/x"] {
        two.other.ask(world, path).await.refused(409, "host-twice");
    }
    let request = json!({ "agent_csr_pem": two.keys.request, "migration_csr_pem": Keys::new().request });
    let asked = two.other.http.post(format!("{}/agent/v1/renew", world.url));
    world.send(asked.json(&request)).await.refused(409, "host-twice");
    // It is no copy for certain before the host itself is heard beside it.
    assert_eq!(
        world.get("/v1/hosts/h1").await.ok(200)["status"]["reason"],
        json!(null)
    );
    two.own.beat(world).await.ok(204);
    let status = &world.get("/v1/hosts/h1").await.ok(200)["status"];
    assert_eq!(
        (&status["state"], &status["reason"]["code"]),
        (&json!("up"), &json!("host-twice"))
    );
    let message = status["reason"]["message"].as_str().unwrap();
    assert!(
        message.contains("127.0.0.1") && message.contains("/etc/machine-id"),
        "{message}"
    );
    // For as long as it is so, however long that is.
    for _ in 0..10 {
        world.pass(3);
        two.own.beat(world).await.ok(204);
        two.other.beat(world).await.refused(409, "host-twice");
    }
    // And no longer: the copy has ended.
    for _ in 0..7 {
        world.pass(3);
        two.own.beat(world).await.ok(204);
    }
    assert_eq!(
        two.until_host(|status| status["reason"].is_null()).await["state"],
        "up"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_machine_is_taken_after_silence_and_what_the_former_one_heard_ends() {
    let mut two = Two::begin().await;
    let world = &two.world;
    let open = |path: &str| two.own.http.get(format!("{}/agent/v1/{path}", world.url)).send();
    let mut streams = Vec::new();
    for path in ["document", "calls"] {
        streams.push(open(path).await.unwrap());
    }
    world.pass(4);
    two.other.beat(world).await.refused(409, "host-twice");
    world.pass(6);
    two.until_host(|status| status["state"] == "silent").await;
    two.other.beat(world).await.refused(409, "host-twice");
    world.pass(4);
    two.other.beat(world).await.ok(204);
    let status = two.until_host(|status| status["state"] == "up").await;
    assert_eq!(status["reason"], json!(null));
    for mut stream in streams {
        let end = async { while stream.chunk().await.unwrap().is_some() {} };
        tokio::time::timeout(PATIENCE, end)
            .await
            .expect("the stream ends");
    }
    // Were it the copy that was taken, its original is refused now, and both are named.
    two.own.beat(world).await.refused(409, "host-twice");
    two.other.beat(world).await.ok(204);
    let status = two.until_host(|status| !status["reason"].is_null()).await;
    assert_eq!(status["reason"]["code"], "host-twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_server_does_not_take_whoever_comes_first() {
    let mut two = Two::begin().await;
    let again = two.world.restarted().await;
    two.world = again;
    let world = &two.world;
    two.other = Agent::speaking(world, &two.keys, &two.joined, OTHER);
    two.own = Agent::speaking(world, &two.keys, &two.joined, OWN);
    two.other.beat(world).await.refused(409, "host-twice");
    world.pass(9);
    two.other.beat(world).await.refused(409, "host-twice");
    two.own.beat(world).await.ok(204);
    world.pass(3);
    two.other.beat(world).await.refused(409, "host-twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_of_before_is_heard_until_it_is_replaced() {
    let mut two = Two::begin().await;
    let world = &two.world;
    let keys = Keys::new();
    let token = world.join_token(Some("h2")).await;
    let joined = joined(world.join(&token, &keys, "h2").await);
    let mut old = Agent::of(world, &keys, &joined);
    old.hello(world, 4096).await;
    old.beat(world).await.ok(204);
    // The host gets a newer agent, and is told from copies from now on, also from those with an agent of before.
    let mut new = Agent::speaking(world, &keys, &joined, OWN);
    new.beat(world).await.ok(204);
    old.beat(world).await.refused(409, "host-twice");
    new.beat(world).await.ok(204);
    // Other hosts are others.
    two.own.beat(world).await.ok(204);
}
