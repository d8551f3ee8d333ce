//! Two ends and one way between them, built the same for each way, so that figures can stand side by side.
//!
//! | name | between the ends |
//! |---|---|
//! | `L` | one bare veth pair: the limit of the machine |
//! | `D` | two nodes that route plainly: no tunnel, no policy |
//! | `K0` | two nodes with the kernel's VXLAN exactly as flanneld programs it, no policy |
//! | `K(n)` | the same with all that flanneld and Felix install, and a policy of `n` rules |
//! | `C(n)` | two nodes with the real agent, plugin and etcd, and a policy of `n` rules |
//! | `C(n)'` | the same with another build of Canal |
//!
//! The ends have MTU 1450 everywhere and the wire between the nodes 1500, so that all carry the same segments.

mod canal;
mod check;
mod felix;
mod hooks;
mod policy;
mod routed;
mod vxlan;

use std::{fmt, path::Path as FilePath, str::FromStr};

use anyhow::{Context, Result, bail, ensure};

pub use check::{Offloads, WireCount};
pub use felix::{Chain, Counters};
pub use hooks::{RunStatistics, RunTime};

use crate::{
    agent,
    load::{Entrance, Path},
    netns::Netns,
    node::Node,
    pair::bare_pair,
    probe::Host,
    sweep,
    world::World,
};

/// A way between two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Bare,
    Routed,
    Vxlan,
    Felix {
        /// As [`Kind::Canal`] has.
        rules: u32,
    },
    Canal {
        /// Half of them for each direction; the traffic of [`crate::load`] passes by the last one.
        rules: u32,
        gear: Gear,
        build: Build,
    },
}

/// What takes VXLAN off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Gear {
    /// What the agent takes when it is not told.
    Auto,
    Kernel,
    Xdp,
}

impl Gear {
    /// Behind the name of a topology, and what it is called there.
    const NAMED: [(Self, &'static str, &'static str); 2] = [
        (Self::Kernel, "/kernel", ", VXLAN taken off by the kernel's device"),
        (Self::Xdp, "/xdp", ", VXLAN taken off by XDP"),
    ];

    fn named(self) -> Option<(&'static str, &'static str)> {
        Self::NAMED
            .into_iter()
            .find(|(gear, ..)| *gear == self)
            .map(|(_, suffix, sentence)| (suffix, sentence))
    }

    /// As the agent's flag has it.
    fn flag(self) -> Option<&'static str> {
        self.named().map(|(suffix, _)| &suffix[1..])
    }
}

/// Whose Canal it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Build {
    /// What [`agent::binary`] finds.
    Own,
    /// What [`Topology::build`] is told.
    Other,
}

impl Kind {
    /// Whether the nodes put the packets into VXLAN.
    pub fn tunnels(self) -> bool {
        matches!(self, Self::Vxlan | Self::Felix { .. } | Self::Canal { .. })
    }

    /// For people.
    pub fn sentence(self) -> String {
        match self {
            Self::Bare => "two pods on one bare veth pair".to_owned(),
            Self::Routed => "two nodes, plain routes, no policy".to_owned(),
            Self::Vxlan => "two nodes, kernel VXLAN as flanneld programs it, no policy".to_owned(),
            Self::Felix { rules } => {
                format!("two nodes, all that flanneld and Felix install, a policy of {rules} rules")
            }
            Self::Canal { rules, gear, build } => {
                let whose = if build == Build::Own { "Canal" } else { "another build of Canal" };
                let gear = gear.named().map_or("", |(_, sentence)| sentence);
                format!("two nodes, {whose}, a policy of {rules} rules{gear}")
            }
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bare => f.pad("L"),
            Self::Routed => f.pad("D"),
            Self::Vxlan => f.pad("K0"),
            Self::Felix { rules } => f.pad(&format!("K({rules})")),
            Self::Canal { rules, gear, build } => {
                let gear = gear.named().map_or("", |(suffix, _)| suffix);
                let build = if *build == Build::Own { "" } else { "'" };
                f.pad(&format!("C({rules}){gear}{build}"))
            }
        }
    }
}

impl FromStr for Kind {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        let number = |rules: &str| rules.parse().context("the number of rules");
        let named =
            Gear::NAMED.into_iter().find_map(|(gear, suffix, _)| Some((name.strip_suffix(suffix)?, gear)));
        let (name, gear) = named.unwrap_or((name, Gear::Auto));
        let kind = match name {
            "L" => Self::Bare,
            "D" => Self::Routed,
            "K0" => Self::Vxlan,
            _ => match name.strip_suffix(')').and_then(|name| name.split_once('(')) {
                Some(("K", rules)) => Self::Felix { rules: number(rules)? },
                Some(("C", rules)) => Self::Canal { rules: number(rules)?, gear, build: Build::Own },
                _ => bail!("there is no topology {name:?}: it is L, D, K0, K(<rules>) or C(<rules>)"),
            },
        };
        ensure!(gear == Gear::Auto || matches!(kind, Self::Canal { .. }), "gears are C(<rules>)'s only");
        Ok(kind)
    }
}

/// A topology that stands; it goes when this is dropped.
pub struct Topology {
    kind: Kind,
    from: Box<dyn Host + Sync>,
    to: Box<dyn Host + Sync>,
    world: Option<World>,
}

impl Topology {
    /// Builds it, and proves that the ends reach each other in the stated way. `other` is where the binaries of
    /// [`Build::Other`] are.
    pub fn build(kind: Kind, other: Option<&FilePath>) -> Result<Self> {
        let topology = match kind {
            Kind::Bare => {
                let (from, to) = bare_pair(&sweep::automatic_prefix())?;
                Self { kind, from: Box::new(from), to: Box::new(to), world: None }
            }
            Kind::Routed => routed::build(kind)?,
            Kind::Vxlan => vxlan::build(kind)?,
            Kind::Felix { rules } => felix::build(kind, rules)?,
            Kind::Canal { rules, gear, build: Build::Own } => canal::build(kind, rules, gear)?,
            Kind::Canal { rules, gear, build: Build::Other } => {
                let folder = other.context("there is no other build of Canal")?;
                agent::with_binaries(folder, || canal::build(kind, rules, gear))?
            }
        };
        topology.prove().with_context(|| format!("{kind} is broken"))?;
        Ok(topology)
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn path(&self) -> Path<'_> {
        Path { from: &*self.from, to: &*self.to }
    }

    /// Has the nodes' connection tracking begin anew, so that what it holds of earlier flows does not fill it.
    pub fn forget_flows(&self) -> Result<()> {
        if matches!(self.kind, Kind::Felix { .. }) {
            for node in self.world.iter().flat_map(World::nodes) {
                node.netns().cmd("conntrack -F").run()?;
            }
        }
        Ok(())
    }

    /// The sending and the receiving node, where there are nodes.
    pub fn nodes(&self) -> Option<(&Node, &Node)> {
        self.world.as_ref().map(|world| (world.node(1), world.node(2)))
    }

    /// Where the packets come to the receiving side.
    pub fn entrance(&self) -> Entrance<'_> {
        match &self.world {
            Some(world) => Entrance { netns: world.node(2).netns(), interface: "up0", before: None },
            None => Entrance { netns: self.to.netns(), interface: "eth0", before: None },
        }
    }

    /// The same, before the receiving device has seen them: they come out of its driver.
    pub fn entrance_before_driver(&self) -> Entrance<'_> {
        Entrance { before: Some(self.wire()), ..self.entrance() }
    }

    /// Where the packets leave the sending side.
    fn wire(&self) -> (&Netns, &'static str) {
        match &self.world {
            Some(world) => (world.node(1).netns(), "up0"),
            None => (self.from.netns(), "eth0"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topology_is_known_by_the_name_that_it_shows() {
        let canal = |gear| Kind::Canal { rules: 10, gear, build: Build::Own };
        let canals = [canal(Gear::Auto), canal(Gear::Kernel), canal(Gear::Xdp)];
        for kind in
            [Kind::Bare, Kind::Routed, Kind::Vxlan, Kind::Felix { rules: 10 }].into_iter().chain(canals)
        {
            assert_eq!(kind.to_string().parse::<Kind>().unwrap(), kind);
        }
        assert!("C(many)".parse::<Kind>().is_err());
        for name in ["K", "K()", "F(10)", "K(10", "L/kernel"] {
            assert!(name.parse::<Kind>().is_err(), "{name}");
        }
    }
}
