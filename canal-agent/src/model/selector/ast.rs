//! The tree of a parsed selector: evaluation, canonical text, and what a match requires.

use std::{collections::BTreeSet, fmt};

use crate::model::Labels;

#[derive(Debug, Clone)]
pub(super) enum Node {
    All,
    Global,
    Has(String),
    Compare {
        label: String,
        op: Comparison,
        value: String,
    },
    /// An absent label is in no set, hence "not in" every set.
    Member {
        label: String,
        values: BTreeSet<String>,
        negated: bool,
    },
    Not(Box<Node>),
    And(Vec<Node>),
    Or(Vec<Node>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Contains,
    StartsWith,
    EndsWith,
}

/// What labels must have for a selector to have a chance; lets an index skip the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Requirement<'a> {
    /// One of these labels with this value.
    OneOf(Vec<(&'a str, &'a str)>),
    /// This label, with whatever value.
    Label(&'a str),
    Nothing,
}

impl Node {
    pub(super) fn matches(&self, labels: &Labels) -> bool {
        match self {
            Self::All | Self::Global => true,
            Self::Has(label) => labels.contains_key(label),
            Self::Compare { label, op, value } => op.holds(labels.get(label).map(String::as_str), value),
            Self::Member { label, values, negated } => {
                labels.get(label).is_some_and(|have| values.contains(have)) != *negated
            }
            Self::Not(inner) => !inner.matches(labels),
            Self::And(all) => all.iter().all(|node| node.matches(labels)),
            Self::Or(any) => any.iter().any(|node| node.matches(labels)),
        }
    }

    pub(super) fn mentions_global(&self) -> bool {
        match self {
            Self::Global => true,
            Self::Not(inner) => inner.mentions_global(),
            Self::And(nodes) | Self::Or(nodes) => nodes.iter().any(Self::mentions_global),
            _ => false,
        }
    }

    /// The same selector about labels whose names begin with `prefix`.
    pub(super) fn prefixed(&self, prefix: &str) -> Self {
        let name = |label: &str| format!("{prefix}{label}");
        let each = |nodes: &[Self]| nodes.iter().map(|node| node.prefixed(prefix)).collect();
        match self {
            Self::All => Self::All,
            Self::Global => Self::Global,
            Self::Has(label) => Self::Has(name(label)),
            Self::Compare { label, op, value } => {
                Self::Compare { label: name(label), op: *op, value: value.clone() }
            }
            Self::Member { label, values, negated } => {
                Self::Member { label: name(label), values: values.clone(), negated: *negated }
            }
            Self::Not(inner) => Self::Not(Box::new(inner.prefixed(prefix))),
            Self::And(nodes) => Self::And(each(nodes)),
            Self::Or(nodes) => Self::Or(each(nodes)),
        }
    }

    pub(super) fn requirement(&self) -> Requirement<'_> {
        match self {
            Self::Has(label) => Requirement::Label(label),
            Self::Compare { label, op, value } => match op {
                Comparison::Equal => Requirement::OneOf(vec![(label, value)]),
                Comparison::NotEqual => Requirement::Nothing,
                Comparison::Contains | Comparison::StartsWith | Comparison::EndsWith => {
                    Requirement::Label(label)
                }
            },
            Self::Member { label, values, negated: false } => {
                Requirement::OneOf(values.iter().map(|value| (label.as_str(), value.as_str())).collect())
            }
            Self::And(nodes) => nodes
                .iter()
                .map(Self::requirement)
                .min_by_key(Requirement::breadth)
                .unwrap_or(Requirement::Nothing),
            Self::Or(nodes) => {
                let mut pairs = Vec::new();
                for node in nodes {
                    let Requirement::OneOf(more) = node.requirement() else { return Requirement::Nothing };
                    pairs.extend(more);
                }
                Requirement::OneOf(pairs)
            }
            Self::All | Self::Global | Self::Not(_) | Self::Member { negated: true, .. } => {
                Requirement::Nothing
            }
        }
    }
}

impl Requirement<'_> {
    /// How many labels may meet it: fewer is better for an index.
    fn breadth(&self) -> usize {
        match self {
            Self::OneOf(pairs) => pairs.len(),
            Self::Label(_) => usize::MAX - 1,
            Self::Nothing => usize::MAX,
        }
    }
}

impl Comparison {
    fn holds(self, have: Option<&str>, value: &str) -> bool {
        match self {
            Self::Equal => have == Some(value),
            Self::NotEqual => have != Some(value),
            // Bytes, not characters; for valid UTF-8 both are the same.
            Self::Contains => have.is_some_and(|have| have.contains(value)),
            Self::StartsWith => have.is_some_and(|have| have.starts_with(value)),
            Self::EndsWith => have.is_some_and(|have| have.ends_with(value)),
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Equal => "==",
            Self::NotEqual => "!=",
            Self::Contains => "contains",
            Self::StartsWith => "starts with",
            Self::EndsWith => "ends with",
        }
    }
}

/// The canonical text.
impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all()"),
            Self::Global => f.write_str("global()"),
            Self::Has(label) => write!(f, "has({label})"),
            Self::Compare { label, op, value } => write!(f, "{label} {} {}", op.text(), Quoted(value)),
            Self::Member { label, values, negated } => {
                write!(f, "{label} {} {{", if *negated { "not in" } else { "in" })?;
                for (i, value) in values.iter().enumerate() {
                    write!(f, "{}{}", if i > 0 { ", " } else { "" }, Quoted(value))?;
                }
                f.write_str("}")
            }
            Self::Not(inner) => write!(f, "!{inner}"),
            Self::And(nodes) => list(f, nodes, " && "),
            Self::Or(nodes) => list(f, nodes, " || "),
        }
    }
}

fn list(f: &mut fmt::Formatter<'_>, nodes: &[Node], separator: &str) -> fmt::Result {
    for (i, node) in nodes.iter().enumerate() {
        write!(f, "{}{node}", if i > 0 { separator } else { "(" })?;
    }
    f.write_str(")")
}

/// A literal holds at most one kind of quote, as the language has no escapes.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quote = if self.0.contains('"') { '\'' } else { '"' };
        write!(f, "{quote}{}{quote}", self.0)
    }
}
