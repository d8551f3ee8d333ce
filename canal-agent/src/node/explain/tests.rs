use serde_json::json;

use super::{
    end::Around,
    packet::{assumptions, packet},
    walk::walk,
    *,
};
use crate::{
    api::{
        explain::{DecidedBy, Walk},
        wire::{PeerStatus, Way},
    },
    compile::{reference::Reference, tests::World},
    model::{
        EndpointKey,
        resource::{Kind, Resource},
    },
};

const NODE: &str = crate::compile::tests::NODE;

fn tcp(port: u16) -> Ask {
    Ask { protocol: 6, port: Some(port), ..Ask::default() }
}

/// The walk of a connection to TCP port 80 of the endpoint.
fn ingress(world: &World, endpoint: &EndpointKey, from: &str) -> Walk {
    let to = world.address(endpoint);
    let packet = packet(&tcp(80), from.parse().unwrap(), to).unwrap();
    walk(&world.cluster, endpoint, Direction::Ingress, &packet).walk
}

/// What was met, in a line.
fn story(walk: &Walk) -> String {
    let mut words = Vec::new();
    let matched = |rules: &[crate::api::explain::MatchedRule]| {
        rules.iter().map(|r| format!(" {}:{}", r.index, r.action)).collect::<Vec<_>>().concat()
    };
    for tier in &walk.tiers {
        words.push(format!("tier {}", tier.tier));
        words.extend(tier.policies.iter().map(|p| format!("{}{}", p.name, matched(&p.matched))));
        words.extend(tier.ended.then(|| format!("end {}", tier.default_action)));
    }
    words.extend(walk.profiles.iter().map(|p| format!("profile {}{}", p.name, matched(&p.matched))));
    words.push(if walk.allow { "allow".to_owned() } else { "deny".to_owned() });
    words.join(", ")
}

#[test]
fn the_walk_names_everything_on_the_way_to_the_deciding_rule_and_nothing_behind_it() {
    let mut world = World::default();
    world.tier("first", &json!(1), "Deny").tier("second", &json!(2), "Pass").tier(
        "default",
        &json!(100),
        "Deny",
    );
    world.global("log", &json!({ "tier": "first", "order": 1, "ingress": [{ "action": "Log" }, { "action": "Log", "protocol": "UDP" }] }));
    world.global("pass", &json!({ "tier": "first", "order": 2, "ingress": [{ "action": "Deny", "protocol": "UDP" }, { "action": "Pass" }] }));
    world.global("unreached", &json!({ "tier": "first", "order": 3, "ingress": [{ "action": "Deny" }] }));
    world.global(
        "nothing",
        &json!({ "tier": "second", "ingress": [{ "action": "Deny", "protocol": "UDP" }] }),
    );
    world.global("egress-only", &json!({ "types": ["Egress"] }));
    world.policy("shop", "default.web", &json!({ "selector": "app == 'web'", "ingress": [{ "action": "Deny", "destination": { "ports": [81] }, "protocol": "TCP" }, { "action": "Allow" }, { "action": "Deny" }] }));
    world.policy(
        "shop",
        "default.other",
        &json!({ "selector": "app == 'db'", "ingress": [{ "action": "Deny" }] }),
    );
    let pod = world.pod("a", "10.0.0.1", "app=web", &["missing"]);
    let walk = ingress(&world, &pod, "10.9.9.9");
    assert_eq!(
        story(&walk),
        "tier first, log 0:Log, pass 1:Pass, tier second, nothing, end Pass, tier default, web 1:Allow, allow"
    );
    assert_eq!(walk.decided_by, DecidedBy::Rule);
    let rule = walk.rule.unwrap();
    assert_eq!(rule.to_string(), "NetworkPolicy shop/web (tier default) ingress rule 1");
    assert_eq!(rule.key, "/calico/resources/v3/projectcalico.org/networkpolicies/shop/default.web");
    assert_eq!(walk.tiers[0].policies[1].rules, 2);
}

#[test]
fn what_decides_without_a_rule_is_named() {
    let mut world = World::default();
    world.profile("open", &json!({ "ingress": [{ "action": "Log" }, { "action": "Allow" }] }));
    world.profile("empty", &json!({}));
    world.profile("passing", &json!({ "ingress": [{ "action": "Pass" }] }));
    world.tier("closed", &json!(1), "Deny");
    world.global("in-closed", &json!({ "tier": "closed", "selector": "app == 'closed'" }));
    world.global("in-nowhere", &json!({ "tier": "nowhere", "selector": "app == 'nowhere'" }));
    for (number, (labels, profiles, decided_by, told, reason)) in [
        (
            "",
            &["empty", "open"][..],
            DecidedBy::ProfileRule,
            "profile empty, profile open 0:Log 1:Allow, allow",
            "Profile open ingress rule 1",
        ),
        (
            "",
            &["passing", "open"],
            DecidedBy::ProfileRule,
            "profile passing 0:Pass, deny",
            "Profile passing ingress rule 0",
        ),
        (
            "",
            &["gone", "open"],
            DecidedBy::MissingProfile,
            "profile gone, deny",
            "profile gone does not exist",
        ),
        ("", &[], DecidedBy::NoProfile, "deny", "no profile"),
        ("", &["empty"], DecidedBy::EndOfProfiles, "profile empty, deny", "no rule of its profiles"),
        (
            "app=closed",
            &["open"],
            DecidedBy::TierDefault,
            "tier closed, in-closed, end Deny, deny",
            "default action is Deny",
        ),
        (
            "app=nowhere",
            &["open"],
            DecidedBy::TierDefault,
            "tier nowhere, in-nowhere, end Deny, deny",
            "does not exist",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let pod = world.pod(&format!("p{number}"), &format!("10.0.0.{number}"), labels, profiles);
        let walk = ingress(&world, &pod, "10.9.9.9");
        assert_eq!((story(&walk).as_str(), walk.decided_by), (told, decided_by));
        assert!(walk.reason.contains(reason), "{}", walk.reason);
        let exists = |p: &crate::api::explain::ProfileWalk| p.exists == (p.name != "gone");
        assert!(walk.profiles.iter().all(exists), "{walk:?}");
        assert!(walk.tiers.iter().all(|tier| tier.exists == (tier.tier != "nowhere")), "{walk:?}");
    }
}

#[test]
fn an_object_that_is_not_in_force_as_it_stands_is_told_with_its_problem() {
    let mut world = World::default();
    world.global("half", &json!({ "ingress": [{ "action": "Allow", "source": { "selector": "((" } }] }));
    world.global("bad", &json!({ "order": "first" }));
    let pod = world.pod("a", "10.0.0.1", "", &[]);
    let walk = ingress(&world, &pod, "10.9.9.9");
    let problems: Vec<bool> = walk.tiers[0].policies.iter().map(|policy| policy.problem.is_some()).collect();
    assert_eq!(story(&walk), "tier default, bad 0:Deny, deny");
    assert_eq!(problems, [true]);
}

#[test]
fn the_name_that_the_author_typed_is_shown_beside_the_key() {
    let mut world = World::default();
    world.tier("edge", &json!(1), "Pass");
    let put = |world: &mut World, name: &str, tier: &str, annotation: serde_json::Value| {
        let value = json!({
            "metadata": { "annotations": { "projectcalico.org/metadata": annotation } },
            "spec": { "tier": tier, "ingress": [{ "action": "Log" }] },
        });
        world.put(Kind::GlobalNetworkPolicy, "", name, &value);
    };
    put(&mut world, "default.a", "default", json!("{\"name\":\"default.a\"}"));
    put(&mut world, "default.b", "default", json!("{}"));
    put(&mut world, "edge.c", "edge", json!(7));
    put(&mut world, "defaultd", "default", json!("no json"));
    let pod = world.pod("a", "10.0.0.1", "", &[]);
    let walk = ingress(&world, &pod, "10.9.9.9");
    let names: Vec<_> = walk.tiers.iter().flat_map(|t| &t.policies).map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["edge.c", "default.a", "b", "defaultd"]);
}

#[test]
fn source_ports_are_assumed_aloud_where_a_rule_on_the_way_asks_for_them() {
    let mut world = World::default();
    let rule = json!({ "action": "Allow", "protocol": "TCP", "source": { "ports": [53] } });
    world.global("p", &json!({ "ingress": [rule], "egress": [{ "action": "Allow" }] }));
    let pod = world.pod("a", "10.0.0.1", "", &[]);
    let (a, b) = ("10.0.0.1".parse().unwrap(), "10.9.9.9".parse().unwrap());
    for (ask, direction, notes) in [
        (tcp(80), Direction::Ingress, 1),
        (tcp(80), Direction::Egress, 0),
        (Ask { src_port: Some(53), ..tcp(80) }, Direction::Ingress, 0),
        (Ask { protocol: 1, ..Ask::default() }, Direction::Ingress, 1),
        (Ask { protocol: 1, icmp_type: Some(8), ..Ask::default() }, Direction::Ingress, 0),
        (Ask { protocol: 47, ..Ask::default() }, Direction::Ingress, 0),
    ] {
        let packet = packet(&ask, b, a).unwrap();
        let walked = walk(&world.cluster, &pod, direction, &packet);
        assert_eq!(assumptions(&ask, &packet, walked.asks_src_port).len(), notes, "{ask:?}");
    }
}

#[test]
fn combinations_that_no_packet_has_are_refused_in_a_line() {
    let (a, b) = ("10.0.0.1".parse().unwrap(), "10.9.9.9".parse().unwrap());
    let icmp = Ask { protocol: 1, ..Ask::default() };
    for (ask, said) in [
        (Ask { port: Some(80), ..icmp.clone() }, "ICMP has no ports"),
        (Ask { protocol: 47, src_port: Some(1), ..Ask::default() }, "IP protocol 47 has no ports"),
        (Ask { protocol: 136, port: Some(1), ..Ask::default() }, "IP protocol 136 has no ports"),
        (Ask { port: None, ..tcp(0) }, "TCP needs a destination port"),
        (Ask { protocol: 132, ..Ask::default() }, "SCTP needs a destination port"),
        (Ask { icmp_type: Some(8), ..tcp(80) }, "TCP has no ICMP type"),
        (Ask { icmp_code: Some(0), ..icmp.clone() }, "needs a type"),
    ] {
        let error = packet(&ask, a, b).unwrap_err();
        assert!(error.contains(said) && !error.contains('\n'), "{error}");
    }
    let echo = packet(&icmp, a, b).unwrap();
    assert_eq!((echo.icmp_type, echo.icmp_code, echo.src_port), (8, 0, 0));
    assert_eq!(packet(&tcp(80), a, b).unwrap().src_port, 49152);
}

/// Two pods of this node, one of another, a host endpoint, a network set, and a lease.
fn surroundings() -> World {
    let mut world = World::default();
    for (name, address) in [("abcdef01", "10.0.1.1"), ("abcd9999", "10.0.1.2"), ("leaving0", "10.0.1.9")] {
        let spec = json!({ "containerID": name, "profiles": [] });
        world.pod_in("shop", name, address, "", &spec);
    }
    let key = |name: &str| Resource::new(Kind::WorkloadEndpoint, "bank", name).key();
    let mut put = |name: &str, value: serde_json::Value| {
        world.cluster.apply(&key(name), Some(value.to_string().as_bytes()));
    };
    put("n2-k8s-web-eth0", json!({ "spec": { "ipNetworks": ["10.0.2.1/32"], "containerID": "ffff0000" } }));
    put("n2-k8s-none-eth0", json!({ "spec": { "ipNetworks": [] } }));
    put("n3-k8s-web-eth0", json!({ "spec": { "ipNetworks": ["10.0.3.1/32"] } }));
    world.put(Kind::GlobalNetworkSet, "", "partners", &json!({ "spec": { "nets": ["203.0.113.0/24"] } }));
    world.put(
        Kind::HostEndpoint,
        "",
        "h2",
        &json!({ "spec": { "node": "n2", "expectedIPs": ["192.168.0.2"] } }),
    );
    world
}

fn around(world: &World) -> Around<'_> {
    let key = |name: &str| EndpointKey::new("shop", &format!("{NODE}-cni-{name}-eth0"));
    let local = |name, closed: Option<&str>| Local {
        key: key(name),
        closed: closed.map(str::to_owned),
        degraded: None,
    };
    let locals = [
        ("10.0.1.1".parse().unwrap(), local("abcdef01", None)),
        ("10.0.1.2".parse().unwrap(), local("abcd9999", Some("no MAC"))),
    ];
    Around {
        cluster: &world.cluster,
        node: NODE,
        locals: locals.into(),
        host: vec!["192.168.0.1".parse().unwrap(), "10.0.1.0".parse().unwrap()],
        peers: vec![PeerStatus {
            subnet: "10.0.2.0/24".parse().unwrap(),
            public_ip: "192.168.0.2".parse().unwrap(),
            vtep_mac: Some(canal_common::Mac::new([2; 6])),
            node: Some("n2".to_owned()),
            way: Way::Vxlan,
            reason: None,
        }],
        network: "10.0.0.0/16".parse().unwrap(),
    }
}

#[test]
fn pods_are_found_by_every_name_that_means_one() {
    let world = surroundings();
    let around = around(&world);
    for (text, address, place) in [
        ("10.0.1.1", "10.0.1.1", Place::Pod),
        ("shop/n1-cni-abcdef01-eth0", "10.0.1.1", Place::Pod),
        ("n1-cni-abcdef01-eth0", "10.0.1.1", Place::Pod),
        ("abcdef01", "10.0.1.1", Place::Pod),
        ("abcde", "10.0.1.1", Place::Pod),
        ("shop/abcdef01", "10.0.1.1", Place::Pod),
        ("shop/abcde", "10.0.1.1", Place::Pod),
        ("bank/n2-k8s-web-eth0", "10.0.2.1", Place::RemotePod),
        ("ffff", "10.0.2.1", Place::RemotePod),
        ("10.0.3.1", "10.0.3.1", Place::RemotePod),
    ] {
        let found = around.find(text).unwrap();
        assert_eq!((found.end.address, found.end.place), (address.parse().unwrap(), place), "{text}");
        assert_eq!(found.local.is_some(), place == Place::Pod, "{text}");
    }
    for (text, said) in [
        ("nobody", "no WorkloadEndpoint is called"),
        ("abc", "no WorkloadEndpoint is called"),
        ("bank/abcdef01", "no WorkloadEndpoint is called"),
        ("", "nobody is named"),
        ("bank/", "nobody is named"),
        ("abcd", "either of 2: shop/n1-cni-abcd9999-eth0 on n1, shop/n1-cni-abcdef01-eth0 on n1; say which"),
        ("web", "either of 2: bank/n2-k8s-web-eth0 on n2, bank/n3-k8s-web-eth0 on n3"),
        ("none", "has no IPv4 address"),
        ("fe80::1", "IPv6 is not carried"),
    ] {
        let error = around.find(text).unwrap_err();
        assert!(error.contains(said) && !error.contains('\n'), "{text}: {error}");
    }
}

#[test]
fn ends_that_are_no_pods_of_this_node_are_told_by_what_is_known_of_them() {
    let world = surroundings();
    let around = around(&world);
    for (address, place, node, said) in [
        ("10.0.2.1", Place::RemotePod, Some("n2"), "pod of n2: ask canalctl there"),
        ("192.168.0.1", Place::ThisHost, Some(NODE), "this host"),
        ("192.168.0.2", Place::OtherNode, Some("n2"), "node n2 itself; in HostEndpoint h2"),
        (
            "10.0.2.77",
            Place::Elsewhere,
            Some("n2"),
            "in the subnet of node n2, where no WorkloadEndpoint has it",
        ),
        ("10.0.7.7", Place::Elsewhere, None, "of the pod network that nobody holds"),
        ("203.0.113.9", Place::Elsewhere, None, "outside the pod network; in GlobalNetworkSet partners"),
        ("8.8.8.8", Place::Elsewhere, None, "outside the pod network"),
    ] {
        let end = around.find(address).unwrap().end;
        assert_eq!((end.place, end.node.as_deref()), (place, node), "{address}");
        assert!(end.description.contains(said), "{address}: {}", end.description);
    }
    let closed = |text: &str| around.find(text).unwrap().local.unwrap().closed;
    assert_eq!(closed("abcdef01"), None);
    assert_eq!(closed("abcd9999").as_deref(), Some("no MAC"));
    for text in ["leaving0", "10.0.1.9"] {
        assert!(closed(text).unwrap().contains("not programmed"), "{text}");
    }
}

#[test]
fn what_the_programs_do_without_policy_is_told_before_it() {
    let world = surroundings();
    let around = around(&world);
    let settings = Settings { vxlan_port: 8472, calico_vxlan_port: 4789, ..Settings::default() };
    let decided_with = |settings: &Settings, ask: &Ask, from: &str, to: &str| {
        let (from, to) = (around.find(from).unwrap(), around.find(to).unwrap());
        let packet = packet(ask, from.end.address, to.end.address).unwrap();
        before_policy(&packet, &from, &to, settings).map(|before| before.allow)
    };
    let decided = |ask: &Ask, from: &str, to: &str| decided_with(&settings, ask, from, to);
    let icmp = |kind| Ask { protocol: 1, icmp_type: Some(kind), ..Ask::default() };
    let udp = |port| Ask { protocol: 17, port: Some(port), ..Ask::default() };
    assert_eq!(decided(&tcp(80), "abcdef01", "8.8.8.8"), None);
    assert_eq!(decided(&udp(8472), "abcdef01", "8.8.8.8"), Some(Some(false)));
    assert_eq!(decided(&udp(8472), "8.8.8.8", "abcdef01"), None);
    assert_eq!(decided(&udp(4789), "abcdef01", "8.8.8.8"), Some(Some(false)));
    assert_eq!(decided(&udp(4788), "abcdef01", "8.8.8.8"), None);
    let ipip = Ask { protocol: 4, ..Ask::default() };
    assert_eq!(decided(&ipip, "abcdef01", "8.8.8.8"), Some(Some(false)));
    let lax = Settings { flags: Settings::ALLOW_POD_VXLAN | Settings::ALLOW_POD_IPIP, ..settings };
    assert_eq!(decided_with(&lax, &ipip, "abcdef01", "8.8.8.8"), None);
    assert_eq!(decided_with(&lax, &udp(4789), "abcdef01", "8.8.8.8"), None);
    for to in ["abcd9999", "10.0.2.1", "10.0.2.77"] {
        assert_eq!(decided_with(&lax, &udp(8472), "abcdef01", to), None, "{to}");
    }
    for to in ["8.8.8.8", "192.168.0.1", "192.168.0.2"] {
        assert_eq!(decided_with(&lax, &udp(8472), "abcdef01", to), Some(Some(false)), "{to}");
    }
    assert_eq!(decided(&tcp(8472), "abcdef01", "8.8.8.8"), None);
    assert_eq!(decided(&icmp(3), "abcdef01", "8.8.8.8"), Some(None));
    assert_eq!(decided(&icmp(8), "abcdef01", "8.8.8.8"), None);
    assert_eq!(decided(&tcp(80), "192.168.0.1", "abcdef01"), Some(Some(true)));
    assert_eq!(decided(&tcp(80), "192.168.0.1", "abcd9999"), Some(Some(false)));
    assert_eq!(decided(&tcp(80), "abcdef01", "192.168.0.1"), None);

    let after = |from: &str, to: &str, flags| {
        after_policy(&around.find(from).unwrap(), &around.find(to).unwrap(), flags).is_some()
    };
    let drop = Settings::DROP_TO_HOST;
    assert!(after("abcdef01", "192.168.0.1", drop) && after("abcdef01", "224.0.0.1", drop));
    assert!(!after("abcdef01", "192.168.0.1", 0) && !after("abcdef01", "192.168.0.2", drop));
    assert!(!after("192.168.0.1", "abcdef01", drop));

    let concerns =
        |from: &str, to: &str| concerns_us(&around.find(from).unwrap(), &around.find(to).unwrap(), NODE);
    assert_eq!(concerns("abcdef01", "8.8.8.8"), Ok(()));
    assert_eq!(concerns("8.8.8.8", "abcdef01"), Ok(()));
    assert!(concerns("10.0.2.1", "8.8.8.8").unwrap_err().contains("pod of n2"));
    assert!(concerns("10.0.1.1", "abcdef01").unwrap_err().contains("itself"));
}

#[test]
fn the_kernel_agrees_when_verdict_and_known_rules_are_those_of_policy() {
    let mut world = World::default();
    world.global("p", &json!({ "ingress": [{ "action": "Log" }, { "action": "Allow" }] }));
    let pod = world.pod("abcdef01", "10.0.1.1", "", &[]);
    let around = around(&world);
    let found = around.find("abcdef01").unwrap();
    let rule = |index| {
        let policy = Resource::new(Kind::GlobalNetworkPolicy, "", "p");
        Arc::new(RuleId { tier: "default".to_owned(), policy, direction: Direction::Ingress, index })
    };
    let by = |index, logs: &[u32]| {
        let logs = logs.iter().map(|index| rule(*index)).collect();
        Some(Arc::new(Final { allow: true, rule: Some(rule(index)), logs }))
    };
    let packet = packet(&tcp(80), "10.9.9.9".parse().unwrap(), found.end.address).unwrap();
    for (allow, decided, closed, agrees) in [
        (Some(true), by(1, &[0]), None, true),
        // There was no room for its name.
        (Some(true), None, None, true),
        (Some(true), by(2, &[0]), None, false),
        (Some(true), by(1, &[]), None, false),
        (Some(false), None, None, false),
        (Some(false), by(1, &[0]), None, false),
        (None, None, None, false),
        (Some(false), None, Some("no MAC"), true),
        (Some(true), by(1, &[0]), Some("no MAC"), false),
    ] {
        let local = Local { key: pod.clone(), closed: closed.map(str::to_owned), degraded: None };
        let answer = Answer { allow, rule: None, logs: Vec::new(), reason: None };
        let walked = walk(&world.cluster, &pod, Direction::Ingress, &packet);
        let answered = Answered { answer, decided: decided.clone() };
        let told = judgement(&found, &local, Direction::Ingress, walked, answered);
        assert_eq!(told.agrees, agrees, "{allow:?} {decided:?} {closed:?}");
    }
}

#[test]
fn only_the_objects_of_the_two_addresses_are_needed_for_a_verdict() {
    let mut world = World::default();
    let source = json!({ "selector": "app == 'web' || set == 'x'" });
    world.global("p", &json!({ "ingress": [{ "action": "Allow", "source": source }] }));
    let pod = world.pod("a", "10.0.0.1", "", &[]);
    world.pod("b", "10.0.0.2", "app=web", &[]);
    let set = json!({ "metadata": { "labels": { "set": "x" } }, "spec": { "nets": ["203.0.113.0/24"] } });
    world.put(Kind::GlobalNetworkSet, "", "s", &set);
    for (from, allow) in
        [("10.0.0.2", true), ("10.0.0.3", false), ("203.0.113.9", true), ("203.0.114.9", false)]
    {
        let packet = packet(&tcp(80), from.parse().unwrap(), world.address(&pod)).unwrap();
        let whole = Reference::new(&world.cluster).judge(&pod, Direction::Ingress, &packet);
        assert_eq!(walk(&world.cluster, &pod, Direction::Ingress, &packet).verdict, whole, "{from}");
        assert_eq!(whole.allow, allow, "{from}");
    }
}
