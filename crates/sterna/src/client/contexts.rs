//! The commands that read and change the file with contexts. They ask no server.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use serde_json::json;

use super::config::{Config, Connection};
use super::output::{self, Table};
use crate::cli::{ContextCommand, Global, Output, SetContextArgs};

pub(super) fn run(global: &Global, command: ContextCommand) -> anyhow::Result<ExitCode> {
    let path = Config::path()?;
    let mut config = Config::load(&path)?;
    let said = match command {
        ContextCommand::List => return list(global.output.form, &config),
        ContextCommand::Use(args) => {
            present(&config, &args.name)?;
            let said = format!("context {} is used from now on", args.name);
            config.current = Some(args.name);
            said
        }
        ContextCommand::Set(args) => set(global, args, &mut config)?,
        ContextCommand::Delete(args) => {
            present(&config, &args.name)?;
            config.contexts.remove(&args.name);
            config.current.take_if(|current| *current == args.name);
            format!("context {} is forgotten", args.name)
        }
    };
    config.save(&path)?;
    output::lines([said])?;
    Ok(ExitCode::SUCCESS)
}

fn present(config: &Config, name: &str) -> anyhow::Result<()> {
    if !config.contexts.contains_key(name) {
        bail!("there is no context {name:?}: `sterna context list` shows what there is");
    }
    Ok(())
}

/// Tokens are not shown.
fn list(form: Output, config: &Config) -> anyhow::Result<ExitCode> {
    let is_current = |name: &str| config.current.as_deref() == Some(name);
    match form {
        Output::Table => {
            let mut table = Table::new(["", "NAME", "SERVER", "PROJECT"]);
            for (name, it) in &config.contexts {
                let mark = if is_current(name) { "*" } else { "" };
                let project = it.project.clone().unwrap_or_else(|| "default".to_owned());
                table.push(vec![
                    mark.to_owned(),
                    name.clone(),
                    it.server.clone().unwrap_or_default(),
                    project,
                ]);
            }
            output::table(&table)?;
        }
        Output::Name => output::lines(config.contexts.keys().cloned())?,
        form => {
            let items = config.contexts.iter().map(|(name, it)| {
                json!({
                    "name": name, "current": is_current(name), "server": it.server, "cacert": it.cacert,
                    "token_file": it.token_file, "project": it.project,
                })
            });
            output::value(form, &json!({ "items": items.collect::<Vec<_>>() }))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn set(global: &Global, args: SetContextArgs, config: &mut Config) -> anyhow::Result<String> {
    model::limits::check_name(&args.name).map_err(|reason| anyhow::anyhow!(reason.message))?;
    let absolute =
        |path: &Path| std::path::absolute(path).with_context(|| format!("finding {}", path.display()));
    let given = Connection {
        server: global.server.clone(),
        token: global.token.clone(),
        token_file: args.token_file.as_deref().map(absolute).transpose()?,
        cacert: global.cacert.as_deref().map(absolute).transpose()?,
        project: global.project.clone(),
    };
    let read = match &args.from {
        Some(path) => {
            let text =
                std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
            imported(&text)
        }
        None => Connection::default(),
    };
    let before = config.contexts.get(&args.name).cloned().unwrap_or_default();
    let next = given.or(read).or(before);
    let missing = [
        (next.server.is_none(), "--server"),
        (next.token.is_none() && next.token_file.is_none(), "--token-file"),
        (next.cacert.is_none(), "--cacert"),
    ];
    let missing: Vec<_> = missing
        .into_iter()
        .filter(|(is, _)| *is)
        .map(|(_, name)| name)
        .collect();
    if !missing.is_empty() {
        bail!(
            "context {} would lack {}: give that too, or --from DIR/env",
            args.name,
            missing.join(", ")
        );
    }
    config.contexts.insert(args.name.clone(), next);
    let current = config.current.get_or_insert_with(|| args.name.clone());
    Ok(if *current == args.name {
        format!("context {} is set and used from now on", args.name)
    } else {
        format!(
            "context {} is set: `sterna context use {}`, or --context {}",
            args.name, args.name, args.name
        )
    })
}

/// What the file `env` of a `sterna up` says: lines like `export NAME='value'`.
fn imported(text: &str) -> Connection {
    let value = |name: &str| {
        let line = text.lines().find_map(|line| {
            line.trim()
                .strip_prefix("export ")?
                .strip_prefix(name)?
                .strip_prefix('=')
        });
        line.map(|value| value.trim_matches('\'').replace(r"'\''", "'"))
    };
    Connection {
        server: value("STERNA_SERVER"),
        token: value("STERNA_TOKEN"),
        token_file: None,
        cacert: value("STERNA_CACERT").map(Into::into),
        project: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_an_up_is_understood() {
        let text = "export STERNA_SERVER='https://127.0.0.1:1'\nexport STERNA_TOKEN='t'\n\
                    export STERNA_CACERT='/tmp/it'\\''s/ca.pem'\n";
        let connection = imported(text);
        assert_eq!(connection.server.as_deref(), Some("https://127.0.0.1:1"));
        assert_eq!(connection.token.as_deref(), Some("t"));
        assert_eq!(connection.cacert.as_deref(), Some(Path::new("/tmp/it's/ca.pem")));
    }
}
