//! `canalctl explain`.

use std::fmt::Write as _;

use clap::Args;

use super::{Cli, Output, protocol};
use crate::api::{
    client::Client,
    explain::{Answer, Ask, End, Explanation, Judgement, MatchedRule, Packet, PolicyWalk, ProfileWalk},
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Who connects: namespace/name of a WorkloadEndpoint, a pod, the first characters of a container id, or an address
    #[arg(long, value_name = "POD|IP")]
    from: String,
    /// To whom
    #[arg(long, value_name = "POD|IP")]
    to: String,
    /// tcp, udp, icmp, sctp, udplite, or a number
    #[arg(long, value_name = "PROTOCOL", value_parser = protocol::parse)]
    proto: u8,
    /// Destination port
    #[arg(long)]
    port: Option<u16>,
    /// Source port; 49152 unless given
    #[arg(long)]
    src_port: Option<u16>,
    /// ICMP type; an echo request (8) unless given
    #[arg(long)]
    icmp_type: Option<u8>,
    #[arg(long)]
    icmp_code: Option<u8>,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// The kernel does not do what policy says.
const DIFFERS: u8 = 3;

pub(super) fn run(cli: &Cli, arguments: &Arguments) -> anyhow::Result<u8> {
    let ask = Ask {
        from: arguments.from.clone(),
        to: arguments.to.clone(),
        protocol: arguments.proto,
        port: arguments.port,
        src_port: arguments.src_port,
        icmp_type: arguments.icmp_type,
        icmp_code: arguments.icmp_code,
    };
    let explanation = Client::new(&cli.socket).timeout(super::PATIENCE).explain(&ask)?;
    match arguments.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&explanation)?),
        Output::Table => print!("{}", render(&explanation)),
    }
    Ok(if explanation.differs { DIFFERS } else { 0 })
}

fn render(explanation: &Explanation) -> String {
    let mut text = String::new();
    for (label, end) in [("From", &explanation.from), ("To", &explanation.to)] {
        let _ = writeln!(text, "{label:<8}{}", end_line(end));
    }
    let _ = writeln!(text, "Packet  {}", packet_line(&explanation.packet));
    for note in &explanation.notes {
        let _ = writeln!(text, "Note    {note}");
    }
    for judgement in &explanation.judgements {
        text.push('\n');
        judge(&mut text, judgement);
    }
    text.push('\n');
    let verdict = match explanation.allow {
        Some(true) => "ALLOWED",
        Some(false) => "DENIED",
        None => "NOT DECIDED BY POLICY",
    };
    let _ = write!(text, "{verdict}");
    if let Some(before) = &explanation.before_policy {
        let _ = write!(text, ": {}", before.reason);
    } else if let Some(by) = explanation.judgements.iter().find(|j| j.closed.is_some() || !j.policy.allow) {
        let _ = write!(text, " by {} of {}", by.direction, by.endpoint);
    } else if let Some(reason) = &explanation.after_policy {
        let _ = write!(text, ": {reason}");
    }
    if explanation.judgements.iter().any(|j| j.degraded.is_some() && !j.agrees) {
        text.push_str(", once its policy is in force; for now the kernel does as an earlier one says");
    }
    text.push('\n');
    text
}

fn end_line(end: &End) -> String {
    match &end.endpoint {
        Some(endpoint) => format!("{} ({endpoint}), {}", end.address, end.description),
        None => format!("{}, {}", end.address, end.description),
    }
}

fn packet_line(packet: &Packet) -> String {
    let name = protocol::name(packet.protocol);
    match packet.protocol {
        1 => format!("{name} type {}, code {}", packet.icmp_type, packet.icmp_code),
        _ if protocol::has_ports(packet.protocol) => {
            format!("{name} from port {} to port {}", packet.src_port, packet.dst_port)
        }
        _ => format!("IP protocol {name}"),
    }
}

fn judge(text: &mut String, judgement: &Judgement) {
    let walk = &judgement.policy;
    let direction = judgement.direction.to_uppercase();
    let _ = writeln!(text, "{direction} of {} ({})", judgement.endpoint, judgement.address);
    for tier in &walk.tiers {
        let missing = if tier.exists { "" } else { ", which does not exist" };
        let _ = writeln!(text, "  tier {}{missing}", tier.tier);
        for policy in &tier.policies {
            policy_lines(text, policy);
        }
        if tier.ended {
            let _ = writeln!(text, "    end of tier: {}", tier.default_action);
        }
    }
    for profile in &walk.profiles {
        profile_lines(text, profile);
    }
    let verdict = word(walk.allow);
    let _ = writeln!(text, "  policy: {verdict}, {}", walk.reason);
    if let Some(reason) = &judgement.closed {
        let _ = writeln!(text, "  but the pod is closed, whatever policy says: {reason}");
    }
    if let Some(reason) = &judgement.degraded {
        let _ = writeln!(text, "  but an earlier policy is in force: {reason}");
    }
    let _ = writeln!(text, "  kernel: {}", answer(&judgement.kernel));
    if !judgement.agrees && judgement.degraded.is_none() {
        let _ = writeln!(
            text,
            "  DIFFERENCE: the kernel does not do what policy says; restarting canal-agent writes its tables anew. \
             Please report this, with the output of -o json"
        );
    }
}

fn policy_lines(text: &mut String, policy: &PolicyWalk) {
    let separator = if policy.namespace.is_empty() { "" } else { "/" };
    let name = format!("{} {}{separator}{}", policy.kind, policy.namespace, policy.name);
    let _ = writeln!(text, "    {name}: {}", matches(&policy.matched, policy.rules));
    // What people call it is not always what it is stored as.
    if !policy.key.ends_with(&format!("/{}", policy.name)) {
        let _ = writeln!(text, "      stored as {}", policy.key);
    }
    if let Some(problem) = &policy.problem {
        let _ = writeln!(text, "      INVALID {problem}");
    }
}

fn profile_lines(text: &mut String, profile: &ProfileWalk) {
    let found =
        if profile.exists { matches(&profile.matched, profile.rules) } else { "does not exist".to_owned() };
    let _ = writeln!(text, "  Profile {}: {found}", profile.name);
    if let Some(problem) = &profile.problem {
        let _ = writeln!(text, "      INVALID {problem}");
    }
}

fn matches(matched: &[MatchedRule], rules: usize) -> String {
    if matched.is_empty() {
        return match rules {
            0 => "has no rules".to_owned(),
            1 => "its rule does not match".to_owned(),
            _ => format!("none of its {rules} rules matches"),
        };
    }
    let each: Vec<String> =
        matched.iter().map(|rule| format!("rule {} matches: {}", rule.index, rule.action)).collect();
    each.join(", ")
}

fn answer(answer: &Answer) -> String {
    let verdict = match answer.allow {
        Some(allow) => word(allow),
        None => "gave no answer",
    };
    match (&answer.rule, &answer.reason) {
        (Some(rule), _) => format!("{verdict}, {rule}"),
        (None, Some(reason)) => format!("{verdict}, {reason}"),
        (None, None) => verdict.to_owned(),
    }
}

fn word(allow: bool) -> &'static str {
    if allow { "allow" } else { "deny" }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = r#"{
        "node": "node1",
        "from": {"address": "10.100.1.5", "place": "pod", "endpoint": "default/node1-cni-abc-eth0", "node": "node1", "description": "pod of this node"},
        "to": {"address": "203.0.113.9", "place": "elsewhere", "endpoint": null, "node": null, "description": "outside the pod network"},
        "packet": {"source": "10.100.1.5", "destination": "203.0.113.9", "protocol": 6, "src_port": 49152, "dst_port": 80, "icmp_type": 0, "icmp_code": 0},
        "notes": ["source port 49152 is assumed"],
        "before_policy": null,
        "judgements": [{
            "endpoint": "default/node1-cni-abc-eth0", "address": "10.100.1.5", "direction": "egress", "closed": null, "degraded": "no room",
            "policy": {
                "tiers": [
                    {"tier": "edge", "exists": true, "default_action": "Pass", "ended": true, "policies": [
                        {"kind": "GlobalNetworkPolicy", "namespace": "", "name": "log", "key": "/x/log", "problem": null, "rules": 2, "matched": [{"index": 0, "action": "Log"}]},
                        {"kind": "GlobalNetworkPolicy", "namespace": "", "name": "half", "key": "/x/half", "problem": "rule 0: bad", "rules": 1, "matched": []}
                    ]},
                    {"tier": "lost", "exists": false, "default_action": "Deny", "ended": false, "policies": [
                        {"kind": "NetworkPolicy", "namespace": "shop", "name": "web", "key": "/x/shop/default.web", "problem": null, "rules": 4, "matched": [{"index": 1, "action": "Log"}, {"index": 3, "action": "Pass"}]}
                    ]}
                ],
                "profiles": [
                    {"name": "empty", "exists": true, "problem": null, "rules": 0, "matched": []},
                    {"name": "gone", "exists": false, "problem": null, "rules": 0, "matched": []}
                ],
                "allow": false, "decided_by": "missing-profile", "rule": null, "reason": "profile gone does not exist, which denies everything"
            },
            "kernel": {"allow": true, "rule": {"tier": "default", "kind": "NetworkPolicy", "namespace": "shop", "name": "web", "key": "/x", "direction": "egress", "index": 7}, "logs": [], "reason": null},
            "agrees": false
        }],
        "after_policy": null, "allow": false, "differs": true
    }"#;

    #[test]
    fn a_walk_reads_from_top_to_bottom() {
        let text = render(&serde_json::from_str(JSON).unwrap());
        let wanted = "\
From    10.100.1.5 (default/node1-cni-abc-eth0), pod of this node
To      203.0.113.9, outside the pod network
Packet  TCP from port 49152 to port 80
Note    source port 49152 is assumed

EGRESS of default/node1-cni-abc-eth0 (10.100.1.5)
  tier edge
    GlobalNetworkPolicy log: rule 0 matches: Log
    GlobalNetworkPolicy half: its rule does not match
      INVALID rule 0: bad
    end of tier: Pass
  tier lost, which does not exist
    NetworkPolicy shop/web: rule 1 matches: Log, rule 3 matches: Pass
      stored as /x/shop/default.web
  Profile empty: has no rules
  Profile gone: does not exist
  policy: deny, profile gone does not exist, which denies everything
  but an earlier policy is in force: no room
  kernel: allow, NetworkPolicy shop/web (tier default) egress rule 7

DENIED by egress of default/node1-cni-abc-eth0, once its policy is in force; for now the kernel does as an earlier one says
";
        assert_eq!(text, wanted);
    }

    #[test]
    fn what_comes_before_policy_is_the_last_line() {
        let mut explanation: Explanation = serde_json::from_str(JSON).unwrap();
        explanation.judgements.clear();
        for (allow, line) in
            [(None, "NOT DECIDED BY POLICY: why"), (Some(false), "DENIED: why"), (Some(true), "ALLOWED: why")]
        {
            explanation.allow = allow;
            explanation.before_policy =
                Some(crate::api::explain::BeforePolicy { allow, reason: "why".to_owned() });
            assert_eq!(render(&explanation).lines().last(), Some(line));
        }
    }
}
