//! Where data goes: standard output, or a file that appears only when it is complete.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::CliError;

/// Versions that made a result, as documents have them.
pub(crate) fn versions() -> serde_json::Value {
    serde_json::json!({ "mmusim": env!("CARGO_PKG_VERSION"), "model": mmusim::sim::MODEL_VERSION })
}

/// The destination of a command's data.
#[derive(Debug)]
pub struct Output {
    name: String,
    to: To,
}

#[derive(Debug)]
enum To {
    Stdout(io::Stdout),
    /// A device or pipe: nothing to replace.
    Stream(File),
    Replace {
        file: BufWriter<File>,
        partial: PathBuf,
        path: PathBuf,
    },
    Done,
}

impl Output {
    /// Standard output, or the file that `--output` names. A regular file is written beside its place and put there by
    /// [`Output::finish`], so that nobody ever sees half of it and a failure leaves an older one alone.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn open(path: Option<&Path>) -> Result<Self, CliError> {
        match path {
            Some(path) => Self::named("--output", path),
            None => Ok(Self { name: "standard output".to_owned(), to: To::Stdout(io::stdout()) }),
        }
    }

    /// The file that `option` names; see [`Output::open`].
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn named(option: &str, path: &Path) -> Result<Self, CliError> {
        let name = path.display().to_string();
        let failed = |error: io::Error| {
            let what = format!("cannot create: {error}; name a file in a directory that exists and can be written");
            CliError::argument(format!("{option} {name}"), what)
        };
        // Follows links, so that a link stays one.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let special = fs::metadata(&path).is_ok_and(|data| !data.is_file());
        let to = if special {
            To::Stream(File::options().write(true).open(&path).map_err(failed)?)
        } else {
            let partial = partial(&path);
            To::Replace { file: BufWriter::new(File::create(&partial).map_err(failed)?), partial, path }
        };
        Ok(Self { name, to })
    }

    /// Writes text and passes it on at once.
    ///
    /// # Errors
    /// The destination refuses; [`CliError::ClosedPipe`] when nobody reads any more.
    pub fn write(&mut self, text: &str) -> Result<(), CliError> {
        self.write_bytes(text.as_bytes())
    }

    /// Writes bytes and passes them on at once.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_bytes(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        let result = match &mut self.to {
            To::Stdout(stdout) => stdout.write_all(bytes).and_then(|()| stdout.flush()),
            To::Stream(file) => file.write_all(bytes),
            To::Replace { file, .. } => file.write_all(bytes),
            To::Done => Ok(()),
        };
        result.map_err(|error| failed(&self.name, error))
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// The destination refuses.
    pub fn finish(mut self) -> Result<(), CliError> {
        let To::Replace { file, partial, path } = &mut self.to else { return Ok(()) };
        let placed = file.flush().and_then(|()| file.get_ref().sync_all()).and_then(|()| fs::rename(partial, path));
        placed.map_err(|error| failed(&self.name, error))?;
        self.to = To::Done;
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let To::Replace { partial, .. } = &self.to {
            // Best effort: the error that brought us here says more than a failure to clean up after it.
            let _ = fs::remove_file(partial);
        }
    }
}

/// A name in the same directory, because renaming is atomic only within a file system.
fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".partial-{}", std::process::id()));
    name.into()
}

fn failed(to: &str, error: io::Error) -> CliError {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return CliError::ClosedPipe;
    }
    CliError::Write { to: to.to_owned(), why: error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_only_when_it_is_complete() {
        let dir = std::env::temp_dir().join(format!("mmusim-output-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("report.csv");
        fs::write(&path, "old").unwrap();

        let mut abandoned = Output::open(Some(&path)).unwrap();
        abandoned.write("half").unwrap();
        drop(abandoned);
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");

        let mut output = Output::open(Some(&path)).unwrap();
        output.write("new").unwrap();
        output.finish().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "nothing is left beside it");
        fs::remove_dir_all(&dir).unwrap();
    }
}
