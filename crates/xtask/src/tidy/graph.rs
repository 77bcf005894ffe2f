//! Which crate may depend on which, and what the pure crates may reach, from what cargo resolved.
//!
//! Dev-dependencies count for neither: a test may use what it likes.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use serde::Deserialize;

use super::{File, Finding, PURE_CRATES};

/// Every crate with what it may use of the others. `ARCHITECTURE.md` says why. A crate that is listed need not exist.
const ARROWS: &[(&str, May)] = &[
    ("model", May::Use(&[])),
    ("scheduler", May::Use(&["model"])),
    ("planner", May::Use(&["model", "scheduler"])),
    ("driver", May::Use(&["model"])),
    ("store", May::Use(&["model"])),
    ("store-sqlite", May::Use(&["model", "store"])),
    ("store-etcd", May::Use(&["model", "store"])),
    ("api", May::Use(&["model"])),
    ("formats", May::Use(&["model"])),
    ("controller", May::Use(&["model", "planner", "store"])),
    (
        "server",
        May::Use(&["api", "controller", "formats", "model", "planner", "store"]),
    ),
    ("qemu", May::Use(&["model"])),
    ("hostnet", May::Use(&[])),
    (
        "agent",
        May::Use(&["api", "driver", "formats", "hostnet", "model", "qemu"]),
    ),
    (
        "sim",
        May::Use(&[
            "agent",
            "api",
            "controller",
            "driver",
            "formats",
            "model",
            "planner",
            "scheduler",
            "server",
            "store",
        ]),
    ),
    ("sterna", May::UseAll),
    ("testkit", May::UseAll),
    ("e2e", May::UseAll),
    ("xtask", May::UseAll),
    ("bench", May::UseAll),
    ("probe", May::Use(&[])),
];

/// What pure crates may depend on from outside. Each is data and its encoding; none is given a clock, a socket or a file.
const PURE_DEPENDENCIES: [&str; 7] = [
    "base64",
    "jiff",
    "schemars",
    "serde",
    "serde_json",
    "thiserror",
    "uuid",
];

/// What pure crates may not reach through anything. `getrandom` and `libc` are not here: `uuid` brings them for its v7
/// ids, which the shells make with it; [`super::purity`] and clippy see to it that no pure crate does.
const UNREACHABLE: [&str; 17] = [
    "async-io",
    "axum",
    "etcd-client",
    "h2",
    "hyper",
    "libsqlite3-sys",
    "mio",
    "nix",
    "rand",
    "reqwest",
    "rtnetlink",
    "rusqlite",
    "rustix",
    "rustls",
    "smol",
    "socket2",
    "tokio",
];

/// The arrows that may leave a crate.
enum May {
    Use(&'static [&'static str]),
    UseAll,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
    workspace_members: BTreeSet<String>,
    workspace_root: String,
}

#[derive(Debug, Deserialize)]
struct Package {
    id: String,
    name: String,
    manifest_path: String,
    dependencies: Vec<Dependency>,
}

/// As the manifest declares it, also when a feature that is off hides it.
#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    /// `dev`, `build`, or none for a normal one.
    kind: Option<String>,
    /// Present for crates of the workspace.
    path: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Edge>,
}

#[derive(Debug, Deserialize)]
struct Edge {
    pkg: String,
    dep_kinds: Vec<EdgeKind>,
}

#[derive(Debug, Deserialize)]
struct EdgeKind {
    kind: Option<String>,
}

/// The findings in the output of `cargo metadata`. `files` only serve to find the line of a dependency.
pub(super) fn check(metadata: &str, files: &[File]) -> anyhow::Result<Vec<Finding>> {
    let metadata: Metadata = serde_json::from_str(metadata).context("parse the output of cargo metadata")?;
    let members = metadata
        .packages
        .iter()
        .filter(|package| metadata.workspace_members.contains(&package.id));
    let mut findings = Vec::new();
    for package in members {
        let manifest = Manifest::of(package, &metadata, files);
        findings.extend(arrows(package, &manifest));
        if PURE_CRATES.contains(&package.name.as_str()) {
            findings.extend(pure_dependencies(package, &manifest));
            findings.extend(pure_reach(package, &metadata, &manifest));
        }
    }
    Ok(findings)
}

/// Arrows to other crates of the workspace that are not in the table.
fn arrows(package: &Package, manifest: &Manifest) -> Vec<Finding> {
    let name = &package.name;
    let allowed = match ARROWS.iter().find(|(crate_name, _)| crate_name == name) {
        Some((_, May::UseAll)) => return Vec::new(),
        Some((_, May::Use(allowed))) => allowed,
        None => {
            return vec![manifest.finding(
                "name",
                format!("`{name}` is not in the table of arrows: add it, with what it may use"),
            )];
        }
    };
    let used = package
        .dependencies
        .iter()
        .filter(|dependency| dependency.counts() && dependency.path.is_some());
    used.filter(|dependency| !allowed.contains(&dependency.name.as_str()))
        .map(|dependency| {
            let used = &dependency.name;
            let message = format!(
                "`{name}` may not use `{used}`: move what both need down to a crate that both may use"
            );
            manifest.finding(used, message)
        })
        .collect()
}

/// Dependencies from outside that no pure crate has.
fn pure_dependencies(package: &Package, manifest: &Manifest) -> Vec<Finding> {
    let name = &package.name;
    let outside = package
        .dependencies
        .iter()
        .filter(|dependency| dependency.counts() && dependency.path.is_none());
    outside
        .filter(|dependency| !PURE_DEPENDENCIES.contains(&dependency.name.as_str()))
        .map(|dependency| {
            let used = &dependency.name;
            let message = format!(
                "`{name}` is pure and `{used}` is not known to be: list it in PURE_DEPENDENCIES if it is"
            );
            manifest.finding(used, message)
        })
        .collect()
}

/// Crates for input and output that a pure crate reaches, each with the way there.
fn pure_reach(package: &Package, metadata: &Metadata, manifest: &Manifest) -> Vec<Finding> {
    let names: BTreeMap<&str, &str> = metadata
        .packages
        .iter()
        .map(|p| (p.id.as_str(), p.name.as_str()))
        .collect();
    let ways = ways_from(&package.id, metadata);
    ways.values()
        .filter_map(|way| {
            let way: Vec<&str> = way
                .iter()
                .map(|id| names.get(id).copied().unwrap_or(id))
                .collect();
            let (reached, first) = (way.last()?, way.get(1)?);
            let message = format!(
                "`{}` is pure and reaches `{reached}` ({}): drop the feature that brings it",
                package.name,
                way.join(" → ")
            );
            UNREACHABLE
                .contains(reached)
                .then(|| manifest.finding(first, message))
        })
        .collect()
}

/// The shortest way from a package to each that it reaches, both ends included.
fn ways_from<'a>(start: &'a str, metadata: &'a Metadata) -> BTreeMap<&'a str, Vec<&'a str>> {
    let nodes: BTreeMap<&str, &Node> = metadata
        .resolve
        .nodes
        .iter()
        .map(|node| (node.id.as_str(), node))
        .collect();
    let mut ways = BTreeMap::from([(start, vec![start])]);
    let mut border = vec![start];
    while !border.is_empty() {
        let mut next = Vec::new();
        for id in border {
            for edge in nodes
                .get(id)
                .iter()
                .flat_map(|node| &node.deps)
                .filter(|edge| edge.counts())
            {
                if !ways.contains_key(edge.pkg.as_str()) {
                    let way = [ways[id].as_slice(), &[edge.pkg.as_str()]].concat();
                    ways.insert(&edge.pkg, way);
                    next.push(edge.pkg.as_str());
                }
            }
        }
        border = next;
    }
    ways
}

impl Dependency {
    fn counts(&self) -> bool {
        self.kind.as_deref() != Some("dev")
    }
}

impl Edge {
    fn counts(&self) -> bool {
        self.dep_kinds
            .iter()
            .any(|kind| kind.kind.as_deref() != Some("dev"))
    }
}

/// A crate's `Cargo.toml`, where findings about its dependencies point to.
struct Manifest<'a> {
    path: String,
    text: &'a str,
}

impl<'a> Manifest<'a> {
    fn of(package: &Package, metadata: &Metadata, files: &'a [File]) -> Self {
        let path = package
            .manifest_path
            .strip_prefix(&metadata.workspace_root)
            .unwrap_or(&package.manifest_path);
        let path = path.trim_start_matches('/').to_owned();
        let text = files
            .iter()
            .find(|file| file.path == path)
            .map_or("", |file| &file.text);
        Self { path, text }
    }

    fn finding(&self, key: &str, message: String) -> Finding {
        let is_it = |line: &str| line.split(['.', '=', ' ']).next() == Some(key);
        let line = self.text.lines().position(is_it).map_or(1, |index| index + 1);
        Finding::new(&self.path, line, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The findings in the fixture, which has one of each, as they are printed.
    fn found() -> Vec<String> {
        let manifest = File {
            path: "crates/planner/Cargo.toml".to_owned(),
            text:
                "[package]\nname = \"planner\"\n\n[dependencies]\nmodel.workspace = true\nrapidhash = \"4\"\n\
                   schemars = { version = \"1\" }\nstore.workspace = true\n"
                    .to_owned(),
        };
        let findings = check(include_str!("../../fixtures/metadata.json"), &[manifest]).unwrap();
        findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_arrow_that_is_not_in_the_table_is_found() {
        assert_eq!(
            found()[0],
            "crates/planner/Cargo.toml:8: `planner` may not use `store`: move what both need down to a crate that both may use"
        );
    }

    #[test]
    fn a_foreign_dependency_of_a_pure_crate_is_found() {
        assert_eq!(
            found()[1],
            "crates/planner/Cargo.toml:6: `planner` is pure and `rapidhash` is not known to be: \
             list it in PURE_DEPENDENCIES if it is"
        );
    }

    #[test]
    fn a_runtime_that_a_pure_crate_reaches_is_found_with_the_way_there() {
        assert_eq!(
            found()[2],
            "crates/planner/Cargo.toml:7: `planner` is pure and reaches `tokio` (planner → schemars → backend → tokio): \
             drop the feature that brings it"
        );
    }

    #[test]
    fn a_crate_that_is_not_in_the_table_is_found() {
        assert_eq!(
            found()[3],
            "crates/stray/Cargo.toml:1: `stray` is not in the table of arrows: add it, with what it may use"
        );
    }

    #[test]
    fn nothing_else_is_found_and_tests_may_use_what_they_like() {
        assert_eq!(found().len(), 4);
    }

    #[test]
    fn arrows_only_lead_to_crates_of_the_table_and_never_in_a_circle() {
        for (position, (name, may)) in ARROWS.iter().enumerate() {
            if let May::Use(used) = may {
                let earlier = |used: &&str| ARROWS[..position].iter().any(|(name, _)| name == used);
                assert!(used.iter().all(earlier), "{name}");
            }
        }
    }
}
