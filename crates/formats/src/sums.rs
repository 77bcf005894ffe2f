//! Lists of digests, as `sha256sum` writes them and as publishers lay them beside their files.
//!
//! *Owns:* what a line means. *Does not know:* where lists are. *Start here:* [`sha256_of`].

/// The digest, in lower case, that a list has for the file of this name. What is no line of a list, as signatures around
/// it, says nothing.
pub fn sha256_of(list: &str, file: &str) -> Option<String> {
    let mut lines = list.lines().filter_map(entry);
    let (digest, _) = lines.find(|(_, name)| *name == file)?;
    Some(digest.to_ascii_lowercase())
}

/// A digest, and the name of its file.
fn entry(line: &str) -> Option<(&str, &str)> {
    let (digest, name) = match line.strip_prefix("SHA256 (") {
        // As BSD's programs write it.
        Some(rest) => {
            let (name, digest) = rest.rsplit_once(") = ")?;
            (digest, name)
        }
        None => {
            let (digest, name) = line.split_once(' ')?;
            // The second character says how the file was read.
            (digest, name.strip_prefix([' ', '*'])?)
        }
    };
    let digest = digest.trim_end();
    let name = name.trim_end_matches('\r');
    let name = name.strip_prefix("./").unwrap_or(name);
    model::limits::is_sha256(&digest.to_ascii_lowercase()).then_some((digest, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIST: &str = "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n\
        1111111111111111111111111111111111111111111111111111111111111111  a.qcow2\n\
        2222222222222222222222222222222222222222222222222222222222222222 *b.qcow2\r\n\
        ABCDEF3333333333333333333333333333333333333333333333333333333333  ./c.qcow2\n\
        SHA256 (d (1).qcow2) = 4444444444444444444444444444444444444444444444444444444444444444\n\
        55555  e.qcow2\n";

    #[test]
    fn the_line_of_a_file_is_found_by_its_whole_name() {
        let first = |file| sha256_of(LIST, file).map(|digest| digest[..7].to_owned());
        for (file, digest) in [
            ("a.qcow2", "1111111"),
            ("b.qcow2", "2222222"),
            ("c.qcow2", "abcdef3"),
            ("d (1).qcow2", "4444444"),
        ] {
            assert_eq!(first(file).as_deref(), Some(digest), "{file}");
        }
        for missing in ["e.qcow2", "qcow2", "", ".qcow2", "x/a.qcow2"] {
            assert_eq!(first(missing), None, "{missing}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read(list in "\\PC*", file in "\\PC*") {
            let found = sha256_of(&list, &file);
            prop_assert!(found.is_none_or(|digest| model::limits::is_sha256(&digest)));
        }
    }
}
