//! What a rule may ask about an address, and the classes that the answers make.

use std::{borrow::Borrow, cmp::Ordering, fmt, sync::Arc};

use ipnet::Ipv4Net;

use crate::model::Selector;

/// A yes-or-no question about an address. A clone is cheap; equality goes by canonical text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Predicate {
    /// The address lies in this CIDR.
    Net(Ipv4Net),
    /// The address belongs to a known object that matches.
    Selector(Selector),
    /// The address belongs to a known object that matches and gives this name to this port.
    Port(NamedPort),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    pub selector: Selector,
    pub name: Arc<str>,
    pub protocol: u8,
    pub port: u16,
}

/// The predicates that hold for an address, ascending. Without any: known to nothing.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Class(Arc<[Predicate]>);

impl Class {
    pub fn new(predicates: impl IntoIterator<Item = Predicate>) -> Self {
        let mut predicates: Vec<_> = predicates.into_iter().collect();
        predicates.sort_unstable();
        predicates.dedup();
        Self(predicates.into())
    }

    pub fn predicates(&self) -> &[Predicate] {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn holds(&self, predicate: &Predicate) -> bool {
        self.0.binary_search(predicate).is_ok()
    }
}

impl Default for Class {
    fn default() -> Self {
        Self::new([])
    }
}

impl Ord for Class {
    fn cmp(&self, other: &Self) -> Ordering {
        if Arc::ptr_eq(&self.0, &other.0) { Ordering::Equal } else { self.0.cmp(&other.0) }
    }
}

impl PartialOrd for Class {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Borrow<[Predicate]> for Class {
    fn borrow(&self) -> &[Predicate] {
        &self.0
    }
}

impl fmt::Debug for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.iter()).finish()
    }
}

impl fmt::Display for Predicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(net) => net.fmt(f),
            Self::Selector(selector) => selector.fmt(f),
            Self::Port(NamedPort { selector, name, protocol, port }) => {
                write!(f, "{selector} with port {name} = {protocol}:{port}")
            }
        }
    }
}
