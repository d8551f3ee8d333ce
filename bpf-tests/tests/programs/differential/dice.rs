//! Choices that look random and follow from a seed.

use serde_json::Value;

pub(super) struct Dice(pub(super) u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        // Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators (OOPSLA 2014), as in Java.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        (self.roll() % limit as u64) as usize
    }

    pub(super) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// One of several texts, as JSON.
    pub(super) fn text(&mut self, from: &[&str]) -> Value {
        self.pick(from).into()
    }

    /// One of several JSON values.
    pub(super) fn value(&mut self, from: &[Value]) -> Value {
        from[self.below(from.len())].clone()
    }

    /// Puts a field into an object, sometimes.
    pub(super) fn maybe(
        &mut self,
        percent: usize,
        object: &mut Value,
        field: &str,
        value: impl FnOnce(&mut Self) -> Value,
    ) {
        if self.chance(percent) {
            object[field] = value(self);
        }
    }

    pub(super) fn list(&mut self, most: usize, item: impl Fn(&mut Self) -> Value) -> Value {
        let length = 1 + self.below(most);
        (0..length).map(|_| item(self)).collect()
    }
}
