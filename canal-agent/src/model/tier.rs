//! Tier: a group of policies with a place among the others and a way out.

use serde::Deserialize;

use super::{
    name,
    policy::Order,
    reading::{Envelope, Reading},
    resource::Resource,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tier {
    pub order: Order,
    /// What meets the end of the tier without a verdict goes on to the next one; otherwise it is denied.
    pub passes: bool,
}

impl Tier {
    /// Stands for a tier that does not exist: after all real ones, and closed.
    pub const MISSING: Self = Self { order: Order::LAST, passes: false };

    pub fn read(resource: &Resource, value: &[u8]) -> Reading<Self> {
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        struct Raw {
            order: Option<f64>,
            default_action: Option<String>,
        }
        if !name::is_label(&resource.name) {
            return Reading::bad(
                "a tier's name is a label of at most 63 lower-case letters, digits and dashes; its policies count as those \
                 of a missing tier",
            );
        }
        match Envelope::parse(value).and_then(|envelope| envelope.spec::<Raw>()) {
            Ok(raw) => Reading::Good(Self {
                order: Order::new(raw.order),
                passes: raw.default_action.is_some_and(|action| action.eq_ignore_ascii_case("pass")),
            }),
            Err(reason) => Reading::bad(reason),
        }
    }
}
