use canal_agent::{
    compile::Compiler,
    dataplane::{
        object::{Object, Sizes},
        policy::{Desired, Limits, PolicyTables},
        tables::KernelTables,
    },
    model::Cluster,
};
use canal_common::{Mac, settings::Settings};
use serde_json::json;
use std::{collections::BTreeMap, net::Ipv4Addr, time::Instant};

fn rss() -> u64 {
    let s = std::fs::read_to_string("/proc/self/status").unwrap();
    s.lines()
        .find(|l| l.starts_with("VmRSS"))
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        / 1024
}
const P: &str = "/calico/resources/v3/projectcalico.org/";
fn wep(n: u32, set: u32) -> (String, String) {
    let node = if n < 250 { "node1".to_owned() } else { format!("node{}", 2 + n / 250) };
    let ns = format!("ns{}", set % 50);
    let v = json!({"kind":"WorkloadEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":format!("{node}-k8s-p{n}-eth0"),"namespace":ns,"uid":"6f5a0000-0000-0000-0000-000000000000","creationTimestamp":"2026-03-04T05:06:07Z",
      "labels":{"app":format!("app{}", set%1000),"tier":format!("t{}", set/1000),"zone":format!("z{}", set%4),"projectcalico.org/namespace":ns,"projectcalico.org/orchestrator":"k8s","projectcalico.org/serviceaccount":"default"}},
      "spec":{"orchestrator":"k8s","node":node,"pod":format!("p{n}"),"endpoint":"eth0","containerID":format!("{n:064x}"),"ipNetworks":[format!("{}/32", Ipv4Addr::from(0x0a00_0000+n))],"profiles":[format!("kns.{ns}"), format!("ksa.{ns}.default")],"interfaceName":format!("cali{n:x}"),"mac":"5a:11:22:33:44:55","ports":[{"name":"http","protocol":"TCP","port":8080}]}});
    (format!("{P}workloadendpoints/{ns}/{node}-k8s-p{n}-eth0"), v.to_string())
}
fn policy(n: u32, port: u32) -> (String, String) {
    let set = n % 1000;
    let ns = format!("ns{}", set % 50);
    let v = json!({"kind":"NetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":format!("default.p{n}"),"namespace":ns},
     "spec":{"order":n/1000,"selector":format!("app == 'app{set}'"),"types":["Ingress","Egress"],
      "ingress":[{"action":"Allow","protocol":"TCP","source":{"selector":format!("app == 'app{}'", (set+50*(n/1000)) % 1000)},"destination":{"ports":[port]}},
                 {"action":"Deny","source":{"nets":[format!("172.{}.{}.0/24", 16+n%16, n%256)]}}],
      "egress":[{"action":"Allow","protocol":"UDP","destination":{"selector":"k8s-app == 'dns'","namespaceSelector":"all()","ports":[53]}},{"action":"Allow","protocol":"TCP","destination":{"namespaceSelector":"all()","selector":format!("tier == 't{}'", n%2)}}]}});
    (format!("{P}networkpolicies/{ns}/default.p{n}"), v.to_string())
}
fn main() {
    let t = Instant::now();
    let mut list: Vec<(String, Vec<u8>)> = Vec::new();
    for n in 0..100_000u32 {
        let (k, v) = wep(n, n % 2000);
        list.push((k, v.into()));
    }
    for n in 0..10_000u32 {
        let (k, v) = policy(n, 8080);
        list.push((k, v.into()));
    }
    for n in 0..100u32 {
        let nets: Vec<String> = (0..100)
            .map(|i| {
                format!(
                    "198.{}.{}.{}/32",
                    18 + (n * 100 + i) / 65536,
                    ((n * 100 + i) / 256) % 256,
                    (n * 100 + i) % 256
                )
            })
            .collect();
        list.push((
            format!("{P}globalnetworksets/s{n}"),
            json!({"metadata":{"labels":{"set":format!("s{n}")}},"spec":{"nets":nets}}).to_string().into(),
        ));
    }
    for n in 0..50u32 {
        list.push((format!("{P}profiles/kns.ns{n}"), json!({"spec":{"labelsToApply":{"pcns.projectcalico.org/name":format!("ns{n}"),"pcns.env":"prod"},"ingress":[{"action":"Allow"}],"egress":[{"action":"Allow"}]}}).to_string().into()));
        list.push((
            format!("{P}profiles/ksa.ns{n}.default"),
            json!({"spec":{"labelsToApply":{"pcsa.projectcalico.org/name":"default"}}}).to_string().into(),
        ));
    }
    for n in 0..20u32 {
        list.push((format!("{P}globalnetworkpolicies/g{n}"), json!({"spec":{"tier":"edge","order":n,"types":["Ingress"],"ingress":[{"action":"Deny","source":{"selector":format!("set == 's{n}'")}},{"action":"Pass"}]}}).to_string().into()));
    }
    list.push((format!("{P}tiers/edge"), json!({"spec":{"order":10}}).to_string().into()));
    println!("made list {:?} rss {} MB", t.elapsed(), rss());
    let (mut s, l) = {
        let mut o = Object::load(&Settings::default(), None, &Sizes::new()).unwrap();
        let r = KernelTables::adopt(&mut o.ebpf).unwrap();
        std::mem::forget(o);
        r
    };
    println!("loaded {:?}", t.elapsed());
    let _ = &mut s;
    let mut tables = PolicyTables::new(s, l, Limits::default());
    let t = Instant::now();
    let mut cluster = Cluster::default();
    cluster.replace_all(list.into_iter());
    println!("model {:?} rss {} MB invalid {}", t.elapsed(), rss(), cluster.invalid().len());
    let t1 = Instant::now();
    let mut compiler = Compiler::new("node1");
    let changed = cluster.take_changes();
    println!("changes {} {:?}", changed.len(), t1.elapsed());
    compiler.update(&cluster, &changed);
    drop(changed);
    println!(
        "compile {:?} rss {} MB endpoints {} sets {}",
        t1.elapsed(),
        rss(),
        compiler.endpoints().len(),
        compiler.sets().len()
    );
    let desired = |c: &Compiler| -> BTreeMap<Ipv4Addr, Desired> {
        c.endpoints()
            .iter()
            .map(|((_, a), j)| {
                (
                    *a,
                    Desired {
                        ifindex: 1,
                        pod_mac: Mac::new([2; 6]),
                        host_mac: Mac::new([4; 6]),
                        ingress: j.ingress.clone(),
                        egress: j.egress.clone(),
                    },
                )
            })
            .collect()
    };
    let t2 = Instant::now();
    let d = desired(&compiler);
    let p = tables.apply(compiler.census(), &d).unwrap();
    println!(
        "apply {:?} problems {} sizes {:?} peers {} nets {}",
        t2.elapsed(),
        p.len(),
        tables.sizes(),
        compiler.census().peers(),
        compiler.census().prefixes()
    );
    println!("TOTAL {:?} rss {} MB", t.elapsed(), rss());
    for (what, kind) in [
        ("label of a remote pod", 0),
        ("label of a local pod", 1),
        ("policy port", 2),
        ("policy selector", 3),
        ("remote pod add", 4),
    ] {
        let mut times: Vec<u128> = Vec::new();
        let mut parts = (0u128, 0u128, 0u128);
        for i in 0..200u32 {
            let t = Instant::now();
            let (k, v) = match kind {
                0 => wep(5000 + i, (5000 + i + 7) % 2000),
                1 => wep(i % 250, (i + 13) % 2000),
                2 => policy(i % 250, 9000 + i),
                3 => policy(i % 250 + 1000 * (1 + i % 5), 8080 + i),
                _ => wep(200_000 + i, i % 2000),
            };
            cluster.apply(&k, Some(v.as_bytes()));
            let a = t.elapsed().as_micros();
            let changed = cluster.take_changes();
            compiler.update(&cluster, &changed);
            let b = t.elapsed().as_micros();
            let d = desired(&compiler);
            tables.apply(compiler.census(), &d).unwrap();
            let c = t.elapsed().as_micros();
            parts.0 += a;
            parts.1 += b - a;
            parts.2 += c - b;
            times.push(c);
        }
        times.sort();
        println!(
            "{what}: p50 {} us p99 {} us max {} us; model {} compile {} tables {} us",
            times[100],
            times[197],
            times[199],
            parts.0 / 200,
            parts.1 / 200,
            parts.2 / 200
        );
    }
    println!("end rss {} MB", rss());
}
