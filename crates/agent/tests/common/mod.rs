//! A server that says what a test wants, and a host directory whose processes end with the test.
//!
//! **Owns:** certificates, documents, the last report. **Does not know:** what is tested. **Start here:** [`Bench::new`],
//! then [`Side::order`] and [`Side::wait`].

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::{Config, JoinToken};
use api::agent::{JoinRequest, JoinResponse};
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::routing::{get, post};
use axum::serve::Listener;
use axum::{Json, Router};
use model::document::{HostDocument, Machine, Order, VmDocument};
use model::report::{Report, RunStatus};
use model::{HostId, Incarnation, VmId};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use uuid::Uuid;

/// How long anything may take on a machine with other things to do: a boot takes four seconds on one that has none.
pub(crate) const PATIENCE: Duration = Duration::from_secs(150);

/// A certificate authority.
struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    fn sign(&self, csr: &str, name: &str, host: HostId) -> String {
        let mut csr = CertificateSigningRequestParams::from_pem(csr).unwrap();
        csr.params.distinguished_name = rcgen::DistinguishedName::new();
        csr.params.distinguished_name.push(DnType::CommonName, name);
        let names = [name.to_owned(), format!("{host}.host.sterna")];
        csr.params.subject_alt_names = names
            .into_iter()
            .map(|name| SanType::DnsName(name.try_into().unwrap()))
            .collect();
        csr.params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        csr.params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        csr.signed_by(&self.issuer).unwrap().pem()
    }
}

/// What the hosts of a test share.
pub(crate) struct Bench {
    pub(crate) directory: tempfile::TempDir,
    agents: Arc<Ca>,
    migrations: Arc<Ca>,
    pub(crate) image: PathBuf,
    pub(crate) sha256: String,
}

impl Bench {
    /// `None` if this machine has no QEMU or the test guest was not built.
    pub(crate) fn new() -> Option<Self> {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest.qcow2");
        let image = std::env::var_os("STERNA_TEST_GUEST").map_or(built, PathBuf::from);
        let has_qemu = std::process::Command::new("qemu-system-x86_64")
            .arg("--version")
            .output()
            .is_ok();
        if !has_qemu || !image.exists() {
            eprintln!("skipped: needs qemu-system-x86_64 and {}", image.display());
            return None;
        }
        let digest = Sha256::digest(std::fs::read(&image).unwrap());
        Some(Self {
            directory: tempfile::tempdir().unwrap(),
            agents: Arc::new(Ca::new()),
            migrations: Arc::new(Ca::new()),
            image,
            sha256: model::digest::hex(&digest),
        })
    }

    pub(crate) async fn side(&self, name: &str) -> Side {
        Side::start(self, name).await
    }
}

/// One host: its agent and the server that it knows.
pub(crate) struct Side {
    pub(crate) host: HostId,
    pub(crate) name: String,
    pub(crate) data_dir: PathBuf,
    config: Config,
    documents: watch::Sender<HostDocument>,
    reports: watch::Receiver<Option<Report>>,
    /// The session of an agent that was killed: what it said counts no more.
    former: Option<Uuid>,
    agent: Option<JoinHandle<Result<(), agent::AgentError>>>,
}

struct Server {
    host: HostId,
    name: String,
    agents: Arc<Ca>,
    migrations: Arc<Ca>,
    documents: watch::Receiver<HostDocument>,
    reports: watch::Sender<Option<Report>>,
    image: PathBuf,
    joins: Mutex<Vec<String>>,
}

impl Side {
    async fn start(bench: &Bench, name: &str) -> Self {
        let host = HostId(agent::chance::unique());
        let document = HostDocument {
            revision: 1,
            host,
            vms: BTreeMap::new(),
            unreadable: std::collections::BTreeSet::new(),
            networks: BTreeMap::new(),
        };
        let (documents, shown) = watch::channel(document);
        let (reported, reports) = watch::channel(None);
        let server = Server {
            host,
            name: name.to_owned(),
            agents: Arc::clone(&bench.agents),
            migrations: Arc::clone(&bench.migrations),
            documents: shown,
            reports: reported,
            image: bench.image.clone(),
            joins: Mutex::default(),
        };
        let address = serve(server, &bench.agents).await;
        let ca = bench.directory.path().join("ca.pem");
        std::fs::write(&ca, &bench.agents.pem).unwrap();
        let data_dir = bench.directory.path().join("hosts").join(name);
        let config = Config {
            data_dir: data_dir.clone(),
            server: format!("https://localhost:{}", address.port()),
            server_ca: ca,
            join_token: Some(JoinToken::Text("once".to_owned())),
            name: Some(name.to_owned()),
            peer_listen: (Ipv4Addr::LOCALHOST, 0).into(),
            peer_advertise: None,
            underlay_address: Ipv4Addr::LOCALHOST.into(),
            reserved_mib: 256,
            migration_buffer: Some(256 << 10),
            qemu_uids: 1_879_048_192..=1_879_113_727,
            unneeded_kept_for: Duration::from_secs(24 * 3600),
        };
        let mut side = Self {
            host,
            name: name.to_owned(),
            data_dir,
            config,
            documents,
            reports,
            former: None,
            agent: None,
        };
        side.start_agent();
        side
    }

    pub(crate) fn start_agent(&mut self) {
        self.agent = Some(tokio::spawn(agent::run(
            self.config.clone(),
            || (),
            std::future::pending(),
        )));
    }

    pub(crate) async fn kill_agent(&mut self) {
        let agent = self.agent.take().unwrap();
        agent.abort();
        assert!(
            agent.await.is_err_and(|error| error.is_cancelled()),
            "the agent ended by itself"
        );
        self.former = self.reports.borrow().as_ref().map(|report| report.session);
    }

    /// Says what to do with a VM from now on; nothing if `None`.
    pub(crate) fn order(&self, vm: VmId, document: Option<VmDocument>) {
        self.documents.send_modify(|all| {
            all.revision += 1;
            match document {
                Some(document) => drop(all.vms.insert(vm, document)),
                None => drop(all.vms.remove(&vm)),
            }
        });
    }

    /// Waits for a report in which the incarnation is as it should be.
    pub(crate) async fn wait(
        &mut self,
        vm: VmId,
        incarnation: u64,
        what: &str,
        is_so: impl Fn(&RunStatus) -> bool,
    ) -> RunStatus {
        let former = self.former;
        let find = |report: &Option<Report>| {
            let report = report.as_ref().filter(|report| Some(report.session) != former);
            let runs = report.map(|report| report.runs.as_slice()).unwrap_or_default();
            let of =
                |run: &&model::report::VmRun| run.vm == vm && run.run.incarnation == Incarnation(incarnation);
            runs.iter().find(of).map(|run| run.run.clone()).filter(&is_so)
        };
        let waited = tokio::time::timeout(PATIENCE, self.reports.wait_for(|report| find(report).is_some()))
            .await
            .map(|found| find(&found.unwrap()));
        match waited {
            Ok(run) => run.unwrap(),
            Err(_) => panic!(
                "{}: not {what}; the last report is {:#?}",
                self.name,
                self.reports.borrow()
            ),
        }
    }

    /// Whether the last report has something of a VM.
    pub(crate) fn has_said(&self, vm: VmId) -> bool {
        let report = self.reports.borrow();
        report
            .as_ref()
            .is_some_and(|report| report.runs.iter().any(|run| run.vm == vm))
    }

    pub(crate) fn peer(&self) -> Option<String> {
        let report = self.reports.borrow();
        let host = report.as_ref().and_then(|report| report.host.as_ref());
        host.and_then(|host| host.peer_address)
            .map(|address| address.to_string())
    }

    pub(crate) fn pids(&self) -> Vec<i32> {
        let runs = |path: PathBuf| {
            std::fs::read_dir(path)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path())
        };
        let records = runs(self.data_dir.join("vms"))
            .flat_map(runs)
            .map(|run| run.join("process.json"));
        let ids = records.filter_map(|path| std::fs::read(path).ok());
        let ids = ids.filter_map(|bytes| serde_json::from_slice::<qemu::spawn::ProcessId>(&bytes).ok());
        ids.filter(|id| qemu::spawn::ProcessId::of(id.pid).is_ok_and(|now| now == *id))
            .map(|id| id.pid)
            .collect()
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.abort();
        }
        for pid in self.pids() {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

pub(crate) fn document(incarnation: u64, order: Order, machine: &Machine) -> VmDocument {
    VmDocument {
        incarnation: Incarnation(incarnation),
        order,
        machine: machine.clone(),
        reboot: None,
        copies: Default::default(),
        cause: None,
    }
}

async fn serve(server: Server, ca: &Ca) -> SocketAddr {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &ca.issuer).unwrap();
    let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from(certificate.der().to_vec())],
            PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap(),
        )
        .unwrap();
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = tcp.local_addr().unwrap();
    let router = Router::new()
        .route("/agent/v1/join", post(join))
        .route("/agent/v1/document", get(stream))
        .route("/agent/v1/report", post(report))
        .route("/agent/v1/images/{sha256}", get(image))
        .layer(axum::extract::DefaultBodyLimit::disable())
        .with_state(Arc::new(server));
    let listener = TlsListener {
        tcp,
        acceptor: TlsAcceptor::from(Arc::new(tls)),
    };
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

struct TlsListener {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = self.tcp.accept().await.unwrap();
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

async fn join(State(server): State<Arc<Server>>, Json(request): Json<JoinRequest>) -> Json<JoinResponse> {
    let mut joins = server.joins.lock().unwrap();
    joins.push(request.agent_csr_pem.clone());
    Json(JoinResponse {
        renew_at: None,
        host_id: server.host,
        name: server.name.clone(),
        agent_certificate_pem: server
            .agents
            .sign(&request.agent_csr_pem, &server.name, server.host),
        agent_ca_pem: server.agents.pem.clone(),
        migration_certificate_pem: server.migrations.sign(
            &request.migration_csr_pem,
            &server.name,
            server.host,
        ),
        migration_ca_pem: server.migrations.pem.clone(),
    })
}

async fn stream(State(server): State<Arc<Server>>) -> Body {
    let mut documents = server.documents.clone();
    documents.mark_changed();
    Body::from_stream(futures_util::stream::unfold(
        documents,
        |mut documents| async move {
            let line = match tokio::time::timeout(Duration::from_secs(2), documents.changed()).await {
                Ok(Err(_)) => return None,
                Ok(Ok(())) => serde_json::to_string(&*documents.borrow_and_update()).unwrap(),
                Err(_) => String::new(),
            };
            Some((Ok::<_, io::Error>(Bytes::from(format!("{line}\n"))), documents))
        },
    ))
}

async fn report(State(server): State<Arc<Server>>, Json(report): Json<Report>) {
    server.reports.send_modify(|last| {
        // The host's status comes only when it changed.
        let host = report
            .host
            .clone()
            .or_else(|| last.take().and_then(|last| last.host));
        *last = Some(Report { host, ..report });
    });
}

async fn image(State(server): State<Arc<Server>>) -> Bytes {
    tokio::fs::read(&server.image).await.unwrap().into()
}
