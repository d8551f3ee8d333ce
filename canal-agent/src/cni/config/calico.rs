//! The keys of Calico's plugin, on their own or as flannel's `delegate`.

use std::time::Duration;

use super::{
    super::error::CniError,
    Settings,
    fields::{Fields, Notes},
    host_local::HostLocal,
    mtu,
    node_name::NodeName,
    policy::Policy,
    routes::Routes,
};

/// A whole configuration of type `calico`.
pub(super) fn read(fields: &mut Fields, notes: &mut Notes) -> Result<Settings, CniError> {
    let ipam = HostLocal::read(fields, false, notes)?;
    let include = fields.flag("include_default_routes")?;
    let default = include == Some(true) || ipam.routes.is_empty();
    let routes = Routes { named: ipam.routes.clone(), networks: false, default };
    keys(fields, ipam, routes, notes)
}

/// All but addresses and routes.
pub(super) fn keys(
    fields: &mut Fields,
    ipam: HostLocal,
    routes: Routes,
    notes: &mut Notes,
) -> Result<Settings, CniError> {
    datastore(fields)?;
    logging(fields, notes)?;
    interface(fields, notes)?;
    let mut container = fields.object("container_settings")?;
    let ip_forwarding = container.flag("allow_ip_forwarding")?.unwrap_or_default();
    container.finish(notes);
    features(fields, notes)?;
    let setup = fields.number("policy_setup_timeout_seconds")?.unwrap_or_default();
    let waits = "ADD waits for the agent itself, and needs no file for it";
    if fields.text("endpoint_status_dir")?.is_some() {
        notes.add(&fields.path("endpoint_status_dir"), waits);
    }
    if fields.text("ipam_lock_file")?.is_some() {
        notes.add(&fields.path("ipam_lock_file"), "`host-local` has a lock of its own");
    }
    Ok(Settings {
        ipam,
        routes,
        mtu: mtu(fields)?,
        ip_forwarding,
        node_name: NodeName::read(fields)?,
        policy: Policy::of_calico(fields, notes)?,
        readiness_gates: gates(fields)?,
        policy_setup_timeout: Duration::from_secs(setup.into()),
        flannel_folder: None,
    })
}

fn gates(fields: &mut Fields) -> Result<Vec<String>, CniError> {
    let gates = fields.texts("readiness_gates")?;
    match gates.iter().find(|gate| !gate.starts_with("http://")) {
        Some(gate) => {
            let why = "want URLs such as http://localhost:9099/readiness: they are asked without TLS";
            Err(fields.invalid("readiness_gates", gate, why))
        }
        None => Ok(gates),
    }
}

/// The agent has a connection of its own, so that this one's data only has to be well-formed.
fn datastore(fields: &mut Fields) -> Result<(), CniError> {
    if let Some(kind) = fields.text("datastore_type")?.filter(|kind| kind != "etcdv3") {
        let why = "endpoints and policy are in etcd: leave it out, or make it `etcdv3`";
        return Err(fields.invalid("datastore_type", kind, why));
    }
    fields.accept_texts(&[
        "etcd_endpoints",
        "etcd_discovery_srv",
        "etcd_key_file",
        "etcd_cert_file",
        "etcd_ca_cert_file",
        "etcd_scheme",
        "etcd_authority",
    ])
}

/// What there is to say goes to standard error, which the runtime logs.
fn logging(fields: &mut Fields, notes: &mut Notes) -> Result<(), CniError> {
    fields.accept_texts(&["log_level"])?;
    if fields.text("log_file_path")?.is_some() {
        notes
            .add(&fields.path("log_file_path"), "messages go to standard error, and so to the runtime's log");
    }
    for key in ["log_file_max_size", "log_file_max_age", "log_file_max_count"] {
        fields.number(key)?;
    }
    Ok(())
}

fn interface(fields: &mut Fields, notes: &mut Notes) -> Result<(), CniError> {
    match fields.text("device_type")?.as_deref() {
        None | Some("veth") => {}
        Some("netkit") => notes.add(&fields.path("device_type"), "pods get a veth pair"),
        Some(other) => {
            return Err(fields.invalid("device_type", other, "pods get a veth pair: leave it out"));
        }
    }
    if fields.number("num_queues")?.is_some_and(|queues| queues > 1) {
        notes.add(&fields.path("num_queues"), "a pod's interface has one queue");
    }
    if fields.flag("require_mtu_file")? == Some(true) {
        notes.add(
            &fields.path("require_mtu_file"),
            "the MTU is in the subnet file, without which no pod starts",
        );
    }
    if fields.text("mode")?.is_some() {
        notes.add(&fields.path("mode"), "the backend in flannel's configuration says how packets travel");
    }
    if !fields.object("dataplane_options")?.is_empty() {
        notes.add(&fields.path("dataplane_options"), "the agent's settings say how packets are treated");
    }
    Ok(())
}

fn features(fields: &mut Fields, notes: &mut Notes) -> Result<(), CniError> {
    let mut features = fields.object("feature_control")?;
    let why = "an address outside the node's subnet would not be reachable: leave it out";
    features.refuse_if_on("ip_addrs_no_ipam", why)?;
    features.refuse_if_on("floating_ips", "pods have the one address of the node's subnet: leave it out")?;
    features.finish(notes);
    Ok(())
}
