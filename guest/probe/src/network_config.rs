//! Reads a cloud-init network-config (version 2), or OpenStack's network_data.json, into flat settings that a shell script can apply.
//!
//! Both YAML and JSON are taken, since the text is only split into words: punctuation of either becomes space, and words
//! that end in a colon are keys. So indentation means nothing; what is not known is skipped with its values. README.md
//! beside the image's builder says which keys are known.

use std::net::IpAddr;

use crate::Outcome;

/// One network card as the file describes it.
#[derive(Debug, Default, PartialEq)]
struct Card {
    name: String,
    mac: Option<String>,
    mtu: Option<String>,
    addresses: Vec<String>,
    routes: Vec<(String, String)>,
    nameservers: Vec<String>,
    dhcp4: bool,
}

impl Card {
    /// Lines of `NAME MAC KEY VALUE`, in the order in which they can be applied.
    fn settings(&self) -> Vec<String> {
        let mac = self.mac.as_deref().unwrap_or("-");
        let mtu = self.mtu.iter().map(|mtu| format!("mtu {mtu}"));
        let addresses = self.addresses.iter().map(|address| format!("address {address}"));
        let routes = self.routes.iter().map(|(to, via)| format!("route {to} {via}"));
        let nameservers = self
            .nameservers
            .iter()
            .map(|server| format!("nameserver {server}"));
        let dhcp4 = self.dhcp4.then(|| "dhcp4 yes".to_owned());
        mtu.chain(["up yes".to_owned()])
            .chain(addresses)
            .chain(routes)
            .chain(nameservers)
            .chain(dhcp4)
            .map(|setting| format!("{} {mac} {setting}", self.name))
            .collect()
    }
}

/// Prints the settings of a file.
pub(crate) fn print(path: &str) -> Outcome {
    let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"))?;
    let is_openstack = text.contains("\"links\"");
    let cards = if is_openstack {
        parse_network_data(&text)
    } else {
        parse(&text)
    };
    for card in cards {
        for setting in card.settings() {
            println!("{setting}");
        }
    }
    Ok(())
}

/// Words of the text: comments, quotes, brackets and list dashes are gone, keys end in a colon.
fn words(text: &str) -> Vec<String> {
    let without_comments = text.lines().map(|line| line.split(" #").next().unwrap_or(line));
    without_comments
        .filter(|line| !line.trim_start().starts_with('#'))
        .flat_map(|line| {
            let spaced = line.replace("\":", "\": ").replace("':", "': ");
            let bare = spaced
                .replace(['{', '}', '[', ']', ','], " ")
                .replace(['"', '\''], "");
            bare.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        })
        .filter(|word| word != "-")
        .collect()
}

fn parse(text: &str) -> Vec<Card> {
    let mut cards: Vec<Card> = Vec::new();
    let mut key = String::new();
    // A nameservers block has `addresses` of its own: the next ones after it, unless another key comes first.
    let (mut nameservers_begun, mut of_nameservers) = (false, false);
    let mut to = String::new();
    for word in words(text) {
        if let Some(name) = word.strip_suffix(':') {
            of_nameservers = nameservers_begun && name == "addresses";
            nameservers_begun = name == "nameservers" || (nameservers_begun && name == "search");
            if !is_known(name) {
                cards.push(Card {
                    name: name.to_owned(),
                    ..Card::default()
                });
            }
            key = name.to_owned();
            continue;
        }
        let Some(card) = cards.last_mut() else { continue };
        match key.as_str() {
            "macaddress" => card.mac = Some(word.to_lowercase()),
            "mtu" => card.mtu = Some(word),
            "dhcp4" => card.dhcp4 = word == "true" || word == "yes",
            "addresses" if of_nameservers => card.nameservers.push(word),
            "addresses" => card.addresses.push(word),
            "gateway4" | "gateway6" => card.routes.push(("default".into(), word)),
            "to" => {
                to = if matches!(word.as_str(), "0.0.0.0/0" | "::/0") {
                    "default".into()
                } else {
                    word
                }
            }
            "via" => card.routes.push((std::mem::take(&mut to), word)),
            _ => {}
        }
    }
    cards
}

/// Cards and their addresses from network_data.json: an object ends at each closing brace.
fn parse_network_data(text: &str) -> Vec<Card> {
    let mut cards: Vec<(String, Card)> = Vec::new();
    for object in text.split('}') {
        let words = words(object);
        let get = |key: &str| {
            let at = words
                .iter()
                .position(|word| word.strip_suffix(':') == Some(key))?;
            words.get(at + 1).cloned()
        };
        if let Some(mac) = get("ethernet_mac_address") {
            let card = Card {
                name: get("name").unwrap_or_default(),
                mac: Some(mac.to_lowercase()),
                mtu: get("mtu"),
                ..Card::default()
            };
            cards.push((get("id").unwrap_or_default(), card));
        } else if let (Some(link), Some(address)) = (get("link"), get("ip_address")) {
            let prefix_len = get("netmask").and_then(|mask| prefix_len(&mask));
            let address = format!("{address}/{}", prefix_len.unwrap_or(32));
            let of_link = cards.iter_mut().filter(|(id, _)| *id == link);
            of_link.for_each(|(_, card)| card.addresses.push(address.clone()));
        }
    }
    cards.into_iter().map(|(_, card)| card).collect()
}

fn prefix_len(mask: &str) -> Option<u32> {
    Some(match mask.parse().ok()? {
        IpAddr::V4(mask) => u32::from(mask).count_ones(),
        IpAddr::V6(mask) => u128::from(mask).count_ones(),
    })
}

/// Any other key names a card.
fn is_known(key: &str) -> bool {
    const KEYS: [&str; 22] = [
        "network",
        "version",
        "renderer",
        "ethernets",
        "match",
        "macaddress",
        "set-name",
        "driver",
        "name",
        "mtu",
        "dhcp4",
        "dhcp6",
        "addresses",
        "gateway4",
        "gateway6",
        "routes",
        "to",
        "via",
        "metric",
        "nameservers",
        "search",
        "optional",
    ];
    KEYS.contains(&key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: [&str; 6] = [
        "eth0 52:54:00:aa:bb:cc mtu 1450",
        "eth0 52:54:00:aa:bb:cc up yes",
        "eth0 52:54:00:aa:bb:cc address 10.0.0.2/24",
        "eth0 52:54:00:aa:bb:cc address fd00::2/64",
        "eth0 52:54:00:aa:bb:cc route default 10.0.0.1",
        "eth0 52:54:00:aa:bb:cc nameserver 10.0.0.53",
    ];

    fn settings(text: &str) -> Vec<String> {
        parse(text).iter().flat_map(Card::settings).collect()
    }

    #[test]
    fn block_yaml() {
        let text = "# made by hand\nversion: 2\nethernets:\n  eth0:\n    match:\n      macaddress: \"52:54:00:AA:BB:CC\"\n    \
                    mtu: 1450\n    addresses:\n      - 10.0.0.2/24 # the first\n      - 'fd00::2/64'\n    gateway4: 10.0.0.1\n    \
                    nameservers:\n      search: [example.org]\n      addresses: [10.0.0.53]\n";
        assert_eq!(settings(text), SETTINGS);
    }

    #[test]
    fn json_without_spaces() {
        let text = r#"{"network":{"version":2,"ethernets":{"eth0":{"match":{"macaddress":"52:54:00:aa:bb:cc"},"mtu":1450,
            "nameservers":{"addresses":["10.0.0.53"]},"addresses":["10.0.0.2/24","fd00::2/64"],
            "routes":[{"to":"0.0.0.0/0","via":"10.0.0.1"}]}}}}"#;
        assert_eq!(settings(text), SETTINGS);
    }

    #[test]
    fn cards_and_addresses_of_openstack() {
        let text = r#"{"links":[{"ethernet_mac_address":"52:54:00:AA:BB:CC","id":"nic0","mtu":1450,"name":"eth0","type":"phy"},
            {"ethernet_mac_address":"52:54:00:aa:bb:cd","id":"nic1","name":"eth1","type":"phy"}],
            "networks":[{"id":"network0","ip_address":"10.0.0.2","link":"nic0","netmask":"255.255.255.0","type":"ipv4"},
            {"id":"network1","ip_address":"fd00::2","link":"nic0","netmask":"ffff:ffff:ffff:ffff::","type":"ipv6"}],
            "services":[]}"#;
        let cards = parse_network_data(text);
        let settings: Vec<String> = cards.iter().flat_map(Card::settings).collect();
        let expected = [
            "eth0 52:54:00:aa:bb:cc mtu 1450",
            "eth0 52:54:00:aa:bb:cc up yes",
            "eth0 52:54:00:aa:bb:cc address 10.0.0.2/24",
            "eth0 52:54:00:aa:bb:cc address fd00::2/64",
            "eth1 52:54:00:aa:bb:cd up yes",
        ];
        assert_eq!(settings, expected);
    }

    #[test]
    fn several_cards_and_dhcp() {
        let text = "network:\n  version: 2\n  ethernets:\n    eth0: {dhcp4: true}\n    eth1: {addresses: [10.1.0.2/16]}\n";
        assert_eq!(
            settings(text),
            [
                "eth0 - up yes",
                "eth0 - dhcp4 yes",
                "eth1 - up yes",
                "eth1 - address 10.1.0.2/16"
            ]
        );
    }

    #[test]
    fn nothing_in_nothing() {
        assert!(settings("version: 2\n").is_empty());
    }
}
