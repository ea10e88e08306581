//! Steps in words.

use crate::engine::{Apply, LockId, LockMode, Op, Var, Work};

fn lock(lock: LockId) -> String {
    match lock {
        LockId::MMU => "mmu_lock".to_owned(),
        LockId::SLOTS => "slots_lock".to_owned(),
        LockId::INVALIDATE => "mn_invalidate_lock".to_owned(),
        LockId::GPC_LIST => "gpc_lock".to_owned(),
        LockId::SRCU => "srcu mutex".to_owned(),
        LockId(number) => format!("lock {number}"),
    }
}

fn var(var: Var) -> String {
    let name = match var {
        Var::INVALIDATE_SEQ => "mmu_invalidate_seq",
        Var::IN_PROGRESS => "mmu_invalidate_in_progress",
        Var::RANGE_START => "mmu_invalidate_range_start",
        Var::RANGE_END => "mmu_invalidate_range_end",
        Var::ACTIVE_INVALIDATIONS => "mn_active_invalidate_count",
        Var::MEMSLOTS => "memslots",
        Var::SRCU_INDEX => "srcu index",
        Var(number) => return format!("variable {number}"),
    };
    name.to_owned()
}

/// An operation, before it is performed.
pub(crate) fn operation(op: &Op) -> String {
    match *op {
        Op::Read(at) => format!("read {at}"),
        Op::ReadRun(at, ..) => format!("read entry {at}"),
        Op::Write(at, word, _) => format!("write {at} = {word:#x}"),
        Op::Cmpxchg(at, old, new) => format!("cmpxchg {at}: {old:#x} -> {new:#x}"),
        Op::Xchg(at, new) => format!("xchg {at} = {new:#x}"),
        Op::FetchAnd(at, mask) => format!("and {at} with {mask:#x}"),
        Op::FetchOr(at, mask) => format!("or {at} with {mask:#x}"),
        Op::Run(run) => {
            let what = match run.apply {
                Apply::Nothing => "pass".to_owned(),
                Apply::Set(word) => format!("set to {word:#x}"),
                Apply::Fill { first, .. } => format!("fill from {first:#x}"),
                Apply::Mask { and, or } => format!("and {and:#x}, or {or:#x}"),
            };
            let zap = if run.work == Some(Work::ReleaseLeaf) { "zap, " } else { "" };
            format!("{zap}{what}: {} entries at {}", run.len, run.at)
        }
        Op::Age(run) => format!("age {}", run.at),
        Op::Alloc(level) => format!("allocate a table of {level}"),
        Op::Free(frames) => format!("free table {} at once", frames.first),
        Op::CallRcu(frames) => format!("call_rcu: table {}", frames.first),
        Op::SynchronizeRcu => "synchronize_rcu".to_owned(),
        Op::RcuLock => "rcu_read_lock".to_owned(),
        Op::RcuUnlock => "rcu_read_unlock".to_owned(),
        Op::Lock(id, LockMode::Read) => format!("read_lock {}", lock(id)),
        Op::Lock(id, LockMode::Write) => format!("lock {}", lock(id)),
        Op::Unlock(id) => format!("unlock {}", lock(id)),
        Op::NeedResched(id) => format!("need_resched, or is {} wanted?", lock(id)),
        Op::Reschedule => "cond_resched".to_owned(),
        Op::Flush(flush) => format!("flush {:?}, walk caches {:?}, {:?}", flush.scope, flush.walk_caches, flush.reach),
        Op::Load(id, _) => format!("load {}", var(id)),
        Op::Store(id, value, _) => format!("store {} = {value:#x}", var(id)),
        Op::Add(id, by) => format!("{} += {by}", var(id)),
        Op::CmpxchgVar(id, old, new) => format!("cmpxchg {}: {old:#x} -> {new:#x}", var(id)),
        Op::XchgVar(id, new) => format!("xchg {} = {new:#x}", var(id)),
        Op::VcpuRun(vcpu) => format!("enter the guest on vcpu {}", vcpu.0),
        Op::LoadRoot(vcpu, root, _) => format!("vcpu {} loads root {root}", vcpu.0),
        Op::SetRoot(root) => format!("the VM's root is {root}"),
        Op::KickAll => "kick all vCPUs".to_owned(),
        Op::ReloadRoots => "make all vCPUs reload their root".to_owned(),
        Op::Primary(op) => format!("host mm: {op:?}"),
        Op::Slots(op) => format!("memslots: {op:?}"),
        other => format!("{other:?}"),
    }
}
