//! Counting instructions of one run, and who compiled it.

use std::process::Command;

/// Instructions of this program when it runs a case, loading and set-up included.
pub fn instructions(case: &str, rounds: u64) -> Result<u64, String> {
    let program = std::env::current_exe().map_err(|error| format!("where this program is: {error}"))?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args(["--case", case, &rounds.to_string()])
        .output()
        .map_err(|error| format!("valgrind: {error}; install it, as by: apt-get install valgrind"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{case}, {rounds} rounds, under valgrind: {}\n{said}", output.status));
    }
    // "==123== Collected : 4567890"
    let collected = said.lines().find_map(|line| line.split_once("Collected :"));
    let count = collected.and_then(|(_, count)| count.trim().parse().ok());
    count.ok_or_else(|| format!("{case}: valgrind did not say what it counted:\n{said}"))
}

/// The compiler, as it names itself.
pub fn compiler() -> Result<String, String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().map_err(|error| format!("rustc -vV: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let field = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("?").trim().to_owned();
    Ok(format!("rustc {} {}", field("release:"), field("host:")))
}
