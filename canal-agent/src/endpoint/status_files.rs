//! Files that say of an endpoint that its policy is enforced: what Calico's CNI plugin (`policy_setup_timeout_seconds`)
//! and others wait for before a pod begins.
//!
//! Owns: the folder `endpoint-status` below Felix's `EndpointStatusPathPrefix`; on a node there is one program that
//! writes there. Promises: a file is there only while its endpoint is enforced, as far as an agent runs; what an earlier
//! process left of others is swept once. Does not: know what enforced means.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::{
    file,
    model::{EndpointKey, WorkloadEndpoint},
    store::json::escape_as_go,
};

#[derive(Debug, thiserror::Error)]
#[error(
    "cannot {operation} {}{}: {source}; who waits for an endpoint's policy waits in vain, check EndpointStatusPathPrefix",
    .path.display(),
    if *.others == 0 { String::new() } else { format!(" (and {others} others)") }
)]
pub struct StatusFileError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
    /// How many more files went wrong.
    others: usize,
}

/// The first of several errors: what is wrong with one file does not keep the others back.
#[derive(Default)]
struct Failures(Option<StatusFileError>);

impl Failures {
    /// What was done has no error; true then.
    fn take(&mut self, outcome: Result<(), StatusFileError>) -> bool {
        let Err(error) = outcome else { return true };
        match &mut self.0 {
            Some(first) => first.others += 1 + error.others,
            None => self.0 = Some(error),
        }
        false
    }

    fn into_result(self) -> Result<(), StatusFileError> {
        self.0.map_or(Ok(()), Err)
    }
}

/// Name → content.
pub type Files = BTreeMap<String, String>;

#[derive(Debug, Default)]
pub struct StatusFiles {
    folder: Option<PathBuf>,
    /// What is in the folder.
    present: Files,
}

impl StatusFiles {
    /// Makes the folder below `prefix` hold these files and no other endpoint's; what is right is not touched. Without a
    /// prefix there are none.
    pub fn apply(&mut self, prefix: Option<&Path>, wanted: &Files) -> Result<(), StatusFileError> {
        let folder = prefix.map(folder);
        let mut failures = Failures::default();
        if self.folder != folder {
            // A new folder: what is in it is an earlier process's.
            failures.take(self.write(&Files::new()));
            self.folder = None;
            self.present = folder.as_deref().map(read).transpose()?.unwrap_or_default();
            self.folder = folder;
        }
        failures.take(self.write(wanted));
        failures.into_result()
    }

    fn write(&mut self, wanted: &Files) -> Result<(), StatusFileError> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let mut failures = Failures::default();
        for gone in
            self.present.keys().filter(|name| !wanted.contains_key(*name)).cloned().collect::<Vec<_>>()
        {
            if failures.take(remove(&folder.join(&gone))) {
                self.present.remove(&gone);
            }
        }
        for (name, content) in wanted {
            if self.present.get(name) != Some(content) {
                let path = folder.join(name);
                let written = file::replace(&path, content.as_bytes()).map_err(error("write", &path));
                if failures.take(written) {
                    self.present.insert(name.clone(), content.clone());
                }
            }
        }
        failures.into_result()
    }
}

/// Removes every endpoint's file, and the folders if nothing else is in them; tells whether there was any.
pub fn remove_all(prefix: &Path) -> Result<bool, StatusFileError> {
    let folder = folder(prefix);
    let present = read(&folder)?;
    let mut failures = Failures::default();
    for name in present.keys() {
        failures.take(remove(&folder.join(name)));
    }
    failures.into_result()?;
    let _ = fs::remove_dir(&folder).and_then(|()| fs::remove_dir(prefix));
    Ok(!present.is_empty())
}

fn error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StatusFileError {
    let path = path.to_owned();
    move |source| StatusFileError { operation, path, source, others: 0 }
}

/// `<orchestrator> <namespace>%2F<workload> <endpoint>`.
pub fn name(key: &EndpointKey, endpoint: &WorkloadEndpoint) -> String {
    let workload = format!("{}/{}", key.namespace, endpoint.workload);
    [endpoint.orchestrator.as_str(), &workload, &endpoint.endpoint].map(escape_path).join(" ")
}

/// As Felix writes it; the plugin asks for no more than that it is there.
pub fn content(endpoint: &WorkloadEndpoint) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Content<'a> {
        #[serde(skip_serializing_if = "str::is_empty")]
        iface_name: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        mac: Option<String>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        ipv4_nets: Vec<String>,
    }
    let content = Content {
        iface_name: &endpoint.interface_name,
        mac: endpoint.mac.map(|mac| mac.to_string()),
        ipv4_nets: endpoint.addresses.iter().map(|addr| format!("{addr}/32")).collect(),
    };
    escape_as_go(&serde_json::to_string(&content).expect("a struct of texts and a list of texts serialises"))
}

/// As Go's `url.PathEscape` does.
fn escape_path(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~$&+=:@".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

fn folder(prefix: &Path) -> PathBuf {
    prefix.join("endpoint-status")
}

/// The files that are some endpoint's: three parts.
fn read(folder: &Path) -> Result<Files, StatusFileError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Files::new()),
        Err(e) => return Err(error("list", folder)(e)),
    };
    let mut files = Files::new();
    for entry in entries {
        let path = entry.map_err(error("list", folder))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if name.split(' ').filter(|part| !part.is_empty()).count() == 3 && path.is_file() {
            // What is not text is not what it should be.
            files.insert(name.to_owned(), fs::read_to_string(&path).unwrap_or_default());
        }
    }
    Ok(files)
}

fn remove(path: &Path) -> Result<(), StatusFileError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(error("remove", path)(source)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use canal_common::Mac;

    use super::*;

    fn endpoint(orchestrator: &str, workload: &str, endpoint: &str) -> WorkloadEndpoint {
        WorkloadEndpoint {
            orchestrator: orchestrator.to_owned(),
            workload: workload.to_owned(),
            endpoint: endpoint.to_owned(),
            ..WorkloadEndpoint::default()
        }
    }

    #[test]
    fn a_file_is_called_as_felix_calls_it() {
        for (namespace, workload, expected) in [
            ("shop", "web-0", "k8s shop%2Fweb-0 eth0"),
            ("a b", "x", "k8s a%20b%2Fx eth0"),
            // Letters, digits and these stay; all other bytes are escaped, each for itself.
            ("n", "-_.~$&+=:@", "k8s n%2F-_.~$&+=:@ eth0"),
            (
                "n",
                "!*'(),;?/%#[]\"<>|é",
                "k8s n%2F%21%2A%27%28%29%2C%3B%3F%2F%25%23%5B%5D%22%3C%3E%7C%C3%A9 eth0",
            ),
        ] {
            let key = EndpointKey::new(namespace, "not looked at");
            assert_eq!(name(&key, &endpoint("k8s", workload, "eth0")), expected);
        }
    }

    #[test]
    fn its_content_is_felixs_with_absent_parts_left_out() {
        assert_eq!(content(&endpoint("k8s", "web-0", "eth0")), "{}");
        let full = WorkloadEndpoint {
            interface_name: "cali1".to_owned(),
            mac: Some(Mac::new([0x5a, 0x11, 0x22, 0x33, 0x44, 0x55])),
            addresses: vec!["10.77.3.9".parse().unwrap()],
            ..WorkloadEndpoint::default()
        };
        assert_eq!(
            content(&full),
            r#"{"ifaceName":"cali1","mac":"5a:11:22:33:44:55","ipv4Nets":["10.77.3.9/32"]}"#
        );
    }

    fn listing(prefix: &Path) -> Files {
        let Ok(entries) = fs::read_dir(prefix.join("endpoint-status")) else { return Files::new() };
        entries
            .map(|entry| entry.unwrap())
            .map(|e| (e.file_name().into_string().unwrap(), fs::read_to_string(e.path()).unwrap()))
            .collect()
    }

    fn files(names: &[&str]) -> Files {
        names.iter().map(|name| ((*name).to_owned(), "{}".to_owned())).collect()
    }

    #[test]
    fn the_folder_follows_and_what_an_earlier_process_left_is_swept() {
        let root = tempfile::tempdir().unwrap();
        let prefix = root.path().join("calico");
        let folder = prefix.join("endpoint-status");
        fs::create_dir_all(&folder).unwrap();
        for (left, content) in [("k8s a%2Fgone eth0", "{}"), ("k8s a%2Fstays eth0", "old"), ("notes", "mine")]
        {
            fs::write(folder.join(left), content).unwrap();
        }
        let mut status = StatusFiles::default();
        status.apply(Some(&prefix), &files(&["k8s a%2Fstays eth0"])).unwrap();
        assert_eq!(listing(&prefix).len(), 2, "a file that is no endpoint's is nobody's business");
        assert_eq!(listing(&prefix)["k8s a%2Fstays eth0"], "{}");
        status.apply(Some(&prefix), &files(&["k8s b%2Fnew eth0"])).unwrap();
        assert!(listing(&prefix).keys().eq(["k8s b%2Fnew eth0", "notes"]));

        let other = root.path().join("other");
        status.apply(Some(&other), &files(&["k8s b%2Fnew eth0"])).unwrap();
        assert!(listing(&prefix).keys().eq(["notes"]) && listing(&other).len() == 1);
        status.apply(None, &files(&["k8s b%2Fnew eth0"])).unwrap();
        assert!(listing(&other).is_empty());
        status.apply(Some(&other), &files(&["k8s c%2Fx eth0"])).unwrap();
        assert!(remove_all(&other).unwrap() && !other.exists());
        assert!(!remove_all(&other).unwrap());
    }

    #[test]
    fn a_file_that_cannot_be_written_or_removed_does_not_keep_the_others_back() {
        let root = tempfile::tempdir().unwrap();
        let long = |letter: &str| format!("k8s a%2F{} eth0", letter.repeat(300));
        let mut status = StatusFiles::default();
        let wanted = files(&[&long("a"), "k8s a%2Fgoes eth0", &long("b"), "k8s z%2Fz eth0"]);
        let said = status.apply(Some(root.path()), &wanted).unwrap_err().to_string();
        assert!(said.contains(&long("a")) && said.contains("and 1 others"), "{said}");
        assert!(listing(root.path()).keys().eq(["k8s a%2Fgoes eth0", "k8s z%2Fz eth0"]));
        // A folder in the place of a file cannot be removed as a file.
        let stuck = root.path().join("endpoint-status/k8s a%2Fgoes eth0");
        fs::remove_file(&stuck).unwrap();
        fs::create_dir(&stuck).unwrap();
        let said = status.apply(Some(root.path()), &files(&["k8s b%2Fnew eth0"])).unwrap_err().to_string();
        assert!(said.contains("a%2Fgoes") && !said.contains("others"), "{said}");
        assert!(root.path().join("endpoint-status/k8s b%2Fnew eth0").exists());
        assert!(!root.path().join("endpoint-status/k8s z%2Fz eth0").exists());
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let root = tempfile::tempdir().unwrap();
        let prefix = root.path().join("file");
        fs::write(&prefix, "").unwrap();
        let said =
            StatusFiles::default().apply(Some(&prefix), &files(&["a b%2Fc d"])).unwrap_err().to_string();
        assert!(said.contains("file/endpoint-status") && said.contains("EndpointStatusPathPrefix"), "{said}");
    }
}
