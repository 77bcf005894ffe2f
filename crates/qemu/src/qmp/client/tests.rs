//! A monitor that answers late, out of order, or with garbage.

use super::*;
use proptest::prelude::*;
use std::path::PathBuf;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

const GREETING: &[u8] = b"{\"QMP\": {\"version\": {}, \"capabilities\": [\"oob\"]}}\r\n";

struct Server {
    stream: BufReader<UnixStream>,
}

impl Server {
    /// The next command's name and id.
    async fn receive(&mut self) -> (String, Value) {
        let mut line = String::new();
        self.stream.read_line(&mut line).await.unwrap();
        let command: Value = serde_json::from_str(&line).unwrap();
        let name = command["execute"].as_str().unwrap().to_owned();
        (name, command["id"].clone())
    }

    async fn send(&mut self, message: &Value) {
        self.send_raw(format!("{message}\r\n").as_bytes()).await;
    }

    async fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).await.unwrap();
    }
}

fn socket() -> (tempfile::TempDir, PathBuf, UnixListener) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp.sock");
    let listener = UnixListener::bind(&path).unwrap();
    (directory, path, listener)
}

async fn connected() -> (tempfile::TempDir, Server, Qmp, Events) {
    let (directory, path, listener) = socket();
    let accept = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut server = Server {
            stream: BufReader::new(stream),
        };
        server.send_raw(GREETING).await;
        let (name, id) = server.receive().await;
        assert_eq!(name, "qmp_capabilities");
        server.send(&json!({"return": {}, "id": id})).await;
        server
    };
    let (server, client) = tokio::join!(accept, Qmp::connect(&path, Duration::from_secs(5)));
    let (qmp, events) = client.unwrap();
    (directory, server, qmp, events)
}

#[tokio::test]
async fn answers_may_come_in_any_order() {
    let (_directory, mut server, qmp, _events) = connected().await;
    let answer = async {
        let first = server.receive().await;
        let second = server.receive().await;
        for (name, id) in [second, first] {
            server.send(&json!({"return": name, "id": id})).await;
        }
    };
    let (one, two, ()) = tokio::join!(
        qmp.execute("one", json!({})),
        qmp.execute("two", json!({})),
        answer
    );
    assert_eq!(one.unwrap(), json!("one"));
    assert_eq!(two.unwrap(), json!("two"));
}

#[tokio::test]
async fn a_refusal_carries_the_class_the_words_and_the_command() {
    let (_directory, mut server, qmp, _events) = connected().await;
    let answer = async {
        let (_, id) = server.receive().await;
        let error = json!({"class": "GenericError", "desc": "no such thing"});
        server.send(&json!({"error": error, "id": id})).await;
    };
    let (refused, ()) = tokio::join!(qmp.execute("frobnicate", json!({})), answer);
    let error = refused.unwrap_err();
    assert!(!error.effect_is_unknown());
    assert_eq!(
        error.to_string(),
        "QEMU refused `frobnicate`: no such thing (GenericError)"
    );
}

#[tokio::test]
async fn a_late_answer_is_dropped_and_the_connection_lives_on() {
    let (_directory, mut server, qmp, _events) = connected().await;
    let deadline = Duration::from_millis(30);
    let late = qmp.execute_within("slow", json!({}), deadline).await;
    assert!(matches!(late, Err(QmpError::Timeout { .. })));
    let answer = async {
        let (_, slow) = server.receive().await;
        let (_, next) = server.receive().await;
        server.send(&json!({"return": "slow", "id": slow})).await;
        server.send(&json!({"return": "next", "id": next})).await;
    };
    let (next, ()) = tokio::join!(qmp.execute("next", json!({})), answer);
    assert_eq!(next.unwrap(), json!("next"));
    assert!(qmp.shared.pending().answers.is_empty());
}

#[tokio::test]
async fn unknown_events_pass_and_overflow_is_a_hint() {
    let (_directory, mut server, qmp, mut events) = connected().await;
    for number in 0..EVENTS_MAX + 10 {
        let event = json!({"event": "NEVER_HEARD_OF", "data": {"n": number}, "timestamp": {}});
        server.send(&event).await;
    }
    let answer = async {
        let (_, id) = server.receive().await;
        server.send(&json!({"return": {}, "id": id})).await;
    };
    let (alive, ()) = tokio::join!(qmp.execute("query-status", json!({})), answer);
    alive.unwrap();
    assert_eq!(events.next().await, Some(Hint::Lagged(10)));
    let Some(Hint::Event(event)) = events.next().await else {
        panic!("an event was expected");
    };
    assert_eq!(event.data, json!({"n": 10}));
}

#[tokio::test]
async fn garbage_and_endless_lines_end_the_connection_with_a_named_cause() {
    let endless = vec![b'x'; LINE_BYTES_MAX + 100];
    for (bytes, cause) in [(&b"hello\n"[..], "no QMP"), (&endless, "longer than")] {
        let (_directory, mut server, qmp, mut events) = connected().await;
        let send = async {
            server.receive().await;
            // The client may hang up before all is written.
            let _ = server.stream.get_mut().write_all(bytes).await;
        };
        let (ended, ()) = tokio::join!(qmp.execute("query-status", json!({})), send);
        let error = ended.unwrap_err();
        assert!(error.effect_is_unknown());
        assert!(error.to_string().contains(cause), "{error}");
        assert_eq!(events.next().await, None);
        assert!(qmp.is_closed());
        assert_eq!(qmp.events().next().await, None);
        let again = qmp.execute("query-status", json!({})).await;
        assert!(again.unwrap_err().to_string().contains(cause));
    }
}

#[tokio::test]
async fn a_closed_monitor_fails_every_command_under_way() {
    let (_directory, mut server, qmp, _events) = connected().await;
    let close = async {
        server.receive().await;
        server.receive().await;
        drop(server);
    };
    let (one, two, ()) = tokio::join!(
        qmp.execute("one", json!({})),
        qmp.execute("two", json!({})),
        close
    );
    assert!(matches!(one, Err(QmpError::Closed { .. })));
    assert!(matches!(two, Err(QmpError::Closed { .. })));
}

#[tokio::test]
async fn dropping_the_last_handle_frees_the_monitor() {
    let (_directory, mut server, qmp, events) = connected().await;
    drop((qmp, events));
    let mut rest = String::new();
    let read = server.stream.read_line(&mut rest);
    assert_eq!(timeout(Duration::from_secs(5), read).await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn a_monitor_without_greeting_and_a_missing_one_are_told_apart() {
    let (_directory, path, _listener) = socket();
    let deadline = Duration::from_millis(30);
    let occupied = Qmp::connect(&path, deadline).await;
    assert!(matches!(occupied, Err(QmpError::Timeout { .. })));
    let missing = Qmp::connect(&path.with_extension("gone"), deadline).await;
    assert!(matches!(missing, Err(QmpError::Connect { .. })));
}

/// What a monitor that is broken, or taken over by its guest, may send: QMP's own words in any order, and any bytes.
fn whatever() -> impl Strategy<Value = Vec<u8>> {
    let words: Vec<&'static [u8]> = vec![
        b"{\"return\": {}, \"id\": 2}\r\n",
        b"{\"return\": 1, \"id\": 99999999999999999999}\n",
        b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": 2}\n",
        b"{\"error\": {}, \"id\": 2}\n",
        b"{\"event\": \"STOP\", \"data\": null}\n",
        b"{\"event\": 7}\n",
        b"{\"id\": -1}\n{}\n[]\nnull\n\n",
        b"{\"return\": [[[[[[[[",
        b"\xff\xfe\0\r\n",
        GREETING,
    ];
    let word = prop::sample::select(words).prop_map(<[u8]>::to_vec);
    let bytes = prop::collection::vec(any::<u8>(), 0..64);
    prop::collection::vec(prop_oneof![word, bytes], 0..12).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every command ends, and the connection either goes on or says why it does not.
    #[test]
    fn whatever_a_monitor_sends_is_an_answer_or_an_end(sent in whatever()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (_directory, mut server, qmp, mut events) = connected().await;
            server.send_raw(&sent).await;
            drop(server);
            let asked = qmp.execute_within("query-status", json!({}), Duration::from_secs(5));
            let ended = timeout(Duration::from_secs(10), asked).await;
            assert!(ended.is_ok(), "a command never ended");
            while timeout(Duration::from_secs(10), events.next()).await.expect("events end").is_some() {}
            let cause = qmp.shared.pending().closed.clone().expect("the connection has ended");
            // That is what a reader's panic would look like.
            assert_ne!(cause, "the connection was given up");
        });
    }
}
