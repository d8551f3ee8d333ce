//! CHECK: what is not as ADD made it.

use std::{
    thread,
    time::{Duration, Instant},
};

use ipnet::Ipv4Net;
use serde_json::Value;

use super::{
    call::Call,
    error::{CniError, Code},
    interface::{self, GATEWAY, are_ends},
    result::Told,
    subnet::Subnet,
};
use crate::{
    api::wire::Standing,
    endpoint::mark,
    netlink::{Link, Netlink, Netns, Route},
};

/// How long what is under way may take to be done.
const CONVERGES: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);

pub(super) fn check(call: Call<'_>) -> Result<(), CniError> {
    let Some(result) = &call.config.prev_result else {
        let hint = "CHECK compares with the result of ADD, which the runtime gives as `prevResult`";
        return Err(CniError::new(Code::InvalidConfig, "`prevResult` is missing", hint));
    };
    // Pods of flannel's plugin with a bridge are its own: that one checks nothing.
    if call.stored().is_ok_and(|stored| stored.is_some_and(|stored| !stored.is_like_ours())) {
        return Ok(());
    }
    let told = told(call, result)?;
    let pod = interface::open(call.attachment)?;
    let mut drift = inside(call, &pod, &told)?;
    drift.extend(noted(call, &told));
    let unsettled = match enforced(call, &told) {
        Enforced::Yes => None,
        Enforced::No(problem) => {
            drift.push(problem);
            None
        }
        Enforced::Unknown(reason) => Some(reason),
    };
    if drift.is_empty() {
        return match unsettled {
            None => Ok(()),
            Some(reason) => Err(CniError::new(Code::TryAgain, "the agent cannot tell", reason)),
        };
    }
    let msg = format!("{} is not as it was made", call.id());
    Err(CniError::new(Code::Drifted, msg, drift.join("; ")))
}

fn told(call: Call<'_>, result: &Value) -> Result<Told, CniError> {
    Told::of(result, &call.attachment.interface).ok_or_else(|| {
        let msg = format!("`prevResult` has no interface {} of a container", call.attachment.interface);
        CniError::new(Code::InvalidConfig, msg, "it is the result of another attachment, or no result of ADD")
    })
}

/// Interface, address and routes in the pod, and the pair's other end.
fn inside(call: Call<'_>, pod: &Netns, told: &Told) -> Result<Vec<String>, CniError> {
    let kernel = |e| CniError::kernel(&e);
    let name = &call.attachment.interface;
    let mut inside = Netlink::open_in(pod).map_err(kernel)?;
    let Some(link) = inside.link_by_name(name).map_err(kernel)? else {
        return Ok(vec![format!("the container has no interface {name}")]);
    };
    let mut drift = Vec::new();
    if !link.up {
        drift.push(format!("{name} is down"));
    }
    if let (Some(wanted), Some(is)) = (told.mac, link.mac)
        && wanted != is
    {
        drift.push(format!("{name} has the MAC {is} instead of {wanted}"));
    }
    let carried = Subnet::load(&call.config.subnet_file)?.mtu;
    if link.mtu > carried {
        drift.push(format!("{name} has an MTU of {}, and the pod network carries {carried}", link.mtu));
    }
    let addresses = inside.addresses(Some(link.index)).map_err(kernel)?;
    for wanted in &told.addresses {
        if !addresses.iter().any(|address| address.net.addr() == wanted.addr()) {
            drift.push(format!("{name} has lost the address {}", wanted.addr()));
        }
    }
    let routes = inside.routes().map_err(kernel)?;
    let has = |dst: Ipv4Net, by: fn(&Route) -> bool| {
        routes.iter().any(|route| route.dst == dst && route.oif == Some(link.index) && by(route))
    };
    if !has(Ipv4Net::from(GATEWAY), |route| route.gateway.is_none()) {
        drift.push(format!("the route to {GATEWAY} is missing"));
    }
    for dst in told.routes.iter().filter(|dst| !has(**dst, |route| route.gateway == Some(GATEWAY))) {
        drift.push(format!("the route to {dst} by {GATEWAY} is missing"));
    }
    drift.extend(other_end(call, told, &link)?);
    Ok(drift)
}

fn other_end(call: Call<'_>, told: &Told, inside: &Link) -> Result<Option<String>, CniError> {
    let links = Netlink::open().and_then(|mut host| host.links()).map_err(|e| CniError::kernel(&e))?;
    let Some(host) = links.iter().find(|link| are_ends(link, inside)) else {
        return Ok(Some(format!("{} is no end of a pair on this host", inside.name)));
    };
    // Calico's plugin marks nothing.
    if host.alias.as_deref().is_some_and(|a| mark::read(a).is_some() && !mark::is_of(Some(a), &call.id())) {
        return Ok(Some(format!("{} is marked as another container's", host.name)));
    }
    if !told.hosts.is_empty() && !told.hosts.contains(&host.name) {
        return Ok(Some(format!("its end on the host is {}, not {}", host.name, told.hosts.join(" or "))));
    }
    Ok(None)
}

/// The address is still the container's.
fn noted(call: Call<'_>, told: &Told) -> Vec<String> {
    let mut drift = Vec::new();
    for address in &told.addresses {
        match call.leases().read(address.addr()) {
            Ok(Some(lease)) if lease.is_of(&call.id()) => {}
            Ok(Some(lease)) => drift.push(format!(
                "host-local has given {} to container {}",
                address.addr(),
                lease.container_id
            )),
            Ok(None) => drift.push(format!("host-local takes {} to be free", address.addr())),
            Err(error) => drift.push(format!("cannot read host-local's notes: {error}")),
        }
    }
    drift
}

/// Whether its policy is in force.
enum Enforced {
    Yes,
    No(String),
    /// The agent is away or has other trouble; the pod is as it was.
    Unknown(String),
}

fn enforced(call: Call<'_>, told: &Told) -> Enforced {
    let end = Instant::now() + CONVERGES;
    loop {
        let found = match call.client().endpoint(&call.id()) {
            Err(error) => Enforced::Unknown(error.to_string()),
            Ok(None) => Enforced::No("the agent does not know the endpoint".to_owned()),
            Ok(Some(report)) if report.standing == Standing::Unsettled => {
                Enforced::Unknown(report.reason.unwrap_or_default())
            }
            Ok(Some(report)) if report.standing != Standing::Ready => Enforced::No(format!(
                "the agent has it as {}: {}",
                report.standing,
                report.reason.unwrap_or_default()
            )),
            Ok(Some(report)) => {
                let missing = told.addresses.iter().find(|a| !report.endpoint.addresses.contains(&a.addr()));
                missing.map_or(Enforced::Yes, |address| {
                    Enforced::No(format!("the agent does not know its address {}", address.addr()))
                })
            }
        };
        if matches!(found, Enforced::Yes) || Instant::now() > end {
            return found;
        }
        thread::sleep(PAUSE);
    }
}
