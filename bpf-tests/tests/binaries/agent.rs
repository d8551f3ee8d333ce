//! `canal-agent run` where something on the node is not as it should be.

use bpf_tests::{Cmd, Host, World};

use crate::{SOON, agent_by, has, one_node, refusal, soon};

#[test]
fn an_uplink_that_cannot_be_used_is_named_with_the_ways_out() {
    let world = one_node();
    let node = world.node(1);
    node.netns().ip("link add bare type bridge").unwrap();
    node.netns().ip("link set bare up").unwrap();
    for (iface, public_ip, words) in [
        (Some("eth7"), Some("192.168.50.1"), &["--iface eth7", "no interface", "up0", "mg0"][..]),
        (Some("bare"), None, &["bare", "no usable IPv4 address", "--iface"]),
        (Some("192.168.50.77"), None, &["--iface 192.168.50.77", "no interface", "up0"]),
        (None, Some("203.0.113.7"), &["203.0.113.7", "no interface has this address", "--iface"]),
        (None, None, &["no default route", "--iface"]),
        (Some("up0"), Some("224.0.0.1"), &["--public-ip", "224.0.0.1", "not an address"]),
        (Some("up0"), Some("nonsense"), &["--public-ip", "nonsense", "not an IPv4 address"]),
    ] {
        for (flag, value) in [("--iface", iface), ("--public-ip", public_ip)] {
            match value {
                Some(value) => node.agent().set_flag(flag, value),
                None => node.agent().unset_flag(flag),
            }
        }
        has(&refusal(agent_by(node, "")), words);
    }
    assert!(!node.agent().subnet_file().exists());
    assert!(!node.bpffs().join("canal").exists(), "nothing was made");
}

#[test]
fn a_taken_vxlan_port_is_told_with_who_has_it_and_used_once_it_is_free() {
    let world = World::builder().nodes(2).build().unwrap();
    let (one, two) = (world.node(1), world.node(2));
    one.netns().ip("link add other0 type vxlan id 5 dev up0 dstport 8472").unwrap();
    one.netns().ip("link set other0 up").unwrap();
    let socket = two.serve_udp(8472).unwrap();
    for node in [one, two] {
        node.agent().spawn().unwrap();
    }
    let problem = |node: &bpf_tests::Node| node.agent().status().unwrap_or_default()["problems"].to_string();
    for (node, holder) in [(one, "other0"), (two, "8472")] {
        assert!(
            soon(|| problem(node).contains("port 8472 is taken")),
            "{} {}",
            problem(node),
            node.agent().log()
        );
        has(&problem(node), &["canal.1", holder, "Backend.Port"]);
        assert!(!node.agent().subnet_file().exists(), "no pods are made on a node that cannot carry them");
    }
    one.netns().ip("link del other0").unwrap();
    drop(socket);
    for node in [one, two] {
        node.agent().wait_ready(SOON * 3).unwrap();
        assert!(soon(|| problem(node) == "[]"), "{}", problem(node));
    }
    let (a, b) = (one.add_pod("a", &[]).unwrap(), two.add_pod("b", &[]).unwrap());
    assert!(soon(|| a.pings(b.ip())));
}

#[test]
fn a_bpffs_that_is_none_is_refused_with_the_command_that_mounts_one() {
    let world = one_node();
    let node = world.node(1);
    let plain = node.folder().join("plain");
    std::fs::create_dir(&plain).unwrap();
    for (path, words) in [
        (plain.display().to_string(), &["not a bpf filesystem", "mount -t bpf", "--bpffs"][..]),
        ("/no/such/folder".to_owned(), &["/no/such/folder", "No such file"]),
    ] {
        node.agent().set_flag("--bpffs", &path);
        has(&refusal(agent_by(node, "")), words);
    }
}

#[test]
fn a_second_agent_on_a_node_is_refused_and_the_first_goes_on() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    let programs = node.agent().status().unwrap()["programs"].clone();
    has(&refusal(agent_by(node, "")), &["another canal-agent runs", "stop it first"]);
    assert_eq!(node.agent().status().unwrap()["programs"], programs);
    let pod = node.add_pod("a", &[]).unwrap();
    assert!(node.pings(pod.ip()));
}

#[test]
fn a_socket_folder_state_folder_or_subnet_file_that_cannot_be_written_is_named() {
    let world = one_node();
    let node = world.node(1);
    let file = node.folder().join("a-file");
    std::fs::write(&file, "").unwrap();
    let below = |name: &str| file.join(name).display().to_string();
    for (flag, name) in [("--socket", "agent.sock"), ("--state-dir", "state")] {
        let before = node.agent().flags();
        node.agent().set_flag(flag, &below(name));
        has(&refusal(agent_by(node, "")), &["cannot", &below(name)]);
        let at = before.iter().position(|f| f == flag).unwrap();
        node.agent().set_flag(flag, &before[at + 1]);
    }
    node.agent().set_flag("--subnet-file", &below("subnet.env"));
    node.agent().spawn().unwrap();
    let problems = || node.agent().status().unwrap_or_default()["problems"].to_string();
    assert!(soon(|| problems().contains("subnet.env")), "{} {}", problems(), node.agent().log());
}

#[test]
fn a_device_of_our_name_that_is_something_else_is_not_touched() {
    let world = one_node();
    let node = world.node(1);
    node.netns().ip("link add canal.1 type bridge").unwrap();
    node.agent().spawn().unwrap();
    let problems = || node.agent().status().unwrap_or_default()["problems"].to_string();
    assert!(
        soon(|| problems().contains("canal.1 exists and is not a VXLAN device")),
        "{}",
        node.agent().log()
    );
    assert!(node.netns().ip("-d link show canal.1").unwrap().contains("bridge"));
    node.netns().ip("link del canal.1").unwrap();
    node.agent().wait_ready(SOON).unwrap();
}

#[test]
fn flags_are_flannels_also_by_environment_and_wrong_ones_are_named() {
    let world = one_node();
    let node = world.node(1);
    let agent = bpf_tests::agent::binary("canal-agent").unwrap().display().to_string();
    let help = Cmd::line(&agent).args(["run", "--help"]).run().unwrap();
    for flag in [
        "--etcd-endpoints",
        "--etcd-prefix",
        "--etcd-cafile",
        "--etcd-certfile",
        "--etcd-keyfile",
        "--etcd-username",
        "--etcd-password",
        "--iface",
        "--public-ip",
        "--subnet-file",
        "--ip-masq",
        "--node-name",
        "--state-dir",
        "--socket",
        "--bpffs",
    ] {
        assert!(help.contains(flag), "{flag}");
    }
    let output = Cmd::line(&agent).args(["run", "--no-such-flag"]).output().unwrap();
    assert!(!output.ok() && output.stderr.contains("--no-such-flag"), "{}", output.stderr);
    // The whole start by environment: ours, flannel's and what manifests use.
    let mut command = node.netns().cmd(&agent).arg("run");
    for pair in node.agent().flags().chunks_exact(2) {
        let name = pair[0].trim_start_matches("--").to_uppercase().replace('-', "_");
        let name = match name.as_str() {
            "ETCD_ENDPOINTS" | "IFACE" | "PUBLIC_IP" | "SUBNET_FILE" => format!("FLANNELD_{name}"),
            "NODE_NAME" => "NODENAME".to_owned(),
            _ => format!("CANAL_{name}"),
        };
        command = command.env(&name, &pair[1]);
    }
    let _process = command.env("CANAL_IP_MASQ", "false").start(&node.agent().log_file()).unwrap();
    assert!(
        soon(|| node
            .agent()
            .status()
            .is_ok_and(|s| s["node"] == "node1" && s["lease"]["public_ip"] == "192.168.50.1")),
        "{}",
        node.agent().log()
    );
}

#[test]
fn a_command_line_of_flannelds_starts_the_agent_as_it_is() {
    let world = one_node();
    let node = world.node(1);
    let agent = bpf_tests::agent::binary("canal-agent").unwrap().display().to_string();
    for (line, code, stderr) in [
        ("-version", 0, "0.1"),
        ("-no-such-flag", 2, "--no-such-flag"),
        ("-kube-subnet-mgr", 1, "Kubernetes"),
        ("-subnet-lease-renew-margin=1440", 1, "between 1 and 1439"),
    ] {
        let output = Cmd::line(&format!("{agent} {line}")).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{line}: {}", output.stderr);
        assert!(output.stderr.contains(stderr) && output.stdout.is_empty(), "{line}: {}", output.stderr);
    }
    // What flanneld has no flag for comes by environment.
    let mut command = node.netns().cmd(&agent);
    for pair in node.agent().flags().chunks_exact(2) {
        let name = pair[0].trim_start_matches("--");
        command = match name {
            "etcd-endpoints" | "public-ip" => command.args([&format!("-{name}"), &pair[1]]),
            "iface" => command.args(["-iface=eth7", "--iface", &pair[1]]),
            "subnet-file" => command.arg(format!("-{name}={}", pair[1])),
            _ => command.env(&format!("CANAL_{}", name.to_uppercase().replace('-', "_")), &pair[1]),
        };
    }
    let command = command.args(["-ip-masq=F", "-iptables-resync=10", "-v", "4", "-ip-blackhole-route=true"]);
    let command = command.args(["word", "-no-such-flag"]).env("FLANNELD_HEALTHZ_PORT", "off");
    let command = command.env("FLANNELD_IPTABLES_FORWARD_RULES", "true").env("FLANNELD_PUBLIC_IPV6", "");
    let _process = command.start(&node.agent().log_file()).unwrap();
    assert!(soon(|| node.agent().subnet_file().exists()), "{}", node.agent().log());
    let log = node.agent().log();
    let vain: Vec<_> =
        log.lines().filter(|line| line.contains(" WARN --") || line.contains(" WARN FLANNELD")).collect();
    assert_eq!(vain.len(), 4, "{vain:#?}");
    has(&log, &["WARN a word that is no flag: ignored", "FLANNELD_HEALTHZ_PORT: \"off\""]);
    has(&vain.join(" "), &["--iptables-resync 10", "FLANNELD_IPTABLES_FORWARD_RULES true", "--v 4"]);
}
