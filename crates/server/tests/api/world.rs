//! A running server and its clients.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use api::agent::{JoinRequest, JoinResponse};
use controller::Env;
use model::Timestamp;
use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use store::{MemoryStore, Store};
use tempfile::TempDir;
use tokio::net::TcpListener;
use uuid::Uuid;

/// How long anything may take on a machine that has other things to do.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Time as it is, unless the monotonic clock is held: then it goes on when a test says so.
struct Wall {
    begun: std::time::Instant,
    held: Option<Arc<AtomicU64>>,
}

impl Env for Wall {
    #[expect(clippy::disallowed_methods, reason = "the tests are a composition root")]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn monotonic(&self) -> std::time::Duration {
        let held = self.held.as_ref();
        held.map_or_else(
            || self.begun.elapsed(),
            |ms| Duration::from_millis(ms.load(Relaxed)),
        )
    }

    fn sleep(&self, duration: std::time::Duration) -> store::BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }

    #[expect(clippy::disallowed_methods, reason = "the tests are a composition root")]
    fn next_id(&self) -> Uuid {
        Uuid::now_v7()
    }
}

pub(crate) struct World {
    pub(crate) url: String,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) http: reqwest::Client,
    token: String,
    pub(crate) ca: String,
    task: tokio::task::JoinHandle<()>,
    pub(crate) dir: Arc<TempDir>,
    settings: Settings,
}

/// What a server is started with, beside its directory and its store.
#[derive(Clone)]
struct Settings {
    rates: server::Rates,
    life: jiff::SignedDuration,
    held: Option<Arc<AtomicU64>>,
    authorities: server::Authorities,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            rates: server::Rates::default(),
            life: server::CERTIFICATE_LIFE,
            held: None,
            authorities: server::Authorities::default(),
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An answer: the status, the media type and the body.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: u16,
    pub(crate) media_type: String,
    pub(crate) body: Value,
}

impl Said {
    /// Holds an answer to be a refusal with this status and code, in the form that every error has.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16, code: &str) {
        assert_eq!(
            (self.status, self.body["code"].as_str()),
            (status, Some(code)),
            "{self:#?}"
        );
        assert_eq!(self.media_type, "application/problem+json");
        assert_eq!(self.body["status"], status);
        assert_eq!(self.body["type"], format!("urn:sterna:problem:{code}"));
        let has_text = |key: &str| self.body[key].as_str().is_some_and(|text| !text.is_empty());
        assert!(
            has_text("detail") && has_text("title") && has_text("remedy"),
            "{self:#?}"
        );
    }

    #[track_caller]
    pub(crate) fn ok(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:#?}");
        self.body
    }
}

pub(crate) fn client(ca: &str, identity: Option<(&str, &str)>) -> reqwest::Client {
    client_saying(ca, identity, HeaderMap::new())
}

/// One that sends these headers with every request.
pub(crate) fn client_saying(ca: &str, identity: Option<(&str, &str)>, headers: HeaderMap) -> reqwest::Client {
    let tls = api::tls::client(ca, identity).unwrap();
    reqwest::Client::builder()
        .default_headers(headers)
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .build()
        .unwrap()
}

impl World {
    /// A server on a store in memory, with a datastore, a network and an image that is ready.
    pub(crate) async fn new() -> Self {
        let world = Self::on(Arc::new(MemoryStore::new(store::system_clock()))).await;
        world.furnish().await;
        world
    }

    pub(crate) async fn on(store: Arc<dyn Store>) -> Self {
        Self::with(store, server::Rates::default()).await
    }

    /// A server that takes so many requests.
    pub(crate) async fn with(store: Arc<dyn Store>, rates: server::Rates) -> Self {
        let settings = Settings {
            rates,
            ..Settings::default()
        };
        Self::fresh(store, settings).await
    }

    /// A server whose monotonic clock stands still; see [`World::pass`].
    pub(crate) async fn in_held_time() -> Self {
        let settings = Settings {
            held: Some(Arc::default()),
            ..Settings::default()
        };
        Self::fresh(Arc::new(MemoryStore::new(store::system_clock())), settings).await
    }

    /// A server that takes images from whoever these CAs know.
    pub(crate) async fn trusting(authorities: server::Authorities) -> Self {
        let settings = Settings {
            authorities,
            ..Settings::default()
        };
        Self::fresh(Arc::new(MemoryStore::new(store::system_clock())), settings).await
    }

    /// So many seconds pass on the clock that is held.
    pub(crate) fn pass(&self, seconds: u64) {
        let held = self.settings.held.as_ref().expect("the clock is held");
        held.fetch_add(seconds * 1000, Relaxed);
    }

    /// The server, ended and started again with its files and its store.
    pub(crate) async fn restarted(&self) -> Self {
        self.task.abort();
        while !self.task.is_finished() {
            tokio::task::yield_now().await;
        }
        Self::start(self.dir.clone(), self.store.clone(), self.settings.clone()).await
    }

    /// A server whose certificates, and those of hosts, are good for so long.
    pub(crate) async fn short_lived(life: jiff::SignedDuration) -> Self {
        let store = Arc::new(MemoryStore::new(store::system_clock()));
        let settings = Settings {
            life,
            ..Settings::default()
        };
        Self::fresh(store, settings).await
    }

    async fn fresh(store: Arc<dyn Store>, settings: Settings) -> Self {
        Self::start(Arc::new(TempDir::new().unwrap()), store, settings).await
    }

    async fn start(dir: Arc<TempDir>, store: Arc<dyn Store>, settings: Settings) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let config = server::Config {
            data_dir: dir.path().to_owned(),
            listeners: vec![listener],
            names: vec!["localhost".to_owned()],
            addresses: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
            rates: settings.rates,
            certificate_life: settings.life,
            import_addresses: server::Addresses::allowing(vec!["127.0.0.1".parse().unwrap()]),
            import_authorities: settings.authorities.clone(),
            outlet: None,
        };
        let env = Wall {
            begun: std::time::Instant::now(),
            held: settings.held.clone(),
        };
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let kept = store.clone();
        let task = tokio::spawn(async move {
            let ended = server::run(config, kept, Arc::new(env), move |_| ready.send(()).unwrap()).await;
            panic!("the server ended: {:?}", ended.err());
        });
        is_ready.await.unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        let ca = read("ca.pem");
        let token = read("admin.token").trim().to_owned();
        Self {
            url,
            store,
            http: client(&ca, None),
            token,
            ca,
            task,
            dir,
            settings,
        }
    }

    pub(crate) async fn furnish(&self) {
        let store = json!({ "name": "default", "spec": { "path": "/tmp/sterna-test", "coherent": true } });
        self.post("/v1/datastores", &store).await.ok(201);
        let network = json!({ "name": "default", "spec": { "cidr": "10.9.0.0/24" } });
        self.post("/v1/networks", &network).await.ok(201);
        self.post("/v1/images", &json!({ "name": "disk", "spec": {} }))
            .await
            .ok(201);
        let sent = self
            .request(Method::PUT, "/v1/images/disk/content")
            .body(raw_disk());
        self.send(sent).await.ok(200);
        let template = json!({ "name": "small", "spec": { "image": "disk", "memory_mib": 64 } });
        self.post("/v1/templates", &template).await.ok(201);
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.url))
            .bearer_auth(&self.token)
    }

    pub(crate) async fn send(&self, request: RequestBuilder) -> Said {
        let answer = request.timeout(PATIENCE).send().await.unwrap();
        let status = answer.status().as_u16();
        let media_type = answer
            .headers()
            .get("content-type")
            .map(|value| value.to_str().unwrap().to_owned());
        let bytes = answer.bytes().await.unwrap();
        let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into());
        Said {
            status,
            media_type: media_type.unwrap_or_default(),
            body,
        }
    }

    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    pub(crate) fn typed(&self) -> api::client::Client {
        api::client::Client::new(&self.url, &self.token, &self.ca).unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Said {
        self.send(self.request(Method::GET, path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Said {
        self.send(self.request(Method::POST, path).json(body)).await
    }

    pub(crate) async fn patch(&self, path: &str, body: &Value) -> Said {
        self.send(self.request(Method::PATCH, path).json(body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Said {
        self.send(self.request(Method::DELETE, path)).await
    }

    /// A VM that waits for a host.
    pub(crate) async fn vm(&self, name: &str) -> Value {
        self.post(
            "/v1/vms",
            &json!({ "name": name, "spec": { "template": "small" } }),
        )
        .await
        .ok(201)
    }

    /// Asks until an answer is as wanted.
    pub(crate) async fn until(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let begun = std::time::Instant::now();
        while begun.elapsed() < PATIENCE {
            let said = self.get(path).await;
            if wanted(&said.body) {
                return said.body;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("never as wanted: {:#?}", self.get(path).await);
    }

    pub(crate) async fn join_token(&self, name: Option<&str>) -> String {
        let made = self
            .post("/v1/join-tokens", &json!({ "name": name }))
            .await
            .ok(201);
        made["token"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn join(&self, token: &str, keys: &Keys, name: &str) -> Said {
        self.join_from(None, token, keys, name).await
    }

    /// From a machine that says which it is.
    pub(crate) async fn join_from(
        &self,
        machine: Option<&str>,
        token: &str,
        keys: &Keys,
        name: &str,
    ) -> Said {
        let request = JoinRequest {
            token: token.to_owned(),
            name: Some(name.to_owned()),
            machine: machine.map(str::to_owned),
            agent_csr_pem: keys.request.clone(),
            migration_csr_pem: Keys::new().request,
        };
        self.send(
            self.http
                .post(format!("{}/agent/v1/join", self.url))
                .json(&request),
        )
        .await
    }
}

/// A host's key pair with a request for a certificate.
pub(crate) struct Keys {
    pub(crate) key: String,
    pub(crate) request: String,
}

impl Keys {
    pub(crate) fn new() -> Self {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let params = rcgen::CertificateParams::new(vec!["host".to_owned()]).unwrap();
        let request = params.serialize_request(&key).unwrap().pem().unwrap();
        Self {
            key: key.serialize_pem(),
            request,
        }
    }
}

pub(crate) fn joined(said: Said) -> JoinResponse {
    serde_json::from_value(said.ok(200)).unwrap()
}

/// The smallest disk that a machine boots from.
pub(crate) fn raw_disk() -> Vec<u8> {
    let mut disk = vec![0; 1024];
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

pub(crate) fn sqlite(dir: &Path) -> Arc<dyn Store> {
    Arc::new(store_sqlite::SqliteStore::open(store_sqlite::Options::new(dir.join("store"))).unwrap())
}
