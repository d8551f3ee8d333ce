//! The answer to a successful ADD, in the version that was asked for; and what a later call finds in it.

use std::net::Ipv4Addr;

use canal_common::Mac;
use ipnet::Ipv4Net;
use serde_json::{Map, Value, json};

use super::interface::GATEWAY;

/// What was made.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Made {
    pub(super) host_interface: String,
    pub(super) host_mac: Mac,
    pub(super) interface: String,
    pub(super) mac: Mac,
    pub(super) mtu: u32,
    /// Path of the container's network namespace.
    pub(super) sandbox: String,
    pub(super) ip: Ipv4Addr,
    pub(super) routes: Vec<Ipv4Net>,
    pub(super) dns: Option<Value>,
}

impl Made {
    /// After what earlier plugins of the list have made. The host's end comes first, and the address belongs to the
    /// second interface, as Calico answers.
    pub(super) fn to_json(&self, version: &str, earlier: Option<&Value>) -> String {
        let routes = self.routes.iter().map(|dst| json!({"dst": dst, "gw": GATEWAY}));
        let dns = self.dns.clone().unwrap_or_else(|| json!({}));
        // Until 0.3 there were no interfaces, and no lists.
        if matches!(version, "0.1.0" | "0.2.0") {
            let ip4 = json!({"ip": format!("{}/32", self.ip), "routes": routes.collect::<Vec<_>>()});
            return json!({"cniVersion": version, "ip4": ip4, "dns": dns}).to_string();
        }
        let mut answer = earlier.and_then(Value::as_object).cloned().unwrap_or_default();
        let interfaces = answer.get("interfaces").and_then(Value::as_array).map_or(0, Vec::len);

        let mut host = json!({"name": self.host_interface, "mac": self.host_mac});
        let mut container = json!({"name": self.interface, "mac": self.mac, "sandbox": self.sandbox});
        let mut ip = json!({"address": format!("{}/32", self.ip), "interface": interfaces + 1});
        match version {
            // Until 1.0 each address says its family.
            "0.3.0" | "0.3.1" | "0.4.0" => ip["version"] = json!("4"),
            "1.1.0" => {
                host["mtu"] = json!(self.mtu);
                container["mtu"] = json!(self.mtu);
            }
            _ => {}
        }
        answer.insert("cniVersion".into(), json!(version));
        append(&mut answer, "interfaces", [host, container]);
        append(&mut answer, "ips", [ip]);
        append(&mut answer, "routes", routes);
        // One that says nothing is not another's word.
        let is_said = |dns: &Value| dns.as_object().is_some_and(|dns| !dns.is_empty());
        if !answer.get("dns").is_some_and(is_said) {
            answer.insert("dns".into(), dns);
        }
        Value::Object(answer).to_string()
    }
}

fn append(answer: &mut Map<String, Value>, key: &str, more: impl IntoIterator<Item = Value>) {
    let list = answer.entry(key).or_insert_with(|| json!([]));
    // What is no list is nobody's to keep.
    if !list.is_array() {
        *list = json!([]);
    }
    if let Value::Array(list) = list {
        list.extend(more);
    }
}

/// What a result says of one interface of a container.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Told {
    pub(super) mac: Option<Mac>,
    pub(super) addresses: Vec<Ipv4Net>,
    /// Destinations by our gateway.
    pub(super) routes: Vec<Ipv4Net>,
    /// Names of the interfaces on the host.
    pub(super) hosts: Vec<String>,
}

impl Told {
    /// `None`: the result has no such interface, or is of a version without interfaces.
    pub(super) fn of(result: &Value, interface: &str) -> Option<Self> {
        let list = |key: &str| result.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let interfaces = list("interfaces");
        let is_inside = |value: &Value| text(value, "sandbox").is_some_and(|sandbox| !sandbox.is_empty());
        let index = interfaces
            .iter()
            .position(|value| is_inside(value) && text(value, "name").as_deref() == Some(interface))?;
        let addresses = list("ips").iter().filter(|ip| {
            ip.get("interface").and_then(Value::as_u64).is_none_or(|at| usize::try_from(at) == Ok(index))
        });
        let ours = list("routes")
            .iter()
            .filter(|route| text(route, "gw").and_then(|gw| gw.parse().ok()) == Some(GATEWAY));
        Some(Self {
            mac: text(&interfaces[index], "mac").and_then(|mac| mac.parse().ok()),
            addresses: addresses.filter_map(|ip| text(ip, "address")?.parse().ok()).collect(),
            routes: ours.filter_map(|route| text(route, "dst")?.parse().ok()).collect(),
            hosts: interfaces.iter().filter(|i| !is_inside(i)).filter_map(|i| text(i, "name")).collect(),
        })
    }
}
