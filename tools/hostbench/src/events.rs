//! Events: instructions, system calls, faults, shootdowns, lines that move between processors.

use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use crate::clock::{ticks_per_cycle, timed};
use crate::sys::{self, Access, Barrier, HUGE, Map, PAGE, Use};
use crate::{BenchError, Host, victim};

/// Repetitions of something short.
const MANY: u64 = 20_000;
/// Pages of a fault's sample.
const PAGES: u64 = 4096;

/// A value that was wanted for its price only.
pub(crate) fn touch(value: u64) {
    std::hint::black_box(value);
}

/// Makes nothing for a run, in the form of what makes something.
#[allow(clippy::unnecessary_wraps)]
pub(crate) fn nothing(_: u64) -> Result<(), BenchError> {
    Ok(())
}

pub(crate) fn system<T>(what: &'static str, result: std::io::Result<T>) -> Result<T, BenchError> {
    result.map_err(|error| BenchError::System(what, error))
}

pub(crate) fn map(bytes: u64, purpose: Use) -> Result<Map, BenchError> {
    system("mapping memory", Map::new(bytes, purpose))
}

/// Something short, over and over.
fn repeated(
    host: &mut Host<'_>,
    bench: &'static str,
    variant: &str,
    unit: &'static str,
    times: u64,
    work: impl Fn(),
) -> Result<(), BenchError> {
    let all = || (0..times).for_each(|_| work());
    host.measure((bench, variant, 1, unit), nothing, |()| Ok(timed(times, all)))
}

/// Family `core`.
pub(crate) fn core(host: &mut Host<'_>) -> Result<(), BenchError> {
    let variant = if cfg!(target_arch = "x86_64") { "core_cycle_from_imul" } else { "core_cycle_from_eor" };
    host.measure(("core", variant, 1, "per_op"), nothing, |()| Ok(ticks_per_cycle()))?;
    repeated(host, "core", "syscall_getppid", "per_op", MANY, sys::null_call)?;
    repeated(host, "core", "pause", "per_op", MANY, std::hint::spin_loop)
}

/// Family `vmexit`: what leaves a virtual machine without asking for anything. Outside one it costs what the instruction costs.
pub(crate) fn vmexit(host: &mut Host<'_>) -> Result<(), BenchError> {
    if let Some(leave) = sys::LEAVE_GUEST {
        return repeated(host, "vmexit", "cpuid_loop", "per_exit", 500, leave);
    }
    (host.say)("vmexit: left out, no such instruction for user space");
    Ok(())
}

fn write_all(map: &mut Map, pages: u64) {
    (0..pages).for_each(|page| map.write(page * PAGE, 1));
}

/// Family `fault`.
pub(crate) fn fault(host: &mut Host<'_>) -> Result<(), BenchError> {
    let bytes = PAGES * PAGE;
    let fresh = |_| map(bytes, Use::Small);
    let again = |map: &mut Map| system("giving memory back", map.forget(0..bytes));
    host.measure(("fault", "anon4k_first_write", PAGES, "per_page"), nothing, |()| {
        let mut map = map(bytes, Use::Small)?;
        Ok(timed(PAGES, || write_all(&mut map, PAGES)))
    })?;
    host.measure(("fault", "anon4k_second_write", PAGES, "per_page"), fresh, |map| {
        write_all(map, PAGES);
        Ok(timed(PAGES, || write_all(map, PAGES)))
    })?;
    host.measure(("fault", "dontneed_bulk_per_page", PAGES, "per_page"), fresh, |map| {
        write_all(map, PAGES);
        let mut result = Ok(());
        let ticks = timed(PAGES, || result = again(map));
        result.map(|()| ticks)
    })?;
    host.measure(("fault", "anon4k_write_after_dontneed", PAGES, "per_page"), fresh, |map| {
        write_all(map, PAGES);
        again(map)?;
        Ok(timed(PAGES, || write_all(map, PAGES)))
    })?;
    host.measure(("fault", "munmap_bulk_per_page", PAGES, "per_page"), nothing, |()| {
        let mut map = map(bytes, Use::Small)?;
        write_all(&mut map, PAGES);
        Ok(timed(PAGES, || drop(map)))
    })?;
    host.measure(("fault", "zeropage_first_read", PAGES, "per_page"), nothing, |()| {
        let map = map(bytes, Use::Zeroes)?;
        Ok(timed(PAGES, || (0..PAGES).for_each(|page| touch(map.read(page * PAGE)))))
    })?;
    host.measure(("fault", "thp_first_write_per_2m", 8, "per_2MiB"), nothing, |()| {
        let mut map = map(8 * HUGE, Use::Huge)?;
        Ok(timed(8, || (0..8).for_each(|page| map.write(page * HUGE, 1))))
    })
}

/// Pages of a shootdown: about the number from which on Linux flushes everything.
const SHOT: [u64; 9] = [1, 4, 16, 32, 33, 34, 64, 128, 512];

/// Family `shoot`: changing `n` pages, alone and while another processor runs the same process.
pub(crate) fn shoot(host: &mut Host<'_>) -> Result<(), BenchError> {
    shoot_beside(host, "1t")?;
    with_busy_neighbour(host, |host| shoot_beside(host, "2t"))?;
    victim::shoot(host)
}

fn shoot_beside(host: &mut Host<'_>, who: &str) -> Result<(), BenchError> {
    for n in SHOT {
        let range = 0..n * PAGE;
        let fresh = |_| map(n * PAGE, Use::Small);
        for (name, access, before) in
            [("mprotect_rw_to_r", Access::Read, Access::Write), ("mprotect_r_to_rw", Access::Write, Access::Read)]
        {
            host.measure(("shoot", &format!("{name}_{who}"), n, "per_call"), fresh, |map| {
                system("changing protection", map.protect(range.clone(), Access::Write))?;
                write_all(map, n);
                system("changing protection", map.protect(range.clone(), before))?;
                (0..n).for_each(|page| touch(map.read(page * PAGE)));
                let mut result = Ok(());
                let ticks = timed(1, || result = map.protect(range.clone(), access));
                system("changing protection", result).map(|()| ticks)
            })?;
        }
        host.measure(("shoot", &format!("dontneed_{who}"), n, "per_call"), fresh, |map| {
            write_all(map, n);
            let mut result = Ok(());
            let ticks = timed(1, || result = map.forget(range.clone()));
            system("giving memory back", result).map(|()| ticks)
        })?;
        host.measure(("shoot", &format!("munmap_{who}"), n, "per_call"), nothing, |()| {
            let mut map = map(n * PAGE, Use::Small)?;
            write_all(&mut map, n);
            Ok(timed(1, || drop(map)))
        })?;
    }
    Ok(())
}

/// Does something while another thread of this process keeps another CPU busy; nothing where there is no other CPU.
fn with_busy_neighbour(
    host: &mut Host<'_>,
    work: impl FnOnce(&mut Host<'_>) -> Result<(), BenchError>,
) -> Result<(), BenchError> {
    let busy = |stopped: &dyn Fn() -> bool| {
        while !stopped() {
            std::hint::spin_loop();
        }
    };
    beside(host, busy, work)
}

/// Does something while another thread of this process does something else on another CPU until it is told to stop; nothing where there
/// is no other CPU.
pub(crate) fn beside(
    host: &mut Host<'_>,
    other: impl FnOnce(&dyn Fn() -> bool) + Send,
    work: impl FnOnce(&mut Host<'_>) -> Result<(), BenchError>,
) -> Result<(), BenchError> {
    let Some(cpu) = host.cpus.1 else {
        (host.say)("two threads: left out, there is one CPU");
        return Ok(());
    };
    let (stop, started) = (AtomicBool::new(false), AtomicBool::new(false));
    let (stop, started) = (&stop, &started);
    thread::scope(|scope| {
        scope.spawn(move || {
            // Where it runs matters to the figures, not to their soundness.
            let _ = sys::pin(cpu);
            started.store(true, Ordering::Release);
            other(&|| stop.load(Ordering::Relaxed));
        });
        while !started.load(Ordering::Acquire) {
            sys::yield_cpu();
        }
        let result = work(host);
        stop.store(true, Ordering::Relaxed);
        result
    })
}

/// Family `atomic`.
pub(crate) fn atomic(host: &mut Host<'_>) -> Result<(), BenchError> {
    let word = AtomicU64::new(0);
    repeated(host, "atomic", "xadd_local", "per_op", MANY, || touch(word.fetch_add(1, Ordering::SeqCst)))?;
    repeated(host, "atomic", "cmpxchg_local", "per_op", MANY, || {
        let _ = word.compare_exchange(word.load(Ordering::Relaxed), 7, Ordering::SeqCst, Ordering::Relaxed);
    })?;
    repeated(host, "atomic", "mfence", "per_op", MANY, sys::full_barrier)?;
    handoff(host)
}

/// A word that two processors hand to each other.
fn handoff(host: &mut Host<'_>) -> Result<(), BenchError> {
    let Some(cpu) = host.cpus.1 else { return Ok(()) };
    const ROUNDS: u64 = 5000;
    const END: u64 = u64::MAX;
    let word = AtomicU64::new(0);
    // Waits until the word changes from `seen`; gives the CPU away now and then, in case both share one.
    let wait = |seen: u64| {
        let mut turns = 0_u32;
        while word.load(Ordering::Acquire) == seen {
            turns += 1;
            if turns.is_multiple_of(1 << 14) {
                sys::yield_cpu();
            }
            std::hint::spin_loop();
        }
        word.load(Ordering::Acquire)
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            let _ = sys::pin(cpu);
            let mut seen = 0;
            loop {
                seen = wait(seen);
                if seen == END {
                    return;
                }
                seen += 1;
                word.store(seen, Ordering::Release);
            }
        });
        let result = host.measure(("atomic", "handoff_store_oneway", 2, "per_op"), nothing, |()| {
            Ok(timed(2 * ROUNDS, || {
                for _ in 0..ROUNDS {
                    let next = word.load(Ordering::Acquire) + 1;
                    word.store(next, Ordering::Release);
                    wait(next);
                }
            }))
        });
        word.store(END, Ordering::Release);
        result
    })
}

/// Family `clear`.
pub(crate) fn clear(host: &mut Host<'_>) -> Result<(), BenchError> {
    const COLD: u64 = 64 << 20;
    let filled = |bytes: u64, purpose| {
        let mut map = map(bytes, purpose)?;
        map.clear(0, bytes);
        Ok(map)
    };
    let hot = |_| filled(PAGE, Use::Small);
    host.measure(("clear", "repstosb_4k_L1hot", 1, "per_op"), hot, |map| {
        Ok(timed(2000, || (0..2000).for_each(|_| map.clear(0, PAGE))))
    })?;
    let cold = |_| filled(COLD, Use::Small);
    host.measure(("clear", "repstosb_4k_cold", 1, "per_op"), cold, |map| {
        Ok(timed(COLD / PAGE, || (0..COLD / PAGE).for_each(|page| map.clear(page * PAGE, PAGE))))
    })?;
    let huge = |_| filled(8 * HUGE, Use::Huge);
    host.measure(("clear", "repstosb_2m", 1, "per_2MiB"), huge, |map| {
        Ok(timed(8, || (0..8).for_each(|page| map.clear(page * HUGE, HUGE))))
    })
}

/// Family `sched`.
pub(crate) fn sched(host: &mut Host<'_>) -> Result<(), BenchError> {
    repeated(host, "sched", "sched_yield_alone", "per_op", 5000, sys::yield_cpu)?;
    let (here, other) = host.cpus;
    pipes(host, "pipe_switch_same_cpu_oneway", here)?;
    other.map_or(Ok(()), |cpu| pipes(host, "pipe_wake_other_cpu_oneway", cpu))
}

/// A byte through a pipe to a thread on that CPU, and back.
fn pipes(host: &mut Host<'_>, variant: &str, cpu: usize) -> Result<(), BenchError> {
    const ROUNDS: u64 = 500;
    let (mut there_in, mut there_out) = system("making a pipe", pipe())?;
    let (mut back_in, mut back_out) = system("making a pipe", pipe())?;
    let pass = |from: &mut PipeReader, to: &mut PipeWriter| from.read_exact(&mut [0]).and_then(|()| to.write_all(&[0]));
    let echo = thread::spawn(move || {
        let _ = sys::pin(cpu);
        while pass(&mut there_in, &mut back_out).is_ok() {}
    });
    let result = host.measure(("sched", variant, 1, "per_op"), nothing, |()| {
        let mut result = Ok(());
        let ticks = timed(2 * ROUNDS, || {
            for _ in 0..ROUNDS {
                result = there_out.write_all(&[0]).and_then(|()| back_in.read_exact(&mut [0]));
            }
        });
        system("using a pipe", result).map(|()| ticks)
    });
    // The other end sees that nobody writes any more.
    drop(there_out);
    let _ = echo.join();
    result
}

/// Family `membarrier`.
pub(crate) fn membarrier(host: &mut Host<'_>) -> Result<(), BenchError> {
    if let Err(error) = sys::membarrier(Barrier::RegisterPrivate) {
        (host.say)(&format!("membarrier: left out: {error}"));
        return Ok(());
    }
    barriers(host, "1t")?;
    with_busy_neighbour(host, |host| barriers(host, "2t"))?;
    victim::membarrier(host)
}

fn barriers(host: &mut Host<'_>, who: &str) -> Result<(), BenchError> {
    for (name, which, times) in [("private_expedited", Barrier::Private, 200), ("global_rcu_gp", Barrier::Global, 2)] {
        host.measure(("membarrier", &format!("{name}_{who}"), 1, "per_call"), nothing, |()| {
            let mut result = Ok(());
            let ticks = timed(times, || result = (0..times).try_for_each(|_| sys::membarrier(which)));
            system("making a barrier", result).map(|()| ticks)
        })?;
    }
    Ok(())
}
