//! What tells this machine from others, and how a server is told of it.
//!
//! **Owns:** reading the machine's id, and the digest that leaves the machine in its place.
//!
//! **Does not know:** what is decided by it.
//!
//! **Start here:** [`digest`].

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use ring::hmac;

/// Made when the system is installed, and copied with its disk.
const MACHINE_ID: &str = "/etc/machine-id";
/// Keeps the digest from being one that another program makes of the same id.
const APPLICATION: &[u8] = b"sterna agent 7c1f4e0b9d3a4b52";

/// The machine's id, if it has one. It is for this machine's eyes: see machine-id(5).
pub fn id() -> Option<String> {
    valid(&fs::read_to_string(MACHINE_ID).ok()?)
}

/// A file that is empty, or says that it was not set up yet, is no id.
fn valid(text: &str) -> Option<String> {
    let id = text.trim();
    (id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| id.to_owned())
}

/// The same for an agent and its copy on another machine that has this one's id, and different for agents beside each other
/// on one machine, which have directories of their own, as those of `sterna up`.
pub fn digest(directory: &Path) -> Option<String> {
    id().map(|id| digest_of(&id, directory))
}

/// Keyed by the machine's id, which so cannot be learned from it.
fn digest_of(id: &str, directory: &Path) -> String {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, id.as_bytes()));
    context.update(APPLICATION);
    context.update(directory.as_os_str().as_bytes());
    let tag = context.sign();
    tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn a_file_that_has_no_id_yet_is_none() {
        assert_eq!(valid(&format!("{ID}\n")).as_deref(), Some(ID));
        for no in ["", "\n", "uninitialized\n", "0123"] {
            assert_eq!(valid(no), None, "{no:?}");
        }
    }

    #[test]
    fn machines_and_directories_are_told_apart_without_saying_the_id() {
        let digest = digest_of(ID, Path::new("/var/lib/sterna/agent"));
        assert_eq!(digest, digest_of(ID, Path::new("/var/lib/sterna/agent")));
        assert_eq!(digest.len(), 64);
        assert!(!digest.contains(&ID[..8]));
        let others = [
            digest_of(ID, Path::new("/var/lib/sterna/other")),
            digest_of(&ID.replace('0', "1"), Path::new("/var/lib/sterna/agent")),
        ];
        assert!(others.iter().all(|other| *other != digest));
    }
}
