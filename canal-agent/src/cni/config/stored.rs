//! What flannel's own plugin noted for a container that it attached: the configuration of its delegate. It is only read.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{super::request::is_identifier, host_local::data_dir};

/// A note is a configuration of a few hundred bytes.
const SIZE_MAX: u64 = 1 << 20;

/// A container of before.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Stored {
    #[serde(rename = "name")]
    pub network: String,
    /// For `host-local`, with its ranges.
    #[serde(default)]
    pub ipam: Map<String, Value>,
    /// The plugin that made the interface.
    #[serde(rename = "type", default = "bridge")]
    pub kind: String,
    /// The whole, as the plugin of that type was told it.
    #[serde(skip)]
    pub text: String,
}

fn bridge() -> String {
    "bridge".to_owned()
}

impl Stored {
    /// Whether the pod was attached as ours are.
    pub fn is_like_ours(&self) -> bool {
        matches!(self.kind.as_str(), "calico" | "canal-cni")
    }

    /// Where `host-local` keeps this container's lease, in the folder of its network.
    pub fn ipam_data_dir(&self) -> PathBuf {
        data_dir(&self.ipam)
    }

    /// `None`: flannel's plugin has not attached this container, or it has been detached since. The error is a line for
    /// standard error. `container_id` has been checked.
    pub fn load(data_dir: &Path, container_id: &str) -> Result<Option<Self>, String> {
        let path = data_dir.join(container_id);
        let wrong = |error: &dyn std::fmt::Display| {
            format!(
                "cannot use {}, which flannel's plugin wrote about this container: {error}",
                path.display()
            )
        };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(wrong(&e)),
        };
        let mut text = Vec::new();
        file.take(SIZE_MAX).read_to_end(&mut text).map_err(|e| wrong(&e))?;
        let object: Map<String, Value> = serde_json::from_slice(&text).map_err(|e| wrong(&e))?;
        let mut stored: Self =
            serde_json::from_value(Value::Object(object.clone())).map_err(|e| wrong(&e))?;
        stored.text = Value::Object(object).to_string();
        // They become the names of a folder and of a program.
        if !is_identifier(&stored.network) {
            return Err(wrong(&"its `name` is no network's"));
        }
        if !is_identifier(&stored.kind) || stored.kind == "flannel" {
            return Err(wrong(&"its `type` is no plugin's that could have made a pod"));
        }
        Ok(Some(stored))
    }
}
