//! Reading what is asked of a list: paths, conditions, orders, values as people write them.
//!
//! Does not know: objects; see `evaluate`.

use std::sync::OnceLock;

use jiff::Timestamp;
use model::Kind;
use schemars::generate::SchemaSettings;
use serde_json::Value;

use crate::problem::Problem;
use crate::resource::{Object, Resource};

/// How a kind's objects are made, with all that its schema refers to in its place.
#[derive(Debug)]
pub struct Shape(Value);

impl Shape {
    /// The shape of a kind's objects, made when it is first needed.
    pub fn of<R: Resource>() -> &'static Self {
        static ALL: [OnceLock<Shape>; Kind::ALL.len()] = [const { OnceLock::new() }; Kind::ALL.len()];
        let make = || {
            let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
            let generator = settings.into_generator();
            Self(
                generator
                    .into_root_schema_for::<Object<R::Spec, R::Status>>()
                    .to_value(),
            )
        };
        let mut kept = Kind::ALL
            .into_iter()
            .zip(&ALL)
            .filter(|(kind, _)| *kind == R::KIND);
        match kept.next() {
            Some((_, kept)) => kept.get_or_init(make),
            // Not reached: every kind is among all kinds.
            None => Box::leak(Box::new(make())),
        }
    }

    /// Where a path leads, or which fields there are instead.
    fn find(&self, text: &str) -> Result<Path, Problem> {
        let mut at = vec![&self.0];
        let (mut keys, mut rest) = (Vec::new(), text);
        let mut is_list = false;
        loop {
            is_list |= at.iter().any(|schema| schema.get("items").is_some());
            at = at.into_iter().flat_map(entries).collect();
            // The keys of a map are the user's own, and may have dots.
            let is_map = at.iter().any(|schema| free_keys(schema).is_some());
            let (key, after) = match rest.split_once('.') {
                Some((key, after)) if !is_map => (key, Some(after)),
                _ => (rest, None),
            };
            let found: Vec<&Value> = at.iter().filter_map(|schema| below(schema, key)).collect();
            if found.is_empty() || key.is_empty() {
                return Err(unknown(text, &keys, &at));
            }
            keys.push(key.to_owned());
            at = found.into_iter().flat_map(alternatives).collect();
            match after {
                Some(after) => rest = after,
                None => break,
            }
        }
        is_list |= at.iter().any(|schema| schema.get("items").is_some());
        let ends = at.into_iter().flat_map(entries).cloned().collect();
        Ok(Path {
            text: text.to_owned(),
            keys,
            ends,
            is_list,
        })
    }
}

/// The schemas that a value may follow: those of a union, each by itself.
fn alternatives(schema: &Value) -> Vec<&Value> {
    let unions = ["anyOf", "oneOf", "allOf"]
        .iter()
        .filter_map(|key| schema.get(key)?.as_array());
    let inner: Vec<&Value> = unions.flatten().flat_map(alternatives).collect();
    std::iter::once(schema).chain(inner).collect()
}

/// A schema, or if it is a list's, its entries'.
fn entries(schema: &Value) -> Vec<&Value> {
    match schema.get("items") {
        Some(items) => alternatives(items).into_iter().flat_map(entries).collect(),
        None => vec![schema],
    }
}

/// The schema of a map's values.
fn free_keys(schema: &Value) -> Option<&Value> {
    schema
        .get("additionalProperties")
        .filter(|values| values.is_object() || **values == true)
}

fn below<'a>(schema: &'a Value, key: &str) -> Option<&'a Value> {
    let named = schema
        .get("properties")
        .and_then(|properties| properties.get(key));
    named.or_else(|| free_keys(schema))
}

fn unknown(text: &str, keys: &[String], at: &[&Value]) -> Problem {
    let properties = at
        .iter()
        .filter_map(|schema| schema.get("properties")?.as_object());
    let mut names: Vec<&str> = properties
        .flat_map(|all| all.keys().map(String::as_str))
        .collect();
    names.sort_unstable();
    names.dedup();
    let place = if keys.is_empty() {
        "the object".to_owned()
    } else {
        format!("`{}`", keys.join("."))
    };
    let there = if names.is_empty() {
        "nothing".to_owned()
    } else {
        names.join(", ")
    };
    let detail = format!("there is no field {text:?}: in {place} there is {there}");
    Problem::invalid("unknown-field", detail)
}

/// A field of an object.
#[derive(Debug, Clone)]
pub(super) struct Path {
    text: String,
    pub(super) keys: Vec<String>,
    ends: Vec<Value>,
    is_list: bool,
}

impl Path {
    fn has(&self, key: &str, word: &str) -> bool {
        self.ends
            .iter()
            .filter_map(|end| end.get(key))
            .any(|found| match found {
                Value::Array(all) => all.iter().any(|found| found == word),
                found => found == word,
            })
    }

    pub(super) fn is_time(&self) -> bool {
        self.has("format", "date-time")
    }

    /// The words that it can be, if there are only some.
    fn words(&self) -> Vec<&str> {
        let single = self.ends.iter().filter_map(|end| end.get("const")?.as_str());
        let several = self.ends.iter().filter_map(|end| end.get("enum")?.as_array());
        single
            .chain(several.flatten().filter_map(Value::as_str))
            .collect()
    }

    fn is_open_text(&self) -> bool {
        let has_const = |end: &&Value| end.get("const").is_some() || end.get("enum").is_some();
        let is_text = |end: &&Value| {
            end.get("type").is_some_and(|found| match found {
                Value::Array(all) => all.iter().any(|found| found == "string"),
                found => found == "string",
            })
        };
        self.ends.iter().filter(is_text).any(|end| !has_const(&end))
    }

    /// What a person wrote, as a value of this field.
    fn read(&self, text: &str) -> Result<Plain, Problem> {
        let wrong = |what: &str| {
            let detail = format!("{text:?} is no value of `{}`: give {what}", self.text);
            Problem::invalid("invalid-value", detail)
        };
        let words = self.words();
        if self.is_time() {
            return text
                .parse()
                .map(Plain::Time)
                .map_err(|_| wrong("a time like 2026-01-31T12:00:00Z"));
        }
        if self.is_open_text() {
            return Ok(Plain::Text(text.to_lowercase()));
        }
        if !words.is_empty() {
            let is_known = words.iter().any(|word| word.eq_ignore_ascii_case(text));
            let list = words.join(", ");
            return is_known
                .then(|| Plain::Text(text.to_lowercase()))
                .ok_or_else(|| wrong(&format!("one of {list}")));
        }
        if self.has("type", "boolean") {
            return text.parse().map(Plain::Bool).map_err(|_| wrong("true or false"));
        }
        if self.has("type", "integer") || self.has("type", "number") {
            return text.parse().map(Plain::Number).map_err(|_| wrong("a number"));
        }
        if self
            .ends
            .iter()
            .any(|end| end.get("properties").is_some() || free_keys(end).is_some())
        {
            let detail = format!(
                "`{}` has fields of its own: compare one of them, or give null",
                self.text
            );
            return Err(Problem::invalid("invalid-value", detail));
        }
        Ok(text
            .parse()
            .map_or_else(|_| Plain::Text(text.to_lowercase()), Plain::Number))
    }
}

/// A value that can be compared.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Plain {
    Bool(bool),
    Number(f64),
    Time(Timestamp),
    Text(String),
}

/// Which of an object's fields are shown.
#[derive(Debug, Clone)]
pub struct Fields(pub(super) Vec<Path>);

impl Fields {
    /// Paths with commas between them.
    pub fn parse(text: &str, shape: &Shape) -> Result<Self, Problem> {
        text.split(',')
            .map(|path| shape.find(path.trim()))
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Is,
    IsNot,
    Less,
    AtMost,
    More,
    AtLeast,
}

/// In the order in which they are looked for: the longer ones first.
const COMPARISONS: [(&str, Comparison); 6] = [
    ("!=", Comparison::IsNot),
    ("<=", Comparison::AtMost),
    (">=", Comparison::AtLeast),
    ("=", Comparison::Is),
    ("<", Comparison::Less),
    (">", Comparison::More),
];

#[derive(Debug, Clone)]
pub(super) struct Term {
    pub(super) path: Path,
    pub(super) comparison: Comparison,
    /// `None` is null.
    pub(super) wanted: Option<Plain>,
}

impl Term {
    fn parse(text: &str, shape: &Shape) -> Result<Self, Problem> {
        let at = text.find(['=', '!', '<', '>']);
        let found = at.and_then(|at| {
            let (path, rest) = text.split_at(at);
            let (sign, comparison) = COMPARISONS.into_iter().find(|(sign, _)| rest.starts_with(sign))?;
            Some((path, comparison, rest.strip_prefix(sign)?))
        });
        let (path, comparison, value) = found.ok_or_else(|| {
            let detail = format!(
                "{text:?} is no condition: give a field, one of = != < <= > >= and a value, as in name=web"
            );
            Problem::invalid("invalid-filter", detail)
        })?;
        let (path, value) = (shape.find(path.trim())?, value.trim());
        if value == "null" && !matches!(comparison, Comparison::Is | Comparison::IsNot) {
            let detail = format!("{text:?} is no condition: null is compared with = and != only");
            return Err(Problem::invalid("invalid-filter", detail));
        }
        let wanted = if value == "null" {
            None
        } else {
            Some(path.read(value)?)
        };
        Ok(Self {
            path,
            comparison,
            wanted,
        })
    }
}

/// Which objects are meant: those for which all conditions hold.
#[derive(Debug, Clone, Default)]
pub struct Filter(pub(super) Vec<Term>);

impl Filter {
    /// Conditions with commas between them.
    pub fn parse(text: &str, shape: &Shape) -> Result<Self, Problem> {
        text.split(',')
            .map(|term| Term::parse(term.trim(), shape))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether every object is meant.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// In which order objects come.
#[derive(Debug, Clone, Default)]
pub struct Order(pub(super) Vec<(Path, Direction)>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Up,
    Down,
}

impl Order {
    /// Paths with commas between them; `-` before one turns it round.
    pub fn parse(text: &str, shape: &Shape) -> Result<Self, Problem> {
        let one = |text: &str| {
            let (direction, path) = match text.trim().strip_prefix('-') {
                Some(path) => (Direction::Down, path),
                None => (Direction::Up, text.trim()),
            };
            let path = shape.find(path)?;
            let has_fields = path.ends.iter().any(|end| end.get("properties").is_some());
            if path.is_list || has_fields {
                let detail = format!("`{}` is not one value: sort by a field that is", path.text);
                return Err(Problem::invalid("invalid-sort", detail));
            }
            Ok((path, direction))
        };
        text.split(',').map(one).collect::<Result<_, _>>().map(Self)
    }

    /// Whether it leaves objects where they are.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
