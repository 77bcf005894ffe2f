//! What others may need is deleted, or named, and never both.

use serde_json::{Value, json};
use tokio::join;

use super::world::World;

fn network(name: &str) -> Value {
    json!({ "name": name, "spec": { "cidr": "10.8.0.0/24" } })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_named_and_deleted_at_once_is_there_or_not_named() {
    let world = World::new().await;
    let mut named = 0;
    for round in 0..60 {
        let name = format!("net{round}");
        world.post("/v1/networks", &network(&name)).await.ok(201);
        let spec = json!({ "image": "disk", "memory_mib": 64, "networks": [name] });
        let template = json!({ "name": name, "spec": spec });
        let (path, of_network) = (format!("/v1/templates/{name}"), format!("/v1/networks/{name}"));
        let delete = async {
            // Sometimes the one, and sometimes the other comes first.
            for _ in 0..round % 8 {
                tokio::task::yield_now().await;
            }
            world.delete(&of_network).await
        };
        let (made, deleted) = join!(world.post("/v1/templates", &template), delete);
        let is_there = world.get(&of_network).await.status == 200;
        assert_eq!(
            made.status == 201,
            is_there,
            "{} {} and {} {}",
            made.status,
            made.body,
            deleted.status,
            deleted.body
        );
        if made.status == 201 {
            named += 1;
            deleted.refused(409, "in-use");
            assert_eq!(world.get(&of_network).await.ok(200)["deleted_at"], Value::Null);
            world.delete(&path).await.ok(200);
            world.delete(&of_network).await.ok(200);
        } else {
            deleted.ok(200);
            let code = made.body["code"].as_str().unwrap_or_default();
            assert!(["not-found", "being-deleted"].contains(&code), "{}", made.body);
        }
    }
    println!("{named} of 60 were named first");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_had_begun_to_delete_when_it_died_is_needed_by_nobody_new_and_can_be_deleted() {
    let world = World::new().await;
    let made = world.post("/v1/networks", &network("half")).await.ok(201);
    let key = format!("/network/{}", made["id"].as_str().unwrap());
    let found = world.store.range(store::RangeRequest::key(&key)).await.unwrap();
    let mut kept: Value = serde_json::from_slice(&found.items[0].value).unwrap();
    let meta = &mut kept["data"]["meta"];
    meta["deleted_at"] = meta["updated_at"].clone();
    let marked = store::Txn::new().put(key, serde_json::to_vec(&kept).unwrap());
    world.store.txn(marked).await.unwrap();
    world
        .until("/v1/networks/half", |body| !body["deleted_at"].is_null())
        .await;
    let spec = json!({ "image": "disk", "memory_mib": 64, "networks": ["half"] });
    let template = json!({ "name": "of-half", "spec": spec });
    world
        .post("/v1/templates", &template)
        .await
        .refused(409, "being-deleted");
    world.delete("/v1/networks/half").await.ok(200);
    world.get("/v1/networks/half").await.refused(404, "not-found");
}
