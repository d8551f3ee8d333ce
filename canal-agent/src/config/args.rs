//! The flags of `canal-agent run`: flannel's names, and ours beside them.

use std::ffi::OsString;

use clap::{Args, Command};

use crate::store::Secret;

/// Every flag can also be given by environment: `CANAL_<NAME>` or flannel's `FLANNELD_<NAME>`, with underscores.
/// A flag beats the environment; an empty variable counts as unset.
#[derive(Debug, Clone, Default, Args)]
pub struct RunArgs {
    /// etcd servers, with commas between [default: <http://127.0.0.1:2379>] [env also: ETCD_ENDPOINTS]
    #[arg(long, value_name = "URL,…")]
    pub etcd_endpoints: Option<String>,
    /// Folder of the network's keys in etcd [default: /coreos.com/network]
    #[arg(long, value_name = "KEY")]
    pub etcd_prefix: Option<String>,
    /// CA that signed the servers' certificates; enough by itself [env also: ETCD_CA_CERT_FILE]
    #[arg(long, value_name = "PEM")]
    pub etcd_cafile: Option<String>,
    /// Our certificate for etcd, with --etcd-keyfile [env also: ETCD_CERT_FILE]
    #[arg(long, value_name = "PEM")]
    pub etcd_certfile: Option<String>,
    /// The key of --etcd-certfile [env also: ETCD_KEY_FILE]
    #[arg(long, value_name = "PEM")]
    pub etcd_keyfile: Option<String>,
    /// User for etcd's authentication [env also: ETCD_USERNAME]
    #[arg(long, value_name = "NAME")]
    pub etcd_username: Option<String>,
    /// Password of that user; better given by environment, where `ps` does not show it [env also: ETCD_PASSWORD]
    #[arg(long, value_name = "TEXT")]
    pub etcd_password: Option<Secret>,
    /// Uplink to the other nodes, by name or address [default: that of the default route]
    #[arg(long, value_name = "NAME|IP")]
    pub iface: Option<String>,
    /// Address that the other nodes send to [default: that of the uplink]
    #[arg(long, value_name = "IP")]
    pub public_ip: Option<String>,
    /// Where to tell this node's subnet to other programs [default: /run/flannel/subnet.env]
    #[arg(long, value_name = "FILE")]
    pub subnet_file: Option<String>,
    /// Masquerade what pods send out of the network [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub ip_masq: Option<String>,
    /// Name of this node in keys and policies [default: what --nodename-file says, HOSTNAME, or the host name]
    /// [env also: NODENAME, FELIX_FELIXHOSTNAME]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// Where Calico's CNI plugin reads the name of this node; the agent writes it [default: /var/lib/calico/nodename]
    /// [env also: CALICO_NODENAME_FILE]
    #[arg(long, value_name = "FILE")]
    pub nodename_file: Option<String>,
    /// Felix's parameters in a file; they count behind FELIX_… of the environment and before those in etcd
    /// [default: /etc/calico/felix.cfg]
    #[arg(long, value_name = "FILE")]
    pub felix_config_file: Option<String>,
    /// What a change of policy does to live connections: judge them anew, or keep them as Calico does [default: judge]
    #[arg(long, value_name = "judge|keep")]
    pub established: Option<String>,
    /// How long connections may be idle [default: tcp-new=20s,tcp-established=1h,closing=30s,udp=1m,icmp=5s,
    /// sctp-new=20s,sctp-established=10m,other=10m]
    #[arg(long, value_name = "NAME=DURATION,…")]
    pub flow_timeouts: Option<String>,
    /// Connections that the kernel remembers [default: by memory; 262144 with 4 GB]
    #[arg(long, value_name = "N")]
    pub max_flows: Option<String>,
    /// Connections not answered yet that it remembers [default: by memory; 65536 with 4 GB]
    #[arg(long, value_name = "N")]
    pub max_new_flows: Option<String>,
    /// Addresses in the selectors that concern this node [default: by memory; 262144 with 4 GB]
    #[arg(long, value_name = "N")]
    pub max_peers: Option<String>,
    /// CIDRs in the rules and network sets that concern this node [default: by memory; 131072 with 4 GB]
    #[arg(long, value_name = "N")]
    pub max_nets: Option<String>,
    /// Pages of verdicts that this node's policies compile to [default: by memory; 65536 with 2 GB, which is the most]
    #[arg(long, value_name = "N")]
    pub max_rows: Option<String>,
    /// What must survive a reboot [default: /var/lib/canal]
    #[arg(long, value_name = "FOLDER")]
    pub state_dir: Option<String>,
    /// Socket for canal-cni and canalctl [default: /run/canal/agent.sock]
    #[arg(long, value_name = "FILE")]
    pub socket: Option<String>,
    /// Mounted BPF file system for pins [default: /sys/fs/bpf]
    #[arg(long, value_name = "FOLDER")]
    pub bpffs: Option<String>,
}

/// Rewrites Go's `-flag` to `--flag`, so that a unit written for flanneld works: every argument before `--` with
/// one dash and more than one letter behind it, unless it is the value of the flag before.
pub fn go_flags(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let command = RunArgs::augment_args(Command::new("run"));
    let takes_value = |flag: &str| {
        command.get_arguments().any(|arg| {
            arg.get_long() == Some(flag) && !arg.is_require_equals_set() && arg.get_action().takes_values()
        })
    };
    let mut rewritten = Vec::new();
    let (mut verbatim, mut value_follows) = (false, false);
    for arg in args {
        let text = arg.to_str().unwrap_or_default();
        if verbatim || value_follows || !text.starts_with('-') {
            value_follows = false;
            rewritten.push(arg);
            continue;
        }
        verbatim = text == "--";
        let name = text.trim_start_matches('-');
        value_follows = takes_value(name);
        let single = !text.starts_with("--") && name.chars().nth(1).is_some_and(|second| second != '=');
        rewritten.push(if single { format!("--{name}").into() } else { arg });
    }
    rewritten
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        run: RunArgs,
    }

    fn parse(args: &str) -> Result<RunArgs, clap::Error> {
        let args = std::iter::once("run").chain(args.split_whitespace()).map(OsString::from);
        Cli::try_parse_from(go_flags(args)).map(|cli| cli.run)
    }

    #[test]
    fn one_dash_is_as_good_as_two() {
        for args in [
            "-etcd-endpoints http://e:1 -public-ip 192.0.2.1 -ip-masq -iface eth0",
            "--etcd-endpoints=http://e:1 --public-ip=192.0.2.1 --ip-masq --iface=eth0",
            "-etcd-endpoints=http://e:1 --public-ip 192.0.2.1 -ip-masq=true -iface=eth0",
        ] {
            let run = parse(args).unwrap();
            assert_eq!(run.etcd_endpoints.as_deref(), Some("http://e:1"), "{args}");
            assert_eq!(run.public_ip.as_deref(), Some("192.0.2.1"), "{args}");
            assert_eq!(run.ip_masq.as_deref(), Some("true"), "{args}");
            assert_eq!(run.iface.as_deref(), Some("eth0"), "{args}");
        }
        let run = parse("-etcd-password hunter2").unwrap();
        assert_eq!(run.etcd_password.as_ref().map(Secret::reveal), Some("hunter2"));
        assert!(!format!("{run:?}").contains("hunter2"));
        assert_eq!(parse("-ip-masq=F").unwrap().ip_masq.as_deref(), Some("F"));
        assert!(parse("-no-such-flag").is_err());
        assert!(parse("-ip-masq false").is_err(), "as in Go, the value of a bool needs the equals sign");
    }

    #[test]
    fn short_flags_values_and_the_rest_stay_as_they_are() {
        let args = ["x", "-h", "-", "--iface", "-odd", "--", "-iface"].map(OsString::from);
        assert_eq!(go_flags(args.clone()), args);
    }
}
