//! A server from its start to its end.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use controller::Env;
use controller::cache::Cache;
use controller::commit::{Writer, commit};
use controller::figures::Figures;
use jiff::SignedDuration;
use model::audit::Actor;
use model::key;
use model::token::{Role, TokenRecord};
use planner::Plan;
use store::{RangeRequest, Store};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::agents::secret;
use crate::auth::{ADMIN, sha256_hex};
use crate::calls::Calls;
use crate::hosts::Bells;
use crate::images::collect;
use crate::images::import::outlet::Outlet;
use crate::images::import::{self, Addresses, Authorities, Reach};
use crate::images::upload::{self, Uploads};
use crate::limits::{Limits, Rates};
use crate::metrics::{Metered, Metrics};
use crate::pki::{Pki, write_private};
use crate::places::Places;
use crate::shared::{Cloud, Shared};
use crate::{apply, backup, compaction, contact, metrics, routes, tls};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// How long certificates are good for if nobody says.
pub const CERTIFICATE_LIFE: SignedDuration = SignedDuration::from_hours(90 * 24);

/// What a server is started with.
pub struct Config {
    /// Where its CAs, its images and the first token are.
    pub data_dir: PathBuf,
    /// Where it is reached; bound by the caller.
    pub listeners: Vec<TcpListener>,
    /// The names in its certificate.
    pub names: Vec<String>,
    /// The addresses in its certificate.
    pub addresses: Vec<IpAddr>,
    /// How often may be asked.
    pub rates: Rates,
    /// How long certificates of servers and hosts are good for.
    pub certificate_life: SignedDuration,
    /// Which addresses images are taken from.
    pub import_addresses: Addresses,
    /// Which CAs images' sources may have certificates of, beside those that the machine trusts.
    pub import_authorities: Authorities,
    /// Who connects to images' sources, if this process cannot reach them.
    pub outlet: Option<Outlet>,
}

/// Runs until the future is dropped. `ready` is called when requests are answered, with what they are answered from.
pub async fn run(
    config: Config,
    store: Arc<dyn Store>,
    env: Arc<dyn Env>,
    ready: impl FnOnce(Arc<Cloud>),
) -> Result<std::convert::Infallible, Error> {
    let life = config.certificate_life;
    let pki = Pki::open(
        &config.data_dir.join("pki"),
        &config.names,
        &config.addresses,
        life,
    )?;
    let images = config.data_dir.join("images");
    tokio::fs::create_dir_all(&images).await?;
    upload::sweep(&images);
    backup::remove_unfinished(&config.data_dir).await;
    let own = Arc::new(tls::OwnCertificate::make(&pki, env.now())?);
    let tls = Arc::new(tls::config(&pki, own.clone())?);
    let ca = pki.agents.pem.clone();
    let (counted, figures) = (Metrics::default(), Arc::new(Figures::default()));
    let store: Arc<dyn Store> = Arc::new(Metered::new(store, counted.store.clone()));
    let cache = Cache::start(store.clone(), env.clone()).await?;
    let cloud = Arc::new(Cloud::new(store.clone(), cache.clone(), env.clone()));
    let app = Arc::new(Shared {
        cloud: cloud.clone(),
        server: env.next_id(),
        pki,
        images,
        keeping: tokio::sync::Mutex::default(),
        discarded: tokio::sync::Notify::default(),
        uploads: Uploads::default(),
        reach: Arc::new(Reach::within(
            config.import_addresses,
            config.outlet,
            config.import_authorities,
        )),
        data_dir: config.data_dir.clone(),
        backup: tokio::sync::Mutex::default(),
        joins: tokio::sync::Mutex::default(),
        bells: Bells::default(),
        calls: Calls::default(),
        applies: Arc::new(Semaphore::new(apply::AT_ONCE_MAX)),
        limits: Limits::new(config.rates),
        metrics: counted,
        figures: figures.clone(),
        places: Arc::new(Places::new(config.rates)),
    });
    tokio::fs::write(config.data_dir.join("ca.pem"), ca).await?;
    first_token(&app, &config.data_dir.join("admin.token")).await?;
    if cache.view().is_held() {
        tracing::warn!(
            "the store was restored from a backup: nothing is decided until `sterna store resume`"
        );
    }
    let mut tasks = in_background(&app, figures);
    tasks.spawn(tls::renew(app.clone(), own));
    for listener in config.listeners {
        tasks.spawn(tls::serve(listener, tls.clone(), routes::router(app.clone())));
    }
    ready(cloud);
    match tasks.join_next().await {
        Some(Err(error)) => Err(format!("a part of the server ended: {error}").into()),
        _ => Err("a part of the server ended by itself".into()),
    }
}

/// What goes on whether or not anybody asks.
fn in_background(app: &routes::App, figures: Arc<Figures>) -> JoinSet<()> {
    let Cloud {
        store, cache, env, ..
    } = &*app.cloud;
    let mut tasks = JoinSet::new();
    tasks.spawn(compaction::run(store.clone(), env.clone()));
    tasks.spawn(controller::run::run(
        store.clone(),
        cache.clone(),
        env.clone(),
        figures,
    ));
    tasks.spawn(contact::run(app.cloud.clone(), app.server));
    tasks.spawn(import::run(app.clone()));
    tasks.spawn(collect::run(app.clone()));
    tasks.spawn(metrics::follow(app.clone()));
    let ringing = app.clone();
    tasks.spawn(async move { ringing.bells.follow(&ringing.cache).await });
    tasks
}

/// Files that a crash cut off, by how their names begin.
pub(crate) async fn remove_beginning_with(dir: &std::path::Path, prefix: &str) {
    let Ok(mut entries) = tokio::fs::read_dir(dir).await else {
        return;
    };
    while let Ok(Some(entry)) = entries.next_entry().await {
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            let _ = tokio::fs::remove_file(entry.path()).await;
        }
    }
}

/// Makes the administrator's token once. It is on disk before it counts, so that a crash leaves no token nobody knows.
async fn first_token(app: &routes::App, path: &std::path::Path) -> Result<(), Error> {
    let token = match tokio::fs::read_to_string(path).await {
        Ok(token) => token.trim().to_owned(),
        Err(_) => {
            let token = secret("sterna-");
            write_private(path, &format!("{token}\n"))?;
            token
        }
    };
    let key = key::token(&sha256_hex(token.as_bytes()));
    if !app.store.range(RangeRequest::key(&key)).await?.items.is_empty() {
        return Ok(());
    }
    let record = TokenRecord {
        user: ADMIN.to_owned(),
        name: "first".to_owned(),
        role: Role::Admin,
        created_at: app.env.now(),
        expires_at: None,
        revoked_at: None,
    };
    let mut plan = Plan::new("make the first token");
    plan.create(key, &record);
    let actor = Actor {
        name: "server".to_owned(),
        from: None,
        request: None,
    };
    let writer: Writer<'_> = app.writer(&actor);
    commit(writer, plan).await?;
    Ok(())
}
