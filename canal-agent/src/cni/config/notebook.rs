//! The notes of flannel's plugin: for each container that it attached, the configuration of its delegate.
//! Ours are written as its own, so that a node that goes back to it knows its pods.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    super::{request::is_identifier, subnet::Subnet},
    host_local::{self, data_dir},
};
use crate::file;

/// A note is a configuration of a few hundred bytes.
const SIZE_MAX: u64 = 1 << 20;

/// Where the notes of a configuration are, and what is in them.
#[derive(Clone, PartialEq)]
pub struct Notebook {
    pub folder: PathBuf,
    /// What the configuration says of it. `None`: its delegate could not undo a pod of ours, and nothing is noted.
    pub(super) delegate: Option<Map<String, Value>>,
}

impl Notebook {
    /// `raw` is the whole configuration.
    pub(super) fn new(folder: PathBuf, raw: &Map<String, Value>) -> Self {
        let object = |key| raw.get(key).and_then(Value::as_object).cloned();
        let mut delegate = object("delegate").unwrap_or_default();
        let is_like_ours = delegate.get("type").and_then(Value::as_str).is_some_and(is_like_ours);
        for key in ["name", "cniVersion", "runtimeConfig"] {
            delegate.extend(raw.get(key).map(|value| (key.to_owned(), value.clone())));
        }
        delegate.insert("ipam".to_owned(), Value::Object(object("ipam").unwrap_or_default()));
        Self { folder, delegate: Some(delegate).filter(|_| is_like_ours) }
    }

    /// `None`: flannel's plugin has not attached this container, or it has been detached since. The error is a line for
    /// standard error.
    pub fn read(&self, container_id: &str) -> Result<Option<Stored>, String> {
        self.place(container_id).map_or(Ok(None), |path| Stored::load(&path))
    }

    /// `None`: no container has such an identifier.
    fn place(&self, container_id: &str) -> Option<PathBuf> {
        is_identifier(container_id).then(|| self.folder.join(container_id))
    }

    /// Before there is anything to undo, as flannel's plugin does. `None`: there is no note of this call. One that only its
    /// own plugin can use stays: another attachment of the container was made with it.
    pub fn write(&self, container_id: &str, subnet: &Subnet) -> io::Result<Option<Before>> {
        let (Some(delegate), Some(path)) = (&self.delegate, self.place(container_id)) else {
            return Ok(None);
        };
        let before = self.read(container_id).unwrap_or_default();
        if before.as_ref().is_some_and(|stored| !stored.is_like_ours()) {
            return Ok(None);
        }
        let note = Value::Object(completed(delegate.clone(), subnet)).to_string();
        file::replace_private(&path, note.as_bytes())?;
        Ok(Some(Before(before.map(|stored| stored.text))))
    }

    /// As it was before that.
    pub fn restore(&self, container_id: &str, before: &Before) -> io::Result<()> {
        match (&before.0, self.place(container_id)) {
            (Some(note), Some(path)) => file::replace_private(&path, note.as_bytes()),
            _ => self.remove(container_id),
        }
    }

    /// Removes the notes about pods of this network that were attached as ours are and are gone. A young one may be of an
    /// ADD that has just begun.
    pub fn clear(&self, network: &str, stays: impl Fn(&str) -> bool) -> io::Result<()> {
        let entries = match fs::read_dir(&self.folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        let mut failure = Ok(());
        for entry in entries {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let is_gone = matches!(self.read(&name), Ok(Some(stored)) if stored.network == network && stored.is_like_ours());
            // Beside the notes there may be what a plugin was writing when it was killed.
            if ((is_gone && !stays(&name)) || name.starts_with(file::TEMPORARY))
                && let Err(error) = file::remove_if_abandoned(&entry.path())
                && error.kind() != io::ErrorKind::NotFound
            {
                failure = Err(error);
            }
        }
        failure
    }

    /// It need not be there.
    pub fn remove(&self, container_id: &str) -> io::Result<()> {
        match self.place(container_id).map_or(Ok(()), fs::remove_file) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

/// What was noted of the container before: another attachment's.
pub struct Before(Option<String>);

/// The delegate's configuration may hold a token.
impl fmt::Debug for Notebook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notebook").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// What flannel's plugin adds to its delegate's configuration.
fn completed(mut delegate: Map<String, Value>, subnet: &Subnet) -> Map<String, Value> {
    delegate.entry("ipMasq").or_insert_with(|| (!subnet.masquerades).into());
    delegate.entry("mtu").or_insert_with(|| subnet.mtu.into());
    if let Some(ipam) = delegate.get_mut("ipam").and_then(Value::as_object_mut) {
        ipam.entry("type").or_insert_with(|| host_local::NAME.into());
        ipam.insert("ranges".to_owned(), json!([[{ "subnet": subnet.net }]]));
        let mut routes = ipam.get("routes").and_then(Value::as_array).cloned().unwrap_or_default();
        routes.extend(subnet.networks.iter().map(|network| json!({ "dst": network })));
        ipam.insert("routes".to_owned(), routes.into());
    }
    delegate
}

/// Whether a plugin of this name attaches pods as ours does.
fn is_like_ours(plugin: &str) -> bool {
    matches!(plugin, "calico" | "canal-cni")
}

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
        is_like_ours(&self.kind)
    }

    /// Where `host-local` keeps this container's lease, in the folder of its network.
    pub fn ipam_data_dir(&self) -> PathBuf {
        data_dir(&self.ipam)
    }

    fn load(path: &Path) -> Result<Option<Self>, String> {
        let wrong = |error: &dyn std::fmt::Display| {
            format!(
                "cannot use {}, which flannel's plugin wrote about this container: {error}",
                path.display()
            )
        };
        let file = match File::open(path) {
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
