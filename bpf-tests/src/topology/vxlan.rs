//! `K0`: the kernel's VXLAN device on both nodes, with flanneld's device, routes, neighbours and forwarding rows.

use anyhow::{Result, ensure};

use super::{Kind, Topology};
use crate::{flannel::FlannelPod, world::World};

pub(super) fn build(kind: Kind) -> Result<Topology> {
    let (world, from, to) = world()?;
    Ok(Topology { kind, from: Box::new(from), to: Box::new(to), world: Some(world) })
}

/// With a pod on each of the two nodes.
pub(super) fn world() -> Result<(World, FlannelPod, FlannelPod)> {
    let world = World::builder().build()?;
    let (one, two) = (world.flannel_node(1)?, world.flannel_node(2)?);
    for node in [&one, &two] {
        ensure!(node.learn_peers()? == 1, "a flannel node does not see the other's lease");
    }
    let (from, to) = (one.add_pod("end1")?, two.add_pod("end2")?);
    // Nobody asks it any more, and what runs beside a measurement disturbs it.
    world.etcd().kill();
    Ok((world, from, to))
}
