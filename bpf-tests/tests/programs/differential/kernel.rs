//! The loaded programs and tables, and how they are asked.

use super::*;

pub(super) struct Kernel {
    pub(super) lab: Lab,
    pub(super) policy: PolicyTables<KernelTables>,
    hits: HitCounters,
}

/// One end of a packet: whose policy is asked, and as what.
pub(super) type End = (u32, Direction);

impl Kernel {
    /// Takes over what is pinned.
    pub(super) fn adopt(links: Links, bpffs: &Path) -> Self {
        let pins = Pins::open(bpffs).unwrap();
        let mut lab = Lab::load(links, Some(&pins)).unwrap();
        lab.put_node(REMOTE_INDEX, REMOTE_NET, remote_node());
        let (tables, leftovers) = KernelTables::adopt(&mut lab.object.ebpf).unwrap();
        let policy = PolicyTables::new(tables, leftovers, Limits::default());
        Self { lab, policy, hits: HitCounters::open(bpffs).unwrap() }
    }

    /// How many new flows were judged so.
    pub(super) fn hits(&self, decision: u32) -> u64 {
        self.hits.of(decision).flows
    }

    /// What the loaded policy says of each, by decision and by name.
    pub(super) fn ask<'a>(
        &self,
        cases: impl IntoIterator<Item = (End, &'a reference::Packet)>,
    ) -> Vec<(u32, reference::Verdict)> {
        let questions: Vec<_> = cases
            .into_iter()
            .map(|((id, direction), packet)| traffic::question(id, direction, packet))
            .collect();
        self.lab.ask(&questions).into_iter().map(|verdict| (verdict.id(), self.name(verdict))).collect()
    }

    fn name(&self, verdict: Verdict) -> reference::Verdict {
        assert!(verdict.kind() <= Verdict::ALLOW, "{verdict:?}");
        let (rule, logs) = match verdict.id() {
            0 => (None, Vec::new()),
            id => {
                let known = self.policy.decided(id).unwrap_or_else(|| panic!("decision {id} has no name"));
                assert_eq!(verdict.allows(), known.allow, "{verdict:?} {known:?}");
                (known.rule.as_deref().cloned(), known.logs.iter().map(|rule| (**rule).clone()).collect())
            }
        };
        assert_eq!(verdict.logs(), !logs.is_empty(), "{verdict:?}");
        reference::Verdict { allow: verdict.allows(), rule, logs }
    }

    /// Sends the packet from the pod, through the stack to the pod or, `in_envelope`, from another node; which hook
    /// that is, and whether it passed.
    pub(super) fn send(
        &mut self,
        local: Pod,
        direction: Direction,
        packet: &reference::Packet,
        in_envelope: bool,
    ) -> (Hook, bool) {
        let frame = traffic::frame(packet);
        let links = self.lab.links;
        let sender = (0..PODS).find(|n| pod_address(*n) == packet.source);
        let (hook, frame, context) = match (direction, sender) {
            (Direction::Egress, _) => {
                let context = Context::on(links.pods[local.number]);
                (Hook::FromPod, frame.macs(local.mac, HOST_MAC).bytes(), context)
            }
            (Direction::Ingress, Some(LOCAL_PODS..)) if in_envelope => {
                let frame = frame.macs(REMOTE_VTEP, VTEP_MAC).in_vxlan(&outer());
                (Hook::FromWire, frame, Context::on(links.uplink))
            }
            // Whatever is no pod of ours comes by an interface that says nothing about it.
            (Direction::Ingress, sender) => {
                let by = sender.and_then(|n| links.pods.get(n)).copied().unwrap_or(links.overlay);
                (Hook::ToPod, frame.bytes(), Context::on(links.pods[local.number]).came_by(by))
            }
        };
        let (action, _) = self.lab.try_send(hook, &frame, context).unwrap();
        self.lab.forget_flow(&traffic::flow(packet));
        if hook == Hook::FromWire {
            assert_ne!(action, NEXT, "left to the stack, and so not judged: {packet:?}");
        }
        (hook, action != DROP)
    }
}
