//! Two controllers on one store: rules about other VMs hold whatever they decide at the same time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use controller::Env;
use controller::cache::Cache;
use model::host::{HostSpec, HostStatus};
use model::image::ImageSpec;
use model::placement::{Affinity, Batch, Peers, PlacementRule};
use model::vm::VmSpec;
use model::{DatastoreId, HostId, ImageId, Kind, Object, Timestamp, VmId, key, record, samples};
use store::{MemoryStore, Store, Txn};
use uuid::Uuid;

const IMAGE: Uuid = Uuid::from_u128(1);

/// Each controller has ids of its own.
struct Counted(AtomicU64, u128);

impl Env for Counted {
    fn now(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH
    }

    fn monotonic(&self) -> std::time::Duration {
        std::time::Duration::ZERO
    }

    fn sleep(&self, duration: std::time::Duration) -> store::BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }

    fn next_id(&self) -> Uuid {
        Uuid::from_u128(self.1 + u128::from(self.0.fetch_add(1, Ordering::Relaxed)))
    }
}

/// A store with hosts, and two controllers that see it.
struct World {
    store: Arc<MemoryStore>,
    cache: Arc<Cache>,
}

impl World {
    /// So many hosts with room for `room` VMs each.
    async fn new(hosts: u128, room: u64) -> Self {
        let store = Arc::new(MemoryStore::new(store::system_clock()));
        let mut txn = Txn::new();
        let image = object(Kind::Image, IMAGE, "image", ImageSpec::default());
        txn = txn.put(key::object(Kind::Image, IMAGE), record::encode(&image));
        txn = txn.put(
            key::image_status(ImageId(IMAGE)),
            record::encode(&samples::image_status()),
        );
        for n in 1..=hosts {
            let id = HostId(Uuid::from_u128(100 + n));
            let host = object(Kind::Host, id.0, &format!("h{n}"), HostSpec::default());
            let status = HostStatus {
                cpus: 64,
                ..samples::host_status(1, planner::placement::with_qemu_mib(128, 1) * room)
            };
            txn = txn.put(key::object(Kind::Host, id.0), record::encode(&host));
            txn = txn.put(key::host_status(id), record::encode(&status));
        }
        store.txn(txn).await.unwrap();
        let cache = Cache::start(store.clone(), Arc::new(Counted(AtomicU64::new(0), 0)))
            .await
            .unwrap();
        Self { store, cache }
    }

    /// Two controllers place these VMs, which come while they run; then which host each has.
    async fn placed(&self, rules: &[PlacementRule], expected: usize) -> BTreeMap<VmId, HostId> {
        let controllers: Vec<_> = [1u128 << 64, 2u128 << 64]
            .into_iter()
            .map(|base| {
                let store = self.store.clone();
                let env = Arc::new(Counted(AtomicU64::new(0), base));
                tokio::spawn(async move {
                    // Each has a view of its own, as two servers have.
                    let own = Cache::start(store.clone(), env.clone()).await.unwrap();
                    controller::run::run(store, own, env, Arc::default()).await;
                })
            })
            .collect();
        for (n, rule) in rules.iter().enumerate() {
            let id = Uuid::from_u128(1000 + n as u128);
            let vm = vm(id, n, rule.clone());
            let txn = Txn::new().put(key::object(Kind::Vm, id), record::encode(&vm));
            self.store.txn(txn).await.unwrap();
        }
        let placed = self.until(expected).await;
        for controller in controllers {
            controller.abort();
        }
        placed
    }

    /// Waits until so many have a place, and then a while whether there will be more.
    async fn until(&self, expected: usize) -> BTreeMap<VmId, HostId> {
        for _ in 0..500 {
            if self.places().len() >= expected {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        let placed = self.places();
        assert_eq!(placed.len(), expected, "{placed:?}");
        placed
    }

    fn places(&self) -> BTreeMap<VmId, HostId> {
        let view = self.cache.view();
        let place = |vm: &planner::view::Vm| {
            let intent = &vm.intent.as_ref()?.value;
            intent.host.filter(|_| intent.open.is_some())
        };
        let all = view.vms.iter();
        all.filter_map(|(id, vm)| Some((*id, place(vm)?))).collect()
    }
}

/// Everything carries the label `app=web`.
fn object<S>(kind: Kind, id: Uuid, name: &str, spec: S) -> Object<S> {
    let mut object = samples::object(kind, id, name, Timestamp::UNIX_EPOCH, spec);
    object.meta.labels.insert("app".to_owned(), "web".to_owned());
    object
}

fn vm(id: Uuid, n: usize, placement: PlacementRule) -> Object<VmSpec> {
    let spec = VmSpec {
        memory_mib: 128,
        placement,
        ..samples::vm_spec(ImageId(IMAGE), DatastoreId(Uuid::from_u128(2)))
    };
    object(Kind::Vm, id, &format!("vm{n}"), spec)
}

fn to_web() -> Vec<Affinity> {
    let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
    vec![Affinity {
        to: Peers::Vms(labels),
        soft: false,
    }]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn vms_that_keep_apart_never_meet() {
    for _ in 0..5 {
        let world = World::new(4, 10).await;
        let apart = PlacementRule {
            anti_affinity: to_web(),
            ..PlacementRule::default()
        };
        let placed = world.placed(&vec![apart; 6], 4).await;
        let hosts: BTreeSet<HostId> = placed.values().copied().collect();
        assert_eq!(hosts.len(), 4, "two met: {placed:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn vms_that_belong_together_are_together() {
    for _ in 0..5 {
        let world = World::new(4, 10).await;
        // Each would rather have another host, so that two first ones do not meet by chance.
        let with = |n: u128| {
            let mut affinity = to_web();
            affinity.push(Affinity {
                to: Peers::Hosts([HostId(Uuid::from_u128(101 + n % 4))].into()),
                soft: true,
            });
            PlacementRule {
                affinity,
                ..PlacementRule::default()
            }
        };
        let rules: Vec<_> = (0..8).map(with).collect();
        let placed = world.placed(&rules, 8).await;
        let hosts: BTreeSet<HostId> = placed.values().copied().collect();
        assert_eq!(hosts.len(), 1, "they are apart: {placed:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_two_batches_that_do_not_both_fit_one_is_placed_whole() {
    for round in 0..5u128 {
        let world = World::new(2, 3).await;
        let batch = |id: u128| PlacementRule {
            batch: Some(Batch {
                id: Uuid::from_u128(round * 10 + id),
                size: 4,
            }),
            ..PlacementRule::default()
        };
        // They come mixed.
        let rules: Vec<_> = (0..8).map(|n| batch(n % 2)).collect();
        let placed = world.placed(&rules, 4).await;
        let batches: BTreeSet<u128> = placed.keys().map(|vm| vm.0.as_u128() % 2).collect();
        assert_eq!(batches.len(), 1, "parts of both: {placed:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_vm_that_waits_for_company_comes_when_another_gets_the_label() {
    let world = World::new(2, 10).await;
    let labels = BTreeMap::from([("app".to_owned(), "db".to_owned())]);
    let with_db = PlacementRule {
        affinity: vec![Affinity {
            to: Peers::Vms(labels.clone()),
            soft: false,
        }],
        ..PlacementRule::default()
    };
    let env = Arc::new(Counted(AtomicU64::new(0), 3 << 64));
    let cache = Cache::start(world.store.clone(), env.clone()).await.unwrap();
    let controller = tokio::spawn(controller::run::run(
        world.store.clone(),
        cache,
        env,
        Arc::default(),
    ));
    for (n, rule) in [PlacementRule::default(), with_db].into_iter().enumerate() {
        let id = Uuid::from_u128(1000 + n as u128);
        let txn = Txn::new().put(key::object(Kind::Vm, id), record::encode(&vm(id, n, rule)));
        world.store.txn(txn).await.unwrap();
    }
    world.until(1).await;
    let first = Uuid::from_u128(1000);
    let mut labelled = vm(first, 0, PlacementRule::default());
    labelled.meta.labels = labels;
    let txn = Txn::new().put(key::object(Kind::Vm, first), record::encode(&labelled));
    world.store.txn(txn).await.unwrap();
    let placed = world.until(2).await;
    assert_eq!(placed.values().collect::<BTreeSet<_>>().len(), 1);
    controller.abort();
}
