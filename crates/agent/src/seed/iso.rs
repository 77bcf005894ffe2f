//! The image of an ISO 9660 file system, with Joliet names.
//!
//! **Owns:** its layout, which is ECMA-119's, a sector being 2 KiB; the plain names and those of Joliet lead to the same files:
//!
//! ```text
//! 0–15 unused · 16 volume · 17 Joliet volume · 18 end of volumes · 19, 20 path tables (little, big endian)
//! 21, 22 Joliet path tables · 23… folders, then the same with Joliet names, a sector each · files, each from a new sector
//! ```
//!
//! **Does not know:** what the files say. They are few: what is in a folder fits into a sector.
//!
//! **Start here:** [`image`].

use super::Content;

const SECTOR_BYTES: usize = 2048;
const FIRST_FOLDER_SECTOR: usize = 23;

/// How names are written.
#[derive(Debug, Clone, Copy)]
enum Names {
    Plain,
    Joliet,
}

impl Names {
    fn of_file(self, name: &str) -> Vec<u8> {
        match self {
            Self::Plain => format!("{};1", name.to_uppercase()).into_bytes(),
            Self::Joliet => utf16(name),
        }
    }

    fn of_folder(self, name: &str) -> Vec<u8> {
        match self {
            _ if name.is_empty() => vec![0],
            Self::Plain => name.to_uppercase().into_bytes(),
            Self::Joliet => utf16(name),
        }
    }

    fn label(self, label: &str) -> Vec<u8> {
        match self {
            Self::Plain => label.as_bytes().to_vec(),
            Self::Joliet => utf16(label),
        }
    }

    /// The kind of the volume's descriptor, the escape sequence that announces the names, and the sector of its first table.
    const fn volume(self) -> (u8, &'static [u8], u8) {
        match self {
            Self::Plain => (1, b"", 19),
            Self::Joliet => (2, b"%/E", 21),
        }
    }

    /// What names are filled up with: a blank, of one byte or of two.
    const fn blank(self, at: usize) -> u8 {
        match self {
            Self::Joliet if at.is_multiple_of(2) => 0,
            _ => b' ',
        }
    }
}

/// A folder: the root first, each after the one that it is in, which is the root's for the root itself.
struct Folder<'c> {
    path: &'c str,
    parent: usize,
}

impl Folder<'_> {
    fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }
}

/// A file and where its content is.
struct File<'c> {
    folder: usize,
    name: &'c str,
    sector: usize,
    bytes: usize,
}

/// All folders on the ways to the files.
fn folders<'c>(files: &[(&'c str, String)]) -> Vec<Folder<'c>> {
    let mut folders = vec![Folder { path: "", parent: 0 }];
    for (path, _) in files {
        let mut parent = 0;
        for (end, _) in path.match_indices('/') {
            let path = &path[..end];
            let known = folders.iter().position(|folder| folder.path == path);
            parent = known.unwrap_or_else(|| {
                folders.push(Folder { path, parent });
                folders.len() - 1
            });
        }
    }
    folders
}

/// The whole image.
pub(super) fn image(content: &Content) -> Vec<u8> {
    let folders = folders(&content.files);
    let first_file_sector = FIRST_FOLDER_SECTOR + 2 * folders.len();
    let mut data = Vec::new();
    let mut files = Vec::new();
    for (path, text) in &content.files {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        files.push(File {
            folder: folders.iter().position(|known| known.path == folder).unwrap_or(0),
            name,
            sector: first_file_sector + data.len() / SECTOR_BYTES,
            bytes: text.len(),
        });
        data.extend(padded(text.as_bytes()));
    }
    let sectors = first_file_sector + data.len() / SECTOR_BYTES;
    let joliet_root = FIRST_FOLDER_SECTOR + folders.len();
    let sets = [(Names::Plain, FIRST_FOLDER_SECTOR), (Names::Joliet, joliet_root)];
    let sets = sets.map(|(names, root)| Set {
        folders: &folders,
        files: &files,
        names,
        root,
    });
    let mut image = vec![0; 16 * SECTOR_BYTES];
    for set in &sets {
        image.extend(set.volume(content.label, sectors));
    }
    image.extend(padded(b"\xffCD001\x01"));
    for set in &sets {
        image.extend(padded(&set.table(u32::to_le_bytes, u16::to_le_bytes)));
        image.extend(padded(&set.table(u32::to_be_bytes, u16::to_be_bytes)));
    }
    for set in &sets {
        (0..folders.len()).for_each(|index| image.extend(padded(&set.folder(index))));
    }
    image.extend(data);
    image
}

/// Folders that lead to the files by one sort of names, one after the other from the root's sector on.
struct Set<'c> {
    folders: &'c [Folder<'c>],
    files: &'c [File<'c>],
    names: Names,
    root: usize,
}

impl Set<'_> {
    /// A path table: where each folder is, and in which.
    fn table(&self, number: fn(u32) -> [u8; 4], short: fn(u16) -> [u8; 2]) -> Vec<u8> {
        let mut table = Vec::new();
        for (index, folder) in self.folders.iter().enumerate() {
            let name = self.names.of_folder(folder.name());
            table.extend([name.len() as u8, 0]);
            table.extend(number((self.root + index) as u32));
            table.extend(short(folder.parent as u16 + 1));
            table.extend(&name);
            table.resize(table.len().next_multiple_of(2), 0);
        }
        table
    }

    /// What is in a folder, by name, after itself and the one that it is in.
    fn folder(&self, index: usize) -> Vec<u8> {
        let of_folder = |at: usize, name: &[u8]| entry(name, self.root + at, SECTOR_BYTES, true);
        let inner = self.folders.iter().enumerate().skip(1);
        let inner = inner
            .filter(|(_, inner)| inner.parent == index)
            .map(|(at, inner)| {
                let name = self.names.of_folder(inner.name());
                let entry = of_folder(at, &name);
                (name, entry)
            });
        let files = self.files.iter().filter(|file| file.folder == index).map(|file| {
            let name = self.names.of_file(file.name);
            let entry = entry(&name, file.sector, file.bytes, false);
            (name, entry)
        });
        let mut entries: Vec<_> = inner.chain(files).collect();
        entries.sort();
        let mut bytes = of_folder(index, &[0]);
        bytes.extend(of_folder(self.folders[index].parent, &[1]));
        bytes.extend(entries.into_iter().flat_map(|(_, entry)| entry));
        bytes
    }

    /// The volume's descriptor.
    fn volume(&self, label: &str, sectors: usize) -> Vec<u8> {
        let (kind, escape, first_table) = self.names.volume();
        let mut bytes = vec![0; SECTOR_BYTES];
        let mut put = |at: usize, what: &[u8]| bytes[at..at + what.len()].copy_from_slice(what);
        put(0, &[kind]);
        put(1, b"CD001\x01");
        // System, volume, set, publisher, preparer, application and three files: names filled up with blanks.
        for (at, length) in [(8, 32), (40, 32), (190, 623)] {
            let blanks: Vec<u8> = (0..length).map(|n| self.names.blank(n)).collect();
            put(at, &blanks);
        }
        put(40, &self.names.label(label));
        put(80, &both_u32(sectors));
        put(88, escape);
        put(120, &both_u16(1));
        put(124, &both_u16(1));
        put(128, &both_u16(SECTOR_BYTES as u16));
        put(
            132,
            &both_u32(self.table(u32::to_le_bytes, u16::to_le_bytes).len()),
        );
        put(140, &[first_table, 0, 0, 0]);
        put(148, &[0, 0, 0, first_table + 1]);
        put(156, &entry(&[0], self.root, SECTOR_BYTES, true));
        // Created, changed, expires, effective: not said.
        for at in [813, 830, 847, 864] {
            put(at, b"0000000000000000");
        }
        put(881, &[1]);
        bytes
    }
}

fn entry(name: &[u8], sector: usize, length: usize, is_folder: bool) -> Vec<u8> {
    let size = (33 + name.len()).next_multiple_of(2);
    let mut bytes = vec![size as u8, 0];
    bytes.extend(both_u32(sector));
    bytes.extend(both_u32(length));
    // The date: the first of January 2000.
    bytes.extend([100, 1, 1, 0, 0, 0, 0]);
    bytes.extend([if is_folder { 2 } else { 0 }, 0, 0]);
    bytes.extend(both_u16(1));
    bytes.push(name.len() as u8);
    bytes.extend(name);
    bytes.resize(size, 0);
    bytes
}

fn both_u32(number: usize) -> Vec<u8> {
    let number = number as u32;
    [number.to_le_bytes(), number.to_be_bytes()].concat()
}

fn both_u16(number: u16) -> Vec<u8> {
    [number.to_le_bytes(), number.to_be_bytes()].concat()
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

/// Filled up with zeros to whole sectors, at least one.
fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().max(1).next_multiple_of(SECTOR_BYTES), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn number(bytes: &[u8]) -> usize {
        u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize
    }

    /// What a reader sees that begins at the volume descriptor in this sector: files by their paths.
    fn files(image: &[u8], volume: usize, text: fn(&[u8]) -> String) -> BTreeMap<String, Vec<u8>> {
        let root = number(&image[volume * SECTOR_BYTES + 156 + 2..]);
        let mut files = BTreeMap::new();
        let mut open = vec![(String::new(), root, root)];
        while let Some((path, sector, parent)) = open.pop() {
            let mut folder = &image[sector * SECTOR_BYTES..][..SECTOR_BYTES];
            let mut dots = vec![sector, parent];
            while folder[0] != 0 {
                let (entry, rest) = folder.split_at(folder[0] as usize);
                let (at, length) = (number(&entry[2..]), number(&entry[10..]));
                let name = &entry[33..33 + entry[32] as usize];
                if name == [0] || name == [1] {
                    assert_eq!(at, dots.remove(0), "{path}");
                } else if entry[25] == 2 {
                    open.push((format!("{path}{}/", text(name)), at, sector));
                } else {
                    let content = image[at * SECTOR_BYTES..][..length].to_vec();
                    files.insert(format!("{path}{}", text(name)), content);
                }
                folder = rest;
            }
        }
        files
    }

    fn plain(name: &[u8]) -> String {
        String::from_utf8(name.to_vec()).unwrap()
    }

    fn joliet(name: &[u8]) -> String {
        let (pairs, _) = name.as_chunks::<2>();
        let letters: Vec<u16> = pairs.iter().map(|pair| u16::from_be_bytes(*pair)).collect();
        String::from_utf16(&letters).unwrap()
    }

    /// Names and sectors in a path table, with the number of the folder that each is in.
    fn table(image: &[u8], volume: usize) -> Vec<(Vec<u8>, usize, u8)> {
        let descriptor = &image[volume * SECTOR_BYTES..][..SECTOR_BYTES];
        let mut rest = &image[number(&descriptor[140..]) * SECTOR_BYTES..][..number(&descriptor[132..])];
        let mut found = Vec::new();
        while !rest.is_empty() {
            let length = rest[0] as usize;
            found.push((rest[8..8 + length].to_vec(), number(&rest[2..]), rest[6]));
            rest = &rest[(8 + length).next_multiple_of(2)..];
        }
        found
    }

    #[test]
    fn both_sets_of_names_lead_to_the_files_in_folders_and_without() {
        let long = "#!/bin/sh\n".repeat(500);
        let in_root = [("meta-data", "a"), ("network-config", ""), ("user-data", &long)];
        let below = [
            ("openstack/latest/meta_data.json", "{}"),
            ("openstack/latest/network_data.json", &long),
            ("openstack/latest/user_data", "x"),
        ];
        for (label, expected) in [("cidata", in_root), ("config-2", below)] {
            let owned = expected.map(|(path, text)| (path, text.to_owned()));
            let content = Content {
                label,
                files: owned.to_vec(),
            };
            let image = image(&content);
            let (upper, mixed) = (files(&image, 16, plain), files(&image, 17, joliet));
            assert_eq!((upper.len(), mixed.len()), (3, 3));
            for (path, text) in expected {
                assert_eq!(mixed[path], text.as_bytes(), "{path}");
                assert_eq!(
                    upper[&format!("{};1", path.to_uppercase())],
                    text.as_bytes(),
                    "{path}"
                );
            }
            let shown = &image[16 * SECTOR_BYTES + 40..][..32];
            assert_eq!(plain(shown).trim_end(), label);
            assert_eq!(image.len() % SECTOR_BYTES, 0);
            let sectors = number(&image[16 * SECTOR_BYTES + 80..]);
            assert_eq!(sectors * SECTOR_BYTES, image.len());
        }
    }

    #[test]
    fn a_path_table_has_each_folder_and_where_it_is() {
        let files = vec![("a/b/c", String::new()), ("d", String::new())];
        let image = image(&Content { label: "x", files });
        let folder = |name: &[u8], sector, parent| (name.to_vec(), sector, parent);
        let upper = [folder(&[0], 23, 1), folder(b"A", 24, 1), folder(b"B", 25, 2)];
        assert_eq!(table(&image, 16), upper);
        let mixed = [folder(&[0], 26, 1), folder(b"\0a", 27, 1), folder(b"\0b", 28, 2)];
        assert_eq!(table(&image, 17), mixed);
    }
}
