//! What the runtime adds to the configuration for one container: `runtimeConfig`, `args.cni`, and what is in
//! `CNI_ARGS` as well.

use std::{collections::BTreeMap, net::Ipv4Addr};

use canal_common::Mac;

use super::{
    super::{
        error::CniError,
        request::{Arguments, mac},
    },
    fields::{Fields, Notes},
    range::Range,
};

/// What the container should have, if possible.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wishes {
    pub ip: Option<Ipv4Addr>,
    pub mac: Option<Mac>,
}

impl Wishes {
    /// These, and where there are none, the others.
    #[must_use]
    pub fn or(self, others: Self) -> Self {
        Self { ip: self.ip.or(others.ip), mac: self.mac.or(others.mac) }
    }
}

#[derive(Debug, Default)]
pub(super) struct Runtime {
    pub(super) wishes: Wishes,
    pub(super) labels: BTreeMap<String, String>,
    /// In place of the configuration's.
    pub(super) range: Range,
}

impl Runtime {
    /// `runtimeConfig` comes before `args.cni`, and both before `CNI_ARGS`.
    pub(super) fn read(
        outer: &mut Fields,
        arguments: &Arguments,
        notes: &mut Notes,
    ) -> Result<Self, CniError> {
        let mut config = outer.object("runtimeConfig")?;
        let best = wishes(&mut config)?;
        let range = Range::of_sets(&mut config, "ipRanges")?;
        // The next plugin of the list makes these.
        config.accept(&["portMappings"]);
        let why = "another plugin of the list has to do it; take the capability out of this one's";
        let others = ["bandwidth", "dns", "aliases", "infinibandGUID", "deviceID", "cgroupPath"];
        config.no_effect(&others, why, notes);
        config.finish(notes);

        // Other spaces of `args` are for other plugins.
        let mut args = outer.object("args")?.object("cni")?;
        let labels = labels(&mut args)?;
        let good = wishes(&mut args)?;
        args.finish(notes);

        let last = Wishes { ip: arguments.ip, mac: arguments.mac };
        for (path, lower, upper) in [("args.cni", good, best), ("CNI_ARGS", last, best.or(good))] {
            if lower.ip.is_some() && upper.or(lower).ip != lower.ip {
                notes.add(
                    &format!("{path}: IP"),
                    "another address is asked for in a place that comes before it",
                );
            }
            if lower.mac.is_some() && upper.or(lower).mac != lower.mac {
                notes.add(
                    &format!("{path}: MAC"),
                    "another address is asked for in a place that comes before it",
                );
            }
        }
        Ok(Self { wishes: best.or(good).or(last), labels, range })
    }
}

fn wishes(fields: &mut Fields) -> Result<Wishes, CniError> {
    let ips = fields.texts("ips")?;
    if ips.len() > 1 {
        return Err(fields.invalid("ips", ips, "a pod has one IPv4 address: ask for one"));
    }
    let ip = ips.into_iter().next().map(|text| {
        // With a prefix length as in results, or without.
        let bare = text.split_once('/').map_or(text.as_str(), |(address, _)| address);
        match bare.parse() {
            Ok(std::net::IpAddr::V4(ip)) => Ok(ip),
            Ok(std::net::IpAddr::V6(_)) => Err(fields.invalid("ips", &text, "pods have no IPv6 here")),
            Err(_) => Err(fields.invalid("ips", &text, "want an IPv4 address")),
        }
    });
    let ip = ip.transpose()?;
    let mac = match fields.text("mac")? {
        None => None,
        Some(text) => Some(mac(&text).map_err(|rule| fields.invalid("mac", text, rule))?),
    };
    Ok(Wishes { ip, mac })
}

/// By the conventions of CNI: a list of keys and values.
fn labels(args: &mut Fields) -> Result<BTreeMap<String, String>, CniError> {
    let mut labels = BTreeMap::new();
    for mut label in args.objects("labels")? {
        let key = label.text("key")?.unwrap_or_default();
        let Some(value) = label.take("value") else {
            return Err(super::fields::decode("`args.cni.labels` has a label without `value`"));
        };
        let Some(value) = value.as_str() else { return Err(label.wrong_type("value", &value, "a text")) };
        if key.is_empty() || labels.insert(key.clone(), value.to_owned()).is_some() {
            let msg = format!("`args.cni.labels` has the key {key:?} more than once, or empty");
            let hint = "each label needs a key of its own";
            return Err(CniError::new(super::super::error::Code::InvalidConfig, msg, hint));
        }
    }
    Ok(labels)
}
