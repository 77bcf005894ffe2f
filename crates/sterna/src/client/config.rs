//! How a server is reached: by options, by the environment, or by a context in the user's file.
//!
//! **Owns:** the file with contexts ([`Config`]), and what a command goes by in the end ([`connection`]).
//!
//! **Does not know:** the commands that change the file: see `contexts`.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use crate::cli::Global;

/// Contexts by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// The one that is used if none is named.
    #[serde(default)]
    pub(super) current: Option<String>,
    /// All.
    #[serde(default)]
    pub(super) contexts: BTreeMap<String, Connection>,
}

/// How a server is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Connection {
    /// The URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) server: Option<String>,
    /// The token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) token: Option<String>,
    /// A file with the token, if it is not here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) token_file: Option<PathBuf>,
    /// The CA's certificate, a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cacert: Option<PathBuf>,
    /// The project to work in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) project: Option<String>,
}

impl Connection {
    /// What this says, and of the other what this does not say. A token in either form replaces both.
    pub(super) fn or(self, other: Self) -> Self {
        let says_token = self.token.is_some() || self.token_file.is_some();
        let (token, token_file) = if says_token {
            (self.token, self.token_file)
        } else {
            (other.token, other.token_file)
        };
        Self {
            server: self.server.or(other.server),
            token,
            token_file,
            cacert: self.cacert.or(other.cacert),
            project: self.project.or(other.project),
        }
    }

    /// The token, from its file if it is there.
    pub(super) fn token(&self) -> anyhow::Result<Option<String>> {
        let Some(path) = self.token_file.as_ref().filter(|_| self.token.is_none()) else {
            return Ok(self.token.clone());
        };
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("reading the token from {}", path.display()))?;
        check_private(path, "a token")?;
        Ok(Some(text.trim().to_owned()))
    }
}

impl Config {
    /// Where the file is.
    pub(super) fn path() -> anyhow::Result<PathBuf> {
        let absolute = |name: &str| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let base = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")));
        let base = base.context("finding the file with contexts: set HOME")?;
        Ok(base.join("sterna").join("config.yaml"))
    }

    /// What the file says; nothing if there is none. One with a token that others may read is refused.
    pub(super) fn load(path: &Path) -> anyhow::Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            read => read.with_context(|| format!("reading {}", path.display()))?,
        };
        let config: Self = yaml_serde::from_str(&text)
            .with_context(|| format!("understanding {}: mend it, or delete it", path.display()))?;
        if config
            .contexts
            .values()
            .any(|connection| connection.token.is_some())
        {
            check_private(path, "a token")?;
        }
        Ok(config)
    }

    /// Writes the file so that only its user can read it.
    pub(super) fn save(&self, path: &Path) -> anyhow::Result<()> {
        let text = yaml_serde::to_string(self)?;
        let write = || {
            path.parent().map(std::fs::create_dir_all).transpose()?;
            server::pki::write_private(path, &text)
        };
        write().with_context(|| format!("writing {}", path.display()))
    }

    /// The context of this name, or the current one.
    fn chosen(self, named: Option<&str>, path: &Path) -> anyhow::Result<Connection> {
        let Some(name) = named.or(self.current.as_deref()) else {
            return Ok(Connection::default());
        };
        self.contexts.get(name).cloned().with_context(|| {
            format!(
                "there is no context {name:?} in {}: `sterna context list` shows what there is",
                path.display()
            )
        })
    }
}

/// Refuses a file with a secret that others may read.
pub(super) fn check_private(path: &Path, what: &str) -> anyhow::Result<()> {
    let mode = std::fs::metadata(path)
        .with_context(|| format!("looking at {}", path.display()))?
        .permissions()
        .mode();
    if mode & 0o077 != 0 {
        let path = path.display();
        bail!("{path} holds {what} and others may read it: `chmod 600 {path}`");
    }
    Ok(())
}

/// What a command goes by: options, then the environment, then the context.
pub(super) fn connection(global: &Global) -> anyhow::Result<Connection> {
    let given = Connection {
        server: global.server.clone(),
        token: global.token.clone(),
        token_file: None,
        cacert: global.cacert.clone(),
        project: global.project.clone(),
    };
    let is_whole = given.server.is_some() && given.token.is_some() && given.cacert.is_some();
    if is_whole && global.context.is_none() {
        return Ok(given);
    }
    let path = Config::path()?;
    let context = Config::load(&path)?.chosen(global.context.as_deref(), &path)?;
    Ok(given.or(context))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let text = "current: local\ncontexts:\n  local: { server: https://a, token: t, cacert: /ca }\n  \
                    prod: { server: https://b, token_file: /t, project: blue }\n";
        yaml_serde::from_str(text).unwrap()
    }

    #[test]
    fn what_is_given_wins_over_the_context() {
        let path = Path::new("/config.yaml");
        let local = config().chosen(None, path).unwrap();
        assert_eq!(local.server.as_deref(), Some("https://a"));
        let prod = config().chosen(Some("prod"), path).unwrap();
        let given = Connection {
            server: Some("https://c".to_owned()),
            token: Some("mine".to_owned()),
            ..Connection::default()
        };
        let both = given.or(prod);
        assert_eq!(
            (
                both.server.as_deref(),
                both.token.as_deref(),
                both.token_file,
                both.project.as_deref()
            ),
            (Some("https://c"), Some("mine"), None, Some("blue"))
        );
        let missing = config().chosen(Some("prd"), path).unwrap_err();
        assert!(missing.to_string().contains("no context \"prd\""), "{missing}");
    }

    #[test]
    fn the_file_is_its_users_alone_while_it_holds_a_token() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sterna/config.yaml");
        assert_eq!(Config::load(&path).unwrap(), Config::default());
        config().save(&path).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(Config::load(&path).unwrap(), config());
        let open = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        open(0o640);
        let refused = Config::load(&path).unwrap_err().to_string();
        assert!(refused.contains("chmod 600"), "{refused}");
        open(0o600);
        let mut without = config();
        without.contexts.remove("local");
        without.save(&path).unwrap();
        open(0o644);
        Config::load(&path).unwrap();
    }
}
