//! ADD, step by step.

use std::net::Ipv4Addr;

use serde_json::Value;

use super::{
    call::{Call, note, shown},
    error::{CniError, Code},
    interface::{self, Found, HOST_MAC, Plan},
    ipam::Ipam,
    names,
    readiness::wait_for_gates,
    result::Made,
    subnet::Subnet,
    undo::Undo,
    workload::Workload,
};
use crate::{
    api::{
        client::{Client, ClientError},
        wire::{AddEndpoint, EndpointReport, Standing},
    },
    endpoint::{goodbyes, mark},
    netlink::{Link, Netlink, Netns},
};

/// How often a name that was free may be taken by somebody else before the pair is made.
const TRIES: usize = 4;

/// Everything that is known before anything is touched.
struct Prepared<'a> {
    call: Call<'a>,
    pod: &'a Netns,
    client: Client,
    ipam: Ipam<'a>,
    subnet: Subnet,
    /// What `host-local` may choose from.
    ranges: Value,
    wish: Option<Ipv4Addr>,
    endpoint: AddEndpoint,
    plan: Plan,
    names: Vec<String>,
}

/// Attaches the container, or leaves nothing behind.
pub(super) fn add(call: Call<'_>) -> Result<Made, CniError> {
    let kernel = |e| CniError::kernel(&e);
    let pod = interface::open(call.attachment)?;
    // A second call for this pod waits until the first has ended, in whatever way.
    let _alone = pod.lock().map_err(kernel)?;
    match interface::look(&pod, &call.id(), names::prefix(call.environment)?).map_err(kernel)? {
        Found::Nothing => {}
        Found::Unmarked if was_cut_off(call)? => {}
        Found::Foreign | Found::Unmarked => {
            return Err(exists(call, "DEL the earlier attachment first, or choose another CNI_IFNAME"));
        }
        Found::Ours(ends) => {
            let (inside, host) = *ends;
            if let Some(made) = again(call, &pod, &inside, &host)? {
                return Ok(made);
            }
        }
    }
    let prepared = prepare(call, &pod)?;
    let mut undo = Undo::default();
    make(&prepared, &mut undo).map_err(|error| error.with_leftovers(&undo.back()))
}

fn exists(call: Call<'_>, hint: &str) -> CniError {
    let msg = format!("the container has an interface {} already", call.attachment.interface);
    CniError::new(Code::InterfaceExists, msg, hint)
}

/// Whether the agent knows of an ADD of this attachment that has not ended.
fn was_cut_off(call: Call<'_>) -> Result<bool, CniError> {
    let report = call.client().endpoint(&call.id()).map_err(|e| no_agent(&e))?;
    Ok(report.is_some_and(|report| report.standing == Standing::Begun))
}

/// The same answer as the first time, if that ADD went through; `None`: it was cut off, and what it left is removed.
fn again(call: Call<'_>, pod: &Netns, inside: &Link, host: &Link) -> Result<Option<Made>, CniError> {
    let kernel = |e| CniError::kernel(&e);
    let client = call.client();
    let report = client.endpoint(&call.id()).map_err(|e| no_agent(&e))?;
    let Some(EndpointReport { endpoint, reason, .. }) =
        report.filter(|r| !matches!(r.standing, Standing::Begun | Standing::Leaving))
    else {
        return Ok(None);
    };
    let whole = Some(endpoint).filter(|e| e.host_interface == host.name && e.mac == inside.mac && inside.up);
    let (Some(endpoint), Some(mac)) = (whole, inside.mac) else { return Ok(None) };
    let [ip] = endpoint.addresses[..] else { return Ok(None) };
    // The agent knows it from etcd alone, having lost its own record: it is made anew, with one.
    if endpoint.network.is_empty() {
        return Ok(None);
    }
    if endpoint.network != call.config.network {
        return Err(exists(call, &format!("it is in network {}: DEL it there first", endpoint.network)));
    }
    if let Some(other) = call.config.wishes.ip.filter(|wish| *wish != ip) {
        return Err(exists(call, &format!("its address is {ip}, not {other}: DEL it first")));
    }
    let mut inner = Netlink::open_in(pod).map_err(kernel)?;
    let addresses = inner.addresses(Some(inside.index)).map_err(kernel)?;
    if !addresses.iter().any(|address| address.net.addr() == ip) {
        return Ok(None);
    }
    if let Some(reason) = reason {
        // It stays as it is: a pod that lives is not undone by a question.
        return Err(CniError::new(Code::TryAgain, "the endpoint is there, and not in force", reason));
    }
    let subnet = Subnet::load(&call.config.subnet_file)?;
    Ok(Some(Made {
        host_interface: host.name.clone(),
        host_mac: host.mac.unwrap_or(HOST_MAC),
        interface: call.attachment.interface.clone(),
        mac,
        mtu: inside.mtu,
        sandbox: shown(call.attachment.netns.as_deref()),
        ip,
        routes: call.config.routes.on(&subnet)?,
        dns: endpoint.dns,
    }))
}

/// Reads and checks all there is, from near to far.
fn prepare<'a>(call: Call<'a>, pod: &'a Netns) -> Result<Prepared<'a>, CniError> {
    let config = call.config;
    let subnet = Subnet::load(&config.subnet_file)?;
    let ranges = config.range.within(subnet.net)?;
    let mtu = config.mtu_on(&subnet)?;
    let routes = config.routes.on(&subnet)?;
    let names = names::names(call.environment, call.attachment, call.arguments.pod.as_ref())?;
    let ipam = Ipam::find(call)?;
    let routes = interface::room(pod, &call.id(), routes)?;
    wait_for_gates(&config.readiness_gates)?;
    let workload = Workload::find(call)?;
    let wishes = workload.wishes.or(config.wishes);
    if let Some(ip) = wishes.ip.filter(|ip| !subnet.net.contains(ip)) {
        let msg = format!("the address {ip} is not inside this node's subnet {}", subnet.net);
        let hint = "other nodes send this node only what is for its subnet: ask for another, or for none";
        return Err(CniError::new(Code::InvalidConfig, msg, hint));
    }
    let endpoint = AddEndpoint {
        container_id: call.attachment.container_id.clone(),
        interface: call.attachment.interface.clone(),
        network: config.network.clone(),
        labels: workload.labels,
        profiles: workload.profiles,
        pod: workload.pod,
        node: config.node_name.resolve()?,
        leases: Some(call.leases().folder().to_owned()),
        attempt: rand::random(),
        ..AddEndpoint::default()
    };
    // The address is known later.
    let address = Ipv4Addr::UNSPECIFIED;
    let plan = Plan { mtu, mac: wishes.mac, address, routes, ip_forwarding: config.ip_forwarding };
    Ok(Prepared {
        call,
        pod,
        client: call.client(),
        ipam,
        subnet,
        ranges,
        wish: wishes.ip,
        endpoint,
        plan,
        names,
    })
}

/// Each step that changes something notes first how to undo it.
fn make<'a>(prepared: &'a Prepared<'a>, undo: &mut Undo<'a>) -> Result<Made, CniError> {
    let kernel = |e| CniError::kernel(&e);
    let Prepared { call, pod, client, ipam, .. } = prepared;
    let id = call.id();
    let mut host = Netlink::open().map_err(kernel)?;
    let mut endpoint = prepared.endpoint.clone();
    endpoint.host_interface = interface::choose_name(&mut host, &prepared.names, &id).map_err(kernel)?;
    let goodbye = call.goodbye();
    // From here on the agent undoes what this call cannot.
    let begun = client.begin_endpoint(&endpoint);
    // One that was silent may have taken note of it.
    if !matches!(begun, Err(ClientError::Down { .. })) {
        let withdrawn = id.clone();
        undo.push(move || client.delete_endpoint(&withdrawn, &goodbye).map_err(|e| e.to_string()));
    }
    begun.map_err(|e| no_agent(&e))?;
    if let Err(error) = goodbyes::forget(&call.goodbyes(), &id) {
        note(&format!("cannot remove the note of an earlier DEL: {error}"));
    }
    if let Some(before) = call.store(&prepared.subnet)? {
        undo.push(move || call.unstore(&before));
    }

    let prefix = names::prefix(call.environment)?;
    // Of an earlier life of this container, in whatever namespace.
    interface::delete(&mut host, Some(pod), &id, |link| link.name.starts_with(&*prefix)).map_err(kernel)?;
    let allocation = ipam.add(prepared.subnet.net, &prepared.ranges, prepared.wish)?;
    undo.push(move || ipam.del().map_err(|e| e.to_string()));

    let plan = Plan { address: allocation.ip, ..prepared.plan.clone() };
    let mut tries = 0..TRIES;
    loop {
        let names = (endpoint.host_interface.as_str(), id.interface.as_str());
        if interface::make(&mut host, pod, names, &plan, &mark::mark(&endpoint)).map_err(kernel)? {
            break;
        }
        if tries.next().is_none() {
            let msg = "others keep taking the names for the host's end";
            return Err(CniError::new(Code::TryAgain, msg, "too many containers come at once"));
        }
        endpoint.host_interface = interface::choose_name(&mut host, &prepared.names, &id).map_err(kernel)?;
        client.begin_endpoint(&endpoint).map_err(|e| no_agent(&e))?;
    }
    // By its mark: in the meantime the name may be another's.
    let made = id.clone();
    undo.push(move || interface::delete_marked(&mut host, &made).map(drop).map_err(|e| e.to_string()));
    let mac = interface::configure(pod, &id.interface, &plan).map_err(kernel)?;

    endpoint.mac = Some(mac);
    endpoint.addresses = vec![allocation.ip];
    endpoint.dns = allocation.dns;
    client.add_endpoint(&endpoint).map_err(|e| no_agent(&e))?;
    Ok(Made {
        host_interface: endpoint.host_interface,
        host_mac: HOST_MAC,
        interface: id.interface,
        mac,
        mtu: plan.mtu,
        sandbox: pod.path().display().to_string(),
        ip: allocation.ip,
        routes: plan.routes,
        dns: endpoint.dns,
    })
}

fn no_agent(error: &ClientError) -> CniError {
    let code = if error.try_again() { Code::TryAgain } else { Code::AgentRefused };
    CniError::new(code, "the agent did not take the endpoint", error.to_string())
}
