//! One update of classes, sets and addresses: the direct way, and the staged one.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
    sync::Arc,
};

use super::{
    CLOSED, Desired, Move, Outcome, PolicyTables,
    addresses::{to_put, to_remove},
    distinct_sets,
    sets::Refusals,
};
use crate::{
    compile::{Census, Class, Place, PolicySet},
    dataplane::tables::Tables,
};

/// What is to become of classes and addresses.
pub(super) struct Update {
    /// Entries that may change; when it is not known what the classes mean, all there are.
    moves: Vec<Move>,
    /// Old meaning → new one, of those that are not in `moves`.
    renamed: HashMap<Class, Class>,
    /// The last update came to its end, by the same census: what the classes mean is so, and their columns stand.
    settled: bool,
}

/// A class for each pair of old class and new content.
type Assigned = BTreeMap<(u32, Class), u32>;

impl Update {
    pub(super) fn new<T: Tables>(policy: &PolicyTables<T>, census: &mut Census, settled: bool) -> Self {
        let delta = census.take_delta();
        let settled = settled && !delta.is_first;
        if settled {
            let moves = policy.addresses.moves(delta.moved, census);
            return Self { moves, renamed: delta.renamed.into_iter().collect(), settled };
        }
        let places: BTreeSet<Place> =
            policy.addresses.places().chain(census.places().map(|(place, _)| place)).collect();
        Self { moves: policy.addresses.moves(places, census), renamed: HashMap::new(), settled }
    }

    /// Each class that gets another meaning can be rewritten where it stands: nobody has to leave it first, and no other
    /// has that meaning.
    pub(super) fn is_simple<T>(&self, policy: &PolicyTables<T>) -> bool {
        if self.renamed.is_empty() || !self.settled {
            return self.settled;
        }
        let classes = &policy.classes;
        let ids: Option<BTreeSet<u32>> = self.renamed.keys().map(|old| classes.get(old)).collect();
        ids.is_some_and(|ids| {
            self.moves.iter().all(|m| !ids.contains(&m.from))
                && self.renamed.values().all(|new| classes.get(new).is_none_or(|id| ids.contains(&id)))
        })
    }
}

impl<T: Tables> PolicyTables<T> {
    pub(super) fn direct(
        &mut self,
        census: &Census,
        update: &Update,
        desired: &BTreeMap<Ipv4Addr, Desired>,
    ) -> Result<Outcome, T::Error> {
        let renamed: Vec<(u32, &Class)> =
            update.renamed.iter().filter_map(|(old, new)| Some((self.classes.get(old)?, new))).collect();
        for (id, _) in &renamed {
            self.classes.unname(*id);
        }
        let mut changed: BTreeMap<u32, Class> = BTreeMap::new();
        for (id, class) in renamed {
            self.classes.name(class, id);
            changed.insert(id, class.clone());
        }
        for arriving in update.moves.iter().filter(|m| m.stays) {
            if let Some((id, true)) = self.classes.ensure(&arriving.to) {
                changed.insert(id, arriving.to.clone());
            }
        }
        if let Some(last) = changed.keys().last() {
            self.sets.reserve(&mut self.tables, *last)?;
        }
        let mut refused = Refusals::new();
        let mut planned = Vec::new();
        let mut all = None;
        for set in distinct_sets(desired) {
            let outcome = if self.sets.id(set).is_none() {
                let all = all.get_or_insert_with(|| self.named_classes());
                self.sets.add(&mut self.tables, set, all)?
            } else if changed.is_empty() {
                Ok(())
            } else {
                self.sets.plan(&mut self.tables, set, &changed)?.map(|id| planned.extend(id))
            };
            if let Err(reason) = outcome {
                refused.insert(set.clone(), reason);
            }
        }
        if !refused.is_empty() {
            return Ok(Outcome::Refused(refused));
        }
        self.sets.install(&mut self.tables)?;
        let targets = self.targets(census, desired);
        self.close(&targets)?;

        // Before anybody comes into a class, it means what it is to mean.
        let mut dirty = BTreeSet::new();
        for id in planned {
            if self.sets.rewrites(id, |class| self.addresses.population(class) > 0) {
                dirty.insert(id);
            }
            self.sets.write(&mut self.tables, id)?;
        }
        let mut turns = BTreeSet::new();
        for Move { place, from, to, .. } in to_put(&update.moves) {
            let class = self.classes.get(to).unwrap_or(CLOSED);
            turns.insert((*from, class));
            self.addresses.put(&mut self.tables, *place, class)?;
        }
        for place in to_remove(&update.moves, &self.addresses) {
            let old = self.addresses.at(place).unwrap_or(0);
            self.addresses.remove(&mut self.tables, place)?;
            turns.insert((old, self.addresses.fallback(place)));
        }
        let turns = turns.into_iter().filter(|(old, new)| old != new);
        dirty.extend(turns.flat_map(|(old, new)| self.sets.telling_apart(old, new)));
        Ok(Outcome::Done(self.settle(&targets, &dirty, &BTreeSet::new())?))
    }

    pub(super) fn staged(
        &mut self,
        census: &Census,
        update: &Update,
        desired: &BTreeMap<Ipv4Addr, Desired>,
        mut flipped: BTreeSet<Ipv4Addr>,
    ) -> Result<Outcome, T::Error> {
        let meant = self.forget_touched(update);
        let (assigned, resting) = self.assign(update, &meant)?;
        let contents: BTreeMap<u32, Class> = assigned
            .iter()
            .filter(|(_, id)| **id != CLOSED)
            .map(|((_, class), id)| (*id, class.clone()))
            .collect();

        let mut refused = Refusals::new();
        let mut dirty: BTreeSet<u32> = BTreeSet::new();
        let mut superseded = Vec::new();
        let mut all = None;
        for set in distinct_sets(desired) {
            let outcome = if self.sets.id(set).is_none() {
                let all = all.get_or_insert_with(|| self.all_classes(&contents));
                self.sets.add(&mut self.tables, set, all)?
            } else {
                match self.sets.plan(&mut self.tables, set, &contents)? {
                    Ok(Some(id)) if self.changes_hands(set, id, desired) => {
                        // Who comes must not meet the old columns, and who goes must not meet the new ones.
                        self.sets.drop_plan(id);
                        superseded.push(id);
                        let all = all.get_or_insert_with(|| self.all_classes(&contents));
                        self.sets.add(&mut self.tables, set, all)?
                    }
                    planned => planned.map(|id| dirty.extend(id)),
                }
            };
            if let Err(reason) = outcome {
                refused.insert(set.clone(), reason);
            }
        }
        if !refused.is_empty() {
            return Ok(Outcome::Refused(refused));
        }
        self.sets.install(&mut self.tables)?;
        for id in superseded {
            self.sets.supersede(id);
        }
        let targets = self.targets(census, desired);

        // Refine.
        for Move { place, from, to, .. } in &update.moves {
            self.addresses.put(&mut self.tables, *place, assigned[&(*from, to.clone())])?;
        }
        // Flip.
        self.close(&targets)?;
        flipped.extend(self.flip(&targets)?);
        for set in &dirty {
            self.sets.write(&mut self.tables, *set)?;
        }
        let unplaced = self.settle(&targets, &dirty, &flipped)?;
        // Coarsen.
        let common = self.common(&contents, &meant, &resting);
        for Move { place, to, .. } in to_put(&update.moves) {
            self.addresses.put(&mut self.tables, *place, common.get(to).copied().unwrap_or(CLOSED))?;
        }
        for place in to_remove(&update.moves, &self.addresses) {
            self.addresses.remove(&mut self.tables, place)?;
        }
        for id in std::mem::take(&mut self.unnamed) {
            if let Some(class) = contents.get(&id).filter(|_| self.addresses.population(id) > 0) {
                self.classes.name(class, id);
            } else {
                self.classes.pool().give_back(id);
                self.freed.push(id);
            }
        }
        Ok(Outcome::Done(unplaced))
    }

    /// Classes that the update concerns mean nothing certain from now on; what they meant.
    fn forget_touched(&mut self, update: &Update) -> BTreeMap<u32, Class> {
        let moving = update.moves.iter().map(|m| m.from);
        let renamed = update.renamed.keys().filter_map(|old| self.classes.get(old));
        let mut touched: BTreeSet<u32> = moving.chain(renamed).filter(|id| *id != 0).collect();
        if !update.settled {
            touched.extend(self.classes.iter().map(|(id, _)| id));
        }
        let meant: BTreeMap<u32, Class> =
            touched.into_iter().filter_map(|id| Some((id, self.classes.unname(id)?))).collect();
        self.unnamed.extend(meant.keys());
        meant
    }

    /// A class for each pair of old class and new content, judged by the sets in the kernel as the old class is; and
    /// those of them that addresses are in which do not move.
    fn assign(
        &mut self,
        update: &Update,
        meant: &BTreeMap<u32, Class>,
    ) -> Result<(Assigned, BTreeSet<u32>), T::Error> {
        let mut groups: BTreeMap<(u32, Class), usize> = [((0, Class::default()), 0)].into();
        let mut leaving: HashMap<u32, usize> = HashMap::new();
        for Move { place, from, to, .. } in &update.moves {
            *groups.entry((*from, to.clone())).or_default() += 1;
            if self.addresses.at(*place).is_some() {
                *leaving.entry(*from).or_default() += 1;
            }
        }
        // One content keeps the id: that of addresses which do not move, else what it meant before, else that of the most.
        let mut keepers: BTreeMap<u32, ((bool, bool, usize), Class)> = BTreeMap::new();
        let mut resting = BTreeSet::new();
        for (id, old) in meant {
            if self.addresses.population(*id) > leaving.get(id).copied().unwrap_or(0) {
                let content = update.renamed.get(old).unwrap_or(old);
                resting.insert(*id);
                keepers.insert(*id, ((true, true, 0), content.clone()));
            }
        }
        for ((from, to), size) in groups.iter().filter(|((from, _), _)| self.unnamed.contains(from)) {
            let claim = (false, meant.get(from) == Some(to), *size);
            match keepers.get_mut(from) {
                Some((best, _)) if *best >= claim => {}
                Some(keeper) => *keeper = (claim, to.clone()),
                None => drop(keepers.insert(*from, (claim, to.clone()))),
            }
        }
        let mut assigned: Assigned = keepers.into_iter().map(|(id, (_, class))| ((id, class), id)).collect();
        assigned.insert((0, Class::default()), 0);
        let mut by_content: HashMap<Class, Vec<u32>> = HashMap::new();
        for ((_, class), id) in &assigned {
            by_content.entry(class.clone()).or_default().push(*id);
        }
        // A new class and the one that it is judged as.
        let mut copies: BTreeMap<u32, u32> = BTreeMap::new();
        for (from, to) in groups.into_keys() {
            if assigned.contains_key(&(from, to.clone())) {
                continue;
            }
            let others =
                by_content.entry(to.clone()).or_insert_with(|| self.classes.get(&to).into_iter().collect());
            let judged_as = |id: &u32| copies.get(id).copied().unwrap_or(*id);
            let alike =
                others.iter().find(|id| self.sets.telling_apart(from, judged_as(id)).next().is_none());
            let id = if let Some(id) = alike {
                *id
            } else if let Some(id) = self.classes.pool().take() {
                self.unnamed.insert(id);
                copies.insert(id, from);
                others.push(id);
                id
            } else {
                CLOSED
            };
            assigned.insert((from, to), id);
        }
        if let Some(last) = assigned.values().filter(|id| **id != CLOSED).max() {
            self.sets.reserve(&mut self.tables, *last)?;
        }
        self.sets.copy_columns(&mut self.tables, &copies)?;
        Ok((assigned, resting))
    }

    /// The one class for each content.
    fn common(
        &self,
        contents: &BTreeMap<u32, Class>,
        meant: &BTreeMap<u32, Class>,
        resting: &BTreeSet<u32>,
    ) -> HashMap<Class, u32> {
        let claim = |id: &u32, class: &Class| {
            let stands = resting.contains(id) || self.classes.get(class) == Some(*id);
            (stands, meant.get(id) == Some(class))
        };
        let mut common: HashMap<Class, u32> = HashMap::new();
        for (id, class) in contents {
            match common.get_mut(class) {
                Some(best) if claim(best, class) >= claim(id, class) => {}
                Some(best) => *best = *id,
                None => drop(common.insert(class.clone(), *id)),
            }
        }
        for (class, id) in &mut common {
            // One that the update does not concern has it already.
            if let Some(named) = self.classes.get(class)
                && !resting.contains(id)
            {
                *id = named;
            }
        }
        common
    }

    /// Classes whose meaning is known; that of all other addresses among them.
    fn named_classes(&self) -> BTreeMap<u32, Class> {
        let named = self.classes.iter().map(|(id, class)| (id, class.clone()));
        named.chain([(0, Class::default())]).collect()
    }

    fn all_classes(&self, contents: &BTreeMap<u32, Class>) -> BTreeMap<u32, Class> {
        let mut all = self.named_classes();
        all.extend(contents.iter().map(|(id, class)| (*id, class.clone())));
        all
    }

    /// Some endpoint that is there and stays begins or ceases to use the set.
    fn changes_hands(&self, set: &Arc<PolicySet>, id: u32, desired: &BTreeMap<Ipv4Addr, Desired>) -> bool {
        let moves = |want: &Desired, has: &canal_common::endpoint::EndpointPolicy| {
            (want.ingress == *set) != (has.ingress_set == id)
                || (want.egress == *set) != (has.egress_set == id)
        };
        self.endpoints
            .iter()
            .any(|(addr, has)| desired.get(addr).is_some_and(|want| moves(want, &has.policy)))
    }
}
