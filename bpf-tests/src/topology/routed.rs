//! `D`: routes by hand between two nodes, as flannel's host-gw backend sets them.

use std::net::Ipv4Addr;

use anyhow::Result;

use super::{Kind, Topology};
use crate::{flannel::FlannelPod, node::Node, probe::Host, world::World};

pub(super) fn build(kind: Kind) -> Result<Topology> {
    let world = World::builder().config(None).build()?;
    // Nobody asks it, and what runs beside a measurement disturbs it.
    world.etcd().kill();
    let subnet = |node: &Node| Ipv4Addr::new(10, 100, 199 + node.number(), 0);
    let end = |node: &Node, peer: &Node| -> Result<FlannelPod> {
        node.netns().ip(&format!("route add {}/24 via {}", subnet(peer), peer.public_ip()))?;
        let [a, b, c, _] = subnet(node).octets();
        FlannelPod::create(node, &format!("end{}", node.number()), Ipv4Addr::new(a, b, c, 2), 1450)
    };
    let (one, two) = (world.node(1), world.node(2));
    let (from, to) = (end(one, two)?, end(two, one)?);
    Ok(Topology { kind, from: Box::new(from), to: Box::new(to), world: Some(world) })
}
