//! Counting distinct pages in bounded memory.

/// A set of page numbers: a sorted vector, and a buffer that is merged into it now and then. Eight bytes a page, and
/// the same answer whatever the order.
#[derive(Debug)]
pub(crate) struct PageSet {
    sorted: Vec<u64>,
    recent: Vec<u64>,
    /// Pages seen lately, by their low bits, plus one: keeps hot pages out of the buffer.
    filter: Vec<u64>,
    max: usize,
}

const FILTER: usize = 4096;
const MIN_BUFFER: usize = 1 << 16;

impl PageSet {
    pub(crate) fn new(max: usize) -> Self {
        Self { sorted: Vec::new(), recent: Vec::new(), filter: vec![0; FILTER], max }
    }

    /// Adds a page number (an address shifted, so never all ones).
    #[inline]
    pub(crate) fn insert(&mut self, page: u64) {
        let slot = &mut self.filter[page as usize % FILTER];
        if *slot != page + 1 {
            *slot = page + 1;
            self.recent.push(page);
        }
    }

    /// Merges when it pays; `false` once the set is larger than its bound.
    pub(crate) fn settle(&mut self) -> bool {
        if self.recent.len() >= MIN_BUFFER.max(self.sorted.len() / 4) {
            self.merge();
        }
        self.sorted.len() <= self.max
    }

    /// Distinct pages, or `None` when there are more than the bound.
    pub(crate) fn len(&mut self) -> Option<u64> {
        self.merge();
        (self.sorted.len() <= self.max).then_some(self.sorted.len() as u64)
    }

    #[expect(
        clippy::stable_sort_primitive,
        reason = "it merges two sorted runs in linear time, the unstable sort does not"
    )]
    fn merge(&mut self) {
        self.recent.sort_unstable();
        self.recent.dedup();
        self.sorted.append(&mut self.recent);
        self.sorted.sort();
        self.sorted.dedup();
    }
}
