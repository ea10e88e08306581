#![no_main]
//! See `mmu_fuzz_targets` for what is checked.

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = mmu_fuzz_targets::run("matrix", data);
});
