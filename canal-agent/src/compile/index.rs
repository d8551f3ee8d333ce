//! Which of many selectors match some labels, without trying them all: a selector is filed under something
//! that labels must have for it to match, and only what is filed under the labels at hand is tried.

use std::collections::HashMap;

use crate::model::{Labels, Selector, selector::Requirement};

#[derive(Default)]
pub(super) struct SelectorIndex<'a> {
    selectors: Vec<&'a Selector>,
    by_pair: HashMap<(&'a str, &'a str), Vec<usize>>,
    by_label: HashMap<&'a str, Vec<usize>>,
    others: Vec<usize>,
}

impl<'a> SelectorIndex<'a> {
    pub(super) fn new(selectors: impl IntoIterator<Item = &'a Selector>) -> Self {
        let mut index = Self::default();
        for (id, selector) in selectors.into_iter().enumerate() {
            index.selectors.push(selector);
            match selector.requirement() {
                Requirement::OneOf(pairs) => {
                    for pair in pairs {
                        index.by_pair.entry(pair).or_default().push(id);
                    }
                }
                Requirement::Label(label) => index.by_label.entry(label).or_default().push(id),
                Requirement::Nothing => index.others.push(id),
            }
        }
        index
    }

    /// Positions of the matching selectors, ascending.
    pub(super) fn matches(&self, labels: &Labels) -> Vec<usize> {
        let filed = labels.iter().flat_map(|(label, value)| {
            let pairs = self.by_pair.get(&(label.as_str(), value.as_str()));
            pairs.into_iter().chain(self.by_label.get(label.as_str())).flatten()
        });
        let mut found: Vec<usize> = filed.chain(&self.others).copied().collect();
        found.sort_unstable();
        found.dedup();
        found.retain(|id| self.selectors[*id].matches(labels));
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
        fn the_index_finds_what_trying_all_finds(
            texts in proptest::collection::vec(any_selector(), 0..12),
            labels in any_labels(),
        ) {
            let selectors: Vec<Selector> = texts.iter().map(|text| Selector::parse(text).unwrap()).collect();
            let all = (0..selectors.len()).filter(|at| selectors[*at].matches(&labels));
            prop_assert_eq!(SelectorIndex::new(&selectors).matches(&labels), all.collect::<Vec<_>>());
        }
    }
}
