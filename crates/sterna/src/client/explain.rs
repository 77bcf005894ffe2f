//! Why a VM is where it is, what is wrong with it, and what leads on.

use std::process::ExitCode;

use api::client::ObjectOf;
use api::kinds::{Placement, Vm};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Context, now, output, select};
use crate::cli::{Output, Selection};
use crate::units;

pub(super) async fn explain(context: &Context, which: &Selection) -> anyhow::Result<ExitCode> {
    let ask = async |id: &str| context.client.get::<Vm>(id).await;
    let (vms, code) = select::act::<Vm, _>(context, which, ask).await?;
    match context.output {
        Output::Table => output::lines(vms.iter().flat_map(|vm| text(vm, now())))?,
        Output::Name => output::lines(vms.iter().map(output::name::<Vm>))?,
        output => match &vms[..] {
            [] => {}
            [vm] => output::value(output, &document(vm))?,
            vms => output::value(
                output,
                &json!({ "items": vms.iter().map(document).collect::<Vec<_>>() }),
            )?,
        },
    }
    Ok(code)
}

fn document(vm: &ObjectOf<Vm>) -> Value {
    let status = &vm.status;
    json!({
        "kind": vm.kind,
        "id": vm.id,
        "name": vm.name,
        "phase": status.phase,
        "availability": status.availability,
        "host": status.host,
        "wanted": { "power": vm.spec.power, "placement": vm.spec.placement },
        "reason": status.reason,
        "placement": status.placement,
        "migration": status.migration,
        "steps_ms": status.steps_ms,
        "next_commands": status.next_commands,
    })
}

/// Lines for people.
fn text(vm: &ObjectOf<Vm>, now: Timestamp) -> Vec<String> {
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
    lines.extend(rule(vm));
    match &status.placement {
        Some(placement) => lines.extend(placed(placement, now)),
        None => lines.push("  Placement: nothing has been decided yet.".to_owned()),
    }
    if let Some(migration) = &status.migration {
        lines.push(format!("  It is being moved: `sterna migration get {migration}`"));
    }
    if !status.steps_ms.is_empty() {
        let steps: Vec<String> = status
            .steps_ms
            .iter()
            .map(|(step, ms)| format!("{step} {ms} ms"))
            .collect();
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

/// What the user asked of the host.
fn rule(vm: &ObjectOf<Vm>) -> Option<String> {
    let placement = &vm.spec.placement;
    let host = placement.host.iter().map(|host| format!("only on {host}"));
    let labels = placement
        .host_labels
        .iter()
        .map(|(key, value)| format!("only on hosts with {key}={value}"));
    let rules: Vec<String> = host.chain(labels).collect();
    (!rules.is_empty()).then(|| format!("  Asked for: {}", rules.join(", ")))
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
                "steps_ms": {}, "operation": null, "at_next_start": [], "next_commands": ["sterna vm hold web", "sterna vm delete web"],
            },
        }))
        .unwrap();
        let now = "2026-01-01T00:05:01Z".parse().unwrap();
        insta::assert_snapshot!(text(&vm, now).join("\n"), @r"
        VM web is Pending.
          What is wrong: none of 3 hosts fits: too little memory (no-host-fits)
          Asked for: only on hosts with disk=ssd
          Placement, tried 5m ago: none of 3 hosts fits
            2 hosts refused (h1, h2): needs 4096 MiB, 1024 MiB are free (memory)
            1 host refused (h3): it is cordoned (cordoned)
          What leads on:
            sterna vm hold web
            sterna vm delete web
        ");
    }
}
