//! UEFI for guests: the program that is the host's, and each VM's own variables.
//!
//! **Owns:** where both are, how a VM's variables come to be. They begin as the package's, or as those of the warm VM that the
//! root disk lies over, and lie beside that disk, so that they go with it: to another host, to a copy of the VM, and when the VM
//! is deleted.
//!
//! **Does not know:** how QEMU is given them.
//!
//! **Start here:** [`variables`].

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use model::VmId;
use model::digest::hex;
use model::document::Disk;
use sha2::{Digest, Sha256};

use crate::chance;
use crate::config::volume_dir;
use crate::storage::{self, StorageError, file};

/// The program, of Debian's package `ovmf`.
pub const CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
/// What the variables are at first.
const VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// Whether the host has both.
pub fn is_there() -> bool {
    Path::new(CODE).exists() && Path::new(VARIABLES).exists()
}

/// Which program the host has: what was started by another has that in its memory.
pub fn program() -> Result<String, StorageError> {
    let code = Path::new(CODE);
    let code = fs::read(code).map_err(file("read", code))?;
    Ok(hex(&Sha256::digest(code)))
}

/// Where the variables of a VM are.
pub fn path(vm: VmId, disk: &Disk) -> PathBuf {
    // As with the disk: if a start from a warm VM's memory comes to nothing, the VM begins with others.
    let name = if disk.layer.is_some() {
        "nvram-warm.fd"
    } else {
        "nvram.fd"
    };
    volume_dir(Path::new(&disk.datastore), vm).join(name)
}

/// The variables of a VM, made if they are not there.
pub fn variables(vm: VmId, disk: &Disk) -> Result<(), StorageError> {
    let first = match disk.layer {
        Some(layer) => path(layer, &storage::copied(disk, true)),
        None => PathBuf::from(VARIABLES),
    };
    copy(&first, &path(vm, disk))
}

/// Gives a copy of a VM, whose disk is that one, the variables as they are now. A VM without any gives none.
pub fn copy_variables(from: &Path, to: VmId, disk: &Disk) -> Result<(), StorageError> {
    if !from.exists() {
        return Ok(());
    }
    copy(from, &path(to, disk))
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

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn what_lies_over_a_warm_vms_disk_begins_with_its_variables_and_goes_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let [vm, form, clone] = [7, 8, 9].map(|n| VmId(Uuid::from_u128(n)));
        let own = Disk {
            datastore: directory.path().to_str().unwrap().to_owned(),
            coherent: true,
            image: None,
            bytes: 1 << 20,
            layer: None,
        };
        let over = Disk {
            layer: Some(form),
            ..own.clone()
        };
        for id in [vm, form, clone] {
            storage::make_private(&volume_dir(directory.path(), id)).unwrap();
        }
        fs::write(path(form, &own), "the form's").unwrap();
        variables(vm, &over).unwrap();
        assert_eq!(fs::read_to_string(path(vm, &over)).unwrap(), "the form's");
        // They are written from then on, and made once.
        fs::write(path(vm, &over), "changed").unwrap();
        variables(vm, &over).unwrap();
        copy_variables(&path(vm, &over), clone, &own).unwrap();
        assert_eq!(fs::read_to_string(path(clone, &own)).unwrap(), "changed");
        assert_eq!(fs::read_to_string(path(form, &own)).unwrap(), "the form's");
        assert!(!path(vm, &own).exists(), "a boot would begin with them");
    }
}
