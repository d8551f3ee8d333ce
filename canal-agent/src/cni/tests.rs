//! What can be decided without touching anything.

use std::cell::RefCell;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{result::Made, undo::Undo, *};

fn environment(pairs: &[(&str, &str)]) -> Environment {
    pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
}

const ADD: [(&str, &str); 5] = [
    ("CNI_COMMAND", "ADD"),
    ("CNI_CONTAINERID", "abc"),
    ("CNI_IFNAME", "eth0"),
    ("CNI_NETNS", "/no/such/netns"),
    ("CNI_PATH", "/usr/lib/cni"),
];

const CONFIG: &str = r#"{"cniVersion":"1.0.0","name":"canal","type":"canal-cni"}"#;

fn read(stdin: &[u8]) -> Result<Config, CniError> {
    Config::read(Dialect::Canal, stdin, &Arguments::default())
}

/// ADD with one variable replaced, or taken away.
fn add_but(name: &str, value: Option<&str>) -> Environment {
    let mut environment = environment(&ADD);
    environment.remove(name);
    environment.extend(value.map(|v| (name.to_owned(), v.to_owned())));
    environment
}

#[test]
fn each_bad_environment_has_its_own_message() {
    let long = "sixteen-letters-";
    for (environment, message) in [
        (environment(&[]), "CNI_COMMAND is not set"),
        (environment(&[("CNI_COMMAND", "add")]), "CNI_COMMAND is \"add\""),
        (environment(&[("CNI_COMMAND", "ADD")]), "not set: CNI_CONTAINERID, CNI_IFNAME, CNI_NETNS, CNI_PATH"),
        (environment(&[("CNI_COMMAND", "DEL")]), "not set: CNI_CONTAINERID, CNI_IFNAME"),
        (add_but("CNI_NETNS", None), "not set: CNI_NETNS"),
        (add_but("CNI_NETNS", Some("")), "not set: CNI_NETNS"),
        (add_but("CNI_CONTAINERID", Some("a/b")), "CNI_CONTAINERID is \"a/b\""),
        (add_but("CNI_CONTAINERID", Some("-a")), "CNI_CONTAINERID is \"-a\""),
        (add_but("CNI_CONTAINERID", Some("a-")), "CNI_CONTAINERID is \"a-\""),
        (add_but("CNI_ARGS", Some("IP")), "CNI_ARGS has \"IP\""),
        (add_but("CNI_ARGS", Some("A=1;B=2")), "CNI_ARGS has the unknown name \"A\""),
        (add_but("CNI_ARGS", Some("IgnoreUnknown=yes")), "CNI_ARGS has IgnoreUnknown=\"yes\""),
        (add_but("CNI_ARGS", Some("IP=fd00::1")), "CNI_ARGS has IP=\"fd00::1\""),
        (add_but("CNI_ARGS", Some("MAC=1")), "CNI_ARGS has MAC=\"1\""),
        (add_but("CNI_ARGS", Some("MAC=ff:ff:ff:ff:ff:ff")), "CNI_ARGS has MAC=\"ff:ff:ff:ff:ff:ff\""),
        (
            add_but("CNI_ARGS", Some("K8S_POD_NAMESPACE=a/b;K8S_POD_NAME=c")),
            "CNI_ARGS has K8S_POD_NAMESPACE=\"a/b\"",
        ),
        (
            add_but("CNI_ARGS", Some("K8S_POD_NAMESPACE=a.b;K8S_POD_NAME=c")),
            "CNI_ARGS has K8S_POD_NAMESPACE=\"a.b\"",
        ),
        (
            add_but("CNI_ARGS", Some("K8S_POD_NAMESPACE=a;K8S_POD_NAME=-c")),
            "CNI_ARGS has K8S_POD_NAME=\"-c\"",
        ),
        (
            add_but("CNI_ARGS", Some("K8S_POD_NAMESPACE=a;K8S_POD_NAME=c..d")),
            "CNI_ARGS has K8S_POD_NAME=\"c..d\"",
        ),
        (
            add_but("CNI_ARGS", Some("K8S_POD_NAMESPACE=a;K8S_POD_NAME=c;K8S_POD_UID=\n")),
            "CNI_ARGS has K8S_POD_UID=\"\\n\"",
        ),
        (
            add_but("CNI_ARGS", Some("K8S_POD_NAMESPACE=a;K8S_POD_NAME=c;K8S_POD_INFRA_CONTAINER_ID=/")),
            "CNI_ARGS: K8S_POD_INFRA_CONTAINER_ID is \"/\"",
        ),
        (add_but("CNI_IFNAME", Some(long)), "CNI_IFNAME is \"sixteen-letters-\""),
        (add_but("CNI_IFNAME", Some("a b")), "CNI_IFNAME is \"a b\""),
        (add_but("CNI_IFNAME", Some("..")), "CNI_IFNAME is \"..\""),
    ] {
        let error = call(&environment, CONFIG.as_bytes()).unwrap_err();
        assert_eq!((error.code, error.msg.as_str()), (Code::InvalidEnvironment, message));
        assert!(!error.details.is_empty() && !error.msg.contains('\n'));
    }
}

#[test]
fn arguments_name_the_pod_and_what_it_should_have() {
    let read = |text: &str| Arguments::read(&environment(&[("CNI_ARGS", text)])).unwrap();
    let kubelets = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0.a;K8S_POD_INFRA_CONTAINER_ID=abc;\
                    K8S_POD_UID=6f5a;OTHER=a=b;";
    let pod = PodName {
        namespace: "shop".into(),
        name: "web-0.a".into(),
        uid: Some("6f5a".into()),
        infra_container_id: Some("abc".into()),
    };
    assert_eq!(read(kubelets), Arguments { pod: Some(pod), ..Arguments::default() });
    let asked = Arguments {
        ip: Some([10, 100, 7, 9].into()),
        mac: Some("02:00:00:00:00:09".parse().unwrap()),
        pod: None,
    };
    assert_eq!(read("IP=10.100.7.9/24;MAC=02:00:00:00:00:09;IgnoreUnknown=False"), asked);
    for not_a_pod in
        ["", ";", "IP=", "K8S_POD_NAME=a", "K8S_POD_NAMESPACE=a", "K8S_POD_NAME=a;K8S_POD_NAMESPACE="]
    {
        assert_eq!(read(not_a_pod), Arguments::default(), "{not_a_pod}");
    }
}

#[test]
fn verbs_need_what_the_specification_says() {
    let full = environment(&ADD);
    assert_eq!(search_path(&full).unwrap(), [std::path::Path::new("/usr/lib/cni")]);
    assert_eq!(search_path(&environment(&[])).unwrap_err().msg, "not set: CNI_PATH");
    for verb in [Verb::Add, Verb::Check] {
        let error = Attachment::read(verb, &add_but("CNI_PATH", None)).unwrap_err();
        assert_eq!(error.msg, "not set: CNI_PATH");
    }
    let del = Attachment::read(Verb::Del, &environment(&ADD[1..3])).unwrap();
    assert_eq!((del.container_id.as_str(), del.netns, del.path.len()), ("abc", None, 0));
    let id = |length| Attachment::read(Verb::Add, &add_but("CNI_CONTAINERID", Some(&"f".repeat(length))));
    assert!(id(128).is_ok());
    assert_eq!(id(129).unwrap_err().details, "it has at most 128 characters");
}

#[test]
fn each_bad_configuration_has_its_own_message() {
    for (stdin, code, message) in [
        ("", Code::Decode, "standard input is empty: the runtime gives"),
        ("{", Code::Decode, "cannot read the network configuration: EOF"),
        ("\u{1}\u{2}", Code::Decode, "cannot read the network configuration: expected value"),
        ("[1]", Code::Decode, "cannot read the network configuration: it is JSON, but not an object"),
        ("{}", Code::IncompatibleVersion, "the configuration has no `cniVersion`: supported are 0.3.1, "),
        (r#"{"cniVersion":"0.2.0"}"#, Code::IncompatibleVersion, "CNI version \"0.2.0\" is not supported: "),
        (r#"{"cniVersion":"1.0.0"}"#, Code::InvalidConfig, "`name` is \"\": "),
        (r#"{"cniVersion":"1.0.0","name":"a/b"}"#, Code::InvalidConfig, "`name` is \"a/b\": "),
        (
            r#"{"cniVersion":"1.0.0","name":7}"#,
            Code::Decode,
            "cannot read the network configuration: `name` is 7: want a text",
        ),
        (
            r#"{"cniVersion":"1.0.0","name":"canal","ipam":{"type":"dhcp"}}"#,
            Code::InvalidConfig,
            "`ipam.type` is \"dhcp\": ",
        ),
        (
            r#"{"cniVersion":"1.0.0","name":"canal","ipam":{"subnet":"fd00::/64"}}"#,
            Code::InvalidConfig,
            "`ipam.subnet` is \"fd00::/64\": pods have no IPv6 here",
        ),
        (
            r#"{"cniVersion":"1.0.0","name":"canal","args":{"cni":{"labels":[{"key":"a","value":"1"},{"key":"a","value":"2"}]}}}"#,
            Code::InvalidConfig,
            "`args.cni.labels` has the key \"a\" more than once, or empty: ",
        ),
        (
            r#"{"cniVersion":"1.0.0","name":"canal","args":{"cni":{"labels":[{"key":"a"}]}}}"#,
            Code::Decode,
            "cannot read the network configuration: `args.cni.labels` has a label without `value`",
        ),
    ] {
        let error = call(&environment(&ADD), stdin.as_bytes()).unwrap_err();
        assert_eq!(error.code, code, "{stdin}");
        assert!(error.to_string().starts_with(message), "{stdin}: {error}");
    }
}

#[test]
fn a_configuration_has_defaults_and_keeps_what_host_local_may_use() {
    let config = read(CONFIG.as_bytes()).unwrap();
    assert_eq!((config.version, config.network.as_str()), ("1.0.0", "canal"));
    assert_eq!(config.socket.to_str(), Some("/run/canal/agent.sock"));
    assert_eq!(config.subnet_file.to_str(), Some("/run/flannel/subnet.env"));
    assert_eq!(Value::Object(config.ipam), json!({"type": "host-local"}));

    let full = json!({
        "cniVersion": "0.3.1", "name": "canal", "type": "canal-cni", "socket": "/s", "subnetFile": "/f",
        "ipam": {"type": "host-local", "dataDir": "/d", "resolvConf": "/r"}, "unknown": [1],
        "args": {"cni": {"labels": [{"key": "app", "value": "web"}, {"key": "x", "value": ""}]}},
    });
    let config = read(full.to_string().as_bytes()).unwrap();
    assert_eq!((config.socket.to_str(), config.subnet_file.to_str()), (Some("/s"), Some("/f")));
    assert_eq!(
        Value::Object(config.ipam),
        json!({"type": "host-local", "dataDir": "/d", "resolvConf": "/r"})
    );
    assert_eq!(config.labels, [("app".into(), "web".into()), ("x".into(), String::new())].into());
}

#[test]
fn version_answers_whatever_version_is_asked_for() {
    let version = environment(&[("CNI_COMMAND", "VERSION")]);
    for (stdin, echoed) in
        [("", "1.1.0"), (r#"{"cniVersion":"0.4.0"}"#, "0.4.0"), (r#"{"cniVersion":"9.9.9"}"#, "9.9.9")]
    {
        let answer: Value = serde_json::from_str(&call(&version, stdin.as_bytes()).unwrap()).unwrap();
        assert_eq!(
            answer,
            json!({"cniVersion": echoed, "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]})
        );
    }
    assert_eq!(call(&version, b"garbage").unwrap_err().code, Code::Decode);
}

#[test]
fn a_verb_that_a_version_does_not_have_is_refused_by_name() {
    for (verb, version, fails) in [
        ("CHECK", "0.3.1", true),
        ("CHECK", "0.4.0", false),
        ("GC", "1.0.0", true),
        ("GC", "1.1.0", false),
        ("STATUS", "0.4.0", true),
        ("STATUS", "1.1.0", false),
    ] {
        let stdin = CONFIG.replace("1.0.0", version);
        let call = call(&environment(&[("CNI_COMMAND", verb), ("CNI_PATH", "/none")]), stdin.as_bytes());
        let error = call.unwrap_err();
        assert_eq!(error.code == Code::IncompatibleVersion, fails, "{verb} {version}: {error}");
        assert_eq!(error.msg == format!("CNI {version} has no {verb}"), fails, "{error}");
    }
}

#[test]
fn an_error_is_answered_in_the_version_asked_for_or_else_in_the_latest() {
    let error = CniError::new(Code::TryAgain, "the agent did not take the endpoint", "a \"reason\"");
    let answer: Value = serde_json::from_str(&error.to_json("0.4.0")).unwrap();
    let wanted = json!({"cniVersion": "0.4.0", "code": 11, "msg": "the agent did not take the endpoint", "details": "a \"reason\""});
    assert_eq!(answer, wanted);
    assert_eq!(config::answer_version(Dialect::Canal, CONFIG.as_bytes()), "1.0.0");
    for broken in ["", "{", r#"{"cniVersion":"7"}"#, r#"{"cniVersion":7}"#] {
        assert_eq!(config::answer_version(Dialect::Canal, broken.as_bytes()), LATEST);
    }
}

#[test]
fn a_result_is_shaped_by_its_version() {
    let made = Made {
        host_interface: "caliabc".into(),
        host_mac: HOST_MAC,
        interface: "eth0".into(),
        mac: "02:00:00:00:00:07".parse().unwrap(),
        mtu: 1450,
        sandbox: "/run/netns/abc".into(),
        ip: [10, 100, 7, 2].into(),
        routes: vec!["0.0.0.0/0".parse().unwrap()],
        dns: None,
    };
    let answer = |version: &str| serde_json::from_str::<Value>(&made.to_json(version, None)).unwrap();
    let modern = json!({
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": "caliabc", "mac": "ee:ee:ee:ee:ee:ee"},
            {"name": "eth0", "mac": "02:00:00:00:00:07", "sandbox": "/run/netns/abc"},
        ],
        "ips": [{"address": "10.100.7.2/32", "interface": 1}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}],
        "dns": {},
    });
    assert_eq!(answer("1.0.0"), modern);
    for version in ["0.3.1", "0.4.0"] {
        assert_eq!(
            answer(version)["ips"],
            json!([{"version": "4", "address": "10.100.7.2/32", "interface": 1}])
        );
    }
    let latest = answer("1.1.0");
    assert_eq!(
        (&latest["interfaces"][0]["mtu"], &latest["interfaces"][1]["mtu"]),
        (&json!(1450), &json!(1450))
    );
    assert_eq!(latest["ips"], modern["ips"]);
    let oldest = json!({
        "cniVersion": "0.2.0",
        "ip4": {"ip": "10.100.7.2/32", "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}]},
        "dns": {},
    });
    assert_eq!(answer("0.2.0"), oldest);

    let earlier =
        json!({"cniVersion": "1.0.0", "interfaces": [{"name": "x0"}], "ips": [], "dns": {"domain": "d"}});
    let chained: Value = serde_json::from_str(&made.to_json("1.0.0", Some(&earlier))).unwrap();
    assert_eq!(chained["interfaces"][0], json!({"name": "x0"}));
    assert_eq!(
        (&chained["interfaces"][2]["name"], &chained["ips"][0]["interface"]),
        (&json!("eth0"), &json!(2))
    );
    assert_eq!(chained["dns"], json!({"domain": "d"}));
    let told = Made { dns: Some(json!({"nameservers": ["192.0.2.53"]})), ..made.clone() };
    let chained = told.to_json("1.0.0", Some(&json!({"cniVersion": "1.0.0", "dns": {}})));
    assert!(chained.contains("192.0.2.53"), "an earlier plugin that says nothing: {chained}");
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let told = result::Told::of(&answer(version), "eth0").unwrap();
        assert_eq!((told.mac, told.hosts), (Some(made.mac), vec!["caliabc".to_owned()]));
        assert_eq!(
            (told.addresses, told.routes),
            (vec!["10.100.7.2/32".parse().unwrap()], made.routes.clone())
        );
    }
    assert_eq!(result::Told::of(&oldest, "eth0"), None);
}

#[test]
fn the_subnet_file_is_read_as_flannel_and_canal_write_it() {
    let flannels = "FLANNEL_NETWORK=10.100.0.0/16\nFLANNEL_SUBNET=10.100.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    let subnet = Subnet {
        net: "10.100.7.0/24".parse().unwrap(),
        mtu: 1450,
        networks: vec!["10.100.0.0/16".parse().unwrap()],
        masquerades: true,
    };
    assert_eq!(Subnet::parse(flannels), Ok(subnet.clone()));
    let lists = "FLANNEL_NETWORK=10.100.0.0/16,10.101.0.0/16,10.100.0.0/16\nFLANNEL_SUBNET=10.100.7.1/24\nFLANNEL_MTU=1450\n\
                 FLANNEL_IPMASQ=TRUE\n";
    let networks = vec!["10.100.0.0/16".parse().unwrap(), "10.101.0.0/16".parse().unwrap()];
    assert_eq!(Subnet::parse(lists), Ok(Subnet { networks, masquerades: false, ..subnet.clone() }));
    let little = "FLANNEL_SUBNET=10.100.7.1/24\nFLANNEL_MTU=1450\n";
    assert_eq!(Subnet::parse(little), Ok(Subnet { networks: Vec::new(), masquerades: false, ..subnet }));
    for (text, error) in [
        ("", "FLANNEL_SUBNET and FLANNEL_MTU are missing"),
        ("FLANNEL_SUBNET=\nFLANNEL_MTU=1450", "FLANNEL_SUBNET is missing"),
        ("FLANNEL_SUBNET=10.1.1.1/24", "FLANNEL_MTU is missing"),
        (
            "FLANNEL_SUBNET=\"10.1.1.1/24\"\nFLANNEL_MTU=1",
            "FLANNEL_SUBNET=\"10.1.1.1/24\" is not an IPv4 network",
        ),
        (
            "FLANNEL_IPV6_SUBNET=fd00::1/64\nFLANNEL_MTU=1450",
            "FLANNEL_SUBNET is missing: it has a subnet for IPv6 only, which pods do not get here",
        ),
        (
            "FLANNEL_NETWORK=10.1.0.0/16,x\nFLANNEL_SUBNET=10.1.1.1/24\nFLANNEL_MTU=1450",
            "FLANNEL_NETWORK=x is not an IPv4 network",
        ),
        ("FLANNEL_SUBNET=fd00::1/64\nFLANNEL_MTU=1450", "FLANNEL_SUBNET=fd00::1/64 is not an IPv4 network"),
        ("FLANNEL_SUBNET=10.1.1.1/32\nFLANNEL_MTU=1450", "FLANNEL_SUBNET=10.1.1.1/32 has no room for a pod"),
        ("FLANNEL_SUBNET=10.1.1.1/24\nFLANNEL_MTU=-1", "FLANNEL_MTU=-1 is not a number from 68 to 65535"),
    ] {
        assert_eq!(Subnet::parse(text), Err(error.to_owned()), "{text}");
    }
}

#[test]
fn undoing_goes_backwards_and_past_what_fails() {
    let seen = RefCell::new(Vec::new());
    let mut undo = Undo::default();
    for (step, result) in [(1, Ok(())), (2, Err("two stays".to_owned())), (3, Ok(()))] {
        let seen = &seen;
        undo.push(move || {
            seen.borrow_mut().push(step);
            result
        });
    }
    assert_eq!(undo.back(), ["two stays"]);
    assert_eq!(*seen.borrow(), [3, 2, 1]);
    let error = CniError::new(Code::Kernel, "m", "cause").with_leftovers(&["two stays".to_owned()]);
    assert_eq!(error.to_string(), "m: cause; and in undoing: two stays");
}

proptest! {
    #[test]
    fn no_input_panics(bytes: Vec<u8>, text: String, other: String, key in "[a-zA-Z]{0,9}") {
        for program in [Dialect::Canal, Dialect::Flannel, Dialect::Calico] {
            let _ = Config::read(program, &bytes, &Arguments::default());
            let _ = config::versions(program, &bytes);
            let near = json!({"cniVersion": "1.0.0", "name": text, key.as_str(): text, "ipam": {"type": text}});
            let _ = Config::read(program, near.to_string().as_bytes(), &Arguments::default());
        }
        let _ = Subnet::parse(&text);
        let _ = Subnet::parse(&format!("FLANNEL_SUBNET={text}\nFLANNEL_MTU={text}"));
        let names =
            ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_PATH", "CNI_ARGS", key.as_str()];
        let arguments = format!("K8S_POD_NAMESPACE={text};K8S_POD_NAME={other};IgnoreUnknown=1;{key}={text}");
        for value in [text.as_str(), "abc", arguments.as_str()] {
            let environment = environment(&names.map(|name| (name, value)));
            let _ = Verb::read(&environment);
            let _ = search_path(&environment);
            for verb in [Verb::Add, Verb::Del, Verb::Check] {
                let _ = Attachment::read(verb, &environment);
            }
            if let Err(error) = Arguments::read(&environment) {
                prop_assert!(error.code == Code::InvalidEnvironment && !error.msg.contains('\n'));
            }
        }
    }
}
