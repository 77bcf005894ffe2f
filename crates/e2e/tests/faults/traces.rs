//! The traces that an operation leaves, and who is killed at one of them.
//!
//! **Owns:** [`Part`] and [`Stage`], the instants of `life` and `fleet`. A stage is a trace that the operation has left, so that
//! no instant is guessed.

use std::fs;
use std::time::Duration;

use anyhow::Context;
use model::{Incarnation, VmId};
use testkit::process;
use testkit::vms::PATIENCE;
use testkit::world::World;
use tokio::time::{sleep, timeout};

/// Between two looks at the traces of an operation: much shorter than its steps take.
const PAUSE: Duration = Duration::from_millis(2);

/// What is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Server,
    /// That of the host which acts.
    Agent,
    /// The VM's.
    Qemu,
}

/// When it is killed: as soon as the operation has left this trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The request is answered, so its record is stored.
    Asked,
    /// A host has written down that it is about to do something, or has done it.
    Marked,
    /// A process of the VM has appeared or gone.
    Process,
    /// The guest's kernel has said its last word before it powers off or resets.
    LastWord,
}

/// What each such word begins with.
const LAST_WORD: &str = "reboot: ";

/// The traces that operations leave on hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Traces {
    /// By host, how many marks of the VM its journal holds.
    pub(super) marks: Vec<(String, usize)>,
    pub(super) processes: Vec<(String, Incarnation, i32)>,
    /// In the console's logs of all hosts.
    pub(super) last_words: usize,
}

impl Traces {
    pub(super) fn of(world: &World, hosts: &[&str], vm: VmId) -> Self {
        let marks = |host: &&str| {
            let journal = fs::read(world.host(host).join("journal")).unwrap_or_default();
            ((*host).to_owned(), marks(&String::from_utf8_lossy(&journal), vm))
        };
        Self {
            marks: hosts.iter().map(marks).collect(),
            processes: world.living(vm),
            last_words: hosts
                .iter()
                .map(|host| world.console(host, vm).count(LAST_WORD))
                .sum(),
        }
    }

    /// Whether the stage is reached, and on which host, if that can be seen.
    fn reached(&self, before: &Self, stage: Stage) -> Option<Option<String>> {
        match stage {
            Stage::Asked => Some(None),
            Stage::Marked => {
                let mut pairs = self.marks.iter().zip(&before.marks);
                let (host, _) = pairs.find(|(now, before)| now.1 > before.1)?;
                Some(Some(host.0.clone()))
            }
            Stage::LastWord => (self.last_words > before.last_words).then_some(None),
            Stage::Process => {
                let new = |(now, other): (&Self, &Self)| {
                    let one = now.processes.iter().find(|one| !other.processes.contains(one));
                    one.map(|(host, ..)| host.clone())
                };
                new((self, before)).or_else(|| new((before, self))).map(Some)
            }
        }
    }
}

/// How many marks of a VM are in the text of a journal.
fn marks(journal: &str, vm: VmId) -> usize {
    let id = vm.to_string();
    let entries = journal.split("{\"entry\":").skip(1);
    entries
        .filter(|entry| entry.starts_with("\"mark\"") && entry.contains(&id))
        .count()
}

/// Waits until an operation on a VM has left a trace; on which host, if that can be seen.
pub(super) async fn until_stage(
    world: &World,
    hosts: &[&str],
    vm: VmId,
    before: &Traces,
    stage: Stage,
) -> anyhow::Result<Option<String>> {
    let reached = async {
        loop {
            if let Some(host) = Traces::of(world, hosts, vm).reached(before, stage) {
                return host;
            }
            sleep(PAUSE).await;
        }
    };
    let ended = timeout(PATIENCE, reached).await;
    ended.with_context(|| format!("the operation never came to the stage {stage:?}"))
}

/// Kills every process of a VM.
pub(super) async fn kill_qemus(world: &World, vm: VmId) -> anyhow::Result<()> {
    for (_, _, pid) in world.living(vm) {
        process::kill(pid).await?;
    }
    Ok(())
}

#[test]
fn marks_are_counted_by_vm() {
    let vm =
        |n: u8| serde_json::from_str::<VmId>(&format!("\"0190b2a4-0000-7000-8000-00000000000{n}\"")).unwrap();
    let mark = |n| {
        format!(
            r#"{{"entry":"mark","vm":"{}","incarnation":1,"what":{{"mark":"ran"}}}}"#,
            vm(n)
        )
    };
    let forget = format!(r#"{{"entry":"forget","vm":"{}","incarnation":1}}"#, vm(1));
    let journal = format!("J 0 [{},{},{forget}]\nJ 1 [{}]\n\0\0", mark(1), mark(2), mark(1));
    assert_eq!((marks(&journal, vm(1)), marks(&journal, vm(2))), (2, 1));
}
