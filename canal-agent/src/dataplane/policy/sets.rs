//! Policy sets in the kernel: an array each, class → row.
//!
//! Owns: set ids, columns, and through them the rows. Does not: decide when a column may change.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    Limits,
    ids::{Pool, Prefer},
    rows::{RowError, Rows},
};
use crate::{
    compile::{Aspect, Class, PolicySet},
    dataplane::tables::Tables,
};

#[derive(Debug)]
pub(super) struct Sets {
    pool: Pool,
    rows: Rows,
    live: BTreeMap<u32, LiveSet>,
    /// Arrays that nothing points at, as they were left: another set gets in without a new array, whose place in the
    /// table would cost a grace period of RCU.
    idle: BTreeMap<u32, Idle>,
    by_policy: HashMap<Arc<PolicySet>, u32>,
    /// New sets that are to be written together, with their columns.
    coming: Vec<(u32, Vec<u32>)>,
    /// Set → columns that are to be written, (class, row); the rows stand and are held.
    planned: BTreeMap<u32, Vec<(u32, u32)>>,
    /// A set has gone since [`Sets::take_relief`], with what it used.
    relief: bool,
    /// Rows that sets of an earlier process read.
    foreign_rows: Vec<u32>,
}

#[derive(Debug)]
struct LiveSet {
    /// `None`: an earlier process wrote it, and what it means is not known, or another one has taken its place.
    policy: Option<Arc<PolicySet>>,
    /// Class → row; a class without a column is denied.
    columns: BTreeMap<u32, u32>,
    capacity: u32,
}

#[derive(Debug)]
struct Idle {
    /// Class → what was its row.
    columns: BTreeMap<u32, u32>,
    capacity: u32,
}

/// So many more idle arrays than live ones are kept.
const SPARE: usize = 64;

/// Why something cannot be in the kernel.
pub(super) type Refused = String;

/// Sets that cannot be in the kernel.
pub(super) type Refusals = HashMap<Arc<PolicySet>, Refused>;

impl Sets {
    /// `used`: sets that some endpoint has; `rows`: what these lead to.
    pub(super) fn new(
        limits: &Limits,
        sets: BTreeMap<u32, Vec<u32>>,
        used: &BTreeSet<u32>,
        rows: Vec<u32>,
    ) -> Self {
        let mut pool = Pool::new(limits.sets, Prefer::Freed, sets.keys().copied());
        let (mut live, mut idle) = (BTreeMap::new(), BTreeMap::new());
        for (id, columns) in sets {
            let capacity = u32::try_from(columns.len()).unwrap_or(u32::MAX);
            let columns = (0..).zip(columns).filter(|(_, row)| *row != 0).collect();
            if used.contains(&id) {
                live.insert(id, LiveSet { policy: None, columns, capacity });
            } else {
                idle.insert(id, Idle { columns, capacity });
                pool.give_back(id);
            }
        }
        Self {
            pool,
            live,
            idle,
            rows: Rows::new(limits.rows, rows.iter().copied()),
            by_policy: HashMap::new(),
            coming: Vec::new(),
            relief: false,
            planned: BTreeMap::new(),
            foreign_rows: rows,
        }
    }

    pub(super) fn begin(&mut self) {
        // What an attempt that failed did not come to was never read, and need not rest.
        self.abandon();
        for id in self.planned.keys().copied().collect::<Vec<_>>() {
            self.drop_plan(id);
        }
        self.pool.begin();
        self.rows.begin();
    }

    /// Whether there is more room than at the last call.
    pub(super) fn take_relief(&mut self) -> bool {
        std::mem::take(&mut self.relief)
    }

    pub(super) fn rows(&self) -> &Rows {
        &self.rows
    }

    pub(super) fn len(&self) -> usize {
        self.live.len()
    }

    /// What the set in the kernel is made from, if that is known.
    pub(super) fn policy(&self, id: u32) -> Option<&Arc<PolicySet>> {
        self.live.get(&id)?.policy.as_ref()
    }

    pub(super) fn id(&self, policy: &Arc<PolicySet>) -> Option<u32> {
        self.by_policy.get(policy).copied()
    }

    /// Sets whose verdicts for the two classes differ.
    pub(super) fn telling_apart(&self, one: u32, other: u32) -> impl Iterator<Item = u32> {
        let differs = move |(_, set): &(&u32, &LiveSet)| set.row(one) != set.row(other);
        self.live.iter().filter(differs).map(|(id, _)| *id)
    }

    /// Makes every set judge class `to` as it judges `from`.
    pub(super) fn copy_column<T: Tables>(
        &mut self,
        tables: &mut T,
        from: u32,
        to: u32,
    ) -> Result<(), T::Error> {
        self.reserve(tables, to)?;
        for (id, set) in &mut self.live {
            let row = set.row(from);
            self.rows.share(row);
            set.write(*id, tables, &mut self.rows, to, row)?;
        }
        Ok(())
    }

    /// Makes room in every set for columns up to that of `class`. All sets that grow do so together.
    pub(super) fn reserve<T: Tables>(&mut self, tables: &mut T, class: u32) -> Result<(), T::Error> {
        let capacity = capacity(class);
        let coming: BTreeSet<u32> = self.coming.iter().map(|(id, _)| *id).collect();
        let small = |(id, set): &(&u32, &LiveSet)| set.capacity <= class && !coming.contains(id);
        let grown: Vec<(u32, Vec<u32>)> =
            self.live.iter().filter(small).map(|(id, set)| (*id, dense(&set.columns, capacity))).collect();
        tables.write_sets(&grown)?;
        for (id, _) in grown {
            if let Some(set) = self.live.get_mut(&id) {
                set.capacity = capacity;
            }
        }
        Ok(())
    }

    /// Makes a set that is not in the kernel yet, with a column for each class. It is there after [`Sets::install`].
    pub(super) fn add<T: Tables>(
        &mut self,
        tables: &mut T,
        policy: &Arc<PolicySet>,
        classes: &BTreeMap<u32, Class>,
    ) -> Result<Result<(), Refused>, T::Error> {
        let columns = match acquire(&mut self.rows, tables, policy, classes)? {
            Ok(columns) => columns,
            Err(refused) => return Ok(Err(refused)),
        };
        let rows = columns.clone().into_values();
        let Some(id) = self.pool.take() else {
            rows.for_each(|row| self.rows.release(row));
            return Ok(Err(format!("all {} policy sets are in use", self.pool.limit() - 1)));
        };
        match self.occupy(tables, id, &columns) {
            Ok(capacity) => {
                self.live.insert(id, LiveSet { policy: Some(policy.clone()), columns, capacity });
            }
            Err(error) => {
                rows.for_each(|row| self.rows.release(row));
                self.pool.give_back(id);
                return Err(error);
            }
        }
        self.by_policy.insert(policy.clone(), id);
        Ok(Ok(()))
    }

    /// Writes the columns of a set that nothing points at yet; the answer is how many there is room for.
    fn occupy<T: Tables>(
        &mut self,
        tables: &mut T,
        id: u32,
        columns: &BTreeMap<u32, u32>,
    ) -> Result<u32, T::Error> {
        let wanted = capacity(columns.keys().last().copied().unwrap_or(0));
        let Some(idle) = self.idle.get_mut(&id).filter(|idle| idle.capacity >= wanted) else {
            self.coming.push((id, dense(columns, wanted)));
            return Ok(wanted);
        };
        // Columns of classes that no address is in stay as they are: before one is, its column is written.
        for (class, row) in columns {
            if idle.columns.get(class) != Some(row) {
                tables.write_column(id, *class, *row)?;
                idle.columns.insert(*class, *row);
            }
        }
        let capacity = idle.capacity;
        self.idle.remove(&id);
        Ok(capacity)
    }

    /// Writes the new sets.
    pub(super) fn install<T: Tables>(&mut self, tables: &mut T) -> Result<(), T::Error> {
        if let Err(error) = tables.write_sets(&self.coming) {
            // Some of them may be there: which arrays stand in their places is not known any more.
            for (id, _) in &self.coming {
                self.idle.remove(id);
            }
            self.abandon();
            return Err(error);
        }
        for (id, _) in std::mem::take(&mut self.coming) {
            self.idle.remove(&id);
        }
        Ok(())
    }

    /// Gives up the new sets.
    fn abandon(&mut self) {
        for (id, _) in std::mem::take(&mut self.coming) {
            let Some(set) = self.live.remove(&id) else { continue };
            self.forget_policy(id, set.policy);
            set.columns.into_values().for_each(|row| self.rows.release(row));
            self.pool.give_back(id);
        }
    }

    /// Prepares the columns in which `policy`, which is in the kernel, does not judge the classes as it should; the
    /// set, if there are any.
    pub(super) fn plan<T: Tables>(
        &mut self,
        tables: &mut T,
        policy: &Arc<PolicySet>,
        classes: &BTreeMap<u32, Class>,
    ) -> Result<Result<Option<u32>, Refused>, T::Error> {
        let rows = match acquire(&mut self.rows, tables, policy, classes)? {
            Ok(rows) => rows,
            Err(refused) => return Ok(Err(refused)),
        };
        let id = self.by_policy[policy];
        let set = &self.live[&id];
        let (same, plan): (Vec<_>, Vec<_>) =
            rows.into_iter().partition(|(class, row)| set.columns.get(class) == Some(row));
        for (_, row) in same {
            self.rows.release(row);
        }
        if plan.is_empty() {
            return Ok(Ok(None));
        }
        self.planned.insert(id, plan);
        Ok(Ok(Some(id)))
    }

    /// The set in the kernel is the past from now on, and what was planned for it is not carried out.
    pub(super) fn supersede(&mut self, id: u32) {
        let policy = self.live.get_mut(&id).and_then(|set| set.policy.take());
        self.forget_policy(id, policy);
    }

    /// The set in the kernel stands for the policy no more, unless another one does by now.
    fn forget_policy(&mut self, id: u32, policy: Option<Arc<PolicySet>>) {
        if let Some(policy) = policy
            && self.by_policy.get(&policy) == Some(&id)
        {
            self.by_policy.remove(&policy);
        }
    }

    /// Carries out what was planned for the set.
    pub(super) fn write<T: Tables>(&mut self, tables: &mut T, id: u32) -> Result<(), T::Error> {
        let (Some(set), Some(plan)) = (self.live.get_mut(&id), self.planned.get_mut(&id)) else {
            return Ok(());
        };
        while let Some((class, row)) = plan.pop() {
            set.write(id, tables, &mut self.rows, class, row)?;
        }
        Ok(())
    }

    /// What was planned for the set is not carried out.
    pub(super) fn drop_plan(&mut self, id: u32) {
        for (_, row) in self.planned.remove(&id).into_iter().flatten() {
            self.rows.release(row);
        }
    }

    /// Frees the sets that nothing points at.
    pub(super) fn retire<T: Tables>(&mut self, tables: &mut T, used: &BTreeSet<u32>) -> Result<(), T::Error> {
        let unused: Vec<u32> = self.live.keys().filter(|id| !used.contains(id)).copied().collect();
        for id in unused {
            let Some(set) = self.live.remove(&id) else { continue };
            self.relief = true;
            self.forget_policy(id, set.policy);
            set.columns.values().for_each(|row| self.rows.release(*row));
            self.idle.insert(id, Idle { columns: set.columns, capacity: set.capacity });
            self.pool.give_back(id);
        }
        if self.live.values().all(|set| set.policy.is_some()) {
            self.rows.give_back(std::mem::take(&mut self.foreign_rows));
        }
        // One at a time: each costs a grace period.
        if self.idle.len() > self.live.len() + SPARE
            && let Some(id) = self.idle.keys().next().copied()
        {
            tables.delete_set(id)?;
            self.idle.remove(&id);
        }
        Ok(())
    }

    /// Forgets columns of classes that no address is in.
    pub(super) fn drop_columns(&mut self, classes: &BTreeSet<u32>) {
        for set in self.live.values_mut() {
            for row in classes.iter().filter_map(|class| set.columns.remove(class)) {
                self.rows.release(row);
            }
        }
    }

    /// Some column that is to be written is one that packets may be judged by.
    pub(super) fn rewrites(&self, id: u32, is_read: impl Fn(u32) -> bool) -> bool {
        self.planned.get(&id).is_some_and(|plan| plan.iter().any(|(class, _)| is_read(*class)))
    }

    #[cfg(test)]
    pub(super) fn ids(&self) -> BTreeSet<u32> {
        self.live.keys().copied().collect()
    }

    /// Pages that the columns hold, for the tests.
    #[cfg(test)]
    pub(super) fn roots(&self) -> BTreeSet<u32> {
        self.live.values().flat_map(|set| set.columns.values()).copied().collect()
    }
}

impl LiveSet {
    fn row(&self, class: u32) -> u32 {
        self.columns.get(&class).copied().unwrap_or(0)
    }

    /// Takes over the caller's hold on `row`.
    fn write<T: Tables>(
        &mut self,
        id: u32,
        tables: &mut T,
        rows: &mut Rows,
        class: u32,
        row: u32,
    ) -> Result<(), T::Error> {
        let outcome = if class < self.capacity {
            tables.write_column(id, class, row)
        } else {
            let mut columns = self.columns.clone();
            columns.insert(class, row);
            let capacity = capacity(class);
            tables.write_sets(&[(id, dense(&columns, capacity))]).inspect(|()| self.capacity = capacity)
        };
        let released = if outcome.is_ok() { self.columns.insert(class, row) } else { Some(row) };
        if let Some(row) = released {
            rows.release(row);
        }
        outcome
    }
}

/// The rows of `policy` for all classes, or none of them.
fn acquire<T: Tables>(
    rows: &mut Rows,
    tables: &mut T,
    policy: &Arc<PolicySet>,
    classes: &BTreeMap<u32, Class>,
) -> Result<Result<BTreeMap<u32, u32>, Refused>, T::Error> {
    let mut acquired = BTreeMap::new();
    let mut known: HashMap<Aspect, u32> = HashMap::new();
    for (id, class) in classes {
        let aspect = policy.aspect(class);
        if let Some(row) = known.get(&aspect) {
            rows.share(*row);
            acquired.insert(*id, *row);
            continue;
        }
        let row = policy.row_of(&aspect).map_err(RowError::from);
        let error = match row.and_then(|row| rows.acquire(tables, row)) {
            Ok(row) => {
                acquired.insert(*id, row);
                known.insert(aspect, row);
                continue;
            }
            Err(error) => error,
        };
        for row in acquired.into_values() {
            rows.release(row);
        }
        return match error {
            RowError::Write(error) => Err(error),
            refused => Ok(Err(format!("{}: {refused}", policy.policies().join(", ")))),
        };
    }
    Ok(Ok(acquired))
}

/// Columns to allocate so that `last` fits, with room to grow.
fn capacity(last: u32) -> u32 {
    (last + 1).next_power_of_two().max(64)
}

fn dense(columns: &BTreeMap<u32, u32>, capacity: u32) -> Vec<u32> {
    (0..capacity).map(|class| columns.get(&class).copied().unwrap_or(0)).collect()
}
