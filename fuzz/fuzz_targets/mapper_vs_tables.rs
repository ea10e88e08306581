#![no_main]
//! See `mmu_fuzz_targets` for what is checked.

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = mmu_fuzz_targets::run("mapper_vs_tables", data);
});
