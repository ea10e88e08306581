//! Samples, and tables of them in docs/performance.md.

// Each bench uses a part of it.
#![allow(dead_code)]

use std::fmt;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/performance.md");

/// What a bench was asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// The table on the terminal.
    Print,
    /// And in docs/performance.md.
    Write,
    /// Everything once and small, no figures: `--test`.
    Once,
}

/// Reads the arguments.
pub fn asked() -> Asked {
    let has = |wanted: &str| std::env::args().any(|arg| arg == wanted);
    if has("--test") {
        Asked::Once
    } else if has("--write") {
        Asked::Write
    } else {
        Asked::Print
    }
}

/// Figures of the same thing.
#[derive(Clone, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    pub fn add(&mut self, figure: f64) {
        self.0.push(figure);
    }
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The middle one, and half the distance between the quartiles in percent of it.
    pub fn middle(&self) -> Option<(f64, f64)> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |part: usize| sorted.get((sorted.len().saturating_sub(1)) * part / 4).copied();
        let (low, middle, high) = (at(1)?, at(2)?, at(3)?);
        Some((middle, 50.0 * (high - low) / middle))
    }
}

impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.middle() {
            Some((middle, spread)) if middle < 10.0 => write!(f, "{middle:.2} ±{spread:.0} %"),
            Some((middle, spread)) if middle < 100.0 => write!(f, "{middle:.1} ±{spread:.0} %"),
            Some((middle, spread)) => write!(f, "{middle:.0} ±{spread:.0} %"),
            None => f.write_str("-"),
        }
    }
}

/// Rows under a head, as Markdown, columns aligned.
pub struct Table(Vec<Vec<String>>);

impl Table {
    pub fn new(head: &[&str]) -> Self {
        Self(vec![head.iter().map(|&cell| cell.into()).collect()])
    }
    pub fn row(&mut self, cells: Vec<String>) {
        self.0.push(cells);
    }
    /// Whether there is nothing but the head.
    pub fn is_empty(&self) -> bool {
        self.0.len() < 2
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.0.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.0.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0).max(3)
        };
        for (i, row) in self.0.iter().enumerate() {
            for column in 0..columns {
                let cell = row.get(column).map_or("", String::as_str);
                write!(f, "| {cell:<width$} ", width = width(column))?;
            }
            writeln!(f, "|")?;
            if i == 0 {
                (0..columns).try_for_each(|column| write!(f, "| {} ", "-".repeat(width(column))))?;
                writeln!(f, "|")?;
            }
        }
        Ok(())
    }
}

/// Prints a section, and puts it into docs/performance.md in place of the one of this name if that was asked for.
pub fn publish(asked: Asked, name: &str, command: &str, text: &str) {
    let section = format!("## {name}\n\n`{command}`, {}\n\n{text}", circumstances());
    println!("{section}");
    if asked != Asked::Write {
        return;
    }
    let old = std::fs::read_to_string(FILE).unwrap_or_else(|_| HEAD.into());
    let mark = format!("## {name}\n");
    let (before, rest) = old.split_once(&mark).unwrap_or((&old, ""));
    let after = rest.find("\n## ").map_or("", |at| &rest[at..]);
    let new = format!("{}\n\n{}\n{after}", before.trim_end(), section.trim_end());
    match std::fs::write(FILE, new) {
        Ok(()) => println!("written to {FILE}"),
        Err(error) => eprintln!("{FILE}: {error}"),
    }
}

const HEAD: &str = "# Performance\n\nWritten by the benches that each section names. A figure is the median of its samples, with half the distance \
between the quartiles. Ratios travel between machines, times do not; a loaded machine says so.\n";

/// Machine, compiler, day and load.
fn circumstances() -> String {
    let cpu = read("/proc/cpuinfo");
    let model =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("?", |(_, name)| name);
    let threads = std::thread::available_parallelism().map_or(0, usize::from);
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or("?");
    let rustc = Command::new("rustc")
        .arg("-V")
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    format!("{model}, {threads} processors, load {load}, {}, {}", rustc.unwrap_or_default(), today())
}

fn read(file: &str) -> String {
    std::fs::read_to_string(file).unwrap_or_default()
}

/// Most memory that this process has held so far, in MiB.
pub fn peak_mib() -> u64 {
    let status = read("/proc/self/status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default().to_owned();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) / 1024
}

/// The day as `2026-11-21`.
fn today() -> String {
    let days = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() / 86_400);
    // Days since 0000-03-01 in eras of 400 years: a year that begins in March has its odd day at the end.
    let day = days + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let (date, month) = (of_year - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    format!("{}-{month:02}-{date:02}", 400 * era + year + u64::from(month <= 2))
}
