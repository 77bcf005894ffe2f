//! What a secret looks like, and blotting it out.
//!
//! Sterna's own secrets have a form of their own: `sterna-` or `join-` and 64 hexadecimal digits, and PEM's private keys.
//! What guests are told may be anything, so it is left out whole, by the field's name.

use model::user_data;
use serde_json::{Value, json};

/// What stands for what was there.
const BLOT: &str = "[removed]";
/// What Sterna's secrets begin with.
const PREFIXES: [&str; 2] = ["sterna-", "join-"];
/// Shorter runs of digits are no secrets; longer ones are cut where a secret would end.
const DIGITS: usize = 32;

const KEY_BEGINS: &str = "-----BEGIN ";
const KEY_IS_PRIVATE: &str = "PRIVATE KEY-----";
const KEY_ENDS: &str = "-----END ";

/// Leaves out of a value what is for guests' eyes.
pub(super) fn fields(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                if is_for_guests(name) && !value.is_null() {
                    *value = json!(BLOT);
                } else {
                    fields(value);
                }
            }
        }
        Value::Array(all) => all.iter_mut().for_each(fields),
        _ => {}
    }
}

/// Whether a field is for guests' eyes, or what one has printed.
fn is_for_guests(name: &str) -> bool {
    ["ssh_keys", "output"].contains(&name) || user_data::FIELDS.contains(&name)
}

/// Blots out of a text whatever has the form of a secret.
pub(super) fn text(text: &str) -> String {
    let without_keys = keys(text);
    PREFIXES
        .iter()
        .fold(without_keys, |text, prefix| tokens(&text, prefix))
}

fn tokens(text: &str, prefix: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(prefix) {
        let (before, after) = rest.split_at(at + prefix.len());
        out.push_str(before);
        let digits = after.bytes().take_while(u8::is_ascii_hexdigit).count();
        if digits >= DIGITS {
            out.push_str(BLOT);
            rest = &after[digits..];
        } else {
            rest = after;
        }
    }
    out + rest
}

/// A key without its end goes on to the end of the text.
fn keys(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(KEY_BEGINS) {
        let (before, after) = rest.split_at(at + KEY_BEGINS.len());
        out.push_str(before);
        let is_private = after
            .get(..after.len().min(40))
            .is_none_or(|head| head.contains(KEY_IS_PRIVATE));
        if is_private {
            out.push_str(BLOT);
            rest = after.find(KEY_ENDS).map_or("", |end| &after[end..]);
        } else {
            rest = after;
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_go_and_the_rest_stays() {
        let secret = "0123456789abcdef".repeat(4);
        let log = format!(
            "a sterna-{secret}, b join-{secret}\nsterna-server join-token sterna-agent[7]: sterna-abc\n\
             -----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----\n-----BEGIN CERTIFICATE-----\nMIIB\n"
        );
        let blotted = text(&log);
        assert_eq!(
            blotted,
            "a sterna-[removed], b join-[removed]\nsterna-server join-token sterna-agent[7]: sterna-abc\n\
             -----BEGIN [removed]-----END PRIVATE KEY-----\n-----BEGIN CERTIFICATE-----\nMIIB\n"
        );
        assert_eq!(
            text("-----BEGIN EC PRIVATE KEY-----\nMIGH"),
            "-----BEGIN [removed]"
        );
        assert_eq!(text("sterna-é join-"), "sterna-é join-");
    }

    #[test]
    fn what_guests_are_told_goes_wherever_it_stands() {
        let mut value = json!({
            "spec": { "guest": { "user_data": ["#!/bin/sh", "#!"], "vendor_data": "#!", "ssh_keys": ["ssh-ed25519 A"], "hostname": "web" } },
            "list": [{ "user_data": null }],
            "status": { "applied": { "output": "a password", "exit_status": 0 } },
        });
        fields(&mut value);
        let expected = json!({
            "spec": { "guest": { "user_data": BLOT, "vendor_data": BLOT, "ssh_keys": BLOT, "hostname": "web" } },
            "list": [{ "user_data": null }],
            "status": { "applied": { "output": BLOT, "exit_status": 0 } },
        });
        assert_eq!(value, expected);
    }
}
