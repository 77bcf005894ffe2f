//! What may be asked of a list: which objects ([`Filter`]), in which order ([`Order`]), which of their fields
//! ([`Fields`]). The grammar is here and nowhere else; the server and the command line both use it, and the document of
//! the interface has this text:
//!
#![doc = include_str!("query.md")]
//!
//! `grammar` reads what was asked and knows a kind's fields from its schema; `evaluate` holds it against an object.

mod evaluate;
mod grammar;

pub use evaluate::Place;
pub use grammar::{Fields, Filter, Order, Shape};

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::kinds::{Host, Migration, Vm};

    fn vm(name: &str, phase: &str, host: Option<&str>, vcpus: u32) -> Value {
        json!({
            "name": name, "labels": { "app": "Web", "example.org/tier": "1" }, "created_at": "2026-01-01T00:00:00Z",
            "spec": { "vcpus": vcpus, "nics": [{ "network": "a", "mac": "m1" }, { "network": "b", "mac": "m2" }] },
            "status": { "phase": phase, "host": host, "ready": phase == "Running", "steps": [{ "step": "disk", "begun_ms": 0, "took_ms": 3 }, { "step": "boot", "begun_ms": 3, "took_ms": 12 }],
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
            ("status.steps.took_ms>11.5", true, true),
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
