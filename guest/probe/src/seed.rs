//! What the boot takes from a cloud-init seed's texts, apart from the network. As with that (see [`crate::network_config`]),
//! YAML and JSON are both taken, because only words matter.

/// The value of `local-hostname`, if it is a host's name.
pub(crate) fn host_name(meta_data: &str) -> Option<String> {
    let (_, after) = meta_data.split_once("local-hostname")?;
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
        ] {
            assert_eq!(host_name(text).as_deref(), Some("web-1.example"), "{text}");
        }
        assert_eq!(host_name("instance-id: 7"), None);
        assert_eq!(host_name("local-hostname: \"\""), None);
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
