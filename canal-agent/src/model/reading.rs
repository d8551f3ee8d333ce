//! The outcome of reading a value, and the envelope around every value.

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::Labels;

/// What could be made of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading<T> {
    Good(T),
    /// In force, read closed where it could not be understood; the text says where.
    Partly(T, String),
    /// Not in force: the last good version stays. Without one, `stand_in` takes the place.
    Bad {
        reason: String,
        stand_in: Option<T>,
    },
}

impl<T> Reading<T> {
    pub(super) fn bad(reason: impl Into<String>) -> Self {
        Self::Bad { reason: reason.into(), stand_in: None }
    }

    /// `Good` if nothing was found fault with.
    pub(super) fn with_faults(value: T, faults: &[String]) -> Self {
        if faults.is_empty() { Self::Good(value) } else { Self::Partly(value, faults.join("; ")) }
    }
}

/// What every value is wrapped in. Kind, version and name are the key's business; unknown fields are nobody's.
#[derive(Deserialize)]
pub(super) struct Envelope {
    metadata: Option<Metadata>,
    spec: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    labels: Option<Value>,
    // What hangs on these is not worth an object that cannot be used.
    annotations: Option<Value>,
    creation_timestamp: Option<Value>,
}

impl Envelope {
    pub(super) fn parse(value: &[u8]) -> Result<Self, String> {
        let envelope: Self = serde_json::from_slice(value).map_err(|e| format!("not a resource: {e}"))?;
        match envelope.spec {
            // An object without one says what an empty one says; what has no metadata either is no object.
            None | Some(Value::Null) if envelope.metadata.is_some() => {
                Ok(Self { spec: Some(Value::Object(Map::new())), ..envelope })
            }
            Some(Value::Object(_)) => Ok(envelope),
            None | Some(Value::Null) => Err("has neither metadata nor spec".to_owned()),
            Some(_) => Err("spec is not an object".to_owned()),
        }
    }

    /// For those kinds whose labels mean something.
    pub(super) fn labels(&self) -> Result<Labels, String> {
        let labels = self.metadata.as_ref().and_then(|metadata| metadata.labels.clone());
        let labels: Option<Labels> = serde_json::from_value(labels.unwrap_or(Value::Null))
            .map_err(|e| format!("metadata.labels: {e}"))?;
        Ok(labels.unwrap_or_default())
    }

    /// Those that are text.
    pub(super) fn annotations(&self) -> Labels {
        let annotations =
            self.metadata.as_ref().and_then(|metadata| metadata.annotations.as_ref()?.as_object());
        let text = |(name, value): (&String, &Value)| Some((name.clone(), value.as_str()?.to_owned()));
        annotations.into_iter().flatten().filter_map(text).collect()
    }

    /// Empty if there is none.
    pub(super) fn created(&self) -> String {
        let created =
            self.metadata.as_ref().and_then(|metadata| metadata.creation_timestamp.as_ref()?.as_str());
        created.unwrap_or_default().to_owned()
    }

    /// The name that the author typed, where a client stored the object under another: Calico 3.29.4 and later
    /// remember it in an annotation.
    pub(super) fn typed_name(&self) -> Option<String> {
        let annotation = self.metadata.as_ref()?.annotations.as_ref()?.get("projectcalico.org/metadata")?;
        let metadata: Value = serde_json::from_str(annotation.as_str()?).ok()?;
        Some(metadata.get("name")?.as_str()?.to_owned()).filter(|name| !name.is_empty())
    }

    pub(super) fn spec<S: DeserializeOwned>(&self) -> Result<S, String> {
        let spec = self.spec.clone().unwrap_or_default();
        serde_json::from_value(spec).map_err(|e| format!("spec: {e}"))
    }

    /// A field of the spec that may be of the wrong type.
    pub(super) fn field<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_value(self.spec.as_ref()?.get(name)?.clone()).ok()
    }
}
