//! The points of the verdict algorithm, each by name. Every answer is given by the tables and by the reference.

use serde_json::json;

use super::{NODE, World, address, census_of, class_of, packet};
use crate::{
    compile::Compiler,
    model::{Cluster, EndpointKey, rule::Direction},
};

/// One pod `web` (10.0.0.1, a=x) and one pod `db` (10.0.0.2, a=y), with a profile that allows all.
fn world() -> (World, EndpointKey, EndpointKey) {
    let mut world = World::default();
    world.profile("open", &json!({ "ingress": [{ "action": "Allow" }], "egress": [{ "action": "Allow" }] }));
    let web = world.pod("web", "10.0.0.1", "a=x", &["open"]);
    let db = world.pod("db", "10.0.0.2", "a=y", &["open"]);
    (world, web, db)
}

#[test]
fn without_policy_the_profiles_decide() {
    let (world, web, _) = world();
    assert!(world.ingress(&web, "10.0.0.2", "tcp 80"));
    assert!(world.egress(&web, "8.8.8.8", "udp 53"));
}

#[test]
fn without_policy_and_profile_everything_is_denied() {
    let (mut world, ..) = world();
    let bare = world.pod("bare", "10.0.0.3", "", &[]);
    assert!(!world.ingress(&bare, "10.0.0.2", "tcp 80"));
    assert!(!world.egress(&bare, "10.0.0.2", "icmp 8/0"));
}

#[test]
fn a_missing_profile_denies_everything_from_its_place_on() {
    let (mut world, ..) = world();
    world.profile("tcp", &json!({ "ingress": [{ "action": "Allow", "protocol": "TCP" }] }));
    let before = world.pod("before", "10.0.0.3", "", &["gone", "open"]);
    let after = world.pod("after", "10.0.0.4", "", &["tcp", "gone", "open"]);
    assert!(!world.ingress(&before, "10.0.0.2", "tcp 80"));
    assert!(world.ingress(&after, "10.0.0.2", "tcp 80"));
    assert!(!world.ingress(&after, "10.0.0.2", "udp 80"));
}

#[test]
fn the_built_in_profile_allows_everything_and_cannot_be_replaced() {
    let (mut world, ..) = world();
    world.profile("projectcalico-default-allow", &json!({ "ingress": [], "egress": [] }));
    let pod = world.pod("pod", "10.0.0.3", "", &["projectcalico-default-allow"]);
    assert!(world.ingress(&pod, "8.8.8.8", "47"));
    assert!(world.egress(&pod, "8.8.8.8", "tcp 1"));
}

#[test]
fn profiles_are_asked_in_the_order_of_the_endpoint() {
    let (mut world, ..) = world();
    world.profile("closed", &json!({ "ingress": [{ "action": "Deny", "protocol": "TCP" }] }));
    let closed_first = world.pod("c", "10.0.0.3", "", &["closed", "open"]);
    let open_first = world.pod("o", "10.0.0.4", "", &["open", "closed"]);
    assert!(!world.ingress(&closed_first, "10.0.0.2", "tcp 80"));
    assert!(world.ingress(&closed_first, "10.0.0.2", "udp 80"));
    assert!(world.ingress(&open_first, "10.0.0.2", "tcp 80"));
}

#[test]
fn pass_inside_a_profile_denies() {
    let (mut world, ..) = world();
    world.profile("passing", &json!({ "ingress": [{ "action": "Pass" }] }));
    let pod = world.pod("pod", "10.0.0.3", "", &["passing", "open"]);
    assert!(!world.ingress(&pod, "10.0.0.2", "tcp 80"));
}

#[test]
fn a_policy_without_rules_isolates_the_direction_of_its_types_only() {
    let (mut world, web, db) = world();
    world.policy("shop", "isolate", &json!({ "selector": "a == 'x'", "types": ["Ingress"] }));
    assert!(!world.ingress(&web, "10.0.0.2", "tcp 80"));
    assert!(world.egress(&web, "10.0.0.2", "tcp 80"));
    assert!(world.ingress(&db, "10.0.0.1", "tcp 80"));
}

#[test]
fn missing_or_empty_types_mean_both_directions_and_case_does_not_matter() {
    for types in [json!(null), json!([]), json!(["ingress", "EGRESS"])] {
        let (mut world, web, _) = world();
        world.global("p", &json!({ "types": types, "ingress": [{ "action": "Allow" }] }));
        assert!(world.ingress(&web, "10.0.0.2", "tcp 80"));
        assert!(!world.egress(&web, "10.0.0.2", "tcp 80"));
    }
}

#[test]
fn lower_orders_go_first_and_a_missing_order_goes_last() {
    let rule = |action: &str| json!([{ "action": action }]);
    for (allow, deny, allowed) in [
        (json!(1), json!(2), true),
        (json!(2), json!(1), false),
        (json!(-1.5), json!(-1), true),
        (json!(1e9), json!(null), true),
        (json!(null), json!(1e9), false),
    ] {
        let (mut world, web, _) = world();
        world.global("a", &json!({ "order": allow, "ingress": rule("Allow") }));
        world.global("b", &json!({ "order": deny, "ingress": rule("Deny") }));
        assert_eq!(world.ingress(&web, "10.0.0.2", "tcp 80"), allowed, "{allow} {deny}");
    }
}

#[test]
fn equal_orders_go_by_the_bytes_of_name_namespace_and_kind() {
    let (mut world, web, _) = world();
    // `web-x/…` comes before `web/…`, as a dash comes before a slash; minus zero is zero.
    world.policy("shop", "web", &json!({ "order": 0, "ingress": [{ "action": "Deny" }] }));
    world.policy("shop", "web-x", &json!({ "order": -0.0, "ingress": [{ "action": "Allow" }] }));
    assert!(world.ingress(&web, "10.0.0.2", "tcp 80"));
    // An empty namespace comes before any other.
    world.global("web-x", &json!({ "order": 0, "ingress": [{ "action": "Deny" }] }));
    assert!(!world.ingress(&web, "10.0.0.2", "tcp 80"));
}

#[test]
fn the_first_matching_rule_decides_and_log_decides_nothing() {
    let (mut world, web, _) = world();
    world.global(
        "p",
        &json!({ "ingress": [
            { "action": "Log" },
            { "action": "Deny", "protocol": "TCP", "destination": { "ports": [80] } },
            { "action": "Allow", "protocol": "TCP" },
        ] }),
    );
    assert!(!world.ingress(&web, "10.0.0.2", "tcp 80"));
    assert!(world.ingress(&web, "10.0.0.2", "tcp 81"));
    assert!(!world.ingress(&web, "10.0.0.2", "udp 81"));
}

#[test]
fn a_log_rule_that_is_met_by_a_ports_name_and_by_its_number_takes_note_once() {
    let (mut world, web, _) = world();
    let ports = json!([{ "name": "http", "protocol": "TCP", "port": 80 }]);
    world.pod_in("shop", "other", "10.0.0.5", "", &json!({ "ports": ports }));
    let to = json!({ "selector": "all()", "ports": ["http", 80] });
    world.global("p", &json!({ "egress": [{ "action": "Log", "protocol": "TCP", "destination": to }] }));
    // The comparison with the reference says it.
    assert!(!world.egress(&web, "10.0.0.5", "tcp 80"));
}

#[test]
fn the_deciding_rule_is_named() {
    let (mut world, web, _) = world();
    world.policy(
        "shop",
        "p",
        &json!({ "ingress": [{ "action": "Log" }, { "action": "Allow", "protocol": "UDP" }] }),
    );
    let to = world.address(&web);
    let ask = |what: &str| world.verdict(&web, Direction::Ingress, packet(address("8.8.8.8"), to, what));
    assert_eq!(ask("udp 53"), (true, "NetworkPolicy shop/p (tier default) ingress rule 1".to_owned()));
    assert_eq!(ask("tcp 53"), (false, String::new()));
}

#[test]
fn tiers_go_by_order_and_pass_leads_on_to_the_next() {
    let (mut world, web, _) = world();
    world.tier("early", &json!(1), "Deny").tier("default", &json!(1_000_000), "Deny");
    world.global(
        "z",
        &json!({ "tier": "early", "ingress": [
        { "action": "Pass", "protocol": "TCP" }, { "action": "Allow", "protocol": "UDP" } ] }),
    );
    world.global(
        "a",
        &json!({ "ingress": [
        { "action": "Allow", "protocol": "TCP", "destination": { "ports": [80] } }, { "action": "Deny" } ] }),
    );
    assert!(world.ingress(&web, "10.0.0.2", "tcp 80"));
    assert!(!world.ingress(&web, "10.0.0.2", "tcp 81"));
    assert!(world.ingress(&web, "10.0.0.2", "udp 80"));
    assert!(!world.ingress(&web, "10.0.0.2", "sctp 80"));
}

#[test]
fn pass_skips_the_rest_of_its_tier() {
    let (mut world, web, _) = world();
    world.tier("early", &json!(1), "Deny");
    world.global("a", &json!({ "tier": "early", "order": 1, "ingress": [{ "action": "Pass" }] }));
    world.global("b", &json!({ "tier": "early", "order": 2, "ingress": [{ "action": "Deny" }] }));
    assert!(world.ingress(&web, "10.0.0.2", "tcp 80"));
}

#[test]
fn the_end_of_a_tier_denies_unless_its_default_is_pass() {
    for (default_action, allowed) in [("Deny", false), ("Pass", true), ("", false), ("Nonsense", false)] {
        let (mut world, web, _) = world();
        world.tier("t", &json!(null), default_action);
        world.global("p", &json!({ "tier": "t", "ingress": [{ "action": "Deny", "protocol": "UDP" }] }));
        assert_eq!(world.ingress(&web, "10.0.0.2", "tcp 80"), allowed, "{default_action}");
        assert!(!world.ingress(&web, "10.0.0.2", "udp 80"));
    }
}

#[test]
fn a_tier_that_governs_nothing_here_is_skipped_with_its_default() {
    let (mut world, web, _) = world();
    world.tier("t", &json!(1), "Deny");
    world.global("other", &json!({ "tier": "t", "selector": "a == 'nobody'" }));
    world.global("egress", &json!({ "tier": "t", "types": ["Egress"], "egress": [{ "action": "Allow" }] }));
    assert!(world.ingress(&web, "10.0.0.2", "tcp 80"));
}

#[test]
fn staged_policies_are_transparent() {
    let (mut world, web, _) = world();
    for plural in
        ["stagednetworkpolicies/shop", "stagedkubernetesnetworkpolicies/shop", "stagedglobalnetworkpolicies"]
    {
        let key = format!("/calico/resources/v3/projectcalico.org/{plural}/p");
        world.cluster.apply(&key, Some(br#"{"spec":{"ingress":[{"action":"Deny"}]}}"#));
    }
    assert!(world.ingress(&web, "10.0.0.2", "tcp 80"));
}

#[test]
fn policies_of_a_missing_tier_come_last_and_move_when_it_appears() {
    let (mut world, web, _) = world();
    world.tier("default", &json!(1_000_000), "Pass");
    world.global("p", &json!({ "tier": "later", "ingress": [{ "action": "Deny", "protocol": "TCP" }] }));
    world.global("q", &json!({ "ingress": [{ "action": "Allow", "protocol": "TCP" }] }));
    assert!(world.ingress(&web, "10.0.0.2", "tcp 80"), "the real tier goes first");
    assert!(!world.ingress(&web, "10.0.0.2", "udp 80"), "the missing one closes");
    world.tier("later", &json!(1), "Pass");
    assert!(!world.ingress(&web, "10.0.0.2", "tcp 80"));
    assert!(world.ingress(&web, "10.0.0.2", "udp 80"));
}

#[test]
fn a_missing_tier_comes_after_one_without_order_whatever_their_names() {
    let (mut world, web, _) = world();
    world.tier("zz", &json!(null), "Pass");
    world.global("p", &json!({ "tier": "zz", "ingress": [{ "action": "Allow" }] }));
    world.global("q", &json!({ "tier": "aa", "ingress": [{ "action": "Deny" }] }));
    assert!(world.ingress(&web, "10.0.0.2", "tcp 80"));
}

#[test]
fn policies_for_host_endpoints_before_connection_tracking_or_dnat_do_not_touch_pods() {
    let (mut world, web, _) = world();
    for field in ["doNotTrack", "preDNAT"] {
        world.global("p", &json!({ "ingress": [{ "action": "Deny" }], field: true, "applyOnForward": true }));
        assert!(world.ingress(&web, "10.0.0.2", "tcp 80"));
    }
    world.global("p", &json!({ "ingress": [{ "action": "Deny" }], "applyOnForward": true }));
    assert!(!world.ingress(&web, "10.0.0.2", "tcp 80"));
}

#[test]
fn a_namespaced_policy_is_about_its_namespace_alone() {
    let (mut world, web, _) = world();
    let other = world.pod_in("bank", "o", "10.0.0.5", "a=x", &json!({ "profiles": ["open"] }));
    world.policy(
        "bank",
        "p",
        &json!({ "ingress": [{ "action": "Allow", "source": { "selector": "all()" } }] }),
    );
    assert!(world.ingress(&web, "10.0.0.5", "tcp 80"));
    assert!(!world.ingress(&other, "10.0.0.1", "tcp 80"), "the peer is of another namespace");
    assert!(!world.ingress(&other, "8.8.8.8", "tcp 80"), "a selector never finds strangers");
    assert!(world.ingress(&other, "10.0.0.5", "tcp 80"));
}

#[test]
fn in_a_namespaced_policy_nets_and_ports_alone_are_about_everybody() {
    let (mut world, web, _) = world();
    world.policy(
        "shop",
        "p",
        &json!({ "ingress": [{ "action": "Allow", "protocol": "TCP", "source": { "nets": ["8.0.0.0/8"] } }] }),
    );
    assert!(world.ingress(&web, "8.8.8.8", "tcp 80"));
    assert!(!world.ingress(&web, "9.8.8.8", "tcp 80"));
}

#[test]
fn a_not_selector_alone_means_own_namespace_in_a_namespaced_policy_and_anyone_in_a_global_one() {
    let rules = json!({ "ingress": [{ "action": "Allow", "source": { "notSelector": "a == 'y'" } }] });
    let (mut world, web, _) = world();
    world.policy("shop", "p", &rules);
    assert!(!world.ingress(&web, "8.8.8.8", "tcp 80"));
    assert!(world.ingress(&web, "10.0.0.1", "tcp 80"));
    assert!(!world.ingress(&web, "10.0.0.2", "tcp 80"));
    let (mut world, web, _) = self::world();
    world.global("p", &rules);
    assert!(world.ingress(&web, "8.8.8.8", "tcp 80"));
    assert!(!world.ingress(&web, "10.0.0.2", "tcp 80"));
}

#[test]
fn namespace_and_account_selectors_look_at_what_profiles_hand_out() {
    let (mut world, web, _) = world();
    world.profile("kns.bank", &json!({ "labelsToApply": { "pcns.env": "prod" } }));
    world.profile("ksa.bank.teller", &json!({ "labelsToApply": { "pcsa.role": "teller" } }));
    let spec = json!({ "profiles": ["kns.bank", "ksa.bank.teller"], "serviceAccountName": "teller" });
    world.pod_in("bank", "t", "10.0.0.5", "", &spec);
    // Claims the labels itself; they are dropped.
    world.pod("liar", "10.0.0.6", "pcns.env=prod pcsa.role=teller", &["open"]);
    for source in [
        json!({ "namespaceSelector": "env == 'prod'" }),
        json!({ "serviceAccounts": { "selector": "role == 'teller'" }, "namespaceSelector": "all()" }),
        json!({ "serviceAccounts": { "names": ["teller"] }, "namespaceSelector": "has(env)" }),
    ] {
        world.global("p", &json!({ "ingress": [{ "action": "Allow", "source": source }] }));
        assert!(world.ingress(&web, "10.0.0.5", "tcp 80"), "{source}");
        assert!(!world.ingress(&web, "10.0.0.6", "tcp 80"), "{source}");
        assert!(!world.ingress(&web, "10.0.0.2", "tcp 80"), "{source}");
    }
}

#[test]
fn network_sets_and_host_addresses_are_found_by_selectors() {
    use crate::model::resource::Kind;
    let (mut world, web, _) = world();
    let labels = json!({ "labels": { "role": "office" } });
    world.put(
        Kind::GlobalNetworkSet,
        "",
        "s",
        &json!({ "metadata": labels, "spec": { "nets": ["192.0.2.0/24", "198.51.100.7"] } }),
    );
    world.put(
        Kind::HostEndpoint,
        "",
        "h",
        &json!({ "metadata": labels, "spec": { "expectedIPs": ["203.0.113.1"] } }),
    );
    world.global(
        "p",
        &json!({ "ingress": [{ "action": "Allow", "source": { "selector": "role == 'office'" } }] }),
    );
    for from in ["192.0.2.200", "198.51.100.7", "203.0.113.1"] {
        assert!(world.ingress(&web, from, "tcp 80"), "{from}");
    }
    assert!(!world.ingress(&web, "192.0.3.1", "tcp 80"));
    // `global()` is what has no namespace.
    world.global(
        "p",
        &json!({ "ingress": [{ "action": "Allow", "source": { "namespaceSelector": "global()" } }] }),
    );
    assert!(world.ingress(&web, "192.0.2.200", "tcp 80"));
    assert!(!world.ingress(&web, "10.0.0.2", "tcp 80"));
}

#[test]
fn the_local_side_of_a_rule_is_decided_for_the_endpoint() {
    let (mut world, web, db) = world();
    world.global(
        "p",
        &json!({ "ingress": [
            { "action": "Allow", "protocol": "TCP", "destination": { "selector": "a == 'x'", "ports": [80] } },
            { "action": "Allow", "destination": { "nets": ["10.0.0.2/32"] }, "protocol": "UDP" },
        ] }),
    );
    assert!(world.ingress(&web, "8.8.8.8", "tcp 80"));
    assert!(!world.ingress(&db, "8.8.8.8", "tcp 80"));
    assert!(world.ingress(&db, "8.8.8.8", "udp 80"));
    assert!(!world.ingress(&web, "8.8.8.8", "udp 80"));
    assert!(
        Compiler::of(&world.cluster, NODE).sets().iter().all(|set| set.predicates().is_empty()),
        "nothing is asked about peers"
    );
}

#[test]
fn protocols_icmp_and_their_negations() {
    let table = [
        (json!({ "protocol": "TCP" }), vec!["tcp 1"], vec!["udp 1", "icmp 8/0", "47"]),
        (json!({ "protocol": 47 }), vec!["47"], vec!["tcp 1"]),
        (json!({ "protocol": "udplite" }), vec!["136"], vec!["udp 1"]),
        (json!({ "notProtocol": "TCP" }), vec!["udp 1", "icmp 8/0", "47"], vec!["tcp 1"]),
        (json!({ "protocol": "ICMP" }), vec!["icmp 8/0", "icmp 3/4"], vec!["tcp 1", "58"]),
        (json!({ "protocol": "ICMPv6" }), vec![], vec!["icmp 8/0", "58", "tcp 1"]),
        (
            json!({ "protocol": "ICMP", "icmp": { "type": 3 } }),
            vec!["icmp 3/0", "icmp 3/255"],
            vec!["icmp 8/0"],
        ),
        (json!({ "protocol": "ICMP", "icmp": { "type": 3, "code": 4 } }), vec!["icmp 3/4"], vec!["icmp 3/0"]),
        (
            json!({ "protocol": "ICMP", "notICMP": { "type": 3, "code": 4 } }),
            vec!["icmp 3/0", "icmp 8/4"],
            vec!["icmp 3/4", "tcp 1"],
        ),
        (json!({ "protocol": 58, "notICMP": { "type": 8 } }), vec![], vec!["58", "icmp 3/0"]),
        (json!({ "ipVersion": 4 }), vec!["tcp 1"], vec![]),
        (json!({ "ipVersion": 6 }), vec![], vec!["tcp 1"]),
        (json!({ "source": { "nets": ["2001:db8::/32"] } }), vec![], vec!["tcp 1"]),
        (json!({ "source": { "notNets": ["2001:db8::/32"] } }), vec![], vec!["tcp 1"]),
        // Calico's clients refuse to write this one; it never opens.
        (json!({ "source": { "nets": ["2001:db8::/32", "8.0.0.0/8"] } }), vec![], vec!["tcp 1"]),
        (json!({ "source": { "notNets": ["0.0.0.0/0"] } }), vec![], vec!["tcp 1"]),
        (json!({ "source": { "nets": ["0.0.0.0/0"] } }), vec!["tcp 1"], vec![]),
        (json!({ "source": { "notNets": ["8.8.0.0/16"] } }), vec![], vec!["tcp 1"]),
    ];
    for (mut rule, matching, other) in table {
        let (mut world, web, _) = world();
        rule["action"] = json!("Allow");
        world.global("p", &json!({ "ingress": [rule] }));
        for what in matching {
            assert!(world.ingress(&web, "8.8.8.8", what), "{rule} should match {what}");
        }
        for what in other {
            assert!(!world.ingress(&web, "8.8.8.8", what), "{rule} should not match {what}");
        }
    }
}

#[test]
fn ports_of_both_sides() {
    let table = [
        (json!({ "ports": [80, "443", "1000:2000"] }), vec![80, 443, 1000, 2000], vec![79, 81, 999, 2001]),
        (json!({ "ports": [0, 65535] }), vec![0, 65535], vec![1, 65534]),
        (json!({ "notPorts": ["80:90"] }), vec![79, 91, 0, 65535], vec![80, 85, 90]),
        (json!({ "ports": ["1:100"], "notPorts": [50] }), vec![49, 51], vec![50, 101]),
    ];
    for (entity, matching, other) in table {
        for protocol in ["tcp", "udp", "sctp"] {
            let (mut world, web, _) = world();
            for (side, what) in [("destination", "{p}"), ("source", "7 from {p}")] {
                world.global(
                    "p",
                    &json!({ "ingress": [{ "action": "Allow", "protocol": protocol, side: entity }] }),
                );
                let ask = |port: &u16| {
                    world.ingress(
                        &web,
                        "8.8.8.8",
                        &format!("{protocol} {}", what.replace("{p}", &port.to_string())),
                    )
                };
                assert!(matching.iter().all(ask), "{protocol} {side} {entity}");
                assert!(!other.iter().any(ask), "{protocol} {side} {entity}");
            }
        }
    }
}

#[test]
fn source_ports_divide_what_destination_ports_leave() {
    let (mut world, web, _) = world();
    world.global(
        "p",
        &json!({ "ingress": [
            { "action": "Deny", "protocol": "TCP", "source": { "ports": [666] }, "destination": { "ports": ["1:100"] } },
            { "action": "Allow", "protocol": "TCP", "destination": { "ports": ["50:60"] } },
            { "action": "Allow", "protocol": "TCP", "source": { "ports": ["600:700"] } },
        ] }),
    );
    for (what, allowed) in [
        ("tcp 55 from 666", false),
        ("tcp 55 from 665", true),
        ("tcp 55 from 1", true),
        ("tcp 70 from 667", true),
        ("tcp 70 from 1", false),
        ("tcp 101 from 666", true),
        ("tcp 101 from 701", false),
        ("udp 55 from 665", false),
    ] {
        assert_eq!(world.ingress(&web, "8.8.8.8", what), allowed, "{what}");
    }
}

#[test]
fn a_port_name_is_the_port_of_who_gives_it() {
    let (mut world, web, _) = world();
    let ports = json!([{ "name": "http", "protocol": "TCP", "port": 8080 }]);
    world.pod_in("shop", "srv", "10.0.0.5", "a=s", &json!({ "profiles": ["open"], "ports": ports }));
    let ports = json!([{ "name": "http", "protocol": "TCP", "port": 9090 }]);
    let own =
        world.pod_in("shop", "own", "10.0.0.6", "a=t", &json!({ "profiles": ["open"], "ports": ports }));
    let rule = json!([{ "action": "Allow", "protocol": "TCP", "destination": { "ports": ["http"] } }]);
    world.global("p", &json!({ "ingress": rule, "egress": rule }));
    assert!(world.egress(&web, "10.0.0.5", "tcp 8080"));
    assert!(!world.egress(&web, "10.0.0.5", "tcp 9090"));
    assert!(world.egress(&web, "10.0.0.6", "tcp 9090"));
    assert!(!world.egress(&web, "10.0.0.5", "udp 8080"));
    assert!(!world.egress(&web, "8.8.8.8", "tcp 8080"));
    assert!(world.ingress(&own, "8.8.8.8", "tcp 9090"), "its own name");
    assert!(!world.ingress(&own, "8.8.8.8", "tcp 8080"));
    assert!(!world.ingress(&web, "8.8.8.8", "tcp 8080"));
    // Restricted to whom the rule selects; and negated.
    let named = json!({ "ports": ["http"], "selector": "a == 't'" });
    world.global("p", &json!({ "egress": [{ "action": "Allow", "protocol": "TCP", "destination": named }] }));
    assert!(!world.egress(&web, "10.0.0.5", "tcp 8080"));
    assert!(world.egress(&web, "10.0.0.6", "tcp 9090"));
    let not = json!({ "notPorts": ["http"] });
    world.global("p", &json!({ "egress": [{ "action": "Allow", "protocol": "TCP", "destination": not }] }));
    assert!(!world.egress(&web, "10.0.0.5", "tcp 8080"));
    assert!(world.egress(&web, "10.0.0.5", "tcp 9090"));
    assert!(world.egress(&web, "8.8.8.8", "tcp 8080"));
}

#[test]
fn bad_criteria_close_allow_rules_and_widen_deny_rules() {
    let bad = [
        json!({ "source": { "selector": "a = 'x'" } }),
        json!({ "source": { "notSelector": "(" } }),
        json!({ "source": { "namespaceSelector": "has(" } }),
        json!({ "source": { "serviceAccounts": { "selector": "!" } } }),
        json!({ "source": { "nets": ["10.0.0.0/33"] } }),
        json!({ "source": { "nets": ["8.0.0.0/8", "x"] } }),
        json!({ "source": { "notNets": ["8.8.8.8/x"] } }),
        json!({ "protocol": "TCP", "destination": { "ports": ["9:1"] } }),
        json!({ "protocol": "TCP", "destination": { "ports": [70000] } }),
        json!({ "protocol": "TCP", "destination": { "notPorts": [80.5] } }),
        json!({ "protocol": "TPC" }),
        json!({ "protocol": 0 }),
        json!({ "notProtocol": 256 }),
        json!({ "ipVersion": 5 }),
        json!({ "protocol": "ICMP", "icmp": { "code": 1 } }),
        json!({ "protocol": "TCP", "icmp": { "type": 8 } }),
        json!({ "protocol": "TCP", "source": { "selector": "global()" } }),
        json!({ "http": { "methods": ["GET"] } }),
    ];
    for rule in bad {
        for action in ["Allow", "Deny"] {
            let (mut world, web, _) = world();
            let mut rule = rule.clone();
            rule["action"] = json!(action);
            world.global(
                "p",
                &json!({ "ingress": [rule, { "action": if action == "Allow" { "Deny" } else { "Allow" } }] }),
            );
            let what = if rule["protocol"] == json!("ICMP") { "icmp 8/0" } else { "tcp 80" };
            assert!(!world.ingress(&web, "8.8.8.8", what), "{rule}");
            let (key, reason) = world.cluster.invalid().first_key_value().expect("named as invalid");
            assert!(
                key.ends_with("/globalnetworkpolicies/p") && reason.starts_with("ingress rule 0: "),
                "{reason}"
            );
            assert_eq!(reason.lines().count(), 1);
        }
    }
}

#[test]
fn services_never_match_and_are_reported() {
    let services = json!({ "services": { "name": "api", "namespace": "shop" } });
    let (mut world, web, _) = world();
    world.global("p", &json!({ "egress": [{ "action": "Allow", "destination": services }] }));
    assert!(!world.egress(&web, "10.0.0.2", "tcp 80"));
    world.global(
        "p",
        &json!({ "egress": [{ "action": "Deny", "destination": services }, { "action": "Allow" }] }),
    );
    assert!(world.egress(&web, "10.0.0.2", "tcp 80"));
    assert_eq!(world.cluster.invalid().len(), 1);
}

#[test]
fn what_a_real_cluster_wrote_is_enforced() {
    let mut cluster = Cluster::default();
    let lines: Vec<&str> = include_str!("../../model/testdata/store.txt").lines().collect();
    for pair in lines.chunks(2) {
        cluster.apply(pair[0], Some(pair[1].as_bytes()));
    }
    assert_eq!(cluster.invalid().len(), 0, "{:?}", cluster.invalid());
    let world = World { cluster };
    let mut compiled = Compiler::of(&world.cluster, "node1");
    assert_eq!(compiled.endpoints().len(), 1);
    let ((pod, at), judgement) = compiled.endpoints().clone().pop_first().expect("one endpoint");
    assert_eq!((pod.to_string().as_str(), at), ("default/node1-cni-ca-eth0", address("10.100.30.2")));
    assert_eq!(judgement.ingress.policies(), ["GlobalNetworkPolicy p0", "GlobalNetworkPolicy zz"]);
    let census = census_of(&mut compiled);
    let row =
        |set: &crate::compile::PolicySet, peer: &str| set.row(&class_of(census, address(peer))).unwrap();
    let ingress = |peer, proto, port| row(&judgement.ingress, peer).lookup(proto, 40000, port).allow;
    assert!(!ingress("198.18.0.0", 6, 10000));
    assert!(ingress("198.18.0.0", 6, 10001), "no endpoint is labelled bad");
    assert!(ingress("198.18.0.1", 6, 10000));
    assert!(ingress("10.100.56.2", 6, 80));
    let egress = |peer, proto, port| row(&judgement.egress, peer).lookup(proto, 40000, port).allow;
    assert!(!egress("198.18.1.77", 17, 53));
    assert!(egress("198.18.1.77", 6, 53));
    assert!(egress("10.100.56.2", 17, 53));
}

#[test]
fn a_denial_whose_namespace_selector_cannot_be_read_is_not_narrowed_to_its_own_namespace() {
    for broken in ["env = 'dev'", "global() && has(a)"] {
        for also in [json!({ "selector": "a == 'scan'" }), json!({ "notSelector": "a == 'x'" }), json!({})] {
            let mut world = World::default();
            let open = json!({ "ingress": [{ "action": "Allow" }], "egress": [{ "action": "Allow" }] });
            world.profile("open", &open);
            let web = world.pod("web", "10.0.0.1", "a=x", &["open"]);
            world.pod_in("dev", "scan", "10.0.0.2", "a=scan", &json!({ "profiles": ["open"] }));
            let mut source = also.clone();
            source["namespaceSelector"] = json!(broken);
            let rules = json!([{ "action": "Deny", "source": source }, { "action": "Allow" }]);
            world.policy(
                "shop",
                "p",
                &json!({ "selector": "all()", "types": ["Ingress"], "ingress": rules }),
            );
            assert!(!world.ingress(&web, "10.0.0.2", "tcp 80"), "{broken} beside {also}");
        }
    }
}

#[test]
fn a_policy_without_a_spec_says_what_an_empty_one_says() {
    for value in [
        json!({ "metadata": { "name": "p" } }),
        json!({ "metadata": {}, "spec": null }),
        json!({ "metadata": { "labels": { "rev": 7 } }, "spec": {} }),
    ] {
        let (mut world, web, _) = world();
        world.put(crate::model::resource::Kind::NetworkPolicy, "shop", "p", &value);
        assert!(!world.ingress(&web, "10.0.0.2", "tcp 80"), "{value}");
        assert!(!world.egress(&web, "10.0.0.2", "tcp 80"), "{value}");
    }
}

#[test]
fn a_denial_in_the_place_of_a_policy_with_an_unreadable_order_comes_first() {
    let (mut world, web, _) = world();
    world.global("broken", &json!({ "order": "1", "selector": "a == 'x'", "types": ["Ingress"] }));
    world.global("open", &json!({ "order": -5, "ingress": [{ "action": "Allow" }] }));
    assert!(!world.ingress(&web, "10.0.0.2", "tcp 80"));
}
