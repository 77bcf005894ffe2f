//! What hosts are told and what they tell, whatever the connection is.
//!
//! **Owns:** which host one that joins is, whose document is looked at, when one is news, and how a report becomes
//! transactions.
//!
//! **Does not know:** HTTP and certificates: see [`crate::agents`].
//!
//! **Start here:** [`Joining`], [`Documents`], [`take_report`].

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::Problem;
use controller::cache::{Cache, Since};
use controller::commit::{CommitError, commit};
use model::audit::Actor;
use model::document::HostDocument;
use model::host::HostSpec;
use model::report::Report;
use model::{HostId, Kind, Meta, Object, Timestamp, key};
use planner::concern::{Concerned, Concerns};
use planner::reports::Turn;
use planner::view::At;
use planner::{Plan, View};
use tokio::sync::watch;
use uuid::Uuid;

use crate::answer::{commit_problem, store_problem};
use crate::shared::{Cloud, LastHeard};

/// How often a report is tried again when others overtake it.
const ATTEMPTS: u32 = 20;

/// What a host that joins says of itself.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    /// The name that it gets.
    pub name: &'a str,
    /// What tells its machine from others, if it says.
    pub machine: Option<&'a str>,
    /// The host that has used its token before.
    pub used_by: Option<HostId>,
}

/// A host that joins: a new one, or one that is there.
#[derive(Debug)]
pub struct Joining {
    /// Which.
    pub host: HostId,
    name: String,
    machine: Option<String>,
    there: Option<At<Object<HostSpec>>>,
}

impl Joining {
    /// The host that joins under a name. One that is there under that name with its token's mark (`used_by`) is the same one;
    /// one that was declared dead may come back under its name. No two are one machine, unless one of them is dead.
    pub fn under(view: &View, wish: Wish<'_>, new_id: impl FnOnce() -> Uuid) -> Result<Self, Problem> {
        let Wish {
            name,
            machine,
            used_by,
        } = wish;
        let id = view.find(Kind::Host, None, name).map(HostId);
        let there = id.and_then(|id| view.hosts.get(&id)?.object.clone());
        let may_return = |at: &At<Object<HostSpec>>| {
            used_by == Some(HostId(at.value.meta.id)) || at.value.spec.confirmed_dead_at.is_some()
        };
        if let Some(at) = there.as_ref().filter(|at| !may_return(at)) {
            if machine.is_some() && at.value.spec.machine.as_deref() == machine {
                return Err(joined_before(name));
            }
            let detail = format!("there is a host {name} already: take another name, or delete that host");
            return Err(Problem::conflict("name-taken", detail));
        }
        if there.is_none() && used_by.is_some() {
            let detail = "the join token was used by another host: make a new one with `sterna host token`";
            return Err(Problem::new(401, "bad-join-token", detail));
        }
        if let Some(other) = machine.and_then(|machine| host_of_machine(view, machine, id)) {
            return Err(is_another(name, other));
        }
        Ok(Self {
            host: HostId(there.as_ref().map_or_else(new_id, |at| at.value.meta.id)),
            name: name.to_owned(),
            machine: machine.map(str::to_owned),
            there,
        })
    }

    /// Writes it down, with the digest of the certificate that it shows from now on.
    pub fn plan(self, now: Timestamp, certificate_sha256: String) -> Plan {
        let mut plan = Plan::new(format!("join host {}", self.name));
        let id = self.host.0;
        let revision = self.there.as_ref().map_or(0, |at| at.revision);
        if self.there.is_none() {
            plan.create(key::name_index(Kind::Host, None, &self.name), &id);
        }
        let before = self.there.map(|at| at.value);
        let meta = Meta {
            updated_at: now,
            ..before
                .as_ref()
                .map_or_else(|| first_meta(id, self.name, now), |object| object.meta.clone())
        };
        let spec = HostSpec {
            confirmed_dead_at: None,
            certificate_sha256: Some(certificate_sha256),
            former_certificate_sha256: None,
            machine: self.machine,
            ..before.map(|object| object.spec).unwrap_or_default()
        };
        plan.replace(key::object(Kind::Host, id), revision, &Object { meta, spec });
        plan
    }
}

/// The name of another host that the machine is and that lives, as far as anybody has said.
fn host_of_machine<'a>(view: &'a View, machine: &str, but: Option<HostId>) -> Option<&'a str> {
    let others = view.hosts.iter().filter(|(id, _)| Some(**id) != but);
    let mut objects = others.filter_map(|(_, host)| Some(&host.object.as_ref()?.value));
    let is_it = |object: &&Object<HostSpec>| {
        object.spec.machine.as_deref() == Some(machine) && object.spec.confirmed_dead_at.is_none()
    };
    objects.find(is_it).map(|object| object.meta.name.as_str())
}

/// A machine that has joined comes without its keys: nobody knows what became of the VMs that it had.
fn joined_before(name: &str) -> Problem {
    let detail = format!(
        "this machine is host {name} already, and shows other keys than those that it joined with: start its agent with the \
         directory that has them. If they are lost, restart the machine, so that none of its VMs runs on, and let go of \
         the host that it was: `sterna host confirm-dead {name}`, or `sterna host remove {name}` if it holds no VM. Then \
         start the agent again"
    );
    Problem::conflict("machine-taken", detail)
}

/// A copy of another host's disk, or another host that was installed anew.
fn is_another(name: &str, other: &str) -> Problem {
    let detail = format!(
        "this machine would be host {name}, and has the machine id of host {other}. If its disk is a copy of {other}'s, \
         give it an id of its own (`rm /etc/machine-id && systemd-machine-id-setup`); if it is {other}, installed anew, \
         `sterna host remove {other}` first. Then start the agent again"
    );
    Problem::conflict("machine-taken", detail)
}

/// The names and times of a host that joins for the first time.
pub fn first_meta(id: Uuid, name: String, now: Timestamp) -> Meta {
    Meta {
        id,
        name,
        project: None,
        owner: "operator".to_owned(),
        labels: BTreeMap::new(),
        created_at: now,
        updated_at: now,
        deleted_at: None,
    }
}

/// What one connection of an agent was told last.
#[derive(Debug, Clone)]
pub struct Documents {
    host: HostId,
    last: Option<HostDocument>,
}

/// What a connection is told next.
#[derive(Debug)]
pub enum Said {
    /// This, since it says something else than what was told last.
    Document(Box<HostDocument>),
    /// Nothing for now.
    Nothing,
    /// Nothing any more: the host is no longer one of the cloud's.
    Ended,
}

impl Documents {
    /// A connection that was told nothing yet. It begins when the view has all that was decided before: what it is told is
    /// *fresh* to the agent, which starts VMs by it, and a host whose VMs were given to others may come back to a server
    /// that has not heard of that.
    pub async fn begin(cloud: &Cloud, host: HostId) -> Result<Self, Problem> {
        cloud.reach_all().await?;
        Ok(Self { host, last: None })
    }

    /// What there is to tell now.
    pub fn next(&mut self, view: &View) -> Said {
        if view.hosts.get(&self.host).is_none_or(|host| host.is_dead()) {
            return Said::Ended;
        }
        // A restored store may not know what the host runs: told what the store knows, it would end that.
        if view.is_held() && !view.restored.as_ref().is_some_and(|at| at.value.ends_unknown) {
            return Said::Nothing;
        }
        let document = planner::document::build(view, self.host);
        if self
            .last
            .as_ref()
            .is_some_and(|last| last.asks_the_same(&document))
        {
            return Said::Nothing;
        }
        self.last = Some(document.clone());
        Said::Document(Box::new(document))
    }
}

/// Which hosts' documents to look at, each time that the view has moved on.
#[derive(Debug, Default)]
pub struct Following {
    seen: Option<u64>,
    concerns: Concerns,
}

impl Following {
    /// Whose document may have changed since this was asked last; all, when it is asked first.
    pub fn next(&mut self, cache: &Cache) -> Concerned {
        let view = cache.view();
        let since = self.seen.replace(view.revision).map(|seen| cache.since(seen));
        let Some(Since::Changes(changes)) = since else {
            self.concerns = Concerns::new(&view);
            return Concerned::All;
        };
        let changed = changes.into_iter().map(|changed| (changed.kind, changed.id));
        self.concerns.next(&view, changed)
    }
}

/// A bell for each host that is connected: it rings when its document may have changed.
#[derive(Debug, Default)]
pub struct Bells(Mutex<BTreeMap<HostId, watch::Sender<u64>>>);

impl Bells {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<HostId, watch::Sender<u64>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The host's bell, from now on.
    pub fn listen(&self, host: HostId) -> watch::Receiver<u64> {
        let mut bells = self.lock();
        bells
            .entry(host)
            .or_insert_with(|| watch::Sender::new(0))
            .subscribe()
    }

    fn ring(&self, concerned: &Concerned) {
        let mut bells = self.lock();
        bells.retain(|_, bell| bell.receiver_count() > 0);
        let ring = |bell: &watch::Sender<u64>| bell.send_modify(|n| *n = n.wrapping_add(1));
        match concerned {
            Concerned::All => bells.values().for_each(ring),
            Concerned::Hosts(hosts) => hosts.iter().filter_map(|host| bells.get(host)).for_each(ring),
        }
    }

    /// Rings whenever the view moves on, until the store is closed.
    pub async fn follow(&self, cache: &Cache) {
        let mut revisions = cache.subscribe();
        let mut following = Following::default();
        loop {
            self.ring(&following.next(cache));
            if revisions.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Stores what a report says anew, compared on what the store waits to hear.
pub async fn take_report(cloud: &Cloud, host: HostId, actor: &Actor, report: Report) -> Result<(), Problem> {
    let order = cloud.heard.order(host);
    let mut order = order.lock().await;
    match order.turn_of(&report, cloud.env.monotonic()) {
        Turn::Next => {}
        Turn::Over => return Ok(()),
        Turn::NotYet => return Err(overtaken()),
    }
    hold_if_put_back(cloud, host, actor, &report).await?;
    for _ in 0..ATTEMPTS {
        let plans = planner::reports::plans(&cloud.cache.view(), host, &report);
        match store_all(cloud, actor, plans).await {
            Ok(()) => {
                let at = cloud.env.monotonic();
                order.note(&report, at);
                cloud.heard.note(host, LastHeard::of(report, at));
                return Ok(());
            }
            Err(CommitError::Conflict { .. }) => {
                let at = cloud.cache.revision();
                cloud
                    .cache
                    .reach(at.saturating_add(1), Duration::from_millis(10))
                    .await;
            }
            Err(error) => return Err(commit_problem(error)),
        }
    }
    Err(commit_problem(CommitError::Conflict {
        key: "the host's VMs".to_owned(),
    }))
}

fn overtaken() -> Problem {
    let detail = "another start of this agent was heard after this one: report again, and this one counts when the other has \
                  not been heard for a while";
    Problem::new(503, "agent-overtaken", detail)
}

/// A database that is older than what a host was told is not to be obeyed, and not to decide.
async fn hold_if_put_back(
    cloud: &Cloud,
    host: HostId,
    actor: &Actor,
    report: &Report,
) -> Result<(), Problem> {
    let obeyed = planner::restored::obeyed_revision(report);
    if obeyed <= cloud.cache.revision() {
        return Ok(());
    }
    // Another server may have told the host, and what it wrote is on its way here.
    let revision = cloud.store.revision().await;
    if obeyed <= revision.map_err(|error| store_problem(&error))? {
        return Ok(());
    }
    let plan = planner::restored::put_back(&cloud.cache.view(), host, obeyed, cloud.env.now());
    if let Some(plan) = plan {
        tracing::error!(
            %host,
            obeyed,
            "this database is older than what the host has obeyed: nothing is decided; see `sterna store resume`"
        );
        store_all(cloud, actor, vec![plan])
            .await
            .map_err(commit_problem)?;
    }
    Ok(())
}

async fn store_all(cloud: &Cloud, actor: &Actor, plans: Vec<Plan>) -> Result<(), CommitError> {
    let mut last = 0;
    for plan in plans {
        last = commit(cloud.writer(actor), plan).await?;
    }
    cloud.cache.reach(last, Duration::from_secs(2)).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use controller::Env;
    use model::vm::VmIntent;
    use model::{VmId, record};
    use store::{BoxFuture, MemoryStore, Store, Txn};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);
    const H1: HostId = HostId(Uuid::from_u128(1));
    const H2: HostId = HostId(Uuid::from_u128(2));
    const VM: VmId = VmId(Uuid::from_u128(3));

    struct Still;

    impl Env for Still {
        fn now(&self) -> Timestamp {
            Timestamp::UNIX_EPOCH
        }

        fn monotonic(&self) -> Duration {
            Duration::ZERO
        }

        fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
            Box::pin(tokio::time::sleep(duration))
        }

        fn next_id(&self) -> Uuid {
            Uuid::nil()
        }
    }

    /// The VM is on this host from the revision on.
    async fn place(store: &MemoryStore, host: HostId) -> u64 {
        let intent = VmIntent {
            host: Some(host),
            ..VmIntent::default()
        };
        let txn = Txn::new().put(key::vm_intent(VM), record::encode(&intent));
        store.txn(txn).await.unwrap().revision
    }

    fn hosts(hosts: &[HostId]) -> Concerned {
        Concerned::Hosts(hosts.iter().copied().collect::<BTreeSet<_>>())
    }

    #[tokio::test]
    async fn whoever_was_overtaken_by_a_compaction_looks_at_all_hosts_and_goes_on_from_there() {
        let store = Arc::new(MemoryStore::new(store::system_clock()));
        place(&store, H1).await;
        let opened = Cache::open(store.clone(), Arc::new(Still)).await.unwrap();
        let cache = opened.cache;
        let mut following = Following::default();
        assert_eq!(following.next(&cache), Concerned::All);
        // How the VM came to the other host is not kept, so nothing can be said of it.
        let moved = place(&store, H2).await;
        store.compact(moved).await.unwrap();
        tokio::spawn(opened.following);
        assert!(cache.reach(moved, PATIENCE).await);
        assert_eq!(following.next(&cache), Concerned::All);
        assert_eq!(following.next(&cache), hosts(&[]));
        // What was missed counts: it is the second host that the VM leaves.
        let back = place(&store, H1).await;
        assert!(cache.reach(back, PATIENCE).await);
        assert_eq!(following.next(&cache), hosts(&[H1, H2]));
        let stays = place(&store, H1).await;
        assert!(cache.reach(stays, PATIENCE).await);
        assert_eq!(following.next(&cache), hosts(&[H1]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_connects_is_told_nothing_by_a_server_that_has_not_heard_of_all_that_was_decided() {
        let store = Arc::new(MemoryStore::new(store::system_clock()));
        let opened = Cache::open(store.clone(), Arc::new(Still)).await.unwrap();
        let cloud = Cloud::new(store.clone(), opened.cache, Arc::new(Still));
        place(&store, H2).await;
        let refused = Documents::begin(&cloud, H1).await.unwrap_err();
        assert_eq!((refused.status, refused.code.as_str()), (503, "server-behind"));
        tokio::spawn(opened.following);
        Documents::begin(&cloud, H1).await.unwrap();
    }

    /// Whether a bell rang since it was heard last.
    fn rang(bell: &mut watch::Receiver<u64>) -> bool {
        let rang = bell.has_changed().unwrap();
        bell.mark_unchanged();
        rang
    }

    #[test]
    fn a_bell_rings_for_every_connection_of_the_hosts_concerned_and_goes_with_the_last() {
        let bells = Bells::default();
        let (mut one, mut again, mut other) = (bells.listen(H1), bells.listen(H1), bells.listen(H2));
        bells.ring(&hosts(&[H1]));
        assert_eq!(
            [rang(&mut one), rang(&mut again), rang(&mut other)],
            [true, true, false]
        );
        bells.ring(&Concerned::All);
        assert_eq!(
            [rang(&mut one), rang(&mut again), rang(&mut other)],
            [true, true, true]
        );
        bells.ring(&hosts(&[]));
        assert_eq!(
            [rang(&mut one), rang(&mut again), rang(&mut other)],
            [false, false, false]
        );
        // One connection ends; the host is still there.
        drop(one);
        bells.ring(&hosts(&[H1]));
        assert!(rang(&mut again));
        drop((again, other));
        bells.ring(&Concerned::All);
        assert!(bells.lock().is_empty(), "who is gone is rung for");
        assert!(!rang(&mut bells.listen(H1)), "nothing has happened since");
    }
}
