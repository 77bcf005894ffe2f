//! Processes: their locks, records and ends.

use super::*;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant as StdInstant;

const DEADLINE: Duration = Duration::from_secs(20);

fn shell(script: &str) -> CommandLine {
    CommandLine {
        arguments: ["-c", script].map(str::to_owned).to_vec(),
        files: Vec::new(),
    }
}

fn start(script: &str, directory: &Path) -> QemuProcess {
    spawn(Path::new("/bin/sh"), &shell(script), directory, None).unwrap()
}

fn sleeper(directory: &Path) -> QemuProcess {
    start("echo started; exec sleep 300", directory)
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
    let second = spawn(
        Path::new("/bin/true"),
        &CommandLine::default(),
        directory.path(),
        None,
    );
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
    let process = start(script, directory.path());
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
    let process = start("echo no such option >&2; exit 1", directory.path());
    let error = connect(&process, directory.path(), QMP_SOCKET, DEADLINE).await;
    assert_eq!(
        error.unwrap_err().to_string(),
        "QEMU ended while it was starting (exit code 1): no such option"
    );
    assert!(started.elapsed() < DEADLINE);
}

#[tokio::test]
async fn files_are_handed_over_open_and_none_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let odd = directory.path().join("a file, \"quoted\" and $(odd)");
    let missing = directory.path().join("missing");
    fs::write(&odd, "read me\n").unwrap();
    let file = |path: &Path, access| OpenFile {
        path: path.to_owned(),
        access,
        cache: Cache::HostPageCache,
        is_mapped: false,
        opaque: None,
    };
    // After the script comes what QEMU is told of the descriptors: `-add-fd fd=A,set=0 -add-fd fd=B,set=1`.
    let script = "a=${1#fd=}; b=${3#fd=}; read said <&${a%,*}; echo \"$said\"; echo written >&${b%,*}; \
                  echo no >&${a%,*}";
    let mut line = shell(script);
    line.files = vec![file(&odd, Access::ReadOnly), file(&missing, Access::ReadWrite)];
    let start = |line: &CommandLine| spawn(Path::new("/bin/bash"), line, directory.path(), None);
    assert!(matches!(start(&line), Err(SpawnError::Open { .. })));
    assert!(!missing.exists(), "an image that is gone was made anew");
    fs::write(&missing, "").unwrap();
    start(&line).unwrap().gone().await.unwrap();
    assert_eq!(fs::read_to_string(&odd).unwrap(), "read me\n");
    assert_eq!(fs::read_to_string(&missing).unwrap(), "written\n");
    assert!(log_tail(directory.path()).contains("read me"));
}

/// Only root can have others run something: everybody else is told that this is so.
#[tokio::test]
async fn another_user_has_its_own_directory_and_nothing_else() {
    const USER: User = User { id: 1_879_048_193 };
    if let Err(why) = try_user(Path::new("/bin/true"), USER) {
        println!("nothing to see here: {why}");
        return;
    }
    let host = tempfile::tempdir().unwrap();
    fs::set_permissions(host.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let directory = host.path().join("vm");
    fs::create_dir(&directory).unwrap();
    let (own, other) = (host.path().join("own.img"), host.path().join("other.img"));
    fs::write(&own, "own\n").unwrap();
    fs::write(&other, "other\n").unwrap();
    let script = format!(
        "a=${{1#fd=}}; read said <&${{a%,*}}; echo \"$said\"; id -u; id -G; echo s >socket && echo made; \
         cat {} && echo reached; grep -E 'Cap(Eff|Prm|Amb)|NoNewPrivs' /proc/self/status",
        other.display()
    );
    let mut line = shell(&script);
    line.files.push(OpenFile {
        path: own,
        access: Access::ReadWrite,
        cache: Cache::HostPageCache,
        is_mapped: false,
        opaque: None,
    });
    let process = spawn(Path::new("/bin/bash"), &line, &directory, Some(USER)).unwrap();
    process.gone().await.unwrap();
    let log = fs::read_to_string(directory.join(LOG_FILE)).unwrap();
    for line in [
        "own",
        "1879048193",
        "made",
        "NoNewPrivs:\t1",
        "CapPrm:\t0000000000000000",
    ] {
        assert!(log.lines().any(|said| said == line), "no {line:?} in {log}");
    }
    assert!(!log.contains("reached"), "{log}");
    user::close_directory(&directory).unwrap();
    assert_eq!(
        fs::metadata(&directory).unwrap().permissions().mode() & 0o777,
        0o711
    );
}
