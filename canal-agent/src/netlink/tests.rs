//! Each test runs in a network namespace of its own, which ends with its thread. They need root.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use canal_common::Mac;
use ipnet::Ipv4Net;
use nix::sched::{CloneFlags, unshare};

use super::*;

const HOST: Mac = Mac::new([0xee; 6]);
const POD: Mac = Mac::new([0x02, 0, 0, 0, 0, 7]);

fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

pub(crate) fn in_new_netns<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|s| {
        s.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
            test()
        })
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A second namespace, beside the calling thread's.
pub(crate) fn another_netns() -> Netns {
    in_new_netns(|| Netns::current().unwrap())
}

fn veth<'a>(host_name: &'a str, peer_name: &'a str, peer: &'a Netns) -> NewVeth<'a> {
    NewVeth {
        host_name,
        host_mac: Some(HOST),
        peer_name,
        peer_mac: Some(POD),
        peer_netns: std::os::fd::AsFd::as_fd(peer),
        mtu: 1450,
    }
}

#[test]
fn a_veth_pair_is_born_with_its_names_macs_and_mtu_in_both_namespaces() {
    in_new_netns(|| {
        let pod = another_netns();
        let mut here = Netlink::open().unwrap();
        let mut there = Netlink::open_in(&pod).unwrap();
        here.add_veth(&veth("cali0", "eth0", &pod)).unwrap();

        let host = here.link_by_name("cali0").unwrap().unwrap();
        let eth0 = there.link_by_name("eth0").unwrap().unwrap();
        assert_eq!((host.mac, host.mtu, host.up, host.kind.as_str()), (Some(HOST), 1450, false, "veth"));
        assert_eq!((eth0.mac, eth0.mtu, eth0.up), (Some(POD), 1450, false));
        assert_eq!((host.peer_ifindex, eth0.peer_ifindex), (Some(eth0.index), Some(host.index)));
        assert!(host.peer_netnsid.is_some(), "the peer is in another namespace");
        assert_eq!(here.link(host.index).unwrap().unwrap(), host);
        assert_eq!(here.links().unwrap().into_iter().find(|l| l.name == "cali0"), Some(host));
    });
}

#[test]
fn links_change_as_told() {
    in_new_netns(|| {
        let pod = another_netns();
        let mut nl = Netlink::open().unwrap();
        nl.add_veth(&veth("cali0", "eth0", &pod)).unwrap();
        nl.set_mtu("cali0", 1400).unwrap();
        nl.set_mac("cali0", POD).unwrap();
        nl.set_alias("cali0", "canal: web").unwrap();
        nl.set_noarp("cali0").unwrap();
        nl.set_up("cali0").unwrap();
        let link = nl.link_by_name("cali0").unwrap().unwrap();
        assert_eq!((link.mtu, link.mac, link.alias.as_deref()), (1400, Some(POD), Some("canal: web")));
        assert!(link.up && link.noarp && !link.running);

        nl.set_down(&link).unwrap();
        nl.rename(&link, "cali1").unwrap();
        assert_eq!(nl.link_by_name("cali0").unwrap(), None);
        let renamed = nl.link(&link).unwrap().unwrap();
        assert_eq!((renamed.name.as_str(), renamed.up), ("cali1", false));
    });
}

#[test]
fn deleting_one_end_deletes_the_pair_and_deleting_again_is_no_error() {
    in_new_netns(|| {
        let pod = another_netns();
        let mut nl = Netlink::open().unwrap();
        nl.add_veth(&veth("cali0", "eth0", &pod)).unwrap();
        assert!(nl.delete_link("cali0").unwrap());
        assert!(!nl.delete_link("cali0").unwrap());
        assert!(!nl.delete_link(4711).unwrap());
        assert_eq!(Netlink::open_in(&pod).unwrap().link_by_name("eth0").unwrap(), None);
    });
}

#[test]
fn errors_name_operation_object_and_cause() {
    in_new_netns(|| {
        let pod = another_netns();
        let mut nl = Netlink::open().unwrap();
        nl.add_veth(&veth("cali0", "eth0", &pod)).unwrap();
        let again = nl.add_veth(&veth("cali0", "eth1", &pod)).unwrap_err();
        assert!(again.is_present());
        assert!(again.to_string().starts_with("cannot make veth pair cali0 to eth1: File exists"), "{again}");

        let absent = nl.set_up("nowhere").unwrap_err();
        assert!(absent.is_absent());
        assert!(
            absent.to_string().starts_with("cannot set up interface nowhere: No such device"),
            "{absent}"
        );
        // The kernel's own sentence comes along.
        let mtu = nl.set_mtu("cali0", 7).unwrap_err().to_string();
        assert!(mtu.contains("mtu less than device minimum"), "{mtu}");

        for bad in ["", "a/b", "a b", "..", "sixteen-letters-"] {
            let error = nl.set_up(bad).unwrap_err();
            assert!(matches!(error, Error::Invalid { .. }), "{error}");
        }
    });
}

#[test]
fn an_external_vxlan_device_reads_back_and_refuses_a_taken_port() {
    in_new_netns(|| {
        let mut nl = Netlink::open().unwrap();
        let new = NewVxlan { name: "canal.1", mac: POD, mtu: 1450, port: 8472 };
        nl.add_vxlan_external(&new).unwrap();
        let link = nl.link_by_name("canal.1").unwrap().unwrap();
        assert_eq!((link.mac, link.mtu, link.kind.as_str()), (Some(POD), 1450, "vxlan"));
        let vxlan = link.vxlan.unwrap();
        assert!(vxlan.external && !vxlan.learning);
        assert_eq!((vxlan.port, vxlan.local), (8472, None));

        let holder = std::net::UdpSocket::bind("0.0.0.0:8472").unwrap();
        let taken = nl.set_up("canal.1").unwrap_err();
        assert_eq!(taken.errno(), Some(libc::EADDRINUSE), "{taken}");
        assert!(taken.to_string().contains("holds the port"), "{taken}");
        drop(holder);
        // A child of another test may hold a copy of the socket between its fork and its exec.
        let end = Instant::now() + Duration::from_secs(5);
        while let Err(e) = nl.set_up("canal.1") {
            assert!(Instant::now() < end, "{e}");
        }
    });
}

#[test]
fn addresses_are_added_once_replaced_and_deleted() {
    in_new_netns(|| {
        let mut nl = Netlink::open().unwrap();
        let lo = nl.link_by_name("lo").unwrap().unwrap();
        nl.set_up(&lo).unwrap();
        let host = net("10.100.1.7/32");
        nl.add_address(&lo, host).unwrap();
        assert!(nl.add_address("lo", host).unwrap_err().is_present());
        nl.replace_address("lo", host).unwrap();
        nl.add_address("lo", net("10.9.8.7/24")).unwrap();

        let all = nl.addresses(None).unwrap();
        assert_eq!(all, nl.addresses(Some(lo.index)).unwrap());
        nl.add_address("lo", net("10.9.8.6/24")).unwrap();
        let all_now = nl.addresses(Some(lo.index)).unwrap();
        let known = Address {
            ifindex: lo.index,
            net: host,
            global: true,
            permanent: true,
            secondary: false,
            deprecated: false,
        };
        assert!(all.contains(&known));
        let place = |text: &str| all_now.iter().position(|a| a.net == net(text)).unwrap();
        let (first, second) = (place("10.9.8.7/24"), place("10.9.8.6/24"));
        assert!(first < second && all_now[second].secondary && !all_now[first].secondary, "{all_now:?}");
        assert!(nl.delete_address("lo", host).unwrap());
        assert!(!nl.delete_address("lo", host).unwrap());
        assert!(!nl.delete_address("nowhere", host).unwrap());
        assert!(nl.addresses(Some(4711)).unwrap().is_empty());
    });
}

#[test]
fn the_way_to_an_address_is_the_kernels_with_the_source_it_would_use() {
    in_new_netns(|| {
        let pod = another_netns();
        let mut nl = Netlink::open().unwrap();
        assert_eq!(nl.way_to(Ipv4Addr::new(192, 0, 2, 1)).unwrap(), None);
        nl.add_veth(&veth("up0", "eth0", &pod)).unwrap();
        nl.set_up("up0").unwrap();
        let oif = nl.link_by_name("up0").unwrap().unwrap().index;
        nl.add_address("up0", net("192.168.50.1/24")).unwrap();
        let gateway = Ipv4Addr::new(192, 168, 50, 254);
        nl.replace_route(&Route::via(net("192.0.2.0/24"), gateway, oif)).unwrap();
        let way = Way { oif, src: Some(Ipv4Addr::new(192, 168, 50, 1)) };
        assert_eq!(nl.way_to(Ipv4Addr::new(192, 0, 2, 1)).unwrap(), Some(way));
        assert_eq!(nl.way_to(Ipv4Addr::new(198, 51, 100, 1)).unwrap(), None);
    });
}

#[test]
fn routes_read_back_as_written() {
    in_new_netns(|| {
        let pod = another_netns();
        let mut nl = Netlink::open().unwrap();
        assert_eq!(nl.routes().unwrap(), []);
        nl.add_veth(&veth("up0", "eth0", &pod)).unwrap();
        nl.set_up("up0").unwrap();
        let oif = nl.link_by_name("up0").unwrap().unwrap().index;
        nl.add_address("up0", net("192.168.50.1/24")).unwrap();

        let gateway = Ipv4Addr::new(169, 254, 1, 1);
        let src = Some(Ipv4Addr::new(192, 168, 50, 1));
        let written = [
            Route { src, mtu: Some(1400), ..Route::link(net("169.254.1.1/32"), oif) },
            Route::via(net("0.0.0.0/0"), gateway, oif),
            Route {
                onlink: true,
                protocol: 80,
                ..Route::via(net("10.100.2.0/24"), net("10.100.2.0/24").addr(), oif)
            },
            Route { metric: 50, ..Route::link(net("10.100.0.0/16"), oif) },
        ];
        for route in &written {
            nl.replace_route(route).unwrap();
            nl.replace_route(route).unwrap();
        }
        let read = nl.routes().unwrap();
        for route in &written {
            assert!(read.contains(route), "{route:?} not in {read:#?}");
        }
        assert_eq!(read.len(), written.len() + 1, "and the one for the address: {read:#?}");

        // Another metric is another route.
        assert!(!nl.delete_route(&Route { metric: 51, ..written[3].clone() }).unwrap());
        for route in &written {
            assert!(nl.delete_route(route).unwrap());
            assert!(!nl.delete_route(route).unwrap());
        }
        assert_eq!(nl.routes().unwrap().len(), 1);
    });
}

#[test]
fn a_permanent_neighbour_is_set_replaced_and_deleted() {
    in_new_netns(|| {
        let pod = another_netns();
        let mut nl = Netlink::open().unwrap();
        nl.add_veth(&veth("up0", "eth0", &pod)).unwrap();
        nl.set_up("up0").unwrap();
        let ip = Ipv4Addr::new(10, 100, 2, 0);
        nl.add_neigh_permanent("up0", ip, HOST).unwrap();
        nl.add_neigh_permanent("up0", ip, POD).unwrap();
        let ifindex = nl.link_by_name("up0").unwrap().unwrap().index;
        assert_eq!(nl.neighbours().unwrap(), [Neighbour { ifindex, ip, mac: POD, permanent: true }]);
        assert!(nl.delete_neigh("up0", ip).unwrap());
        assert!(!nl.delete_neigh("up0", ip).unwrap());
        assert_eq!(nl.neighbours().unwrap(), []);
    });
}

#[test]
fn gro_switches_on_both_ends_of_a_pair() {
    in_new_netns(|| {
        let pod = another_netns();
        Netlink::open().unwrap().add_veth(&veth("cali0", "eth0", &pod)).unwrap();
        set_gro("cali0", true).unwrap();
        pod.run(|| set_gro("eth0", true)).unwrap().unwrap();
        let absent = set_gro("eth0", true).unwrap_err();
        assert!(absent.is_absent(), "{absent}");
    });
}

#[test]
fn sysctls_are_written_only_when_they_differ_and_dots_stay_in_their_component() {
    in_new_netns(|| {
        let pod = another_netns();
        let mut nl = Netlink::open().unwrap();
        nl.add_veth(&veth("canal.1", "eth0", &pod)).unwrap();
        let key = "net/ipv4/conf/canal.1/forwarding";
        let before = sysctl::get(key).unwrap();
        let other = if before == "1" { "0" } else { "1" };
        assert!(!sysctl::set(key, &before).unwrap());
        assert!(sysctl::set(key, other).unwrap());
        assert_eq!(sysctl::get(key).unwrap(), other);
        assert!(!sysctl::set_if_present("net/ipv4/no_such_thing", "1").unwrap());
        for bad in ["", "/net", "net/../kernel/hostname"] {
            assert!(matches!(sysctl::get(bad), Err(Error::Invalid { .. })), "{bad}");
        }
    });
}

#[test]
fn a_namespace_is_known_by_identity_and_a_visit_leaves_the_visitor_where_it_was() {
    in_new_netns(|| {
        let here = Netns::current().unwrap();
        let other = another_netns();
        assert!(here.is(&Netns::current().unwrap()) && !here.is(&other));
        let there = other.run(|| Netns::current().unwrap()).unwrap();
        assert!(there.is(&other));
        assert!(here.is(&Netns::current().unwrap()));
        let error = Netns::open("/no/such/netns".as_ref()).unwrap_err();
        assert!(error.is_absent(), "{error}");
    });
}

/// In this thread's namespace.
fn tc(object: &str, words: &str) {
    let status = std::process::Command::new("tc").arg(object).args(words.split_whitespace()).status();
    assert!(status.unwrap().success(), "tc {object} {words}");
}

#[test]
fn queues_and_filter_hooks_of_a_link_are_told_apart_from_what_it_is_born_with() {
    in_new_netns(|| {
        let pod = another_netns();
        let mut nl = Netlink::open().unwrap();
        nl.add_veth(&veth("cali0", "eth0", &pod)).unwrap();
        let index = nl.link_by_name("cali0").unwrap().unwrap().index;
        let mut seen =
            || (nl.link(index).unwrap().unwrap().qdisc, nl.filter_hooks().unwrap().get(&index).copied());
        assert_eq!(seen(), ("noop".to_owned(), None));
        Netlink::open().unwrap().set_up(index).unwrap();
        assert_eq!(seen(), ("noqueue".to_owned(), None));
        tc("qdisc", "add dev cali0 root tbf rate 1mbit burst 10k latency 25ms");
        assert_eq!(seen(), ("tbf".to_owned(), None));
        tc("qdisc", "add dev cali0 ingress");
        assert_eq!(seen(), ("tbf".to_owned(), Some(FilterHook::Ingress)));
        tc("qdisc", "del dev cali0 root");
        tc("qdisc", "del dev cali0 ingress");
        assert_eq!(seen(), ("noqueue".to_owned(), None));
        tc("qdisc", "add dev cali0 clsact");
        assert_eq!(seen(), ("noqueue".to_owned(), Some(FilterHook::Both)));
    });
}

#[test]
fn the_monitor_hints_at_links_queues_addresses_and_routes() {
    in_new_netns(|| {
        let pod = another_netns();
        let mut nl = Netlink::open().unwrap();
        let (monitor, changes) = Monitor::channel().unwrap();
        let expect = |wanted: &dyn Fn(&Change) -> bool| {
            let deadline = Instant::now() + Duration::from_secs(5);
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                if wanted(&changes.recv_timeout(left).expect("the hint comes")) {
                    return;
                }
            }
        };
        nl.add_veth(&veth("cali0", "eth0", &pod)).unwrap();
        let index = nl.link_by_name("cali0").unwrap().unwrap().index;
        expect(&|c| matches!(c, Change::LinkChanged { name, .. } if name == "cali0"));
        nl.set_up("cali0").unwrap();
        nl.add_address("cali0", net("10.0.0.1/32")).unwrap();
        expect(&|c| *c == Change::AddrChanged { index });
        nl.replace_route(&Route::link(net("10.0.0.2/32"), index)).unwrap();
        expect(&|c| *c == Change::RouteChanged);
        for what in ["add dev cali0 ingress", "del dev cali0 ingress", "add dev cali0 root pfifo"] {
            tc("qdisc", what);
            expect(&|c| *c == Change::QdiscChanged { index });
        }
        // Filters may be many, and are nobody's business here.
        tc("qdisc", "add dev cali0 clsact");
        expect(&|c| *c == Change::QdiscChanged { index });
        while changes.recv_timeout(Duration::from_millis(50)).is_ok() {}
        tc("filter", "add dev cali0 ingress u32 match u32 0 0");
        assert!(changes.recv_timeout(Duration::from_millis(50)).is_err());
        nl.delete_link("cali0").unwrap();
        expect(&|c| *c == Change::LinkGone { index, name: "cali0".into() });
        drop(monitor);
        // The iteration ends because the listener, and its sender with it, is gone.
        assert!(changes.iter().count() < 100);
    });
}
