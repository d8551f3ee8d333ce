//! Random clusters and packets: reference = rows = pages.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
    sync::Arc,
};

use canal_common::policy::Verdict;
use proptest::{
    prelude::*,
    sample::select,
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};
use serde_json::{Map, Value, json};

use super::{NODE, census_of, class_of, places, port_of};
use crate::{
    compile::{
        Class, Compiler, Final, PolicySet, Row, RuleId,
        pages::{self, PageTree},
        reference::{Packet, Reference},
    },
    model::{
        Cluster, EndpointKey,
        resource::{Kind, Resource},
        rule::Direction,
    },
};

/// A store's content; a later entry for the same key replaces an earlier one.
pub(crate) type Entries = Vec<(String, Value)>;

fn maybe<S: Strategy<Value = Value> + 'static>(
    probability: f64,
    strategy: S,
) -> BoxedStrategy<Option<Value>> {
    prop::option::weighted(probability, strategy).boxed()
}

/// An object with those fields that are there.
fn object(fields: Vec<(&'static str, BoxedStrategy<Option<Value>>)>) -> impl Strategy<Value = Value> {
    let (names, values): (Vec<_>, Vec<_>) = fields.into_iter().unzip();
    values.prop_map(move |values| {
        let pairs = names.iter().zip(values).filter_map(|(name, value)| Some(((*name).to_owned(), value?)));
        Value::Object(pairs.collect::<Map<_, _>>())
    })
}

fn text(choices: &[&'static str]) -> BoxedStrategy<Value> {
    select(choices.to_vec()).prop_map(Value::from).boxed()
}

fn list(choices: &[&'static str]) -> BoxedStrategy<Value> {
    prop::collection::vec(text(choices), 1..3).prop_map(Value::from).boxed()
}

fn selector() -> BoxedStrategy<Value> {
    text(&[
        "all()",
        "a == 'x'",
        "a != 'x'",
        "has(b)",
        "!has(b)",
        "a in {'x','z'}",
        "role == 'set'",
        "a == 'x' || has(b)",
        "projectcalico.org/namespace == 'shop'",
        "pcns.env == 'prod'",
        "this is not a selector",
    ])
}

fn entity() -> impl Strategy<Value = Value> {
    let nets = [
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.0.0.0/29",
        "10.0.0.4/31",
        "10.0.0.3/32",
        "10.0.0.2",
        "192.0.2.0/24",
        "192.0.2.128/25",
        "2001:db8::/32",
    ];
    let ports = || {
        prop::collection::vec(
            select(vec![
                json!(80),
                json!("443"),
                json!("80:90"),
                json!("0:65535"),
                json!("1000:65535"),
                json!("http"),
                json!("dns"),
                json!("nobody"),
            ]),
            1..3,
        )
        .prop_map(Value::from)
    };
    let accounts = object(vec![
        ("names", maybe(0.7, list(&["sa1", "sa2"]))),
        ("selector", maybe(0.5, text(&["tier == 'gold'", "all()"]))),
    ]);
    object(vec![
        ("nets", maybe(0.25, list(&nets))),
        ("notNets", maybe(0.12, list(&nets[1..]))),
        ("selector", maybe(0.3, selector())),
        ("notSelector", maybe(0.15, selector())),
        ("namespaceSelector", maybe(0.15, text(&["all()", "global()", "env == 'prod'", "env != 'prod'"]))),
        ("serviceAccounts", maybe(0.08, accounts)),
        ("ports", maybe(0.3, ports())),
        ("notPorts", maybe(0.15, ports())),
    ])
}

fn rule() -> impl Strategy<Value = Value> {
    let action = || text(&["Allow", "Allow", "Deny", "Deny", "Pass", "Log", "allow"]).prop_map(Some).boxed();
    let protocol = || {
        select(vec![
            json!("TCP"),
            json!("udp"),
            json!("SCTP"),
            json!("ICMP"),
            json!(6),
            json!(47),
            json!(58),
            json!("ICMPv6"),
        ])
    };
    let icmp = || select(vec![json!({ "type": 8 }), json!({ "type": 3, "code": 1 })]);
    object(vec![
        ("action", action()),
        ("protocol", maybe(0.7, protocol())),
        ("notProtocol", maybe(0.1, protocol())),
        ("ipVersion", maybe(0.1, select(vec![json!(4), json!(6)]))),
        ("icmp", maybe(0.1, icmp())),
        ("notICMP", maybe(0.1, icmp())),
        ("source", maybe(0.6, entity())),
        ("destination", maybe(0.6, entity())),
    ])
}

fn rules() -> BoxedStrategy<Option<Value>> {
    maybe(0.9, prop::collection::vec(rule(), 0..4).prop_map(Value::from))
}

pub(crate) fn policy() -> impl Strategy<Value = (String, Value)> {
    let spec = object(vec![
        ("tier", maybe(0.7, text(&["default", "first", "last", "absent"]))),
        ("order", maybe(0.7, select(vec![json!(1), json!(1.5), json!(-3)]))),
        ("selector", maybe(0.6, selector())),
        ("namespaceSelector", maybe(0.1, text(&["all()", "env == 'prod'"]))),
        ("serviceAccountSelector", maybe(0.1, text(&["all()", "tier == 'gold'"]))),
        ("types", maybe(0.8, list(&["Ingress", "Egress"]))),
        ("ingress", rules()),
        ("egress", rules()),
    ]);
    let key = select(vec![
        (Kind::GlobalNetworkPolicy, ""),
        (Kind::NetworkPolicy, "shop"),
        (Kind::NetworkPolicy, "bank"),
    ]);
    (key, select(vec!["p", "p-1", "q", "r"]), spec).prop_map(|((kind, namespace), name, spec)| {
        (Resource::new(kind, namespace, name).key(), json!({ "spec": spec }))
    })
}

pub(crate) fn endpoint() -> impl Strategy<Value = (String, Value)> {
    let labels = object(vec![
        ("a", maybe(0.6, text(&["x", "y", "z"]))),
        ("b", maybe(0.5, text(&["", "1"]))),
        ("pcns.env", maybe(0.1, text(&["prod"]))),
    ]);
    let ports = select(vec![
        json!([]),
        json!([{ "name": "http", "protocol": "TCP", "port": 80 }, { "name": "dns", "protocol": "UDP", "port": 53 }]),
        json!([{ "name": "http", "protocol": "TCP", "port": 443 }, { "name": "dns", "protocol": "TCP", "port": 53 }]),
        json!([{ "name": "http", "protocol": "SCTP", "port": 80 }]),
    ]);
    let profiles = select(vec![
        json!(["kns.shop"]),
        json!(["kns.shop", "ksa.gold"]),
        json!(["net"]),
        json!(["net", "missing"]),
        json!([]),
        json!(["projectcalico-default-allow"]),
    ]);
    let place = (select(vec!["shop", "bank"]), select(vec![NODE, "n2"]), 1..9u8);
    (place, labels, ports, profiles, select(vec!["", "sa1", "sa2"])).prop_map(
        |((namespace, node, n), labels, ports, profiles, account)| {
            let key =
                Resource::new(Kind::WorkloadEndpoint, namespace, &format!("{node}-cni-c{n}-eth0")).key();
            let spec = json!({
                "ipNetworks": [format!("10.0.0.{n}/32")], "ports": ports, "profiles": profiles,
                "serviceAccountName": account,
            });
            (key, json!({ "metadata": { "labels": labels }, "spec": spec }))
        },
    )
}

pub(crate) fn other_objects() -> impl Strategy<Value = Entries> {
    let key = |kind, namespace: &str, name: &str| Resource::new(kind, namespace, name).key();
    let nets = || list(&["192.0.2.0/24", "192.0.2.7/32", "10.0.0.2/31", "10.0.0.0/8", "0.0.0.0/0"]);
    let labels = || {
        object(vec![
            ("role", maybe(0.7, text(&["set"]))),
            ("a", maybe(0.5, text(&["x", "y"]))),
            ("b", maybe(0.3, text(&["1"]))),
        ])
    };
    let sets = (nets(), labels(), nets(), labels()).prop_map(move |(nets, labels, own_nets, own_labels)| {
        vec![
            (
                key(Kind::GlobalNetworkSet, "", "s"),
                json!({ "metadata": { "labels": labels }, "spec": { "nets": nets } }),
            ),
            (
                key(Kind::NetworkSet, "shop", "s"),
                json!({ "metadata": { "labels": own_labels }, "spec": { "nets": own_nets } }),
            ),
        ]
    });
    let actions = || text(&["Deny", "Pass", "Allow"]);
    let tiers =
        (actions(), actions(), select(vec![json!(1), json!(null)])).prop_map(move |(first, last, order)| {
            vec![
                (key(Kind::Tier, "", "first"), json!({ "spec": { "order": -1, "defaultAction": first } })),
                (
                    key(Kind::Tier, "", "default"),
                    json!({ "spec": { "order": order, "defaultAction": "Deny" } }),
                ),
                (key(Kind::Tier, "", "last"), json!({ "spec": { "order": 100, "defaultAction": last } })),
            ]
        });
    let profiles = (rules(), rules(), rules()).prop_map(move |(shop, ingress, egress)| {
        vec![
            (
                key(Kind::Profile, "", "kns.shop"),
                json!({ "spec": { "ingress": shop, "egress": [{ "action": "Allow" }], "labelsToApply": { "pcns.env": "prod", "a": "y" } } }),
            ),
            (key(Kind::Profile, "", "ksa.gold"), json!({ "spec": { "labelsToApply": { "pcsa.tier": "gold", "a": "x" } } })),
            (key(Kind::Profile, "", "net"), json!({ "spec": { "ingress": ingress, "egress": egress } })),
        ]
    });
    let host = labels().prop_map(move |labels| {
        let ports = json!([{ "name": "http", "protocol": "TCP", "port": 80 }]);
        let spec = json!({ "node": "n1", "interfaceName": "eth0", "expectedIPs": ["10.0.0.9", "10.0.0.8"], "ports": ports });
        vec![(key(Kind::HostEndpoint, "", "h"), json!({ "metadata": { "labels": labels }, "spec": spec }))]
    });
    (sets, tiers, profiles, prop::option::of(host))
        .prop_map(|(sets, tiers, profiles, host)| [sets, tiers, profiles, host.unwrap_or_default()].concat())
}

pub(crate) fn cluster_entries() -> impl Strategy<Value = Entries> {
    (prop::collection::vec(policy(), 0..7), prop::collection::vec(endpoint(), 1..7), other_objects())
        .prop_map(|(policies, endpoints, others)| [policies, endpoints, others].concat())
}

fn peer() -> impl Strategy<Value = Ipv4Addr> {
    prop_oneof![
        8 => (0..11u8).prop_map(|n| Ipv4Addr::new(10, 0, 0, n)),
        2 => select(vec![0, 7, 127, 128, 255]).prop_map(|n| Ipv4Addr::new(192, 0, 2, n)),
        1 => Just(Ipv4Addr::new(8, 8, 8, 8)),
    ]
}

/// Protocol, source port, destination port, ICMP type and code.
fn flow() -> impl Strategy<Value = (u8, u16, u16, u8, u8)> {
    let port = || select(vec![0, 53, 79, 80, 81, 90, 91, 443, 444, 999, 1000, 40000, 65535]);
    prop_oneof![
        6 => (select(vec![6, 6, 17, 132]), port(), port()).prop_map(|(proto, src, dst)| (proto, src, dst, 0, 0)),
        2 => (select(vec![0, 3, 8, 255]), select(vec![0, 1, 255])).prop_map(|(t, c)| (1, 0, 0, t, c)),
        1 => select(vec![0, 2, 47, 58, 136, 255]).prop_map(|proto| (proto, 0, 0, 0, 0)),
    ]
}

pub(crate) fn cluster_of(entries: &Entries) -> Cluster {
    let mut cluster = Cluster::default();
    for (key, value) in entries {
        cluster.apply(key, Some(value.to_string().as_bytes()));
    }
    cluster
}

/// Tables of a node as its kernel would hold them.
struct Tables {
    compiled: Compiler,
    classes: HashMap<Ipv4Addr, Class>,
    rows: HashMap<(*const PolicySet, Class), (Row, PageTree)>,
    rules: BTreeMap<u32, String>,
}

impl Tables {
    fn new(cluster: &Cluster) -> Self {
        let compiled = Compiler::of(cluster, NODE);
        Self { compiled, classes: HashMap::new(), rows: HashMap::new(), rules: BTreeMap::new() }
    }

    /// By row, and by pages.
    fn judge(&mut self, set: &Arc<PolicySet>, peer: Ipv4Addr, packet: &Packet) -> [(bool, String); 2] {
        if self.classes.is_empty() {
            let census = census_of(&mut self.compiled);
            let all = (0..=255).flat_map(|n| [[10, 0, 0, n], [192, 0, 2, n]]).chain([[8, 8, 8, 8]]);
            self.classes = all.map(Ipv4Addr::from).map(|a| (a, class_of(census, a))).collect();
        }
        let class = self.classes[&peer].clone();
        let rules = &mut self.rules;
        let (row, tree) = self.rows.entry((Arc::as_ptr(set), class)).or_insert_with_key(|(_, class)| {
            let row = set.row(class).unwrap();
            let mut id = |decided: &Final| {
                if decided.is_nameless() {
                    return 0;
                }
                let text = text_of(decided);
                let found = rules.iter().find(|(_, known)| **known == text).map(|(id, _)| *id);
                found.unwrap_or_else(|| {
                    let id = u32::try_from(rules.len() + 1).unwrap();
                    rules.insert(id, text);
                    id
                })
            };
            let tree = pages::encode(&row, &mut id).unwrap();
            (row, tree)
        });
        let port = port_of(packet);
        let by_row = row.lookup(packet.protocol, packet.src_port, port);
        let by_pages = tree.lookup(packet.protocol, packet.src_port, port);
        [
            (by_row.allow, text_of(by_row)),
            (by_pages.kind() == Verdict::ALLOW, rules.get(&by_pages.id()).cloned().unwrap_or_default()),
        ]
    }
}

fn text_of(decided: &Final) -> String {
    texts_of(decided.rule.as_deref().into_iter(), decided.logs.iter().map(|rule| &**rule))
}

/// The deciding rule, then those that took note.
fn texts_of<'a>(rule: impl Iterator<Item = &'a RuleId>, logs: impl Iterator<Item = &'a RuleId>) -> String {
    let rule = rule.map(ToString::to_string).collect::<String>();
    let logs: Vec<String> = logs.map(ToString::to_string).collect();
    if logs.is_empty() { rule } else { format!("{rule}, noted by {}", logs.join(", ")) }
}

const CLUSTERS: u32 = 300;
const PACKETS: usize = 150;

#[test]
fn reference_rows_and_pages_give_the_same_verdicts() {
    let mut runner = TestRunner::new(Config::with_cases(CLUSTERS));
    let verdicts = std::cell::Cell::new((0u64, 0u64));
    let packets = prop::collection::vec((peer(), flow()), PACKETS);
    let outcome = runner.run(&(cluster_entries(), packets), |(entries, packets)| {
        let cluster = cluster_of(&entries);
        let reference = Reference::new(&cluster);
        let mut tables = Tables::new(&cluster);
        let judgements: Vec<_> = tables.compiled.endpoints().clone().into_iter().collect();
        for ((endpoint, local), judgement) in judgements {
            for direction in [Direction::Ingress, Direction::Egress] {
                let set =
                    if direction == Direction::Ingress { &judgement.ingress } else { &judgement.egress };
                for (peer, flow) in &packets {
                    let packet = packet_of(direction, local, *peer, *flow);
                    let expected = reference.judge(&endpoint, direction, &packet);
                    let rule = texts_of(expected.rule.iter(), expected.logs.iter());
                    let [by_row, by_pages] = tables.judge(set, *peer, &packet);
                    let expected = (expected.allow, rule);
                    prop_assert_eq!(&by_row, &expected, "row: {} {} {:?}", endpoint, direction, packet);
                    prop_assert_eq!(&by_pages, &expected, "pages: {} {} {:?}", endpoint, direction, packet);
                    let (all, allowed) = verdicts.get();
                    verdicts.set((all + 1, allowed + u64::from(expected.0)));
                }
            }
        }
        Ok(())
    });
    outcome.unwrap_or_else(|e| panic!("{e}"));
    let (all, allowed) = verdicts.get();
    assert!(all >= 100_000, "only {all} verdicts");
    assert!(allowed * 20 > all, "only {allowed} of {all} allow: the cases say too little");
}

pub(crate) fn packet_of(
    direction: Direction,
    local: Ipv4Addr,
    peer: Ipv4Addr,
    (protocol, src_port, dst_port, icmp_type, icmp_code): (u8, u16, u16, u8, u8),
) -> Packet {
    let (source, destination) = if direction == Direction::Ingress { (peer, local) } else { (local, peer) };
    Packet { source, destination, protocol, src_port, dst_port, icmp_type, icmp_code }
}

proptest! {
    #![proptest_config(Config::with_cases(60))]

    /// Order, repetition and intermediate states of the events leave no trace.
    #[test]
    fn the_result_does_not_depend_on_history(entries in cluster_entries(), seed in any::<u64>()) {
        let last: BTreeMap<String, Value> = entries.iter().cloned().collect();
        let mut shuffled: Entries = last.clone().into_iter().collect();
        shuffled.sort_by_key(|(key, _)| key.bytes().fold(seed, |h, b| h.wrapping_mul(31).wrapping_add(b.into())));
        let mut churned = Cluster::default();
        for (key, value) in &shuffled {
            let text = value.to_string();
            churned.apply(key, Some(text.as_bytes()));
            churned.apply(key, None);
            churned.apply(key, Some(text.as_bytes()));
        }
        let mut listed = cluster_of(&vec![(Resource::new(Kind::Tier, "", "extra").key(), json!({ "spec": {} }))]);
        listed.replace_all(last.iter().map(|(key, value)| (key.clone(), value.to_string().into_bytes())));
        let mut wanted = Compiler::of(&cluster_of(&last.into_iter().collect()), NODE);
        for cluster in [churned, listed] {
            let mut compiled = Compiler::of(&cluster, NODE);
            prop_assert_eq!(compiled.endpoints(), wanted.endpoints());
            prop_assert_eq!(places(census_of(&mut compiled)), places(census_of(&mut wanted)));
            let plain = cluster_of(&shuffled);
            prop_assert_eq!(cluster.invalid(), plain.invalid());
        }
    }

    /// A set answers for classes that it was not made for.
    #[test]
    fn classes_of_another_clusters_predicates_are_answered(a in cluster_entries(), b in cluster_entries()) {
        let (mut a, b) = (Compiler::of(&cluster_of(&a), NODE), Compiler::of(&cluster_of(&b), NODE));
        let sets: Vec<Arc<PolicySet>> = a.sets().into_iter().cloned().collect();
        let census = census_of(&mut a);
        let addresses: Vec<Ipv4Addr> = (0..12).map(|n| Ipv4Addr::new(10, 0, 0, n)).collect();
        let exact: Vec<Class> = addresses.iter().map(|address| class_of(census, *address)).collect();
        census.want(sets.iter().chain(b.sets()));
        for (address, exact) in addresses.iter().zip(exact) {
            for set in &sets {
                prop_assert_eq!(set.row(&exact).unwrap(), set.row(&class_of(census, *address)).unwrap());
            }
        }
    }
}

/// Generators must not fail silently into nothing.
#[test]
fn generated_clusters_have_local_endpoints_and_policies() {
    let mut runner = TestRunner::deterministic();
    let mut found = 0;
    for _ in 0..20 {
        let entries = cluster_entries().new_tree(&mut runner).unwrap().current();
        let cluster = cluster_of(&entries);
        let local: Vec<(&EndpointKey, _)> = cluster.endpoints_of(NODE).collect();
        found += usize::from(!local.is_empty() && cluster.policies().next().is_some());
    }
    assert!(found >= 10, "{found} of 20");
}
