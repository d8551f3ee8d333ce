//! Queueing disciplines. The root one of a link is part of [`Link`](super::Link).

use std::collections::BTreeMap;

use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcHandle, TcMessage},
};

use super::{Error, Netlink, socket::What};

/// Where classic filters may look at packets, beside programs that are attached by tcx, which need none of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilterHook {
    /// `ingress`: at what the link receives.
    Ingress,
    /// `clsact`: also at what it sends.
    Both,
}

impl Netlink {
    /// Links that have such a hook, by index.
    pub fn filter_hooks(&mut self) -> Result<BTreeMap<u32, FilterHook>, Error> {
        let what = What { operation: "list", object: &"queueing disciplines" };
        let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
        Ok(self.dump(what, &request)?.into_iter().filter_map(read).collect())
    }
}

fn read(message: RouteNetlinkMessage) -> Option<(u32, FilterHook)> {
    let RouteNetlinkMessage::NewQueueDiscipline(message) = message else { return None };
    if message.header.parent != TcHandle::INGRESS {
        return None;
    }
    let is_clsact =
        message.attributes.iter().any(|a| matches!(a, TcAttribute::Kind(kind) if kind == "clsact"));
    let hook = if is_clsact { FilterHook::Both } else { FilterHook::Ingress };
    Some((u32::try_from(message.header.index).ok()?, hook))
}
