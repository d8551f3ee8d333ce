//! What is known of one attachment: what its ADD said, how far it has come, and what others have made of it in etcd.
//!
//! Labels, profiles, named ports and allowed sources of a pod that lives are what etcd says of it, as with Calico:
//! kube-controllers keep those of pods of Kubernetes, `calicoctl` sets any. What was said last is kept with the record, so
//! that an etcd that has lost the endpoint gets it back, and no restart undoes it; a backup that has the endpoint says what it
//! says. Where the pod is, its node knows best.

use serde::{Deserialize, Serialize};

use crate::{
    api::wire::AddEndpoint,
    model::{
        EndpointKey, WorkloadEndpoint,
        endpoint::{Birth, EndpointName},
        labels::ORCHESTRATOR,
        reading::Reading,
    },
    store::{
        json::Json,
        publish::{Identity, is_of_container},
    },
};

/// How far an attachment has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The plugin is at it, or was cut off.
    Begun,
    /// It is a pod's.
    Present,
    /// The pod is gone; what it had has yet to be given back, or etcd to be told.
    Leaving,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored")]
pub struct Record {
    pub endpoint: AddEndpoint,
    pub phase: Phase,
    /// When it was begun: milliseconds since 1970.
    pub since: u64,
    /// The endpoint that it had under another name, until etcd has forgotten it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub former: Option<EndpointKey>,
    /// The node's name, a part of the key under which etcd may hold the endpoint. `None`: an earlier version has not noted it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) node: Option<String>,
    /// What the endpoint's value in etcd is born with. `None`: an earlier version's, born with whatever was there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) birth: Option<Birth>,
    /// The `uid`s of earlier attachments of the same container, which etcd may still hold: the next may be like them in all
    /// else.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) earlier: Vec<String>,
    /// The endpoint's value in etcd, where others have made more of it than its ADD said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) said: Option<String>,
}

/// Also what earlier versions wrote.
#[derive(Deserialize)]
struct Stored {
    endpoint: AddEndpoint,
    #[serde(default)]
    leaving: bool,
    phase: Option<Phase>,
    #[serde(default)]
    since: u64,
    former: Option<EndpointKey>,
    node: Option<String>,
    birth: Option<Birth>,
    #[serde(default)]
    earlier: Vec<String>,
    said: Option<String>,
}

impl From<Stored> for Record {
    fn from(stored: Stored) -> Self {
        let Stored { endpoint, leaving, phase, since, former, node, birth, earlier, said } = stored;
        let before = if leaving { Phase::Leaving } else { Phase::Present };
        Self { endpoint, phase: phase.unwrap_or(before), since, former, node, birth, earlier, said }
    }
}

/// How many lives of a container are kept apart while etcd does not hear of them.
const LIVES: usize = 64;

impl Record {
    /// A new attachment, or the next step of the one that is known.
    pub(super) fn new(endpoint: AddEndpoint, phase: Phase, since: u64, known: Option<&Self>) -> Self {
        let goes_on = |known: &&Self| phase != Phase::Leaving && known.phase == Phase::Begun;
        let (birth, earlier) = if let Some(known) = known.filter(goes_on) {
            (known.birth.clone(), known.earlier.clone())
        } else {
            let uid = known.and_then(|known| known.birth.as_ref()).map(|birth| birth.uid.clone());
            let lives = known.iter().flat_map(|known| &known.earlier).cloned().chain(uid).collect::<Vec<_>>();
            (Some(birth(None)), lives[lives.len().saturating_sub(LIVES)..].to_vec())
        };
        Self { endpoint, phase, since, former: None, node: None, birth, earlier, said: None }
    }

    /// It goes by the node's name of now, and what etcd may hold under the name of before becomes what it had formerly. While
    /// there still is another such, that waits.
    pub(super) fn on_node(self, node: &str, key_on: impl Fn(&str) -> Option<EndpointKey>) -> Self {
        if self.former.is_some() || self.node.as_deref() == Some(node) {
            return self;
        }
        // One that its plugin's configuration names has the same key on either.
        let before = self.node.as_deref().filter(|_| self.endpoint.node.is_none());
        Self { former: before.and_then(key_on), node: Some(node.to_owned()), ..self }
    }

    /// Etcd may hold a value of an earlier life of the container.
    pub fn lived_before(&self) -> bool {
        !self.earlier.is_empty()
    }

    /// Whether a value is the endpoint of this attachment, by the container that it names. The object's birth does not tell:
    /// Calico's plugin keeps it when a pod of the same name is made anew.
    pub fn owns(&self, value: &[u8]) -> bool {
        is_of_container(value, &self.endpoint.container_id)
    }

    /// As this node sees it, with what others have made of it.
    pub fn workload(&self, key: &EndpointKey, node: &str) -> WorkloadEndpoint {
        let begun = self.begun(node);
        match self.said.as_ref().and_then(|said| self.recognise(key, said.as_bytes())) {
            None => begun,
            Some(WorkloadEndpoint { labels, profiles, ports, spoofed, .. }) => {
                WorkloadEndpoint { labels, profiles, ports, spoofed, ..begun }
            }
        }
    }

    /// As its ADD said it.
    fn begun(&self, node: &str) -> WorkloadEndpoint {
        let AddEndpoint { container_id, interface, host_interface, addresses, mac, .. } =
            self.endpoint.clone();
        let AddEndpoint { network, labels, profiles, pod, .. } = self.endpoint.clone();
        let orchestrator = if pod.is_some() { EndpointName::KUBERNETES } else { EndpointName::CNI };
        let mut workload = WorkloadEndpoint {
            node: node.to_owned(),
            orchestrator: orchestrator.to_owned(),
            workload: container_id.clone(),
            endpoint: interface,
            container_id,
            interface_name: host_interface,
            addresses,
            mac,
            labels: labels.into_iter().collect(),
            profiles: if profiles.is_empty() { vec![network] } else { profiles },
            ports: Vec::new(),
            spoofed: Vec::new(),
        };
        // Not a pod's to choose, whatever its labels say.
        workload.labels.insert(ORCHESTRATOR.to_owned(), workload.orchestrator.clone());
        if let Some(pod) = pod {
            pod.describe(&mut workload);
        }
        workload
    }

    /// The value, if it is of this attachment. A MAC may be left out, as `calicoctl` lets people do.
    pub(super) fn recognise(&self, key: &EndpointKey, value: &[u8]) -> Option<WorkloadEndpoint> {
        let (Reading::Good(there) | Reading::Partly(there, _)) = WorkloadEndpoint::read(key, value) else {
            return None;
        };
        let AddEndpoint { container_id, host_interface, addresses, mac, .. } = &self.endpoint;
        let is_this = (&there.container_id, &there.interface_name, &there.addresses)
            == (container_id, host_interface, addresses)
            && (there.mac.is_none() || there.mac == *mac)
            && (self.earlier.is_empty() || !self.earlier.contains(&birth(Some(value)).uid));
        is_this.then_some(there)
    }

    /// The record after etcd has said this of its endpoint. `None`: it is nothing new.
    pub(super) fn heed(&self, key: &EndpointKey, value: &[u8], there: &WorkloadEndpoint) -> Option<Self> {
        let begun = self.begun_json(key, "", None);
        let is_as_begun = self.recognise(key, &begun).is_some_and(|begun| {
            (&there.labels, &there.profiles, &there.ports, &there.spoofed)
                == (&begun.labels, &begun.profiles, &begun.ports, &begun.spoofed)
        });
        let said = if is_as_begun { None } else { Some(String::from_utf8(value.to_owned()).ok()?) };
        // Somebody has made the object anew, or an earlier version of ours kept what was there.
        let birth = Identity::whole(value).map(of_birth).or_else(|| self.birth.clone());
        (said != self.said || birth != self.birth).then(|| Self { birth, said, ..self.clone() })
    }

    /// As etcd is to have it, where it has `existing`. What others have made of it stays, as long as it is where it was.
    pub fn to_json(&self, key: &EndpointKey, node: &str, existing: Option<&[u8]>) -> Vec<u8> {
        if let Some(existing) = existing.filter(|value| self.recognise(key, value).is_some()) {
            return existing.to_vec();
        }
        let node = self.endpoint.node.as_deref().unwrap_or(node);
        let said = self.said.as_ref().and_then(|said| renamed(said, key, node));
        said.unwrap_or_else(|| self.begun_json(key, node, existing))
    }

    fn begun_json(&self, key: &EndpointKey, node: &str, existing: Option<&[u8]>) -> Vec<u8> {
        let birth = self.birth.clone().unwrap_or_else(|| birth(existing));
        self.begun(node).to_json(key, &birth, self.endpoint.pod.as_ref()).into_bytes()
    }
}

/// That in the value, with whatever it lacks made now.
pub(super) fn birth(value: Option<&[u8]>) -> Birth {
    of_birth(Identity::of(value))
}

fn of_birth(Identity { uid, creation_timestamp }: Identity) -> Birth {
    Birth { uid, creation_timestamp }
}

/// The value as it is for this key: the node may have another name by now, and with it the endpoint. `None`: it is none.
fn renamed(value: &str, key: &EndpointKey, node: &str) -> Option<Vec<u8>> {
    let mut json: Json = serde_json::from_str(value).ok()?;
    if matches!(json.member("metadata")?.member("name"), Some(Json::String(name)) if *name == key.name) {
        return Some(value.to_owned().into_bytes());
    }
    json.member_mut("metadata")?.set("name", Json::String(key.name.clone()), &[]);
    json.member_mut("spec")?.set("node", Json::String(node.to_owned()), &[]);
    Some(json.render().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::{
        super::registry::{
            Heard, Registry,
            tests::{endpoint, of_pod},
        },
        *,
    };

    fn text(record: &Record, key: &EndpointKey, existing: Option<&str>) -> String {
        String::from_utf8(record.to_json(key, "n", existing.map(str::as_bytes))).unwrap()
    }

    /// A pod that etcd knows, its key and its value there.
    fn told(registry: &mut Registry, endpoint: AddEndpoint) -> (EndpointKey, String) {
        let key = registry.insert(endpoint, Phase::Present).unwrap();
        let begun = text(registry.holder(&key).unwrap(), &key, None);
        assert_eq!(registry.hear(&key, begun.as_bytes()), Heard::Nothing);
        (key, begun)
    }

    #[test]
    fn what_others_make_of_a_living_pod_counts_and_is_kept_through_restarts_and_losses() {
        let dir = tempfile::tempdir().unwrap();
        let (mut registry, _) = Registry::open(dir.path(), "n").unwrap();
        for endpoint in [of_pod("aa", "web-0"), endpoint("bb")] {
            let (key, begun) = told(&mut registry, endpoint);
            let ports = r#""ports":[{"name":"http","protocol":"TCP","port":80}],"#;
            let closed = begun
                .replace(r#""app":"web""#, r#""app":"web","quarantine":"true""#)
                .replace(r#""profiles":["canal"],"#, &format!(r#""profiles":[],{ports}"#));
            assert_eq!(registry.hear(&key, closed.as_bytes()), Heard::News);
            let (again, _) = Registry::open(dir.path(), "n").unwrap();
            for record in [registry.holder(&key).unwrap(), again.holder(&key).unwrap()] {
                let workload = record.workload(&key, "n");
                assert_eq!(workload.labels["quarantine"], "true");
                assert!(workload.profiles.is_empty() && workload.ports.len() == 1, "{workload:?}");
                assert_eq!(workload.node, "n");
                for existing in [None, Some(&*closed), Some("{")] {
                    assert_eq!(text(record, &key, existing), closed, "as it was, whatever is there");
                }
            }
            // Without the MAC, which people leave out, it is still the pod's; a part that cannot be read is left out.
            let without_mac = closed.replace(r#","mac":"02:00:00:00:00:01""#, "");
            assert_ne!(without_mac, closed);
            for value in [without_mac, closed.replace("TCP", "XYZ")] {
                assert_eq!(registry.hear(&key, value.as_bytes()), Heard::News, "{value}");
                assert_eq!(text(registry.holder(&key).unwrap(), &key, Some(&value)), value);
            }
            assert_eq!(registry.hear(&key, begun.as_bytes()), Heard::News, "and back");
            assert_eq!(registry.holder(&key).unwrap().said, None);
        }
    }

    #[test]
    fn what_is_not_about_the_pod_counts_for_nothing_and_is_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let (mut registry, _) = Registry::open(dir.path(), "n").unwrap();
        let (key, begun) = told(&mut registry, endpoint("bb"));
        let labelled = begun.replace(r#""app":"web""#, r#""app":"web","quarantine":"true""#);
        assert_eq!(registry.hear(&key, labelled.as_bytes()), Heard::News);
        let other = labelled.replace("quarantine", "other");
        for (from, to) in [
            ("10.100.30.2", "10.100.30.3"),
            (r#""containerID":"bb""#, r#""containerID":"cc""#),
            ("02:00:00:00:00:01", "02:00:00:00:00:02"),
            (r#""interfaceName":"calibb""#, r#""interfaceName":"calicc""#),
            (r#""labels":{"#, r#""labels":7,"x":{"#),
        ] {
            let value = other.replace(from, to);
            assert_ne!(value, other, "{from}");
            assert_eq!(registry.hear(&key, value.as_bytes()), Heard::Foreign, "{value}");
            assert_eq!(text(registry.holder(&key).unwrap(), &key, Some(&value)), labelled);
        }
    }

    #[test]
    fn a_pod_that_came_anew_just_like_the_one_before_is_what_its_own_add_says() {
        let dir = tempfile::tempdir().unwrap();
        let (mut registry, _) = Registry::open(dir.path(), "n").unwrap();
        let (key, begun) = told(&mut registry, endpoint("bb"));
        let labelled = begun.replace(r#""app":"web""#, r#""app":"web","quarantine":"true""#);
        registry.hear(&key, labelled.as_bytes());
        registry.leave(&endpoint("bb").id()).unwrap();
        // Etcd is away, so that it has not heard of the end: of the same container, address and MAC.
        let anew = AddEndpoint { labels: [("app".to_owned(), "db".to_owned())].into(), ..endpoint("bb") };
        for phase in [Phase::Begun, Phase::Present] {
            registry.insert(anew.clone(), phase).unwrap();
        }
        let (mut again, _) = Registry::open(dir.path(), "n").unwrap();
        for registry in [&mut registry, &mut again] {
            assert_eq!(registry.hear(&key, labelled.as_bytes()), Heard::Foreign);
            let record = registry.holder(&key).unwrap();
            assert_eq!(record.workload(&key, "n").labels["app"], "db");
            let written = text(record, &key, Some(&labelled));
            assert!(written.contains(r#""app":"db""#) && !written.contains("quarantine"), "{written}");
            assert_eq!(registry.hear(&key, written.as_bytes()), Heard::Nothing);
            // An edit counts also where what was edited was never heard.
            let edited = written.replace(r#""app":"db""#, r#""app":"db","quarantine":"true""#);
            assert_eq!(registry.hear(&key, edited.as_bytes()), Heard::News);
        }
    }

    #[test]
    fn a_pod_cannot_keep_etcds_word_from_counting_by_labels_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let (mut registry, _) = Registry::open(dir.path(), "n").unwrap();
        let labels = [("projectcalico.org/orchestrator", "x"), ("projectcalico.org/namespace", "y")];
        let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let (key, begun) = told(&mut registry, AddEndpoint { labels, ..of_pod("aa", "web-0") });
        let workload = registry.holder(&key).unwrap().workload(&key, "n");
        assert_eq!(workload.labels["projectcalico.org/orchestrator"], "k8s");
        let edited = begun.replace(r#""labels":{"#, r#""labels":{"quarantine":"true","#);
        assert_eq!(registry.hear(&key, edited.as_bytes()), Heard::News);
    }

    #[test]
    fn what_was_said_of_a_pod_is_written_under_the_name_that_it_was_said_of() {
        let dir = tempfile::tempdir().unwrap();
        let (mut registry, _) = Registry::open(dir.path(), "n").unwrap();
        let (key, begun) = told(&mut registry, endpoint("bb"));
        let ports = r#""profiles":["canal"],"ports":[{"name":"http","protocol":"TCP","port":80}]"#;
        let labelled = begun
            .replace(r#""app":"web""#, r#""app":"web","quarantine":"true""#)
            .replace(r#""profiles":["canal"]"#, ports);
        assert_eq!(registry.hear(&key, labelled.as_bytes()), Heard::News);
        let (renamed, _) = Registry::open(dir.path(), "other").unwrap();
        let (new, record) = renamed.present().next().unwrap();
        assert_eq!(record.workload(new, "other").labels["quarantine"], "true", "it counts");
        let written = String::from_utf8(record.to_json(new, "other", None)).unwrap();
        assert!(written.contains(&format!(r#""name":"{}""#, new.name)), "{written}");
        assert!(written.contains(r#""node":"other""#) && written.contains("quarantine"), "{written}");
        assert!(written.contains(r#""port":80"#), "{written}");
    }

    #[test]
    fn an_object_that_somebody_made_anew_is_the_pods_until_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let (mut registry, _) = Registry::open(dir.path(), "n").unwrap();
        let (key, begun) = told(&mut registry, endpoint("bb"));
        let uid = birth(Some(begun.as_bytes())).uid;
        let anew = begun.replace(&uid, "6f5a0a3e-0000-4000-8000-000000000001");
        assert_eq!(registry.hear(&key, anew.as_bytes()), Heard::News);
        registry.leave(&endpoint("bb").id()).unwrap();
        for phase in [Phase::Begun, Phase::Begun, Phase::Present] {
            registry.insert(endpoint("bb"), phase).unwrap();
        }
        let record = registry.holder(&key).unwrap();
        assert_eq!(record.recognise(&key, anew.as_bytes()), None, "of the life before");
        assert_eq!(record.earlier.len(), 1, "what was never told adds nothing");
    }

    #[test]
    fn what_cannot_be_written_down_counts_all_the_same_and_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let (mut registry, _) = Registry::open(dir.path(), "n").unwrap();
        let (key, begun) = told(&mut registry, endpoint("bb"));
        let labelled = begun.replace(r#""app":"web""#, r#""app":"web","quarantine":"true""#);
        let folder = Registry::folder(dir.path());
        std::fs::rename(&folder, dir.path().join("away")).unwrap();
        assert_eq!(registry.hear(&key, labelled.as_bytes()), Heard::News);
        assert_eq!(registry.holder(&key).unwrap().workload(&key, "n").labels["quarantine"], "true");
        let problems: Vec<_> = registry.unwritten().cloned().collect();
        assert!(problems.len() == 1 && problems[0].contains("bb@eth0"), "{problems:?}");
        std::fs::rename(dir.path().join("away"), &folder).unwrap();
        registry.write_again(|| ());
        assert_eq!(registry.unwritten().count(), 0);
        let (again, _) = Registry::open(dir.path(), "n").unwrap();
        assert_eq!(again.holder(&key), registry.holder(&key));
    }
}
