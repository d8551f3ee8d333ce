//! How many rules packets were compared with, chain by chain, from the counts of those that matched.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

use super::counters::{Chain, Counters, Rule};

const HOOKS: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

impl Counters {
    /// By chain, the rules that the counted packets were compared with. Chains that none came to are left out.
    ///
    /// Every chain of a hook must begin with a rule for all packets, for nothing else tells how many came there.
    pub fn crossed(&self) -> Result<BTreeMap<Chain, u64>> {
        let mut walk = Walk { counters: self, crossed: BTreeMap::new() };
        for ((table, chain), rules) in &self.chains {
            if let (true, Some(first)) = (HOOKS.contains(&chain.as_str()), rules.first()) {
                ensure!(first.matches_all(), "{table} {chain} begins with conditions: {}", first.text);
                walk.enter(table, chain, first.packets)?;
            }
        }
        Ok(walk.crossed)
    }

    /// By chain, the rules that one of the counted packets matched, and how many did.
    pub fn matched(&self) -> BTreeMap<Chain, Vec<(usize, u64)>> {
        let matched = |rules: &Vec<Rule>| -> Vec<_> {
            rules.iter().map(|rule| rule.packets).enumerate().filter(|(_, packets)| *packets > 0).collect()
        };
        let chains = self.chains.iter().map(|(chain, rules)| (chain.clone(), matched(rules)));
        chains.filter(|(_, matched)| !matched.is_empty()).collect()
    }
}

/// What a rule does with a packet that matches.
enum Verdict<'a> {
    End,
    Return,
    Jump(&'a str),
    /// Into a chain that does not come back here.
    Goto(&'a str),
    Next,
}

impl Rule {
    fn matches_all(&self) -> bool {
        let mut words = self.text.split(' ');
        while let Some(word) = words.next() {
            match word {
                "-j" | "-g" => return true,
                "-m" if words.next() == Some("comment") => drop((words.next(), words.next())),
                _ => return false,
            }
        }
        true
    }

    fn verdict(&self) -> Verdict<'_> {
        let mut words = self.text.split(' ');
        let Some(how) = words.find(|word| ["-j", "-g"].contains(word)) else { return Verdict::Next };
        match (how, words.next().unwrap_or_default()) {
            ("-g", chain) => Verdict::Goto(chain),
            (_, "ACCEPT" | "DROP" | "MASQUERADE") => Verdict::End,
            (_, "RETURN") => Verdict::Return,
            (_, "MARK") => Verdict::Next,
            (_, chain) => Verdict::Jump(chain),
        }
    }
}

struct Walk<'a> {
    counters: &'a Counters,
    crossed: BTreeMap<Chain, u64>,
}

impl Walk<'_> {
    /// Tells how many of the packets come back.
    fn enter(&mut self, table: &str, chain: &str, packets: u64) -> Result<u64> {
        let name = (table.to_owned(), chain.to_owned());
        let rules =
            self.counters.chains.get(&name).with_context(|| format!("there is no {table} {chain}"))?;
        if packets == 0 || rules.is_empty() {
            return Ok(packets);
        }
        let (mut here, mut back, mut crossed) = (packets, 0, 0);
        for rule in rules {
            crossed += here;
            let matched = rule.packets;
            let gone = match rule.verdict() {
                Verdict::Next => 0,
                Verdict::End => matched,
                Verdict::Jump(to) => matched - self.enter(table, to, matched)?,
                Verdict::Return => {
                    back += matched;
                    matched
                }
                Verdict::Goto(to) => {
                    back += self.enter(table, to, matched)?;
                    matched
                }
            };
            here = here.checked_sub(gone).with_context(|| format!("{table} {chain} counts too many"))?;
        }
        if self.crossed.insert(name, crossed).is_some() {
            bail!("{table} {chain} was entered by two ways, and its counts do not tell them apart");
        }
        Ok(back + here)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crossed(text: &str) -> Result<Vec<(String, u64)>> {
        let crossed = Counters::parse(text)?.crossed()?;
        Ok(crossed.into_iter().map(|((_, chain), rules)| (chain, rules)).collect())
    }

    #[test]
    fn a_packet_is_compared_until_a_rule_ends_its_way() {
        let text = "*filter\n:INPUT ACCEPT [0:0]\n:a - [0:0]\n:b - [0:0]\n:c - [0:0]\n\
                    [3:0] -A INPUT -m comment --comment \"c\" -j a\n\
                    [2:0] -A INPUT -j MARK --set-xmark 0x1/0x1\n\
                    [1:0] -A a -i x -j ACCEPT\n\
                    [1:0] -A a -i y -g b\n\
                    [0:0] -A a -j c\n\
                    [1:0] -A b -j RETURN\n\
                    [0:0] -A b -j DROP\n\
                    COMMIT\n";
        let numbers = |chain: &str, rules| (chain.to_owned(), rules);
        let text = &text.replace("[0:0] -A a -j c", "[1:0] -A a -j c");
        assert_eq!(
            crossed(text).unwrap(),
            [numbers("INPUT", 3 + 2), numbers("a", 3 + 2 + 1), numbers("b", 1)]
        );
    }

    #[test]
    fn what_the_counts_do_not_tell_is_an_error() {
        let twice = "*filter\n:INPUT - [0:0]\n:a - [0:0]\n[1:0] -A INPUT -j a\n[1:0] -A INPUT -j a\n[2:0] -A a -j RETURN\n";
        assert!(crossed(twice).is_err());
        let conditional = "*filter\n:INPUT - [0:0]\n[1:0] -A INPUT -i eth0 -j ACCEPT\n";
        assert!(crossed(conditional).unwrap_err().to_string().contains("begins with conditions"));
    }
}
