//! The host's agent: a shell around the driver's cores.
//!
//! **Owns:** the host's directory with its journal, the link to the servers, the link to other agents, and every process,
//! file and network port of the host's VMs.
//!
//! **Does not know:** what shall be done (the host's document says it) and what may be done (the driver's table says it).
//!
//! **Start here:** [`run`], then [`reconcile`] for the way of a document to its tasks and [`vm`] for one incarnation. A
//! restart of the agent disturbs no guest: QEMU lives on, and the next agent finds it again.

pub mod calls;
pub mod chance;
pub mod clock;
pub mod config;
pub mod firmware;
pub mod host;
pub mod journal;
pub mod link;
pub mod machine;
pub mod network;
pub mod peer;
pub mod pki;
pub mod program;
pub mod reconcile;
pub mod seed;
pub mod storage;
mod unneeded;
pub mod users;
pub mod vm;

use std::fs::{self, File, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use model::host::{HostStatus, Lack};
use rustix::fs::FlockOperation;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use clock::Clock;
use config::HostDir;
pub use config::{Config, JoinToken};
use host::Abilities;
use journal::{Journal, JournalError, State};
use link::Board;
use network::{Network, NetworkError};
use peer::Peers;
use pki::{HostIdentity, PkiError, Tls};
use program::Program;
use reconcile::Fleet;
use storage::Storage;
use users::Users;
use vm::Host;
use vm::console::Consoles;
use vm::turns::Turns;

/// QEMU's program, found in `PATH`.
const QEMU: &str = "qemu-system-x86_64";
/// Between requests to join.
const JOIN_PAUSE: Duration = Duration::from_millis(500);
/// Documents that wait to be obeyed.
const MAX_WAITING_EVENTS: usize = 8;

/// Why an agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The host's directory.
    #[error("cannot use the host's directory {path}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another agent.
    #[error("another agent runs in {0}: end it first, or give this one another directory")]
    Occupied(PathBuf),
    /// Keys, certificates, joining.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The listener for other agents.
    #[error("cannot listen for other agents at {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The host's network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The HTTP client.
    #[error("cannot make the connection to the servers")]
    Client(#[from] reqwest::Error),
}

/// Runs an agent until `shutdown` completes; the host's VMs live on. It acts on the network namespace of the calling
/// thread. `ready` is called when the host has joined and other agents are answered.
pub async fn run(
    config: Config,
    ready: impl FnOnce(),
    shutdown: impl Future<Output = ()>,
) -> Result<(), AgentError> {
    tokio::select! {
        ended = serve(config, ready) => ended,
        () = shutdown => Ok(()),
    }
}

async fn serve(config: Config, ready: impl FnOnce()) -> Result<(), AgentError> {
    let dir = HostDir(config.data_dir.clone());
    let _lock = take_lock(&dir)?;
    // QEMUs of an agent that ended become this one's to reap, where no nearer process takes them.
    if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        tracing::warn!(%error, "an ended QEMU may stay as a zombie for a while");
    }
    let (identity, abilities) = tokio::join!(
        join(&config, &dir),
        Abilities::find(&config, &dir, Path::new(QEMU))
    );
    let identity = identity?;
    let tls = Tls::load(&config, &dir)?;
    let listener = listen(config.peer_listen).await?;
    let port = listener
        .local_addr()
        .map_or(config.peer_listen.port(), |address| address.port());
    let peer_address = config
        .peer_advertise
        .unwrap_or(SocketAddr::new(config.underlay_address, port));
    let users = Users::open(abilities.way.clone(), &dir);
    let qemu = abilities.qemu.clone();
    let status = abilities.status(&config, peer_address);
    let speaker = machine::speaker(&dir.0);
    let client = pki::http_client(tls.to_servers.clone(), speaker.as_deref())?;
    tracing::info!(host = %identity.id, name = identity.name, "the agent runs");
    ready();
    Joined {
        config,
        dir,
        identity,
        tls,
        client,
        speaker,
        status,
        qemu,
        users,
        clock: Clock::start(),
    }
    .obey(listener)
    .await
}

/// An agent whose host has joined.
struct Joined {
    config: Config,
    dir: HostDir,
    identity: HostIdentity,
    tls: Tls,
    client: reqwest::Client,
    speaker: Option<String>,
    status: HostStatus,
    qemu: Program,
    users: Users,
    clock: Clock,
}

impl Joined {
    /// Obeys documents and reports, for as long as it is let.
    async fn obey(self, listener: TcpListener) -> Result<(), AgentError> {
        self.be_admitted().await;
        let session = chance::unique();
        let clock = self.clock.clone();
        let (client, server) = (self.client.clone(), self.config.server.clone());
        let (kept_for, qemu) = (self.config.unneeded_kept_for, self.qemu.clone());
        let (journal, state) = match open_journal(&self.dir) {
            Ok(opened) => opened,
            Err(error) => {
                let board = Board::new(without_journal(self.status, &error), clock);
                link::reports(client, server, &board, session).await;
                return Ok(());
            }
        };
        let board = Arc::new(Board::new(self.status.clone(), clock.clone()));
        let (from_peers, own) = (Arc::clone(&self.tls.from_peers), Arc::clone(&self.tls.own));
        let host = Arc::new(self.host(journal, Arc::clone(&board))?);
        let fleet = Arc::new(Fleet::open(Arc::clone(&host), state));
        let (events, link) = mpsc::channel(MAX_WAITING_EVENTS);
        tokio::join!(
            fleet.hear(link),
            link::documents(client.clone(), server.clone(), events),
            link::reports(client.clone(), server.clone(), &board, session),
            qemu.watch(&board),
            peer::serve(listener, from_peers, Arc::clone(&fleet)),
            calls::answer_all(client.clone(), server.clone(), &host),
            unneeded::collect_all(client.clone(), server.clone(), kept_for),
            pki::renew(client.clone(), server.clone(), host.dir.clone(), own, clock),
        );
        Ok(())
    }

    /// After a restart of the machine, and in a copy of it, there is nothing to tend: before anything of the directory counts,
    /// a server has to take this machine for the host.
    async fn be_admitted(&self) {
        let said = self.speaker.as_deref();
        let before = fs::read_to_string(self.dir.speaker()).ok();
        let Some(speaker) = said.filter(|speaker| before.as_deref() != Some(*speaker)) else {
            return;
        };
        link::until_admitted(&self.client, &self.config.server).await;
        if let Err(error) = storage::write_whole(&self.dir.speaker(), speaker.as_bytes()) {
            let error = link::chain(&error);
            tracing::warn!(error, "the next start of this agent waits for a server first");
        }
    }

    fn host(self, journal: Journal, board: Arc<Board>) -> Result<Host, AgentError> {
        Ok(Host {
            consoles: Consoles::default(),
            guests: vm::apply::Guests::default(),
            turns: Turns::new(self.status.cpus.try_into().unwrap_or(1)),
            network: Network::open(&self.config.data_dir, self.config.underlay_address)?,
            storage: Storage::new(self.client, self.config.server, self.identity.id),
            users: self.users,
            peers: Peers::new(self.tls.to_peers),
            identity: self.identity,
            dir: self.dir,
            journal,
            board,
            accelerator: self.status.accelerator,
            cpu_model: self.status.cpu_model,
            qemu: PathBuf::from(QEMU),
            underlay: self.config.underlay_address,
            migration_buffer: self.config.migration_buffer,
            clock: self.clock,
        })
    }
}

fn take_lock(dir: &HostDir) -> Result<File, AgentError> {
    let directory = |path: &Path| {
        let path = path.to_owned();
        move |source| AgentError::Directory { path, source }
    };
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir.vms());
    made.map_err(directory(&dir.vms()))?;
    // Also one that somebody else made: what QEMU may not reach is below it.
    let closed = fs::set_permissions(&dir.0, Permissions::from_mode(0o700));
    closed.map_err(directory(&dir.0))?;
    let lock = File::create(dir.lock()).map_err(directory(&dir.lock()))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(AgentError::Occupied(dir.0.clone())),
        Err(error) => Err(directory(&dir.lock())(error.into())),
    }
}

/// Joins, however long no server answers. A refusal is final.
async fn join(config: &Config, dir: &HostDir) -> Result<HostIdentity, PkiError> {
    loop {
        match pki::join(config, dir).await {
            Err(error) if error.is_retryable() => {
                tracing::warn!(
                    error = link::chain(&error),
                    "this host has not joined yet; trying again"
                );
                tokio::time::sleep(JOIN_PAUSE).await;
            }
            result => return result,
        }
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, AgentError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| AgentError::Listen { address, source })
}

fn open_journal(dir: &HostDir) -> Result<(Journal, State), JournalError> {
    let path = dir.journal();
    let has_vms = fs::read_dir(dir.vms()).is_ok_and(|mut entries| entries.next().is_some());
    if has_vms && !path.exists() {
        return Err(JournalError::Missing(path));
    }
    Journal::open(&path)
}

/// Without its journal the host does nothing but say so.
fn without_journal(mut status: HostStatus, error: &JournalError) -> HostStatus {
    tracing::error!(error = link::chain(error), "nothing is decided on this host");
    status.lacks.push(Lack {
        what: "journal".to_owned(),
        consequence: link::chain(error),
    });
    status
}
