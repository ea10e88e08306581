//! Rows, the runs of their chases, and the search over structures.

use std::collections::{BTreeMap, BTreeSet};

use mmu_core::Format;
use mmu_core::machine::Machine;
use rayon::prelude::*;

use super::constants::{PRICES, STRUCTURES, Setting, Spot};
use super::{Fit, Fitted, family, prices};
use crate::chase::{Counts, Effort};
use crate::curve::Curve;
use crate::layout::{LayoutError, Surroundings};
use crate::prediction::{Prediction, cycles, placements};
use crate::score::{Band, Measured, Scored};
use crate::software;

/// A row that belongs to a family.
pub(super) struct Row<'a> {
    pub(super) measured: &'a Measured,
    pub(super) family: String,
    pub(super) band: Band,
    /// The curve and the number of its chase; `None` for events.
    pub(super) chase: Option<(Curve, usize)>,
}

/// How a chase is run while structures are tried, and when they have been chosen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Run {
    /// In one place, a third as long, and only those that [`Work::is_tried`].
    Tried,
    /// In two places.
    Chosen,
}

/// Rounds over all structures at most.
const ROUNDS: usize = 2;
/// The largest point that is run while structures are tried: beyond it everything misses everything.
const FARTHEST: u64 = 1 << 20;
/// Curves of so many points have every second one run while structures are tried.
const LONG: usize = 12;

/// A choice of structures: the number of each one's value.
type Choice = Vec<usize>;

pub(super) struct Work<'a, F1: Format, F2: Format> {
    /// The sheet with every constant at its beginning.
    neutral: Setting,
    formats: (F1, F2),
    pub(super) rows: Vec<Row<'a>>,
    chases: Vec<(Curve, u64)>,
    /// Chases that are run while structures are tried.
    tried: Vec<bool>,
    seed: u64,
    /// Counts of chases, by the structures that each notices, as far as they were run.
    counted: BTreeMap<(usize, Choice, Run), Counts>,
}

/// The search of one set of rows.
struct Search<'a, 'b> {
    rows: Vec<&'b Row<'a>>,
    best: Choice,
    machine: Machine,
    least: f64,
    /// Structures that the rows notice.
    told: BTreeSet<usize>,
    /// Structures in a row of which no value was better.
    settled: usize,
}

impl<'a, F1: Format, F2: Format> Work<'a, F1, F2> {
    pub(super) fn new(machine: &Machine, formats: (F1, F2), rows: &'a [Measured], seed: u64) -> Self {
        let mut neutral = Setting { machine: machine.clone(), around: Surroundings::default() };
        for price in PRICES {
            if (price.get)(&neutral.machine).is_some() {
                (price.set)(&mut neutral.machine, price.start);
            }
        }
        let mut chases = BTreeSet::new();
        let known = rows.iter().filter_map(|measured| Some((measured, family::family(measured)?)));
        let known: Vec<_> = known.filter(|(measured, _)| is_known(machine, measured)).collect();
        for (measured, _) in &known {
            if let Ok(curve) = measured.variant.parse::<Curve>() {
                chases.insert((curve.alone(), measured.n));
            }
        }
        let chases: Vec<(Curve, u64)> = chases.into_iter().collect();
        let row = |(measured, family): (&'a Measured, String)| {
            let curve = measured.variant.parse::<Curve>().ok();
            let place = |curve: Curve| chases.binary_search(&(curve.alone(), measured.n)).ok();
            let chase = curve.and_then(|curve| Some((curve, place(curve)?)));
            Row { measured, family, band: Band::of(curve.as_ref(), measured.n), chase }
        };
        let rows = known.into_iter().map(row).collect();
        Self { neutral, formats, rows, tried: tried(&chases), chases, seed, counted: BTreeMap::new() }
    }

    pub(super) fn families(&self) -> BTreeSet<String> {
        self.rows.iter().map(|row| row.family.clone()).collect()
    }

    /// The neutral machine with these structures.
    fn with(&self, structures: &[usize]) -> Setting {
        let mut setting = self.neutral.clone();
        for (structure, &value) in STRUCTURES.iter().zip(structures) {
            (structure.values[value].1)(&mut setting);
        }
        setting
    }

    /// The structures as far as a chase can notice them; the others are as at the beginning.
    fn noticed(&self, chase: usize, structures: &[usize]) -> Choice {
        let (curve, n) = &self.chases[chase];
        let value = |(structure, &value): (&super::constants::Structure, &usize)| {
            if (structure.noticed)(curve, *n) { value } else { 0 }
        };
        STRUCTURES.iter().zip(structures).map(value).collect()
    }

    /// Runs the chases on these structures as far as that has not been done.
    fn run(&mut self, choices: &BTreeSet<Choice>, how: Run) -> Result<(), LayoutError> {
        let runs = |chase: &usize| how == Run::Chosen || self.tried[*chase];
        let chases = (0..self.chases.len()).filter(runs);
        let wanted: BTreeSet<(usize, Choice)> = chases
            .flat_map(|chase| choices.iter().map(move |choice| (chase, choice)))
            .map(|(chase, choice)| (chase, self.noticed(chase, choice)))
            .filter(|(chase, choice)| !self.counted.contains_key(&(*chase, choice.clone(), how)))
            .collect();
        let effort = match how {
            Run::Tried => (1, Effort::Third),
            Run::Chosen => (2, Effort::Whole),
        };
        let run = |(chase, choice): (usize, Choice)| {
            let (curve, n) = &self.chases[chase];
            let setting = self.with(&choice);
            let counts = placements(&setting.machine, self.formats, setting.around, (curve, *n), effort, self.seed)?;
            Ok(((chase, choice, how), counts))
        };
        // The long ones first, so that no processor is left with one.
        let mut wanted: Vec<(usize, Choice)> = wanted.into_iter().collect();
        wanted.sort_by_key(|(chase, _)| std::cmp::Reverse(self.chases[*chase].0.pages(self.chases[*chase].1)));
        let counts: Result<Vec<_>, LayoutError> = wanted.into_par_iter().with_max_len(1).map(run).collect();
        self.counted.extend(counts?);
        Ok(())
    }

    /// Counts by chase on these structures, as far as they were run.
    fn counts(&self, structures: &[usize], how: Run) -> Vec<Option<Counts>> {
        let of = |chase| self.counted.get(&(chase, self.noticed(chase, structures), how)).copied();
        (0..self.chases.len()).map(of).collect()
    }

    /// Fits the constants to each of several sets of rows.
    pub(super) fn fit(
        &mut self,
        subsets: &[Vec<usize>],
        progress: &mut dyn FnMut(&str),
    ) -> Result<Vec<Fit>, LayoutError> {
        let rows = std::mem::take(&mut self.rows);
        let fits = self.fit_rows(&rows, subsets, progress);
        self.rows = rows;
        fits
    }

    fn fit_rows(
        &mut self,
        rows: &[Row<'_>],
        subsets: &[Vec<usize>],
        progress: &mut dyn FnMut(&str),
    ) -> Result<Vec<Fit>, LayoutError> {
        let start = vec![0; STRUCTURES.len()];
        let machine = self.with(&start).machine;
        let search = |subset: &Vec<usize>| Search {
            rows: subset.iter().map(|&row| &rows[row]).filter(|row| row.chase.is_some()).collect(),
            best: start.clone(),
            machine: machine.clone(),
            least: f64::INFINITY,
            told: BTreeSet::new(),
            settled: 0,
        };
        let mut searches: Vec<Search<'_, '_>> = subsets.iter().map(search).collect();
        self.search(&mut searches, progress)?;
        progress("the prices of the structures that were chosen");
        self.run(&searches.iter().map(|search| search.best.clone()).collect(), Run::Chosen)?;
        let events = |subset: &Vec<usize>| -> Vec<&Row<'_>> {
            subset.iter().map(|&row| &rows[row]).filter(|row| row.chase.is_none()).collect()
        };
        Ok(searches.into_par_iter().zip(subsets).map(|(search, subset)| self.finish(search, &events(subset))).collect())
    }

    /// Tries every value of every structure, the others as they are, until none is better.
    fn search(&mut self, searches: &mut [Search<'_, '_>], progress: &mut dyn FnMut(&str)) -> Result<(), LayoutError> {
        progress("structures as they begin");
        self.attempt(searches, |search| Some(search.best.clone()))?;
        for number in (0..STRUCTURES.len()).cycle().take(ROUNDS * STRUCTURES.len()) {
            let before: Vec<f64> = searches.iter().map(|search| search.least).collect();
            for (value, (name, _)) in STRUCTURES[number].values.iter().enumerate() {
                progress(&format!("{}: {name}", STRUCTURES[number].spot));
                self.attempt(searches, |search| {
                    let differs = search.best[number] != value && search.settled < STRUCTURES.len();
                    let mut tried = search.best.clone();
                    tried[number] = value;
                    differs.then_some(tried)
                })?;
            }
            for (search, before) in searches.iter_mut().zip(before) {
                search.settled = if search.least < before { 0 } else { search.settled + 1 };
            }
        }
        Ok(())
    }

    /// Every search tries a choice, if it has one.
    fn attempt(
        &mut self,
        searches: &mut [Search<'_, '_>],
        choice: impl Fn(&Search<'_, '_>) -> Option<Choice>,
    ) -> Result<(), LayoutError> {
        let choose = |search: &Search<'_, '_>| if search.rows.is_empty() { None } else { choice(search) };
        let choices: Vec<Option<Choice>> = searches.iter().map(choose).collect();
        self.run(&choices.iter().flatten().cloned().collect(), Run::Tried)?;
        let work = &*self;
        let pairs = searches.par_iter_mut().zip(choices).with_max_len(1);
        pairs.for_each(|(search, choice)| {
            if let Some(choice) = choice {
                search.judge(choice, work);
            }
        });
        Ok(())
    }

    /// The last fit of the prices, and all that was found.
    fn finish(&self, mut search: Search<'_, '_>, events: &[&Row<'_>]) -> Fit {
        // Events cost what the sheet says; no run changes them.
        let (_, by_events) = prices::fit(&mut search.machine, &[], events);
        let counts = self.counts(&search.best, Run::Chosen);
        let (_, by_curves) = prices::fit(&mut search.machine, &counts, &search.rows);
        let machine = search.machine;
        let structure = |(number, structure): (usize, &super::constants::Structure)| Fitted {
            place: place(&machine, structure.spot),
            value: search.told.contains(&number).then(|| structure.values[search.best[number]].0.to_owned()),
            from: structure.from,
        };
        let mut constants: Vec<Fitted> = STRUCTURES.iter().enumerate().map(structure).collect();
        for (number, price) in PRICES.iter().enumerate() {
            let Some(value) = (price.get)(&machine) else { continue };
            let said = by_curves.contains(&number) || by_events.contains(&number);
            let value = said.then(|| format!("{value:.2}"));
            constants.push(Fitted { place: place(&machine, price.spot), value, from: price.from });
        }
        let around = self.with(&search.best).around;
        Fit { setting: Setting { machine, around }, constants, structures: search.best }
    }

    /// Rows with what a fit of this work predicts.
    pub(super) fn scored(&self, fit: &Fit, rows: &[usize]) -> Vec<Scored> {
        let counts = self.counts(&fit.structures, Run::Chosen);
        let machine = &fit.setting.machine;
        let scored = |&row: &usize| {
            let row = &self.rows[row];
            let cycles = predicted(machine, &counts, row)?;
            let (curve, n, ns) = (row.measured.variant.clone(), row.measured.n, cycles / machine.clock.ghz());
            Some(Scored::new(row.measured.clone(), Prediction { curve, n, cycles, ns, events: None }))
        };
        rows.iter().filter_map(scored).collect()
    }
}

impl Search<'_, '_> {
    /// Takes a choice if its error is the least so far.
    fn judge<F1: Format, F2: Format>(&mut self, choice: Choice, work: &Work<'_, F1, F2>) {
        let mut machine = work.with(&choice).machine;
        copy_prices(&self.machine, &mut machine);
        let counts = work.counts(&choice, Run::Tried);
        let (error, _) = prices::fit(&mut machine, &counts, &self.rows);
        let so_far = work.counts(&self.best, Run::Tried);
        let chases = self.rows.iter().filter_map(|row| row.chase);
        let differs = chases.into_iter().any(|(_, chase)| counts[chase] != so_far[chase]);
        self.told.extend((0..choice.len()).filter(|&number| differs && choice[number] != self.best[number]));
        if error < self.least {
            (self.least, self.best, self.machine) = (error, choice, machine);
        }
    }
}

/// Which chases are run while structures are tried: none that is too large, and of a curve with many points every second.
fn tried(chases: &[(Curve, u64)]) -> Vec<bool> {
    let points = |curve: &Curve| chases.iter().filter(|(other, _)| other == curve).count();
    let before = |chase: usize| chases[..chase].iter().filter(|(other, _)| *other == chases[chase].0).count();
    let is_tried = |(chase, (curve, n)): (usize, &(Curve, u64))| {
        curve.pages(*n) <= FARTHEST && (points(curve) < LONG || before(chase).is_multiple_of(2))
    };
    chases.iter().enumerate().map(is_tried).collect()
}

/// Whether a row can be predicted and judged at all.
fn is_known(machine: &Machine, measured: &Measured) -> bool {
    measured.core_cycles_median > 0.0
        && match measured.variant.parse::<Curve>() {
            Ok(curve) => (1..=curve.largest()).contains(&measured.n),
            Err(_) => software::nanoseconds(machine, &measured.variant, measured.n).is_some(),
        }
}

pub(super) fn predicted(machine: &Machine, counts: &[Option<Counts>], row: &Row<'_>) -> Option<f64> {
    match &row.chase {
        Some((curve, chase)) => Some(cycles(machine, curve, counts.get(*chase)?.as_ref()?)),
        None => Some(software::nanoseconds(machine, &row.measured.variant, row.measured.n)? * machine.clock.ghz()),
    }
}

fn copy_prices(from: &Machine, to: &mut Machine) {
    for price in PRICES {
        if let Some(value) = (price.get)(from) {
            (price.set)(to, value);
        }
    }
}

/// A place with the name that the sheet has for a table.
fn place(machine: &Machine, spot: Spot) -> String {
    let name = |table: usize| match spot.section {
        "cache" => machine.caches.levels.get(table).map(|level| level.name.clone()),
        "fetch" => machine.fetch.as_ref()?.levels.get(table).map(|level| level.name.clone()),
        _ => None,
    };
    match spot.table.and_then(name) {
        Some(name) => format!("{}.{name}.{}", spot.section, spot.key),
        None => spot.to_string(),
    }
}
