//! Watches: from a revision, without gap or repeat, to the end of an object.

use api::kinds::Vm;
use api::{Change, ChangeType};
use futures_util::StreamExt;
use serde_json::json;

use super::world::{PATIENCE, World};

type Line = Change<api::client::ObjectOf<Vm>>;

async fn lines(world: &World, from: u64, count: usize) -> Vec<Line> {
    let client = world.typed();
    let mut stream = client.watch::<Vm>(Some(from)).await.unwrap();
    let mut found = Vec::new();
    while found.len() < count {
        let line = tokio::time::timeout(PATIENCE, stream.next())
            .await
            .expect("a line in time");
        found.push(line.unwrap().unwrap());
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_tells_of_creation_change_and_end() {
    let world = World::new().await;
    let held = |name: &str| json!({ "name": name, "spec": { "template": "small", "power": "hold" } });
    let from = world.get("/v1/vms").await.ok(200)["revision"].as_u64().unwrap();
    let client = world.typed();
    let mut stream = client.watch::<Vm>(Some(from)).await.unwrap();
    world.post("/v1/vms", &held("web")).await.ok(201);
    world
        .patch("/v1/vms/web", &json!({ "labels": { "a": "b" } }))
        .await
        .ok(200);
    world.delete("/v1/vms/web").await.ok(200);
    let mut found: Vec<Line> = Vec::new();
    while found
        .last()
        .is_none_or(|line| line.change_type != ChangeType::Deleted)
    {
        let line = tokio::time::timeout(PATIENCE, stream.next())
            .await
            .expect("a line in time");
        found.push(line.unwrap().unwrap());
    }
    assert_eq!(found[0].change_type, ChangeType::Added);
    let rising = found.windows(2).all(|pair| pair[0].revision < pair[1].revision);
    assert!(rising, "each line is newer than the one before: {found:#?}");
    let last = found.last().unwrap();
    assert_eq!(
        (last.object.name.as_str(), last.object.labels.len()),
        ("web", 1),
        "as it was last"
    );
    assert_eq!(
        last.object.spec.image.as_deref(),
        Some("disk"),
        "with the names of what it used"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_resumes_without_gap_or_repeat() {
    let world = World::new().await;
    let from = world.get("/v1/vms").await.ok(200)["revision"].as_u64().unwrap();
    let makes = async {
        for n in 0..40 {
            let body = json!({ "name": format!("vm{n}"), "spec": { "template": "small", "power": "hold", "nics": [] } });
            world.post("/v1/vms", &body).await.ok(201);
        }
    };
    // One object changes once, so every object is told once, however often the reader comes back.
    let reads = async {
        let (mut names, mut seen) = (Vec::new(), from);
        while names.len() < 40 {
            for line in lines(&world, seen, (1 + names.len() % 3).min(40 - names.len())).await {
                assert!(line.revision > seen, "{line:#?}");
                seen = line.revision;
                names.push(line.object.name);
            }
        }
        names
    };
    let ((), names) = tokio::join!(makes, reads);
    let all: Vec<_> = (0..40).map(|n| format!("vm{n}")).collect();
    assert_eq!(names, all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_from_before_what_is_kept_is_refused_with_the_oldest_revision() {
    let store = std::sync::Arc::new(store::MemoryStore::new(store::system_clock()));
    {
        let world = World::on(store.clone()).await;
        world.furnish().await;
    }
    use store::Store as _;
    let revision = store.status().await.unwrap().revision;
    store.compact(revision).await.unwrap();
    let world = World::on(store).await;
    let said = world.get("/v1/vms?watch=true&from=1").await;
    said.refused(410, "compacted");
    assert_eq!(said.body["current_revision"], revision);
}

/// A client with one HTTP/2 connection.
fn multiplexed(world: &World) -> reqwest::Client {
    let mut tls = api::tls::client(&world.ca, None).unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let client = reqwest::Client::builder().tls_backend_preconfigured(tls);
    client.no_proxy().build().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_takes_so_many_watches_and_other_requests_besides() {
    let world = World::new().await;
    let http = multiplexed(&world);
    let ask = |path: &str| {
        let request = http
            .get(format!("{}{path}", world.url))
            .bearer_auth(world.token());
        tokio::time::timeout(PATIENCE, request.send())
    };
    let from = world.get("/v1/images").await.ok(200)["revision"].clone();
    let watch = format!("/v1/images?watch=true&from={from}");
    let mut open = Vec::new();
    for _ in 0..server::places::CONNECTION_MAX {
        let answer = ask(&watch).await.expect("a place").unwrap();
        assert_eq!(
            (answer.version(), answer.status().as_u16()),
            (reqwest::Version::HTTP_2, 200)
        );
        open.push(answer);
    }
    // One more is told so, a poll too, and what ends by itself finds room.
    for path in [watch.clone(), format!("/v1/changes/images?from={from}")] {
        let refused = ask(&path).await.expect("an answer").unwrap();
        assert_eq!(refused.status(), 429, "{path}");
        let why: api::Problem = refused.json().await.unwrap();
        assert!(why.detail.contains("open another connection"), "{why:?}");
    }
    assert_eq!(ask("/v1/images").await.expect("an answer").unwrap().status(), 200);
    // Others have places of their own, and one that is left is free.
    assert_eq!(
        world
            .request(reqwest::Method::GET, &watch)
            .send()
            .await
            .unwrap()
            .status(),
        200
    );
    open.pop();
    let begun = std::time::Instant::now();
    let again = loop {
        let answer = ask(&watch).await.expect("an answer").unwrap();
        if answer.status() == 200 {
            break answer;
        }
        assert!(begun.elapsed() < PATIENCE, "its place stays taken");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    open.push(again);
    // All of them are still there, and hear.
    let image = json!({ "name": "new", "spec": {} });
    world.post("/v1/images", &image).await.ok(201);
    for mut answer in open {
        let heard = async {
            while let Some(line) = answer.chunk().await.unwrap() {
                if line.len() > 1 {
                    return;
                }
            }
            panic!("the watch ended");
        };
        tokio::time::timeout(PATIENCE, heard)
            .await
            .expect("a line in time");
    }
}
