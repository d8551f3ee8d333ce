//! Every verb of every version, in every dialect.

use bpf_tests::{Host, Netns, Node};
use serde_json::{Value, json};

use super::{Call, after, comes_to_hold, config, ip, netns, talks};
use crate::one_node;

const DIALECTS: [&str; 3] = ["canal-cni", "flannel", "calico"];
/// An empty one is left out.
const VERSIONS: [&str; 7] = ["", "0.1.0", "0.2.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

fn of_dialect(node: &Node, dialect: &str, version: &str) -> Value {
    let mut config = config(node, version);
    config["type"] = json!(dialect);
    if version.is_empty() {
        config.as_object_mut().unwrap().remove("cniVersion");
    }
    if dialect == "flannel" {
        config["dataDir"] = json!(node.folder().join("flannel"));
        config["delegate"] = json!({"type": "calico", "include_default_routes": true});
    }
    config
}

/// Since when the verb exists; `None`: it works, or the version is none of this dialect's.
fn refusal(dialect: &str, version: &str, verb: &str) -> Option<u64> {
    let canals = dialect != "canal-cni" || version >= "0.3.1";
    let since = match verb {
        "CHECK" => "0.4.0",
        "GC" | "STATUS" => "1.1.0",
        _ => "",
    };
    (!canals || version < since).then_some(1)
}

#[test]
fn every_verb_works_in_every_version_that_has_it_and_is_refused_in_the_others() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    for dialect in DIALECTS {
        for version in VERSIONS {
            let name = format!("{}{}", &dialect[..2], version.replace('.', ""));
            let pod = netns(&world, &name);
            each_verb(node, &pod, &name, dialect, version);
        }
    }
    comes_to_hold(&world, node, 0);
}

fn each_verb(node: &Node, pod: &Netns, name: &str, dialect: &str, version: &str) {
    let config = of_dialect(node, dialect, version);
    let call = |verb, config: &Value| Call::new(node, verb, pod, name).with(config);
    let mut prev = Value::Null;
    for verb in ["VERSION", "STATUS", "ADD", "CHECK", "GC", "DEL"] {
        let mut config = config.clone();
        if !prev.is_null() {
            config["prevResult"] = prev.clone();
        }
        config["cni.dev/valid-attachments"] =
            json!([{"containerID": bpf_tests::pod::container_id(name), "ifname": "eth0"}]);
        let what = format!("{dialect} {version:?} {verb}");
        if verb == "VERSION" {
            let said: Value = serde_json::from_str(&call(verb, &config).works()).unwrap();
            let supported: Vec<&str> =
                said["supportedVersions"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
            let all = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
            assert_eq!(supported, if dialect == "canal-cni" { &all[3..] } else { &all[..] }, "{what}");
            continue;
        }
        if let Some(code) = refusal(dialect, version, verb) {
            let said = call(verb, &config).fails_with(code);
            assert!(said.contains("cniVersion") || said.contains("not supported"), "{what}: {said}");
            continue;
        }
        if verb == "ADD" {
            prev = call(verb, &config).result();
            has_the_shape(&prev, if version.is_empty() { "0.2.0" } else { version });
            let address = prev.get("ip4").map_or_else(|| ip(&prev), |ip4| address(&ip4["ip"]));
            assert!(talks(node, pod, address), "{what}");
        } else {
            assert_eq!(call(verb, &config).works(), "", "{what}");
            assert_eq!(pod.ip("link show eth0").is_ok(), ["CHECK", "GC"].contains(&verb), "{what}");
        }
    }
}

fn address(text: &Value) -> std::net::Ipv4Addr {
    text.as_str().unwrap().split('/').next().unwrap().parse().unwrap()
}

fn has_the_shape(result: &Value, version: &str) {
    assert_eq!(result["cniVersion"], version, "{result}");
    let keys: Vec<&str> = result.as_object().unwrap().keys().map(String::as_str).collect();
    if version < "0.3.0" {
        assert_eq!(keys, ["cniVersion", "dns", "ip4"], "{result}");
        assert_eq!(result["ip4"]["routes"].as_array().unwrap().last().unwrap()["dst"], "0.0.0.0/0");
        return;
    }
    assert_eq!(keys, ["cniVersion", "dns", "interfaces", "ips", "routes"], "{result}");
    let [host, inside] = &result["interfaces"].as_array().unwrap()[..] else { panic!("{result}") };
    assert!(host.get("sandbox").is_none() && inside["sandbox"].is_string(), "{result}");
    let mtu = if version == "1.1.0" { json!(1450) } else { Value::Null };
    assert_eq!((&host["mtu"], &inside["mtu"]), (&mtu, &mtu));
    assert_eq!(result["ips"][0]["interface"], 1, "{result}");
    let family = if version < "1.0.0" { json!("4") } else { Value::Null };
    assert_eq!(result["ips"][0]["version"], family, "{result}");
    assert!(result["ips"][0].get("gateway").is_none(), "{result}");
    let routes = result["routes"].as_array().unwrap();
    assert!(routes.iter().all(|route| route["gw"] == "169.254.1.1"), "{result}");
    assert_eq!(routes.last().unwrap()["dst"], "0.0.0.0/0", "{result}");
}

#[test]
fn what_earlier_plugins_made_is_passed_on() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    let pod = netns(&world, "p");
    let earlier = json!({
        "cniVersion": "1.0.0", "interfaces": [{"name": "dummy0", "sandbox": "/x"}],
        "ips": [{"address": "192.0.2.7/24", "interface": 0}], "routes": [{"dst": "192.0.2.0/24"}],
        "dns": {"nameservers": ["192.0.2.53"]},
    });
    let config = after(&earlier, config(node, "1.0.0"));
    let result = Call::new(node, "ADD", &pod, "p").with(&config).result();
    let interfaces = result["interfaces"].as_array().unwrap();
    assert_eq!((interfaces.len(), &interfaces[0]), (3, &earlier["interfaces"][0]), "{result}");
    assert_eq!(interfaces[2]["name"], "eth0", "{result}");
    assert_eq!(result["ips"][0], earlier["ips"][0], "{result}");
    assert_eq!(result["ips"][1]["interface"], 2, "{result}");
    assert_eq!(result["routes"][0], earlier["routes"][0], "{result}");
    assert_eq!(result["dns"], earlier["dns"], "{result}");
    let check = || Call::new(node, "CHECK", &pod, "p").with(&after(&result, config.clone()));
    check().works();
    Call::new(node, "DEL", &pod, "p").with(&after(&result, config.clone())).works();
    assert!(node.netns().ip("link show type veth").is_ok_and(|links| !links.contains("cali")));
}
