//! What Calico's clients refuse to write, found in a store all the same.

use serde_json::{Value, json};

use crate::model::{
    EndpointKey, WorkloadEndpoint,
    host::HostEndpoint,
    netset::NetworkSet,
    policy::Policy,
    reading::Reading,
    resource::{Kind, Resource},
    rule::Rule,
    tier::Tier,
};

fn bytes(spec: &Value) -> Vec<u8> {
    json!({ "spec": spec }).to_string().into_bytes()
}

fn global(name: &str) -> Resource {
    Resource::new(Kind::GlobalNetworkPolicy, "", name)
}

fn policy(spec: &Value) -> Reading<Policy> {
    Policy::read(&global("p"), &bytes(spec))
}

/// The rule as it is in force, and what is found fault with.
fn rule(direction: &str, rule: &Value) -> (Rule, String) {
    let (policy, reason) = match policy(&json!({ direction: [rule] })) {
        Reading::Good(policy) => (policy, String::new()),
        Reading::Partly(policy, reason) => (policy, reason),
        other @ Reading::Bad { .. } => panic!("{rule}: {other:?}"),
    };
    let rules = if direction == "ingress" { policy.ingress } else { policy.egress };
    (rules.unwrap()[0].clone(), reason)
}

#[test]
fn a_policy_whose_name_nobody_could_have_given_it_denies_in_its_place() {
    let spec = json!({ "selector": "has(a)", "types": ["Ingress"], "ingress": [{ "action": "Allow" }] });
    for (name, good) in [
        ("allow-web", true),
        ("default.allow-web", true),
        ("knp.default.x.y", true),
        ("Allow", false),
        ("a_b", false),
        ("a/b", false),
    ] {
        match Policy::read(&global(name), &bytes(&spec)) {
            Reading::Good(_) => assert!(good, "{name}"),
            Reading::Bad { reason, stand_in } => {
                assert!(!good && reason.starts_with("name: "), "{name}: {reason}");
                let stand_in = stand_in.unwrap();
                assert!(stand_in.ingress.is_some() && stand_in.egress.is_none());
            }
            other @ Reading::Partly(..) => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn a_tier_is_a_label_and_a_policy_of_one_that_cannot_be_is_named() {
    let tier = |name: &str| Tier::read(&Resource::new(Kind::Tier, "", name), &bytes(&json!({ "order": 1 })));
    assert!(matches!(tier("kube-admin"), Reading::Good(_)));
    for name in ["a.b", "A", &"a".repeat(64)] {
        assert!(matches!(tier(name), Reading::Bad { .. }), "{name}");
    }
    match policy(&json!({ "tier": "a.b" })) {
        Reading::Partly(policy, reason) => {
            assert!(policy.tier == "a.b" && reason.contains("missing tier"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_for_host_endpoints_has_its_own_conditions() {
    for (spec, good) in [
        (json!({ "preDNAT": true, "applyOnForward": true, "types": ["Ingress"] }), true),
        (json!({ "doNotTrack": true, "applyOnForward": true }), true),
        (json!({ "applyOnForward": true }), true),
        (json!({ "preDNAT": true, "types": ["Ingress"] }), false),
        (json!({ "doNotTrack": true }), false),
        (json!({ "preDNAT": true, "applyOnForward": true, "types": ["ingress", "egress"] }), false),
        (json!({ "preDNAT": true, "applyOnForward": true, "egress": [{ "action": "Allow" }] }), false),
        (json!({ "preDNAT": true, "doNotTrack": true, "applyOnForward": true, "types": ["Ingress"] }), false),
    ] {
        match policy(&spec) {
            Reading::Good(_) => assert!(good, "{spec}"),
            Reading::Bad { reason, .. } => assert!(!good && reason.contains("preDNAT"), "{spec}: {reason}"),
            other @ Reading::Partly(..) => panic!("{spec}: {other:?}"),
        }
    }
}

#[test]
fn a_namespaced_policy_cannot_be_taken_away_from_pods() {
    let spec = json!({ "preDNAT": true, "doNotTrack": true, "applyOnForward": true });
    let resource = Resource::new(Kind::NetworkPolicy, "shop", "p");
    match Policy::read(&resource, &bytes(&spec)) {
        Reading::Good(policy) => {
            assert!(!policy.pre_dnat && !policy.do_not_track && !policy.apply_on_forward);
        }
        other => panic!("{other:?}"),
    }
    let broken = json!({ "doNotTrack": true, "ingress": 1 });
    match Policy::read(&resource, &bytes(&broken)) {
        Reading::Bad { stand_in: Some(policy), .. } => assert!(!policy.do_not_track),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_criterion_that_contradicts_another_never_opens() {
    for criteria in [
        json!({ "ipVersion": 6, "protocol": "ICMP" }),
        json!({ "ipVersion": 4, "protocol": "ICMPv6" }),
        json!({ "ipVersion": 4, "source": { "nets": ["2001:db8::/32"] } }),
        json!({ "ipVersion": 6, "destination": { "notNets": ["10.0.0.0/8"] } }),
        json!({ "protocol": "ICMP", "source": { "nets": ["2001:db8::/32"] } }),
        json!({ "source": { "nets": ["10.0.0.0/8", "2001:db8::/32"] } }),
        json!({ "source": { "nets": ["10.0.0.0/8"] }, "destination": { "notNets": ["2001:db8::/32"] } }),
        json!({ "source": { "notNets": ["0.0.0.0/0"] } }),
        json!({ "destination": { "notNets": ["10.0.0.0/8", "::/0"] } }),
        json!({ "icmp": { "type": 8 } }),
        json!({ "protocol": "TCP", "icmp": { "type": 8 } }),
        json!({ "protocol": 1, "icmp": { "code": 8 } }),
        json!({ "protocol": 1, "icmp": { "type": 255 } }),
        json!({ "protocol": "ICMP", "notICMP": { "type": 8, "code": 256 } }),
        json!({ "destination": { "ports": [80] } }),
        json!({ "protocol": "UDPLite", "destination": { "ports": [80] } }),
        json!({ "protocol": "ICMP", "source": { "ports": ["http"] } }),
        json!({ "notProtocol": "TCP", "source": { "notPorts": ["1:2"] } }),
        json!({ "source": { "selector": "global()" } }),
        json!({ "source": { "namespaceSelector": "global() && has(a)" } }),
        json!({ "http": { "methods": ["GET"] } }),
    ] {
        for direction in ["ingress", "egress"] {
            for action in ["Allow", "Pass", "Log"] {
                let mut value = criteria.clone();
                value["action"] = json!(action);
                let (rule, reason) = rule(direction, &value);
                assert!(rule.inert && reason.ends_with("the rule never matches"), "{value}: {reason}");
            }
            let mut value = criteria.clone();
            value["action"] = json!("Deny");
            let (rule, reason) = rule(direction, &value);
            assert!(!rule.inert && !reason.is_empty(), "{value}: {reason}");
        }
    }
}

#[test]
fn a_deny_rule_goes_on_without_the_criterion_that_makes_no_sense() {
    let deny = |mut criteria: Value| {
        criteria["action"] = json!("Deny");
        rule("ingress", &criteria).0
    };
    let plain = deny(json!({}));
    assert_eq!(deny(json!({ "source": { "notNets": ["10.0.0.0/8", "0.0.0.0/0"] } })), plain);
    assert_eq!(deny(json!({ "ipVersion": 6, "protocol": "ICMP" })), deny(json!({ "protocol": "ICMP" })));
    assert_eq!(
        deny(json!({ "ipVersion": 4, "source": { "nets": ["2001:db8::/32"] } })),
        deny(json!({ "ipVersion": 4 }))
    );
    // This one makes sense: each version by its own nets.
    let both = deny(json!({ "source": { "nets": ["10.0.0.0/8", "2001:db8::/32"] } }));
    assert_eq!(both.source.nets.len(), 2);
}

#[test]
fn criteria_that_fit_each_other_are_not_found_fault_with() {
    for criteria in [
        json!({ "ipVersion": 4, "protocol": "ICMP", "source": { "nets": ["10.0.0.0/8"], "notNets": ["10.1.0.0/16"] } }),
        json!({ "ipVersion": 6, "protocol": "ICMPv6", "icmp": { "type": 128, "code": 0 } }),
        json!({ "protocol": 58, "notICMP": { "type": 254, "code": 255 }, "source": { "nets": ["2001:db8::/32"] } }),
        json!({ "protocol": 132, "destination": { "ports": [0, "1:65535"] } }),
        json!({ "source": { "namespaceSelector": "global()" } }),
        json!({ "destination": { "notNets": ["0.0.0.0/1", "128.0.0.0/1"] } }),
    ] {
        let mut value = criteria.clone();
        value["action"] = json!("Allow");
        let (rule, reason) = rule("egress", &value);
        assert!(!rule.inert && reason.is_empty(), "{value}: {reason}");
    }
}

#[test]
fn services_match_nothing_and_stand_in_one_place_alone() {
    let service = json!({ "name": "web", "namespace": "shop" });
    for (direction, side) in [("ingress", "source"), ("egress", "destination")] {
        for action in ["Allow", "Deny"] {
            let (rule, reason) = rule(direction, &json!({ "action": action, side: { "services": service } }));
            assert!(rule.inert && reason.contains("services are not known here"), "{reason}");
        }
        // A mistake is not a service that has no endpoints: a Deny rule goes on without it.
        for company in [
            json!({ "nets": ["10.0.0.0/8"] }),
            json!({ "notNets": ["10.0.0.0/8"] }),
            json!({ "selector": "has(a)" }),
            json!({ "notSelector": "has(a)" }),
            json!({ "namespaceSelector": "has(a)" }),
            json!({ "serviceAccounts": { "names": ["a"] } }),
            json!({ "ports": ["http"] }),
        ] {
            let mut entity = company.clone();
            entity["services"] = service.clone();
            let (rule, reason) = rule(direction, &json!({ "action": "Deny", side: entity }));
            assert!(!rule.inert && reason.contains("stand alone"), "{company}: {reason}");
        }
    }
    for (direction, side) in [("ingress", "destination"), ("egress", "source")] {
        let value = |action: &str| json!({ "action": action, side: { "services": service } });
        let (denies, reason) = rule(direction, &value("Deny"));
        assert!(!denies.inert && reason.contains("source of ingress"), "{reason}");
        assert!(rule(direction, &value("Allow")).0.inert);
    }
}

#[test]
fn a_network_set_cannot_claim_a_namespace() {
    let read = |kind: Kind, namespace: &str, claim: Option<&str>| {
        let labels = claim.map(|claim| json!({ "projectcalico.org/namespace": claim, "a": "b" }));
        let value = json!({ "metadata": { "labels": labels }, "spec": { "nets": ["10.0.0.0/8"] } });
        NetworkSet::read(&Resource::new(kind, namespace, "s"), value.to_string().as_bytes())
    };
    for (reading, namespace) in [
        (read(Kind::NetworkSet, "shop", Some("bank")), Some("shop")),
        (read(Kind::GlobalNetworkSet, "", Some("bank")), None),
    ] {
        match reading {
            Reading::Partly(set, reason) => {
                assert!(reason.contains("projectcalico.org/namespace"), "{reason}");
                let label = set.labels.get("projectcalico.org/namespace").map(String::as_str);
                assert_eq!((label, set.labels.contains_key("a"), set.nets.len()), (namespace, true, 1));
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(read(Kind::NetworkSet, "shop", Some("shop")), Reading::Good(_)));
    assert!(matches!(read(Kind::NetworkSet, "shop", None), Reading::Good(_)));
}

#[test]
fn a_host_endpoint_says_where_it_is() {
    let read = |spec: Value| HostEndpoint::read(&bytes(&spec));
    for (spec, interface) in [
        (json!({ "node": "a", "interfaceName": "eth0" }), Some("eth0")),
        (json!({ "node": "a", "interfaceName": "*", "expectedIPs": ["192.0.2.1"] }), Some("*")),
        (json!({ "node": "a", "expectedIPs": ["192.0.2.1", "2001:db8::1"] }), None),
    ] {
        match read(spec.clone()) {
            Reading::Good(host) => {
                assert_eq!((host.interface.as_deref(), host.node.as_str()), (interface, "a"));
            }
            other => panic!("{spec}: {other:?}"),
        }
    }
    for spec in [
        json!({ "node": "a" }),
        json!({ "node": "a", "interfaceName": "", "expectedIPs": [] }),
        json!({ "node": "a", "interfaceName": "eth/0" }),
        json!({ "node": "a", "interfaceName": "e".repeat(16) }),
    ] {
        assert!(matches!(read(spec.clone()), Reading::Bad { .. }), "{spec}");
    }
    let partly = json!({ "interfaceName": "eth0", "expectedIPs": ["192.0.2.0/24"], "ports": [
        { "name": "a b", "protocol": "TCP", "port": 1 }, { "name": "x", "protocol": "ICMP", "port": 1 },
        { "name": "y", "protocol": "TCP", "port": 0 }, { "name": "z", "protocol": "UDP", "port": 53 },
    ] });
    match read(partly) {
        Reading::Partly(host, reason) => {
            assert_eq!((host.addresses.len(), host.ports.len()), (0, 1));
            for part in ["node: missing", "192.0.2.0/24", "\"a b\"", "\"x\"", "\"y\""] {
                assert!(reason.contains(part), "{part}: {reason}");
            }
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn parts_of_an_endpoint_that_cannot_be_are_left_out_and_named() {
    let key = EndpointKey::new("shop", "n-cni-c-eth0");
    let spec = json!({ "node": "other", "interfaceName": "a/b", "ipNetworks": ["10.0.0.1/32"],
        "allowSpoofedSourcePrefixes": ["10.9.0.0/16", "x"] });
    match WorkloadEndpoint::read(&key, &bytes(&spec)) {
        Reading::Partly(endpoint, reason) => {
            assert_eq!((endpoint.node.as_str(), endpoint.interface_name.as_str()), ("n", ""));
            assert_eq!(endpoint.spoofed, ["10.9.0.0/16".parse().unwrap()]);
            for part in ["node: \"other\"", "interfaceName: \"a/b\"", "allowSpoofedSourcePrefixes: \"x\""] {
                assert!(reason.contains(part), "{part}: {reason}");
            }
        }
        other => panic!("{other:?}"),
    }
}
