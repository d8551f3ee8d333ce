//! What `iptables-save -c` tells: every rule with the packets that it matched.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use crate::netns::Netns;

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Behind `-A <chain> `, without quotation marks.
    pub text: String,
    pub packets: u64,
}

/// A table's name and a chain's.
pub type Chain = (String, String);

/// The rules of all chains, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counters {
    pub chains: BTreeMap<Chain, Vec<Rule>>,
}

impl Counters {
    /// Of every table of a namespace, or of one.
    pub fn read(netns: &Netns, table: Option<&str>) -> Result<Self> {
        let table = table.into_iter().flat_map(|table| ["-t", table]);
        let command = netns.cmd("iptables-nft-save -c").args(table).deadline(super::LARGE);
        Self::parse(&command.run()?)
    }

    /// Lines without counters count as unmatched.
    pub fn parse(text: &str) -> Result<Self> {
        let mut counters = Self::default();
        let mut table = "";
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name;
            } else if let Some(chain) = line.strip_prefix(':') {
                let name = chain.split(' ').next().unwrap_or_default();
                counters.chains.entry((table.to_owned(), name.to_owned())).or_default();
            } else if let Some((head, rule)) = line.split_once("-A ") {
                let (chain, rule) = rule.split_once(' ').with_context(|| format!("a rule: {line}"))?;
                let rule = Rule { text: rule.replace('"', ""), packets: packets(head)? };
                let chain = counters.chains.get_mut(&(table.to_owned(), chain.to_owned()));
                chain.with_context(|| format!("a rule of no chain: {line}"))?.push(rule);
            }
        }
        Ok(counters)
    }

    /// What came since `earlier`, while the rules stayed the same.
    pub fn since(&self, earlier: &Self) -> Result<Self> {
        ensure!(self.without_counts() == earlier.without_counts(), "the rules are not the same");
        let mut since = self.clone();
        for (now, before) in since.rules_mut().zip(earlier.chains.values().flatten()) {
            now.packets -= before.packets;
        }
        Ok(since)
    }

    fn without_counts(&self) -> Self {
        let mut bare = self.clone();
        bare.rules_mut().for_each(|rule| rule.packets = 0);
        bare
    }

    fn rules_mut(&mut self) -> impl Iterator<Item = &mut Rule> {
        self.chains.values_mut().flatten()
    }
}

/// From `[packets:bytes] `.
fn packets(head: &str) -> Result<u64> {
    let head = head.trim();
    if head.is_empty() {
        return Ok(0);
    }
    let count = head.strip_prefix('[').and_then(|h| h.split_once(':')).map(|(packets, _)| packets);
    count.and_then(|c| c.parse().ok()).with_context(|| format!("counters {head:?}"))
}
