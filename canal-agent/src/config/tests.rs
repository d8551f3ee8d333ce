use std::{fs, path::Path};

use super::*;

type Given<'a> = (&'a str, &'a str);

fn resolve(flags: &[Given<'_>], variables: &[Given<'_>]) -> Result<Config, ConfigError> {
    // What this machine has of these is not the tests' business.
    let mut args = RunArgs {
        nodename_file: Some("/no/such/nodename".to_owned()),
        felix_config_file: Some("/no/such/felix.cfg".to_owned()),
        ..RunArgs::default()
    };
    for (flag, value) in flags {
        if *flag == "etcd-password" {
            args.etcd_password = Some(crate::store::Secret::new(*value));
            continue;
        }
        let field = match *flag {
            "etcd-endpoints" => &mut args.etcd_endpoints,
            "etcd-prefix" => &mut args.etcd_prefix,
            "etcd-cafile" => &mut args.etcd_cafile,
            "etcd-certfile" => &mut args.etcd_certfile,
            "etcd-keyfile" => &mut args.etcd_keyfile,
            "etcd-username" => &mut args.etcd_username,
            "iface" => {
                args.iface.push((*value).to_owned());
                continue;
            }
            "iface-regex" => {
                args.iface_regex.push((*value).to_owned());
                continue;
            }
            "ip-masq-exempt" => {
                args.ip_masq_exempt.push((*value).to_owned());
                continue;
            }
            "ip-masq-fully-random-disable" => &mut args.ip_masq_fully_random_disable,
            "iface-can-reach" => &mut args.iface_can_reach,
            "healthz-ip" => &mut args.healthz_ip,
            "healthz-port" => &mut args.healthz_port,
            "public-ip" => &mut args.public_ip,
            "ip-masq" => &mut args.ip_masq,
            "node-name" => &mut args.node_name,
            "nodename-file" => &mut args.nodename_file,
            "felix-config-file" => &mut args.felix_config_file,
            "decap-gear" => &mut args.decap_gear,
            "outer-udp-checksum" => &mut args.outer_udp_checksum,
            "established" => &mut args.established,
            "flow-timeouts" => &mut args.flow_timeouts,
            "max-flows" => &mut args.max_flows,
            "max-new-flows" => &mut args.max_new_flows,
            "max-peers" => &mut args.max_peers,
            "max-nets" => &mut args.max_nets,
            "max-rows" => &mut args.max_rows,
            other => panic!("no flag {other}"),
        };
        *field = Some((*value).to_owned());
    }
    Config::resolve(args, Environment::of(variables), 4 << 30)
}

fn pem_files(folder: &Path) -> (String, String) {
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    fs::write(&cert, "-----BEGIN CERTIFICATE-----\n").unwrap();
    fs::write(&key, "-----BEGIN EC PRIVATE KEY-----\n").unwrap();
    (cert.to_str().unwrap().into(), key.to_str().unwrap().into())
}

#[test]
fn with_nothing_given_the_defaults_are_flannels() {
    let config = resolve(&[], &[]).unwrap();
    assert_eq!(
        (config.etcd.endpoints, config.etcd.by_default),
        (vec!["http://127.0.0.1:2379".to_owned()], true)
    );
    assert_eq!(config.etcd.prefix.to_string(), "/coreos.com/network");
    assert_eq!(config.subnet_file, Path::new("/run/flannel/subnet.env"));
    assert_eq!(config.state_dir, Path::new("/var/lib/canal"));
    assert_eq!(config.socket, Path::new("/run/canal/agent.sock"));
    assert_eq!(config.bpffs, Path::new("/sys/fs/bpf"));
    assert_eq!(config.node_name, "host-1");
    assert_eq!(config.gear, Gear::Tc);
    assert_eq!((config.established, config.flow_timeouts), (Established::Judge, FlowTimeouts::default()));
    assert_eq!(config.sizes, TableSizes::for_memory(4 << 30));
    assert_eq!((config.notices, config.felix.len()), (Vec::new(), 1));
    assert_eq!((config.uplink, config.health, config.ip_masq), (UplinkRules::default(), None, None));
    assert_eq!((config.etcd.credentials, config.etcd.tls), (None, crate::store::TlsFiles::default()));
}

#[test]
fn the_flag_beats_our_variable_beats_flannels_beats_calicos() {
    let all = [
        ("CANAL_ETCD_ENDPOINTS", "http://canal:1"),
        ("FLANNELD_ETCD_ENDPOINTS", "http://flannel:1"),
        ("ETCD_ENDPOINTS", "http://calico:1/"),
    ];
    let endpoint = |flags: &[Given<'_>], variables: &[Given<'_>]| {
        resolve(flags, variables).unwrap().etcd.endpoints.join(" ")
    };
    assert_eq!(endpoint(&[("etcd-endpoints", "http://flag:1")], &all), "http://flag:1");
    assert_eq!(endpoint(&[], &all), "http://canal:1");
    assert_eq!(endpoint(&[], &all[1..]), "http://flannel:1");
    assert_eq!(endpoint(&[], &all[2..]), "http://calico:1");
    assert_eq!(endpoint(&[], &[("CANAL_ETCD_ENDPOINTS", ""), all[1]]), "http://flannel:1");
    assert!(!resolve(&[], &all[2..]).unwrap().etcd.by_default);
}

#[test]
fn calicos_and_felixs_names_for_etcd_are_understood() {
    let endpoint = |variables: &[Given<'_>]| resolve(&[], variables).map(|c| c.etcd.endpoints.join(" "));
    let all = [
        ("ETCD_ENDPOINTS", "http://node:1"),
        ("felix_EtcdEndpoints", "http://felix:1,http://felix:2"),
        ("FELIX_ETCDADDR", "addr:1"),
    ];
    assert_eq!(endpoint(&all).unwrap(), "http://node:1");
    assert_eq!(endpoint(&all[1..]).unwrap(), "http://felix:1 http://felix:2");
    assert_eq!(endpoint(&all[2..]).unwrap(), "http://addr:1");
    assert_eq!(endpoint(&[all[2], ("FELIX_ETCDSCHEME", "https")]).unwrap(), "https://addr:1");
    let user = [("ETCD_USERNAME", "u"), ("ETCD_PASSWORD", "hunter2")];
    assert_eq!(resolve(&[], &user).unwrap().etcd.credentials.unwrap().password.reveal(), "hunter2");

    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = pem_files(folder.path());
    for names in [
        ["ETCD_CA_CERT_FILE", "ETCD_CERT_FILE", "ETCD_KEY_FILE"],
        ["FELIX_ETCDCAFILE", "FELIX_ETCDCERTFILE", "FELIX_ETCDKEYFILE"],
    ] {
        let files = [(names[0], cert.as_str()), (names[1], cert.as_str()), (names[2], key.as_str())];
        let config = resolve(&[("etcd-endpoints", "a:1")], &files).unwrap();
        assert_eq!(config.etcd.endpoints, ["https://a:1"]);
        assert!(config.etcd.tls.client.is_some());
    }
}

#[test]
fn the_node_is_named_as_calico_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("nodename");
    fs::write(&file, "Stored-Name\n").unwrap();
    let file = file.to_str().unwrap();
    let all = [
        ("CANAL_NODE_NAME", "canal"),
        ("NODENAME", "Node-A"),
        ("FELIX_FELIXHOSTNAME", "felix"),
        ("HOSTNAME", "Shell-Host"),
    ];
    let name = |flags: &[Given<'_>], variables: &[Given<'_>]| resolve(flags, variables).unwrap().node_name;
    let stored = ("nodename-file", file);
    assert_eq!(name(&[("node-name", "flag"), stored], &all), "flag");
    assert_eq!(name(&[stored], &all), "canal");
    assert_eq!(name(&[stored], &all[1..]), "Node-A");
    assert_eq!(name(&[stored], &all[2..]), "Stored-Name");
    assert_eq!(name(&[], &all[2..]), "felix");
    assert_eq!(name(&[], &all[3..]), "shell-host");
    let is_stored =
        |flags: &[Given<'_>], variables: &[Given<'_>]| resolve(flags, variables).unwrap().name_is_stored;
    assert!(is_stored(&[stored], &[]) && !is_stored(&[stored], &all) && !is_stored(&[], &[]));
    assert!(!is_stored(&[stored], &[("HOSTNAME", "Stored-Name"), ("NODENAME", "Stored-Name")]));
    assert_eq!(name(&[], &[("CALICO_NODENAME_FILE", "/no/such")]), "host-1");
    assert_eq!(name(&[], &[("NODENAME", "192.0.2.11")]), "192.0.2.11");
    let renamed = resolve(&[stored], &all).unwrap();
    assert!(renamed.notices[0].contains("said Stored-Name") && renamed.notices[0].contains("called canal"));
    fs::write(file, "not a name").unwrap();
    let error = resolve(&[stored], &[]).unwrap_err().to_string();
    assert!(error.starts_with(file) && error.contains("--node-name"), "{error}");
}

#[test]
fn the_unit_of_calico_node_works_as_it_is() {
    let unit = [
        ("CALICO_DISABLE_FILE_LOGGING", "true"),
        ("NODENAME", "192.0.2.11"),
        ("IP", "192.0.2.11"),
        ("FELIX_FELIXHOSTNAME", "192.0.2.11"),
        ("CALICO_NETWORKING", "false"),
        ("NO_DEFAULT_POOLS", "true"),
        ("ETCD_ENDPOINTS", "http://192.0.2.1:2379"),
    ];
    let config = resolve(&[], &unit).unwrap();
    assert_eq!((config.node_name.as_str(), config.uplink.public_ip), ("192.0.2.11", None));
    assert_eq!(config.etcd.endpoints, ["http://192.0.2.1:2379"]);
    assert_eq!(config.notices, ["environment of calico/node: no effect here: IP"]);
    let more = [
        ("NO_DEFAULT_POOLS", "false"),
        ("CALICO_NETWORKING_BACKEND", "bird"),
        ("CALICO_IPV4POOL_CIDR", "10.0.0.0/8"),
        ("DATASTORE_TYPE", "etcdv3"),
        ("CLUSTER_TYPE", "k8s, bgp"),
        ("CALICO_K8S_NODE_REF", "kube-a"),
        ("WAIT_FOR_DATASTORE", "true"),
    ];
    let config = resolve(&[], &more).unwrap();
    assert_eq!(
        config.notices,
        [
            "environment of calico/node: no effect here: CALICO_NETWORKING_BACKEND, CALICO_IPV4POOL_CIDR, NO_DEFAULT_POOLS"
        ]
    );
    assert_eq!(
        (config.cluster_type.join(" ").as_str(), config.kubernetes_node.as_deref()),
        ("k8s bgp", Some("kube-a"))
    );
}

#[test]
fn sizes_and_timeouts_are_read_in_any_usual_spelling() {
    let config = resolve(
        &[("max-flows", "1_000_000"), ("max-nets", "65536")],
        &[("CANAL_ESTABLISHED", "keep"), ("CANAL_FLOW_TIMEOUTS", "tcp-established=2h, udp=90s,")],
    )
    .unwrap();
    assert_eq!((config.sizes.flows, config.sizes.nets, config.sizes.peers), (1_000_000, 65_536, 262_144));
    assert_eq!(config.established, Established::Keep);
    let seconds = std::time::Duration::from_secs;
    let expected =
        FlowTimeouts { tcp_established: seconds(7200), udp: seconds(90), ..FlowTimeouts::default() };
    assert_eq!(config.flow_timeouts, expected);
}

/// The configuration from a command line of flanneld's.
fn flanneld(line: &str, variables: &[Given<'_>]) -> Result<Config, String> {
    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        run: RunArgs,
    }
    let line = format!("flanneld --nodename-file /no/such --felix-config-file /no/such {line}");
    let mut args = command_line(line.split_whitespace().map(Into::into)).args;
    args.remove(1);
    let cli = <Cli as clap::Parser>::try_parse_from(args).map_err(|error| error.to_string())?;
    Config::resolve(cli.run, Environment::of(variables), 4 << 30).map_err(|error| error.to_string())
}

#[test]
fn every_flag_of_flanneld_is_taken_and_its_default_needs_no_word() {
    let defaults = "-etcd-endpoints=http://127.0.0.1:4001,http://127.0.0.1:2379 -etcd-prefix=/coreos.com/network \
        -etcd-keyfile= -etcd-certfile= -etcd-cafile= -etcd-username= -etcd-password= -kube-subnet-mgr=false \
        -kube-api-url= -kubeconfig-file= -kube-annotation-prefix=flannel.alpha.coreos.com \
        -net-config-path=/etc/kube-flannel/net-conf.json -set-node-network-unavailable=true -iface= -iface-regex= \
        -iface-can-reach= -public-ip= -public-ipv6= -subnet-file=/run/flannel/subnet.env \
        -subnet-lease-renew-margin=60 -ip-masq=false -ip-masq-fully-random-disable=false -iptables-resync=5 \
        -iptables-forward-rules=false -ip-blackhole-route=false -healthz-ip=0.0.0.0 -healthz-port=0 -version=false \
        -v=0 -vmodule= -log_backtrace_at=:0";
    let config = flanneld(defaults, &[]).unwrap();
    assert_eq!(config.notices, Vec::<String>::new());
    let expected = EtcdOptions {
        endpoints: vec!["http://127.0.0.1:4001".to_owned(), "http://127.0.0.1:2379".to_owned()],
        by_default: false,
        ..flanneld("", &[]).unwrap().etcd
    };
    assert_eq!(config, Config { etcd: expected, ..flanneld("", &[]).unwrap() });
}

#[test]
fn what_flanneld_would_do_and_canal_does_not_is_said_once_with_the_reason() {
    let line = "-kube-api-url http://k:1 -kubeconfig-file=/k -kube-annotation-prefix x -net-config-path /n \
        -set-node-network-unavailable=false -public-ipv6 fd00::1 -subnet-lease-renew-margin 90 \
        -iptables-resync 10 -iptables-forward-rules=T -ip-blackhole-route -v 4 -vmodule=a=1 \
        -log_backtrace_at a.go:1";
    let notices = flanneld(line, &[]).unwrap().notices;
    assert_eq!(notices.len(), 12, "{notices:?}");
    for (notice, words) in notices.iter().zip(["--kube-api-url http://k:1", "--kubeconfig-file"]) {
        assert!(notice.contains(words) && notice.contains("never in Kubernetes"), "{notice}");
    }
    assert!(notices.iter().all(|notice| notice.contains("no effect here: ")), "{notices:?}");
    assert!(notices.iter().any(|n| n.contains("renew-margin 90") && n.contains("kept alive")), "{notices:?}");
    let variables = [
        ("FLANNELD_IPTABLES_RESYNC", "7"),
        ("FLANNELD_V", "2"),
        ("FLANNELD_LOG_BACKTRACE_AT", ":0"),
        ("FLANNELD_IFACE", ""),
        ("FLANNELD_FACE", "eth0"),
        ("FLANNELD_IP_MASQ", "true"),
    ];
    let notices = flanneld("", &variables).unwrap().notices;
    assert_eq!(notices.len(), 3, "{notices:?}");
    assert!(notices[0].starts_with("FLANNELD_IPTABLES_RESYNC 7: no effect"), "{notices:?}");
    assert!(
        notices[1].starts_with("FLANNELD_V 2: ") && notices[2].starts_with("FLANNELD_FACE: "),
        "{notices:?}"
    );
}

#[test]
fn what_makes_flanneld_end_makes_canal_end_and_kubernetes_is_refused() {
    for (line, want) in [
        ("-kube-subnet-mgr", "--kube-subnet-mgr: \"true\" asks for leases in Kubernetes"),
        ("-kube-subnet-mgr=maybe", "is not a truth value"),
        ("-subnet-lease-renew-margin 0", "is not between 1 and 1439"),
        ("-subnet-lease-renew-margin 1440", "is not between 1 and 1439"),
        ("-iptables-resync soon", "\"soon\" is not a number"),
        ("-iface-regex [", "is not a regular expression"),
        ("-iface-can-reach node2", "--iface-can-reach: \"node2\" is not an IPv4 address"),
        ("-healthz-port 65536", "is not a port"),
        ("-healthz-port off", "is not a port"),
        ("-ip-masq=yes", "is not a truth value"),
        ("-no-such-flag", "unexpected argument '--no-such-flag'"),
    ] {
        let error = flanneld(line, &[]).expect_err(line);
        assert!(error.contains(want), "{line}: {error}");
    }
    let error = flanneld("", &[("FLANNELD_KUBE_SUBNET_MGR", "1")]).unwrap_err();
    assert!(error.starts_with("FLANNELD_KUBE_SUBNET_MGR: "), "{error}");
    assert!(flanneld("-kube-subnet-mgr=false", &[("FLANNELD_KUBE_SUBNET_MGR", "1")]).is_ok());
}

#[test]
fn a_flag_without_text_beats_the_environment_and_a_variable_is_one_uplink() {
    let config = flanneld("-public-ip=", &[("CANAL_PUBLIC_IP", "192.0.2.1")]).unwrap();
    assert_eq!(config.uplink.public_ip, None);
    let ifaces = |line, variable| flanneld(line, &[("FLANNELD_IFACE", variable)]).unwrap().uplink.ifaces;
    assert_eq!(ifaces("", "eth0,eth1"), ["eth0,eth1"]);
    assert_eq!(ifaces("-iface a -iface b", "eth0"), ["a", "b"]);
    assert_eq!(ifaces("-iface=", "eth0"), Vec::<String>::new());
    let config = flanneld("-healthz-port 8470", &[]).unwrap();
    assert_eq!(config.health, Some(at("0.0.0.0", 8470)));
}

#[test]
fn health_is_served_at_any_name_and_nowhere_without_a_port_above_zero() {
    let health = |line: &str, variables: &[Given<'_>]| flanneld(line, variables).unwrap().health;
    for (host, port) in [("::1", "1"), ("localhost", "65535"), ("192.0.2.1", "8470")] {
        let line = format!("-healthz-ip {host}");
        let served = health(&line, &[("FLANNELD_HEALTHZ_PORT", port)]);
        assert_eq!(served, Some(at(host, port.parse().unwrap())));
        assert_eq!(health(&line, &[]), None);
    }
    for port in ["0", "-1", "-70000"] {
        assert_eq!(health(&format!("-healthz-port {port}"), &[]), None, "{port}");
    }
}

fn at(host: &str, port: u16) -> Address {
    Address { host: host.to_owned(), port }
}

#[test]
fn a_variable_of_flannelds_without_sense_is_ignored_with_a_word_and_any_other_place_is_an_error() {
    for (name, text, wanted) in [
        ("IP_MASQ", "yes", "write true or false"),
        ("IP_MASQ_FULLY_RANDOM_DISABLE", "2", "write true or false"),
        ("HEALTHZ_PORT", "off", "write 1 to 65535, or 0"),
        ("HEALTHZ_PORT", "70000", "write 1 to 65535, or 0"),
        ("IPTABLES_RESYNC", "5s", "write it in digits"),
        ("SUBNET_LEASE_RENEW_MARGIN", "1h", "write it in digits"),
        ("SUBNET_LEASE_RENEW_MARGIN", "0", "between 1 and 1439"),
        ("IPTABLES_FORWARD_RULES", "on", "write true or false"),
        ("KUBE_SUBNET_MGR", "no", "write true or false"),
        ("V", "debug", "write it in digits"),
    ] {
        let variable = |prefix: &str| format!("{prefix}{name}");
        let config = flanneld("", &[(&variable("FLANNELD_"), text)]).unwrap();
        let [notice] = &config.notices[..] else { panic!("{name}: {:?}", config.notices) };
        assert!(notice.starts_with(&format!("FLANNELD_{name}: {text:?} is not ")), "{notice}");
        assert!(notice.contains(wanted) && notice.ends_with(": ignored, the default counts"), "{notice}");
        assert_eq!(Config { notices: Vec::new(), ..config }, flanneld("", &[]).unwrap(), "{name}");

        let error = flanneld("", &[(&variable("CANAL_"), text)]).expect_err(name);
        assert!(error.starts_with(&variable("CANAL_")) && error.contains(wanted), "{error}");
        let flag = name.to_lowercase().replace('_', "-");
        let error = flanneld(&format!("-{flag}={text}"), &[(&variable("FLANNELD_"), "")]).expect_err(name);
        assert!(error.starts_with(&format!("--{flag}: ")) && error.contains(wanted), "{error}");
    }
    for (name, text) in [
        ("FLANNELD_ETCD_ENDPOINTS", "nowhere"),
        ("FLANNELD_ETCD_CAFILE", "/no/such"),
        ("FLANNELD_ETCD_PREFIX", "/"),
        ("FLANNELD_IFACE_REGEX", "["),
        ("FLANNELD_IFACE_CAN_REACH", "node2"),
        ("FLANNELD_PUBLIC_IP", "node1"),
    ] {
        let error = flanneld("", &[(name, text)]).expect_err("another cluster or uplink would be taken");
        assert!(error.starts_with(name), "{error}");
    }
}

#[test]
fn truth_values_are_gos() {
    let masquerade = |value| resolve(&[("ip-masq", value)], &[]).map(|config| config.ip_masq.is_some());
    for value in ["1", "t", "T", "true", "TRUE", "True"] {
        assert_eq!(masquerade(value), Ok(true));
    }
    for value in ["0", "f", "F", "false", "FALSE", "False"] {
        assert_eq!(masquerade(value), Ok(false));
    }
    assert!(masquerade("yes").is_err());
    assert!(resolve(&[], &[("FLANNELD_IP_MASQ", "true")]).unwrap().ip_masq.is_some());
    assert!(resolve(&[], &[("CANAL_OUTER_UDP_CHECKSUM", "1")]).unwrap().outer_checksum);
}

#[test]
fn destinations_are_exempt_from_masquerading_by_flags_or_one_list() {
    let exempt = |flags: &[Given<'_>], variables: &[Given<'_>]| {
        let flags: Vec<_> = flags.iter().copied().chain([("ip-masq", "true")]).collect();
        let rules = resolve(&flags, variables).map(|config| config.ip_masq.unwrap());
        rules.map(|rules| rules.exempt.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    };
    let list = [("CANAL_IP_MASQ_EXEMPT", "192.0.2.7, 10.1.2.3/16,,10.1.0.0/16")];
    assert_eq!(exempt(&[], &list).unwrap(), "10.1.0.0/16 192.0.2.7/32", "each once");
    let flags = [("ip-masq-exempt", "10.2.0.0/16"), ("ip-masq-exempt", "10.3.0.0/16,10.4.0.0/16")];
    assert_eq!(exempt(&flags, &list).unwrap(), "10.2.0.0/16 10.3.0.0/16 10.4.0.0/16");
    for wrong in ["10.1.0.0/33", "fd00::/8", "example.org"] {
        let error = exempt(&[("ip-masq-exempt", wrong)], &[]).unwrap_err().to_string();
        assert!(error.starts_with("--ip-masq-exempt: ") && error.contains("no IPv4 network"), "{error}");
    }
    assert!(resolve(&[("ip-masq-exempt", "x")], &[]).is_err(), "also where it would have no effect");
    assert_eq!(resolve(&flags, &[]).unwrap().ip_masq, None);
    let keeps = |text| {
        let flags = [("ip-masq", "true"), ("ip-masq-fully-random-disable", text)];
        resolve(&flags, &[]).unwrap().ip_masq.unwrap().keep_ports
    };
    assert!(keeps("true") && !keeps("false"));
}

#[test]
fn a_ca_is_enough_and_decides_the_scheme() {
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = pem_files(folder.path());
    let config =
        resolve(&[("etcd-cafile", &cert), ("etcd-endpoints", "a:1,[::1]:2, https://c:3/")], &[]).unwrap();
    assert_eq!(config.etcd.endpoints, ["https://a:1", "https://[::1]:2", "https://c:3"]);
    assert!(config.etcd.tls.client.is_none());
    let both = [("etcd-certfile", cert.as_str()), ("etcd-keyfile", &key), ("etcd-endpoints", "https://a:1")];
    assert!(resolve(&both, &[]).unwrap().etcd.tls.client.is_some());
}

#[test]
fn every_mistake_names_its_setting_and_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = pem_files(folder.path());
    let missing = folder.path().join("none").to_str().unwrap().to_owned();
    let cases: Vec<(Vec<Given<'_>>, Vec<Given<'_>>, &str)> = vec![
        (
            vec![("etcd-endpoints", "ftp://a:1")],
            vec![],
            r#"--etcd-endpoints: "ftp://a:1" has an unknown scheme"#,
        ),
        (vec![("etcd-endpoints", "http://a")], vec![], "write http://host:2379"),
        (vec![("etcd-endpoints", "http://a:b")], vec![], "write http://host:2379"),
        (vec![("etcd-endpoints", "http://a:1/x")], vec![], "write http://host:2379"),
        (vec![("etcd-endpoints", "http://u:secret@a:1")], vec![], r#""a:1" must not carry a user"#),
        (vec![("etcd-endpoints", ",")], vec![], "names no server"),
        (vec![("etcd-endpoints", "http://a:1,https://b:1")], vec![], "mixes http and https"),
        (vec![], vec![("ETCD_ENDPOINTS", "x y")], r#"ETCD_ENDPOINTS: "x y" is not an etcd server"#),
        (
            vec![("etcd-endpoints", "http://a:1"), ("etcd-cafile", &cert)],
            vec![],
            r#""http://a:1" is not TLS, but --etcd-cafile is given; write https://"#,
        ),
        (vec![("etcd-certfile", &cert)], vec![], "--etcd-certfile: "),
        (vec![("etcd-endpoints", "https://a:1"), ("etcd-certfile", &cert)], vec![], "add --etcd-keyfile"),
        (vec![("etcd-endpoints", "https://a:1"), ("etcd-keyfile", &key)], vec![], "add --etcd-certfile"),
        (
            vec![("etcd-endpoints", "https://a:1"), ("etcd-cafile", &missing)],
            vec![],
            "cannot be read: No such file",
        ),
        (
            vec![("etcd-endpoints", "https://a:1"), ("etcd-cafile", &key)],
            vec![],
            "holds no certificate in PEM",
        ),
        (vec![("etcd-username", "u")], vec![], "set CANAL_ETCD_PASSWORD"),
        (vec![("etcd-password", "p")], vec![], "add --etcd-username"),
        (vec![("etcd-prefix", "/")], vec![], "--etcd-prefix: etcd prefix \"/\" is empty"),
        (vec![("public-ip", "fd00::1")], vec![], r#"--public-ip: "fd00::1" is not an IPv4 address"#),
        (vec![("public-ip", "0.0.0.0")], vec![], "not an address that peers can send to"),
        (vec![], vec![("CANAL_IP_MASQ", "yes")], r#"CANAL_IP_MASQ: "yes" is not a truth value"#),
        (vec![("node-name", "a/b")], vec![], r#"--node-name: "a/b" is no node name"#),
        (vec![], vec![("NODENAME", "-a")], "NODENAME: \"-a\" must begin and end"),
        (vec![], vec![("DATASTORE_TYPE", "kubernetes")], "DATASTORE_TYPE: \"kubernetes\" is not supported"),
        (vec![], vec![("ETCD_DISCOVERY_SRV", "x.example")], "name them with ETCD_ENDPOINTS"),
        (vec![("decap-gear", "ebpf")], vec![], "--decap-gear: \"ebpf\" is none of auto, tc, xdp and kernel"),
        (vec![("established", "forget")], vec![], "--established: \"forget\" is neither judge nor keep"),
        (vec![("flow-timeouts", "tcp=1h")], vec![], "known are tcp-new, tcp-established, closing"),
        (vec![("flow-timeouts", "udp")], vec![], "write tcp-established=1h"),
        (vec![("flow-timeouts", "udp=60")], vec![], "\"udp=60\" is no duration; write 90s"),
        (vec![("flow-timeouts", "udp=1s")], vec![], "not between 2s and 720h"),
        (vec![("flow-timeouts", "udp=721h")], vec![], "not between 2s and 720h"),
        (
            vec![("max-flows", "many")],
            vec![],
            "--max-flows: \"many\" is not a number of entries between 1024 and",
        ),
        (vec![("max-nets", "0")], vec![], "--max-nets: \"0\" is not a number"),
        (vec![("max-rows", "65537")], vec![], "between 1024 and 65536"),
        (
            vec![],
            vec![("CANAL_MAX_NEW_FLOWS", "16000000")],
            "CANAL_MAX_NEW_FLOWS: \"16000000\" is too large: the tables would take 2489 MB of this machine's 4096 MB",
        ),
    ];
    for (flags, variables, want) in cases {
        let error = resolve(&flags, &variables).map(|config| config.node_name).expect_err(want).to_string();
        if !want.ends_with("file: ") {
            assert!(error.contains(want), "{flags:?} {variables:?}: {error}");
        }
        assert!(!error.contains('\n') && !error.contains("secret"), "{error}");
    }
}

#[test]
fn secrets_are_not_shown() {
    let config = resolve(&[("etcd-username", "user"), ("etcd-password", "hunter2")], &[("X", "y")]).unwrap();
    let credentials = config.etcd.credentials.as_ref().unwrap();
    assert_eq!(credentials.password.reveal(), "hunter2");
    let shown = format!("{config:?} {}", serde_json::to_string(&config).unwrap());
    assert!(shown.contains("user") && shown.contains("redacted") && !shown.contains("hunter2"), "{shown}");
}
