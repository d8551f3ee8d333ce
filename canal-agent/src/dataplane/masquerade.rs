//! `--ip-masq`: what pods send out of the network gets this node's address, by one nftables table of our own that is
//! replaced as a whole. The rules are flannel's iptables ones, and before the one that masquerades pods, the exceptions.

use std::{
    fmt::Write as _,
    io::Write as _,
    process::{Command, Stdio},
};

use ipnet::Ipv4Net;
use tracing::{info, warn};

const TABLE: &str = "canal-masq";

#[derive(Debug, thiserror::Error)]
pub enum MasqueradeError {
    #[error("pods are not masqueraded: cannot run nft: {0}; install nftables, or start without --ip-masq")]
    Run(std::io::Error),
    #[error("pods are not masqueraded: nft refuses the table {TABLE}: {0}")]
    Refused(String),
}

/// What the table is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    pub network: Ipv4Net,
    /// This node's part of the network.
    pub subnet: Ipv4Net,
    /// Destinations outside the network that pods reach with their own address.
    pub exempt: Vec<Ipv4Net>,
    /// Source ports are chosen at random, so that two connections hardly ever race for one.
    pub fully_random: bool,
}

/// The table, as this process has made it.
#[derive(Debug, Default)]
pub struct Masquerade {
    /// From what, and how nft listed it right afterwards: whatever is listed otherwise is not what was made.
    made: Option<(Terms, String)>,
}

impl Masquerade {
    /// Makes the table, unless it is as this process made it. One of an earlier process is made anew: nothing says that
    /// nobody changed it, and the place of one is taken by the other at once.
    pub fn ensure(&mut self, wanted: &Terms) -> Result<(), MasqueradeError> {
        if let Some((terms, listing)) = &self.made
            && terms == wanted
        {
            if listed()?.as_ref() == Some(listing) {
                return Ok(());
            }
            warn!(table = TABLE, "somebody changed the masquerade table; it is made anew");
        }
        self.made = None;
        run(&["-f", "-"], &ruleset(wanted))?;
        self.made = listed()?.map(|listing| (wanted.clone(), listing));
        info!(table = TABLE, "installed the masquerade table");
        Ok(())
    }
}

/// True when there was one.
pub fn remove() -> Result<bool, MasqueradeError> {
    if listed()?.is_none() {
        return Ok(false);
    }
    run(&["delete", "table", "ip", TABLE], "").map(|_| true)
}

fn listed() -> Result<Option<String>, MasqueradeError> {
    match run(&["list", "table", "ip", TABLE], "") {
        Ok(text) => Ok(Some(text)),
        Err(MasqueradeError::Refused(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// One transaction: there is no moment without the rules.
fn ruleset(terms: &Terms) -> String {
    let Terms { network, subnet, exempt, fully_random } = terms;
    let masquerade = if *fully_random { "masquerade fully-random" } else { "masquerade" };
    let exempt = exempt.iter().fold(String::new(), |mut rules, net| {
        // Into a text, which takes everything.
        let _ = writeln!(rules, "\t\tip saddr {network} ip daddr {net} return comment \"--ip-masq-exempt\"");
        rules
    });
    format!(
        "table ip {TABLE} {{}}\n\
         delete table ip {TABLE}\n\
         table ip {TABLE} {{\n\
         \tchain postrouting {{\n\
         \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
         \t\tmeta mark & 0x4000 == 0x4000 return comment \"kube-proxy masquerades it\"\n\
         \t\tip saddr {subnet} ip daddr {network} return\n\
         \t\tip saddr {network} ip daddr {subnet} return\n\
         \t\tip saddr != {network} ip daddr {subnet} return\n\
         {exempt}\
         \t\tip saddr {network} ip daddr != 224.0.0.0/4 {masquerade}\n\
         \t\tip saddr != {network} ip daddr {network} {masquerade}\n\
         \t}}\n\
         }}\n"
    )
}

fn run(args: &[&str], stdin: &str) -> Result<String, MasqueradeError> {
    let mut child = Command::new("nft")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(MasqueradeError::Run)?;
    if let Some(mut pipe) = child.stdin.take() {
        pipe.write_all(stdin.as_bytes()).map_err(MasqueradeError::Run)?;
    }
    let output = child.wait_with_output().map_err(MasqueradeError::Run)?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let text = String::from_utf8_lossy(&output.stderr);
        Err(MasqueradeError::Refused(text.lines().next().unwrap_or("no reason given").to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::tests::in_new_netns;

    fn terms(exempt: &[&str], fully_random: bool) -> Terms {
        Terms {
            network: "10.77.0.0/16".parse().unwrap(),
            subnet: "10.77.12.0/24".parse().unwrap(),
            exempt: exempt.iter().map(|net| net.parse().unwrap()).collect(),
            fully_random,
        }
    }

    fn rules(terms: &Terms) -> Vec<String> {
        let text = ruleset(terms);
        let decides = |line: &&str| line.contains(" return") || line.contains(" masquerade");
        text.lines().filter(decides).map(|line| line.trim().to_owned()).collect()
    }

    #[test]
    fn the_rules_are_flannels_in_flannels_order() {
        let expected = [
            "meta mark & 0x4000 == 0x4000 return comment \"kube-proxy masquerades it\"",
            "ip saddr 10.77.12.0/24 ip daddr 10.77.0.0/16 return",
            "ip saddr 10.77.0.0/16 ip daddr 10.77.12.0/24 return",
            "ip saddr != 10.77.0.0/16 ip daddr 10.77.12.0/24 return",
            "ip saddr 10.77.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random",
            "ip saddr != 10.77.0.0/16 ip daddr 10.77.0.0/16 masquerade fully-random",
        ];
        assert_eq!(rules(&terms(&[], true)), expected);
        let plain: Vec<_> = expected.iter().map(|rule| rule.replace(" fully-random", "")).collect();
        assert_eq!(rules(&terms(&[], false)), plain);
    }

    #[test]
    fn exempt_destinations_come_before_the_rule_that_masquerades_pods() {
        let rules = rules(&terms(&["192.0.2.0/24", "198.51.100.7/32"], true));
        assert_eq!(rules.len(), 8);
        for (rule, net) in rules[4..6].iter().zip(["192.0.2.0/24", "198.51.100.7/32"]) {
            assert!(rule.starts_with(&format!("ip saddr 10.77.0.0/16 ip daddr {net} return")), "{rule}");
        }
        assert!(rules[6].contains("224.0.0.0/4 masquerade"));
    }

    #[test]
    fn a_table_that_somebody_changed_is_made_anew_and_one_that_is_right_is_left_alone() {
        in_new_netns(|| {
            let nft = |args: &str| run(&args.split_whitespace().collect::<Vec<_>>(), "").unwrap();
            // A table that was made again has other handles.
            let handles = || nft("-a list table ip canal-masq");
            let mut masquerade = Masquerade::default();
            let first = terms(&["192.0.2.0/24", "192.0.2.0/25"], true);
            masquerade.ensure(&first).unwrap();
            let (made, right) = (handles(), listed().unwrap().unwrap());
            masquerade.ensure(&first).unwrap();
            assert_eq!(handles(), made, "left alone");
            let handle = made.lines().find(|line| line.contains("224.0.0.0/4")).unwrap();
            let handle = handle.rsplit_once("# handle ").unwrap().1.to_owned();
            for change in [
                format!("delete rule ip canal-masq postrouting handle {handle}"),
                "insert rule ip canal-masq postrouting accept".to_owned(),
                "flush chain ip canal-masq postrouting".to_owned(),
                "delete table ip canal-masq".to_owned(),
            ] {
                nft(&change);
                masquerade.ensure(&first).unwrap();
                assert_eq!(listed().unwrap().unwrap(), right, "{change}");
            }
            let other = terms(&[], false);
            masquerade.ensure(&other).unwrap();
            assert!(!listed().unwrap().unwrap().contains("fully-random"));
            // A new process cannot know.
            nft("flush chain ip canal-masq postrouting");
            Masquerade::default().ensure(&other).unwrap();
            assert!(listed().unwrap().unwrap().contains("224.0.0.0/4 masquerade"));
            assert!(remove().unwrap() && !remove().unwrap());
        });
    }
}
