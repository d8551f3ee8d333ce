//! Which addresses of the node's subnet pods may get.

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use serde_json::{Map, Value, json};

use super::{
    super::error::{CniError, Code},
    fields::Fields,
};

const OTHERS: &str = "other nodes send this node only what is for its subnet: leave the range out to use all of the \
                      subnet, or name a part of it";

/// Parts of the node's subnet; none means all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Range {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    /// Path of the object that says so.
    at: String,
    subnet: Option<Ipv4Net>,
    start: Option<Ipv4Addr>,
    end: Option<Ipv4Addr>,
    gateway: Option<Ipv4Addr>,
}

impl Range {
    /// `host-local`'s `ranges` on a node with this subnet.
    pub fn within(&self, node: Ipv4Net) -> Result<Value, CniError> {
        if self.parts.is_empty() {
            return Ok(json!([[{"subnet": node.trunc()}]]));
        }
        let set: Result<Vec<_>, _> = self.parts.iter().map(|part| part.within(node.trunc())).collect();
        Ok(json!([set?]))
    }

    /// `subnet`, `rangeStart`, `rangeEnd` and `gateway` of an object.
    pub(super) fn of_object(fields: &mut Fields) -> Result<Self, CniError> {
        let part = Part::read(fields)?;
        let empty = (part.subnet, part.start, part.end, part.gateway) == (None, None, None, None);
        Ok(Self { parts: if empty { Vec::new() } else { vec![part] } })
    }

    /// A list of sets of ranges, of which a pod gets an address each.
    pub(super) fn of_sets(fields: &mut Fields, key: &str) -> Result<Self, CniError> {
        let mut sets = fields.list(key)?.into_iter();
        let Some(first) = sets.next() else { return Ok(Self::default()) };
        if sets.next().is_some() {
            let why = "a pod has one IPv4 address: leave one set of ranges, for IPv4";
            return Err(fields.unsupported(key, why));
        }
        let Value::Array(ranges) = first else {
            return Err(fields.wrong_type(key, &first, "a list of lists of ranges"));
        };
        let part = |range| match range {
            Value::Object(range) => Part::read(&mut Fields::new(fields.path(key), range)),
            other => Err(fields.wrong_type(key, &other, "a list of lists of ranges")),
        };
        Ok(Self { parts: ranges.into_iter().map(part).collect::<Result<_, _>>()? })
    }

    pub(super) fn is_all(&self) -> bool {
        self.parts.is_empty()
    }
}

impl Part {
    fn read(fields: &mut Fields) -> Result<Self, CniError> {
        let subnet = match fields.text("subnet")? {
            None => None,
            Some(text) if text.starts_with("usePodCidr") => {
                let why = "addresses come from the node's flannel subnet, which need not be the podCIDR that Kubernetes \
                           has for the node: leave it out";
                return Err(fields.invalid("subnet", text, why));
            }
            Some(text) => match text.parse() {
                Ok(IpNet::V4(net)) => Some(net.trunc()),
                Ok(IpNet::V6(_)) => return Err(fields.invalid("subnet", text, "pods have no IPv6 here")),
                Err(_) => return Err(fields.invalid("subnet", text, "want a network such as 10.77.12.0/25")),
            },
        };
        let mut address = |key: &str| match fields.text(key)? {
            None => Ok(None),
            Some(text) => match text.parse() {
                Ok(address) => Ok(Some(address)),
                Err(_) => Err(fields.invalid(key, text, "want an IPv4 address")),
            },
        };
        let (start, end, gateway) = (address("rangeStart")?, address("rangeEnd")?, address("gateway")?);
        Ok(Self { at: fields.path(""), subnet, start, end, gateway })
    }

    fn within(&self, node: Ipv4Net) -> Result<Value, CniError> {
        let outside = |key: &str, value: &dyn std::fmt::Display, of: Ipv4Net| {
            let whose = if of == node { "this node's subnet " } else { "" };
            let msg = format!("`{}{key}` {value} is not inside {whose}{of}", self.at);
            CniError::new(Code::InvalidConfig, msg, OTHERS)
        };
        let subnet = self.subnet.unwrap_or(node);
        if !node.contains(&subnet) {
            return Err(outside("subnet", &subnet, node));
        }
        if subnet.prefix_len() > 30 {
            let msg = format!("`{}subnet` {subnet} has no room for a pod", self.at);
            return Err(CniError::new(Code::InvalidConfig, msg, "want a network of four addresses or more"));
        }
        let mut range = Map::from_iter([("subnet".to_owned(), json!(subnet))]);
        for (key, address) in [("rangeStart", self.start), ("rangeEnd", self.end), ("gateway", self.gateway)]
        {
            let Some(address) = address else { continue };
            if !subnet.contains(&address) {
                return Err(outside(key, &address, subnet));
            }
            range.insert(key.to_owned(), json!(address));
        }
        if let (Some(start), Some(end)) = (self.start, self.end)
            && start > end
        {
            let msg = format!("`{}rangeStart` {start} is after `rangeEnd` {end}", self.at);
            return Err(CniError::new(Code::InvalidConfig, msg, "exchange them"));
        }
        Ok(Value::Object(range))
    }
}
