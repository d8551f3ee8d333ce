//! The answer to a successful ADD, in the version that was asked for.

use std::net::Ipv4Addr;

use canal_common::Mac;
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
    pub(super) dns: Option<Value>,
}

impl Made {
    /// The host's end comes first, and the address belongs to the second interface, as Calico answers.
    pub(super) fn to_json(&self, version: &str) -> String {
        let mut host = json!({"name": self.host_interface, "mac": self.host_mac});
        let mut container = json!({"name": self.interface, "mac": self.mac, "sandbox": self.sandbox});
        let mut ip = json!({"address": format!("{}/32", self.ip), "interface": 1});
        match version {
            // Until 1.0 each address says its family.
            "0.3.1" | "0.4.0" => ip["version"] = json!("4"),
            "1.1.0" => {
                host["mtu"] = json!(self.mtu);
                container["mtu"] = json!(self.mtu);
            }
            _ => {}
        }
        let mut answer = Map::new();
        answer.insert("cniVersion".into(), json!(version));
        answer.insert("interfaces".into(), json!([host, container]));
        answer.insert("ips".into(), json!([ip]));
        answer.insert("routes".into(), json!([{"dst": "0.0.0.0/0", "gw": GATEWAY}]));
        answer.insert("dns".into(), self.dns.clone().unwrap_or_else(|| json!({})));
        Value::Object(answer).to_string()
    }
}
