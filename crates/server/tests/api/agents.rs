//! Agents: joining, the document's stream, reports, and whose word counts.

use api::agent::{JoinResponse, SPEAKER_HEADER};
use model::document::{HostDocument, Order};
use model::host::{Accelerator, AcceleratorName, HostStatus};
use model::report::{Rebooted, Report, RunState, RunStatus, Samples, StartStep, StepTime, VmRun};
use model::{HostId, Incarnation, VmId};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::json;
use uuid::Uuid;

use super::world::{Keys, PATIENCE, Said, World, client, client_saying, joined};

/// A host's agent, as far as a server can tell.
pub(crate) struct Agent {
    pub(crate) http: reqwest::Client,
    host: HostId,
    session: Uuid,
    sequence: u64,
}

impl Agent {
    pub(crate) async fn join(world: &World, name: &str) -> Self {
        let keys = Keys::new();
        let token = world.join_token(Some(name)).await;
        Self::of(world, &keys, &joined(world.join(&token, &keys, "wished").await))
    }

    /// That of the host `h1`, which has been told of the VM `web`.
    pub(crate) async fn with_a_vm(world: &World) -> (Self, VmId) {
        let mut agent = Self::join(world, "h1").await;
        agent.hello(world, 4096).await;
        let vm = id(&world.vm("web").await);
        agent
            .document(world, |document| document.vms.contains_key(&vm))
            .await;
        (agent, vm)
    }

    pub(crate) fn of(world: &World, keys: &Keys, joined: &JoinResponse) -> Self {
        assert_eq!(joined.agent_ca_pem, world.ca);
        Self::with(
            client(&world.ca, Some((&joined.agent_certificate_pem, &keys.key))),
            joined,
            5,
        )
    }

    /// One that says which machine it is on.
    pub(crate) fn speaking(world: &World, keys: &Keys, joined: &JoinResponse, speaker: &str) -> Self {
        let said = HeaderMap::from_iter([(
            HeaderName::from_static(SPEAKER_HEADER),
            HeaderValue::from_str(speaker).unwrap(),
        )]);
        let identity = (joined.agent_certificate_pem.as_str(), keys.key.as_str());
        let session = speaker.bytes().map(u128::from).sum();
        Self::with(client_saying(&world.ca, Some(identity), said), joined, session)
    }

    fn with(http: reqwest::Client, joined: &JoinResponse, session: u128) -> Self {
        Self {
            http,
            host: joined.host_id,
            session: Uuid::from_u128(session),
            sequence: 0,
        }
    }

    /// A report of nothing new.
    pub(crate) async fn beat(&mut self, world: &World) -> Said {
        let report = self.report(None, Vec::new());
        self.send(world, &report).await
    }

    /// What it asks of its server.
    pub(crate) async fn ask(&self, world: &World, path: &str) -> Said {
        world
            .send(self.http.get(format!("{}/agent/v1/{path}", world.url)))
            .await
    }

    pub(crate) fn report(&mut self, host: Option<HostStatus>, runs: Vec<VmRun>) -> Report {
        self.sequence += 1;
        Report {
            session: self.session,
            sequence: self.sequence,
            host,
            runs,
            is_complete: true,
            samples: Samples::default(),
        }
    }

    pub(crate) async fn send(&self, world: &World, report: &Report) -> Said {
        world
            .send(
                self.http
                    .post(format!("{}/agent/v1/report", world.url))
                    .json(report),
            )
            .await
    }

    pub(crate) async fn hello(&mut self, world: &World, memory_mib: u64) {
        let report = self.report(Some(status(memory_mib)), Vec::new());
        self.send(world, &report).await.ok(204);
    }

    pub(crate) fn run(&self, vm: VmId, state: RunState) -> VmRun {
        let run = RunStatus {
            incarnation: Incarnation(1),
            host: self.host,
            document_revision: 1,
            state,
            ran: state == RunState::Running,
            ready: false,
            addresses: vec!["10.9.0.2".parse().unwrap()],
            stream: None,
            outgoing: None,
            saved_bytes: None,
            saved_in: model::vm::SavedIn::Host,
            copies: Default::default(),
            has_identity: false,
            built: None,
            rebooted: None,
            reason: None,
            steps: vec![StepTime {
                step: StartStep::Boot,
                begun_ms: 5,
                took_ms: 12,
            }],
            cdrom: None,
        };
        VmRun { vm, run }
    }

    /// Reads the stream until a document is as wanted.
    pub(crate) async fn document(
        &self,
        world: &World,
        wanted: impl Fn(&HostDocument) -> bool,
    ) -> HostDocument {
        let url = format!("{}/agent/v1/document", world.url);
        let mut answer = self.http.get(url).send().await.unwrap();
        let mut rest = Vec::new();
        loop {
            let chunk = tokio::time::timeout(PATIENCE, answer.chunk())
                .await
                .expect("a line in time");
            rest.extend_from_slice(&chunk.unwrap().expect("the stream goes on"));
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                let document = serde_json::from_slice::<HostDocument>(&line);
                if let Some(found) = document.ok().filter(|document| wanted(document)) {
                    return found;
                }
            }
        }
    }
}

fn status(memory_mib: u64) -> HostStatus {
    HostStatus {
        cpus: 2,
        peer_address: None,
        accelerator: Accelerator {
            name: AcceleratorName::Tcg,
            why: Some("no kvm".to_owned()),
        },
        ..model::samples::host_status(1, memory_mib)
    }
}

/// The last revision that changed a VM. Of it alone: what the hosts are made of may be noted meanwhile.
async fn newest(world: &World, vm: VmId) -> Option<u64> {
    let all = store::RangeRequest::prefix(model::key::object(model::Kind::Vm, vm.0));
    let found = world.store.range(all).await.unwrap();
    found.items.iter().map(|kv| kv.mod_revision).max()
}

pub(crate) fn id(vm: &serde_json::Value) -> VmId {
    VmId(vm["id"].as_str().unwrap().parse().unwrap())
}

/// The host counts from when it began; for people, all is counted from the request.
fn host_steps_follow_the_placement(steps: &serde_json::Value) {
    let step = |at: usize| {
        let ms = |key: &str| steps[at][key].as_u64().unwrap();
        (steps[at]["step"].as_str().unwrap(), ms("begun_ms"), ms("took_ms"))
    };
    let (first, begun_ms, placed_ms) = step(0);
    assert_eq!((first, begun_ms), ("placement", 0));
    assert_eq!(step(1), ("boot", placed_ms + 5, 12));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_joins_gets_its_document_and_its_vm_runs() {
    let world = World::new().await;
    let vm = world.vm("web").await;
    let mut agent = Agent::join(&world, "h1").await;
    assert_eq!(
        world.get("/v1/hosts/h1").await.ok(200)["status"]["state"],
        "joining"
    );
    agent.hello(&world, 4096).await;
    let document = agent
        .document(&world, |document| document.vms.contains_key(&id(&vm)))
        .await;
    let told = &document.vms[&id(&vm)];
    assert!(
        matches!(
            told.order,
            Order::Run {
                paused: false,
                resume: false,
                ..
            }
        ),
        "{told:#?}"
    );
    assert_eq!(
        (told.incarnation, told.machine.memory_mib, told.machine.disk.bytes),
        (Incarnation(1), 64, 1024)
    );
    let report = agent.report(None, vec![agent.run(id(&vm), RunState::Running)]);
    agent.send(&world, &report).await.ok(204);
    let vm = world.get("/v1/vms/web").await.ok(200);
    assert_eq!(
        (&vm["status"]["phase"], &vm["status"]["host"]),
        (&json!("Running"), &json!("h1"))
    );
    assert_eq!(vm["status"]["addresses"], json!(["10.9.0.2"]));
    host_steps_follow_the_placement(&vm["status"]["steps"]);
    let host = world.get("/v1/hosts/h1").await.ok(200);
    assert_eq!(
        (&host["status"]["state"], &host["status"]["vms"]),
        (&json!("up"), &json!(1))
    );
    world.delete("/v1/hosts/h1").await.refused(409, "host-holds-vms");
    world
        .post("/v1/hosts/h1/actions/confirm-dead", &json!({}))
        .await
        .refused(409, "host-is-heard");
    let content = agent.http.get(format!(
        "{}/agent/v1/images/{}",
        world.url,
        told.machine.disk.image.as_ref().unwrap().sha256
    ));
    assert_eq!(content.send().await.unwrap().bytes().await.unwrap().len(), 1024);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_that_was_overtaken_or_is_repeated_says_nothing() {
    let world = World::new().await;
    let (mut agent, vm) = Agent::with_a_vm(&world).await;
    let late = agent.report(None, vec![agent.run(vm, RunState::Preparing)]);
    let newer = agent.report(None, vec![agent.run(vm, RunState::Booting)]);
    agent.send(&world, &newer).await.ok(204);
    let before = newest(&world, vm).await;
    agent.send(&world, &late).await.ok(204);
    agent.send(&world, &newer).await.ok(204);
    assert_eq!(newest(&world, vm).await, before);
    // A restarted agent begins to count again, and its former self is not heard while it is.
    let restarted = Report {
        session: Uuid::from_u128(6),
        sequence: 1,
        ..late.clone()
    };
    let restarted = Report {
        runs: vec![agent.run(vm, RunState::Running)],
        ..restarted
    };
    agent.send(&world, &restarted).await.ok(204);
    let stray = agent.report(None, vec![agent.run(vm, RunState::Booting)]);
    agent.send(&world, &stray).await.refused(503, "agent-overtaken");
    assert_eq!(
        world.get("/v1/vms/web").await.ok(200)["status"]["phase"],
        "Running"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_speaks_for_its_own_host_only() {
    let world = World::new().await;
    let (h1, vm) = Agent::with_a_vm(&world).await;
    let mut h2 = Agent::join(&world, "h2").await;
    h2.hello(&world, 4096).await;
    let before = newest(&world, vm).await;
    assert!(before.is_some());
    let report = h2.report(None, vec![h1.run(vm, RunState::Closed)]);
    h2.send(&world, &report).await.ok(204);
    assert_eq!(newest(&world, vm).await, before);
    let document = h2.document(&world, |_| true).await;
    assert_eq!((document.host, document.vms.len()), (h2.host, 0));
    let said = world
        .send(h1.http.post(format!("{}/agent/v1/report", world.url)).body("{"))
        .await;
    said.refused(400, "bad-json");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_token_is_for_one_host_and_one_key() {
    let world = World::new().await;
    let (keys, others) = (Keys::new(), Keys::new());
    let token = world.join_token(None).await;
    let first = joined(world.join(&token, &keys, "h1").await);
    let again = joined(world.join(&token, &keys, "h1").await);
    assert_eq!(first.host_id, again.host_id, "a lost answer does no harm");
    world
        .join(&token, &others, "h1")
        .await
        .refused(401, "bad-join-token");
    world
        .join(&token, &others, "h2")
        .await
        .refused(401, "bad-join-token");
    world
        .join("join-0", &others, "h2")
        .await
        .refused(401, "bad-join-token");
    let fresh = world.join_token(None).await;
    world.join(&fresh, &others, "h1").await.refused(409, "name-taken");
    world
        .join(
            &fresh,
            &Keys {
                key: String::new(),
                request: "x".to_owned(),
            },
            "h2",
        )
        .await
        .refused(422, "bad-certificate-request");
    world
        .join(&fresh, &others, "a/b")
        .await
        .refused(422, "invalid-name");
    // The certificate of the first answer was replaced by the second's.
    let old = Agent::of(&world, &keys, &first);
    let report = Agent::of(&world, &keys, &again).report(None, Vec::new());
    old.send(&world, &report)
        .await
        .refused(403, "certificate-replaced");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_hosts_agent_is_refused() {
    let world = World::new().await;
    let mut agent = Agent::join(&world, "h1").await;
    agent.hello(&world, 4096).await;
    world.delete("/v1/hosts/h1").await.ok(200);
    let report = agent.report(None, Vec::new());
    agent.send(&world, &report).await.refused(403, "host-removed");
    let left = world
        .store
        .range(store::RangeRequest::prefix("/host/"))
        .await
        .unwrap()
        .items;
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_that_no_host_can_give_is_refused_with_the_largest() {
    let world = World::new().await;
    let mut agent = Agent::join(&world, "h1").await;
    agent.hello(&world, 4096).await;
    let body = json!({ "name": "x", "spec": { "template": "small", "memory_mib": 8192 } });
    let said = world.post("/v1/vms", &body).await;
    said.refused(422, "larger-than-any-host");
    let detail = said.body["detail"].as_str().unwrap();
    assert!(detail.contains("h1") && detail.contains("4096"), "{detail}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_actions_leave_records_and_a_reboot_is_one() {
    let world = World::new().await;
    let (mut agent, vm) = Agent::with_a_vm(&world).await;
    let starts = world.get("/v1/vms/web").await.ok(200);
    assert_eq!(starts["status"]["operation"], "web-start-1");
    let act = async |word: &str| {
        world
            .post(&format!("/v1/vms/web/actions/{word}"), &json!({}))
            .await
    };
    act("reboot").await.refused(409, "wrong-phase");
    act("retry").await.refused(409, "wrong-phase");
    let mut run = agent.run(vm, RunState::Running);
    let report = agent_report(&mut agent, &run);
    agent.send(&world, &report).await.ok(204);
    let is_done = |operation: &serde_json::Value| operation["status"]["phase"] == "Done";
    let start = world.until("/v1/operations/web-start-1", is_done).await;
    assert_eq!(
        (
            &start["owner"],
            &start["spec"]["action"],
            &start["spec"]["object"]
        ),
        (&json!("admin"), &json!("start"), &json!("web"))
    );
    memory_is_told(&world, &mut agent, &run).await;
    let asked = act("reboot").await.ok(200);
    assert_eq!(asked["status"]["operation"], "web-reboot-1");
    let told = |document: &HostDocument| document.vms.get(&vm).is_some_and(|vm| vm.reboot.is_some());
    agent.document(&world, told).await;
    let waits = |operation: &serde_json::Value| operation["status"]["deadline"].is_string();
    world.until("/v1/operations/web-reboot-1", waits).await;
    run.run.rebooted = Some(Rebooted {
        request: 1,
        forced: true,
    });
    let report = agent_report(&mut agent, &run);
    agent.send(&world, &report).await.ok(204);
    let reboot = world.until("/v1/operations/web-reboot-1", is_done).await;
    assert_eq!(reboot["status"]["reason"]["code"], "reset");
    let is_idle = |vm: &serde_json::Value| vm["status"]["operation"].is_null();
    world.until("/v1/vms/web", is_idle).await;
    // A running guest keeps its size, and the answer says so.
    let larger = json!({ "spec": { "memory_mib": 128 }, "labels": { "tier": "web" } });
    let changed = world.patch("/v1/vms/web", &larger).await.ok(200);
    assert_eq!(changed["status"]["at_next_start"], json!(["memory_mib"]));
    // A request that is only tried leaves nothing.
    world
        .post("/v1/vms/web/actions/shutdown?dry_run=true", &json!({}))
        .await
        .ok(200);
    let all = world.get("/v1/operations").await.ok(200);
    assert_eq!(all["items"].as_array().unwrap().len(), 2);
    let prepared = json!({ "spec": { "power": "prepared" } });
    world
        .patch("/v1/vms/web", &prepared)
        .await
        .refused(422, "immutable");
}

/// What a VM's QEMU takes is heard, and more than is reserved for it is something to be said, now and later.
async fn memory_is_told(world: &World, agent: &mut Agent, run: &VmRun) {
    for (qemu_mib, code) in [(4096, json!("memory-over-reservation")), (1, json!(null))] {
        let mut report = agent_report(agent, run);
        report.samples.qemu_mib.insert(run.vm, qemu_mib);
        agent.send(world, &report).await.ok(204);
        let shown = world.get("/v1/vms/web").await.ok(200);
        assert_eq!(shown["status"]["memory"]["qemu_mib"], qemu_mib);
        assert_eq!(shown["status"]["reason"]["code"], code);
        let happened = |event: &serde_json::Value| {
            let summary = event["spec"]["summary"].as_str().unwrap_or_default();
            event["spec"]["object_name"] == "web"
                && summary.contains("than is reserved")
                && event["spec"]["reason"]["code"] == code
        };
        let is_told = |events: &serde_json::Value| events["items"].as_array().unwrap().iter().any(happened);
        world.until("/v1/events", is_told).await;
    }
}

fn agent_report(agent: &mut Agent, run: &VmRun) -> Report {
    agent.report(None, vec![run.clone()])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_reads_what_guests_are_told_of_its_own_vms_only() {
    let world = World::new().await;
    let mut here = Agent::join(&world, "h1").await;
    let mut elsewhere = Agent::join(&world, "h2").await;
    here.hello(&world, 4096).await;
    elsewhere.hello(&world, 4096).await;
    let password = "#!/bin/sh\necho planted-password";
    let guest = json!({ "user_data": password });
    let placement = json!({ "host": "h1" });
    let body =
        json!({ "name": "web", "spec": { "template": "small", "guest": guest, "placement": placement } });
    let vm = world.post("/v1/vms", &body).await.ok(201);
    let document = here
        .document(&world, |document| document.vms.contains_key(&id(&vm)))
        .await;
    assert!(
        serde_json::to_string(&document)
            .unwrap()
            .contains("planted-password")
    );
    // What is formatted for a log does not have it.
    assert!(!format!("{document:?}").contains("planted-password"));
    let other = elsewhere.document(&world, |_| true).await;
    assert!(
        !serde_json::to_string(&other)
            .unwrap()
            .contains("planted-password")
    );
    // No other route that takes a certificate tells more.
    for path in ["/v1/vms", "/v1/vms/web", "/v1/vms/web/history", "/metrics"] {
        let asked = elsewhere.http.get(format!("{}{path}", world.url));
        world.send(asked).await.refused(401, "no-token");
    }
}
