//! WorkloadEndpoints: written as Calico's plugin does, read with whatever others have made of them.

use super::*;

/// In the order and spelling of Calico's format, as far as a pod's endpoint has these members.
const POD: &str = r#"{"kind":"WorkloadEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":"node--a-k8s-web--0-eth0","generateName":"web-","namespace":"shop","uid":"6f5a0a3e-0000-4000-8000-000000000001","creationTimestamp":"2026-03-04T05:06:07Z","labels":{"app":"web","projectcalico.org/namespace":"shop","projectcalico.org/orchestrator":"k8s","projectcalico.org/serviceaccount":"web-sa"}},"spec":{"orchestrator":"k8s","node":"node-a","containerID":"3f9c","pod":"web-0","endpoint":"eth0","serviceAccountName":"web-sa","ipNetworks":["10.77.3.9/32"],"profiles":["kns.shop","ksa.shop.web-sa"],"interfaceName":"calia4fc3c48bd8","mac":"5a:11:22:33:44:55","ports":[{"name":"http","protocol":"TCP","port":8080,"hostPort":0,"hostIP":""}]}}"#;

fn web() -> Pod {
    Pod {
        namespace: "shop".to_owned(),
        name: "web-0".to_owned(),
        generate_name: "web-".to_owned(),
        service_account: "web-sa".to_owned(),
        ports: vec![PodPort {
            name: "http".to_owned(),
            protocol: "TCP".to_owned(),
            port: 8080,
            ..PodPort::default()
        }],
        sources: Vec::new(),
    }
}

/// The cluster with the pod of [`POD`] as its node knows it, and what is in force.
fn cluster_with_web() -> (Cluster, EndpointKey, WorkloadEndpoint) {
    let name = EndpointName::kubernetes("node-a", "web-0", "eth0");
    let key = EndpointKey::new("shop", &name.format().unwrap());
    let Reading::Good(local) = WorkloadEndpoint::read(&key, POD.as_bytes()) else { panic!() };
    let mut cluster = Cluster::default();
    cluster.set_local_endpoint(key.clone(), Some(local.clone()));
    (cluster, key, local)
}

#[test]
fn what_the_store_says_of_a_pod_that_lives_here_is_handed_on_and_does_not_count_by_itself() {
    let (mut cluster, key, local) = cluster_with_web();
    let changed = POD.replace(r#""app":"web""#, r#""app":"web","quarantine":"true""#);
    cluster.apply(&key.store_key(), Some(changed.as_bytes()));
    cluster.apply(&key.store_key(), None);
    assert_eq!(cluster.endpoint(&key), Some(&local));
    assert_eq!(cluster.take_said(), [(key.clone(), changed.clone().into_bytes())]);
    assert!(cluster.take_said().is_empty());
    let other = EndpointKey::new("shop", "node--b-k8s-web--1-eth0");
    cluster.apply(&other.store_key(), Some(changed.as_bytes()));
    assert!(cluster.take_said().is_empty(), "another node's");
}

#[test]
fn what_the_store_still_says_of_a_container_that_has_gone_counts_no_more() {
    let (mut cluster, key, local) = cluster_with_web();
    cluster.apply(&key.store_key(), Some(POD.as_bytes()));
    cluster.retire_endpoint(key.clone(), "3f9c");
    assert_eq!(cluster.endpoint(&key), None);
    assert_eq!(cluster.endpoints_at(local.addresses[0]).count(), 0);
    assert!(cluster.is_stored(&key), "it is there all the same");
    cluster.apply(&key.store_key(), Some(POD.replace("3f9c", "bbbb").as_bytes()));
    assert_eq!(cluster.endpoint(&key).unwrap().container_id, "bbbb", "another container's does");
    cluster.apply(&key.store_key(), None);
    cluster.set_local_endpoint(key.clone(), Some(local.clone()));
    assert_eq!(cluster.endpoint(&key), Some(&local), "and it can come back");
}

#[test]
fn a_kubernetes_pods_endpoint_is_written_as_calicos_plugin_writes_it_and_read_back() {
    let name = EndpointName::kubernetes("node-a", "web-0", "eth0");
    let key = EndpointKey::new("shop", &name.format().unwrap());
    let mut endpoint = WorkloadEndpoint {
        node: "node-a".to_owned(),
        orchestrator: "k8s".to_owned(),
        endpoint: "eth0".to_owned(),
        container_id: "3f9c".to_owned(),
        interface_name: "calia4fc3c48bd8".to_owned(),
        addresses: vec!["10.77.3.9".parse().unwrap()],
        mac: Some("5a:11:22:33:44:55".parse().unwrap()),
        labels: [("app".to_owned(), "web".to_owned())].into(),
        profiles: vec!["kns.shop".to_owned(), "ksa.shop.web-sa".to_owned()],
        ..WorkloadEndpoint::default()
    };
    let mut pod = web();
    pod.describe(&mut endpoint);
    assert_eq!(endpoint.to_json(&key, &birth_of(POD), Some(&pod)), POD);
    let Reading::Good(read) = WorkloadEndpoint::read(&key, POD.as_bytes()) else { panic!() };
    assert_eq!(read, endpoint.clone().normalised(&key));
    assert_eq!(read.ports.len(), 1);

    // Calico's plugin takes a longer name for no label; it stays in the spec, and selectors see it from there.
    pod.service_account = "s".repeat(63);
    pod.describe(&mut endpoint);
    let written = endpoint.to_json(&key, &birth_of(POD), Some(&pod));
    assert!(!written.contains("projectcalico.org/serviceaccount"), "{written}");
    let Reading::Good(read) = WorkloadEndpoint::read(&key, written.as_bytes()) else { panic!() };
    assert_eq!(read.labels["projectcalico.org/serviceaccount"].len(), 63);
}

#[test]
fn a_workload_endpoint_is_written_as_calicos_plugin_writes_it() {
    let expected = stored("workloadendpoints/default/node1-cni-ca-eth0");
    let name = EndpointName::cni("node1", "ca", "eth0");
    let key = EndpointKey::new("default", &name.format().unwrap());
    let endpoint = WorkloadEndpoint {
        node: "node1".to_owned(),
        orchestrator: "cni".to_owned(),
        workload: "ca".to_owned(),
        endpoint: "eth0".to_owned(),
        container_id: "ca".to_owned(),
        interface_name: "calica".to_owned(),
        addresses: vec!["10.100.30.2".parse().unwrap()],
        mac: Some(Mac::new([0x96, 0x80, 0x86, 0xac, 0xb9, 0x8e])),
        profiles: vec!["canal".to_owned()],
        ..WorkloadEndpoint::default()
    };
    assert_eq!(endpoint.to_json(&key, &birth_of(expected), None), expected);
    assert_eq!(key.store_key(), format!("{PREFIX}workloadendpoints/default/node1-cni-ca-eth0"));
}

#[test]
fn what_is_written_reads_back() {
    let value = stored("workloadendpoints/default/node2-cni-cb-eth0");
    let key = EndpointKey::new("default", "node2-cni-cb-eth0");
    let Reading::Good(endpoint) = WorkloadEndpoint::read(&key, value.as_bytes()) else { panic!("not good") };
    assert_eq!(endpoint.to_json(&key, &birth_of(value), None), value);
    assert_eq!((endpoint.node.as_str(), endpoint.workload.as_str()), ("node2", "cb"));
}

#[test]
fn a_networks_profile_is_written_as_calicos_plugin_writes_it() {
    let expected = stored("profiles/canal");
    assert_eq!(profile::network_profile_json("canal", &birth_of(expected)), expected);
}

#[test]
fn names_double_the_dashes_of_their_parts() {
    let name = |parts: [&str; 4]| {
        let [node, orchestrator, workload, endpoint] = parts.map(str::to_owned);
        EndpointName { node, orchestrator, workload, endpoint }
    };
    for (text, parts) in [
        ("node--a-k8s-web--0-eth0", ["node-a", "k8s", "web-0", "eth0"]),
        ("node1-cni-ca-eth0", ["node1", "cni", "ca", "eth0"]),
        ("a----b-cni-x.y-net1", ["a--b", "cni", "x.y", "net1"]),
    ] {
        assert_eq!(EndpointName::parse(text), Some(name(parts)), "{text}");
        assert_eq!(name(parts).format().as_deref(), Ok(text));
    }
    for text in [
        "",
        "a",
        "a-b-c",
        "a-b-c-d-e",
        "a-b-c-",
        "-a-b-c-d",
        "a---b-c-d",
        "--a-b-c-d",
        "a-b-c-d--",
        "a--b-c-d",
    ] {
        assert_eq!(EndpointName::parse(text), None, "{text}");
    }
    for part in ["", "-a", "a-"] {
        assert!(EndpointName::cni("n", part, "eth0").format().is_err(), "{part:?}");
    }
}

#[test]
fn the_name_says_whose_the_endpoint_is_and_the_key_says_its_namespace() {
    let key = EndpointKey::new("shop", "node--a-k8s-web--0-eth0");
    let value = json!({
        "metadata": { "name": "other", "labels": { "projectcalico.org/namespace": "bank", "pcns.env": "prod", "app": "web" } },
        "spec": {
            "node": "liar", "pod": "web-0", "serviceAccountName": "web-sa", "mac": "5a:11:22:33:44:55",
            "ipNetworks": ["10.77.3.9/32", "fd00::9/128", "10.77.3.10"], "profiles": null, "interfaceName": "cali1",
            "ports": [
                { "name": "http", "protocol": "TCP", "port": 8080, "hostPort": 0, "hostIP": "" },
                { "name": "", "protocol": "UDP", "port": 1 },
                { "name": "sig", "protocol": "SCTP", "port": 9 },
            ],
            "unknown": { "field": [1] },
        },
    });
    let Reading::Partly(endpoint, reason) = WorkloadEndpoint::read(&key, value.to_string().as_bytes()) else {
        panic!()
    };
    assert_eq!(reason, r#"node: "liar" is not the "node-a" of the name, which counts"#);
    assert_eq!(endpoint.node, "node-a");
    let labels = [
        ("app", "web"),
        ("projectcalico.org/namespace", "shop"),
        ("projectcalico.org/orchestrator", "k8s"),
        ("projectcalico.org/serviceaccount", "web-sa"),
    ];
    assert_eq!(endpoint.labels, labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    assert_eq!(endpoint.addresses.len(), 2);
    let ports: Vec<_> = endpoint.ports.iter().map(|p| (p.name.as_str(), p.protocol, p.port)).collect();
    assert_eq!(ports, [("http", 6, 8080), ("sig", 132, 9)]);
}

#[test]
fn parts_of_an_endpoint_that_cannot_be_read_are_left_out_and_named() {
    let key = EndpointKey::new("shop", "n-cni-c-eth0");
    let value = json!({ "spec": { "mac": "zz", "ipNetworks": ["10.0.0.0/24", "x", "10.0.0.1/32"] } });
    match WorkloadEndpoint::read(&key, value.to_string().as_bytes()) {
        Reading::Partly(endpoint, reason) => {
            assert_eq!((endpoint.addresses.len(), endpoint.mac), (1, None));
            for part in ["10.0.0.0/24", "\"x\"", "mac"] {
                assert!(reason.contains(part), "{reason}");
            }
        }
        other => panic!("{other:?}"),
    }
}
