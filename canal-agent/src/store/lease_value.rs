//! The value of a lease key, to the byte as flannel writes it, with one member of our own behind flannel's:
//! `"Canal":{"Node":"…"}`. Flannel ignores members it does not know, and a node rewrites only its own key.

use std::net::{Ipv4Addr, Ipv6Addr};

use canal_common::Mac;

use super::{EtcdPrefix, client::Entry, json::Json};

/// What a node publishes about itself under its subnet key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseValue {
    pub public_ip: Ipv4Addr,
    pub public_ipv6: Option<Ipv6Addr>,
    /// Empty for flannel's `udp` and `alloc`.
    pub backend_type: String,
    pub backend_data: Option<Json>,
    pub backend_v6_data: Option<Json>,
    /// Name of the Canal node that wrote it; `None` for flanneld's.
    pub node: Option<String>,
    /// Members that neither flannel nor we know, in their order; kept when we rewrite our own key.
    pub extra: Vec<(String, Json)>,
}

/// Flannel's `BackendData` of a vxlan node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VxlanData {
    pub vni: u32,
    pub vtep_mac: Mac,
}

/// Why a lease cannot be used; it concerns that peer alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadLease {
    #[error("lease is not JSON: {0}")]
    NotJson(String),
    #[error("lease is {0}, want an object")]
    NotAnObject(&'static str),
    #[error("lease has no {0}")]
    Missing(&'static str),
    #[error("lease member {name} is {found}, want {want}")]
    Member { name: &'static str, found: String, want: &'static str },
    #[error("the node's backend is {0:?}: only vxlan peers can be reached")]
    OtherBackend(String),
}

const KNOWN: [&str; 6] = ["PublicIP", "PublicIPv6", "BackendType", "BackendData", "BackendV6Data", "Canal"];

impl LeaseValue {
    pub fn vxlan(public_ip: Ipv4Addr, data: VxlanData, node: Option<String>) -> Self {
        Self {
            public_ip,
            public_ipv6: None,
            backend_type: "vxlan".into(),
            backend_data: Some(data.to_json()),
            backend_v6_data: None,
            node,
            extra: Vec::new(),
        }
    }

    pub fn parse(value: &[u8]) -> Result<Self, BadLease> {
        let json: Json = serde_json::from_slice(value).map_err(|e| BadLease::NotJson(e.to_string()))?;
        let Json::Object(members) = &json else { return Err(BadLease::NotAnObject(json.kind())) };
        let public_ip = text(&json, "PublicIP")?.ok_or(BadLease::Missing("PublicIP"))?;
        let public_ipv6 = text(&json, "PublicIPv6")?;
        let node = match json.member("Canal") {
            Some(canal @ Json::Object(_)) => text(canal, "Node")?.map(str::to_owned),
            _ => None,
        };
        Ok(Self {
            public_ip: public_ip
                .parse()
                .map_err(|_| mismatch("PublicIP", format!("{public_ip:?}"), "an IPv4 address"))?,
            public_ipv6: public_ipv6
                .map(|ip| {
                    ip.parse().map_err(|_| mismatch("PublicIPv6", format!("{ip:?}"), "an IPv6 address"))
                })
                .transpose()?,
            backend_type: text(&json, "BackendType")?.unwrap_or_default().to_owned(),
            backend_data: json.member("BackendData").cloned(),
            backend_v6_data: json.member("BackendV6Data").cloned(),
            node: node.filter(|node| !node.is_empty()),
            extra: members
                .iter()
                .filter(|(name, _)| !KNOWN.iter().any(|known| known.eq_ignore_ascii_case(name)))
                .cloned()
                .collect(),
        })
    }

    pub fn render(&self) -> Vec<u8> {
        let mut members = vec![
            ("PublicIP".to_owned(), Json::string(self.public_ip.to_string())),
            ("PublicIPv6".to_owned(), self.public_ipv6.map_or(Json::Null, |ip| Json::string(ip.to_string()))),
        ];
        let mut add = |name: &str, value| members.push((name.to_owned(), value));
        if !self.backend_type.is_empty() {
            add("BackendType", Json::string(&self.backend_type));
        }
        if let Some(data) = &self.backend_data {
            add("BackendData", data.clone());
        }
        if let Some(data) = &self.backend_v6_data {
            add("BackendV6Data", data.clone());
        }
        if let Some(node) = &self.node {
            add("Canal", Json::object([("Node", Json::string(node))]));
        }
        members.extend(self.extra.iter().cloned());
        Json::Object(members).render().into_bytes()
    }

    /// What a vxlan peer needs to be reached.
    pub fn vxlan_data(&self) -> Result<VxlanData, BadLease> {
        if self.backend_type != "vxlan" {
            return Err(BadLease::OtherBackend(self.backend_type.clone()));
        }
        let data = self.backend_data.as_ref().ok_or(BadLease::Missing("BackendData"))?;
        let mac = text(data, "VtepMAC")?.ok_or(BadLease::Missing("BackendData.VtepMAC"))?;
        let vtep_mac =
            mac.parse().map_err(|_| mismatch("BackendData.VtepMAC", format!("{mac:?}"), "a MAC address"))?;
        let vni = match data.member("VNI") {
            // Flannel before v0.16 published only the MAC; its VNI was 1 by default.
            None => 1,
            Some(json) => match json {
                Json::Number(n) => n.as_u64().and_then(|n| u32::try_from(n).ok()),
                _ => None,
            }
            .filter(|vni| *vni <= super::network::VNI_MAX)
            .ok_or_else(|| mismatch("BackendData.VNI", json.render(), "a number below 16777216"))?,
        };
        Ok(VxlanData { vni, vtep_mac })
    }

    /// Is this the lease of that node? Its name decides; a lease without a name was written by flanneld, which
    /// knows nodes by their public address.
    pub fn belongs_to(&self, node: &str, public_ip: Ipv4Addr) -> bool {
        self.node.as_ref().map_or(self.public_ip == public_ip, |name| name == node)
    }

    /// Another Canal node that publishes the same address: nobody can reach both.
    pub fn rivals(&self, node: &str, public_ip: Ipv4Addr) -> bool {
        self.public_ip == public_ip && self.node.as_ref().is_some_and(|name| name != node)
    }
}

impl VxlanData {
    fn to_json(self) -> Json {
        Json::object([
            ("VNI", Json::Number(self.vni.into())),
            ("VtepMAC", Json::string(self.vtep_mac.to_string())),
        ])
    }
}

/// The lease that this node wrote before, if it is among `entries` (which may hold other keys). Its MAC is the one
/// that peers know: make the device with it.
pub fn own_entry<'a>(
    entries: impl IntoIterator<Item = &'a Entry>,
    prefix: &EtcdPrefix,
    node: &str,
    public_ip: Ipv4Addr,
) -> Option<LeaseValue> {
    let mut by_address = None;
    for entry in entries {
        let Some(Ok(_)) = prefix.parse_subnet(&entry.key) else { continue };
        let Ok(value) = LeaseValue::parse(&entry.value) else { continue };
        if value.node.as_deref() == Some(node) {
            return Some(value);
        }
        if by_address.is_none() && value.belongs_to(node, public_ip) {
            by_address = Some(value);
        }
    }
    by_address
}

fn text<'a>(json: &'a Json, name: &'static str) -> Result<Option<&'a str>, BadLease> {
    match json.member(name) {
        None => Ok(None),
        Some(Json::String(text)) => Ok(Some(text)),
        Some(other) => Err(mismatch(name, other.kind().to_owned(), "a string")),
    }
}

fn mismatch(name: &'static str, found: String, want: &'static str) -> BadLease {
    BadLease::Member { name, found, want }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FLANNEL: &str = r#"{"PublicIP":"192.168.50.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"82:d2:48:77:ea:cf"}}"#;

    fn parse(text: &str) -> LeaseValue {
        LeaseValue::parse(text.as_bytes()).unwrap()
    }

    fn entry(key: &str, value: &str) -> Entry {
        Entry { key: key.into(), value: value.into(), mod_revision: 1, lease: 1 }
    }

    #[test]
    fn what_flanneld_wrote_reads_back_to_the_byte() {
        for text in [
            FLANNEL,
            r#"{"PublicIP":"192.0.2.11","PublicIPv6":"2001:db8::11","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"8a:10:22:33:44:55"},"BackendV6Data":{"VNI":1,"VtepMAC":"6e:aa:bb:cc:dd:ee"}}"#,
            r#"{"PublicIP":"192.0.2.11","PublicIPv6":null,"BackendType":"host-gw"}"#,
            r#"{"PublicIP":"192.0.2.11","PublicIPv6":null}"#,
            r#"{"PublicIP":"192.0.2.11","PublicIPv6":null,"BackendType":"extension","BackendData":"output"}"#,
            r#"{"PublicIP":"192.0.2.11","PublicIPv6":null,"BackendType":"vxlan","Canal":{"Node":"n1"},"Site":{"z":1,"a":2}}"#,
        ] {
            assert_eq!(parse(text).render(), text.as_bytes(), "{text}");
        }
    }

    #[test]
    fn our_own_value_is_flannels_with_the_node_behind() {
        let data = VxlanData { vni: 1, vtep_mac: "82:d2:48:77:ea:cf".parse().unwrap() };
        let ip = "192.168.50.1".parse().unwrap();
        assert_eq!(LeaseValue::vxlan(ip, data, None).render(), FLANNEL.as_bytes());
        let named = LeaseValue::vxlan(ip, data, Some("node1".into()));
        assert_eq!(
            String::from_utf8(named.render()).unwrap(),
            FLANNEL.replace("}}", r#"},"Canal":{"Node":"node1"}}"#)
        );
        assert_eq!(named.vxlan_data(), Ok(data));
    }

    #[test]
    fn members_are_found_in_any_case_and_macs_in_any_grammar() {
        let value = parse(
            r#"{"publicip":"192.0.2.1","backendtype":"vxlan","BACKENDDATA":{"vni":7,"vtepmac":"8A10.2233.4455"}}"#,
        );
        let data = value.vxlan_data().unwrap();
        assert_eq!((data.vni, data.vtep_mac.to_string()), (7, "8a:10:22:33:44:55".into()));
    }

    #[test]
    fn an_unusable_lease_says_what_is_wrong() {
        for (text, want) in [
            ("", "not JSON"),
            (r#"{"PublicIP":"192.0."#, "not JSON"),
            ("[]", "a list, want an object"),
            ("{}", "no PublicIP"),
            (r#"{"PublicIP":7}"#, "PublicIP is a number, want a string"),
            (r#"{"PublicIP":"node1"}"#, r#"PublicIP is "node1", want an IPv4 address"#),
            (r#"{"PublicIP":"192.0.2.1","PublicIPv6":"x"}"#, "PublicIPv6"),
        ] {
            let error = LeaseValue::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
        for (text, want) in [
            (r#"{"PublicIP":"192.0.2.1"}"#, r#"backend is """#),
            (r#"{"PublicIP":"192.0.2.1","BackendType":"host-gw"}"#, r#"backend is "host-gw""#),
            (r#"{"PublicIP":"192.0.2.1","BackendType":"vxlan"}"#, "no BackendData"),
            (
                r#"{"PublicIP":"192.0.2.1","BackendType":"vxlan","BackendData":{"VNI":1}}"#,
                "no BackendData.VtepMAC",
            ),
            (
                r#"{"PublicIP":"192.0.2.1","BackendType":"vxlan","BackendData":{"VtepMAC":"zz"}}"#,
                "a MAC address",
            ),
            (
                r#"{"PublicIP":"192.0.2.1","BackendType":"vxlan","BackendData":{"VNI":16777216,"VtepMAC":"82:d2:48:77:ea:cf"}}"#,
                "VNI",
            ),
        ] {
            let error = parse(text).vxlan_data().unwrap_err().to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
    }

    #[test]
    fn our_entry_is_found_by_name_first_and_then_by_address() {
        let prefix = EtcdPrefix::new("/coreos.com/network").unwrap();
        let by_address = entry("/coreos.com/network/subnets/10.1.1.0-24", r#"{"PublicIP":"192.0.2.1"}"#);
        let by_name = entry(
            "/coreos.com/network/subnets/10.1.2.0-24",
            r#"{"PublicIP":"192.0.2.9","Canal":{"Node":"n1"}}"#,
        );
        let rival = entry(
            "/coreos.com/network/subnets/10.1.3.0-24",
            r#"{"PublicIP":"192.0.2.1","Canal":{"Node":"n2"}}"#,
        );
        let elsewhere = entry("/coreos.com/network/config", r#"{"PublicIP":"192.0.2.1"}"#);
        let garbage = entry("/coreos.com/network/subnets/10.1.4.0-24", "{");
        let ip = "192.0.2.1".parse().unwrap();
        let find = |entries: &[&Entry]| {
            own_entry(entries.iter().copied(), &prefix, "n1", ip).map(|v| v.public_ip.to_string())
        };
        assert_eq!(find(&[&garbage, &by_address, &by_name]), Some("192.0.2.9".into()));
        assert_eq!(find(&[&elsewhere, &rival, &by_address]), Some("192.0.2.1".into()));
        assert_eq!(find(&[&elsewhere, &rival]), None);
    }

    proptest! {
        #[test]
        fn no_value_makes_the_parser_panic(value: Vec<u8>) {
            let _ = LeaseValue::parse(&value);
        }
    }
}
