//! The questions that are asked, by number.

use std::collections::HashMap;

use crate::{
    compile::{Predicate, index::SelectorIndex},
    model::{Labels, Selector, endpoint::NamedPort},
};

/// The number of a predicate that some wanted set asks. Not reused while some class may still hold it.
pub(super) type Ask = u32;

#[derive(Debug, Default)]
pub(super) struct Asks {
    by_predicate: HashMap<Predicate, (Ask, usize)>,
    by_number: Vec<Option<Predicate>>,
    free: Vec<Ask>,
    index: SelectorIndex,
}

impl Asks {
    pub(super) fn get(&self, ask: Ask) -> &Predicate {
        self.by_number[ask as usize].as_ref().expect("a predicate keeps its number while some class holds it")
    }

    /// One more asks; whether nobody did before.
    pub(super) fn acquire(&mut self, predicate: &Predicate) -> (Ask, bool) {
        if let Some((ask, users)) = self.by_predicate.get_mut(predicate) {
            *users += 1;
            return (*ask, false);
        }
        let ask = self.free.pop().unwrap_or_else(|| {
            self.by_number.push(None);
            u32::try_from(self.by_number.len() - 1).unwrap_or(u32::MAX)
        });
        self.by_number[ask as usize] = Some(predicate.clone());
        self.by_predicate.insert(predicate.clone(), (ask, 1));
        if let Some(selector) = selector(predicate) {
            self.index.insert(ask, selector);
        }
        (ask, true)
    }

    /// One less asks; whether it was the last one. The number stays taken until [`Asks::free`].
    pub(super) fn release(&mut self, ask: Ask) -> bool {
        let predicate = self.get(ask).clone();
        let Some((_, users)) = self.by_predicate.get_mut(&predicate) else { return false };
        *users -= 1;
        if *users > 0 {
            return false;
        }
        self.by_predicate.remove(&predicate);
        self.index.remove(ask);
        true
    }

    /// Nothing holds these any more.
    pub(super) fn free(&mut self, asks: &[Ask]) {
        for ask in asks {
            self.by_number[*ask as usize] = None;
            self.free.push(*ask);
        }
    }

    /// What holds for an owner with these labels and ports, ascending.
    pub(super) fn held(&self, labels: &Labels, ports: &[NamedPort]) -> Vec<Ask> {
        let mut held = self.index.matches(labels);
        held.retain(|ask| declares(ports, self.get(*ask)));
        held
    }
}

/// The predicate holds for an owner with these labels and ports; of a CIDR it does not.
pub(super) fn holds(labels: &Labels, ports: &[NamedPort], predicate: &Predicate) -> bool {
    selector(predicate).is_some_and(|selector| selector.matches(labels)) && declares(ports, predicate)
}

fn selector(predicate: &Predicate) -> Option<&Selector> {
    match predicate {
        Predicate::Net(_) => None,
        Predicate::Selector(selector) => Some(selector),
        Predicate::Port(port) => Some(&port.selector),
    }
}

/// What is asked beyond the selector.
fn declares(ports: &[NamedPort], predicate: &Predicate) -> bool {
    match predicate {
        Predicate::Port(wanted) => ports
            .iter()
            .any(|p| (p.protocol, p.port) == (wanted.protocol, wanted.port) && *p.name == *wanted.name),
        Predicate::Net(_) | Predicate::Selector(_) => true,
    }
}
