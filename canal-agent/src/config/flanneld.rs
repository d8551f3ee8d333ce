//! Flags of flanneld that have nothing to do here. Each is taken in flanneld's grammar and, where it asks for something
//! that is not so anyway, answered with one line that says why not.

use std::collections::BTreeMap;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches};

use super::{
    ConfigError,
    args::is_flag,
    boolean,
    environment::{Environment, Value},
};

/// What a flag's value must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Bool,
    /// A number of this range.
    Number(i64, i64),
}

struct Vain {
    flag: &'static str,
    kind: Kind,
    /// Values that ask for what is so here anyway, flanneld's default among them.
    fine: &'static [&'static str],
    why: &'static str,
}

const KUBE: &str = "Canal keeps leases in etcd, never in Kubernetes";
const KLOG: &str = "the log's level is RUST_LOG's, else that of Felix's LogSeverityScreen";

const VAIN: [Vain; 13] = [
    // True is refused.
    vain("kube-subnet-mgr", Kind::Bool, &["false"], KUBE),
    vain("kube-api-url", Kind::Text, &[], KUBE),
    vain("kubeconfig-file", Kind::Text, &[], KUBE),
    vain("kube-annotation-prefix", Kind::Text, &["flannel.alpha.coreos.com"], KUBE),
    vain("net-config-path", Kind::Text, &["/etc/kube-flannel/net-conf.json"], KUBE),
    vain("set-node-network-unavailable", Kind::Bool, &["true"], KUBE),
    vain("public-ipv6", Kind::Text, &[], "IPv6 is not carried yet"),
    vain(
        "subnet-lease-renew-margin",
        Kind::Number(1, 1439),
        &["60"],
        "the lease is kept alive every 10 minutes, and so has 23 hours and 50 minutes left or more",
    ),
    vain(
        "iptables-resync",
        Kind::Number(i64::MIN, i64::MAX),
        &["5"],
        "there are no iptables rules to look after",
    ),
    vain(
        "iptables-forward-rules",
        Kind::Bool,
        &["false"],
        "no rule of the host's firewall is opened: traffic between pods does not pass it, and what does is its own to allow",
    ),
    // What it is for holds anyway: packets to addresses of ours that no pod has are dropped.
    vain("ip-blackhole-route", Kind::Bool, &["true", "false"], ""),
    vain("vmodule", Kind::Text, &[], KLOG),
    vain("log_backtrace_at", Kind::Text, &[":0"], KLOG),
];

/// klog's, beside the others because it has a name that only Go takes for a long one.
const VERBOSITY: Vain = vain("v", Kind::Number(i64::MIN, i64::MAX), &["0"], KLOG);

const fn vain(flag: &'static str, kind: Kind, fine: &'static [&'static str], why: &'static str) -> Vain {
    Vain { flag, kind, fine, why }
}

fn all() -> impl Iterator<Item = &'static Vain> {
    VAIN.iter().chain([&VERBOSITY])
}

/// Those that were given.
#[derive(Debug, Clone, Default)]
pub struct FlanneldArgs(BTreeMap<&'static str, String>);

impl FlanneldArgs {
    pub(super) fn given(&self, flag: &str) -> Option<&str> {
        self.0.get(flag).map(String::as_str)
    }
}

impl Args for FlanneldArgs {
    fn augment_args(command: Command) -> Command {
        command.args(all().map(|vain| {
            let arg = Arg::new(vain.flag).long(vain.flag).hide(true).action(ArgAction::Set);
            match vain.kind {
                Kind::Bool => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
                Kind::Text | Kind::Number(..) => arg.allow_hyphen_values(true),
            }
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for FlanneldArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let given = |vain: &Vain| Some((vain.flag, matches.get_one::<String>(vain.flag)?.clone()));
        Ok(Self(all().filter_map(given).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// One line for each that is set in vain; an error where flanneld would not start either, or for another datastore.
pub(super) fn notices(args: &FlanneldArgs, environment: &Environment) -> Result<Vec<String>, ConfigError> {
    let mut notices = Vec::new();
    for vain in all() {
        let given = args.given(vain.flag).map(str::to_owned);
        let Some(value) = environment.find(vain.flag, given) else { continue };
        let Some(is_fine) = value.read(|value| vain.check(value), &mut notices)? else { continue };
        if vain.flag == "kube-subnet-mgr" && !is_fine {
            return Err(value.wrong(
                "asks for leases in Kubernetes, which Canal cannot read; leave it out, and write the network's \
                 configuration to etcd",
            ));
        }
        if !is_fine {
            notices.push(format!("{} {}: no effect here: {}", value.origin, value.text, vain.why));
        }
    }
    notices.extend(
        environment
            .strangers_of_flanneld(is_flag)
            .map(|name| format!("{name}: no effect: there is no such flag, neither here nor in flanneld")),
    );
    Ok(notices)
}

impl Vain {
    /// Whether the value asks for nothing that is not so.
    fn check(&self, value: &Value) -> Result<bool, ConfigError> {
        let text = match self.kind {
            Kind::Text => value.text.clone(),
            Kind::Bool => boolean(value)?.to_string(),
            Kind::Number(least, most) => match value.text.parse::<i64>() {
                Ok(number) if (least..=most).contains(&number) => number.to_string(),
                Ok(_) => return Err(value.wrong(&format!("is not between {least} and {most}"))),
                Err(_) => return Err(value.wrong("is not a number; write it in digits")),
            },
        };
        Ok(self.fine.contains(&text.as_str()))
    }
}
