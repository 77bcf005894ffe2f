//! From the host's document to the tasks of incarnations.
//!
//! **Owns:** which incarnations have a task, which document counts, and the way of `go` to its task.
//!
//! **Does not know:** what an order leads to.
//!
//! **Start here:** [`Fleet::open`], then [`Fleet::hear`].

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::agent::GoRequest;
use driver::types::{Identity, Lease};
use model::document::{HostDocument, Order};
use model::report::RunState;
use model::{HostId, Incarnation, Reason, VmId};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::journal::{Entry, State};
use crate::link::LinkEvent;
use crate::peer::{GoAnswer, Targets};
use crate::storage;
use crate::vm::Host;
use crate::vm::task::{self, Go, Inbox, Orders, Shown};

/// Several `go` for one incarnation are repeats.
const MAX_WAITING_GO: usize = 4;

/// All incarnations that the host knows of.
pub struct Fleet {
    host: Arc<Host>,
    inner: Mutex<Inner>,
}

struct Inner {
    journal: State,
    document: Option<HostDocument>,
    unreadable: Option<Reason>,
    lease: Lease,
    tasks: BTreeMap<(VmId, Incarnation), Handle>,
    /// They end with the fleet; what they started lives on.
    running: JoinSet<(VmId, Incarnation)>,
}

struct Handle {
    orders: watch::Sender<Orders>,
    go: mpsc::Sender<Go>,
    status: watch::Receiver<Option<Shown>>,
}

impl Fleet {
    /// Starts a task for every incarnation that the journal remembers, with the last document, which is not fresh.
    pub fn open(host: Arc<Host>, journal: State) -> Self {
        let (document, unreadable) = match last_document(&host, &journal) {
            Ok(document) => (document, None),
            Err(reason) => (None, Some(reason)),
        };
        if let Some(reason) = &unreadable {
            tracing::error!(
                code = reason.code,
                message = reason.message,
                "no document counts until a server sends one"
            );
        }
        host.board.expect_runs(journal.marks.keys().copied());
        let inner = Inner {
            journal,
            document,
            unreadable,
            lease: Lease::default(),
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

    /// Obeys the link until it ends.
    pub async fn hear(&self, mut link: mpsc::Receiver<LinkEvent>) {
        while let Some(event) = link.recv().await {
            match event {
                LinkEvent::Connected => self.set_lease(Lease {
                    live: true,
                    fresh: false,
                }),
                LinkEvent::Lost => self.set_lease(Lease::default()),
                LinkEvent::Document(document) => self.accept(*document).await,
            }
        }
    }

    fn set_lease(&self, lease: Lease) {
        self.lock().lease = lease;
        self.spread();
    }

    /// A document counts once its revision is in the journal.
    async fn accept(&self, document: HostDocument) {
        let last = self.lock().journal.document_revision;
        if document.host != self.host.identity.id || document.revision < last {
            tracing::warn!(host = %document.host, revision = document.revision, last, "a document does not count");
            return;
        }
        if let Err(reason) = self.keep(&document, last).await {
            tracing::error!(
                code = reason.code,
                message = reason.message,
                "a document cannot be kept, and does not count"
            );
            return;
        }
        let networks = document.networks.clone();
        {
            let mut inner = self.lock();
            inner.journal.document_revision = document.revision;
            inner.lease = Lease {
                live: true,
                fresh: true,
            };
            inner.unreadable = None;
            inner.document = Some(document);
        }
        let network = self.host.network.clone();
        network.note(networks).await;
        self.spread();
        if let Err(error) = network.settle().await {
            tracing::warn!(
                error = crate::link::chain(&error),
                "networks do not reach all hosts that they should"
            );
        }
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
        let ordered = inner.document.iter().flat_map(|document| &document.vms);
        let ordered: Vec<_> = ordered
            .map(|(vm, document)| (*vm, document.incarnation))
            .collect();
        for key in remembered.into_iter().chain(ordered) {
            if !inner.tasks.contains_key(&key) {
                inner.start(&self.host, key);
            }
        }
        for ((vm, incarnation), handle) in &inner.tasks {
            let orders = inner.orders(*vm, *incarnation);
            handle.orders.send_if_modified(|old| {
                let is_news = *old != orders;
                *old = orders;
                is_news
            });
        }
    }

    fn orders_of(
        &self,
        request: &GoRequest,
    ) -> Option<(mpsc::Sender<Go>, watch::Receiver<Option<Shown>>)> {
        let inner = self.lock();
        let handle = inner.tasks.get(&(request.vm, request.to))?;
        Some((handle.go.clone(), handle.status.clone()))
    }
}

impl Inner {
    /// Removes the tasks that have ended: their incarnations are forgotten.
    fn reap(&mut self) {
        while let Some(ended) = self.running.try_join_next() {
            match ended {
                Ok((vm, incarnation)) => {
                    self.tasks.remove(&(vm, incarnation));
                    self.journal.forget(vm, incarnation);
                }
                Err(error) => tracing::error!(%error, "the task of an incarnation failed"),
            }
        }
    }

    fn start(&mut self, host: &Arc<Host>, (vm, incarnation): (VmId, Incarnation)) {
        let id = Identity {
            vm,
            incarnation,
            host: host.identity.id,
        };
        let marks = self.journal.marks_of(vm, incarnation);
        let (orders, orders_seen) = watch::channel(self.orders(vm, incarnation));
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

    fn orders(&self, vm: VmId, incarnation: Incarnation) -> Orders {
        let is_unreadable = |document: &&HostDocument| document.unreadable.contains(&vm);
        if self.document.as_ref().as_ref().is_some_and(is_unreadable) {
            return Orders {
                desired: None,
                unreadable: Some(Reason::new(
                    "record-unreadable",
                    "the VM's stored record cannot be read, so nothing is changed about it: see the server's log",
                )),
                lease: self.lease,
            };
        }
        let desired = self.document.as_ref().map(|document| {
            let about = document
                .vms
                .get(&vm)
                .filter(|about| about.incarnation == incarnation);
            (document.revision, about.cloned().map(Box::new))
        });
        Orders {
            desired,
            unreadable: self.unreadable.clone(),
            lease: self.lease,
        }
    }
}

impl Targets for Fleet {
    fn source_of(&self, request: &GoRequest) -> Option<HostId> {
        let inner = self.lock();
        let about = inner.document.as_ref()?.vms.get(&request.vm)?;
        match &about.order {
            Order::Target(target) if about.incarnation == request.to && target.from == request.from => {
                Some(target.host)
            }
            _ => None,
        }
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
        let runs = |shown: &Option<Shown>| {
            let run = shown.as_ref().map(|shown| &shown.status);
            run.is_some_and(|run| run.ran && matches!(run.state, RunState::Running | RunState::Paused))
        };
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
    // It is written before its revision is: it may be ahead, and counts only when a server repeats it.
    let is_known = document.revision == journal.document_revision && document.host == host.identity.id;
    if is_known {
        Ok(Some(document))
    } else {
        Err(unreadable(format!("it is of revision {}", document.revision)))
    }
}
