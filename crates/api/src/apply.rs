//! What is run and set in a guest that is up: what people ask for, and what a server tells the agent that does it.
//!
//! **Owns:** the forms, and what of them may be shown. Contents and passwords are secrets: nothing prints them.
//!
//! **Does not know:** how it is done in a guest.
//!
//! **Start here:** [`ApplyBody`], then [`ApplyOrder`].

use std::fmt;

use model::Reason;
use model::operation::Applied;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The most that the contents of one apply take together, in bytes.
pub const CONTENT_MAX_BYTES: usize = 1 << 20;
/// The longest order: contents in Base64, keys and paths.
pub const ORDER_MAX_BYTES: usize = 4 << 20;
/// The most users of one apply, and the most files.
pub const STEPS_MAX: usize = 16;
/// How long an apply may take if nobody says.
pub const TIMEOUT_S: u64 = 300;
/// The longest time that an apply may be given: the guest does not move meanwhile.
pub const TIMEOUT_MAX_S: u64 = 3600;
/// How many applies to one VM may be under way: they are done one after the other.
pub const WAITING_MAX: usize = 8;
/// The most that is kept of what was printed: the last of it.
pub const OUTPUT_MAX_BYTES: usize = 2048;

/// A text that nothing prints.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("[not shown]")
    }
}

/// What is done in a guest that runs, by its guest agent: users, then files, then the script. The first that fails ends it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ApplyBody {
    /// Users that there shall be, with a password and keys.
    pub users: Vec<ApplyUser>,
    /// Files that there shall be.
    pub files: Vec<ApplyFile>,
    /// A program that is run as root. It begins with `#!` and its interpreter, or is one for `/bin/sh`.
    pub script: Option<Secret>,
    /// How long all of it may take, in seconds, with the time that it waits for others; 300 if `null`, at most 3600. A script
    /// that still runs then is killed.
    pub timeout_s: Option<u64>,
}

/// A user of the guest, made if it is not there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApplyUser {
    /// Its name.
    pub name: String,
    /// Its new password; the present one stays if `null`.
    #[serde(default)]
    pub password: Option<Secret>,
    /// SSH public keys that it may log in with, beside those that it has.
    #[serde(default)]
    pub ssh_keys: Vec<String>,
}

/// A file of the guest, replaced as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApplyFile {
    /// Where it is in the guest; directories on the way are made.
    pub path: String,
    /// What is in it.
    pub content: Secret,
    /// How `content` is written; as it is if `null`.
    #[serde(default)]
    pub encoding: Option<Encoding>,
    /// Its mode, in octal; `0644` if `null`.
    #[serde(default)]
    pub mode: Option<String>,
    /// Whose it is, as in `root` or `www-data:adm`; `root:root` if `null`.
    #[serde(default)]
    pub owner: Option<String>,
}

/// How a content is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// As Base64 (RFC 4648, section 4).
    Base64,
}

/// What an agent is told to do in a guest, over the connection that it dialled for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplyOrder {
    /// In this order.
    pub steps: Vec<ApplyStep>,
    /// How long all of it may take.
    pub patience_ms: u64,
}

/// One step. Contents are Base64, as the guest agent takes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum ApplyStep {
    /// Make a user that is not there.
    User {
        /// Its name.
        name: String,
    },
    /// Set a user's password.
    Password {
        /// Whose.
        user: String,
        /// The password.
        password: Secret,
    },
    /// Let somebody log in as a user.
    SshKeys {
        /// As whom.
        user: String,
        /// By these public keys.
        keys: Vec<String>,
    },
    /// Write a file.
    File {
        /// Where.
        path: String,
        /// What is in it.
        content: Secret,
        /// Its mode, in octal.
        mode: String,
        /// Whose it is.
        owner: String,
    },
    /// Run a program.
    Script {
        /// The program.
        content: Secret,
    },
}

impl ApplyStep {
    /// The step in a few words, without its content.
    pub fn words(&self) -> String {
        match self {
            Self::User { name } => format!("user {name}"),
            Self::Password { user, .. } => format!("password of {user}"),
            Self::SshKeys { user, keys } => format!("ssh keys of {user}: {}", keys.len()),
            Self::File { path, .. } => format!("file {path}"),
            Self::Script { .. } => "script".to_owned(),
        }
    }
}

/// What an agent says of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplyAnswer {
    /// What came of it.
    pub applied: Applied,
    /// Why it failed, if it did.
    pub reason: Option<Reason>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_prints_a_secret() {
        let secret = || Secret("planted".to_owned());
        let body = ApplyBody {
            users: vec![ApplyUser {
                password: Some(secret()),
                ..ApplyUser::default()
            }],
            files: vec![ApplyFile {
                content: secret(),
                ..ApplyFile::default()
            }],
            script: Some(secret()),
            timeout_s: None,
        };
        assert!(!format!("{body:?}").contains("planted"), "{body:?}");
        let step = ApplyStep::Password {
            user: "ann".to_owned(),
            password: secret(),
        };
        assert!(
            !format!("{step:?} {}", step.words()).contains("planted"),
            "{step:?}"
        );
    }
}
