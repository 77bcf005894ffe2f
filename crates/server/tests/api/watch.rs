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
