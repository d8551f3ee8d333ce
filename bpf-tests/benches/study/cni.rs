//! The CNI plugin as a runtime calls it, beside Debian's `bridge` with the same `host-local`: what ADD and DEL take, one
//! at a time and fifty at once. Ours returns when the pod's policy is enforced; `bridge` knows no policy.

use std::{
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use bpf_tests::{Host as _, Netns, Node, World, agent::binary};
use canal_agent::netlink;
use serde_json::{Value, json};

use super::Figure;

const PODS: usize = 50;
const PLUGINS: &str = "/usr/lib/cni:/opt/cni/bin";

/// A plugin with its configuration.
struct Plugin {
    name: &'static str,
    program: PathBuf,
    config: Value,
}

/// What calls took, in milliseconds.
#[derive(Default)]
struct Times {
    add: Vec<f64>,
    del: Vec<f64>,
}

pub(super) fn measure(rounds: u32) -> Result<Vec<Figure>> {
    let world = World::builder().nodes(1).build()?;
    let node = world.node(1);
    node.agent().start()?;
    let pods: Vec<Netns> =
        (0..PODS).map(|n| Netns::create(&format!("{}pod-{n}", world.prefix()))).collect::<Result<_>>()?;
    let plugins = [ours(node)?, bridge(node)?];
    let host = netlink::Netns::open(&node.netns().path())?;
    let mut times: [[Times; 2]; 2] = Default::default();
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        for (plugin, [alone, at_once]) in plugins.iter().zip(&mut times) {
            for (number, pod) in pods.iter().enumerate() {
                let call =
                    |verb| host.run(|| plugin.call(verb, pod, number)).context("the node's namespace")?;
                alone.add.push(call("ADD")?);
                alone.del.push(call("DEL")?);
            }
            for (verb, readings) in [("ADD", &mut at_once.add), ("DEL", &mut at_once.del)] {
                let took: Result<Vec<f64>> = thread::scope(|scope| {
                    let host = &host;
                    let calls: Vec<_> = pods
                        .iter()
                        .enumerate()
                        .map(|(n, pod)| scope.spawn(move || host.run(|| plugin.call(verb, pod, n))))
                        .collect();
                    calls.into_iter().map(|call| call.join().expect("a call does not panic")?).collect()
                });
                readings.extend(took?);
            }
        }
    }
    let mut figures = Vec::new();
    for (at, how) in ["alone", "50 at once"].into_iter().enumerate() {
        for (plugin, times) in plugins.iter().zip(&mut times) {
            let Times { add, del } = &mut times[at];
            for (verb, readings) in [("ADD", add), ("DEL", del)] {
                readings.sort_by(f64::total_cmp);
                let p99 = readings[readings.len() * 99 / 100];
                figures.push(Figure::median(
                    format!("{} {verb}, {how}, p50", plugin.name),
                    "ms",
                    readings.clone(),
                ));
                figures.push(Figure::of("  p99", "ms", p99));
            }
        }
    }
    Ok(figures)
}

fn ours(node: &Node) -> Result<Plugin> {
    Ok(Plugin {
        name: "canal-cni",
        program: binary("canal-cni")?,
        config: json!({
            "cniVersion": "1.0.0", "name": "canal", "type": "canal-cni",
            "socket": node.agent().socket(), "subnetFile": node.agent().subnet_file(),
            "ipam": {"type": "host-local", "dataDir": node.folder().join("ipam")},
        }),
    })
}

fn bridge(node: &Node) -> Result<Plugin> {
    let program = PLUGINS.split(':').map(|folder| PathBuf::from(folder).join("bridge")).find(|p| p.is_file());
    Ok(Plugin {
        name: "bridge",
        program: program.context("there is no plugin `bridge`: install containernetworking-plugins")?,
        config: json!({
            "cniVersion": "1.0.0", "name": "plain", "type": "bridge", "bridge": "cni0", "isGateway": true,
            "ipam": {
                "type": "host-local", "dataDir": node.folder().join("ipam"),
                "ranges": [[{"subnet": "10.99.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}],
            },
        }),
    })
}

impl Plugin {
    /// From the start of the program to its end.
    fn call(&self, verb: &str, pod: &Netns, number: usize) -> Result<f64> {
        let start = Instant::now();
        let mut child = Command::new(&self.program)
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", format!("{number:064x}"))
            .env("CNI_NETNS", pod.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", PLUGINS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        let mut stdin = child.stdin.take().context("no standard input")?;
        stdin.write_all(self.config.to_string().as_bytes())?;
        drop(stdin);
        let output = child.wait_with_output()?;
        let took = start.elapsed().as_secs_f64() * 1e3;
        let said = || String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{} {verb}: {}", self.name, said());
        Ok(took)
    }
}
