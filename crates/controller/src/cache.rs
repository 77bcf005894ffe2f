//! The server's view of the store, kept up to date by one watch, and the recent changes for whoever follows them.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join;
use model::Kind;
use model::record::Unreadable;
use planner::View;
use planner::view::Change;
use store::{Event, EventKind, RangeRequest, RangeResponse, Store, StoreError, WatchItem, WatchRequest};
use tokio::sync::watch;
use uuid::Uuid;

use crate::Env;

/// How many changes are kept for followers who come back; older ones have to list again.
const KEPT_CHANGES: usize = 20_000;
/// How far back a starting server reads changes, so that followers survive its restart.
const REPLAYED_REVISIONS: u64 = 2_000;
/// How many views of the past are kept for those who read a list page by page.
const KEPT_VIEWS: usize = 2;
/// How many keys are read at once: what a page takes of memory stays with the process.
const PAGE: usize = 2_000;

/// One object that changed.
#[derive(Debug, Clone)]
pub struct Changed {
    /// When.
    pub revision: u64,
    /// Its kind.
    pub kind: Kind,
    /// Its id.
    pub id: Uuid,
    /// A view of nothing but the object as it was, if it is gone.
    pub gone: Option<Arc<View>>,
}

/// What happened after a revision.
#[derive(Debug)]
pub enum Since {
    /// Each object once, in the order of its last change.
    Changes(Vec<Changed>),
    /// That far back nothing is kept; the oldest revision that can be followed from.
    Compacted(u64),
}

struct Changes {
    /// Followers can start from this revision on.
    oldest: u64,
    ring: VecDeque<Changed>,
}

/// The view and its changes.
pub struct Cache {
    view: RwLock<View>,
    /// Views of the past that were asked for lately, the newest last.
    past: tokio::sync::Mutex<VecDeque<Arc<View>>>,
    changes: Mutex<Changes>,
    revision: watch::Sender<u64>,
    env: Arc<dyn Env>,
}

/// A cache that was read, and what it takes to keep it up to date.
pub struct Opened<F> {
    /// The cache, which does not move on by itself.
    pub cache: Arc<Cache>,
    /// The store's revision.
    pub revision: u64,
    /// Follows the store until it is closed, or nobody holds the cache.
    pub following: F,
}

impl Cache {
    /// Reads everything, and goes on following the store until it is closed.
    pub async fn start(store: Arc<dyn Store>, env: Arc<dyn Env>) -> Result<Arc<Self>, StoreError> {
        let opened = Self::open(store, env).await?;
        tokio::spawn(opened.following);
        opened.cache.reach(opened.revision, Duration::from_secs(60)).await;
        Ok(opened.cache)
    }

    /// Reads everything; the caller sees to it that the store is followed.
    pub async fn open(
        store: Arc<dyn Store>,
        env: Arc<dyn Env>,
    ) -> Result<Opened<impl Future<Output = ()> + Send + use<>>, StoreError> {
        let status = store.status().await?;
        let base = status
            .compacted
            .max(status.revision.saturating_sub(REPLAYED_REVISIONS));
        let view = load(store.as_ref(), base).await?;
        for (key, why) in &view.unreadable {
            warn_unreadable(key, why);
        }
        let cache = Arc::new(Self {
            view: RwLock::new(view),
            past: tokio::sync::Mutex::default(),
            changes: Mutex::new(Changes {
                oldest: base,
                ring: VecDeque::new(),
            }),
            revision: watch::Sender::new(base),
            env: env.clone(),
        });
        Ok(Opened {
            following: follow(store, Arc::downgrade(&cache), env, base),
            revision: status.revision,
            cache,
        })
    }

    /// The view. Hold it for the length of a decision, never over an await.
    pub fn view(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The view as it was at a revision, if the store still has that. One is read at a time, and few are kept.
    pub async fn at(&self, store: &dyn Store, revision: u64) -> Result<Arc<View>, StoreError> {
        let mut past = self.past.lock().await;
        let kept = past.iter().position(|view| view.revision == revision);
        let view = match kept.and_then(|at| past.remove(at)) {
            Some(view) => view,
            None => Arc::new(load(store, revision).await?),
        };
        while past.len() >= KEPT_VIEWS {
            past.pop_front();
        }
        past.push_back(view.clone());
        Ok(view)
    }

    /// The revision up to which the view and its changes are complete.
    pub fn revision(&self) -> u64 {
        *self.revision.borrow()
    }

    /// Tells when the view has moved on.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Waits until the view has a revision; gives up, without harm, after a while.
    pub async fn reach(&self, revision: u64, patience: Duration) -> bool {
        let mut now = self.revision.subscribe();
        tokio::select! {
            biased;
            reached = now.wait_for(|at| *at >= revision) => reached.is_ok(),
            () = self.env.sleep(patience) => false,
        }
    }

    /// What changed after a revision.
    pub fn since(&self, revision: u64) -> Since {
        let changes = self.changes();
        if revision < changes.oldest {
            return Since::Compacted(changes.oldest);
        }
        let mut seen = BTreeSet::new();
        let newest_first = changes
            .ring
            .iter()
            .rev()
            .take_while(|changed| changed.revision > revision);
        let mut found: Vec<_> = newest_first
            .filter(|changed| seen.insert((changed.kind, changed.id)))
            .cloned()
            .collect();
        found.reverse();
        Since::Changes(found)
    }

    /// The view moved on to a revision.
    fn advance(&self, revision: u64) {
        self.view.write().unwrap_or_else(PoisonError::into_inner).revision = revision;
        self.revision.send_replace(revision);
    }

    /// Starts afresh: the history in between is gone.
    fn reload(&self, view: View, revision: u64) {
        let mut present = self.view.write().unwrap_or_else(PoisonError::into_inner);
        *present = view;
        let mut changes = self.changes();
        changes.ring.clear();
        changes.oldest = revision;
    }

    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The view and its changes move on together: whoever holds the view sees the changes that led to it.
    fn apply(&self, revision: u64, events: &[Event]) {
        let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
        let (mut touched, mut also) = (BTreeSet::new(), BTreeSet::new());
        for event in events {
            let value = (event.kind == EventKind::Put).then_some(event.kv.value.as_ref());
            let change = Change {
                key: &event.kv.key,
                value,
                revision,
            };
            if let Some(object) = view.apply(change) {
                if let Some(why) = view.unreadable.get(&*event.kv.key) {
                    warn_unreadable(&event.kv.key, why);
                }
                touched.insert(object);
                if !planner::view::is_host_own(&event.kv.key) {
                    also.insert(object);
                }
            }
        }
        touched.extend(also.iter().flat_map(|(kind, id)| view.affected(*kind, *id)));
        view.revision = revision;
        let mut changes = self.changes();
        for (kind, id) in touched {
            let gone = view
                .meta(kind, id)
                .is_none()
                .then(|| Arc::new(former(&view, kind, id, events)));
            changes.ring.push_back(Changed {
                revision,
                kind,
                id,
                gone,
            });
        }
        while changes.ring.len() > KEPT_CHANGES {
            let dropped = changes.ring.pop_front().map_or(0, |changed| changed.revision);
            changes.oldest = changes.oldest.max(dropped);
        }
    }
}

/// Whoever looks after the server hears of it; `sterna store check` says it of a stopped one.
fn warn_unreadable(key: &str, why: &Unreadable) {
    tracing::error!(key, %why, "it cannot be read: nothing is decided about what it belongs to");
}

/// A view of one object as it was before the events that removed it, with what names are read from.
fn former(now: &View, kind: Kind, id: Uuid, events: &[Event]) -> View {
    let mut view = now.excerpt(std::iter::empty());
    let of_it =
        |event: &&Event| model::key::parse(&event.kv.key).is_some_and(|(k, i, _)| (k, i) == (kind, id));
    for kv in events
        .iter()
        .filter(of_it)
        .filter_map(|event| event.prev.as_ref())
    {
        view.apply(Change {
            key: &kv.key,
            value: Some(&kv.value),
            revision: kv.mod_revision,
        });
    }
    view
}

async fn load(store: &dyn Store, revision: u64) -> Result<View, StoreError> {
    let mut view = View::default();
    let kinds = Kind::ALL
        .into_iter()
        .map(|kind| RangeRequest::prefix(model::key::kind_prefix(kind)));
    let lone = [model::key::FIRST_OF_GROUP, model::key::RESTORED].map(RangeRequest::key);
    for request in kinds.chain(lone) {
        let request = request.at(revision).limit(PAGE);
        let mut page = store.range(request.clone()).await?;
        loop {
            let last = page.items.last().filter(|_| page.more);
            let Some(last) = last.map(|last| last.key.clone()) else {
                apply_page(&mut view, &page);
                break;
            };
            // The next page is read while this one is applied.
            let coming = store.range(request.clone().after(&*last));
            page = join(coming, async { apply_page(&mut view, &page) }).await.0?;
        }
    }
    view.revision = revision;
    Ok(view)
}

fn apply_page(view: &mut View, page: &RangeResponse) {
    for kv in &page.items {
        view.apply(Change {
            key: &kv.key,
            value: Some(&kv.value),
            revision: kv.mod_revision,
        });
    }
}

/// Applies what the store says, for as long as anyone holds the cache.
async fn follow(store: Arc<dyn Store>, cache: Weak<Cache>, env: Arc<dyn Env>, mut from: u64) {
    let mut pause = Duration::from_millis(20);
    while cache.strong_count() > 0 {
        let begun = from;
        match follow_once(&store, &cache, &mut from).await {
            Ok(()) => {}
            Err(StoreError::Closed { .. }) => return,
            Err(error) => tracing::warn!(%error, "the watch on the store ended; it is begun again"),
        }
        pause = if from > begun {
            Duration::from_millis(20)
        } else {
            (pause * 2).min(Duration::from_secs(5))
        };
        env.sleep(pause).await;
    }
}

/// One watch, until it ends.
async fn follow_once(store: &Arc<dyn Store>, cache: &Weak<Cache>, from: &mut u64) -> Result<(), StoreError> {
    let request = WatchRequest::prefix("/")
        .from(from.saturating_add(1))
        .with_progress();
    let mut stream = store.watch(request).await?;
    while let Some(item) = stream.next().await {
        let Some(cache) = cache.upgrade() else {
            return Ok(());
        };
        *from = match item? {
            WatchItem::Batch { revision, events } => {
                cache.apply(revision, &events);
                revision
            }
            WatchItem::Progress { revision } => revision,
            WatchItem::Compacted { compacted } => {
                cache.reload(load(store.as_ref(), compacted).await?, compacted);
                compacted
            }
        };
        cache.advance(*from);
    }
    Ok(())
}
