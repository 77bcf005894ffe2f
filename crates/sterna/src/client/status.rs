//! A short summary: how many hosts and VMs there are in which state, and what needs attention.

use std::collections::BTreeMap;
use std::process::ExitCode;

use api::Resource;
use api::client::ObjectOf;
use api::kinds::{Host, Image, ImageState, Migration, Vm};
use model::Reason;
use serde::Serialize;

use super::{Context, output};
use crate::cli::Output;

/// The whole summary.
#[derive(Debug, Default, Serialize)]
struct Summary {
    /// Hosts by state.
    hosts: BTreeMap<String, usize>,
    /// How many hosts take no new VMs.
    cordoned: usize,
    /// What guests may use on hosts that are heard, and what of it is reserved.
    memory_mib: u64,
    /// See `memory_mib`.
    reserved_mib: u64,
    /// VMs by phase.
    vms: BTreeMap<String, usize>,
    /// Migrations that are under way.
    migrations: Vec<String>,
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
    let (hosts, vms, images, migrations) = futures_util::try_join!(
        client.list::<Host>(),
        client.list::<Vm>(),
        client.list::<Image>(),
        client.list::<Migration>(),
    )?;
    let mut summary = Summary::default();
    summary.add_hosts(&hosts.0);
    summary.add_vms(&vms.0);
    summary.add_images(&images.0);
    let moving = migrations
        .0
        .iter()
        .filter(|migration| !migration.status.phase.is_final());
    summary.migrations = moving.map(|migration| migration.name.clone()).collect();
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
            self.cordoned += usize::from(host.spec.cordoned);
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
        for image in images
            .iter()
            .filter(|image| image.status.state == ImageState::Failed)
        {
            let next = [format!("sterna image import {} --file PATH", image.name)];
            self.attend(image, state::<Image>(image), image.status.reason.as_ref(), &next);
        }
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
        let cordoned = if self.cordoned > 0 {
            format!("; {} cordoned", self.cordoned)
        } else {
            String::new()
        };
        let mut lines = vec![
            format!("Hosts   {}{cordoned}", counts(&self.hosts)),
            format!(
                "Memory  {} MiB of {} MiB reserved",
                self.reserved_mib, self.memory_mib
            ),
            format!("VMs     {}", counts(&self.vms)),
        ];
        if !self.migrations.is_empty() {
            lines.push(format!("Moving  {}", self.migrations.join(", ")));
        }
        for it in &self.attention {
            lines.push(String::new());
            lines.push(format!(
                "{} {} is {}: {} ({})",
                it.kind, it.name, it.state, it.reason.message, it.reason.code
            ));
            lines.extend(it.next_commands.iter().map(|command| format!("  {command}")));
        }
        lines
    }
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

    #[test]
    fn what_needs_attention_comes_with_what_to_do() {
        let summary = Summary {
            hosts: [("silent".to_owned(), 1), ("up".to_owned(), 2)].into(),
            cordoned: 1,
            memory_mib: 4096,
            reserved_mib: 512,
            vms: BTreeMap::new(),
            migrations: vec!["web-m2".to_owned()],
            attention: vec![Attention {
                kind: model::Kind::Host,
                name: "h3".to_owned(),
                state: "silent".to_owned(),
                reason: Reason::new("host-silent", "nothing is heard from its agent"),
                next_commands: vec!["sterna host confirm-dead h3".to_owned()],
            }],
        };
        insta::assert_snapshot!(summary.text().join("\n"), @r"
        Hosts   3: 1 silent, 2 up; 1 cordoned
        Memory  512 MiB of 4096 MiB reserved
        VMs     none
        Moving  web-m2

        host h3 is silent: nothing is heard from its agent (host-silent)
          sterna host confirm-dead h3
        ");
    }
}
