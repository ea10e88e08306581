//! Dirty logging of a memslot: which pages has the guest written since user space asked last?
//!
//! Models `kvm_mmu_slot_apply_flags`, `kvm_get_dirty_log_protect`, `kvm_clear_dirty_log_protect` and `mark_page_dirty_in_slot` of Linux 6.6
//! (`virt/kvm/kvm_main.c`, `arch/x86/kvm/x86.c`), with `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2` (2a31b9db1535, 3c9bd4006bfc) and eager splits
//! (a3fe5dbda0a4, c14d08c5adb2).
//!
//! | call | lock | flush | frees |
//! | --- | --- | --- | --- |
//! | [`enable`] | `slots_lock`; `mmu_lock` in the policy's mode, yielding | once, after the walk | nothing |
//! | [`get_dirty_log`] | `slots_lock`; `mmu_lock` for write, without a break | once, after `mmu_lock` is dropped and before user space copies a page | nothing |
//! | [`clear_dirty_log`] | the same | the same | nothing |
//! | [`mark_page_dirty`] | none: an atomic OR, inside the vCPU's section of `kvm->srcu` | none | nothing |
//! | [`disable`] | `slots_lock`; `mmu_lock` for the collapse | the collapse's | the bitmap, after `synchronize_srcu` |
//!
//! Why no written page is lost: a fault makes the entry writable first and sets the bit afterwards; a harvest takes the bit first and
//! the permission (or the dirty flag) afterwards, and flushes before user space reads the page. Whatever order the two meet in, the
//! bit is either taken with the write already made, or still there for the next harvest.
//!
//! The functions with `_in` go through all valid roots of a VM with several of them; the others through its current one.
//!
//! Writes are noticed in three ways ([`Tracking`]). Rings instead of a bitmap: [`ring`].

mod pages;
mod policy;
mod protect;
pub mod ring;
pub mod vcpu;

use mmu_core::{Bytes, Format, Gpa, GpaRange, Hpa, PageSize, WalkCaches};
use serde::{Deserialize, Serialize};

use super::collapse::{Collapsed, collapse_range};
use super::iter::{FlushDebt, Yield};
use super::roots::{UnmapRoots, VmRoots};
use super::split::{SplitPolicy, Splits, eager_split};
use super::zap::ZapLock;
use crate::engine::{Host, LockId, LockMode, MODIFICATION_LOG_ENTRIES, Var, VcpuId, Work, words_at};

use pages::{Bitmap, WORD, range};
use protect::Walk;

pub use pages::DirtyPages;
pub use policy::{Breaks, DirtyError, DirtyPolicy, HarvestFlush, Initially, LostRace, Manual, SplitWhen, Tracking};
pub use protect::Protected;

/// A memslot with its dirty log: a handle that everybody has a copy of. What changes is in the shared variable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirtyLog {
    /// Guest-physical pages of the slot.
    pub slot: GpaRange,
    /// `memslot->dirty_bitmap`: address of its first word, 0 while logging is off; with rings, any other number while it is on.
    pub bitmap: Var,
    /// Size of its pages: the second stage's smallest.
    pub page: PageSize,
    /// Where dirty pages are noted.
    pub kind: LogKind,
}

/// Where dirty pages are noted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogKind {
    /// In a bitmap of the slot.
    Bitmap,
    /// In the rings of the vCPUs.
    Rings,
}

impl DirtyLog {
    /// A slot whose log is off; `bitmap` is a variable of its own that holds 0.
    pub const fn new(slot: GpaRange, bitmap: Var, page: PageSize, kind: LogKind) -> Self {
        Self { slot, bitmap, page, kind }
    }

    /// The `n`th of slots that are as large as this one and lie behind it, each with a variable of its own: made one after the other.
    pub fn nth(&self, n: u64) -> Self {
        let start = self.slot.start + n * self.slot.bytes.0;
        Self { slot: GpaRange::new(start, self.slot.bytes), bitmap: Var(self.bitmap.0 + n as u32), ..*self }
    }

    /// Pages of the slot.
    pub fn pages(&self) -> u64 {
        self.slot.bytes.0 >> self.page.shift()
    }

    fn page_of(&self, gpa: Gpa) -> Option<u64> {
        (gpa >= self.slot.start && gpa < self.slot.end()).then(|| (gpa - self.slot.start) >> self.page.shift())
    }

    async fn load<F: Format>(&self, host: &Host<F>) -> Option<Bitmap> {
        let first = host.load_acquire(self.bitmap).await;
        (first != 0 && self.kind == LogKind::Bitmap).then_some(Bitmap { first: Hpa::new(first), pages: self.pages() })
    }

    /// Whether writes to this address are logged.
    pub async fn is_on<F: Format>(&self, host: &Host<F>, gpa: Gpa) -> bool {
        self.page_of(gpa).is_some() && host.load_acquire(self.bitmap).await != 0
    }
}

/// What switching logging on did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Enabled {
    /// Large pages that were split.
    pub splits: Splits,
    /// What the walk over the slot did.
    pub protected: Protected,
}

/// Switches logging on (`KVM_SET_USER_MEMORY_REGION` with `KVM_MEM_LOG_DIRTY_PAGES`).
///
/// # Errors
/// A tracking that the format has not, no memory, logging that is on, a failed split: then logging is on all the same.
pub async fn enable<F: Format>(host: &Host<F>, log: &DirtyLog, policy: &DirtyPolicy) -> Result<Enabled, DirtyError> {
    enable_in(host, &VmRoots::Current, log, policy).await
}

/// [`enable`] in all valid roots of a VM.
///
/// # Errors
/// As [`enable`].
pub async fn enable_in<F: Format>(
    host: &Host<F>,
    roots: &VmRoots<F>,
    log: &DirtyLog,
    policy: &DirtyPolicy,
) -> Result<Enabled, DirtyError> {
    policy.check(host.format())?;
    host.lock(LockId::SLOTS, LockMode::Write).await;
    let enabled = enable_locked(host, roots, log, policy).await;
    host.unlock(LockId::SLOTS).await;
    enabled
}

async fn enable_locked<F: Format>(
    host: &Host<F>,
    roots: &VmRoots<F>,
    log: &DirtyLog,
    policy: &DirtyPolicy,
) -> Result<Enabled, DirtyError> {
    if host.load(log.bitmap).await != 0 {
        return Err(DirtyError::AlreadyOn);
    }
    // The bitmap's content is visible before the bitmap is.
    host.store_release(log.bitmap, new_bitmap(host, log, policy).await?).await;
    swap_memslots(host).await;
    if policy.tracking == Tracking::ModificationLog {
        host.set_modification_log(MODIFICATION_LOG_ENTRIES).await;
        host.kick_all().await;
    }
    let mut enabled = Enabled::default();
    if policy.initially == Initially::AllSet {
        return Ok(enabled);
    }
    if let SplitWhen::Eagerly(split) = policy.split {
        enabled.splits = split_slot(host, roots, log.slot, log.page, &split).await?;
    }
    // `kvm_mmu_slot_remove_write_access`: the chains first, always under the lock for write.
    let mut debt = FlushDebt::Clean;
    if let Some(shadow) = roots.shadow() {
        host.lock(LockId::MMU, LockMode::Write).await;
        debt = shadow.write_protect(host, log.slot).await;
        host.unlock(LockId::MMU).await;
    }
    host.lock(LockId::MMU, policy.lock.mode()).await;
    let mut walk = Walk::new(host, policy, policy.lock, policy.yielding());
    let mut next = roots.next_yield_safe(host, None, UnmapRoots::ValidOnly, policy.lock).await;
    while let Some(root) = next {
        // A yield in one root flushes for those before it.
        walk.slot(root.table, log.slot).await;
        next = roots.next_yield_safe(host, next, UnmapRoots::ValidOnly, policy.lock).await;
    }
    let (debt, protected) = (debt.merge(walk.debt), walk.done);
    host.unlock(LockId::MMU).await;
    // `kvm_arch_flush_remote_tlbs_memslot`: from here on every first write is noticed.
    if debt == FlushDebt::Owed {
        flush(host, log, policy).await;
    }
    host.dirty_log_begins().await;
    enabled.protected = protected;
    Ok(enabled)
}

/// What the slot's variable says while logging is on: where the bitmap is.
async fn new_bitmap<F: Format>(host: &Host<F>, log: &DirtyLog, policy: &DirtyPolicy) -> Result<u64, DirtyError> {
    if log.kind == LogKind::Rings {
        return Ok(1);
    }
    let words = Bitmap::words(log.pages());
    let frames = host.alloc_words(words).await.ok_or(DirtyError::NoMemory { words })?;
    // `kvm_alloc_dirty_bitmap` takes twice as much: what a harvest hands out is put together in the other half.
    host.spend(Work::ZeroPages(frames.count)).await;
    if policy.initially == Initially::AllSet {
        Bitmap { first: frames.first, pages: log.pages() }.fill(host).await;
    }
    Ok(frames.first.raw())
}

/// `kvm_swap_active_memslots`: when this returns nobody acts on the slot as it was before. vCPUs handle exits inside a section of
/// `kvm->srcu`.
async fn swap_memslots<F: Format>(host: &Host<F>) {
    host.synchronize_srcu().await;
}

async fn split_slot<F: Format>(
    host: &Host<F>,
    roots: &VmRoots<F>,
    slot: GpaRange,
    to: PageSize,
    policy: &SplitPolicy,
) -> Result<Splits, DirtyError> {
    host.lock(LockId::MMU, policy.lock.mode()).await;
    let mut all = Ok(Splits::default());
    let mut next = roots.next_yield_safe(host, None, policy.roots, policy.lock).await;
    while let Some(root) = next {
        if let Ok(done) = all {
            all = eager_split(host, root.table, slot, to, policy).await.map(|one| done.merge(&one));
        }
        // To the end in any case: the walk has a reference.
        next = roots.next_yield_safe(host, next, policy.roots, policy.lock).await;
    }
    host.unlock(LockId::MMU).await;
    all.map_err(DirtyError::Split)
}

/// `mark_page_dirty_in_slot`: after the page has become writable, so that a harvest in between finds either the bit or the permission.
pub async fn mark_page_dirty<F: Format>(host: &Host<F>, log: &DirtyLog, gpa: Gpa) {
    let Some(page) = log.page_of(gpa) else { return };
    if let Some(bitmap) = log.load(host).await {
        bitmap.set(host, page).await;
    }
}

/// Turns what a vCPU's processor has logged into bits (`vmx_flush_pml_buffer`). For the vCPU's thread, after every exit, inside its section of
/// `kvm->srcu`.
pub async fn flush_modification_log<F: Format>(host: &Host<F>, log: &DirtyLog, vcpu: VcpuId) -> u64 {
    let mut pages = 0;
    while let Some(gpa) = host.pop_modified(vcpu).await {
        mark_page_dirty(host, log, gpa).await;
        pages += 1;
    }
    pages
}

/// The dirty pages of the slot (`KVM_GET_DIRTY_LOG`). With [`Manual::Off`] they are clean when this returns, else they stay dirty until they are
/// cleared.
///
/// # Errors
/// Logging that is off.
pub async fn get_dirty_log<F: Format>(
    host: &Host<F>,
    log: &DirtyLog,
    policy: &DirtyPolicy,
) -> Result<DirtyPages, DirtyError> {
    get_dirty_log_in(host, &VmRoots::Current, log, policy).await
}

/// [`get_dirty_log`] of a VM with several roots.
///
/// # Errors
/// As [`get_dirty_log`].
pub async fn get_dirty_log_in<F: Format>(
    host: &Host<F>,
    roots: &VmRoots<F>,
    log: &DirtyLog,
    policy: &DirtyPolicy,
) -> Result<DirtyPages, DirtyError> {
    host.lock(LockId::SLOTS, LockMode::Write).await;
    let got = match log.load(host).await {
        None => Err(DirtyError::Off),
        Some(bitmap) => Ok(get_locked(host, roots, log, bitmap, policy).await),
    };
    host.unlock(LockId::SLOTS).await;
    let dirty = got?;
    if policy.manual == Manual::Off {
        report(host, log, &dirty).await;
    }
    Ok(dirty)
}

/// From here on user space may copy these pages, and need not do so again until they are written again.
async fn report<F: Format>(host: &Host<F>, log: &DirtyLog, dirty: &DirtyPages) {
    for &run in dirty.runs() {
        host.reported_dirty(range(log.slot.start, log.page, run)).await;
    }
}

async fn get_locked<F: Format>(
    host: &Host<F>,
    roots: &VmRoots<F>,
    log: &DirtyLog,
    bitmap: Bitmap,
    policy: &DirtyPolicy,
) -> DirtyPages {
    sync(host, policy).await;
    match (policy.manual, policy.tracking) {
        (Manual::On, Tracking::WriteProtect | Tracking::ModificationLog) => bitmap.read(host, 0, bitmap.pages).await,
        (Manual::On, Tracking::Scan) => {
            // What the scan finds has to be kept until it is cleared.
            let dirty = scan(host, roots, log, bitmap, policy, (0, bitmap.pages)).await;
            for &(first, count) in dirty.runs() {
                bitmap.set_run(host, first, count).await;
            }
            dirty
        }
        (Manual::Off, _) => harvest(host, roots, log, bitmap, policy, &[(0, bitmap.pages)]).await,
    }
}

/// `kvm_arch_sync_dirty_log`: what processors have logged becomes bits, because every exit empties the log.
async fn sync<F: Format>(host: &Host<F>, policy: &DirtyPolicy) {
    if policy.tracking == Tracking::ModificationLog {
        host.kick_all().await;
    }
}

/// Makes pages clean (`KVM_CLEAR_DIRTY_LOG`): those of `dirty` inside `count` pages from `first` on. User space calls it for one chunk
/// after the other, so that nobody waits long for `mmu_lock`. Returns those that were dirty.
///
/// # Errors
/// Logging that is off; a failed split, after which the pages are clean all the same.
pub async fn clear_dirty_log<F: Format>(
    host: &Host<F>,
    log: &DirtyLog,
    policy: &DirtyPolicy,
    pages: (u64, u64),
    dirty: &DirtyPages,
) -> Result<DirtyPages, DirtyError> {
    clear_dirty_log_in(host, &VmRoots::Current, log, policy, pages, dirty).await
}

/// [`clear_dirty_log`] in all valid roots of a VM.
///
/// # Errors
/// As [`clear_dirty_log`].
pub async fn clear_dirty_log_in<F: Format>(
    host: &Host<F>,
    roots: &VmRoots<F>,
    log: &DirtyLog,
    policy: &DirtyPolicy,
    (first, count): (u64, u64),
    dirty: &DirtyPages,
) -> Result<DirtyPages, DirtyError> {
    host.lock(LockId::SLOTS, LockMode::Write).await;
    let Some(bitmap) = log.load(host).await else {
        host.unlock(LockId::SLOTS).await;
        return Err(DirtyError::Off);
    };
    sync(host, policy).await;
    let asked: Vec<(u64, u64)> = dirty.within(first, count.min(bitmap.pages.saturating_sub(first))).collect();
    let mut split = Ok(Splits::default());
    if let (SplitWhen::Eagerly(eagerly), Initially::AllSet) = (policy.split, policy.initially)
        && let (Some(&(from, _)), Some(&(last, len))) = (asked.first(), asked.last())
    {
        let pages = range(log.slot.start, log.page, (from, last + len - from));
        split = split_slot(host, roots, pages, log.page, &eagerly).await;
    }
    let cleared = harvest(host, roots, log, bitmap, policy, &asked).await;
    host.unlock(LockId::SLOTS).await;
    report(host, log, &cleared).await;
    split.map(|_| cleared)
}

/// Takes bits, and W or dirty flags with them, under `mmu_lock`; flushes afterwards.
async fn harvest<F: Format>(
    host: &Host<F>,
    roots: &VmRoots<F>,
    log: &DirtyLog,
    bitmap: Bitmap,
    policy: &DirtyPolicy,
    asked: &[(u64, u64)],
) -> DirtyPages {
    if policy.tracking == Tracking::Scan {
        let mut dirty = DirtyPages::new();
        for &pages in asked {
            dirty = dirty.union(&scan(host, roots, log, bitmap, policy, pages).await);
        }
        return dirty;
    }
    let mut dirty = DirtyPages::new();
    host.lock(LockId::MMU, LockMode::Write).await;
    let mut walk = Walk::new(host, policy, ZapLock::Write, Yield::Never);
    for &(first, count) in asked {
        let mut at = first;
        while at < first + count {
            // Bits first, permissions afterwards, one batch after the other.
            let next = ((at / BATCH + 1) * BATCH).min(first + count);
            let taken = bitmap.take(host, at, next - at).await;
            let mut next_root = roots.next(host, None, UnmapRoots::ValidOnly).await;
            while let Some(root) = next_root {
                protect_masked(&mut walk, log, root.table, &taken).await;
                next_root = roots.next(host, next_root, UnmapRoots::ValidOnly).await;
            }
            for &(first, count) in taken.runs() {
                if let Some(shadow) = roots.shadow() {
                    let l1 = range(log.slot.start, log.page, (first, count));
                    walk.debt = walk.debt.merge(shadow.write_protect(host, l1).await);
                }
                dirty.push(first, count);
            }
            at = next;
        }
    }
    let debt = walk.debt;
    host.unlock(LockId::MMU).await;
    if debt == FlushDebt::Owed {
        flush(host, log, policy).await;
    }
    dirty
}

/// Pages between two changes from taking bits to taking permissions. The kernel goes word by word; where whole words are dirty their
/// walks are charged as if it did.
const BATCH: u64 = 512 * WORD;

/// `kvm_arch_mmu_enable_log_dirty_pt_masked` for every word of the bitmap that had a bit.
async fn protect_masked<F: Format>(walk: &mut Walk<'_, F>, log: &DirtyLog, root: Hpa, taken: &DirtyPages) {
    // A step down reads an entry again and the first one below.
    let descent = 2 * (walk.host.format().geometry().levels() as u64 - 1);
    let mut partial: Option<(u64, u64)> = None;
    for &(first, count) in taken.runs() {
        let mut at = first;
        while at < first + count {
            let (word, bit) = (at / WORD, at % WORD);
            let whole = if bit == 0 { (first + count - at) / WORD } else { 0 };
            if whole > 0 {
                flush_partial(walk, log, root, &mut partial).await;
                walk.range(root, range(log.slot.start, log.page, (at, whole * WORD))).await;
                // One walk from the root has been made here, the kernel makes one for each word.
                walk.host.visit_entries(descent * (whole - 1)).await;
                at += whole * WORD;
                continue;
            }
            let len = (WORD - bit).min(first + count - at);
            let bits = (u64::MAX >> (WORD - len)) << bit;
            match &mut partial {
                Some((of, mask)) if *of == word => *mask |= bits,
                _ => {
                    flush_partial(walk, log, root, &mut partial).await;
                    partial = Some((word, bits));
                }
            }
            at += len;
        }
    }
    flush_partial(walk, log, root, &mut partial).await;
}

async fn flush_partial<F: Format>(walk: &mut Walk<'_, F>, log: &DirtyLog, root: Hpa, partial: &mut Option<(u64, u64)>) {
    let Some((word, bits)) = partial.take() else { return };
    // From the first set bit to the last.
    let (low, high) = (u64::from(bits.trailing_zeros()), u64::from(64 - bits.leading_zeros()));
    let pages = range(log.slot.start, log.page, (word * WORD + low, high - low));
    walk.masked(root, pages, bits >> low).await;
}

/// A harvest that looks at the leaves themselves; what faults have noted in the bitmap is taken too.
async fn scan<F: Format>(
    host: &Host<F>,
    roots: &VmRoots<F>,
    log: &DirtyLog,
    bitmap: Bitmap,
    policy: &DirtyPolicy,
    (first, count): (u64, u64),
) -> DirtyPages {
    let noted = bitmap.take(host, first, count).await;
    host.lock(LockId::MMU, LockMode::Write).await;
    let mut walk = Walk::new(host, policy, ZapLock::Write, Yield::Never);
    let mut found = DirtyPages::new();
    let mut next = roots.next_yield_safe(host, None, UnmapRoots::ValidOnly, ZapLock::Write).await;
    while let Some(root) = next {
        walk.found = Some(DirtyPages::new());
        walk.slot(root.table, range(log.slot.start, log.page, (first, count))).await;
        found = found.union(&walk.found.take().unwrap_or_default());
        next = roots.next_yield_safe(host, next, UnmapRoots::ValidOnly, ZapLock::Write).await;
    }
    let debt = walk.debt;
    let base = log.slot.start.raw() >> log.page.shift();
    let mut scanned = DirtyPages::new();
    for (from, len) in found.within(base + first, count) {
        scanned.push(from - base, len);
    }
    // A large page may reach beyond what was asked for: its other pages have lost their dirty flag too.
    for (from, end) in [(base, base + first), (base + first + count, base + bitmap.pages)] {
        for (from, len) in found.within(from, end - from) {
            bitmap.set_run(host, from - base, len).await;
        }
    }
    host.unlock(LockId::MMU).await;
    if debt == FlushDebt::Owed {
        flush(host, log, policy).await;
    }
    scanned.union(&noted)
}

/// Makes sure that no processor uses a translation from before.
async fn flush<F: Format>(host: &Host<F>, log: &DirtyLog, policy: &DirtyPolicy) {
    match policy.flush {
        HarvestFlush::Slot | HarvestFlush::EachEntry => host.flush_range(log.slot, WalkCaches::Keep).await,
        HarvestFlush::ShortRange => {
            let bytes = Bytes(log.slot.bytes.0.min(PageSize::SIZE_1G.bytes()));
            host.flush_range(GpaRange::new(log.slot.start, bytes), WalkCaches::Keep).await;
        }
    }
}

/// Switches logging off; small pages are collapsed by the policy, where the primary MMU has large ones up to `most`.
///
/// # Errors
/// Logging that is off.
pub async fn disable<F: Format>(
    host: &Host<F>,
    log: &DirtyLog,
    policy: &DirtyPolicy,
    most: PageSize,
) -> Result<Collapsed, DirtyError> {
    disable_in(host, &VmRoots::Current, log, policy, most).await
}

/// [`disable`] in all valid roots of a VM.
///
/// # Errors
/// As [`disable`].
pub async fn disable_in<F: Format>(
    host: &Host<F>,
    roots: &VmRoots<F>,
    log: &DirtyLog,
    policy: &DirtyPolicy,
    most: PageSize,
) -> Result<Collapsed, DirtyError> {
    host.lock(LockId::SLOTS, LockMode::Write).await;
    let bitmap = host.xchg_var(log.bitmap, 0).await;
    if bitmap == 0 {
        host.unlock(LockId::SLOTS).await;
        return Err(DirtyError::Off);
    }
    if policy.tracking == Tracking::ModificationLog {
        host.set_modification_log(0).await;
        host.kick_all().await;
    }
    swap_memslots(host).await;
    let mut collapsed = Collapsed::default();
    if let Some(collapse) = policy.collapse {
        host.lock(LockId::MMU, collapse.lock.mode()).await;
        let mut next = roots.next_yield_safe(host, None, UnmapRoots::ValidOnly, collapse.lock).await;
        while let Some(root) = next {
            let one = collapse_range(host, root.table, log.slot, most, &collapse).await;
            collapsed.tables += one.tables;
            collapsed.raced += one.raced;
            next = roots.next_yield_safe(host, next, UnmapRoots::ValidOnly, collapse.lock).await;
        }
        host.unlock(LockId::MMU).await;
    }
    if log.kind == LogKind::Bitmap {
        host.free_tables(words_at(Hpa::new(bitmap), Bitmap::words(log.pages()))).await;
    }
    host.unlock(LockId::SLOTS).await;
    Ok(collapsed)
}
