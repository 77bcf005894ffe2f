//! From the host's document to the tasks of incarnations.
//!
//! **Owns:** which incarnations have a task, the durable copy of the newest document, and the way of `go` to its task.
//!
//! **Does not know:** which document counts and what it says: [`HostCore`] does; nor what an order leads to.
//!
//! **Start here:** [`Fleet::open`], then [`Fleet::hear`].

use std::collections::BTreeMap;
use std::fs;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use api::agent::GoRequest;
use driver::HostCore;
use driver::host::{has_arrived, is_kept};
use driver::types::Identity;
use model::document::HostDocument;
use model::{HostId, Incarnation, Reason, VmId};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;

use crate::journal::{Entry, State};
use crate::link::LinkEvent;
use crate::peer::{GoAnswer, Targets};
use crate::storage;
use crate::vm::Host;
use crate::vm::task::{self, Go, Inbox, Shown};

/// Several `go` for one incarnation are repeats.
const MAX_WAITING_GO: usize = 4;
/// How long a document that could not be kept waits until it is tried again.
const KEEP_AGAIN: Duration = Duration::from_secs(2);

/// All incarnations that the host knows of.
pub struct Fleet {
    host: Arc<Host>,
    inner: Mutex<Inner>,
}

struct Inner {
    journal: State,
    core: HostCore,
    tasks: BTreeMap<(VmId, Incarnation), Handle>,
    /// They end with the fleet; what they started lives on.
    running: JoinSet<(VmId, Incarnation)>,
}

struct Handle {
    orders: watch::Sender<driver::host::Orders>,
    go: mpsc::Sender<Go>,
    status: watch::Receiver<Option<Shown>>,
}

impl Fleet {
    /// Starts a task for every incarnation that the journal remembers, with the last document, which is not fresh.
    pub fn open(host: Arc<Host>, journal: State) -> Self {
        let kept = last_document(&host, &journal);
        let core = HostCore::new(host.identity.id, journal.document_revision, kept);
        if let Some(reason) = core.unreadable() {
            tracing::error!(
                code = reason.code,
                message = reason.message,
                "no document counts until a server sends one"
            );
        }
        host.board.expect_runs(journal.marks.keys().copied());
        let inner = Inner {
            journal,
            core,
            tasks: BTreeMap::new(),
            running: JoinSet::new(),
        };
        let fleet = Self {
            host,
            inner: Mutex::new(inner),
        };
        fleet.spread();
        fleet
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Obeys the link until it ends. A server says a document once, so one that could not be kept is tried again for as long
    /// as its connection lasts and no other one comes.
    pub async fn hear(&self, mut link: mpsc::Receiver<LinkEvent>) {
        let mut unkept: Option<HostDocument> = None;
        loop {
            let next = async {
                match unkept {
                    Some(_) => timeout(KEEP_AGAIN, link.recv()).await,
                    None => Ok(link.recv().await),
                }
            };
            let event = tokio::select! {
                event = next => event,
                () = self.ended() => {
                    // It may have been named again while it was being forgotten.
                    self.spread();
                    continue;
                }
            };
            unkept = match event {
                Ok(None) => return,
                Ok(Some(LinkEvent::Connected)) => self.tell(HostCore::connected),
                Ok(Some(LinkEvent::Lost)) => self.tell(HostCore::lost),
                Ok(Some(LinkEvent::Document(document))) => self.accept(*document).await,
                Err(_) => match unkept {
                    Some(document) => self.accept(document).await,
                    None => None,
                },
            };
        }
    }

    /// Waits for the end of a task, whose incarnation is forgotten then.
    async fn ended(&self) {
        poll_fn(|context| {
            let mut inner = self.lock();
            match inner.running.poll_join_next(context) {
                Poll::Ready(Some(ended)) => {
                    inner.note_end(ended);
                    Poll::Ready(())
                }
                // With none there, one is started by what is heard.
                Poll::Ready(None) | Poll::Pending => Poll::Pending,
            }
        })
        .await;
    }

    /// What the link itself says; there is no document then.
    fn tell(&self, what: impl FnOnce(&mut HostCore)) -> Option<HostDocument> {
        what(&mut self.lock().core);
        self.spread();
        None
    }

    /// A document counts once its revision is in the journal. Answers it if it cannot be kept.
    async fn accept(&self, document: HostDocument) -> Option<HostDocument> {
        let (last, is_admitted) = {
            let core = &self.lock().core;
            (core.revision(), core.admits(&document))
        };
        if !is_admitted {
            tracing::warn!(host = %document.host, revision = document.revision, last, "a document does not count");
            return None;
        }
        if let Err(reason) = self.keep(&document, last).await {
            tracing::error!(
                code = reason.code,
                message = reason.message,
                "a document cannot be kept, and does not count yet; trying again"
            );
            return Some(document);
        }
        let networks = document.networks.clone();
        self.lock().core.obey(document);
        let network = self.host.network.clone();
        network.note(networks).await;
        self.spread();
        if let Err(error) = network.settle().await {
            tracing::warn!(
                error = crate::link::chain(&error),
                "networks do not reach all hosts that they should"
            );
        }
        None
    }

    async fn keep(&self, document: &HostDocument, last: u64) -> Result<(), Reason> {
        let kept = || serde_json::to_vec(document).map_err(|error| error.to_string());
        let kept = kept().and_then(|json| {
            storage::write_whole(&self.host.dir.document(), &json).map_err(|error| crate::link::chain(&error))
        });
        kept.map_err(|message| Reason::new("document-not-kept", message))?;
        if document.revision == last {
            return Ok(());
        }
        let entry = Entry::Document {
            revision: document.revision,
        };
        let written = self.host.journal.append(entry).await;
        written.map_err(|error| Reason::new("journal-failed", crate::link::chain(&error)))
    }

    /// Gives every incarnation its orders, and a task if it has none.
    fn spread(&self) {
        let mut inner = self.lock();
        inner.reap();
        let remembered: Vec<_> = inner.journal.marks.keys().copied().collect();
        let named = inner.core.named();
        for key in remembered.into_iter().chain(named) {
            if !inner.tasks.contains_key(&key) {
                inner.start(&self.host, key);
            }
        }
        for ((vm, incarnation), handle) in &inner.tasks {
            let orders = inner.core.orders(*vm, *incarnation);
            handle.orders.send_if_modified(|old| {
                let is_news = *old != orders;
                *old = orders;
                is_news
            });
        }
    }

    fn orders_of(&self, request: &GoRequest) -> Option<(mpsc::Sender<Go>, watch::Receiver<Option<Shown>>)> {
        let inner = self.lock();
        let handle = inner.tasks.get(&(request.vm, request.to))?;
        Some((handle.go.clone(), handle.status.clone()))
    }
}

impl Inner {
    /// Removes the tasks that have ended: their incarnations are forgotten.
    fn reap(&mut self) {
        while let Some(ended) = self.running.try_join_next() {
            self.note_end(ended);
        }
    }

    fn note_end(&mut self, ended: Result<(VmId, Incarnation), JoinError>) {
        match ended {
            Ok((vm, incarnation)) => {
                self.tasks.remove(&(vm, incarnation));
                self.journal.forget(vm, incarnation);
            }
            Err(error) => tracing::error!(%error, "the task of an incarnation failed"),
        }
    }

    fn start(&mut self, host: &Arc<Host>, (vm, incarnation): (VmId, Incarnation)) {
        let id = Identity {
            vm,
            incarnation,
            host: host.identity.id,
        };
        let marks = self.journal.marks_of(vm, incarnation);
        let (orders, orders_seen) = watch::channel(self.core.orders(vm, incarnation));
        let (go, go_seen) = mpsc::channel(MAX_WAITING_GO);
        let (status_shown, status) = watch::channel(None);
        let inbox = Inbox {
            orders: orders_seen,
            go: go_seen,
            status: status_shown,
        };
        let host = Arc::clone(host);
        self.running.spawn(async move {
            task::run(id, marks, host, inbox).await;
            (vm, incarnation)
        });
        self.tasks
            .insert((vm, incarnation), Handle { orders, go, status });
    }
}

impl Targets for Fleet {
    fn source_of(&self, request: &GoRequest) -> Option<HostId> {
        self.lock().core.source_of(request.vm, request.from, request.to)
    }

    async fn go(&self, request: GoRequest) -> GoAnswer {
        let Some((go, mut status)) = self.orders_of(&request) else {
            return GoAnswer::Refused;
        };
        if go
            .send(Go {
                from: request.from,
                to: request.to,
            })
            .await
            .is_err()
        {
            return GoAnswer::Refused;
        }
        let runs = |shown: &Option<Shown>| shown.as_ref().is_some_and(|shown| has_arrived(&shown.status));
        let Ok(shown) = status.wait_for(runs).await else {
            return GoAnswer::Refused;
        };
        GoAnswer::Runs {
            since: shown.as_ref().and_then(|shown| shown.continued_at),
        }
    }
}

/// The document that the journal speaks of, if it can be read.
fn last_document(host: &Host, journal: &State) -> Result<Option<HostDocument>, Reason> {
    let path = host.dir.document();
    let unreadable = |why: String| {
        let message = format!("the last document {} cannot be used: {why}", path.display());
        Reason::new("document-unreadable", message)
    };
    if journal.document_revision == 0 {
        return Ok(None);
    }
    let bytes = fs::read(&path).map_err(|error| unreadable(error.to_string()))?;
    let document: HostDocument =
        serde_json::from_slice(&bytes).map_err(|error| unreadable(error.to_string()))?;
    if is_kept(&document, host.identity.id, journal.document_revision) {
        Ok(Some(document))
    } else {
        Err(unreadable(format!("it is of revision {}", document.revision)))
    }
}
