//! What monitoring reads: Felix's names where the meaning is the same, else `canal_…`. No label names a pod, an address or
//! a rule: their number has no limit.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use canal_common::event::Kind as EventKind;

use super::Node;
use crate::{
    api::{
        exposition::{Exposition, Kind},
        wire::{CounterStatus, TableStatus},
    },
    model::cluster::Counts,
};

/// How long apply cycles took.
#[derive(Debug, Default, Clone)]
pub(super) struct Cycles {
    /// Those that took no longer than the bound of the same position.
    within: [u64; BOUNDS.len()],
    count: u64,
    failed: u64,
    total: Duration,
}

/// Upper bounds of the histogram, in seconds.
const BOUNDS: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0];

impl Cycles {
    pub(super) fn record(&mut self, took: Duration, failed: bool) {
        for (within, bound) in self.within.iter_mut().zip(BOUNDS) {
            *within += u64::from(took.as_secs_f64() <= bound);
        }
        self.count += 1;
        self.failed += u64::from(failed);
        self.total += took;
    }
}

/// Everything that is exposed.
#[derive(Debug, Default)]
struct Readings {
    started: Duration,
    /// As Felix numbers them: 1 waiting for the datastore, 2 reading it, 3 in sync.
    resync_state: u8,
    lists: u64,
    connected: bool,
    revision: i64,
    lease_held: bool,
    hosts: usize,
    cluster: Counts,
    /// By state.
    endpoints: Vec<(&'static str, usize)>,
    local_policies: usize,
    problems: usize,
    invalid: usize,
    tables: Vec<TableStatus>,
    counters: Vec<CounterStatus>,
    /// By kind.
    events: Vec<(&'static str, u64)>,
    lost_by_rules: u64,
    lost_without_rule: u64,
    cycles: Cycles,
}

/// Before there is a node: it waits for the datastore.
pub(super) fn while_waiting() -> String {
    let mut all = Exposition::default();
    build(&mut all);
    resync_state(&mut all, 1);
    all.into_text()
}

impl Node {
    pub(super) fn metrics(&self) -> String {
        let started = SystemTime::now().checked_sub(self.started.elapsed()).unwrap_or(UNIX_EPOCH);
        let resync_state = match (self.store.in_sync(), self.store.disconnected.is_empty()) {
            (true, _) => 3,
            (false, true) => 2,
            (false, false) => 1,
        };
        let by_state = |slug| self.locals.all().filter(|(_, local)| local.state.slug() == slug).count();
        let names = self.compiler.sets().into_iter().flat_map(|set| set.policies());
        let policies: BTreeSet<String> = names.filter(|name| !name.starts_with("Profile ")).collect();
        let lost = self.policy.decisions().map(|(id, _)| self.hits.of(id).lost);
        render(&Readings {
            started: started.duration_since(UNIX_EPOCH).unwrap_or_default(),
            resync_state,
            lists: self.store.lists,
            connected: self.store.disconnected.is_empty() && self.store.in_sync(),
            revision: self.store.revision,
            lease_held: self.lease_problem.is_none(),
            hosts: self.peers.status(self.own(), |_| false).len() + 1,
            cluster: self.cluster.counts(),
            endpoints: ["ready", "waiting", "degraded", "closed"].map(|slug| (slug, by_state(slug))).into(),
            local_policies: policies.len(),
            problems: self.all_problems().len(),
            invalid: self.invalid().len(),
            tables: self.tables_status(),
            counters: self.counters.read().unwrap_or_default(),
            events: EventKind::ALL.iter().map(|kind| (kind.slug(), self.event_log.count(*kind))).collect(),
            lost_by_rules: lost.sum(),
            lost_without_rule: self.hits.lost_without_decision().unwrap_or_default(),
            cycles: self.cycles.clone(),
        })
    }
}

fn render(readings: &Readings) -> String {
    let mut all = Exposition::default();
    build(&mut all);
    let started = readings.started.as_secs_f64();
    all.single("process_start_time_seconds", Kind::Gauge, "When the agent started, since 1970", started);
    resync_state(&mut all, readings.resync_state);
    store(&mut all, readings);
    policy(&mut all, readings);
    cycles(&mut all, &readings.cycles);
    tables(&mut all, &readings.tables);
    packets(&mut all, &readings.counters);
    events(&mut all, readings);
    all.into_text()
}

fn build(all: &mut Exposition) {
    let version = env!("CANAL_VERSION");
    all.family("canal_build_info", Kind::Gauge, "1, with the version").sample(&[("version", version)], 1);
}

fn resync_state(all: &mut Exposition, state: u8) {
    let help = "1: waits for the datastore, 2: reads it, 3: in sync";
    all.single("felix_resync_state", Kind::Gauge, help, state);
}

fn store(all: &mut Exposition, readings: &Readings) {
    let help = "Complete lists of the resources that were read from etcd";
    all.single("felix_resyncs_started", Kind::Counter, help, readings.lists);
    let help = "Whether etcd is heard: 1 or 0";
    all.single("canal_store_connected", Kind::Gauge, help, u8::from(readings.connected));
    let help = "The last revision of etcd that was applied";
    all.single("canal_store_revision", Kind::Gauge, help, readings.revision);
    let help = "Whether the subnet lease is held: 1 or 0";
    all.single("canal_lease_held", Kind::Gauge, help, u8::from(readings.lease_held));
    let Counts { policies, profiles, tiers, host_endpoints, workload_endpoints } = readings.cluster;
    for (name, help, count) in [
        ("felix_cluster_num_hosts", "Nodes with a lease, this one included", readings.hosts),
        ("felix_cluster_num_host_endpoints", "Host endpoints in the cluster", host_endpoints),
        ("felix_cluster_num_workload_endpoints", "Workload endpoints in the cluster", workload_endpoints),
        ("felix_cluster_num_policies", "Policies in the cluster", policies),
        ("felix_cluster_num_profiles", "Profiles in the cluster", profiles),
        ("felix_cluster_num_tiers", "Tiers in the cluster", tiers),
        ("canal_problems", "Lines PROBLEM of canalctl status", readings.problems),
        ("canal_invalid_objects", "Objects that cannot be used, wholly or in part", readings.invalid),
    ] {
        all.single(name, Kind::Gauge, help, count);
    }
}

fn policy(all: &mut Exposition, readings: &Readings) {
    let total: usize = readings.endpoints.iter().map(|(_, count)| count).sum();
    all.single("felix_active_local_endpoints", Kind::Gauge, "Addresses of pods of this node", total);
    let help = "Policies that apply to pods of this node";
    all.single("felix_active_local_policies", Kind::Gauge, help, readings.local_policies);
    let mut endpoints = all.family("canal_endpoints", Kind::Gauge, "Addresses of pods of this node by state");
    for (state, count) in &readings.endpoints {
        endpoints.sample(&[("state", state)], count);
    }
}

fn cycles(all: &mut Exposition, cycles: &Cycles) {
    let seconds = cycles.total.as_secs_f64();
    let help = "Time to make the kernel follow what is known";
    let mut histogram = all.family("canal_apply_seconds", Kind::Histogram, help);
    for (within, bound) in cycles.within.iter().zip(BOUNDS) {
        histogram.part("_bucket", &[("le", &bound.to_string())], within);
    }
    histogram.part("_bucket", &[("le", "+Inf")], cycles.count).part("_sum", &[], seconds).part(
        "_count",
        &[],
        cycles.count,
    );
    all.family("felix_int_dataplane_apply_time_seconds", Kind::Summary, help)
        .part("_sum", &[], seconds)
        .part("_count", &[], cycles.count);
    let help = "Times that the kernel could not be made to follow, and it is tried again";
    all.single("felix_int_dataplane_failures", Kind::Counter, help, cycles.failed);
}

fn tables(all: &mut Exposition, tables: &[TableStatus]) {
    let mut entries = all.family("canal_table_entries", Kind::Gauge, "Entries in a kernel table");
    for table in tables {
        entries.sample(&[("table", &table.table)], table.entries);
    }
    let mut capacity =
        all.family("canal_table_capacity", Kind::Gauge, "Entries that fit into a kernel table");
    for table in tables {
        capacity.sample(&[("table", &table.table)], table.capacity);
    }
    let help = "Part of a kernel table that is in use, from 0 to 1";
    let mut pressure = all.family("canal_table_pressure_ratio", Kind::Gauge, help);
    for table in tables.iter().filter(|table| table.capacity > 0) {
        #[expect(clippy::cast_precision_loss, reason = "tables are far smaller than 2^52")]
        let ratio = table.entries as f64 / table.capacity as f64;
        pressure.sample(&[("table", &table.table)], ratio);
    }
}

fn packets(all: &mut Exposition, counters: &[CounterStatus]) {
    let what = [("forwarded", "that went on", false), ("dropped", "that were dropped", true)];
    for (word, which, drop) in what {
        for (unit, read) in
            [("packets", (|c| c.packets) as fn(&CounterStatus) -> u64), ("bytes", |c| c.bytes)]
        {
            let (name, help) =
                (format!("canal_{word}_{unit}_total"), format!("{unit} {which}, by program and reason"));
            let mut family = all.family(&name, Kind::Counter, &help);
            for counter in counters.iter().filter(|counter| counter.drop == drop) {
                family.sample(&[("hook", &counter.hook), ("reason", &counter.reason)], read(counter));
            }
        }
    }
}

fn events(all: &mut Exposition, readings: &Readings) {
    let mut told =
        all.family("canal_events_total", Kind::Counter, "Events of the kernel that were told, by kind");
    for (kind, count) in &readings.events {
        told.sample(&[("kind", kind)], count);
    }
    let help = "Events that the kernel did not tell: over a limit, or the ring was full; with those of rules in force";
    all.family("canal_events_lost_total", Kind::Counter, help)
        .sample(&[("about", "rule")], readings.lost_by_rules)
        .sample(&[("about", "other")], readings.lost_without_rule);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::exposition::tests::parse;

    fn readings() -> Readings {
        let table =
            |table: &str, entries, capacity| TableStatus { table: table.to_owned(), entries, capacity };
        let counter = |reason: &str, drop, packets| CounterStatus {
            hook: "from_pod".to_owned(),
            reason: reason.to_owned(),
            sentence: String::new(),
            drop,
            packets,
            bytes: packets * 100,
        };
        let mut cycles = Cycles::default();
        cycles.record(Duration::from_millis(3), false);
        cycles.record(Duration::from_secs(20), true);
        Readings {
            resync_state: 3,
            revision: 42,
            hosts: 2,
            endpoints: vec![("ready", 3), ("closed", 1)],
            tables: vec![table("ROWS", 16384, 65536), table("ODD", 0, 0)],
            counters: vec![counter("to-stack", false, 5), counter("spoofed-ip", true, 7)],
            events: vec![("dropped", 9)],
            lost_by_rules: 11,
            lost_without_rule: 12,
            cycles,
            ..Readings::default()
        }
    }

    #[test]
    fn everything_is_exposed_in_the_format_that_prometheus_reads() {
        let samples = parse(&render(&readings()));
        for (series, value) in [
            ("felix_resync_state", 3.0),
            ("canal_store_revision", 42.0),
            ("felix_cluster_num_hosts", 2.0),
            ("felix_active_local_endpoints", 4.0),
            ("canal_endpoints{state=\"closed\"}", 1.0),
            ("canal_table_entries{table=\"ROWS\"}", 16384.0),
            ("canal_table_capacity{table=\"ROWS\"}", 65536.0),
            ("canal_table_pressure_ratio{table=\"ROWS\"}", 0.25),
            ("canal_forwarded_packets_total{hook=\"from_pod\",reason=\"to-stack\"}", 5.0),
            ("canal_dropped_packets_total{hook=\"from_pod\",reason=\"spoofed-ip\"}", 7.0),
            ("canal_dropped_bytes_total{hook=\"from_pod\",reason=\"spoofed-ip\"}", 700.0),
            ("canal_events_total{kind=\"dropped\"}", 9.0),
            ("canal_events_lost_total{about=\"rule\"}", 11.0),
            ("canal_events_lost_total{about=\"other\"}", 12.0),
            ("canal_apply_seconds_bucket{le=\"0.0025\"}", 0.0),
            ("canal_apply_seconds_bucket{le=\"0.005\"}", 1.0),
            ("canal_apply_seconds_bucket{le=\"10\"}", 1.0),
            ("canal_apply_seconds_bucket{le=\"+Inf\"}", 2.0),
            ("canal_apply_seconds_sum", 20.003),
            ("felix_int_dataplane_apply_time_seconds_count", 2.0),
            ("felix_int_dataplane_failures", 1.0),
        ] {
            assert_eq!(samples.get(series), Some(&value), "{series} in {samples:#?}");
        }
        assert!(!samples.contains_key("canal_table_pressure_ratio{table=\"ODD\"}"));
    }

    #[test]
    fn an_agent_that_waits_says_so() {
        let samples = parse(&while_waiting());
        assert_eq!(samples.get("felix_resync_state"), Some(&1.0));
    }
}
