//! Which of many selectors match some labels, without trying them all: a selector is filed under something
//! that labels must have for it to match, and only what is filed under the labels at hand is tried.

use std::collections::{BTreeSet, HashMap};

use crate::model::{Labels, Selector, selector::Requirement};

/// Selectors by number; numbers are the caller's.
#[derive(Debug, Default)]
pub(super) struct SelectorIndex {
    selectors: HashMap<u32, Selector>,
    by_label: HashMap<String, Shelf>,
    others: BTreeSet<u32>,
}

/// What is filed under one label.
#[derive(Debug, Default)]
struct Shelf {
    any_value: BTreeSet<u32>,
    by_value: HashMap<String, BTreeSet<u32>>,
}

impl SelectorIndex {
    pub(super) fn insert(&mut self, id: u32, selector: &Selector) {
        match selector.requirement() {
            Requirement::OneOf(pairs) => {
                for (label, value) in pairs {
                    let shelf = self.by_label.entry(label.to_owned()).or_default();
                    shelf.by_value.entry(value.to_owned()).or_default().insert(id);
                }
            }
            Requirement::Label(label) => {
                self.by_label.entry(label.to_owned()).or_default().any_value.insert(id);
            }
            Requirement::Nothing => _ = self.others.insert(id),
        }
        self.selectors.insert(id, selector.clone());
    }

    pub(super) fn remove(&mut self, id: u32) {
        let Some(selector) = self.selectors.remove(&id) else { return };
        match selector.requirement() {
            Requirement::OneOf(pairs) => pairs.into_iter().for_each(|(label, value)| {
                self.take_down(label, |shelf| {
                    if let Some(filed) = shelf.by_value.get_mut(value) {
                        filed.remove(&id);
                        if filed.is_empty() {
                            shelf.by_value.remove(value);
                        }
                    }
                });
            }),
            Requirement::Label(label) => self.take_down(label, |shelf| _ = shelf.any_value.remove(&id)),
            Requirement::Nothing => _ = self.others.remove(&id),
        }
    }

    fn take_down(&mut self, label: &str, take: impl FnOnce(&mut Shelf)) {
        if let Some(shelf) = self.by_label.get_mut(label) {
            take(shelf);
            if shelf.any_value.is_empty() && shelf.by_value.is_empty() {
                self.by_label.remove(label);
            }
        }
    }

    /// Numbers of the matching selectors, ascending.
    pub(super) fn matches(&self, labels: &Labels) -> Vec<u32> {
        let filed = labels.iter().filter_map(|(label, value)| {
            let shelf = self.by_label.get(label)?;
            Some(shelf.any_value.iter().chain(shelf.by_value.get(value).into_iter().flatten()))
        });
        let mut found: Vec<u32> = filed.flatten().chain(&self.others).copied().collect();
        found.sort_unstable();
        found.dedup();
        found.retain(|id| self.selectors[id].matches(labels));
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::selector::tests::{any_labels, any_selector};

    proptest! {
        #[test]
        fn the_index_finds_what_trying_all_finds_also_after_some_were_removed(
            texts in proptest::collection::vec((any_selector(), any::<bool>()), 0..12),
            labels in any_labels(),
        ) {
            let selectors: Vec<(Selector, bool)> =
                texts.iter().map(|(text, stays)| (Selector::parse(text).unwrap(), *stays)).collect();
            let mut index = SelectorIndex::default();
            for (id, (selector, _)) in (0..).zip(&selectors) {
                index.insert(id, selector);
            }
            for (id, _) in (0..).zip(&selectors).filter(|(_, (_, stays))| !stays) {
                index.remove(id);
            }
            let all = (0..).zip(&selectors).filter(|(_, (selector, stays))| *stays && selector.matches(&labels));
            prop_assert_eq!(index.matches(&labels), all.map(|(id, _)| id).collect::<Vec<u32>>());
            for (id, _) in (0..).zip(&selectors) {
                index.remove(id);
            }
            prop_assert!(index.by_label.is_empty() && index.others.is_empty() && index.selectors.is_empty());
        }
    }
}
