//! Holding what was asked against an object: whether it is meant, where it comes, what of it is shown.
//!
//! Does not know: how it was written; see `grammar`.

use std::cmp::Ordering;

use serde_json::{Map, Value};

use super::grammar::{Comparison, Direction, Fields, Filter, Order, Path, Plain, Term};

impl Path {
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
}

/// A value, or the entries of a list.
fn each(value: &Value) -> impl Iterator<Item = &Value> {
    let (one, all) = match value {
        Value::Array(all) => (None, Some(all)),
        one => (Some(one), None),
    };
    one.into_iter().chain(all.into_iter().flatten())
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

impl Term {
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

impl Filter {
    /// Whether an object is meant.
    pub fn holds(&self, object: &Value) -> bool {
        self.0.iter().all(|term| term.holds(object))
    }
}

/// Where an object comes: compared by [`Order::compare`].
#[derive(Debug)]
pub struct Place(Vec<Option<Plain>>);

impl Order {
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

impl Fields {
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
