//! Profile: what an endpoint may do while no policy selects it, and labels for those that bear it.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    Labels,
    endpoint::Birth,
    reading::{Envelope, Reading},
    rule::{self, Direction, RawRule, Rule},
};

/// Allows everything, both ways, and is in no store: a stored object of this name is ignored.
pub const ALLOW_ALL: &str = "projectcalico-default-allow";

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Profile {
    pub labels: Labels,
    pub ingress: Arc<[Rule]>,
    pub egress: Arc<[Rule]>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawProfile {
    labels_to_apply: Option<BTreeMap<String, String>>,
    ingress: Option<Vec<RawRule>>,
    egress: Option<Vec<RawRule>>,
}

impl Profile {
    pub fn read(value: &[u8]) -> Reading<Self> {
        match Envelope::parse(value).and_then(|envelope| envelope.spec::<RawProfile>()) {
            Ok(raw) => {
                let mut faults = Vec::new();
                let ingress = rule::admit(raw.ingress.unwrap_or_default(), Direction::Ingress, &mut faults);
                let egress = rule::admit(raw.egress.unwrap_or_default(), Direction::Egress, &mut faults);
                let labels = raw.labels_to_apply.unwrap_or_default();
                Reading::with_faults(Self { labels, ingress: ingress.into(), egress: egress.into() }, &faults)
            }
            Err(reason) => Reading::bad(reason),
        }
    }

    /// [`ALLOW_ALL`].
    pub(super) fn allow_all() -> Self {
        const VALUE: &[u8] = br#"{"spec":{"ingress":[{"action":"Allow"}],"egress":[{"action":"Allow"}]}}"#;
        match Self::read(VALUE) {
            Reading::Good(profile) => profile,
            _ => Self::default(),
        }
    }

    pub fn rules(&self, direction: Direction) -> &Arc<[Rule]> {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

/// The value of a CNI network's profile, byte for byte what Calico's plugin writes: its pods talk to each other
/// and to the world.
pub fn network_profile_json(network: &str, birth: &Birth) -> String {
    #[derive(Serialize)]
    struct Out<'a> {
        kind: &'a str,
        #[serde(rename = "apiVersion")]
        api_version: &'a str,
        metadata: Metadata<'a>,
        spec: Spec<'a>,
    }
    #[derive(Serialize)]
    struct Metadata<'a> {
        name: &'a str,
        uid: &'a str,
        #[serde(rename = "creationTimestamp")]
        creation_timestamp: &'a str,
    }
    #[derive(Serialize)]
    struct Spec<'a> {
        ingress: [OutRule; 1],
        egress: [OutRule; 1],
        #[serde(rename = "labelsToApply")]
        labels_to_apply: BTreeMap<&'a str, &'a str>,
    }
    #[derive(Serialize)]
    struct OutRule {
        action: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        source: Option<Source>,
    }
    #[derive(Serialize)]
    struct Source {
        selector: String,
    }
    super::endpoint::go_json(&Out {
        kind: "Profile",
        api_version: "projectcalico.org/v3",
        metadata: Metadata { name: network, uid: &birth.uid, creation_timestamp: &birth.creation_timestamp },
        spec: Spec {
            ingress: [OutRule {
                action: "Allow",
                source: Some(Source { selector: format!("has({network})") }),
            }],
            egress: [OutRule { action: "Allow", source: None }],
            labels_to_apply: [(network, "")].into(),
        },
    })
}
