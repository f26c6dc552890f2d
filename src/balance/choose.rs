//! Which server gets a request that takes no slot: whoever has the least to do. A pure function of what is known of each.
//!
//! What takes a slot goes by its [score](super::score).

use std::sync::Arc;

use super::members::Member;

/// What the choice knows of one eligible server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Requests in flight there, everyone's: our own not yet over, and what its report says beyond them.
    pub load: u32,
    /// Whether it is this machine's own gate: at a tie, what needs no network wins.
    pub local: bool,
    /// Whether it failed a moment ago. A server that fails fast looks idle and would draw everything, so it
    /// comes after all that did not.
    pub stumbled: bool,
}

/// The index of the candidate to take; `None` if there is none. `tie` decides between equals: a random number, so that
/// many users with the same view do not all run to the same server.
pub fn choose(candidates: &[Candidate], tie: usize) -> Option<usize> {
    let rank = |c: &Candidate| (c.stumbled, c.load, !c.local);
    let best = candidates.iter().map(rank).min()?;
    let equals: Vec<usize> =
        candidates.iter().enumerate().filter(|(_, c)| rank(c) == best).map(|(index, _)| index).collect();
    equals.get(tie.checked_rem(equals.len())?).copied()
}

/// The one with the least to do.
pub(super) fn least_busy(candidates: &[Arc<Member>]) -> Option<Arc<Member>> {
    let known: Vec<_> = candidates.iter().map(|member| member.candidate()).collect();
    candidates.get(choose(&known, rand::random_range(0..=usize::MAX >> 1))?).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (0u32..5, any::<bool>(), any::<bool>()).prop_map(|(load, local, stumbled)| Candidate {
            load,
            local,
            stumbled,
        });
        prop::collection::vec(one, 0..8)
    }

    proptest! {
        #[test]
        fn nobody_is_better_than_the_chosen(candidates in candidates(), tie: usize) {
            match choose(&candidates, tie) {
                None => prop_assert!(candidates.is_empty()),
                Some(chosen) => {
                    let chosen = candidates[chosen];
                    for other in &candidates {
                        prop_assert!(!chosen.stumbled || other.stumbled, "one that failed before one that did not");
                        if chosen.stumbled == other.stumbled {
                            prop_assert!(chosen.load <= other.load);
                            if chosen.load == other.load {
                                prop_assert!(chosen.local || !other.local);
                            }
                        }
                    }
                }
            }
        }

        #[test]
        fn more_load_never_attracts(candidates in candidates(), tie: usize, at: prop::sample::Index) {
            prop_assume!(!candidates.is_empty());
            let at = at.index(candidates.len());
            let before = choose(&candidates, tie);
            let mut heavier = candidates.clone();
            heavier[at].load += 1;
            if choose(&heavier, tie) == Some(at) {
                // It may only be chosen if it still is one of the best, and then it was one before.
                let best = |c: &[Candidate]| (0..64).filter_map(|t| choose(c, t)).collect::<std::collections::BTreeSet<_>>();
                prop_assert!(best(&candidates).contains(&at));
            }
            prop_assert!(before.is_some());
        }
    }

    #[test]
    fn equals_are_all_drawn() {
        let equal = Candidate { load: 1, local: false, stumbled: false };
        let drawn: std::collections::BTreeSet<_> = (0..9).filter_map(|tie| choose(&[equal; 3], tie)).collect();
        assert_eq!(drawn.len(), 3);
    }
}
