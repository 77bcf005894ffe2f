//! What a file is compressed with.
//!
//! *Owns:* the first bytes of the formats. *Does not know:* how they are unpacked. *Start here:* [`Compression::of`].

/// How many bytes tell it.
pub const HEAD_BYTES: usize = 6;

/// A way to compress a file as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// RFC 1952.
    Gzip,
    /// The `.xz` format.
    Xz,
    /// RFC 8878.
    Zstd,
}

impl Compression {
    /// What the file that begins so is compressed with.
    pub fn of(head: &[u8]) -> Option<Self> {
        const KNOWN: [(&[u8], Compression); 3] = [
            (&[0x1f, 0x8b, 0x08], Compression::Gzip),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0], Compression::Xz),
            (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
        ];
        let mut known = KNOWN.into_iter();
        known
            .find(|(magic, _)| head.starts_with(magic))
            .map(|(_, found)| found)
    }

    /// As people call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_told_by_its_first_bytes() {
        assert_eq!(Compression::of(b"\x1f\x8b\x08\0"), Some(Compression::Gzip));
        assert_eq!(Compression::of(b"\xfd7zXZ\0\0"), Some(Compression::Xz));
        assert_eq!(Compression::of(b"\x28\xb5\x2f\xfd"), Some(Compression::Zstd));
        assert_eq!(Compression::of(b"\x28\xb5"), None);
        assert_eq!(Compression::of(b""), None);
    }
}
