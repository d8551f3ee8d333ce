//! What install and uninstall leave behind, without an agent.

use super::*;

fn args(dir: &Path) -> InstallArgs {
    let program = dir.join("built");
    fs::write(&program, "the plugin").unwrap();
    InstallArgs {
        places: Places { bin_dir: dir.join("bin"), conf_dir: dir.join("net.d"), conf_name: None },
        conf: None,
        plugin: Some(program),
        also: Vec::new(),
        socket: dir.join("agent.sock"),
        wait: 1,
    }
}

#[test]
fn without_an_agent_the_plugin_is_there_and_the_configuration_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let args = args(dir.path());
    let error = install(&args).unwrap_err().to_string();
    assert!(error.contains("no canal-agent listens"), "{error}");
    let mode = fs::metadata(dir.path().join("bin/canal-cni")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
    assert!(!dir.path().join("net.d").exists());
    let removed = uninstall(&args.places).unwrap();
    assert_eq!(removed, [format!("removed {}", dir.path().join("bin/canal-cni").display())]);
    assert!(uninstall(&args.places).unwrap().is_empty());
}

#[test]
fn a_plugin_that_was_there_before_comes_back_also_after_an_upgrade() {
    let dir = tempfile::tempdir().unwrap();
    let mut args = args(dir.path());
    fs::create_dir(&args.places.bin_dir).unwrap();
    let [flannel, calico] = ["flannel", "calico"].map(|name| args.places.bin_dir.join(name));
    fs::write(&flannel, "flannel's own").unwrap();
    fs::set_permissions(&flannel, Permissions::from_mode(0o711)).unwrap();
    args.also = vec!["flannel".to_owned(), "calico".to_owned()];
    for version in ["the plugin", "the plugin", "a later plugin"] {
        fs::write(args.plugin.as_ref().unwrap(), version).unwrap();
        install(&args).unwrap_err(); // No agent is there.
        assert_eq!(fs::read_to_string(&flannel).unwrap(), version);
        assert_eq!(fs::read_to_string(&calico).unwrap(), version);
    }
    uninstall(&args.places).unwrap();
    assert_eq!(fs::read_to_string(&flannel).unwrap(), "flannel's own");
    assert_eq!(fs::metadata(&flannel).unwrap().permissions().mode() & 0o777, 0o711);
    assert_eq!(fs::read_dir(&args.places.bin_dir).unwrap().count(), 1);
    assert!(uninstall(&args.places).unwrap().is_empty());
}

#[test]
fn a_program_that_came_later_stays() {
    let dir = tempfile::tempdir().unwrap();
    let mut args = args(dir.path());
    args.also = vec!["flannel".to_owned()];
    install(&args).unwrap_err();
    let flannel = args.places.bin_dir.join("flannel");
    fs::remove_file(&flannel).unwrap();
    fs::write(&flannel, "somebody's").unwrap();
    uninstall(&args.places).unwrap();
    assert_eq!(fs::read_to_string(&flannel).unwrap(), "somebody's");
}

/// As `install` does once the agent is ready.
fn put_conf(args: &InstallArgs) -> Vec<String> {
    Configuration::read(args).unwrap().put(&args.places.conf_dir).unwrap()
}

#[test]
fn a_configuration_that_was_there_before_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut args = args(dir.path());
    args.also = vec!["flannel".to_owned()];
    let conf = dir.path().join("mine.conf");
    args.conf = Some(conf.clone());
    fs::create_dir(&args.places.conf_dir).unwrap();
    for earlier in [Some(r#"{"name":"n","type":"flannel"}"#), Some(r#"{"name":"n","type":"bridge"}"#), None] {
        let place = args.places.conf_dir.join("10-canal.conf");
        if let Some(earlier) = earlier {
            fs::write(&place, earlier).unwrap();
        }
        for version in ["0.3.1", "0.4.0"] {
            let text = format!(r#"{{"name":"n","type":"flannel","cniVersion":"{version}"}}"#);
            fs::write(&conf, text).unwrap();
            put_conf(&args);
            assert!(fs::read_to_string(&place).unwrap().contains(version));
            assert_eq!(put_conf(&args), [format!("{} is as it should be", place.display())]);
        }
        uninstall(&args.places).unwrap();
        assert_eq!(fs::read_to_string(&place).ok().as_deref(), earlier);
        let left = fs::read_dir(&args.places.conf_dir).unwrap().count();
        assert_eq!(left, usize::from(earlier.is_some()));
        fs::remove_file(&place).ok();
    }
}

#[test]
fn our_own_list_leaves_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let args = args(dir.path());
    let place = args.places.conf_dir.join("10-canal.conflist");
    put_conf(&args);
    fs::write(&place, r#"{"name":"old","plugins":[{"type":"canal-cni"}]}"#).unwrap();
    assert_eq!(put_conf(&args), [format!("wrote {}", place.display())]);
    let text = fs::read_to_string(&place).unwrap();
    assert!(text.contains(&args.socket.display().to_string()), "{text}");
    assert_eq!(fs::read_dir(&args.places.conf_dir).unwrap().count(), 1);
    assert_eq!(uninstall(&args.places).unwrap(), [format!("removed {}", place.display())]);
}

#[test]
fn a_configuration_that_is_not_for_canal_is_neither_installed_nor_removed() {
    let dir = tempfile::tempdir().unwrap();
    let mut args = args(dir.path());
    let file = dir.path().join("own.conflist");
    args.conf = Some(file.clone());
    args.places.conf_name = Some("10-canal.conflist".to_owned());
    for (text, words) in [
        ("{", "is not JSON"),
        (r#"{"plugins":[{"type":"canal-cni"}]}"#, "has no `name`"),
        (r#"{"name":"n","plugins":[{"type":"bridge"}]}"#, "not for Canal"),
        (r#"{"name":"n","type":"flannel"}"#, "runtimes would not read it as 10-canal.conflist"),
        (r#"{"name":"n","plugins":[{"type":"flannel"}]}"#, "--as flannel"),
        (r#"{"name":"n","plugins":[{"type":"canal-cni"}]}"#, "cniVersion"),
        (
            r#"{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"canal-cni","ipam":{"type":"dhcp"}}]}"#,
            "the plugin would refuse",
        ),
    ] {
        fs::write(&file, text).unwrap();
        let error = format!("{:#}", install(&args).unwrap_err());
        assert!(error.contains(words), "{error}");
    }
    assert!(!args.places.bin_dir.exists(), "nothing was touched");
    fs::create_dir(&args.places.conf_dir).unwrap();
    let foreign = args.places.conf_dir.join("10-canal.conflist");
    fs::write(&foreign, r#"{"name":"n","plugins":[{"type":"bridge"}]}"#).unwrap();
    assert!(uninstall(&args.places).unwrap()[0].contains("is not Canal's"));
    assert!(foreign.exists());
}
