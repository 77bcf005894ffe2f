//! Owns: the delivery of changes to watches, each through a bounded buffer.
//! Does not know: where history is kept; it asks a [`History`].
//! Start here: [`Hub::publish`], the writer's side, and `Watch::next`, the reader's.
//!
//! ```text
//!            next revision is still to come               buffer full
//! Behind ───────────────────────────────────────▶ Live ───────────────▶ Draining ──buffer empty──▶ Behind
//! reads pages of history                          reads its buffer      reads its buffer
//! ```
//! Only a live watch gets new changes into its buffer. So a slow reader costs a bounded amount of memory, never blocks
//! the writer, and loses nothing: what did not fit is read from history.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use futures_util::stream;
use tokio::sync::Notify;

use super::lock;
use super::state::Commit;
use crate::{BoxFuture, Event, KeyRange, Revision, StoreError, WatchItem, WatchRequest, WatchStream};

/// A watch that asked for progress hears of it when this many revisions passed without a change in its range.
pub const PROGRESS_EVERY: u64 = 128;

const BUFFER_COMMITS: usize = 256;
const BUFFER_BYTES: usize = 8 << 20;

/// Where a watch that is behind finds what it missed.
pub trait History: Send + Sync + 'static {
    /// The changes in `range` from revision `from` to `to`, or to where the page is full; whole revisions only, at least
    /// one step forward. [`StoreError::Compacted`] if `from` is gone.
    fn page<'a>(
        &'a self,
        range: &'a KeyRange,
        from: Revision,
        to: Revision,
    ) -> BoxFuture<'a, Result<HistoryPage, StoreError>>;
}

/// A stretch of history.
#[derive(Debug, Clone)]
pub struct HistoryPage {
    /// The changes of each revision, in order; revisions without one are left out.
    pub commits: Vec<Commit>,
    /// The last revision that the page covers.
    pub through: Revision,
}

/// All watches of one store.
#[derive(Debug)]
pub struct Hub {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    published: Revision,
    next_id: u64,
    slots: BTreeMap<u64, Slot>,
    closed: bool,
}

/// One watch, as the writer sees it.
#[derive(Debug)]
struct Slot {
    range: KeyRange,
    progress: bool,
    live: bool,
    /// The first revision that may go into the buffer.
    from: Revision,
    /// The revision that the reader knows to have reached; none until it was told that it has caught up.
    told: Option<Revision>,
    buffer: VecDeque<Commit>,
    buffer_bytes: usize,
    wake: Arc<Notify>,
}

impl Slot {
    /// Takes a commit if it concerns the watch; says whether the reader has something to do.
    fn offer(&mut self, commit: &Commit) -> bool {
        if !self.live || commit.revision < self.from || !self.concerns(commit) {
            return false;
        }
        let bytes = commit.size_bytes();
        if self.buffer.len() >= BUFFER_COMMITS || self.buffer_bytes + bytes > BUFFER_BYTES {
            self.live = false;
            return true;
        }
        self.buffer_bytes += bytes;
        self.buffer.push_back(commit.clone());
        true
    }

    fn concerns(&self, commit: &Commit) -> bool {
        let mut events = commit.events.iter();
        events.any(|event| self.range.contains(&event.kv.key))
    }

    fn progress_due(&self, published: Revision) -> bool {
        let due = self
            .told
            .is_none_or(|told| published >= told.saturating_add(PROGRESS_EVERY));
        self.progress && self.live && due && self.buffer.is_empty()
    }
}

/// What a watch has to do next.
enum Task {
    Deliver(Commit),
    CatchUp(Revision),
    Tell(Revision),
    Wait,
    End,
}

impl Hub {
    /// A hub of a store that stands at `revision`.
    pub fn new(revision: Revision) -> Self {
        Self {
            inner: Mutex::new(Inner {
                published: revision,
                next_id: 0,
                slots: BTreeMap::new(),
                closed: false,
            }),
        }
    }

    /// Hands on what has become durable, in the order of revisions. Never waits for a reader.
    pub fn publish(&self, commits: &[Commit]) {
        let Some(last) = commits.last() else {
            return;
        };
        let mut inner = lock(&self.inner);
        inner.published = last.revision;
        for slot in inner.slots.values_mut() {
            let mut wake = false;
            for commit in commits {
                wake |= slot.offer(commit);
            }
            if wake || slot.progress_due(last.revision) {
                slot.wake.notify_one();
            }
        }
    }

    /// Ends every watch, after what is in its buffer.
    pub fn close(&self) {
        let mut inner = lock(&self.inner);
        inner.closed = true;
        for slot in inner.slots.values() {
            slot.wake.notify_one();
        }
    }

    /// The number of watches.
    pub fn len(&self) -> usize {
        lock(&self.inner).slots.len()
    }

    /// Whether nobody watches.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Begins a watch.
    pub fn watch(
        hub: &Arc<Self>,
        history: Arc<dyn History>,
        request: WatchRequest,
    ) -> Result<WatchStream, StoreError> {
        request.check()?;
        let wake = Arc::new(Notify::new());
        let mut inner = lock(&hub.inner);
        if inner.closed {
            return Err(StoreError::Closed { attempt: "watch" });
        }
        let from = request.from.unwrap_or(inner.published + 1);
        let id = inner.next_id;
        inner.next_id += 1;
        let slot = Slot {
            range: request.range.clone(),
            progress: request.progress,
            live: from > inner.published,
            from,
            told: None,
            buffer: VecDeque::new(),
            buffer_bytes: 0,
            wake: wake.clone(),
        };
        inner.slots.insert(id, slot);
        drop(inner);
        let watch = Watch {
            hub: hub.clone(),
            history,
            id,
            range: request.range,
            next: from,
            backlog: VecDeque::new(),
            wake,
            ended: false,
        };
        Ok(Box::pin(stream::unfold(watch, |mut watch| async move {
            let item = watch.next().await?;
            Some((item, watch))
        })))
    }

    fn task(&self, id: u64, next: Revision) -> Task {
        let mut inner = lock(&self.inner);
        let (published, closed) = (inner.published, inner.closed);
        let Some(slot) = inner.slots.get_mut(&id) else {
            return Task::End;
        };
        if let Some(commit) = slot.buffer.pop_front() {
            slot.buffer_bytes -= commit.size_bytes();
            slot.told = slot.told.map(|_| commit.revision);
            return Task::Deliver(commit);
        }
        if closed {
            return Task::End;
        }
        if !slot.live {
            if next <= published {
                return Task::CatchUp(published);
            }
            slot.live = true;
            slot.told = None;
        }
        if slot.progress_due(published) && published.saturating_add(1) >= slot.from {
            slot.told = Some(published);
            return Task::Tell(published);
        }
        Task::Wait
    }

    fn remove(&self, id: u64) {
        lock(&self.inner).slots.remove(&id);
    }
}

/// One watch, as its reader sees it.
struct Watch {
    hub: Arc<Hub>,
    history: Arc<dyn History>,
    id: u64,
    range: KeyRange,
    /// Everything before this revision was delivered or is in the backlog.
    next: Revision,
    backlog: VecDeque<Commit>,
    wake: Arc<Notify>,
    ended: bool,
}

impl Watch {
    async fn next(&mut self) -> Option<Result<WatchItem, StoreError>> {
        loop {
            if self.ended {
                return None;
            }
            if let Some(commit) = self.backlog.pop_front() {
                return Some(Ok(self.batch(&commit)));
            }
            match self.hub.task(self.id, self.next) {
                Task::Deliver(commit) => {
                    self.next = commit.revision + 1;
                    return Some(Ok(self.batch(&commit)));
                }
                Task::CatchUp(published) => {
                    if let Err(error) = self.catch_up(published).await {
                        return Some(self.end(error));
                    }
                }
                Task::Tell(revision) => return Some(Ok(WatchItem::Progress { revision })),
                Task::Wait => self.wake.notified().await,
                Task::End => return Some(self.end(StoreError::Closed { attempt: "watch" })),
            }
        }
    }

    async fn catch_up(&mut self, published: Revision) -> Result<(), StoreError> {
        let page = self.history.page(&self.range, self.next, published).await?;
        self.next = page.through.max(self.next) + 1;
        self.backlog.extend(page.commits);
        Ok(())
    }

    fn batch(&self, commit: &Commit) -> WatchItem {
        let wanted = |event: &&Event| self.range.contains(&event.kv.key);
        WatchItem::Batch {
            revision: commit.revision,
            events: commit.events.iter().filter(wanted).cloned().collect(),
        }
    }

    fn end(&mut self, error: StoreError) -> Result<WatchItem, StoreError> {
        self.ended = true;
        match error {
            StoreError::Compacted { compacted, .. } => Ok(WatchItem::Compacted { compacted }),
            other => Err(other),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.hub.remove(self.id);
    }
}
