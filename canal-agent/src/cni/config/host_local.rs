//! The `ipam` object: what `host-local` is told, and what is told by us instead.

use std::path::PathBuf;

use ipnet::Ipv4Net;
use serde_json::{Map, Value};

use super::{
    super::error::CniError,
    fields::{Fields, Notes},
    range::Range,
    routes,
};

pub(super) const NAME: &str = "host-local";
/// `host-local`'s own default.
const DATA_DIR: &str = "/var/lib/cni/networks";

/// A checked `ipam`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct HostLocal {
    /// Everything for `host-local` but ranges and routes.
    pub(super) settings: Map<String, Value>,
    pub(super) range: Range,
    pub(super) routes: Vec<Ipv4Net>,
}

impl HostLocal {
    /// `overwritten`: whether this is flannel's `ipam`, whose `ranges` its plugin replaces.
    pub(super) fn read(outer: &mut Fields, overwritten: bool, notes: &mut Notes) -> Result<Self, CniError> {
        let mut ipam = outer.object("ipam")?;
        let kind = ipam.text("type")?;
        if let Some(kind) = kind.filter(|kind| kind != NAME) {
            let why = "addresses come from the node's subnet, by `host-local`: leave `ipam` out, or make this its type";
            return Err(ipam.invalid("type", kind, why));
        }
        let mut settings = Map::from_iter([("type".to_owned(), NAME.into())]);
        for key in ["dataDir", "resolvConf"] {
            if let Some(text) = ipam.text(key)? {
                settings.insert(key.to_owned(), text.into());
            }
        }
        if overwritten {
            ipam.no_effect(&["ranges"], "flannel's plugin replaces it by the node's subnet", notes);
        }
        let short = Range::of_object(&mut ipam)?;
        let long = Range::of_sets(&mut ipam, "ranges")?;
        if !short.is_all() && !long.is_all() {
            let why =
                "`subnet`, `rangeStart`, `rangeEnd` and `gateway` stand beside it: leave one of the two";
            return Err(ipam.unsupported("ranges", why));
        }
        let routes = routes::named(&mut ipam, notes)?;
        pools(&mut ipam, notes)?;
        ipam.accept(&["name"]);
        ipam.finish(notes);
        Ok(Self { settings, range: if long.is_all() { short } else { long }, routes })
    }
}

/// Keys of Calico's own address management. With `host-local` they do nothing in Calico either.
fn pools(ipam: &mut Fields, notes: &mut Notes) -> Result<(), CniError> {
    let why = "it belongs to `calico-ipam`, and addresses come from the node's subnet, by `host-local`";
    for (key, as_it_is) in [("assign_ipv4", "true"), ("assign_ipv6", "false")] {
        if ipam.text(key)?.is_some_and(|text| text != as_it_is) {
            notes.add(&ipam.path(key), why);
        }
    }
    for key in ["ipv4_pools", "ipv6_pools"] {
        if !ipam.texts(key)?.is_empty() {
            notes.add(&ipam.path(key), why);
        }
    }
    Ok(())
}

/// Where `host-local` with these settings keeps its leases; one folder below for each network.
pub(super) fn data_dir(settings: &Map<String, Value>) -> PathBuf {
    settings.get("dataDir").and_then(Value::as_str).filter(|text| !text.is_empty()).unwrap_or(DATA_DIR).into()
}
