//! Owns: which test program belongs to which layer.

use std::{fmt, path::PathBuf, thread};

use serde_json::Value;

/// In the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Layer {
    Unit,
    Programs,
    Namespaces,
    Binaries,
}

impl Layer {
    pub(crate) const ALL: [Self; 4] = [Self::Unit, Self::Programs, Self::Namespaces, Self::Binaries];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Programs => "programs",
            Self::Namespaces => "namespaces",
            Self::Binaries => "binaries",
        }
    }

    pub(super) fn describe(self) -> &'static str {
        match self {
            Self::Unit => "each crate alone",
            Self::Programs => "the kernel programs by BPF_PROG_RUN",
            Self::Namespaces => "packets between nodes made of network namespaces",
            Self::Binaries => "agent, CNI plugin and command line with a real etcd",
        }
    }

    /// A cluster is a dozen processes and waits most of its time: two at once fill a small machine, and more than
    /// four only make deadlines slip.
    pub(super) fn threads(self) -> usize {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        match self {
            Self::Unit | Self::Programs => cores,
            Self::Namespaces | Self::Binaries => cores.clamp(1, 4),
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An executable full of tests.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TestProgram {
    pub(super) package: String,
    /// `lib`, `bin` or `test`.
    pub(super) kind: String,
    pub(super) target: String,
    pub(super) manifest: PathBuf,
    pub(super) executable: PathBuf,
}

impl TestProgram {
    /// Reads one of cargo's messages; `None` for all that are not about a test program.
    pub(super) fn from_message(message: &Value) -> Option<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
            return None;
        }
        let manifest = PathBuf::from(text(&message["manifest_path"])?);
        // The directory's name is the package's name in this workspace.
        let package = manifest.parent()?.file_name()?.to_str()?.to_owned();
        Some(Self {
            package,
            kind: text(&message["target"]["kind"][0])?,
            target: text(&message["target"]["name"])?,
            executable: text(&message["executable"])?.into(),
            manifest,
        })
    }

    pub(super) fn layer(&self) -> Layer {
        if self.kind == "test"
            && let Some(layer) = Layer::ALL.into_iter().find(|layer| self.target.starts_with(layer.name()))
        {
            return layer;
        }
        if self.package == "bpf-tests" { Layer::Namespaces } else { Layer::Unit }
    }
}

impl fmt::Display for TestProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.package, self.kind, self.target)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message(package: &str, kind: &str, target: &str) -> Value {
        json!({
            "reason": "compiler-artifact",
            "manifest_path": format!("/w/{package}/Cargo.toml"),
            "profile": {"test": true},
            "target": {"kind": [kind], "name": target},
            "executable": format!("/w/target/debug/deps/{target}-1"),
        })
    }

    #[test]
    fn a_test_file_belongs_to_the_layer_that_it_is_named_after() {
        for (package, kind, target, layer) in [
            ("canal-common", "lib", "canal_common", Layer::Unit),
            ("canal-agent", "bin", "canalctl", Layer::Unit),
            ("canal-agent", "test", "codecs", Layer::Unit),
            ("canal-agent", "test", "binaries_errors", Layer::Binaries),
            ("bpf-tests", "lib", "bpf_tests", Layer::Namespaces),
            ("bpf-tests", "test", "programs", Layer::Programs),
            ("bpf-tests", "test", "namespaces_vxlan", Layer::Namespaces),
            ("bpf-tests", "test", "anything", Layer::Namespaces),
        ] {
            let program = TestProgram::from_message(&message(package, kind, target)).unwrap();
            assert_eq!(program.layer(), layer, "{program}");
        }
    }

    #[test]
    fn messages_about_anything_else_are_passed_over() {
        let mut library = message("canal-common", "lib", "canal_common");
        library["profile"]["test"] = false.into();
        let mut script = message("canal-agent", "custom-build", "build-script-build");
        script["reason"] = "build-script-executed".into();
        let mut no_file = message("canal-common", "lib", "canal_common");
        no_file["executable"] = Value::Null;
        for value in [library, script, no_file, json!({}), json!(null), json!([1])] {
            assert_eq!(TestProgram::from_message(&value), None, "{value}");
        }
    }
}
