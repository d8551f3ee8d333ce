//! DEL, step by step. What is gone already is no error, and what cannot be done now is left to the agent, which finds the
//! attachment in its records, or the word that is left for it.

use std::{collections::BTreeMap, time::Duration};

use super::{
    call::{Call, note},
    config::Stored,
    error::{CniError, Code},
    exec, interface,
    ipam::Ipam,
};
use crate::{
    endpoint::goodbyes,
    netlink::{Netlink, Netns},
};

/// DEL must not wait long for an agent that does not answer.
const GOODBYE: Duration = Duration::from_secs(5);
/// Plugins whose pods are attached as ours are.
const LIKE_OURS: [&str; 2] = ["calico", "canal-cni"];

pub(super) fn del(call: Call<'_>) -> Result<(), CniError> {
    let stored = call.stored().unwrap_or_else(|problem| {
        goes_on(&problem);
        None
    });
    let Some(stored) = stored else {
        detach(call);
        return Ok(());
    };
    if LIKE_OURS.contains(&stored.kind.as_str()) {
        // Network and addresses are those that the pod was made with.
        let mut config = call.config.clone();
        config.network.clone_from(&stored.network);
        config.ipam.extend(stored.ipam.into_iter().filter(|(key, _)| key == "dataDir"));
        detach(Call { config: &config, ..call });
    } else {
        another(call, &stored)?;
    }
    if let Err(error) = call.forget_stored() {
        goes_on(&format!("cannot remove flannel's note of the container: {error}"));
    }
    Ok(())
}

fn detach(call: Call<'_>) {
    let id = call.id();
    let heard = call.goodbye().map_err(|error| error.to_string()).and_then(|goodbye| {
        call.client().timeout(GOODBYE).delete_endpoint(&id, &goodbye).map_err(|error| {
            let unheard = error.to_string();
            match goodbyes::leave(&call.goodbyes(), &id, &goodbye) {
                Ok(()) => unheard,
                Err(error) => format!("{unheard}; nor can word be left for it: {error}"),
            }
        })
    });
    if let Err(error) = heard {
        goes_on(&error);
    }
    let pod = call.attachment.netns.as_deref().and_then(|path| Netns::open(path).ok());
    let deleted = Netlink::open().and_then(|mut host| interface::delete(&mut host, pod.as_ref(), &id));
    if let Err(error) = deleted {
        goes_on(&error.to_string());
    }
    if let Err(error) = Ipam::find(call).and_then(|ipam| ipam.del()) {
        // Its notes say all that is needed.
        match call.leases().release(&id, &[]) {
            Ok(_) => goes_on(&format!("the address was given back without host-local: {error}")),
            Err(also) => goes_on(&format!("{error}; {also}; the agent gives the address back")),
        }
    }
}

/// The pod was made by a plugin that only itself can undo, such as `bridge`.
fn another(call: Call<'_>, stored: &Stored) -> Result<(), CniError> {
    let program = exec::find(&stored.kind, &call.attachment.path)?;
    let environment: BTreeMap<_, _> =
        call.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let output = exec::run(&program, &environment, stored.text.clone())?;
    if output.status.success() {
        return Ok(());
    }
    let msg = format!("{} failed (DEL), with the configuration that flannel's plugin noted", stored.kind);
    Err(CniError::new(Code::PluginFailed, msg, exec::said(&output)))
}

/// Standard error goes to the runtime's log.
fn goes_on(what: &str) {
    note(&format!("DEL goes on: {what}"));
}
