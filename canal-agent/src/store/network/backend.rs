//! How packets get from node to node: the configuration's `Backend`.

use std::fmt;

use canal_common::Mac;

use super::{Fields, NetworkError};
use crate::store::{BackendKind, VxlanData, json::Json};

pub const VNI_MAX: u32 = 0x00ff_ffff;
/// The smallest outer MTU that leaves IPv4's minimum of 68 (RFC 791) to the pods.
pub const MTU_MIN: u16 = 118;
const VXLAN_PORT: u16 = 8472;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    Vxlan(VxlanOptions),
    /// Plain packets between nodes on one link.
    HostGw,
    /// Subnets only: somebody else carries what pods of different nodes say to each other.
    Alloc,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanOptions {
    pub vni: u32,
    pub port: u16,
    /// Outer MTU; `None` means that of the uplink.
    pub mtu: Option<u16>,
    /// Peers on our own link get plain packets.
    pub direct_routing: bool,
}

impl Default for VxlanOptions {
    fn default() -> Self {
        Self { vni: 1, port: VXLAN_PORT, mtu: None, direct_routing: false }
    }
}

/// As the configuration has it.
impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Vxlan(_) => "vxlan",
            Self::HostGw => "host-gw",
            Self::Alloc => "alloc",
        })
    }
}

impl Backend {
    pub fn vxlan(&self) -> Option<&VxlanOptions> {
        match self {
            Self::Vxlan(options) => Some(options),
            Self::HostGw | Self::Alloc => None,
        }
    }

    /// As the lease of a node says it whose VXLAN device has this MAC.
    pub fn in_lease(&self, vtep_mac: Mac) -> BackendKind {
        match self {
            Self::Vxlan(options) => BackendKind::Vxlan(VxlanData { vni: options.vni, vtep_mac }),
            Self::HostGw => BackendKind::HostGw,
            Self::Alloc => BackendKind::Alloc,
        }
    }

    /// Whether some nodes may be reached without an envelope.
    pub fn reaches_directly(&self) -> bool {
        match self {
            Self::Vxlan(options) => options.direct_routing,
            Self::HostGw => true,
            Self::Alloc => false,
        }
    }

    /// Whether this node sends to other nodes' pods, and takes from them.
    pub fn carries(&self) -> bool {
        !matches!(self, Self::Alloc)
    }

    /// MTU of the pods where the uplink has this one; both in bytes.
    pub fn pod_mtu(&self, uplink: u32) -> u16 {
        const ENVELOPE: usize = canal_common::wire::ENVELOPE_LEN;
        let mtu = match self {
            Self::Vxlan(options) => {
                options.mtu.map_or(uplink, u32::from).saturating_sub(u32::try_from(ENVELOPE).unwrap_or(50))
            }
            Self::HostGw | Self::Alloc => uplink,
        };
        u16::try_from(mtu).unwrap_or(u16::MAX)
    }

    /// What of `next` only a fresh start can take up, in words.
    pub(super) fn needs_restart(&self, next: &Self) -> Vec<(&'static str, String, String)> {
        match (self, next) {
            (Self::Vxlan(before), Self::Vxlan(after)) => vec![
                ("Backend.VNI", before.vni.to_string(), after.vni.to_string()),
                ("Backend.Port", before.port.to_string(), after.port.to_string()),
            ],
            (before, after) => vec![("Backend.Type", before.to_string(), after.to_string())],
        }
    }
}

/// What the configuration's member says.
pub(super) fn read(fields: &Fields<'_>, notes: &mut Vec<String>) -> Result<Backend, NetworkError> {
    let Some(json) = fields.json.member("Backend") else {
        notes.push("Backend is absent: using vxlan (flanneld takes udp here; write \"Backend\":{\"Type\":\"vxlan\"})".into());
        return Ok(Backend::Vxlan(VxlanOptions::default()));
    };
    let Json::Object(_) = json else { return Err(fields.wrong("Backend", json, "an object with a Type")) };
    let fields = Fields { json, path: "Backend." };
    let kind = fields.string("Type")?.filter(|kind| !kind.is_empty()).ok_or(NetworkError::NoBackendType)?;
    match kind.to_ascii_lowercase().as_str() {
        "vxlan" => vxlan(&fields, notes).map(Backend::Vxlan),
        "host-gw" => Ok(Backend::HostGw),
        "alloc" => Ok(Backend::Alloc),
        other => Err(NetworkError::UnknownBackend { kind: kind.to_owned(), instead: instead_of(other) }),
    }
}

/// What does the same here, or comes closest.
fn instead_of(kind: &str) -> &'static str {
    match kind {
        "udp" | "ipip" => "use \"Type\":\"vxlan\", or \"Type\":\"host-gw\" where all nodes are on one link",
        "wireguard" | "ipsec" => {
            "Canal does not encrypt: run WireGuard or IPsec between the nodes, name its interface with --iface, and use \
             \"Type\":\"vxlan\""
        }
        "extension" => {
            "Canal runs no commands: use \"Type\":\"alloc\", and set the routes between nodes by other means"
        }
        "tencent-vpc" | "aws-vpc" | "gce" | "ali-vpc" => {
            "use \"Type\":\"alloc\" where the cloud routes the pods' subnets, or \"Type\":\"vxlan\""
        }
        _ => "use \"Type\":\"vxlan\", \"host-gw\" or \"alloc\"",
    }
}

fn vxlan(fields: &Fields<'_>, notes: &mut Vec<String>) -> Result<VxlanOptions, NetworkError> {
    for (option, effect) in [
        ("GBP", "the group policy extension of VXLAN is not sent"),
        ("Learning", "peers come from their leases, never from traffic"),
    ] {
        if fields.boolean(option)? == Some(true) {
            notes.push(format!("Backend.{option} has no effect: {effect}"));
        }
    }
    let mtu = fields
        .unsigned("MTU", u64::from(u16::MAX), "the MTU of the uplink, 118 to 65535")?
        .filter(|mtu| *mtu != 0)
        .map(narrow::<u16>);
    if let Some(mtu) = mtu.filter(|mtu| *mtu < MTU_MIN) {
        return Err(fields.wrong("MTU", &Json::Number(mtu.into()), "the MTU of the uplink, 118 to 65535"));
    }
    let port = fields.unsigned("Port", u64::from(u16::MAX), "a UDP port, 0 to 65535")?.unwrap_or(0);
    Ok(VxlanOptions {
        vni: fields.unsigned("VNI", VNI_MAX.into(), "a number, 0 to 16777215")?.map_or(1, narrow::<u32>),
        port: if port == 0 { VXLAN_PORT } else { narrow::<u16>(port) },
        mtu,
        direct_routing: fields.boolean("DirectRouting")?.unwrap_or(false),
    })
}

fn narrow<T: TryFrom<u64>>(value: u64) -> T {
    T::try_from(value).ok().expect("the bound was checked while reading")
}
