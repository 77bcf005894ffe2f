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
    let sets = [
        (Names::Plain, FIRST_FOLDER_SECTOR),
        (Names::Joliet, FIRST_FOLDER_SECTOR + folders.len()),
    ];
    let tables = sets.map(|(names, root)| {
        [
            table(&folders, names, root, u32::to_le_bytes, u16::to_le_bytes),
            table(&folders, names, root, u32::to_be_bytes, u16::to_be_bytes),
        ]
    });
    let table_bytes = tables.each_ref().map(|[little, _]| little.len());
    let mut image = vec![0; 16 * SECTOR_BYTES];
    image.extend(volume(&Volume {
        kind: 1,
        label: content.label.as_bytes(),
        blank: b' ',
        sectors,
        tables: 19,
        table_bytes: table_bytes[0],
        root: sets[0].1,
        escape: b"",
    }));
    image.extend(volume(&Volume {
        kind: 2,
        label: &utf16(content.label),
        blank: 0,
        sectors,
        tables: 21,
        table_bytes: table_bytes[1],
        root: sets[1].1,
        escape: b"%/E",
    }));
    image.extend(padded(b"\xffCD001\x01"));
    for table in tables.as_flattened() {
        image.extend(padded(table));
    }
    for (names, root) in sets {
        for index in 0..folders.len() {
            image.extend(padded(&folder(&folders, &files, names, root, index)));
        }
    }
    image.extend(data);
    image
}

/// A path table: where each folder is, and in which.
fn table(
    folders: &[Folder<'_>],
    names: Names,
    root: usize,
    number: fn(u32) -> [u8; 4],
    short: fn(u16) -> [u8; 2],
) -> Vec<u8> {
    let mut table = Vec::new();
    for (index, folder) in folders.iter().enumerate() {
        let name = names.of_folder(folder.name());
        table.extend([name.len() as u8, 0]);
        table.extend(number((root + index) as u32));
        table.extend(short(folder.parent as u16 + 1));
        table.extend(&name);
        table.resize(table.len().next_multiple_of(2), 0);
    }
    table
}

/// What is in a folder, by name, after itself and the one that it is in.
fn folder(folders: &[Folder<'_>], files: &[File<'_>], names: Names, root: usize, index: usize) -> Vec<u8> {
    let inner = folders
        .iter()
        .enumerate()
        .skip(1)
        .filter(|(_, folder)| folder.parent == index);
    let inner = inner.map(|(at, folder)| {
        let name = names.of_folder(folder.name());
        let entry = entry(&name, root + at, SECTOR_BYTES, true);
        (name, entry)
    });
    let files = files.iter().filter(|file| file.folder == index).map(|file| {
        let name = names.of_file(file.name);
        let entry = entry(&name, file.sector, file.bytes, false);
        (name, entry)
    });
    let mut entries: Vec<_> = inner.chain(files).collect();
    entries.sort();
    let mut bytes = entry(&[0], root + index, SECTOR_BYTES, true);
    bytes.extend(entry(&[1], root + folders[index].parent, SECTOR_BYTES, true));
    bytes.extend(entries.into_iter().flat_map(|(_, entry)| entry));
    bytes
}

/// What a volume descriptor says.
struct Volume<'c> {
    kind: u8,
    label: &'c [u8],
    blank: u8,
    sectors: usize,
    tables: u8,
    table_bytes: usize,
    root: usize,
    escape: &'c [u8],
}

fn volume(volume: &Volume<'_>) -> Vec<u8> {
    let mut bytes = vec![0; SECTOR_BYTES];
    let mut put = |at: usize, what: &[u8]| bytes[at..at + what.len()].copy_from_slice(what);
    put(0, &[volume.kind]);
    put(1, b"CD001\x01");
    // System, volume, set, publisher, preparer, application and three files: names filled up with blanks.
    for (at, length) in [(8, 32), (40, 32), (190, 623)] {
        let blanks: Vec<u8> = (0..length)
            .map(|n| {
                if n % 2 == 1 || volume.blank == b' ' {
                    b' '
                } else {
                    0
                }
            })
            .collect();
        put(at, &blanks);
    }
    put(40, volume.label);
    put(80, &both_u32(volume.sectors));
    put(88, volume.escape);
    put(120, &both_u16(1));
    put(124, &both_u16(1));
    put(128, &both_u16(SECTOR_BYTES as u16));
    put(132, &both_u32(volume.table_bytes));
    put(140, &[volume.tables, 0, 0, 0]);
    put(148, &[0, 0, 0, volume.tables + 1]);
    put(156, &entry(&[0], volume.root, SECTOR_BYTES, true));
    // Created, changed, expires, effective: not said.
    for at in [813, 830, 847, 864] {
        put(at, b"0000000000000000");
    }
    put(881, &[1]);
    bytes
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
