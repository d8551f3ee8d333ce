//! Variables that units and manifests set for calico/node. Those that mean something here are found under their flags'
//! names; the rest are known, and said to be without effect where they ask for something that will not be.

use super::{ConfigError, environment::Environment};

/// Name, and the values that are so here anyway (`None`: whatever it is, it asks for something that is not done).
const WITHOUT_EFFECT: [(&str, Option<&[&str]>); 14] = [
    ("AS", None),
    ("IP", None),
    ("IP6", Some(&["none"])),
    ("IP_AUTODETECTION_METHOD", None),
    ("CALICO_NETWORKING", Some(&["false"])),
    ("CALICO_NETWORKING_BACKEND", Some(&["none"])),
    ("CALICO_DISABLE_FILE_LOGGING", Some(&["true"])),
    ("CALICO_LIBNETWORK_ENABLED", Some(&["false"])),
    ("CALICO_IPV4POOL_CIDR", None),
    ("CALICO_IPV4POOL_IPIP", None),
    ("CALICO_IPV4POOL_VXLAN", None),
    ("NO_DEFAULT_POOLS", Some(&["true"])),
    ("DISABLE_NODE_IP_CHECK", None),
    ("ETCD_DISCOVERY_SRV", None),
];

/// One line about variables that are set in vain, if there are any. `IP` is calico/node's address for BGP; the address
/// that peers send to is flannel's business, and so is that of its flag.
pub(super) fn notice(environment: &Environment) -> Option<String> {
    let vain = |(name, fine): &(&'static str, Option<&[&str]>)| {
        let value = environment.variable(name)?;
        let is_so = fine.is_some_and(|fine| fine.iter().any(|so| so.eq_ignore_ascii_case(&value.text)));
        (!is_so).then_some(*name)
    };
    let names: Vec<&str> = WITHOUT_EFFECT.iter().filter_map(vain).collect();
    (!names.is_empty()).then(|| format!("environment of calico/node: no effect here: {}", names.join(", ")))
}

/// Another datastore than etcd is another cluster: nothing that is asked for would be found.
pub(super) fn check_datastore(environment: &Environment) -> Result<(), ConfigError> {
    let kind = environment.variable("DATASTORE_TYPE").or_else(|| environment.variable("FELIX_DATASTORETYPE"));
    match kind {
        Some(kind) if !kind.text.eq_ignore_ascii_case("etcdv3") => {
            Err(kind.wrong("is not supported; Canal reads etcd only: unset it, or write etcdv3"))
        }
        _ => Ok(()),
    }
}

/// Members of the cluster's type.
pub(super) fn cluster_type(environment: &Environment) -> Vec<String> {
    let text = environment.variable("CLUSTER_TYPE").map(|value| value.text).unwrap_or_default();
    text.split(',').map(str::trim).filter(|member| !member.is_empty()).map(str::to_owned).collect()
}
