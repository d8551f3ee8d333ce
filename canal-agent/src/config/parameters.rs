//! Felix's parameters: every place where they may be set, merged into one value. Pure.
//!
//! Of several places the one that stands first counts; an empty text is not set, and `none` is the zero of the
//! parameter's type. A text that makes no sense costs that parameter its change and nothing else: it keeps what it was
//! before, and is named. Names are compared in any case, since the environment, files and objects spell them differently.

use std::{path::PathBuf, time::Duration};

use crate::model::felix::Source;

/// What becomes of packets from a pod to its own node that the pod's policy allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToHost {
    Drop,
    /// Past the host's own firewall, which Canal cannot do: the same as `Return`.
    Accept,
    /// On to the host's own firewall.
    Return,
}

/// At most `events` in each `per`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub events: u32,
    pub per: Duration,
}

/// From the quietest to the loudest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    Off,
    Error,
    Warning,
    Info,
    Debug,
    Trace,
}

struct Parameter {
    name: &'static str,
    set: fn(&mut Parameters, &str) -> Result<(), String>,
    keep: fn(&mut Parameters, &Parameters),
}

macro_rules! parameters {
    ($($(#[$doc:meta])* $name:literal $field:ident: $type:ty = $default:expr, $parse:path;)+) => {
        /// Every parameter that means something here; the defaults are Felix's.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct Parameters { $($(#[$doc])* pub $field: $type),+ }

        impl Default for Parameters {
            fn default() -> Self {
                Self { $($field: $default),+ }
            }
        }

        const KNOWN: &[Parameter] = &[$(Parameter {
            name: $name,
            set: |to, text| { to.$field = $parse(text)?; Ok(()) },
            keep: |to, from| to.$field.clone_from(&from.$field),
        }),+];
    };
}

parameters! {
    "DefaultEndpointToHostAction" to_host: ToHost = ToHost::Drop, to_host;
    /// Pods' packets to this UDP port are VXLAN, as are those to the overlay's own.
    "VXLANPort" vxlan_port: u16 = 4789, port;
    "AllowVXLANPacketsFromWorkloads" pods_may_vxlan: bool = false, boolean;
    "AllowIPIPPacketsFromWorkloads" pods_may_ipip: bool = false, boolean;
    /// `Any`: an endpoint's `allowSpoofedSourcePrefixes` count.
    "WorkloadSourceSpoofing" may_spoof: bool = false, spoofing;
    /// Events of each rule with action Log; `None`: ours, since there is no such thing as no limit.
    "LogActionRateLimit" log_rate: Option<Rate> = None, rate;
    "LogPrefix" log_prefix: String = "calico-packet".to_owned(), line;
    /// Endpoint status files are in the folder `endpoint-status` below this one; `None`: there are none.
    "EndpointStatusPathPrefix" status_files: Option<PathBuf> = Some("/var/run/calico".into()), folder;
    /// What names of pods' interfaces on the host begin with.
    "InterfacePrefix" interface_prefixes: Vec<String> = vec!["cali".to_owned()], prefixes;
    "LogSeverityScreen" log_severity: Severity = Severity::Info, severity;
    "PrometheusMetricsEnabled" metrics: bool = false, boolean;
    /// Empty: every address.
    "PrometheusMetricsHost" metrics_host: String = String::new(), text;
    "PrometheusMetricsPort" metrics_port: u16 = 9091, port;
    "HealthEnabled" health: bool = false, boolean;
    "HealthHost" health_host: String = "localhost".to_owned(), text;
    "HealthPort" health_port: u16 = 9099, port;
}

impl Rate {
    /// Rounded up.
    pub fn per_second(self) -> u32 {
        u64::from(self.events).div_ceil(self.per.as_secs().max(1)).try_into().unwrap_or(u32::MAX)
    }
}

/// Parameters that are read before there is a datastore, and so count in the environment and in the file only.
const LOCAL: [&str; 8] = [
    "DatastoreType",
    "FelixHostname",
    "EtcdAddr",
    "EtcdScheme",
    "EtcdEndpoints",
    "EtcdKeyFile",
    "EtcdCertFile",
    "EtcdCaFile",
];

/// What is so here anyway, and needs no word: nothing is reported to etcd or to anybody, there is no IPv6 and no overlay
/// of Felix's own.
const ALREADY_SO: [(&str, &[&str]); 8] = [
    ("ReportingIntervalSecs", &["0"]),
    ("ReportingInterval", &["0", "0s"]),
    ("UsageReportingEnabled", &["false"]),
    ("EndpointReportingEnabled", &["false"]),
    ("Ipv6Support", &["false"]),
    ("VXLANEnabled", &["false"]),
    ("IpInIpEnabled", &["false"]),
    ("IPIPEnabled", &["false"]),
];

/// The outcome of a merge.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Merged {
    pub parameters: Parameters,
    /// Texts that make no sense: place and name, and what to write.
    pub invalid: Vec<(String, String)>,
    /// What was set and has no effect, one line for each place.
    pub notices: Vec<String>,
}

/// `sources`: the one that beats all others first. `before`: what was in force, for parameters whose text makes no sense.
pub fn merge(sources: &[Source], before: &Parameters) -> Merged {
    let mut merged = Merged::default();
    for parameter in KNOWN {
        let found = sources.iter().find_map(|source| {
            let is_set = |(name, text): &&(String, String)| {
                name.eq_ignore_ascii_case(parameter.name) && !text.trim().is_empty()
            };
            Some((source, source.values.iter().find(is_set)?))
        });
        let Some((source, (name, text))) = found else { continue };
        if let Err(problem) = (parameter.set)(&mut merged.parameters, text.trim()) {
            (parameter.keep)(&mut merged.parameters, before);
            let place = format!("{} {name}", source.origin);
            merged.invalid.push((place, format!("{text:?} makes no sense: {problem}; it stays what it was")));
        }
    }
    merged.notices.extend(sources.iter().filter_map(without_effect));
    if merged.parameters.log_rate.is_some_and(|rate| rate.per > Duration::from_secs(rate.events.into())) {
        merged
            .notices
            .push("LogActionRateLimit: less than one event a second acts as one a second".to_owned());
    }
    if merged.parameters.to_host == ToHost::Accept {
        merged.notices.push(
            "DefaultEndpointToHostAction Accept acts as Return: the host's own firewall decides as well"
                .to_owned(),
        );
    }
    merged
}

/// What a place sets in vain.
fn without_effect(source: &Source) -> Option<String> {
    let mut vain: Vec<&str> = Vec::new();
    let from_store = source.origin.starts_with("FelixConfiguration");
    for (name, text) in source.values.iter().filter(|(_, text)| !text.trim().is_empty()) {
        let is = |known: &str| known.eq_ignore_ascii_case(name);
        let is_known = KNOWN.iter().any(|parameter| is(parameter.name))
            || (!from_store && LOCAL.iter().any(|known| is(known)))
            || ALREADY_SO.iter().any(|(known, values)| {
                is(known) && values.iter().any(|value| value.eq_ignore_ascii_case(text.trim()))
            });
        if !is_known {
            vain.push(name);
        }
    }
    (!vain.is_empty()).then(|| format!("{}: no effect here: {}", source.origin, vain.join(", ")))
}

fn is_none(text: &str) -> bool {
    text.eq_ignore_ascii_case("none")
}

#[expect(clippy::unnecessary_wraps, reason = "the others of the table may fail")]
fn text(text: &str) -> Result<String, String> {
    Ok(if is_none(text) { String::new() } else { text.to_owned() })
}

/// What comes into a line of the log.
fn line(line: &str) -> Result<String, String> {
    if line.chars().any(char::is_control) {
        return Err("write it without control characters".to_owned());
    }
    text(line)
}

fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "t" | "yes" | "y" | "1" => Ok(true),
        "false" | "f" | "no" | "n" | "0" | "none" => Ok(false),
        _ => Err("write true or false".to_owned()),
    }
}

fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(port @ 1..) => Ok(port),
        _ => Err("write a port, 1 to 65535".to_owned()),
    }
}

fn to_host(text: &str) -> Result<ToHost, String> {
    match text.to_ascii_lowercase().as_str() {
        "drop" => Ok(ToHost::Drop),
        "accept" => Ok(ToHost::Accept),
        "return" => Ok(ToHost::Return),
        _ => Err("write Drop, Accept or Return".to_owned()),
    }
}

fn spoofing(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "any" => Ok(true),
        "disabled" | "none" => Ok(false),
        _ => Err("write Disabled or Any".to_owned()),
    }
}

fn rate(text: &str) -> Result<Option<Rate>, String> {
    if is_none(text) {
        return Ok(None);
    }
    let wrong = || "write a rate such as 10/second (or minute, hour, day; 1 to 9999)".to_owned();
    let (events, unit) = text.split_once('/').ok_or_else(wrong)?;
    let seconds = match unit {
        "second" => 1,
        "minute" => 60,
        "hour" => 3600,
        "day" => 86_400,
        _ => return Err(wrong()),
    };
    match events.parse() {
        Ok(events @ 1..=9999) => Ok(Some(Rate { events, per: Duration::from_secs(seconds) })),
        _ => Err(wrong()),
    }
}

fn folder(text: &str) -> Result<Option<PathBuf>, String> {
    if is_none(text) {
        return Ok(None);
    }
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(Some(path)) } else { Err("write an absolute path".to_owned()) }
}

fn prefixes(text: &str) -> Result<Vec<String>, String> {
    let list: Vec<String> = text.split(',').map(|prefix| prefix.trim().to_owned()).collect();
    let legal = |prefix: &String| {
        (1..=14).contains(&prefix.len())
            && prefix.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
    };
    if list.iter().all(legal) && !is_none(text) {
        Ok(list)
    } else {
        Err("write the beginnings of interface names, with commas between".to_owned())
    }
}

fn severity(text: &str) -> Result<Severity, String> {
    match text.to_ascii_lowercase().as_str() {
        "none" => Ok(Severity::Off),
        "fatal" | "critical" | "error" => Ok(Severity::Error),
        "warning" | "warn" => Ok(Severity::Warning),
        "info" => Ok(Severity::Info),
        "debug" => Ok(Severity::Debug),
        "trace" => Ok(Severity::Trace),
        _ => Err("write Debug, Info, Warning, Error or Fatal".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(origin: &str, values: &[(&str, &str)]) -> Source {
        let values = values.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        Source { origin: origin.to_owned(), values }
    }

    fn merged(sources: &[Source]) -> Merged {
        merge(sources, &Parameters::default())
    }

    #[test]
    fn a_log_prefix_that_would_begin_another_line_is_refused() {
        for prefix in ["a\nb", "a\u{1b}[2Jb", "a\u{85}b"] {
            let merged = merge(&[source("file", &[("LogPrefix", prefix)])], &Parameters::default());
            assert_eq!(merged.parameters.log_prefix, "calico-packet");
            assert_eq!(merged.invalid.len(), 1);
            assert!(!merged.invalid[0].1.contains(char::is_control), "{:?}", merged.invalid);
        }
    }

    #[test]
    fn nothing_set_is_felixs_defaults() {
        let nothing = merged(&[]);
        assert_eq!(nothing, Merged::default());
        let p = nothing.parameters;
        assert_eq!((p.to_host, p.vxlan_port, p.may_spoof), (ToHost::Drop, 4789, false));
        assert_eq!((p.metrics_port, p.health_port), (9091, 9099));
    }

    #[test]
    fn the_first_place_that_says_anything_counts() {
        let merged = merged(&[
            source("environment", &[("VXLANPORT", ""), ("LogPrefix", "env")]),
            source("FelixConfiguration node.a", &[("vxlanPort", "8472"), ("logPrefix", "node")]),
            source(
                "FelixConfiguration default",
                &[("vxlanPort", "1"), ("allowIPIPPacketsFromWorkloads", "true")],
            ),
        ]);
        assert_eq!(merged.invalid, []);
        let p = merged.parameters;
        assert_eq!((p.vxlan_port, p.log_prefix.as_str(), p.pods_may_ipip), (8472, "env", true));
    }

    #[test]
    fn every_parameter_is_read_in_felixs_spelling() {
        let p = merged(&[source(
            "environment",
            &[
                ("DefaultEndpointToHostAction", "RETURN"),
                ("AllowVXLANPacketsFromWorkloads", "1"),
                ("WorkloadSourceSpoofing", "any"),
                ("LogActionRateLimit", "100/minute"),
                ("EndpointStatusPathPrefix", "/run/x"),
                ("InterfacePrefix", "cali, tap"),
                ("LogSeverityScreen", "WARNING"),
                ("PrometheusMetricsEnabled", "yes"),
                ("PrometheusMetricsHost", "127.0.0.1"),
                ("HealthEnabled", "T"),
                ("HealthHost", "none"),
                ("HealthPort", "9"),
            ],
        )])
        .parameters;
        let expected = Parameters {
            to_host: ToHost::Return,
            pods_may_vxlan: true,
            may_spoof: true,
            log_rate: Some(Rate { events: 100, per: Duration::from_mins(1) }),
            status_files: Some("/run/x".into()),
            interface_prefixes: vec!["cali".to_owned(), "tap".to_owned()],
            log_severity: Severity::Warning,
            metrics: true,
            metrics_host: "127.0.0.1".to_owned(),
            health: true,
            health_host: String::new(),
            health_port: 9,
            ..Parameters::default()
        };
        assert_eq!(p, expected);
        let off =
            [("EndpointStatusPathPrefix", "none"), ("LogActionRateLimit", "None"), ("HealthEnabled", "none")];
        let p = merged(&[source("x", &off)]).parameters;
        assert_eq!((p.status_files, p.log_rate, p.health), (None, None, false));
    }

    #[test]
    fn a_text_without_sense_costs_that_parameter_its_change_and_is_named() {
        let before = Parameters { vxlan_port: 8472, to_host: ToHost::Return, ..Parameters::default() };
        for (name, bad, remedy) in [
            ("VXLANPort", "0", "1 to 65535"),
            ("VXLANPort", "70000", "1 to 65535"),
            ("VXLANPort", "none", "1 to 65535"),
            ("DefaultEndpointToHostAction", "Reject", "Drop, Accept or Return"),
            ("AllowIPIPPacketsFromWorkloads", "maybe", "true or false"),
            ("WorkloadSourceSpoofing", "true", "Disabled or Any"),
            ("LogActionRateLimit", "10", "10/second"),
            ("LogActionRateLimit", "0/second", "10/second"),
            ("LogActionRateLimit", "10000/second", "10/second"),
            ("LogActionRateLimit", "1/week", "10/second"),
            ("EndpointStatusPathPrefix", "relative/path", "absolute"),
            ("InterfacePrefix", "cali,,tap", "beginnings"),
            ("InterfacePrefix", "a/b", "beginnings"),
            ("LogSeverityScreen", "loud", "Debug"),
        ] {
            let lower = source("FelixConfiguration default", &[(name, "none"), ("healthPort", "7")]);
            let merged = merge(&[source("FelixConfiguration node.a", &[(name, bad)]), lower], &before);
            assert_eq!(merged.invalid.len(), 1, "{name}={bad}: {:?}", merged.invalid);
            let said = format!("{}: {}", merged.invalid[0].0, merged.invalid[0].1);
            for part in ["FelixConfiguration node.a", name, bad, remedy, "stays what it was"] {
                assert!(said.contains(part), "{part}: {said}");
            }
            assert_eq!(merged.parameters.health_port, 7, "the others are taken up");
            let mut expected = Parameters { health_port: 7, ..Parameters::default() };
            KNOWN.iter().filter(|p| p.name == name).for_each(|p| (p.keep)(&mut expected, &before));
            assert_eq!(merged.parameters, expected, "{name}={bad}");
        }
    }

    #[test]
    fn what_is_set_in_vain_is_listed_once_for_each_place() {
        let merged = merged(&[
            source(
                "environment",
                &[("FELIXHOSTNAME", "a"), ("ETCDENDPOINTS", "x"), ("IPTABLESBACKEND", "NFT"), ("X", "")],
            ),
            source(
                "FelixConfiguration default",
                &[
                    ("bpfEnabled", "true"),
                    ("reportingInterval", "0s"),
                    ("healthEnabled", "true"),
                    ("etcdAddr", "x:1"),
                    ("usageReportingEnabled", "true"),
                    ("interfacePrefix", "cali"),
                ],
            ),
        ]);
        assert_eq!(
            merged.notices,
            [
                "environment: no effect here: IPTABLESBACKEND",
                "FelixConfiguration default: no effect here: bpfEnabled, etcdAddr, usageReportingEnabled"
            ]
        );
        let slow = super::merge(&[source("x", &[("LogActionRateLimit", "1/hour")])], &Parameters::default());
        assert_eq!(slow.notices.len(), 1);
        assert_eq!(slow.parameters.log_rate.unwrap().per_second(), 1);
        let accept = super::merge(
            &[source("x", &[("DefaultEndpointToHostAction", "ACCEPT")])],
            &Parameters::default(),
        );
        assert!(accept.notices.iter().any(|notice| notice.contains("Accept acts as Return")), "{accept:?}");
    }

    #[test]
    fn what_a_new_cluster_has_needs_no_word() {
        let ours = [
            source("FelixConfiguration node.a", &[("defaultEndpointToHostAction", "Return")]),
            source(
                "FelixConfiguration default",
                &[("logSeverityScreen", "Info"), ("reportingInterval", "0s")],
            ),
        ];
        let merged = merged(&ours);
        assert_eq!((merged.invalid, merged.notices), (vec![], vec![]));
    }
}
