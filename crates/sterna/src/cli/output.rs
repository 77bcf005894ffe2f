//! How results are printed.

use serde_json_path::JsonPath;

/// What `--output` takes.
pub(super) const FORMS: [&str; 6] = ["table", "wide", "json", "yaml", "name", "jsonpath="];

/// How to print, and how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Printing {
    /// How.
    pub(crate) form: Output,
    /// Whether tables have the columns that few people need.
    pub(crate) is_wide: bool,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// Columns, for people.
    Table,
    /// For programs: an object as it is; a list as {items, revision, next}; a change as a line.
    Json,
    /// As json, easier to read.
    Yaml,
    /// kind/name, one a line.
    Name,
    /// What a JSONPath (RFC 9535) finds in the json, one a line. Parsed once, it lives as long as the process.
    Path(&'static JsonPath),
}

impl std::str::FromStr for Printing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = match text {
            "table" | "wide" => Output::Table,
            "json" => Output::Json,
            "yaml" => Output::Yaml,
            "name" => Output::Name,
            _ => match text.strip_prefix("jsonpath=") {
                Some(path) => Output::Path(Box::leak(Box::new(path_of(path)?))),
                None => return Err(format!("give one of {}PATH", FORMS.join(", "))),
            },
        };
        Ok(Self {
            form,
            is_wide: text == "wide",
        })
    }
}

/// A path, also as people write it elsewhere: in braces, without the `$`.
fn path_of(text: &str) -> Result<JsonPath, String> {
    let bare = text
        .strip_prefix('{')
        .and_then(|text| text.strip_suffix('}'))
        .unwrap_or(text);
    let path = if bare.starts_with('$') {
        bare.to_owned()
    } else {
        format!("${bare}")
    };
    JsonPath::parse(&path).map_err(|error| format!("{error}: give a path like $.items[*].name"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_path_may_be_written_as_elsewhere() {
        let list = json!({ "items": [{ "name": "a", "status": { "phase": "Off" } }, { "name": "b" }] });
        for text in ["$.items[*].name", ".items[*].name", "{.items[*].name}"] {
            let Output::Path(path) = format!("jsonpath={text}").parse::<Printing>().unwrap().form else {
                panic!("{text} is no path");
            };
            assert_eq!(path.query(&list).all(), [&json!("a"), &json!("b")], "{text}");
        }
        for bad in ["jsonpath=$.items[", "jsn", "jsonpath"] {
            let error = bad.parse::<Printing>().unwrap_err();
            assert!(error.contains("give"), "{bad}: {error}");
        }
    }
}
