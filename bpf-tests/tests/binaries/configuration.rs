//! The network configuration in etcd: the agent waits until it can be used.

use bpf_tests::{Host, World, world};

use crate::{RETRIED, SOON, soon, waits_saying};

const KEY: &str = "/coreos.com/network/config";

#[test]
fn a_configuration_that_cannot_be_used_is_waited_out_and_each_fault_is_named() {
    let world = World::builder().nodes(1).config(None).build().unwrap();
    let agent = world.node(1).agent();
    waits_saying(agent, &["waiting for a network configuration", KEY, "does not exist", "etcdctl put"]);
    for (config, words) in [
        ("not json", &["JSON"][..]),
        (r#"{"Network": "10.100.0.0/16", "Back"#, &["JSON"]),
        (r#"{"Network": "10.100.0.0/99"}"#, &["Network"]),
        (r#"{"Network": "10.100.0.0/30", "Backend": {"Type": "vxlan"}}"#, &["10.100.0.0/30", "small"]),
        (r#"{"Network": "10.100.0.0/16", "SubnetLen": 8}"#, &["SubnetLen"]),
        (
            r#"{"Network": "10.100.0.0/16", "Backend": {"Type": "carrier-pigeon"}}"#,
            &["carrier-pigeon", "vxlan"],
        ),
        (r#"{"Network": "10.100.0.0/16"}"#, &["vxlan"]),
        (r#"{"Backend": {"Type": "vxlan"}}"#, &["Network"]),
    ] {
        world.etcd().put(KEY, config).unwrap();
        let words: Vec<_> =
            ["waiting for a network configuration", KEY].iter().chain(words).copied().collect();
        assert!(agent.says(&words, SOON), "{config}: {words:?} are not in: {}", agent.log());
    }
    assert!(agent.is_running() && !agent.subnet_file().exists());
    // Whoever asks is told the same, and a pod may come again.
    let status = agent.status().unwrap();
    assert!(
        status["problems"][0].as_str().unwrap().contains("waiting for a network configuration"),
        "{status}"
    );
    let repeated = agent.log().lines().filter(|l| l.contains("does not exist")).count();
    assert_eq!(repeated, 1, "a reason is told once");
    world.etcd().put(KEY, world::CONFIG).unwrap();
    agent.wait_ready(RETRIED).unwrap();
    // What is wrong later does not stop it.
    world.etcd().put(KEY, "not json any more").unwrap();
    let problems = || agent.status().unwrap()["problems"].to_string();
    assert!(soon(|| problems().contains("unusable")), "{}", problems());
    world.etcd().put(KEY, world::CONFIG).unwrap();
    assert!(soon(|| problems() == "[]"));
}

#[test]
fn a_network_without_a_free_subnet_is_waited_out() {
    let config = r#"{"Network": "10.100.0.0/22", "SubnetLen": 24, "SubnetMin": "10.100.1.0", "SubnetMax": "10.100.2.0", "Backend": {"Type": "vxlan"}}"#;
    let world = World::builder().nodes(1).config(Some(config)).build().unwrap();
    for (subnet, node) in [("10.100.1.0-24", "7"), ("10.100.2.0-24", "8")] {
        let lease = format!(
            r#"{{"PublicIP":"192.168.50.{node}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"0e:00:00:00:00:0{node}"}}}}"#
        );
        world.etcd().put(&format!("/coreos.com/network/subnets/{subnet}"), &lease).unwrap();
    }
    let agent = world.node(1).agent();
    waits_saying(agent, &["waiting for a subnet lease", "10.100.0.0/22"]);
    world.etcd().del("/coreos.com/network/subnets/10.100.1.0-24").unwrap();
    agent.wait_ready(RETRIED).unwrap();
    assert_eq!(agent.status().unwrap()["lease"]["subnet"], "10.100.1.0/24");
}

#[test]
fn another_prefix_is_another_network() {
    let world = World::builder().nodes(1).config(None).build().unwrap();
    world.etcd().put("/elsewhere/config", world::CONFIG).unwrap();
    let agent = world.node(1).agent();
    agent.set_flag("--etcd-prefix", "/elsewhere");
    agent.start().unwrap();
    assert_eq!(world.etcd().keys("/elsewhere/subnets/").unwrap().len(), 1);
    assert_eq!(world.etcd().keys("/coreos.com/").unwrap().len(), 0);
}

#[test]
fn a_changed_configuration_is_followed_as_far_as_a_running_node_can_and_the_rest_is_told() {
    let world = World::builder().nodes(1).build().unwrap();
    let agent = world.node(1).agent();
    agent.start().unwrap();
    let pid = agent.pid();
    let status = |part: &str| agent.status().unwrap()[part].to_string();
    let put = |text: &str| world.etcd().put(KEY, text).unwrap();
    put(r#"{"Network": "10.100.0.0/16", "Backend": {"Type": "vxlan", "MTU": 1400}}"#);
    let file = || std::fs::read_to_string(agent.subnet_file()).unwrap();
    assert!(soon(|| file().contains("FLANNEL_MTU=1350\n")), "{} {}", file(), agent.log());
    assert_eq!(status("problems"), "[]");
    put(r#"{"Network": "10.100.0.0/16", "Backend": {"Type": "vxlan", "VNI": 7, "Port": 4789}}"#);
    let words = ["Backend.VNI 1 is 7 now", "Backend.Port 8472 is 4789 now", "restart canal-agent"];
    assert!(soon(|| words.iter().all(|word| status("problems").contains(word))), "{}", status("problems"));
    assert!(file().contains("FLANNEL_MTU=1350\n"), "all of it waits");
    let own = agent.status().unwrap()["lease"]["subnet"].as_str().unwrap().to_owned();
    let other = if own == "10.100.9.0/24" { "10.100.8.0" } else { "10.100.9.0" };
    put(&format!(
        r#"{{"Network": "10.100.0.0/16", "SubnetMin": "{other}", "SubnetMax": "{other}", "Backend": {{"Type": "vxlan"}}}}"#
    ));
    assert!(
        soon(|| status("problems").contains(&own) && status("problems").contains("drain")),
        "{}",
        status("problems")
    );
    assert!(file().contains("FLANNEL_MTU=1450\n"));
    put(world::CONFIG);
    assert!(soon(|| status("problems") == "[]"), "{}", status("problems"));
    assert_eq!(agent.pid(), pid);
}

#[test]
fn a_node_that_leaves_gives_its_subnet_back_once_its_agent_and_pods_are_gone() {
    let world = World::builder().nodes(1).build().unwrap();
    let node = world.node(1);
    node.agent().start().unwrap();
    let pod = node.add_pod("a", &[]).unwrap();
    let agent = bpf_tests::agent::binary("canal-agent").unwrap().display().to_string();
    let release = |more: &[&str]| {
        let line = format!("{agent} lease release");
        let output = node.netns().cmd(&line).args(node.agent().flags()).args(more).output().unwrap();
        (output.status.code(), output.stdout + &output.stderr)
    };
    let leases = || world.etcd().keys("/coreos.com/network/subnets/").unwrap().len();
    let (code, said) = release(&[]);
    assert!(code == Some(1) && said.contains("another canal-agent runs"), "{said}");
    node.agent().terminate().unwrap();
    let (code, said) = release(&[]);
    assert!(code == Some(1) && said.contains("1 pods") && said.contains("--force"), "{said}");
    assert_eq!(leases(), 1);
    node.del_pod(&pod).unwrap();
    // Its DEL went unheard; an agent finds that the interface is gone.
    node.agent().start().unwrap();
    node.agent().terminate().unwrap();
    let (code, said) = release(&[]);
    assert!(code == Some(0) && said.contains("released /coreos.com/network/subnets/10.100."), "{said}");
    assert_eq!(leases(), 0);
    let number = node.folder().join("state/machine");
    std::fs::remove_file(&number).unwrap();
    assert_eq!(release(&[]), (Some(0), "this node has no lease\n".to_owned()));
    assert!(!number.exists(), "a node that leaves needs no number");
}
