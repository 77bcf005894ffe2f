//! The life of one VM, operation after operation, and in each of them something is killed.
//!
//! **Owns:** the table [`LIFE`], and what must hold after each of its entries.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use api::drain::HostActionBody;
use api::kinds::{Host, Operation, Vm};
use model::lifecycle::Phase;
use model::operation::OperationPhase;
use serde_json::json;
use testkit::console::Console;
use testkit::executing::RunsOnce;
use testkit::vms::{self, BOOT_PATIENCE, PATIENCE, VmObject};
use testkit::wait::{self, Verdict};
use testkit::world::World;

use super::traces::{Part, Stage, Traces, kill_qemus, until_stage};

const NAME: &str = "web";
const HOSTS: [&str; 2] = ["h1", "h2"];
/// What the firmware writes at each boot, once.
const BOOT_LINE: &str = "SeaBIOS (version";
/// The letter of a link's name that says what it is for.
const BRIDGE_AT: usize = 6;
/// Longer than a guest takes to boot and to answer.
const UP_LONG: Duration = Duration::from_secs(15);
/// The guest's memory, and what it is changed to.
const MEMORY_MIB: [u64; 2] = [192, 208];

/// One operation of a VM's life. It begins where the one before it has ended.
struct Step {
    ask: Ask,
    /// Where the VM is when it is finished.
    to: Phase,
    guest: Guest,
    /// The traces that it leaves, in their order.
    stages: &'static [Stage],
    /// When the VM's QEMU is killed, if there is one whose end makes a difference.
    qemu: Option<Stage>,
    /// What a kill may lead to.
    end: End,
}

/// How it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ask {
    Create,
    Act(&'static str),
    /// `resume`, with the host that it was on closed to it.
    ResumeElsewhere,
    /// `retry`, after its QEMU has ended.
    Retry,
    /// Another size, which counts from the next start on.
    Resize,
    Delete,
}

/// What the guest sees of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guest {
    /// It is the same as before, and has counted on.
    GoesOn,
    /// It boots, once.
    Boots,
    /// It does not run.
    Rests,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Finished, whoever is killed.
    Finished,
    /// As `Finished`; but what a host had just written down that it would launch is never launched by a later agent, and
    /// then the VM has failed, and says so.
    FinishedOrFailed,
}

const LIFE: [Step; 14] = [
    boots(Ask::Create).launches().qemu(Stage::Process),
    rests(Ask::Act("pause"), Phase::Paused).leaves(ASKED),
    goes_on(Ask::Act("resume")).leaves(ASKED),
    rests(Ask::Act("suspend"), Phase::Suspended).qemu(Stage::Asked),
    goes_on(Ask::Act("resume")).launches().qemu(Stage::Process),
    goes_on(Ask::Resize).leaves(ASKED),
    boots(Ask::Act("reboot")).leaves(LAST_WORD).qemu(Stage::Asked),
    rests(Ask::Act("stop"), Phase::Stopped),
    goes_on(Ask::ResumeElsewhere).launches(),
    rests(Ask::Act("shutdown"), Phase::Off)
        .leaves(ALL)
        .qemu(Stage::Asked),
    rests(Ask::Act("hold"), Phase::Hold).leaves(ASKED),
    boots(Ask::Act("release")).launches(),
    boots(Ask::Retry).launches(),
    rests(Ask::Delete, Phase::Done).qemu(Stage::Asked),
];

const ASKED: &[Stage] = &[Stage::Asked];
const LAST_WORD: &[Stage] = &[Stage::Asked, Stage::LastWord, Stage::Marked];
const HOSTS_OWN: &[Stage] = &[Stage::Asked, Stage::Marked, Stage::Process];
const ALL: &[Stage] = &[Stage::Asked, Stage::LastWord, Stage::Marked, Stage::Process];

const fn boots(ask: Ask) -> Step {
    Step {
        ask,
        to: Phase::Running,
        guest: Guest::Boots,
        stages: HOSTS_OWN,
        qemu: None,
        end: End::Finished,
    }
}

const fn goes_on(ask: Ask) -> Step {
    Step {
        guest: Guest::GoesOn,
        ..boots(ask)
    }
}

const fn rests(ask: Ask, to: Phase) -> Step {
    Step {
        to,
        guest: Guest::Rests,
        ..boots(ask)
    }
}

impl Step {
    const fn leaves(self, stages: &'static [Stage]) -> Self {
        Self { stages, ..self }
    }

    /// A QEMU is started for it.
    const fn launches(self) -> Self {
        Self {
            end: End::FinishedOrFailed,
            ..self
        }
    }

    const fn qemu(self, stage: Stage) -> Self {
        Self {
            qemu: Some(stage),
            ..self
        }
    }

    /// The stage at which `make test` kills: servers when they have answered, agents when they are about to act.
    fn usual_stage(&self, part: Part) -> Option<Stage> {
        match part {
            Part::Server => Some(Stage::Asked),
            Part::Agent => Some(*self.stages.get(1).unwrap_or(&Stage::Asked)),
            // What was shut down before it has none when it is deleted.
            Part::Qemu => self.qemu.filter(|_| self.ask != Ask::Delete),
        }
    }

    /// Whether `make test` kills agents in it. It begins where the one before it, of such, has ended.
    fn is_of_a_short_life(&self) -> bool {
        let actions = ["suspend", "resume", "reboot", "shutdown"];
        match self.ask {
            Ask::Act(action) => actions.contains(&action) && self.stages != ASKED,
            Ask::Create | Ask::Delete => true,
            Ask::ResumeElsewhere | Ask::Retry | Ask::Resize => false,
        }
    }

    /// Whether the end of the VM's QEMU makes a difference in it, or it brings a QEMU back for what comes after it.
    fn concerns_qemu(&self) -> bool {
        self.qemu.is_some() || matches!(self.ask, Ask::Act("hold" | "release"))
    }

    fn may_fail(&self, part: Part) -> bool {
        match part {
            Part::Server => false,
            Part::Agent => self.end == End::FinishedOrFailed,
            Part::Qemu => true,
        }
    }
}

/// A short life: of those that leave the same traces, one.
#[tokio::test]
async fn the_agent_is_killed_in_operations_of_a_vm() -> anyhow::Result<()> {
    let steps = LIFE.iter().filter(|step| step.is_of_a_short_life());
    walk(Part::Agent, steps, |step| step.usual_stage(Part::Agent)).await
}

/// Of those that it is killed in at the same stage, with the same end, one is left to `make soak`.
#[tokio::test]
async fn the_qemu_is_killed_in_the_operations_of_a_vm() -> anyhow::Result<()> {
    let is_usual = |step: &&Step| step.qemu.is_some() && step.ask != Ask::Act("reboot");
    let steps = LIFE.iter().filter(is_usual);
    walk(Part::Qemu, steps, |step| step.usual_stage(Part::Qemu)).await
}

#[tokio::test]
#[ignore = "long: make soak"]
async fn the_server_is_killed_at_every_stage_of_a_vm() -> anyhow::Result<()> {
    at_every_stage(Part::Server).await
}

#[tokio::test]
#[ignore = "long: make soak"]
async fn the_agent_is_killed_at_every_stage_of_a_vm() -> anyhow::Result<()> {
    at_every_stage(Part::Agent).await
}

#[tokio::test]
#[ignore = "long: make soak"]
async fn the_qemu_is_killed_at_every_stage_of_a_vm() -> anyhow::Result<()> {
    at_every_stage(Part::Qemu).await
}

async fn at_every_stage(part: Part) -> anyhow::Result<()> {
    for stage in [Stage::Asked, Stage::Marked, Stage::Process, Stage::LastWord] {
        let steps = LIFE
            .iter()
            .filter(|step| part != Part::Qemu || step.concerns_qemu());
        // With its last word a guest has rebooted or is off: what is killed after it is no operation's.
        let is_killed = |step: &Step| part != Part::Qemu || step.qemu.is_some() && stage != Stage::LastWord;
        let at = |step: &Step| (step.stages.contains(&stage) && is_killed(step)).then_some(stage);
        let walked = walk(part, steps, at).await;
        walked.with_context(|| format!("{part:?} at {stage:?}"))?;
    }
    Ok(())
}

/// Walks through a VM's life. An operation without a stage is just made.
async fn walk(
    part: Part,
    steps: impl IntoIterator<Item = &Step>,
    stage: impl Fn(&Step) -> Option<Stage>,
) -> anyhow::Result<()> {
    let world = World::up(2).await?;
    world.make_template(MEMORY_MIB[0]).await?;
    let links = HOSTS.map(|host| world.interfaces(host).unwrap_or_default());
    let mut life = Life::new(&world);
    for step in steps {
        let kill = stage(step).map(|stage| (part, stage));
        let told = format!("{:?}, killed: {kill:?}", step.ask);
        let begun = Instant::now();
        life.make(step, kill).await.with_context(|| told.clone())?;
        if step.ask == Ask::Create {
            life.bridge = life.bridge()?;
        }
        println!("{told}: well after {:?}", begun.elapsed());
    }
    let bridge = life.end().await?;
    are_as_before(&world, &links).await?;
    if part == Part::Agent {
        // What an agent left that ended half-way goes with the next one. This one knows of nothing to delete.
        world
            .act_in(HOSTS[0], &["ip", "link", "add", &bridge, "type", "bridge"])
            .await?;
        world.kill_agent(HOSTS[0]).await?;
        are_as_before(&world, &links).await?;
    }
    world.down().await
}

/// Waits until the hosts have the interfaces of before. The bridge of a network without a VM goes with the next document.
async fn are_as_before(world: &World, links: &[BTreeSet<String>]) -> anyhow::Result<()> {
    for (host, links) in HOSTS.iter().zip(links) {
        let are_gone = || world.interfaces(host).is_ok_and(|now| now.is_subset(links));
        wait::until_it_holds("the host has the interfaces of before", PATIENCE, are_gone).await?;
    }
    Ok(())
}

/// The VM as it was seen last.
struct Life<'w> {
    world: &'w World,
    vm: Option<VmObject>,
    /// The host that it was on last.
    home: String,
    /// What its guest had counted when it was heard last.
    ticks: u64,
    /// The name of its network's bridge on its first host.
    bridge: String,
    asked_at: Instant,
    runs_once: Option<RunsOnce>,
}

impl<'w> Life<'w> {
    fn new(world: &'w World) -> Self {
        Self {
            world,
            vm: None,
            home: HOSTS[0].to_owned(),
            ticks: 0,
            bridge: String::new(),
            asked_at: Instant::now(),
            runs_once: None,
        }
    }

    /// Makes an operation, kills in the middle of it, and sees what became of it.
    async fn make(&mut self, step: &Step, kill: Option<(Part, Stage)>) -> anyhow::Result<()> {
        if step.ask == Ask::Retry {
            self.fails().await?;
        }
        if step.ask == Ask::Act("reboot") && kill.is_some_and(|(part, _)| part == Part::Agent) {
            self.has_been_up().await?;
        }
        let boots = self.boots();
        let before = self.traces();
        self.asked_at = Instant::now();
        let asked = self.ask(step.ask).await?;
        let operation = asked.status.operation.clone();
        self.watch(asked);
        if let Some((part, stage)) = kill {
            self.kill(part, stage, &before).await?;
        }
        if step.ask == Ask::Delete {
            return self.is_gone(operation).await;
        }
        let settled = self.settles(step).await?;
        let is_finished = settled.status.phase == step.to;
        ensure!(
            is_finished || kill.is_some_and(|(part, _)| step.may_fail(part)),
            "it is not finished, and need not have failed: {:?}",
            settled.status
        );
        self.is_told(operation, is_finished, &settled).await?;
        self.vm = Some(settled);
        self.is_whole().await?;
        if is_finished {
            self.guest_is_intact(step, boots).await
        } else {
            self.is_tried_again(step, kill).await
        }
    }

    fn vm(&self) -> anyhow::Result<&VmObject> {
        self.vm.as_ref().context("the VM is not made yet")
    }

    fn traces(&self) -> Traces {
        match &self.vm {
            Some(vm) => Traces::of(self.world, &HOSTS, vms::id(vm)),
            None => Traces {
                marks: HOSTS.map(|host| (host.to_owned(), 0)).into(),
                processes: Vec::new(),
                last_words: 0,
            },
        }
    }

    async fn ask(&self, ask: Ask) -> anyhow::Result<VmObject> {
        let world = self.world;
        match ask {
            Ask::Create => {
                world
                    .create_vm(NAME, vms::spec(Some(HOSTS[0]), "probe tick &"))
                    .await
            }
            Ask::Act(action) => world.act(NAME, action).await,
            Ask::Retry => world.act(NAME, "retry").await,
            Ask::ResumeElsewhere => {
                // It is bound to its first host only by the wish of its creation.
                let free = json!({"spec": {"placement": {"host": null}}});
                world.client().patch::<Vm>(NAME, &free, None).await?;
                self.host_action(&self.home, "cordon").await?;
                world.act(NAME, "resume").await
            }
            Ask::Resize => {
                let patch = json!({"spec": {"memory_mib": MEMORY_MIB[1]}});
                Ok(world.client().patch::<Vm>(NAME, &patch, None).await?)
            }
            Ask::Delete => Ok(world.client().delete::<Vm>(NAME).await?),
        }
    }

    async fn host_action(&self, host: &str, word: &str) -> anyhow::Result<()> {
        let body = HostActionBody::default();
        self.world.client().action::<Host, _>(host, word, &body).await?;
        Ok(())
    }

    /// From its making to its end no two copies may execute at once.
    fn watch(&mut self, asked: VmObject) {
        let id = vms::id(&asked);
        let world = self.world;
        self.runs_once.get_or_insert_with(|| RunsOnce::begin(world, id));
        self.vm = Some(asked);
    }

    async fn kill(&self, part: Part, stage: Stage, before: &Traces) -> anyhow::Result<()> {
        let vm = vms::id(self.vm()?);
        let host = until_stage(self.world, &HOSTS, vm, before, stage).await?;
        match part {
            Part::Server => self.world.kill_server().await,
            Part::Agent => {
                self.world
                    .kill_agent(&host.unwrap_or_else(|| self.home.clone()))
                    .await
            }
            Part::Qemu => kill_qemus(self.world, vm).await,
        }
    }

    /// Waits until nothing is under way any more, and the VM is where the operation leads, or has failed.
    async fn settles(&self, step: &Step) -> anyhow::Result<VmObject> {
        let judge = |vm: &VmObject| {
            let is_over = vm.status.operation.is_none();
            let is_there = vm.status.phase == step.to && (step.guest != Guest::Boots || vm.status.ready);
            Verdict::from(is_over && (is_there || vm.status.phase == Phase::Failed))
        };
        wait::until::<Vm>(
            self.world.client(),
            NAME,
            &format!("{}, or failed", step.to),
            BOOT_PATIENCE,
            judge,
        )
        .await
    }

    /// Its record says how it ended, and a failure its cause and what leads on.
    async fn is_told(
        &self,
        operation: Option<String>,
        is_finished: bool,
        vm: &VmObject,
    ) -> anyhow::Result<()> {
        let Some(name) = operation else {
            return Ok(());
        };
        let operation = self.world.client().get::<Operation>(&name).await?.status;
        if is_finished {
            ensure!(operation.phase == OperationPhase::Done, "{name}: {operation:?}");
            return Ok(());
        }
        let has_cause =
            |reason: &Option<model::Reason>| reason.as_ref().is_some_and(|one| !one.message.is_empty());
        ensure!(
            operation.phase == OperationPhase::Failed && has_cause(&operation.reason),
            "{name}: {operation:?}"
        );
        ensure!(
            has_cause(&vm.status.reason) && !vm.status.next_commands.is_empty(),
            "nothing leads on from {:?}",
            vm.status
        );
        Ok(())
    }

    /// What its phase needs is there, and no more: one process or none, memory spoken for on its host or nowhere.
    async fn is_whole(&mut self) -> anyhow::Result<()> {
        let vm = self.vm()?.clone();
        let is_in_memory = matches!(vm.status.phase, Phase::Running | Phase::Paused);
        if let Some(host) = &vm.status.host {
            self.home.clone_from(host);
        }
        let is_so = || {
            let living = self.world.living(vms::id(&vm));
            match &living[..] {
                [(host, incarnation, _)] => {
                    is_in_memory && *host == self.home && Some(*incarnation) == vm.status.incarnation
                }
                others => others.is_empty() && !is_in_memory,
            }
        };
        wait::until_it_holds("it has the processes of its phase", PATIENCE, is_so).await?;
        for host in HOSTS {
            let spoken_for = is_in_memory && self.home == host;
            let judge = |host: &api::client::ObjectOf<Host>| {
                Verdict::from((host.status.reserved_mib > 0) == spoken_for)
            };
            wait::until::<Host>(
                self.world.client(),
                host,
                "reserves for it what it needs",
                PATIENCE,
                judge,
            )
            .await?;
        }
        Ok(())
    }

    async fn guest_is_intact(&mut self, step: &Step, boots: usize) -> anyhow::Result<()> {
        let vm = self.vm()?.clone();
        if step.ask == Ask::Resize {
            ensure!(
                vm.status.at_next_start == ["memory_mib"],
                "the change is lost: {:?}",
                vm.status
            );
        }
        if step.ask == Ask::ResumeElsewhere {
            let other = HOSTS
                .into_iter()
                .find(|host| *host != self.home)
                .unwrap_or_default();
            self.host_action(other, "uncordon").await?;
        }
        if step.guest == Guest::Rests {
            return Ok(());
        }
        let ticks = next_ticks(&mut self.console()?).await?;
        if step.guest == Guest::GoesOn {
            ensure!(
                ticks > self.ticks,
                "the guest began anew: {ticks} ticks after {}",
                self.ticks
            );
        }
        self.ticks = ticks;
        let booted = self.boots().saturating_sub(boots);
        // One that takes longer for its reboot than it had been up before cannot be told from one that has not rebooted. And
        // an agent that died between reading the console and writing it down took the line with it.
        let is_slow = step.ask == Ask::Act("reboot") && self.asked_at.elapsed() > UP_LONG;
        let most = if is_slow { 2 } else { 1 };
        ensure!(booted <= most, "the guest booted {booted} times");
        Ok(())
    }

    /// What failed can be made good, by what is said to lead on. The walk goes on from there.
    async fn is_tried_again(&mut self, step: &Step, kill: Option<(Part, Stage)>) -> anyhow::Result<()> {
        let is_a_start = step.to == Phase::Running && step.ask != Ask::Act("reboot");
        self.world
            .act(NAME, if is_a_start { "retry" } else { "start" })
            .await?;
        let mut vm = self.world.until_ready(NAME).await?;
        if step.to != Phase::Running {
            // A guest that was lost counts anew.
            self.home = vm.status.host.clone().context("it runs on no host")?;
            self.ticks = next_ticks(&mut self.console()?).await?;
            self.ask(step.ask).await?;
            vm = self.settles(step).await?;
            ensure!(
                vm.status.phase == step.to,
                "the second try failed: {:?}",
                vm.status
            );
        }
        self.vm = Some(vm);
        self.is_whole().await?;
        // Whether a guest whose QEMU was killed had begun to execute is not known: then it boots from its disk.
        let is_known = kill.is_none_or(|(part, _)| part != Part::Qemu);
        let guest = if is_known { step.guest } else { Guest::Boots };
        let boots = self.boots();
        let again = Step {
            guest: if step.to == Phase::Running {
                guest
            } else {
                Guest::Rests
            },
            ..*step
        };
        self.guest_is_intact(&again, boots).await
    }

    /// A reboot that no agent heard of is known by a guest that has been up for less than before: so before must be long.
    async fn has_been_up(&self) -> anyhow::Result<()> {
        let is_long = |line: &str| ticks(line).filter(|ticks| u128::from(*ticks) > UP_LONG.as_millis());
        self.console()?
            .until("a guest that has been up for long", PATIENCE, is_long)
            .await
            .map(drop)
    }

    /// Its QEMU ends, so that there is something to try again.
    async fn fails(&self) -> anyhow::Result<()> {
        kill_qemus(self.world, vms::id(self.vm()?)).await?;
        let failed = |vm: &VmObject| Verdict::from(vm.status.phase == Phase::Failed);
        self.world.until_vm(NAME, "failed", failed).await.map(drop)
    }

    /// Nothing of it is left but the record of its deletion.
    async fn is_gone(&self, operation: Option<String>) -> anyhow::Result<()> {
        let vm = self.vm()?;
        self.world.until_gone::<Vm>(NAME).await?;
        let name = operation.context("a deletion has no record")?;
        let status = self.world.client().get::<Operation>(&name).await?.status;
        ensure!(status.phase == OperationPhase::Done, "{name}: {status:?}");
        ensure!(
            self.world.living(vms::id(vm)).is_empty(),
            "a deleted VM has a process"
        );
        let volumes = self.world.volumes().join(vm.id.to_string());
        ensure!(!volumes.exists(), "{} is left", volumes.display());
        for host in HOSTS {
            let reserved = self.world.client().get::<Host>(host).await?.status.reserved_mib;
            ensure!(
                reserved == 0,
                "{reserved} MiB of {host} are reserved for a deleted VM"
            );
        }
        Ok(())
    }

    fn console(&self) -> anyhow::Result<Console> {
        let mut console = self.world.console(&self.home, vms::id(self.vm()?));
        console.skip();
        Ok(console)
    }

    /// How often its guest has booted.
    fn boots(&self) -> usize {
        let Some(vm) = &self.vm else { return 0 };
        HOSTS
            .iter()
            .map(|host| self.world.console(host, vms::id(vm)).count(BOOT_LINE))
            .sum()
    }

    fn bridge(&self) -> anyhow::Result<String> {
        let all = self.world.interfaces(HOSTS[0])?;
        let is_bridge = |name: &String| name.starts_with('s') && name.chars().nth(BRIDGE_AT) == Some('b');
        all.into_iter()
            .find(is_bridge)
            .context("the VM's network has no bridge")
    }

    async fn end(self) -> anyhow::Result<String> {
        self.runs_once.context("nothing was watched")?.end().await?;
        Ok(self.bridge)
    }
}

/// The next report of the guest's counter.
async fn next_ticks(console: &mut Console) -> anyhow::Result<u64> {
    console.until("the guest's ticks", PATIENCE, ticks).await
}

/// The guest's counter in its report: milliseconds, nearly.
fn ticks(line: &str) -> Option<u64> {
    let after = line.split_once("ticks=")?.1;
    after.split_whitespace().next()?.parse().ok()
}
