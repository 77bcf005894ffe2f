//! Simulated hosts of a real server, in real time: what `sterna up --simulate` has instead of machines.
//!
//! **Owns:** how the hosts become members, what their VMs are made from, and when what was due by a world's time happens by
//! the clock.
//!
//! **Does not know:** what happens: hosts, agents and QEMUs are those of [`crate::world`], and nothing breaks.
//!
//! What an agent sends over a connection is handed to the code behind that connection, and what it is told comes from there.
//!
//! **Start here:** [`live`].

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use api::Create;
use api::client::{Client, ClientError};
use api::kinds::{Image, ImageSpec, Template, TemplateSpec};
use controller::commit::{CommitError, commit};
use futures_util::{StreamExt, TryStreamExt, stream};
use model::audit::Actor;
use model::host::HostSpec;
use model::{HostId, Kind, Meta, Object, key};
use planner::Plan;
use server::hosts::first_meta;
use server::shared::Cloud;

use crate::agents::micros;
use crate::script::{Script, Size};
use crate::world::{Event, World};

/// The most hosts that are simulated at a time.
pub const HOSTS_MAX: u16 = 10_000;
/// What each has for guests: much more than is needed, since nothing is behind it.
const MEMORY_MIB: u64 = 64 << 10;
/// The image and the template that their VMs are made from.
const IMAGE: &str = "simulated";
const TEMPLATE: &str = "small";
const TEMPLATE_MIB: u64 = 256;
/// By this label they are told from others.
const LABEL: (&str, &str) = ("simulated", "yes");
/// The one that it has.
const SERVER: usize = 0;
/// How many become members at once.
const JOINING: usize = 256;
/// How much happens before others get their turn.
const TURN_EVENTS: usize = 256;
/// The longest sleep.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// Takes so many hosts in: `h1`, `h2`, and so on. They have no certificate, so that nobody else can speak for them.
pub async fn join(cloud: &Cloud, hosts: u16) -> Result<Vec<HostId>, CommitError> {
    let ids: Vec<HostId> = (0..hosts).map(|_| HostId(cloud.env.next_id())).collect();
    let joining: Vec<_> = ids
        .iter()
        .zip(1..)
        .map(|(id, number)| join_one(cloud, *id, number))
        .collect();
    stream::iter(joining)
        .buffer_unordered(JOINING)
        .try_collect::<Vec<()>>()
        .await?;
    Ok(ids)
}

/// Makes an image that no guest could boot, and a template with it: what simulated VMs are made from.
pub async fn make_template(client: &Client) -> Result<(), ClientError> {
    let mut sector = vec![0; 512];
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let image = ImageSpec {
        expected_sha256: Some(server::auth::sha256_hex(&sector)),
        ..ImageSpec::default()
    };
    client.create::<Image>(&named(IMAGE, image), None, false).await?;
    let length = sector.len() as u64;
    let content = stream::once(std::future::ready(Ok(sector)));
    client.upload(IMAGE, None, length, content).await?;
    let template = TemplateSpec {
        image: IMAGE.to_owned(),
        memory_mib: Some(TEMPLATE_MIB),
        networks: Some(Vec::new()),
        ..TemplateSpec::default()
    };
    client
        .create::<Template>(&named(TEMPLATE, template), None, false)
        .await?;
    Ok(())
}

fn named<S>(name: &str, spec: S) -> Create<S> {
    Create {
        name: Some(name.to_owned()),
        labels: std::collections::BTreeMap::new(),
        spec,
    }
}

async fn join_one(cloud: &Cloud, id: HostId, number: usize) -> Result<(), CommitError> {
    let now = cloud.env.now();
    let name = format!("h{number}");
    let meta = Meta {
        labels: [LABEL]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        ..first_meta(id.0, name.clone(), now)
    };
    let spec = HostSpec::default();
    let mut plan = Plan::new(format!("take in the simulated host {name}"));
    plan.create(key::object(Kind::Host, id.0), &Object { meta, spec });
    plan.create(key::name_index(Kind::Host, None, &name), &id.0);
    let actor = Actor {
        name: "simulator".to_owned(),
        from: None,
        request: None,
    };
    commit(cloud.writer(&actor), plan).await.map(drop)
}

/// Is these hosts, which have joined, until it is dropped. What they run ends with it.
pub async fn live(cloud: Arc<Cloud>, hosts: &[HostId]) -> Infallible {
    let world = World::of(&cloud, hosts);
    // It sees to it itself that others get their turn; what it polls must never be told to wait for that.
    tokio::task::unconstrained(world.be(&cloud)).await
}

impl World {
    /// The hosts of a server that runs.
    fn of(cloud: &Arc<Cloud>, hosts: &[HostId]) -> Self {
        let size = Size {
            servers: 1,
            hosts: hosts.len(),
            vms: 0,
            seconds: 0,
            faults: 0,
        };
        let (seed, _) = cloud.env.next_id().as_u64_pair();
        let script = Script {
            seed,
            size,
            steps: Vec::new(),
        };
        let mut world = Self::new(script, None);
        world.is_mended = true;
        world.servers[SERVER].cloud = Some(Arc::clone(cloud));
        let beginning = world.time.wall(0).as_microsecond();
        let offset_us = cloud.env.now().as_microsecond().saturating_sub(beginning);
        for (host, id) in world.hosts.iter_mut().zip(hosts) {
            (host.id, host.memory_mib) = (*id, MEMORY_MIB);
            (host.offset_us, host.drift_ppm) = (offset_us, 0);
        }
        world.begin_spread();
        world
    }

    /// Agents start one after the other within the time between two of their reports, and report in that order ever after.
    fn begin_spread(&mut self) {
        let count = u64::try_from(self.hosts.len()).unwrap_or(u64::MAX).max(1);
        for (host, number) in (0..self.hosts.len()).zip(0_u64..) {
            let at_us = api::agent::KEEP_ALIVE_MS * 1_000 * number / count;
            self.at(at_us, Event::StartAgent(host));
        }
    }

    async fn be(mut self, cloud: &Cloud) -> Infallible {
        let begun = cloud.env.monotonic();
        let since_us = || micros(cloud.env.monotonic().saturating_sub(begun));
        let mut revisions = cloud.cache.subscribe();
        let bell = Arc::clone(&self.tasks.bell);
        loop {
            self.time.reach(since_us());
            if revisions.has_changed().unwrap_or_default() {
                revisions.mark_unchanged();
                self.stream_documents(SERVER);
            }
            self.turn();
            self.tasks.run();
            self.hear();
            let for_us = self.next_us().map(|at_us| at_us.saturating_sub(since_us()));
            let sleep = for_us
                .map_or(LONGEST_SLEEP, Duration::from_micros)
                .min(LONGEST_SLEEP);
            if sleep.is_zero() {
                tokio::task::yield_now().await;
                continue;
            }
            tokio::select! {
                () = bell.notified() => {}
                Ok(()) = revisions.changed() => revisions.mark_changed(),
                () = cloud.env.sleep(sleep) => {}
            }
        }
    }

    /// What is due happens, or a part of it.
    fn turn(&mut self) {
        for _ in 0..TURN_EVENTS {
            let Some(event) = self.due() else { return };
            self.happen(event);
        }
    }
}
