//! One call of the runtime about one attachment, with all that was read for it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    config::{Config, Stored},
    error::one_line,
    request::{Arguments, Attachment, Environment},
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

    /// What flannel's own plugin noted when it made this pod.
    pub(super) fn stored(&self) -> Result<Option<Stored>, String> {
        match &self.config.flannel_data_dir {
            Some(dir) => Stored::load(dir, &self.attachment.container_id),
            None => Ok(None),
        }
    }

    /// That note is not needed any more.
    pub(super) fn forget_stored(&self) -> io::Result<()> {
        let Some(dir) = &self.config.flannel_data_dir else { return Ok(()) };
        match fs::remove_file(dir.join(&self.attachment.container_id)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
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
