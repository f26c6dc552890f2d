//! What each caller has of its own, so that nobody can take all there is.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// One for each: made for who comes, and forgotten once nobody has it any more.
#[derive(Debug)]
pub(crate) struct Each<K, V>(Mutex<HashMap<K, Weak<V>>>);

// === impl Each ===

impl<K: Eq + Hash, V> Each<K, V> {
    /// This one's; `new` if nothing of it is here.
    pub(crate) fn of(&self, key: K, new: impl FnOnce() -> V) -> Arc<V> {
        let mut of = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(its) = of.get(&key).and_then(Weak::upgrade) {
            return its;
        }
        // Amortised: each sweep is paid for by the entries that came since the last.
        if of.len() == of.capacity() {
            of.retain(|_, its| its.strong_count() > 0);
        }
        let its = Arc::new(new());
        of.insert(key, Arc::downgrade(&its));
        its
    }
}

impl<K, V> Default for Each<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_one_for_each_as_long_as_anybody_has_it() {
        let each = Each::default();
        let one = each.of(1, || "first");
        assert_eq!((*each.of(1, || "second"), *each.of(2, || "other")), ("first", "other"));
        drop(one);
        assert_eq!(*each.of(1, || "second"), "second");
    }

    #[test]
    fn who_has_left_is_forgotten() {
        let each = Each::default();
        for n in 0..10_000 {
            drop(each.of(n, || n));
        }
        assert!(each.0.lock().unwrap().len() < 10);
    }
}
