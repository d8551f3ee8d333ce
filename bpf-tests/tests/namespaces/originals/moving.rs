//! A node of the real ones is moved to Canal with its pods, and back.

use bpf_tests::{Host, LiveConnection, Node, policy, until};
use serde_json::json;

use super::{Member, PROGRAMMED, Plugin, Theirs, members, world};
use crate::soon;

/// Step 4 of the README's list, for the rules of either kind.
const REMOVE_FELIX: &str = "iptables-nft-save | grep -v 'cali[-:]' | iptables-nft-restore";

fn stands(node: &Node, what: &str) -> bool {
    node.netns().cmd("iptables-nft-save").run().unwrap().contains(what)
}

/// Web may call db on port 80 alone; what is not db may be called by all.
fn guarded(from: &Member, to: &Member) -> bool {
    from.at().reaches(to.ip, 80) && !from.at().reaches(to.ip, 8080) && to.at().reaches(from.ip, 8080)
}

#[test]
#[cfg_attr(not(has_felix), ignore = "the PATH has not all of flanneld, calico-felix, calicoctl and calico")]
fn a_node_of_the_real_programs_is_moved_with_its_pods_and_goes_back() {
    let world = world();
    let (one, two) = (world.node(1), world.node(2));
    one.agent().start().unwrap();
    let theirs = Theirs::start(&world);
    let members = members(&world);
    let [a, b, c, d] = &members;
    let rules =
        json!([{"action": "Allow", "protocol": "TCP", "destination": {"ports": [80]}}, {"action": "Deny"}]);
    world.etcd().put_global_policy("db", policy::ingress(1, "app == 'db'", rules)).unwrap();
    world.etcd().put_global_policy("rest", policy::allow_all()).unwrap();
    let _servers =
        members.each_ref().map(|member| [80, 8080].map(|port| member.at().serve_tcp(port).unwrap()));
    let all = [(a, b), (c, d), (a, d), (c, b)];
    let holds = |when: &str| {
        for (from, to) in all {
            assert!(until(PROGRAMMED, || guarded(from, to)), "{when}: {} to {}", from.ip, to.ip);
        }
    };
    holds("at first");
    let lives =
        [(a, d), (c, b), (c, d)].map(|(from, to)| LiveConnection::open(&from.netns, to.ip, 80).unwrap());

    drop(theirs);
    two.agent().start().unwrap();
    holds("moved");
    assert!(lives.iter().all(LiveConnection::is_alive), "connections outlive the move");
    assert!(stands(two, "cali-") && two.agent().says(&["Felix's rules", "iptables"], PROGRAMMED));
    two.netns().cmd("sh -c").arg(REMOVE_FELIX).run().unwrap();
    assert!(!stands(two, "cali-"), "no rule of Felix's is left");
    holds("without Felix's rules");
    let late = Plugin::Ours.add(&world, two, "late");
    let _server = late.at().serve_tcp(80).unwrap();
    for other in [a, c] {
        assert!(soon(|| other.at().reaches(late.ip, 80) && late.at().pings(other.ip)), "{}", other.ip);
    }
    assert!(
        late.at().pings(two.public_ip())
            && two.pings(late.ip)
            && two.pings(c.ip)
            && c.at().pings(two.public_ip())
    );
    Plugin::Ours.del(&world, two, d);
    assert!(soon(|| world.etcd().get(&d.key).unwrap().is_none()), "a pod of theirs goes by our DEL");

    two.agent().terminate().unwrap();
    two.agent().hand_over_to_flannel().unwrap();
    let _theirs = Theirs::start(&world);
    assert!(stands(two, "cali-"));
    for (from, to) in [(a, b), (c, b)] {
        assert!(until(PROGRAMMED, || guarded(from, to)), "back: {} to {}", from.ip, to.ip);
    }
    // Made by ours, judged by Felix.
    assert!(
        until(PROGRAMMED, || a.at().reaches(late.ip, 80) && late.at().pings(c.ip)),
        "our pod under Felix"
    );
    Plugin::Theirs.del(&world, two, &late);
    assert!(late.netns.ip("link show eth0").is_err() && world.etcd().get(&late.key).unwrap().is_none());
    assert!(lives[1].is_alive(), "the connection from c has seen it all");
}
