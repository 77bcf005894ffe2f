//! `sterna up --simulate`: a real server over hosts that are not, as whoever explores it types it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::world::{Said, ended};

const HOSTS: usize = 50;
const PATIENCE: Duration = Duration::from_secs(90);

fn sterna(dir: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sterna"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.env_clear().env("PATH", path).env("HOME", dir);
    command.current_dir(dir).args(line.split_whitespace());
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.kill_on_drop(true);
    command
}

/// One that runs, in a directory of its own.
struct Simulated {
    dir: PathBuf,
    child: Child,
    said: String,
}

impl Simulated {
    async fn up(dir: &Path) -> Self {
        let mut child = sterna(dir, &format!("up --simulate {HOSTS} --data-dir cloud"))
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut said = String::new();
        let ready = async {
            while !said.contains("Ctrl-C") {
                said.push_str(&lines.next_line().await.unwrap().expect("it ended"));
                said.push('\n');
            }
        };
        timeout(PATIENCE, ready).await.expect("it is not ready");
        Self {
            dir: dir.to_owned(),
            child,
            said,
        }
    }

    async fn run(&self, line: &str) -> Said {
        let mut command = sterna(&self.dir, line);
        let env = std::fs::read_to_string(self.dir.join("cloud/env")).unwrap();
        let said = env
            .lines()
            .filter_map(|line| line.strip_prefix("export ")?.split_once('='));
        command.envs(said.map(|(key, value)| (key, value.trim_matches('\''))));
        ended(command).await
    }

    /// As Ctrl-C does it.
    async fn end(mut self) {
        let pid = Pid::from_raw(self.child.id().unwrap().cast_signed()).unwrap();
        kill_process(pid, Signal::INT).unwrap();
        let ended = timeout(PATIENCE, self.child.wait())
            .await
            .expect("it does not end");
        assert!(ended.unwrap().success());
        assert!(!self.dir.join("cloud/env").exists());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn simulated_hosts_run_move_and_give_up_vms_and_say_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Simulated::up(dir.path()).await;
    assert!(cloud.said.contains("50 SIMULATED hosts"), "{}", cloud.said);
    let listed = cloud.run("host list -l simulated=yes").await.ok();
    assert_eq!(listed.matches(" up ").count(), HOSTS, "{listed}");
    assert_eq!(listed.matches(" simulated").count(), HOSTS, "{listed}");
    let status = cloud.run("status").await.ok();
    assert!(status.contains("SIMULATED: 50"), "{status}");

    cloud
        .run("vm create first --template small --host h1 --wait=ready")
        .await
        .ok();
    let moved = cloud
        .run("vm migrate first --to h2 --wait -o jsonpath=$.status.phase")
        .await
        .ok();
    assert_eq!(moved, "Done\n");
    for n in 1..20 {
        cloud
            .run(&format!("vm create vm{n} --template small --host h2"))
            .await
            .ok();
    }
    cloud
        .run("vm create last --template small --host h2 --wait=ready")
        .await
        .ok();
    cloud
        .run("host drain h2 --parallel 8 --wait --timeout 80s")
        .await
        .ok();
    let hosts = cloud.run("vm list -o jsonpath=$.items[*].status.host").await.ok();
    assert_eq!(hosts.lines().count(), 21, "{hosts}");
    assert!(hosts.lines().all(|host| host != "h2"), "{hosts}");
    cloud.run("vm delete first --wait").await.ok();
    cloud.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_simulated_cloud_begins_anew_and_never_takes_the_place_of_a_real_one() {
    let dir = tempfile::tempdir().unwrap();
    let cloud = Simulated::up(dir.path()).await;
    cloud.run("vm create web --template small --hold").await.ok();
    ended(sterna(dir.path(), "up --simulate 2 --data-dir cloud"))
        .await
        .refused(1, &["another `sterna up`", "--data-dir"]);
    cloud.end().await;
    ended(sterna(dir.path(), "up --hosts 1 --data-dir cloud"))
        .await
        .refused(1, &["a simulated one", "--data-dir"]);

    let cloud = Simulated::up(dir.path()).await;
    assert_eq!(cloud.run("vm list -o name").await.ok(), "");
    cloud.end().await;

    std::fs::create_dir_all(dir.path().join("real/server/store")).unwrap();
    ended(sterna(dir.path(), "up --simulate 2 --data-dir real"))
        .await
        .refused(1, &["not simulated", "--data-dir"]);
    assert!(dir.path().join("real/server/store").exists());
    ended(sterna(dir.path(), "up --simulate 10001"))
        .await
        .refused(2, &["10000"]);
}
