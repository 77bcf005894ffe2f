//! A server in this process, and the program beside it with a home of its own.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;

use controller::Env;
use model::Timestamp;
use store_sqlite::{Options, SqliteStore};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::Command;
use uuid::Uuid;

struct Wall(std::time::Instant);

impl Env for Wall {
    #[expect(clippy::disallowed_methods, reason = "the tests are a composition root")]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn monotonic(&self) -> std::time::Duration {
        self.0.elapsed()
    }

    fn sleep(&self, duration: std::time::Duration) -> store::BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }

    #[expect(clippy::disallowed_methods, reason = "the tests are a composition root")]
    fn next_id(&self) -> Uuid {
        Uuid::now_v7()
    }
}

/// A cloud without hosts, with a datastore, a network, an image and a template, and a directory to work in.
pub(crate) struct World {
    pub(crate) dir: TempDir,
    pub(crate) url: String,
    pub(crate) token: String,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    /// Holds the command to have done its work; what it printed.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:#?}");
        self.out
    }

    /// Holds the command to have ended so, with all of these in its errors.
    #[track_caller]
    pub(crate) fn refused(self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{self:#?}");
        for word in words {
            assert!(self.err.contains(word), "{word:?} is not in {self:#?}");
        }
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with_certificates_for(server::CERTIFICATE_LIFE).await
    }

    /// The same, with certificates that are good for so long.
    pub(crate) async fn with_certificates_for(life: jiff::SignedDuration) -> Self {
        let dir = TempDir::new().unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let config = server::Config {
            data_dir: dir.path().join("server"),
            listeners: vec![listener],
            names: vec!["localhost".to_owned()],
            addresses: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
            rates: server::Rates::default(),
            certificate_life: life,
            import_addresses: server::Addresses::allowing(vec!["127.0.0.1".parse().unwrap()]),
            import_authorities: server::Authorities::default(),
            outlet: None,
        };
        std::fs::create_dir_all(&config.data_dir).unwrap();
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let store = SqliteStore::open(Options::new(dir.path().join("server/store")));
        let store = Arc::new(store.unwrap());
        let task = tokio::spawn(async move {
            let ended = server::run(
                config,
                store,
                Arc::new(Wall(std::time::Instant::now())),
                move |_| ready.send(()).unwrap(),
            )
            .await;
            panic!("the server ended: {:?}", ended.err());
        });
        is_ready.await.unwrap();
        let token = std::fs::read_to_string(dir.path().join("server/admin.token")).unwrap();
        let world = Self {
            token: token.trim().to_owned(),
            dir,
            url,
            task,
        };
        world.furnish().await;
        world
    }

    async fn furnish(&self) {
        let mut disk = vec![0; 1024];
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        std::fs::write(self.path("disk.raw"), disk).unwrap();
        for line in [
            "datastore create default --path /tmp/sterna-test --coherent",
            "network create default --cidr 10.9.0.0/24",
            "image import disk --file disk.raw",
            "template create small --image disk --memory 64MiB",
        ] {
            self.run(line).await.ok();
        }
    }

    /// A client of the server that is no command.
    pub(crate) fn client(&self) -> api::client::Client {
        let ca = std::fs::read_to_string(self.ca()).unwrap();
        api::client::Client::new(&self.url, &self.token, &ca).unwrap()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.path("server/ca.pem")
    }

    /// The program with its home in the world's directory, and nothing that says how to reach the server.
    pub(crate) fn bare(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sterna"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        command.env_clear().env("PATH", path).env("HOME", self.dir.path());
        command.current_dir(self.dir.path()).args(line.split_whitespace());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// The same with the environment that `sterna up` offers.
    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = self.bare(line);
        command
            .env("STERNA_SERVER", &self.url)
            .env("STERNA_TOKEN", &self.token);
        command.env("STERNA_CACERT", self.ca());
        command
    }

    pub(crate) async fn run(&self, line: &str) -> Said {
        ended(self.command(line)).await
    }
}

pub(crate) async fn ended(mut command: Command) -> Said {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().await.unwrap();
    Said {
        code: status.code().unwrap(),
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
    }
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}
