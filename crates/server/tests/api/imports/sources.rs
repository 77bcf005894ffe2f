//! What images are imported from: nginx, pyftpdlib and nfs-ganesha, as their packages have them, and servers of our own that do what no honest one does.
//!
//! nginx listens on a socket file, so that no port is raced for; a [`Front`] passes its answers on, whole or not, and keeps
//! what was asked.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::world::PATIENCE;

/// Where `scripts/setup.sh test` unpacks them.
const SERVERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/servers");

/// An FTP server of Debian's package python3-pyftpdlib, which breaks off after so many bytes, so many times.
const FTP_SERVER: &str = "
import sys
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import DTPHandler, FTPHandler
from pyftpdlib.servers import FTPServer

class Data(DTPHandler):
    cuts, sent = int(sys.argv[2]), 0
    def send(self, data):
        sent = super().send(data)
        Data.sent += sent
        if Data.cuts > 0 and Data.sent > 1 << 20:
            Data.cuts, Data.sent = Data.cuts - 1, 0
            self.close()
        return sent

class Handler(FTPHandler):
    authorizer = DummyAuthorizer()
    dtp_handler = Data
    use_sendfile = False
    masquerade_address = '192.0.2.1'

if len(sys.argv) > 3:
    Handler.proto_cmds = {k: v for k, v in FTPHandler.proto_cmds.items() if k not in ('EPSV', 'REST')}
Handler.authorizer.add_anonymous(sys.argv[1])
server = FTPServer(('127.0.0.1', 0), Handler)
print(server.address[1], flush=True)
server.serve_forever()
";

/// A server of the files in a directory.
pub(crate) struct FtpServer {
    port: u16,
    dir: TempDir,
    _child: Child,
}

impl FtpServer {
    /// Runs until it is dropped. An old one knows neither `EPSV` nor `REST`.
    pub(crate) async fn start(cuts: u32, is_old: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("python3");
        command.env(
            "PYTHONPATH",
            Path::new(SERVERS).join("usr/lib/python3/dist-packages"),
        );
        command.args(["-W", "ignore", "-c", FTP_SERVER]).arg(dir.path());
        command.arg(cuts.to_string()).args(is_old.then_some("old"));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = lines.next_line().await.unwrap();
        let port = port.expect("pyftpdlib: `scripts/setup.sh test` gets it").parse();
        Self {
            port: port.unwrap(),
            dir,
            _child: child,
        }
    }

    pub(crate) fn put(&self, name: &str, content: &[u8]) {
        fs::write(self.dir.path().join(name), content).unwrap();
    }

    pub(crate) fn url(&self, name: &str) -> String {
        format!("ftp://127.0.0.1:{}/{name}", self.port)
    }
}

/// An NFS server of the files in a directory: nfs-ganesha, which speaks NFS 4 only, and gives them as a kernel's server would.
pub(crate) struct NfsServer {
    port: u16,
    dir: TempDir,
    _child: Child,
}

impl NfsServer {
    /// Runs until it is dropped. It finds files by their handles, which root may only.
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (here, libraries) = (dir.path(), Path::new(SERVERS).join("usr/lib"));
        let plugins = libraries.join("x86_64-linux-gnu");
        let files = here.join("files");
        for made in [&files, &here.join("state")] {
            fs::create_dir(made).unwrap();
        }
        let names = format!(
            "[Translation]\nMethod = {}/libnfsidmap/static\n",
            plugins.display()
        );
        fs::write(here.join("names"), names).unwrap();
        let found = format!("{}:{}/ganesha", plugins.display(), libraries.display());
        let server = || {
            let mut server = Command::new(Path::new(SERVERS).join("usr/bin/ganesha.nfsd"));
            server.env("LD_LIBRARY_PATH", &found);
            server
        };
        let release = server().arg("-v").output().await;
        let release = release.expect("nfs-ganesha: `scripts/setup.sh test` gets it");
        // Debian 12's takes no such option, and later ones need a right that a container's root has not.
        let is_old = String::from_utf8_lossy(&release.stdout).contains("V4.");
        let lenient = if is_old {
            ""
        } else {
            "allow_set_io_flusher_fail = true;"
        };
        let config = format!(
            "NFS_CORE_PARAM {{ Protocols = 4; NFS_Port = 0; Bind_addr = 127.0.0.1; Plugins_Dir = {0}/ganesha; {lenient}\n\
             Enable_NLM = false; Enable_RQUOTA = false; }}\n\
             NFSV4 {{ IdmapConf = {1}/names; RecoveryRoot = {1}/state; Graceless = true; Only_Numeric_Owners = true; }}\n\
             EXPORT {{ Export_Id = 1; Path = {1}/files; Pseudo = /images; Access_Type = RO; Squash = none; SecType = sys;\n\
             Protocols = 4; FSAL {{ Name = VFS; }} }}\n",
            plugins.display(),
            here.display()
        );
        fs::write(here.join("config"), config).unwrap();
        let mut command = server();
        command.args(["-F", "-N", "EVENT", "-L", "/dev/stderr"]);
        command
            .arg("-f")
            .arg(here.join("config"))
            .arg("-p")
            .arg(here.join("pid"));
        command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut all = String::new();
        while !all.contains("SERVER INITIALIZED") {
            let line = said.next_line().await.unwrap();
            let line = line.unwrap_or_else(|| panic!("nfs-ganesha has ended (it needs root):\n{all}"));
            all += &(line + "\n");
        }
        tokio::spawn(async move { while let Ok(Some(_)) = said.next_line().await {} });
        let port = listens_at(child.id().unwrap());
        Self {
            port,
            dir,
            _child: child,
        }
    }

    pub(crate) fn put(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.dir.path().join("files").join(name);
        fs::write(&path, content).unwrap();
        path
    }

    pub(crate) fn url(&self, name: &str) -> String {
        format!("nfs://127.0.0.1:{}/images/{name}", self.port)
    }
}

/// The one TCP port that a process listens at.
fn listens_at(pid: u32) -> u16 {
    let sockets: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|file| fs::read_link(file.ok()?.path()).ok()?.to_str().map(str::to_owned))
        .collect();
    let table = ["tcp", "tcp6"].map(|name| fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap());
    let port = table.iter().flat_map(|table| table.lines()).find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_its_own = sockets.contains(&format!("socket:[{}]", words.get(9)?));
        let listens = words[3] == "0A" && is_its_own;
        let (_, port) = words[1].rsplit_once(':').filter(|_| listens)?;
        u16::from_str_radix(port, 16).ok()
    });
    port.expect("it listens at a port")
}

/// An HTTP server with files.
pub(crate) struct Nginx {
    front: Front,
    dir: TempDir,
    _child: Child,
}

impl Nginx {
    /// Runs until it is dropped.
    pub(crate) async fn start(files: &[(&str, &[u8])]) -> Self {
        Self::with(files, "").await
    }

    /// The same; its only server has these directives too.
    pub(crate) async fn with(files: &[(&str, &[u8])], directives: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let here = dir.path().display();
        let config = format!(
            "daemon off; master_process off; pid {here}/pid; error_log stderr; user root;\n\
             events {{}}\n\
             http {{\n access_log off;\n {}\n server {{ listen unix:{here}/socket; root {here}/files; {directives} }}\n}}\n",
            ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                .map(|of| format!("{of}_temp_path {here}/{of};"))
                .join(" "),
        );
        fs::write(dir.path().join("config"), config).unwrap();
        fs::create_dir(dir.path().join("files")).unwrap();
        let unpacked = Path::new(SERVERS).join("usr/sbin/nginx");
        let mut command = Command::new(if unpacked.exists() {
            &unpacked
        } else {
            Path::new("nginx")
        });
        command
            .arg("-c")
            .arg(dir.path().join("config"))
            .arg("-p")
            .arg(dir.path());
        command
            .arg("-e")
            .arg("stderr")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let child = command.spawn().expect("nginx: `scripts/setup.sh test` gets it");
        let socket = dir.path().join("socket");
        let begun = std::time::Instant::now();
        while UnixStream::connect(&socket).await.is_err() {
            assert!(begun.elapsed() < PATIENCE, "nginx does not answer");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        let nginx = Self {
            front: Front::start(Manner::Passing {
                socket,
                cut_after: usize::MAX,
                still_from: usize::MAX,
            })
            .await,
            dir,
            _child: child,
        };
        for (name, content) in files {
            nginx.put(name, content);
        }
        nginx
    }

    pub(crate) fn put(&self, name: &str, content: &[u8]) {
        let path = self.dir.path().join("files").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub(crate) fn url(&self, name: &str) -> String {
        self.front.url(name)
    }

    /// A way to one of its sockets on which nothing is looked at.
    pub(crate) async fn through(&self, socket: &str) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (address, socket) = (listener.local_addr().unwrap(), self.dir.path().join(socket));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let socket = socket.clone();
                tokio::spawn(async move {
                    let mut there = UnixStream::connect(socket).await.unwrap();
                    let _ = copy_bidirectional(&mut stream, &mut there).await;
                });
            }
        });
        address
    }

    /// Another way to it: each answer is cut off after so many bytes, and from one request on none is passed on.
    pub(crate) async fn behind(&self, cut_after: usize, still_from: usize) -> Front {
        let socket = self.dir.path().join("socket");
        Front::start(Manner::Passing {
            socket,
            cut_after,
            still_from,
        })
        .await
    }
}

enum Manner {
    Passing {
        socket: PathBuf,
        cut_after: usize,
        still_from: usize,
    },
    /// An answer each, the last one again and again.
    Saying(Vec<String>),
}

/// A request, and how much was answered.
#[derive(Debug, Clone)]
pub(crate) struct Said {
    pub(crate) asked: String,
    pub(crate) bytes: usize,
}

#[derive(Default)]
struct State {
    said: Vec<Said>,
    open: usize,
    goes_on: bool,
}

struct Shared {
    manner: Manner,
    state: Mutex<State>,
    changes: watch::Sender<()>,
}

impl Shared {
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let done = change(&mut self.state.lock().unwrap());
        self.changes.send_replace(());
        done
    }

    async fn until(&self, wanted: impl Fn(&State) -> bool) {
        let mut changes = self.changes.subscribe();
        let reached = async {
            while !wanted(&self.state.lock().unwrap()) {
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, reached)
            .await
            .expect("it never came to that");
    }
}

/// What a client connects to. It answers one request a connection.
pub(crate) struct Front {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Front {
    /// One that says these words, whatever it is asked.
    pub(crate) async fn saying(answers: Vec<String>) -> Self {
        Self::start(Manner::Saying(answers)).await
    }

    async fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            manner,
            state: Mutex::default(),
            changes: watch::Sender::new(()),
        });
        let serving = shared.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let shared = serving.clone();
                tokio::spawn(async move {
                    shared.change(|state| state.open += 1);
                    serve(&shared, stream).await;
                    shared.change(|state| state.open -= 1);
                });
            }
        });
        Self {
            address,
            shared,
            task,
        }
    }

    pub(crate) fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.address)
    }

    /// Waits until there were so many requests.
    pub(crate) async fn asked(&self, times: usize) {
        self.shared.until(|state| state.said.len() >= times).await;
    }

    /// Waits until nobody is connected.
    pub(crate) async fn left(&self) {
        self.shared.until(|state| state.open == 0).await;
    }

    /// Passes on what it has held.
    pub(crate) fn go_on(&self) {
        self.shared.change(|state| state.goes_on = true);
    }

    pub(crate) fn said(&self) -> Vec<Said> {
        self.shared.state.lock().unwrap().said.clone()
    }
}

async fn serve(shared: &Shared, mut stream: TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let asked = String::from_utf8_lossy(&head).to_lowercase();
    let number = shared.change(|state| {
        state.said.push(Said { asked, bytes: 0 });
        state.said.len() - 1
    });
    match &shared.manner {
        Manner::Saying(answers) => {
            let answer = answers.get(number).or(answers.last()).unwrap();
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
        Manner::Passing {
            socket,
            cut_after,
            still_from,
        } => {
            let goes_on = async { shared.until(|state| state.goes_on).await };
            if number >= *still_from {
                // Whoever leaves meanwhile is seen to leave.
                tokio::select! { () = goes_on => {}, _ = stream.read_u8() => return }
            }
            pass(shared, number, stream, socket, &head, *cut_after).await;
        }
    }
}

async fn pass(
    shared: &Shared,
    number: usize,
    mut to: TcpStream,
    socket: &Path,
    head: &[u8],
    cut_after: usize,
) {
    let mut from = UnixStream::connect(socket).await.unwrap();
    let mut head = String::from_utf8_lossy(head).replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    head.retain(|letter| letter != '\0');
    from.write_all(head.as_bytes()).await.unwrap();
    let mut rest = cut_after;
    let mut chunk = vec![0; 64 * 1024];
    while rest > 0 {
        let most = chunk.len().min(rest);
        let read = from.read(&mut chunk[..most]).await.unwrap_or_default();
        if read == 0 || to.write_all(&chunk[..read]).await.is_err() {
            break;
        }
        rest -= read;
        shared.change(|state| state.said[number].bytes += read);
    }
    let _ = to.shutdown().await;
}
