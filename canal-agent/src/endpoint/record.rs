//! What is known of one attachment: what its ADD said, how far it has come, and what others have made of it in etcd.
//!
//! Labels, profiles, named ports and allowed sources of a pod that lives are what etcd says of it, as with Calico:
//! kube-controllers keep those of pods of Kubernetes, `calicoctl` sets any. What was said last is kept with the record, so
//! that an etcd that has lost it gets it back, and no restart undoes it. Where the pod is, its node knows best.

use serde::{Deserialize, Serialize};

use crate::{
    api::wire::AddEndpoint,
    model::{
        EndpointKey, WorkloadEndpoint,
        endpoint::{Birth, EndpointName},
        reading::Reading,
    },
    store::publish::Identity,
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
    /// The endpoint's value in etcd, where others have made more of it than its ADD said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) said: Option<String>,
    /// Etcd has held it as it began. Before that, what is there may be of an earlier attachment that was just like it.
    #[serde(skip)]
    pub(super) is_told: bool,
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
    said: Option<String>,
}

impl From<Stored> for Record {
    fn from(Stored { endpoint, leaving, phase, since, former, said }: Stored) -> Self {
        let before = if leaving { Phase::Leaving } else { Phase::Present };
        // An earlier process has had the time to tell.
        Self { endpoint, phase: phase.unwrap_or(before), since, former, said, is_told: true }
    }
}

impl Record {
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
        if let Some(pod) = pod {
            pod.describe(&mut workload);
        }
        workload
    }

    /// The value, if it is of this attachment. A MAC may be left out, as `calicoctl` lets people do.
    fn recognise(&self, key: &EndpointKey, value: &[u8]) -> Option<WorkloadEndpoint> {
        let (Reading::Good(there) | Reading::Partly(there, _)) = WorkloadEndpoint::read(key, value) else {
            return None;
        };
        let AddEndpoint { container_id, host_interface, addresses, mac, .. } = &self.endpoint;
        let is_this = (&there.container_id, &there.interface_name, &there.addresses)
            == (container_id, host_interface, addresses)
            && (there.mac.is_none() || there.mac == *mac);
        is_this.then_some(there)
    }

    /// The record after etcd has said this of its endpoint. `None`: it is nothing new, or not about it.
    pub(super) fn hear(&self, key: &EndpointKey, value: &[u8]) -> Option<Self> {
        let there = self.recognise(key, value)?;
        let begun = self.begun("").normalised(key);
        let is_as_begun = (&there.labels, &there.profiles, &there.ports, &there.spoofed)
            == (&begun.labels, &begun.profiles, &begun.ports, &begun.spoofed);
        if !self.is_told && !is_as_begun {
            return None;
        }
        let said = if is_as_begun { None } else { Some(String::from_utf8(value.to_owned()).ok()?) };
        let heard = Self { said, is_told: true, ..self.clone() };
        (heard != *self).then_some(heard)
    }

    /// As etcd is to have it, where it has `existing`. What others have made of it stays, as long as it is where it was.
    pub fn to_json(&self, key: &EndpointKey, node: &str, existing: Option<&[u8]>) -> Vec<u8> {
        if self.is_told {
            if let Some(existing) = existing.filter(|value| self.recognise(key, value).is_some()) {
                return existing.to_vec();
            }
            if let Some(said) = &self.said {
                return said.clone().into_bytes();
            }
        }
        let Identity { uid, creation_timestamp } = Identity::of(existing);
        let birth = Birth { uid, creation_timestamp };
        let begun = self.begun(self.endpoint.node.as_deref().unwrap_or(node));
        begun.to_json(key, &birth, self.endpoint.pod.as_ref()).into_bytes()
    }
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
        assert_eq!(registry.hear(&key, begun.as_bytes()).unwrap(), Heard::Told);
        assert_eq!(registry.hear(&key, begun.as_bytes()).unwrap(), Heard::Nothing);
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
            assert_eq!(registry.hear(&key, closed.as_bytes()).unwrap(), Heard::Changed);
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
                assert_eq!(registry.hear(&key, value.as_bytes()).unwrap(), Heard::Changed, "{value}");
                assert_eq!(text(registry.holder(&key).unwrap(), &key, Some(&value)), value);
            }
            assert_eq!(registry.hear(&key, begun.as_bytes()).unwrap(), Heard::Changed, "and back");
            assert_eq!(registry.holder(&key).unwrap().said, None);
        }
    }

    #[test]
    fn what_is_not_about_the_pod_counts_for_nothing_and_is_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let (mut registry, _) = Registry::open(dir.path(), "n").unwrap();
        let (key, begun) = told(&mut registry, endpoint("bb"));
        let labelled = begun.replace(r#""app":"web""#, r#""app":"web","quarantine":"true""#);
        assert_eq!(registry.hear(&key, labelled.as_bytes()).unwrap(), Heard::Changed);
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
            assert_eq!(registry.hear(&key, value.as_bytes()).unwrap(), Heard::Nothing, "{value}");
            assert_eq!(text(registry.holder(&key).unwrap(), &key, Some(&value)), labelled);
        }
    }

    #[test]
    fn a_pod_that_came_anew_just_like_the_one_before_is_what_its_own_add_says() {
        let dir = tempfile::tempdir().unwrap();
        let (mut registry, _) = Registry::open(dir.path(), "n").unwrap();
        let (key, begun) = told(&mut registry, endpoint("bb"));
        let labelled = begun.replace(r#""app":"web""#, r#""app":"web","quarantine":"true""#);
        registry.hear(&key, labelled.as_bytes()).unwrap();
        registry.leave(&endpoint("bb").id()).unwrap();
        // Etcd is away, so that it has not heard of the end: of the same container, address and MAC.
        let anew = AddEndpoint { labels: [("app".to_owned(), "db".to_owned())].into(), ..endpoint("bb") };
        registry.insert(anew, Phase::Present).unwrap();
        assert_eq!(registry.hear(&key, labelled.as_bytes()).unwrap(), Heard::Nothing);
        let record = registry.holder(&key).unwrap();
        assert_eq!(record.workload(&key, "n").labels["app"], "db");
        let written = text(record, &key, Some(&labelled));
        assert!(written.contains(r#""app":"db""#) && !written.contains("quarantine"), "{written}");
        assert_eq!(registry.hear(&key, written.as_bytes()).unwrap(), Heard::Told);
    }
}
