//! Machines by name or file, and the commands about their sheets.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use mmusim::Machine;
use serde_json::json;

use crate::args::{MachineCheck, MachineList, MachineShow};
use crate::output::Output;
use crate::table::Columns;
use crate::{CliError, SCHEMA_VERSION};

/// The text of the machine that `--machine` or `show` names: a built-in one, else a file.
pub(crate) fn sheet(argument: &str, name: &str) -> Result<(String, String), CliError> {
    if let Some(text) = Machine::sheet(name) {
        return Ok((format!("{name}.toml (built in)"), text.to_owned()));
    }
    let path = Path::new(name);
    let is_file = path.extension().is_some_and(|extension| extension == "toml") || path.exists();
    if !is_file && let Err(errors) = Machine::builtin(name) {
        let why: Vec<String> = errors.iter().map(ToString::to_string).collect();
        return Err(CliError::argument(argument, format!("{}; or name a TOML file", why.join("; "))));
    }
    let text = fs::read_to_string(path).map_err(|error| {
        CliError::argument(argument, format!("cannot read {name}: {error}; name a built-in machine or a TOML file"))
    })?;
    Ok((name.to_owned(), text))
}

/// The machine that `--machine` names.
///
/// # Errors
/// There is none of that name, or its sheet has defects.
pub fn load(name: &str) -> Result<Machine, CliError> {
    let (file, text) = sheet(&format!("--machine {name}"), name)?;
    Machine::from_toml(&text).map_err(|errors| CliError::Sheet { file, text, errors })
}

/// `machine list`.
pub fn list(args: &MachineList) -> Result<(), CliError> {
    let machines: Vec<Machine> = Machine::names().map(load).collect::<Result<_, _>>()?;
    let mut output = Output::open(None)?;
    if args.json {
        let machines: Vec<_> = machines.iter().map(describe).collect();
        let document = json!({ "schema_version": SCHEMA_VERSION, "machines": machines });
        return output.write(&format!("{document:#}\n"));
    }
    let headings =
        ["name", "architecture", "core", "clock\nGHz", "levels\nguest", "levels\nhost", "granule", "host page"];
    let mut columns = Columns::new(3, &headings);
    for machine in &machines {
        let stages = machine.stages;
        columns.row([
            machine.name.clone(),
            machine.arch.to_string(),
            machine.core.clone(),
            machine.clock.ghz().to_string(),
            stages.first_levels.to_string(),
            stages.second_levels.to_string(),
            stages.granule.to_string(),
            stages.host_page.to_string(),
        ]);
    }
    output.write(&columns.render())
}

fn describe(machine: &Machine) -> serde_json::Value {
    json!({
        "name": machine.name,
        "arch": machine.arch,
        "core": machine.core,
        "clock_ghz": machine.clock.ghz(),
        "first_levels": machine.stages.first_levels,
        "second_levels": machine.stages.second_levels,
        "granule_bytes": machine.stages.granule.bytes(),
        "host_page_bytes": machine.stages.host_page.bytes(),
    })
}

/// `machine show`.
pub fn show(args: &MachineShow) -> Result<(), CliError> {
    let (_, text) = sheet(&args.name, &args.name)?;
    Output::open(None)?.write(&text)
}

/// `machine check`.
pub fn check(args: &MachineCheck) -> Result<(), CliError> {
    let mut fine = String::new();
    let mut failed = Vec::new();
    for path in &args.files {
        let file = path.display().to_string();
        match fs::read_to_string(path) {
            Err(error) => failed.push(CliError::input(format!("{file}: cannot read: {error}; name a TOML file"))),
            Ok(text) => match Machine::from_toml(&text) {
                Err(errors) => failed.push(CliError::Sheet { file, text, errors }),
                Ok(machine) => {
                    // Writing to a string cannot fail.
                    let _ = writeln!(fine, "{file}: fine: {}, {}", machine.name, machine.arch);
                }
            },
        }
    }
    Output::open(None)?.write(&fine)?;
    if failed.is_empty() { Ok(()) } else { Err(CliError::Several(failed)) }
}
