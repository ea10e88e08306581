//! The hypervisor's side, written once as `async` functions over a [`Host`](crate::engine::Host).
//!
//! A protocol reads like the kernel code it models; a historical or buggy variant is a policy value, never a copy. To add a
//! protocol, write one file here: an `async fn` that takes a host, what it works on and a policy.
//!
//! | file | models |
//! | --- | --- |
//! | `aging`, `young` | which pages were touched: clear_young and its kind; the bitmap of `test_clear_young` |
//! | `iter` | `tdp_iter`: resumable pre-order walk of a second-stage tree |
//! | `visit` | `kvm_pgtable_walk`: a tree walk that calls a visitor |
//! | `unmap` | `stage2_unmap`: clearing a range, freeing tables that become empty |
//! | `reclaim` | scans that age: page by page, looking around, walking page tables |
//! | `nested` | a nested guest's shadow tables and reverse maps |
//! | `hpt_switch` | POWER: radix tree to hashed table and back, while agers run |
//! | `zap` | leaf zap of a range, zap of one table, zap of a root |
//! | `split`, `collapse` | huge leaves into tables, eagerly and lazily; tables back into huge leaves |
//! | `roots` | the list of roots, their life cycles, fast zap and unmapping over all of them |
//! | `workqueue` | kernel workers on shared processors |
//! | `nx` | NX huge pages: splitting for execution, and recovery |
//! | `census` | how many leaves of which size a tree holds |
//! | `kvm` | whose KVM it is, for choices that nothing else decides |
//! | `walkers` | write-protecting walkers that yield to each other |
//! | `dirty_log` | dirty logging: which pages has the guest written since user space asked last; bitmaps and rings |
//! | `fault` | a second-stage fault from exit to installed entry |
//! | `protect` | write-protecting a range when dirty logging starts |
//! | `prefault` | `KVM_PRE_FAULT_MEMORY` |
//! | `memory_cache` | tables taken in advance, so that nobody allocates under the lock |
//! | `coalesce` | a table becomes a block again, a block a table |
//! | `teardown` | freeing a subtree that nobody can reach |
//! | `notifier`, `change_pte` | mmu_notifier invalidation of a range around the primary MMU's change; the retry test; a page's new place |
//! | `pfncache` | gfn_to_pfn_cache: users, refreshes, invalidation |
//! | `primary` | what the host's memory management does: MADV_DONTNEED, mprotect, migration, collapse, reclaim |
//! | `slots` | memslot updates; from a guest address to a host page |
//! | `memslot` | fast zap: a new root, the old one torn down behind it |
//! | `vcpu` | a vCPU's thread: enter the guest, handle the exit, again |
//! | `vm` | the beginning and the end of a VM |
//! | `tags` | VMIDs and LPIDs: who owns one, what is flushed by it, and before a guest comes back to a processor |

pub mod aging;
pub mod census;
mod change_pte;
pub mod coalesce;
pub mod collapse;
pub mod dirty_log;
pub mod fault;
pub(crate) mod fault_fast;
mod fault_map;
mod fault_policy;
pub mod hpt_switch;
pub mod iter;
mod kvm;
pub mod memory_cache;
pub mod memslot;
pub mod nested;
pub mod notifier;
pub mod nx;
pub mod pfncache;
pub mod prefault;
pub mod primary;
pub mod protect;
pub mod reclaim;
pub mod roots;
pub mod slots;
pub mod split;
pub mod tags;
pub mod teardown;
pub mod unmap;
pub mod vcpu;
pub mod visit;
pub mod vm;
pub mod walkers;
pub mod workqueue;
pub mod young;
pub mod zap;
