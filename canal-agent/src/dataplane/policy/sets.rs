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
    rows::{Remembered, RowError, Rows},
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
    /// Columns, as in [`LiveSet`], of arrays that nothing points at, as they were left: another set gets in without a new
    /// array, whose place in the table would cost a grace period of RCU.
    idle: BTreeMap<u32, Vec<u32>>,
    by_policy: HashMap<Arc<PolicySet>, u32>,
    /// New sets that are to be written together, with their columns.
    coming: Vec<(u32, Vec<u32>)>,
    /// Set → columns that are to be written; the rows stand and are held.
    planned: BTreeMap<u32, Vec<Column>>,
    /// A set has gone since [`Sets::take_relief`], with what it used.
    relief: bool,
    /// Rows that sets of an earlier process read.
    foreign_rows: Vec<u32>,
}

#[derive(Debug)]
struct LiveSet {
    /// `None`: an earlier process wrote it, and what it means is not known, or another one has taken its place.
    policy: Option<Arc<PolicySet>>,
    /// Class → row, as long as the array is. 0: the class is denied, or no address is in it, and the kernel may still
    /// have what it was.
    columns: Vec<u32>,
    known: KnownRows,
}

/// Rows that a set has come to, by what they depend on: most changes in the cluster lead to one of these.
type KnownRows = HashMap<Aspect, Remembered>;

/// So many more idle arrays than live ones are kept.
const SPARE: usize = 64;

/// Class and row.
type Column = (u32, u32);

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
            if used.contains(&id) {
                live.insert(id, LiveSet { policy: None, columns, known: KnownRows::new() });
            } else {
                idle.insert(id, columns);
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

    pub(super) fn rest(&self) -> bool {
        self.pool.rests() || self.rows.rest()
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

    /// Makes every set judge each class `to` as it judges `from`, (to, from) each. There is room for them.
    pub(super) fn copy_columns<T: Tables>(
        &mut self,
        tables: &mut T,
        copies: &BTreeMap<u32, u32>,
    ) -> Result<(), T::Error> {
        for (id, set) in &mut self.live {
            let mut plan: Vec<Column> = copies.iter().map(|(to, from)| (*to, set.row(*from))).collect();
            for (_, row) in &plan {
                self.rows.share(*row);
            }
            let outcome = set.write(*id, tables, &mut self.rows, &mut plan);
            self.rows.release_all(plan.into_iter().map(|(_, row)| row));
            outcome?;
        }
        Ok(())
    }

    /// Makes room in every set for columns up to that of `class`, before one is planned. All sets that grow do so together.
    pub(super) fn reserve<T: Tables>(&mut self, tables: &mut T, class: u32) -> Result<(), T::Error> {
        let coming: BTreeSet<u32> = self.coming.iter().map(|(id, _)| *id).collect();
        let small = |(id, set): &(&u32, &LiveSet)| set.columns.len() <= at(class) && !coming.contains(id);
        let grown: Vec<(u32, Vec<u32>)> =
            self.live.iter().filter(small).map(|(id, set)| (*id, set.grown_for(class))).collect();
        tables.write_sets(&grown)?;
        for (id, columns) in grown {
            if let Some(set) = self.live.get_mut(&id) {
                set.columns = columns;
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
        let mut known = KnownRows::new();
        let rows = match acquire(&mut self.rows, tables, policy, classes, &mut known)? {
            Ok(rows) => rows,
            Err(refused) => return Ok(Err(refused)),
        };
        let Some(id) = self.pool.take() else {
            self.rows.release_all(rows.into_iter().map(|(_, row)| row));
            return Ok(Err(format!("all {} policy sets are in use", self.pool.limit() - 1)));
        };
        match self.occupy(tables, id, &rows) {
            Ok(columns) => {
                drop(self.live.insert(id, LiveSet { policy: Some(policy.clone()), columns, known }));
            }
            Err(error) => {
                self.rows.release_all(rows.into_iter().map(|(_, row)| row));
                self.pool.give_back(id);
                return Err(error);
            }
        }
        self.by_policy.insert(policy.clone(), id);
        Ok(Ok(()))
    }

    /// Writes a set that nothing points at yet; the answer are its columns.
    fn occupy<T: Tables>(&mut self, tables: &mut T, id: u32, rows: &[Column]) -> Result<Vec<u32>, T::Error> {
        let wanted = capacity(rows.last().map_or(0, |(class, _)| *class));
        let Some(idle) = self.idle.get_mut(&id).filter(|idle| idle.len() >= wanted) else {
            let columns = dense(rows, wanted);
            self.coming.push((id, columns.clone()));
            return Ok(columns);
        };
        // Columns of classes that no address is in stay as they are: before one is, its column is written.
        let other: Vec<Column> =
            rows.iter().filter(|(class, row)| idle[at(*class)] != *row).copied().collect();
        // After an error it is not known which of them are written.
        for (class, _) in &other {
            idle[at(*class)] = 0;
        }
        tables.write_columns(id, &other).map_err(|(_, error)| error)?;
        let size = idle.len();
        self.idle.remove(&id);
        Ok(dense(rows, size))
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
            self.rows.release_all(set.columns);
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
        let Some((id, set)) = self.by_policy.get(policy).and_then(|id| Some((*id, self.live.get_mut(id)?)))
        else {
            return Ok(Ok(None));
        };
        if set.known.len() > set.columns.len() {
            set.known.clear();
        }
        let rows = match acquire(&mut self.rows, tables, policy, classes, &mut set.known)? {
            Ok(rows) => rows,
            Err(refused) => return Ok(Err(refused)),
        };
        let (same, plan): (Vec<_>, Vec<_>) =
            rows.into_iter().partition(|(class, row)| set.row(*class) == *row);
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
        set.write(id, tables, &mut self.rows, plan)
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
            self.rows.release_all(set.columns.iter().copied());
            self.idle.insert(id, set.columns);
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
            for class in classes {
                if let Some(column) = set.columns.get_mut(at(*class)) {
                    self.rows.release(std::mem::take(column));
                }
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
        self.live.values().flat_map(|set| &set.columns).copied().filter(|row| *row != 0).collect()
    }
}

impl LiveSet {
    fn row(&self, class: u32) -> u32 {
        self.columns.get(at(class)).copied().unwrap_or(0)
    }

    /// Its columns with room for that of `class`.
    fn grown_for(&self, class: u32) -> Vec<u32> {
        let mut columns = self.columns.clone();
        columns.resize(capacity(class).max(columns.len()), 0);
        columns
    }

    /// Takes over the caller's hold on the rows of `plan`, for whose classes there is room, and empties it.
    fn write<T: Tables>(
        &mut self,
        id: u32,
        tables: &mut T,
        rows: &mut Rows,
        plan: &mut Vec<Column>,
    ) -> Result<(), T::Error> {
        let (written, outcome) = match tables.write_columns(id, plan) {
            Ok(()) => (plan.len(), Ok(())),
            Err((written, error)) => (written, Err(error)),
        };
        for (class, row) in plan.drain(..written) {
            rows.release(std::mem::replace(&mut self.columns[at(class)], row));
        }
        outcome
    }
}

/// The rows of `policy` for all classes, in their order, or none of them.
fn acquire<T: Tables>(
    rows: &mut Rows,
    tables: &mut T,
    policy: &Arc<PolicySet>,
    classes: &BTreeMap<u32, Class>,
    known: &mut KnownRows,
) -> Result<Result<Vec<Column>, Refused>, T::Error> {
    let mut acquired = Vec::with_capacity(classes.len());
    for (id, class) in classes {
        let aspect = policy.aspect(class);
        if let Some(row) = known.get(&aspect).and_then(|row| rows.acquire_again(*row)) {
            acquired.push((*id, row));
            continue;
        }
        let row = policy.row_of(&aspect).map_err(RowError::from);
        let error = match row.and_then(|row| rows.acquire(tables, row)) {
            Ok(row) => {
                acquired.push((*id, row));
                known.extend(rows.remember(row).map(|row| (aspect, row)));
                continue;
            }
            Err(error) => error,
        };
        rows.release_all(acquired.into_iter().map(|(_, row)| row));
        return match error {
            RowError::Write(error) => Err(error),
            refused => Ok(Err(format!("{}: {refused}", policy.policies().join(", ")))),
        };
    }
    Ok(Ok(acquired))
}

/// Columns to allocate so that `last` fits, with room to grow.
fn capacity(last: u32) -> usize {
    at(last + 1).next_power_of_two().max(64)
}

fn dense(rows: &[Column], size: usize) -> Vec<u32> {
    let mut columns = vec![0; size];
    fill(&mut columns, rows);
    columns
}

fn fill(columns: &mut [u32], rows: &[Column]) {
    for (class, row) in rows {
        columns[at(*class)] = *row;
    }
}

/// The place of a class's column.
fn at(class: u32) -> usize {
    class as usize
}
