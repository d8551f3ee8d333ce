//! Without the privileges that it needs, the agent says which.

use bpf_tests::Host;

use crate::{agent_by, has, one_node, refusal};

#[test]
fn a_user_without_rights_and_a_root_without_one_capability_are_told_what_is_missing() {
    let world = one_node();
    let node = world.node(1);
    for (starter, missing, not_missing) in [
        (
            "setpriv --reuid=65534 --regid=65534 --clear-groups",
            &["CAP_NET_ADMIN", "CAP_PERFMON", "CAP_BPF"][..],
            &[][..],
        ),
        (
            "setpriv --bounding-set=-net_admin --inh-caps=-net_admin",
            &["CAP_NET_ADMIN"],
            &["CAP_BPF", "CAP_PERFMON"],
        ),
        (
            "setpriv --bounding-set=-bpf,-sys_admin --inh-caps=-bpf,-sys_admin",
            &["CAP_BPF"],
            &["CAP_NET_ADMIN"],
        ),
        (
            "setpriv --bounding-set=-perfmon,-sys_admin --inh-caps=-perfmon,-sys_admin",
            &["CAP_PERFMON"],
            &["CAP_BPF"],
        ),
    ] {
        let said = refusal(agent_by(node, starter));
        has(&said, missing);
        has(&said, &["missing", "run as root"]);
        let last = said.lines().last().unwrap();
        for other in not_missing {
            assert!(!last.contains(other), "{other} is there: {last}");
        }
    }
    assert!(!node.bpffs().join("canal").exists(), "nothing was made");
}

#[test]
fn the_capabilities_that_the_agent_names_are_enough() {
    let world = one_node();
    let node = world.node(1);
    let starter = "setpriv --bounding-set=-all,+net_admin,+bpf,+perfmon,+net_raw,+dac_override,+sys_resource \
                   --inh-caps=-all";
    let _process = agent_by(node, starter).start(&node.agent().log_file()).unwrap();
    let ready = || {
        node.agent().subnet_file().exists()
            && node.agent().status().is_ok_and(|s| s["problems"] == serde_json::json!([]))
    };
    assert!(bpf_tests::until(crate::SOON, ready), "{}", node.agent().log());
    let pod = node.add_pod("a", &[]).unwrap();
    assert!(node.pings(pod.ip()));
    let line = format!("explain --from {} --to 8.8.8.8 --proto icmp", pod.ip());
    let said = crate::ctl::canalctl(node, &line);
    assert_eq!(said.status.code(), Some(0), "the kernel may be asked: {said:?}");
}
