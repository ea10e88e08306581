//! Plans: directories that say everything.
//!
//! ```text
//! PLAN/plan.json       schema, model, name, number of points and the hash of their list; written last
//! PLAN/points.jsonl    the points in order, one a line
//! PLAN/inputs/         copies of the files that points name, by content
//! PLAN/results/        what shards leave; see `store`
//! PLAN/checkpoints/    what a stopped point wants to find again
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use crate::datum::{Datum, Record};
use crate::error::SweepError;
use crate::point::{Point, content_hash, record_line};
use crate::spec::Spec;
use crate::{Experiment, SCHEMA_VERSION};

/// A plan and where it lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    directory: PathBuf,
    name: String,
    model: u32,
    points: Vec<Point>,
}

/// What planning did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Planned {
    /// Points that were listed more than once, and are planned once.
    pub repeated: usize,
    /// Whether the same plan was there already, perhaps with results.
    pub found: bool,
}

impl Plan {
    /// Expands a sweep, checks every point, copies the files they name, and writes the plan. The same plan in the same place is left as it is,
    /// with its results. `place` names the sweep's file in errors.
    ///
    /// # Errors
    /// What is wrong with the sweep or one of its points; a directory that holds another plan or cannot be written.
    pub fn create(
        directory: &Path,
        place: &str,
        spec: &Spec,
        experiment: &dyn Experiment,
    ) -> Result<(Self, Planned), SweepError> {
        let mut files = Files::default();
        let (mut points, mut seen, mut repeated) = (Vec::new(), BTreeSet::new(), 0);
        for (command, arguments) in spec.expand(place)? {
            let refused = |what: String| {
                let what = what.trim().trim_start_matches("error: ").to_owned();
                SweepError::spec(format!("{place}: {command} {}", crate::datum::record_json(&arguments)), what)
            };
            let named = experiment.check(&command, &arguments).map_err(refused)?;
            let mut inputs = BTreeMap::new();
            for argument in named {
                let file = files.add(&argument, &arguments).map_err(refused)?;
                inputs.insert(argument, file);
            }
            let point = Point::new(experiment.model(), command, arguments, inputs);
            if seen.insert(point.id) {
                points.push(point);
            } else {
                repeated += 1;
            }
        }
        if points.is_empty() {
            return Err(SweepError::spec(place, "no points are left; the exceptions leave everything out"));
        }
        let (directory, name) = (directory.to_owned(), spec.name.clone());
        let plan = Self { directory, name, model: experiment.model(), points };
        let found = plan.write(&files)?;
        Ok((plan, Planned { repeated, found }))
    }

    fn header(&self, list: &str) -> String {
        let number = |number: usize| Datum::from(number as u64).json();
        let fields = [
            ("model", Datum::from(u64::from(self.model)).json()),
            ("name", Datum::from(self.name.as_str()).json()),
            ("points", number(self.points.len())),
            ("points_xxh3", Datum::from(content_hash(list.as_bytes())).json()),
            ("schema", Datum::from(u64::from(SCHEMA_VERSION)).json()),
        ];
        record_line(&fields) + "\n"
    }

    /// Writes the plan, its header last; says whether the same one was there.
    fn write(&self, files: &Files) -> Result<bool, SweepError> {
        let list: String = self.points.iter().map(|point| point.line() + "\n").collect();
        let header = self.header(&list);
        let path = self.directory.join("plan.json");
        match fs::read_to_string(&path) {
            Ok(there) if there == header => return Ok(true),
            Ok(_) => {
                let what = "holds another plan; choose another directory, or remove this one with its results";
                return Err(SweepError::plan(&self.directory, what));
            }
            Err(_) => {}
        }
        for directory in ["inputs", "results", "checkpoints"].map(|name| self.directory.join(name)) {
            fs::create_dir_all(&directory).map_err(SweepError::io(&directory))?;
        }
        for (name, content) in &files.0 {
            replace(&self.directory.join("inputs").join(name), content)?;
        }
        replace(&self.directory.join("points.jsonl"), list.as_bytes())?;
        replace(&path, header.as_bytes())?;
        Ok(false)
    }

    /// Opens a plan that was made for this version of the model.
    ///
    /// # Errors
    /// A directory without a plan, or with one that is damaged or of another version.
    pub fn open(directory: &Path, model: u32) -> Result<Self, SweepError> {
        let path = directory.join("plan.json");
        let text = fs::read_to_string(&path).map_err(|why| {
            SweepError::plan(
                directory,
                format!("holds no plan (plan.json: {why}); make one with `sweep plan FILE -o DIR`"),
            )
        })?;
        let damaged = || SweepError::plan(&path, "is no plan's header; plan again in another directory");
        let header: Json = serde_json::from_str(&text).map_err(|_| damaged())?;
        let number = |name: &str| header.get(name).and_then(Json::as_u64).ok_or_else(damaged);
        let string = |name: &str| header.get(name).and_then(Json::as_str).ok_or_else(damaged);
        if number("schema")? != u64::from(SCHEMA_VERSION) {
            let what = format!("has schema {}; this program reads schema {SCHEMA_VERSION}", number("schema")?);
            return Err(SweepError::plan(&path, what));
        }
        if number("model")? != u64::from(model) {
            let what = format!("is for model version {}, this program has {model}; plan again", number("model")?);
            return Err(SweepError::plan(&path, what));
        }
        let (list_path, name) = (directory.join("points.jsonl"), string("name")?.to_owned());
        let list = fs::read_to_string(&list_path).map_err(SweepError::io(&list_path))?;
        if content_hash(list.as_bytes()) != string("points_xxh3")? {
            return Err(SweepError::plan(&list_path, "is not the list that was planned; restore it, or plan again"));
        }
        let read = |(number, line): (usize, &str)| {
            let place = || PathBuf::from(format!("{}:{number}", list_path.display()));
            Point::from_line(line, model).map_err(|what| SweepError::plan(&place(), what))
        };
        let points = (1..).zip(list.lines()).map(read).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { directory: directory.to_owned(), name, model, points })
    }

    /// Where it lies.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// The version of the model that it is for.
    pub fn model(&self) -> u32 {
        self.model
    }
    /// The points in order.
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// The files of a point, by argument.
    ///
    /// # Errors
    /// A file whose content is not what was planned.
    pub fn files(&self, point: &Point) -> Result<BTreeMap<String, PathBuf>, SweepError> {
        let find = |(argument, name): (&String, &String)| {
            let path = self.directory.join("inputs").join(name);
            let content = fs::read(&path).map_err(SweepError::io(&path))?;
            if name.starts_with(&format!("{}-", content_hash(&content))) {
                Ok((argument.clone(), path))
            } else {
                Err(SweepError::plan(&path, "is not the file that was planned; restore it, or plan again"))
            }
        };
        point.inputs.iter().map(find).collect()
    }
}

/// Files to copy, by their name in the plan.
#[derive(Default)]
struct Files(BTreeMap<String, Vec<u8>>);

impl Files {
    /// Reads the file that an argument names; returns its name in the plan.
    fn add(&mut self, argument: &str, arguments: &Record) -> Result<String, String> {
        let Some(Datum::Text(path)) = arguments.get(argument) else {
            return Err(format!("{argument} names no file"));
        };
        let content = fs::read(path).map_err(|why| format!("{argument}: cannot read {path}: {why}"))?;
        let base = Path::new(path).file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let name = format!("{}-{base}", content_hash(&content));
        self.0.insert(name.clone(), content);
        Ok(name)
    }
}

/// Puts a whole file in its place.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<(), SweepError> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".partial-{}", std::process::id()));
    let partial = PathBuf::from(partial);
    fs::write(&partial, content).map_err(SweepError::io(&partial))?;
    fs::rename(&partial, path).map_err(SweepError::io(path))
}
