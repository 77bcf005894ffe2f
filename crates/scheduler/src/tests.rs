//! The order of preference, the rules one by one, and the words.

use model::placement::{Affinity, Peers};
use uuid::Uuid;

use super::*;

type Labels = BTreeMap<String, String>;

fn labels(text: &str) -> Labels {
    let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

fn id(n: u128) -> HostId {
    HostId(Uuid::from_u128(n))
}

/// What views borrow from.
struct Vm {
    id: VmId,
    name: String,
    labels: Labels,
    rule: PlacementRule,
}

impl Vm {
    fn new(n: u128, with: &str) -> Self {
        Self {
            id: VmId(Uuid::from_u128(n)),
            name: format!("vm{n}"),
            labels: labels(with),
            rule: PlacementRule::default(),
        }
    }

    fn with(mut self, to: Peers) -> Self {
        self.rule.affinity.push(Affinity { to, soft: false });
        self
    }

    fn apart(mut self, to: Peers, soft: bool) -> Self {
        self.rule.anti_affinity.push(Affinity { to, soft });
        self
    }

    fn guest(&self) -> Guest<'_> {
        Guest {
            id: self.id,
            name: &self.name,
            labels: &self.labels,
            rule: &self.rule,
            is_leaving: false,
        }
    }

    fn request(&self, memory_mib: u64) -> Request<'_> {
        Request {
            guest: self.guest(),
            memory_mib,
            vcpus: 1,
            only: None,
            except: None,
            cpu_model: None,
            uefi: false,
        }
    }
}

fn host<'a>(
    n: u128,
    name: &'a str,
    labels: &'a Labels,
    reserved_mib: u64,
    guests: &[&'a Vm],
) -> HostView<'a> {
    HostView {
        id: id(n),
        name,
        labels,
        closed: None,
        memory_mib: 8192,
        reserved_mib,
        vcpus: 32,
        reserved_vcpus: 0,
        cpu_model: "qemu64",
        uefi: false,
        failing: None,
        guests: guests.iter().map(|vm| vm.guest()).collect(),
    }
}

fn chosen(request: &Request<'_>, hosts: &[HostView<'_>]) -> Option<String> {
    let placed = place(request, hosts.iter(), Timestamp::UNIX_EPOCH).ok()?;
    placed.record.chosen
}

/// The codes of what keeps a VM from each host.
fn codes(request: &Request<'_>, hosts: &[HostView<'_>]) -> Vec<String> {
    let all = obstacles(request, hosts);
    let one = |all: Vec<Refusal>| {
        let codes: Vec<&str> = all.iter().map(Refusal::code).collect();
        codes.join(" ")
    };
    all.into_iter().map(one).collect()
}

fn vms(text: &str) -> Peers {
    Peers::Vms(labels(text))
}

#[test]
fn the_emptiest_host_is_taken_or_the_fullest_and_the_id_breaks_ties() {
    let none = Labels::new();
    let mut vm = Vm::new(1, "");
    let hosts = [
        host(3, "h3", &none, 100, &[]),
        host(2, "h2", &none, 100, &[]),
        host(1, "h1", &none, 200, &[]),
        host(4, "h4", &none, 8192, &[]),
    ];
    assert_eq!(chosen(&vm.request(256), &hosts).as_deref(), Some("h2"));
    vm.rule.strategy = Strategy::Pack;
    assert_eq!(chosen(&vm.request(256), &hosts).as_deref(), Some("h1"));
}

#[test]
fn refusals_are_grouped_and_carry_the_nearest_hosts_numbers() {
    let none = Labels::new();
    let vm = Vm::new(1, "");
    let mut cordoned = host(3, "h3", &none, 0, &[]);
    cordoned.closed = Some(Closed::Cordoned);
    let hosts = [
        host(1, "h1", &none, 4096, &[]),
        host(2, "h2", &none, 2048, &[]),
        cordoned,
    ];
    let record = place(&vm.request(9216), hosts.iter(), Timestamp::UNIX_EPOCH).unwrap_err();
    let found: Vec<_> = record
        .refused
        .iter()
        .map(|g| (g.count, g.reason.message.as_str()))
        .collect();
    let closed = "it is cordoned: `sterna host uncordon` opens it";
    assert_eq!(
        found,
        [(1, closed), (2, "on h2, short by 3 GiB: 6 GiB of 8 GiB are free")]
    );
}

#[test]
fn labels_the_asked_host_and_the_source_count() {
    let none = Labels::new();
    let mut vm = Vm::new(1, "");
    let hosts = [host(1, "h1", &none, 0, &[])];
    let only = Request {
        only: Some(id(2)),
        ..vm.request(1)
    };
    assert_eq!(codes(&only, &hosts), ["not-the-asked-host"]);
    let except = Request {
        except: Some(id(1)),
        ..vm.request(1)
    };
    assert_eq!(codes(&except, &hosts), ["is-there-already"]);
    vm.rule.host_labels = labels("disk=ssd");
    assert_eq!(codes(&vm.request(1), &hosts), ["label-differs"]);
}

#[test]
fn a_dedicated_host_takes_only_vms_that_ask_for_it() {
    let (none, kept) = (Labels::new(), labels("dedicated=lab"));
    let hosts = [host(1, "h1", &kept, 0, &[]), host(2, "h2", &none, 0, &[])];
    let mut vm = Vm::new(1, "");
    assert_eq!(codes(&vm.request(1), &hosts), ["host-dedicated", ""]);
    vm.rule.host_labels = labels("dedicated=other");
    assert_eq!(
        codes(&vm.request(1), &hosts),
        ["host-dedicated label-differs", "label-differs"]
    );
    vm.rule.host_labels = labels("dedicated=lab");
    assert_eq!(codes(&vm.request(1), &hosts), ["", "label-differs"]);
    let vm = Vm::new(1, "").with(Peers::HostLabels(labels("dedicated=lab")));
    assert_eq!(codes(&vm.request(1), &hosts), ["", "label-differs"]);
}

#[test]
fn vms_keep_apart_whichever_of_them_says_so() {
    let none = Labels::new();
    let web = Vm::new(1, "app=web").apart(vms("app=web"), false);
    let plain = Vm::new(2, "app=web");
    let other = Vm::new(3, "app=db");
    let hosts = [
        host(1, "h1", &none, 0, &[&plain]),
        host(2, "h2", &none, 500, &[&other]),
    ];
    assert_eq!(codes(&web.request(1), &hosts), ["anti-affinity-vm", ""]);
    let hosts = [host(1, "h1", &none, 0, &[&web]), host(2, "h2", &none, 500, &[])];
    assert_eq!(codes(&plain.request(1), &hosts), ["kept-away", ""]);
    assert_eq!(codes(&other.request(1), &hosts), ["", ""]);
    assert_eq!(
        codes(&web.request(1), &hosts),
        ["", ""],
        "it does not keep away from itself"
    );
    let soft = Vm::new(4, "app=web").apart(vms("app=web"), true);
    let hosts = [host(1, "h1", &none, 0, &[&plain]), host(2, "h2", &none, 500, &[])];
    assert_eq!(
        chosen(&soft.request(1), &hosts).as_deref(),
        Some("h2"),
        "before fullness"
    );
    assert_eq!(
        chosen(&soft.request(1), &hosts[..1]).as_deref(),
        Some("h1"),
        "if it must be"
    );
}

#[test]
fn an_affinity_follows_the_first_of_its_group_and_waits_for_others() {
    let none = Labels::new();
    let member = |n| Vm::new(n, "app=web").with(vms("app=web"));
    let (first, second) = (member(1), member(2));
    let empty = [host(1, "h1", &none, 0, &[]), host(2, "h2", &none, 500, &[])];
    let placed = place(&first.request(1), empty.iter(), Timestamp::UNIX_EPOCH).unwrap();
    assert!(placed.is_first && placed.company.is_empty());
    let hosts = [host(1, "h1", &none, 0, &[]), host(2, "h2", &none, 500, &[&first])];
    let placed = place(&second.request(1), hosts.iter(), Timestamp::UNIX_EPOCH).unwrap();
    assert_eq!((placed.host, placed.company), (id(2), vec![first.id]));
    assert!(!placed.is_first);
    let follower = Vm::new(3, "app=cache").with(vms("app=web"));
    assert_eq!(codes(&follower.request(1), &hosts), ["affinity-not-met", ""]);
    assert_eq!(codes(&follower.request(1), &empty), ["affinity-not-met"; 2]);
    // One that is just leaving is no company.
    let mut leaving = host(2, "h2", &none, 500, &[&first]);
    leaving.guests[0].is_leaving = true;
    assert_eq!(codes(&second.request(1), &[leaving]), ["affinity-not-met"]);
}

#[test]
fn hosts_can_be_named_or_excluded() {
    let none = Labels::new();
    let hosts = [host(1, "h1", &none, 0, &[]), host(2, "h2", &none, 0, &[])];
    let named = |n| Peers::Hosts([id(n)].into());
    let with = Vm::new(1, "").with(named(2));
    assert_eq!(codes(&with.request(1), &hosts), ["affinity-other-hosts", ""]);
    let apart = Vm::new(1, "").apart(named(2), false);
    assert_eq!(codes(&apart.request(1), &hosts), ["", "anti-affinity-host"]);
}

#[test]
fn a_host_that_fails_starts_is_avoided_by_starts_and_not_by_moves() {
    let none = Labels::new();
    let vm = Vm::new(1, "");
    let mut failing = host(1, "h1", &none, 0, &[]);
    failing.failing = Some(Failing { starts: 3, for_s: 20 });
    let hosts = [failing];
    assert_eq!(codes(&vm.request(1), &hosts), ["host-fails-starts"]);
    let moves = Request {
        except: Some(id(9)),
        ..vm.request(1)
    };
    assert_eq!(codes(&moves, &hosts), [""]);
    let asked = Request {
        only: Some(id(1)),
        ..vm.request(1)
    };
    assert_eq!(codes(&asked, &hosts), [""]);
}

#[test]
fn the_smallest_change_is_the_least_of_what_keeps_it_from_the_nearest_host() {
    let none = Labels::new();
    let mut vm = Vm::new(1, "app=web").apart(vms("app=web"), false);
    let met = Vm::new(2, "app=web");
    let mut cordoned = host(3, "h3", &none, 0, &[]);
    cordoned.closed = Some(Closed::Cordoned);
    let hosts = [
        host(1, "h1", &none, 8000, &[&met]),
        host(2, "h2", &none, 8000, &[]),
        cordoned,
    ];
    let change = |vm: &Vm, hosts: &[HostView<'_>]| smallest_change(&vm.request(256), hosts).unwrap();
    assert_eq!(change(&vm, &hosts), "open h3: `sterna host uncordon h3`");
    assert_eq!(change(&vm, &hosts[..2]), "free 64 MiB on h2");
    assert_eq!(
        change(&vm, &hosts[..1]),
        "move vm2 off h1, or drop the anti-affinity to app=web; and free 64 MiB on h1"
    );
    vm.rule.host_labels = labels("disk=ssd");
    assert_eq!(
        change(&vm, &hosts[1..2]),
        "label h2: `sterna host label h2 disk=ssd`; and free 64 MiB on h2"
    );
}

#[test]
fn several_are_placed_together_where_the_best_host_for_the_first_is_wrong() {
    let none = Labels::new();
    // All three have to be together; the emptiest host by share has less room in all.
    let member = |n| Vm::new(n, "app=web").with(vms("app=web"));
    let all = [member(1), member(2), member(3)];
    let mut small = host(1, "h1", &none, 0, &[]);
    small.memory_mib = 500;
    let mut large = host(2, "h2", &none, 800, &[]);
    large.memory_mib = 1400;
    let requests: Vec<_> = all.iter().map(|vm| vm.request(200)).collect();
    let mut fleet = Fleet::new([small, large].into_iter());
    let placed = fleet.place_all(&requests, Timestamp::UNIX_EPOCH).unwrap();
    assert!(placed.iter().all(|placed| placed.host == id(2)));
    let before = format!("{fleet:?}");
    let (at, record) = fleet.place_all(&requests, Timestamp::UNIX_EPOCH).unwrap_err();
    assert_eq!((at, record.chosen), (0, None));
    assert_eq!(format!("{fleet:?}"), before, "all or none");
}

#[test]
fn what_starts_by_uefi_goes_where_that_is() {
    let none = Labels::new();
    let vm = Vm::new(1, "");
    let hosts = [
        host(1, "h1", &none, 0, &[]),
        HostView {
            uefi: true,
            ..host(2, "h2", &none, 0, &[])
        },
    ];
    let request = Request {
        uefi: true,
        ..vm.request(256)
    };
    assert_eq!(chosen(&request, &hosts).as_deref(), Some("h2"));
    assert_eq!(codes(&request, &hosts[..1]), ["no-uefi"]);
    let remedy = smallest_change(&request, &hosts[..1]).unwrap();
    assert!(remedy.contains("install `ovmf` on h1"), "{remedy}");
    assert_eq!(chosen(&vm.request(256), &hosts).as_deref(), Some("h1"));
}
