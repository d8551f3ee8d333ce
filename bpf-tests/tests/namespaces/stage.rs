//! A node whose policy is worked by the test itself, with the agent's library: for what takes more than one change in
//! etcd after another shows.

use std::{collections::BTreeMap, net::Ipv4Addr, sync::Arc};

use bpf_tests::{Cmd, Host, Netns, World};
use canal_agent::{
    compile::Compiler,
    dataplane::{
        counters::Counters,
        hooks::{Hooks, Place},
        object::{Object, Sizes},
        pins::Pins,
        policy::{Desired, Limits, PolicyTables, Problems},
        tables::KernelTables,
    },
    model::{
        Cluster,
        resource::{Kind, Resource},
    },
};
use canal_common::{Mac, event::EVENTS_PER_DECISION, flow::FlowLimits, settings::Settings};
use nix::net::if_::if_nametoindex;
use serde_json::{Value, json};

pub(crate) const HERE: &str = "node1";
/// Everybody that is no pod.
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
const NODE_OUTSIDE: &str = "203.0.113.1";
const GATEWAY: &str = "169.254.1.1";
const HOST_MAC: Mac = Mac::new([0xee; 6]);

/// Somebody in a namespace of its own.
#[derive(Clone)]
pub(crate) struct Guest {
    netns: Arc<Netns>,
    address: Ipv4Addr,
}

impl Host for Guest {
    fn netns(&self) -> &Netns {
        &self.netns
    }

    fn ip(&self) -> Ipv4Addr {
        self.address
    }
}

/// Pods are plugged in by hand, and tables are written by [`Stage::apply`].
pub(crate) struct Stage {
    world: World,
    outside: Guest,
    object: Object,
    hooks: Hooks,
    cluster: Cluster,
    compiler: Compiler,
    tables: PolicyTables<KernelTables>,
    plugged: BTreeMap<Ipv4Addr, (u32, Mac)>,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let world = World::builder().nodes(1).build().unwrap();
        let node = world.node(1);
        let (netns, bpffs) = (node.netns(), node.bpffs());
        // No agent does it here.
        netns.sysctl("net.ipv4.ip_forward", "1").unwrap();
        let outside = Netns::create(&format!("{}outside", world.prefix())).unwrap();
        join(netns, "out0", &outside, "eth0");
        netns.ip(&format!("addr add {NODE_OUTSIDE}/24 dev out0")).unwrap();
        outside.ip(&format!("addr add {OUTSIDE}/24 dev eth0")).unwrap();
        outside.ip(&format!("route add default via {NODE_OUTSIDE}")).unwrap();
        let settings = Settings {
            node_ip: node.public_ip().into(),
            uplink_ifindex: netns.run(|| if_nametoindex("up0")).unwrap().unwrap(),
            vxlan_port: 8472,
            vni: 1,
            pods_first: Ipv4Addr::new(10, 100, 0, 0).to_bits(),
            pods_last: Ipv4Addr::new(10, 100, 255, 255).to_bits(),
            limits: FlowLimits::DEFAULT,
            events_per_tick: EVENTS_PER_DECISION,
            ..Settings::default()
        };
        let pins = Pins::open(&bpffs).unwrap();
        let mut object = Object::load(&settings, Some(&pins), &Sizes::new()).unwrap();
        let (tables, leftovers) = KernelTables::adopt(&mut object.ebpf).unwrap();
        let tables = PolicyTables::new(tables, leftovers, Limits::default());
        let (cluster, compiler, hooks) = (Cluster::default(), Compiler::new(HERE), Hooks::new(pins));
        let outside = Guest { netns: Arc::new(outside), address: OUTSIDE };
        Self { world, outside, object, hooks, cluster, compiler, tables, plugged: BTreeMap::new() }
    }

    /// Who has the one address that is no pod's.
    pub(crate) fn outside(&self) -> Guest {
        self.outside.clone()
    }

    /// A pod's namespace and interface, with hooks and up; no table knows it yet.
    pub(crate) fn plug(&mut self, name: &str, address: Ipv4Addr) -> Guest {
        let pod = Netns::create(&format!("{}pod-{name}", self.world.prefix())).unwrap();
        let node = self.world.node(1).netns();
        let port = format!("cali{name}");
        Cmd::line("ip link add")
            .args([&port, "netns", node.name(), "address", &HOST_MAC.to_string(), "type", "veth"])
            .args(["peer", "name", "eth0", "netns", pod.name()])
            .run()
            .unwrap();
        let ifindex = node
            .run(|| {
                let ifindex = if_nametoindex(port.as_str()).unwrap();
                self.hooks.attach(&mut self.object, Place::Pod, &port, ifindex).unwrap();
                ifindex
            })
            .unwrap();
        let mac = pod.cmd("cat /sys/class/net/eth0/address").run().unwrap().trim().parse().unwrap();
        self.plugged.insert(address, (ifindex, mac));
        for line in [
            format!("link set {port} up"),
            format!("route add {address}/32 dev {port}"),
            format!("neigh replace {address} lladdr {mac} dev {port} nud permanent"),
        ] {
            node.ip(&line).unwrap();
        }
        for line in [
            format!("addr add {address}/32 dev eth0"),
            "link set eth0 up".to_owned(),
            format!("route add {GATEWAY} dev eth0 scope link"),
            format!("route add default via {GATEWAY}"),
            // So that packets come from the beginning, and not only when somebody answers ARP.
            format!("neigh replace {GATEWAY} lladdr {HOST_MAC} dev eth0 nud permanent"),
        ] {
            pod.ip(&line).unwrap();
        }
        Guest { netns: Arc::new(pod), address }
    }

    /// The pod goes, its interfaces with it.
    pub(crate) fn unplug(&mut self, name: &str, pod: Guest) {
        self.plugged.remove(&pod.address);
        // The kernel takes its time with a namespace's own.
        self.world.node(1).netns().ip(&format!("link del cali{name}")).unwrap();
        drop(pod);
    }

    pub(crate) fn put(&mut self, kind: Kind, namespace: &str, name: &str, value: &Value) {
        let key = Resource::new(kind, namespace, name).key();
        self.cluster.apply(&key, Some(value.to_string().as_bytes()));
    }

    pub(crate) fn put_pod(&mut self, name: &str, address: Ipv4Addr, labels: &Value) {
        let spec = json!({ "ipNetworks": [format!("{address}/32")], "profiles": ["open"] });
        let value = json!({ "metadata": { "labels": labels }, "spec": spec });
        self.put(Kind::WorkloadEndpoint, "default", &format!("{HERE}-cni-{name}-eth0"), &value);
    }

    pub(crate) fn delete_pod(&mut self, name: &str) {
        let name = format!("{HERE}-cni-{name}-eth0");
        self.cluster.apply(&Resource::new(Kind::WorkloadEndpoint, "default", &name).key(), None);
    }

    /// What the programs counted, by hook and reason.
    pub(crate) fn counters(&self) -> BTreeMap<String, u64> {
        let counters = Counters::open(&self.world.node(1).bpffs()).unwrap().read().unwrap();
        counters.into_iter().map(|c| (format!("{} {}", c.hook, c.reason), c.packets)).collect()
    }

    /// What has been put goes into the tables, as one update.
    pub(crate) fn apply(&mut self) {
        let changed = self.cluster.take_changes();
        self.compiler.update(&self.cluster, &changed);
        let desired = self.compiler.endpoints().iter().map(|((_, address), judgement)| {
            let (ifindex, pod_mac) = self.plugged[address];
            let (ingress, egress) = (judgement.ingress.clone(), judgement.egress.clone());
            (*address, Desired { ifindex, pod_mac, host_mac: HOST_MAC, shaped: false, ingress, egress })
        });
        let desired = desired.collect();
        assert_eq!(self.tables.apply(self.compiler.census(), &desired).unwrap(), Problems::new());
    }
}

/// A pair of interfaces, both up.
fn join(one: &Netns, left: &str, other: &Netns, right: &str) {
    Cmd::line("ip link add")
        .args([left, "netns", one.name(), "type", "veth"])
        .args(["peer", "name", right, "netns", other.name()])
        .run()
        .unwrap();
    one.ip(&format!("link set {left} up")).unwrap();
    other.ip(&format!("link set {right} up")).unwrap();
}
