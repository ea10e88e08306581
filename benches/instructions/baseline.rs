//! The committed figures.

use std::fmt::Write;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../benches/instructions/baseline.toml");
const CHANGELOG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../CHANGELOG.md");
/// Growth that fails.
const LIMIT: f64 = 0.03;
/// The same with another compiler than the baseline's.
const LOOSE: f64 = 0.15;

/// What the figures were when somebody wrote them down.
pub struct Baseline {
    /// Whose code was counted.
    pub compiler: String,
    /// Why they were written down last.
    pub reason: String,
    /// Instructions of an operation, by case.
    pub figures: Vec<(String, f64)>,
}

/// What a figure says beside its baseline.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Kept,
    Fell,
    Grew,
    New,
}

impl Verdict {
    pub fn mark(self) -> &'static str {
        match self {
            Verdict::Kept => "",
            Verdict::Fell => "   (less: write it down)",
            Verdict::Grew => "   GREW",
            Verdict::New => "   NOT IN THE BASELINE",
        }
    }
}

impl Baseline {
    pub fn read() -> Result<Self, String> {
        let text = std::fs::read_to_string(FILE).map_err(|error| format!("{FILE}: {error}"))?;
        let table: toml::Table = text.parse().map_err(|error| format!("{FILE}: {error}"))?;
        let word = |name: &str| {
            let found = table.get(name).and_then(toml::Value::as_str);
            found.map(str::to_owned).ok_or_else(|| format!("{FILE}: no {name}"))
        };
        let figures = table.get("figures").and_then(toml::Value::as_table).ok_or(format!("{FILE}: no [figures]"))?;
        let figures = figures.iter().map(|(name, figure)| {
            let figure = figure.as_float().ok_or_else(|| format!("{FILE}: {name}: not a number with a point"))?;
            Ok((name.clone(), figure))
        });
        Ok(Self {
            compiler: word("compiler")?,
            reason: word("reason")?,
            figures: figures.collect::<Result<_, String>>()?,
        })
    }

    pub fn write(&self) -> Result<(), String> {
        let mut text = String::from(
            "# Instructions of one operation of each case; written by\n\
             #   cargo bench -p mmu-sim --bench instructions -- --bless \"REASON\"\n",
        );
        let Self { compiler, reason, .. } = self;
        writeln!(text, "compiler = {compiler:?}\nreason = {reason:?}\n\n[figures]")
            .map_err(|error| error.to_string())?;
        for (name, figure) in &self.figures {
            writeln!(text, "{name:?} = {figure:.3}").map_err(|error| error.to_string())?;
        }
        std::fs::write(FILE, text).map_err(|error| format!("{FILE}: {error}"))
    }

    pub fn of(&self, case: &str) -> Option<f64> {
        self.figures.iter().find(|(name, _)| name == case).map(|&(_, figure)| figure)
    }

    /// How much a figure may grow with this compiler.
    pub fn limit(&self, compiler: &str) -> f64 {
        if self.compiler == compiler { LIMIT } else { LOOSE }
    }

    /// A figure beside the baseline, and the change in percent.
    pub fn judge(&self, case: &str, now: f64, limit: f64) -> (Verdict, String) {
        let Some(before) = self.of(case) else { return (Verdict::New, "-".into()) };
        let change = now / before - 1.0;
        let verdict = match change {
            change if change > limit => Verdict::Grew,
            change if change < -LIMIT => Verdict::Fell,
            _ => Verdict::Kept,
        };
        (verdict, format!("{:+.1} %", 100.0 * change))
    }

    /// The reason is told to everybody, not only to who reads the baseline.
    pub fn check_reason(&self) -> Result<(), String> {
        let told = std::fs::read_to_string(CHANGELOG).map_err(|error| format!("{CHANGELOG}: {error}"))?;
        let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        if one_line(&told).contains(&one_line(&self.reason)) {
            return Ok(());
        }
        Err(format!(
            "the baseline changed for {:?}, which CHANGELOG.md does not say: add it under Unreleased",
            self.reason
        ))
    }
}
