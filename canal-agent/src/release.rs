//! `canal-agent lease release`: gives this node's subnet back, for a node that leaves for good.

use anyhow::Context as _;

use crate::{
    config::Config,
    endpoint::Registry,
    lock::AgentLock,
    netlink::Netlink,
    node::uplink::{self, Host},
    store::{LeaseManager, Owner, Store, machine},
};

/// A line for each key that was this node's. Refuses while pods have addresses from the subnet, which another node could take
/// at once, unless `force`.
pub fn run(config: &Config, force: bool) -> anyhow::Result<Vec<String>> {
    // An agent would take the subnet again.
    let _lock = AgentLock::take()?;
    let pods = pods(config)?;
    anyhow::ensure!(
        pods == 0 || force,
        "{pods} pods of this node have addresses from its subnet, which another node may take then; remove them first, or \
         add --force"
    );
    // Without it the lease is known by name and machine.
    let host = Host::read(&mut Netlink::open()?, &config.uplink)?;
    let public_ip = uplink::choose(&host, &config.uplink).ok().map(|uplink| uplink.public_ip);
    // Without a number it is known by name and address.
    let machine = machine::read(&config.state_dir)?.unwrap_or_default();
    let owner = Owner { node: &config.node_name, machine: &machine, public_ip };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let release = async {
        let store = Store::connect(&config.etcd).await?;
        LeaseManager::release_all(&store, owner).await
    };
    runtime.block_on(release).context("the lease is as it was, and expires a day after the agent stopped")
}

fn pods(config: &Config) -> anyhow::Result<usize> {
    let known = Registry::open_existing(&config.state_dir, &config.node_name)?;
    let Some((registry, broken)) = known else { return Ok(0) };
    Ok(registry.present().count() + broken.len())
}
