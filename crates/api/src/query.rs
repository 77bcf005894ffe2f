//! What may be asked of a list: which objects ([`Filter`]), in which order ([`Order`]), which of their fields
//! ([`Fields`]). The grammar is here and nowhere else; the server and the command line both use it, and the document of
//! the interface has this text:
//!
#![doc = include_str!("query.md")]
//!
//! What a kind's fields are is read from its schema.

use std::cmp::Ordering;
use std::sync::OnceLock;

use jiff::Timestamp;
use model::Kind;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

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
struct Path {
    text: String,
    keys: Vec<String>,
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

    fn is_time(&self) -> bool {
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

    /// The values that it leads to in an object: several if it goes through a list.
    fn values<'a>(&self, object: &'a Value) -> Vec<&'a Value> {
        let mut at = vec![object];
        for key in &self.keys {
            at = at
                .into_iter()
                .flat_map(each)
                .filter_map(|value| value.get(key))
                .collect();
        }
        at.into_iter()
            .flat_map(each)
            .filter(|value| !value.is_null())
            .collect()
    }

    fn plain(&self, value: &Value) -> Option<Plain> {
        match value {
            Value::Bool(is) => Some(Plain::Bool(*is)),
            Value::Number(number) => number.as_f64().map(Plain::Number),
            Value::String(text) if self.is_time() => text.parse().ok().map(Plain::Time),
            Value::String(text) => Some(Plain::Text(text.to_lowercase())),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        }
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

/// A value, or the entries of a list.
fn each(value: &Value) -> impl Iterator<Item = &Value> {
    let (one, all) = match value {
        Value::Array(all) => (None, Some(all)),
        one => (Some(one), None),
    };
    one.into_iter().chain(all.into_iter().flatten())
}

/// A value that can be compared.
#[derive(Debug, Clone, PartialEq)]
enum Plain {
    Bool(bool),
    Number(f64),
    Time(Timestamp),
    Text(String),
}

impl Plain {
    fn order(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => Some(a.cmp(b)),
            (Self::Number(a), Self::Number(b)) => Some(a.total_cmp(b)),
            (Self::Time(a), Self::Time(b)) => Some(a.cmp(b)),
            (Self::Text(a), Self::Text(b)) => Some(a.cmp(b)),
            _ => None,
        }
    }
}

/// Which of an object's fields are shown.
#[derive(Debug, Clone)]
pub struct Fields(Vec<Path>);

impl Fields {
    /// Paths with commas between them.
    pub fn parse(text: &str, shape: &Shape) -> Result<Self, Problem> {
        text.split(',')
            .map(|path| shape.find(path.trim()))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The object with these fields and no others.
    pub fn of(&self, object: &Value) -> Value {
        let mut shown = Value::Object(Map::new());
        for path in &self.0 {
            keep(object, &path.keys, &mut shown);
        }
        shown
    }
}

fn keep(from: &Value, keys: &[String], into: &mut Value) {
    match (from, keys.split_first()) {
        (_, None) => *into = from.clone(),
        (Value::Object(from), Some((key, rest))) => {
            let (Some(value), Some(into)) = (from.get(key), object(into)) else {
                return;
            };
            keep(value, rest, into.entry(key.clone()).or_insert(Value::Null));
        }
        (Value::Array(from), Some(_)) => {
            if !into.is_array() {
                *into = Value::Array(vec![Value::Null; from.len()]);
            }
            let into = into.as_array_mut().into_iter().flatten();
            from.iter()
                .zip(into)
                .for_each(|(from, into)| keep(from, keys, into));
        }
        // What is null has nothing below it.
        (_, Some(_)) => {}
    }
}

fn object(value: &mut Value) -> Option<&mut Map<String, Value>> {
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
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
struct Term {
    path: Path,
    comparison: Comparison,
    /// `None` is null.
    wanted: Option<Plain>,
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

    fn holds(&self, object: &Value) -> bool {
        let values = self.path.values(object);
        let Some(wanted) = &self.wanted else {
            return values.is_empty() == (self.comparison == Comparison::Is);
        };
        let orders = values
            .into_iter()
            .filter_map(|value| self.path.plain(value)?.order(wanted));
        let any = |holds: fn(Ordering) -> bool| orders.clone().any(holds);
        match self.comparison {
            Comparison::Is => any(Ordering::is_eq),
            Comparison::IsNot => !any(Ordering::is_eq),
            Comparison::Less => any(Ordering::is_lt),
            Comparison::AtMost => any(Ordering::is_le),
            Comparison::More => any(Ordering::is_gt),
            Comparison::AtLeast => any(Ordering::is_ge),
        }
    }
}

/// Which objects are meant: those for which all conditions hold.
#[derive(Debug, Clone, Default)]
pub struct Filter(Vec<Term>);

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

    /// Whether an object is meant.
    pub fn holds(&self, object: &Value) -> bool {
        self.0.iter().all(|term| term.holds(object))
    }
}

/// In which order objects come.
#[derive(Debug, Clone, Default)]
pub struct Order(Vec<(Path, Direction)>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

/// Where an object comes: compared by [`Order::compare`].
#[derive(Debug)]
pub struct Place(Vec<Option<Plain>>);

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

    /// Where an object comes.
    pub fn place(&self, object: &Value) -> Place {
        let value = |path: &Path| path.values(object).first().and_then(|value| path.plain(value));
        Place(self.0.iter().map(|(path, _)| value(path)).collect())
    }

    /// Which of two comes first. What has no value comes last, whichever way.
    pub fn compare(&self, a: &Place, b: &Place) -> Ordering {
        let pairs = self.0.iter().zip(a.0.iter().zip(&b.0));
        let orders = pairs.map(|((_, direction), pair)| match pair {
            (Some(a), Some(b)) => {
                let order = a.order(b).unwrap_or(Ordering::Equal);
                if *direction == Direction::Down {
                    order.reverse()
                } else {
                    order
                }
            }
            (a, b) => a.is_none().cmp(&b.is_none()),
        });
        orders.fold(Ordering::Equal, Ordering::then)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::{Host, Migration, Vm};
    use serde_json::json;

    fn vm(name: &str, phase: &str, host: Option<&str>, vcpus: u32) -> Value {
        json!({
            "name": name, "labels": { "app": "Web", "example.org/tier": "1" }, "created_at": "2026-01-01T00:00:00Z",
            "spec": { "vcpus": vcpus, "nics": [{ "network": "a", "mac": "m1" }, { "network": "b", "mac": "m2" }] },
            "status": { "phase": phase, "host": host, "ready": phase == "Running", "steps_ms": { "boot": 12 },
                "reason": null, "addresses": ["10.0.0.1", "10.0.0.2"] },
        })
    }

    #[test]
    fn conditions_hold_or_not() {
        let shape = Shape::of::<Vm>();
        let web = vm("web", "Running", Some("h1"), 2);
        let off = vm("off", "Off", None, 1);
        for (text, web_holds, off_holds) in [
            ("status.phase=running", true, false),
            ("status.phase!=Running", false, true),
            ("status.phase=Running,spec.vcpus>=3", false, false),
            ("spec.vcpus>=2", true, false),
            ("spec.vcpus<2", false, true),
            ("status.host=h1", true, false),
            ("status.host=null", false, true),
            ("status.host!=null", true, false),
            ("status.host!=h2", true, true),
            ("status.ready=true", true, false),
            ("spec.nics.network=b", true, true),
            ("spec.nics.network=c", false, false),
            ("status.addresses=10.0.0.2", true, true),
            ("labels.app=web", true, true),
            ("labels.example.org/tier=1", true, true),
            ("labels.none=null", true, true),
            ("status.steps_ms.boot>11.5", true, true),
            ("status.reason=null", true, true),
            ("status.reason.code=full", false, false),
            ("created_at<2026-01-01T00:00:00.5Z", true, true),
            ("name>p", true, false),
            (" name = web ", true, false),
        ] {
            let filter = Filter::parse(text, shape).unwrap_or_else(|problem| panic!("{text}: {problem}"));
            assert_eq!(
                (filter.holds(&web), filter.holds(&off)),
                (web_holds, off_holds),
                "{text}"
            );
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_its_name() {
        let shape = Shape::of::<Vm>();
        for (text, code, mentions) in [
            ("status.phse=Running", "unknown-field", "phase"),
            ("colour=red", "unknown-field", "\"colour\""),
            (
                "status.host.name=h1",
                "unknown-field",
                "`status.host` there is nothing",
            ),
            ("=x", "unknown-field", "\"\""),
            ("name", "invalid-filter", "\"name\""),
            ("name!web", "invalid-filter", "!="),
            ("status.phase=runing", "invalid-value", "Running"),
            ("spec.vcpus=two", "invalid-value", "a number"),
            ("status.ready=yes", "invalid-value", "true or false"),
            ("created_at>yesterday", "invalid-value", "a time"),
            ("status.placement=x", "invalid-value", "fields of its own"),
            ("status.host<null", "invalid-filter", "null"),
        ] {
            let problem = Filter::parse(text, shape).unwrap_err();
            assert_eq!(
                (problem.status, problem.code.as_str()),
                (422, code),
                "{text}: {problem}"
            );
            assert!(problem.detail.contains(mentions), "{text}: {problem}");
        }
        for text in [
            "spec.nics.mac",
            "status.addresses",
            "status.placement",
            "nothing",
            "",
        ] {
            assert_eq!(Order::parse(text, shape).unwrap_err().status, 422, "{text}");
        }
    }

    #[test]
    fn fields_are_shown_and_no_others() {
        let shape = Shape::of::<Vm>();
        let web = vm("web", "Running", Some("h1"), 2);
        let fields = |text: &str| Fields::parse(text, shape).unwrap().of(&web);
        assert_eq!(
            fields("name,status.phase"),
            json!({ "name": "web", "status": { "phase": "Running" } })
        );
        assert_eq!(
            fields("spec.nics.network,spec.nics.mac"),
            json!({ "spec": { "nics": [{ "network": "a", "mac": "m1" }, { "network": "b", "mac": "m2" }] } })
        );
        assert_eq!(
            fields("labels.app,labels.none"),
            json!({ "labels": { "app": "Web" } })
        );
        assert_eq!(
            fields("status.reason.code"),
            json!({ "status": { "reason": null } })
        );
        assert_eq!(fields("status"), json!({ "status": web["status"] }));
        assert_eq!(Fields::parse("name,", shape).unwrap_err().code, "unknown-field");
    }

    #[test]
    fn objects_come_in_order_and_what_has_no_value_last() {
        let shape = Shape::of::<Vm>();
        let all = [
            vm("b", "Off", None, 1),
            vm("C", "Running", Some("h1"), 2),
            vm("a", "Running", Some("h2"), 2),
        ];
        let sorted = |text: &str| {
            let order = Order::parse(text, shape).unwrap();
            let mut places: Vec<_> = all
                .iter()
                .map(|vm| (order.place(vm), vm["name"].as_str().unwrap()))
                .collect();
            places.sort_by(|a, b| order.compare(&a.0, &b.0));
            places
                .into_iter()
                .map(|(_, name)| name)
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(sorted("name"), "a b C");
        assert_eq!(sorted("-name"), "C b a");
        assert_eq!(sorted("-spec.vcpus,name"), "a C b");
        assert_eq!(sorted("status.host"), "C a b");
        assert_eq!(sorted("-status.host"), "a C b");
    }

    #[test]
    fn every_kind_has_a_shape() {
        Order::parse("spec.cordoned,-status.load1_percent", Shape::of::<Host>()).unwrap();
        Filter::parse(
            "status.phase=done,status.measured.downtime_ms>10",
            Shape::of::<Migration>(),
        )
        .unwrap();
    }
}
