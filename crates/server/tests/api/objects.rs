//! What every kind does alike: create, read, change, delete, page, select, repeat.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::world::{World, sqlite};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeat_gets_the_same_answer_and_does_nothing() {
    let world = World::new().await;
    let body = json!({ "name": "web", "spec": { "template": "small" } });
    let first = world.post("/v1/vms?request_id=r1", &body).await.ok(201);
    let again = world.post("/v1/vms?request_id=r1", &body).await.ok(201);
    assert_eq!(first, again);
    let mut other = body.clone();
    other["name"] = json!("other");
    world
        .post("/v1/vms?request_id=r1", &other)
        .await
        .refused(409, "request-id-reused");
    world.post("/v1/vms", &body).await.refused(409, "name-taken");
    assert_eq!(
        world.get("/v1/vms").await.ok(200)["items"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    // The revision in a kept answer can be used to go on from.
    let revision = again["revision"].as_u64().unwrap();
    let patch = json!({ "labels": { "a": "b" } });
    world
        .patch(&format!("/v1/vms/web?expected_revision={revision}"), &patch)
        .await
        .ok(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_with_a_request_id_deletes() {
    let world = World::new().await;
    let delete = world.delete("/v1/templates/small?request_id=d1").await.ok(200);
    assert_eq!(delete["name"], "small");
    world.get("/v1/templates/small").await.refused(404, "not-found");
    assert_eq!(
        world.delete("/v1/templates/small?request_id=d1").await.ok(200),
        delete
    );
    world
        .delete("/v1/templates/small")
        .await
        .refused(404, "not-found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_revision_is_refused_with_the_current_one() {
    let world = World::new().await;
    // Held, so that nothing is written of it but what is asked for here.
    let held = json!({ "name": "web", "spec": { "template": "small", "power": "hold" } });
    let made = world.post("/v1/vms", &held).await.ok(201);
    let revision = made["revision"].as_u64().unwrap();
    let patch = json!({ "labels": { "a": "b" } });
    let changed = world
        .patch(&format!("/v1/vms/web?expected_revision={revision}"), &patch)
        .await
        .ok(200);
    for (method, path) in [
        (Method::PATCH, "/v1/vms/web"),
        (Method::DELETE, "/v1/vms/web"),
        (Method::POST, "/v1/vms/web/actions/hold"),
    ] {
        let request = world.request(method, &format!("{path}?expected_revision={revision}"));
        let request = if path.contains("actions") {
            request
        } else {
            request.json(&patch)
        };
        let said = world.send(request).await;
        said.refused(409, "stale-revision");
        assert_eq!(said.body["current_revision"], changed["revision"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_patch_merges_and_a_put_replaces() {
    let world = World::new().await;
    let body = json!({ "name": "web", "labels": { "a": "1", "b": "2" }, "spec": { "template": "small" } });
    let made = world.post("/v1/vms", &body).await.ok(201);
    assert_eq!(
        (&made["spec"]["memory_mib"], &made["spec"]["image"]),
        (&json!(64), &json!("disk"))
    );
    let patch = json!({ "labels": { "a": null, "c": "3" }, "spec": { "memory_mib": 128 } });
    let patched = world.patch("/v1/vms/web", &patch).await.ok(200);
    assert_eq!(patched["labels"], json!({ "b": "2", "c": "3" }));
    assert_eq!(
        (&patched["spec"]["memory_mib"], &patched["spec"]["nics"]),
        (&json!(128), &made["spec"]["nics"])
    );
    let mut spec = patched["spec"].clone();
    spec["memory_mib"] = json!(256);
    let request = world
        .request(Method::PUT, "/v1/vms/web")
        .json(&json!({ "spec": spec }));
    let put = world.send(request).await.ok(200);
    assert_eq!((&put["labels"], &put["spec"]), (&json!({}), &spec));
    assert_eq!(
        world
            .get(&format!("/v1/vms/{}", put["id"].as_str().unwrap()))
            .await
            .ok(200)["name"],
        "web"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_used_cannot_be_deleted() {
    let world = World::new().await;
    world.vm("web").await;
    world.delete("/v1/networks/default").await.refused(409, "in-use");
    world
        .delete("/v1/datastores/default")
        .await
        .refused(409, "in-use");
    world.delete("/v1/images/disk").await.refused(409, "in-use");
    world.delete("/v1/templates/small").await.ok(200);
    world.delete("/v1/images/disk").await.refused(409, "in-use");
    world.delete("/v1/vms/web").await.ok(200);
    world
        .until("/v1/vms/web", |body| body["code"] == "not-found")
        .await;
    for path in [
        "/v1/images/disk",
        "/v1/networks/default",
        "/v1/datastores/default",
    ] {
        world.delete(path).await.ok(200);
        world.get(path).await.refused(404, "not-found");
    }
    // Their names are free again.
    world.furnish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_page_and_select() {
    let world = World::new().await;
    for n in 0..7 {
        let parity = if n % 2 == 0 { "even" } else { "odd" };
        let labels = json!({ "parity": parity, "all": "yes" });
        let body = json!({ "name": format!("vm{n}"), "labels": labels, "spec": { "template": "small", "nics": [] } });
        world.post("/v1/vms", &body).await.ok(201);
    }
    let (mut names, mut after, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let page = world.get(&format!("/v1/vms?limit=3{after}")).await.ok(200);
        names.extend(
            page["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|item| item["name"].as_str().unwrap().to_owned()),
        );
        pages += 1;
        let Some(next) = page["next"].as_str() else { break };
        after = format!("&after={next}");
    }
    let all: Vec<_> = (0..7).map(|n| format!("vm{n}")).collect();
    assert_eq!((names, pages), (all, 3));
    let page = world
        .get("/v1/vms?label=parity=odd,all=yes&limit=3")
        .await
        .ok(200);
    assert_eq!(
        (page["items"].as_array().unwrap().len(), &page["next"]),
        (3, &Value::Null)
    );
    assert_eq!(
        world.get("/v1/vms?label=parity=none").await.ok(200)["items"],
        json!([])
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_changes_nothing() {
    let world = World::new().await;
    world.vm("web").await;
    world
        .until("/v1/vms/web", |vm| {
            vm["status"]["reason"]["code"] == "no-host-fits"
        })
        .await;
    let before = world.store.status().await.unwrap().revision;
    let body = json!({ "name": "other", "spec": { "template": "small" } });
    let shown = world.post("/v1/vms?dry_run=true&request_id=r", &body).await;
    assert_eq!(shown.body["name"], "other", "{shown:#?}");
    world
        .patch("/v1/vms/web?dry_run=true", &json!({ "labels": { "a": "b" } }))
        .await
        .ok(200);
    let held = world
        .post("/v1/vms/web/actions/hold?dry_run=true", &json!({}))
        .await
        .ok(200);
    assert_eq!(held["status"]["phase"], "Hold");
    world.delete("/v1/vms/web?dry_run=true").await.ok(200);
    world.delete("/v1/templates/small?dry_run=true").await.ok(200);
    assert_eq!(world.store.status().await.unwrap().revision, before);
    world.get("/v1/vms/other").await.refused(404, "not-found");
    assert_eq!(world.get("/v1/vms/web").await.ok(200)["deleted_at"], Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_creates_with_one_name_one_succeeds() {
    let world = World::new().await;
    let body = json!({ "name": "web", "spec": { "template": "small" } });
    for round in 0..5 {
        let mut body = body.clone();
        body["name"] = json!(format!("web{round}"));
        let (a, b) = tokio::join!(world.post("/v1/vms", &body), world.post("/v1/vms", &body));
        let mut both = [a, b];
        both.sort_by_key(|said| said.status);
        assert_eq!(both[0].status, 201);
        both[1].refused(409, "name-taken");
    }
}

async fn fifty_creates(world: &World) {
    let creates = (0..50).map(|n| {
        let body = json!({ "name": format!("vm{n}"), "spec": { "template": "small" } });
        async move { world.post("/v1/vms", &body).await.ok(201) }
    });
    let made = futures_util::future::join_all(creates).await;
    let nics = || made.iter().map(|vm| &vm["spec"]["nics"][0]);
    let addresses: BTreeSet<_> = nics().map(|nic| nic["address"].as_str().unwrap()).collect();
    let macs: BTreeSet<_> = nics().map(|nic| nic["mac"].as_str().unwrap()).collect();
    assert_eq!((addresses.len(), macs.len()), (50, 50));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_without_a_template_is_in_the_default_network_if_there_is_one() {
    let world = World::new().await;
    let made = async |name: &str, nics: Option<Value>| {
        let mut spec = json!({ "image": "disk", "memory_mib": 64, "power": "hold" });
        if let Some(nics) = nics {
            spec["nics"] = nics;
        }
        let body = json!({ "name": name, "spec": spec });
        world.post("/v1/vms", &body).await.ok(201)["spec"]["nics"].clone()
    };
    let default = made("default", None).await;
    assert_eq!(
        (default.as_array().unwrap().len(), &default[0]["network"]),
        (1, &json!("default"))
    );
    assert_eq!(made("none", Some(json!([]))).await, json!([]));
    let without = json!({ "name": "alone", "spec": { "image": "disk", "memory_mib": 64, "networks": [] } });
    world.post("/v1/templates", &without).await.ok(201);
    let of_it = json!({ "name": "of-it", "spec": { "template": "alone", "power": "hold" } });
    assert_eq!(
        world.post("/v1/vms", &of_it).await.ok(201)["spec"]["nics"],
        json!([])
    );

    for what in ["vms/default", "templates/small", "networks/default"] {
        world.delete(&format!("/v1/{what}")).await.ok(200);
    }
    assert_eq!(made("nowhere", None).await, json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_vms_at_once_get_addresses_of_their_own() {
    fifty_creates(&World::new().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_on_sqlite() {
    let dir = TempDir::new().unwrap();
    let world = World::on(sqlite(dir.path())).await;
    world.furnish().await;
    fifty_creates(&world).await;
    world.delete("/v1/vms/vm7").await.ok(200);
    world
        .until("/v1/vms/vm7", |body| body["code"] == "not-found")
        .await;
    // Its address is free again, and nothing else of it is left.
    let kept = world
        .store
        .range(store::RangeRequest::prefix("/index/vm/"))
        .await
        .unwrap()
        .items
        .len();
    assert_eq!(kept, 49);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_is_full_says_so() {
    let world = World::new().await;
    world
        .post(
            "/v1/networks",
            &json!({ "name": "tiny", "spec": { "cidr": "10.1.0.0/30" } }),
        )
        .await
        .ok(201);
    let body = |name: &str| json!({ "name": name, "spec": { "template": "small", "nics": [{ "network": "tiny" }] } });
    let made = world.post("/v1/vms", &body("a")).await.ok(201);
    assert_eq!(made["spec"]["nics"][0]["address"], "10.1.0.2");
    world
        .post("/v1/vms", &body("b"))
        .await
        .refused(409, "network-full");
}
