//! What a guest is given to carry out at its first boot, in parts, each of which cloud-init knows by its first line.
//!
//! **Owns:** the kinds of parts, and the one text that several parts become: a MIME document (RFC 2046, section 5.1).
//!
//! **Does not know:** what the parts say: a guest's texts hold passwords, and nothing here shows them.
//!
//! **Start here:** [`UserData::merged`].

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Reason;

/// First lines and what they announce, as cloud-init has them. A longer one comes before its own beginning.
const KINDS: [(&str, &str); 9] = [
    ("#!", "text/x-shellscript"),
    ("#cloud-config-archive", "text/cloud-config-archive"),
    ("#cloud-config-jsonp", "text/cloud-config-jsonp"),
    ("#cloud-config", "text/cloud-config"),
    ("#cloud-boothook", "text/cloud-boothook"),
    ("#part-handler", "text/part-handler"),
    ("#include-once", "text/x-include-once-url"),
    ("#include", "text/x-include-url"),
    ("## template: jinja", "text/jinja2"),
];
/// What stands for a text where it is not shown or kept.
pub const NOT_SHOWN: &str = "[not shown]";
/// The fields that hold such texts.
pub const FIELDS: [&str; 3] = ["user_data", "vendor_data", "script"];
/// The same as pointers from an object, stored or shown, that tells a guest something: a VM, a template.
pub const IN_OBJECT: [&str; 3] = [
    "/spec/guest/user_data",
    "/spec/guest/vendor_data",
    "/spec/builds/script",
];
/// Stands between parts. Base64 has no dashes, so no part has a line that begins like it.
const BOUNDARY: &str = "sterna-user-data";

/// A text, or several that become one.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a text, or a list of texts")]
pub enum UserData {
    /// One text, which the guest gets as it is.
    Text(String),
    /// Parts, which the guest gets as one MIME document, in their order.
    Parts(Vec<String>),
}

/// User data holds passwords, and what is formatted this way may end in a log.
impl fmt::Debug for UserData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes in {} parts", self.bytes(), self.parts().len())
    }
}

impl From<String> for UserData {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl UserData {
    /// The same with one form for each meaning: no parts are nothing, and one part alone is a text.
    pub fn normal(self) -> Option<Self> {
        match self {
            Self::Parts(mut parts) if parts.len() < 2 => parts.pop().map(Self::Text),
            data => Some(data),
        }
    }

    /// The parts in their order.
    pub fn parts(&self) -> &[String] {
        match self {
            Self::Text(text) => std::slice::from_ref(text),
            Self::Parts(parts) => parts,
        }
    }

    /// What stands for one that is not shown.
    pub fn not_shown() -> Self {
        Self::Text(NOT_SHOWN.to_owned())
    }

    /// How long all parts are together.
    pub fn bytes(&self) -> usize {
        self.parts().iter().map(String::len).sum()
    }

    /// Refuses what stands for a text, and parts of which nobody can tell the guest what they are. One text alone may be
    /// anything: the guest's own software may read it.
    pub fn check(&self) -> Result<(), Reason> {
        if *self == Self::not_shown() {
            let message = "the text is one that was not shown, and stands for another: take the object as an operator sees it";
            return Err(Reason::new("user-data-not-shown", message));
        }
        let parts = self.parts();
        let unknown = parts.iter().position(|part| kind(part).is_none());
        match unknown.filter(|_| parts.len() > 1) {
            None => Ok(()),
            Some(index) => {
                let known: Vec<_> = KINDS.iter().map(|(line, _)| *line).collect();
                let message = format!(
                    "part {} of {} begins with none of {}: begin it so, or give it alone",
                    index + 1,
                    parts.len(),
                    known.join(", ")
                );
                Err(Reason::new("user-data-part-unknown", message))
            }
        }
    }

    /// What the guest gets: one text as it is, several parts as a MIME document.
    pub fn merged(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Parts(parts) => mime(parts),
        }
    }
}

/// What a part is, by its first line.
fn kind(part: &str) -> Option<&'static str> {
    let found = KINDS.iter().find(|(line, _)| part.starts_with(line));
    found.map(|(_, kind)| *kind)
}

fn mime(parts: &[String]) -> String {
    let mut text = format!("Content-Type: multipart/mixed; boundary=\"{BOUNDARY}\"\nMIME-Version: 1.0\n\n");
    for (index, part) in parts.iter().enumerate() {
        // What cloud-init finds out by itself from the first line.
        let kind = kind(part).unwrap_or("text/plain");
        text.push_str(&format!(
            "--{BOUNDARY}\nContent-Type: {kind}; charset=\"utf-8\"\nContent-Transfer-Encoding: base64\n\
             Content-Disposition: attachment; filename=\"part-{:03}\"\n\n",
            index + 1
        ));
        // 57 bytes make a line of 76, the longest that RFC 2045 (section 6.8) allows.
        for line in part.as_bytes().chunks(57) {
            text.push_str(&STANDARD.encode(line));
            text.push('\n');
        }
    }
    text.push_str(&format!("--{BOUNDARY}--\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads a document as a mail program does: kind and content of each part.
    fn read(document: &str) -> Vec<(String, String)> {
        let (head, body) = document.split_once("\n\n").unwrap();
        assert!(head.starts_with("Content-Type: multipart/mixed; boundary=\"sterna-user-data\""));
        let body = body.strip_suffix("--sterna-user-data--\n").unwrap();
        let parts = body.split("--sterna-user-data\n").skip(1).map(|part| {
            let (head, content) = part.split_once("\n\n").unwrap();
            let kind = head.strip_prefix("Content-Type: ").unwrap();
            let kind = kind.split(';').next().unwrap().to_owned();
            assert!(content.lines().all(|line| line.len() <= 76));
            let bytes = STANDARD.decode(content.replace('\n', "")).unwrap();
            (kind, String::from_utf8(bytes).unwrap())
        });
        parts.collect()
    }

    fn parts(texts: &[&str]) -> UserData {
        UserData::Parts(texts.iter().map(|text| (*text).to_owned()).collect())
    }

    #[test]
    fn the_first_line_says_what_a_part_is() {
        let texts: Vec<String> = KINDS.iter().map(|(line, _)| format!("{line}\nrest")).collect();
        let data = UserData::Parts(texts.clone());
        data.check().unwrap();
        let kinds = KINDS.iter().map(|(_, kind)| (*kind).to_owned());
        assert_eq!(read(&data.merged()), kinds.zip(texts).collect::<Vec<_>>());
        let refused = parts(&["#!/bin/sh\n", "echo hi"]).check().unwrap_err();
        assert_eq!(refused.code, "user-data-part-unknown");
        assert!(refused.message.starts_with("part 2 of 2 begins"), "{refused:?}");
        UserData::Text("echo hi".to_owned()).check().unwrap();
        let refused = UserData::not_shown().check().unwrap_err();
        assert_eq!(refused.code, "user-data-not-shown");
    }

    #[test]
    fn one_part_alone_stays_as_it_is() {
        assert_eq!(parts(&[]).normal(), None);
        let one = parts(&["#!/bin/sh\n"]).normal().unwrap();
        assert_eq!(one, UserData::Text("#!/bin/sh\n".to_owned()));
        assert_eq!(one.merged(), "#!/bin/sh\n");
        let two = parts(&["#!", "#!"]);
        assert_eq!(two.clone().normal(), Some(two));
    }

    #[test]
    fn what_is_formatted_for_a_log_has_no_content() {
        let data = parts(&["#!/bin/sh\n", "#cloud-config\npassword: x"]);
        assert_eq!(format!("{data:?}"), "35 bytes in 2 parts");
    }

    #[test]
    fn it_is_read_from_a_text_and_from_a_list_and_from_nothing_else() {
        for (json, expected) in [
            ("\"#!\"", Some(UserData::Text("#!".to_owned()))),
            ("[\"#!\",\"#include\"]", Some(parts(&["#!", "#include"]))),
            ("7", None),
            ("[7]", None),
        ] {
            let read: Option<UserData> = serde_json::from_str(json).ok();
            assert_eq!(read, expected, "{json}");
            if let Some(data) = read {
                assert_eq!(serde_json::to_string(&data).unwrap(), json);
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_parts_hold_is_read_back(rests in proptest::collection::vec("(?s).{0,200}", 2..5)) {
            let texts: Vec<String> = rests.iter().map(|rest| format!("#!{rest}")).collect();
            let found = read(&UserData::Parts(texts.clone()).merged());
            let contents: Vec<String> = found.into_iter().map(|(_, content)| content).collect();
            prop_assert_eq!(contents, texts);
        }
    }
}
