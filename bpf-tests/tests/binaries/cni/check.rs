//! CHECK names what is not as ADD made it.

use std::fs;

use bpf_tests::pod::container_id;
use serde_json::{Value, json};

use super::{Call, after, config, ip, netns};
use crate::one_node;

/// What is done to the pod, as a line for `ip -n`; `ADDRESS` is its own.
const DRIFTS: [(&str, &[&str]); 5] = [
    ("addr del ADDRESS/32 dev eth0", &["eth0 has lost the address ADDRESS"]),
    ("route del default", &["the route to 0.0.0.0/0 by 169.254.1.1 is missing"]),
    ("link set eth0 down", &["eth0 is down"]),
    ("link set eth0 address 02:00:00:00:00:99", &["eth0 has the MAC 02:00:00:00:00:99 instead of"]),
    ("link del eth0", &["the container has no interface eth0"]),
];

#[test]
fn what_changed_since_add_is_named() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    let made = |name: &str| {
        let pod = netns(&world, name);
        let result = Call::new(node, "ADD", &pod, name).result();
        (pod, result)
    };
    for (at, (line, words)) in DRIFTS.iter().enumerate() {
        let name = format!("d{at}");
        let (pod, result) = made(&name);
        let check = || Call::new(node, "CHECK", &pod, &name).with(&after(&result, config(node, "1.1.0")));
        assert_eq!(check().works(), "");
        let address = ip(&result).to_string();
        pod.ip(&line.replace("ADDRESS", &address)).unwrap();
        let said = check().fails_with(107);
        for word in *words {
            let word = word.replace("ADDRESS", &address);
            assert!(said.contains(&word), "{line}: {word:?} is not in: {said}");
        }
        assert!(said.contains(&container_id(&name)), "{said}");
    }

    let (pod, result) = made("p");
    let check = || Call::new(node, "CHECK", &pod, "p").with(&after(&result, config(node, "1.1.0")));
    let note = node.folder().join("ipam/canal").join(ip(&result).to_string());
    let said = fs::read_to_string(&note).unwrap();
    fs::write(&note, "somebody\r\neth0").unwrap();
    assert!(check().fails_with(107).contains("has given") && check().fails_with(107).contains("somebody"));
    fs::remove_file(&note).unwrap();
    assert!(check().fails_with(107).contains(&format!("host-local takes {} to be free", ip(&result))));
    fs::write(&note, said).unwrap();
    check().works();
    // Several at once are all told.
    pod.ip("route del default").unwrap();
    fs::remove_file(&note).unwrap();
    let said = check().fails_with(107);
    assert!(said.contains("to be free") && said.contains("0.0.0.0/0"), "{said}");

    let call = |config: &Value| Call::new(node, "CHECK", &pod, "p").with(config);
    assert!(call(&config(node, "1.1.0")).fails_with(7).contains("prevResult"));
    let other = json!({"cniVersion": "1.1.0", "interfaces": [{"name": "eth7", "sandbox": "/x"}]});
    assert!(call(&after(&other, config(node, "1.1.0"))).fails_with(7).contains("eth0"));
    let gone = Call { netns: "/run/netns/no-such".to_owned(), ..check() };
    assert!(gone.fails_with(3).contains("no-such"));
}

#[test]
fn an_endpoint_that_the_agent_does_not_know_and_an_agent_that_is_down_are_named() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    let pod = netns(&world, "p");
    let result = Call::new(node, "ADD", &pod, "p").result();
    let check = || Call::new(node, "CHECK", &pod, "p").with(&after(&result, config(node, "1.1.0")));
    check().works();
    node.agent().terminate().unwrap();
    let said = check().fails_with(11);
    assert!(said.contains("no canal-agent listens"), "{said}");
    let record = format!("state/endpoints/{}@eth0.json", container_id("p"));
    fs::remove_file(node.folder().join(record)).unwrap();
    node.agent().start().unwrap();
    // What etcd has of it is enough for a pod of Calico's plugin, and so for this one.
    check().works();
    world.etcd().del_prefix(&format!("{}workloadendpoints/", bpf_tests::policy::RESOURCES)).unwrap();
    assert!(check().fails_with(107).contains("the agent does not know the endpoint"));
}
