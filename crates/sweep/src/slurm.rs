//! Slurm job arrays: one element per shard that has something to do.

use std::fmt::Write;
use std::path::Path;

/// Indices of an array that Slurm takes unless its `slurm.conf` says otherwise (`MaxArraySize`, slurm.conf(5)): below this.
pub const MAX_ARRAY_SIZE: u32 = 1001;

/// What to ask of Slurm.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Script<'a> {
    /// The program, as the nodes find it.
    pub program: &'a Path,
    /// The plan, as the nodes find it.
    pub plan: &'a Path,
    /// Name of the job.
    pub name: &'a str,
    /// Shards in all.
    pub shards: u32,
    /// Shards to run.
    pub wanted: &'a [u32],
    /// Elements at a time, if not all.
    pub concurrent: Option<u32>,
    /// Points at a time in each element, and so its processors.
    pub jobs: u32,
    /// Time of one element, as Slurm writes it.
    pub time: Option<&'a str>,
    /// The partition, if not Slurm's default.
    pub partition: Option<&'a str>,
}

/// Indices as `--array` takes them: `0-3,7`.
pub fn array(indices: &[u32]) -> String {
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for &index in indices {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == index => *last = index,
            _ => parts.push((index, index)),
        }
    }
    let part = |(first, last): (u32, u32)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    parts.into_iter().map(part).collect::<Vec<_>>().join(",")
}

impl Script<'_> {
    /// The file for `sbatch`.
    pub fn text(&self) -> String {
        let mut text = String::from("#!/bin/sh\n");
        let mut option = |option: &str, value: &str| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "#SBATCH --{option}={value}");
        };
        let name: String = self.name.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
        option("job-name", &format!("sweep-{name}"));
        let limit = self.concurrent.map_or_else(String::new, |concurrent| format!("%{concurrent}"));
        option("array", &(array(self.wanted) + &limit));
        option("cpus-per-task", &self.jobs.to_string());
        if let Some(time) = self.time {
            option("time", time);
        }
        if let Some(partition) = self.partition {
            option("partition", partition);
        }
        // The program itself is the batch shell, so it gets the signal: it begins nothing new and ends with 75.
        option("signal", "B:USR1@120");
        option("open-mode", "append");
        option("output", &format!("{}/slurm-%A_%a.log", self.plan.display()));
        text += "#SBATCH --requeue\n";
        let (program, plan) = (quote(self.program), quote(self.plan));
        let _ = writeln!(
            text,
            "exec {program} sweep run {plan} --shard \"$SLURM_ARRAY_TASK_ID/{}\" --jobs {}",
            self.shards, self.jobs
        );
        text
    }
}

fn quote(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_are_written_as_slurm_reads_them() {
        assert_eq!(array(&[0, 1, 2, 3, 7, 9, 10]), "0-3,7,9-10");
        assert_eq!((array(&[]), array(&[5])), (String::new(), "5".to_owned()));
    }

    #[test]
    fn the_script_asks_for_the_missing_shards_only() {
        let script = Script {
            program: Path::new("/opt/it's/mmusim"),
            plan: Path::new("/home/a plan"),
            name: "a b",
            shards: 64,
            wanted: &[3, 4, 9],
            concurrent: Some(2),
            jobs: 4,
            time: Some("01:00:00"),
            partition: None,
        };
        let text = script.text();
        assert!(text.starts_with("#!/bin/sh\n#SBATCH --job-name=sweep-a-b\n#SBATCH --array=3-4,9%2\n"), "{text}");
        assert!(text.contains("--time=01:00:00\n") && !text.contains("partition"), "{text}");
        let last =
            "exec '/opt/it'\\''s/mmusim' sweep run '/home/a plan' --shard \"$SLURM_ARRAY_TASK_ID/64\" --jobs 4\n";
        assert!(text.ends_with(last), "{text}");
    }
}
