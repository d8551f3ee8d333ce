//! Everything or nothing: what was done, so that it can be undone.

/// Steps back, taken in reverse unless the whole succeeds.
#[derive(Default)]
pub(super) struct Undo<'a> {
    steps: Vec<Step<'a>>,
}

type Step<'a> = Box<dyn FnOnce() -> Result<(), String> + 'a>;

impl<'a> Undo<'a> {
    /// Notes how to undo what is about to be done, or was just done.
    pub(super) fn push(&mut self, step: impl FnOnce() -> Result<(), String> + 'a) {
        self.steps.push(Box::new(step));
    }

    /// Goes back to the beginning; what cannot be undone does not stop the rest, and is returned.
    pub(super) fn back(self) -> Vec<String> {
        self.steps.into_iter().rev().filter_map(|step| step().err()).collect()
    }
}
