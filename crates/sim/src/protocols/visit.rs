//! `kvm_pgtable_walk`: a walk of a second-stage tree that calls a visitor.
//!
//! Models `arch/arm64/kvm/hyp/pgtable.c` (Linux 6.6). One walking engine, many small visitors: the flags say which entries
//! are visited and how - leaves, tables before their children, tables after them. An entry that the visitor replaced by a
//! table is descended into; one that it replaced by a leaf is not. Consecutive leaves in progression are visited as one run.
//!
//! Locking, flushing and freeing are the visitor's; the walk holds nothing.

use std::future::Future;

use bitflags::bitflags;
use mmu_core::{Format, Gpa, Hpa, Level};

use super::iter::pass_over;
use crate::engine::Host;

bitflags! {
    /// What is visited, and under which circumstances the walk is made.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct WalkFlags: u8 {
        /// Leaves and entries that map nothing.
        const LEAF = 1;
        /// Table entries, before what lies below them.
        const TABLE_PRE = 1 << 1;
        /// Table entries, after what lies below them.
        const TABLE_POST = 1 << 2;
        /// Other walkers run at the same time: entries are changed by compare-and-swap.
        const SHARED = 1 << 3;
        /// The walk handles a fault: losing a race is no error, the guest tries again.
        const HANDLE_FAULT = 1 << 4;
        /// The next entry is looked for one entry's size behind the address, wherever that stands in the entry (A03, March 2021): what comes before that
        /// in the next table is passed over.
        const STEPS_UNALIGNED = 1 << 5;
        /// The end is counted from the rounded start (A04, January 2021): it comes a page too early where the start was in the middle of one.
        const END_FROM_ROUNDED_START = 1 << 6;
    }
}

/// Which visit this is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Visit {
    /// A run of leaves, or of entries that map nothing.
    Leaf,
    /// A table entry before its children.
    TablePre,
    /// A table entry after its children.
    TablePost,
}

/// Everything a visitor may need; nothing comes from elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VisitContext {
    /// Which visit.
    pub visit: Visit,
    /// The entry.
    pub ptep: Hpa,
    /// Its word as read.
    pub old: u64,
    /// Entries in progression from here on, at least one; one for tables.
    pub len: u64,
    /// Entries behind those that the walk comes to in the same table, whatever they are.
    pub ahead: u64,
    /// First guest-physical byte it covers.
    pub addr: Gpa,
    /// End of the walk.
    pub end: Gpa,
    /// Level of the entry.
    pub level: Level,
    /// Circumstances.
    pub flags: WalkFlags,
}

/// What a visitor says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Visited {
    /// Go on behind this many entries, of the run and of those ahead; a table entry is descended into.
    Continue(u64),
    /// The entry was replaced by a table, or a table by something else: read it again and go on with what it is now.
    Reload,
    /// Stop: a race was lost (`-EAGAIN`).
    Again,
}

/// A visitor.
pub trait Visitor<F: Format> {
    /// Called for every entry that the flags ask for.
    fn visit(&mut self, host: &Host<F>, context: VisitContext) -> impl Future<Output = Visited>;
}

/// How a walk ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a walk that lost a race did not reach the end of its range"]
pub enum WalkEnd {
    /// At the end of the range.
    Complete,
    /// At an entry that somebody else changed.
    Raced(Gpa),
}

/// A table on the way down.
#[derive(Clone, Copy, Debug)]
struct Frame {
    table: Hpa,
    level: Level,
}

/// Walks `[start, end)` below `root`; both are rounded outward to the smallest page.
pub async fn walk<F: Format, V: Visitor<F>>(
    host: &Host<F>,
    root: Hpa,
    start: Gpa,
    end: Gpa,
    flags: WalkFlags,
    visitor: &mut V,
) -> WalkEnd {
    let format = *host.format();
    let geometry = *format.geometry();
    let granule = geometry.granule();
    let mut addr = start.align_down(granule);
    let end = if flags.contains(WalkFlags::END_FROM_ROUNDED_START) { addr + (end - start) } else { end };
    let end = Gpa::new(end.raw().min(geometry.input_bytes()).next_multiple_of(granule.bytes()));
    let mut path = vec![Frame { table: root, level: geometry.root() }];
    while addr < end {
        let Some(&Frame { table, level }) = path.last() else { break };
        let page = geometry.page_size(level);
        let index = geometry.index(level, addr.raw()) as u64;
        let ptep = table + 8 * index;
        let in_range = (end - addr.align_down(page)).div_ceil(page.bytes());
        let here = in_range.min(geometry.entries(level) as u64 - index);
        let run = host.read_run(ptep, here).await;
        let mut old = run.first;
        let is_table = |word| format.is_mapped(word) && !format.is_leaf(level, word);
        let mut passed = 1;
        let visit = if is_table(old) { Visit::TablePre } else { Visit::Leaf };
        let wanted = if is_table(old) { WalkFlags::TABLE_PRE } else { WalkFlags::LEAF };
        let len = if is_table(old) || !addr.is_aligned(page) { 1 } else { run.len };
        let ahead = if is_table(old) || !addr.is_aligned(page) { 0 } else { here - len };
        if flags.contains(wanted) {
            let context = VisitContext { visit, ptep, old, len, ahead, addr, end, level, flags };
            match visitor.visit(host, context).await {
                Visited::Continue(n) => passed = n.clamp(1, len + ahead),
                Visited::Reload => old = host.read(ptep).await,
                Visited::Again => return WalkEnd::Raced(addr),
            }
        } else if !is_table(old) {
            passed = pass_over(host, ptep, len).await;
        }
        if is_table(old)
            && let Some(down) = level.down()
        {
            path.push(Frame { table: format.next_table(level, old), level: down });
            continue;
        }
        let from = if flags.contains(WalkFlags::STEPS_UNALIGNED) { addr } else { addr.align_down(page) };
        addr = from + passed * page.bytes();
        if let WalkEnd::Raced(addr) = ascend(host, &mut path, addr, end, flags, visitor).await {
            return WalkEnd::Raced(addr);
        }
    }
    WalkEnd::Complete
}

/// Leaves the tables that end before `addr`, or all at the end of the walk, visiting their entries afterwards.
async fn ascend<F: Format, V: Visitor<F>>(
    host: &Host<F>,
    path: &mut Vec<Frame>,
    addr: Gpa,
    end: Gpa,
    flags: WalkFlags,
    visitor: &mut V,
) -> WalkEnd {
    let geometry = *host.format().geometry();
    while let [.., parent, child] = path.as_slice() {
        let (parent, child) = (*parent, *child);
        let page = geometry.page_size(parent.level);
        if addr < end && geometry.index(child.level, addr.raw()) != 0 {
            break;
        }
        path.pop();
        if !flags.contains(WalkFlags::TABLE_POST) {
            continue;
        }
        let covered = Gpa::new(addr.raw() - 1).align_down(page);
        let ptep = parent.table + 8 * geometry.index(parent.level, covered.raw()) as u64;
        let old = host.read(ptep).await;
        let (visit, level) = (Visit::TablePost, parent.level);
        let context = VisitContext { visit, ptep, old, len: 1, ahead: 0, addr: covered, end, level, flags };
        if visitor.visit(host, context).await == Visited::Again {
            return WalkEnd::Raced(covered);
        }
    }
    WalkEnd::Complete
}
