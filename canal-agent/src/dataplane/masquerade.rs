//! `--ip-masq`: what pods send out of the network gets this node's address, by one nftables table of our own that is
//! replaced as a whole. The rules are flannel's iptables ones.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use ipnet::Ipv4Net;
use tracing::info;

const TABLE: &str = "canal-masq";

#[derive(Debug, thiserror::Error)]
pub enum MasqueradeError {
    #[error("cannot run nft: {0}; install nftables, or start without --ip-masq")]
    Run(std::io::Error),
    #[error("nft refuses the masquerade table: {0}")]
    Refused(String),
}

/// Installs or corrects the table; what is right is left alone.
pub fn ensure(network: Ipv4Net, subnet: Ipv4Net) -> Result<(), MasqueradeError> {
    let text = ruleset(network, subnet);
    // The comment carries what the table was made from: unchanged means nothing to do.
    if listed()?.is_some_and(|present| present.contains(&tag(network, subnet))) {
        return Ok(());
    }
    run(&["-f", "-"], &text)?;
    info!(table = TABLE, "installed the masquerade table");
    Ok(())
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

fn tag(network: Ipv4Net, subnet: Ipv4Net) -> String {
    format!("canal {network} {subnet}")
}

fn ruleset(network: Ipv4Net, subnet: Ipv4Net) -> String {
    let tag = tag(network, subnet);
    format!(
        "table ip {TABLE} {{}}\n\
         delete table ip {TABLE}\n\
         table ip {TABLE} {{\n\
         \tchain postrouting {{\n\
         \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
         \t\tmeta mark & 0x4000 == 0x4000 return comment \"kube-proxy masquerades it\"\n\
         \t\tip saddr {subnet} ip daddr {network} return comment \"{tag}\"\n\
         \t\tip saddr {network} ip daddr {subnet} return\n\
         \t\tip saddr != {network} ip daddr {subnet} return\n\
         \t\tip saddr {network} ip daddr != 224.0.0.0/4 masquerade fully-random\n\
         \t\tip saddr != {network} ip daddr {network} masquerade fully-random\n\
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

    #[test]
    fn the_rules_are_flannels_in_flannels_order() {
        let text = ruleset("10.77.0.0/16".parse().unwrap(), "10.77.12.0/24".parse().unwrap());
        let rules: Vec<&str> =
            text.lines().filter(|l| l.contains("return") || l.contains("masquerade f")).collect();
        assert_eq!(rules.len(), 6);
        assert!(rules[0].contains("0x4000") && rules[4].contains("224.0.0.0/4 masquerade"));
        assert!(rules[3].contains("saddr != 10.77.0.0/16 ip daddr 10.77.12.0/24 return"));
    }
}
