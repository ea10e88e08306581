//! Disjoint stretches of addresses, which merge where they touch.

use std::collections::BTreeMap;

/// A set of addresses, held as stretches: start to length.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub(super) struct Stretches(BTreeMap<u64, u64>);

impl Stretches {
    /// Whether an address is in the set.
    pub(super) fn contains(&self, at: u64) -> bool {
        self.0.range(..=at).next_back().is_some_and(|(&start, &len)| at - start < len)
    }

    /// Adds `len` addresses from `start` on.
    pub(super) fn insert(&mut self, mut start: u64, mut len: u64) {
        if len == 0 {
            return;
        }
        if let Some((&before, &before_len)) = self.0.range(..=start).next_back()
            && before + before_len >= start
        {
            let end = (start + len).max(before + before_len);
            self.0.remove(&before);
            start = before;
            len = end - before;
        }
        while let Some((&after, &after_len)) = self.0.range(start..).next()
            && after <= start + len
        {
            self.0.remove(&after);
            len = (start + len).max(after + after_len) - start;
        }
        self.0.insert(start, len);
    }

    /// Takes `len` addresses from `start` on out.
    pub(super) fn remove(&mut self, start: u64, len: u64) {
        if len == 0 {
            return;
        }
        let end = start.saturating_add(len);
        if let Some((&before, &before_len)) = self.0.range(..start).next_back()
            && before + before_len > start
        {
            self.0.insert(before, start - before);
            if before + before_len > end {
                self.0.insert(end, before + before_len - end);
            }
        }
        while let Some((&inside, &inside_len)) = self.0.range(start..end).next() {
            self.0.remove(&inside);
            if inside + inside_len > end {
                self.0.insert(end, inside + inside_len - end);
            }
        }
    }

    /// How many addresses are in the set.
    pub(super) fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_a_set_of_addresses(ops in prop::collection::vec((any::<bool>(), 0u64..64, 0u64..16), 1..60)) {
            let mut stretches = Stretches::default();
            let mut model = std::collections::BTreeSet::new();
            for (add, start, len) in ops {
                if add {
                    stretches.insert(start, len);
                    model.extend(start..start + len);
                } else {
                    stretches.remove(start, len);
                    model.retain(|&at| at < start || at >= start + len);
                }
                prop_assert_eq!(stretches.total(), model.len() as u64);
                for at in 0..80 {
                    prop_assert_eq!(stretches.contains(at), model.contains(&at));
                }
                // Stretches neither touch nor overlap: the set has one form.
                let ends = stretches.0.iter().map(|(&start, &len)| start + len);
                let next = stretches.0.keys().skip(1);
                prop_assert!(ends.zip(next).all(|(end, &next)| end < next));
            }
        }
    }
}
