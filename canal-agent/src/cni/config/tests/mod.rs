//! Every key of three dialects: honoured, noted or refused.

mod any;
mod keys;

use std::{collections::BTreeSet, os::unix::fs::PermissionsExt as _};

use serde_json::json;

use super::*;

fn node(text: &str) -> ipnet::Ipv4Net {
    text.parse().unwrap()
}

fn subnet() -> Subnet {
    Subnet { net: node("10.77.12.0/24"), mtu: 1450, networks: vec![node("10.77.0.0/16")], masquerades: false }
}

/// A configuration of that type, with these keys beside the ones that all have.
fn with(kind: &str, keys: Value) -> Value {
    let mut all = json!({"cniVersion": "1.0.0", "name": "canal", "type": kind});
    let Value::Object(keys) = keys else { panic!("{keys}") };
    all.as_object_mut().unwrap().extend(keys);
    all
}

/// The same below `delegate`.
fn delegated(kind: &str, keys: Value) -> Value {
    let mut delegate = json!({"type": kind});
    let Value::Object(keys) = keys else { panic!("{keys}") };
    delegate.as_object_mut().unwrap().extend(keys);
    with("flannel", json!({"delegate": delegate}))
}

fn try_read(configuration: &Value) -> Result<Config, CniError> {
    Config::read(Dialect::Canal, configuration.to_string().as_bytes(), &Arguments::default())
}

fn read(configuration: &Value) -> Config {
    try_read(configuration).unwrap_or_else(|error| panic!("{configuration}: {error}"))
}

/// All of it is honoured.
fn quiet(configuration: &Value) -> Config {
    let config = read(configuration);
    assert_eq!(config.notes, [""; 0], "{configuration}");
    config
}

fn routes(config: &Config) -> Vec<String> {
    config.routes.on(&subnet()).unwrap().iter().map(ToString::to_string).collect()
}

#[test]
fn the_configuration_of_canals_first_guide_runs_as_it_is() {
    let text = r#"{
        "name": "canal", "type": "flannel",
        "delegate": {"type": "calico", "etcd_endpoints": "http://10.0.0.1:2379", "nodename": "10.0.0.7"}
    }"#;
    for program in [Dialect::Canal, Dialect::Flannel] {
        let config = Config::read(program, text.as_bytes(), &Arguments::default()).unwrap();
        assert_eq!((config.dialect, config.version), (Dialect::Flannel, "0.2.0"));
        assert_eq!((config.network.as_str(), config.notes.len()), ("canal", 0));
        assert_eq!(config.node_name.resolve(), Ok(Some("10.0.0.7".to_owned())));
        assert_eq!(routes(&config), ["10.77.0.0/16", "0.0.0.0/0"]);
        assert_eq!(config.policy, Policy::Network);
        assert_eq!(config.mtu_on(&subnet()), Ok(1450));
        assert_eq!(config.notebook.as_ref().unwrap().folder, PathBuf::from("/var/lib/cni/flannel"));
        assert_eq!(config.ipam_data_dir(), PathBuf::from("/var/lib/cni/networks"));
        assert_eq!(answer_version(program, text.as_bytes()), "0.2.0");
    }
}

#[test]
fn the_configuration_of_canals_manifest_runs_as_it_is() {
    let config = quiet(&json!({
        "name": "k8s-pod-network", "cniVersion": "0.3.1", "type": "flannel",
        "delegate": {
            "type": "calico", "include_default_routes": true,
            "etcd_endpoints": "https://10.96.232.136:6666", "etcd_key_file": "/etc/cni/net.d/calico-tls/etcd-key",
            "etcd_cert_file": "/etc/cni/net.d/calico-tls/etcd-cert",
            "etcd_ca_cert_file": "/etc/cni/net.d/calico-tls/etcd-ca",
            "log_level": "info",
            "policy": {"type": "k8s", "k8s_api_root": "https://10.96.0.1:443", "k8s_auth_token": "s3cret"},
            "kubernetes": {"kubeconfig": "/etc/cni/net.d/calico-kubeconfig"},
        },
    }));
    assert_eq!((config.dialect, config.version), (Dialect::Flannel, "0.3.1"));
    assert_eq!(config.network, "k8s-pod-network");
    assert_eq!(config.node_name, NodeName::Agents);
    assert_eq!(routes(&config), ["10.77.0.0/16", "0.0.0.0/0"]);
    let Policy::Kubernetes(access) = &config.policy else { panic!("{:?}", config.policy) };
    assert_eq!(access.kubeconfig, Some("/etc/cni/net.d/calico-kubeconfig".into()));
    assert_eq!(access.server.as_deref(), Some("https://10.96.0.1:443"));
    assert_eq!(access.token, Some(Token("s3cret".to_owned())));
    assert!(!format!("{config:?}").contains("s3cret"));
}

#[test]
fn the_configuration_of_flannels_manifest_runs_as_it_is() {
    let config = read(&json!({
        "name": "cbr0", "cniVersion": "0.3.1", "type": "flannel",
        "delegate": {"hairpinMode": true, "isDefaultGateway": true},
    }));
    assert_eq!((config.network.as_str(), config.version), ("cbr0", "0.3.1"));
    assert_eq!(routes(&config), ["10.77.0.0/16", "0.0.0.0/0"]);
    assert_eq!(config.notes.len(), 1);
}

#[test]
fn keys_that_are_honoured_say_nothing() {
    let calico = json!({
        "datastore_type": "etcdv3", "etcd_endpoints": "http://a:2379", "etcd_discovery_srv": "a", "etcd_scheme": "http",
        "etcd_authority": "a:2379", "etcd_key_file": "", "etcd_cert_file": "", "etcd_ca_cert_file": "",
        "log_level": "DEBUG", "log_file_max_size": 100, "log_file_max_age": 30, "log_file_max_count": 10,
        "mtu": 1400, "num_queues": 1, "require_mtu_file": false, "device_type": "veth", "mode": "",
        "nodename": "node-a", "hostname": "other", "nodename_file": "/x", "nodename_file_optional": true,
        "policy": {"type": "k8s", "k8s_api_root": "https://a/api/v1/", "k8s_client_certificate": "/c",
                   "k8s_client_key": "/k", "k8s_certificate_authority": "/ca", "k8s_auth_token": ""},
        "kubernetes": {"kubeconfig": "/kc", "k8s_api_root": "https://b", "node_name": "node-a"},
        "container_settings": {"allow_ip_forwarding": true},
        "feature_control": {"ip_addrs_no_ipam": false, "floating_ips": false},
        "readiness_gates": ["http://localhost:9099/readiness"], "policy_setup_timeout_seconds": 7,
        "dataplane_options": {}, "include_default_routes": true,
    });
    for configuration in
        [with("calico", calico.clone()), delegated("calico", calico.clone()), delegated("canal-cni", calico)]
    {
        let config = quiet(&configuration);
        assert_eq!((config.mtu, config.ip_forwarding), (Some(1400), true));
        assert_eq!(config.node_name, NodeName::Said("node-a".to_owned()));
        assert_eq!(config.readiness_gates, ["http://localhost:9099/readiness"]);
        assert_eq!(config.policy_setup_timeout, Duration::from_secs(7));
        let Policy::Kubernetes(access) = config.policy else { panic!("no Kubernetes") };
        assert_eq!(access.server.as_deref(), Some("https://b"));
        assert_eq!(access.client_key, Some("/k".into()));
    }
    let common = json!({
        "socket": "/s", "subnetFile": "/f", "prevResult": {"cniVersion": "1.0.0"}, "capabilities": {"ips": true},
        "ipam": {"type": "host-local", "dataDir": "/d", "resolvConf": "/r"}, "disableCheck": true,
        "cni.dev/valid-attachments": [{"containerID": "abc", "ifname": "eth0"}], "cni.dev/attachments": [],
        "runtimeConfig": {"portMappings": [{"hostPort": 80}], "mac": "02:00:00:00:00:07"},
        "args": {"cni": {"labels": [{"key": "app", "value": ""}]}, "other": {"x": 1}},
    });
    for kind in ["canal-cni", "flannel", "calico"] {
        let config = quiet(&with(kind, common.clone()));
        assert_eq!((config.socket.to_str(), config.subnet_file.to_str()), (Some("/s"), Some("/f")));
        assert_eq!(config.ipam_data_dir(), PathBuf::from("/d"));
        assert_eq!(config.ipam["resolvConf"], "/r");
        assert_eq!(config.prev_result, Some(json!({"cniVersion": "1.0.0"})));
        let valid = ValidAttachment { container_id: "abc".into(), interface: "eth0".into() };
        assert_eq!(config.valid_attachments, Some(vec![valid]));
        assert_eq!(config.labels["app"], "");
        assert_eq!(config.wishes.mac, Some("02:00:00:00:00:07".parse().unwrap()));
        assert_eq!(config.range.within(node("10.77.12.1/24")), Ok(json!([[{"subnet": "10.77.12.0/24"}]])));
    }
    let kept = read(&with("flannel", json!({"dataDir": "/x"}))).notebook;
    assert_eq!(kept.unwrap().folder, PathBuf::from("/x"));
    assert_eq!(quiet(&with("calico", json!({}))).valid_attachments, None);
    let canal = quiet(&with("canal-cni", json!({"mtu": 1300, "kubernetes": {"kubeconfig": "/k"}})));
    assert_eq!(canal.mtu, Some(1300));
    let access = Access { kubeconfig: Some("/k".into()), ..Access::default() };
    assert_eq!(canal.policy, Policy::Kubernetes(access));
}

#[test]
fn a_type_that_is_not_ours_leaves_it_to_the_programs_name() {
    for (program, dialect) in [
        ("canal-cni", Dialect::Canal),
        ("/opt/cni/bin/flannel", Dialect::Flannel),
        ("calico", Dialect::Calico),
        ("", Dialect::Canal),
        ("calico-ipam", Dialect::Canal),
        ("/", Dialect::Canal),
    ] {
        assert_eq!(Dialect::of_program(OsStr::new(program)), dialect, "{program}");
    }
    let read = |program, kind| {
        let stdin = with(kind, json!({})).to_string();
        Config::read(program, stdin.as_bytes(), &Arguments::default()).unwrap().dialect
    };
    assert_eq!(read(Dialect::Flannel, "mine"), Dialect::Flannel);
    assert_eq!(read(Dialect::Flannel, "canal-cni"), Dialect::Canal);
    assert_eq!(read(Dialect::Canal, "calico"), Dialect::Calico);
}

#[test]
fn each_dialect_announces_what_its_plugin_speaks() {
    let supported = |program, stdin: &str| {
        let answer: Value = serde_json::from_str(&versions(program, stdin.as_bytes()).unwrap()).unwrap();
        answer["supportedVersions"].as_array().unwrap().len()
    };
    assert_eq!(supported(Dialect::Canal, ""), 4);
    assert_eq!(supported(Dialect::Flannel, ""), 7);
    assert_eq!(supported(Dialect::Calico, r#"{"cniVersion":"1.0.0"}"#), 7);
    for version in VERSIONS {
        assert_eq!(read(&with("flannel", json!({"cniVersion": version}))).version, version);
    }
    assert_eq!(read(&with("calico", json!({"cniVersion": ""}))).version, "0.2.0");
}

#[test]
fn routes_are_those_that_the_plugins_would_have_given() {
    let user = json!({"routes": [{"dst": "192.168.7.9/16"}, {"dst": "192.168.0.0/16"}]});
    let (own, net, all) = ("192.168.0.0/16", "10.77.0.0/16", "0.0.0.0/0");
    for (configuration, wanted) in [
        (with("canal-cni", json!({})), vec![all]),
        (with("canal-cni", json!({"ipam": user})), vec![own]),
        (with("calico", json!({})), vec![all]),
        (with("calico", json!({"include_default_routes": false})), vec![all]),
        (with("calico", json!({"ipam": user})), vec![own]),
        (with("calico", json!({"ipam": user, "include_default_routes": true})), vec![own, all]),
        (delegated("calico", json!({})), vec![net, all]),
        (delegated("calico", json!({"include_default_routes": false})), vec![net]),
        (with("flannel", json!({})), vec![net]),
        (delegated("bridge", json!({"isDefaultGateway": true})), vec![net, all]),
        (with("flannel", json!({"ipam": user, "delegate": {"type": "calico"}})), vec![own, net]),
    ] {
        assert_eq!(routes(&read(&configuration)), wanted, "{configuration}");
    }
    let old = Subnet { networks: Vec::new(), ..subnet() };
    let bridge = read(&with("flannel", json!({})));
    assert_eq!(bridge.routes.on(&old).unwrap_err().code, Code::NoSubnet);
    assert_eq!(read(&delegated("calico", json!({}))).routes.on(&old).unwrap(), [node(all)]);
}

#[test]
fn a_range_is_taken_inside_the_nodes_subnet_and_refused_outside() {
    let range = |ipam: Value| read(&with("canal-cni", json!({"ipam": ipam}))).range;
    for (ipam, wanted) in [
        (json!({}), json!([[{"subnet": "10.77.12.0/24"}]])),
        (json!({"ranges": []}), json!([[{"subnet": "10.77.12.0/24"}]])),
        (json!({"subnet": "10.77.12.1/25"}), json!([[{"subnet": "10.77.12.0/25"}]])),
        (
            json!({"rangeStart": "10.77.12.10", "rangeEnd": "10.77.12.20", "gateway": "10.77.12.9"}),
            json!([[{"subnet": "10.77.12.0/24", "rangeStart": "10.77.12.10", "rangeEnd": "10.77.12.20", "gateway": "10.77.12.9"}]]),
        ),
        (
            json!({"ranges": [[{"subnet": "10.77.12.0/26"}, {"subnet": "10.77.12.128/26", "rangeStart": "10.77.12.140"}]]}),
            json!([[{"subnet": "10.77.12.0/26"}, {"subnet": "10.77.12.128/26", "rangeStart": "10.77.12.140"}]]),
        ),
    ] {
        assert_eq!(range(ipam.clone()).within(node("10.77.12.0/24")), Ok(wanted), "{ipam}");
    }
    for (ipam, message) in [
        (
            json!({"subnet": "10.77.0.0/16"}),
            "`ipam.subnet` 10.77.0.0/16 is not inside this node's subnet 10.77.12.0/24",
        ),
        (
            json!({"rangeStart": "10.77.13.1"}),
            "`ipam.rangeStart` 10.77.13.1 is not inside this node's subnet 10.77.12.0/24",
        ),
        (
            json!({"ranges": [[{"subnet": "10.77.12.0/25", "rangeEnd": "10.77.12.200"}]]}),
            "`ipam.ranges.rangeEnd` 10.77.12.200 is not inside 10.77.12.0/25",
        ),
        (json!({"subnet": "10.77.12.0/31"}), "`ipam.subnet` 10.77.12.0/31 has no room for a pod"),
        (
            json!({"rangeStart": "10.77.12.9", "rangeEnd": "10.77.12.8"}),
            "`ipam.rangeStart` 10.77.12.9 is after `rangeEnd` 10.77.12.8",
        ),
    ] {
        let error = range(ipam.clone()).within(node("10.77.12.0/24")).unwrap_err();
        assert_eq!((error.code, error.msg.as_str()), (Code::InvalidConfig, message), "{ipam}");
    }
    let both = with(
        "calico",
        json!({
            "ipam": {"subnet": "10.77.12.0/25"}, "runtimeConfig": {"ipRanges": [[{"subnet": "10.77.12.128/25"}]]},
        }),
    );
    assert_eq!(read(&both).range.within(node("10.77.12.0/24")), Ok(json!([[{"subnet": "10.77.12.128/25"}]])));
}

#[test]
fn wishes_come_from_the_runtime_then_from_args_then_from_cni_args() {
    let arguments = Arguments {
        ip: Some([10, 77, 12, 3].into()),
        mac: Some("02:00:00:00:00:03".parse().unwrap()),
        pod: None,
    };
    let wishes = |keys: Value| {
        let stdin = with("calico", keys).to_string();
        let config = Config::read(Dialect::Calico, stdin.as_bytes(), &arguments).unwrap();
        let Wishes { ip, mac } = config.wishes;
        (ip.unwrap().octets()[3], mac.unwrap().octets[5], config.notes.len())
    };
    let args = json!({"cni": {"ips": ["10.77.12.2/24"], "mac": "02:00:00:00:00:02"}});
    assert_eq!(wishes(json!({})), (3, 3, 0));
    assert_eq!(wishes(json!({"args": args})), (2, 2, 2));
    assert_eq!(wishes(json!({"args": args, "runtimeConfig": {"ips": ["10.77.12.1"]}})), (1, 2, 3));
    assert_eq!(wishes(json!({"runtimeConfig": {"ips": ["10.77.12.3"]}})), (3, 3, 0));
}

#[test]
fn an_mtu_above_the_networks_is_refused() {
    let mtu = |mtu| read(&with("calico", json!({"mtu": mtu}))).mtu_on(&subnet());
    assert_eq!((mtu(0), mtu(1450), mtu(1300)), (Ok(1450), Ok(1450), Ok(1300)));
    let error = mtu(1500).unwrap_err();
    assert_eq!(error.msg, "`mtu` is 1500, and the pod network carries 1450 at most");
}

#[test]
fn the_nodes_name_is_what_calico_would_take() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("nodename");
    let name = |keys: Value| {
        let mut keys = keys;
        if keys.get("nodename_file").is_some() {
            keys["nodename_file"] = json!(file);
        }
        read(&with("calico", keys)).node_name.resolve()
    };
    assert_eq!(name(json!({})), Ok(None));
    assert_eq!(name(json!({"nodename_file_optional": true})), Ok(None));
    let missing = name(json!({"nodename_file": ""})).unwrap_err();
    assert_eq!(missing.code, Code::TryAgain);
    assert!(missing.msg.contains("nodename"), "{missing}");
    let optional = json!({"nodename_file": "", "nodename_file_optional": true});
    assert_eq!(name(optional), Ok(None));
    let host = json!({"nodename_file": "", "nodename_file_optional": true, "hostname": "h"});
    assert_eq!(name(host.clone()), Ok(Some("h".to_owned())));
    std::fs::write(&file, "node-b\n").unwrap();
    assert_eq!(name(host), Ok(Some("node-b".to_owned())));
    assert_eq!(name(json!({"nodename_file": "", "nodename": "node-a"})), Ok(Some("node-a".to_owned())));
    std::fs::write(&file, "two words").unwrap();
    assert_eq!(name(json!({"nodename_file": ""})).unwrap_err().code, Code::InvalidConfig);
}

#[test]
fn a_pod_of_ours_is_noted_as_flannels_plugin_notes_its_delegates() {
    let folder = tempfile::tempdir().unwrap();
    let config = |more: Value| {
        let data = json!({"dataDir": folder.path().join("notes"), "ipam": {"dataDir": "/d", "routes": [{"dst": "192.0.2.0/24"}]}});
        let mut config = with("flannel", data);
        config["delegate"] =
            json!({"type": "calico", "etcd_endpoints": "http://127.0.0.1:2379", "nodename": "n"});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    let subnet = "FLANNEL_NETWORK=10.77.0.0/16,10.78.0.0/16\nFLANNEL_SUBNET=10.77.12.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true";
    let subnet = Subnet::parse(subnet).unwrap();
    let notebook = read(&config(json!({"cniVersion": "0.4.0"}))).notebook.unwrap();
    let before = notebook.write("abc", &subnet).unwrap().unwrap();
    let file = folder.path().join("notes/abc");
    // As version 0.9.1 of the plugin wrote it, but for a second network, which that did not know.
    let expected = r#"{"cniVersion":"0.4.0","etcd_endpoints":"http://127.0.0.1:2379","ipMasq":false,"ipam":{"dataDir":"/d","ranges":[[{"subnet":"10.77.12.0/24"}]],"routes":[{"dst":"192.0.2.0/24"},{"dst":"10.77.0.0/16"},{"dst":"10.78.0.0/16"}],"type":"host-local"},"mtu":1450,"name":"canal","nodename":"n","type":"calico"}"#;
    assert_eq!(std::fs::read_to_string(&file).unwrap(), expected);
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));
    assert!(notebook.read("abc").unwrap().unwrap().is_like_ours());
    let again = notebook.write("abc", &subnet).unwrap().unwrap();
    notebook.restore("abc", &again).unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), expected, "as it was before the second");
    notebook.restore("abc", &before).unwrap();
    assert_eq!(notebook.read("abc"), Ok(None), "and before the first");
    notebook.remove("abc").unwrap();
    assert_eq!(notebook.read("abc"), Ok(None));
    // `bridge` could not undo a pod of ours.
    for delegate in [json!({}), json!({"type": "bridge"})] {
        let notebook = read(&config(json!({"delegate": delegate}))).notebook.unwrap();
        assert!(notebook.write("abc", &subnet).unwrap().is_none());
        assert_eq!(notebook.read("abc"), Ok(None));
    }
    // Another attachment's, which only its own plugin can end.
    std::fs::write(&file, r#"{"name":"other","type":"bridge"}"#).unwrap();
    assert!(notebook.write("abc", &subnet).unwrap().is_none());
    assert_eq!(notebook.read("abc").unwrap().unwrap().kind, "bridge");
}

#[test]
fn old_notes_of_pods_that_are_gone_are_cleared_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let notebook = Notebook { folder: folder.path().to_owned(), delegate: None };
    let note = |network: &str, kind: &str| json!({"name": network, "type": kind}).to_string();
    let (old, young) = (std::time::Duration::from_mins(2), std::time::Duration::ZERO);
    for (name, text, age) in [
        ("gone", note("canal", "calico"), old),
        ("young", note("canal", "calico"), young),
        ("lives", note("canal", "calico"), old),
        ("bridged", note("canal", "bridge"), old),
        ("other", note("other", "calico"), old),
        ("broken", "{".to_owned(), old),
        (".canal.abc", String::new(), old),
        (".canal.now", String::new(), young),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_modified(std::time::SystemTime::now() - age).unwrap();
    }
    notebook.clear("canal", |name| name == "lives").unwrap();
    let entries = std::fs::read_dir(folder.path()).unwrap();
    let left: BTreeSet<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    let expected = [".canal.now", "bridged", "broken", "lives", "other", "young"];
    assert_eq!(left, expected.map(str::to_owned).into());
    let nowhere = Notebook { folder: folder.path().join("none"), delegate: None };
    nowhere.clear("canal", |_| false).unwrap();
}

#[test]
fn the_notes_of_flannels_own_plugin_are_read_and_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let notebook = Notebook { folder: folder.path().to_owned(), delegate: None };
    assert_eq!(notebook.read("abc"), Ok(None));
    let elsewhere = Notebook { folder: folder.path().join("none"), delegate: None };
    assert_eq!(elsewhere.read("abc"), Ok(None));
    let text = r#"{"cniVersion":"0.3.1","name":"cbr0","type":"bridge","mtu":1450,"isGateway":true,"ipMasq":false,
        "ipam":{"type":"host-local","dataDir":"/d","ranges":[[{"subnet":"10.77.12.0/24"}]],"routes":[{"dst":"10.77.0.0/16"}]}}"#;
    std::fs::write(folder.path().join("abc"), text).unwrap();
    let stored = notebook.read("abc").unwrap().unwrap();
    assert_eq!((stored.network.as_str(), stored.kind.as_str()), ("cbr0", "bridge"));
    assert_eq!(stored.ipam_data_dir(), PathBuf::from("/d"));
    for broken in ["", "{", "[]", "{}", r#"{"name":7}"#, r#"{"name":"../x"}"#] {
        std::fs::write(folder.path().join("abc"), broken).unwrap();
        let note = notebook.read("abc").unwrap_err();
        assert!(note.contains("abc") && !note.contains('\n'), "{note}");
        assert_eq!(std::fs::read_to_string(folder.path().join("abc")).unwrap(), broken);
    }
}
