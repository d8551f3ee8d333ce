//! ADD and DEL, step by step.

use std::{path::Path, time::Duration};

use super::{
    config::Config,
    error::{CniError, Code},
    interface::{self, HOST_MAC},
    ipam::Ipam,
    request::{Attachment, Environment},
    result::Made,
    subnet::Subnet,
    undo::Undo,
};
use crate::{
    api::{
        client::{Client, ClientError},
        wire::AddEndpoint,
    },
    netlink::{Netlink, Netns},
};

/// DEL must not wait long for an agent that does not answer: it will find out by itself.
const GOODBYE: Duration = Duration::from_secs(5);

/// Attaches the container, or leaves nothing behind.
pub(super) fn add(
    config: &Config,
    attachment: &Attachment,
    environment: &Environment,
) -> Result<Made, CniError> {
    let path = attachment.netns.as_deref().unwrap_or(Path::new(""));
    let pod = Netns::open(path).map_err(|e| {
        let msg = format!("there is no network namespace CNI_NETNS={}", path.display());
        CniError::new(Code::UnknownContainer, msg, e.to_string())
    })?;
    interface::check(&pod, attachment)?;
    let subnet = Subnet::load(&config.subnet_file)?;
    let mut undo = Undo::default();
    add_steps(config, attachment, environment, &pod, &subnet, &mut undo)
        .map_err(|error| error.with_leftovers(&undo.back()))
}

/// Each step that changes something notes first how to undo it.
fn add_steps<'a>(
    config: &'a Config,
    attachment: &'a Attachment,
    environment: &'a Environment,
    pod: &'a Netns,
    subnet: &Subnet,
    undo: &mut Undo<'a>,
) -> Result<Made, CniError> {
    let kernel = |e| CniError::kernel(&e);
    let ipam = Ipam::new(config, attachment, environment);
    let allocation = ipam.add(subnet.net)?;
    let net = subnet.net;
    undo.push(move || ipam.del(Some(net)).map_err(|e| e.to_string()));

    let mut host = Netlink::open().map_err(kernel)?;
    let host_interface = interface::make(&mut host, pod, attachment, subnet.mtu).map_err(kernel)?;
    let name = host_interface.clone();
    undo.push(move || host.delete_link(name.as_str()).map(drop).map_err(|e| e.to_string()));
    let mac = interface::configure(pod, attachment, allocation.ip).map_err(kernel)?;

    let client = Client::new(&config.socket);
    let endpoint = AddEndpoint {
        container_id: attachment.container_id.clone(),
        interface: attachment.interface.clone(),
        host_interface: host_interface.clone(),
        mac,
        addresses: vec![allocation.ip],
        network: config.network.clone(),
        labels: config.labels.clone(),
    };
    client.add_endpoint(&endpoint).map_err(|error| {
        // An agent that was silent, or refused half way, may have taken note of the endpoint.
        if !matches!(error, ClientError::Down { .. }) {
            let goodbye = client.clone().timeout(GOODBYE);
            undo.push(move || {
                let (id, interface) = (&attachment.container_id, &attachment.interface);
                goodbye.delete_endpoint(id, interface).map_err(|e| e.to_string())
            });
        }
        let code = if error.try_again() { Code::TryAgain } else { Code::AgentRefused };
        CniError::new(code, "the agent did not take the endpoint", error.to_string())
    })?;

    Ok(Made {
        host_interface,
        host_mac: HOST_MAC,
        interface: attachment.interface.clone(),
        mac,
        mtu: subnet.mtu,
        sandbox: pod.path().display().to_string(),
        ip: allocation.ip,
        dns: allocation.dns,
    })
}

/// Detaches the container. What is gone already is no error, and an agent that is down learns of it from the
/// missing interface. Only an address that cannot be given back is: nobody else would ever give it back.
pub(super) fn del(
    config: &Config,
    attachment: &Attachment,
    environment: &Environment,
) -> Result<(), CniError> {
    let client = Client::new(&config.socket).timeout(GOODBYE);
    if let Err(error) = client.delete_endpoint(&attachment.container_id, &attachment.interface) {
        note(&error.to_string());
    }
    let pod = attachment.netns.as_deref().and_then(|path| Netns::open(path).ok());
    let deleted = Netlink::open().and_then(|mut host| interface::delete(&mut host, pod.as_ref(), attachment));
    if let Err(error) = deleted {
        note(&error.to_string());
    }
    // The range does not matter for giving back.
    let subnet = Subnet::load(&config.subnet_file).ok().map(|s| s.net);
    Ipam::new(config, attachment, environment).del(subnet)
}

/// Standard error goes to the runtime's log.
fn note(what: &str) {
    eprintln!("canal-cni: DEL goes on: {what}");
}
