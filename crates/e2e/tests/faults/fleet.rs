//! Operations on several VMs and on hosts, and in each of them something is killed.
//!
//! **Owns:** the table [`FLEET`], and what must hold after each of its entries.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use api::client::ObjectOf;
use api::drain::{DrainState, HostActionBody};
use api::kinds::{Host, Migration, Operation, Template, Vm};
use model::lifecycle::Phase;
use model::operation::OperationPhase;
use testkit::executing::RunsOnce;
use testkit::vms::{self, BOOT_PATIENCE, PATIENCE, TINY, VmObject};
use testkit::wait::{self, Verdict};
use testkit::world::World;
use tokio::process::Child;
use tokio::time::{sleep, timeout};

use super::traces::Part;

const HOSTS: [&str; 2] = ["h1", "h2"];
const NAMES: [&str; 3] = ["b-1", "b-2", "b-3"];
/// Those of them that run; the third one shows that what rests stays at rest.
const RUNNING: [&str; 2] = ["b-1", "b-2"];
const PAUSE: Duration = Duration::from_millis(10);
/// What is applied: a template, and two VMs made from it.
const DOCUMENTS: &str = include_str!("applied.yaml");

/// One operation on several objects. It begins where the one before it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    /// Three VMs, placed together or not at all.
    CreateTogether,
    /// Two of them, by two requests at once.
    StartTogether,
    /// All that runs leaves the first host.
    Drain,
    /// What was to leave the second host and has not, stays.
    CancelDrain,
    /// A file with a template and what needs it.
    Apply,
    /// Five, by as many requests at once.
    DeleteTogether,
    /// The first host, which holds nothing any more.
    RemoveHost,
}

/// Each of them, and the host whose agent has most to do with it.
const FLEET: [(Deed, &str); 7] = [
    (Deed::CreateTogether, HOSTS[0]),
    (Deed::StartTogether, HOSTS[0]),
    (Deed::Drain, HOSTS[0]),
    (Deed::CancelDrain, HOSTS[1]),
    (Deed::Apply, HOSTS[1]),
    (Deed::DeleteTogether, HOSTS[1]),
    (Deed::RemoveHost, HOSTS[1]),
];

#[tokio::test]
async fn the_server_is_killed_in_operations_on_several() -> anyhow::Result<()> {
    all(Part::Server).await
}

#[tokio::test]
#[ignore = "long: make soak"]
async fn an_agent_is_killed_in_operations_on_several() -> anyhow::Result<()> {
    all(Part::Agent).await
}

async fn all(part: Part) -> anyhow::Result<()> {
    let world = World::up(2).await?;
    world.make_template(192).await?;
    let mut fleet = Fleet {
        world: &world,
        watched: Vec::new(),
    };
    for (deed, host) in FLEET {
        let told = format!("{deed:?}, {part:?} killed");
        let begun = Instant::now();
        fleet.make(deed, part, host).await.with_context(|| told.clone())?;
        println!("{told}: well after {:?}", begun.elapsed());
    }
    for watched in fleet.watched {
        watched.end().await?;
    }
    world.down().await
}

struct Fleet<'w> {
    world: &'w World,
    watched: Vec<RunsOnce>,
}

impl Fleet<'_> {
    async fn make(&mut self, deed: Deed, part: Part, host: &str) -> anyhow::Result<()> {
        let command = self.ask(deed).await?;
        self.has_begun(deed).await?;
        match part {
            Part::Server => self.world.kill_server().await?,
            Part::Agent | Part::Qemu => self.world.kill_agent(host).await?,
        }
        // Its user learns how far it came, or that the server is away.
        let said = match command {
            Some(child) => ended(child).await?,
            None => Said {
                is_done: true,
                text: String::new(),
            },
        };
        self.is_whole(deed, part, &said).await
    }

    async fn ask(&self, deed: Deed) -> anyhow::Result<Option<Child>> {
        match deed {
            Deed::CreateTogether => return self.create().map(Some),
            Deed::Apply => return self.apply().map(Some),
            Deed::StartTogether => {
                for name in RUNNING {
                    self.world.act(name, "start").await?;
                }
            }
            Deed::Drain => self.host_action(HOSTS[0], "drain").await?,
            Deed::CancelDrain => {
                self.host_action(HOSTS[0], "undrain").await?;
                self.host_action(HOSTS[1], "drain").await?;
                self.until_a_move().await?;
                self.host_action(HOSTS[1], "undrain").await?;
            }
            Deed::DeleteTogether => {
                for name in NAMES.into_iter().chain(["applied-1", "applied-2"]) {
                    self.world.client().delete::<Vm>(name).await?;
                }
            }
            Deed::RemoveHost => {
                self.world.client().delete::<Host>(HOSTS[0]).await?;
            }
        }
        Ok(None)
    }

    fn create(&self) -> anyhow::Result<Child> {
        let words = [
            "vm",
            "create",
            "b",
            "--template",
            TINY,
            "--count",
            "3",
            "--off",
            "--host",
            HOSTS[0],
        ];
        spawn(self.world, &words)
    }

    fn apply(&self) -> anyhow::Result<Child> {
        let path = self.world.directory().join("applied.yaml");
        std::fs::write(&path, DOCUMENTS)?;
        spawn(self.world, &["apply", "-f", &path.to_string_lossy()])
    }

    async fn host_action(&self, host: &str, word: &str) -> anyhow::Result<()> {
        let body = HostActionBody::default();
        self.world.client().action::<Host, _>(host, word, &body).await?;
        Ok(())
    }

    /// The instant of the kill: the first that is stored of it.
    async fn has_begun(&self, deed: Deed) -> anyhow::Result<()> {
        match deed {
            Deed::CreateTogether => self.exists::<Vm>(NAMES[0]).await,
            Deed::Apply => self.exists::<Template>("applied").await,
            Deed::Drain => self.until_a_move().await,
            _ => Ok(()),
        }
    }

    async fn exists<R: api::Resource>(&self, name: &str) -> anyhow::Result<()> {
        let there = async {
            while self.world.client().get::<R>(name).await.is_err() {
                sleep(PAUSE).await;
            }
        };
        timeout(PATIENCE, there)
            .await
            .with_context(|| format!("{name} was not made"))
    }

    async fn until_a_move(&self) -> anyhow::Result<()> {
        let moving = async {
            loop {
                let all = self.world.client().list::<Migration>().await;
                if all.is_ok_and(|(all, _)| all.iter().any(|one| !one.status.phase.is_final())) {
                    return;
                }
                sleep(PAUSE).await;
            }
        };
        timeout(PATIENCE, moving).await.context("no VM was moved")
    }

    async fn is_whole(&mut self, deed: Deed, part: Part, said: &Said) -> anyhow::Result<()> {
        match deed {
            Deed::CreateTogether => self.are_created(said).await,
            Deed::StartTogether => self.are_started(part).await,
            Deed::Drain => self.is_drained().await,
            Deed::CancelDrain => self.goes_no_further().await,
            Deed::Apply => self.is_applied(said).await,
            Deed::DeleteTogether => self.are_deleted().await,
            Deed::RemoveHost => self.is_removed().await,
        }
    }

    /// All are there; or who asked is told that not all are known to be, those that are known are deleted again, and it
    /// can be asked again.
    async fn are_created(&mut self, said: &Said) -> anyhow::Result<()> {
        if !said.is_done {
            ensure!(
                said.text.contains("sterna vm delete"),
                "it does not say what to do: {}",
                said.text
            );
            let (there, _) = self.answers::<Vm>().await?;
            for vm in &there {
                self.is_taken_back(vm).await?;
            }
            let again = ended(self.create()?).await?;
            ensure!(again.is_done, "the second try failed: {}", again.text);
        }
        for name in NAMES {
            let vm = self.world.until_phase(name, Phase::Off).await?;
            let disk = self.world.volumes().join(vm.id.to_string()).join("root.qcow2");
            ensure!(disk.exists(), "{} was not made", disk.display());
            self.watched.push(RunsOnce::begin(self.world, vms::id(&vm)));
        }
        self.reserved(HOSTS[0], 0).await
    }

    /// One that the command did not delete waits without a place for the others, unless all were there for a moment.
    async fn is_taken_back(&self, vm: &VmObject) -> anyhow::Result<()> {
        if vm.deleted_at.is_some() {
            return self.world.until_gone::<Vm>(&vm.name).await;
        }
        let rests = |vm: &VmObject| {
            let reason = vm.status.reason.as_ref();
            let is_incomplete = reason.is_some_and(|reason| reason.code == "batch-incomplete");
            Verdict::from(is_incomplete || vm.status.phase == Phase::Off)
        };
        self.world
            .until_vm(&vm.name, "without a place, or off", rests)
            .await?;
        self.world.delete_vm(&vm.name).await
    }

    /// What an agent had just written down that it would launch is never launched by the next one: then it has failed.
    async fn are_started(&self, part: Part) -> anyhow::Result<()> {
        for name in RUNNING {
            let judge = |vm: &VmObject| {
                let is_over = vm.status.operation.is_none();
                Verdict::from(is_over && (vm.status.ready || vm.status.phase == Phase::Failed))
            };
            let vm = wait::until::<Vm>(self.world.client(), name, "started", BOOT_PATIENCE, judge).await?;
            if vm.status.phase == Phase::Failed {
                ensure!(
                    part == Part::Agent && vm.status.reason.is_some(),
                    "{:?}",
                    vm.status
                );
                self.world.act(name, "retry").await?;
            }
        }
        self.run_once().await
    }

    async fn run_once(&self) -> anyhow::Result<()> {
        for name in RUNNING {
            let vm = self.world.until_ready(name).await?;
            let is_so = || matches!(&self.world.living(vms::id(&vm))[..], [(host, ..)] if Some(host) == vm.status.host.as_ref());
            wait::until_it_holds(&format!("{name} has one process"), PATIENCE, is_so).await?;
        }
        Ok(())
    }

    async fn is_drained(&self) -> anyhow::Result<()> {
        let is_drained = |host: &ObjectOf<Host>| {
            let drain = host.status.drain.as_ref();
            Verdict::from(drain.is_some_and(|drain| drain.state == DrainState::Drained))
        };
        wait::until::<Host>(
            self.world.client(),
            HOSTS[0],
            "drained",
            BOOT_PATIENCE,
            is_drained,
        )
        .await?;
        self.run_once().await?;
        for name in RUNNING {
            let vm = self.world.get_vm(name).await?;
            ensure!(
                vm.status.host.as_deref() == Some(HOSTS[1]),
                "{name} did not move: {:?}",
                vm.status
            );
        }
        self.reserved(HOSTS[0], 0).await
    }

    /// What was under way ends, one way or the other; nothing else is begun, and the host is used again.
    async fn goes_no_further(&self) -> anyhow::Result<()> {
        let (moves, _) = self.answers::<Migration>().await?;
        for one in &moves {
            self.world.until_migration_ended(&one.name).await?;
        }
        self.run_once().await?;
        let (after, _) = self.answers::<Migration>().await?;
        ensure!(
            after.len() <= moves.len(),
            "a move was begun after the drain was cancelled: {after:?}"
        );
        let host = self.world.client().get::<Host>(HOSTS[1]).await?;
        ensure!(
            host.status.drain.is_none() && host.status.reason.is_none(),
            "{:?}",
            host.status
        );
        self.leave(HOSTS[0]).await
    }

    /// Moves what is on a host to the other one, for what follows.
    async fn leave(&self, host: &str) -> anyhow::Result<()> {
        self.host_action(host, "drain").await?;
        self.is_drained().await
    }

    /// What is missing is made by the same command.
    async fn is_applied(&self, said: &Said) -> anyhow::Result<()> {
        self.answers::<Vm>().await?;
        let again = ended(self.apply()?).await?;
        ensure!(
            again.is_done,
            "after `{}` the same command failed: {}",
            said.text,
            again.text
        );
        for name in ["applied-1", "applied-2"] {
            self.world.until_phase(name, Phase::Off).await?;
        }
        let third = ended(self.apply()?).await?;
        ensure!(
            third.is_done && third.text.contains("created 0, changed 0"),
            "it is applied again: {}",
            third.text
        );
        Ok(())
    }

    async fn are_deleted(&self) -> anyhow::Result<()> {
        for name in NAMES.into_iter().chain(["applied-1", "applied-2"]) {
            self.world.until_gone::<Vm>(name).await?;
        }
        let left = std::fs::read_dir(self.world.volumes())?.count();
        ensure!(left == 0, "{left} directories of volumes are left");
        let (operations, _) = self.answers::<Operation>().await?;
        let is_done = |one: &ObjectOf<Operation>| one.status.phase == OperationPhase::Done;
        ensure!(operations.iter().all(is_done), "{operations:?}");
        for host in HOSTS {
            self.reserved(host, 0).await?;
        }
        Ok(())
    }

    async fn is_removed(&self) -> anyhow::Result<()> {
        let (hosts, _) = self.answers::<Host>().await?;
        let names: Vec<&str> = hosts.iter().map(|host| host.name.as_str()).collect();
        ensure!(names == [HOSTS[1]], "{names:?}");
        Ok(())
    }

    async fn reserved(&self, host: &str, mib: u64) -> anyhow::Result<()> {
        let judge = |host: &ObjectOf<Host>| Verdict::from(host.status.reserved_mib == mib);
        let what = format!("reserving {mib} MiB");
        wait::until::<Host>(self.world.client(), host, &what, PATIENCE, judge)
            .await
            .map(drop)
    }

    /// All objects of a kind, as soon as the server answers.
    async fn answers<R: api::Resource>(&self) -> anyhow::Result<(Vec<ObjectOf<R>>, u64)> {
        let answer = async {
            loop {
                if let Ok(all) = self.world.client().list::<R>().await {
                    return all;
                }
                sleep(PAUSE).await;
            }
        };
        timeout(PATIENCE, answer)
            .await
            .context("the server does not answer")
    }
}

/// What a command said, and whether it did what it was told.
struct Said {
    is_done: bool,
    text: String,
}

fn spawn(world: &World, words: &[&str]) -> anyhow::Result<Child> {
    let mut command = world.command(words)?;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().context("starting sterna")
}

async fn ended(child: Child) -> anyhow::Result<Said> {
    let output = timeout(PATIENCE, child.wait_with_output())
        .await
        .context("the command does not end")??;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Said {
        is_done: output.status.success(),
        text: format!("{}{}", text(&output.stdout), text(&output.stderr)),
    })
}
