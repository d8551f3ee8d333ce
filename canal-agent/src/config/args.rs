//! The flags of `canal-agent run`: flannel's names, and ours beside them.

use std::{ffi::OsString, path::Path};

use clap::{ArgAction, Args, Command};

use super::flanneld::FlanneldArgs;
use crate::store::Secret;

/// Every flag can also be given by environment: `CANAL_<NAME>` or flannel's `FLANNELD_<NAME>`, with underscores.
/// A flag beats the environment; an empty variable counts as unset. Of a flag that is given twice the last counts.
#[derive(Debug, Clone, Default, Args)]
#[command(args_override_self = true)]
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
    /// Uplink to the other nodes, by name or address; of several the first that is there
    /// [default: that of the default route]
    #[arg(long, value_name = "NAME|IP", action = ArgAction::Append)]
    pub iface: Vec<String>,
    /// Uplink by a regular expression for its address, else for its name; several are tried in order, after --iface
    #[arg(long, value_name = "REGEX", action = ArgAction::Append)]
    pub iface_regex: Vec<String>,
    /// Uplink by which the kernel would send to this address, after --iface and --iface-regex
    #[arg(long, value_name = "IP")]
    pub iface_can_reach: Option<String>,
    /// Address that the other nodes send to [default: that of the uplink]
    #[arg(long, value_name = "IP")]
    pub public_ip: Option<String>,
    /// Where to tell this node's subnet to other programs [default: /run/flannel/subnet.env]
    #[arg(long, value_name = "FILE")]
    pub subnet_file: Option<String>,
    /// Masquerade what pods send out of the network [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub ip_masq: Option<String>,
    /// Destinations that pods reach with their own address in spite of --ip-masq; several times, or with commas between
    #[arg(long, value_name = "CIDR,…", action = ArgAction::Append)]
    pub ip_masq_exempt: Vec<String>,
    /// Let --ip-masq keep source ports where it can, instead of choosing them at random [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub ip_masq_fully_random_disable: Option<String>,
    /// Where /healthz and /readyz are served, with --healthz-port [default: 0.0.0.0]
    #[arg(long, value_name = "IP|NAME")]
    pub healthz_ip: Option<String>,
    /// TCP port of /healthz and /readyz; 0: none [default: 0]
    #[arg(long, value_name = "PORT")]
    pub healthz_port: Option<String>,
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
    /// What takes VXLAN off incoming packets: our program at the uplink (tc), one in the uplink's driver for known
    /// connections and that for the rest (xdp), or the kernel's device with our program behind it (kernel) [default: auto, which is tc]
    #[arg(long, value_name = "auto|tc|xdp|kernel")]
    pub decap_gear: Option<String>,
    /// Compute the UDP checksum of outgoing VXLAN, which is 0 otherwise: for networks that drop those. It costs speed, for
    /// the kernel's device makes the envelopes then [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub outer_udp_checksum: Option<String>,
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
    /// Print the version to standard error, and end
    #[arg(long = "version", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub show_version: Option<String>,
    #[command(flatten)]
    pub flanneld: FlanneldArgs,
}

/// Whether `run` has a flag of this name.
pub(super) fn is_flag(name: &str) -> bool {
    RunArgs::augment_args(Command::new("run")).get_arguments().any(|arg| arg.get_long() == Some(name))
}

/// The arguments of a process as our parser takes them.
#[derive(Debug, PartialEq, Eq)]
pub struct CommandLine {
    pub args: Vec<OsString>,
    /// One line about what stands behind the flags of `run`, where nothing is read any more.
    pub notice: Option<String>,
}

/// A unit written for flanneld works: flags are understood as Go's, and in front of them, or under flanneld's own name,
/// the verb `run` may be left out.
pub fn command_line(args: impl IntoIterator<Item = OsString>) -> CommandLine {
    let mut args: Vec<OsString> = args.into_iter().collect();
    let is_flanneld =
        args.first().is_some_and(|name| Path::new(name).file_name() == Some("flanneld".as_ref()));
    let flag = args.get(1).and_then(|arg| arg.to_str()?.strip_prefix('-'));
    let flag = flag.map(|flag| flag.strip_prefix('-').unwrap_or(flag));
    let is_ours = flag.is_some_and(|flag| is_flag(flag.split_once('=').map_or(flag, |(name, _)| name)));
    // Our own name and `--version` is the whole program's.
    if is_flanneld || (is_ours && args[1] != "--version") {
        args.insert(1, "run".into());
    }
    go_flags(args)
}

/// Rewrites Go's `-flag` (one dash, and a flag's name or more than one letter) to `--flag`, and `-flag value` to
/// `--flag=value`, because a value may begin with a dash. Go's flags end at `--`, or at the first argument that is none;
/// so do those of `run`, as flanneld's do. Other verbs have their words looked at by our parser.
fn go_flags(given: Vec<OsString>) -> CommandLine {
    let command = RunArgs::augment_args(Command::new("run"));
    let is_long = |flag: &str| command.get_arguments().any(|arg| arg.get_long() == Some(flag));
    let takes_value = |flag: &str| {
        command.get_arguments().any(|arg| {
            arg.get_long() == Some(flag) && !arg.is_require_equals_set() && arg.get_action().takes_values()
        })
    };
    let is_run = given.get(1).is_some_and(|verb| verb == "run");
    let mut given = given.into_iter();
    let mut args: Vec<OsString> = given.by_ref().take(1 + usize::from(is_run)).collect();
    while let Some(arg) = given.next() {
        let text = arg.to_string_lossy();
        let is_end = text == "--";
        let is_word = text == "-" || !text.starts_with('-');
        if is_run && (is_end || is_word) {
            let words: Vec<_> = is_word.then_some(arg).into_iter().chain(given).collect();
            return CommandLine { args, notice: unread(&words) };
        }
        if is_end || is_word {
            args.push(arg);
            if is_end {
                args.extend(given.by_ref());
            }
            continue;
        }
        let name = text.trim_start_matches('-');
        let bare = name.split_once('=').map_or(name, |(bare, _)| bare);
        let single = !text.starts_with("--") && (bare.chars().nth(1).is_some() || is_long(bare));
        let mut flag = OsString::from(if single { "-" } else { "" });
        flag.push(&arg);
        if takes_value(name)
            && let Some(value) = given.next()
        {
            flag.push("=");
            flag.push(value);
        }
        args.push(flag);
    }
    CommandLine { args, notice: None }
}

/// Names the first word if it is a truth value, a number or a flag, and the flags behind it, but none of their values: one may be a
/// password.
fn unread(words: &[OsString]) -> Option<String> {
    let (first, rest) = words.split_first()?;
    let flag = |word: &'_ OsString| {
        let flag = word.to_str()?.split('=').next()?;
        (flag.starts_with('-') && is_flag(flag.trim_start_matches('-'))).then(|| flag.to_owned())
    };
    let value = first.to_str().filter(|word| word.parse::<bool>().is_ok() || word.parse::<u64>().is_ok());
    let first = value.map(str::to_owned).or_else(|| flag(first));
    let flags = rest.iter().filter_map(|word| Some(format!(" {}", flag(word)?)));
    Some(format!(
        "{}{}: ignored, as by flanneld, whose flags end at the first word that is none; a truth value needs the equals sign, \
         as in --ip-masq=true",
        first.as_deref().unwrap_or("a word that is no flag"),
        flags.collect::<String>()
    ))
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

    fn line(text: &str) -> CommandLine {
        command_line(text.split_whitespace().map(OsString::from))
    }

    fn parse(args: &str) -> Result<RunArgs, clap::Error> {
        let mut args = line(&format!("flanneld {args}")).args;
        args.remove(1);
        Cli::try_parse_from(args).map(|cli| cli.run)
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
            assert_eq!(run.iface, ["eth0"], "{args}");
        }
        let run = parse("-etcd-password hunter2").unwrap();
        assert_eq!(run.etcd_password.as_ref().map(Secret::reveal), Some("hunter2"));
        assert!(!format!("{run:?}").contains("hunter2"));
        assert_eq!(parse("-ip-masq=F").unwrap().ip_masq.as_deref(), Some("F"));
        assert!(parse("-no-such-flag").is_err());
    }

    #[test]
    fn flags_of_run_end_at_the_first_word_that_is_none_and_what_is_behind_is_named() {
        for (args, named) in [
            ("run -ip-masq true -healthz-port 80 --public-ip=192.0.2.1", "true -healthz-port --public-ip: "),
            ("-ip-masq false -etcd-password hunter2 -x -v=4", "false -etcd-password -v: "),
            ("run -ip-masq -- -healthz-port 80", "-healthz-port: "),
            ("run -ip-masq - x", "a word that is no flag: "),
            ("run foo", "a word that is no flag: "),
            ("run -etcd-password= hunter2", "a word that is no flag: "),
        ] {
            let CommandLine { args: taken, notice } = line(&format!("canal-agent {args}"));
            let notice = notice.expect(args);
            assert!(notice.starts_with(named) && notice.contains("--ip-masq=true"), "{args}: {notice}");
            assert!(!notice.contains("hunter2"), "{notice}");
            let run = Cli::try_parse_from(&taken[1..]).unwrap().run;
            assert_eq!(
                (run.ip_masq.is_some(), run.healthz_port),
                (args.contains("-ip-masq"), None),
                "{args}"
            );
        }
        for args in ["run", "run -ip-masq --", "cleanup foo", "lease release -ip-masq true", "-ip-masq=true"]
        {
            assert_eq!(line(&format!("canal-agent {args}")).notice, None, "{args}");
        }
        assert!(parse("-no-such-flag true").is_err());
        let other = line("canal-agent cleanup foo -iface -x -- -iface");
        assert_eq!(other.args, line("canal-agent cleanup foo --iface=-x -- -iface").args);
        assert_eq!(other.args.len(), 6, "{other:?}");
    }

    #[test]
    fn what_follows_a_flag_is_its_value_whatever_it_begins_with() {
        let run = parse("-etcd-password -s3cret -iface-regex -a --etcd-prefix -x --iface -- -public-ip -v")
            .unwrap();
        assert_eq!(run.etcd_password.as_ref().map(Secret::reveal), Some("-s3cret"));
        assert_eq!((run.iface_regex, run.etcd_prefix), (vec!["-a".to_owned()], Some("-x".to_owned())));
        assert_eq!((run.iface, run.public_ip), (vec!["--".to_owned()], Some("-v".to_owned())));
        assert_eq!(parse("-v -1").unwrap().flanneld.given("v"), Some("-1"));
        assert!(parse("-iface").is_err(), "a value is missing");
    }

    #[test]
    fn the_verb_may_be_left_out_in_front_of_flags_and_under_flannelds_name() {
        let taken_of = |text: &str| {
            let args = line(text).args;
            args.iter().map(|arg| arg.to_str().unwrap()).collect::<Vec<_>>().join(" ")
        };
        for (given, taken) in [
            ("canal-agent -etcd-prefix=/x -ip-masq", "canal-agent run --etcd-prefix=/x --ip-masq"),
            ("canal-agent --iface eth0", "canal-agent run --iface=eth0"),
            ("canal-agent -v 4", "canal-agent run --v=4"),
            ("canal-agent -version", "canal-agent run --version"),
            ("/usr/bin/flanneld", "/usr/bin/flanneld run"),
            ("/usr/bin/flanneld --version", "/usr/bin/flanneld run --version"),
            ("flanneld -no-such-flag", "flanneld run --no-such-flag"),
            ("canal-agent", "canal-agent"),
            ("canal-agent --version", "canal-agent --version"),
            ("canal-agent -h", "canal-agent -h"),
            ("canal-agent cleanup -iface eth0", "canal-agent cleanup --iface=eth0"),
        ] {
            assert_eq!(taken_of(given), taken, "{given}");
        }
    }

    #[test]
    fn of_a_flag_given_twice_the_last_counts_and_uplinks_are_a_list() {
        let run = parse("-public-ip 192.0.2.1 -ip-masq -public-ip 192.0.2.2 -ip-masq=false").unwrap();
        assert_eq!((run.public_ip.as_deref(), run.ip_masq.as_deref()), (Some("192.0.2.2"), Some("false")));
        let run = parse("-iface eth0 --iface=192.0.2.1 -iface-regex ^10[.] -iface-regex=wg.*").unwrap();
        assert_eq!(
            (run.iface, run.iface_regex),
            (vec!["eth0".to_owned(), "192.0.2.1".to_owned()], vec!["^10[.]".to_owned(), "wg.*".to_owned()])
        );
    }

    #[test]
    fn flags_of_one_letter_are_taken_in_gos_form_too() {
        for args in ["-v 4 -iface x", "-v=4 -iface x", "--v=4 -iface x", "--v 4 -iface=x"] {
            let run = parse(args).unwrap();
            assert_eq!((run.flanneld.given("v"), run.iface.len()), (Some("4"), 1), "{args}");
        }
    }

    #[test]
    fn short_flags_and_what_stands_behind_two_dashes_stay_as_they_are() {
        let args = ["x", "-h", "-", "--iface=-odd", "--", "-iface"].map(OsString::from);
        assert_eq!(go_flags(args.to_vec()).args, args);
    }
}
