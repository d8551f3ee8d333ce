//! Calico's selector language.
//!
//! Promises: two selectors are equal when their canonical texts are; parsing the canonical text gives the same
//! selector; no text makes it panic or recurse without bound. Does not: know what is selected.

mod ast;
mod lexer;
mod parser;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    cmp::Ordering,
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

pub(crate) use ast::Requirement;
use ast::{Comparison, Node};

use super::Labels;

/// A parsed selector. A clone is a pointer.
#[derive(Clone)]
pub struct Selector(Arc<Inner>);

struct Inner {
    canonical: String,
    /// Of the canonical form: selectors are looked up by it many times for each change in the cluster.
    hash: u64,
    node: Node,
}

/// Where a selector stopped making sense, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at byte {at}: {problem}")]
pub struct SelectorError {
    pub at: usize,
    pub problem: String,
}

impl Selector {
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        parser::parse(text).map(Self::of)
    }

    pub fn all() -> Self {
        Self::of(Node::All)
    }

    pub fn has(label: &str) -> Self {
        Self::of(Node::Has(label.to_owned()))
    }

    pub fn equals(label: &str, value: &str) -> Self {
        Self::of(Node::Compare { label: label.to_owned(), op: Comparison::Equal, value: value.to_owned() })
    }

    pub fn one_of<'a>(label: &str, values: impl IntoIterator<Item = &'a str>) -> Self {
        let values = values.into_iter().map(str::to_owned).collect();
        Self::of(Node::Member { label: label.to_owned(), values, negated: false })
    }

    /// All parts at once; of no parts, everything.
    pub fn all_of(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut nodes: Vec<Node> = Vec::new();
        for part in parts {
            match &part.0.node {
                Node::All => {}
                Node::And(inner) => nodes.extend(inner.iter().cloned()),
                node => nodes.push(node.clone()),
            }
        }
        match nodes.len() {
            0 => Self::all(),
            1 => Self::of(nodes.remove(0)),
            _ => Self::of(Node::And(nodes)),
        }
    }

    #[must_use]
    pub fn negated(&self) -> Self {
        Self::of(match &self.0.node {
            Node::Not(inner) => (**inner).clone(),
            node => Node::Not(Box::new(node.clone())),
        })
    }

    /// The same about labels whose names begin with `prefix`.
    #[must_use]
    pub fn prefixed(&self, prefix: &str) -> Self {
        Self::of(self.0.node.prefixed(prefix))
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.node.matches(labels)
    }

    pub fn canonical(&self) -> &str {
        &self.0.canonical
    }

    pub fn is_all(&self) -> bool {
        matches!(self.0.node, Node::All)
    }

    pub fn is_global(&self) -> bool {
        matches!(self.0.node, Node::Global)
    }

    /// `global()` anywhere: legal only as the whole of a rule's namespace selector.
    pub fn mentions_global(&self) -> bool {
        self.0.node.mentions_global()
    }

    pub(crate) fn requirement(&self) -> Requirement<'_> {
        self.0.node.requirement()
    }

    fn of(node: Node) -> Self {
        let canonical = node.to_string();
        // A fixed key: equal selectors have an equal hash in every process.
        let mut hasher = DefaultHasher::new();
        canonical.hash(&mut hasher);
        Self(Arc::new(Inner { canonical, hash: hasher.finish(), node }))
    }
}

impl PartialEq for Selector {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.hash == other.0.hash && self.0.canonical == other.0.canonical
    }
}

impl Eq for Selector {}

impl Ord for Selector {
    fn cmp(&self, other: &Self) -> Ordering {
        if Arc::ptr_eq(&self.0, &other.0) {
            Ordering::Equal
        } else {
            self.0.canonical.cmp(&other.0.canonical)
        }
    }
}

impl PartialOrd for Selector {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Hash for Selector {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.hash);
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.canonical)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.canonical)
    }
}
