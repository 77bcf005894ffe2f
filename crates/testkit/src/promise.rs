//! What must never happen, and was seen.
//!
//! **Owns:** writing it where `make test` looks for it. A test with a guest that misses its instant on a busy machine is
//! run once more (`.config/nextest.toml`); that a guest ran twice or lost what it had written is no matter of luck, and
//! must not pass because it did not happen again.
//!
//! **Does not know:** how it was seen.

use std::fs;
use std::path::PathBuf;

/// Names the directory that must be empty after the tests.
const DIRECTORY: &str = "STERNA_BROKEN_PROMISES";

/// An error that fails the whole run, whatever a second try of its test does.
pub fn broken(what: &str) -> anyhow::Error {
    let directory = std::env::var_os(DIRECTORY).map(PathBuf::from);
    // The tests of what looks show it a broken one.
    if let Some(directory) = directory.filter(|_| !cfg!(test)) {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        let file = directory.join(format!("{}.txt", std::process::id()));
        let written =
            fs::create_dir_all(&directory).and_then(|()| fs::write(&file, format!("{test}: {what}\n")));
        if let Err(error) = written {
            eprintln!("{}: {error}", file.display());
        }
    }
    anyhow::anyhow!("a promise is broken: {what}")
}
