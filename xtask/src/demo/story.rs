//! Owns: what the demo does, step by step, and what it expects of each step.
//! Promises: each expectation is looked at in the world, not assumed. A step that the others build on ends the demo
//! when it fails; any other failure is a row.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bpf_tests::{
    Connect, Host, LiveConnection, Node, Pinger, Pod, World,
    load::{self, Congestion},
    policy,
    probe::PingStats,
    until,
    world::AGENT_READY,
};
use ipnet::Ipv4Net;
use serde_json::{Value, json};

use super::{
    evidence,
    screen::{Screen, Seen},
};

/// Where `db` serves, as PostgreSQL would.
const PORT: u16 = 5432;
const BULK: Duration = Duration::from_secs(2);
/// Far below what any machine does, and above what a path without segmentation offload in a debug build would.
const BULK_LEAST: f64 = 0.5;
/// How long a change in etcd may take until it is in force.
const SOON: Duration = Duration::from_secs(5);
const POLICY: &str = "db-from-web";
const LEASES: &str = "/coreos.com/network/subnets/";

/// The pods that play.
#[derive(Debug)]
pub(super) struct Cast {
    /// On node 1.
    pub(super) web: Pod,
    /// On node 1, beside `web`.
    pub(super) shop: Pod,
    /// On node 2, and the one that a policy guards.
    pub(super) db: Pod,
    /// One on each further node.
    pub(super) others: Vec<Pod>,
}

impl Cast {
    fn all(&self) -> Vec<&Pod> {
        [&self.web, &self.shop, &self.db].into_iter().chain(&self.others).collect()
    }
}

pub(super) fn tell(screen: &mut Screen, world: &World) -> Result<Cast> {
    screen.section("The cluster");
    let cast = cluster(screen, world)?;
    screen.section("Packets");
    packets(screen, world, &cast);
    screen.section("Policy");
    let server = cast.db.serve_tcp(PORT).context("pod db cannot serve")?;
    revoke_and_allow(screen, world, &cast);
    screen.section("The agent dies");
    crash(screen, world, &cast);
    drop(server);
    screen.section("What the kernel holds");
    evidence::counters(screen, world);
    evidence::table(screen, world);
    Ok(cast)
}

fn cluster(screen: &mut Screen, world: &World) -> Result<Cast> {
    let count = world.nodes().len();
    let started = screen.step("an agent starts on each node", &format!("{count} agents ready"), || {
        world.start_agents()?;
        Ok(Seen::that(true, format!("{count} ready: lease held, programs attached")))
    });
    ensure!(started, "there is no cluster without its agents");
    screen.step("each holds a subnet lease in etcd", &format!("{count} subnets of 10.100.0.0/16"), || {
        leases(world)
    });
    let mut cast = None;
    screen.step("pods are made by the CNI plugin", "an address of its node's subnet each", || {
        let made = Cast {
            web: world.node(1).add_pod("web", &[("app", "web")])?,
            shop: world.node(1).add_pod("shop", &[("app", "shop")])?,
            db: world.node(2).add_pod("db", &[("app", "db")])?,
            others: world.nodes()[2..]
                .iter()
                .map(|node| node.add_pod(&format!("pod{}", node.number()), &[]))
                .collect::<Result<_>>()?,
        };
        let right = world.nodes().iter().all(|node| {
            subnet(node).is_ok_and(|subnet| node.pods().iter().all(|pod| subnet.contains(&pod.ip())))
        });
        let places = made.all().into_iter().map(|pod| format!("{} {}", pod.name(), pod.ip()));
        let text = some(places.collect());
        cast = Some(made);
        Ok(Seen::that(right, text))
    });
    cast.context("there is nothing to show without pods")
}

/// The subnet that an agent says it holds.
fn subnet(node: &Node) -> Result<Ipv4Net> {
    let status = node.agent().status()?;
    let text = status["lease"]["subnet"].as_str().context("the status names no subnet")?;
    text.parse().with_context(|| format!("subnet {text:?}"))
}

/// Etcd, the agents and the subnet files must agree.
fn leases(world: &World) -> Result<Seen> {
    let stored = world.etcd().list(LEASES)?;
    let network: Ipv4Net = "10.100.0.0/16".parse()?;
    let mut seen = Vec::new();
    let mut distinct = BTreeSet::new();
    let mut right = stored.len() == world.nodes().len();
    for node in world.nodes() {
        let subnet = subnet(node)?;
        let key = format!("{LEASES}{}-{}", subnet.network(), subnet.prefix_len());
        let value: Value = stored.get(&key).map_or(Ok(Value::Null), |text| serde_json::from_str(text))?;
        let file = std::fs::read_to_string(node.agent().subnet_file()).context("no subnet file")?;
        right &= value["PublicIP"] == node.public_ip().to_string()
            && value["BackendData"]["VNI"] == 1
            && file.contains(&format!(
                "FLANNEL_SUBNET={}/",
                Ipv4Addr::from_bits(subnet.network().to_bits() + 1)
            ))
            && network.contains(&subnet)
            && distinct.insert(subnet);
        seen.push(format!("{} {subnet}", node.name()));
    }
    Ok(Seen::that(right, some(seen)))
}

/// The first few of a list.
fn some(mut list: Vec<String>) -> String {
    const SHOWN: usize = 4;
    let more = list.len().saturating_sub(SHOWN);
    list.truncate(SHOWN);
    let rest = if more > 0 { format!(", and {more} more") } else { String::new() };
    list.join(", ") + &rest
}

fn packets(screen: &mut Screen, world: &World, cast: &Cast) {
    let Cast { web, shop, db, .. } = cast;
    for (what, to) in [("ping to a pod of another node", db), ("ping to a pod of the same node", shop)] {
        screen.step(what, "5 of 5 answered", || Ok(pinged(&web.ping(to.ip(), 5)?)));
    }
    if !cast.others.is_empty() {
        let all = cast.all();
        let expected = format!("{} of {} answered", all.len(), all.len());
        screen.step("ping from each pod to the next", &expected, || {
            let next = all.iter().cycle().skip(1);
            let deaf: Vec<&str> = all
                .iter()
                .zip(next)
                .filter(|(from, to)| from.ping(to.ip(), 1).is_ok_and(|stats| stats.lost > 0))
                .map(|(from, _)| from.name())
                .collect();
            let silent =
                if deaf.is_empty() { String::new() } else { format!("; not from {}", deaf.join(", ")) };
            let answered = all.len() - deaf.len();
            Ok(Seen::that(deaf.is_empty(), format!("{answered} of {} answered{silent}", all.len())))
        });
    }
    screen.step("a packet on the wire between the nodes", "VXLAN: UDP port 8472, VNI 1", || {
        evidence::wire(world, web, db)
    });
    for (what, to) in [("TCP bulk to another node", db), ("TCP bulk on the same node", shop)] {
        screen.step(what, &format!("one stream, above {BULK_LEAST} Gb/s"), || {
            let rate =
                load::bulk(load::Path { from: web, to }, 1, Congestion::Default, BULK)?.gigabits_per_second();
            Ok(Seen::that(rate > BULK_LEAST, format!("{rate:.1} Gb/s")))
        });
    }
}

fn pinged(stats: &PingStats) -> Seen {
    let text =
        format!("{} of {} answered, {:.2} ms on average", stats.received, stats.sent(), stats.average_ms);
    Seen::that(stats.lost == 0, text)
}

fn revoke_and_allow(screen: &mut Screen, world: &World, cast: &Cast) {
    let Cast { web, shop, db, .. } = cast;
    let open = |from: &Pod| until(SOON, || from.reaches(db.ip(), PORT));
    let shut = |from: &Pod| until(SOON, || from.connect(db.ip(), PORT) == Connect::TimedOut);
    let put =
        |rules: Value| world.etcd().put_global_policy(POLICY, policy::ingress(100, "app == 'db'", rules));
    let word =
        |right: bool, wanted: &str, other: &str| if right { wanted.to_owned() } else { other.to_owned() };

    screen.step("there is no policy yet", "web and shop reach db", || {
        let (web, shop) = (open(web), open(shop));
        Ok(Seen::that(web && shop, seen_by(web, shop)))
    });
    screen.step("a policy for app == 'db' that allows nothing", "web and shop are shut out", || {
        put(json!([]))?;
        let took = in_force(world.node(2))?;
        let (web, shop) = (shut(web), shut(shop));
        let text = format!("{}; in force after {} ms", seen_by(!web, !shop), took.as_millis());
        Ok(Seen::that(web && shop, text))
    });
    screen.step("a rule for app == 'web' is added", "web reaches db, shop does not", || {
        put(from_web(&[PORT]))?;
        let (web, shop) = (open(web), shut(shop));
        Ok(Seen::that(web && shop, seen_by(web, !shop)))
    });
    screen.step("the rule is taken back under a live connection", "the connection is cut", || {
        let live = LiveConnection::open(web.netns(), db.ip(), PORT)?;
        put(json!([]))?;
        let cut = live.cut_within(SOON + Duration::from_secs(2));
        Ok(Seen::that(cut.is_ok(), cut.map_or_else(|error| error.to_string(), |how| format!("cut: {how}"))))
    });
    screen.step("the rule is given back", "a new connection comes about", || {
        put(from_web(&[PORT]))?;
        let open = open(web);
        Ok(Seen::that(open, word(open, "web reaches db", "web is shut out")))
    });
}

/// Waits until the node's agent says that the policy is in the kernel.
fn in_force(node: &Node) -> Result<Duration> {
    let start = Instant::now();
    let named = |direction: &Value| {
        direction.as_array().is_some_and(|policies| policies.iter().any(|name| name_of(name) == POLICY))
    };
    let found = until(SOON, || {
        let status = node.agent().status().unwrap_or_default();
        status["endpoints"].as_array().is_some_and(|all| all.iter().any(|one| named(&one["ingress"])))
    });
    ensure!(found, "{} does not say that {POLICY} is in force", node.name());
    Ok(start.elapsed())
}

/// Without tier or namespace.
fn name_of(policy: &Value) -> &str {
    let text = policy.as_str().unwrap_or_default();
    text.rsplit(['/', ' ']).next().unwrap_or_default()
}

/// Rules that let `web` ping, and open TCP connections to these ports.
fn from_web(ports: &[u16]) -> Value {
    let source = json!({"selector": "app == 'web'"});
    json!([
        {"action": "Allow", "protocol": "TCP", "source": source, "destination": {"ports": ports}},
        {"action": "Allow", "protocol": "ICMP", "source": source},
    ])
}

fn seen_by(web: bool, shop: bool) -> String {
    match (web, shop) {
        (true, true) => "both reach db",
        (true, false) => "web reaches db, shop is shut out",
        (false, true) => "shop reaches db, web is shut out",
        (false, false) => "both are shut out",
    }
    .to_owned()
}

/// On the node of `db`, where the policy is enforced.
fn crash(screen: &mut Screen, world: &World, cast: &Cast) {
    let Cast { web, shop, db, .. } = cast;
    let agent = world.node(2).agent();
    let what = "kill -9 and restart of node2's agent, under 100 pings a second";
    screen.step(what, "no ping is lost", || {
        let pinger = Pinger::start(web.netns(), db.ip(), Duration::from_millis(10))?;
        ensure!(until(SOON, || pinger.stats().received > 50), "the pings do not flow");
        agent.kill_9();
        let dead = pinger.stats().received;
        ensure!(until(SOON, || pinger.stats().received > dead + 50), "the pings stop with the agent");
        agent.spawn()?;
        agent.wait_ready(AGENT_READY)?;
        let back = pinger.stats().received;
        ensure!(until(SOON, || pinger.stats().received > back + 50), "the pings stop with the new agent");
        Ok(pinged(&pinger.stop()?))
    });
    screen.step("policy while node2 has no agent", "in force: web reaches db, shop does not", || {
        agent.kill_9();
        let (web, shop) = (web.reaches(db.ip(), PORT), shop.reaches(db.ip(), PORT));
        agent.start()?;
        Ok(Seen::that(web && !shop, seen_by(web, shop)))
    });
}
