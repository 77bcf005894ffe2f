//! Disk images: the format and the size of each by its bytes, and a refusal of those that lead to other files.
//!
//! *Owns:* what the headers mean. *Does not know:* the tables behind them: a converter reads those, and whatever is wrong there
//! is found by it. *Start here:* [`recognise`].
//!
//! The layouts are published: QEMU's `docs/interop/qcow2.txt`, VMware's "Virtual Disk Format 5.0", Microsoft's "Virtual Hard
//! Disk Image Format Specification" and MS-VHDX, and VirtualBox's `VDICore.h`. Multi-byte numbers are big-endian in qcow2
//! and VHD, little-endian in the others. ISO 9660 is ECMA-119.

mod bytes;
mod iso;
mod qcow2;
mod vdi;
mod vhd;
mod vmdk;

#[cfg(test)]
mod tests;

use model::limits::DISK_MAX_BYTES;

/// How much of a file's beginning is looked at.
pub const HEAD_BYTES: usize = 64 * 1024;
/// How much of its end.
pub const TAIL_BYTES: usize = 512;

/// What an image has beside its content: tables, headers, and clusters that are only partly used.
const TABLES_BYTES: u64 = 64 << 20;
const SECTOR_BYTES: u64 = 512;

/// How a disk's content is laid out in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Block by block.
    Raw,
    /// QEMU's.
    Qcow2,
    /// VMware's, in one file.
    Vmdk,
    /// Microsoft's first one.
    Vhd,
    /// Microsoft's second one.
    Vhdx,
    /// VirtualBox's.
    Vdi,
    /// A medium to install from: an ISO 9660 file system, also one that can be written to a stick.
    Iso,
}

impl Format {
    /// As people call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "VMDK",
            Self::Vhd => "VHD",
            Self::Vhdx => "VHDX",
            Self::Vdi => "VDI",
            Self::Iso => "ISO 9660",
        }
    }
}

/// A disk image that can be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Its format.
    pub format: Format,
    /// The size that a guest sees, where the header has it in a fixed place.
    pub virtual_bytes: Option<u64>,
}

/// Why a file cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No format's header.
    #[error(
        "it begins neither like a qcow2, VMDK, VHD, VHDX or VDI image nor like a disk with a boot sector or an ISO 9660 medium"
    )]
    Unknown,
    /// The header is not all there, or contradicts itself.
    #[error("its {0} header is cut off or damaged: {1}")]
    Damaged(&'static str, &'static str),
    /// A variant that cannot be read.
    #[error("{0}")]
    Unsupported(&'static str),
    /// It would make a converter read a file of its choice on this machine.
    #[error("{0}, which would be read from the server: {1}")]
    OtherFiles(&'static str, &'static str),
    /// It is empty, or larger than a disk may be.
    #[error("its virtual size is {0} bytes: disks have from 512 bytes to 8 TiB")]
    Size(u64),
}

/// What is looked at of a file.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    /// Its first [`HEAD_BYTES`], or all of it.
    pub head: &'a [u8],
    /// Its last [`TAIL_BYTES`], or all of it.
    pub tail: &'a [u8],
    /// Its size.
    pub bytes: u64,
}

/// What the file is.
pub fn recognise(file: Sample<'_>) -> Result<Disk, Refusal> {
    let format = by_head(file.head);
    let virtual_bytes = match format {
        Some(Format::Qcow2) => qcow2::size(file.head).map(Some),
        Some(Format::Vmdk) => vmdk::size(file.head).map(Some),
        Some(Format::Vdi) if vdi::bytes_min(file.head).is_none_or(|min| file.bytes < min) => Err(
            Refusal::Damaged("VDI", "the file is cut off: blocks that it counts are missing"),
        ),
        Some(Format::Vdi) => vdi::size(file.head).map(Some),
        Some(Format::Iso) if iso::bytes_min(file.head).is_some_and(|min| file.bytes < min) => {
            Err(Refusal::Damaged(
                "ISO 9660",
                "the file is cut off: it is smaller than its file system",
            ))
        }
        Some(Format::Iso) => Ok(Some(file.bytes)),
        // Its tables are anywhere. A converter refuses one with a parent.
        Some(Format::Vhdx) => Ok(None),
        // The head of one that grows is a copy of its tail.
        Some(Format::Vhd) if !vhd::is_footer(file.tail) => Err(Refusal::Damaged(
            "VHD",
            "the file is cut off: its footer is missing",
        )),
        Some(Format::Vhd) => vhd::size(file.head).map(Some),
        Some(Format::Raw) | None if vhd::is_footer(file.tail) => {
            let bytes = vhd::size(file.tail)?;
            return sized(Format::Vhd, Some(bytes));
        }
        Some(Format::Raw) if file.bytes.is_multiple_of(SECTOR_BYTES) => Ok(Some(file.bytes)),
        Some(Format::Raw) => Err(Refusal::Damaged("raw", "its size is not a multiple of 512 bytes")),
        None => Err(Refusal::Unknown),
    }?;
    sized(format.unwrap_or(Format::Raw), virtual_bytes)
}

fn sized(format: Format, virtual_bytes: Option<u64>) -> Result<Disk, Refusal> {
    match virtual_bytes {
        Some(bytes) if !(SECTOR_BYTES..=DISK_MAX_BYTES).contains(&bytes) => Err(Refusal::Size(bytes)),
        virtual_bytes => Ok(Disk {
            format,
            virtual_bytes,
        }),
    }
}

fn by_head(head: &[u8]) -> Option<Format> {
    // VMware's older format begins with COWD; its text files name the files that the data is in.
    const MAGIC: [(&[u8], Format); 6] = [
        (b"QFI\xfb", Format::Qcow2),
        (b"KDMV", Format::Vmdk),
        (b"COWD", Format::Vmdk),
        (b"# Disk DescriptorFile", Format::Vmdk),
        (b"vhdxfile", Format::Vhdx),
        (b"conectix", Format::Vhd),
    ];
    let mut known = MAGIC.into_iter();
    let found = known.find(|(magic, _)| head.starts_with(magic));
    let found = found.map(|(_, format)| format);
    let known = found.or_else(|| vdi::is_header(head).then_some(Format::Vdi));
    // One that can be written to a stick has a boot sector too.
    let known = known.or_else(|| iso::is_header(head).then_some(Format::Iso));
    // A disk that a machine boots from ends its first sector so.
    let boots = head.get(510..512) == Some(&[0x55, 0xaa]);
    known.or_else(|| boots.then_some(Format::Raw))
}

/// How large a file may become that begins so: what is unpacked beyond that is no image, but an attempt to fill the disk.
pub fn bytes_max(head: &[u8]) -> u64 {
    let declared = match by_head(head) {
        Some(Format::Qcow2) => qcow2::size(head).ok(),
        Some(Format::Vmdk) => vmdk::size(head).ok(),
        Some(Format::Vdi) => vdi::size(head).ok(),
        Some(Format::Vhd) => vhd::size(head).ok(),
        _ => None,
    };
    let content = declared.unwrap_or(DISK_MAX_BYTES).min(DISK_MAX_BYTES);
    content + content / 8 + TABLES_BYTES
}
