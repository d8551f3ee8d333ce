//! GC: everything of the network that the runtime does not list goes.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use super::{
    config::Config,
    error::{CniError, Code},
};
use crate::{
    api::{
        client::Client,
        wire::{AttachmentId, Collect},
    },
    endpoint::{Leases, host_local::Lease},
};

/// How long `host-local` may be at work in its folder.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);

/// The agent goes first: an address must not be given away while its old endpoint is in force.
pub(super) fn gc(config: &Config) -> Result<(), CniError> {
    let Some(valid) = &config.valid_attachments else {
        let hint = "without the runtime's list nothing is known to be garbage";
        return Err(CniError::new(Code::InvalidConfig, "`cni.dev/valid-attachments` is missing", hint));
    };
    let valid: BTreeSet<AttachmentId> =
        valid.iter().map(|one| AttachmentId::new(&one.container_id, &one.interface)).collect();
    let leases = Leases::of_network(&config.ipam_data_dir(), &config.network);
    let is_stale = |lease: &Lease| !valid.iter().any(|id| lease.is_of(id));
    let unreadable = |error: std::io::Error| {
        let msg = format!("cannot read host-local's notes in {}", leases.folder().display());
        CniError::new(Code::Io, msg, error.to_string())
    };
    let taken = leases.list().map_err(unreadable)?;
    // Pods of flannel's plugin with a bridge go by that plugin only.
    let is_anothers = |container: &str| {
        let stored = config.notebook.as_ref().map(|notebook| notebook.read(container));
        matches!(stored, Some(Ok(Some(stored))) if !stored.is_like_ours())
    };
    let is_stale = |lease: &Lease| is_stale(lease) && !is_anothers(&lease.container_id);
    let stale = taken.iter().filter(|lease| is_stale(lease));
    let asked = Collect {
        network: config.network.clone(),
        stale: stale
            .map(|lease| AttachmentId::new(&lease.container_id, lease.interface.as_deref().unwrap_or("eth0")))
            .collect(),
        valid: valid.clone(),
        node: config.node_name.resolve()?,
        leases: Some(leases.folder().to_owned()),
    };
    let collected = Client::new(&config.socket).collect(&asked).map_err(|error| {
        let code = if error.try_again() { Code::TryAgain } else { Code::AgentRefused };
        CniError::new(code, "the agent did not remove anything", error.to_string())
    })?;
    for removed in &collected.removed {
        super::call::note(&format!("GC removed {removed}"));
    }
    let mut problems = collected.problems;
    // What has come since is not on the list for another reason.
    let goes = |lease: &Lease| {
        taken.contains(lease) && is_stale(lease) && !collected.kept.iter().any(|id| lease.is_of(id))
    };
    problems.extend(release(&leases, goes).err().map(|e| e.to_string()));
    if let Some(notebook) = &config.notebook {
        let stays =
            |container: &str| valid.iter().chain(&collected.kept).any(|id| id.container_id == container);
        problems.extend(notebook.clear(&config.network, stays).err().map(|e| e.to_string()));
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(CniError::new(Code::GarbageLeft, "not everything could be removed", problems.join("; ")))
}

fn release(leases: &Leases, is_stale: impl Fn(&Lease) -> bool) -> std::io::Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        match leases.release_where(&[], &is_stale) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < end => {
                thread::sleep(PAUSE);
            }
            other => return other.map(drop),
        }
    }
}
