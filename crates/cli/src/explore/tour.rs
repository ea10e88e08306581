//! `explore --museum` and `explore --mutants`: all scenarios, with their defects, without them, and with steps gone wrong.

use mmusim::Seed;
use mmusim::explore::museum::{self, Mutant, Plan, Row};
use mmusim::sim::explore::Mutation;
use serde_json::json;

use super::{ExploreArgs, SCHEDULES, find};
use crate::output::Output;
use crate::table::Columns;
use crate::{CliError, SCHEMA_VERSION};

/// The museum: every scenario with its defect, under several strategies and seeds, and without it.
pub(super) fn museum(args: &ExploreArgs) -> Result<(), CliError> {
    for id in &args.only {
        find(id)?;
    }
    let mut output = Output::open(args.output.as_deref())?;
    let plan =
        Plan { seeds: args.seeds, most: args.most, fixed: args.schedules.unwrap_or(SCHEDULES), ..Plan::default() };
    let rows = museum::tour(&plan, &args.only);
    let text = if args.json {
        let document = json!({ "schema_version": SCHEMA_VERSION, "most": plan.most, "rows": rows });
        format!("{document:#}\n")
    } else if args.markdown {
        museum::markdown(&rows, &plan)
    } else {
        museum_table(&rows)
    };
    output.write(&text)?;
    output.finish()?;
    let wrong: Vec<&str> = rows.iter().filter(|row| !row.is_good()).map(|row| row.id).collect();
    if wrong.is_empty() {
        return Ok(());
    }
    Err(CliError::Check(format!("not found as what they are, or broken although fixed: {}", wrong.join(", "))))
}

/// Every scenario without its defect, with steps of one kind gone wrong.
pub(super) fn mutants(args: &ExploreArgs) -> Result<(), CliError> {
    let mut output = Output::open(args.output.as_deref())?;
    let all = museum::mutants(args.schedules.unwrap_or(SCHEDULES).min(MUTANT_SCHEDULES), Seed(args.seed));
    let text = if args.json {
        let document = json!({ "schema_version": SCHEMA_VERSION, "mutants": all });
        format!("{document:#}\n")
    } else {
        mutant_table(&all)
    };
    output.write(&text)?;
    output.finish()?;
    let survivors: Vec<&str> = museum::survivors(&all).into_iter().map(Mutation::name).collect();
    if !survivors.is_empty() {
        return Err(CliError::Check(format!("no scenario notices {}", survivors.join(", "))));
    }
    let unexplained: Vec<String> = all
        .iter()
        .filter(|mutant| mutant.is_unexplained())
        .map(|mutant| format!("{} in {}", mutant.mutation, mutant.topic))
        .collect();
    if unexplained.is_empty() {
        return Ok(());
    }
    Err(CliError::Check(format!(
        "nobody notices, and no reason is given beside the topic's scenarios: {}",
        unexplained.join(", ")
    )))
}

/// Executions of a scenario for one mutation at most: what is not noticed soon is not tested.
const MUTANT_SCHEDULES: u64 = 2000;

/// A column for each mutation: how many scenarios of the topic notice it, of those that have such a step.
fn mutant_table(all: &[Mutant]) -> String {
    let mut headings = vec!["topic"];
    headings.extend(Mutation::ALL.map(Mutation::name));
    let mut columns = Columns::new(1, &headings);
    for of_topic in all.chunk_by(|one, next| one.topic == next.topic) {
        let mut cells = vec![of_topic[0].topic.to_owned()];
        cells.extend(of_topic.iter().map(|mutant| match mutant.tried.len() {
            0 => "-".to_owned(),
            tried => format!("{} of {tried}", mutant.noticed_by.len()),
        }));
        columns.row(cells);
    }
    let mut reasons = Columns::new(3, &["topic", "mutation", "why nobody notices"]);
    // That there is no such step the first table says.
    for mutant in all.iter().filter(|mutant| mutant.noticed_by.is_empty() && !mutant.tried.is_empty()) {
        let why = mutant.why.clone().unwrap_or_else(|| "NOT EXPLAINED".to_owned());
        reasons.row([mutant.topic.to_owned(), mutant.mutation.name().to_owned(), why]);
    }
    format!("{}\n{}", columns.render(), reasons.render())
}

fn museum_table(rows: &[Row]) -> String {
    let mut headings = vec!["scenario".to_owned(), "breaks".to_owned()];
    headings.extend(rows.first().into_iter().flat_map(|row| row.times.iter().map(|times| times.strategy.clone())));
    headings.extend(["steps", "preemptions", "fixed"].map(str::to_owned));
    let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
    let mut columns = Columns::new(2, &headings);
    let number = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    for row in rows {
        let mut cells = vec![row.id.to_owned(), row.invariant.clone().unwrap_or_else(|| "not found".to_owned())];
        cells.extend(row.times.iter().map(|times| format!("{} / {}", number(times.median), number(times.p95))));
        cells.extend([number(row.steps), number(row.preemptions)]);
        cells.push(match &row.fixed.finding {
            None => format!("{} {}", row.fixed.verdict, row.fixed.executions),
            Some(finding) => finding.clone(),
        });
        columns.row(cells);
    }
    columns.render()
}
