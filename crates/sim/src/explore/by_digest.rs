//! Values by digest, for millions of them.
//!
//! A digest is a good hash already, so its low bits say where to look, and what is there is the same wherever it runs: no random state, no
//! dependence on anything but what was added and in which order.

/// Values by digest, any number of them for each. The digest 0 is taken for 1.
///
/// PERF: linear probing over digests alone, values beside them: a digest that is not there takes one line of the cache mostly. Ordered trees took a third of an
/// exhaustive search.
#[derive(Clone, Debug)]
pub(crate) struct ByDigest<V> {
    /// 0 where nothing is. A power of two of them, a quarter empty at least.
    digests: Vec<u64>,
    values: Vec<V>,
    len: usize,
}

impl<V> Default for ByDigest<V> {
    fn default() -> Self {
        Self { digests: Vec::new(), values: Vec::new(), len: 0 }
    }
}

const LEAST: usize = 64;

impl<V: Copy + Default> ByDigest<V> {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes everything out, and keeps the room.
    pub(crate) fn clear(&mut self) {
        if !self.is_empty() {
            self.digests.fill(0);
            self.len = 0;
        }
    }

    /// Where the values of a digest are.
    fn places(&self, digest: u64) -> impl Iterator<Item = usize> {
        let (digest, around) = (digest.max(1), self.digests.len().wrapping_sub(1));
        let from = digest as usize & around;
        let probed = (from..from + self.digests.len()).map(move |place| place & around);
        probed.take_while(|&place| self.digests[place] != 0).filter(move |&place| self.digests[place] == digest)
    }

    /// The values of a digest.
    pub(crate) fn of(&self, digest: u64) -> impl Iterator<Item = V> {
        self.places(digest).map(|place| self.values[place])
    }

    /// The first value of a digest for which something holds.
    pub(crate) fn find_mut(&mut self, digest: u64, is: impl Fn(&V) -> bool) -> Option<&mut V> {
        let place = self.places(digest).find(|&place| is(&self.values[place]))?;
        self.values.get_mut(place)
    }

    /// One more value.
    pub(crate) fn add(&mut self, digest: u64, value: V) {
        if 4 * (self.len + 1) > 3 * self.digests.len() {
            self.grow();
        }
        let (digest, around) = (digest.max(1), self.digests.len() - 1);
        let mut place = digest as usize & around;
        while self.digests[place] != 0 {
            place = (place + 1) & around;
        }
        (self.digests[place], self.values[place]) = (digest, value);
        self.len += 1;
    }

    fn grow(&mut self) {
        let room = (2 * self.digests.len()).max(LEAST);
        let old = std::mem::replace(self, Self { digests: vec![0; room], values: vec![V::default(); room], len: 0 });
        for (digest, value) in old.iter() {
            self.add(digest, value);
        }
    }

    /// All of them, in an order that depends on what was added, and when.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, V)> {
        let all = self.digests.iter().zip(&self.values);
        all.filter(|(digest, _)| **digest != 0).map(|(&digest, &value)| (digest, value))
    }
}

/// Digests.
pub(crate) type Digests = ByDigest<()>;

impl Digests {
    pub(crate) fn contains(&self, digest: u64) -> bool {
        self.of(digest).next().is_some()
    }

    /// Adds one; false when it is there.
    pub(crate) fn insert(&mut self, digest: u64) -> bool {
        let new = !self.contains(digest);
        if new {
            self.add(digest, ());
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// Few digests and many additions, so that chains of probes run into each other and around the end.
        #[test]
        fn everything_that_was_added_is_found(added in prop::collection::vec((0_u64..90, any::<u16>()), 0..300)) {
            let (mut table, mut model) = (ByDigest::default(), BTreeMap::<u64, Vec<u16>>::new());
            for &(digest, value) in &added {
                table.add(digest, value);
                model.entry(digest.max(1)).or_default().push(value);
            }
            prop_assert_eq!(table.len(), added.len());
            let mut all = 0;
            for digest in 0..100 {
                let mut found: Vec<u16> = table.of(digest).collect();
                let mut expected = model.get(&digest.max(1)).cloned().unwrap_or_default();
                found.sort_unstable();
                expected.sort_unstable();
                prop_assert_eq!(&found, &expected, "digest {}", digest);
                if let Some(&one) = expected.first() {
                    prop_assert_eq!(table.find_mut(digest, |&value| value == one).copied(), Some(one));
                }
                all += if digest == 0 { 0 } else { found.len() };
            }
            prop_assert_eq!(all, table.iter().count());
            table.clear();
            prop_assert!(table.is_empty() && table.of(1).next().is_none());
        }
    }

    #[test]
    fn a_set_says_whether_it_knew() {
        let mut set = Digests::default();
        let new = (0..1000).filter(|&n| set.insert(n % 100 + 1)).count();
        assert_eq!((new, set.len()), (100, 100));
        assert!(set.contains(7) && !set.contains(1000));
    }
}
