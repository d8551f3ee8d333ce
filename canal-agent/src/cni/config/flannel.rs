//! The keys of flannel's plugin, which has another plugin (`delegate`) make the interface. Here it is made at once.

use std::path::PathBuf;

use super::{
    super::error::CniError,
    Settings, calico,
    fields::{Fields, Notes},
    host_local::HostLocal,
    mtu,
    routes::Routes,
};

/// The plugin's own default.
pub(super) const DATA_DIR: &str = "/var/lib/cni/flannel";
const ATTACHED: &str =
    "no bridge is made: each pod has a link of its own to the node, with a default gateway";

/// A whole configuration of type `flannel`.
pub(super) fn read(fields: &mut Fields, notes: &mut Notes) -> Result<Settings, CniError> {
    let data_dir = fields.text("dataDir")?.map_or_else(|| DATA_DIR.into(), PathBuf::from);
    let ipam = HostLocal::read(fields, true, notes)?;
    let mut delegate = fields.object("delegate")?;
    let kind = delegate.text("type")?;
    for key in ["name", "ipam"] {
        if delegate.take(key).is_some() {
            return Err(delegate.unsupported(key, "the outer configuration says it: put it there"));
        }
    }
    delegate.accept(&["cniVersion"]);
    let why = "the outer configuration's takes its place";
    delegate.no_effect(&["runtimeConfig"], why, notes);
    let mut settings = match kind.as_deref() {
        Some("calico" | "canal-cni") => of_calico(&mut delegate, ipam, notes)?,
        None | Some("bridge") => of_bridge(&mut delegate, ipam, notes)?,
        Some(other) => {
            let why = "pods get a link of their own to the node, as with `calico` and `bridge`: make it one of these";
            return Err(delegate.invalid("type", other, why));
        }
    };
    delegate.finish(notes);
    settings.flannel_folder = Some(data_dir);
    Ok(settings)
}

fn of_calico(delegate: &mut Fields, ipam: HostLocal, notes: &mut Notes) -> Result<Settings, CniError> {
    // Calico adds default routes where none are listed, and flannel's plugin always lists some. Configurations from before
    // this switch do not have it, and their pods had a default route: only a list of the user's own, or a plain `false`,
    // says that there is none.
    let include = delegate.flag("include_default_routes")?;
    let default = include.unwrap_or(ipam.routes.is_empty());
    let routes = Routes { named: ipam.routes.clone(), networks: true, default };
    // Meant for bridges; flannel's plugin puts it into every delegate.
    if delegate.flag("ipMasq")? == Some(true) {
        notes.add("delegate.ipMasq", "the agent masquerades where its --ip-masq says so");
    }
    calico::keys(delegate, ipam, routes, notes)
}

fn of_bridge(delegate: &mut Fields, ipam: HostLocal, notes: &mut Notes) -> Result<Settings, CniError> {
    let default = delegate.flag("isDefaultGateway")?;
    for (key, why) in [
        ("vlanTrunk", "pods are not in VLANs: leave it out"),
        ("portIsolation", "pods are kept apart by network policy: leave it out, and write one"),
        ("disableContainerInterface", "a pod's interface is always up: leave it out"),
    ] {
        match delegate.take(key) {
            None | Some(serde_json::Value::Bool(false)) => {}
            Some(_) => return Err(delegate.unsupported(key, why)),
        }
    }
    if delegate.number("vlan")?.is_some_and(|vlan| vlan != 0) {
        return Err(delegate.unsupported("vlan", "pods are not in VLANs: leave it out"));
    }
    if delegate.flag("ipMasq")? == Some(true) {
        notes.add("delegate.ipMasq", "the agent masquerades where its --ip-masq says so");
    }
    let mut of_bridges = Vec::from_iter(default.map(|_| "isDefaultGateway"));
    for key in ["isGateway", "forceAddress", "hairpinMode", "promiscMode", "preserveDefaultVlan", "enabledad"]
    {
        if delegate.flag(key)?.is_some() {
            of_bridges.push(key);
        }
    }
    if delegate.text("bridge")?.is_some() {
        of_bridges.push("bridge");
    }
    if !of_bridges.is_empty() {
        notes.0.push(format!("`delegate`: {} say nothing here: {ATTACHED}", of_bridges.join(", ")));
    }
    if delegate.flag("macspoofchk")? == Some(false) {
        notes.add("delegate.macspoofchk", "what a pod sends from another's address is always dropped");
    }
    delegate.no_effect(&["ipMasqBackend"], "the agent says how it masquerades", notes);
    let mtu = mtu(delegate)?;
    let routes = Routes { named: ipam.routes.clone(), networks: true, default: default.unwrap_or_default() };
    Ok(Settings { mtu, ..Settings::new(ipam, routes) })
}
