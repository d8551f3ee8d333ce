use canal_common::Mac;
use serde_json::{Value, json};

use super::{
    Change, Cluster, EndpointKey, WorkloadEndpoint,
    endpoint::{Birth, EndpointName},
    pod::{Pod, PodPort},
    policy::{Order, Policy},
    profile,
    reading::Reading,
    resource::{Kind, PREFIX, Resource},
    rule::{Action, Icmp, Port, Protocol, parse_port},
};

mod admission;
mod endpoints;

const STORE: &str = include_str!("testdata/store.txt");

/// The value that a real cluster has at a key.
fn stored(rest: &str) -> &'static str {
    let key = format!("{PREFIX}{rest}");
    let mut lines = STORE.lines().skip_while(|line| *line != key);
    lines.nth(1).unwrap()
}

fn birth_of(value: &str) -> Birth {
    let value: Value = serde_json::from_str(value).unwrap();
    let text = |name: &str| value["metadata"][name].as_str().unwrap().to_owned();
    Birth { uid: text("uid"), creation_timestamp: text("creationTimestamp") }
}

fn read_policy(spec: &Value) -> Reading<Policy> {
    let resource = Resource::new(Kind::GlobalNetworkPolicy, "", "p");
    Policy::read(&resource, json!({ "spec": spec }).to_string().as_bytes())
}

fn good_policy(spec: &Value) -> Policy {
    match read_policy(spec) {
        Reading::Good(policy) => policy,
        other => panic!("{spec}: {other:?}"),
    }
}

mod rules {
    use super::*;

    #[test]
    fn ports_are_numbers_ranges_or_names() {
        for (raw, port) in [
            (json!(0), Port::Range(0, 0)),
            (json!(65535), Port::Range(65535, 65535)),
            (json!("80"), Port::Range(80, 80)),
            (json!("80:90"), Port::Range(80, 90)),
            (json!("0:65535"), Port::Range(0, 65535)),
            (json!("http"), Port::Name("http".to_owned())),
            (json!("8080-tcp"), Port::Name("8080-tcp".to_owned())),
            (json!("-1"), Port::Name("-1".to_owned())),
            (json!("a_b.c"), Port::Name("a_b.c".to_owned())),
        ] {
            assert_eq!(parse_port(&raw), Ok(port), "{raw}");
        }
        for raw in [
            json!(-1),
            json!(65536),
            json!(1.5),
            json!(null),
            json!(true),
            json!(""),
            json!("70000"),
            json!("9:1"),
            json!("1:"),
            json!(":1"),
            json!("1:2:3"),
            json!("+1:2"),
            json!("a b"),
            json!("é"),
            json!("x".repeat(129)),
        ] {
            assert!(parse_port(&raw).is_err(), "{raw}");
        }
    }

    #[test]
    fn every_criterion_of_a_rule_is_read() {
        let policy = good_policy(&json!({ "ingress": [
            { "action": "Allow", "ipVersion": 4, "protocol": "ICMP", "icmp": { "type": 3, "code": 1 }, "notICMP": { "type": 8 },
              "metadata": { "annotations": { "why": "x" } } },
            { "action": "pass", "protocol": "sctp", "notProtocol": 6,
              "source": { "nets": ["10.0.0.1/8"], "notNets": ["10.1.0.0/16"], "selector": "has(a)", "notSelector": "has(b)",
                          "namespaceSelector": "global()", "serviceAccounts": { "names": ["sa"], "selector": null },
                          "ports": [1], "notPorts": ["http"] } },
        ], "egress": null }));
        let rules = policy.ingress.unwrap();
        assert_eq!(rules[0].protocol, Some(Protocol { number: 1, ip_version: Some(4) }));
        assert_eq!(rules[0].icmp, Some(Icmp { icmp_type: 3, code: Some(1) }));
        assert_eq!(rules[0].not_icmp, Some(Icmp { icmp_type: 8, code: None }));
        assert_eq!((rules[1].action, rules[1].not_protocol.unwrap().number), (Action::Pass, 6));
        let source = &rules[1].source;
        assert_eq!(
            (source.nets[0].to_string(), source.not_nets[0].to_string()),
            ("10.0.0.0/8".into(), "10.1.0.0/16".into())
        );
        assert_eq!(source.selector.as_ref().unwrap().canonical(), "has(a)");
        assert_eq!(source.not_selector.as_ref().unwrap().canonical(), "has(b)");
        assert!(source.namespace_selector.as_ref().unwrap().is_global());
        assert_eq!(source.service_accounts.as_ref().unwrap().names, ["sa"]);
        assert_eq!((source.ports.len(), source.not_ports.len()), (1, 1));
        assert!(rules.iter().all(|rule| !rule.inert));
    }

    #[test]
    fn null_stands_for_absent_everywhere() {
        let rule = json!({ "action": "Allow", "protocol": null, "notProtocol": null, "icmp": null, "notICMP": null,
            "ipVersion": null, "http": null, "metadata": null, "destination": null,
            "source": { "nets": null, "notNets": null, "selector": null, "notSelector": null, "namespaceSelector": null,
                        "serviceAccounts": null, "services": null, "ports": null, "notPorts": null } });
        let policy = good_policy(&json!({ "tier": null, "order": null, "selector": null, "types": null,
            "ingress": [rule], "egress": null, "doNotTrack": null, "applyOnForward": null, "preDNAT": null,
            "serviceAccountSelector": null, "namespaceSelector": null, "performanceHints": null }));
        assert_eq!((policy.tier.as_str(), policy.order, policy.selector), ("default", Order::LAST, None));
        assert_eq!(
            policy.ingress.unwrap()[0],
            good_policy(&json!({ "ingress": [{ "action": "Allow" }] })).ingress.unwrap()[0]
        );
        assert_eq!(policy.egress.unwrap().len(), 0);
    }

    #[test]
    fn an_unknown_action_denies() {
        for action in [json!("Reject"), json!(""), json!(null)] {
            match read_policy(&json!({ "ingress": [{ "action": action }] })) {
                Reading::Partly(policy, _) => assert_eq!(policy.ingress.unwrap()[0].action, Action::Deny),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_named_port_needs_no_protocol_and_a_number_does() {
        assert!(matches!(
            read_policy(&json!({ "ingress": [{ "action": "Allow", "destination": { "ports": ["http"] } }] })),
            Reading::Good(_)
        ));
        match read_policy(&json!({ "ingress": [{ "action": "Allow", "destination": { "ports": [80] } }] })) {
            Reading::Partly(policy, reason) => {
                assert!(policy.ingress.unwrap()[0].inert);
                assert_eq!(
                    reason,
                    "ingress rule 0: ports: need protocol TCP, UDP or SCTP; the rule never matches"
                );
            }
            other => panic!("{other:?}"),
        }
    }
}

mod cluster {
    use super::*;

    fn key(kind: Kind, namespace: &str, name: &str) -> String {
        Resource::new(kind, namespace, name).key()
    }

    fn policy_key() -> String {
        key(Kind::GlobalNetworkPolicy, "", "p")
    }

    fn policies(cluster: &Cluster) -> Vec<Policy> {
        cluster.policies().map(|(_, policy)| (**policy).clone()).collect()
    }

    #[test]
    fn a_bad_value_keeps_the_last_good_version_until_a_good_value_or_a_delete() {
        let mut cluster = Cluster::default();
        let good = json!({ "spec": { "order": 1, "selector": "has(a)" } }).to_string();
        cluster.apply(&policy_key(), Some(good.as_bytes()));
        let before = policies(&cluster);
        for bad in [
            "{\"spec\":{\"order\":2,",
            "[]",
            "{}",
            r#"{"spec":{"order":"x"}}"#,
            r#"{"spec":{"selector":"a = b"}}"#,
            "\u{0}",
        ] {
            assert_eq!(cluster.apply(&policy_key(), Some(bad.as_bytes())), Change::None, "{bad}");
            assert_eq!(policies(&cluster), before);
            let reason = &cluster.invalid()[&policy_key()];
            assert!(
                reason.ends_with("the last good version stays in force") && reason.lines().count() == 1,
                "{reason}"
            );
        }
        assert_eq!(cluster.apply(&policy_key(), Some(good.as_bytes())), Change::None);
        assert!(cluster.invalid().is_empty());
        cluster.apply(&policy_key(), Some(b"x"));
        assert_eq!(cluster.apply(&policy_key(), None), Change::Object(Kind::GlobalNetworkPolicy));
        assert!(cluster.invalid().is_empty() && policies(&cluster).is_empty());
    }

    #[test]
    fn a_policy_that_was_never_good_denies_whom_it_selects_in_its_place() {
        let mut cluster = Cluster::default();
        let bad = json!({ "spec": { "tier": "t", "order": 7, "selector": "has(a)", "types": ["Egress"], "egress": "all" } });
        cluster.apply(&policy_key(), Some(bad.to_string().as_bytes()));
        let stand_in = &policies(&cluster)[0];
        assert_eq!((stand_in.tier.as_str(), stand_in.order), ("t", Order::new(Some(7.0))));
        assert_eq!(stand_in.selector.as_ref().unwrap().canonical(), "has(a)");
        assert!(stand_in.ingress.is_none());
        assert_eq!(stand_in.egress.as_ref().unwrap()[0].action, Action::Deny);
        assert_eq!(cluster.invalid().len(), 1);
        // The next bad version is no better, and stands in for itself.
        let worse = json!({ "spec": { "selector": "has(b)", "egress": 1 } });
        cluster.apply(&policy_key(), Some(worse.to_string().as_bytes()));
        let stand_in = &policies(&cluster)[0];
        assert_eq!(stand_in.selector.as_ref().unwrap().canonical(), "has(b)");
        assert!(stand_in.ingress.is_some() && stand_in.egress.is_some());
    }

    #[test]
    fn a_policy_that_does_not_say_whom_it_selects_is_left_out_and_named() {
        for bad in ["{", r#"{"spec":null}"#, r#"{"spec":{"selector":"(((("}}"#, r#"{"spec":{"selector":7}}"#]
        {
            let mut cluster = Cluster::default();
            assert_eq!(cluster.apply(&policy_key(), Some(bad.as_bytes())), Change::None);
            assert!(policies(&cluster).is_empty(), "{bad}");
            assert!(cluster.invalid().contains_key(&policy_key()));
        }
    }

    #[test]
    fn one_bad_object_does_not_hide_the_others() {
        let mut cluster = Cluster::default();
        cluster.apply(&key(Kind::NetworkPolicy, "shop", "bad"), Some(b"{\"spec"));
        cluster.apply(&policy_key(), Some(br#"{"spec":{}}"#));
        assert_eq!(policies(&cluster).len(), 1);
    }

    #[test]
    fn a_network_set_with_a_bad_entry_keeps_the_last_good_version_or_what_can_be_read() {
        let mut cluster = Cluster::default();
        let set = key(Kind::NetworkSet, "shop", "s");
        let nets = |cluster: &Cluster| -> Vec<String> {
            cluster.network_sets().flat_map(|(_, set)| set.ipv4_nets()).map(|net| net.to_string()).collect()
        };
        cluster.apply(&set, Some(br#"{"spec":{"nets":["10.0.0.0/8","10.0.0.0/x"]}}"#));
        assert_eq!(nets(&cluster), ["10.0.0.0/8"]);
        cluster.apply(&set, Some(br#"{"spec":{"nets":["10.0.0.7","2001:db8::/32"]}}"#));
        assert_eq!(nets(&cluster), ["10.0.0.7/32"]);
        cluster.apply(&set, Some(br#"{"spec":{"nets":["x"]}}"#));
        assert_eq!(nets(&cluster), ["10.0.0.7/32"]);
        assert_eq!(cluster.invalid().len(), 1);
    }

    #[test]
    fn a_complete_list_removes_what_it_does_not_hold_and_keeps_local_endpoints() {
        let mut cluster = Cluster::default();
        let endpoint = EndpointKey::new("shop", "n-cni-c-eth0");
        cluster.apply(&policy_key(), Some(br#"{"spec":{}}"#));
        cluster.apply(&key(Kind::Tier, "", "t"), Some(b"bad"));
        cluster.apply(&endpoint.store_key(), Some(br#"{"spec":{"ipNetworks":["10.0.0.1/32"]}}"#));
        let local = WorkloadEndpoint { node: "n".to_owned(), ..WorkloadEndpoint::default() };
        cluster.set_local_endpoint(endpoint.clone(), Some(local));
        cluster.replace_all([(key(Kind::Tier, "", "u"), br#"{"spec":{}}"#.to_vec())].into_iter());
        assert!(policies(&cluster).is_empty() && cluster.invalid().is_empty());
        assert!(cluster.tier("u").is_some());
        assert_eq!(cluster.endpoints_of("n").count(), 1);
        cluster.set_local_endpoint(endpoint, None);
        assert_eq!(cluster.endpoints().count(), 0);
    }

    #[test]
    fn what_a_store_lost_stays_in_force_until_something_stands_in_its_place() {
        let mut cluster = Cluster::default();
        let pod = |name: &str| EndpointKey::new("shop", &format!("n-cni-{name}-eth0"));
        let at = |address: u8| format!(r#"{{"spec":{{"ipNetworks":["10.0.0.{address}/32"]}}}}"#).into_bytes();
        let empty = br#"{"spec":{}}"#;
        let (tier, profile) = (key(Kind::Tier, "", "t"), key(Kind::Profile, "", "p"));
        for lost in [&policy_key(), &tier, &profile, &key(Kind::GlobalNetworkSet, "", "s")] {
            cluster.apply(lost, Some(empty));
        }
        cluster.apply(&key(Kind::Profile, "", "bad"), Some(b"bad"));
        for (name, address) in [("a", 1), ("b", 2), ("own", 3)] {
            cluster.apply(&pod(name).store_key(), Some(&at(address)));
        }
        cluster.set_local_endpoint(pod("own"), Some(WorkloadEndpoint::default()));
        cluster.take_changes();

        cluster.begin_again([(tier.clone(), empty.to_vec())].into_iter());
        let remembered = |cluster: &Cluster| -> Vec<String> {
            cluster.remembered().iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            remembered(&cluster),
            [
                "GlobalNetworkPolicy p",
                "Profile p",
                "WorkloadEndpoint shop/n-cni-a-eth0",
                "WorkloadEndpoint shop/n-cni-b-eth0",
                "GlobalNetworkSet s"
            ]
        );
        assert!(cluster.take_changes().is_empty(), "nobody notices");
        assert!(cluster.invalid().is_empty(), "what was of no use is gone");
        assert!(!cluster.is_stored(&pod("a")) && !cluster.is_stored(&pod("own")));

        // A list of the same store later takes away what that store had, and nothing else.
        cluster.replace_all(std::iter::empty());
        assert!(cluster.tier("t").is_none() && cluster.profile("p").is_some());
        // Written again, written and deleted, and an address that somebody else has now.
        cluster.apply(&policy_key(), Some(empty));
        cluster.apply(&profile, Some(empty));
        cluster.apply(&profile, None);
        assert!(cluster.profile("p").is_none());
        cluster.apply(&pod("c").store_key(), Some(&at(1)));
        assert!(cluster.endpoint(&pod("a")).is_none() && cluster.is_stored(&pod("c")));
        let local = WorkloadEndpoint { addresses: vec![[10, 0, 0, 2].into()], ..WorkloadEndpoint::default() };
        cluster.set_local_endpoint(pod("d"), Some(local));
        assert_eq!(remembered(&cluster), ["GlobalNetworkSet s"]);
        assert_eq!(cluster.endpoints().count(), 3, "c, d and the own one");
        let changed = cluster.take_changes();
        for name in ["a", "b"] {
            assert!(changed.contains(&pod(name).resource()), "{changed:?}");
        }
    }

    #[test]
    fn the_holders_of_an_address_follow_the_endpoints_in_force() {
        let mut cluster = Cluster::default();
        let key = |name: &str| EndpointKey::new("shop", &format!("n-cni-{name}-eth0"));
        let put = |cluster: &mut Cluster, name: &str, nets: &str| {
            cluster.apply(
                &key(name).store_key(),
                Some(format!(r#"{{"spec":{{"ipNetworks":[{nets}]}}}}"#).as_bytes()),
            );
        };
        let holders = |cluster: &Cluster, address: [u8; 4]| -> Vec<String> {
            cluster.endpoints_at(address.into()).map(|(_, endpoint)| endpoint.workload.clone()).collect()
        };
        put(&mut cluster, "b", r#""10.0.0.1/32","10.0.0.2/32""#);
        put(&mut cluster, "a", r#""10.0.0.1/32""#);
        assert_eq!(holders(&cluster, [10, 0, 0, 1]), ["a", "b"]);
        assert_eq!(holders(&cluster, [10, 0, 0, 2]), ["b"]);
        put(&mut cluster, "b", r#""10.0.0.2/32","10.0.0.3/32""#);
        let all = |cluster: &Cluster| [1, 2, 3].map(|n| holders(cluster, [10, 0, 0, n]).concat());
        assert_eq!(all(&cluster), ["a", "b", "b"]);
        let local = WorkloadEndpoint {
            workload: "local".to_owned(),
            addresses: vec![[10, 0, 0, 3].into()],
            ..WorkloadEndpoint::default()
        };
        cluster.set_local_endpoint(key("b"), Some(local));
        assert_eq!(all(&cluster), ["a", "", "local"]);
        cluster.set_local_endpoint(key("b"), None);
        assert_eq!(all(&cluster), ["a", "b", "b"]);
        cluster.apply(&key("b").store_key(), None);
        assert_eq!(all(&cluster), ["a", "", ""]);
    }

    #[test]
    fn keys_that_mean_nothing_change_nothing() {
        let mut cluster = Cluster::default();
        for key in [
            "",
            "/",
            "/calico/ipam/v2/config",
            "/calico/resources/v3/projectcalico.org/bgppeers/x",
            "/coreos.com/network/config",
        ] {
            assert_eq!(cluster.apply(key, Some(b"garbage")), Change::None);
        }
        assert!(cluster.invalid().is_empty());
    }

    #[test]
    fn every_prefix_of_every_real_value_is_survived() {
        let lines: Vec<&str> = STORE.lines().collect();
        for pair in lines.chunks(2) {
            let mut cluster = Cluster::default();
            for end in 0..pair[1].len() {
                cluster.apply(pair[0], Some(&pair[1].as_bytes()[..end]));
            }
            cluster.apply(pair[0], Some(pair[1].as_bytes()));
            assert!(cluster.invalid().is_empty());
        }
    }
}
