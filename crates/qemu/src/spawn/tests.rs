//! Processes: their locks, records and ends.

use super::*;
use std::time::Instant as StdInstant;

const DEADLINE: Duration = Duration::from_secs(20);

fn sleeper(directory: &Path) -> QemuProcess {
    let arguments = ["-c", "echo started; exec sleep 300"].map(str::to_owned);
    spawn(Path::new("/bin/sh"), &arguments, directory).unwrap()
}

/// Kills by the process's own descriptor, so that a failed test leaves nothing.
struct Guard<'a>(&'a QemuProcess);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let _ = self.0.send_kill();
    }
}

#[tokio::test]
async fn the_lock_lives_as_long_as_the_process() {
    let directory = tempfile::tempdir().unwrap();
    assert!(!is_occupied(directory.path()).unwrap());
    let process = sleeper(directory.path());
    let _guard = Guard(&process);
    assert!(is_occupied(directory.path()).unwrap());
    let second = spawn(Path::new("/bin/true"), &[], directory.path());
    assert!(matches!(second, Err(SpawnError::Occupied { .. })));
    let exit = kill(&process, directory.path(), DEADLINE).await.unwrap();
    assert_eq!(exit, Exit::Signal(9));
    assert!(!is_occupied(directory.path()).unwrap());
    assert!(!Path::new(&format!("/proc/{}", process.id().pid)).exists());
}

#[tokio::test]
async fn it_has_its_own_session_its_directory_and_no_environment() {
    let directory = tempfile::tempdir().unwrap();
    let script = "read line; echo \"end $?\"; env; pwd; cut -d' ' -f1,6 /proc/self/stat";
    let arguments = ["-c", script].map(str::to_owned);
    let process = spawn(Path::new("/bin/sh"), &arguments, directory.path()).unwrap();
    assert_eq!(process.gone().await.unwrap(), Exit::Code(0));
    let log = fs::read_to_string(directory.path().join(LOG_FILE)).unwrap();
    assert!(log.contains("end 1"), "{log}");
    assert!(!log.contains("CARGO"), "{log}");
    assert!(log.contains(directory.path().to_str().unwrap()), "{log}");
    let session = log.trim_end().rsplit(' ').next().unwrap();
    assert_eq!(session, process.id().pid.to_string(), "{log}");
}

#[tokio::test]
async fn nothing_a_silent_one_and_a_dead_one_are_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let vm = Uuid::from_u128(1);
    let deadline = Duration::from_millis(50);
    let found = find(directory.path(), vm, deadline).await.unwrap();
    assert!(matches!(found, Found::Nothing));
    let process = sleeper(directory.path());
    let _guard = Guard(&process);
    let found = find(directory.path(), vm, deadline).await.unwrap();
    let Found::Unproven {
        process: Some(again), ..
    } = found
    else {
        panic!("{found:?}");
    };
    assert_eq!(again.id(), process.id());
    remove(&directory.path().join(RECORD_FILE)).unwrap();
    let found = find(directory.path(), vm, deadline).await.unwrap();
    assert!(matches!(found, Found::Unproven { process: None, .. }));
    kill(&process, directory.path(), DEADLINE).await.unwrap();
    let found = find(directory.path(), vm, deadline).await.unwrap();
    assert!(matches!(found, Found::Nothing));
}

#[tokio::test]
async fn an_end_while_starting_is_told_at_once_with_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let started = StdInstant::now();
    let arguments = ["-c", "echo no such option >&2; exit 1"].map(str::to_owned);
    let process = spawn(Path::new("/bin/sh"), &arguments, directory.path()).unwrap();
    let error = connect(&process, directory.path(), QMP_SOCKET, DEADLINE).await;
    assert_eq!(
        error.unwrap_err().to_string(),
        "QEMU ended while it was starting (exit code 1): no such option"
    );
    assert!(started.elapsed() < DEADLINE);
}
