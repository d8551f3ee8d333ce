//! What takes longest when an agent starts, and needs neither a lease nor the store: the tables, and the programs, which
//! the kernel verifies.

use canal_common::{Mac, settings::Settings};
use tracing::{info, warn};

use super::{
    state::{NodeError, device, limits, settings, strangers},
    steering::Steering,
    territory::Territory,
    uplink::Uplink,
};
use crate::{
    config::{Config, Parameters, parameters::ToHost},
    dataplane::{
        defrag::Defrag,
        object::Object,
        overlay,
        pins::Pins,
        tables::{KernelTables, Leftovers},
    },
    logging,
    netlink::Netlink,
    store::NetworkConfig,
};

/// The loaded object, and what an earlier process left in its policy tables.
pub struct Groundwork {
    pub(super) pins: Pins,
    pub(super) netlink: Netlink,
    pub(super) steering: Steering,
    /// What `object` was loaded with.
    pub(super) settings: Settings,
    pub(super) object: Object,
    pub(super) tables: KernelTables,
    pub(super) leftovers: Leftovers,
    pub(super) defrag: Option<Defrag>,
}

impl Groundwork {
    /// Attaches nothing and writes nothing into tables, but makes the overlay device, which stays down: its index is
    /// constant in the programs, and they would have to be loaded once more.
    pub fn lay(
        config: &Config,
        network: &NetworkConfig,
        uplink: &Uplink,
        vtep_mac: Mac,
    ) -> Result<Self, NodeError> {
        let pins = Pins::open(&config.bpffs)?;
        let mut netlink = Netlink::open()?;
        // Whatever is wrong with it is told when it is to come up.
        let device = device(network, uplink, vtep_mac)
            .and_then(|device| overlay::find_or_make(&mut netlink, &device).ok());
        let defrag = Defrag::ensure(&pins).inspect_err(|error| warn!("{error}")).ok();
        let steering = Steering::new(&config.node_name, config.felix.clone());
        logging::follow(steering.parameters().log_severity);
        // Nothing is attached before etcd was read. Until then this is a guess, and what an initialised cluster says.
        let parameters = Parameters { to_host: ToHost::Return, ..steering.parameters().clone() };
        let territory = Territory::new(network, None, strangers(config, uplink));
        let settings = Settings {
            overlay_ifindex: device.map_or(0, |device| device.index),
            ..settings(config, &parameters, network, &territory, uplink, vtep_mac, defrag.is_some())
        };
        let mut object = Object::load(&settings, Some(&pins), &config.sizes.by_name())?;
        let (mut tables, mut leftovers) = KernelTables::adopt(&mut object.ebpf)?;
        if !limits(config).hold_twice(&leftovers) {
            info!("the policy tables are more than half full: starting empty ones beside them");
            Object::leave_policy(&pins)?;
            object = Object::load(&settings, Some(&pins), &config.sizes.by_name())?;
            (tables, leftovers) = KernelTables::adopt(&mut object.ebpf)?;
        }
        Ok(Self { pins, netlink, steering, settings, object, tables, leftovers, defrag })
    }
}
