use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Result<NetworkConfig, NetworkError> {
    NetworkConfig::parse(text.as_bytes())
}

fn vxlan(config: &NetworkConfig) -> &VxlanOptions {
    config.backend.vxlan().unwrap()
}

#[test]
fn the_guides_config_has_flannels_defaults() {
    let config = parse(r#"{ "Network": "10.100.0.0/16", "Backend": {"Type": "vxlan"}}"#).unwrap();
    assert_eq!(config.network, "10.100.0.0/16".parse().unwrap());
    assert_eq!(config.subnet_len, 24);
    assert_eq!(config.subnet_min, Ipv4Addr::new(10, 100, 1, 0));
    assert_eq!(config.subnet_max, Ipv4Addr::new(10, 100, 255, 0));
    assert_eq!(vxlan(&config), &VxlanOptions { vni: 1, port: 8472, mtu: None, direct_routing: false });
    assert!(config.notes.is_empty(), "{:?}", config.notes);
}

#[test]
fn lengths_and_bounds_are_derived_as_flannel_derives_them() {
    for (fields, len, min, max) in [
        (r#""Network":"10.3.0.0/16""#, 24, "10.3.1.0", "10.3.255.0"),
        (r#""Network":"10.3.9.9/16""#, 24, "10.3.1.0", "10.3.255.0"),
        (r#""Network":"10.3.0.0/22""#, 24, "10.3.1.0", "10.3.3.0"),
        (r#""Network":"10.3.0.0/23""#, 25, "10.3.0.128", "10.3.1.128"),
        (r#""Network":"10.3.0.0/28""#, 30, "10.3.0.4", "10.3.0.12"),
        (r#""Network":"10.3.0.0/28","SubnetLen":30"#, 30, "10.3.0.4", "10.3.0.12"),
        (r#""Network":"10.3.0.0/16","SubnetLen":0"#, 24, "10.3.1.0", "10.3.255.0"),
        (r#""Network":"0.0.0.0/0""#, 24, "0.0.1.0", "255.255.255.0"),
        (
            r#""network":"10.3.0.0/16","subnetlen":26,"SUBNETMIN":"10.3.0.0","SubnetMax":"10.3.8.192""#,
            26,
            "10.3.0.0",
            "10.3.8.192",
        ),
        (r#""Network":"10.3.0.0/16","SubnetMin":"","SubnetMax":null"#, 24, "10.3.1.0", "10.3.255.0"),
    ] {
        let config = parse(&format!(r#"{{{fields},"Backend":{{"Type":"vxlan"}}}}"#)).unwrap();
        assert_eq!(
            (
                config.subnet_len,
                config.subnet_min.to_string().as_str(),
                config.subnet_max.to_string().as_str()
            ),
            (len, min, max),
            "{fields}"
        );
    }
}

#[test]
fn ipv6_ranges_are_derived_as_flannel_derives_them() {
    for (fields, len, min, max) in [
        (r#""IPv6Network":"fc00::/48""#, 64, "fc00:0:0:1::", "fc00:0:0:ffff::"),
        (r#""IPv6Network":"fc00::/62""#, 64, "fc00:0:0:1::", "fc00:0:0:3::"),
        (r#""IPv6Network":"fc00::/63""#, 65, "fc00:0:0:0:8000::", "fc00:0:0:1:8000::"),
        (
            r#""IPv6Network":"::/0","IPv6SubnetLen":126"#,
            126,
            "::4",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffc",
        ),
    ] {
        let json: Json = serde_json::from_str(&format!("{{{fields}}}")).unwrap();
        let (_, range) = v6_range(&Fields { json: &json, path: "" }).unwrap();
        assert_eq!(
            (range.len, Ipv6Addr::from(range.min), Ipv6Addr::from(range.max)),
            (len, min.parse().unwrap(), max.parse().unwrap()),
            "{fields}"
        );
    }
}

#[test]
fn backend_options_are_read_in_any_case() {
    let config = parse(
        r#"{"Network":"10.3.0.0/16","Backend":{"type":"VXLAN","vni":77,"port":4789,"mtu":9000,"directrouting":true,"GBP":true,"Learning":true}}"#,
    )
    .unwrap();
    assert_eq!(vxlan(&config), &VxlanOptions { vni: 77, port: 4789, mtu: Some(9000), direct_routing: true });
    assert_eq!(config.notes.len(), 2, "GBP and Learning: {:?}", config.notes);
    let config = parse(r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan","Port":0,"MTU":0}}"#).unwrap();
    assert_eq!((vxlan(&config).port, vxlan(&config).mtu), (8472, None));
}

#[test]
fn an_absent_backend_is_vxlan_and_says_so() {
    for text in [r#"{"Network":"10.3.0.0/16"}"#, r#"{"Network":"10.3.0.0/16","Backend":null}"#] {
        let config = parse(text).unwrap();
        assert_eq!(vxlan(&config).vni, 1);
        assert!(config.notes[0].contains("Backend is absent"), "{:?}", config.notes);
    }
}

#[test]
fn what_is_wrong_is_named_with_its_remedy() {
    for (text, want) in [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "config is a list: want an object"),
        ("{}", "Network is missing: add an IPv4 range"),
        (r#"{"Network":""}"#, "Network is missing"),
        (r#"{"Network":"fd00::/48"}"#, r#"Network is "fd00::/48": want an IPv4 range"#),
        (r#"{"Network":"10.3.0.0"}"#, "want an IPv4 range"),
        (r#"{"Network":10}"#, "Network is 10: want a string in quotes"),
        (r#"{"Network":"10.3.0.0/29"}"#, "10.3.0.0/29 is too small"),
        (r#"{"Network":"10.3.0.0/32","SubnetLen":24}"#, "too small"),
        (r#"{"Network":"10.3.0.0/16","SubnetLen":"24"}"#, r#"SubnetLen is "24": want"#),
        (r#"{"Network":"10.3.0.0/16","SubnetLen":-1}"#, "SubnetLen is -1"),
        (
            r#"{"Network":"10.3.0.0/16","SubnetLen":31}"#,
            "SubnetLen 31 does not fit 10.3.0.0/16: want 18 to 30",
        ),
        (r#"{"Network":"10.3.0.0/16","SubnetLen":17}"#, "want 18 to 30"),
        (r#"{"Network":"10.3.0.0/16","SubnetLen":4294967320}"#, "want 18 to 30"),
        (r#"{"Network":"10.3.0.0/16","SubnetMin":"10.4.0.0"}"#, "SubnetMin 10.4.0.0 is outside 10.3.0.0/16"),
        (r#"{"Network":"10.3.0.0/16","SubnetMax":"10.2.0.0"}"#, "SubnetMax 10.2.0.0 is outside"),
        (
            r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.1.7"}"#,
            "SubnetMin 10.3.1.7 is not the start of a /24 subnet: want 10.3.1.0",
        ),
        (
            r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.9.0","SubnetMax":"10.3.2.0"}"#,
            "SubnetMin 10.3.9.0 is above SubnetMax",
        ),
        (r#"{"Network":"10.3.0.0/16","EnableIPv4":"yes"}"#, "EnableIPv4"),
        (r#"{"EnableIPv4":false}"#, "both false"),
        (r#"{"Network":"10.3.0.0/16","EnableIPv6":true}"#, "IPv6Network is missing"),
        (r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"10.0.0.0/8"}"#, "want an IPv6 range"),
        (
            r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48"}"#,
            "IPv6 is not carried yet",
        ),
        (r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48"}"#, "IPv6 is not carried yet"),
        (r#"{"Network":"10.3.0.0/16","Backend":{}}"#, r#"add "Type":"vxlan""#),
        (r#"{"Network":"10.3.0.0/16","Backend":"vxlan"}"#, r#"Backend is "vxlan": want an object"#),
        (
            r#"{"Network":"10.3.0.0/16","Backend":{"Type":"WireGuard"}}"#,
            r#"backend "WireGuard" is not supported: Canal does not encrypt"#,
        ),
        (r#"{"Network":"10.3.0.0/16","Backend":{"Type":"udp"}}"#, r#"use "Type":"vxlan""#),
        (r#"{"Network":"10.3.0.0/16","Backend":{"Type":"extension"}}"#, r#"use "Type":"alloc""#),
        (r#"{"Network":"10.3.0.0/16","Backend":{"Type":"x"}}"#, r#""vxlan", "host-gw" or "alloc""#),
        (r#"{"Network":"10.3.0.0/16","Backend":{"Type":7}}"#, "Backend.Type is 7"),
        (r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan","VNI":16777216}}"#, "Backend.VNI is 16777216"),
        (r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan","VNI":"1"}}"#, "Backend.VNI"),
        (r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan","Port":65536}}"#, "Backend.Port is 65536"),
        (r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan","MTU":49}}"#, "Backend.MTU is 49"),
        (
            r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan","DirectRouting":1}}"#,
            "Backend.DirectRouting",
        ),
    ] {
        let error = parse(text).expect_err(text).to_string();
        assert!(error.contains(want), "{text}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn what_a_running_node_cannot_take_up_is_named_and_the_rest_is_not() {
    let parse = |fields: &str| parse(&format!("{{{fields}}}")).unwrap();
    let before = parse(r#""Network":"10.3.0.0/16","Backend":{"Type":"vxlan","VNI":1}"#);
    for live in [
        r#""Network":"10.3.0.0/16","SubnetMin":"10.3.7.0","SubnetMax":"10.3.9.0""#,
        r#""Network":"10.3.0.0/16","SubnetLen":24,"Backend":{"Type":"vxlan","MTU":1400,"DirectRouting":true}"#,
    ] {
        assert_eq!(before.needs_restart(&parse(live)), Vec::<String>::new(), "{live}");
    }
    let other =
        parse(r#""Network":"10.4.0.0/16","SubnetLen":25,"Backend":{"Type":"vxlan","VNI":2,"Port":4789}"#);
    assert_eq!(
        before.needs_restart(&other),
        [
            "Network 10.3.0.0/16 is 10.4.0.0/16 now",
            "SubnetLen 24 is 25 now",
            "Backend.VNI 1 is 2 now",
            "Backend.Port 8472 is 4789 now"
        ]
    );
    let other = parse(r#""Network":"10.3.0.0/16","Backend":{"Type":"host-gw"}"#);
    assert_eq!(before.needs_restart(&other), ["Backend.Type vxlan is host-gw now"]);
}

#[test]
fn each_backend_says_what_pods_may_send_and_who_carries_it() {
    for (options, mtu, direct, carries) in [
        (r#"{"Type":"VXLAN"}"#, 1450, false, true),
        (r#"{"Type":"vxlan","MTU":1400,"DirectRouting":true}"#, 1350, true, true),
        (r#"{"Type":"Host-GW"}"#, 1500, true, true),
        (r#"{"Type":"alloc"}"#, 1500, false, false),
    ] {
        let backend = parse(&format!(r#"{{"Network":"10.3.0.0/16","Backend":{options}}}"#)).unwrap().backend;
        assert_eq!(
            (backend.pod_mtu(1500), backend.reaches_directly(), backend.carries()),
            (mtu, direct, carries)
        );
    }
}

#[test]
fn subnets_run_from_min_to_max_and_are_accepted() {
    let config = parse(r#"{"Network":"10.3.0.0/22","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#).unwrap();
    let all: Vec<_> = config.subnets().collect();
    assert_eq!(
        all.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.3.1.0/24", "10.3.2.0/24", "10.3.3.0/24"]
    );
    assert!(all.iter().all(|subnet| config.accepts(&SubnetKey::v4(*subnet))));
    for key in ["10.3.0.0-24", "10.3.1.0-25", "10.3.1.1-24", "10.4.1.0-24", "10.3.1.0-24&fd00::-64"] {
        assert!(!config.accepts(&key.parse().unwrap()), "{key}");
    }
    let whole = parse(r#"{"Network":"0.0.0.0/0","SubnetLen":8,"Backend":{"Type":"vxlan"}}"#).unwrap();
    assert_eq!(whole.subnets().last().unwrap().to_string(), "255.0.0.0/8");
}

proptest! {
    #[test]
    fn no_value_makes_the_parser_panic(value: Vec<u8>) {
        let _ = NetworkConfig::parse(&value);
    }

    #[test]
    fn any_numbers_give_a_sound_range_or_an_error(
        v4: u32, v4_len in 0u8..=32, subnet_len in 0u64..40, min in proptest::option::of(any::<u32>()),
        v6: u128, v6_len in 0u8..=128, v6_subnet_len in 0u64..140,
    ) {
        let min = min.map_or(String::new(), |min| format!(r#","SubnetMin":"{}""#, Ipv4Addr::from(min)));
        let text = format!(r#"{{"Network":"{}/{v4_len}","SubnetLen":{subnet_len}{min}}}"#, Ipv4Addr::from(v4));
        if let Ok(config) = parse(&text) {
            prop_assert!(config.subnet_min <= config.subnet_max);
            prop_assert!(config.network.contains(&config.subnet_min) && config.network.contains(&config.subnet_max));
            prop_assert!(config.accepts(&SubnetKey::v4(config.subnets().next().unwrap())));
        }
        let text = format!(
            r#"{{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"{}/{v6_len}","IPv6SubnetLen":{v6_subnet_len}}}"#,
            Ipv6Addr::from(v6)
        );
        let _ = parse(&text);
    }
}
