//! Manual pages, one for each command, made from the tree of commands.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

/// Where they go.
#[derive(Debug, Args)]
#[command(after_help = "Example: sterna manual ~/.local/share/man/man1")]
pub(crate) struct ManualArgs {
    /// The directory, which is made if it does not exist
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
}

/// Writes the pages: `sterna.1`, `sterna-vm.1`, `sterna-vm-create.1` and so on.
pub(crate) fn write(dir: &Path) -> anyhow::Result<()> {
    let writing = || format!("writing manual pages to {}", dir.display());
    std::fs::create_dir_all(dir).with_context(writing)?;
    clap_mangen::generate_to(super::command(), dir).with_context(writing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_with_its_example() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path()).unwrap();
        let page = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(
            page("sterna.1").contains("sterna\\-vm(1)"),
            "{}",
            page("sterna.1")
        );
        assert!(page("sterna-vm-create.1").contains("sterna vm create web"));
        // What is hidden from help is no part of the manual.
        assert!(!page("sterna-agent.1").contains("parent"));
    }
}
