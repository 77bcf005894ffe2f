//! QEMU's own format, versions 2 and 3.

use super::Refusal;
use super::bytes::{be32, be64};

/// Incompatible features: whoever does not know one may not use the image. The first is a mark that it was not closed well,
/// which is repaired by reading it.
const CORRUPT: u64 = 1 << 1;
const OTHER_FILE: u64 = 1 << 2;
const KNOWN: u64 = 0b1_1111;

pub(super) fn size(head: &[u8]) -> Result<u64, Refusal> {
    let cut = || Refusal::Damaged("qcow2", "it ends early");
    let version = be32(head, 4).ok_or_else(cut)?;
    if !matches!(version, 2 | 3) {
        return Err(Refusal::Unsupported("its qcow2 version is unknown"));
    }
    if be64(head, 8).ok_or_else(cut)? != 0 {
        return Err(Refusal::OtherFiles("it needs a backing file", "flatten it first"));
    }
    if be32(head, 32).ok_or_else(cut)? != 0 {
        return Err(Refusal::Unsupported("it is encrypted: decrypt it first"));
    }
    if version == 3 {
        features(be64(head, 72).ok_or_else(cut)?)?;
    }
    be64(head, 24).ok_or_else(cut)
}

fn features(features: u64) -> Result<(), Refusal> {
    if features & OTHER_FILE != 0 {
        return Err(Refusal::OtherFiles(
            "its data is in another file",
            "convert it to one file first",
        ));
    }
    if features & CORRUPT != 0 {
        return Err(Refusal::Damaged(
            "qcow2",
            "it is marked as corrupt: repair it first",
        ));
    }
    if features & !KNOWN != 0 {
        return Err(Refusal::Unsupported("it has qcow2 features that are unknown"));
    }
    Ok(())
}
