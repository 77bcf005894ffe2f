//! Keeping a template warm: the server makes a warm form of it whenever there is none, and VMs start from that.

use std::process::ExitCode;

use api::client::ObjectOf;
use api::kinds::Template;
use api::template::WarmState;
use serde_json::{Value, json};

use super::wait::{Goal, Verdict, because, until};
use super::{Context, output};
use crate::cli::WarmArgs;

/// VMs can start from its memory.
struct Warm;

impl Goal<Template> for Warm {
    fn judge(&self, template: &ObjectOf<Template>) -> Verdict {
        let Some(warm) = &template.status.warm else {
            return Verdict::Impossible("it shall not be kept warm any more".to_owned());
        };
        let reason = warm.reason.as_ref();
        match warm.state {
            WarmState::Ready => Verdict::Reached,
            WarmState::GivenUp => Verdict::Impossible(because("no more warm forms are made", reason)),
            WarmState::Due if warm.failures > 0 => {
                let next = warm.next_at.map(|at| format!(", and is tried again at {at}"));
                let what = format!("making its warm form failed{}", next.unwrap_or_default());
                Verdict::Impossible(because(&what, reason))
            }
            WarmState::Making | WarmState::Due => Verdict::NotYet,
        }
    }

    fn word(&self) -> String {
        "warm".to_owned()
    }
}

pub(super) async fn warm(context: &Context, args: WarmArgs) -> anyhow::Result<ExitCode> {
    let keep_warm = match (args.off, &args.datastore) {
        (true, _) => Value::Null,
        (false, Some(datastore)) => json!({"datastore": datastore}),
        (false, None) => json!({}),
    };
    let patch = json!({"spec": {"keep_warm": keep_warm}});
    let template = context.client.patch::<Template>(&args.name, &patch, None).await?;
    if args.off || !args.wait.wait {
        return output::one::<Template>(context, &template);
    }
    let ended = until::<Template, _>(context, vec![template], &Warm).await;
    output::several::<Template>(context, &ended.objects.iter().collect::<Vec<_>>())?;
    Ok(ended.code_after(ExitCode::SUCCESS))
}
