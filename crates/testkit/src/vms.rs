//! What tests do with VMs: make them, tell them what to do, move them, and find their processes.
//!
//! **Owns:** the calls and the waiting that go with them; the names of the image and the template.
//!
//! **Does not know:** how a VM is kept running.
//!
//! **Start here:** [`World::make_template`], [`World::create_vm`], [`World::migrate`].

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use api::apply::{ApplyBody, Secret};
use api::client::ObjectOf;
use api::kinds::{
    ActionBody, GuestSpec, Image, ImageSpec, Migration, MigrationSpec, Operation, PlacementSpec, Template,
    TemplateSpec, Vm, VmSpec,
};
use api::{Create, Resource};
use futures_util::stream;
use model::lifecycle::Phase;
use model::migration::MigrationPhase;
use model::operation::OperationPhase;
use model::{Incarnation, VmId};
use qemu::spawn::{ProcessId, QemuProcess, RECORD_FILE};
use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::console::Console;
use crate::process::Process;
use crate::wait::{self, Verdict};
use crate::world::{World, guest_image};

/// The name of the image and of the template.
pub const TINY: &str = "tiny";
/// How long a guest may take to boot on a busy machine without hardware virtualisation.
pub const BOOT_PATIENCE: Duration = Duration::from_secs(90);
/// How long everything else may take.
pub const PATIENCE: Duration = Duration::from_secs(45);
const PAUSE: Duration = Duration::from_millis(5);
/// How long what is done in a guest may take, in seconds.
const APPLY_S: u64 = 60;

/// A VM.
pub type VmObject = ObjectOf<Vm>;
/// A migration.
pub type MigrationObject = ObjectOf<Migration>;

/// A VM from the template: on one host if one is named, with a script that its guest runs at boot.
pub fn spec(host: Option<&str>, script: &str) -> VmSpec {
    let user_data = (!script.is_empty()).then(|| format!("#!/bin/sh\n{script}\n").into());
    VmSpec {
        template: Some(TINY.to_owned()),
        guest: Some(GuestSpec {
            user_data,
            ..GuestSpec::default()
        }),
        placement: PlacementSpec {
            host: host.map(str::to_owned),
            ..PlacementSpec::default()
        },
        ..VmSpec::default()
    }
}

/// A VM's id.
pub fn id(vm: &VmObject) -> VmId {
    VmId(vm.id)
}

/// The address of a VM's first interface.
pub fn address(vm: &VmObject) -> anyhow::Result<String> {
    let nic = vm
        .spec
        .nics
        .as_ref()
        .and_then(|nics| nics.first())
        .context("the VM has no interface")?;
    Ok(nic
        .address
        .context("the VM's interface has no address")?
        .to_string())
}

fn body<S>(name: &str, spec: S) -> Create<S> {
    Create {
        name: Some(name.to_owned()),
        labels: BTreeMap::new(),
        spec,
    }
}

impl World {
    /// Sends the guest's image; its size in bytes.
    pub async fn import_image(&self) -> anyhow::Result<u64> {
        self.import(&guest_image()?).await
    }

    /// Sends an image of which the template will be; its size in bytes.
    pub async fn import(&self, path: &Path) -> anyhow::Result<u64> {
        self.import_as(TINY, path).await
    }

    /// The same with this name.
    pub async fn import_as(&self, name: &str, path: &Path) -> anyhow::Result<u64> {
        let content = tokio::fs::read(path)
            .await
            .with_context(|| format!("reading {}", path.display()))?;
        let bytes = content.len() as u64;
        self.client()
            .create::<Image>(&body(name, ImageSpec::default()), None, false)
            .await?;
        self.client()
            .upload(name, None, bytes, stream::iter([Ok(content)]))
            .await?;
        Ok(bytes)
    }

    /// Makes the template of the image.
    pub async fn create_template(&self, memory_mib: u64) -> anyhow::Result<()> {
        self.create_template_of(TINY, memory_mib).await
    }

    /// The same of an image, and named like it.
    pub async fn create_template_of(&self, image: &str, memory_mib: u64) -> anyhow::Result<()> {
        let spec = TemplateSpec {
            image: image.to_owned(),
            memory_mib: Some(memory_mib),
            ..TemplateSpec::default()
        };
        self.client()
            .create::<Template>(&body(image, spec), None, false)
            .await?;
        Ok(())
    }

    /// The image and the template of it.
    pub async fn make_template(&self, memory_mib: u64) -> anyhow::Result<()> {
        self.import_image().await?;
        self.create_template(memory_mib).await
    }

    /// Asks for a VM.
    pub async fn create_vm(&self, name: &str, spec: VmSpec) -> anyhow::Result<VmObject> {
        Ok(self.client().create::<Vm>(&body(name, spec), None, false).await?)
    }

    /// Tells a VM what to do.
    pub async fn act(&self, name: &str, action: &str) -> anyhow::Result<VmObject> {
        Ok(self
            .client()
            .action::<Vm, _>(name, action, &ActionBody::default())
            .await?)
    }

    /// What a script in a guest prints, which ends well.
    pub async fn does(&self, vm: &str, script: &str) -> anyhow::Result<String> {
        let body = ApplyBody {
            script: Some(Secret(format!("#!/bin/sh\n{script}"))),
            timeout_s: Some(APPLY_S),
            ..ApplyBody::default()
        };
        let asked = self.client().apply(vm, &body, None).await?;
        let ended = self.until_operation_ended(&asked.name).await?;
        ensure!(
            ended.status.phase == OperationPhase::Done,
            "{vm}: {:?}",
            ended.status
        );
        Ok(ended.status.applied.unwrap_or_default().output)
    }

    /// Waits until an operation in a guest has ended, whichever way.
    pub async fn until_operation_ended(&self, name: &str) -> anyhow::Result<ObjectOf<Operation>> {
        let has_ended = |one: &ObjectOf<Operation>| Verdict::from(one.status.ended_at.is_some());
        wait::until::<Operation>(self.client(), name, "ended", 2 * BOOT_PATIENCE, has_ended).await
    }

    /// Has a VM's guest shut down; its disk, which nobody has open any more.
    pub async fn shut_down(&self, name: &str) -> anyhow::Result<PathBuf> {
        self.act(name, "shutdown").await?;
        let is_off = |vm: &VmObject| Verdict::from(vm.status.phase == Phase::Off);
        let vm = self.until_vm(name, "off", is_off).await?;
        Ok(self.disk(&vm))
    }

    /// A VM's disk.
    pub fn disk(&self, vm: &VmObject) -> PathBuf {
        self.volumes().join(vm.id.to_string()).join("root.qcow2")
    }

    /// A VM as it is now.
    pub async fn get_vm(&self, name: &str) -> anyhow::Result<VmObject> {
        Ok(self.client().get::<Vm>(name).await?)
    }

    /// Waits until a VM is as `judge` wants it.
    pub async fn until_vm(
        &self,
        name: &str,
        what: &str,
        judge: impl Fn(&VmObject) -> Verdict,
    ) -> anyhow::Result<VmObject> {
        wait::until::<Vm>(self.client(), name, what, PATIENCE, judge).await
    }

    /// Waits until a VM is in a phase, and fails at once if it is Failed instead.
    pub async fn until_phase(&self, name: &str, phase: Phase) -> anyhow::Result<VmObject> {
        self.until_vm(name, &format!("in phase {phase}"), |vm| match vm.status.phase {
            now if now == phase => Verdict::Reached,
            Phase::Failed => Verdict::Never,
            _ => Verdict::NotYet,
        })
        .await
    }

    /// Waits until a VM runs and its guest's agent has answered.
    pub async fn until_ready(&self, name: &str) -> anyhow::Result<VmObject> {
        let judge = |vm: &VmObject| match vm.status.phase {
            Phase::Running => Verdict::from(vm.status.ready),
            Phase::Failed => Verdict::Never,
            _ => Verdict::NotYet,
        };
        wait::until::<Vm>(self.client(), name, "running and ready", BOOT_PATIENCE, judge).await
    }

    /// Deletes a VM and waits until it is gone.
    pub async fn delete_vm(&self, name: &str) -> anyhow::Result<()> {
        self.client().delete::<Vm>(name).await?;
        self.until_gone::<Vm>(name).await
    }

    /// Waits until no object has this name.
    pub async fn until_gone<R: Resource>(&self, name: &str) -> anyhow::Result<()> {
        wait::until_gone::<R>(self.client(), name, PATIENCE).await
    }

    /// Asks for a migration.
    pub async fn migrate(&self, vm: &str, to: &str) -> anyhow::Result<MigrationObject> {
        let spec = MigrationSpec {
            vm: vm.to_owned(),
            to: Some(to.to_owned()),
            cancel: false,
        };
        let body = Create {
            name: None,
            labels: BTreeMap::new(),
            spec,
        };
        Ok(self.client().create::<Migration>(&body, None, false).await?)
    }

    /// Asks a migration to stop.
    pub async fn cancel_migration(&self, name: &str) -> anyhow::Result<()> {
        self.client()
            .patch::<Migration>(name, &json!({"spec": {"cancel": true}}), None)
            .await?;
        Ok(())
    }

    /// Waits until a migration has reached a phase, or one after it.
    pub async fn until_migration(
        &self,
        name: &str,
        phase: MigrationPhase,
    ) -> anyhow::Result<MigrationObject> {
        let what = format!("in phase {phase:?}");
        wait::until::<Migration>(self.client(), name, &what, PATIENCE, |migration| {
            let now = migration.status.phase;
            match now.is_final() {
                true if now != phase => Verdict::Never,
                _ => Verdict::from(now >= phase),
            }
        })
        .await
    }

    /// Waits until a migration has ended, whichever way.
    pub async fn until_migration_ended(&self, name: &str) -> anyhow::Result<MigrationObject> {
        let is_final = |migration: &MigrationObject| Verdict::from(migration.status.phase.is_final());
        wait::until::<Migration>(self.client(), name, "ended", PATIENCE, is_final).await
    }

    /// Waits until words are said on a VM's console, since it is on its host.
    pub async fn said(&self, vm: &VmObject, words: &str) -> anyhow::Result<()> {
        let host = vm.status.host.as_deref().context("it is on no host")?;
        let is_there = |line: &str| line.contains(words).then_some(());
        self.console(host, id(vm))
            .until(words, BOOT_PATIENCE, is_there)
            .await
    }

    /// A VM's console on a host.
    pub fn console(&self, host: &str, vm: VmId) -> Console {
        Console::new(self.vm(host, vm).join("console.log"))
    }

    /// The QEMU of an incarnation on a host, if it lives.
    pub fn qemu(&self, host: &str, vm: VmId, incarnation: Incarnation) -> Option<QemuProcess> {
        let record = self.vm(host, vm).join(incarnation.to_string()).join(RECORD_FILE);
        let id: ProcessId = serde_json::from_slice(&fs::read(record).ok()?).ok()?;
        QemuProcess::reopen(id).ok()
    }

    /// Every living QEMU of a VM: its host, its incarnation, its process.
    pub fn living(&self, vm: VmId) -> Vec<(String, Incarnation, i32)> {
        let named = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
        let living = incarnations(&self.directory().join("hosts"), vm)
            .into_iter()
            .filter_map(|directory| {
                let incarnation = Incarnation(named(&directory)?.parse().ok()?);
                // hosts/HOST/vms/ID/INCARNATION
                let host = named(directory.ancestors().nth(3)?)?;
                Some((host, incarnation, living(&directory)?))
            });
        living.collect()
    }

    /// Waits until the target's QEMU of a migration has received memory; its process. The transfer is in full swing then.
    pub async fn until_memory_arrives(
        &self,
        vm: VmId,
        migration: &MigrationObject,
    ) -> anyhow::Result<QemuProcess> {
        let planned = self
            .until_migration(&migration.name, MigrationPhase::Preparing)
            .await?;
        let target = planned.status.target.context("the migration has no target")?;
        let incarnation = planned
            .status
            .to_incarnation
            .context("the migration has no incarnation")?;
        let arrives = async {
            let mut at_first = None;
            loop {
                if let Some(process) = self.qemu(&target, vm, incarnation)
                    && let Some(resident_kib) = resident_kib(process.id().pid)
                {
                    let least = *at_first.get_or_insert(resident_kib);
                    if resident_kib >= least.max(STARTED_KIB) + ARRIVED_KIB {
                        return process;
                    }
                }
                sleep(PAUSE).await;
            }
        };
        timeout(PATIENCE, arrives)
            .await
            .context("no memory arrived at the migration's target")
    }
}

/// The directories of all incarnations of a VM, on all hosts.
pub(crate) fn incarnations(hosts: &Path, vm: VmId) -> Vec<PathBuf> {
    let below = |directory: PathBuf| {
        let entries = fs::read_dir(directory)
            .into_iter()
            .flatten()
            .filter_map(Result::ok);
        entries.map(|entry| entry.path())
    };
    below(hosts.to_owned())
        .flat_map(|host| below(host.join("vms").join(vm.to_string())))
        .collect()
}

/// The process of the QEMU of an incarnation's directory, if it lives.
pub(crate) fn living(directory: &Path) -> Option<i32> {
    let id: ProcessId = serde_json::from_slice(&fs::read(directory.join(RECORD_FILE)).ok()?).ok()?;
    // One that has ended and is not reaped yet is held by its number still.
    Process::of(id).map(|process| process.id.pid)
}

/// What a QEMU takes before any memory has arrived, at most.
const STARTED_KIB: u64 = 24 << 10;
/// How much of the guest's memory counts as a transfer that has begun.
const ARRIVED_KIB: u64 = 16 << 10;

/// The memory of its own that a process has.
fn resident_kib(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.split_whitespace().next()?.parse().ok()
}
