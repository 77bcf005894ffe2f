//! Consoles: who may be at one, who answers the call, and what goes over it.

use std::time::Duration;

use api::agent::{Call, CallFor};
use api::client::ClientError;
use api::console::{Console, DialError, Said};
use futures_util::StreamExt;
use model::report::RunState;
use reqwest::StatusCode;

use super::agents::Agent;
use super::world::World;

/// A VM that runs at the only host that has said hello.
pub(crate) async fn running(world: &World) -> Agent {
    let (mut agent, vm) = Agent::with_a_vm(world).await;
    let report = agent.report(None, vec![agent.run(vm, RunState::Running)]);
    agent.send(world, &report).await.ok(204);
    world
        .until("/v1/vms/web", |vm| vm["status"]["phase"] == "Running")
        .await;
    agent
}

pub(crate) fn dial(world: &World, agent: &Agent, call: &str) -> reqwest::RequestBuilder {
    agent.http.get(format!("{}/agent/v1/calls/{call}", world.url))
}

/// The stream of calls, on which an agent listens from now on.
pub(crate) async fn listen(world: &World, agent: &Agent) -> reqwest::Response {
    let stream = agent.http.get(format!("{}/agent/v1/calls", world.url));
    stream.send().await.unwrap()
}

/// The next call that an agent hears.
pub(crate) async fn next_call(stream: reqwest::Response) -> Call {
    let mut chunks = stream.bytes_stream();
    loop {
        let chunk = chunks.next().await.unwrap().unwrap();
        if chunk != b"\n"[..] {
            return serde_json::from_slice(&chunk).unwrap();
        }
    }
}

fn code<T>(answer: Result<T, ClientError>) -> String {
    let error = answer.err().expect("it should be refused");
    error.code().unwrap_or("no problem").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_is_refused_before_anything_is_dialled() {
    let world = World::new().await;
    let (client, agent) = (world.typed(), running(&world).await);
    assert_eq!(code(client.console("none", false).await), "not-found");
    assert_eq!(code(client.console("web", false).await), "agent-away");
    world.vm("other").await;
    assert_eq!(code(client.console("other", false).await), "no-console");
    world
        .get("/v1/vms/web/console")
        .await
        .refused(426, "no-websocket");
    world
        .get("/v1/vms/web/console?colour=red")
        .await
        .refused(400, "bad-query");
    let stranger = api::client::Client::new(&world.url, "wrong", &world.ca).unwrap();
    assert_eq!(code(stranger.console("web", false).await), "bad-token");
    let refused = Console::dial(dial(&world, &agent, "call-guessed")).await;
    assert!(matches!(refused, Err(DialError::Refused(answer)) if answer.status() == StatusCode::NOT_FOUND));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_is_answered_by_the_host_that_was_called_and_bytes_go_both_ways() {
    let world = World::new().await;
    let agent = running(&world).await;
    let other = Agent::join(&world, "h2").await;
    let client = world.typed();
    let person = tokio::spawn(async move {
        loop {
            match client.console("web", false).await {
                Err(error) if error.code() == Some("agent-away") => {
                    tokio::time::sleep(Duration::from_millis(20)).await
                }
                answer => return answer,
            }
        }
    });
    let call = next_call(listen(&world, &agent).await).await;
    assert!(matches!(&call.what, CallFor::Console { who, from_start: false } if who.contains(" from 127.")));
    let refused = Console::dial(dial(&world, &other, &call.id)).await;
    assert!(matches!(refused, Err(DialError::Refused(answer)) if answer.status() == StatusCode::NOT_FOUND));
    let mut console = Console::dial(dial(&world, &agent, &call.id)).await.unwrap();
    let mut person = person.await.unwrap().unwrap();
    assert!(person.send(b"ls\r".to_vec()).await && console.notice("hello".to_owned()).await);
    assert_eq!(console.next().await, Said::Bytes(b"ls\r".to_vec()));
    assert_eq!(person.next().await, Said::Notice("hello".to_owned()));
    let twice = Console::dial(dial(&world, &agent, &call.id)).await;
    assert!(twice.is_err(), "a call is answered once");
    assert!(console.send(b"bin".to_vec()).await);
    assert_eq!(person.next().await, Said::Bytes(b"bin".to_vec()));
    person.end("").await;
    assert_eq!(
        console.next().await,
        Said::Ended("the connection was lost".to_owned())
    );
    let audit = world
        .store
        .range(store::RangeRequest::prefix("/audit/"))
        .await
        .unwrap()
        .items;
    let mut values = audit.iter().map(|kv| String::from_utf8_lossy(&kv.value));
    assert!(
        values.any(|value| value.contains("attach to the console of vm web")),
        "nothing is noted"
    );
}
