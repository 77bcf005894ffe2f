//! The link to the servers: the stream of documents down, reports up.
//!
//! **Owns:** both connections. What was reported and what still has to be is [`driver::link`]'s.
//!
//! **Does not know:** what a document asks for, what a run's state means.
//!
//! **Start here:** [`documents`] for the way down, [`Board`] and [`reports`] for the way up.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::Problem;
use api::agent::{KEEP_ALIVE_MS, STREAM_LOST_MS};
use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use model::document::HostDocument;
use model::host::HostStatus;
use model::migration::Progress;
use model::report::{CopyProgress, Report, RunStatus, Samples};
use model::{Incarnation, VmId};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use uuid::Uuid;

use crate::clock::Clock;
use crate::{chance, host};

/// How long a server may take to answer at all.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// How long a server may take to answer a report.
const REPORT_DEADLINE: Duration = Duration::from_secs(10);
/// A line longer than this is no document. The longest has the texts for the guests that are to be started, up to 1.4 MB each.
const MAX_LINE_BYTES: usize = 1 << 30;

/// What happens on the stream of documents.
#[derive(Debug)]
pub enum LinkEvent {
    /// A server answers.
    Connected,
    /// It says what the host shall do.
    Document(Box<HostDocument>),
    /// It is not heard any more.
    Lost,
}

/// Why the stream of documents ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("the connection failed")]
    Http(#[from] reqwest::Error),
    #[error("the server refused: {0}")]
    Refused(String),
    #[error("nothing was heard for {STREAM_LOST_MS} ms")]
    Silent,
    #[error("the server sent a line that is no document")]
    Unreadable(#[from] serde_json::Error),
    #[error("the server sent a line of more than {MAX_LINE_BYTES} bytes")]
    TooLong,
    #[error("the server ended the stream")]
    Ended,
}

/// Waits longer from failure to failure.
pub(crate) struct Backoff(driver::link::Backoff);

impl Backoff {
    pub(crate) fn new() -> Self {
        Self(driver::link::Backoff::default())
    }

    pub(crate) async fn wait(&mut self) {
        sleep(self.0.next(chance::jitter())).await;
    }
}

/// Streams documents for as long as somebody takes them.
pub async fn documents(client: reqwest::Client, server: String, events: mpsc::Sender<LinkEvent>) {
    let url = format!("{server}/agent/v1/document");
    let mut backoff = Backoff::new();
    while !events.is_closed() {
        let mut was_connected = false;
        let ended = stream(&client, &url, &events, &mut was_connected).await;
        if was_connected {
            backoff = Backoff::new();
            let _ = events.send(LinkEvent::Lost).await;
        }
        if let Err(error) = ended {
            tracing::warn!(%server, error = chain(&error), "the stream of documents ended; trying again");
        }
        backoff.wait().await;
    }
}

/// Waits until a server takes this machine for the host that it says it is.
pub(crate) async fn until_admitted(client: &reqwest::Client, server: &str) {
    let url = format!("{server}/agent/v1/document");
    let mut backoff = Backoff::new();
    while let Err(error) = open(client, &url).await {
        tracing::warn!(
            %server,
            error = chain(&error),
            "nothing is done in the host's name until a server takes this machine for it; trying again"
        );
        backoff.wait().await;
    }
}

async fn stream(
    client: &reqwest::Client,
    url: &str,
    events: &mpsc::Sender<LinkEvent>,
    was_connected: &mut bool,
) -> Result<(), StreamError> {
    let mut lines = open(client, url).await?;
    *was_connected = true;
    if events.send(LinkEvent::Connected).await.is_err() {
        return Ok(());
    }
    loop {
        let line = lines.next().await?;
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let document = Box::new(serde_json::from_slice(&line)?);
        if events.send(LinkEvent::Document(document)).await.is_err() {
            return Ok(());
        }
    }
}

/// A stream of lines that a server keeps open.
pub(crate) async fn open(
    client: &reqwest::Client,
    url: &str,
) -> Result<Lines<impl Stream<Item = reqwest::Result<Bytes>> + Unpin + use<>>, StreamError> {
    let answer = timeout(ANSWER_DEADLINE, client.get(url).send())
        .await
        .map_err(|_| StreamError::Silent)??;
    if answer.status().is_success() {
        Ok(Lines::new(answer.bytes_stream()))
    } else {
        Err(StreamError::Refused(refusal(answer).await))
    }
}

/// Cuts a body into lines; anything that arrives, also a keep-alive, is a sign of life.
pub(crate) struct Lines<S> {
    body: S,
    buffer: BytesMut,
    searched: usize,
}

impl<S: Stream<Item = reqwest::Result<Bytes>> + Unpin> Lines<S> {
    pub(crate) fn new(body: S) -> Self {
        Self {
            body,
            buffer: BytesMut::new(),
            searched: 0,
        }
    }

    /// The next line, which is empty for a keep-alive.
    pub(crate) async fn next(&mut self) -> Result<Bytes, StreamError> {
        loop {
            if let Some(end) = self.buffer[self.searched..]
                .iter()
                .position(|byte| *byte == b'\n')
            {
                let line = self.buffer.split_to(self.searched + end).freeze();
                self.buffer.advance(1);
                self.searched = 0;
                return Ok(line);
            }
            self.searched = self.buffer.len();
            if self.searched > MAX_LINE_BYTES {
                return Err(StreamError::TooLong);
            }
            let deadline = Instant::now() + Duration::from_millis(STREAM_LOST_MS);
            let more = timeout_at(deadline, self.body.next())
                .await
                .map_err(|_| StreamError::Silent)?;
            self.buffer.extend_from_slice(&more.ok_or(StreamError::Ended)??);
        }
    }
}

/// What is to be reported. Written by the tasks of incarnations, posted by [`reports`].
#[derive(Debug)]
pub struct Board {
    core: Mutex<driver::Board>,
    clock: Clock,
    changed: Notify,
}

impl Board {
    /// A board that reports the host and no runs yet.
    pub fn new(host: HostStatus, clock: Clock) -> Self {
        Self {
            core: Mutex::new(driver::Board::new(host)),
            clock,
            changed: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, driver::Board> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These are what the host knows of: reports are not complete until each was set or forgotten.
    pub fn expect_runs(&self, runs: impl IntoIterator<Item = (VmId, Incarnation)>) {
        self.lock().expect_runs(runs);
    }

    /// Replaces the state of an incarnation; posted within the given time if it changed.
    pub fn set_run(&self, vm: VmId, run: RunStatus, within: Duration) {
        let now_us = self.clock.now().monotonic_us;
        self.lock().set_run(now_us, vm, run, within);
        self.changed.notify_one();
    }

    /// Nothing is left of the incarnation.
    pub fn forget_run(&self, vm: VmId, incarnation: Incarnation) {
        let now_us = self.clock.now().monotonic_us;
        self.lock().forget_run(now_us, vm, incarnation);
        self.changed.notify_one();
    }

    /// The host's QEMU is of another release from now on.
    pub fn set_qemu_version(&self, version: &str) {
        let now_us = self.clock.now().monotonic_us;
        self.lock().set_qemu_version(now_us, version);
        self.changed.notify_one();
    }

    /// Waits until something has to be posted, or a heartbeat is due.
    async fn wait(&self) {
        let heartbeat = Instant::now() + Duration::from_millis(KEEP_ALIVE_MS);
        loop {
            let due = self.lock().due_us().map(|at_us| self.clock.instant(at_us));
            let due = due.unwrap_or(heartbeat).min(heartbeat);
            if timeout_at(due, self.changed.notified()).await.is_err() {
                return;
            }
        }
    }

    /// How far a transfer is; goes out with the next heartbeat.
    pub fn set_transfer(&self, vm: VmId, progress: Option<Progress>) {
        self.lock().set_transfer(vm, progress);
    }

    /// How far a disk is made whole; goes out with the next heartbeat.
    pub fn set_flattened(&self, vm: VmId, progress: Option<CopyProgress>) {
        self.lock().set_flattened(vm, progress);
    }

    /// What a VM's QEMU takes beside its guest's memory; goes out with the next heartbeat.
    pub fn set_qemu_mib(&self, vm: VmId, mib: Option<u64>) {
        self.lock().set_qemu_mib(vm, mib);
    }

    fn report(&self, session: Uuid) -> Report {
        let load = Samples {
            clock_ahead_s: self.clock.ahead_s(),
            ..host::load()
        };
        self.lock().report(session, load)
    }

    fn answered(&self, report: Report) {
        self.lock().answered(report);
    }
}

/// Posts what the board says: at once when a run changed, else as a heartbeat; one at a time, until it is answered.
pub async fn reports(client: reqwest::Client, server: String, board: &Board, session: Uuid) {
    let url = format!("{server}/agent/v1/report");
    let mut backoff = Backoff::new();
    loop {
        let report = board.report(session);
        match post(&client, &url, &report, &board.clock).await {
            Ok(()) => {
                board.answered(report);
                backoff = Backoff::new();
                board.wait().await;
            }
            Err(error) => {
                tracing::warn!(%server, error = chain(&error), "a report was not taken; posting again");
                backoff.wait().await;
            }
        }
    }
}

async fn post(
    client: &reqwest::Client,
    url: &str,
    report: &Report,
    clock: &Clock,
) -> Result<(), StreamError> {
    let answer = client
        .post(url)
        .timeout(REPORT_DEADLINE)
        .json(report)
        .send()
        .await?;
    clock.hear(answer.headers());
    match answer.status().is_success() {
        true => Ok(()),
        false => Err(StreamError::Refused(refusal(answer).await)),
    }
}

async fn refusal(answer: reqwest::Response) -> String {
    let status = answer.status();
    let text = timeout(ANSWER_DEADLINE, answer.text()).await;
    let text = text.ok().and_then(Result::ok).unwrap_or_default();
    match serde_json::from_str::<Problem>(&text) {
        Ok(problem) => format!("{status} {}: {}", problem.code, problem.detail),
        Err(_) => format!("{status} {text}"),
    }
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
