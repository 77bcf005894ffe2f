//! QEMU's program on this host, which may be replaced while the agent runs.
//!
//! **Owns:** which release it is, and that it is asked again when another file is in its place.
//!
//! **Does not know:** what the release is good for. A guest that runs goes on in the program that it began in.
//!
//! **Start here:** [`Program::watch`].

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::{sleep, timeout};

use crate::link::Board;

const VERSION_DEADLINE: Duration = Duration::from_secs(10);
/// How often is looked which file it is.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A program and its release.
#[derive(Debug, Clone)]
pub struct Program {
    /// A path, or a name that is found in `PATH`.
    name: PathBuf,
    /// The file that was asked last; `None` if there was none, or it did not answer.
    asked: Option<Identity>,
    version: String,
}

/// Which file it is: a package that is installed puts another in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Identity {
    path: PathBuf,
    place: (u64, u64),
    bytes: u64,
    modified_ns: (i64, i64),
}

impl Program {
    /// Asks it for its release.
    pub async fn find(name: &Path) -> Self {
        let mut program = Self {
            name: name.to_owned(),
            asked: None,
            version: "unknown".to_owned(),
        };
        program.look().await;
        program
    }

    /// Its release; `unknown` if it never said any.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Tells the servers whenever it is another release.
    pub async fn watch(mut self, board: &Board) {
        loop {
            sleep(LOOK_EVERY).await;
            if self.look().await {
                tracing::info!(version = self.version, "QEMU was replaced");
                board.set_qemu_version(&self.version);
            }
        }
    }

    /// Asks it if another file is in its place; whether it is another release. One that is gone for a moment, or does not
    /// answer, is asked at the next look.
    async fn look(&mut self) -> bool {
        let found = self.identity();
        if found == self.asked || found.is_none() {
            return false;
        }
        let Some(version) = version(&self.name).await else {
            return false;
        };
        self.asked = found;
        let is_other = version != self.version;
        self.version = version;
        is_other
    }

    fn identity(&self) -> Option<Identity> {
        let paths = std::env::var_os("PATH").unwrap_or_default();
        let named = (self.name.components().count() > 1).then(|| self.name.clone());
        let found = std::env::split_paths(&paths).map(|directory| directory.join(&self.name));
        let (path, file) = named
            .into_iter()
            .chain(found)
            .find_map(|path| fs::metadata(&path).ok().map(|file| (path, file)))?;
        Some(Identity {
            path,
            place: (file.dev(), file.ino()),
            bytes: file.len(),
            modified_ns: (file.mtime(), file.mtime_nsec()),
        })
    }
}

/// The third word of `QEMU emulator version 10.0.2 (…)` that follows "version".
async fn version(program: &Path) -> Option<String> {
    let answer = Command::new(program).arg("--version").kill_on_drop(true).output();
    let answer = timeout(VERSION_DEADLINE, answer).await.ok()?.ok()?;
    let text = String::from_utf8_lossy(&answer.stdout);
    let mut words = text.split_whitespace().skip_while(|word| *word != "version");
    words.nth(1).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A file of another program is put in its place, as a package's is.
    fn install(path: &Path, says: &str) {
        let new = path.with_extension("new");
        fs::write(&new, format!("#!/bin/sh\n{says}\n")).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&new, path).unwrap();
    }

    #[tokio::test]
    async fn a_program_that_is_replaced_is_asked_again_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qemu");
        let mut program = Program::find(&path).await;
        assert!(!program.look().await && program.version() == "unknown");
        let asked = dir.path().join("asked");
        let says = |version: &str| {
            format!(
                "echo x >>{}; echo 'QEMU emulator version {version} (Debian)'",
                asked.display()
            )
        };
        install(&path, &says("10.0.2"));
        assert!(program.look().await && program.version() == "10.0.2");
        assert!(!program.look().await);
        // A rebuild of the same release is nothing new.
        install(&path, &says("10.0.2"));
        assert!(!program.look().await);
        // In the midst of an upgrade it may be gone, or not be able to start.
        fs::remove_file(&path).unwrap();
        assert!(!program.look().await && program.version() == "10.0.2");
        install(&path, "exit 127");
        assert!(!program.look().await && program.version() == "10.0.2");
        install(&path, &says("11.0.0"));
        assert!(program.look().await && program.version() == "11.0.0");
        assert!(!program.look().await);
        assert_eq!(fs::read_to_string(&asked).unwrap().lines().count(), 3);
    }
}
