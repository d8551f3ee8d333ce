//! What probes and the service manager are told, from the start to the end.

use std::{
    io::{Read, Write},
    net::TcpStream,
    os::unix::net::UnixDatagram,
    time::Duration,
};

use bpf_tests::{Host, Node, World, until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

use crate::{RETRIED, SOON, soon};

const ONE_SUBNET: &str = r#"{"Network":"10.100.0.0/16","SubnetMin":"10.100.1.0","SubnetMax":"10.100.1.0","Backend":{"Type":"vxlan"}}"#;

/// A service manager that notes what it is told.
struct Manager(UnixDatagram);

impl Manager {
    fn of(node: &Node) -> Self {
        let path = node.folder().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        node.agent().set_env("NOTIFY_SOCKET", &path.display().to_string());
        Self(socket)
    }

    /// What has come since the last look, line by line.
    fn heard(&self) -> Vec<String> {
        let (mut buffer, mut lines) = ([0; 4096], Vec::new());
        while let Ok(length) = self.0.recv(&mut buffer) {
            lines.extend(String::from_utf8_lossy(&buffer[..length]).lines().map(str::to_owned));
        }
        lines
    }

    /// Waits for a line that begins so, and returns all that came until then.
    fn hears(&self, start: &str, deadline: Duration) -> Vec<String> {
        let mut all = Vec::new();
        let came = until(deadline, || {
            all.extend(self.heard());
            all.iter().any(|line| line.starts_with(start))
        });
        assert!(came, "{start} is not in {all:?}");
        all
    }
}

/// Status code and body; no code where nobody listens.
fn probe(node: &Node, port: u16, path: &str) -> (String, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(SOON))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = node.netns().run(ask).unwrap().unwrap_or_default();
    let code = answer.split(' ').nth(1).unwrap_or_default().to_owned();
    (code, answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned())
}

fn is(node: &Node, port: u16, path: &str, code: &str) -> bool {
    soon(|| probe(node, port, path).0 == code)
}

#[test]
fn ready_is_said_once_everything_stands_and_taken_back_when_the_lease_is_lost() {
    let world = World::builder().nodes(1).config(None).build().unwrap();
    let node = world.node(1);
    let manager = Manager::of(node);
    node.agent().set_flag("--healthz-ip", "127.0.0.1");
    node.agent().set_flag("--healthz-port", "8470");
    node.agent().set_env("FELIX_HEALTHENABLED", "true");
    node.agent().spawn().unwrap();
    let heard = manager.hears("STATUS=waiting for a network configuration", SOON);
    assert!(!heard.iter().any(|line| line == "READY=1"), "{heard:?}");
    for (port, alive, ready) in [(8470, "/healthz", "/readyz"), (9099, "/liveness", "/readiness")] {
        assert!(is(node, port, alive, "200"), "{:?}", probe(node, port, alive));
        let (code, body) = probe(node, port, ready);
        assert!(code == "503" && body.contains("waiting for a network configuration"), "{code} {body}");
        assert_eq!(probe(node, port, "/v1/status").0, "404");
    }
    world.etcd().put("/coreos.com/network/config", ONE_SUBNET).unwrap();
    manager.hears("READY=1", RETRIED);
    assert!(node.agent().subnet_file().exists(), "other programs may be started now");
    manager.hears("STATUS=10.100.", SOON);
    for (port, ready) in [(8470, "/readyz"), (9099, "/readiness")] {
        assert!(is(node, port, ready, "200"), "{:?}", probe(node, port, ready));
    }
    // Where Felix's parameters in etcd say.
    let spec = json!({ "healthPort": 9098 });
    world.etcd().put_resource("felixconfigurations", "FelixConfiguration", None, "default", spec).unwrap();
    assert!(is(node, 9098, "/readiness", "200") && is(node, 9099, "/readiness", ""));

    // Another node has taken the only subnet there is.
    let own = world.etcd().keys("/coreos.com/network/subnets/").unwrap().remove(0);
    let other = r#"{"PublicIP":"192.168.50.7","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:07"}}"#;
    world.etcd().put(&own, other).unwrap();
    assert!(is(node, 8470, "/readyz", "503"));
    assert_eq!(probe(node, 8470, "/healthz").0, "200");
    world.etcd().del(&own).unwrap();
    assert!(is(node, 8470, "/readyz", "200"));
    node.agent().terminate().unwrap();
    manager.hears("STOPPING=1", SOON);
}

#[test]
fn the_watchdog_is_fed_while_the_agent_works_and_not_by_a_stopped_one() {
    let world = World::builder().nodes(1).build().unwrap();
    let node = world.node(1);
    let manager = Manager::of(node);
    node.agent().set_env("WATCHDOG_USEC", "600000");
    node.agent().start().unwrap();
    for _ in 0..3 {
        manager.hears("WATCHDOG=1", SOON);
    }
    let pid = Pid::from_raw(node.agent().pid().unwrap().cast_signed());
    kill(pid, Signal::SIGSTOP).unwrap();
    manager.heard();
    assert!(!until(Duration::from_secs(2), || !manager.heard().is_empty()), "a stopped process feeds nobody");
    kill(pid, Signal::SIGCONT).unwrap();
    manager.hears("WATCHDOG=1", SOON);
}
