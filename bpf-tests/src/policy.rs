//! Calico v3 resources in etcd, as `calicoctl` writes them.

use std::hash::{DefaultHasher, Hash, Hasher};

use anyhow::Result;
use serde_json::{Value, json};

use crate::etcd::Etcd;

/// Everything of Calico's v3 API lives below this.
pub const RESOURCES: &str = "/calico/resources/v3/projectcalico.org/";

/// Allows everything, for everyone, at the end of the order.
pub fn allow_all() -> Value {
    json!({
        "order": 1000, "selector": "all()", "types": ["Ingress", "Egress"],
        "ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}],
    })
}

/// Allows and denies incoming traffic of the selected pods by these rules, in this order.
#[expect(clippy::needless_pass_by_value, reason = "callers pass a `json!` literal")]
pub fn ingress(order: u32, selector: &str, rules: Value) -> Value {
    json!({"order": order, "selector": selector, "types": ["Ingress"], "ingress": rules})
}

/// The same for outgoing traffic.
#[expect(clippy::needless_pass_by_value, reason = "callers pass a `json!` literal")]
pub fn egress(order: u32, selector: &str, rules: Value) -> Value {
    json!({"order": order, "selector": selector, "types": ["Egress"], "egress": rules})
}

impl Etcd {
    pub fn put_global_policy(&self, name: &str, spec: Value) -> Result<()> {
        self.put_resource("globalnetworkpolicies", "GlobalNetworkPolicy", None, name, in_default_tier(spec))
    }

    pub fn delete_global_policy(&self, name: &str) -> Result<()> {
        self.del(&format!("{RESOURCES}globalnetworkpolicies/{name}"))
    }

    pub fn put_policy(&self, namespace: &str, name: &str, spec: Value) -> Result<()> {
        self.put_resource("networkpolicies", "NetworkPolicy", Some(namespace), name, in_default_tier(spec))
    }

    pub fn delete_policy(&self, namespace: &str, name: &str) -> Result<()> {
        self.del(&format!("{RESOURCES}networkpolicies/{namespace}/{name}"))
    }

    pub fn put_profile(&self, name: &str, spec: Value) -> Result<()> {
        self.put_resource("profiles", "Profile", None, name, spec)
    }

    pub fn delete_profile(&self, name: &str) -> Result<()> {
        self.del(&format!("{RESOURCES}profiles/{name}"))
    }

    /// Any resource; `plural` is the part of the key, `kind` the name in the value.
    #[expect(clippy::needless_pass_by_value, reason = "callers pass a `json!` literal")]
    pub fn put_resource(
        &self,
        plural: &str,
        kind: &str,
        namespace: Option<&str>,
        name: &str,
        spec: Value,
    ) -> Result<()> {
        let mut metadata =
            json!({"name": name, "uid": uid(plural, name), "creationTimestamp": "2026-11-24T05:43:05Z"});
        let mut key = format!("{RESOURCES}{plural}/{name}");
        if let Some(namespace) = namespace {
            metadata["namespace"] = json!(namespace);
            key = format!("{RESOURCES}{plural}/{namespace}/{name}");
        }
        let value =
            json!({"kind": kind, "apiVersion": "projectcalico.org/v3", "metadata": metadata, "spec": spec});
        self.put(&key, &value.to_string())
    }

    /// Keys of the endpoints that agents and plugins published.
    pub fn workload_endpoints(&self) -> Result<Vec<String>> {
        self.keys(&format!("{RESOURCES}workloadendpoints/"))
    }
}

fn in_default_tier(mut spec: Value) -> Value {
    if spec.get("tier").is_none() {
        spec["tier"] = json!("default");
    }
    spec
}

/// The same object keeps its identity when it is put again.
fn uid(plural: &str, name: &str) -> String {
    let mut hasher = DefaultHasher::new();
    (plural, name).hash(&mut hasher);
    format!("00000000-0000-4000-8000-{:012x}", hasher.finish() & 0xffff_ffff_ffff)
}
