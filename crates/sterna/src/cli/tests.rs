//! The tree of commands as people see it: its help, and what it refuses.

use super::*;

fn parsed(line: &str) -> Result<Cli, String> {
    let matches = command()
        .try_get_matches_from(line.split_whitespace())
        .map_err(|error| error.to_string())?;
    Cli::from_arg_matches(&matches).map_err(|error| error.to_string())
}

fn help(path: &[&str]) -> String {
    let mut tree = command().term_width(100);
    tree.build();
    let found = path
        .iter()
        .fold(&mut tree, |tree, name| tree.find_subcommand_mut(name).unwrap());
    found.render_help().to_string()
}

#[test]
fn the_tree_is_consistent() {
    command().debug_assert();
}

#[test]
fn the_main_help_lists_the_commands() {
    insta::assert_snapshot!(help(&[]));
}

#[test]
fn help_of_the_commands_that_people_use_most() {
    for path in [
        &["vm"][..],
        &["vm", "create"],
        &["vm", "migrate"],
        &["vm", "media"],
        &["vm", "apply"],
        &["host", "drain"],
        &["image", "import"],
        &["template", "create"],
    ] {
        insta::assert_snapshot!(format!("help-{}", path.join("-")), help(path));
    }
}

#[test]
fn every_command_of_a_kind_has_an_example() {
    for kind in model::Kind::ALL {
        let tree = command();
        let group = tree.find_subcommand(kind.name()).unwrap();
        for leaf in group.get_subcommands() {
            let after = leaf.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(
                after.contains(&format!("sterna {kind} {}", leaf.get_name())),
                "{kind} {}",
                leaf.get_name()
            );
        }
    }
}

/// Every command that does something, with its path.
fn leaves(path: &str, tree: &clap::Command, found: &mut Vec<(String, clap::Command)>) {
    if !tree.has_subcommands() {
        found.push((path.to_owned(), tree.clone()));
    }
    for sub in tree.get_subcommands().filter(|sub| sub.get_name() != "help") {
        leaves(&format!("{path} {}", sub.get_name()), sub, found);
    }
}

#[test]
fn every_command_has_an_example_that_is_understood() {
    let mut found = Vec::new();
    leaves("sterna", &command(), &mut found);
    assert!(found.len() > 60, "{}", found.len());
    for (path, leaf) in found {
        let after = leaf.get_after_help().map(ToString::to_string).unwrap_or_default();
        let examples: Vec<&str> = after
            .lines()
            .filter_map(|line| line.find(&path).map(|at| &line[at..]))
            .collect();
        assert!(!examples.is_empty(), "{path} has no example");
        for example in examples {
            // What a shell makes of the line is not the program's.
            let line = example
                .split(['|', '>', ')', '#', '&'])
                .next()
                .unwrap_or_default();
            let line = line.split("  ").next().unwrap_or_default().replace("DIR", "/tmp");
            let parsed = parsed(&line);
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
        }
    }
}

#[test]
fn sizes_without_a_unit_are_wrong_usage() {
    for (line, why) in [
        (
            "sterna template create small --image tiny --memory 256",
            "needs a unit: give 256MiB",
        ),
        (
            "sterna template create small --image tiny --memory -256MiB",
            "not negative",
        ),
        (
            "sterna vm create web --template small --disk 99999999999TiB",
            "more than can be counted",
        ),
        ("sterna vm create web", "--template"),
        ("sterna vm create web --image tiny", "--memory"),
        ("sterna vm create web --template small --count 0", "0 is not in"),
        ("sterna vm list --timeout 90", "needs a unit: give 90s"),
        ("sterna vm lst", "'list'"),
        ("sterna vm start web --wait=booted", "possible values"),
        ("sterna vm start", "NAME"),
        ("sterna vm create web --memory 1GiB", "--template"),
        ("sterna vm media web", "--eject"),
        (
            "sterna vm media web --eject --insert tools",
            "cannot be used with",
        ),
        ("sterna vm media web --boot floppy", "possible values"),
        ("sterna vm apply web", "--script"),
        ("sterna vm apply web --file motd", "as in /etc/motd=motd.txt"),
        ("sterna vm apply web --script a --password-stdin", "--user"),
    ] {
        let error = parsed(line).unwrap_err();
        assert!(error.contains(why), "{line}: {error}");
    }
}

#[test]
fn waiting_has_a_usual_state_and_others() {
    let goal = |line: &str| {
        let Command::Client(ClientCommand::Vm(VmCommand::Start(args))) = parsed(line).unwrap().command else {
            panic!("{line} is not a start");
        };
        assert_eq!(args.which.names, ["web"], "{line}");
        args.wait.goal(WaitState::Running)
    };
    assert_eq!(goal("sterna vm start web"), None);
    assert_eq!(goal("sterna vm start --wait web"), Some(WaitState::Running));
    assert_eq!(goal("sterna vm start web --wait=ready"), Some(WaitState::Ready));
    assert_eq!(
        goal("sterna vm start web --wait=Running"),
        Some(WaitState::Running)
    );
}

#[test]
fn global_options_may_stand_anywhere() {
    for line in [
        "sterna -o json vm list",
        "sterna vm list -o json",
        "sterna vm -o json list",
    ] {
        let cli = parsed(line).unwrap();
        assert_eq!(cli.global.output.form, Output::Json, "{line}");
        assert_eq!(cli.global.project, None, "{line}");
    }
}
