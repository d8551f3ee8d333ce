//! What pods may begin with their host, as `DefaultEndpointToHostAction` says, and how live flows follow it.

use std::{
    cell::Cell,
    net::{Ipv4Addr, UdpSocket},
    time::Duration,
};

use bpf_tests::{At, Host, LiveConnection, Pod, World, policy, policy::RESOURCES};
use serde_json::json;

use crate::{SOON, soon};

const PORT: u16 = 9000;
/// How long an answer from the next namespace may take. Too short a time costs another question.
const ANSWER: Duration = Duration::from_millis(500);

/// The node's own object, once its agent has written its, which would else come after.
fn set_action(world: &World, action: &str) {
    let written = || world.etcd().get(&format!("{RESOURCES}nodes/node1")).unwrap().is_some();
    assert!(soon(written), "the node's objects are there");
    let spec = json!({ "defaultEndpointToHostAction": action });
    world.etcd().put_resource("felixconfigurations", "FelixConfiguration", None, "node.node1", spec).unwrap();
}

/// One flow: a port that is kept, whatever becomes of it.
struct Caller {
    socket: UdpSocket,
    asked: Cell<u32>,
}

impl Caller {
    fn new(pod: &Pod, to: Ipv4Addr) -> Self {
        let socket = pod.netns().run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).unwrap().unwrap();
        socket.connect((to, PORT)).unwrap();
        socket.set_read_timeout(Some(ANSWER)).unwrap();
        Self { socket, asked: Cell::default() }
    }

    fn is_answered(&self) -> bool {
        let question = (self.asked.get() + 1).to_be_bytes();
        self.asked.set(self.asked.get() + 1);
        // Answers to earlier questions may have come late; a refused port shows as an error.
        let mut answer = [0; 4];
        self.socket.send(&question).is_ok()
            && std::iter::repeat_with(|| self.socket.recv(&mut answer).map(|_| answer))
                .map_while(Result::ok)
                .any(|answer| answer == question)
    }
}

#[test]
fn live_flows_to_the_host_end_when_they_are_denied_and_go_on_when_they_are_allowed_again() {
    let world = World::builder().nodes(1).build().unwrap();
    let node = world.node(1);
    node.agent().start().unwrap();
    let pod = node.add_pod("a", &[]).unwrap();
    set_action(&world, "Return");
    assert!(soon(|| pod.pings(node.ip())));
    let _servers = (node.serve_tcp(PORT).unwrap(), node.serve_udp_at(node.ip(), PORT).unwrap());
    let caller = Caller::new(&pod, node.ip());
    for again in ["Accept", "Return"] {
        assert!(caller.is_answered());
        let live = LiveConnection::open(pod.netns(), node.ip(), PORT).unwrap();
        set_action(&world, "Drop");
        let end = live.cut_within(SOON).unwrap();
        assert!(end.contains("no echo"), "it stalls, nobody closes it: {end}");
        assert!(soon(|| !caller.is_answered()));
        set_action(&world, again);
        assert!(soon(|| caller.is_answered()), "{again}: the same flow");
        assert!(pod.reaches(node.ip(), PORT), "{again}");
    }
}

#[test]
fn a_live_flow_ends_when_its_far_end_becomes_an_address_of_the_host_and_goes_on_afterwards() {
    let world = World::builder().nodes(1).build().unwrap();
    let node = world.node(1);
    // At the node's other network.
    let neighbour = At { netns: world.hub(), ip: Ipv4Addr::new(192, 168, 60, 77) };
    let At { netns: hub, ip: elsewhere } = neighbour;
    node.agent().start().unwrap();
    let pod = node.add_pod("a", &[]).unwrap();
    hub.ip("route add 10.100.0.0/16 via 192.168.60.1").unwrap();
    hub.ip(&format!("addr add {elsewhere}/32 dev br0")).unwrap();
    node.netns().ip(&format!("route add {elsewhere}/32 via 192.168.60.254")).unwrap();
    world.etcd().put_global_policy("open", policy::allow_all()).unwrap();
    set_action(&world, "Drop");
    assert!(soon(|| !pod.pings(node.ip())));
    let _far = neighbour.serve_udp_at(elsewhere, PORT).unwrap();
    let caller = Caller::new(&pod, elsewhere);
    assert!(soon(|| caller.is_answered()), "{}", node.agent().status().unwrap()["counters"]);
    for _ in 0..2 {
        // From now on it would be the host that answers.
        node.netns().ip(&format!("addr add {elsewhere}/32 dev mg0")).unwrap();
        let near = node.serve_udp_at(elsewhere, PORT).unwrap();
        assert!(soon(|| !caller.is_answered()));
        drop(near);
        node.netns().ip(&format!("addr del {elsewhere}/32 dev mg0")).unwrap();
        assert!(soon(|| caller.is_answered()), "the same flow");
    }
}

#[test]
fn without_an_overlay_device_the_host_stays_closed_to_pods_and_their_policy_is_followed() {
    let world = World::builder().nodes(1).build().unwrap();
    let node = world.node(1);
    node.agent().start().unwrap();
    let (a, b) = (node.add_pod("a", &[]).unwrap(), node.add_pod("b", &[("app", "b")]).unwrap());
    let _server = b.serve_tcp(PORT).unwrap();
    set_action(&world, "Drop");
    assert!(soon(|| !a.pings(node.ip())));
    for (problem, [make, remove]) in [
        ("not a VXLAN device", [&["link add canal.1 type bridge"][..], &["link del canal.1"]]),
        (
            "port 8472 is taken by device other.1",
            [
                &["link add other.1 type vxlan id 1 dev up0 dstport 8472", "link set other.1 up"],
                &["link del other.1"],
            ],
        ),
    ] {
        let run = |lines: &[&str]| lines.iter().for_each(|line| drop(node.netns().ip(line).unwrap()));
        node.agent().kill_9();
        run(&["link del canal.1"]);
        run(make);
        node.agent().spawn().unwrap();
        let problems = || node.agent().status().unwrap_or_default()["problems"].to_string();
        assert!(soon(|| problems().contains(problem)), "{problem}: {} {}", problems(), node.agent().log());
        assert!(!a.pings(node.ip()), "{problem}: what this process has attached says Drop");
        assert!(node.pings(a.ip()) && a.reaches(b.ip(), PORT), "{problem}");
        world.etcd().put_global_policy("shut", policy::ingress(1, "app == 'b'", json!([]))).unwrap();
        assert!(soon(|| !a.reaches(b.ip(), PORT)), "{problem}");
        set_action(&world, "Return");
        assert!(soon(|| a.pings(node.ip())), "{problem}");
        set_action(&world, "Drop");
        assert!(soon(|| !a.pings(node.ip())), "{problem}");
        world.etcd().delete_global_policy("shut").unwrap();
        assert!(soon(|| a.reaches(b.ip(), PORT)), "{problem}");
        assert!(problems().contains(problem), "all the time: {}", problems());
        run(remove);
        assert!(soon(|| problems() == "[]"), "{}", problems());
        assert!(!a.pings(node.ip()));
    }
}
