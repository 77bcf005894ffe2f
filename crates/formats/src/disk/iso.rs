//! ISO 9660 (ECMA-119): the file system of installation media. Its descriptors begin in the seventeenth block of 2 KiB.

use super::bytes::{le16, le32};

const DESCRIPTOR: usize = 16 * 2048;
/// The type of the descriptor that the sizes stand in.
const PRIMARY: u8 = 1;

/// Whether the volume's first descriptor is there.
pub(super) fn is_header(head: &[u8]) -> bool {
    head.get(DESCRIPTOR + 1..DESCRIPTOR + 6) == Some(b"CD001")
}

/// How large the file is at least, if the first descriptor says so.
pub(super) fn bytes_min(head: &[u8]) -> Option<u64> {
    if head.get(DESCRIPTOR) != Some(&PRIMARY) {
        return None;
    }
    let blocks = le32(head, DESCRIPTOR + 80)?;
    let block_bytes = le16(head, DESCRIPTOR + 128)?;
    Some(u64::from(blocks) * u64::from(block_bytes))
}
