//! Getting at etcd: certificates, users, addresses. The agent keeps trying what may come right by itself, and ends
//! with a message where only its own flags are wrong.

use bpf_tests::{Agent, Etcd, Proc, World, eventually, world};

use crate::{RETRIED, SOON, agent_by, authority::Authority, has, one_node, refusal, waits_saying};

const URL: &str = "https://192.168.60.254:2379";

/// In the place of the world's plain etcd.
fn tls_etcd(world: &World, authority: &Authority) -> Proc {
    world.etcd().kill();
    let path = |name: &str| authority.path(name);
    let process = world
        .hub()
        .cmd("etcd --listen-peer-urls http://127.0.0.1:2380 --client-cert-auth")
        .args(["--data-dir", &world.folder().join("etcd").display().to_string()])
        .args(["--listen-client-urls", URL, "--advertise-client-urls", URL])
        .args([
            "--cert-file",
            &path("server.pem"),
            "--key-file",
            &path("server.key"),
            "--trusted-ca-file",
            &path("ca.pem"),
        ])
        .start(&world.etcd().log_file())
        .unwrap();
    eventually("etcd answers TLS", RETRIED, || {
        world
            .hub()
            .cmd(&format!("etcdctl --endpoints {URL} endpoint health --command-timeout 1s"))
            .args(["--cacert", &path("ca.pem"), "--cert", &path("client.pem"), "--key", &path("client.key")])
            .env("ETCDCTL_API", "3")
            .run()
    })
    .unwrap();
    process
}

/// Runs the agent until it complains, and ends it.
fn complaint(agent: &Agent, words: &[&str]) {
    waits_saying(agent, words);
    agent.kill_9();
}

#[test]
fn wrong_certificates_are_named_and_right_ones_work() {
    let world = one_node();
    let authority = Authority::in_folder(world.folder());
    let _etcd = tls_etcd(&world, &authority);
    let node = world.node(1);
    let agent = node.agent();
    let path = |name: &str| authority.path(name);

    agent.set_flag("--etcd-endpoints", "http://192.168.60.254:2379");
    complaint(agent, &["cannot", "192.168.60.254:2379", "https://"]);
    agent.set_flag("--etcd-endpoints", URL);
    agent.set_flag("--etcd-cafile", &path("other-ca.pem"));
    agent.set_flag("--etcd-certfile", &path("client.pem"));
    agent.set_flag("--etcd-keyfile", &path("client.key"));
    complaint(agent, &["cannot", "certificate is not trusted", "--etcd-cafile"]);
    agent.set_flag("--etcd-cafile", &path("ca.pem"));
    agent.set_flag("--etcd-certfile", &path("stranger.pem"));
    agent.set_flag("--etcd-keyfile", &path("stranger.key"));
    complaint(agent, &["cannot", "--etcd-certfile", "--etcd-keyfile"]);

    // What no server has to say anything about.
    for (flag, value, words) in [
        ("--etcd-keyfile", path("client.key"), &["do not belong together", "--etcd-keyfile"][..]),
        ("--etcd-keyfile", path("missing.key"), &["--etcd-keyfile", "missing.key", "cannot be read"]),
        ("--etcd-keyfile", path("ca.pem"), &["--etcd-keyfile", "no", "key", "PEM"]),
        ("--etcd-cafile", path("ca.key"), &["--etcd-cafile", "no certificate", "PEM"]),
    ] {
        let before = agent.flags();
        agent.set_flag(flag, &value);
        let output = agent_by(node, "timeout 8").output().unwrap();
        has(&(output.stdout + &output.stderr), words);
        let at = before.iter().position(|f| f == flag).unwrap();
        agent.set_flag(flag, &before[at + 1]);
    }
    agent.unset_flag("--etcd-keyfile");
    has(&refusal(agent_by(node, "")), &["--etcd-certfile", "key is missing", "--etcd-keyfile"]);

    agent.set_flag("--etcd-certfile", &path("client.pem"));
    agent.set_flag("--etcd-keyfile", &path("client.key"));
    agent.start().unwrap();
}

fn with_users(etcd: &Etcd) {
    for line in [
        "user add root:secret",
        "user grant-role root root",
        "role add canal",
        "role grant-permission canal readwrite / --prefix=true",
        "user add canal:pass word",
        "user grant-role canal canal",
        "user add guest:guest",
        "auth enable",
    ] {
        let words: Vec<_> = match line.strip_prefix("user add canal:") {
            Some(password) => vec!["user".to_owned(), "add".to_owned(), format!("canal:{password}")],
            None => line.split(' ').map(str::to_owned).collect(),
        };
        etcd.ctl(&words.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    }
}

#[test]
fn a_wrong_user_or_password_is_named_never_shown_and_the_right_one_works() {
    let world = one_node();
    with_users(world.etcd());
    let agent = world.node(1).agent();
    complaint(agent, &["cannot", "user name and password", "--etcd-username"]);
    agent.set_flag("--etcd-username", "canal");
    agent.set_flag("--etcd-password", "hunter2");
    complaint(agent, &["cannot", "wrong user name or password", "--etcd-password"]);
    agent.set_flag("--etcd-username", "nobody");
    complaint(agent, &["cannot", "wrong user name or password"]);
    agent.set_flag("--etcd-username", "guest");
    agent.set_flag("--etcd-password", "guest");
    complaint(agent, &["permission denied", "grant"]);
    assert!(!agent.log().contains("hunter2"), "passwords stay out of the log");
    agent.unset_flag("--etcd-password");
    has(&refusal(agent_by(world.node(1), "")), &["--etcd-username", "password is missing"]);
    agent.set_flag("--etcd-username", "canal");
    agent.set_flag("--etcd-password", "pass word");
    agent.start().unwrap();
}

#[test]
fn endpoints_that_are_none_are_refused_and_one_dead_member_does_not_matter() {
    let world = one_node();
    let node = world.node(1);
    for (endpoints, words) in [
        ("ftp://192.168.60.254:2379", &["--etcd-endpoints", "ftp", "http://"][..]),
        ("http://192.168.60.254", &["--etcd-endpoints", "not an etcd server", "http://host:2379"]),
        ("http://u:p@192.168.60.254:2379", &["--etcd-endpoints", "--etcd-username"]),
    ] {
        node.agent().set_flag("--etcd-endpoints", endpoints);
        has(&refusal(agent_by(node, "")), words);
    }
    node.agent().set_flag("--etcd-endpoints", "http://192.168.60.254:1,http://192.168.60.254:2379");
    node.agent().start().unwrap();
    assert!(node.agent().says(&["ready"], SOON));
    assert_eq!(world.etcd().get("/coreos.com/network/config").unwrap().as_deref(), Some(world::CONFIG));
}
