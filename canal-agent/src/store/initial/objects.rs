//! What each object of the initial store is, and what is put right in one that is there already. Pure, but for the
//! random identities of new objects.

use rand::Rng as _;

use super::Own;
use crate::store::{RESOURCES, json::Json, publish::Identity};

/// Fields of Go's `ClusterInformationSpec`, in its order.
const CLUSTER_INFORMATION: [&str; 5] =
    ["clusterGUID", "clusterType", "calicoVersion", "datastoreReady", "variant"];
/// Fields of Go's `NodeSpec` up to those that we know of, in its order.
const NODE: [&str; 6] =
    ["bgp", "ipv4VXLANTunnelAddr", "vxlanTunnelMACAddr", "orchRefs", "wireguard", "addresses"];
const KUBERNETES: &str = "k8s";

/// One key, and how its value comes about.
pub(super) struct Object {
    pub(super) key: String,
    content: Content,
}

enum Content {
    ClusterInformation {
        members: Vec<String>,
    },
    Node {
        name: String,
        reference: Option<String>,
    },
    /// Created if absent, else left alone.
    Once {
        kind: &'static str,
        name: String,
        spec: Json,
    },
}

/// In the order in which they are made: what the cluster's tools cannot do without goes first.
pub(super) fn all(own: &Own) -> Vec<Object> {
    let object =
        |plural: &str, name: &str, content| Object { key: format!("{RESOURCES}{plural}/{name}"), content };
    let tier = |name: &str, order: u32, action: &str| {
        let spec =
            Json::object([("order", Json::Number(order.into())), ("defaultAction", Json::string(action))]);
        object("tiers", name, Content::Once { kind: "Tier", name: name.to_owned(), spec })
    };
    let felix = |name: &str, spec| {
        let content = Content::Once { kind: "FelixConfiguration", name: name.to_owned(), spec };
        object("felixconfigurations", name, content)
    };
    let mut members = vec![KUBERNETES.to_owned(), "canal".to_owned()];
    for member in &own.cluster_type {
        if !members.contains(member) {
            members.push(member.clone());
        }
    }
    vec![
        object("clusterinformations", "default", Content::ClusterInformation { members }),
        tier("default", 1_000_000, "Deny"),
        tier("kube-admin", 1_000, "Pass"),
        tier("kube-baseline", 10_000_000, "Pass"),
        felix(
            "default",
            Json::object([
                ("logSeverityScreen", Json::string("Info")),
                ("reportingInterval", Json::string("0s")),
            ]),
        ),
        felix(
            &format!("node.{}", own.node),
            Json::object([("defaultEndpointToHostAction", Json::string("Return"))]),
        ),
        object(
            "nodes",
            &own.node,
            Content::Node { name: own.node.clone(), reference: own.kubernetes_node.clone() },
        ),
    ]
}

impl Object {
    /// The value that the key should have. What is there and cannot be read stays as it is: whoever reads it for its
    /// content names it.
    pub(super) fn value(&self, existing: Option<&[u8]>) -> Vec<u8> {
        let Some(present) = existing else { return self.new_value().render().into_bytes() };
        let Ok(read) = serde_json::from_slice::<Json>(present) else { return present.to_vec() };
        let mut wanted = read.clone();
        self.complete(&mut wanted);
        if wanted == read { present.to_vec() } else { wanted.render().into_bytes() }
    }

    fn new_value(&self) -> Json {
        let (kind, name, spec) = match &self.content {
            Content::ClusterInformation { .. } => ("ClusterInformation", "default", Json::object([])),
            Content::Node { name, .. } => ("Node", name.as_str(), Json::object([])),
            Content::Once { kind, name, spec } => (*kind, name.as_str(), spec.clone()),
        };
        let Identity { uid, creation_timestamp } = Identity::of(None);
        let metadata = Json::object([
            ("name", Json::string(name)),
            ("uid", Json::string(uid)),
            ("creationTimestamp", Json::string(creation_timestamp)),
        ]);
        let mut value = Json::object([
            ("kind", Json::string(kind)),
            ("apiVersion", Json::string("projectcalico.org/v3")),
            ("metadata", metadata),
            ("spec", spec),
        ]);
        if matches!(kind, "Tier" | "Node") {
            // A struct without `omitempty` worth the name: Go writes it always.
            value.set("status", Json::object([]), &[]);
        }
        self.complete(&mut value);
        value
    }

    fn complete(&self, object: &mut Json) {
        if !matches!(object, Json::Object(_)) || matches!(self.content, Content::Once { .. }) {
            return;
        }
        if object.member("spec").is_none() {
            object.set("spec", Json::object([]), &["spec", "status"]);
        }
        let Some(spec) = object.member_mut("spec") else { return };
        match &self.content {
            Content::ClusterInformation { members } => complete_cluster_information(spec, members),
            Content::Node { reference: Some(node), .. } => complete_references(spec, node),
            Content::Node { reference: None, .. } | Content::Once { .. } => {}
        }
    }
}

fn complete_cluster_information(spec: &mut Json, members: &[String]) {
    let text = |spec: &Json, name| match spec.member(name) {
        None => Some(String::new()),
        Some(Json::String(text)) => Some(text.clone()),
        Some(_) => None,
    };
    let set = |spec: &mut Json, name, value| spec.set(name, value, &CLUSTER_INFORMATION);
    if text(spec, "clusterGUID").is_some_and(|guid| guid.is_empty()) {
        let guid = format!("{:032x}", rand::rng().random::<u128>());
        set(spec, "clusterGUID", Json::String(guid));
    }
    if let Some(present) = text(spec, "clusterType") {
        let mut list: Vec<&str> = present.split(',').filter(|member| !member.is_empty()).collect();
        let missing = members.iter().filter(|member| !present.split(',').any(|known| known == *member));
        list.extend(missing.map(String::as_str));
        let list = list.join(",");
        if list != present {
            set(spec, "clusterType", Json::String(list));
        }
    }
    // An explicit `false` is somebody's decision; without the field Calico's CNI plugin crashes.
    if spec.member("datastoreReady").is_none() {
        set(spec, "datastoreReady", Json::Bool(true));
    }
}

fn complete_references(spec: &mut Json, node: &str) {
    let present = match spec.member("orchRefs") {
        None => Vec::new(),
        Some(Json::Array(references)) => references.clone(),
        Some(_) => return,
    };
    let is_kubernetes = |reference: &Json| {
        reference.member("orchestrator").is_some_and(|kind| *kind == Json::string(KUBERNETES))
    };
    if present.iter().any(is_kubernetes) {
        return;
    }
    let reference =
        Json::object([("nodeName", Json::string(node)), ("orchestrator", Json::string(KUBERNETES))]);
    spec.set("orchRefs", Json::Array(present.into_iter().chain([reference]).collect()), &NODE);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the real programs left in an etcd.
    const STORE: &str = include_str!("../../model/testdata/store.txt");

    fn stored(rest: &str) -> &'static str {
        let key = format!("{RESOURCES}{rest}");
        STORE.lines().skip_while(|line| *line != key).nth(1).unwrap()
    }

    fn own() -> Own {
        Own { node: "node-a".to_owned(), kubernetes_node: None, cluster_type: Vec::new() }
    }

    fn object(own: &Own, rest: &str) -> Object {
        all(own).into_iter().find(|object| object.key == format!("{RESOURCES}{rest}")).unwrap()
    }

    fn value(rest: &str, existing: Option<&str>) -> String {
        String::from_utf8(object(&own(), rest).value(existing.map(str::as_bytes))).unwrap()
    }

    /// With the identity of `model`.
    fn identified(new: &str, model: &str) -> String {
        let (ours, theirs) = (Identity::of(Some(new.as_bytes())), Identity::of(Some(model.as_bytes())));
        new.replace(&ours.uid, &theirs.uid).replace(&ours.creation_timestamp, &theirs.creation_timestamp)
    }

    #[test]
    fn tiers_are_written_as_the_go_client_writes_them() {
        for tier in ["tiers/default", "tiers/kube-admin", "tiers/kube-baseline"] {
            let theirs = stored(tier);
            assert_eq!(identified(&value(tier, None), theirs), theirs);
            assert_eq!(value(tier, Some(theirs)), theirs, "and never touched again");
        }
    }

    #[test]
    fn a_new_cluster_has_a_random_id_and_is_ready() {
        let (one, two) =
            (value("clusterinformations/default", None), value("clusterinformations/default", None));
        let guid = |text: &str| -> String {
            let json: Json = serde_json::from_str(text).unwrap();
            match json.member("spec").unwrap().member("clusterGUID") {
                Some(Json::String(guid)) => guid.clone(),
                other => panic!("{other:?}"),
            }
        };
        assert_ne!(guid(&one), guid(&two));
        assert!(guid(&one).len() == 32 && guid(&one).bytes().all(|b| b.is_ascii_hexdigit()));
        // As the client wrote it, with the type between id and readiness, where the Go struct has it.
        let theirs = stored("clusterinformations/default");
        let with_type =
            theirs.replace(",\"datastoreReady\"", ",\"clusterType\":\"k8s,canal\",\"datastoreReady\"");
        let ours = identified(&one, theirs).replace(&guid(&one), &guid(theirs));
        assert_eq!(ours, with_type);
        assert_eq!(value("clusterinformations/default", Some(theirs)), with_type);
        assert_eq!(value("clusterinformations/default", Some(&with_type)), with_type, "once is enough");
    }

    #[test]
    fn only_what_is_missing_in_the_cluster_information_is_added() {
        for (before, after) in [
            (
                r#"{"x":1,"metadata":{"name":"default","uid":"u","creationTimestamp":null,"labels":{"a":"<b>"}},"spec":{"clusterGUID":"g","clusterType":"k8s,bgp","calicoVersion":"v3.26.1","datastoreReady":false,"new":[1]},"y":2}"#,
                r#"{"x":1,"metadata":{"name":"default","uid":"u","creationTimestamp":null,"labels":{"a":"\u003cb\u003e"}},"spec":{"clusterGUID":"g","clusterType":"k8s,bgp,canal","calicoVersion":"v3.26.1","datastoreReady":false,"new":[1]},"y":2}"#,
            ),
            (
                r#"{"spec":{"clusterGUID":"g","clusterType":"canal,k8s","datastoreReady":null}}"#,
                r#"{"spec":{"clusterGUID":"g","clusterType":"canal,k8s","datastoreReady":true}}"#,
            ),
            // What is of a type that it cannot have is not ours to guess about, and neither is what is no object.
            (
                r#"{"spec":{"clusterGUID":7,"clusterType":[],"datastoreReady":"yes"}}"#,
                r#"{"spec":{"clusterGUID":7,"clusterType":[],"datastoreReady":"yes"}}"#,
            ),
            ("[1]", "[1]"),
            ("{\"spec", "{\"spec"),
        ] {
            assert_eq!(value("clusterinformations/default", Some(before)), after);
        }
        let from_nothing = value("clusterinformations/default", Some(r#"{"spec":null}"#));
        assert!(
            from_nothing.ends_with(r#""clusterType":"k8s,canal","datastoreReady":true}}"#),
            "{from_nothing}"
        );
        let told = Own { cluster_type: vec!["k8s".to_owned(), "nomad".to_owned()], ..own() };
        let told = String::from_utf8(object(&told, "clusterinformations/default").value(None)).unwrap();
        assert!(told.contains(r#""clusterType":"k8s,canal,nomad""#), "{told}");
    }

    #[test]
    fn this_nodes_objects_bear_its_name_and_are_left_alone_once_they_are_there() {
        let (felix, node) = ("felixconfigurations/node.node-a", "nodes/node-a");
        let text = value(felix, None);
        assert!(text.starts_with(r#"{"kind":"FelixConfiguration","apiVersion":"projectcalico.org/v3","metadata":{"name":"node.node-a","uid":""#), "{text}");
        assert!(text.ends_with(r#"Z"},"spec":{"defaultEndpointToHostAction":"Return"}}"#), "{text}");
        let text = value("felixconfigurations/default", None);
        assert!(text.ends_with(r#""spec":{"logSeverityScreen":"Info","reportingInterval":"0s"}}"#), "{text}");
        let text = value(node, None);
        assert!(
            text.starts_with(r#"{"kind":"Node","#) && text.ends_with(r#""spec":{},"status":{}}"#),
            "{text}"
        );
        for present in [r#"{"spec":{"a":1}}"#, "{}", "garbage", ""] {
            assert_eq!(value(felix, Some(present)), present);
        }
    }

    #[test]
    fn a_node_that_is_kubernetes_says_which_and_keeps_its_other_references() {
        let own = Own { kubernetes_node: Some("kube-a".to_owned()), ..own() };
        let value = |existing: Option<&str>| {
            String::from_utf8(object(&own, "nodes/node-a").value(existing.map(str::as_bytes))).unwrap()
        };
        let reference = r#"{"nodeName":"kube-a","orchestrator":"k8s"}"#;
        let text = value(None);
        assert!(text.ends_with(&format!(r#""spec":{{"orchRefs":[{reference}]}},"status":{{}}}}"#)), "{text}");
        for (before, after) in [
            (
                r#"{"spec":{"addresses":[]}}"#.to_owned(),
                format!(r#"{{"spec":{{"orchRefs":[{reference}],"addresses":[]}}}}"#),
            ),
            (
                r#"{"spec":{"orchRefs":[{"orchestrator":"openstack"}]}}"#.to_owned(),
                format!(r#"{{"spec":{{"orchRefs":[{{"orchestrator":"openstack"}},{reference}]}}}}"#),
            ),
            (
                r#"{"spec":{"orchRefs":[{"nodeName":"other","orchestrator":"k8s"}]}}"#.to_owned(),
                r#"{"spec":{"orchRefs":[{"nodeName":"other","orchestrator":"k8s"}]}}"#.to_owned(),
            ),
        ] {
            assert_eq!(value(Some(&before)), after);
        }
    }
}
