//! What is asked of a guest, checked, and as its agent is told it.
//!
//! **Owns:** the bounds, and that no refusal repeats a content: a parser's own words might.
//!
//! **Does not know:** the VM. **Start here:** [`parse`], then [`order`].

use std::time::Duration;

use api::Problem;
use api::apply::{
    ApplyBody, ApplyFile, ApplyOrder, ApplyStep, ApplyUser, CONTENT_MAX_BYTES, Encoding, STEPS_MAX, Secret,
    TIMEOUT_MAX_S,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use model::limits::check_range;

use crate::kinds::check_ssh_keys;

/// The longest name of a user or a group.
const USER_MAX_BYTES: usize = 32;
/// The longest path.
const PATH_MAX_BYTES: usize = 1024;
/// The longest password.
const PASSWORD_MAX_BYTES: usize = 1024;

/// A body, or where it is not understood.
pub(super) fn parse(body: &[u8]) -> Result<ApplyBody, Problem> {
    serde_json::from_slice(body).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let detail = format!(
            "the request's body is not understood at line {line}, column {column}; /docs describes it"
        );
        if error.is_data() {
            Problem::invalid("invalid-body", detail)
        } else {
            Problem::new(400, "bad-json", detail)
        }
    })
}

/// How long all of it may take.
pub(super) fn timeout(seconds: u64) -> Result<Duration, Problem> {
    check_range("timeout_s", seconds, 1, TIMEOUT_MAX_S)?;
    Ok(Duration::from_secs(seconds))
}

/// What the agent is told: users, then files, then the script.
pub(super) fn order(body: ApplyBody, timeout: Duration) -> Result<ApplyOrder, Problem> {
    if body.users.is_empty() && body.files.is_empty() && body.script.is_none() {
        let detail = "there is nothing to do: give `users`, `files` or a `script`";
        return Err(Problem::invalid("invalid-body", detail));
    }
    check_range(
        "the number of users",
        body.users.len() as u64,
        0,
        STEPS_MAX as u64,
    )?;
    check_range(
        "the number of files",
        body.files.len() as u64,
        0,
        STEPS_MAX as u64,
    )?;
    let mut steps = Vec::new();
    for user in body.users {
        steps.extend(of_user(user)?);
    }
    let mut bytes = 0;
    for file in body.files {
        steps.push(of_file(file, &mut bytes)?);
    }
    if let Some(script) = body.script {
        bytes += script.0.len();
        if script.0.is_empty() {
            return Err(Problem::invalid("invalid-body", "the `script` is empty"));
        }
        steps.push(ApplyStep::Script {
            content: encoded(script.0.as_bytes()),
        });
    }
    check_range(
        "what the files and the script take, in bytes",
        bytes as u64,
        0,
        CONTENT_MAX_BYTES as u64,
    )?;
    Ok(ApplyOrder {
        steps,
        patience_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
    })
}

fn encoded(content: &[u8]) -> Secret {
    Secret(STANDARD.encode(content))
}

fn of_user(user: ApplyUser) -> Result<Vec<ApplyStep>, Problem> {
    check_user(&user.name)?;
    check_ssh_keys(&user.ssh_keys)?;
    let name = user.name;
    let mut steps = vec![ApplyStep::User { name: name.clone() }];
    if let Some(Secret(password)) = user.password {
        let is_one_line = !password.is_empty() && !password.contains(['\n', '\r', '\0']);
        if !is_one_line || password.len() > PASSWORD_MAX_BYTES {
            let detail = format!(
                "the password of {name} cannot be set: give one line of at most {PASSWORD_MAX_BYTES} bytes"
            );
            return Err(Problem::invalid("invalid-body", detail));
        }
        steps.push(ApplyStep::Password {
            user: name.clone(),
            password: encoded(password.as_bytes()),
        });
    }
    if !user.ssh_keys.is_empty() {
        steps.push(ApplyStep::SshKeys {
            user: name,
            keys: user.ssh_keys,
        });
    }
    Ok(steps)
}

fn of_file(file: ApplyFile, bytes: &mut usize) -> Result<ApplyStep, Problem> {
    let path = file.path;
    let is_plain = path.starts_with('/') && !path.ends_with('/') && !path.contains(|c: char| c.is_control());
    if !is_plain || path.len() > PATH_MAX_BYTES || path.split('/').any(|part| part == "..") {
        let detail = format!(
            "a file cannot be at {path:?} in the guest: give an absolute path of a file, without `..`"
        );
        return Err(Problem::invalid("invalid-path", detail));
    }
    let content = match file.encoding {
        None => encoded(file.content.0.as_bytes()),
        Some(Encoding::Base64) => file.content,
    };
    let decoded = STANDARD.decode(&content.0).map_err(|_| {
        let detail =
            format!("the content of {path} is not Base64: encode it as RFC 4648 has it, in one line");
        Problem::invalid("invalid-body", detail)
    })?;
    *bytes += decoded.len();
    Ok(ApplyStep::File {
        content,
        mode: mode(file.mode)?,
        owner: owner(file.owner)?,
        path,
    })
}

fn mode(mode: Option<String>) -> Result<String, Problem> {
    let mode = mode.unwrap_or_else(|| "0644".to_owned());
    let is_octal = (3..=4).contains(&mode.len()) && mode.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
    if is_octal {
        return Ok(mode);
    }
    let detail = format!("a file cannot have the mode {mode:?}: give three or four octal digits, as in 0644");
    Err(Problem::invalid("invalid-body", detail))
}

fn owner(owner: Option<String>) -> Result<String, Problem> {
    let owner = owner.unwrap_or_else(|| "root:root".to_owned());
    owner.splitn(2, ':').try_for_each(check_user)?;
    Ok(owner)
}

/// What every system takes for a user's or a group's name, and no program for an option.
fn check_user(name: &str) -> Result<(), Problem> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    let first = name.bytes().next();
    let begins = first.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if begins && name.len() <= USER_MAX_BYTES && name.bytes().all(plain) {
        return Ok(());
    }
    let detail = format!(
        "{name:?} cannot be a user or group of the guest: take 1 to {USER_MAX_BYTES} letters, digits, dashes, dots or underscores"
    );
    Err(Problem::invalid("invalid-name", detail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn words(body: &Value) -> Result<Vec<String>, String> {
        let body = parse(body.to_string().as_bytes()).map_err(|problem| problem.code.to_string())?;
        let order = order(body, Duration::from_secs(1)).map_err(|problem| problem.code.to_string())?;
        Ok(order.steps.iter().map(ApplyStep::words).collect())
    }

    #[test]
    fn users_come_before_files_and_the_script_is_last() {
        let body = json!({
            "script": "#!/bin/sh\n",
            "files": [{ "path": "/etc/motd", "content": "" }],
            "users": [{ "name": "ann", "password": "a b", "ssh_keys": ["ssh-ed25519 A", "ssh-ed25519 B"] }],
        });
        let expected = [
            "user ann",
            "password of ann",
            "ssh keys of ann: 2",
            "file /etc/motd",
            "script",
        ];
        assert_eq!(words(&body).unwrap(), expected);
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        let file = |path: &str| json!({ "files": [{ "path": path, "content": "x" }] });
        let user = |name: &str| json!({ "users": [{ "name": name }] });
        let with =
            |key: &str, value: &str| json!({ "files": [{ "path": "/a", "content": "%", key: value }] });
        for (body, code) in [
            (json!({}), "invalid-body"),
            (json!({ "script": "" }), "invalid-body"),
            (
                json!({ "script": "a".repeat(CONTENT_MAX_BYTES + 1) }),
                "out-of-range",
            ),
            (
                json!({ "users": vec![json!({ "name": "a" }); STEPS_MAX + 1] }),
                "out-of-range",
            ),
            (file("etc/motd"), "invalid-path"),
            (file("/etc/"), "invalid-path"),
            (file("/etc/../motd"), "invalid-path"),
            (file("/a\nb"), "invalid-path"),
            (user(""), "invalid-name"),
            (user("-rf"), "invalid-name"),
            (user("a b"), "invalid-name"),
            (with("mode", "u+s"), "invalid-body"),
            (with("owner", "root:-x"), "invalid-name"),
            (with("encoding", "base64"), "invalid-body"),
            (
                json!({ "users": [{ "name": "a", "password": "b\nroot:c" }] }),
                "invalid-body",
            ),
            (
                json!({ "users": [{ "name": "a", "ssh_keys": ["b\nc"] }] }),
                "invalid-ssh-key",
            ),
        ] {
            assert_eq!(words(&body).unwrap_err(), code, "{body:.200}");
        }
    }

    #[test]
    fn a_refusal_repeats_no_content() {
        for body in [
            json!({ "script": ["planted"] }),
            json!({ "users": "planted" }),
            json!({ "files": [{ "path": "/a", "content": "planted!", "encoding": "base64" }] }),
            json!({ "users": [{ "name": "a", "password": "planted\n" }] }),
            json!({ "files": [{ "path": "/a", "content": "b", "encoding": "planted" }] }),
        ] {
            let refused =
                parse(body.to_string().as_bytes()).and_then(|body| order(body, Duration::from_secs(1)));
            let refused = refused.unwrap_err();
            assert!(!format!("{refused:?}").contains("planted"), "{refused:?}");
        }
    }
}
