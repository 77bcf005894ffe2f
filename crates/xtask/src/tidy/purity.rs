//! The pure crates decide from what they are given: time, ids and randomness are arguments, and order never depends on
//! a hash. So the simulator runs the very code that the server runs, and a seed reproduces any run.
//!
//! What servers do around those decisions waits and keeps time, so it is not pure. It is simulated all the same, and names no
//! clock but the one that it is given.
//!
//! This looks at words, not at types; `clippy.toml` bans the clock and random ids by type, everywhere.

use proc_macro2::TokenTree;

use super::tokens::{NamedPath, paths};
use super::{File, Finding, PURE_CRATES};

/// What the code of a pure crate does not name, and what it does instead.
const BANNED: &[(&[&str], &str)] = &[
    (&["SystemTime"], "take `now` as an argument"),
    (&["Instant"], "take `now` as an argument"),
    (&["Timestamp", "now"], "take `now` as an argument"),
    (&["Zoned", "now"], "take `now` as an argument"),
    (&["Uuid", "now_v7"], "take the id as an argument"),
    (&["Uuid", "new_v4"], "take the id as an argument"),
    (&["rand", "rng"], "take the generator as an argument"),
    (&["rand", "random"], "take the generator as an argument"),
    (&["thread_rng"], "take the generator as an argument"),
    (&["getrandom"], "take the generator as an argument"),
    (
        &["HashMap"],
        "use a BTreeMap, whose order is the same in every run",
    ),
    (
        &["HashSet"],
        "use a BTreeSet, whose order is the same in every run",
    ),
    (&["std", "fs"], "return an effect, and let a shell perform it"),
    (&["std", "io"], "return an effect, and let a shell perform it"),
    (&["std", "os"], "return an effect, and let a shell perform it"),
    (
        &["std", "process"],
        "return an effect, and let a shell perform it",
    ),
    (&["std", "env"], "take the setting as an argument"),
    (&["std", "thread"], "leave concurrency to a shell"),
    (&["tokio"], "leave concurrency to a shell"),
    (&["async"], "leave waiting to a shell"),
    (&["await"], "leave waiting to a shell"),
    (&["Mutex"], "take `&mut self`, and leave locks to a shell"),
    (&["RwLock"], "take `&mut self`, and leave locks to a shell"),
];

/// Code that waits and keeps time, but only through what it is given: the simulator runs it in a time of its own.
const INJECTED: [&str; 9] = [
    "crates/controller/src/",
    "crates/server/src/contact.rs",
    "crates/server/src/servers.rs",
    "crates/server/src/hosts.rs",
    "crates/server/src/kinds/",
    "crates/server/src/service.rs",
    "crates/server/src/shared.rs",
    "crates/sim/src/",
    "crates/store/src/memory.rs",
];

/// What such code does not name, and what it does instead.
const PAST_INJECTED: &[(&[&str], &str)] = &[
    (&["SystemTime"], "ask `Env` for the time"),
    (&["Instant"], "ask `Env` for the time"),
    (&["tokio", "time"], "ask `Env` to sleep"),
    (&["std", "thread"], "leave concurrency to the caller"),
    (
        &["HashMap"],
        "use a BTreeMap, whose order is the same in every run",
    ),
    (
        &["HashSet"],
        "use a BTreeSet, whose order is the same in every run",
    ),
    (&["rand", "rng"], "take the generator as an argument"),
    (&["rand", "random"], "take the generator as an argument"),
];

/// Macros that write to a terminal.
const BANNED_MACROS: [&str; 5] = ["print", "println", "eprint", "eprintln", "dbg"];

/// What `std::net` has that is data and no socket.
const PURE_NET: [&str; 7] = [
    "AddrParseError",
    "IpAddr",
    "Ipv4Addr",
    "Ipv6Addr",
    "SocketAddr",
    "SocketAddrV4",
    "SocketAddrV6",
];

/// What the code of a pure crate, or of one that is given its time, names and may not. Tests may do as they like.
pub(super) fn check(file: &File, tokens: &[TokenTree]) -> Vec<Finding> {
    if file.is_test() {
        return Vec::new();
    }
    let is_pure = |name: &&str| file.path.starts_with(&format!("crates/{name}/src/"));
    if let Some(name) = PURE_CRATES.iter().copied().find(is_pure) {
        let message = |what, remedy| format!("`{name}` is pure and names `{what}`: {remedy}");
        return findings(file, tokens, breach, message);
    }
    if INJECTED.iter().any(|path| file.path.starts_with(path)) {
        let path = &file.path;
        let message = |what, remedy| format!("`{path}` is simulated and names `{what}`: {remedy}");
        return findings(file, tokens, |named| banned_in(named, PAST_INJECTED), message);
    }
    Vec::new()
}

fn findings(
    file: &File,
    tokens: &[TokenTree],
    breach: impl Fn(&NamedPath) -> Option<(String, &'static str)>,
    message: impl Fn(String, &'static str) -> String,
) -> Vec<Finding> {
    let found = paths(tokens).into_iter().filter_map(|path| {
        let (what, remedy) = breach(&path)?;
        Some(Finding::new(&file.path, path.line, message(what, remedy)))
    });
    found.collect()
}

/// What of a path is banned, and what to do instead.
fn breach(path: &NamedPath) -> Option<(String, &'static str)> {
    let segments: Vec<&str> = path.segments.iter().map(String::as_str).collect();
    if path.is_macro && segments.iter().any(|word| BANNED_MACROS.contains(word)) {
        return Some((
            format!("{}!", segments.join("::")),
            "return what is to be said, and let a shell say it",
        ));
    }
    if let ["std", "net", rest @ ..] = segments.as_slice()
        && !rest.first().is_some_and(|item| PURE_NET.contains(item))
    {
        return Some((
            segments.join("::"),
            "name a type that is only an address, or leave sockets to a shell",
        ));
    }
    banned_in(path, BANNED)
}

/// What a path names of a list.
fn banned_in(
    path: &NamedPath,
    list: &'static [(&'static [&'static str], &'static str)],
) -> Option<(String, &'static str)> {
    let segments: Vec<&str> = path.segments.iter().map(String::as_str).collect();
    let is_in_path = |banned: &[&str]| segments.windows(banned.len()).any(|part| part == banned);
    let (banned, remedy) = list.iter().find(|(banned, _)| is_in_path(banned))?;
    Some((banned.join("::"), remedy))
}

#[cfg(test)]
mod tests {
    use super::super::tokens::parse;
    use super::*;

    fn check_at(path: &str) -> Vec<Finding> {
        let file = File {
            path: path.to_owned(),
            text: include_str!("../../fixtures/impure.rs").to_owned(),
        };
        check(&file, &parse(&file.text).unwrap())
    }

    /// In the fixture each line that breaks the rule says so and names what has to be found.
    #[test]
    fn every_marked_line_of_the_fixture_is_found_and_no_other() {
        let mut expected = Vec::new();
        for (index, line) in include_str!("../../fixtures/impure.rs").lines().enumerate() {
            let marks = line.split_once("// breaks: ").map_or("", |(_, marks)| marks);
            expected.extend(marks.split_whitespace().map(|what| (index + 1, what.to_owned())));
        }
        let found: Vec<_> = check_at("crates/planner/src/x.rs")
            .into_iter()
            .map(|finding| {
                (
                    finding.line,
                    finding.message.split('`').nth(3).unwrap().to_owned(),
                )
            })
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn the_fixture_breaks_every_ban() {
        let fixture = include_str!("../../fixtures/impure.rs");
        for (banned, _) in BANNED {
            assert!(fixture.contains(&format!(" {}", banned.join("::"))), "{banned:?}");
        }
    }

    #[test]
    fn tests_and_other_crates_may_do_as_they_like() {
        for path in [
            "crates/agent/src/x.rs",
            "crates/planner/tests/x.rs",
            "crates/planner/src/vm/tests.rs",
        ] {
            assert_eq!(check_at(path), [], "{path}");
        }
    }

    #[test]
    fn what_is_simulated_keeps_to_the_time_that_it_is_given() {
        for path in ["crates/controller/src/run.rs", "crates/server/src/kinds/vm.rs"] {
            let found = check_at(path);
            let names = |what: &str| found.iter().any(|finding| finding.message.contains(what));
            assert!(names("`Instant`") && names("`SystemTime`"), "{found:?}");
            assert!(!names("`Mutex`") && !names("`async`"), "{found:?}");
        }
    }

    #[test]
    fn the_remedy_is_named() {
        let findings = check_at("crates/model/src/x.rs");
        assert_eq!(
            findings[0].message,
            "`model` is pure and names `HashMap`: use a BTreeMap, whose order is the same in every run"
        );
    }
}
