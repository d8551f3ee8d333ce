//! The same container, or one that is hard to tell from it, once more.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use bpf_tests::{Cmd, Host, Netns, Node, World, policy::RESOURCES, until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use super::{Call, Held, LOOKED_AGAIN, comes_to_hold, config, ip, leases, netns, talks, veths};
use crate::{one_node, soon};

fn endpoint(world: &World, key: &str) -> Value {
    let text = world.etcd().get(&format!("{RESOURCES}workloadendpoints/{key}")).unwrap();
    text.map_or(Value::Null, |text| serde_json::from_str(&text).unwrap())
}

#[test]
fn a_second_add_gives_the_same_answer_and_makes_nothing() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    let pod = netns(&world, "p");
    let add = || Call::new(node, "ADD", &pod, "p");
    let first = add().result();
    comes_to_hold(&world, node, 1);
    let before = Held::of(&world, node);
    for version in ["0.4.0", "1.1.0"] {
        let again = add().with(&config(node, version)).result();
        assert_eq!(again["interfaces"][1]["mac"], first["interfaces"][1]["mac"]);
        assert_eq!((ip(&again), &again["routes"]), (ip(&first), &first["routes"]));
        if version == "1.1.0" {
            assert_eq!(again, first);
        }
    }
    assert_eq!(Held::of(&world, node), before);
    assert!(talks(node, &pod, ip(&first)));

    let mut other = config(node, "1.1.0");
    other["runtimeConfig"] = json!({"ips": ["10.100.0.77"]});
    assert!(add().with(&other).fails_with(105).contains("DEL"), "another address is not the same");
    let mut other = config(node, "1.1.0");
    other["name"] = json!("other");
    assert!(add().with(&other).fails_with(105).contains("network canal"), "nor is another network");
    assert_eq!(Held::of(&world, node), before);
    // What somebody took away is made again.
    pod.ip(&format!("addr del {}/32 dev eth0", ip(&first))).unwrap();
    let again = add().result();
    assert!(talks(node, &pod, ip(&again)));
    comes_to_hold(&world, node, 1);
    add().verb("DEL").works();
    comes_to_hold(&world, node, 0);
}

/// A folder with a `host-local` that is a script around the real one.
fn wrapped(node: &Node, name: &str, script: &str) -> PathBuf {
    let folder = node.folder().join(name);
    fs::create_dir_all(&folder).unwrap();
    let program = folder.join("host-local");
    let real = super::host_local();
    fs::write(&program, script.replace("REAL", &real.display().to_string())).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// Kills the plugin before `host-local` was at work, and after.
const KILLERS: [(&str, &str); 2] =
    [("before", "#!/bin/sh\nkill -9 $PPID\n"), ("after", "#!/bin/sh\nREAL > /dev/null\nkill -9 $PPID\n")];

#[test]
fn an_add_that_was_killed_is_made_good_by_the_next_and_by_del() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    for (name, script) in KILLERS {
        let folder = wrapped(node, name, script).display().to_string();
        let pod = netns(&world, name);
        let killed = || Call { path: folder.clone(), ..Call::new(node, "ADD", &pod, name) };
        let output = killed().make();
        assert!(output.status.code().is_none() || output.status.code() == Some(137), "{output:?}");
        assert!(pod.ip("link show eth0").is_err());
        let result = Call::new(node, "ADD", &pod, name).result();
        assert!(talks(node, &pod, ip(&result)), "{name}");
        comes_to_hold(&world, node, 1);
        Call::new(node, "DEL", &pod, name).works();
        comes_to_hold(&world, node, 0);

        drop(killed().make());
        Call::new(node, "DEL", &pod, name).works();
        comes_to_hold(&world, node, 0);
    }
}

/// An ADD of which everything is made, and whose last request the agent, which is stopped, has not read.
fn killed_while_the_agent_hangs(node: &Node, pod: &Netns, name: &str) {
    let agent = node.agent().pid().unwrap();
    let stops = format!("#!/bin/sh\nREAL\nstatus=$?\nkill -STOP {agent}\nexit $status\n");
    let path = wrapped(node, "stops", &stops).display().to_string();
    let output = std::thread::scope(|scope| {
        let call = Call { path, ..Call::new(node, "ADD", pod, name) };
        let (tell, told) = std::sync::mpsc::channel();
        let adding = scope.spawn(move || call.command().output_telling(|pid| tell.send(pid).unwrap()));
        let plugin = told.recv().unwrap();
        // The pod is complete, and a connection waits for the agent.
        let socket = node.agent().socket().display().to_string();
        let waits = || {
            let routes = pod.ip("route show default").unwrap();
            let listeners = node.netns().cmd("ss -xlH").run().unwrap();
            let queue = listeners
                .lines()
                .find(|line| line.contains(&socket))
                .and_then(|l| l.split_whitespace().nth(2));
            routes.contains("169.254.1.1") && queue.is_some_and(|queue| queue != "0")
        };
        let waited = until(crate::SOON, waits);
        kill(Pid::from_raw(plugin.cast_signed()), Signal::SIGKILL).unwrap();
        assert!(waited);
        adding.join().unwrap().unwrap()
    });
    assert!(!output.ok());
    assert_eq!((veths(node), leases(node).len()), (1, 1));
}

fn go_on(node: &Node) {
    kill(Pid::from_raw(node.agent().pid().unwrap().cast_signed()), Signal::SIGCONT).unwrap();
}

#[test]
fn an_add_that_is_killed_while_the_agent_hangs_is_made_good_by_the_next_and_by_del() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    let pod = netns(&world, "p");
    killed_while_the_agent_hangs(node, &pod, "p");
    go_on(node);
    let result = Call::new(node, "ADD", &pod, "p").result();
    assert!(talks(node, &pod, ip(&result)));
    comes_to_hold(&world, node, 1);
    Call::new(node, "DEL", &pod, "p").works();
    comes_to_hold(&world, node, 0);

    // The agent hears of both at once, of the ADD first.
    let pod = netns(&world, "q");
    killed_while_the_agent_hangs(node, &pod, "q");
    Call::new(node, "DEL", &pod, "q").works();
    assert_eq!((veths(node), leases(node).len()), (0, 0));
    go_on(node);
    comes_to_hold(&world, node, 0);
}

#[test]
fn what_the_plugin_had_started_ends_with_it() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    let pod = netns(&world, "p");
    let file = node.folder().join("hangs.pid");
    let hangs = format!("#!/bin/sh\necho $$ > {0}.new\nmv {0}.new {0}\nexec sleep 300\n", file.display());
    let path = wrapped(node, "hangs", &hangs).display().to_string();
    let started = std::thread::scope(|scope| {
        let call = Call { path, ..Call::new(node, "ADD", &pod, "p") };
        let (tell, told) = std::sync::mpsc::channel();
        let adding = scope.spawn(move || call.command().output_telling(|pid| tell.send(pid).unwrap()));
        let plugin = told.recv().unwrap();
        let begun = until(crate::SOON, || file.exists());
        kill(Pid::from_raw(plugin.cast_signed()), Signal::SIGKILL).unwrap();
        assert!(begun && !adding.join().unwrap().unwrap().ok());
        fs::read_to_string(&file).unwrap()
    });
    // Or it is somebody else by now.
    let command = format!("/proc/{}/comm", started.trim());
    assert!(soon(|| !fs::read_to_string(&command).is_ok_and(|name| name.trim() == "sleep")));
    Call::new(node, "DEL", &pod, "p").works();
    comes_to_hold(&world, node, 0);
}

#[test]
fn a_container_in_a_new_namespace_takes_over_from_its_old_one() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    let (old, new) = (netns(&world, "old"), netns(&world, "new"));
    Call::new(node, "ADD", &old, "p").works();
    let result = Call::new(node, "ADD", &new, "p").result();
    assert!(old.ip("link show eth0").is_err(), "the old one's interface is gone");
    assert!(talks(node, &new, ip(&result)));
    comes_to_hold(&world, node, 1);
    Call::new(node, "DEL", &new, "p").works();
    comes_to_hold(&world, node, 0);
}

#[test]
fn a_pod_that_is_made_anew_keeps_its_endpoint_when_the_old_container_goes() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    let (old, new) = (netns(&world, "old"), netns(&world, "new"));
    let key = "shop/node1-k8s-web--0-eth0";
    let first = Call::new(node, "ADD", &old, "old").of_pod("shop", "web-0").result();
    let second = Call::new(node, "ADD", &new, "new").of_pod("shop", "web-0").result();
    assert_ne!(first["interfaces"][0]["name"], second["interfaces"][0]["name"]);
    let is_the_seconds =
        || endpoint(&world, key)["spec"]["containerID"] == bpf_tests::pod::container_id("new");
    assert!(soon(is_the_seconds), "{}", endpoint(&world, key));
    assert!(talks(node, &new, ip(&second)));
    Call::new(node, "DEL", &old, "old").of_pod("shop", "web-0").works();
    comes_to_hold(&world, node, 1);
    assert!(is_the_seconds(), "{}", endpoint(&world, key));
    assert!(talks(node, &new, ip(&second)));
    let expected = json!([format!("{}/32", ip(&second))]);
    assert_eq!(endpoint(&world, key)["spec"]["ipNetworks"], expected);
    Call::new(node, "DEL", &new, "new").of_pod("shop", "web-0").works();
    comes_to_hold(&world, node, 0);
}

#[test]
fn containers_whose_ids_begin_alike_both_talk() {
    let world = one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    let (one, other) = (netns(&world, "one"), netns(&world, "other"));
    let call = |verb, pod, id: &str| Call { id: id.to_owned(), ..Call::new(node, verb, pod, "x") };
    let first = call("ADD", &one, "0123456789abc").result();
    let second = call("ADD", &other, "0123456789abd").result();
    assert_eq!(first["interfaces"][0]["name"], "cali0123456789a");
    assert_ne!(second["interfaces"][0]["name"], "cali0123456789a");
    assert!(talks(node, &one, ip(&first)) && talks(node, &other, ip(&second)));
    comes_to_hold(&world, node, 2);
    call("DEL", &other, "0123456789abd").works();
    assert!(talks(node, &one, ip(&first)));
    let names = Cmd::line("ip -n").arg(node.netns().name()).args(["-br", "link"]).run().unwrap();
    assert!(names.contains("cali0123456789a"), "{names}");
    call("DEL", &one, "0123456789abc").works();
    comes_to_hold(&world, node, 0);
    assert!(until(LOOKED_AGAIN, || !node.netns().ip("-br link").unwrap().contains("cali")));
}
