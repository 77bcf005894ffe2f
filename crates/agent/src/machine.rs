//! What tells this machine from others, and how a server is told of it.
//!
//! **Owns:** reading the ids of the machine and of its present start, and the digests that leave the machine in their place.
//!
//! **Does not know:** what is decided by them.
//!
//! **Start here:** [`digest`] for a machine that joins, [`speaker`] for one that has joined.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use model::digest::hex;
use ring::hmac;

use crate::host;

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

fn digest_of(id: &str, directory: &Path) -> String {
    keyed(id, directory.as_os_str().as_bytes())
}

/// What no other agent that runs can say: it differs from start to start of the machine, and so from a copy of it, and from
/// a copy of the directory on the same machine. Agents in one directory exclude each other by its lock.
pub fn speaker(directory: &Path) -> Option<String> {
    let place = fs::metadata(directory).ok()?;
    speaker_of(&host::boot_id(), (place.dev(), place.ino()))
}

fn speaker_of(boot_id: &str, (device, inode): (u64, u64)) -> Option<String> {
    let place = format!("{device} {inode}");
    (!boot_id.is_empty()).then(|| keyed(boot_id, place.as_bytes()))
}

/// Keyed by an id, which so cannot be learned from it.
fn keyed(id: &str, text: &[u8]) -> String {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, id.as_bytes()));
    context.update(APPLICATION);
    context.update(text);
    hex(context.sign().as_ref())
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

    #[test]
    fn starts_of_a_machine_and_copies_of_a_directory_are_told_apart_without_saying_which() {
        let boot = "2f1c0a57-0000-4000-8000-000000000001";
        let own = speaker_of(boot, (1, 2)).unwrap();
        assert_eq!(speaker_of(boot, (1, 2)).as_ref(), Some(&own));
        assert!(model::limits::is_sha256(&own));
        let others = [
            speaker_of("2f1c0a57-0000-4000-8000-000000000002", (1, 2)),
            speaker_of(boot, (1, 3)),
            speaker_of(boot, (2, 2)),
            speaker_of(boot, (12, 0)),
        ];
        assert!(others.iter().flatten().all(|other| *other != own));
        assert_eq!(others.iter().flatten().count(), others.len());
        assert_eq!(speaker_of("", (1, 2)), None);
    }

    #[test]
    fn a_copied_directory_has_another_speaker_and_a_moved_one_has_not() {
        let room = tempfile::tempdir().unwrap();
        let [own, moved, copy] = ["own", "moved", "copy"].map(|name| room.path().join(name));
        fs::create_dir(&own).unwrap();
        fs::create_dir(&copy).unwrap();
        let said = speaker(&own).unwrap();
        assert_ne!(speaker(&copy).unwrap(), said);
        fs::rename(&own, &moved).unwrap();
        assert_eq!(speaker(&moved).unwrap(), said);
    }
}
