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
    compile::{Class, PolicySet},
    dataplane::tables::Tables,
};

#[derive(Debug)]
pub(super) struct Sets {
    pool: Pool,
    rows: Rows,
    live: BTreeMap<u32, LiveSet>,
    by_policy: HashMap<Arc<PolicySet>, u32>,
    /// Rows that sets of an earlier process read.
    foreign_rows: Vec<u32>,
}

#[derive(Debug)]
struct LiveSet {
    /// `None`: an earlier process wrote it, and what it means is not known.
    policy: Option<Arc<PolicySet>>,
    /// Class → row; a class without a column is denied.
    columns: BTreeMap<u32, u32>,
    capacity: u32,
}

/// Columns that are to be written, (class, row); the rows stand and are held.
pub(super) type Plan = Vec<(u32, u32)>;

/// What cannot be in the kernel, and why.
pub(super) type Refused = String;

impl Sets {
    pub(super) fn new(limits: &Limits, sets: BTreeMap<u32, Vec<u32>>, rows: Vec<u32>) -> Self {
        let pool = Pool::new(limits.sets, Prefer::Fresh, sets.keys().copied());
        let live = sets.into_iter().map(|(id, columns)| {
            let capacity = u32::try_from(columns.len()).unwrap_or(u32::MAX);
            let columns = (0..).zip(columns).filter(|(_, row)| *row != 0).collect();
            (id, LiveSet { policy: None, columns, capacity })
        });
        Self {
            pool,
            live: live.collect(),
            rows: Rows::new(limits.rows, rows.iter().copied()),
            by_policy: HashMap::new(),
            foreign_rows: rows,
        }
    }

    pub(super) fn begin(&mut self) {
        self.pool.begin();
        self.rows.begin();
    }

    pub(super) fn rows(&self) -> &Rows {
        &self.rows
    }

    pub(super) fn len(&self) -> usize {
        self.live.len()
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
        for (id, set) in &mut self.live {
            let row = set.row(from);
            self.rows.share(row);
            set.write(*id, tables, &mut self.rows, to, row)?;
        }
        Ok(())
    }

    /// Writes a set that is not in the kernel yet, with a column for each class.
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
        let capacity = capacity(classes.keys().last().copied().unwrap_or(0));
        if let Err(error) = tables.write_set(id, &dense(&columns, capacity)) {
            rows.for_each(|row| self.rows.release(row));
            self.pool.give_back(id);
            return Err(error);
        }
        self.live.insert(id, LiveSet { policy: Some(policy.clone()), columns, capacity });
        self.by_policy.insert(policy.clone(), id);
        Ok(Ok(()))
    }

    /// Prepares the columns in which `policy`, which is in the kernel, does not judge the classes as it should.
    pub(super) fn plan<T: Tables>(
        &mut self,
        tables: &mut T,
        policy: &Arc<PolicySet>,
        classes: &BTreeMap<u32, Class>,
    ) -> Result<Result<(u32, Plan), Refused>, T::Error> {
        let rows = match acquire(&mut self.rows, tables, policy, classes)? {
            Ok(rows) => rows,
            Err(refused) => return Ok(Err(refused)),
        };
        let id = self.by_policy[policy];
        let set = &self.live[&id];
        let (same, plan): (Plan, Plan) =
            rows.into_iter().partition(|(class, row)| set.columns.get(class) == Some(row));
        for (_, row) in same {
            self.rows.release(row);
        }
        Ok(Ok((id, plan)))
    }

    pub(super) fn write<T: Tables>(&mut self, tables: &mut T, id: u32, plan: Plan) -> Result<(), T::Error> {
        let Some(set) = self.live.get_mut(&id) else { return Ok(()) };
        let mut outcome = Ok(());
        for (class, row) in plan {
            if outcome.is_ok() {
                outcome = set.write(id, tables, &mut self.rows, class, row);
            } else {
                self.rows.release(row);
            }
        }
        outcome
    }

    /// Frees the sets and columns that nothing points at.
    pub(super) fn retire<T: Tables>(
        &mut self,
        tables: &mut T,
        sets: &BTreeSet<u32>,
        classes: &BTreeSet<u32>,
    ) -> Result<(), T::Error> {
        let unused: Vec<u32> = self.live.keys().filter(|id| !sets.contains(id)).copied().collect();
        for id in unused {
            tables.delete_set(id)?;
            let Some(set) = self.live.remove(&id) else { continue };
            set.policy.and_then(|policy| self.by_policy.remove(&policy));
            set.columns.into_values().for_each(|row| self.rows.release(row));
            self.pool.give_back(id);
        }
        for set in self.live.values_mut() {
            let rows = &mut self.rows;
            set.columns.retain(|class, row| {
                let kept = *class == 0 || classes.contains(class);
                if !kept {
                    rows.release(*row);
                }
                kept
            });
        }
        if self.live.values().all(|set| set.policy.is_some()) {
            self.rows.give_back(std::mem::take(&mut self.foreign_rows));
        }
        Ok(())
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
            tables.write_set(id, &dense(&columns, capacity)).inspect(|()| self.capacity = capacity)
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
    for (id, class) in classes {
        let error = match rows.acquire(tables, &policy.row(class)) {
            Ok(row) => {
                acquired.insert(*id, row);
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
