//! The datastore as Calico's tools expect it, this node's name, and a datastore that is not to be used for a while.

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use bpf_tests::{Etcd, Host, LiveConnection, Node, World, policy, policy::RESOURCES, until};
use serde_json::{Value, json};

use crate::{RETRIED, SOON, agent_by, has, one_node, refusal, soon};

const INFORMATION: &str = "clusterinformations/default";

/// Every key of Calico's tree but endpoints and profiles, without what they all begin with.
fn objects(etcd: &Etcd) -> Vec<String> {
    let keys = etcd.keys("/calico/").unwrap();
    let rest = keys.iter().map(|key| key.strip_prefix(RESOURCES).unwrap_or(key).to_owned());
    rest.filter(|key| !key.starts_with("workloadendpoints/") && !key.starts_with("profiles/")).collect()
}

fn object(etcd: &Etcd, rest: &str) -> Option<Value> {
    let text = etcd.get(&format!("{RESOURCES}{rest}")).unwrap()?;
    Some(serde_json::from_str(&text).unwrap())
}

fn delete(etcd: &Etcd, rest: &str) {
    etcd.del(&format!("{RESOURCES}{rest}")).unwrap();
}

fn problems(node: &Node) -> String {
    node.agent().status().unwrap_or_default()["problems"].to_string()
}

fn expected(nodes: &[&str]) -> Vec<String> {
    let mut keys: Vec<String> = [
        "tiers/default",
        "tiers/kube-admin",
        "tiers/kube-baseline",
        INFORMATION,
        "felixconfigurations/default",
    ]
    .map(str::to_owned)
    .into();
    keys.extend(
        nodes.iter().flat_map(|node| [format!("felixconfigurations/node.{node}"), format!("nodes/{node}")]),
    );
    keys.sort();
    keys
}

#[test]
fn a_store_that_only_canal_has_touched_gets_what_calicos_tools_expect_once() {
    let world = World::builder().nodes(3).build().unwrap();
    let etcd = world.etcd();
    world.start_agents().unwrap();
    let names = ["node1", "node2", "node3"];
    assert!(soon(|| objects(etcd) == expected(&names)), "{:?}", objects(etcd));
    let before = etcd.list(RESOURCES).unwrap();
    let information = object(etcd, INFORMATION).unwrap();
    assert_eq!(information["spec"]["clusterType"], "k8s,canal");
    assert_eq!(information["spec"]["datastoreReady"], true);
    assert_eq!(information["spec"]["clusterGUID"].as_str().unwrap().len(), 32);
    assert!(information["spec"].get("calicoVersion").is_none(), "calicoctl would insist on that release");
    assert_eq!(
        object(etcd, "tiers/default").unwrap()["spec"],
        json!({ "order": 1_000_000, "defaultAction": "Deny" })
    );
    for (number, name) in (1..).zip(names) {
        let felix = object(etcd, &format!("felixconfigurations/node.{name}")).unwrap();
        assert_eq!(felix["spec"], json!({ "defaultEndpointToHostAction": "Return" }));
        let file = world.node(number).agent().nodename_file();
        assert!(soon(|| fs::read_to_string(&file).is_ok_and(|text| text == name)));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
        // All well, also for whoever looks at the exit status.
        let status = world.node(number).agent().status().unwrap();
        assert_eq!(
            (&status["problems"], &status["notices"], &status["invalid"]),
            (&json!([]), &json!([]), &json!({}))
        );
    }
    world.node(1).agent().crash_and_restart().unwrap();
    assert!(soon(|| problems(world.node(1)) == "[]"));
    let marker = policy::allow_all();
    etcd.put_global_policy("marker", marker).unwrap();
    world.node(1).add_pod("a", &[]).unwrap();
    for (key, value) in before {
        assert_eq!(
            etcd.get(&key).unwrap().as_deref(),
            Some(value.as_str()),
            "a second start changes nothing"
        );
    }
}

#[test]
fn what_is_there_is_completed_and_every_decision_in_it_stays() {
    let world = one_node();
    let etcd = world.etcd();
    let put =
        |rest: &str, value: &Value| etcd.put(&format!("{RESOURCES}{rest}"), &value.to_string()).unwrap();
    put(
        INFORMATION,
        &json!({ "kind": "ClusterInformation", "apiVersion": "projectcalico.org/v3",
        "metadata": { "name": "default", "uid": "u-1", "creationTimestamp": "2020-01-02T03:04:05Z", "labels": { "a": "b" } },
        "spec": { "clusterType": "k8s,bgp", "calicoVersion": "v3.26.1", "new": { "x": 1 } } }),
    );
    put("tiers/default", &json!({ "spec": { "order": 5, "defaultAction": "Pass" } }));
    put("felixconfigurations/node.node1", &json!({ "spec": { "defaultEndpointToHostAction": "Accept" } }));
    put("nodes/node1", &json!({ "spec": { "bgp": { "ipv4Address": "192.0.2.1/24" } } }));
    let agent = world.node(1).agent();
    agent.set_env("CLUSTER_TYPE", "k8s,nomad");
    agent.set_env("CALICO_K8S_NODE_REF", "kube-1");
    agent.start().unwrap();
    assert!(soon(|| objects(etcd) == expected(&["node1"])), "{:?}", objects(etcd));
    let information = object(etcd, INFORMATION).unwrap();
    assert_eq!(information["metadata"]["uid"], "u-1");
    assert_eq!(information["metadata"]["creationTimestamp"], "2020-01-02T03:04:05Z");
    assert_eq!(information["metadata"]["labels"], json!({ "a": "b" }));
    assert_eq!(information["spec"]["clusterType"], "k8s,bgp,canal,nomad");
    assert_eq!(information["spec"]["calicoVersion"], "v3.26.1");
    assert_eq!(information["spec"]["new"], json!({ "x": 1 }));
    assert_eq!(information["spec"]["datastoreReady"], true);
    assert_eq!(object(etcd, "tiers/default").unwrap()["spec"]["order"], 5);
    let felix = object(etcd, "felixconfigurations/node.node1").unwrap();
    assert_eq!(felix["spec"]["defaultEndpointToHostAction"], "Accept");
    let node = object(etcd, "nodes/node1").unwrap();
    assert_eq!(node["spec"]["orchRefs"], json!([{ "nodeName": "kube-1", "orchestrator": "k8s" }]));
    assert_eq!(node["spec"]["bgp"]["ipv4Address"], "192.0.2.1/24");
}

#[test]
fn what_no_tool_can_do_without_is_made_again_and_other_deletions_stand() {
    let world = one_node();
    let etcd = world.etcd();
    let agent = world.node(1).agent();
    agent.start().unwrap();
    assert!(soon(|| objects(etcd) == expected(&["node1"])));
    delete(etcd, "tiers/kube-admin");
    delete(etcd, "felixconfigurations/node.node1");
    delete(etcd, "tiers/default");
    assert!(
        soon(|| objects(etcd) == expected(&["node1"])),
        "with it comes whatever is missing: {:?}",
        objects(etcd)
    );
    let guid = object(etcd, INFORMATION).unwrap()["spec"]["clusterGUID"].clone();
    delete(etcd, INFORMATION);
    assert!(soon(|| object(etcd, INFORMATION).is_some()));
    assert_ne!(object(etcd, INFORMATION).unwrap()["spec"]["clusterGUID"], guid);
    assert!(agent.says(&["somebody deleted", "clusterinformations/default"], SOON));

    // The node was taken out of service, say. Longer than the others took.
    delete(etcd, "nodes/node1");
    assert!(!until(Duration::from_secs(3), || object(etcd, "nodes/node1").is_some()));
    agent.crash_and_restart().unwrap();
    assert!(soon(|| object(etcd, "nodes/node1").is_some()));
    fs::remove_file(agent.nodename_file()).unwrap();
    etcd.del_prefix("/calico/").unwrap();
    assert!(soon(|| objects(etcd) == expected(&["node1"])), "{:?}", objects(etcd));
    assert!(soon(|| agent.nodename_file().exists()));
}

#[test]
fn an_etcd_that_refuses_the_objects_costs_no_pod_anything_and_is_asked_again() {
    let world = one_node();
    let etcd = world.etcd();
    let node = world.node(1);
    for line in [
        "user add root:secret",
        "user grant-role root root",
        "role add canal",
        "role grant-permission canal read /coreos.com/network/ --prefix=true",
        "role grant-permission canal readwrite /coreos.com/network/subnets/ --prefix=true",
        "role grant-permission canal read /calico/resources/v3/projectcalico.org/ --prefix=true",
        "role grant-permission canal readwrite /calico/resources/v3/projectcalico.org/workloadendpoints/ --prefix=true",
        "role grant-permission canal readwrite /calico/resources/v3/projectcalico.org/profiles/ --prefix=true",
        "user add canal:pass",
        "user grant-role canal canal",
        "auth enable",
    ] {
        etcd.ctl(&line.split(' ').collect::<Vec<_>>()).unwrap();
    }
    node.agent().set_env("ETCD_USERNAME", "canal");
    node.agent().set_env("ETCD_PASSWORD", "pass");
    node.agent().start().unwrap();
    assert!(soon(|| problems(node).contains("not initialised")), "{}", problems(node));
    has(&problems(node), &["clusterinformations/default", "6 more", "permission denied", "grant-permission"]);
    let (a, b) = (node.add_pod("a", &[]).unwrap(), node.add_pod("b", &[]).unwrap());
    assert!(a.pings(b.ip()));
    etcd.ctl(&[
        "--user",
        "root:secret",
        "role",
        "grant-permission",
        "canal",
        "readwrite",
        "/calico/resources/v3/projectcalico.org/",
        "--prefix=true",
    ])
    .unwrap();
    assert!(until(RETRIED * 2, || problems(node) == "[]"), "{}", problems(node));
}

#[test]
fn a_nodename_file_that_cannot_be_written_is_a_problem_and_nothing_else() {
    let world = one_node();
    let node = world.node(1);
    let file = node.folder().join("a-file");
    fs::write(&file, "").unwrap();
    node.agent().set_flag("--nodename-file", &file.join("nodename").display().to_string());
    node.agent().start().unwrap();
    assert!(soon(|| problems(node).contains("a-file/nodename")), "{}", problems(node));
    has(&problems(node), &["--nodename-file", "node1"]);
    node.add_pod("a", &[]).unwrap();
}

#[test]
fn the_stored_name_is_this_nodes_until_it_is_told_another() {
    let world = one_node();
    let node = world.node(1);
    let agent = node.agent();
    fs::create_dir_all(agent.nodename_file().parent().unwrap()).unwrap();
    fs::write(agent.nodename_file(), "Stored.Name\n").unwrap();
    agent.unset_flag("--node-name");
    agent.start().unwrap();
    assert_eq!(agent.status().unwrap()["node"], "Stored.Name");
    agent.terminate().unwrap();
    // The lease bears the other name, and would be another node's.
    world.etcd().del_prefix("/coreos.com/network/subnets/").unwrap();
    agent.set_env("NODENAME", "told");
    agent.start().unwrap();
    let status = agent.status().unwrap();
    assert_eq!(status["node"], "told");
    has(&status["notices"].to_string(), &["Stored.Name", "told", "endpoints"]);
    assert!(soon(|| fs::read_to_string(agent.nodename_file()).is_ok_and(|text| text == "told")));
    assert!(soon(|| problems(node) == "[]"), "{}", problems(node));
    agent.terminate().unwrap();
    fs::write(agent.nodename_file(), "no name").unwrap();
    has(&refusal(agent_by(node, "env -u HOSTNAME")), &["nodename", "no name", "--node-name"]);
}

#[test]
fn the_unit_of_calico_node_starts_canal_as_it_is() {
    let world = one_node();
    let node = world.node(1);
    let agent = node.agent();
    for flag in ["--node-name", "--etcd-endpoints", "--public-ip"] {
        agent.unset_flag(flag);
    }
    for (name, value) in [
        ("CALICO_DISABLE_FILE_LOGGING", "true"),
        ("NODENAME", "192.168.50.1"),
        ("IP", "192.168.50.1"),
        ("FELIX_FELIXHOSTNAME", "192.168.50.1"),
        ("CALICO_NETWORKING", "false"),
        ("NO_DEFAULT_POOLS", "true"),
        ("ETCD_ENDPOINTS", "http://192.168.60.254:2379"),
    ] {
        agent.set_env(name, value);
    }
    agent.start().unwrap();
    let status = agent.status().unwrap();
    assert_eq!(status["node"], "192.168.50.1");
    assert_eq!(status["notices"], json!(["environment of calico/node: no effect here: IP"]));
    node.add_pod("a", &[]).unwrap();
    let key = format!("{RESOURCES}workloadendpoints/default/192.168.50.1-cni-");
    assert!(soon(|| world.etcd().workload_endpoints().unwrap().iter().any(|k| k.starts_with(&key))));
    assert!(soon(|| object(world.etcd(), "nodes/192.168.50.1").is_some()));
    assert!(world.etcd().keys(&format!("{RESOURCES}ippools/")).unwrap().is_empty());
}

fn say_ready(etcd: &Etcd, ready: bool) {
    let mut information = object(etcd, INFORMATION).unwrap();
    information["spec"]["datastoreReady"] = json!(ready);
    etcd.put(&format!("{RESOURCES}{INFORMATION}"), &information.to_string()).unwrap();
}

#[test]
fn while_the_datastore_is_not_ready_what_stands_stays_and_what_came_meanwhile_counts_at_once_later() {
    let world = one_node();
    let (etcd, node) = (world.etcd(), world.node(1));
    node.agent().start().unwrap();
    let (a, b) = (node.add_pod("a", &[("app", "a")]).unwrap(), node.add_pod("b", &[("app", "b")]).unwrap());
    let _server = b.serve_tcp(9000).unwrap();
    let live = LiveConnection::open(a.netns(), b.ip(), 9000).unwrap();
    let invalid = || node.agent().status().unwrap()["invalid"].to_string();
    assert!(soon(|| object(etcd, INFORMATION).is_some()));

    say_ready(etcd, false);
    assert!(soon(|| problems(node).contains("datastoreReady: false")), "{}", problems(node));
    etcd.put_global_policy("deny", policy::ingress(1, "app == 'b'", json!([]))).unwrap();
    etcd.put(&format!("{RESOURCES}globalnetworkpolicies/broken"), "{").unwrap();
    etcd.del_prefix(&format!("{RESOURCES}profiles/")).unwrap();
    assert!(soon(|| problems(node).contains("later changes wait")), "{}", problems(node));
    // A pod is made on what stands, and the exit status says that something is the matter.
    let c = node.add_pod("c", &[("app", "c")]).unwrap();
    assert!(c.pings(b.ip()) && a.pings(b.ip()) && live.is_alive() && invalid() == "{}");

    // A process that starts now does not know what stands, and leaves it.
    node.agent().kill_9();
    node.agent().spawn().unwrap();
    assert!(soon(|| problems(node).contains("no pod can be added")), "{}", problems(node));
    assert!(c.pings(b.ip()) && live.is_alive());
    let refused = node.add_pod("d", &[]).unwrap_err().to_string();
    has(&refused, &["datastoreReady", "11"]);

    say_ready(etcd, true);
    live.cut_within(SOON).unwrap();
    assert!(!a.pings(b.ip()) && invalid().contains("broken"));
    assert!(soon(|| problems(node) == "[]"), "{}", problems(node));
}
