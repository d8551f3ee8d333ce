//! Garbage in etcd concerns that object alone, and the status names it.

use bpf_tests::{Host, World, policy};
use serde_json::json;

use crate::soon;

const SUBNETS: &str = "/coreos.com/network/subnets/";
const RESOURCES: &str = policy::RESOURCES;

#[test]
fn garbage_under_leases_policies_and_endpoints_is_named_and_costs_nobody_else() {
    let world = World::builder().nodes(2).build().unwrap();
    world.start_agents().unwrap();
    let a = world.node(1).add_pod("a", &[("app", "a")]).unwrap();
    let b = world.node(2).add_pod("b", &[("app", "b")]).unwrap();
    assert!(soon(|| a.pings(b.ip())));
    let agent = world.node(2).agent();
    let lease = |mac: &str, ip: &str| {
        format!(
            r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
        )
    };
    let garbage = [
        (format!("{SUBNETS}10.100.201.0-24"), "not json".to_owned()),
        (format!("{SUBNETS}10.100.202.0-24"), r#"{"PublicIP":"192.168"#.to_owned()),
        (format!("{SUBNETS}10.100.203.0-24"), lease("not-a-mac", "192.168.50.3")),
        (format!("{SUBNETS}10.100.204.0-24"), lease("0e:00:00:00:00:04", "0.0.0.0")),
        (format!("{SUBNETS}nonsense"), lease("0e:00:00:00:00:05", "192.168.50.5")),
        (format!("{RESOURCES}globalnetworkpolicies/broken"), r#"{"kind":"GlobalNetworkPolicy","spec":{"selector":"app == "#.to_owned()),
        (format!("{RESOURCES}globalnetworkpolicies/selector"), r#"{"kind":"GlobalNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"selector"},"spec":{"selector":"app === 'b'","types":["Ingress"]}}"#.to_owned()),
        (format!("{RESOURCES}networkpolicies/default/broken"), "[]".to_owned()),
        (format!("{RESOURCES}profiles/broken"), "\u{1}".to_owned()),
        (format!("{RESOURCES}workloadendpoints/default/garbage"), "\u{1}".to_owned()),
        (format!("{RESOURCES}workloadendpoints/default/node2-cni-x-eth0"), r#"{"kind":"WorkloadEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":"node2-cni-x-eth0","namespace":"default"},"spec":{"node":"node2","ipNetworks":["10.100.999.1/32"]}}"#.to_owned()),
    ];
    for (key, value) in &garbage {
        world.etcd().put(key, value).unwrap();
    }
    let invalid = || agent.status().unwrap()["invalid"].clone();
    for (key, value) in &garbage {
        assert!(soon(|| invalid().get(key).is_some()), "{key} = {value} is not named: {:#}", invalid());
        let reason = invalid()[key].as_str().unwrap().to_owned();
        assert!(reason.len() > 10 && !reason.contains('\n'), "{key}: {reason}");
    }
    assert!(agent.is_running() && a.pings(b.ip()) && b.pings(a.ip()));
    let rules = policy::ingress(1, "app == 'b'", json!([]));
    world.etcd().put_global_policy("late", rules).unwrap();
    assert!(soon(|| !a.pings(b.ip())), "later policy arrives");
    world.etcd().delete_global_policy("late").unwrap();
    assert!(soon(|| a.pings(b.ip())));

    // A policy that was good and turns bad does not open what it closed.
    world.etcd().put_global_policy("t", policy::ingress(1, "app == 'b'", json!([]))).unwrap();
    assert!(soon(|| !a.pings(b.ip())));
    let key = format!("{RESOURCES}globalnetworkpolicies/t");
    world.etcd().put(&key, "{").unwrap();
    assert!(soon(|| invalid().get(&key).is_some()));
    assert!(!a.pings(b.ip()), "what cannot be read any more keeps its last good meaning");
    world.etcd().del(&key).unwrap();
    assert!(soon(|| a.pings(b.ip())));

    // A restart reads all of it again, and is not stopped by it.
    agent.crash_and_restart().unwrap();
    assert!(soon(|| garbage.iter().all(|(key, _)| invalid().get(key).is_some())));
    assert!(a.pings(b.ip()));
    for (key, value) in &garbage {
        assert_eq!(world.etcd().get(key).unwrap().as_ref(), Some(value), "{key} is left alone");
        world.etcd().del(key).unwrap();
    }
    assert!(soon(|| invalid() == json!({})), "{:#}", invalid());
}
