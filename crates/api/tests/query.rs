//! What may be asked of a list, with anything in it: it is taken or refused, and what is taken holds for an object or does
//! not.

use api::kinds::{Host, Vm};
use api::query::{Fields, Filter, Order, Shape};
use proptest::prelude::*;
use serde_json::{Value, json};

/// The grammar's own words in any order, and any text.
fn question() -> impl Strategy<Value = String> {
    let words = [
        "status",
        ".",
        "phase",
        "spec",
        "memory_mib",
        "labels",
        "name",
        "created_at",
        "=",
        "!=",
        "<",
        "<=",
        ">",
        ">=",
        ",",
        "-",
        "null",
        "true",
        "Running",
        "18446744073709551616",
        "-1",
        "1e999",
        "NaN",
        "\"",
        "'",
        "%00",
        "[0]",
        "2026-01-31T12:00:00Z",
        "é",
        "\u{202e}",
        " ",
        "reason",
        "addresses",
    ];
    let word = prop::sample::select(words.to_vec()).prop_map(str::to_owned);
    let any = any::<String>();
    prop::collection::vec(prop_oneof![6 => word, 1 => any], 0..10).prop_map(|words| words.concat())
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        let keys = prop::sample::select(vec!["status", "phase", "spec", "name", "labels", "reason", "x"]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(keys, inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

fn ask(shape: &Shape, text: &str, object: &Value) {
    let held = Filter::parse(text, shape).map(|filter| filter.holds(object).to_string());
    let shown = Fields::parse(text, shape).map(|fields| fields.of(object).to_string());
    let compared = Order::parse(text, shape).map(|order| {
        let (one, other) = (order.place(object), order.place(&Value::Null));
        format!("{:?}", order.compare(&one, &other))
    });
    for answer in [held, shown, compared] {
        if let Err(problem) = answer {
            assert!(
                matches!(problem.status, 400 | 422) && !problem.detail.is_empty(),
                "{problem:?}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_question_is_taken_or_refused(text in question(), object in value()) {
        ask(Shape::of::<Vm>(), &text, &object);
        ask(Shape::of::<Host>(), &text, &object);
    }
}
