//! UEFI for guests: the program that is the host's, and each VM's own variables.
//!
//! **Owns:** where both are, how a VM's variables come to be. They begin as the package's and lie beside the VM's root disk, so
//! that they go with it: to another host, to a copy of the VM, and when the VM is deleted.
//!
//! **Does not know:** how QEMU is given them.
//!
//! **Start here:** [`variables`].

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use model::VmId;
use model::document::Disk;

use crate::chance;
use crate::config::volume_dir;
use crate::storage::{StorageError, file};

/// The program, of Debian's package `ovmf`.
pub const CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
/// What the variables are at first.
const VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// Whether the host has both.
pub fn is_there() -> bool {
    Path::new(CODE).exists() && Path::new(VARIABLES).exists()
}

/// Where the variables of a VM are.
pub fn path(vm: VmId, disk: &Disk) -> PathBuf {
    volume_dir(Path::new(&disk.datastore), vm).join("nvram.fd")
}

/// The variables of a VM, made if they are not there.
pub fn variables(vm: VmId, disk: &Disk) -> Result<(), StorageError> {
    copy(Path::new(VARIABLES), &path(vm, disk))
}

/// Gives a copy of a VM the variables as they are now. A VM without any gives none.
pub fn copy_variables(from: VmId, to: VmId, disk: &Disk) -> Result<(), StorageError> {
    let from = path(from, disk);
    if !from.exists() {
        return Ok(());
    }
    copy(&from, &path(to, disk))
}

/// Copies whole or not at all what is not there yet.
fn copy(from: &Path, to: &Path) -> Result<(), StorageError> {
    if to.exists() {
        return Ok(());
    }
    let part = to.with_extension(format!("{}.part", chance::unique()));
    let mut private = fs::OpenOptions::new();
    private.write(true).create_new(true).mode(0o600);
    let made = fs::File::open(from)
        .map_err(file("open", from))
        .and_then(|mut source| {
            let written = private.open(&part).and_then(|mut part| {
                io::copy(&mut source, &mut part)?;
                part.sync_all()
            });
            written.map_err(file("write", &part))?;
            fs::rename(&part, to).map_err(file("rename", &part))
        });
    if made.is_err() {
        let _ = fs::remove_file(&part);
    }
    made
}
