//! Table memory of an exploration: a few frames in one flat vector, with the history of every word.
//!
//! An execution writes some dozens of words and is then taken back, so frames are plain words, and the log of writes serves three
//! ends: it undoes an execution, it tells what a translation cache may still hold (`guest`), and who last changed a word. It shares
//! nothing with `mmu_core::memory`, so that the one checks the other.

use mmu_core::{Hpa, Level};

use super::digest::mixed;

/// Frames are multiples of this many words: the smallest table of any format.
const CHUNK: usize = 32;

/// Level of frames that hold no entries: above any root.
pub(crate) const WORDS: Level = Level::new(Level::MAX_LEVELS as u8 - 1);

/// A moment: how many writes there have been.
pub(crate) type Moment = u32;

/// Where a frame is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Life {
    /// Allocated; no entry has ever pointed to it.
    Private,
    /// An entry points, or has pointed, to it.
    Linked,
    /// Given to RCU: it will be freed.
    Retired,
    /// Free. It is never handed out again, so that whoever still uses it is caught.
    Freed,
}

/// A table frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    pub(crate) first: Hpa,
    pub(crate) words: u32,
    pub(crate) level: Level,
    pub(crate) life: Life,
    /// Holders beyond the first.
    pub(crate) extra: u32,
    /// Present words.
    pub(crate) live: u32,
    /// The entry that pointed to it last.
    pub(crate) parent: Hpa,
    /// The first guest-physical byte that it translates, once it is linked.
    pub(crate) gpa: u64,
    /// When it was last written.
    written: Moment,
}

impl Frame {
    pub(crate) fn contains(&self, at: Hpa) -> bool {
        at.raw().wrapping_sub(self.first.raw()) < 8 * u64::from(self.words)
    }
}

/// A write: the words from `at` on all were `old` and became `new`, or a progression from `new` on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Write {
    pub(crate) at: u32,
    pub(crate) len: u32,
    pub(crate) old: u64,
    pub(crate) new: u64,
    pub(crate) agent: u8,
}

/// What a word read, from one moment to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Version {
    pub(crate) word: u64,
    pub(crate) from: Moment,
    pub(crate) to: Moment,
}

/// What is wrong with an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NoWord {
    Freed,
    Nowhere,
}

/// The memory.
#[derive(Clone, Debug)]
pub(crate) struct Words {
    base: u64,
    present: u64,
    cells: Vec<u64>,
    /// Number of the frame that a chunk belongs to; 0 is none.
    owner: Vec<u16>,
    frames: Vec<Frame>,
    log: Vec<Write>,
    /// What there was before the execution.
    initial: (usize, Vec<Frame>),
    /// The digest of all words, and that of who wrote each entry last, where somebody asks for them.
    digest: Option<(u64, u64)>,
    /// By cell: who wrote it last, counted from 1; kept with the digest, for cells up to the last one that was written.
    writers: Vec<u8>,
}

impl Words {
    pub(crate) fn new(base: Hpa, present: u64) -> Self {
        Self {
            base: base.raw(),
            present,
            cells: Vec::new(),
            owner: Vec::new(),
            frames: Vec::new(),
            log: Vec::new(),
            initial: (0, Vec::new()),
            digest: None,
            writers: Vec::new(),
        }
    }

    /// From the next execution on, keeps a digest of all words.
    pub(crate) fn keep_digest(&mut self) {
        self.digest = Some((0, 0));
    }
    /// What all words amount to, beside what they were at the beginning.
    pub(crate) fn digest(&self) -> u64 {
        self.digest.unwrap_or_default().0
    }
    /// What it amounts to who wrote each entry last.
    pub(crate) fn authors(&self) -> u64 {
        self.digest.unwrap_or_default().1
    }

    /// What there is now is where every execution begins.
    pub(crate) fn settle(&mut self) {
        self.log.clear();
        for frame in &mut self.frames {
            frame.written = 0;
        }
        self.initial = (self.cells.len(), self.frames.clone());
    }

    /// Takes an execution back.
    pub(crate) fn reset(&mut self) {
        while let Some(write) = self.log.pop() {
            let written = write.at as usize..(write.at + write.len) as usize;
            if let Some(writers) = self.writers.get_mut(written.clone()) {
                writers.fill(0);
            }
            self.cells[written].fill(write.old);
        }
        self.digest = self.digest.map(|_| (0, 0));
        let (words, frames) = &self.initial;
        self.cells.truncate(*words);
        self.owner.truncate(words / CHUNK);
        self.frames.clear();
        self.frames.extend_from_slice(frames);
    }

    pub(crate) fn now(&self) -> Moment {
        self.log.len() as Moment
    }
    pub(crate) fn log(&self) -> &[Write] {
        &self.log
    }
    pub(crate) fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// A frame of zeros, aligned to its size.
    pub(crate) fn alloc(&mut self, level: Level, words: usize) -> Hpa {
        let size = words.next_multiple_of(CHUNK);
        let align = size.next_power_of_two();
        let start = self.cells.len().next_multiple_of(align);
        self.cells.resize(start + size, 0);
        self.owner.resize(start / CHUNK, 0);
        let first = Hpa::new(self.base + 8 * start as u64);
        let (life, written) = (Life::Private, self.now());
        self.frames.push(Frame {
            first,
            words: size as u32,
            level,
            life,
            extra: 0,
            live: 0,
            parent: Hpa::new(0),
            gpa: 0,
            written,
        });
        self.owner.resize((start + size) / CHUNK, self.frames.len() as u16);
        first
    }

    #[inline]
    fn index(&self, at: Hpa) -> usize {
        (at.raw().wrapping_sub(self.base) / 8) as usize
    }
    /// The place of a word, as [`Write::at`] counts.
    pub(crate) fn index_of(&self, at: Hpa) -> u32 {
        self.index(at) as u32
    }
    pub(crate) fn address(&self, index: u32) -> Hpa {
        Hpa::new(self.base + 8 * u64::from(index))
    }

    pub(crate) fn frame_number(&self, at: Hpa) -> Option<usize> {
        let owner = *self.owner.get(self.index(at) / CHUNK)?;
        (owner as usize).checked_sub(1)
    }
    pub(crate) fn frame(&self, at: Hpa) -> Option<&Frame> {
        self.frame_number(at).map(|number| &self.frames[number])
    }
    pub(crate) fn frame_mut(&mut self, at: Hpa) -> Option<&mut Frame> {
        self.frame_number(at).map(|number| &mut self.frames[number])
    }

    /// The word at `at`.
    #[inline]
    pub(crate) fn read(&self, at: Hpa) -> Result<u64, NoWord> {
        match self.frame(at) {
            None => Err(NoWord::Nowhere),
            Some(frame) if frame.life == Life::Freed => Err(NoWord::Freed),
            Some(_) => Ok(self.cells[self.index(at)]),
        }
    }

    /// The word, whatever has become of its frame.
    pub(crate) fn peek(&self, at: Hpa) -> u64 {
        self.cells.get(self.index(at)).copied().unwrap_or(0)
    }

    /// How many words from `at` on are equal to it, up to `most`, in its frame.
    pub(crate) fn alike(&self, at: Hpa, most: u64) -> u64 {
        let Some(frame) = self.frame(at) else { return 1 };
        let start = self.index(at);
        let end = self.index(frame.first) + frame.words as usize;
        let end = end.min(start + most as usize);
        let first = self.cells[start];
        // PERF: a walk asks this of every entry that maps nothing, mostly at the start of an empty table. Whole blocks are compared without a branch for
        // each word.
        let cells = &self.cells[start..end];
        let differs = |block: &[u64]| block.iter().fold(0, |differences, &word| differences | word ^ first) != 0;
        let blocks = cells.chunks_exact(CHUNK).take_while(|block| !differs(block)).count() * CHUNK;
        let rest = cells[blocks..].iter().take_while(|&&word| word == first).count();
        (blocks + rest).max(1) as u64
    }

    /// Writes `len` words that are all alike; the caller has read the first.
    pub(crate) fn write(&mut self, at: Hpa, len: u64, new: u64, agent: u8) {
        self.fill(at, len, new, 0, agent);
    }

    /// The same, with words that go up by `step`.
    pub(crate) fn fill(&mut self, at: Hpa, len: u64, new: u64, step: u64, agent: u8) {
        let start = self.index(at);
        let Some(number) = self.frame_number(at) else { return };
        let moment = self.now() + 1;
        let old = self.cells[start];
        let frame = &mut self.frames[number];
        frame.written = moment;
        let len = len as u32;
        match (old & self.present != 0, new & self.present != 0) {
            (false, true) => frame.live += len,
            (true, false) => frame.live = frame.live.saturating_sub(len),
            _ => {}
        }
        let entries = frame.level != WORDS;
        if self.digest.is_some() {
            self.account(start, len as usize, (new, step), entries.then_some(agent));
        }
        for (n, word) in (0..).zip(&mut self.cells[start..start + len as usize]) {
            *word = new.wrapping_add(step.wrapping_mul(n));
        }
        self.log.push(Write { at: start as u32, len, old, new, agent });
    }

    /// Brings the digest up to date: cells from `start` on are about to be written, entries by `agent`.
    fn account(&mut self, start: usize, len: usize, (new, step): (u64, u64), agent: Option<u8>) {
        let end = start + len;
        if self.writers.len() < end {
            self.writers.resize(end, 0);
        }
        let (mut digest, mut authors) = self.digest.unwrap_or_default();
        for (n, (cell, writer)) in (0..).zip(self.cells[start..end].iter().zip(&mut self.writers[start..end])) {
            let place = start as u64 + n;
            digest ^= mixed(place, *cell) ^ mixed(place, new.wrapping_add(step.wrapping_mul(n)));
            if let Some(agent) = agent {
                let now = agent.wrapping_add(1);
                authors ^= mixed(place, (*writer).into()) ^ mixed(place, now.into());
                *writer = now;
            }
        }
        self.digest = Some((digest, authors));
    }

    /// A moment that nothing is written in: what is read before it, and after.
    pub(crate) fn tick(&mut self) -> Moment {
        self.log.push(Write { at: 0, len: 0, old: 0, new: 0, agent: u8::MAX });
        self.now()
    }

    /// What the word read at moments from `since` on, the latest first.
    #[inline]
    pub(crate) fn versions(&self, at: Hpa, since: Moment, mut each: impl FnMut(Version)) {
        let index = self.index(at);
        let (mut word, mut to) = (self.peek(at), self.now());
        if self.frame(at).is_some_and(|frame| frame.written > since) {
            for moment in (since..self.now()).rev() {
                let write = &self.log[moment as usize];
                if (index as u32).wrapping_sub(write.at) < write.len {
                    each(Version { word, from: moment + 1, to });
                    (word, to) = (write.old, moment);
                }
            }
        }
        each(Version { word, from: 0, to });
    }

    /// Who wrote the word last, if anybody did.
    pub(crate) fn last_write(&self, at: Hpa) -> Option<Write> {
        let index = self.index(at) as u32;
        self.log.iter().rev().find(|write| index.wrapping_sub(write.at) < write.len).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> (Words, Hpa) {
        let mut words = Words::new(Hpa::new(1 << 36), 1);
        let table = words.alloc(Level::LAST, 512);
        words.write(table, 1, 0x11, 0);
        words.settle();
        (words, table)
    }

    #[test]
    fn a_word_is_known_by_all_it_was_since_a_moment() {
        let (mut words, table) = memory();
        words.write(table, 1, 0, 0);
        words.write(table + 8, 511, 7, 1);
        words.write(table, 1, 0x21, 0);
        let seen = |since| {
            let mut seen = Vec::new();
            words.versions(table, since, |version| seen.push((version.word, version.from, version.to)));
            seen
        };
        assert_eq!(seen(0), [(0x21, 3, 3), (0, 1, 2), (0x11, 0, 0)]);
        assert_eq!(seen(1), [(0x21, 3, 3), (0, 0, 2)]);
        assert_eq!(seen(3), [(0x21, 0, 3)]);
        assert_eq!(words.frame(table).map(|frame| frame.live), Some(512));
    }

    #[test]
    fn an_execution_leaves_nothing_behind() {
        let (mut words, table) = memory();
        let child = words.alloc(Level::LAST, 512);
        words.write(child, 512, 9, 0);
        words.write(table, 1, 5, 0);
        if let Some(frame) = words.frame_mut(child) {
            frame.life = Life::Freed;
        }
        assert_eq!(words.read(child), Err(NoWord::Freed));
        words.reset();
        assert_eq!((words.read(table), words.read(child)), (Ok(0x11), Err(NoWord::Nowhere)));
        assert_eq!((words.now(), words.frames().len()), (0, 1));
    }
}
