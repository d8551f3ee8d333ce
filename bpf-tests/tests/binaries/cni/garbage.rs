//! Whatever a caller gives: an answer, and nothing left.

use std::{
    env,
    time::{SystemTime, UNIX_EPOCH},
};

use bpf_tests::{Netns, Node, dice::Dice};
use serde_json::{Value, json};

use super::{Call, comes_to_hold, config, netns};
use crate::one_node;

const CALLS: usize = 300;

/// From another beginning each time: `CANAL_SEED` tells one again.
pub(super) fn seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    let seed = env::var("CANAL_SEED").map_or(now.into(), |text| text.parse().unwrap());
    println!("CANAL_SEED={seed}");
    seed
}

/// What may stand anywhere.
fn odd(dice: &mut Dice) -> Value {
    dice.value(&[
        Value::Null,
        json!(""),
        json!("x"),
        json!("../../x"),
        json!("\u{0}\u{1b}[31m\n"),
        json!("10.100.0.7"),
        json!("10.100.0.0/16"),
        json!("fd00::1"),
        json!("ü".repeat(300)),
        json!(-1),
        json!(0),
        json!(1.5e300),
        json!(u64::MAX),
        json!(true),
        json!([]),
        json!({}),
        json!([[[{"subnet": "10.0.0.0/33"}]]]),
        json!([{"dst": "0.0.0.0/0", "gw": 1}]),
        json!({"type": "calico", "ipam": {}}),
    ])
}

/// Names that mean something, so that oddities come to where they are read.
const KEYS: [&str; 30] = [
    "cniVersion",
    "name",
    "type",
    "socket",
    "subnetFile",
    "ipam",
    "args",
    "prevResult",
    "delegate",
    "runtimeConfig",
    "dataDir",
    "mtu",
    "nodename",
    "policy",
    "kubernetes",
    "cni",
    "labels",
    "ips",
    "mac",
    "ranges",
    "routes",
    "subnet",
    "rangeStart",
    "rangeEnd",
    "gateway",
    "dns",
    "capabilities",
    "cni.dev/valid-attachments",
    "nodename_file",
    "container_settings",
];

/// Changes one place somewhere in it.
fn mutate(dice: &mut Dice, value: &mut Value) {
    match value {
        Value::Object(object) if !object.is_empty() && dice.chance(70) => {
            let keys: Vec<String> = object.keys().cloned().collect();
            let key = &keys[dice.below(keys.len())];
            if dice.chance(10) {
                object.remove(key);
            } else {
                mutate(dice, &mut object[key]);
            }
        }
        Value::Object(object) => drop(object.insert(dice.pick(&KEYS).to_owned(), odd(dice))),
        Value::Array(list) if !list.is_empty() && dice.chance(70) => {
            let at = dice.below(list.len());
            mutate(dice, &mut list[at]);
        }
        Value::Array(list) => list.push(odd(dice)),
        _ => *value = odd(dice),
    }
}

/// Changes, removes or doubles some bytes.
fn garble(dice: &mut Dice, text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..=dice.below(4) {
        if bytes.is_empty() {
            break;
        }
        let at = dice.below(bytes.len());
        match dice.below(4) {
            0 => bytes[at] = u8::try_from(dice.below(256)).unwrap(),
            1 => drop(bytes.remove(at)),
            2 => bytes.insert(at, b"{}[]\",:\\0"[dice.below(9)]),
            _ => bytes.truncate(at.max(1)),
        }
    }
    bytes
}

/// For any of the variables; none has a NUL, which no environment can hold.
const WORDS: [&str; 16] = [
    "",
    "ADD",
    "x",
    "../x",
    "a-",
    "eth0/..",
    "waytoolongforaninterface",
    "\u{1b}[31m\n",
    "ü",
    "IP=10.100.0.300",
    "IgnoreUnknown=2",
    "K8S_POD_NAMESPACE=a;K8S_POD_NAME=B",
    "MAC=ff:ff:ff:ff:ff:ff",
    "a=b;c",
    "/proc/self/ns/net",
    "/dev/null",
];

fn call<'a>(dice: &mut Dice, node: &'a Node, pod: &Netns, at: usize) -> (Call<'a>, Vec<u8>) {
    let verb = dice.pick(&["ADD", "ADD", "ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"]);
    let mut config = config(node, dice.pick(&["0.3.1", "0.4.0", "1.0.0", "1.1.0", "1.1.0"]));
    let kind = dice.pick(&["canal-cni", "flannel", "calico"]);
    config["type"] = json!(kind);
    if kind == "flannel" {
        config["dataDir"] = json!(node.folder().join("flannel"));
        config["delegate"] = json!({"type": dice.pick(&["calico", "bridge"])});
    }
    config["args"] = json!({"cni": {"labels": [{"key": "app", "value": "web"}]}});
    config["cni.dev/valid-attachments"] = json!([{"containerID": "x", "ifname": "eth0"}]);
    let whole = config.clone();
    for _ in 0..=dice.below(3) {
        mutate(dice, &mut config);
    }
    // These decide whom it touches: this test's own things, or the machine's.
    for key in ["socket", "subnetFile"] {
        config[key] = whole[key].clone();
    }
    if config["ipam"]["dataDir"] != whole["ipam"]["dataDir"] {
        config["ipam"] = whole["ipam"].clone();
    }
    if config.get("dataDir").is_some() || config["type"] == "flannel" {
        config["dataDir"] = json!(node.folder().join("flannel"));
    }
    let text = config.to_string();
    // Without the places of this test only what changes nothing on the machine.
    let stdin = if dice.chance(25) && !["DEL", "GC"].contains(&verb) {
        garble(dice, r#"{"cniVersion":"1.0.0","name":"canal","type":"canal-cni","ipam":{"type":"dhcp"}}"#)
    } else {
        text.into_bytes()
    };
    let mut call = Call { id: format!("fuzz{at}"), ..Call::new(node, verb, pod, "x") };
    if dice.chance(40) {
        let word = dice.pick(&WORDS).to_owned();
        match dice.below(6) {
            0 => call.id = word,
            1 => call.netns = word,
            2 => call.interface = word,
            3 => call.path = word,
            4 => call.arguments = word,
            _ => call.verb = dice.pick(&["", "add", "FOO", "\u{1b}"]),
        }
    }
    (call, stdin)
}

#[test]
fn no_call_makes_it_panic_and_each_gets_an_answer_and_leaves_nothing() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    let pod = netns(&world, "p");
    let seed = seed();
    let mut dice = Dice(seed);
    let mut worked = 0;
    for at in 0..CALLS {
        let (call, stdin) = call(&mut dice, node, &pod, at);
        let shown = || format!("CANAL_SEED={seed}, call {at}: {:?}", String::from_utf8_lossy(&stdin));
        let (verb, id, interface) = (call.verb, call.id.clone(), call.interface.clone());
        let output = call.clone().command().stdin(stdin.clone()).output().unwrap();
        assert!(matches!(output.status.code(), Some(0 | 1)), "{}: {output:?}", shown());
        assert!(!output.stderr.contains("panicked"), "{}: {output:?}", shown());
        if !output.ok() {
            let error: Value = serde_json::from_str(&output.stdout)
                .unwrap_or_else(|e| panic!("{}: {e}: {output:?}", shown()));
            assert!(error["code"].as_u64().is_some_and(|code| code > 0), "{}: {error}", shown());
            let text = format!("{}{}", error["msg"].as_str().unwrap(), error["details"].as_str().unwrap());
            assert!(!text.contains(char::is_control), "{}: {error}", shown());
            assert_eq!(output.stdout.lines().count(), 1, "{}: {output:?}", shown());
        } else if verb == "ADD" {
            worked += 1;
            let result: Value = serde_json::from_str(&output.stdout).unwrap();
            assert!(result.get("ips").or(result.get("ip4")).is_some(), "{}: {result}", shown());
            // Under whatever network it was added.
            let del = Call { verb: "DEL", id, interface, ..call };
            assert!(del.command().stdin(stdin.clone()).output().unwrap().ok(), "{}", shown());
        }
    }
    assert!(worked > 5, "most calls fail before they do anything");
    assert!(pod.ip("-br link").unwrap().lines().all(|link| link.starts_with("lo")));
    comes_to_hold(&world, node, 0);
    let networks = super::files(&node.folder().join("ipam"), |_| true);
    for network in networks {
        let left = super::files(&node.folder().join("ipam").join(&network), |name| name.starts_with("10."));
        assert!(left.is_empty(), "{network}: {left:?}");
    }
}
