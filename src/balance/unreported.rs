//! What was sent to a server of which its latest load cannot know yet: it was opened after that was told.

use std::collections::VecDeque;

use crate::route::ModelName;

/// Of what was sent to one server so much is remembered until its load has it: some thousand a round trip.
const MAX: usize = 1024;

/// What was sent to a server, in the order in which it was opened.
#[derive(Debug, Default)]
pub(super) struct Unreported(VecDeque<Sent>);

#[derive(Debug)]
struct Sent {
    /// So many had been opened there by then. Of two that are opened at once both may say the same.
    number: u64,
    model: ModelName,
    /// What it counts: less where it queues elsewhere too.
    weight: f64,
}

// === impl Unreported ===

impl Unreported {
    /// Something for this model was opened there as number `number`, or queues there with so many tickets in all.
    pub(super) fn sent(&mut self, number: u64, model: &ModelName, copies: u8) {
        if self.0.len() >= MAX {
            self.0.pop_front();
        }
        self.0.push_back(Sent { number, model: model.clone(), weight: 1.0 / f64::from(copies.max(1)) });
    }

    /// What was sent for this model that a load does not know of which counts `counted` of the `opened`.
    pub(super) fn of(&mut self, model: &ModelName, counted: u64, opened: u64) -> f64 {
        while self.0.front().is_some_and(|sent| sent.number <= counted) {
            self.0.pop_front();
        }
        // Given up before it was opened: its number is free again.
        while self.0.back().is_some_and(|sent| sent.number > opened) {
            self.0.pop_back();
        }
        self.0.iter().filter(|sent| sent.model == *model).map(|sent| sent.weight).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_load_counts_is_not_counted_again() {
        let (mut unreported, model) = (Unreported::default(), ModelName::new("m"));
        (1..=3).for_each(|number| unreported.sent(number, &model, 1));
        unreported.sent(4, &model, 2);
        unreported.sent(5, &ModelName::new("other"), 1);
        assert_eq!(unreported.of(&model, 0, 5), 3.5);
        assert_eq!(unreported.of(&model, 2, 5), 1.5);
        assert_eq!(unreported.of(&model, 5, 5), 0.0);
    }

    #[test]
    fn what_was_given_up_before_it_was_opened_was_never_sent() {
        let (mut unreported, model, other) = (Unreported::default(), ModelName::new("m"), ModelName::new("other"));
        unreported.sent(7, &model, 1);
        assert_eq!(unreported.of(&model, 6, 6), 0.0);
        unreported.sent(7, &other, 1);
        assert_eq!((unreported.of(&model, 6, 7), unreported.of(&other, 6, 7)), (0.0, 1.0));
    }

    #[test]
    fn it_is_bounded() {
        let (mut unreported, model) = (Unreported::default(), ModelName::new("m"));
        (1..10_000).for_each(|number| unreported.sent(number, &model, 1));
        assert_eq!(unreported.of(&model, 0, 10_000), MAX as f64);
    }
}
