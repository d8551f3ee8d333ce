//! `canalctl rules`.

use super::{Cli, Output, PATIENCE, duration, table::table};
use crate::api::{
    client::Client,
    wire::{RuleStatus, Rules},
};

pub(super) fn run(cli: &Cli, output: Output) -> anyhow::Result<u8> {
    let rules: Rules = Client::new(&cli.socket).timeout(PATIENCE).get("/v1/rules")?;
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&rules)?),
        Output::Table => print!("{}", render(&rules)),
    }
    Ok(0)
}

fn render(rules: &Rules) -> String {
    let mut rows = table(["TIER", "POLICY", "DIRECTION", "RULE", "ACTION", "FLOWS", "LOST EVENTS"]);
    for RuleStatus { rule, action, flows, lost } in &rules.rules {
        let (tier, policy, direction, index) = match rule {
            Some(rule) => (
                rule.tier.clone(),
                format!("{} {}", rule.kind, rule.qualified_name()),
                rule.direction.clone(),
                rule.index.to_string(),
            ),
            None => (String::new(), "no rule".to_owned(), String::new(), String::new()),
        };
        rows.add_row([tier, policy, direction, index, action.clone(), flows.to_string(), lost.to_string()]);
    }
    let since = duration(rules.seconds);
    format!("New flows by rule on this node in the last {since}, or since a rule came into force\n\n{rows}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::wire::RuleName;

    #[test]
    fn a_row_for_each_rule_and_one_for_none() {
        let rule = RuleName {
            tier: "default".to_owned(),
            kind: "NetworkPolicy".to_owned(),
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            key: String::new(),
            direction: "ingress".to_owned(),
            index: 2,
        };
        let status = |rule, action: &str| RuleStatus { rule, action: action.to_owned(), flows: 7, lost: 1 };
        let rules = Rules { seconds: 61, rules: vec![status(None, "Deny"), status(Some(rule), "Log")] };
        let text = render(&rules);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert!(text.contains("in the last 1 min"), "{text}");
        assert_eq!(lines[3], ["no", "rule", "Deny", "7", "1"]);
        assert_eq!(lines[4], ["default", "NetworkPolicy", "shop/web", "ingress", "2", "Log", "7", "1"]);
    }
}
