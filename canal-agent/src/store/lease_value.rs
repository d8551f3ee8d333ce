//! The value of a lease key, to the byte as flannel writes it, with one member of our own behind flannel's:
//! `"Canal":{"Node":"…","Machine":"…"}`. Flannel ignores members it does not know, and a node rewrites only its own key.

use std::net::{Ipv4Addr, Ipv6Addr};

use canal_common::Mac;
use tracing::warn;

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
    /// What tells that node from another of the same name (see [`machine`](super::machine)).
    pub machine: Option<String>,
    /// Members that neither flannel nor we know, in their order; kept when we rewrite our own key.
    pub extra: Vec<(String, Json)>,
}

/// How a node is reached, as its lease says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendKind {
    Vxlan(VxlanData),
    HostGw,
    /// And flannel's `udp`: neither says what it is.
    Alloc,
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
}

const KNOWN: [&str; 6] = ["PublicIP", "PublicIPv6", "BackendType", "BackendData", "BackendV6Data", "Canal"];

impl LeaseValue {
    pub fn new(public_ip: Ipv4Addr, backend: BackendKind) -> Self {
        let (backend_type, data) = match backend {
            BackendKind::Vxlan(data) => ("vxlan", Some(data.to_json())),
            BackendKind::HostGw => ("host-gw", None),
            BackendKind::Alloc => ("", None),
        };
        Self {
            public_ip,
            public_ipv6: None,
            backend_type: backend_type.into(),
            backend_data: data,
            backend_v6_data: None,
            node: None,
            machine: None,
            extra: Vec::new(),
        }
    }

    pub fn parse(value: &[u8]) -> Result<Self, BadLease> {
        let json: Json = serde_json::from_slice(value).map_err(|e| BadLease::NotJson(e.to_string()))?;
        let Json::Object(members) = &json else { return Err(BadLease::NotAnObject(json.kind())) };
        let public_ip = text(&json, "PublicIP")?.ok_or(BadLease::Missing("PublicIP"))?;
        let public_ipv6 = text(&json, "PublicIPv6")?;
        let ours = |name| -> Result<Option<String>, BadLease> {
            let Some(canal @ Json::Object(_)) = json.member("Canal") else { return Ok(None) };
            Ok(text(canal, name)?.filter(|text| !text.is_empty()).map(str::to_owned))
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
            node: ours("Node")?,
            machine: ours("Machine")?,
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
        let ours = [("Node", &self.node), ("Machine", &self.machine)];
        let ours: Vec<_> = ours
            .into_iter()
            .filter_map(|(name, text)| Some((name.to_owned(), Json::string(text.as_ref()?))))
            .collect();
        if !ours.is_empty() {
            add("Canal", Json::Object(ours));
        }
        members.extend(self.extra.iter().cloned());
        Json::Object(members).render().into_bytes()
    }

    /// What it takes to reach a node whose backend is vxlan.
    pub fn vxlan_data(&self) -> Result<VxlanData, BadLease> {
        let data = self.backend_data.as_ref().ok_or(BadLease::Missing("BackendData"))?;
        let mac = text(data, "VtepMAC")?.ok_or(BadLease::Missing("BackendData.VtepMAC"))?;
        let want = "a MAC address that a device can have";
        let vtep_mac = mac
            .parse()
            .ok()
            .filter(|mac| is_of_a_device(*mac))
            .ok_or_else(|| mismatch("BackendData.VtepMAC", format!("{mac:?}"), want))?;
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

    /// Is this the lease of that node?
    pub fn belongs_to(&self, owner: Owner<'_>) -> bool {
        owner.owns(self.public_ip, self.node.as_deref(), self.machine.as_deref())
    }

    /// Another Canal node that publishes the same address: nobody can reach both.
    pub fn rivals(&self, owner: Owner<'_>) -> bool {
        self.node.is_some() && owner.public_ip == Some(self.public_ip) && !self.belongs_to(owner)
    }
}

/// A node, as leases know it.
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    pub node: &'a str,
    pub machine: &'a str,
    /// `None` where it is not to be found out.
    pub public_ip: Option<Ipv4Addr>,
}

impl Owner<'_> {
    /// Is a lease that says this of its node the owner's? One without a name was written by flanneld, which knows nodes by their
    /// public address, or by hand. Else two of three must agree: name, machine and public address. So a node may be renamed, moved or
    /// installed anew, and neither another of its name nor a copy of its disk takes its lease.
    pub fn owns(self, public_ip: Ipv4Addr, node: Option<&str>, machine: Option<&str>) -> bool {
        let address = self.public_ip == Some(public_ip);
        let name = node.map(|node| node == self.node);
        let machine = machine.map(|machine| machine == self.machine);
        match (name, machine) {
            (None, machine) => address && machine != Some(false),
            (Some(name), None) => name,
            (Some(name), Some(machine)) => u8::from(name) + u8::from(machine) + u8::from(address) >= 2,
        }
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

/// The MAC of the leases that are this node's already, if such are among `entries` (which may hold other keys). Peers know it:
/// make the device with it. One that another node has too, as in a reservation that was copied from that node's lease, is none.
pub fn own_mac<'a>(
    entries: impl IntoIterator<Item = &'a Entry>,
    prefix: &EtcdPrefix,
    owner: Owner<'_>,
) -> Option<Mac> {
    let leases = entries.into_iter().filter_map(|entry| {
        prefix.parse_subnet(&entry.key)?.ok()?;
        Some((&entry.key, LeaseValue::parse(&entry.value).ok()?))
    });
    let (mut ours, others): (Vec<_>, Vec<_>) = leases.partition(|(_, lease)| lease.belongs_to(owner));
    let has = |lease: &LeaseValue, mac| lease.vxlan_data().is_ok_and(|data| data.vtep_mac == mac);
    // What a node of ours wrote before what flanneld did, or somebody by hand.
    ours.sort_by_key(|(_, lease)| lease.node.is_none());
    ours.iter().find_map(|(key, lease)| match lease.vxlan_data() {
        Ok(VxlanData { vtep_mac: mac, .. }) => match others.iter().find(|(_, other)| has(other, mac)) {
            None => Some(mac),
            Some((other, _)) => {
                warn!(key, other, %mac, "another lease has the VtepMAC of ours; not using it");
                None
            }
        },
        Err(BadLease::Missing(_)) => None,
        Err(error) => {
            warn!(key, %error, "the VtepMAC of our lease is of no use");
            None
        }
    })
}

/// As the kernel sees it: neither zeros nor a group's.
fn is_of_a_device(mac: Mac) -> bool {
    mac != Mac::default() && mac.octets[0] & 1 == 0
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
        let value = LeaseValue::new(ip, BackendKind::Vxlan(data));
        assert_eq!(value.render(), FLANNEL.as_bytes());
        for (backend, text) in [
            (BackendKind::HostGw, r#"{"PublicIP":"192.168.50.1","PublicIPv6":null,"BackendType":"host-gw"}"#),
            (BackendKind::Alloc, r#"{"PublicIP":"192.168.50.1","PublicIPv6":null}"#),
        ] {
            assert_eq!(LeaseValue::new(ip, backend).render(), text.as_bytes());
        }
        let named = LeaseValue { node: Some("node1".into()), machine: Some("m".into()), ..value };
        assert_eq!(
            String::from_utf8(named.render()).unwrap(),
            FLANNEL.replace("}}", r#"},"Canal":{"Node":"node1","Machine":"m"}}"#)
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
                r#"{"PublicIP":"192.0.2.1","BackendType":"vxlan","BackendData":{"VtepMAC":"01:00:5e:00:00:01"}}"#,
                "a MAC address that a device can have",
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
    fn our_mac_is_that_of_our_own_lease_if_a_device_can_have_it_and_no_other_node_has() {
        let prefix = EtcdPrefix::new("/coreos.com/network").unwrap();
        let owner = Owner { node: "n1", machine: "m1", public_ip: Some("192.0.2.1".parse().unwrap()) };
        let (mac, named, other) = ("02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03");
        let lease = |ip: &str, mac: &str, node: &str| {
            format!(
                r#"{{"PublicIP":"{ip}","BackendType":"vxlan","BackendData":{{"VtepMAC":"{mac}"}},"Canal":{{"Node":"{node}"}}}}"#
            )
        };
        let by_address = |mac| lease("192.0.2.1", mac, "");
        let rival = || lease("192.0.2.1", other, "n2");
        let peer = |mac| lease("192.0.2.2", mac, "");
        let bare = || r#"{"PublicIP":"192.0.2.1"}"#.to_owned();
        for (values, want) in [
            (vec![by_address(mac)], Some(mac)),
            (vec!["{".to_owned(), by_address(mac), lease("192.0.2.9", named, "n1")], Some(named)),
            (vec![rival(), by_address(mac)], Some(mac)),
            (vec![rival(), peer(mac)], None),
            (vec![by_address("00:00:00:00:00:00")], None),
            (vec![by_address("01:00:5e:00:00:01")], None),
            (vec![by_address("ff:ff:ff:ff:ff:ff")], None),
            (vec![by_address(mac), peer(mac)], None),
            // A reservation beside our lease.
            (vec![by_address(other), bare(), lease("192.0.2.1", named, "n1"), peer(other)], Some(named)),
            (vec![by_address(named), lease("192.0.2.1", named, "n1")], Some(named)),
            (vec![bare()], None),
        ] {
            let mut entries = vec![entry("/coreos.com/network/config", &by_address(other))];
            entries.extend(values.iter().zip(1..).map(|(value, number)| {
                entry(&format!("/coreos.com/network/subnets/10.1.{number}.0-24"), value)
            }));
            let found = own_mac(&entries, &prefix, owner).map(|mac| mac.to_string());
            assert_eq!(found.as_deref(), want, "{values:?}");
        }
    }

    #[test]
    fn a_lease_is_ours_when_two_of_name_machine_and_address_agree() {
        let owner = Owner { node: "n1", machine: "m1", public_ip: Some("192.0.2.1".parse().unwrap()) };
        for (node, machine, address, ours, rival) in [
            ("n1", "m1", "192.0.2.1", true, false),
            ("n1", "m1", "192.0.2.2", true, false),  // another address
            ("n2", "m1", "192.0.2.1", true, false),  // renamed
            ("n1", "m2", "192.0.2.1", true, false),  // installed anew
            ("n1", "m2", "192.0.2.2", false, false), // another of our name
            ("n2", "m1", "192.0.2.2", false, false), // a copy of our disk
            ("n2", "m2", "192.0.2.1", false, true),  // another with our address
            ("n1", "", "192.0.2.2", true, false),    // from before there were machines
            ("", "", "192.0.2.1", true, false),      // flanneld's
            ("", "", "192.0.2.2", false, false),
            ("", "m2", "192.0.2.1", false, false), // a reservation for another machine
        ] {
            let text =
                format!(r#"{{"PublicIP":"{address}","Canal":{{"Node":"{node}","Machine":"{machine}"}}}}"#);
            let value = parse(&text);
            assert_eq!((value.belongs_to(owner), value.rivals(owner)), (ours, rival), "{text}");
            let unknown = Owner { public_ip: None, ..owner };
            assert_eq!(value.belongs_to(unknown), node == "n1" && machine != "m2", "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_value_makes_the_parser_panic(value: Vec<u8>) {
            let _ = LeaseValue::parse(&value);
        }
    }
}
