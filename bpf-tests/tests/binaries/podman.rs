//! A real runtime: podman runs containers on a network of `canal-agent cni install`, and only podman calls the plugins.

use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use bpf_tests::{Cmd, Host, Node, World, agent::binary, policy, until};
use serde_json::{Value, json};

use crate::{SOON, soon};

/// Where Debian has the plugins that others come with.
const PLUGINS: &str = "/usr/lib/cni";
/// Files of a container; everything in it is busybox.
const APPLETS: [&str; 9] = ["sh", "timeout", "sleep", "httpd", "wget", "ping", "ip", "cat", "traceroute"];
const PORT: u16 = 8080;

/// Podman on one node, with storage, state and networks of its own, which go when this is dropped.
struct Podman<'a> {
    node: &'a Node,
    folder: PathBuf,
}

impl<'a> Podman<'a> {
    /// The plugin and its list are put where this podman looks, as an operator puts them.
    fn on(node: &'a Node) -> Self {
        let folder = node.folder().join("podman");
        let podman = Self { node, folder };
        fs::create_dir(&podman.folder).unwrap();
        let text = |name: &str| podman.file(name).display().to_string();
        // The usual list. What is the machine's is each node's own here.
        let usual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../canal-agent/dist/10-canal.conflist");
        let mut list: Value = serde_json::from_str(&fs::read_to_string(usual).unwrap()).unwrap();
        let ours = &mut list["plugins"][0];
        ours["subnetFile"] = json!(node.agent().subnet_file());
        ours["ipam"]["dataDir"] = json!(podman.file("leases"));
        fs::write(podman.file("list"), list.to_string()).unwrap();
        let install = Cmd::new(binary("canal-agent").unwrap())
            .args(["cni", "install", "--conf", &text("list"), "--bin-dir", &text("bin")])
            .args(["--conf-dir", &text("net.d"), "--socket"])
            .arg(node.agent().socket().display().to_string());
        let said = install.run().unwrap();
        assert!(said.contains("10-canal.conflist") && !said.contains("NOTE"), "{said}");
        let [bin, net, tmp] = ["bin", "net.d", "tmp"].map(&text);
        let containers = format!(
            "[containers]\n\
             default_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n\
             log_driver = \"none\"\n\
             [engine]\n\
             runtime = \"runc\"\n\
             cgroup_manager = \"cgroupfs\"\n\
             events_logger = \"none\"\n\
             lock_type = \"file\"\n\
             tmp_dir = \"{tmp}\"\n\
             [network]\n\
             network_backend = \"cni\"\n\
             cni_plugin_dirs = [\"{bin}\", \"{PLUGINS}\"]\n\
             network_config_dir = \"{net}\"\n"
        );
        fs::write(podman.file("containers.conf"), containers).unwrap();
        let [root, run] = ["root", "run"].map(&text);
        let storage = format!("[storage]\ndriver = \"vfs\"\ngraphroot = \"{root}\"\nrunroot = \"{run}\"\n");
        fs::write(podman.file("storage.conf"), storage).unwrap();
        podman
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// In the node's network, and with the machine's own `/sys`, where the control groups are.
    fn cmd(&self, line: &str) -> Cmd {
        let netns = self.node.netns().path();
        Cmd::line(&format!("nsenter --net={} podman {line}", netns.display()))
            .env("CONTAINERS_CONF", self.file("containers.conf").display().to_string())
            .env("CONTAINERS_STORAGE_CONF", self.file("storage.conf").display().to_string())
    }

    fn run(&self, line: &str) -> String {
        self.cmd(line).run().unwrap()
    }

    /// A container that serves its own name, by HTTP on port 80; `CNI_ARGS` is what podman passes on.
    fn start(&'a self, name: &'a str, options: &str, cni_args: &str) -> Container<'a> {
        let root = self.file(&format!("rootfs-{name}"));
        for folder in ["bin", "proc", "sys", "dev", "etc", "tmp", "run", "www"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        fs::set_permissions(root.join("bin/busybox"), fs::Permissions::from_mode(0o755)).unwrap();
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        fs::write(root.join("www/index.html"), name).unwrap();
        let root = root.display();
        let line = format!(
            "run --detach --name {name} --network canal {options} --rootfs {root} httpd -f -p 80 -h /www"
        );
        self.cmd(&line).env("CNI_ARGS", cni_args).run().unwrap();
        Container::find(self, name)
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        drop(self.cmd("rm --all --force --time 0").output());
    }
}

struct Container<'a> {
    podman: &'a Podman<'a>,
    name: &'a str,
    ip: Ipv4Addr,
    /// What podman says of it.
    inspected: Value,
}

impl<'a> Container<'a> {
    fn find(podman: &'a Podman<'a>, name: &'a str) -> Self {
        let said = podman.run(&format!("inspect {name}"));
        let inspected = serde_json::from_str::<Value>(&said).unwrap()[0].take();
        let network = &inspected["NetworkSettings"]["Networks"]["canal"];
        let ip = network["IPAddress"].as_str().unwrap().parse().unwrap();
        Self { podman, name, ip, inspected }
    }

    /// Runs a program in it; `None` where it fails.
    fn exec(&self, line: &str) -> Option<String> {
        let output = self.podman.cmd(&format!("exec {} {line}", self.name)).output().unwrap();
        output.ok().then_some(output.stdout)
    }

    /// The page at this address, or nothing.
    fn fetch(&self, to: &str) -> Option<String> {
        self.exec(&format!("timeout 1 wget -q -O - http://{to}/"))
    }

    fn fetches(&self, from: &Container<'_>) -> bool {
        self.fetch(&from.ip.to_string()).as_deref() == Some(from.name)
    }
}

/// What the node has of pods: interfaces, leases, endpoints, rows in tables, translations.
fn traces(podman: &Podman<'_>) -> BTreeMap<&'static str, Value> {
    let node = podman.node;
    let links = node.netns().ip("-br link show type veth").unwrap();
    let veths: Vec<_> = links.lines().filter(|line| line.starts_with("cali")).collect();
    let leases = fs::read_dir(podman.file("leases/canal")).into_iter().flatten().flatten();
    let leases: Vec<_> =
        leases.filter_map(|e| e.file_name().into_string().ok()).filter(|n| n.starts_with("10.")).collect();
    let status = node.agent().status().unwrap();
    let tables = status["tables"].as_array().unwrap().iter().filter(|t| t["name"] != "FLOWS");
    let tables: Vec<_> = tables.map(|t| json!([t["name"], t["used"]])).collect();
    let rules = node.netns().cmd("nft list ruleset").run().unwrap();
    let mapped = rules.lines().filter(|line| line.contains("dnat to")).count();
    let containers = podman.run("ps --all --quiet");
    BTreeMap::from([
        ("veths", json!(veths)),
        ("leases", json!(leases)),
        ("endpoints", status["endpoints"].clone()),
        ("tables", json!(tables)),
        ("mapped ports", json!(mapped)),
        ("containers", json!(containers)),
    ])
}

/// The page at a node's port, for somebody who is no pod.
fn page(from: &bpf_tests::Netns, at: Ipv4Addr) -> Option<String> {
    let output =
        from.cmd("timeout 1 busybox wget -q -O -").arg(format!("http://{at}:{PORT}/")).output().unwrap();
    output.ok().then_some(output.stdout)
}

#[test]
#[cfg_attr(not(has_podman), ignore = "there is no podman of version 3 or 4 on the PATH, which knows CNI")]
fn containers_of_podman_talk_across_nodes_obey_policy_and_leave_nothing_behind() {
    let world = World::builder().nodes(2).build().unwrap();
    world.nodes().iter().for_each(|node| node.agent().add_switch("--ip-masq=true"));
    world.start_agents().unwrap();
    let [one, two] = [1, 2].map(|number| Podman::on(world.node(number)));
    let before = [traces(&one), traces(&two)];

    let web = one.start("web", &format!("--publish {PORT}:80"), "");
    let near = one.start("near", "--mac-address 02:00:00:00:00:42", "");
    let far = two.start("far", "", "");
    // As a runtime that tells whose pod it is: the name is podman's.
    let shop = two.start("till", "", "K8S_POD_NAMESPACE=shop");
    let all = [&web, &near, &far, &shop];
    for from in all {
        for to in all {
            assert!(soon(|| from.fetches(to)), "{} to {}", from.name, to.name);
        }
    }
    assert!(web.exec(&format!("ping -c 2 -W 1 {}", far.ip)).unwrap().contains(" 0% packet loss"));
    let hops = far.exec(&format!("traceroute -n -w 1 -q 1 -m 4 {}", web.ip)).unwrap();
    assert!(hops.lines().last().unwrap().contains(&web.ip.to_string()), "{hops}");
    has_what_a_pod_has(&web);
    assert!(near.exec("ip link show eth0").unwrap().contains("02:00:00:00:00:42"));
    assert_eq!(near.inspected["NetworkSettings"]["Networks"]["canal"]["MacAddress"], "02:00:00:00:00:42");

    // Published ports: from another node, from elsewhere, from pods. The network's profile allows its own pods only.
    let (at, hub) = (world.node(1).public_ip(), Ipv4Addr::new(192, 168, 60, 1));
    assert_eq!(page(world.hub(), hub), None, "nobody has allowed it");
    world.etcd().put_global_policy("open", policy::allow_all()).unwrap();
    assert!(soon(|| page(world.node(2).netns(), at).as_deref() == Some("web")), "another node");
    assert_eq!(page(world.hub(), hub).as_deref(), Some("web"), "from outside");
    assert_eq!(far.fetch(&format!("{at}:{PORT}")).as_deref(), Some("web"), "another node's pod");
    assert_eq!(near.fetch(&format!("{at}:{PORT}")).as_deref(), Some("web"), "a pod beside");

    // By namespace, by address, and for all.
    let deny_shop = json!([
        { "action": "Deny", "source": { "selector": "projectcalico.org/namespace == 'shop'" } },
        { "action": "Allow" },
    ]);
    world.etcd().put_global_policy("p", policy::ingress(1, "all()", deny_shop)).unwrap();
    assert!(soon(|| !shop.fetches(&web)), "a pod of the namespace");
    assert!(near.fetches(&web) && far.fetches(&web) && far.fetches(&shop));
    let deny_far = json!([
        { "action": "Deny", "source": { "nets": [format!("{}/32", far.ip)] } },
        { "action": "Allow" },
    ]);
    world.etcd().put_global_policy("p", policy::ingress(1, "all()", deny_far)).unwrap();
    assert!(soon(|| !far.fetches(&web)), "an address");
    assert!(near.fetches(&web) && shop.fetches(&web));
    world.etcd().put_global_policy("p", policy::ingress(1, "all()", json!([{ "action": "Deny" }]))).unwrap();
    assert!(soon(|| !near.fetches(&web) && !shop.fetches(&web)), "everybody");
    assert_eq!(page(world.hub(), hub), None, "by the published port too");
    assert!(world.node(1).reaches(web.ip, 80), "the node itself is never policed");
    world.etcd().delete_global_policy("p").unwrap();

    // A container that is started again is another pod, with the old one's port.
    one.run("restart --time 0 web");
    let web = Container::find(&one, "web");
    assert!(soon(|| far.fetches(&web) && page(world.hub(), hub).as_deref() == Some("web")));
    let state = world.node(1).agent().endpoint_state(web.ip).unwrap();
    assert_eq!(state.as_deref(), Some("ready"));

    assert_eq!(world.etcd().workload_endpoints().unwrap().len(), 4);
    for podman in [&one, &two] {
        podman.run("rm --all --force --time 0");
    }
    for (podman, before) in [&one, &two].into_iter().zip(&before) {
        assert!(soon(|| traces(podman) == *before), "{:#?} instead of {before:#?}", traces(podman));
    }
    assert!(until(SOON, || world.etcd().workload_endpoints().unwrap().is_empty()));
    assert_eq!(page(world.hub(), hub), None);
}

/// Address, routes and MTU in the container; on the host, whose interface it is.
fn has_what_a_pod_has(container: &Container<'_>) {
    let said = container.exec("ip address show eth0").unwrap();
    assert!(said.contains(&format!("{}/32", container.ip)) && said.contains("mtu 1450"), "{said}");
    let routes = container.exec("ip route").unwrap();
    assert!(routes.contains("default via 169.254.1.1 dev eth0"), "{routes}");
    let inspected = &container.inspected;
    let netns = inspected["NetworkSettings"]["SandboxKey"].as_str().unwrap();
    let offloads = Cmd::line(&format!("nsenter --net={netns} ethtool -k eth0")).run().unwrap();
    assert!(offloads.contains("generic-receive-offload: on"), "{offloads}");
    let links = container.podman.node.netns().ip("-d link show type veth").unwrap();
    let alias = format!("alias canal {} eth0 canal", inspected["Id"].as_str().unwrap());
    assert!(links.contains(&alias), "{alias} is not in {links}");
}
