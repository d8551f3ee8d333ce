//! `canal-agent cni install` and `uninstall`, and pods by what they leave.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use bpf_tests::{Cmd, Host as _, Netns, Node, agent::binary, cmd::Output, pod::container_id, until};
use serde_json::{Value, json};

use crate::{RETRIED, SOON, one_node, refusal, soon};

/// The last lines of the guide of Canal phase 1, with an etcd that need not be there.
const PHASE_1: &str = r#"{
    "name": "canal",
    "type": "flannel",
    "delegate": {
        "type": "calico",
        "etcd_endpoints": "http://192.0.2.1:2379",
        "nodename": "node1"
    }
}"#;

/// One host as a runtime sees it.
struct Machine<'a> {
    node: &'a Node,
}

impl Machine<'_> {
    fn file(&self, name: &str) -> PathBuf {
        self.node.folder().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.file(name).display().to_string()
    }

    /// `canal-agent cni`, with this host's folders.
    fn cni(&self, line: &str) -> Cmd {
        let command = Cmd::new(binary("canal-agent").unwrap()).arg("cni").args(line.split_whitespace());
        command.args(["--bin-dir", &self.text("bin"), "--conf-dir", &self.text("net.d")])
    }

    fn install(&self, line: &str) -> Cmd {
        let socket = self.node.agent().socket().display().to_string();
        self.cni(&format!("install {line}")).args(["--socket", &socket])
    }

    /// The usual list, or any other configuration, with what is the machine's in a folder of the node.
    fn configuration(&self, text: &str) -> String {
        let mut whole: Value = serde_json::from_str(text).unwrap();
        let plugin = if whole.get("plugins").is_some() { &mut whole["plugins"][0] } else { &mut whole };
        plugin["subnetFile"] = json!(self.node.agent().subnet_file());
        plugin["ipam"]["dataDir"] = json!(self.file("ipam"));
        if plugin["type"] == "flannel" {
            plugin["dataDir"] = json!(self.file("flannel"));
        }
        let file = self.text("given");
        fs::write(&file, whole.to_string()).unwrap();
        file
    }

    /// The first configuration by name, as runtimes take it.
    fn first(&self) -> Option<Value> {
        let names = fs::read_dir(self.file("net.d")).ok()?.map(|e| e.unwrap().path());
        let is_one = |path: &PathBuf| path.extension().is_some_and(|end| end == "conf" || end == "conflist");
        let first = names.filter(is_one).min()?;
        Some(serde_json::from_str(&fs::read_to_string(first).unwrap()).unwrap())
    }

    /// Calls our plugin of the first configuration, the program of that name in that folder, and nothing else.
    fn call(&self, verb: &str, pod: &Netns) -> Output {
        let mut whole = self.first().unwrap();
        let mut plugin = whole.clone();
        if whole.get("plugins").is_some() {
            plugin = whole["plugins"][0].take();
            plugin["name"] = whole["name"].take();
            plugin["cniVersion"] = whole["cniVersion"].take();
        }
        let program = self.file("bin").join(plugin["type"].as_str().unwrap());
        self.node
            .netns()
            .cmd(&program.display().to_string())
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", container_id(pod.name()))
            .env("CNI_NETNS", pod.path().display().to_string())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", format!("{}:/usr/lib/cni:/opt/cni/bin", self.text("bin")))
            .stdin(plugin.to_string())
            .output()
            .unwrap()
    }

    /// A pod comes and goes by what is installed.
    fn makes_pods(&self, prefix: &str) {
        let pod = Netns::create(&format!("{prefix}pod-installed")).unwrap();
        let added = self.call("ADD", &pod);
        assert!(added.ok(), "{added:?}");
        let ping = format!("ping -c 1 -W 2 {}", self.node.public_ip());
        assert!(soon(|| pod.cmd(&ping).output().unwrap().ok()));
        assert!(self.call("DEL", &pod).ok());
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.file(folder)).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.map(|e| e.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn usual_list() -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../canal-agent/dist/10-canal.conflist");
    fs::read_to_string(file).unwrap()
}

#[test]
fn the_configuration_appears_last_when_the_agent_is_ready_and_goes_first() {
    let world = one_node();
    let host = Machine { node: world.node(1) };
    let given = host.configuration(&usual_list());
    let log = host.file("install.log");
    let mut installing = host.install(&format!("--conf {given}")).start(&log).unwrap();
    assert!(until(SOON, || host.file("bin/canal-cni").exists()));
    let says = |words: &str| fs::read_to_string(&log).unwrap_or_default().contains(words);
    assert!(until(SOON, || says("waiting for the agent: no canal-agent listens")));
    assert!(host.first().is_none() && installing.is_running());
    host.node.agent().start().unwrap();
    assert!(installing.wait(RETRIED).unwrap().success());
    assert_eq!(host.names("net.d"), ["10-canal.conflist"]);
    host.makes_pods(world.prefix());

    let again = host.install(&format!("--conf {given}")).run().unwrap();
    assert_eq!(again.lines().count(), 2, "{again}");
    assert!(again.lines().all(|line| line.ends_with("is as it should be")), "{again}");
    // Another comes first.
    fs::write(host.file("net.d/05-other.conf"), "{}").unwrap();
    let said = host.install(&format!("--conf {given}")).run().unwrap();
    assert!(said.contains("NOTE: runtimes take 05-other.conf") && said.contains("remove it"), "{said}");
    fs::remove_file(host.file("net.d/05-other.conf")).unwrap();

    let said = host.cni("uninstall").run().unwrap();
    let removed: Vec<_> = said.lines().collect();
    let wanted = ["net.d/10-canal.conflist", "bin/canal-cni"].map(|n| format!("removed {}", host.text(n)));
    assert_eq!(removed, wanted);
    assert_eq!(host.cni("uninstall").run().unwrap(), "nothing to remove\n");
}

#[test]
fn the_configuration_of_phase_1_makes_pods_as_it_is_and_what_was_there_comes_back() {
    let world = one_node();
    let host = Machine { node: world.node(1) };
    host.node.agent().start().unwrap();
    for folder in ["bin", "net.d"] {
        fs::create_dir(host.file(folder)).unwrap();
    }
    let flannel = host.file("bin/flannel");
    fs::write(&flannel, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&flannel, fs::Permissions::from_mode(0o750)).unwrap();
    fs::write(host.file("net.d/10-canal.conf"), PHASE_1).unwrap();
    let given = host.configuration(PHASE_1);
    let line = format!("--as flannel --as calico --conf {given}");
    let said = host.install(&line).run().unwrap();
    assert_eq!(said.lines().filter(|line| line.starts_with("kept what was")).count(), 2, "{said}");
    assert_eq!(host.names("bin"), ["calico", "canal-cni", "flannel", "flannel.before-canal"]);
    host.makes_pods(world.prefix());
    let said = host.install(&line).run().unwrap();
    assert!(said.lines().all(|line| line.ends_with("is as it should be")), "{said}");

    host.cni("uninstall").run().unwrap();
    assert_eq!(
        (host.names("bin"), host.names("net.d")),
        (vec!["flannel".into()], vec!["10-canal.conf".into()])
    );
    assert_eq!(fs::read_to_string(host.file("net.d/10-canal.conf")).unwrap(), PHASE_1);
    assert_eq!(fs::metadata(&flannel).unwrap().permissions().mode() & 0o777, 0o750);
}

#[test]
fn what_cannot_be_installed_is_told_in_one_line() {
    let world = one_node();
    let host = Machine { node: world.node(1) };
    fs::write(host.file("file"), "").unwrap();
    let bad = host.text("bad");
    fs::write(&bad, r#"{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"canal-cni","mtu":"x"}]}"#)
        .unwrap();
    for (command, words) in [
        (host.install(&format!("--conf {bad}")), ["the plugin would refuse", "`mtu`"]),
        (host.install("--conf /no/such/file"), ["cannot read /no/such/file", "No such file"]),
        (host.install("--conf-name 10-canal.conf"), ["a list of plugins", ".conflist"]),
        (host.install("--plugin /no/such/plugin"), ["there is no program", "/no/such/plugin"]),
        (host.install("--wait 1"), ["the agent is not ready", "the configuration is not"]),
    ] {
        let said = refusal(command);
        assert!(words.iter().all(|word| said.lines().last().unwrap().contains(word)), "{words:?}: {said}");
    }
    assert!(host.first().is_none());
    host.node.agent().start().unwrap();
    let agent = binary("canal-agent").unwrap();
    let below = host.text("file/below");
    for (option, other) in [("--bin-dir", "--conf-dir"), ("--conf-dir", "--bin-dir")] {
        let install = Cmd::new(&agent).args(["cni", "install", option, &below, other, &host.text("fine")]);
        let said = refusal(install.args(["--socket", &host.node.agent().socket().display().to_string()]));
        let last = said.lines().last().unwrap();
        assert!(last.contains(&below) && last.contains("Not a directory"), "{said}");
    }
}
