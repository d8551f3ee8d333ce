//! The kernel object that is embedded in this binary: checking what an earlier agent left, loading, adopting.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io, panic, thread,
};

use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    maps::MapInfo,
    programs::{Program, ProgramError, SchedClassifier, Xdp},
    util::nr_cpus,
};
use aya_obj::Object as Parsed;
use canal_common::{names, policy::MAX_RULES, settings::Settings};
use tracing::{debug, warn};

use super::{
    handle::Handle,
    pins::{PinError, Pins},
};

static BYTES: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/canal.o"));

#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(
        "this kernel has no BTF at /sys/kernel/btf/vmlinux; Canal needs Linux 6.6 or later with CONFIG_DEBUG_INFO_BTF"
    )]
    NoBtf,
    #[error("Linux {0} is too old: Canal attaches its programs by tcx, which came with 6.6")]
    KernelTooOld(String),
    #[error("the embedded kernel object cannot be read: {0}; this binary is broken")]
    Broken(String),
    #[error("cannot load the kernel tables: {0}{hint}", hint = permission_hint(.0))]
    Load(#[source] Box<aya::EbpfError>),
    #[error("cannot tell how many CPUs the machine may have from {0}: {1}")]
    Cpus(&'static str, #[source] io::Error),
    #[error("the kernel refuses program {name}: {}", verifier_summary(.source))]
    Program { name: &'static str, source: Box<ProgramError> },
}

fn permission_hint(error: &aya::EbpfError) -> &'static str {
    let text = format!("{error:?}");
    if text.contains("PermissionDenied") || text.contains("code: 1,") {
        "; run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
    } else {
        ""
    }
}

/// The last lines of the verifier say why.
fn verifier_summary(error: &ProgramError) -> String {
    let text = error.to_string();
    let mut lines: Vec<&str> = text.lines().rev().filter(|l| !l.trim().is_empty()).take(4).collect();
    lines.reverse();
    lines.join(" | ")
}

/// Sizes that depend on the machine; the object's own are the defaults.
pub type Sizes = HashMap<&'static str, u32>;

/// The loaded object: tables and programs, not attached yet.
#[derive(Debug)]
pub struct Object {
    pub ebpf: Ebpf,
    /// Those that are pinned.
    tables: BTreeMap<&'static str, Handle>,
}

/// Of which nothing is pinned.
impl From<Ebpf> for Object {
    fn from(ebpf: Ebpf) -> Self {
        Self { ebpf, tables: BTreeMap::new() }
    }
}

impl Object {
    /// Loads the object. With `pins`, tables are adopted from there, or made and pinned there.
    pub fn load(settings: &Settings, pins: Option<&Pins>, sizes: &Sizes) -> Result<Self, ObjectError> {
        check_kernel()?;
        let mut loader = EbpfLoader::new();
        loader.override_global(names::SETTINGS, settings, true);
        let sizes = &with_hits(sizes)?;
        for (name, size) in sizes {
            loader.map_max_entries(name, *size);
        }
        if let Some(pins) = pins {
            pins.prepare()?;
            discard_misfits(pins, sizes)?;
            for name in names::MAPS {
                loader.map_pin_path(name, pins.table(name));
            }
        }
        let mut ebpf = loader.load(BYTES).map_err(|e| ObjectError::Load(Box::new(e)))?;
        load_programs(&mut ebpf)?;
        let held = |pins: &Pins| {
            let held = names::MAPS.iter().map(|name| Ok((*name, Pins::hold(&pins.table(name))?)));
            held.collect::<Result<_, PinError>>()
        };
        let tables = pins.map_or(Ok(BTreeMap::new()), held)?;
        Ok(Self { ebpf, tables })
    }

    /// Pins again what somebody has unpinned: an agent that starts later would begin with empty tables. Tells which.
    pub fn put_back(&self, pins: &Pins) -> Result<Vec<String>, PinError> {
        let mut back = Vec::new();
        for (name, table) in &self.tables {
            let path = pins.table(name);
            if pins.put_back(table, &path)? {
                back.push((*name).to_owned());
            }
        }
        Ok(back)
    }

    /// Has the next [`Object::load`] start the tables that a verdict is made of anew. The programs that run keep theirs.
    pub fn leave_policy(pins: &Pins) -> Result<(), ObjectError> {
        Ok(POLICY_TABLES.iter().try_for_each(|name| Pins::unpin(&pins.table(name)))?)
    }

    /// What [`super::judge::ask`] runs.
    pub fn judge(&self) -> &SchedClassifier {
        self.ebpf
            .program(names::JUDGE)
            .and_then(|p| p.try_into().ok())
            .expect("it was loaded as a classifier")
    }

    pub fn program(&mut self, name: &str) -> &mut SchedClassifier {
        classifier(&mut self.ebpf, name)
    }

    /// The program for the uplink's driver. Few nodes want it: the kernel looks at it when it is asked for.
    pub fn driver_program(&mut self) -> Result<&mut Xdp, ObjectError> {
        let refused = |source| ObjectError::Program { name: names::XDP_WIRE, source: Box::new(source) };
        let program: &mut Xdp = self
            .ebpf
            .program_mut(names::XDP_WIRE)
            .and_then(|program| program.try_into().ok())
            .expect("the object has it, as an XDP program");
        if program.fd().is_err() {
            program.load().map_err(refused)?;
        }
        Ok(program)
    }
}

/// For each CPU that the machine could have.
fn with_hits(sizes: &Sizes) -> Result<Sizes, ObjectError> {
    let cpus = nr_cpus().map_err(|(file, error)| ObjectError::Cpus(file, error))?;
    let hits = u32::try_from(cpus).unwrap_or(u32::MAX).saturating_mul(MAX_RULES);
    Ok(sizes.iter().map(|(name, size)| (*name, *size)).chain([(names::RULE_HITS, hits)]).collect())
}

/// All at the same time: the kernel verifies each on its caller's processor, which takes some tens of milliseconds.
fn load_programs(ebpf: &mut Ebpf) -> Result<(), ObjectError> {
    let load = |name: &'static str, program: &mut Program| {
        let program: Result<&mut SchedClassifier, ProgramError> = program.try_into();
        let refused = |source| ObjectError::Program { name, source: Box::new(source) };
        program.and_then(SchedClassifier::load).map_err(refused)
    };
    thread::scope(|scope| {
        let programs = ebpf.programs_mut().filter_map(|(name, program)| {
            let known = names::PROGRAMS.iter().chain(&[names::JUDGE]).find(|known| **known == name)?;
            Some((*known, program))
        });
        let loads: Vec<_> =
            programs.map(|(name, program)| scope.spawn(move || load(name, program))).collect();
        loads.into_iter().try_for_each(|load| load.join().unwrap_or_else(|panic| panic::resume_unwind(panic)))
    })
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut SchedClassifier {
    ebpf.program_mut(name)
        .and_then(|p| p.try_into().ok())
        .expect("the names in canal-common are the classifiers of the object")
}

fn check_kernel() -> Result<(), ObjectError> {
    if !std::path::Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Err(ObjectError::NoBtf);
    }
    let release =
        nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default();
    if parse_release(&release).is_some_and(|version| version < (6, 6)) {
        return Err(ObjectError::KernelTooOld(release));
    }
    Ok(())
}

fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// aya adopts whatever is pinned under a table's name. What has another shape is unpinned here instead: the
/// programs that still run keep it until they are swapped, and a new table is filled first.
fn discard_misfits(pins: &Pins, sizes: &Sizes) -> Result<(), ObjectError> {
    let parsed = Parsed::parse(BYTES).map_err(|e| ObjectError::Broken(e.to_string()))?;
    let mut misfits = BTreeSet::new();
    for name in names::MAPS {
        let path = pins.table(name);
        if !path.exists() {
            continue;
        }
        let wanted =
            parsed.maps.get(*name).ok_or_else(|| ObjectError::Broken(format!("it has no table {name}")))?;
        let max_entries = sizes.get(name).copied().unwrap_or(wanted.max_entries());
        let fits = MapInfo::from_pin(&path).is_ok_and(|found| {
            found.map_type().is_ok_and(|t| t as u32 == wanted.map_type())
                && found.key_size() == wanted.key_size()
                && found.value_size() == wanted.value_size()
                && found.max_entries() == max_entries
                && found.map_flags() & KEPT_FLAGS == wanted.map_flags() & KEPT_FLAGS
        });
        if fits {
            debug!(table = name, "adopting the pinned table");
        } else {
            warn!(table = name, path = %path.display(), "the pinned table has another layout or size: starting an empty one");
            misfits.insert(*name);
        }
    }
    // These say something together only: with one of them empty, the others would say what nobody meant.
    if POLICY_TABLES.iter().any(|name| misfits.contains(name)) {
        misfits.extend(POLICY_TABLES);
    }
    misfits.into_iter().try_for_each(|name| Pins::unpin(&pins.table(name)))?;
    Ok(())
}

/// What a verdict is made of.
const POLICY_TABLES: [&str; 7] = [
    names::ENDPOINTS,
    names::POLICY,
    names::GENERATIONS,
    names::PEERS,
    names::NETS,
    names::SETS,
    names::ROWS,
];

/// `BPF_F_NO_PREALLOC`, `BPF_F_NO_COMMON_LRU`, `BPF_F_MMAPABLE`, `BPF_F_INNER_MAP`: flags that change behaviour and that the kernel
/// reports as given.
const KEPT_FLAGS: u32 = 1 | 2 | 1 << 10 | 1 << 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_of_distributions_are_understood() {
        for (text, expected) in [
            ("6.18.44-fc", Some((6, 18))),
            ("5.10.0-8-amd64", Some((5, 10))),
            ("6.6", Some((6, 6))),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(parse_release(text), expected, "{text}");
        }
    }

    #[test]
    fn the_embedded_object_holds_every_table_and_program_by_name() {
        let parsed = Parsed::parse(BYTES).expect("an object");
        for name in names::MAPS {
            assert!(parsed.maps.contains_key(*name), "{name}");
        }
        for name in names::PROGRAMS.iter().chain(&[names::JUDGE, names::XDP_WIRE]) {
            assert!(parsed.programs.contains_key(*name), "{name}");
        }
    }
}
