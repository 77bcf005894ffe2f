//! Emptying hosts: what can leave and what cannot, then how far it is.

use std::convert::Infallible;
use std::process::ExitCode;
use std::time::Duration;

use api::client::ObjectOf;
use api::drain::{DrainStanding, DrainState, DrainStatus, DrainVm, HostActionBody};
use api::kinds::Host;
use futures_util::StreamExt;
use futures_util::future::join_all;
use indicatif::{ProgressBar, ProgressStyle};

use super::wait::{Goal, Verdict, until};
use super::{Context, output, select};
use crate::cli::{DrainArgs, Output};
use crate::units;

/// How soon after a watch ended it is asked for again.
const AGAIN: Duration = Duration::from_millis(500);

/// Says what would leave, then has it leave.
pub(super) async fn drain(context: &Context, args: DrainArgs) -> anyhow::Result<ExitCode> {
    let body = HostActionBody {
        parallel: args.parallel,
    };
    let client = &context.client;
    let rehearsal = client.rehearsal();
    let ask = async |id: &str| rehearsal.action::<Host, _>(id, "drain", &body).await;
    let (planned, code) = select::act::<Host, _>(context, &args.which, ask).await?;
    if args.dry_run {
        show(context, &planned)?;
        return Ok(code);
    }
    if context.output == Output::Table {
        output::lines(planned.iter().flat_map(text))?;
    }
    let names = planned.iter().map(|host| host.name.as_str());
    let ask = async |name: &str| client.action::<Host, _>(name, "drain", &body).await;
    let (hosts, asked) = context.each(names, ask).await;
    let code = if asked == ExitCode::SUCCESS { code } else { asked };
    if !args.wait.wait {
        if context.output != Output::Table {
            show(context, &hosts)?;
        }
        return Ok(code);
    }
    let ended = watched(context, hosts).await;
    show(context, &ended.objects)?;
    Ok(ended.code_after(code))
}

/// Prints the hosts; as a table, their drains in lines.
fn show(context: &Context, hosts: &[ObjectOf<Host>]) -> anyhow::Result<()> {
    if context.output == Output::Table {
        return output::lines(hosts.iter().flat_map(text));
    }
    output::several::<Host>(context, &hosts.iter().collect::<Vec<_>>())
}

/// That nothing runs on a host any more.
struct Empty;

impl Goal<Host> for Empty {
    fn judge(&self, host: &ObjectOf<Host>) -> Verdict {
        match host.status.drain.as_ref().map(|drain| drain.state) {
            Some(DrainState::Drained) => Verdict::Reached,
            Some(DrainState::Draining) => Verdict::NotYet,
            Some(DrainState::Stuck) => Verdict::Impossible(host.status.reason.as_ref().map_or_else(
                || "its drain is stuck".to_owned(),
                |reason| reason.message.clone(),
            )),
            None => Verdict::Impossible("its drain was ended meanwhile".to_owned()),
        }
    }

    fn word(&self) -> String {
        "drained".to_owned()
    }
}

/// Waits, and on a terminal shows a bar for each host.
async fn watched(context: &Context, hosts: Vec<ObjectOf<Host>>) -> super::wait::Ended<Host> {
    let names: Vec<String> = hosts.iter().map(|host| host.name.clone()).collect();
    let end = until::<Host, _>(context, hosts, &Empty);
    if context.progress.is_hidden() {
        return end.await;
    }
    let bars = async {
        join_all(names.iter().map(|name| bar(context, name))).await;
        std::future::pending::<Infallible>().await
    };
    let ended = tokio::select! {
        ended = end => ended,
        never = bars => match never {},
    };
    let _ = context.progress.clear();
    ended
}

/// Follows one host's drain with a bar, until it is dropped.
async fn bar(context: &Context, name: &str) {
    let bar = context.progress.add(ProgressBar::new(0));
    let style = ProgressStyle::with_template("{prefix}  [{bar:24}] {pos} of {len} moved  {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_prefix(name.to_owned());
    loop {
        if let Ok(mut changes) = context.client.watch::<Host>(None).await {
            while let Some(Ok(change)) = changes.next().await {
                if change.object.name != name {
                    continue;
                }
                if let Some(drain) = &change.object.status.drain {
                    bar.set_length(u64::from(drain.total));
                    bar.set_position(u64::from(drain.moved));
                    bar.set_message(summary(drain));
                }
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// What is left to do, in a few words.
fn summary(drain: &DrainStatus) -> String {
    let words = [
        (DrainStanding::Moves, "moving"),
        (DrainStanding::Queued, "queued"),
        (DrainStanding::Waits, "waiting"),
        (DrainStanding::Stays, "cannot leave"),
        (DrainStanding::Rests, "suspended"),
    ];
    let counted = words.map(|(standing, word)| {
        let count = drain.vms.iter().filter(|vm| vm.standing == standing).count();
        (count, word)
    });
    let mut parts: Vec<String> = counted
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, word)| format!("{count} {word}"))
        .collect();
    if drain.left_ms > 0 {
        let left = units::elapsed(Duration::from_millis(drain.left_ms));
        parts.push(format!("about {left} of moves left"));
    }
    parts.join(", ")
}

/// Lines for people.
fn text(host: &ObjectOf<Host>) -> Vec<String> {
    let Some(drain) = &host.status.drain else {
        return vec![format!("Host {} has no drain.", host.name)];
    };
    let state = match drain.state {
        DrainState::Draining => "drains",
        DrainState::Stuck => "cannot be emptied further",
        DrainState::Drained => "is drained: nothing runs on it",
    };
    let mut first = format!(
        "Host {} {state}; {} of {} VMs moved",
        host.name, drain.moved, drain.total
    );
    let left = summary(drain);
    if !left.is_empty() {
        first = format!("{first}, {left}");
    }
    let mut lines = vec![format!("{first}.")];
    lines.extend(drain.vms.iter().flat_map(vm_lines));
    lines
}

fn vm_lines(vm: &DrainVm) -> Vec<String> {
    let to = vm.to.as_deref().unwrap_or("another host");
    let why = vm.reason.as_ref().map(|reason| reason.message.as_str());
    let tried = if vm.attempts > 0 {
        format!(" (attempt {})", vm.attempts)
    } else {
        String::new()
    };
    let line = match vm.standing {
        DrainStanding::Moves => format!("  {} moves to {to}{tried}", vm.vm),
        DrainStanding::Queued => format!("  {} can go to {to}", vm.vm),
        DrainStanding::Waits => format!("  {} waits: {}", vm.vm, why.unwrap_or("-")),
        DrainStanding::Stays => format!("  {} cannot leave: {}", vm.vm, why.unwrap_or("-")),
        DrainStanding::Rests => format!("  {} stays: {}", vm.vm, why.unwrap_or("-")),
    };
    let shows_commands = matches!(vm.standing, DrainStanding::Stays | DrainStanding::Rests);
    let commands = vm.next_commands.iter().filter(|_| shows_commands);
    std::iter::once(line)
        .chain(commands.map(|command| format!("    {command}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_drain_says_what_leaves_and_what_cannot() {
        let drain: DrainStatus = serde_json::from_value(json!({
            "state": "draining", "asked_at": "2026-01-01T00:00:00Z", "parallel": 2, "moved": 1, "total": 4,
            "left_ms": 1500,
            "vms": [
                { "vm": "a", "standing": "moves", "to": "h2", "migration": "a-m2", "attempts": 1, "reason": null,
                  "next_commands": ["sterna migration cancel a-m2"] },
                { "vm": "b", "standing": "queued", "to": "h3", "migration": null, "attempts": 0, "reason": null,
                  "next_commands": [] },
                { "vm": "c", "standing": "stays", "to": null, "migration": null, "attempts": 0,
                  "reason": { "code": "no-host-fits", "message": "no host can take it: h2: short by 1 GiB" },
                  "next_commands": ["sterna vm explain c"] },
            ],
        }))
        .unwrap();
        assert_eq!(
            summary(&drain),
            "1 moving, 1 queued, 1 cannot leave, about 1.5s of moves left"
        );
        let lines: Vec<_> = drain.vms.iter().flat_map(vm_lines).collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
          a moves to h2 (attempt 1)
          b can go to h3
          c cannot leave: no host can take it: h2: short by 1 GiB
            sterna vm explain c
        ");
    }
}
