//! Owns: the table of what Canal needs from a machine: for which verb, why, how to see that it is there, and how
//! to get it. To add a tool, add a row. Does not: look at the machine (`probe`) or change it (`install`).

use crate::version::Version;

/// What the user wants to do. Building is part of every other purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    Build,
    Load,
    Demo,
    Test,
    Bench,
    Check,
}

impl Purpose {
    pub(crate) const ALL: [Self; 6] =
        [Self::Build, Self::Load, Self::Demo, Self::Test, Self::Bench, Self::Check];
}

#[derive(Debug)]
pub(crate) struct Requirement {
    pub(crate) name: &'static str,
    /// Completes "needed for …".
    pub(crate) why: &'static str,
    pub(crate) purposes: &'static [Purpose],
    pub(crate) probe: Probe,
    pub(crate) remedy: Remedy,
    /// What to get where the remedy does not work: another distribution, or no root.
    pub(crate) otherwise: &'static str,
}

/// How to see that a requirement is met.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Probe {
    /// All of these programs can be found.
    Programs(&'static [&'static str]),
    /// One of these files exists.
    AnyFile(&'static [&'static str]),
    /// The program runs and is at least this version.
    Tool {
        program: &'static str,
        arguments: &'static [&'static str],
        oldest: Version,
    },
    /// A compiler for the kernel target, and its clippy.
    KernelCompiler,
    KernelClippy,
    Root,
    Kernel(Version),
    Bpffs,
}

/// How to meet a requirement.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Remedy {
    /// Debian packages.
    Apt(&'static [&'static str]),
    /// The packages, or a pinned nightly where the distribution has none or they would remove its own compiler.
    KernelCompiler(&'static [&'static str]),
    Cargo(CargoTool),
    /// A component of the toolchain in use.
    Rustup(&'static str),
    MountBpffs,
    /// Nothing that a program should do by itself.
    Tell,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct CargoTool {
    pub(crate) package: &'static str,
    pub(crate) version: &'static str,
    pub(crate) arguments: &'static [&'static str],
    pub(crate) environment: &'static [(&'static str, &'static str)],
    /// Debian packages that its build needs.
    pub(crate) packages: &'static [&'static str],
}

/// Debian's packages of a compiler with `core` for the kernel target.
const DEBIAN_COMPILER: &[&str] = &["rustc-web", "libstd-rust-web-dev-bpf"];

/// A nightly of the LLVM that bpf-linker is built with, for systems without those packages.
pub(crate) const PINNED_NIGHTLY: &str = "nightly-2026-05-20";

use Purpose::{Bench, Build, Check, Demo, Load, Test};

/// Needed where clusters of network namespaces run.
const CLUSTERS: &[Purpose] = &[Demo, Test, Bench];
/// Needed where a kernel takes the programs.
const KERNEL: &[Purpose] = &[Load, Demo, Test, Bench];

pub(crate) const TABLE: &[Requirement] = &[
    Requirement {
        name: "C compiler",
        why: "the TLS library of the etcd client",
        purposes: &[Build],
        probe: Probe::Programs(&["cc"]),
        remedy: Remedy::Apt(&["gcc", "libc6-dev"]),
        otherwise: "a C compiler with its headers, found as cc",
    },
    Requirement {
        name: "kernel compiler",
        why: "the eBPF object: a Rust with core for bpfel-unknown-none",
        purposes: &[Build],
        probe: Probe::KernelCompiler,
        remedy: Remedy::KernelCompiler(DEBIAN_COMPILER),
        otherwise: "rustup toolchain install nightly-2026-05-20 --profile minimal --component rust-src \
                    --component clippy",
    },
    Requirement {
        name: "bpf-linker",
        why: "linking the eBPF object, with BTF",
        purposes: &[Build],
        probe: Probe::Tool { program: "bpf-linker", arguments: &["--version"], oldest: Version(0, 13, 0) },
        remedy: Remedy::Cargo(CargoTool {
            package: "bpf-linker",
            version: "0.13.0",
            arguments: &["--no-default-features", "--features", "llvm-22"],
            environment: &[("LLVM_PREFIX", "/usr/lib/llvm-22")],
            packages: &["llvm-22-dev", "libpolly-22-dev", "g++"],
        }),
        otherwise: "the development files of LLVM 22, then: LLVM_PREFIX=<its prefix> cargo install bpf-linker \
                    --version 0.13.0 --locked --no-default-features --features llvm-22",
    },
    Requirement {
        name: "protoc",
        why: "the etcd client, which is generated from etcd's protocol files",
        purposes: &[Build],
        probe: Probe::Programs(&["protoc"]),
        remedy: Remedy::Apt(&["protobuf-compiler"]),
        otherwise: "the Protocol Buffers compiler, protoc 3.15 or later",
    },
    Requirement {
        name: "protobuf files",
        why: "the types that etcd's protocol files import",
        purposes: &[Build],
        probe: Probe::AnyFile(&[
            "/usr/include/google/protobuf/descriptor.proto",
            "/usr/local/include/google/protobuf/descriptor.proto",
        ]),
        remedy: Remedy::Apt(&["libprotobuf-dev"]),
        otherwise: "the .proto files of Protocol Buffers (google/protobuf/descriptor.proto)",
    },
    Requirement {
        name: "root",
        why: "eBPF programs and network namespaces",
        purposes: KERNEL,
        probe: Probe::Root,
        remedy: Remedy::Tell,
        otherwise: "run it as root",
    },
    Requirement {
        name: "kernel",
        why: "attaching by tcx (6.6 and later) and BTF",
        purposes: KERNEL,
        probe: Probe::Kernel(Version(6, 6, 0)),
        remedy: Remedy::Tell,
        otherwise: "Linux 6.6 or later with CONFIG_DEBUG_INFO_BTF",
    },
    Requirement {
        name: "bpffs",
        why: "pins that outlive the program that made them",
        purposes: &[Load],
        probe: Probe::Bpffs,
        remedy: Remedy::MountBpffs,
        otherwise: "mount -t bpf bpf /sys/fs/bpf",
    },
    Requirement {
        name: "bpftool",
        why: "looking at maps and programs from outside",
        purposes: KERNEL,
        probe: Probe::Programs(&["bpftool"]),
        remedy: Remedy::Apt(&["bpftool"]),
        otherwise: "bpftool",
    },
    Requirement {
        name: "iproute2",
        why: "nodes and pods as network namespaces",
        purposes: KERNEL,
        probe: Probe::Programs(&["ip", "tc", "bridge"]),
        remedy: Remedy::Apt(&["iproute2"]),
        otherwise: "iproute2 (ip, tc, bridge)",
    },
    Requirement {
        name: "etcd",
        why: "the store of each test cluster",
        purposes: CLUSTERS,
        probe: Probe::Programs(&["etcd"]),
        remedy: Remedy::Apt(&["etcd-server"]),
        otherwise: "etcd 3.4 or later",
    },
    Requirement {
        name: "etcdctl",
        why: "writing configuration and policy as an operator does",
        purposes: CLUSTERS,
        probe: Probe::Programs(&["etcdctl"]),
        remedy: Remedy::Apt(&["etcd-client"]),
        otherwise: "etcdctl 3.4 or later",
    },
    Requirement {
        name: "CNI plugins",
        why: "host-local, which gives out pod addresses",
        purposes: CLUSTERS,
        probe: Probe::AnyFile(&["/usr/lib/cni/host-local", "/opt/cni/bin/host-local"]),
        remedy: Remedy::Apt(&["containernetworking-plugins"]),
        otherwise: "the reference CNI plugins in /opt/cni/bin",
    },
    Requirement {
        name: "nftables",
        why: "masquerading what pods send outside",
        purposes: CLUSTERS,
        probe: Probe::Programs(&["nft"]),
        remedy: Remedy::Apt(&["nftables"]),
        otherwise: "nftables (nft)",
    },
    Requirement {
        name: "ping",
        why: "reachability",
        purposes: CLUSTERS,
        probe: Probe::Programs(&["ping"]),
        remedy: Remedy::Apt(&["iputils-ping"]),
        otherwise: "ping from iputils",
    },
    Requirement {
        name: "tcpdump",
        why: "what is on the wire",
        purposes: CLUSTERS,
        probe: Probe::Programs(&["tcpdump"]),
        remedy: Remedy::Apt(&["tcpdump"]),
        otherwise: "tcpdump",
    },
    Requirement {
        name: "ethtool",
        why: "the offloads of test devices",
        purposes: CLUSTERS,
        probe: Probe::Programs(&["ethtool"]),
        remedy: Remedy::Apt(&["ethtool"]),
        otherwise: "ethtool",
    },
    Requirement {
        name: "procps",
        why: "kernel settings of test nodes",
        purposes: CLUSTERS,
        probe: Probe::Programs(&["sysctl", "ps"]),
        remedy: Remedy::Apt(&["procps"]),
        otherwise: "procps (sysctl, ps)",
    },
    Requirement {
        name: "iptables",
        why: "the data path that Canal replaces, beside it and as the baseline",
        purposes: &[Test, Bench],
        probe: Probe::Programs(&["iptables-nft", "iptables-nft-restore", "iptables-nft-save"]),
        remedy: Remedy::Apt(&["iptables"]),
        otherwise: "iptables 1.8 with its nft programs (iptables-nft-restore)",
    },
    Requirement {
        name: "ipset",
        why: "the baseline's address sets",
        purposes: &[Test, Bench],
        probe: Probe::Programs(&["ipset"]),
        remedy: Remedy::Apt(&["ipset"]),
        otherwise: "ipset",
    },
    Requirement {
        name: "conntrack",
        why: "the baseline's flows, forgotten between measurements",
        purposes: &[Bench],
        probe: Probe::Programs(&["conntrack"]),
        remedy: Remedy::Apt(&["conntrack"]),
        otherwise: "conntrack",
    },
    Requirement {
        name: "openssl",
        why: "certificates of test clusters",
        purposes: &[Test],
        probe: Probe::Programs(&["openssl"]),
        remedy: Remedy::Apt(&["openssl"]),
        otherwise: "openssl",
    },
    Requirement {
        name: "python3",
        why: "scripted peers of tests",
        purposes: &[Test],
        probe: Probe::Programs(&["python3"]),
        remedy: Remedy::Apt(&["python3"]),
        otherwise: "Python 3",
    },
    Requirement {
        name: "podman",
        why: "a container runtime that calls the CNI plugin",
        purposes: &[Test],
        probe: Probe::Programs(&["podman", "runc", "conmon"]),
        remedy: Remedy::Apt(&["podman", "runc", "conmon"]),
        otherwise: "podman 4 with runc and conmon; with a later one, which has no CNI, its tests are skipped",
    },
    Requirement {
        name: "busybox",
        why: "all that is in the containers of podman",
        purposes: &[Test],
        probe: Probe::Programs(&["busybox"]),
        remedy: Remedy::Apt(&["busybox-static"]),
        otherwise: "busybox, statically linked, with httpd and wget",
    },
    Requirement {
        name: "sockperf",
        why: "packet rates and round trips",
        purposes: &[Bench],
        probe: Probe::Programs(&["sockperf"]),
        remedy: Remedy::Apt(&["sockperf"]),
        otherwise: "sockperf",
    },
    Requirement {
        name: "rustfmt",
        why: "the form of the source",
        purposes: &[Check],
        probe: Probe::Tool { program: "cargo-fmt", arguments: &["--version"], oldest: Version(1, 0, 0) },
        remedy: Remedy::Rustup("rustfmt"),
        otherwise: "rustfmt of the toolchain in use",
    },
    Requirement {
        name: "clippy",
        why: "lints",
        purposes: &[Check],
        probe: Probe::Tool { program: "cargo-clippy", arguments: &["--version"], oldest: Version(0, 1, 0) },
        remedy: Remedy::Rustup("clippy"),
        otherwise: "clippy of the toolchain in use",
    },
    Requirement {
        name: "kernel clippy",
        why: "lints of what runs in the kernel",
        purposes: &[Check],
        probe: Probe::KernelClippy,
        remedy: Remedy::Apt(&["rust-web-clippy"]),
        otherwise: "clippy of the kernel compiler: rustup component add clippy --toolchain <the nightly>",
    },
    Requirement {
        name: "cargo-machete",
        why: "finding unused dependencies",
        purposes: &[Check],
        probe: Probe::Tool { program: "cargo-machete", arguments: &["--version"], oldest: Version(0, 9, 2) },
        remedy: Remedy::Cargo(CargoTool {
            package: "cargo-machete",
            version: "0.9.2",
            arguments: &[],
            environment: &[],
            packages: &[],
        }),
        otherwise: "cargo install cargo-machete --version 0.9.2 --locked",
    },
    Requirement {
        name: "cargo-deny",
        why: "licences and sources of dependencies",
        purposes: &[Check],
        probe: Probe::Tool { program: "cargo-deny", arguments: &["--version"], oldest: Version(0, 20, 2) },
        remedy: Remedy::Cargo(CargoTool {
            package: "cargo-deny",
            version: "0.20.2",
            arguments: &[],
            environment: &[],
            packages: &[],
        }),
        otherwise: "cargo install cargo-deny --version 0.20.2 --locked",
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_name_stands_once_and_says_what_for_and_what_else() {
        let mut seen = BTreeSet::new();
        for row in TABLE {
            assert!(seen.insert(row.name), "{} twice", row.name);
            assert!(!row.why.is_empty() && !row.otherwise.is_empty(), "{}", row.name);
            assert!(!row.purposes.is_empty(), "{} is needed for nothing", row.name);
        }
    }

    #[test]
    fn each_purpose_needs_something_of_its_own() {
        for purpose in Purpose::ALL {
            assert!(TABLE.iter().any(|row| row.purposes.contains(&purpose)), "{purpose:?}");
        }
    }

    #[test]
    fn building_needs_neither_root_nor_a_recent_kernel() {
        for row in TABLE.iter().filter(|row| row.purposes.contains(&Build)) {
            assert!(!matches!(row.probe, Probe::Root | Probe::Kernel(_) | Probe::Bpffs), "{}", row.name);
        }
    }

    #[test]
    fn what_is_installed_satisfies_its_own_probe() {
        for row in TABLE {
            if let (Probe::Tool { oldest, .. }, Remedy::Cargo(tool)) = (row.probe, row.remedy) {
                assert_eq!(Version::find(tool.version), Some(oldest), "{}", row.name);
            }
        }
    }

    #[test]
    fn the_advice_for_other_systems_names_the_nightly_that_setup_installs() {
        let row = TABLE.iter().find(|row| matches!(row.probe, Probe::KernelCompiler)).unwrap();
        assert!(row.otherwise.contains(PINNED_NIGHTLY));
    }
}
