//! Reading what is needed and no more: conditions, order, fields, pages at one revision, polls.

use serde_json::{Value, json};
use store::Store as _;

use super::world::World;

/// VMs that stay as they are.
async fn held(world: &World, names: &[&str]) {
    for name in names {
        let spec = json!({ "template": "small", "power": "hold", "nics": [], "memory_mib": 64 * name.len() });
        let body = json!({ "name": name, "labels": { "first": name[..1] }, "spec": spec });
        world.post("/v1/vms", &body).await.ok(201);
    }
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap().iter();
    items.map(|item| item["name"].as_str().unwrap()).collect()
}

/// All pages of a list, with what is done between them.
async fn pages(world: &World, query: &str, between: impl AsyncFn(usize)) -> Vec<Value> {
    let mut pages = vec![world.get(&format!("/v1/vms?{query}")).await.ok(200)];
    while let Some(next) = pages.last().unwrap()["next"].as_str() {
        between(pages.len()).await;
        pages.push(world.get(&format!("/v1/vms?{query}&after={next}")).await.ok(200));
    }
    pages
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_chosen_ordered_and_cut_to_size() {
    let world = World::new().await;
    held(&world, &["b", "aa", "ccc"]).await;
    for (query, expected) in [
        ("", &["b", "aa", "ccc"][..]),
        ("sort=name", &["aa", "b", "ccc"]),
        ("sort=-spec.memory_mib", &["ccc", "aa", "b"]),
        ("filter=status.phase=hold", &["b", "aa", "ccc"]),
        ("filter=status.phase=running", &[]),
        (
            "filter=spec.memory_mib%3E64,status.host=null&sort=-name",
            &["ccc", "aa"],
        ),
        ("label=first=c&filter=name!=x", &["ccc"]),
        ("filter=labels.first=a", &["aa"]),
    ] {
        let list = world.get(&format!("/v1/vms?{query}")).await.ok(200);
        assert_eq!(names(&list), expected, "{query}");
    }
    let few = world
        .get("/v1/vms?fields=name,status.phase&sort=name&limit=1")
        .await
        .ok(200);
    assert_eq!(
        few["items"],
        json!([{ "name": "aa", "status": { "phase": "Hold" } }])
    );
    let one = world
        .get("/v1/vms/aa?fields=spec.memory_mib,labels.first")
        .await
        .ok(200);
    assert_eq!(
        one,
        json!({ "spec": { "memory_mib": 128 }, "labels": { "first": "a" } })
    );
    for (query, code, mentions) in [
        ("fields=nme", "unknown-field", "\"nme\""),
        ("filter=status.phse=x", "unknown-field", "status.phse"),
        ("sort=age", "unknown-field", "\"age\""),
        ("filter=status.phase=runing", "invalid-value", "Running"),
        ("filter=name", "invalid-filter", "name"),
        ("sort=status.addresses", "invalid-sort", "addresses"),
    ] {
        let said = world.get(&format!("/v1/vms?{query}")).await;
        said.refused(422, code);
        assert!(
            said.body["detail"].as_str().unwrap().contains(mentions),
            "{said:#?}"
        );
    }
    world
        .get("/v1/vms/aa?fields=x")
        .await
        .refused(422, "unknown-field");
    world.get("/v1/vms/aa?colour=red").await.refused(400, "bad-query");
    world
        .get("/v1/vms?watch=true&sort=name")
        .await
        .refused(400, "bad-query");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_pages_show_one_revision_whatever_changes_between_them() {
    let world = World::new().await;
    held(&world, &["a", "b", "c", "d", "e", "f", "g"]).await;
    let query = "limit=2&sort=-name&filter=labels.first!=c";
    let between = async |page: usize| match page {
        1 => {
            world.delete("/v1/vms/g").await.ok(200);
            held(&world, &["h", "x"]).await;
        }
        2 => {
            let patch = json!({ "labels": { "first": "c" } });
            world.patch("/v1/vms/a", &patch).await.ok(200);
        }
        _ => {}
    };
    let pages = pages(&world, query, between).await;
    let all: Vec<&str> = pages.iter().flat_map(names).collect();
    assert_eq!(all, ["g", "f", "e", "d", "b", "a"]);
    let last = pages.last().unwrap();
    assert_eq!(last["items"][1]["labels"]["first"], "a", "as it was");
    assert!(pages.iter().all(|page| page["revision"] == pages[0]["revision"]));
    let now = world
        .get("/v1/vms?sort=-name&filter=labels.first!=c")
        .await
        .ok(200);
    assert_eq!(
        &names(&now)[..2],
        ["x", "h"],
        "a new list shows what is there now"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_another_list_or_of_too_long_ago_is_refused() {
    let store = std::sync::Arc::new(store::MemoryStore::new(store::system_clock()));
    let world = World::on(store.clone()).await;
    world.furnish().await;
    held(&world, &["a", "b"]).await;
    let first = world.get("/v1/vms?limit=1&sort=name").await.ok(200);
    let next = first["next"].as_str().unwrap();
    for other in [
        "limit=1",
        "limit=1&sort=-name",
        "sort=name&label=a=b",
        "sort=name&filter=name=a",
    ] {
        world
            .get(&format!("/v1/vms?{other}&after={next}"))
            .await
            .refused(400, "bad-query");
    }
    world
        .get(&format!("/v1/hosts?sort=name&after={next}"))
        .await
        .refused(400, "bad-query");
    let future = next.replacen(&first["revision"].to_string(), "999999", 1);
    world
        .get(&format!("/v1/vms?sort=name&after={future}"))
        .await
        .refused(400, "bad-query");
    held(&world, &["c"]).await;
    let revision = store.status().await.unwrap().revision;
    store.compact(revision).await.unwrap();
    let said = world.get(&format!("/v1/vms?sort=name&after={next}")).await;
    said.refused(410, "compacted");
    assert_eq!(said.body["current_revision"], revision);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poll_answers_when_something_changes_or_the_time_is_over() {
    let world = World::new().await;
    held(&world, &["old"]).await;
    let from = world.get("/v1/vms").await.ok(200)["revision"].as_u64().unwrap();
    let path = format!("/v1/changes/vms?from={from}&timeout_s=50&filter=name=new&fields=name");
    let (found, ()) = tokio::join!(world.get(&path), held(&world, &["other", "new"]));
    let found = found.ok(200);
    let last = found["items"].as_array().unwrap().last().unwrap();
    assert_eq!(
        (&last["type"], &last["object"]),
        (&json!("added"), &json!({ "name": "new" }))
    );
    // What happened already is answered at once, and nothing twice.
    let again = world.get(&format!("/v1/changes/vms?from={from}")).await.ok(200);
    assert_eq!(again["items"].as_array().unwrap().len(), 2);
    let from = world.get("/v1/vms").await.ok(200)["revision"].as_u64().unwrap();
    let nothing = world
        .get(&format!("/v1/changes/images?from={from}&timeout_s=0"))
        .await
        .ok(200);
    assert_eq!(nothing["items"], json!([]));
    assert!(nothing["revision"].as_u64().unwrap() >= from);
    world.get("/v1/changes/vms").await.refused(400, "bad-query");
    world
        .get("/v1/changes/vms?from=0&filter=x=y")
        .await
        .refused(422, "unknown-field");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poll_from_before_what_is_kept_is_refused() {
    let store = std::sync::Arc::new(store::MemoryStore::new(store::system_clock()));
    World::on(store.clone()).await.furnish().await;
    let revision = store.status().await.unwrap().revision;
    store.compact(revision).await.unwrap();
    let world = World::on(store).await;
    let said = world.get("/v1/changes/vms?from=1").await;
    said.refused(410, "compacted");
    assert_eq!(said.body["current_revision"], revision);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_so_many_may_wait() {
    let rates = server::Rates {
        polls: 1,
        ..server::Rates::default()
    };
    let world = World::with(
        std::sync::Arc::new(store::MemoryStore::new(store::system_clock())),
        rates,
    )
    .await;
    let from = world.get("/v1/vms").await.ok(200)["revision"].as_u64().unwrap();
    let (long, short) = (
        format!("/v1/changes/vms?from={from}"),
        format!("/v1/changes/vms?from={from}&timeout_s=0"),
    );
    // The long one may be refused while a short one has the place, or end, and asks again.
    let waits = async {
        loop {
            world.get(&long).await;
        }
    };
    let refused = async {
        loop {
            let said = world.get(&short).await;
            if said.status == 429 {
                break said;
            }
        }
    };
    tokio::select! {
        said = refused => said.refused(429, "too-many-polls"),
        () = waits => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_so_many_may_watch() {
    let rates = server::Rates {
        watches: 1,
        ..server::Rates::default()
    };
    let world = World::with(
        std::sync::Arc::new(store::MemoryStore::new(store::system_clock())),
        rates,
    )
    .await;
    let watch = world.typed().watch::<api::kinds::Vm>(None).await.unwrap();
    let path = "/v1/images?watch=true";
    world.get(path).await.refused(429, "too-many-watches");
    // Lists and polls have places of their own.
    let from = world.get("/v1/vms").await.ok(200)["revision"].clone();
    let poll = format!("/v1/changes/vms?from={from}&timeout_s=0");
    world.get(&poll).await.ok(200);
    drop(watch);
    let begun = std::time::Instant::now();
    while world.typed().watch::<api::kinds::Vm>(None).await.is_err() {
        assert!(
            begun.elapsed() < std::time::Duration::from_secs(20),
            "its place stays taken"
        );
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
