//! The program `mmusim`; everything is in the library part, so that tests can call it.

use std::process::ExitCode;

fn main() -> ExitCode {
    mmusim_cli::run(std::env::args_os()).into()
}
