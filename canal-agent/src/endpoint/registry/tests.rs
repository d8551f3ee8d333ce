use canal_common::Mac;

use super::*;

pub(crate) fn endpoint(container: &str) -> AddEndpoint {
    AddEndpoint {
        container_id: container.to_owned(),
        interface: "eth0".to_owned(),
        host_interface: format!("cali{}", &container[..container.len().min(11)]),
        mac: Some(Mac::new([2, 0, 0, 0, 0, 1])),
        addresses: vec!["10.100.30.2".parse().unwrap()],
        network: "canal".to_owned(),
        labels: [("app".to_owned(), "web".to_owned())].into(),
        ..AddEndpoint::default()
    }
}

pub(crate) fn of_pod(container: &str, name: &str) -> AddEndpoint {
    let pod = Pod { namespace: "shop".to_owned(), name: name.to_owned(), ..Pod::default() };
    AddEndpoint { pod: Some(pod), ..endpoint(container) }
}

#[test]
fn a_restart_finds_the_endpoints_and_what_has_yet_to_leave() {
    let dir = tempfile::tempdir().unwrap();
    let (mut registry, _) = Registry::open(dir.path(), "node-a").unwrap();
    let stays = registry.insert(endpoint("c0ffee"), Phase::Present).unwrap();
    let goes = registry.insert(endpoint("dead-beef"), Phase::Present).unwrap();
    assert_eq!(goes.to_string(), "default/node--a-cni-dead--beef-eth0");
    let id = endpoint("dead-beef").id();
    assert_eq!(registry.leave(&id).unwrap(), Some(goes.clone()));
    assert_eq!(registry.leave(&id).unwrap(), None, "already leaving");

    let (mut again, broken) = Registry::open(dir.path(), "node-a").unwrap();
    assert!(broken.is_empty());
    assert_eq!(again.present().map(|(key, _)| key).collect::<Vec<_>>(), [&stays]);
    assert_eq!(again.leaving().map(|(key, _)| key).collect::<Vec<_>>(), [goes]);
    again.forget(&endpoint("c0ffee").id()).unwrap();
    again.forget(&id).unwrap();
    assert_eq!(again.records().len(), 1, "only what has left is forgotten");
    assert_eq!(Registry::open(dir.path(), "node-a").unwrap().0.records().len(), 1);
}

#[test]
fn what_was_begun_is_no_pods_yet_and_is_found_by_the_next_agent() {
    let dir = tempfile::tempdir().unwrap();
    let (mut registry, _) = Registry::open(dir.path(), "n").unwrap();
    registry.insert(endpoint("c0ffee"), Phase::Begun).unwrap();
    assert_eq!(registry.present().count(), 0);
    let begun = registry.records()[&endpoint("c0ffee").id()].clone();
    let (mut again, _) = Registry::open(dir.path(), "n").unwrap();
    let found = &again.records()[&endpoint("c0ffee").id()];
    assert_eq!((&found.endpoint, found.phase, found.since), (&begun.endpoint, Phase::Begun, begun.since));
    again.insert(endpoint("c0ffee"), Phase::Present).unwrap();
    let present = &again.records()[&endpoint("c0ffee").id()];
    assert_eq!((present.phase, present.since), (Phase::Present, begun.since));
}

#[test]
fn a_pod_that_was_made_anew_holds_the_endpoint_and_the_old_container_leaves_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut registry, _) = Registry::open(dir.path(), "n").unwrap();
    let key = registry.insert(of_pod("aa", "web-0"), Phase::Present).unwrap();
    assert_eq!(key.to_string(), "shop/n-k8s-web--0-eth0");
    assert_eq!(registry.insert(of_pod("bb", "web-0"), Phase::Present).unwrap(), key);
    let holder = |registry: &Registry| registry.holder(&key).map(|r| r.endpoint.container_id.clone());
    assert_eq!(holder(&registry).as_deref(), Some("bb"));
    let (again, _) = Registry::open(dir.path(), "n").unwrap();
    assert_eq!(holder(&again).as_deref(), Some("bb"));
    registry.leave(&of_pod("aa", "web-0").id()).unwrap();
    registry.forget(&of_pod("aa", "web-0").id()).unwrap();
    assert_eq!(holder(&registry).as_deref(), Some("bb"));
    registry.leave(&of_pod("bb", "web-0").id()).unwrap();
    assert_eq!(holder(&registry), None);
}

#[test]
fn a_container_that_is_announced_under_another_name_gives_up_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let (mut registry, _) = Registry::open(dir.path(), "n").unwrap();
    let first = registry.insert(of_pod("aa", "web-0"), Phase::Present).unwrap();
    let second = registry.insert(of_pod("aa", "web-1"), Phase::Begun).unwrap();
    assert_eq!((registry.holder(&first), registry.holder(&second)), (None, None));
    registry.insert(of_pod("aa", "web-1"), Phase::Present).unwrap();
    let (mut again, _) = Registry::open(dir.path(), "n").unwrap();
    let id = of_pod("aa", "web-1").id();
    assert_eq!(names(again.former()), [(first.clone(), id.clone())]);
    assert_eq!(again.past(&first).map(|record| record.endpoint.id()), Some(id.clone()));
    assert!(again.keys().contains(&first));
    again.forget_former(&id).unwrap();
    assert_eq!(again.former().count(), 0);
    assert!(again.holder(&second).is_some());
}

fn names<'a>(
    records: impl Iterator<Item = (&'a EndpointKey, &'a Arc<Record>)>,
) -> Vec<(EndpointKey, AttachmentId)> {
    records.map(|(key, record)| (key.clone(), record.endpoint.id())).collect()
}

#[test]
fn a_node_that_got_another_name_has_etcd_forget_the_endpoints_of_the_first_one_name_after_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let named = AddEndpoint { node: Some("fixed".to_owned()), ..endpoint("dd") };
    let id = endpoint("cc").id();
    let (mut registry, _) = Registry::open(dir.path(), "a").unwrap();
    let [first, _] = [endpoint("cc"), named].map(|e| registry.insert(e, Phase::Present).unwrap());
    let renamed = |node| {
        let (mut registry, _) = Registry::open(dir.path(), node).unwrap();
        registry.write_again(|| ());
        registry
    };
    assert_eq!(renamed("a").former().count(), 0);
    assert_eq!(names(renamed("b").former()), [(first.clone(), id.clone())]);
    // Before etcd has heard of it: what it may hold by now goes when that has gone.
    let mut third = renamed("c");
    assert_eq!(names(third.former()), [(first, id.clone())]);
    third.forget_former(&id).unwrap();
    let second = EndpointKey::new(NAMESPACE, "b-cni-cc-eth0");
    assert_eq!(names(third.former()), [(second, id.clone())]);
    third.forget_former(&id).unwrap();
    for registry in [third, renamed("c")] {
        assert_eq!(registry.former().count(), 0);
        let keys: Vec<_> = registry.present().map(|(key, _)| key.name.clone()).collect();
        assert_eq!(keys, ["c-cni-cc-eth0", "fixed-cni-dd-eth0"]);
    }
}

#[test]
fn a_record_that_does_not_say_the_nodes_name_is_of_the_name_of_now() {
    let dir = tempfile::tempdir().unwrap();
    let (mut registry, _) = Registry::open(dir.path(), "a").unwrap();
    let key = registry.insert(endpoint("cc"), Phase::Present).unwrap();
    let path = dir.path().join("endpoints/cc@eth0.json");
    let text = fs::read_to_string(&path).unwrap();
    let earlier = text.replace(r#""node":"a","#, "");
    assert_ne!(earlier, text);
    fs::write(&path, earlier).unwrap();
    let (mut registry, _) = Registry::open(dir.path(), "a").unwrap();
    registry.write_again(|| ());
    let (registry, _) = Registry::open(dir.path(), "b").unwrap();
    assert_eq!(names(registry.former()), [(key, endpoint("cc").id())]);
}

#[test]
fn a_container_that_is_attached_again_leaves_its_past_and_one_that_was_never_attached_has_none() {
    let dir = tempfile::tempdir().unwrap();
    let (mut registry, _) = Registry::open(dir.path(), "n").unwrap();
    let past = |registry: &Registry, key| registry.past(key).is_some();
    let key = registry.insert(endpoint("cc"), Phase::Begun).unwrap();
    assert!(!past(&registry, &key), "Calico's plugin may have made it");
    registry.insert(endpoint("cc"), Phase::Present).unwrap();
    assert!(!past(&registry, &key));
    registry.insert(endpoint("cc"), Phase::Begun).unwrap();
    assert!(past(&registry, &key));
    let (mut again, _) = Registry::open(dir.path(), "n").unwrap();
    assert!(past(&again, &key) && again.keys().contains(&key));
    again.insert(endpoint("cc"), Phase::Present).unwrap();
    again.leave(&endpoint("cc").id()).unwrap();
    assert!(past(&again, &key));
}

#[test]
fn one_that_cannot_be_written_costs_those_that_are_heard_of_nothing_and_the_rest_waits() {
    let dir = tempfile::tempdir().unwrap();
    let (mut registry, _) = Registry::open(dir.path(), "n").unwrap();
    let hear = |registry: &mut Registry, container: &str, label: &str| {
        let key = registry.key(&endpoint(container)).unwrap();
        let value = registry.holder(&key).unwrap().to_json(&key, "n", None);
        let value =
            String::from_utf8(value).unwrap().replace(r#""app":"#, &format!(r#""{label}":"x","app":"#));
        assert_eq!(registry.hear(&key, value.as_bytes()), Heard::News);
    };
    for container in ["aa", "bb", "cc"] {
        registry.insert(endpoint(container), Phase::Present).unwrap();
    }
    let files = ["aa", "bb"].map(|name| dir.path().join(format!("endpoints/{name}@eth0.json")));
    for file in &files {
        fs::remove_file(file).unwrap();
        fs::create_dir(file).unwrap();
    }
    hear(&mut registry, "aa", "l");
    hear(&mut registry, "bb", "l");
    fs::remove_dir(&files[0]).unwrap();
    hear(&mut registry, "cc", "l");
    assert!(!files[0].exists(), "only its own file is tried");
    fs::create_dir(&files[0]).unwrap();
    fs::remove_dir(&files[1]).unwrap();
    let beats = std::cell::Cell::new(0);
    registry.write_again(|| beats.set(beats.get() + 1));
    assert_eq!(beats.get(), 1, "and no more after the first that fails");
    assert!(registry.unwritten().count() == 2 && registry.unwritten().all(|problem| !problem.is_empty()));
    fs::remove_dir(&files[0]).unwrap();
    registry.write_again(|| ());
    assert!(registry.unwritten().count() == 0 && files.iter().all(|file| file.is_file()));
}

#[test]
fn age_is_told_by_a_clock_that_does_not_jump_or_by_what_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (mut registry, _) = Registry::open(dir.path(), "n").unwrap();
    registry.insert(endpoint("aa"), Phase::Begun).unwrap();
    let id = endpoint("aa").id();
    let path = dir.path().join("endpoints/aa@eth0.json");
    let text = fs::read_to_string(&path).unwrap();
    let since = registry.records()[&id].since;
    assert!(registry.age(&id) < Duration::from_mins(1));
    for (written, is_old) in [(since - 300_000, true), (since + 300_000, false)] {
        fs::write(&path, text.replace(&since.to_string(), &written.to_string())).unwrap();
        let (again, _) = Registry::open(dir.path(), "n").unwrap();
        assert_eq!(again.age(&id) > Duration::from_mins(4), is_old, "{written}");
    }
}

#[test]
fn a_record_of_the_end_of_time_keeps_no_pod_from_coming() {
    let dir = tempfile::tempdir().unwrap();
    let (mut registry, _) = Registry::open(dir.path(), "n").unwrap();
    registry.insert(endpoint("aa"), Phase::Present).unwrap();
    let since = registry.records()[&endpoint("aa").id()].since;
    let path = dir.path().join("endpoints/aa@eth0.json");
    let text = fs::read_to_string(&path).unwrap().replace(&since.to_string(), &u64::MAX.to_string());
    fs::write(&path, text).unwrap();
    let (mut registry, _) = Registry::open(dir.path(), "n").unwrap();
    assert!(registry.insert(endpoint("bb"), Phase::Begun).is_ok());
}

#[test]
fn records_of_earlier_versions_are_read() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("endpoints")).unwrap();
    let old = r#"{"endpoint":{"container_id":"ca","interface":"eth0","host_interface":"calica",
        "mac":"02:00:00:00:00:01","addresses":["10.1.0.2"],"network":"canal","labels":{}},"leaving":LEAVING}"#;
    for (name, leaving) in [("ca", "false"), ("cb", "true")] {
        let text = old.replace("\"ca\"", &format!("{name:?}")).replace("LEAVING", leaving);
        fs::write(dir.path().join(format!("endpoints/{name}@eth0.json")), text).unwrap();
    }
    let (registry, broken) = Registry::open(dir.path(), "n").unwrap();
    assert!(broken.is_empty(), "{broken:?}");
    let phases: Vec<_> = registry.records().values().map(|record| record.phase).collect();
    assert_eq!(phases, [Phase::Present, Phase::Leaving]);
}

#[test]
fn a_broken_file_is_reported_and_costs_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let (mut registry, _) = Registry::open(dir.path(), "n").unwrap();
    registry.insert(endpoint("c0ffee"), Phase::Present).unwrap();
    fs::write(dir.path().join("endpoints/broken@eth0.json"), "{").unwrap();
    let (again, broken) = Registry::open(dir.path(), "n").unwrap();
    assert_eq!((again.records().len(), broken.len()), (1, 1));
    assert!(dir.path().join("endpoints/broken@eth0.json").exists());
}

#[test]
fn names_that_would_leave_the_folder_or_the_key_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut registry, _) = Registry::open(dir.path(), "n").unwrap();
    for id in ["", "../x", "a/b", "-x", &"x".repeat(129)] {
        assert!(registry.insert(endpoint(id), Phase::Present).is_err(), "{id}");
    }
    let long = AddEndpoint { host_interface: "cali-0123456789ab".to_owned(), ..endpoint("ok") };
    assert!(registry.insert(long, Phase::Present).is_err());
    for name in ["", "a/b", "Web", "-a"] {
        assert!(registry.insert(of_pod("ok", name), Phase::Present).is_err(), "{name}");
    }
}
