//! The worlds themselves, without Canal: nodes programmed as flanneld programs them must talk, and every probe
//! must be able to tell good from bad. They need root and etcd.

use std::{fs, process, time::Duration};

use super::*;
use crate::load::Congestion;

const SOON: Duration = Duration::from_secs(5);

#[test]
fn pods_of_two_flannel_nodes_talk_and_the_probes_see_it() {
    let world = World::builder().nodes(2).build().unwrap();
    let (one, two) = (world.flannel_node(1).unwrap(), world.flannel_node(2).unwrap());
    assert_eq!((one.learn_peers().unwrap(), two.learn_peers().unwrap()), (1, 1));
    let (a, b) = (one.add_pod("a").unwrap(), two.add_pod("b").unwrap());

    let mut capture = Capture::start(one.node().netns(), "up0", "udp port 8472", world.folder()).unwrap();
    assert!(a.pings(b.ip()) && b.pings(a.ip()));
    assert!(capture.sees("udp dst port 8472 and dst host 192.168.50.2", SOON));
    capture.stop().unwrap();
    assert_eq!(capture.packets("tcp").unwrap(), Vec::<String>::new());
    assert_eq!(a.ping_sized(b.ip(), 2, 4000).unwrap().lost, 0);

    let server = b.serve_tcp(8080).unwrap();
    assert_eq!(a.connect(b.ip(), 8080), Connect::Ok);
    assert_eq!(a.connect(b.ip(), 8081), Connect::Refused);
    let path = load::Path { from: &a, to: &b };
    assert!(load::bulk(path, 1, Congestion::Default, Duration::from_millis(300)).unwrap().bytes > 1_000_000);
    let _udp = b.serve_udp(5353).unwrap();
    assert_eq!(a.udp_echoes(b.ip(), 5353, 5).unwrap(), 5);

    let live = LiveConnection::open(a.netns(), b.ip(), 8080).unwrap();
    let pinger = Pinger::start(a.netns(), b.ip(), Duration::from_millis(10)).unwrap();
    assert!(until(SOON, || pinger.stats().received > 20) && live.is_alive());
    // Break the way: everything notices.
    two.node().netns().ip("link set flannel.1 down").unwrap();
    assert!(live.cut_within(SOON).unwrap().contains("no echo"));
    assert!(until(SOON, || pinger.stats().lost > 5), "{:?}", pinger.stats());
    assert!(pinger.stop().unwrap().lost > 5);
    assert_eq!(a.connect(b.ip(), 8080), Connect::TimedOut);
    assert_eq!(a.ping(b.ip(), 2).unwrap(), probe::PingStats { lost: 2, ..Default::default() });
    assert_eq!(a.udp_echoes(b.ip(), 5353, 1).unwrap(), 0);
    drop(server);
}

#[test]
fn three_nodes_share_an_underlay_and_each_has_a_bpffs_and_no_default_route() {
    let world = World::builder().nodes(3).config(None).build().unwrap();
    assert!(world.node(1).pings(world.node(3).public_ip()));
    for node in world.nodes() {
        assert!(node.pings("192.168.60.254".parse().unwrap()));
        assert_eq!(node.netns().ip("route show default").unwrap(), "");
        let kind = node.netns().cmd("stat -f -c %T").arg(node.bpffs().display().to_string()).run();
        assert_eq!(kind.unwrap().trim(), "bpf_fs");
    }
    assert_eq!(world.etcd().get("/coreos.com/network/config").unwrap(), None);
}

#[test]
fn etcd_keeps_its_data_over_restart_and_a_paused_one_does_not_answer() {
    let world = World::builder().nodes(1).build().unwrap();
    let etcd = world.etcd();
    etcd.put_global_policy("open", policy::allow_all()).unwrap();
    etcd.put("/x/-1", "--dashes").unwrap();
    etcd.restart().unwrap();
    assert_eq!(etcd.get("/x/-1").unwrap().as_deref(), Some("--dashes"));
    assert_eq!(etcd.get("/coreos.com/network/config").unwrap().as_deref(), Some(world::CONFIG));
    assert_eq!(etcd.list(policy::RESOURCES).unwrap().len(), 1);
    etcd.compact().unwrap();
    etcd.pause().unwrap();
    assert!(etcd.ctl(&["get", "/x", "--command-timeout", "300ms"]).is_err());
    etcd.resume().unwrap();
    etcd.delete_global_policy("open").unwrap();
    etcd.del_prefix("/x").unwrap();
    assert_eq!(etcd.keys("/").unwrap(), ["/coreos.com/network/config"]);
}

#[test]
fn nothing_is_left_of_a_world_that_panics_and_its_artefacts_are_saved() {
    let world = World::builder().nodes(1).build().unwrap();
    let (prefix, folder) = (world.prefix().to_owned(), world.folder().to_owned());
    let story = std::thread::Builder::new().name("a-story-that-panics".into());
    let ended = story
        .spawn(move || {
            world
                .node(1)
                .netns()
                .cmd("sleep 1000")
                .start(&world.folder().join("sleep.log"))
                .map(std::mem::forget)
                .unwrap();
            panic!("on purpose, to see what is left");
        })
        .unwrap()
        .join();
    assert!(ended.is_err());
    assert_eq!(netns::list(&prefix), Vec::<String>::new());
    assert!(!folder.exists());
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&prefix));
    let saved = artefacts::place("a-story-that-panics");
    assert!(fs::read_to_string(saved.join("n1/state.txt")).unwrap().contains("192.168.50.1/24"));
    assert!(saved.join("etcd-dump.txt").exists());
    fs::remove_dir_all(saved).unwrap();
}

#[test]
fn a_command_says_what_was_run_and_what_it_said_and_is_killed_when_it_takes_too_long() {
    let error = Cmd::line("ls /no/such/place").run().unwrap_err().to_string();
    assert!(error.starts_with("`ls /no/such/place` failed (exit status 2): ls: cannot access"), "{error}");
    let slow = Cmd::line("sleep 1000").deadline(Duration::from_millis(50)).run().unwrap_err().to_string();
    assert!(slow.starts_with("`sleep 1000` did not end within 50ms"), "{slow}");
    let echo = Cmd::new("cat").stdin("a line\n").run().unwrap();
    assert_eq!(echo, "a line\n");
}

#[test]
fn a_bare_pair_carries_every_measurement() {
    let world = World::builder().nodes(1).build().unwrap();
    let (left, right) = pair::bare_pair(world.prefix()).unwrap();
    assert!(left.pings(right.ip()));
    let short = Duration::from_millis(300);
    let path = load::Path { from: &left, to: &right };
    let rate = load::datagrams(path, 64, load::Receiver::Polls, short).unwrap();
    assert!(rate.received > 1000 && rate.received <= rate.sent, "{rate:?}");
    let trips = load::round_trips(path, short).unwrap();
    let (p50, p99) = (trips.quantile_us(500), trips.quantile_us(990));
    assert!(trips.count() > 100 && p50 <= p99, "{p50} {p99}");
    assert!(load::connections(path, short).unwrap().per_second() > 100.0);
    let stream = load::Stream::start(path, 5_000).unwrap();
    assert!(until(SOON, || stream.received() > 1000));
    let address = |verb: &str| right.netns().ip(&format!("addr {verb} {}/24 dev eth0", right.ip())).unwrap();
    address("del");
    let seen = stream.received();
    address("add");
    assert!(until(SOON, || stream.received() > seen + 1000));
    let numbered = stream.stop().unwrap();
    assert!(numbered.lost > 0 && numbered.lost < numbered.sent && numbered.twice == 0, "{numbered:?}");
    assert!(load::bulk(path, 1, Congestion::Default, short).unwrap().gigabits_per_second() > 0.1);
}

#[test]
fn programs_started_under_an_interrupt_handler_can_be_interrupted_themselves() {
    clean_up_on_interrupt("no-such-world-").unwrap();
    let status = Cmd::line("grep -E ^Sig(Blk|Ign|Cgt) /proc/self/status").run().unwrap();
    let interrupts = 1 << 0 | 1 << 1 | 1 << 14; // SIGHUP, SIGINT, SIGTERM
    for line in status.lines() {
        let mask = u64::from_str_radix(line.split_whitespace().last().unwrap(), 16).unwrap();
        assert_eq!(mask & interrupts, 0, "{status}");
    }
}

#[test]
fn worlds_are_found_by_their_namespaces_and_folders_and_nothing_else_is_taken_for_one() {
    let stem = format!("cn{}-stem", process::id());
    let foreign = Netns::create(&format!("{stem}x-hub")).unwrap();
    let world = World::builder().nodes(1).config(None).prefix(&format!("{stem}7-")).build().unwrap();
    assert_eq!(sweep::worlds(&stem).into_iter().collect::<Vec<_>>(), [format!("{stem}7-")]);
    drop((world, foreign));
    assert!(sweep::worlds(&stem).is_empty());
}
