//! Wrong calls, and what each of the plugin's answers says.

use bpf_tests::{Cmd, Host, World, agent::binary, pod};
use serde_json::{Value, json};

use super::{Call, config, leases, netns, veths};
use crate::{one_node, soon};

/// What is wrong, the call, its code, and words of its message.
type Case<'a> = (&'a str, Call<'a>, u64, &'a [&'a str]);

#[test]
fn each_wrong_call_has_its_code_and_message_and_leaves_nothing() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    let pod = netns(&world, "p");
    let add = || Call::new(node, "ADD", &pod, "p");
    let with = |config: Value| Call { config: config.to_string(), ..add() };
    let changed = |field: &str, value: Value| {
        let mut config = config(node, "1.0.0");
        config[field] = value;
        with(config)
    };
    let cases: [Case<'_>; 13] = [
        (
            "garbage",
            Call { config: "\u{1}garbage{".to_owned(), ..add() },
            6,
            &["cannot read the network configuration"],
        ),
        ("nothing", Call { config: String::new(), ..add() }, 6, &["standard input is empty"]),
        (
            "truncated",
            Call { config: config(node, "1.0.0").to_string()[..40].to_owned(), ..add() },
            6,
            &["EOF"],
        ),
        ("not an object", with(json!([1])), 6, &["not an object"]),
        ("unknown version", changed("cniVersion", json!("9.9.9")), 1, &["9.9.9", "not supported", "1.0.0"]),
        ("no version", changed("cniVersion", Value::Null), 1, &["cniVersion"]),
        ("no name", changed("name", json!("")), 7, &["name"]),
        ("another IPAM", changed("ipam", json!({"type": "dhcp"})), 7, &["dhcp", "host-local"]),
        (
            "no netns",
            Call { netns: "/run/netns/no-such".to_owned(), ..add() },
            3,
            &["no network namespace", "no-such"],
        ),
        (
            "the host's netns",
            Call { netns: node.netns().path().display().to_string(), ..add() },
            4,
            &["host's network namespace"],
        ),
        ("bad container", Call { id: "../escape".to_owned(), ..add() }, 4, &["CNI_CONTAINERID"]),
        ("unknown verb", Call { verb: "REMOVE", ..add() }, 4, &["CNI_COMMAND", "REMOVE", "ADD"]),
        (
            "no subnet file",
            changed("subnetFile", json!("/no/such/subnet.env")),
            101,
            &["no subnet", "/no/such/subnet.env", "canal-agent"],
        ),
    ];
    for (what, call, code, words) in cases {
        let said = call.fails_with(code);
        for word in words {
            assert!(said.contains(word), "{what}: {word:?} is not in: {said}");
        }
    }
    let said = Call { path: "/no/such/folder".to_owned(), ..add() }.fails_with(102);
    assert!(said.contains("host-local") && said.contains("/no/such/folder"), "{said}");

    pod.ip("link add eth0 type bridge").unwrap();
    let said = add().fails_with(105);
    assert!(said.contains("interface eth0 already") && said.contains("DEL"), "{said}");
    assert!(pod.ip("-d link show eth0").unwrap().contains("bridge"), "and it is not touched");
    pod.ip("link del eth0").unwrap();

    assert_eq!((veths(node), leases(node)), (0, Vec::new()), "nothing is left");
    assert_eq!(world.etcd().workload_endpoints().unwrap(), Vec::<String>::new());
    assert!(add().make().ok(), "and the right call works");
    assert_eq!((veths(node), leases(node).len()), (1, 1));
}

#[test]
fn without_an_agent_add_asks_to_try_again_and_del_succeeds() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    let first = node.add_pod("first", &[]).unwrap();
    assert!(soon(|| world.etcd().workload_endpoints().unwrap().len() == 1));
    node.agent().terminate().unwrap();
    let pod = netns(&world, "p");
    let said = Call::new(node, "ADD", &pod, "p").fails_with(11);
    assert!(said.contains("canal-agent") && said.contains("agent.sock"), "{said}");
    assert_eq!((veths(node), leases(node).len()), (1, 1), "nothing is left of the failed one");
    assert!(pod.ip("link show eth0").is_err());

    let gone = Call::new(node, "DEL", first.netns(), "first").make();
    assert!(gone.ok(), "{gone:?}");
    assert_eq!((veths(node), leases(node).len()), (0, 0));
    assert!(Call::new(node, "DEL", first.netns(), "first").make().ok(), "twice is no error");
    node.agent().start().unwrap();
    assert!(soon(|| world.etcd().workload_endpoints().unwrap().is_empty()), "the agent learns of it");
    assert!(Call::new(node, "ADD", &pod, "p").make().ok(), "and the call that was tried again works");
}

#[test]
fn del_succeeds_in_every_state_of_the_node() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    let pod = netns(&world, "p");
    let del = || Call::new(node, "DEL", &pod, "p");
    assert!(del().make().ok(), "never added");
    assert!(Call::new(node, "ADD", &pod, "p").make().ok());
    std::fs::remove_file(node.agent().subnet_file()).unwrap();
    assert!(
        Call { netns: "/run/netns/no-such".to_owned(), ..del() }.make().ok(),
        "namespace and subnet file gone"
    );
    assert_eq!((veths(node), leases(node).len()), (0, 0));
    assert!(Call { netns: String::new(), ..del() }.make().ok(), "no namespace given");
    assert!(soon(|| node.agent().endpoint_state("10.100.0.2".parse().unwrap()).unwrap().is_none()));
    assert!(soon(|| world.etcd().workload_endpoints().unwrap().is_empty()));
}

#[test]
fn a_full_subnet_is_told_and_a_freed_address_is_given_again() {
    let config = r#"{"Network": "10.100.0.0/24", "SubnetLen": 29, "SubnetMin": "10.100.0.8", "Backend": {"Type": "vxlan"}}"#;
    let world = World::builder().nodes(1).config(Some(config)).build().unwrap();
    let node = world.node(1);
    node.agent().start().unwrap();
    // Of eight addresses: network, gateway and broadcast are no pods'.
    let pods: Vec<_> = (0..5).map(|n| node.add_pod(&format!("p{n}"), &[]).unwrap()).collect();
    assert!(pods[0].pings(pods[4].ip()));
    let late = netns(&world, "late");
    let said = Call::new(node, "ADD", &late, "late").fails_with(104);
    assert!(said.contains("no free address") && said.contains("every address"), "{said}");
    assert_eq!(veths(node), 5);
    node.del_pod(&pods[2]).unwrap();
    assert!(Call::new(node, "ADD", &late, "late").make().ok());
}

#[test]
fn versions_results_labels_and_profile_are_as_the_conventions_say() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    let plugin = binary("canal-cni").unwrap().display().to_string();
    let version =
        Cmd::line(&plugin).env("CNI_COMMAND", "VERSION").stdin(r#"{"cniVersion":"1.0.0"}"#).run().unwrap();
    let version: Value = serde_json::from_str(&version).unwrap();
    assert_eq!(version["cniVersion"], "1.0.0");
    for supported in ["0.3.1", "0.4.0", "1.0.0"] {
        assert!(version["supportedVersions"].as_array().unwrap().contains(&json!(supported)), "{version}");
    }
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let name = format!("v{}", version.replace('.', ""));
        let pod = netns(&world, &name);
        let mut config = config(node, version);
        config["args"] =
            json!({"cni": {"labels": [{"key": "app", "value": "web"}, {"key": "a/b", "value": ""}]}});
        let output = Call { config: config.to_string(), ..Call::new(node, "ADD", &pod, &name) }.make();
        assert!(output.ok(), "{output:?}");
        let result: Value = serde_json::from_str(&output.stdout).unwrap();
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["interfaces"].as_array().unwrap().len(), 2, "{result}");
        let address = result["ips"][0]["address"].as_str().unwrap();
        assert!(address.ends_with("/32"), "{result}");
        assert_eq!(result["ips"][0]["interface"], 1, "the pod's end");
        if version.starts_with('0') {
            assert_eq!(result["ips"][0]["version"], "4", "{result}");
        }
        let key = format!(
            "{}workloadendpoints/default/node1-cni-{}-eth0",
            bpf_tests::policy::RESOURCES,
            pod::container_id(&name)
        );
        assert!(
            soon(|| world.etcd().get(&key).unwrap().is_some()),
            "{:?}",
            world.etcd().workload_endpoints()
        );
        let endpoint: Value = serde_json::from_str(&world.etcd().get(&key).unwrap().unwrap()).unwrap();
        assert_eq!(endpoint["metadata"]["labels"]["app"], "web", "{endpoint}");
        assert_eq!(endpoint["spec"]["profiles"], json!(["canal"]));
        assert_eq!(endpoint["spec"]["ipNetworks"], json!([address]));
        assert_eq!(endpoint["spec"]["mac"], result["interfaces"][1]["mac"]);
        assert_eq!(endpoint["spec"]["interfaceName"], result["interfaces"][0]["name"]);
        assert_eq!(endpoint["spec"]["node"], "node1");
    }
    assert!(world.etcd().get(&format!("{}profiles/canal", bpf_tests::policy::RESOURCES)).unwrap().is_some());
}

#[test]
fn the_first_pod_of_a_network_talks_when_add_returns_also_before_etcd_knows_of_it() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    world.etcd().pause().unwrap();
    let first = node.add_pod("first", &[]).unwrap();
    assert!(first.pings(node.public_ip()));
    let second = node.add_pod("second", &[]).unwrap();
    assert!(first.pings(second.ip()));
    world.etcd().resume().unwrap();
    let profile = format!("{}profiles/canal", bpf_tests::policy::RESOURCES);
    assert!(bpf_tests::until(crate::RETRIED, || world.etcd().get(&profile).is_ok_and(|p| p.is_some())));
    assert!(first.pings(second.ip()));
}

#[test]
fn many_pods_at_once_all_come_up_and_all_go() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    let pods: Vec<_> = std::thread::scope(|scope| {
        let adding: Vec<_> =
            (0..8).map(|n| scope.spawn(move || node.add_pod(&format!("p{n}"), &[]).unwrap())).collect();
        adding.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let addresses: std::collections::BTreeSet<_> = pods.iter().map(Host::ip).collect();
    assert_eq!(addresses.len(), 8);
    assert!(pods.windows(2).all(|pair| pair[0].pings(pair[1].ip())));
    std::thread::scope(|scope| {
        for pod in &pods {
            scope.spawn(|| node.del_pod(pod).unwrap());
        }
    });
    assert_eq!((veths(node), leases(node).len()), (0, 0));
    assert!(soon(|| world.etcd().workload_endpoints().unwrap().is_empty()));
}
