//! Choices that look random and follow from a seed.

use serde_json::Value;

pub struct Dice(pub u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        // Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators (OOPSLA 2014), as in Java.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    #[expect(clippy::cast_possible_truncation, reason = "it is less than the limit")]
    pub fn below(&mut self, limit: usize) -> usize {
        (self.roll() % limit as u64) as usize
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// One of several texts, as JSON.
    pub fn text(&mut self, from: &[&str]) -> Value {
        self.pick(from).into()
    }

    /// One of several JSON values.
    pub fn value(&mut self, from: &[Value]) -> Value {
        from[self.below(from.len())].clone()
    }

    /// Puts a field into an object, sometimes.
    pub fn maybe(
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

    pub fn list(&mut self, most: usize, item: impl Fn(&mut Self) -> Value) -> Value {
        let length = 1 + self.below(most);
        (0..length).map(|_| item(self)).collect()
    }
}
