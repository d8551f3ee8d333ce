//! One call of the runtime about one attachment, with all that was read for it.

use std::path::{Path, PathBuf};

use super::{
    config::{Before, Config, Stored},
    error::{CniError, Code, one_line},
    request::{Arguments, Attachment, Environment},
    subnet::Subnet,
};
use crate::{
    api::{
        client::Client,
        wire::{AttachmentId, Goodbye},
    },
    endpoint::{Leases, goodbyes},
};

#[derive(Debug, Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) config: &'a Config,
    pub(super) attachment: &'a Attachment,
    pub(super) arguments: &'a Arguments,
    pub(super) environment: &'a Environment,
}

impl Call<'_> {
    pub(super) fn id(&self) -> AttachmentId {
        AttachmentId::new(&self.attachment.container_id, &self.attachment.interface)
    }

    pub(super) fn client(&self) -> Client {
        Client::new(&self.config.socket)
    }

    /// `host-local`'s notes of the network.
    pub(super) fn leases(&self) -> Leases {
        Leases::of_network(&self.config.ipam_data_dir(), &self.config.network)
    }

    /// Without the node's name if that cannot be learned any more: the agent's own is as likely.
    pub(super) fn goodbye(&self) -> Goodbye {
        Goodbye {
            network: self.config.network.clone(),
            node: self.config.node_name.resolve().unwrap_or_default(),
            leases: Some(self.leases().folder().to_owned()),
        }
    }

    /// What flannel's plugin, or ours in its place, noted when it made this pod.
    pub(super) fn stored(&self) -> Result<Option<Stored>, String> {
        match &self.config.notebook {
            Some(notebook) => notebook.read(&self.attachment.container_id),
            None => Ok(None),
        }
    }

    /// `None`: there is no note of this call.
    pub(super) fn store(&self, subnet: &Subnet) -> Result<Option<Before>, CniError> {
        let Some(notebook) = &self.config.notebook else { return Ok(None) };
        notebook.write(&self.attachment.container_id, subnet).map_err(|error| {
            let msg = format!(
                "cannot note the container in {}, as flannel's plugin does",
                notebook.folder.display()
            );
            CniError::new(Code::Io, msg, format!("{error}: make room there, or set `dataDir`"))
        })
    }

    /// The ADD that noted it has failed.
    pub(super) fn unstore(&self, before: &Before) -> Result<(), String> {
        let Some(notebook) = &self.config.notebook else { return Ok(()) };
        let restored = notebook.restore(&self.attachment.container_id, before);
        restored.map_err(|error| format!("cannot undo flannel's note of the container: {error}"))
    }

    /// That note is not needed any more.
    pub(super) fn forget_stored(&self) -> Result<(), String> {
        let Some(notebook) = &self.config.notebook else { return Ok(()) };
        let removed = notebook.remove(&self.attachment.container_id);
        removed.map_err(|error| format!("cannot remove flannel's note of the container: {error}"))
    }

    /// Where the agent looks for what it was not there to hear.
    pub(super) fn goodbyes(&self) -> PathBuf {
        goodbyes::folder(&self.config.socket)
    }
}

/// A line on standard error, which runtimes put into their logs.
pub(super) fn note(text: &str) {
    eprintln!("canal-cni: {}", one_line(text));
}

/// For messages.
pub(super) fn shown(path: Option<&Path>) -> String {
    path.map(|path| path.display().to_string()).unwrap_or_default()
}
