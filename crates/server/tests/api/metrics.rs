//! What Prometheus is shown: each metric that is documented is served, and none that is not; the dashboard asks for no other.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::Method;
use serde_json::{Value, json};

use super::agents::Agent;
use super::hosts::furnished;
use super::world::World;

const PAGE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md"));
const DASHBOARD: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../packaging/grafana/sterna.json"
));

/// A metric: its type and its labels.
type Kinds = BTreeMap<String, (String, BTreeSet<String>)>;

/// The table of the page: `| name | type | labels | meaning |`.
fn documented() -> Kinds {
    let rows = PAGE.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>());
    let metric = |cells: Vec<&str>| {
        let words = cells[3]
            .split(',')
            .map(|word| word.trim().trim_matches('`').to_owned());
        let labels = words.filter(|word| !word.is_empty()).collect();
        (
            cells[1].trim_matches('`').to_owned(),
            (cells[2].to_owned(), labels),
        )
    };
    cells.map(metric).collect()
}

/// What was served, under the names by which Prometheus knows it.
fn served(text: &str) -> Kinds {
    let mut kinds = Kinds::new();
    for line in text.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').unwrap();
            let end = if kind == "counter" { "_total" } else { "" };
            kinds.insert(format!("{name}{end}"), (kind.to_owned(), BTreeSet::new()));
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            let base = ["_bucket", "_count", "_sum"]
                .iter()
                .find_map(|end| name.strip_suffix(end).filter(|base| kinds.contains_key(*base)));
            let found = kinds
                .get_mut(base.unwrap_or(name))
                .unwrap_or_else(|| panic!("undeclared: {line}"));
            found
                .1
                .extend(labels(line).into_iter().filter(|label| label != "le"));
        }
    }
    kinds
}

fn labels(line: &str) -> Vec<String> {
    let Some((_, rest)) = line.split_once('{') else {
        return Vec::new();
    };
    let (inside, _) = rest.rsplit_once('}').unwrap();
    let pairs = inside.split("\",");
    pairs
        .filter_map(|pair| Some(pair.split_once("=\"")?.0.to_owned()))
        .collect()
}

async fn text(world: &World) -> String {
    let said = world.get("/metrics").await;
    assert_eq!(
        said.media_type,
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    said.ok(200).as_str().unwrap().to_owned()
}

/// A cloud in which each metric has something to say.
async fn busy() -> (World, Agent) {
    let (world, agent) = furnished().await;
    world
        .until("/v1/vms/web", |vm| vm["status"]["phase"] == "Running")
        .await;
    // There is nowhere to go: it is aborted once it has been looked at.
    let body = json!({ "name": "away", "spec": { "vm": "web" } });
    world.post("/v1/migrations", &body).await.ok(201);
    world.get("/v1/vms/none").await.refused(404, "not-found");
    (world, agent)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_served_is_what_is_documented() {
    let (world, _agent) = busy().await;
    let watch = world
        .request(Method::GET, "/v1/vms?watch=true")
        .send()
        .await
        .unwrap();
    world
        .until("/v1/hosts/h1", |host| host["status"]["state"] == "up")
        .await;
    let mut text = text(&world).await;
    // A migration is under way only for a moment: its phases are shown as those of VMs are.
    if !text.contains("sterna_migrations{") {
        text = text.replace(
            "# TYPE sterna_migrations_finished",
            "# TYPE sterna_migrations gauge\nsterna_migrations{phase=\"Planned\"} 0\n# TYPE sterna_migrations_finished",
        );
    }
    assert_eq!(
        served(&text),
        documented(),
        "docs/metrics.md is not what is served"
    );
    for expected in [
        "sterna_vms{phase=\"Running\"} 1",
        "sterna_hosts{state=\"up\"} 1",
        "sterna_watchers{kind=\"vm\"} 1",
        "sterna_http_refusals_total{code=\"not-found\"} 1",
        "sterna_http_requests_total{method=\"GET\",route=\"/v1/vms/{name}\",status=\"404\"} 1",
    ] {
        assert!(text.contains(expected), "{expected} is not in\n{text}");
    }
    drop(watch);
    world
        .until("/metrics", |text| {
            text.as_str().unwrap().contains("sterna_watchers{kind=\"vm\"} 0")
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_need_a_token_and_no_request_makes_a_label() {
    let world = World::new().await;
    let bare = world.http.get(format!("{}/metrics", world.url));
    world.send(bare).await.refused(401, "no-token");
    for n in 0..50 {
        world.get(&format!("/nowhere/{n}")).await.refused(404, "no-route");
        world
            .get(&format!("/v1/vms/none-{n}"))
            .await
            .refused(404, "not-found");
        let odd = Method::from_bytes(format!("ODD{n}").as_bytes()).unwrap();
        world
            .send(world.request(odd, "/v1/vms"))
            .await
            .refused(405, "no-method");
    }
    let text = text(&world).await;
    for made_up in ["nowhere", "none-", "ODD"] {
        assert!(!text.contains(made_up), "{made_up} became a label");
    }
    let told = "sterna_http_requests_total{method=\"GET\",route=\"none\",status=\"404\"} 50";
    assert!(text.contains(told), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_known_by_one_id_in_its_answer_the_trail_and_the_operation() {
    let world = World::new().await;
    let asked = world
        .request(Method::POST, "/v1/vms")
        .header("x-request-id", "ticket-4711");
    let body = json!({ "name": "web", "spec": { "template": "small" } });
    let answer = asked.json(&body).send().await.unwrap();
    assert_eq!(answer.headers()["x-request-id"], "ticket-4711");
    let operation = world
        .until("/v1/operations", |list| !list["items"][0].is_null())
        .await;
    assert_eq!(operation["items"][0]["spec"]["request_id"], "ticket-4711");
    let trail = world
        .store
        .range(store::RangeRequest::prefix("/audit/"))
        .await
        .unwrap();
    let records = trail
        .items
        .iter()
        .map(|kv| String::from_utf8_lossy(&kv.value).into_owned());
    let marked: Vec<_> = records.filter(|text| text.contains("ticket-4711")).collect();
    assert!(
        marked.iter().any(|text| text.contains("create vm web")),
        "{marked:?}"
    );
    // What cannot stand in a log is not taken over.
    for bad in ["", "a b", "x\"y", &"a".repeat(129)] {
        let asked = world.request(Method::GET, "/v1/vms").header("x-request-id", bad);
        let answer = asked.send().await.unwrap();
        let given = answer.headers()["x-request-id"].to_str().unwrap();
        assert!(given.parse::<uuid::Uuid>().is_ok(), "{given}");
    }
}

/// Every expression of the dashboard's panels and variables.
fn expressions(value: &Value) -> Vec<String> {
    match value {
        Value::Object(map) => {
            let own = ["expr", "query"].iter().filter_map(|key| map.get(*key)?.as_str());
            // The variable for the data source names its type, and nothing more.
            let own = own.filter(|text| *text != "prometheus").map(str::to_owned);
            let own = own.collect::<Vec<_>>();
            own.into_iter()
                .chain(map.values().flat_map(expressions))
                .collect()
        }
        Value::Array(all) => all.iter().flat_map(expressions).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn the_dashboard_asks_for_metrics_that_there_are() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let documented = documented();
    let all = expressions(&dashboard);
    assert!(all.len() > 15, "{all:?}");
    for expression in all {
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let names: Vec<_> = words
            .filter(|word| word.starts_with("sterna_") || word.starts_with("process_"))
            .collect();
        assert!(!names.is_empty(), "{expression}");
        for name in names {
            let base = ["_bucket", "_count", "_sum"]
                .iter()
                .find_map(|end| name.strip_suffix(end));
            let is_there = documented.contains_key(name)
                || base.is_some_and(|base| documented.get(base).is_some_and(|(kind, _)| kind == "histogram"));
            assert!(is_there, "{name} in {expression} is no metric");
        }
    }
}
