//! Answers of a guest that lies, stalls and never ends.

use super::*;
use proptest::prelude::*;
use tokio::io::AsyncReadExt;
use tokio::net::UnixListener;

/// A guest that answers each line by `answer(line)`; the line is without the delimiter byte.
async fn guest(listener: UnixListener, mut answer: impl FnMut(Value) -> Vec<u8> + Send + 'static) {
    let (stream, _) = listener.accept().await.unwrap();
    let mut lines = LineReader::new(stream, ANSWER_BYTES_MAX);
    while let Ok(Some(mut line)) = lines.next_line().await {
        line.retain(|&byte| byte != DELIMITER);
        let bytes = answer(serde_json::from_slice(&line).unwrap());
        if lines.stream_mut().write_all(&bytes).await.is_err() {
            return;
        }
    }
}

fn sync_answer(request: &Value) -> Option<Vec<u8>> {
    (request["execute"] == "guest-sync-delimited").then(|| {
        let mut bytes = vec![DELIMITER];
        bytes.extend(format!("{}\n", json!({"return": request["arguments"]["id"]})).into_bytes());
        bytes
    })
}

fn socket() -> (tempfile::TempDir, PathBuf, UnixListener) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.sock");
    let listener = UnixListener::bind(&path).unwrap();
    (directory, path, listener)
}

#[tokio::test]
async fn stale_answers_are_skipped_and_addresses_read() {
    let (_directory, path, listener) = socket();
    tokio::spawn(guest(listener, |request| {
        if let Some(answer) = sync_answer(&request) {
            let mut bytes = b"{\"return\": {}}\n\xff{\"return\": 7}\nhalf an ans".to_vec();
            bytes.extend(answer);
            return bytes;
        }
        assert_eq!(request["execute"], "guest-network-get-interfaces");
        let answer = json!({"return": [
            {"name": "lo", "ip-addresses": [{"ip-address": "127.0.0.1", "prefix": 8}]},
            {"name": "eth0", "hardware-address": "52:54:00:00:00:01", "unknown": [1],
             "ip-addresses": [{"ip-address": "fe80::1"}, {"ip-address": "no address"}]},
            {"name": "eth1"}]});
        format!("{answer}\n").into_bytes()
    }));
    let mut agent = GuestAgent::connect(&path, Duration::from_secs(5), 3)
        .await
        .unwrap();
    let interfaces = agent.network_interfaces().await.unwrap();
    assert_eq!(interfaces.len(), 3);
    assert_eq!(interfaces[1].mac.as_deref(), Some("52:54:00:00:00:01"));
    assert_eq!(interfaces[1].addresses, ["fe80::1".parse::<IpAddr>().unwrap()]);
}

#[tokio::test]
async fn the_times_of_the_first_processor_add_up() {
    let (_directory, path, listener) = socket();
    tokio::spawn(guest(listener, |request| {
        sync_answer(&request).unwrap_or_else(|| {
            let answer = json!({"return": [
                {"type": "linux", "cpu": 0, "user": 100, "nice": 0, "system": 20, "idle": 3000, "guest": 7},
                {"type": "linux", "cpu": 1, "user": 1, "nice": 1, "system": 1, "idle": u64::MAX}]});
            format!("{answer}\n").into_bytes()
        })
    }));
    let connected = GuestAgent::connect(&path, Duration::from_secs(5), 0).await;
    assert_eq!(connected.unwrap().up_ms().await.unwrap(), 3120);
}

#[tokio::test]
async fn a_refusal_keeps_the_conversation_and_output_is_decoded() {
    let (_directory, path, listener) = socket();
    let mut syncs = 0;
    tokio::spawn(guest(listener, move |request| {
        if let Some(answer) = sync_answer(&request) {
            syncs += 1;
            assert_eq!(syncs, 1);
            return answer;
        }
        let answer = match request["execute"].as_str().unwrap() {
            "guest-exec" => json!({"error": {"class": "GenericError", "desc": "not found"}}),
            "guest-exec-status" => {
                json!({"return": {"exited": true, "exitcode": 0, "out-data": "aGkK"}})
            }
            other => panic!("unexpected {other}"),
        };
        format!("{answer}\n").into_bytes()
    }));
    let mut agent = GuestAgent::connect(&path, Duration::from_secs(5), 0)
        .await
        .unwrap();
    let refused = agent.exec("/bin/nothing", &["-x"]).await;
    assert!(matches!(refused, Err(GuestAgentError::Command { .. })));
    let status = agent.exec_status(1).await.unwrap();
    let ExecStatus::Ended(output) = status else {
        panic!("{status:?}");
    };
    assert_eq!(output.stdout, b"hi\n");
}

#[tokio::test]
async fn a_silent_guest_and_a_flooding_guest_are_bounded() {
    let (_directory, path, listener) = socket();
    let _silent = tokio::spawn(guest(listener, |_| Vec::new()));
    let mut agent = GuestAgent::connect(&path, Duration::from_millis(50), 0)
        .await
        .unwrap();
    assert!(matches!(agent.ping().await, Err(GuestAgentError::Timeout { .. })));
    let (_directory, path, listener) = socket();
    tokio::spawn(guest(listener, |_| vec![b'x'; 3 * ANSWER_BYTES_MAX]));
    let mut agent = GuestAgent::connect(&path, Duration::from_secs(5), 0)
        .await
        .unwrap();
    assert!(matches!(agent.ping().await, Err(GuestAgentError::Garbage { .. })));
}

#[tokio::test]
async fn the_conversation_is_found_again_after_a_timeout() {
    let (_directory, path, listener) = socket();
    let mut calls = 0;
    tokio::spawn(guest(listener, move |request| {
        calls += 1;
        match sync_answer(&request) {
            Some(answer) => answer,
            // The first command is answered half only.
            None if calls == 2 => b"{\"return\"".to_vec(),
            None => b"{\"return\": {}}\n".to_vec(),
        }
    }));
    let mut agent = GuestAgent::connect(&path, Duration::from_millis(200), 0)
        .await
        .unwrap();
    assert!(agent.execute("guest-info", json!({})).await.is_err());
    agent.execute("guest-info", json!({})).await.unwrap();
}

#[tokio::test]
async fn shutdown_takes_silence_for_obedience_but_not_from_a_guest_without_agent() {
    let (_directory, path, listener) = socket();
    tokio::spawn(guest(listener, |request| {
        if request["execute"] == "guest-shutdown" {
            return Vec::new();
        }
        sync_answer(&request).unwrap_or_else(|| b"{\"return\": {}}\n".to_vec())
    }));
    let deadline = Duration::from_secs(5);
    let mut agent = GuestAgent::connect(&path, deadline, 0).await.unwrap();
    agent.shutdown(ShutdownMode::Powerdown).await.unwrap();
    let (_directory, path, listener) = socket();
    let _silent = tokio::spawn(guest(listener, |_| Vec::new()));
    let deadline = Duration::from_millis(50);
    let mut agent = GuestAgent::connect(&path, deadline, 0).await.unwrap();
    assert!(agent.shutdown(ShutdownMode::Powerdown).await.is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn garbage_never_panics_nor_hangs(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (_directory, path, listener) = socket();
            let served = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.write_all(&bytes).await.unwrap();
                let mut sink = [0; 1024];
                let _ = stream.read(&mut sink).await;
            });
            let mut agent = GuestAgent::connect(&path, Duration::from_millis(500), 0).await.unwrap();
            assert!(agent.ping().await.is_err());
            served.await.unwrap();
        });
    }
}
