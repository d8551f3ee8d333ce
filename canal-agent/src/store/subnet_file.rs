//! `subnet.env`, the file that tells other programs of this node its subnet. Written to the byte as flanneld
//! writes it, replaced atomically, left alone when nothing changed. The CNI plugin reads it too.

use std::{
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use ipnet::Ipv4Net;

use crate::file;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubnetEnv {
    pub network: Ipv4Net,
    /// The node's subnet, host bits clear. The file shows its first address instead.
    pub subnet: Ipv4Net,
    /// What pods may send.
    pub mtu: u16,
    pub ipmasq: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum SubnetFileError {
    #[error("cannot read {path}: {error}; the agent writes it once it holds a subnet", path = path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("{path}: {error}; the agent rewrites it when it starts", path = path.display())]
    Parse { path: PathBuf, error: BadSubnetEnv },
    #[error("cannot write {path}: {error}; check --subnet-file and the permissions of its folder", path = path.display())]
    Write { path: PathBuf, error: io::Error },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadSubnetEnv {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{name} is {found:?}, want {want}")]
    Value { name: &'static str, found: String, want: &'static str },
}

impl SubnetEnv {
    /// The first address of the subnet, the one that flannel hands to bridges.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.subnet.network().to_bits().saturating_add(1))
    }

    pub fn render(&self) -> String {
        format!(
            "FLANNEL_NETWORK={}\nFLANNEL_SUBNET={}/{}\nFLANNEL_MTU={}\nFLANNEL_IPMASQ={}\n",
            self.network.trunc(),
            self.gateway(),
            self.subnet.prefix_len(),
            self.mtu,
            self.ipmasq
        )
    }

    /// Everything must be there but `FLANNEL_IPMASQ`, which flannel's own plugin takes for false.
    pub fn parse(text: &str) -> Result<Self, BadSubnetEnv> {
        let net = |name| -> Result<Ipv4Net, BadSubnetEnv> {
            let found = variable(text, name).ok_or(BadSubnetEnv::Missing(name))?;
            let net: Option<Ipv4Net> = found.trim().parse().ok();
            let bad = BadSubnetEnv::Value { name, found, want: "one IPv4 range such as 10.77.12.1/24" };
            Ok(net.ok_or(bad)?.trunc())
        };
        let mtu = variable(text, "FLANNEL_MTU").ok_or(BadSubnetEnv::Missing("FLANNEL_MTU"))?;
        let ipmasq = variable(text, "FLANNEL_IPMASQ").unwrap_or_default();
        Ok(Self {
            network: net("FLANNEL_NETWORK")?,
            subnet: net("FLANNEL_SUBNET")?,
            mtu: mtu.parse().map_err(|_| BadSubnetEnv::Value {
                name: "FLANNEL_MTU",
                found: mtu,
                want: "a number up to 65535",
            })?,
            ipmasq: matches!(ipmasq.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True"),
        })
    }

    pub fn read(path: &Path) -> Result<Self, SubnetFileError> {
        let text = fs::read_to_string(path)
            .map_err(|error| SubnetFileError::Read { path: path.to_owned(), error })?;
        Self::parse(&text).map_err(|error| SubnetFileError::Parse { path: path.to_owned(), error })
    }

    /// Replaces the file unless it already says this; tells whether it wrote.
    pub fn write(&self, path: &Path) -> Result<bool, SubnetFileError> {
        let text = self.render();
        if fs::read(path).is_ok_and(|present| present == text.as_bytes()) {
            return Ok(false);
        }
        file::replace(path, text.as_bytes())
            .map_err(|error| SubnetFileError::Write { path: path.to_owned(), error })?;
        Ok(true)
    }
}

/// The subnet of an earlier run, as flannel looks for it: lists are tolerated, but only one valid entry counts.
pub fn previous_subnet(text: &str) -> Option<Ipv4Net> {
    let list = variable(text, "FLANNEL_SUBNET")?;
    let mut valid = list.split(',').filter_map(|item| item.trim().parse::<Ipv4Net>().ok());
    let first = valid.next()?;
    valid.next().is_none().then(|| first.trunc())
}

/// [`previous_subnet`] of a file, which may not be there.
pub fn read_previous_subnet(path: &Path) -> Option<Ipv4Net> {
    previous_subnet(&fs::read_to_string(path).ok()?)
}

/// The last assignment of `name` in dotenv text: comments, `export`, blanks around `=` and quotes are tolerated.
fn variable(text: &str, name: &str) -> Option<String> {
    text.lines().rev().find_map(|line| {
        let line = line.trim();
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (key, value) = line.split_once('=')?;
        if key.trim() != name {
            return None;
        }
        let value = value.trim();
        let quoted = ['"', '\''].into_iter().find_map(|quote| {
            value.strip_prefix(quote).and_then(|rest| rest.split_once(quote)).map(|(inner, _)| inner)
        });
        Some(quoted.unwrap_or_else(|| value.split(" #").next().unwrap_or(value).trim()).to_owned())
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use proptest::prelude::*;

    use super::*;

    fn env() -> SubnetEnv {
        SubnetEnv {
            network: "10.77.0.0/16".parse().unwrap(),
            subnet: "10.77.12.0/24".parse().unwrap(),
            mtu: 1450,
            ipmasq: true,
        }
    }

    const TEXT: &str =
        "FLANNEL_NETWORK=10.77.0.0/16\nFLANNEL_SUBNET=10.77.12.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

    #[test]
    fn the_file_is_flannels_to_the_byte() {
        assert_eq!(env().render(), TEXT);
        assert_eq!(SubnetEnv::parse(TEXT), Ok(env()));
    }

    #[test]
    fn the_reader_takes_what_a_shell_would() {
        let text = "# by hand\n\nexport FLANNEL_NETWORK = \"10.77.0.0/16\"\nFLANNEL_SUBNET='10.77.12.1/24' # mine\r\n\
                    FLANNEL_MTU=9000\nFLANNEL_MTU=1450\nFLANNEL_IPV6_SUBNET=fd00::1/64\nFLANNEL_IPMASQ=1 # yes\n";
        assert_eq!(SubnetEnv::parse(text), Ok(env()));
        let without = TEXT.replace("FLANNEL_IPMASQ=true\n", "");
        assert_eq!(SubnetEnv::parse(&without), Ok(SubnetEnv { ipmasq: false, ..env() }));
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        for (from, to, want) in [
            ("FLANNEL_SUBNET=", "X=", "FLANNEL_SUBNET is missing"),
            ("10.77.0.0/16", "10.77.0.0", "FLANNEL_NETWORK is \"10.77.0.0\""),
            ("10.77.12.1/24", "10.77.12.1/24,10.78.0.1/24", "want one IPv4 range"),
            ("1450", "-20", "FLANNEL_MTU is \"-20\""),
        ] {
            let error = SubnetEnv::parse(&TEXT.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn the_previous_subnet_is_the_only_valid_one() {
        let previous =
            |list: &str| previous_subnet(&format!("FLANNEL_SUBNET={list}\n")).map(|n| n.to_string());
        assert_eq!(previous("10.77.12.1/24"), Some("10.77.12.0/24".into()));
        assert_eq!(previous("junk,10.77.12.1/24"), Some("10.77.12.0/24".into()));
        assert_eq!(previous("10.77.12.1/24,10.77.13.1/24"), None);
        assert_eq!(previous("junk"), None);
        assert_eq!(previous_subnet(""), None);
    }

    #[test]
    fn an_unchanged_file_is_left_alone_and_a_changed_one_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/subnet.env");
        assert!(env().write(&path).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), TEXT);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert!(!env().write(&path).unwrap());
        let changed = SubnetEnv { mtu: 8950, ..env() };
        assert!(changed.write(&path).unwrap());
        assert_eq!(SubnetEnv::read(&path).unwrap(), changed);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn a_folder_in_the_way_is_an_error_with_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let error = env().write(folder.path()).unwrap_err().to_string();
        assert!(error.contains("--subnet-file"), "{error}");
        assert!(
            SubnetEnv::read(&folder.path().join("none")).unwrap_err().to_string().contains("cannot read")
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "(FLANNEL_(SUBNET|MTU|NETWORK)[ =]*['\"]?[0-9./é,]*['\"#]?\n?)*") {
            let _ = SubnetEnv::parse(&text);
            let _ = previous_subnet(&text);
        }
    }
}
