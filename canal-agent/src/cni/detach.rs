//! DEL, step by step. What is gone already is no error, and what cannot be done now is left to the agent, which finds the
//! attachment in its records, or the word that is left for it.

use std::{collections::BTreeMap, path::Path, time::Duration};

use super::{
    call::{Call, note},
    config::{Config, Stored},
    error::{CniError, Code},
    exec, interface,
    ipam::Ipam,
    names::{self, HOST_PREFIX},
};
use crate::{
    api::client::ClientError,
    endpoint::{Leases, goodbyes, host_local::Lease},
    netlink::{Link, Netlink, Netns},
};

/// DEL must not wait long for an agent that does not answer.
const GOODBYE: Duration = Duration::from_secs(5);

pub(super) fn del(call: Call<'_>) -> Result<(), CniError> {
    let stored = call.stored().unwrap_or_else(|problem| {
        goes_on(&problem);
        None
    });
    let Some(stored) = stored.filter(|stored| !is_of_another_network(call, stored)) else {
        detach(call);
        return Ok(());
    };
    if stored.is_like_ours() {
        detach(Call { config: &made_with(call, stored), ..call });
    } else if let Ok(program) = exec::find(&stored.kind, &call.attachment.path) {
        another(call, &stored, &program)?;
    } else {
        goes_on(&format!("{}, which made the pod, is not there: its interface and address go", stored.kind));
        let config = &made_with(call, stored);
        let call = Call { config, ..call };
        let pod = call.attachment.netns.as_deref().and_then(|path| Netns::open(path).ok());
        if let Some(pod) = pod.filter(|pod| has_our_address(call, pod)) {
            interface::delete_inside(&pod, &call.id()).unwrap_or_else(|error| goes_on(&error.to_string()));
        }
        detach(call);
    }
    call.forget_stored().unwrap_or_else(|problem| goes_on(&problem));
    Ok(())
}

/// There is one note for a container, and it may be of another network's attachment: the notes of `host-local` tell whose
/// address is from where. If they say nothing, flannel's note counts.
fn is_of_another_network(call: Call<'_>, stored: &Stored) -> bool {
    let id = call.id();
    let has =
        |leases: &Leases, test: &dyn Fn(&Lease) -> bool| leases.list().is_ok_and(|all| all.iter().any(test));
    let of_this = |lease: &Lease| lease.is_of(&id);
    let of_container = |lease: &Lease| lease.container_id == id.container_id;
    let theirs = Leases::of_network(&stored.ipam_data_dir(), &stored.network);
    stored.network != call.config.network
        && !has(&theirs, &of_this)
        && (has(&call.leases(), &of_this) || has(&theirs, &of_container))
}

/// Network and addresses are those that the pod was made with.
fn made_with(call: Call<'_>, stored: Stored) -> Config {
    let mut config = call.config.clone();
    config.network = stored.network;
    config.ipam.extend(stored.ipam.into_iter().filter(|(key, _)| key == "dataDir"));
    config
}

fn detach(call: Call<'_>) {
    let id = call.id();
    let goodbye = call.goodbye();
    if let Err(error) = call.client().timeout(GOODBYE).delete_endpoint(&id, &goodbye) {
        goes_on(&error.to_string());
        // What is refused for good is no better heard later.
        let is_refused = matches!(&error, ClientError::Refused(refusal) if !refusal.try_again);
        if !is_refused && let Err(error) = goodbyes::leave(&call.goodbyes(), &id, &goodbye) {
            goes_on(&format!("no word can be left for the agent: {error}"));
        }
    }
    let pod = call.attachment.netns.as_deref().and_then(|path| Netns::open(path).ok());
    let prefix = names::prefix(call.environment).unwrap_or(HOST_PREFIX);
    let is_ours = pod.as_ref().is_some_and(|pod| has_our_address(call, pod));
    let may_go = |link: &Link| link.name.starts_with(prefix) && is_ours;
    let deleted =
        Netlink::open().and_then(|mut host| interface::delete(&mut host, pod.as_ref(), &id, may_go));
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

/// Whether what is in the pod bears the address that was given to this container, or none yet though one was given: a path
/// of /proc may have become another pod's.
fn has_our_address(call: Call<'_>, pod: &Netns) -> bool {
    let (id, leases) = (call.id(), call.leases());
    match interface::addresses(pod, &id).as_slice() {
        [] => leases.list().is_ok_and(|all| all.iter().any(|lease| lease.is_of(&id))),
        some => some.iter().all(|address| {
            leases.read(*address).is_ok_and(|lease| lease.is_some_and(|lease| lease.is_of(&id)))
        }),
    }
}

/// The pod was made by a plugin that only itself can undo, such as `bridge`.
fn another(call: Call<'_>, stored: &Stored, program: &Path) -> Result<(), CniError> {
    let environment: BTreeMap<_, _> =
        call.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let output = exec::run(program, &environment, stored.text.clone())?;
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
