//! Why a VM is where it is, what is wrong with it, and what leads on.

use std::collections::BTreeMap;
use std::process::ExitCode;

use api::client::ObjectOf;
use api::drain::DrainStanding;
use api::kinds::{Placement, Vm};
use api::placement::{AffinitySpec, Explanation, PeersSpec};
use jiff::Timestamp;
use model::report::StepTime;
use serde_json::{Value, json};

use super::{Context, clone, now, output, select};
use crate::cli::{Output, Selection};
use crate::units;

pub(super) async fn explain(context: &Context, which: &Selection) -> anyhow::Result<ExitCode> {
    let client = &context.client;
    let ask = async |id: &str| futures_util::try_join!(client.get::<Vm>(id), client.explain(id));
    let (found, code) = select::act::<Vm, _>(context, which, ask).await?;
    match context.output {
        Output::Table => output::lines(found.iter().flat_map(|(vm, why)| text(vm, why, now())))?,
        Output::Name => output::lines(found.iter().map(|(vm, _)| output::name::<Vm>(vm)))?,
        output => match &found[..] {
            [] => {}
            [found] => output::value(output, &document(found))?,
            found => output::value(
                output,
                &json!({ "items": found.iter().map(document).collect::<Vec<_>>() }),
            )?,
        },
    }
    Ok(code)
}

fn document((vm, why): &(ObjectOf<Vm>, Explanation)) -> Value {
    let status = &vm.status;
    json!({
        "kind": vm.kind,
        "id": vm.id,
        "name": vm.name,
        "phase": status.phase,
        "availability": status.availability,
        "host": status.host,
        "wanted": { "power": vm.spec.power, "placement": vm.spec.placement },
        "needs": {
            "memory_mib": why.needs_mib,
            "overhead_mib": why.overhead_mib,
            "vcpus": why.needs_vcpus,
        },
        "reason": status.reason,
        "placement": status.placement,
        "hosts": why.hosts,
        "smallest_change": why.smallest_change,
        "drain": why.drain,
        "migration": status.migration,
        "steps": status.steps,
        "at_next_start": status.at_next_start,
        "next_commands": status.next_commands,
    })
}

/// Lines for people.
fn text(vm: &ObjectOf<Vm>, why: &Explanation, now: Timestamp) -> Vec<String> {
    let status = &vm.status;
    let place = status
        .host
        .as_ref()
        .map(|host| format!(" on {host}"))
        .unwrap_or_default();
    let mut lines = vec![format!("VM {} is {}{place}.", vm.name, status.phase)];
    if let Some(reason) = &status.reason {
        lines.push(format!("  What is wrong: {} ({})", reason.message, reason.code));
    }
    if !status.at_next_start.is_empty() {
        let parts = status.at_next_start.join(", ");
        lines.push(format!("  From its next start on, not before: its new {parts}"));
    }
    let source = vm.spec.clone_of.as_deref().unwrap_or("another");
    lines.extend(clone::note(vm, source).map(|note| format!("  {note}")));
    lines.extend(drained(why));
    lines.extend(rule(vm));
    match &status.placement {
        Some(placement) => lines.extend(placed(placement, now)),
        None => lines.push("  Placement: nothing has been decided yet.".to_owned()),
    }
    lines.extend(hosts_now(why));
    if let Some(migration) = &status.migration {
        lines.push(format!("  It is being moved: `sterna migration get {migration}`"));
    }
    lines.extend(led_on(vm));
    lines
}

/// How long its start took, and what leads on.
fn led_on(vm: &ObjectOf<Vm>) -> Vec<String> {
    let status = &vm.status;
    let mut lines = Vec::new();
    if !status.steps.is_empty() {
        let took = |step: &StepTime| format!("{} {} ms", step.step, step.took_ms);
        let steps: Vec<String> = status.steps.iter().map(took).collect();
        lines.push(format!("  Its start took: {}", steps.join(", ")));
    }
    if !status.next_commands.is_empty() {
        lines.push("  What leads on:".to_owned());
        lines.extend(
            status
                .next_commands
                .iter()
                .map(|command| format!("    {command}")),
        );
    }
    lines
}

/// What its host's drain says of it.
fn drained(why: &Explanation) -> Option<String> {
    let drain = why.drain.as_ref()?;
    let says = match drain.standing {
        DrainStanding::Moves => "it is being moved away".to_owned(),
        DrainStanding::Queued => "it waits for its turn to be moved away".to_owned(),
        DrainStanding::Waits | DrainStanding::Stays | DrainStanding::Rests => drain
            .reason
            .as_ref()
            .map_or("-", |reason| reason.message.as_str())
            .to_owned(),
    };
    Some(format!("  Its host is being drained: {says}"))
}

/// Every host as it is now, and what would let the VM in.
fn hosts_now(why: &Explanation) -> Vec<String> {
    let mut lines = vec![format!(
        "  It takes {} MiB, {} MiB of it QEMU's own part, and {} virtual processors. The hosts now:",
        why.needs_mib, why.overhead_mib, why.needs_vcpus
    )];
    lines.extend(why.hosts.iter().map(|host| {
        let free = format!("{} of {} MiB are free", host.free_mib, host.total_mib);
        let says = if host.is_here {
            format!("it is here; {free}")
        } else if host.fits {
            format!("would take it; {free}")
        } else {
            let all = host.obstacles.iter().map(|reason| reason.message.as_str());
            all.collect::<Vec<_>>().join("; ")
        };
        format!("    {}: {says}", host.host)
    }));
    let change = why.smallest_change.iter();
    lines.extend(
        change.map(|change| format!("  The smallest change that would make room elsewhere: {change}")),
    );
    lines
}

/// What the user asked of the host.
fn rule(vm: &ObjectOf<Vm>) -> Option<String> {
    let placement = &vm.spec.placement;
    let host = placement.host.iter().map(|host| format!("start only on {host}"));
    let labels = placement
        .host_labels
        .iter()
        .map(|(key, value)| format!("only on hosts with {key}={value}"));
    let with = rules("with", &placement.affinity);
    let apart = rules("apart from", &placement.anti_affinity);
    let rules: Vec<String> = host.chain(labels).chain(with).chain(apart).collect();
    (!rules.is_empty()).then(|| format!("  Asked for: {}", rules.join(", ")))
}

fn rules(word: &str, rules: &[AffinitySpec]) -> Vec<String> {
    let shown = |labels: &BTreeMap<String, String>| model::placement::shown(labels);
    let one = |rule: &AffinitySpec| {
        let peers = match &rule.to {
            PeersSpec::Vms(labels) => format!("VMs with {}", shown(labels)),
            PeersSpec::HostLabels(labels) => format!("hosts with {}", shown(labels)),
            PeersSpec::Hosts(names) => format!("hosts {}", names.join(" ")),
        };
        let soft = if rule.soft { " if possible" } else { "" };
        format!("{word} {peers}{soft}")
    };
    rules.iter().map(one).collect()
}

fn placed(placement: &Placement, now: Timestamp) -> Vec<String> {
    let ago = units::age(now.duration_since(placement.decided_at).as_secs());
    let refused: u32 = placement.refused.iter().map(|group| group.count).sum();
    let considered = placement.considered;
    let first = match &placement.chosen {
        Some(host) => {
            let fit = considered.saturating_sub(refused);
            format!(
                "  Placement, decided {ago} ago: {host}, the best of {fit} that fit; {considered} were looked at"
            )
        }
        None => format!("  Placement, tried {ago} ago: none of {considered} hosts fits"),
    };
    let groups = placement.refused.iter().map(|group| {
        let some = group.hosts.join(", ");
        let more = if (group.hosts.len() as u64) < u64::from(group.count) {
            ", …"
        } else {
            ""
        };
        let hosts = if group.count == 1 { "host" } else { "hosts" };
        let reason = &group.reason;
        if group.count == 0 {
            return format!("    {} ({})", reason.message, reason.code);
        }
        format!(
            "    {} {hosts} refused ({some}{more}): {} ({})",
            group.count, reason.message, reason.code
        )
    });
    std::iter::once(first).chain(groups).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_that_waits_says_for_what() {
        let vm: ObjectOf<Vm> = serde_json::from_value(json!({
            "kind": "vm", "id": "01890000-0000-7000-8000-000000000001", "name": "web", "project": "default",
            "owner": "admin", "labels": {}, "revision": 7, "created_at": "2026-01-01T00:00:00Z",
            "updated_at": "2026-01-01T00:00:00Z", "deleted_at": null,
            "spec": { "memory_mib": 4096, "placement": { "host_labels": { "disk": "ssd" } } },
            "status": {
                "phase": "Pending", "availability": "inactive", "host": null, "incarnation": null, "addresses": [],
                "ready": false, "migration": null,
                "reason": { "code": "no-host-fits", "message": "none of 3 hosts fits: too little memory" },
                "placement": {
                    "decided_at": "2026-01-01T00:00:01Z", "chosen": null, "considered": 3,
                    "refused": [
                        { "count": 2, "hosts": ["h1", "h2"],
                          "reason": { "code": "memory", "message": "needs 4096 MiB, 1024 MiB are free" } },
                        { "count": 1, "hosts": ["h3"], "reason": { "code": "cordoned", "message": "it is cordoned" } },
                    ],
                },
                "steps": [], "operation": null, "at_next_start": [], "next_commands": ["sterna vm hold web", "sterna vm delete web"],
            },
        }))
        .unwrap();
        let why: Explanation = serde_json::from_value(json!({
            "vm": "web", "phase": "Pending", "host": null, "needs_mib": 4224, "overhead_mib": 128, "needs_vcpus": 1,
            "drain": null, "smallest_change": "free 3200 MiB on h1",
            "hosts": [
                { "host": "h1", "is_here": false, "fits": false, "free_mib": 1024, "total_mib": 8192,
                  "obstacles": [{ "code": "memory-short", "message": "short by 3200 MiB" }] },
                { "host": "h2", "is_here": false, "fits": true, "free_mib": 5000, "total_mib": 8192, "obstacles": [] },
            ],
        }))
        .unwrap();
        let now = "2026-01-01T00:05:01Z".parse().unwrap();
        insta::assert_snapshot!(text(&vm, &why, now).join("\n"), @r"
        VM web is Pending.
          What is wrong: none of 3 hosts fits: too little memory (no-host-fits)
          Asked for: only on hosts with disk=ssd
          Placement, tried 5m ago: none of 3 hosts fits
            2 hosts refused (h1, h2): needs 4096 MiB, 1024 MiB are free (memory)
            1 host refused (h3): it is cordoned (cordoned)
          It takes 4224 MiB, 128 MiB of it QEMU's own part, and 1 virtual processors. The hosts now:
            h1: short by 3200 MiB
            h2: would take it; 5000 of 8192 MiB are free
          The smallest change that would make room elsewhere: free 3200 MiB on h1
          What leads on:
            sterna vm hold web
            sterna vm delete web
        ");
    }
}
