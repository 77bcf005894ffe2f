//! A short summary: how many hosts and VMs there are in which state, and what needs attention.

use std::collections::BTreeMap;
use std::process::ExitCode;

use api::Resource;
use api::client::ObjectOf;
use api::kinds::{Host, Image, ImageState, Migration, Vm};
use api::store::RestoredStatus;
use model::Reason;
use model::host::AcceleratorName;
use serde::Serialize;

use super::{Context, output};
use crate::cli::Output;

/// How many names are shown where there may be thousands.
const SHOWN_MAX: usize = 5;

/// The whole summary.
#[derive(Debug, Default, Serialize)]
struct Summary {
    /// Hosts by state.
    hosts: BTreeMap<String, usize>,
    /// How many of them are simulated.
    #[serde(skip_serializing_if = "is_none")]
    simulated: usize,
    /// The hosts that take no new VMs.
    cordoned: Vec<String>,
    /// What guests may use on hosts that are heard, and what of it is reserved.
    memory_mib: u64,
    /// See `memory_mib`.
    reserved_mib: u64,
    /// VMs by phase.
    vms: BTreeMap<String, usize>,
    /// Migrations that are under way.
    migrations: Vec<String>,
    /// Present while a restored store is held.
    #[serde(skip_serializing_if = "Option::is_none")]
    restored: Option<RestoredStatus>,
    /// What needs attention.
    attention: Vec<Attention>,
}

/// One object with a reason.
#[derive(Debug, Serialize)]
struct Attention {
    kind: model::Kind,
    name: String,
    state: String,
    reason: Reason,
    next_commands: Vec<String>,
}

pub(super) async fn status(context: &Context) -> anyhow::Result<ExitCode> {
    let client = &context.client;
    let (hosts, vms, images, migrations, store) = futures_util::try_join!(
        client.list::<Host>(),
        client.list::<Vm>(),
        client.list::<Image>(),
        client.list::<Migration>(),
        client.store_status(),
    )?;
    let mut summary = Summary {
        restored: store.restored,
        ..Summary::default()
    };
    summary.add_hosts(&hosts.0);
    summary.add_vms(&vms.0);
    summary.add_images(&images.0);
    summary.add_migrations(&migrations.0);
    match context.output {
        Output::Table => output::lines(summary.text())?,
        Output::Name => output::lines(
            summary
                .attention
                .iter()
                .map(|it| format!("{}/{}", it.kind, it.name)),
        )?,
        output => output::value(output, &summary)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// An object's state is what its table shows first.
fn state<R: Resource>(object: &ObjectOf<R>) -> String {
    R::row(object).into_iter().next().unwrap_or_default()
}

impl Summary {
    fn add_hosts(&mut self, hosts: &[ObjectOf<Host>]) {
        for host in hosts {
            let state = state::<Host>(host);
            *self.hosts.entry(state.clone()).or_default() += 1;
            let accelerator = host.status.accelerator.as_ref();
            if accelerator.is_some_and(|it| it.name == AcceleratorName::Simulated) {
                self.simulated += 1;
            }
            if host.spec.cordoned {
                self.cordoned.push(host.name.clone());
            }
            if host.status.state == api::kinds::HostState::Up {
                self.memory_mib += host.status.memory_mib.unwrap_or(0);
                self.reserved_mib += host.status.reserved_mib;
            }
            self.attend(
                host,
                state,
                host.status.reason.as_ref(),
                &host.status.next_commands,
            );
        }
    }

    fn add_vms(&mut self, vms: &[ObjectOf<Vm>]) {
        for vm in vms {
            let state = state::<Vm>(vm);
            *self.vms.entry(state.clone()).or_default() += 1;
            self.attend(vm, state, vm.status.reason.as_ref(), &vm.status.next_commands);
        }
    }

    fn add_images(&mut self, images: &[ObjectOf<Image>]) {
        let unusable = images
            .iter()
            .filter(|image| image.status.state != ImageState::Ready);
        for image in unusable {
            let next = [format!("sterna image import {} --file PATH", image.name)];
            let empty = Reason::new("image-empty", "its content has not come yet");
            let reason = image.status.reason.as_ref().unwrap_or(&empty);
            self.attend(image, state::<Image>(image), Some(reason), &next);
        }
    }

    fn add_migrations(&mut self, migrations: &[ObjectOf<Migration>]) {
        let moving = migrations
            .iter()
            .filter(|migration| !migration.status.phase.is_final());
        self.migrations = moving.map(|migration| migration.name.clone()).collect();
    }

    fn attend<S, T>(
        &mut self,
        object: &api::Object<S, T>,
        state: String,
        reason: Option<&Reason>,
        next: &[String],
    ) {
        let Some(reason) = reason else { return };
        self.attention.push(Attention {
            kind: object.kind,
            name: object.name.clone(),
            state,
            reason: reason.clone(),
            next_commands: next.to_vec(),
        });
    }

    /// Lines for people.
    fn text(&self) -> Vec<String> {
        let cordoned = if self.cordoned.is_empty() {
            String::new()
        } else {
            format!("; cordoned: {}", some(self.cordoned.iter().map(String::as_str)))
        };
        let simulated = match self.simulated {
            0 => String::new(),
            count => format!("; SIMULATED: {count}"),
        };
        let mut lines = vec![
            format!("Hosts   {}{simulated}{cordoned}", counts(&self.hosts)),
            format!(
                "Memory  {} MiB of {} MiB reserved",
                self.reserved_mib, self.memory_mib
            ),
            format!("VMs     {}", counts(&self.vms)),
        ];
        if !self.migrations.is_empty() {
            lines.push(format!(
                "Moving  {}",
                some(self.migrations.iter().map(String::as_str))
            ));
        }
        lines.push(String::new());
        if self.restored.is_some() {
            let held = "The store was restored from a backup and is held: nothing is decided until `sterna store resume`; \
                        `sterna store status` says what is in the way.";
            lines.push(held.to_owned());
        }
        if self.hosts.is_empty() {
            lines.push("No host has joined: `sterna host token` makes a token for one.".to_owned());
        } else if self.attention.is_empty() && self.restored.is_none() {
            lines.push("Nothing needs attention.".to_owned());
        }
        lines.extend(self.groups().iter().flat_map(|group| group_text(group)));
        lines
    }

    /// What is wrong in the same way stands together: a silent host does not hide what else there is.
    fn groups(&self) -> Vec<Vec<&Attention>> {
        let mut groups: Vec<Vec<&Attention>> = Vec::new();
        let key = |it: &Attention| (it.kind, it.state.clone(), it.reason.code.clone());
        for it in &self.attention {
            let same =
                |group: &&mut Vec<&Attention>| group.first().is_some_and(|first| key(first) == key(it));
            match groups.iter_mut().find(same) {
                Some(group) => group.push(it),
                None => groups.push(vec![it]),
            }
        }
        groups
    }
}

/// What is wrong, once, and with whom; then what to do about the first.
fn group_text(group: &[&Attention]) -> Vec<String> {
    let Some((first, others)) = group.split_first() else {
        return Vec::new();
    };
    let mut lines = vec![format!(
        "{} {} is {}: {} ({})",
        first.kind, first.name, first.state, first.reason.message, first.reason.code
    )];
    if !others.is_empty() {
        let names = others.iter().map(|it| it.name.as_str());
        lines.push(format!("  and so are {} others: {}", others.len(), some(names)));
    }
    lines.extend(first.next_commands.iter().map(|command| format!("  {command}")));
    lines
}

/// The first few of many names.
fn some<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut names = names.peekable();
    let mut shown: Vec<&str> = names.by_ref().take(SHOWN_MAX).collect();
    if names.peek().is_some() {
        shown.push("…");
    }
    shown.join(", ")
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde calls")]
const fn is_none(count: &usize) -> bool {
    *count == 0
}

/// As in `3: 2 Running, 1 Off`.
fn counts(by_state: &BTreeMap<String, usize>) -> String {
    let total: usize = by_state.values().sum();
    let parts: Vec<String> = by_state
        .iter()
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    if parts.is_empty() {
        "none".to_owned()
    } else {
        format!("{total}: {}", parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attention(kind: model::Kind, name: &str, state: &str, code: &str, next: &str) -> Attention {
        Attention {
            kind,
            name: name.to_owned(),
            state: state.to_owned(),
            reason: Reason::new(code, "nothing is heard"),
            next_commands: vec![format!("{next} {name}")],
        }
    }

    #[test]
    fn what_needs_attention_comes_with_what_to_do() {
        let unknown = |name| attention(model::Kind::Vm, name, "Unknown", "host-silent", "sterna host get");
        let host = attention(
            model::Kind::Host,
            "h3",
            "silent",
            "host-silent",
            "sterna host confirm-dead",
        );
        let summary = Summary {
            simulated: 0,
            hosts: [("silent".to_owned(), 1), ("up".to_owned(), 2)].into(),
            cordoned: vec!["h2".to_owned()],
            memory_mib: 4096,
            reserved_mib: 512,
            vms: BTreeMap::new(),
            migrations: vec!["web-m2".to_owned()],
            restored: None,
            attention: [host]
                .into_iter()
                .chain(["a", "b", "c", "d", "e", "f", "g"].map(unknown))
                .collect(),
        };
        insta::assert_snapshot!(summary.text().join("\n"), @r"
        Hosts   3: 1 silent, 2 up; cordoned: h2
        Memory  512 MiB of 4096 MiB reserved
        VMs     none
        Moving  web-m2

        host h3 is silent: nothing is heard (host-silent)
          sterna host confirm-dead h3
        vm a is Unknown: nothing is heard (host-silent)
          and so are 6 others: b, c, d, e, f, …
          sterna host get a
        ");
    }

    #[test]
    fn nothing_wrong_is_said_too() {
        let mut summary = Summary::default();
        assert!(summary.text().join("\n").contains("No host has joined"));
        summary.hosts.insert("up".to_owned(), 1);
        assert!(summary.text().join("\n").contains("Nothing needs attention"));
    }
}
