//! Configurations that nobody wrote.

use proptest::{
    collection::{btree_map, vec},
    prelude::*,
};

use super::*;

/// Keys that mean something somewhere.
const KEYS: [&str; 44] = [
    "name",
    "cniVersion",
    "type",
    "socket",
    "subnetFile",
    "dataDir",
    "delegate",
    "ipam",
    "runtimeConfig",
    "args",
    "cni",
    "prevResult",
    "ips",
    "mac",
    "labels",
    "subnet",
    "ranges",
    "rangeStart",
    "gateway",
    "routes",
    "dst",
    "mtu",
    "etcd_endpoints",
    "datastore_type",
    "nodename",
    "nodename_file",
    "policy",
    "kubernetes",
    "kubeconfig",
    "container_settings",
    "feature_control",
    "include_default_routes",
    "readiness_gates",
    "log_level",
    "policy_setup_timeout_seconds",
    "num_queues",
    "device_type",
    "dataplane_options",
    "isDefaultGateway",
    "vlan",
    "ipMasq",
    "ipRanges",
    "cni.dev/valid-attachments",
    "x",
];
const TEXTS: [&str; 14] = [
    "",
    "canal",
    "flannel",
    "calico",
    "bridge",
    "host-local",
    "1.0.0",
    "0.2.0",
    "10.77.12.0/24",
    "10.77.12.7",
    "fd00::1",
    "k8s",
    "usePodCidr",
    "02:00:00:00:00:07",
];

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0u32..2000).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        proptest::sample::select(&TEXTS[..]).prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 64, 6, |inner| {
        let key = proptest::sample::select(&KEYS[..]).prop_map(str::to_owned);
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            btree_map(key, inner, 0..8).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn configuration_is_read_or_refused_in_one_line(
        keys in btree_map(proptest::sample::select(&KEYS[..]).prop_map(str::to_owned), value(), 0..8),
        kind in proptest::sample::select(&["canal-cni", "flannel", "calico"][..]),
        net in any::<[u8; 4]>(),
    ) {
        let mut all = json!({"cniVersion": "1.0.0", "name": "canal", "type": kind});
        all.as_object_mut().unwrap().extend(keys);
        for program in [Dialect::Canal, Dialect::Flannel, Dialect::Calico] {
            match Config::read(program, all.to_string().as_bytes(), &Arguments::default()) {
                Ok(config) => {
                    prop_assert!(config.notes.iter().all(|note| !note.contains('\n')));
                    let subnet = Subnet { net: ipnet::Ipv4Net::new(net.into(), 24).unwrap().trunc(), ..super::subnet() };
                    let _ = (config.range.within(subnet.net), config.routes.on(&subnet), config.mtu_on(&subnet));
                }
                Err(error) => prop_assert!(!error.msg.contains('\n') && !error.details.is_empty(), "{error:?}"),
            }
        }
    }
}
