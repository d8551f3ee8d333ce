//! Our own keys.

use super::{
    super::error::CniError,
    Settings,
    fields::{Fields, Notes},
    host_local::HostLocal,
    mtu,
    policy::Policy,
    routes::Routes,
};

/// A whole configuration of type `canal-cni`.
pub(super) fn read(fields: &mut Fields, notes: &mut Notes) -> Result<Settings, CniError> {
    let ipam = HostLocal::read(fields, false, notes)?;
    let routes = Routes { named: ipam.routes.clone(), networks: false, default: ipam.routes.is_empty() };
    Ok(Settings {
        mtu: mtu(fields)?,
        policy: Policy::of_canal(fields, notes)?,
        ..Settings::new(ipam, routes)
    })
}
