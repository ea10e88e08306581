//! Running the program and looking at what it said.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Runs `mmusim` at the root of the repository.
pub fn mmusim(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mmusim")).args(args).current_dir(root()).output().unwrap()
}

/// What it wrote to standard output, after it ended well.
pub fn data(args: &[&str]) -> String {
    let output = mmusim(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", talk(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// What it wrote to standard error.
pub fn talk(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// It must end with `code`, write no data, say all of `words`, and not panic.
pub fn fails(args: &[&str], code: i32, words: &[&str]) {
    let output = mmusim(args);
    let said = talk(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    assert!(output.stdout.is_empty(), "{args:?} wrote data");
    assert!(!said.contains("panicked"), "{args:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{args:?} does not say {word:?}: {said}");
    }
}

/// A directory of one test, removed at its end.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("mmusim-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
