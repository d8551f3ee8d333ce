//! What `canalctl explain` is told: who decides about a connection, how policy comes to its verdict, and what the loaded
//! program answers.

mod end;
mod packet;
#[cfg(test)]
mod tests;
mod walk;

use std::{net::Ipv4Addr, sync::Arc};

use canal_common::{
    host::is_for_many,
    policy::Verdict,
    question::Question,
    settings::Settings,
    wire::{PROTO_IPIP, PROTO_UDP},
};

use self::{
    end::{Around, Found, Local},
    packet::{assumptions, is_icmp_error, packet, row_key, shown},
    walk::{Walked, walk},
};
use super::{
    Node,
    endpoints::{self, State},
    names,
};
use crate::{
    api::{
        explain::{Answer, Ask, BeforePolicy, Explanation, Judgement, Place},
        wire::ApiError,
    },
    compile::{
        Final, RuleId,
        reference::{self, Packet},
    },
    dataplane::{host, judge},
    model::rule::Direction,
};

/// What the kernel answers, and the decision behind it.
struct Answered {
    answer: Answer,
    decided: Option<Arc<Final>>,
}

impl Answered {
    fn without_rule(allow: Option<bool>, reason: String) -> Self {
        Self { answer: Answer { allow, rule: None, logs: Vec::new(), reason: Some(reason) }, decided: None }
    }
}

impl Node {
    /// To be asked when the kernel has followed the cluster.
    pub(super) fn explain(&mut self, ask: &Ask) -> Result<Explanation, ApiError> {
        let no = |message: String| ApiError { message, try_again: false };
        let later = |message: String| ApiError { message, try_again: true };
        if !self.store.in_sync() {
            return Err(later("the agent has not read the policies from etcd yet".to_owned()));
        }
        let addresses = self.netlink.addresses(None).map_err(|e| later(e.to_string()))?;
        let around = Around {
            cluster: &self.cluster,
            node: &self.config.node_name,
            locals: self.locals.holders().map(|(address, local)| (address, as_told(local))).collect(),
            host: host::addresses_of(addresses.into_iter().map(|address| address.net)).into_iter().collect(),
            peers: self.peers.status(self.own(), |ip| self.is_on_link(ip)),
            network: self.network.network,
        };
        let from = around.find(&ask.from).map_err(|e| no(format!("from: {e}")))?;
        let to = around.find(&ask.to).map_err(|e| no(format!("to: {e}")))?;
        let packet = packet(ask, from.end.address, to.end.address).map_err(no)?;
        concerns_us(&from, &to, &self.config.node_name).map_err(no)?;

        let before_policy = before_policy(&packet, &from, &to, &self.settings);
        let mut judgements = Vec::new();
        let mut asks_src_port = false;
        if before_policy.is_none() {
            for (found, direction) in [(&from, Direction::Egress), (&to, Direction::Ingress)] {
                let Some(local) = &found.local else { continue };
                let walked = walk(&self.cluster, &local.key, direction, &packet);
                let holder = around.locals.get(&found.end.address);
                let answered = if holder.is_some_and(|holder| holder.key != local.key) {
                    Answered::without_rule(Some(false), "its address is another endpoint's".to_owned())
                } else {
                    self.ask_kernel(found.end.address, direction, &packet)
                };
                asks_src_port |= walked.asks_src_port;
                judgements.push(judgement(found, local, direction, walked, answered));
            }
        }
        let mut notes: Vec<String> =
            self.failure.iter().map(|f| format!("the last update failed: {f}")).collect();
        if self.steering.waiting().is_some() {
            let told = "etcd says datastoreReady: false: this is about what was in force before";
            notes.push(told.to_owned());
        }
        notes.extend(assumptions(ask, &packet, asks_src_port));
        let after_policy = after_policy(&from, &to, self.settings.flags);
        if to.end.place == Place::ThisHost && after_policy.is_none() {
            notes.push("what policy allows to this host then meets the host's own firewall".to_owned());
        }
        let allow = match &before_policy {
            Some(before) => before.allow,
            None => Some(
                after_policy.is_none() && judgements.iter().all(|j| j.closed.is_none() && j.policy.allow),
            ),
        };
        Ok(Explanation {
            node: self.config.node_name.clone(),
            packet: shown(&packet),
            from: from.end,
            to: to.end,
            notes,
            before_policy,
            differs: judgements.iter().any(|judgement| !judgement.agrees),
            judgements,
            after_policy,
            allow,
        })
    }

    fn ask_kernel(&self, local: Ipv4Addr, direction: Direction, packet: &Packet) -> Answered {
        let endpoint = match judge::endpoint(&self.pins, local) {
            Ok(Some(endpoint)) => endpoint.id,
            Ok(None) => {
                return Answered::without_rule(
                    Some(false),
                    "no endpoint is programmed for this address".to_owned(),
                );
            }
            Err(error) => return Answered::without_rule(None, error.to_string()),
        };
        let (direction, peer) = match direction {
            Direction::Ingress => (Question::INGRESS, packet.source),
            Direction::Egress => (Question::EGRESS, packet.destination),
        };
        let (peer, key, src_port) = (peer.into(), row_key(packet), packet.src_port);
        let question = Question { peer, key, src_port, direction, _pad: 0, endpoint };
        match judge::ask(self.object.judge(), &[question]).as_deref() {
            Ok([verdict]) => self.meaning(*verdict),
            Ok(_) => Answered::without_rule(None, "it did not answer".to_owned()),
            Err(error) => Answered::without_rule(None, error.to_string()),
        }
    }

    fn meaning(&self, verdict: Verdict) -> Answered {
        let decided = self.policy.decided(verdict.id());
        let rule = decided.and_then(|decided| decided.rule.as_ref());
        let reason = match (decided, verdict.id()) {
            _ if rule.is_some() => None,
            (Some(_), _) | (None, 0) => Some("no rule".to_owned()),
            (None, id) => Some(format!("decision {id}, which stands for nothing")),
        };
        let name = |rule: &Arc<RuleId>| names::rule(&self.cluster, rule);
        let answer = Answer {
            allow: Some(verdict.allows()),
            rule: rule.map(name),
            logs: decided.iter().flat_map(|decided| &decided.logs).map(name).collect(),
            reason,
        };
        Answered { answer, decided: decided.cloned() }
    }
}

fn as_told(local: &endpoints::Local) -> Local {
    let reason = local.state.reason().map(str::to_owned);
    let (closed, degraded) = match local.state {
        State::Degraded(_) => (None, reason),
        _ => (reason, None),
    };
    Local { key: local.key.clone(), closed, degraded }
}

/// At least one end must be judged here, and there must be something to judge.
fn concerns_us(from: &Found, to: &Found, node: &str) -> Result<(), String> {
    if from.end.address == to.end.address {
        return Err("from and to are one: what a pod sends to itself never leaves it".to_owned());
    }
    if from.local.is_none() && to.local.is_none() {
        let elsewhere = |found: &Found| format!("{} is {}", found.end.address, found.end.description);
        return Err(format!("neither is a pod of this node, {node}: {}; {}", elsewhere(from), elsewhere(to)));
    }
    Ok(())
}

/// What the programs do without asking policy.
fn before_policy(packet: &Packet, from: &Found, to: &Found, settings: &Settings) -> Option<BeforePolicy> {
    let decided = |allow, reason: String| Some(BeforePolicy { allow, reason });
    if is_icmp_error(packet) {
        let reason = "an ICMP error passes if it is about a known connection, else it is dropped";
        return decided(None, reason.to_owned());
    }
    if from.local.is_some()
        && let Some(tunnel) = forbidden_tunnel(packet, to, settings)
    {
        return decided(Some(false), format!("a pod may not send {tunnel}"));
    }
    if from.end.place == Place::ThisHost {
        let closed = to.local.as_ref().and_then(|local| local.closed.clone());
        return match closed {
            None => decided(Some(true), "what this host sends to its own pods is never policed".to_owned()),
            Some(reason) => decided(Some(false), format!("the pod is closed: {reason}")),
        };
    }
    None
}

fn forbidden_tunnel(packet: &Packet, to: &Found, settings: &Settings) -> Option<String> {
    let allowed = |flag| settings.flags & flag != 0;
    match (packet.protocol, packet.dst_port) {
        (PROTO_UDP, port) if port == settings.vxlan_port => {
            let leaves_the_pods = !matches!(to.end.place, Place::Pod | Place::RemotePod)
                && (to.end.place != Place::Elsewhere || to.end.node.is_none());
            (!allowed(Settings::ALLOW_POD_VXLAN) || leaves_the_pods)
                .then(|| format!("VXLAN (UDP port {port})"))
        }
        (PROTO_UDP, port) if port == settings.calico_vxlan_port => {
            (!allowed(Settings::ALLOW_POD_VXLAN)).then(|| format!("VXLAN (UDP port {port})"))
        }
        (PROTO_IPIP, _) => (!allowed(Settings::ALLOW_POD_IPIP)).then(|| "IP in IP".to_owned()),
        _ => None,
    }
}

/// Why the programs drop what policy allows.
fn after_policy(from: &Found, to: &Found, flags: u32) -> Option<String> {
    let to_host = to.end.place == Place::ThisHost || is_for_many(to.end.address.into());
    let drops = from.local.is_some() && to_host && flags & Settings::DROP_TO_HOST != 0;
    drops.then(|| {
        "pods may not begin anything with this node itself (DefaultEndpointToHostAction: Drop)".to_owned()
    })
}

fn judgement(
    found: &Found,
    local: &Local,
    direction: Direction,
    walked: Walked,
    answered: Answered,
) -> Judgement {
    let Answered { answer, decided } = answered;
    let closed = local.closed.clone();
    let same_verdict = answer.allow == Some(walked.walk.allow && closed.is_none());
    // A decision without names may be one for which there was no room.
    let same_rules =
        closed.is_some() || decided.is_none_or(|decided| names_the_same(&decided, &walked.verdict));
    Judgement {
        endpoint: found.end.endpoint.clone().unwrap_or_default(),
        address: found.end.address,
        direction: direction.to_string(),
        closed,
        degraded: local.degraded.clone(),
        policy: walked.walk,
        kernel: answer,
        agrees: same_verdict && same_rules,
    }
}

fn names_the_same(decided: &Final, wanted: &reference::Verdict) -> bool {
    decided.rule.as_deref() == wanted.rule.as_ref() && decided.logs.iter().map(|log| &**log).eq(&wanted.logs)
}
