//! Stepping into flanneld's place on a node with pods in it.
//!
//! Owns: the order. Our device waits, complete but down, while flannel's holds the UDP port; programs, peers, hooks and policy come
//! first, and carry the pods' packets without either device. Then the one goes down and the other up. flannel's firewall rules
//! and direct routes go once ours stand.
//! Promises: whatever step the process dies at, the next one finds by what is there where to go on. Nothing is touched beside a
//! flanneld that runs.

use std::time::Instant;

use tracing::{info, warn};

use super::Node;
use crate::{
    dataplane::{
        flannel::{daemon, device, firewall, peers},
        overlay::{self, Overlay, OverlayError},
    },
    netlink::{self, Link, Netlink},
};

#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    #[error(
        "flanneld (process {pid}) runs on this node, and its {device} is where ours would be; stop it for good \
         (`systemctl disable --now flanneld`): canal-agent then takes its place, pods and all"
    )]
    Running { pid: u32, device: String },
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
}

/// What is left to be done.
#[derive(Debug)]
pub(super) struct Takeover {
    /// flannel's device, if there is one.
    old: Option<Link>,
    /// Its device for IPv6, if that is up.
    old_v6: Option<Link>,
    /// The rules and routes are to be looked for: once in the life of a process, and again while some cannot be removed, for it
    /// costs processes.
    due: bool,
    problems: Vec<String>,
}

impl Default for Takeover {
    fn default() -> Self {
        Self { old: None, old_v6: None, due: true, problems: Vec::new() }
    }
}

impl Takeover {
    /// What could not be removed is tried again.
    pub(super) fn retry(&mut self) {
        self.due |= !self.problems.is_empty();
    }
}

/// Refuses to start beside a flanneld that uses the device of this network.
pub fn check(netlink: &mut Netlink, vni: u32, port: u16) -> Result<(), TakeoverError> {
    let old = match device::find(netlink, vni, port)? {
        Some(old) => old,
        None => match device::find_v6(netlink, vni, port)? {
            Some(old) => old,
            None => return Ok(()),
        },
    };
    match daemon::running() {
        Some(pid) => Err(TakeoverError::Running { pid, device: old.name }),
        None => Ok(()),
    }
}

impl Node {
    /// Our device; while flannel's is up, ours stays down.
    pub(super) fn ensure_device(&mut self, wanted: &Overlay) -> Result<Link, OverlayError> {
        let (vni, port) = (wanted.device.vni, wanted.device.port);
        self.takeover.old = device::find(&mut self.netlink, vni, port)?;
        self.takeover.old_v6 = device::find_v6(&mut self.netlink, vni, port)?.filter(|link| link.up);
        let in_use = self.takeover.old_v6.is_some() || self.takeover.old.as_ref().is_some_and(|old| old.up);
        if in_use {
            overlay::prepare(&mut self.netlink, wanted)
        } else {
            overlay::ensure(&mut self.netlink, wanted)
        }
    }

    /// Comes once everything else is in the kernel.
    pub(super) fn replace_flannels_device(&mut self, wanted: &Overlay) -> Result<(), TakeoverError> {
        let (old, old_v6) = (self.takeover.old.take(), self.takeover.old_v6.take());
        let Some(any) = old.as_ref().or(old_v6.as_ref()) else { return Ok(()) };
        let in_use = old_v6.is_some() || old.as_ref().is_some_and(|old| old.up);
        if let Some(pid) = daemon::running() {
            let error = TakeoverError::Running { pid, device: any.name.clone() };
            if in_use {
                return Err(error);
            }
            // Ours has the port; it waits for that in vain.
            self.problems.push(error.to_string());
            return Ok(());
        }
        let begun = Instant::now();
        // To delete one takes longer than to set it down, which gives the port free.
        for link in [&old_v6, &old].into_iter().flatten().filter(|link| link.up) {
            self.netlink.set_down(link.index)?;
        }
        if in_use {
            overlay::ensure(&mut self.netlink, wanted)?;
        }
        let (ours, between_ms) = (wanted.name(), begun.elapsed().as_millis());
        if let Some(old) = old {
            self.netlink.delete_link(old.index)?;
            info!(
                removed = old.name,
                device = ours,
                mac = %wanted.device.mac,
                address = %wanted.address(),
                between_ms,
                "took the place of flannel's device, with its MAC and address; its routes, neighbours and FDB entries went with it"
            );
        }
        if let Some(old) = old_v6 {
            warn!(
                device = old.name,
                "IPv6 is not carried yet, and flannel's device for it held the UDP port: it is down now, and else left as it is"
            );
        }
        Ok(())
    }

    /// Once our rules and routes stand.
    pub(super) fn clear_after_flannel(&mut self) {
        if std::mem::take(&mut self.takeover.due) {
            self.takeover.problems.clear();
            // One that serves another network shares the names of its chains with the one that we replace.
            if daemon::running().is_none()
                && let Err(error) = self.look_for_flannels()
            {
                self.takeover.problems.push(format!("flannel's routes may be left: {error}"));
            }
        }
        self.problems.extend(self.takeover.problems.iter().cloned());
    }

    fn look_for_flannels(&mut self) -> Result<(), netlink::Error> {
        let v6 = self.network.backend.vxlan().map(|options| device::name_v6(options.vni));
        let v6_stays = v6.map(|name| self.netlink.link_by_name(&name)).transpose()?.flatten().is_some();
        let cleared = firewall::clear(!v6_stays);
        cleared.removed.iter().for_each(|line| info!("{line}"));
        cleared.notes.iter().for_each(|line| warn!("{line}"));
        self.takeover.problems = cleared.problems;
        let known = self.peers.desired(self.own(), |ip| self.is_on_link(ip));
        for route in peers::direct_routes(&self.netlink.routes()?, &known) {
            if self.netlink.delete_route(&route)? {
                info!(%route, "removed a route of flannel's; ours leads there");
            }
        }
        Ok(())
    }
}
