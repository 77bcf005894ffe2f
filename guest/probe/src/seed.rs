//! What the boot takes from a cloud-init seed's texts, apart from the network. As with that (see [`crate::network_config`]),
//! YAML and JSON are both taken, because only words matter.

/// The files of a seed, by what they are for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Files {
    pub(crate) meta_data: &'static str,
    pub(crate) user_data: &'static str,
    pub(crate) network: &'static str,
}

/// cloud-init's NoCloud.
pub(crate) const NO_CLOUD: Files = Files {
    meta_data: "meta-data",
    user_data: "user-data",
    network: "network-config",
};
/// OpenStack's ConfigDrive.
pub(crate) const CONFIG_DRIVE: Files = Files {
    meta_data: "openstack/latest/meta_data.json",
    user_data: "openstack/latest/user_data",
    network: "openstack/latest/network_data.json",
};

/// The parts of user data: those of a MIME document whose parts are base64, or the text itself.
pub(crate) fn parts(user_data: &str) -> Vec<String> {
    document(user_data).unwrap_or_else(|| vec![user_data.to_owned()])
}

fn document(text: &str) -> Option<Vec<String>> {
    let (head, body) = text.split_once("\n\n")?;
    let (_, boundary) = head
        .strip_prefix("Content-Type: multipart/")?
        .split_once("boundary=\"")?;
    let (boundary, _) = boundary.split_once('"')?;
    let (body, _) = body.split_once(&format!("--{boundary}--"))?;
    let line = format!("--{boundary}\n");
    let parts = body.split(&line).filter_map(|part| {
        let (_, content) = part.split_once("\n\n")?;
        String::from_utf8(base64(content)).ok()
    });
    Some(parts.collect())
}

/// What base64 stands for; what is none of its letters is passed over.
fn base64(text: &str) -> Vec<u8> {
    let letters = text.bytes().filter_map(|letter| match letter {
        b'A'..=b'Z' => Some(letter - b'A'),
        b'a'..=b'z' => Some(letter - b'a' + 26),
        b'0'..=b'9' => Some(letter - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    });
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0u32, 0);
    for six in letters {
        bits = bits << 6 | u32::from(six);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    bytes
}

/// The value of `local-hostname`, or of ConfigDrive's `hostname`, if it is a host's name.
pub(crate) fn host_name(meta_data: &str) -> Option<String> {
    let (_, after) = meta_data.split_once("hostname")?;
    let value = after
        .trim_start_matches(['"', '\''])
        .trim_start()
        .strip_prefix(':')?;
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '-' || letter == '.';
    let value = value.trim_start_matches([' ', '"', '\'']);
    let name = value.split(|letter| !is_part(letter)).next()?;
    (!name.is_empty()).then(|| name.to_owned())
}

/// Every SSH public key in the text, one a line with its comment: what begins with a key type that a space and base64
/// follow, up to the end of the line or a quote.
pub(crate) fn ssh_keys(text: &str) -> Vec<String> {
    text.lines()
        .flat_map(|line| line.split(['"', '\'']))
        .filter_map(ssh_key)
        .collect()
}

fn ssh_key(text: &str) -> Option<String> {
    let text = text.trim().trim_start_matches("- ").trim();
    let (kind, rest) = text.split_once(' ')?;
    let is_kind = ["ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-"]
        .iter()
        .any(|prefix| kind.starts_with(prefix));
    let is_word = kind
        .chars()
        .all(|letter| letter.is_ascii_alphanumeric() || "-@.".contains(letter));
    // The length of the key type, which base64 makes of it.
    let is_base64 = rest.starts_with("AAAA");
    (is_kind && is_word && is_base64).then(|| format!("{text}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_read_from_yaml_and_json() {
        for text in [
            "instance-id: 7\nlocal-hostname: web-1.example\n",
            "local-hostname: \"web-1.example\" # ours",
            "{\"local-hostname\":\"web-1.example\"}",
            "{\"hostname\":\"web-1.example\",\"name\":\"web\"}",
        ] {
            assert_eq!(host_name(text).as_deref(), Some("web-1.example"), "{text}");
        }
        assert_eq!(host_name("instance-id: 7"), None);
        assert_eq!(host_name("local-hostname: \"\""), None);
    }

    #[test]
    fn a_document_has_its_parts_and_a_text_is_one() {
        let document = "Content-Type: multipart/mixed; boundary=\"b\"\nMIME-Version: 1.0\n\n\
            --b\nContent-Type: text/x-shellscript\nContent-Transfer-Encoding: base64\n\nIyEv\nYmluL3NoCg==\n\
            --b\nContent-Type: text/cloud-config\n\nw6TDtg==\n--b--\n";
        assert_eq!(parts(document), ["#!/bin/sh\n", "äö"]);
        assert_eq!(parts("#!/bin/sh\n\necho"), ["#!/bin/sh\n\necho"]);
    }

    #[test]
    fn keys_are_found_in_lists_of_either_style() {
        let key = "ssh-ed25519 AAAAC3Nz me@here\n";
        for text in [
            "public-keys:\n  - \"ssh-ed25519 AAAAC3Nz me@here\"\n",
            "#cloud-config\nssh_authorized_keys:\n  - ssh-ed25519 AAAAC3Nz me@here\n",
            "{\"public-keys\":[\"ssh-ed25519 AAAAC3Nz me@here\"]}",
        ] {
            assert_eq!(ssh_keys(text), [key], "{text}");
        }
        assert!(ssh_keys("ssh-keygen: AAAA is how keys begin\n").is_empty());
    }
}
