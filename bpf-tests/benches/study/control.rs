//! The control plane: the agent as users run it, with a real etcd.

mod start;
mod store;

use anyhow::Result;
use bpf_tests::World;

use self::store::Store;
use super::Figure;

const CONFIG: &str = r#"{"Network":"10.64.0.0/10","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#;

pub(super) fn measure(rounds: u32) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let world = World::builder().nodes(1).config(Some(CONFIG)).build()?;
    let mut store = Store::connect(&world)?;
    let node = world.node(1);
    let mut loaded = 0;
    for peers in [5_000, 10_000] {
        store.put_all((loaded + 1..=peers).map(start::lease).collect())?;
        loaded = peers;
        let mut all = Vec::new();
        for _ in 0..rounds {
            let start = start::cold(&world, node, peers)?;
            eprintln!("{} {:?}", start.seconds, start.phases);
            all.push(start.seconds);
            std::fs::copy(node.agent().log_file(), "/tmp/agent-start.log")?;
            node.agent().terminate()?;
            node.agent().clean_up()?;
        }
        figures.push(Figure::median(format!("start with {peers} leases"), "s", all));
    }
    Ok(figures)
}
