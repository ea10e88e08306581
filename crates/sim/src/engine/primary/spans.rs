//! An interval map: what holds for whole stretches of addresses is kept once per stretch.
//!
//! Neighbours that continue each other are one stretch, so a terabyte that was set up by one call is one entry, and an operation costs
//! as many entries as it meets.

use std::collections::BTreeMap;

/// More stretches than this that are taken out at once may be most of all.
const MANY: usize = 64;

/// A value of a stretch, by its first address; `at` tells what holds further on.
pub(crate) trait Along: Copy + PartialEq {
    /// The value `offset` bytes after the start.
    fn at(self, offset: u64) -> Self;
}

impl Along for () {
    fn at(self, _: u64) -> Self {}
}
impl Along for u64 {
    /// A constant, such as a reference count.
    fn at(self, _: u64) -> Self {
        self
    }
}

/// A stretch and what holds at its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Span<V> {
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) value: V,
}

impl<V: Along> Span<V> {
    pub(crate) fn end(&self) -> u64 {
        self.start + self.len
    }

    /// The part inside `[start, end)`, if any.
    pub(crate) fn clip(&self, start: u64, end: u64) -> Option<Self> {
        let (from, to) = (self.start.max(start), self.end().min(end));
        (from < to).then(|| Span { start: from, len: to - from, value: self.value.at(from - self.start) })
    }
}

/// Disjoint stretches with a value each.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Spans<V>(BTreeMap<u64, (u64, V)>);

impl<V> Default for Spans<V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<V: Along> Spans<V> {
    /// Stretches kept.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The whole stretch around an address.
    pub(crate) fn around(&self, at: u64) -> Option<Span<V>> {
        let (&start, &(len, value)) = self.0.range(..=at).next_back()?;
        (at - start < len).then_some(Span { start, len, value })
    }

    /// What holds at an address.
    pub(crate) fn get(&self, at: u64) -> Option<V> {
        self.around(at).map(|span| span.value.at(at - span.start))
    }

    /// The parts inside `[start, start + len)`, in order.
    pub(crate) fn parts(&self, start: u64, len: u64) -> impl Iterator<Item = Span<V>> + '_ {
        let end = start.saturating_add(len);
        let first = self.around(start).map_or(start, |span| span.start);
        let whole = self.0.range(first..end).map(|(&start, &(len, value))| Span { start, len, value });
        whole.filter_map(move |span| span.clip(start, end))
    }

    /// Whether nothing lies in `[start, start + len)`.
    pub(crate) fn is_free(&self, start: u64, len: u64) -> bool {
        self.parts(start, len).next().is_none()
    }

    /// Whether all of `[start, start + len)` is covered.
    pub(crate) fn covers(&self, start: u64, len: u64) -> bool {
        self.parts(start, len).map(|span| span.len).sum::<u64>() == len
    }

    /// Takes `[start, start + len)` out; what was there, in order.
    pub(crate) fn remove(&mut self, start: u64, len: u64) -> Vec<Span<V>> {
        let end = start.saturating_add(len);
        let removed: Vec<Span<V>> = self.parts(start, len).collect();
        if removed.len() > MANY && removed.len() > self.0.len() / 2 {
            // PERF: what stays is built anew.
            let around = |span: Span<V>| [span.clip(0, start), span.clip(end, u64::MAX)].into_iter().flatten();
            let kept = self.0.iter().flat_map(|(&start, &(len, value))| around(Span { start, len, value }));
            self.0 = kept.map(|span| (span.start, (span.len, span.value))).collect();
            return removed;
        }
        for part in &removed {
            let Some(whole) = self.around(part.start) else { continue };
            self.0.remove(&whole.start);
            if let Some(before) = whole.clip(0, start) {
                self.0.insert(before.start, (before.len, before.value));
            }
            if let Some(after) = whole.clip(end, u64::MAX) {
                self.0.insert(after.start, (after.len, after.value));
            }
        }
        removed
    }

    /// Puts a value on `[start, start + len)`, over whatever was there.
    pub(crate) fn set(&mut self, start: u64, len: u64, value: V) {
        if len == 0 {
            return;
        }
        self.remove(start, len);
        let mut span = Span { start, len, value };
        if let Some(before) = start.checked_sub(1).and_then(|at| self.around(at))
            && before.value.at(before.len) == span.value
        {
            self.0.remove(&before.start);
            span = Span { start: before.start, len: before.len + span.len, value: before.value };
        }
        if let Some(after) = self.around(span.end())
            && span.value.at(span.len) == after.value
        {
            self.0.remove(&after.start);
            span.len += after.len;
        }
        self.0.insert(span.start, (span.len, span.value));
    }

    /// Replaces what is in `[start, start + len)` part by part; `None` takes a part out.
    pub(crate) fn update(&mut self, start: u64, len: u64, change: impl Fn(Span<V>) -> Option<V>) {
        for part in self.remove(start, len) {
            if let Some(value) = change(part) {
                self.set(part.start, part.len, value);
            }
        }
    }
}

impl Spans<u64> {
    /// Adds to the count of every address of a stretch; counts of zero are not kept. Nothing goes below zero.
    pub(crate) fn count(&mut self, start: u64, len: u64, delta: i64) {
        let mut at = start;
        let old = self.remove(start, len);
        for part in old.into_iter().chain([Span { start: start + len, len: 0, value: 0 }]) {
            // The gap before this part counted zero.
            self.set_count(at, part.start - at, 0u64.saturating_add_signed(delta));
            self.set_count(part.start, part.len, part.value.saturating_add_signed(delta));
            at = part.start + part.len;
        }
    }

    fn set_count(&mut self, start: u64, len: u64, count: u64) {
        if count > 0 {
            self.set(start, len, count);
        }
    }
}

impl Spans<()> {
    /// Covers stretches inside `[start, start + len)` too, which ascend and leave gaps between them.
    // PERF: where nothing is covered yet nothing need be looked for.
    pub(crate) fn cover_all(&mut self, start: u64, len: u64, stretches: impl Iterator<Item = (u64, u64)>) {
        let (free, end) = (self.is_free(start, len), start + len);
        for (at, len) in stretches {
            if free && at > start && at + len < end {
                self.0.insert(at, (len, ()));
            } else {
                self.cover(at, len);
            }
        }
    }

    /// Covers `[start, start + len)` too, beside what is covered there.
    // PERF: whoever covers ascending addresses adds behind the last stretch or makes it longer, by one look.
    pub(crate) fn cover(&mut self, start: u64, len: u64) {
        if len == 0 {
            return;
        }
        let end = start + len;
        // Of all stretches that touch the new one this begins last.
        match self.0.range_mut(..=end).next_back() {
            Some((&at, (had, ()))) if at <= start && at + *had >= start => *had = (*had).max(end - at),
            Some((&at, _)) if at > start => self.set(start, len, ()),
            _ => drop(self.0.insert(start, (len, ()))),
        }
    }

    /// Bytes covered inside `[start, start + len)`.
    pub(crate) fn bytes_in(&self, start: u64, len: u64) -> u64 {
        self.parts(start, len).map(|span| span.len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A value that counts on along its stretch.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Line(u64);
    impl Along for Line {
        fn at(self, offset: u64) -> Self {
            Line(self.0 + offset)
        }
    }

    #[test]
    fn neighbours_that_continue_each_other_are_one() {
        let mut spans = Spans::default();
        spans.set(10, 5, Line(100));
        spans.set(20, 5, Line(110));
        assert_eq!(spans.len(), 2);
        spans.set(15, 5, Line(105));
        assert_eq!((spans.len(), spans.get(24)), (1, Some(Line(114))));
        spans.remove(12, 2);
        assert_eq!((spans.len(), spans.get(12), spans.get(14)), (2, None, Some(Line(104))));
        spans.set(12, 2, Line(7));
        assert_eq!(spans.len(), 3);
    }

    #[test]
    fn counts_add_up_and_vanish() {
        let mut spans = Spans::<u64>::default();
        spans.count(0, 10, 1);
        spans.count(5, 10, 1);
        assert_eq!([spans.get(4), spans.get(5), spans.get(14), spans.get(15)], [Some(1), Some(2), Some(1), None]);
        spans.count(0, 10, -1);
        spans.count(5, 10, -1);
        assert_eq!(spans.len(), 0);
    }

    proptest! {
        #[test]
        fn agrees_with_one_value_per_address(ops in prop::collection::vec((0u8..3, 0u64..60, 1u64..20, 0u64..4), 1..50)) {
            let mut spans = Spans::default();
            let mut model: BTreeMap<u64, Line> = BTreeMap::new();
            for (what, start, len, value) in ops {
                match what {
                    0 => {
                        spans.set(start, len, Line(start + 100 * value));
                        model.extend((start..start + len).map(|at| (at, Line(at + 100 * value))));
                    }
                    1 => {
                        let removed: u64 = spans.remove(start, len).iter().map(|span| span.len).sum();
                        let gone = (start..start + len).filter(|at| model.remove(at).is_some()).count();
                        prop_assert_eq!(removed, gone as u64);
                    }
                    _ => spans.update(start, len, |part| Some(part.value)),
                }
                for at in 0..90 {
                    prop_assert_eq!(spans.get(at), model.get(&at).copied());
                }
                let runs = model.iter().filter(|&(&at, &Line(value))| model.get(&at.wrapping_sub(1)) != Some(&Line(value.wrapping_sub(1))));
                prop_assert_eq!(spans.len(), runs.count(), "stretches are as long as they can be");
                prop_assert_eq!(spans.covers(start, len), (start..start + len).all(|at| model.contains_key(&at)));
                prop_assert_eq!(spans.is_free(start, len), !(start..start + len).any(|at| model.contains_key(&at)));
            }
        }

        #[test]
        fn what_is_covered_is_a_set_of_addresses(
            ops in prop::collection::vec((0u8..4, 0u64..600, 1u64..400, 2u64..5), 1..20),
        ) {
            let mut spans = Spans::default();
            let mut model = std::collections::BTreeSet::new();
            for (what, start, len, step) in ops {
                let end = start + len;
                match what {
                    0 => {
                        spans.cover(start, len);
                        model.extend(start..end);
                    }
                    1 => {
                        spans.cover_all(start, len, (start..end).step_by(step as usize).map(|at| (at, 1)));
                        model.extend((start..end).step_by(step as usize));
                    }
                    // Most of all stretches, and few of them.
                    _ => {
                        let gone = model.iter().filter(|at| (start..end).contains(at)).count() as u64;
                        let removed: u64 = spans.remove(start, len).iter().map(|span| span.len).sum();
                        prop_assert_eq!(removed, gone);
                        model.retain(|at| !(start..end).contains(at));
                    }
                }
                let mut rebuilt = Spans::default();
                for &at in &model {
                    rebuilt.set(at, 1, ());
                }
                prop_assert_eq!(&spans, &rebuilt);
            }
        }
    }
}
