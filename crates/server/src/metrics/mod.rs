//! What the server shows to Prometheus at `/metrics`.
//!
//! **Owns:** every metric: its name, its labels, what it means. `docs/metrics.md` lists them, and a test holds it to what is
//! served.
//!
//! **Does not know:** what is good or bad about a figure.
//!
//! What happens is counted when it happens ([`Metrics`]); what is so at the moment is read when it is asked for ([`now`]).
//! Labels take their values from the program or from what operators name (hosts), never from what a request says, so that
//! nobody can make the server remember ever more.
//!
//! **Start here:** [`Metrics`], then [`serve`].

mod moves;
mod now;
mod process;
mod store;

use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use api::Problem;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

use crate::answer::{Refused, store_problem};
use crate::auth::User;
use crate::routes::App;

pub use moves::follow;
pub use store::Metered;

/// What Prometheus is told that it gets.
const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// From half a millisecond to a minute: requests and transactions.
const LATENCIES_S: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0,
];
/// How long guests stand still.
const DOWNTIMES_S: [f64; 11] = [0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 5.0];
/// How long migrations take.
const MOVES_S: [f64; 11] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0];

fn latencies() -> Histogram {
    Histogram::new(LATENCIES_S)
}

/// A label with its value.
type Label = [(&'static str, String); 1];

/// What a finished request is counted under.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    method: &'static str,
    route: String,
    status: u16,
}

/// What a request's time is measured under.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Timed {
    method: &'static str,
    route: String,
}

/// All that is counted as it happens.
pub struct Metrics {
    registry: Mutex<Registry>,
    now: now::Now,
    requests: Family<Answered, Counter>,
    request_times: Family<Timed, Histogram>,
    refusals: Family<Label, Counter>,
    agents: Gauge,
    pub(crate) store: store::StoreMetrics,
    moves: moves::Moves,
}

/// Where metrics are made: each is registered under its name as it is made.
struct Maker(Registry);

impl Maker {
    fn make<M: Metric + Clone + EncodeMetric>(&mut self, metric: M, name: &str, help: &str) -> M {
        self.0.register(name, help, metric.clone());
        metric
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut maker = Maker(Registry::default());
        let all = &mut maker;
        Self {
            requests: all.make(
                Family::default(),
                "sterna_http_requests",
                "Requests that were answered",
            ),
            request_times: all.make(
                Family::new_with_constructor(latencies),
                "sterna_http_request_duration_seconds",
                "From a request's header to the beginning of its answer",
            ),
            refusals: all.make(
                Family::default(),
                "sterna_http_refusals",
                "Requests that were refused, by the code of the problem",
            ),
            agents: all.make(
                Gauge::default(),
                "sterna_agents_connected",
                "Agents that take their documents from this server",
            ),
            store: store::StoreMetrics::new(all),
            moves: moves::Moves::new(all),
            now: now::Now::new(all),
            registry: Mutex::new(maker.0),
        }
    }
}

impl Metrics {
    /// A request was answered. The route is the pattern, never the path.
    pub(crate) fn answered(&self, method: &'static str, route: &str, status: u16, took: Duration) {
        let route = route.to_owned();
        let timed = Timed {
            method,
            route: route.clone(),
        };
        self.request_times
            .get_or_create(&timed)
            .observe(took.as_secs_f64());
        let answered = Answered {
            method,
            route,
            status,
        };
        self.requests.get_or_create(&answered).inc();
    }

    /// A request was refused. Codes are a closed list.
    pub(crate) fn refused(&self, code: &str) {
        self.refusals.get_or_create(&[("code", code.to_owned())]).inc();
    }

    /// An agent is connected, for as long as this is kept.
    pub(crate) fn agent(&self) -> Present {
        Present::new(self.agents.clone())
    }
}

/// Counts as one while it is kept.
#[derive(Debug)]
pub struct Present(Gauge);

impl Present {
    fn new(gauge: Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A counter that follows one which is kept elsewhere.
fn set(counter: &Counter, to: u64) {
    counter.inner().store(to, std::sync::atomic::Ordering::Relaxed);
}

/// As [`set`], for seconds.
fn set_seconds(counter: &Counter<f64, AtomicU64>, to: f64) {
    counter
        .inner()
        .store(to.to_bits(), std::sync::atomic::Ordering::Relaxed);
}

/// All metrics as text, for whoever shows a token.
pub async fn serve(State(app): State<App>, _: User) -> Result<Response, Refused> {
    let status = app.store.status().await.map_err(|error| store_problem(&error))?;
    let mut text = String::new();
    {
        // Two who ask at once must not see each other's half of what is so now.
        let registry = app
            .metrics
            .registry
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        app.metrics.now.read(&app, &status);
        encode(&mut text, &registry)
            .map_err(|error| Problem::new(500, "not-shown", format!("the metrics: {error}")))?;
    }
    Ok(([(header::CONTENT_TYPE, MEDIA_TYPE)], text).into_response())
}
