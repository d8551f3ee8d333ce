//! flannel's rules in the host's firewall: the chains `FLANNEL-POSTRTG` and `FLANNEL-FWD` of iptables, in either of its
//! kinds, and the tables of its nftables mode. Whoever removes them has something in their place already.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    process::{Command, Stdio},
};

const CHAINS: [&str; 2] = ["FLANNEL-POSTRTG", "FLANNEL-FWD"];
/// What all of its rules carry; old releases had rules outside of chains of their own.
const COMMENTS: [&str; 2] = ["--comment \"flanneld masq\"", "--comment \"flanneld forward\""];
const TABLES: [&str; 2] = ["nat", "filter"];
/// Family and name.
const NFT_TABLES: [(&str, &str); 2] = [("ip", "flannel-ipv4"), ("ip6", "flannel-ipv6")];
/// The plain name is one of the others, as the distribution has it.
const TOOLS: [&str; 3] = ["iptables-nft", "iptables-legacy", "iptables"];

/// Where the rules of an iptables live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    NfTables,
    Legacy,
}

/// What came of it, in sentences.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Cleared {
    pub removed: Vec<String>,
    /// What somebody should know.
    pub notes: Vec<String>,
    /// What is left of flannel's, and why.
    pub problems: Vec<String>,
}

/// Takes away what is flannel's; what it has for IPv6 only if `with_v6`.
pub fn clear(with_v6: bool) -> Cleared {
    let mut cleared = Cleared::default();
    let mut seen = BTreeSet::new();
    for tool in TOOLS {
        let Ok(version) = run(tool, &["--version"], "") else { continue };
        let kind = kind(&version);
        if seen.insert(kind) {
            clear_iptables(tool, kind, &mut cleared);
        }
    }
    clear_nftables(with_v6, !seen.contains(&Kind::NfTables), &mut cleared);
    if !seen.contains(&Kind::Legacy) && TABLES.iter().any(|table| legacy_tables().contains(*table)) {
        cleared.notes.push(
            "this host has legacy iptables tables and no iptables-legacy to look into them: if flannel's chains \
             FLANNEL-POSTRTG and FLANNEL-FWD are there, they stay"
                .to_owned(),
        );
    }
    cleared
}

fn kind(version: &str) -> Kind {
    if version.contains("nf_tables") { Kind::NfTables } else { Kind::Legacy }
}

/// The tables of the legacy kind that this network namespace has. To ask for others would make them.
fn legacy_tables() -> BTreeSet<String> {
    let names = fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default();
    names.lines().map(str::to_owned).collect()
}

fn clear_iptables(tool: &str, kind: Kind, cleared: &mut Cleared) {
    let legacy = legacy_tables();
    for table in TABLES.into_iter().filter(|table| kind == Kind::NfTables || legacy.contains(*table)) {
        let result = run(&format!("{tool}-save"), &["-t", table], "").and_then(|saved| {
            let Some(removal) = removal(table, &saved) else { return Ok(saved) };
            run(&format!("{tool}-restore"), &["--noflush", "--wait=5"], &removal)?;
            cleared.removed.push(format!("removed flannel's rules from the table {table} of {tool}"));
            if policy_of_forward(&saved) == Some("DROP") {
                cleared.notes.push(format!(
                    "the host's firewall drops what it forwards unless a rule accepts it (policy of FORWARD, {tool}), and \
                     flannel's rules that accepted pods are gone: if pods are to reach the world, accept them there"
                ));
            }
            Ok(saved)
        });
        match result {
            Ok(saved) if saved.lines().any(|line| line.starts_with(":cali-FORWARD ")) => {
                cleared.notes.push(format!(
                    "Felix's rules are in the host's firewall ({tool}, chains cali-…) and follow no policy any more where \
                     Felix is stopped: remove them, or what leaves the pod network is judged by what they said last"
                ));
            }
            Ok(_) => {}
            Err(error) => {
                cleared.problems.push(format!("flannel's rules may be left in the firewall: {error}"));
            }
        }
    }
}

/// Everything of flannel's in a table, as `iptables-save` lists it, turned into its removal by one `iptables-restore`.
fn removal(table: &str, saved: &str) -> Option<String> {
    let chains: Vec<&str> =
        CHAINS.into_iter().filter(|chain| saved.contains(&format!("\n:{chain} "))).collect();
    let is_flannels = |rule: &&str| {
        let mut words = rule.split_whitespace();
        let inside = words.next().is_some_and(|chain| CHAINS.contains(&chain));
        let target = words.next_back();
        let leads_there = target.is_some_and(|target| CHAINS.contains(&target));
        !inside && (leads_there || COMMENTS.iter().any(|comment| rule.contains(comment)))
    };
    let rules: Vec<&str> =
        saved.lines().filter_map(|line| line.strip_prefix("-A ")).filter(is_flannels).collect();
    if chains.is_empty() && rules.is_empty() {
        return None;
    }
    let mut text = format!("*{table}\n");
    // What leads to a chain, then what is in it, then the chain.
    text.extend(rules.iter().map(|rule| format!("-D {rule}\n")));
    text.extend(chains.iter().map(|chain| format!("-F {chain}\n")));
    text.extend(chains.iter().map(|chain| format!("-X {chain}\n")));
    text.push_str("COMMIT\n");
    Some(text)
}

fn policy_of_forward(saved: &str) -> Option<&str> {
    saved.lines().find_map(|line| line.strip_prefix(":FORWARD "))?.split_whitespace().next()
}

fn clear_nftables(with_v6: bool, look_for_chains: bool, cleared: &mut Cleared) {
    // Without nft there is nobody who could have made them.
    let Ok(tables) = run("nft", &["list", "tables"], "") else { return };
    for (family, name) in NFT_TABLES.into_iter().filter(|(family, _)| with_v6 || *family == "ip") {
        if !tables.lines().any(|line| line == format!("table {family} {name}")) {
            continue;
        }
        match run("nft", &["delete", "table", family, name], "") {
            Ok(_) => cleared.removed.push(format!("removed flannel's nftables table {family} {name}")),
            Err(error) => {
                cleared.problems.push(format!("flannel's nftables table {family} {name} is left: {error}"));
            }
        }
    }
    if look_for_chains {
        let listed = run("nft", &["list", "chains", "ip"], "").unwrap_or_default();
        let found = CHAINS.iter().filter(|chain| listed.contains(&format!("chain {chain} ")));
        let found: Vec<&str> = found.copied().collect();
        if !found.is_empty() {
            cleared.problems.push(format!(
                "flannel's rules are left in the firewall ({}): install iptables, with which they were made",
                found.join(", ")
            ));
        }
    }
}

/// What it printed; else one line of why not.
fn run(program: &str, args: &[&str], stdin: &str) -> Result<String, String> {
    let fail = |error: std::io::Error| format!("cannot run {program}: {error}");
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(fail)?;
    if let Some(mut pipe) = child.stdin.take() {
        pipe.write_all(stdin.as_bytes()).map_err(fail)?;
    }
    let output = child.wait_with_output().map_err(fail)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program}: {}", text.lines().next().unwrap_or("it says not why")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::tests::in_new_netns;

    const NAT: &str = "\
# Generated by iptables-save
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:FLANNEL-POSTRTG - [0:0]
:cali-POSTROUTING - [0:0]
-A POSTROUTING -m comment --comment \"cali:O3lYWMrLQYEMJtB5\" -j cali-POSTROUTING
-A POSTROUTING -s 10.9.0.0/16 -m comment --comment \"not flanneld masq\" -j MASQUERADE
-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG
-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG
-A POSTROUTING -s 10.244.0.0/16 -m comment --comment \"flanneld masq\" -j MASQUERADE
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG -s 10.77.0.0/16 ! -d 224.0.0.0/4 -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully
COMMIT
";

    #[test]
    fn the_jumps_go_then_the_rules_then_the_chain_and_nothing_else() {
        let expected = "\
*nat
-D POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG
-D POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG
-D POSTROUTING -s 10.244.0.0/16 -m comment --comment \"flanneld masq\" -j MASQUERADE
-F FLANNEL-POSTRTG
-X FLANNEL-POSTRTG
COMMIT
";
        assert_eq!(removal("nat", NAT).as_deref(), Some(expected));
        assert_eq!(removal("filter", "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -j DOCKER\nCOMMIT\n"), None);
        assert_eq!(policy_of_forward("*filter\n:FORWARD DROP [0:0]\n"), Some("DROP"));
        assert_eq!(policy_of_forward(NAT), None);
    }

    #[test]
    fn the_kind_of_an_iptables_is_what_it_says_and_old_ones_say_nothing() {
        assert_eq!(kind("iptables v1.8.9 (nf_tables)"), Kind::NfTables);
        assert_eq!(kind("iptables v1.8.9 (legacy)"), Kind::Legacy);
        assert_eq!(kind("iptables v1.6.1"), Kind::Legacy);
    }

    /// As flanneld does it, with Felix's and a stranger's rules beside them.
    fn fill(tool: &str) {
        let lines = "\
*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -s 10.9.0.0/16 -j MASQUERADE
-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -s 10.77.0.0/16 ! -d 224.0.0.0/4 -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully
COMMIT
*filter
:FORWARD DROP [0:0]
:FLANNEL-FWD - [0:0]
:cali-FORWARD - [0:0]
-A FORWARD -j cali-FORWARD
-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.77.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT
-A FLANNEL-FWD -d 10.77.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT
COMMIT
";
        run(&format!("{tool}-restore"), &["--noflush"], lines).unwrap();
    }

    #[test]
    fn both_kinds_of_iptables_and_flannels_own_tables_are_cleared_and_what_is_others_stays() {
        in_new_netns(|| {
            let saved = |tool: &str| {
                let all = TABLES.map(|table| run(&format!("{tool}-save"), &["-t", table], "").unwrap());
                all.concat()
            };
            for tool in ["iptables-nft", "iptables-legacy"] {
                fill(tool);
            }
            for (family, name) in NFT_TABLES {
                run("nft", &["add", "table", family, name], "").unwrap();
            }
            let cleared = clear(false);
            assert_eq!(cleared.problems, Vec::<String>::new());
            assert_eq!(cleared.removed.len(), 5, "{cleared:?}");
            let told = |words: &str| cleared.notes.iter().filter(|note| note.contains(words)).count();
            assert_eq!((told("policy of FORWARD"), told("cali-")), (2, 2), "{cleared:?}");
            for tool in ["iptables-nft", "iptables-legacy"] {
                let left = saved(tool);
                assert!(!left.contains("FLANNEL") && !left.contains("flanneld"), "{left}");
                assert!(
                    left.contains("-s 10.9.0.0/16 -j MASQUERADE") && left.contains("-j cali-FORWARD"),
                    "{left}"
                );
            }
            assert_eq!(run("nft", &["list", "tables", "ip6"], "").unwrap().trim(), "table ip6 flannel-ipv6");
            assert_eq!(clear(true).removed, ["removed flannel's nftables table ip6 flannel-ipv6"]);
            assert_eq!(clear(true).removed, Vec::<String>::new());
        });
    }

    #[test]
    fn where_nothing_is_nothing_is_made() {
        in_new_netns(|| {
            assert_eq!(clear(true), Cleared::default());
            assert_eq!(run("nft", &["list", "ruleset"], "").unwrap(), "");
            assert_eq!(legacy_tables(), BTreeSet::new());
        });
    }
}
