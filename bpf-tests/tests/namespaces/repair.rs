//! What somebody broke by hand is mended.

use bpf_tests::{Host, Pod, World, policy, until};

use crate::{SOON, soon};

/// Hosts may talk to remote pods, too: the network's profile alone would not let them.
fn two_nodes() -> (World, Pod, Pod) {
    let (world, a, b) = crate::two_nodes();
    world.etcd().put_global_policy("open", policy::allow_all()).unwrap();
    assert!(soon(|| world.node(1).pings(b.ip())));
    (world, a, b)
}

const SUBNETS: &str = "/coreos.com/network/subnets/";

#[test]
fn our_lease_deleted_from_etcd_is_taken_again_with_the_same_subnet() {
    let (world, a, b) = two_nodes();
    let agent = world.node(1).agent();
    let lease = agent.status().unwrap()["lease"].clone();
    let key = format!("{SUBNETS}{}", lease["subnet"].as_str().unwrap().replace('/', "-"));
    let value = world.etcd().get(&key).unwrap();
    assert!(value.is_some());
    world.etcd().del(&key).unwrap();
    assert!(soon(|| world.etcd().get(&key).unwrap() == value), "{}", agent.log());
    assert_eq!(agent.status().unwrap()["lease"], lease);
    assert!(soon(|| a.pings(b.ip()) && b.pings(a.ip())));
    assert!(soon(|| agent.status().unwrap()["problems"].as_array().unwrap().is_empty()));
}

#[test]
fn a_reservation_is_taken_at_the_start_whatever_mac_it_names_and_in_place_of_another_subnet() {
    let world = World::builder().nodes(2).build().unwrap();
    world.etcd().put_global_policy("open", policy::allow_all()).unwrap();
    let agent = world.node(1).agent();
    let without_mac = r#"{"PublicIP":"192.168.50.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"00:00:00:00:00:00"}}"#;
    world.etcd().put(&format!("{SUBNETS}10.100.77.0-24"), without_mac).unwrap();
    world.start_agents().unwrap();
    let subnet = || agent.status().unwrap()["lease"]["subnet"].as_str().unwrap().to_owned();
    let b = world.node(2).add_pod("b", &[]).unwrap();
    assert_eq!(subnet(), "10.100.77.0/24");
    let first = world.node(1).add_pod("first", &[]).unwrap();
    assert!(soon(|| first.pings(b.ip()) && b.pings(first.ip())), "{}", agent.log());

    world.etcd().put(&format!("{SUBNETS}10.100.88.0-24"), r#"{"PublicIP":"192.168.50.1"}"#).unwrap();
    let problems = || agent.status().unwrap()["problems"].to_string();
    assert!(soon(|| problems().contains("drain the node and restart canal-agent")), "{}", problems());
    assert!(first.pings(b.ip()), "nothing happens under way");
    agent.kill_9();
    agent.start().unwrap();
    assert_eq!(subnet(), "10.100.77.0/24", "nor after a crash, as long as there is a pod");
    assert!(soon(|| first.pings(b.ip())));

    world.node(1).del_pod(&first).unwrap();
    world.etcd().del(&format!("{SUBNETS}10.100.77.0-24")).unwrap();
    agent.terminate().unwrap();
    agent.start().unwrap();
    assert_eq!(subnet(), "10.100.88.0/24");
    let held = world.etcd().list(SUBNETS).unwrap();
    assert!(held.len() == 2 && !held.keys().any(|key| key.contains("10.100.77")), "{held:?}");
    let late = world.node(1).add_pod("late", &[]).unwrap();
    assert!(late.ip().to_string().starts_with("10.100.88."), "{}", late.ip());
    assert!(soon(|| late.pings(b.ip()) && b.pings(late.ip())), "{}", agent.log());
}

#[test]
fn a_subnet_that_another_node_took_is_given_up_and_new_pods_live_in_the_new_one() {
    let (world, a, b) = two_nodes();
    let node = world.node(1);
    let lease = || node.agent().status().unwrap()["lease"]["subnet"].as_str().unwrap().to_owned();
    let before = lease();
    let taken = r#"{"PublicIP":"192.168.50.9","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:09"}}"#;
    let key = format!("{SUBNETS}{}", before.replace('/', "-"));
    world.etcd().put_leased(&key, taken, SOON * 60).unwrap();
    assert!(soon(|| lease() != before), "{}", node.agent().log());
    let after = lease();
    let own = after.trim_end_matches("0/24").to_owned();
    let env = || std::fs::read_to_string(node.agent().subnet_file()).unwrap();
    assert!(soon(|| env().contains(&format!("FLANNEL_SUBNET={own}1/24"))), "{}", env());
    let device = || node.netns().ip("-4 addr show canal.1").unwrap();
    assert!(
        soon(|| device().contains(&format!("{own}0/32")) && device().matches("inet ").count() == 1),
        "{}",
        device()
    );
    assert_eq!(world.etcd().get(&key).unwrap().as_deref(), Some(taken), "the other's lease is left alone");
    let late = node.add_pod("late", &[]).unwrap();
    assert!(late.ip().to_string().starts_with(&own), "{} in {after}", late.ip());
    assert!(soon(|| late.pings(b.ip()) && b.pings(late.ip())));
    assert!(late.pings(a.ip()), "on the node the old pod still has its address");
    node.agent().crash_and_restart().unwrap();
    assert_eq!(lease(), after);
    assert!(late.pings(b.ip()));
}

#[test]
fn the_overlay_device_deleted_by_hand_is_made_again_with_its_mac() {
    let (world, a, b) = two_nodes();
    let node = world.node(1);
    let mac = || {
        node.netns().ip("-br link show canal.1").ok().map(|l| l.split_whitespace().nth(2).unwrap().to_owned())
    };
    let before = mac().unwrap();
    node.netns().ip("link del canal.1").unwrap();
    assert!(soon(|| mac().as_ref() == Some(&before)), "{}", node.agent().log());
    assert!(soon(|| node.pings(b.ip())), "the host's way to remote pods, too");
    assert!(a.pings(b.ip()) && b.pings(a.ip()));
    assert_eq!(a.ping_sized(b.ip(), 2, 4000).unwrap().lost, 0);
    node.netns().ip("link set canal.1 down").unwrap();
    assert!(soon(|| node.pings(b.ip())), "and one that was only taken down is up again");
}

#[test]
fn routes_addresses_and_attachments_that_were_removed_come_back() {
    let (world, a, b) = two_nodes();
    let node = world.node(1);
    let netns = node.netns();
    netns.ip("route del 10.100.0.0/16").unwrap();
    assert!(soon(|| node.pings(b.ip())), "the network's route");
    let subnet = a.ip().octets();
    netns.ip(&format!("addr del 10.100.{}.0/32 dev canal.1", subnet[2])).unwrap();
    assert!(
        soon(|| netns.ip("-4 addr show canal.1").unwrap().contains("inet 10.100.") && node.pings(b.ip()))
    );
    netns.ip(&format!("route del {}/32", a.ip())).unwrap();
    assert!(soon(|| node.pings(a.ip())), "the pod's route");
    for link in [format!("{}-from_pod", a.host_interface()), "up0-from_wire".to_owned()] {
        std::fs::remove_file(node.bpffs().join("canal/links").join(&link)).unwrap();
        // Nobody announces that: it is found at the next look.
        assert!(until(SOON * 2, || node.bpffs().join("canal/links").join(&link).exists()), "{link}");
    }
    assert!(soon(|| a.pings(b.ip()) && b.pings(a.ip())));
}

#[test]
fn an_uplink_that_goes_down_and_comes_back_carries_the_overlay_again() {
    let (world, a, b) = two_nodes();
    let netns = world.node(1).netns();
    netns.ip("link set up0 down").unwrap();
    assert!(!a.pings(b.ip()));
    netns.ip("link set up0 up").unwrap();
    assert!(soon(|| a.pings(b.ip()) && b.pings(a.ip())));
    // A flapping interface is a burst of news, not of work.
    for _ in 0..50 {
        netns.ip("link set up0 down").unwrap();
        netns.ip("link set up0 up").unwrap();
    }
    assert!(soon(|| a.pings(b.ip()) && b.pings(a.ip())));
    let agent = world.node(1).agent();
    assert!(
        agent.is_running() && soon(|| agent.status().unwrap()["problems"].as_array().unwrap().is_empty())
    );
}

#[test]
fn an_uplink_that_gets_another_address_or_mtu_is_followed_with_the_same_subnet_and_process() {
    let world = World::builder().nodes(2).build().unwrap();
    let agent = world.node(1).agent();
    agent.unset_flag("--public-ip");
    world.start_agents().unwrap();
    let (a, b) = (world.node(1).add_pod("a", &[]).unwrap(), world.node(2).add_pod("b", &[]).unwrap());
    assert!(soon(|| a.pings(b.ip())));
    let (pid, subnet) = (agent.pid(), agent.status().unwrap()["lease"]["subnet"].clone());
    let netns = world.node(1).netns();
    netns.ip("addr del 192.168.50.1/24 dev up0").unwrap();
    assert!(agent.says(&["WARN", "no usable IPv4 address"], SOON), "{}", agent.log());
    netns.ip("addr add 192.168.50.33/24 dev up0").unwrap();
    assert!(soon(|| a.pings(b.ip()) && b.pings(a.ip())), "{}", agent.log());
    let lease = agent.status().unwrap()["lease"].clone();
    assert_eq!((&lease["subnet"], &lease["public_ip"]), (&subnet, &"192.168.50.33".into()));
    let leases = world.etcd().list("/coreos.com/network/subnets/").unwrap();
    assert_eq!(leases.values().filter(|value| value.contains(r#""PublicIP":"192.168.50.33""#)).count(), 1);
    assert_eq!(leases.len(), 2, "{leases:?}");

    netns.ip("link set up0 mtu 1400").unwrap();
    let file = || std::fs::read_to_string(agent.subnet_file()).unwrap();
    assert!(soon(|| file().contains("FLANNEL_MTU=1350\n")), "{}", file());
    assert!(netns.ip("link show canal.1").unwrap().contains("mtu 1350"));
    assert!(soon(|| a.pings(b.ip()) && b.pings(a.ip())), "{}", agent.log());
    assert!(soon(|| agent.status().unwrap()["problems"].as_array().unwrap().is_empty()));
    assert_eq!(agent.pid(), pid);
    assert!(agent.is_running());
}

#[test]
fn another_interface_that_the_rules_prefer_becomes_the_uplink_and_the_old_one_is_left() {
    let world = World::builder().nodes(2).build().unwrap();
    let node = world.node(1);
    let agent = node.agent();
    for flag in ["--public-ip", "--iface"] {
        agent.unset_flag(flag);
    }
    // By the address: whichever interface has one in the second underlay, else in the first.
    agent.add_switch("-iface-regex=^192[.]168[.]51[.]");
    agent.add_switch("-iface-regex=^192[.]168[.]50[.]");
    world.start_agents().unwrap();
    let (a, b) = (node.add_pod("a", &[]).unwrap(), world.node(2).add_pod("b", &[]).unwrap());
    assert!(soon(|| a.pings(b.ip())));
    let (one, two) = (node.netns(), world.node(2).netns());
    one.ip(&format!("link add new0 type veth peer name new0 netns {}", two.name())).unwrap();
    for (netns, address, other) in
        [(two, "192.168.51.2/24", "192.168.50.1"), (one, "192.168.51.1/24", "192.168.50.2")]
    {
        netns.ip("link set new0 up").unwrap();
        netns.ip(&format!("addr add {address} dev new0")).unwrap();
        netns.ip(&format!("route replace {other}/32 dev new0")).unwrap();
    }
    let programs = || agent.status().unwrap()["programs"].to_string();
    assert!(soon(|| programs().contains("new0") && !programs().contains("up0")), "{}", programs());
    assert!(soon(|| agent.status().unwrap()["lease"]["public_ip"] == "192.168.51.1"));
    let links = std::fs::read_dir(node.bpffs().join("canal/links")).unwrap();
    let links: Vec<_> = links.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!links.iter().any(|link| link.starts_with("up0-")), "{links:?}");
    assert!(agent.says(&["following it", "new0", "iface-regex"], SOON), "{}", agent.log());
}

#[test]
fn without_rules_the_uplink_is_where_the_default_route_leads_also_when_that_changes() {
    let world = World::builder().nodes(2).build().unwrap();
    let (agent, one, two) = (world.node(1).agent(), world.node(1).netns(), world.node(2).netns());
    for flag in ["--public-ip", "--iface"] {
        agent.unset_flag(flag);
    }
    one.ip(&format!("link add new0 type veth peer name new0 netns {}", two.name())).unwrap();
    for (netns, address) in [(one, "192.168.51.1/24"), (two, "192.168.51.2/24")] {
        netns.ip("link set new0 up").unwrap();
        netns.ip(&format!("addr add {address} dev new0")).unwrap();
    }
    one.ip("route add default via 192.168.50.2 dev up0").unwrap();
    world.start_agents().unwrap();
    let (a, b) = (world.node(1).add_pod("a", &[]).unwrap(), world.node(2).add_pod("b", &[]).unwrap());
    assert!(soon(|| a.pings(b.ip())));
    let uplink = || agent.status().unwrap()["uplink"].to_string();
    assert!(uplink().contains("up0"), "{}", uplink());

    one.ip("route replace default via 192.168.51.2 dev new0").unwrap();
    assert!(soon(|| uplink().contains("new0")), "{}", uplink());
    assert!(soon(|| agent.status().unwrap()["lease"]["public_ip"] == "192.168.51.1"));
    one.ip("route del default").unwrap();
    assert!(agent.says(&["WARN", "no default route"], SOON), "{}", agent.log());
    assert!(uplink().contains("new0"), "the last one counts while there is none: {}", uplink());
    one.ip("route add default via 192.168.50.2 dev up0").unwrap();
    assert!(soon(|| uplink().contains("up0") && a.pings(b.ip()) && b.pings(a.ip())), "{}", agent.log());
}

#[test]
fn an_uplink_that_disappears_is_told_and_its_successor_is_used() {
    let (world, a, b) = two_nodes();
    let (one, two) = (world.node(1).netns(), world.node(2).netns());
    let agent = world.node(1).agent();
    let near = world.node(1).add_pod("near", &[]).unwrap();
    one.ip("link del up0").unwrap();
    let problems = || agent.status().unwrap()["problems"].to_string();
    assert!(soon(|| problems().contains("up0")), "{}", problems());
    assert!(a.pings(near.ip()), "pods of the node still reach each other");
    let refused = world.node(1).add_pod("early", &[]).unwrap_err().to_string();
    assert!(refused.contains(r#""code":11"#) && refused.contains("up0"), "{refused}");
    one.ip(&format!("link add up0 type veth peer name up0 netns {}", two.name())).unwrap();
    for (netns, address) in [(one, "192.168.50.1/24"), (two, "192.168.50.2/24")] {
        netns.ip("link set up0 up").unwrap();
        netns.ip(&format!("addr add {address} dev up0")).unwrap();
    }
    assert!(soon(|| a.pings(b.ip()) && b.pings(a.ip())), "{} {}", problems(), agent.log());
    let late = world.node(1).add_pod("late", &[]).unwrap();
    assert!(soon(|| late.pings(b.ip())), "and pods can be made again");
    let endpoints = agent.status().unwrap()["endpoints"].as_array().unwrap().len();
    assert_eq!(endpoints, 3, "the refused one has left nothing");
}
