//! The kit that every format must pass: `conformance::check(&format)` in the format crate's tests.
//!
//! Vectors and matrices judge what a format *means*; this kit judges that it keeps the promises of [`Format`] on which the
//! walkers, iterators, table memory and protocols rely. A new format must satisfy:
//!
//! * **words**: `decode` is total; it answers `NotPresent` exactly for words without [`Format::present_mask`]; `is_leaf`,
//!   `output` and `next_table` agree with it; leaves stand only where the geometry says and are aligned;
//! * **round trips**: whatever `encode_leaf`, `encode_table` or `encode_not_present` return decodes to what was asked for and
//!   is never malformed; every legal leaf level has some leaf with default attributes that allows reading; a not-present
//!   word is never present, the empty one is 0;
//! * **progression**: leaves of consecutive pages have words in arithmetic progression, as far as
//!   [`Format::progression`] says;
//! * **flags**: the accessed and dirty masks agree with `decode` and with [`Format::updated`], which sets nothing else, is
//!   idempotent, and sets only what hardware sets;
//! * **short answers**: [`Format::settled`] says what `entry` and `updated` say, or nothing;
//! * **transitions**: `write_protect`, `restore_write`, `mark_old` and `mark_young` have their stated effect, keep
//!   output and accessed state, and come back;
//! * **flushes and break rules**: a plan covers what was asked for, and reaches everybody when asked to; nothing is needed
//!   to replace a word by itself, or to make and break an entry;
//! * **walks**: in a tree built by `encode_table` and `encode_leaf` the walker reads exactly the words that the geometry
//!   names, finds the leaf, leaves nothing to update for a second walk, and faults where an entry is cleared.
//!
//! The generator is deterministic: the same format gives the same report.

mod settled;

use std::fmt;

use crate::access::{Access, AccessKind, Privilege};
use crate::addr::{Gpa, Hpa, Level};
use crate::format::{
    BreakRule, Delivery, Entry, FaultClass, FaultReport, Flush, FlushScope, Format, Leaf, NotPresent, PathPlace, Reach,
    Walk, WalkCaches,
};
use crate::image::MemoryImage;
use crate::tlb::Perms;
use crate::walk::{Step, WalkCursor};

/// How much to try.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Effort {
    /// Random words per level.
    pub words: u32,
    /// Addresses per level with which every kind of leaf is built.
    pub addresses: u32,
    /// Where the generator starts.
    pub seed: u64,
}

impl Default for Effort {
    fn default() -> Self {
        Self { words: 20_000, addresses: 8, seed: 0 }
    }
}

/// What a conforming format went through.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConformanceReport {
    /// The format's name.
    pub format: &'static str,
    /// Promises checked.
    pub checks: u64,
    /// Distinct kinds of leaf (permissions, flags and attributes) that went through the round trip.
    pub leaves: u64,
    /// Random words that decoded to a leaf, a table, nothing, or a malformed entry.
    pub words: [u64; 4],
    /// Legal leaves that `decode` gives and `encode_leaf` refuses. Allowed, and worth a look.
    pub not_encodable: u64,
}

/// The promises that a format breaks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BrokenPromises {
    /// The format's name.
    pub format: &'static str,
    /// How many were broken.
    pub count: u64,
    /// The first few, each with the level and the word.
    pub first: Vec<String>,
}

impl fmt::Display for BrokenPromises {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} breaks {} promises of `Format`:", self.format, self.count)?;
        self.first.iter().try_for_each(|what| write!(f, "\n  {what}"))
    }
}
impl std::error::Error for BrokenPromises {}

/// Checks a format with the default effort.
///
/// # Errors
/// The broken promises.
pub fn check<F: Format>(format: &F) -> Result<ConformanceReport, BrokenPromises> {
    check_with(format, Effort::default())
}

/// Checks a format.
///
/// # Errors
/// The broken promises.
pub fn check_with<F: Format>(format: &F, effort: Effort) -> Result<ConformanceReport, BrokenPromises> {
    let mut kit = Kit {
        format,
        effort,
        state: effort.seed,
        broken: BrokenPromises { format: F::NAME, count: 0, first: Vec::new() },
        report: ConformanceReport { format: F::NAME, checks: 0, leaves: 0, words: [0; 4], not_encodable: 0 },
    };
    kit.not_present();
    kit.flushes();
    for level in (0..format.geometry().levels() as u8).map(Level::new) {
        kit.words(level);
        kit.tables(level);
        if format.geometry().has_leaves_at(level) {
            kit.leaves(level);
            kit.walks(level);
        }
    }
    if kit.broken.count == 0 { Ok(kit.report) } else { Err(kit.broken) }
}

struct Kit<'a, F> {
    format: &'a F,
    effort: Effort,
    state: u64,
    broken: BrokenPromises,
    report: ConformanceReport,
}

const EXPLAINED: usize = 20;

impl<F: Format> Kit<'_, F> {
    /// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn expect(&mut self, holds: bool, level: Level, raw: u64, what: impl FnOnce() -> String) {
        self.report.checks += 1;
        if holds {
            return;
        }
        self.broken.count += 1;
        if self.broken.first.len() < EXPLAINED {
            self.broken.first.push(format!("level {level}, word {raw:#018x}: {}", what()));
        }
    }

    /// An address in the output space aligned to `align` bytes (a power of two).
    fn address(&mut self, align: u64) -> Hpa {
        let bits = self.format.geometry().output_bits().min(63);
        Hpa::new(self.random() & ((1 << bits) - 1) & !(align - 1))
    }

    /// Leaves at `level` that can be encoded, with default attributes: the word of each kind.
    fn samples(&mut self, level: Level) -> Vec<(Leaf<F::Attrs>, u64)> {
        let size = self.format.geometry().page_size(level);
        let mut samples = Vec::new();
        for _ in 0..self.effort.addresses {
            let output = self.address(size.bytes());
            for bits in 0..128 {
                for accessed in [false, true] {
                    let leaf = Leaf { output, perms: Perms::from_bits(bits), accessed, attrs: F::Attrs::default() };
                    if let Ok(raw) = self.format.encode_leaf(level, &leaf) {
                        samples.push((leaf, raw));
                    }
                }
            }
        }
        samples
    }

    /// The most permissive leaf at `level` that maps `output`.
    fn widest(&self, level: Level, output: Hpa) -> Option<(Leaf<F::Attrs>, u64)> {
        let leaves = (0..128u8).rev().map(|bits| Leaf {
            output,
            perms: Perms::from_bits(bits),
            accessed: true,
            attrs: F::Attrs::default(),
        });
        let encodable = leaves.filter_map(|leaf| Some((leaf, self.format.encode_leaf(level, &leaf).ok()?)));
        let readable = encodable.filter(|(leaf, _)| leaf.perms.intersects(Perms::R));
        readable.max_by_key(|(leaf, _)| leaf.perms.bits().count_ones())
    }

    // ---- words ----

    fn words(&mut self, level: Level) {
        let known: Vec<u64> = self.samples(level).into_iter().map(|(_, raw)| raw).collect();
        for i in 0..self.effort.words {
            let mut raw = self.random();
            match i % 4 {
                0 => {}
                1 => raw &= self.random() & self.random(),
                2 => raw |= self.random() | self.random(),
                // Near a legal leaf: a few bits of it flipped.
                _ if !known.is_empty() => {
                    raw = known[raw as usize % known.len()];
                    for _ in 0..=self.random() % 4 {
                        raw ^= 1 << (self.random() % 64);
                    }
                }
                _ => {}
            }
            self.word(level, raw);
            self.settles(level, raw);
        }
    }

    fn word(&mut self, level: Level, raw: u64) {
        let format = self.format;
        let entry = format.decode(level, raw);
        let present = raw & format.present_mask() != 0;
        let kind = match entry {
            Entry::Leaf(_) => 0,
            Entry::Table(_) => 1,
            Entry::NotPresent(_) => 2,
            Entry::Malformed(_) => 3,
        };
        self.report.words[kind] += 1;
        self.expect(present != matches!(entry, Entry::NotPresent(_)), level, raw, || {
            format!("decodes to {entry:?} but `present_mask` is {:#x}", format.present_mask())
        });
        match entry {
            Entry::Leaf(leaf) => self.decoded_leaf(level, raw, &leaf),
            Entry::Table(table) => {
                let agrees =
                    level > Level::LAST && !format.is_leaf(level, raw) && format.next_table(level, raw) == table.base;
                self.expect(agrees, level, raw, || format!("`is_leaf` or `next_table` does not agree with {table:?}"));
            }
            Entry::NotPresent(what) => {
                if let Ok(word) = format.encode_not_present(what) {
                    self.expect(word == raw, level, raw, || format!("{what:?} is encoded as {word:#x}"));
                }
            }
            Entry::Malformed(_) => {}
        }
        self.expect(format.break_rule(level, raw, raw) == BreakRule::NotNeeded, level, raw, || {
            "replacing a word by itself asks for break-before-make".into()
        });
    }

    fn decoded_leaf(&mut self, level: Level, raw: u64, leaf: &Leaf<F::Attrs>) {
        let format = self.format;
        let size = format.geometry().page_size(level);
        let stands = format.geometry().has_leaves_at(level) && leaf.output.is_aligned(size);
        self.expect(stands, level, raw, || format!("{leaf:?} may not stand here or is misaligned"));
        let agrees = format.is_leaf(level, raw) && format.output(level, raw) == leaf.output;
        self.expect(agrees, level, raw, || format!("`is_leaf` or `output` does not agree with {leaf:?}"));
        match format.encode_leaf(level, leaf) {
            Ok(word) => self.round_trip(level, leaf, word),
            Err(_) => self.report.not_encodable += 1,
        }
    }

    fn round_trip(&mut self, level: Level, leaf: &Leaf<F::Attrs>, word: u64) {
        self.report.leaves += 1;
        let back = self.format.decode(level, word);
        self.expect(back == Entry::Leaf(*leaf), level, word, || format!("{leaf:?} comes back as {back:?}"));
    }

    // ---- tables and markers ----

    fn tables(&mut self, level: Level) {
        let format = self.format;
        let Some(down) = level.down() else {
            let refused = format.encode_table(level, Hpa::new(0)).is_err();
            return self.expect(refused, level, 0, || "a table pointer at the last level is not refused".into());
        };
        let bytes = format.geometry().table_bytes(down);
        for _ in 0..self.effort.addresses {
            let base = self.address(bytes.max(4096));
            match format.encode_table(level, base) {
                Err(error) => self.expect(false, level, 0, || format!("a table at {base} is refused: {error}")),
                Ok(raw) => {
                    let entry = format.decode(level, raw);
                    let good = matches!(entry, Entry::Table(table)
                        if table.base == base && table.index_bits == format.geometry().index_bits(down));
                    self.expect(good, level, raw, || format!("the table at {base} comes back as {entry:?}"));
                    self.word(level, raw);
                    self.settles(level, raw);
                    self.updates(level, raw, PathPlace::Table);
                }
            }
            let odd = format.encode_table(level, base + 8);
            self.expect(odd.is_err(), level, 0, || format!("a table at {} is not refused", base + 8));
        }
    }

    fn not_present(&mut self) {
        let format = self.format;
        let empty = format.encode_not_present(NotPresent::Empty);
        self.expect(empty == Ok(0), Level::LAST, 0, || format!("the empty entry is encoded as {empty:?}"));
        self.expect(!format.is_mapped(0), Level::LAST, 0, || "the empty entry counts as mapped".into());
        let mut markers = vec![NotPresent::Empty, NotPresent::Frozen];
        markers.extend((0..=u8::MAX).map(NotPresent::Owner));
        for _ in 0..64 {
            let raw = self.random();
            markers.push(NotPresent::Other(raw));
            markers.push(NotPresent::Other(raw & !format.present_mask()));
        }
        for marker in markers {
            let Ok(raw) = format.encode_not_present(marker) else { continue };
            self.expect(raw & format.present_mask() == 0, Level::LAST, raw, || format!("{marker:?} is present"));
            for level in (0..format.geometry().levels() as u8).map(Level::new) {
                let back = format.decode(level, raw);
                self.expect(back == Entry::NotPresent(marker), level, raw, || {
                    format!("{marker:?} comes back as {back:?}")
                });
            }
            if marker == NotPresent::Frozen {
                self.expect(!format.is_mapped(raw), Level::LAST, raw, || "the frozen marker counts as mapped".into());
            }
        }
    }

    // ---- leaves ----

    fn leaves(&mut self, level: Level) {
        let size = self.format.geometry().page_size(level);
        let samples = self.samples(level);
        for (leaf, raw) in &samples {
            self.round_trip(level, leaf, *raw);
            self.decoded_leaf(level, *raw, leaf);
            self.flags(level, *raw, leaf);
            self.updates(level, *raw, PathPlace::Leaf);
            self.protects(level, *raw, leaf);
            self.ages(level, *raw, leaf);
            self.make_and_break(level, *raw);
        }
        let output = self.address(size.bytes());
        let Some((leaf, _)) = self.widest(level, output) else {
            return self.expect(false, level, 0, || format!("no readable {size} leaf at {output} can be encoded"));
        };
        for _ in 0..self.effort.addresses {
            let output = self.address(size.bytes());
            self.progression(level, Leaf { output, ..leaf });
        }
    }

    fn progression(&mut self, level: Level, leaf: Leaf<F::Attrs>) {
        let format = self.format;
        let size = format.geometry().page_size(level);
        let Ok(first) = format.encode_leaf(level, &leaf) else { return };
        let count = format.progression(level, leaf.output);
        self.expect(count > 0, level, first, || "a progression of no leaves".into());
        // Never past the output space, which formats may leave to the caller.
        let room = ((1u128 << format.geometry().output_bits()) - u128::from(leaf.output.raw())) >> size.shift();
        let count = u128::from(count).min(room) as u64;
        for i in 0..16 {
            let n = if i < 4 { i } else { self.random() } % count.max(1);
            let bytes = n << size.shift();
            let word = format.encode_leaf(level, &Leaf { output: leaf.output + bytes, ..leaf });
            self.expect(word == Ok(first.wrapping_add(bytes)), level, first, || {
                format!("leaf {n} of a progression of {count} is {word:x?}")
            });
        }
    }

    fn flags(&mut self, level: Level, raw: u64, leaf: &Leaf<F::Attrs>) {
        let format = self.format;
        let mapped = format.is_mapped(raw);
        self.expect(mapped, level, raw, || "a leaf does not count as mapped".into());
        let accessed = format.accessed_mask() == 0 || raw & format.accessed_mask() != 0;
        self.expect(accessed == leaf.accessed, level, raw, || format!("`accessed_mask` does not agree with {leaf:?}"));
        let writable = leaf.perms.intersects(Perms::W);
        self.expect(format.is_writable(raw) == writable, level, raw, || {
            format!("`is_writable` does not agree with {leaf:?}")
        });
        // Hardware dirty state without a mask is one that a clear bit tells (Arm stage 1): `updates` judges it.
        if writable && (format.dirty_mask() != 0 || !format.hardware_dirty()) {
            let dirty = format.dirty_mask() == 0 || raw & format.dirty_mask() != 0;
            let told = leaf.perms.contains(Perms::DIRTY);
            self.expect(dirty == told, level, raw, || format!("`dirty_mask` does not agree with {leaf:?}"));
        }
    }

    /// `updated` sets what hardware sets and nothing else.
    fn updates(&mut self, level: Level, raw: u64, place: PathPlace) {
        let format = self.format;
        for kind in [AccessKind::Read, AccessKind::Write] {
            let stores = kind.writes();
            if stores && place == PathPlace::Leaf && !format.is_writable(raw) {
                continue;
            }
            let walk = Walk { input: 0, access: Access { kind, ..Access::READ } };
            let new = format.updated(&walk, level, raw, place);
            let again = format.updated(&walk, level, new, place);
            self.expect(again == new, level, raw, || format!("updated to {new:#x}, then to {again:#x}"));
            let (before, after) = (format.decode(level, raw), format.decode(level, new));
            let good = match (before, after) {
                (Entry::Table(old), Entry::Table(new)) => old == new,
                (Entry::Leaf(old), Entry::Leaf(new)) => {
                    let same = Leaf { perms: old.perms.with(Perms::DIRTY), accessed: new.accessed, ..old };
                    let young = new.accessed == (old.accessed || format.hardware_accessed());
                    let dirty_old = old.perms.contains(Perms::DIRTY);
                    let dirty = new.perms.contains(Perms::DIRTY) == (dirty_old || stores && format.hardware_dirty());
                    same == Leaf { perms: new.perms.with(Perms::DIRTY), ..new } && young && dirty
                }
                _ => false,
            };
            self.expect(good, level, raw, || format!("a {kind:?} turns {before:?} into {after:?}"));
        }
    }

    fn protects(&mut self, level: Level, raw: u64, leaf: &Leaf<F::Attrs>) {
        let format = self.format;
        let protected = format.write_protect(raw);
        if !format.is_writable(raw) {
            return self.expect(protected == raw, level, raw, || "write-protecting a read-only leaf changes it".into());
        }
        let same_but = |entry, perms: Perms| {
            matches!(entry, Entry::Leaf(new) if {
                let Leaf { output, accessed, .. } = new;
                (output, accessed, new.perms.without(Perms::DIRTY)) == (leaf.output, leaf.accessed, perms.without(Perms::DIRTY))
            })
        };
        let after = format.decode(level, protected);
        let good = !format.is_writable(protected) && same_but(after, leaf.perms.without(Perms::W));
        self.expect(good, level, raw, || format!("write-protecting {leaf:?} gives {after:?}"));
        let twice = format.write_protect(protected);
        self.expect(twice == protected, level, raw, || format!("write-protecting twice gives {twice:#x}"));
        self.expect(format.restore_write(raw).is_none(), level, raw, || {
            "`restore_write` gives write to a leaf that has it".into()
        });
        let restored = format.restore_write(protected);
        let good = restored.is_some_and(|word| {
            let entry = format.decode(level, word);
            let dirty = matches!(entry, Entry::Leaf(new) if new.perms.contains(Perms::DIRTY));
            format.is_writable(word) && dirty && same_but(entry, leaf.perms)
        });
        self.expect(good, level, protected, || format!("restoring {leaf:?} gives {restored:x?}"));
    }

    fn ages(&mut self, level: Level, raw: u64, leaf: &Leaf<F::Attrs>) {
        let format = self.format;
        let mask = format.accessed_mask();
        let old = format.mark_old(raw);
        self.expect(format.is_mapped(old), level, raw, || format!("marked old ({old:#x}) it is no mapping any more"));
        self.expect(format.mark_old(old) == old, level, raw, || "marking old twice differs from once".into());
        if leaf.accessed {
            let young = format.mark_young(raw);
            self.expect(young.is_none(), level, raw, || format!("marking a young leaf young gives {young:x?}"));
        }
        let Some(young) = format.mark_young(old) else {
            return self.expect(false, level, old, || "an old leaf cannot be made young".into());
        };
        if mask != 0 {
            let good = old == raw & !mask && young == raw | mask;
            return self.expect(good, level, raw, || format!("marked old it is {old:#x}, young again {young:#x}"));
        }
        self.expect(matches!(format.decode(level, old), Entry::NotPresent(_)), level, old, || {
            "an old leaf without accessed flag does not fault".into()
        });
        // Write permission may be left to `restore_write`, because such leaves are dirty-tracked by it.
        let whole = if format.is_writable(young) { Some(young) } else { format.restore_write(young) };
        let word = if format.is_writable(raw) { whole } else { Some(young) };
        let back = word.map(|word| format.decode(level, word));
        let good = matches!(back, Some(Entry::Leaf(new))
            if (new.output, new.perms.with(Perms::DIRTY)) == (leaf.output, leaf.perms.with(Perms::DIRTY)));
        self.expect(good, level, raw, || format!("aged and back {leaf:?} is {back:?}"));
    }

    fn make_and_break(&mut self, level: Level, raw: u64) {
        for (old, new) in [(raw, raw), (raw, 0), (0, raw)] {
            let rule = self.format.break_rule(level, old, new);
            self.expect(rule == BreakRule::NotNeeded, level, raw, || {
                format!("replacing {old:#x} by {new:#x} asks for break-before-make: {rule:?}")
            });
        }
    }

    // ---- flushes ----

    fn flushes(&mut self) {
        let page = self.format.geometry().granule().bytes();
        for _ in 0..64 {
            let start = Gpa::new((self.random() % self.format.geometry().input_bytes()) & !(page - 1));
            let pages = 1 + self.random() % (1 << (self.random() % 20));
            let range = FlushScope::Range { start, bytes: pages * page, level: None };
            for scope in [FlushScope::Vm, range] {
                for walk_caches in [WalkCaches::Keep, WalkCaches::Drop] {
                    for reach in [Reach::Local, Reach::Everyone] {
                        self.flush(Flush { scope, walk_caches, reach });
                    }
                }
            }
        }
    }

    fn flush(&mut self, flush: Flush) {
        let plan = self.format.flush_plan(flush);
        let scope = match (flush.scope, plan.covers.scope) {
            (_, FlushScope::Vm) => true,
            (FlushScope::Vm, FlushScope::Range { .. }) => false,
            (FlushScope::Range { start, bytes, .. }, FlushScope::Range { start: from, bytes: length, .. }) => {
                from <= start
                    && u128::from(from.raw()) + u128::from(length) >= u128::from(start.raw()) + u128::from(bytes)
            }
        };
        let caches = flush.walk_caches == WalkCaches::Keep || plan.covers.walk_caches == WalkCaches::Drop;
        let everyone = plan.covers.reach == Reach::Everyone && plan.delivery != Delivery::LocalInstruction;
        let reach = flush.reach == Reach::Local || everyone;
        self.expect(scope && caches && reach && plan.repeats > 0, Level::LAST, 0, || {
            format!("the plan {plan:?} does not cover {flush:?}")
        });
    }

    // ---- walks ----

    fn walks(&mut self, leaf_level: Level) {
        for _ in 0..self.effort.addresses {
            self.one_walk(leaf_level);
        }
    }

    /// Builds the path to one leaf: `(address of the entry, its word, its level)` from the root on.
    fn path(&mut self, input: u64, root: Hpa, leaf_level: Level, leaf: u64) -> Option<Vec<(Hpa, u64, Level)>> {
        let format = self.format;
        let mut path = Vec::new();
        let mut base = root;
        let mut level = format.geometry().root();
        loop {
            let at = base + 8 * format.geometry().index(level, input) as u64;
            if level == leaf_level {
                path.push((at, leaf, level));
                return Some(path);
            }
            let down = level.down()?;
            // Tables side by side in the low gigabyte, each on a boundary of its own size.
            let align = format.geometry().table_bytes(down).max(1 << 16);
            let next = Hpa::new(((1 << 24) * (path.len() as u64 + 2)) & !(align - 1));
            path.push((at, format.encode_table(level, next).ok()?, level));
            (base, level) = (next, down);
        }
    }

    fn one_walk(&mut self, leaf_level: Level) {
        let format = self.format;
        let geometry = format.geometry();
        let size = geometry.page_size(leaf_level);
        // The upper half of the input space has rules of its own where addresses are sign-extended.
        let input = self.random() & ((1 << (geometry.input_bits() - 1).min(63)) - 1);
        let output = self.address(size.bytes());
        let root = Hpa::new(1 << 24);
        let Some((leaf, raw)) = self.widest(leaf_level, output) else { return };
        let Some(path) = self.path(input, root, leaf_level, raw) else {
            return self.expect(false, leaf_level, raw, || "the tables of a walk cannot be encoded".into());
        };
        let mut image = MemoryImage::everywhere();
        for &(at, word, _) in &path {
            if image.set(at, word).is_err() {
                return self.expect(false, leaf_level, raw, || format!("no word can be at {at}"));
            }
        }
        let privilege = if leaf.perms.contains(Perms::USER_READ) { Privilege::User } else { Privilege::Supervisor };
        let access = Access { privilege, ..Access::READ };
        let wanted: Vec<Hpa> = path.iter().map(|&(at, ..)| at).collect();
        for round in 0..2 {
            let mut cursor = WalkCursor::new(*format, root, input, access);
            let (mut read, mut updates) = (Vec::new(), 0);
            let end = loop {
                match cursor.step(&mut image) {
                    Step::Read(reference) => read.push(reference.at),
                    Step::Update(_) | Step::Restart(_) => updates += 1,
                    Step::Done(found) => break Ok(found),
                    Step::Fault(fault) => break Err(fault),
                }
            };
            let right =
                end.is_ok_and(|found| found.output == output + (input & (size.bytes() - 1)) && found.size == size);
            self.expect(right, leaf_level, raw, || format!("walking {input:#x} to {leaf:?} gives {end:?}"));
            self.expect(read == wanted, leaf_level, raw, || {
                format!("walking {input:#x} reads {read:?}, not {wanted:?}")
            });
            self.expect(round == 0 || updates == 0, leaf_level, raw, || "a second walk updates again".into());
        }
        for &(at, _, level) in &path {
            let mut broken = image.clone();
            let _ = broken.set(at, 0);
            let fault = WalkCursor::new(*format, root, input, access).run(&mut broken).err();
            let right = fault.is_some_and(|fault| {
                fault.class() == FaultClass::NotPresent && fault.level().is_none_or(|told| told == level)
            });
            self.expect(right, level, 0, || format!("walking {input:#x} over an empty entry gives {fault:?}"));
        }
    }
}
