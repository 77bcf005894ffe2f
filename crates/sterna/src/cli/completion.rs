//! Completion in shells: the script that a shell loads asks this program, which knows its commands and asks the server for
//! names.

use std::ffi::OsStr;
use std::io;

use clap::builder::Command;
use clap::{Arg, Args, ValueEnum};
use clap_complete::CompleteEnv;
use clap_complete::engine::{ArgValueCandidates, ArgValueCompleter, CompletionCandidate};
use clap_complete::env::{Bash, EnvCompleter, Fish, Zsh};
use model::Kind;

use super::output::FORMS;

/// The variable by which a shell's script says that it asks for completions.
const ASKED_BY: &str = "STERNA_COMPLETE";

/// For which shell.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  source <(sterna completion bash)     in ~/.bashrc\n  \
    source <(sterna completion zsh)      in ~/.zshrc, after compinit\n  \
    sterna completion fish | source      in ~/.config/fish/config.fish\n\n\
    Names of objects are completed too: the script asks the server that the environment or the context names."
)]
pub(crate) struct CompletionArgs {
    /// The shell
    pub(crate) shell: Shell,
}

/// A shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shell {
    /// GNU Bash
    Bash,
    /// Z shell
    Zsh,
    /// Fish
    Fish,
}

/// The script that a shell loads.
pub(crate) fn script(shell: Shell) -> io::Result<Vec<u8>> {
    let completer: &dyn EnvCompleter = match shell {
        Shell::Bash => &Bash,
        Shell::Zsh => &Zsh,
        Shell::Fish => &Fish,
    };
    let program = std::env::current_exe()?;
    let mut script = Vec::new();
    completer.write_registration(
        ASKED_BY,
        "sterna",
        "sterna",
        &program.to_string_lossy(),
        &mut script,
    )?;
    Ok(script)
}

/// Answers a shell, if it is one that asks.
pub(crate) fn answered() -> bool {
    let tree = || with_names(super::command());
    let here = std::env::current_dir().ok();
    CompleteEnv::with_factory(tree)
        .var(ASKED_BY)
        .try_complete(std::env::args_os(), here.as_deref())
        .unwrap_or(true)
}

/// The tree, in which arguments that name objects know which.
fn with_names(tree: Command) -> Command {
    let forms = || FORMS.into_iter().map(CompletionCandidate::new).collect();
    let contexts = || {
        crate::client::contexts()
            .into_iter()
            .map(CompletionCandidate::new)
            .collect()
    };
    let tree = tree
        .mut_arg("output", |arg| arg.add(ArgValueCandidates::new(forms)))
        .mut_arg("context", |arg| arg.add(ArgValueCandidates::new(contexts)));
    Kind::ALL.into_iter().fold(tree, |tree, kind| {
        tree.mut_subcommand(kind.name(), |group| {
            group.mut_subcommands(|leaf| {
                let makes = matches!(leaf.get_name(), "create" | "import");
                leaf.mut_args(|arg| match named_by(arg.get_id().as_str(), kind, makes) {
                    Some(kind) => completing(arg, kind),
                    None => arg,
                })
            })
        })
    })
}

/// The kind of what an argument names.
fn named_by(argument: &str, group: Kind, makes: bool) -> Option<Kind> {
    match argument {
        "name" | "names" if !makes => Some(group),
        "template" => Some(Kind::Template),
        "profile" => Some(Kind::Profile),
        "image" => Some(Kind::Image),
        "host" | "to" => Some(Kind::Host),
        "networks" | "nics" => Some(Kind::Network),
        "datastore" => Some(Kind::Datastore),
        _ => None,
    }
}

fn completing(arg: Arg, kind: Kind) -> Arg {
    arg.add(ArgValueCompleter::new(move |begun: &OsStr| {
        let begun = begun.to_string_lossy();
        let names = crate::client::names(kind).into_iter();
        let fitting = names.filter(|name| name.starts_with(&*begun));
        fitting.map(CompletionCandidate::new).collect()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shell_gets_a_script_that_asks_this_program() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = String::from_utf8(script(shell).unwrap()).unwrap();
            assert!(
                script.contains(ASKED_BY) && script.contains("sterna"),
                "{shell:?}: {script}"
            );
        }
    }

    #[test]
    fn arguments_that_name_objects_say_of_which_kind() {
        let tree = with_names(super::super::command());
        let completes = |path: [&str; 2], id: &str| {
            let leaf = tree
                .find_subcommand(path[0])
                .unwrap()
                .find_subcommand(path[1])
                .unwrap();
            let arg = leaf.get_arguments().find(|arg| arg.get_id() == id).unwrap();
            arg.get::<ArgValueCompleter>().is_some()
        };
        assert!(completes(["vm", "start"], "names"));
        assert!(completes(["host", "get"], "name"));
        assert!(completes(["vm", "create"], "template"));
        assert!(completes(["vm", "migrate"], "to"));
        assert!(!completes(["vm", "create"], "names"));
    }
}
