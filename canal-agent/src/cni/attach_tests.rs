//! ADD and DEL against the kernel, the real `host-local` and an agent that only answers. They need root.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::Ipv4Addr,
    os::fd::{AsFd, AsRawFd},
    os::unix::net::UnixListener,
    path::PathBuf,
    sync::mpsc,
    thread,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::{
    api::wire::AddEndpoint,
    netlink::{
        Link, Netlink, Netns, NewVeth, Route, Scope,
        tests::{another_netns, in_new_netns},
    },
};

/// The host, which is the calling thread's namespace, and one pod.
struct Node {
    folder: TempDir,
    pod: Netns,
    environment: Environment,
    config: Value,
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";

impl Node {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name).display().to_string();
        fs::write(file("subnet.env"), "FLANNEL_SUBNET=10.100.7.1/24\nFLANNEL_MTU=1400\n").unwrap();
        let config = json!({
            "cniVersion": "1.0.0", "name": "canal", "type": "canal-cni",
            "socket": file("agent.sock"), "subnetFile": file("subnet.env"),
            "ipam": {"type": "host-local", "dataDir": file("ipam")},
            "args": {"cni": {"labels": [{"key": "app", "value": "web"}]}},
        });
        let pod = another_netns();
        let netns = format!("/proc/self/fd/{}", pod.as_fd().as_raw_fd());
        let environment = [
            ("CNI_CONTAINERID", "0123456789abcdef"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", netns.as_str()),
            ("CNI_PATH", "/no/such/folder:/usr/lib/cni:/opt/cni/bin"),
        ];
        let environment = environment.map(|(n, v)| (n.to_owned(), v.to_owned())).into();
        Self { folder, pod, environment, config }
    }

    fn set(&mut self, name: &str, value: &str) {
        self.environment.insert(name.to_owned(), value.to_owned());
    }

    fn call(&self, verb: &str) -> Result<String, CniError> {
        let mut environment = self.environment.clone();
        environment.insert("CNI_COMMAND".to_owned(), verb.to_owned());
        call(&environment, self.config.to_string().as_bytes())
    }

    fn add(&self) -> Result<Value, CniError> {
        self.call("ADD").map(|answer| serde_json::from_str(&answer).unwrap())
    }

    /// Takes everything well, but answers to an endpoint with this; passes on request line and body.
    fn agent(&self, answer: &'static str) -> mpsc::Receiver<(String, String)> {
        let listener = UnixListener::bind(self.folder.path().join("agent.sock")).unwrap();
        let (seen, requests) = mpsc::channel();
        thread::spawn(move || {
            let mut known = Value::Null;
            while let Ok((stream, _)) = listener.accept() {
                let mut reader = BufReader::new(stream);
                let mut head = Vec::new();
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).unwrap();
                    if line.trim().is_empty() {
                        break;
                    }
                    head.push(line.trim().to_owned());
                }
                let length = head.iter().find_map(|l| l.strip_prefix("Content-Length: ")).unwrap();
                let mut body = vec![0; length.parse().unwrap()];
                reader.read_exact(&mut body).unwrap();
                let answer = if head[0].starts_with("GET ") {
                    let report = if known.is_null() {
                        Value::Null
                    } else {
                        json!({"endpoint": known, "standing": "ready", "reason": null})
                    };
                    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{report}", report.to_string().len())
                } else if head[0].starts_with("POST ") {
                    answer.to_owned()
                } else {
                    OK.to_owned()
                };
                match head[0].split(' ').next().unwrap() {
                    "POST" => known = serde_json::from_slice(&body).unwrap(),
                    "PUT" | "DELETE" => known = Value::Null,
                    _ => {}
                }
                reader.get_mut().write_all(answer.as_bytes()).unwrap();
                if seen.send((head[0].clone(), String::from_utf8(body).unwrap())).is_err() {
                    return;
                }
            }
        });
        requests
    }

    fn pod_link(&self) -> Option<Link> {
        Netlink::open_in(&self.pod).unwrap().link_by_name("eth0").unwrap()
    }

    /// The addresses that `host-local` holds.
    fn taken(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.folder.path().join("ipam/canal")).into_iter().flatten().flatten();
        let address = |p: &PathBuf| p.file_name().unwrap().to_str().unwrap().parse::<Ipv4Addr>().is_ok();
        files.map(|f| f.path()).filter(address).collect()
    }

    fn assert_untouched(&self) {
        assert_eq!(host_links(), []);
        assert_eq!(self.pod_link(), None);
        assert_eq!(self.taken(), Vec::<PathBuf>::new());
    }
}

/// Of the calling thread's namespace.
fn host_links() -> Vec<Link> {
    let links = Netlink::open().unwrap().links().unwrap();
    links.into_iter().filter(|l| l.kind == "veth").collect()
}

#[test]
fn add_makes_a_pod_that_waits_only_for_its_agent_and_del_takes_all_of_it_away() {
    in_new_netns(|| {
        let node = Node::new();
        let requests = node.agent(OK);
        let result = node.add().unwrap();
        let eth0 = node.pod_link().unwrap();
        assert_eq!(result["ips"], json!([{"address": "10.100.7.2/32", "interface": 1}]));
        assert_eq!(result["interfaces"][0]["name"], "cali0123456789a");
        assert_eq!(result["interfaces"][1]["mac"], json!(eth0.mac));

        let links = host_links();
        let [host] = links.as_slice() else { panic!("{links:?}") };
        assert_eq!((host.name.as_str(), host.mac, host.mtu), ("cali0123456789a", Some(HOST_MAC), 1400));
        assert!(!host.up, "setting it up is the agent's");
        assert!(eth0.up && eth0.mtu == 1400);
        let mut inside = Netlink::open_in(&node.pod).unwrap();
        let addresses = inside.addresses(Some(eth0.index)).unwrap();
        assert_eq!(addresses.iter().map(|a| a.net.to_string()).collect::<Vec<_>>(), ["10.100.7.2/32"]);
        let routes = inside.routes().unwrap();
        let gateway = Route::link("169.254.1.1/32".parse().unwrap(), eth0.index);
        assert_eq!(routes, [Route::via("0.0.0.0/0".parse().unwrap(), GATEWAY, eth0.index), gateway]);
        assert_eq!(routes[1].scope, Scope::Link);

        let (line, body) = requests.recv().unwrap();
        assert_eq!(line, "PUT /v1/endpoints HTTP/1.1");
        let begun: AddEndpoint = serde_json::from_str(&body).unwrap();
        assert_eq!((begun.mac, begun.addresses.len()), (None, 0), "before anything is there");
        let (line, body) = requests.recv().unwrap();
        assert_eq!(line, "POST /v1/endpoints HTTP/1.1");
        let wanted = AddEndpoint {
            container_id: "0123456789abcdef".into(),
            interface: "eth0".into(),
            host_interface: "cali0123456789a".into(),
            mac: eth0.mac,
            addresses: vec![[10, 100, 7, 2].into()],
            network: "canal".into(),
            labels: [("app".to_owned(), "web".to_owned())].into(),
            leases: Some(node.folder.path().join("ipam/canal")),
            attempt: begun.attempt,
            ..AddEndpoint::default()
        };
        assert_eq!(serde_json::from_str::<AddEndpoint>(&body).unwrap(), wanted);

        assert_eq!(node.call("DEL").unwrap(), "");
        assert_eq!(requests.recv().unwrap().0, "DELETE /v1/endpoints/0123456789abcdef/eth0 HTTP/1.1");
        node.assert_untouched();
        node.call("DEL").unwrap();
    });
}

#[test]
fn without_an_agent_add_says_try_again_and_leaves_nothing() {
    in_new_netns(|| {
        let node = Node::new();
        let error = node.add().unwrap_err();
        assert_eq!(error.code, Code::TryAgain);
        assert!(
            error.details.contains("no canal-agent listens on") && !error.details.contains("undoing"),
            "{error}"
        );
        node.assert_untouched();
    });
}

#[test]
fn an_endpoint_that_the_agent_refuses_is_undone_there_too() {
    in_new_netns(|| {
        let node = Node::new();
        let requests =
            node.agent("HTTP/1.1 409 Conflict\r\nContent-Length: 27\r\n\r\n{\"message\":\"address taken\"}");
        let error = node.add().unwrap_err();
        assert_eq!(error.code, Code::AgentRefused);
        assert!(error.details.starts_with("address taken"), "{error}");
        for verb in ["PUT ", "POST "] {
            assert!(requests.recv().unwrap().0.starts_with(verb));
        }
        assert!(requests.recv().unwrap().0.starts_with("DELETE "));
        node.assert_untouched();
    });
}

#[test]
fn an_interface_that_exists_is_left_alone_by_add_and_by_the_del_that_follows() {
    in_new_netns(|| {
        let node = Node::new();
        let veth = NewVeth {
            host_name: "other0",
            host_mac: None,
            peer_name: "eth0",
            peer_mac: None,
            peer_netns: node.pod.as_fd(),
            mtu: 1500,
        };
        Netlink::open().unwrap().add_veth(&veth).unwrap();
        let before = (host_links(), node.pod_link());
        assert_eq!(node.add().unwrap_err().code, Code::InterfaceExists);
        node.call("DEL").unwrap();
        assert_eq!((host_links(), node.pod_link()), before);
        assert!(node.taken().is_empty());
    });
}

#[test]
fn a_name_of_another_container_is_not_stolen_but_a_leftover_of_ours_is_replaced() {
    in_new_netns(|| {
        let mut node = Node::new();
        let _requests = node.agent(OK);
        let first = node.add().unwrap();
        // The same first eleven characters, another container.
        let other = Node { pod: another_netns(), ..Node::new() };
        node.set("CNI_CONTAINERID", "0123456789a-other");
        node.set("CNI_NETNS", &format!("/proc/self/fd/{}", other.pod.as_fd().as_raw_fd()));
        let second = node.add().unwrap();
        let name = |result: &Value| result["interfaces"][0]["name"].as_str().unwrap().to_owned();
        let attachment = Attachment::read(Verb::Add, &node.environment).unwrap();
        let names = names::names(&node.environment, &attachment, None).unwrap();
        assert_eq!(name(&first), "cali0123456789a");
        assert_eq!(name(&second), names[1]);

        // The container comes back with a new namespace, though nobody called DEL for the old one.
        fs::remove_dir_all(node.folder.path().join("ipam")).unwrap();
        let fresh = another_netns();
        node.set("CNI_NETNS", &format!("/proc/self/fd/{}", fresh.as_fd().as_raw_fd()));
        assert_eq!(name(&node.add().unwrap()), name(&second));
        assert_eq!(host_links().len(), 2);
        assert_eq!(other.pod_link(), None);

        node.call("DEL").unwrap();
        assert_eq!(host_links().iter().map(|l| l.name.as_str()).collect::<Vec<_>>(), ["cali0123456789a"]);
        assert!(node.pod_link().is_some(), "the first pod keeps its interface");
    });
}

#[test]
fn del_succeeds_when_agent_namespace_and_subnet_file_are_gone() {
    in_new_netns(|| {
        let mut node = Node::new();
        let requests = node.agent(OK);
        node.add().unwrap();
        drop(requests);
        fs::remove_file(node.folder.path().join("agent.sock")).unwrap();
        fs::remove_file(node.folder.path().join("subnet.env")).unwrap();
        for netns in ["/no/such/netns", "/dev/null", "/proc/thread-self/ns/net", ""] {
            node.set("CNI_NETNS", netns);
            node.call("DEL").unwrap();
        }
        node.assert_untouched();
    });
}

#[test]
fn a_pod_goes_by_a_configuration_that_would_not_make_it_any_more() {
    in_new_netns(|| {
        let mut node = Node::new();
        let _requests = node.agent(OK);
        node.add().unwrap();
        node.config["type"] = json!("calico");
        node.config["datastore_type"] = json!("kubernetes");
        node.config["ipam"]["subnet"] = json!("usePodCidr");
        node.set("CNI_ARGS", "NOBODY_KNOWS=1");
        node.call("ADD").unwrap_err();
        node.call("DEL").unwrap();
        node.assert_untouched();
        node.config["name"] = json!("../escape");
        node.call("DEL").unwrap_err();
    });
}

#[test]
fn a_repeated_add_gives_the_same_answer_and_takes_nothing_more() {
    in_new_netns(|| {
        let mut node = Node::new();
        let _requests = node.agent(OK);
        let resolv = node.folder.path().join("resolv.conf");
        fs::write(&resolv, "nameserver 10.0.0.53\n").unwrap();
        node.config["ipam"]["resolvConf"] = json!(resolv);
        let first = node.add().unwrap();
        assert_eq!(first["dns"], json!({"nameservers": ["10.0.0.53"]}));
        let before = (host_links(), node.pod_link(), node.taken());
        assert_eq!(node.add().unwrap(), first);
        assert_eq!((host_links(), node.pod_link(), node.taken()), before);
        node.config["name"] = json!("other");
        let error = node.add().unwrap_err();
        assert_eq!(error.code, Code::InterfaceExists, "{error}");
        assert!(error.details.contains("network canal"), "{error}");
    });
}

#[test]
fn a_pair_that_was_never_marked_is_found_from_inside_the_pod() {
    in_new_netns(|| {
        let node = Node::new();
        let _requests = node.agent(OK);
        node.add().unwrap();
        Netlink::open().unwrap().set_alias("cali0123456789a", "").unwrap();
        node.call("DEL").unwrap();
        node.assert_untouched();
    });
}

#[test]
fn what_is_missing_or_wrong_on_the_node_is_said_before_anything_is_touched() {
    type Spoil = fn(&mut Node);
    let cases: [(Code, &str, Spoil); 7] = [
        (Code::UnknownContainer, "there is no network namespace CNI_NETNS=/no/such/netns", |n| {
            n.set("CNI_NETNS", "/no/such/netns");
        }),
        (Code::InvalidEnvironment, "is the host's network namespace", |n| {
            n.set("CNI_NETNS", "/proc/thread-self/ns/net");
        }),
        (Code::Kernel, "cannot enter network namespace /dev/null", |n| n.set("CNI_NETNS", "/dev/null")),
        (Code::NoSubnet, "canal-agent writes it when it has its lease", |n| {
            fs::remove_file(n.folder.path().join("subnet.env")).unwrap();
        }),
        (Code::NoSubnet, "FLANNEL_MTU is missing", |n| {
            fs::write(n.folder.path().join("subnet.env"), "FLANNEL_SUBNET=10.1.1.1/24\n").unwrap();
        }),
        (Code::PluginMissing, "install the standard CNI plugins", |n| n.set("CNI_PATH", "/no/such/folder")),
        (Code::PluginFailed, "host-local failed (ADD)", |n| {
            n.config["ipam"]["dataDir"] = json!("/dev/null");
        }),
    ];
    for (code, message, spoil) in cases {
        in_new_netns(|| {
            let mut node = Node::new();
            let _requests = node.agent(OK);
            spoil(&mut node);
            let error = node.add().unwrap_err();
            assert_eq!(error.code, code, "{error}");
            assert!(error.to_string().contains(message), "{error}");
            node.assert_untouched();
        });
    }
}

#[test]
fn a_full_pool_is_told_from_a_broken_one() {
    in_new_netns(|| {
        let mut node = Node::new();
        let _requests = node.agent(OK);
        fs::write(node.folder.path().join("subnet.env"), "FLANNEL_SUBNET=10.100.7.1/30\nFLANNEL_MTU=1400\n")
            .unwrap();
        node.add().unwrap();
        let other = another_netns();
        node.set("CNI_CONTAINERID", "another");
        node.set("CNI_NETNS", &format!("/proc/self/fd/{}", other.as_fd().as_raw_fd()));
        let error = node.add().unwrap_err();
        assert_eq!(error.code, Code::PoolFull, "{error}");
        assert_eq!((host_links().len(), node.taken().len()), (1, 1));
    });
}
