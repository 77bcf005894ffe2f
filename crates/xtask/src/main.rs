//! The repository's own checks and chores, run as `cargo xtask COMMAND`.
//!
//! **Owns:** what no general tool checks: the house rules (`tidy`).
//!
//! **Does not know:** anything of virtual machines.
//!
//! **Start here:** [`tidy`].

mod tidy;

use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask COMMAND

  tidy    check the house rules: purity, arrows between crates, lengths, docs, white space";

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["tidy"] => tidy::run(),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        _ => {
            eprintln!("{USAGE}");
            Ok(ExitCode::from(2))
        }
    }
}
