//! Addresses and CIDRs for which the same predicates hold, as groups that outlive a change of what holds for all of
//! them: then only the group's content is another, and none of its members has to move.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ipnet::Ipv4Net;

use super::asks::{Ask, Asks};
use crate::compile::Class;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Member {
    Site(u32),
    Net(Ipv4Net),
}

/// What holds, ascending.
pub(super) type Content = Box<[Ask]>;

#[derive(Debug)]
struct Group {
    content: Content,
    class: Class,
    members: usize,
    /// Of those, CIDRs.
    nets: usize,
    /// Its class when changes were last taken.
    told: Option<Class>,
}

#[derive(Debug, Default)]
pub(super) struct Groups {
    slots: Vec<Option<Group>>,
    free: Vec<u32>,
    by_content: HashMap<Content, u32>,
    /// Made or changed since changes were last taken.
    touched: BTreeSet<u32>,
    /// Predicate → groups with CIDRs for which it holds.
    net_asks: HashMap<Ask, usize>,
}

/// Which group a member was in and is in.
pub(super) type Moves = Vec<(Member, Option<u32>, Option<u32>)>;

impl Groups {
    pub(super) fn class(&self, group: u32) -> &Class {
        &self.get(group).class
    }

    /// Some address may answer this by a CIDR around it alone.
    pub(super) fn held_by_net(&self, ask: Ask) -> bool {
        self.net_asks.contains_key(&ask)
    }

    /// Groups whose class is another than when this was last called, with both classes.
    pub(super) fn take_renamed(&mut self) -> Vec<(Class, Class)> {
        let mut renamed = Vec::new();
        for id in std::mem::take(&mut self.touched) {
            let Some(group) = self.slots[id as usize].as_mut() else { continue };
            if let Some(told) = group.told.replace(group.class.clone())
                && told != group.class
            {
                renamed.push((told, group.class.clone()));
            }
        }
        renamed
    }

    /// Brings the members to where they belong: `from` where they are, `to` what holds for them (`None`: nowhere).
    pub(super) fn regroup(
        &mut self,
        changes: Vec<(Member, Option<u32>, Option<Content>)>,
        asks: &Asks,
    ) -> Moves {
        let mut by_group: BTreeMap<u32, Vec<(Member, Option<Content>)>> = BTreeMap::new();
        let mut single = Vec::new();
        for (member, from, to) in changes {
            match from {
                Some(from) if to.as_ref() == Some(&self.get(from).content) => {}
                Some(from) => by_group.entry(from).or_default().push((member, to)),
                None => single.push((member, None, to)),
            }
        }
        let mut whole = Vec::new();
        for (group, members) in by_group {
            let all = members.len() == self.get(group).members;
            let target = members[0]
                .1
                .clone()
                .filter(|target| all && members.iter().all(|(_, to)| to.as_ref() == Some(target)));
            match target {
                Some(target) => {
                    self.by_content.remove(&self.get(group).content.clone());
                    whole.push((group, target, members));
                }
                None => single.extend(members.into_iter().map(|(member, to)| (member, Some(group), to))),
            }
        }
        for (group, target, members) in whole {
            if self.by_content.contains_key(&target) {
                single.extend(members.into_iter().map(|(member, to)| (member, Some(group), to)));
            } else {
                self.rename(group, target, asks);
            }
        }
        single
            .into_iter()
            .filter(|(_, from, to)| from.is_some() || to.is_some())
            .map(|(member, from, to)| {
                let to = to.map(|content| self.enter(member, content, asks));
                if let Some(from) = from {
                    self.leave(member, from);
                }
                (member, from, to)
            })
            .collect()
    }

    fn get(&self, id: u32) -> &Group {
        self.slots[id as usize].as_ref().expect("a group lives as long as it has members")
    }

    fn get_mut(&mut self, id: u32) -> &mut Group {
        self.slots[id as usize].as_mut().expect("a group lives as long as it has members")
    }

    fn rename(&mut self, id: u32, content: Content, asks: &Asks) {
        let has_nets = self.get(id).nets > 0;
        if has_nets {
            self.count_nets(id, false);
        }
        let group = self.get_mut(id);
        group.class = class(&content, asks);
        group.content.clone_from(&content);
        if has_nets {
            self.count_nets(id, true);
        }
        self.by_content.insert(content, id);
        self.touched.insert(id);
    }

    fn enter(&mut self, member: Member, content: Content, asks: &Asks) -> u32 {
        let id = self.by_content.get(&content).copied().unwrap_or_else(|| {
            let class = class(&content, asks);
            let group = Group { content: content.clone(), class, members: 0, nets: 0, told: None };
            let id = self.free.pop().unwrap_or_else(|| {
                self.slots.push(None);
                u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
            });
            self.slots[id as usize] = Some(group);
            self.by_content.insert(content, id);
            self.touched.insert(id);
            id
        });
        let group = self.get_mut(id);
        group.members += 1;
        if matches!(member, Member::Net(_)) {
            group.nets += 1;
            if group.nets == 1 {
                self.count_nets(id, true);
            }
        }
        id
    }

    pub(super) fn leave(&mut self, member: Member, id: u32) {
        let group = self.get_mut(id);
        group.members -= 1;
        let (mut last_net, is_empty) = (false, group.members == 0);
        if matches!(member, Member::Net(_)) {
            group.nets -= 1;
            last_net = group.nets == 0;
        }
        if last_net {
            self.count_nets(id, false);
        }
        if is_empty && let Some(group) = self.slots[id as usize].take() {
            // Its content may be another group's by now.
            if self.by_content.get(&group.content) == Some(&id) {
                self.by_content.remove(&group.content);
            }
            self.touched.remove(&id);
            self.free.push(id);
        }
    }

    fn count_nets(&mut self, id: u32, more: bool) {
        let content = self.get(id).content.clone();
        for ask in content {
            let count = self.net_asks.entry(ask).or_default();
            if more {
                *count += 1;
            } else {
                *count -= 1;
            }
            if *count == 0 {
                self.net_asks.remove(&ask);
            }
        }
    }
}

fn class(content: &[Ask], asks: &Asks) -> Class {
    Class::new(content.iter().map(|ask| asks.get(*ask).clone()))
}
