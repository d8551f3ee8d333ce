//! Keys that have no effect, and keys that are refused.

use serde_json::json;

use super::{
    Code::{Decode, IncompatibleVersion, InvalidConfig, UnsupportedField},
    *,
};

/// Each is read, with these notes (their beginnings).
fn noted(rows: Vec<(Value, Vec<&str>)>) {
    for (configuration, notes) in rows {
        let config = read(&configuration);
        assert_eq!(config.notes.len(), notes.len(), "{configuration}: {:?}", config.notes);
        for (note, start) in config.notes.iter().zip(notes) {
            assert!(note.starts_with(start) && !note.contains('\n'), "{note}, not {start}");
        }
    }
}

#[test]
fn keys_of_all_dialects_without_effect_are_named_with_the_reason() {
    noted(vec![
        (with("canal-cni", json!({"what": 1})), vec!["`what` has no effect: it is not known here"]),
        (with("canal-cni", json!({"nodename": "a"})), vec!["`nodename` has no effect: it is not known here"]),
        (with("canal-cni", json!({"dns": {}})), vec!["`dns` has no effect: name servers come from"]),
        (with("canal-cni", json!({"ipam": {"x": 1}})), vec!["`ipam.x` has no effect: it is not known"]),
        (with("canal-cni", json!({"args": {"cni": {"x": 1}}})), vec!["`args.cni.x` has no effect"]),
        (
            with("canal-cni", json!({"runtimeConfig": {"bandwidth": {}, "x": 1}})),
            vec![
                "`runtimeConfig.bandwidth` has no effect: another plugin",
                "`runtimeConfig.x` has no effect",
            ],
        ),
    ]);
}

#[test]
fn calicos_keys_without_effect_are_named_with_the_reason() {
    noted(vec![
        (
            with(
                "calico",
                json!({"ipam": {"assign_ipv4": "true", "assign_ipv6": "false", "ipv4_pools": []}}),
            ),
            vec![],
        ),
        (
            with(
                "calico",
                json!({"ipam": {"assign_ipv6": "true", "ipv4_pools": ["a"], "ipv6_pools": ["b"]}}),
            ),
            vec!["`ipam.assign_ipv6` has", "`ipam.ipv4_pools` has", "`ipam.ipv6_pools` has"],
        ),
        (
            with(
                "calico",
                json!({"ipam": {"routes": [{"dst": "::/0"}, {"dst": "10.0.0.0/8", "gw": "10.0.0.1", "x": 1}]}}),
            ),
            vec![
                "`ipam.routes.dst` has no effect: pods have no IPv6",
                "`ipam.routes.gw` has",
                "`ipam.routes.x` has",
            ],
        ),
        (
            with("calico", json!({"log_file_path": "/l"})),
            vec!["`log_file_path` has no effect: messages go to"],
        ),
        (
            with("calico", json!({"device_type": "netkit"})),
            vec!["`device_type` has no effect: pods get a veth"],
        ),
        (with("calico", json!({"num_queues": 4})), vec!["`num_queues` has"]),
        (with("calico", json!({"require_mtu_file": true})), vec!["`require_mtu_file` has"]),
        (with("calico", json!({"mode": "vxlan"})), vec!["`mode` has"]),
        (with("calico", json!({"dataplane_options": {"a": 1}})), vec!["`dataplane_options` has"]),
        (with("calico", json!({"ipam_lock_file": "/l"})), vec!["`ipam_lock_file` has"]),
        (with("calico", json!({"endpoint_status_dir": "/l"})), vec!["`endpoint_status_dir` has"]),
        (
            with("calico", json!({"windows_use_single_network": true})),
            vec!["`windows_use_single_network` has"],
        ),
        (
            with(
                "calico",
                json!({"policy": {"x": 1}, "kubernetes": {"y": 1}, "container_settings": {"z": 1}}),
            ),
            vec!["`container_settings.z` has", "`policy.x` has", "`kubernetes.y` has"],
        ),
    ]);
}

#[test]
fn flannels_keys_without_effect_are_named_with_the_reason() {
    noted(vec![
        (delegated("calico", json!({"log_file_path": "/l"})), vec!["`delegate.log_file_path` has"]),
        (
            delegated("calico", json!({"isGateway": true, "ipMasq": true})),
            vec!["`delegate.ipMasq` has", "`delegate.isGateway` has"],
        ),
        (delegated("calico", json!({"ipMasq": false, "cniVersion": "0.3.1"})), vec![]),
        (
            delegated("calico", json!({"runtimeConfig": {}})),
            vec!["`delegate.runtimeConfig` has no effect: the outer"],
        ),
        (
            with("flannel", json!({"ipam": {"ranges": [[{"subnet": "10.0.0.0/8"}]]}})),
            vec!["`ipam.ranges` has"],
        ),
        (
            delegated(
                "bridge",
                json!({"hairpinMode": true, "isDefaultGateway": true, "isGateway": true,
                "forceAddress": false, "promiscMode": true, "ipMasq": false, "bridge": "cni0", "vlan": 0}),
            ),
            vec![
                "`delegate`: isDefaultGateway, isGateway, forceAddress, hairpinMode, promiscMode, bridge say nothing here: no bridge",
            ],
        ),
        (
            delegated(
                "bridge",
                json!({"ipMasq": true, "macspoofchk": false, "ipMasqBackend": "nftables", "x": 1}),
            ),
            vec![
                "`delegate.ipMasq` has",
                "`delegate.macspoofchk` has",
                "`delegate.ipMasqBackend` has",
                "`delegate.x` has",
            ],
        ),
        (delegated("bridge", json!({"macspoofchk": true, "portIsolation": false})), vec![]),
    ]);
}

/// Each is refused, with this message (its beginning).
fn refused(rows: Vec<(Value, Code, &str)>) {
    for (configuration, code, message) in rows {
        let error = try_read(&configuration).map(|c| c.notes).unwrap_err();
        assert_eq!(error.code, code, "{configuration}: {error}");
        assert!(error.to_string().starts_with(message), "{configuration}: {error}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
}

#[test]
fn what_no_dialect_can_mean_is_refused_by_name() {
    refused(vec![
        (
            with("calico", json!({"cniVersion": "9.0"})),
            IncompatibleVersion,
            "CNI version \"9.0\" is not supported",
        ),
        (
            with("canal-cni", json!({"cniVersion": "0.2.0"})),
            IncompatibleVersion,
            "CNI version \"0.2.0\" is not",
        ),
        (
            with("calico", json!({"cniVersion": 1})),
            IncompatibleVersion,
            "the configuration has no `cniVersion`",
        ),
        (
            with("calico", json!({"prevResult": 1})),
            Decode,
            "cannot read the network configuration: `prevResult` is 1",
        ),
        (
            with("calico", json!({"cni.dev/valid-attachments": [{"containerID": "a"}]})),
            Decode,
            "cannot read the network configuration: `cni.dev/valid-attachments` is an object",
        ),
        (
            with("calico", json!({"runtimeConfig": {"ips": ["10.77.12.9", "10.77.12.10"]}})),
            InvalidConfig,
            "`runtimeConfig.ips` is [",
        ),
        (
            with("calico", json!({"runtimeConfig": {"ips": ["fd00::1"]}})),
            InvalidConfig,
            "`runtimeConfig.ips` is \"fd00::1\": pods have no IPv6",
        ),
        (with("calico", json!({"args": {"cni": {"ips": ["x"]}}})), InvalidConfig, "`args.cni.ips` is \"x\""),
        (
            with("calico", json!({"runtimeConfig": {"mac": "01:00:00:00:00:00"}})),
            InvalidConfig,
            "`runtimeConfig.mac` is",
        ),
    ]);
}

#[test]
fn addresses_from_elsewhere_are_refused_by_name() {
    refused(vec![
        (
            with("calico", json!({"ipam": {"type": "calico-ipam"}})),
            InvalidConfig,
            "`ipam.type` is \"calico-ipam\": addresses",
        ),
        (
            with("calico", json!({"ipam": {"subnet": "usePodCidr"}})),
            InvalidConfig,
            "`ipam.subnet` is \"usePodCidr\": addresses",
        ),
        (
            with("calico", json!({"ipam": {"ranges": [[{"subnet": "usePodCidr"}]]}})),
            InvalidConfig,
            "`ipam.ranges.subnet` is",
        ),
        (
            with("calico", json!({"ipam": {"ranges": [[{"subnet": "fd00::/64"}]]}})),
            InvalidConfig,
            "`ipam.ranges.subnet` is \"fd00",
        ),
        (
            with("calico", json!({"ipam": {"ranges": [[], []]}})),
            UnsupportedField,
            "`ipam.ranges` is not supported: a pod has one",
        ),
        (
            with("calico", json!({"ipam": {"ranges": [7]}})),
            Decode,
            "cannot read the network configuration: `ipam.ranges` is 7",
        ),
        (
            with("calico", json!({"ipam": {"ranges": [[7]]}})),
            Decode,
            "cannot read the network configuration: `ipam.ranges` is 7",
        ),
        (
            with("calico", json!({"ipam": {"subnet": "10.0.0.0"}})),
            InvalidConfig,
            "`ipam.subnet` is \"10.0.0.0\": want",
        ),
        (with("calico", json!({"ipam": {"gateway": "x"}})), InvalidConfig, "`ipam.gateway` is \"x\": want"),
        (
            with(
                "calico",
                json!({"ipam": {"gateway": "10.77.12.1", "ranges": [[{"subnet": "10.77.12.0/25"}]]}}),
            ),
            UnsupportedField,
            "`ipam.ranges` is not supported: `subnet`",
        ),
        (
            with("calico", json!({"ipam": {"routes": [{}]}})),
            InvalidConfig,
            "`ipam.routes` is \"a route without `dst`\"",
        ),
        (
            with("calico", json!({"ipam": {"routes": [{"dst": "x"}]}})),
            InvalidConfig,
            "`ipam.routes.dst` is \"x\"",
        ),
        (
            with("calico", json!({"ipam": []})),
            Decode,
            "cannot read the network configuration: `ipam` is a list",
        ),
        (
            with("calico", json!({"feature_control": {"ip_addrs_no_ipam": true}})),
            UnsupportedField,
            "`feature_control.ip_addrs_no_ipam` is",
        ),
    ]);
}

#[test]
fn calicos_keys_that_would_give_a_pod_something_else_are_refused_by_name() {
    refused(vec![
        (
            with("calico", json!({"datastore_type": "kubernetes"})),
            InvalidConfig,
            "`datastore_type` is \"kubernetes\": endpoints",
        ),
        (with("calico", json!({"device_type": "vlan"})), InvalidConfig, "`device_type` is \"vlan\""),
        (
            with("calico", json!({"policy": {"type": "other"}})),
            InvalidConfig,
            "`policy.type` is \"other\": known is `k8s`",
        ),
        (
            with("calico", json!({"feature_control": {"floating_ips": true}})),
            UnsupportedField,
            "`feature_control.floating_ips` is not",
        ),
        (
            with("calico", json!({"etcd_endpoints": ["a"]})),
            Decode,
            "cannot read the network configuration: `etcd_endpoints` is a list: want a text",
        ),
        (
            with("calico", json!({"mtu": "1400"})),
            Decode,
            "cannot read the network configuration: `mtu` is \"1400\": want a whole",
        ),
        (with("calico", json!({"mtu": -1})), Decode, "cannot read the network configuration: `mtu` is -1"),
        (with("calico", json!({"mtu": 67})), InvalidConfig, "`mtu` is 67: want 68 to 65535"),
        (
            with("calico", json!({"readiness_gates": ["localhost"]})),
            InvalidConfig,
            "`readiness_gates` is \"localhost\"",
        ),
        (with("calico", json!({"nodename": "-a"})), InvalidConfig, "`nodename` is \"-a\""),
        (
            with("calico", json!({"container_settings": {"allow_ip_forwarding": 1}})),
            Decode,
            "cannot read the network configuration: `container_settings.allow_ip_forwarding` is 1",
        ),
    ]);
}

#[test]
fn flannels_keys_that_would_give_a_pod_something_else_are_refused_by_name() {
    refused(vec![
        (
            with("flannel", json!({"delegate": {"type": 1}})),
            Decode,
            "cannot read the network configuration: `delegate.type` is 1: want a text",
        ),
        (
            delegated("calico", json!({"name": "x"})),
            UnsupportedField,
            "`delegate.name` is not supported: the outer",
        ),
        (
            delegated("calico", json!({"ipam": {}})),
            UnsupportedField,
            "`delegate.ipam` is not supported: the outer",
        ),
        (
            delegated("calico", json!({"datastore_type": "kubernetes"})),
            InvalidConfig,
            "`delegate.datastore_type` is",
        ),
        (delegated("macvlan", json!({})), InvalidConfig, "`delegate.type` is \"macvlan\": pods get a link"),
        (delegated("bridge", json!({"vlan": 5})), UnsupportedField, "`delegate.vlan` is not supported"),
        (delegated("bridge", json!({"vlanTrunk": []})), UnsupportedField, "`delegate.vlanTrunk` is not"),
        (
            delegated("bridge", json!({"portIsolation": true})),
            UnsupportedField,
            "`delegate.portIsolation` is not",
        ),
        (
            delegated("bridge", json!({"disableContainerInterface": true})),
            UnsupportedField,
            "`delegate.disableContainerInterface` is",
        ),
    ]);
}
