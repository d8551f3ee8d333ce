//! `canalctl`, for people and for scripts.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use bpf_tests::{
    Cmd, Connect, Host, Node, World, agent::binary, cmd::Output, pod::container_id, policy, until,
};
use serde_json::{Value, json};

use crate::soon;

/// Without a hint from the kernel it would be the agent's next tick, ten seconds later.
const PROMPT: Duration = Duration::from_secs(4);

fn command(node: &Node, line: &str) -> Cmd {
    let program = binary("canalctl").unwrap().display().to_string();
    node.netns()
        .cmd(&format!("{program} {line}"))
        .args(["--socket", &node.agent().socket().display().to_string()])
        .args(["--bpffs", &node.bpffs().display().to_string()])
}

pub(crate) fn canalctl(node: &Node, line: &str) -> Output {
    command(node, line).output().unwrap()
}

fn json(node: &Node, line: &str) -> Value {
    let said = canalctl(node, &format!("{line} -o json"));
    serde_json::from_str(&said.stdout).unwrap_or_else(|_| panic!("{said:?}"))
}

/// The first event about this port among the answer's.
fn event_to(answer: &Value, port: u16) -> Option<Value> {
    answer["events"].as_array()?.iter().find(|event| event["dst"]["port"] == port).cloned()
}

/// Packets that the status counts at a hook for a reason.
fn counted(status: &Value, hook: &str, reason: &str) -> u64 {
    let counters = status["counters"].as_array().unwrap();
    let found = counters.iter().find(|c| c["hook"] == hook && c["reason"] == reason);
    found.and_then(|c| c["packets"].as_u64()).unwrap_or_default()
}

#[test]
fn status_shows_everything_to_people_and_to_scripts() {
    let world = World::builder().nodes(2).build().unwrap();
    let node = world.node(1);
    let nothing = canalctl(node, "status");
    assert_eq!(nothing.status.code(), Some(2), "{nothing:?}");
    assert!(
        nothing.stderr.contains("no canal-agent listens") && nothing.stderr.contains("no pinned tables"),
        "{nothing:?}"
    );

    world.start_agents().unwrap();
    let a = node.add_pod("a", &[("app", "web")]).unwrap();
    let b = world.node(2).add_pod("b", &[]).unwrap();
    assert!(soon(|| a.pings(b.ip())));
    let table = canalctl(node, "status");
    assert_eq!(table.status.code(), Some(0), "{table:?}");
    for part in [
        "Agent",
        "node1",
        "Store",
        "http://192.168.60.254:2379",
        "connected",
        "revision",
        "Lease",
        "10.100.0.0/16",
        "VNI 1",
        "UDP 8472",
        "MTU 1450",
        "Health",
        "ok",
        "PEER SUBNET",
        "192.168.50.2",
        "ENDPOINT",
        "ready",
        "PROGRAM",
        "from_pod",
        "to_pod",
        "from_wire",
        "to_overlay",
        "from_overlay",
        "canal.1",
        "up0",
        "TABLE",
        "CAPACITY",
        "REASON",
        "encapsulated",
        "delivered",
        &a.ip().to_string(),
        a.host_interface(),
    ] {
        assert!(table.stdout.contains(part), "{part:?} is not in:\n{}", table.stdout);
    }

    let json = canalctl(node, "status -o json");
    assert_eq!(json.status.code(), Some(0));
    let status: Value = serde_json::from_str(&json.stdout).unwrap();
    for field in [
        "version",
        "node",
        "uptime_seconds",
        "problems",
        "store",
        "lease",
        "peers",
        "endpoints",
        "programs",
        "tables",
        "invalid",
        "counters",
    ] {
        assert!(status.get(field).is_some(), "{field}: {status}");
    }
    assert_eq!(status["node"], "node1");
    assert_eq!(status["store"]["connected"], true);
    assert_eq!(status["peers"][0]["public_ip"], "192.168.50.2");
    assert_eq!(status["endpoints"][0]["labels"]["app"], "web");
    assert_eq!(status["programs"].as_array().unwrap().len(), 5, "{status}");
    assert!(
        counted(&status, "from_pod", "encapsulated") > 0 && counted(&status, "from_wire", "delivered") > 0
    );
}

#[test]
fn the_exit_status_tells_how_it_is_and_counters_are_shown_without_an_agent() {
    let world = World::builder().nodes(2).build().unwrap();
    world.start_agents().unwrap();
    let node = world.node(1);
    let a = node.add_pod("a", &[]).unwrap();
    let b = world.node(2).add_pod("b", &[]).unwrap();
    assert!(soon(|| a.pings(b.ip())));
    let json = canalctl(node, "status -o json");
    assert_eq!(json.status.code(), Some(0));
    let status: Value = serde_json::from_str(&json.stdout).unwrap();
    world.etcd().kill();
    assert!(soon(|| canalctl(node, "status").status.code() == Some(1)));
    let degraded = canalctl(node, "status");
    assert!(
        degraded.stdout.contains("PROBLEM") && degraded.stdout.contains("etcd is away"),
        "{}",
        degraded.stdout
    );
    node.agent().terminate().unwrap();
    assert!(a.pings(b.ip()));
    let down = canalctl(node, "status");
    assert_eq!(down.status.code(), Some(2));
    assert!(
        down.stdout.contains("encapsulated") && down.stderr.contains("no canal-agent listens"),
        "{down:?}"
    );
    let down = canalctl(node, "status -o json");
    assert_eq!(down.status.code(), Some(2));
    let pinned: Value = serde_json::from_str(&down.stdout).unwrap();
    assert!(
        counted(&pinned, "from_pod", "encapsulated") > counted(&status, "from_pod", "encapsulated"),
        "they go on"
    );
    assert!(!pinned["problems"].as_array().unwrap().is_empty());
    world.etcd().restart().unwrap();
    node.agent().start().unwrap();
    assert!(soon(|| canalctl(node, "status").status.code() == Some(0)));
}

#[test]
fn a_denied_packet_is_told_at_once_with_its_rule_and_who_was_concerned() {
    let world = crate::one_node();
    world.start_agents().unwrap();
    let node = world.node(1);
    let nothing = canalctl(node, "drops");
    assert!(nothing.ok() && nothing.stdout.is_empty() && nothing.stderr.contains("nothing"), "{nothing:?}");
    let a = node.add_pod("a", &[]).unwrap();
    let b = node.add_pod("b", &[("app", "b")]).unwrap();
    let _server = b.serve_tcp(80).unwrap();
    world
        .etcd()
        .put_global_policy("default.shut", policy::ingress(1, "app == 'b'", json!([{"action": "Deny"}])))
        .unwrap();
    assert!(soon(|| a.connect(b.ip(), 80) == Connect::TimedOut));

    let told = || event_to(&json(node, "drops"), 80);
    assert!(until(PROMPT, || told().is_some()), "{}", json(node, "events"));
    let event = told().unwrap();
    assert_eq!((&event["kind"], &event["verdict"]), (&json!("dropped"), &json!("deny")), "{event:#}");
    assert_eq!(event["src"]["address"], a.ip().to_string().as_str());
    assert_eq!(event["src"]["pod"], format!("default/{}", container_id("a")).as_str());
    assert_eq!(event["dst"]["endpoint"], format!("default/node1-cni-{}-eth0", container_id("b")).as_str());
    assert_eq!((&event["rule"]["name"], &event["rule"]["index"]), (&json!("shut"), &json!(0)), "{event:#}");
    let age = event["unix_ms"].as_u64().unwrap().abs_diff(now_ms());
    assert!(age < 60_000, "{age} ms ago");
    let line = canalctl(node, "events").stdout;
    let wanted = format!("→ {}:80 (default/{})", b.ip(), &container_id("b")[..12]);
    assert!(line.contains(&wanted) && line.contains("decided by GlobalNetworkPolicy shut"), "{line}");

    let file = world.folder().join("followed");
    let mut follower = command(node, "events --follow -o json").start(&file).unwrap();
    let lines = || fs::read_to_string(&file).unwrap_or_default();
    let known = || json(node, "events")["last"].as_u64().unwrap();
    assert!(soon(|| lines().lines().count() > 0), "what is known comes first");
    let last = known();
    a.send_udp(b.ip(), 4711, b"x").unwrap();
    let is_new = |line: &str| {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("one object a line: {line}"));
        event["number"].as_u64().unwrap() > last && event["dst"]["port"] == 4711 && event["protocol"] == 17
    };
    assert!(until(PROMPT, || lines().lines().any(is_new)), "{}", lines());
    follower.kill();

    // The agent ends: so does the follower, with a reason.
    let file = world.folder().join("followed-to-the-end");
    let mut follower = command(node, "drops -f").start(&file).unwrap();
    assert!(soon(|| fs::read_to_string(&file).is_ok_and(|text| text.contains("shut"))));
    node.agent().terminate().unwrap();
    assert!(soon(|| !follower.is_running()));
    assert!(fs::read_to_string(&file).unwrap().contains("canalctl: "));
}

#[test]
fn log_rules_are_told_and_rules_are_counted_since_this_agent_knows_them() {
    let world = crate::one_node();
    world.start_agents().unwrap();
    let node = world.node(1);
    let a = node.add_pod("a", &[]).unwrap();
    let b = node.add_pod("b", &[("app", "b")]).unwrap();
    let _server = b.serve_tcp(80).unwrap();
    let rules = json!([
        {"action": "Log", "protocol": "TCP"},
        {"action": "Allow", "protocol": "TCP", "destination": {"ports": [80]}},
        {"action": "Log", "protocol": "TCP"},
        {"action": "Deny"},
    ]);
    world.etcd().put_global_policy("default.watched", policy::ingress(1, "app == 'b'", rules)).unwrap();
    assert!(soon(|| a.connect(b.ip(), 81) == Connect::TimedOut));
    assert!(a.reaches(b.ip(), 80));

    let told = |port: u16| event_to(&json(node, "events"), port);
    assert!(until(PROMPT, || told(80).is_some() && told(81).is_some()), "{:#}", json(node, "events"));
    let indices = |event: &Value| -> Vec<u64> {
        event["logs"].as_array().unwrap().iter().map(|rule| rule["index"].as_u64().unwrap()).collect()
    };
    for (port, kind, verdict, logs, rule) in
        [(80, "logged-allowed", "allow", vec![0], 1), (81, "logged-denied", "deny", vec![0, 2], 3)]
    {
        let event = told(port).unwrap();
        assert_eq!((&event["kind"], &event["verdict"]), (&json!(kind), &json!(verdict)), "{event:#}");
        assert_eq!((indices(&event), &event["rule"]["index"]), (logs, &json!(rule)), "{event:#}");
        let end = format!("dst_endpoint=\"default/node1-cni-{}-eth0\"", container_id("b"));
        let words =
            ["calico-packet", "watched", "tier=\"default\"", verdict, &end, &format!("dst_port={port}")];
        assert!(node.agent().says(&words, PROMPT), "{}", node.agent().log());
    }
    let drops = json(node, "drops");
    let is_drop = |e: &Value| e["kind"] != "logged-allowed";
    assert!(drops["events"].as_array().unwrap().iter().all(is_drop), "{drops:#}");

    // More of one sort than the kernel tells of in a second: all are counted, some are told, the rest is counted as lost.
    for _ in 0..300 {
        a.send_udp(b.ip(), 4711, b"x").unwrap();
    }
    let of = |index: u64| -> Value {
        let rules = json(node, "rules")["rules"].clone();
        let is = |r: &&Value| r["rule"]["index"] == index && r["rule"]["name"] == "watched";
        rules.as_array().unwrap().iter().find(is).cloned().unwrap_or_default()
    };
    let count = |index: u64, field: &str| of(index)[field].as_u64().unwrap_or_default();
    assert!(soon(|| count(3, "flows") >= 300), "{:#}", json(node, "rules"));
    assert!(count(3, "lost") > 0 && count(3, "lost") < count(3, "flows"), "{:#}", of(3));
    assert_eq!(
        (of(0)["action"].clone(), of(1)["action"].clone(), of(3)["action"].clone()),
        (json!("Log"), json!("Allow"), json!("Deny"))
    );
    assert!(count(0, "flows") > count(2, "flows") && count(1, "flows") >= 1, "{:#}", json(node, "rules"));
    let table = canalctl(node, "rules").stdout;
    assert!(table.contains("GlobalNetworkPolicy watched") && table.contains("LOST EVENTS"), "{table}");
    let lost = |event: &Value| event["dst"]["port"] == 4711 && event["lost"].as_u64() > Some(0);
    a.send_udp(b.ip(), 4711, b"x").unwrap();
    assert!(soon(|| json(node, "events")["events"].as_array().unwrap().iter().any(lost)));

    node.agent().crash_and_restart().unwrap();
    assert!(soon(|| !a.reaches(b.ip(), 81) && count(3, "flows") > 0));
    assert!(count(3, "flows") < 100, "another process, another count: {:#}", of(3));
}

/// The value of a sample, written as it is exposed.
fn sample(text: &str, series: &str) -> Option<f64> {
    let line =
        text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// What a port of this namespace answers to a monitor.
fn scrape() -> std::io::Result<String> {
    let mut stream = TcpStream::connect("127.0.0.1:9091")?;
    stream.set_read_timeout(Some(PROMPT))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn metrics_are_on_the_socket_and_on_a_port_while_felixs_parameters_want_it() {
    let world = World::builder().nodes(2).build().unwrap();
    world.start_agents().unwrap();
    let node = world.node(1);
    let a = node.add_pod("a", &[("app", "a")]).unwrap();
    world
        .etcd()
        .put_global_policy("p", policy::ingress(1, "app == 'a'", json!([{"action": "Deny"}])))
        .unwrap();
    let far = world.node(2).add_pod("far", &[]).unwrap();
    assert!(soon(|| far.connect(a.ip(), 80) == Connect::TimedOut));
    let said = canalctl(node, "metrics");
    assert!(said.ok(), "{said:?}");
    for (series, least) in [
        ("felix_resync_state", 3.0),
        ("felix_cluster_num_hosts", 2.0),
        ("felix_cluster_num_workload_endpoints", 2.0),
        ("felix_cluster_num_policies", 1.0),
        ("felix_active_local_endpoints", 1.0),
        ("felix_active_local_policies", 1.0),
        ("felix_int_dataplane_apply_time_seconds_count", 1.0),
        ("canal_endpoints{state=\"ready\"}", 1.0),
        ("canal_store_revision", 2.0),
        ("canal_table_entries{table=\"ENDPOINTS\"}", 1.0),
        ("canal_table_capacity{table=\"ROWS\"}", 1024.0),
        ("canal_dropped_packets_total{hook=\"from_wire\",reason=\"policy-ingress\"}", 1.0),
        ("canal_events_total{kind=\"dropped\"}", 1.0),
        ("canal_apply_seconds_count", 1.0),
    ] {
        assert!(sample(&said.stdout, series) >= Some(least), "{series} in:\n{}", said.stdout);
    }
    assert_eq!(sample(&said.stdout, "canal_problems"), Some(0.0), "{}", said.stdout);

    let on_port = || node.netns().run(|| scrape().unwrap_or_default()).unwrap();
    assert!(on_port().is_empty(), "off unless asked for");
    let felix = |on: bool| json!({"prometheusMetricsEnabled": on, "prometheusMetricsHost": "127.0.0.1"});
    world
        .etcd()
        .put_resource("felixconfigurations", "FelixConfiguration", None, "default", felix(true))
        .unwrap();
    assert!(soon(|| sample(&on_port(), "felix_resync_state") == Some(3.0)));
    world
        .etcd()
        .put_resource("felixconfigurations", "FelixConfiguration", None, "default", felix(false))
        .unwrap();
    assert!(soon(|| on_port().is_empty()));
}

fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

#[test]
fn a_wrong_verb_or_flag_is_explained() {
    let world = crate::one_node();
    for line in ["", "stats", "status --output yaml", "status --no-such-flag"] {
        let said = canalctl(world.node(1), line);
        assert!(
            !said.ok() && said.stderr.contains("Usage") || said.stderr.contains("possible values"),
            "{line}: {said:?}"
        );
    }
}

#[test]
fn readers_of_metrics_that_say_nothing_or_little_keep_neither_others_nor_the_agent_waiting() {
    let world = crate::one_node();
    let node = world.node(1);
    node.agent().start().unwrap();
    let (a, b) = (node.add_pod("a", &[]).unwrap(), node.add_pod("b", &[("app", "b")]).unwrap());
    let on = json!({"prometheusMetricsEnabled": true, "prometheusMetricsHost": "127.0.0.1"});
    world.etcd().put_resource("felixconfigurations", "FelixConfiguration", None, "default", on).unwrap();
    let on_port = || node.netns().run(|| scrape().unwrap_or_default()).unwrap();
    assert!(soon(|| sample(&on_port(), "felix_resync_state") == Some(3.0)));

    let connect = || TcpStream::connect("127.0.0.1:9091").unwrap();
    let readers = node.netns().run(|| std::iter::repeat_with(connect).take(20).collect::<Vec<_>>()).unwrap();
    let (mut slow, silent) = readers.split_first().unwrap();
    slow.write_all(b"GET /metrics HTTP/1.1\r\nX: ").unwrap();
    world.etcd().put_global_policy("shut", policy::ingress(1, "app == 'b'", json!([]))).unwrap();
    assert!(until(PROMPT, || !a.pings(b.ip())), "the agent goes on with its work");
    assert!(canalctl(node, "metrics").ok(), "and answers on its socket");
    let mut ended = false;
    let answered = soon(|| {
        ended |= slow.write_all(b"x").is_err();
        sample(&on_port(), "canal_endpoints{state=\"ready\"}") == Some(2.0)
    });
    assert!(answered, "others get their turn");
    assert!(soon(|| slow.write_all(b"x").is_err()), "who never ends the request is sent away");
    for mut reader in silent {
        reader.set_read_timeout(Some(PROMPT * 4)).unwrap();
        assert_eq!(reader.read(&mut [0]).unwrap(), 0, "and so is who says nothing");
    }
}
