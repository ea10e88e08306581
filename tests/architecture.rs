//! The rules of the house that a machine can check. Each failure names the file and the remedy.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Who may import whom, of our own crates; an arrow never runs upward. Tests may import what they like.
const IMPORTS: [(&str, &[&str]); 14] = [
    ("mmu-core", &[]),
    ("arch-x86-ept", &["mmu-core"]),
    ("arch-arm64-s2", &["mmu-core"]),
    ("arch-ppc-radix", &["mmu-core"]),
    ("mmu-trace", &["mmu-core"]),
    ("mmu-sim", &["mmu-core", "mmu-trace"]),
    ("mmu-vectors", &["mmu-core", "arch-x86-ept", "arch-arm64-s2", "arch-ppc-radix"]),
    ("mmu-explore", &["mmu-core", "mmu-sim", "arch-x86-ept", "arch-arm64-s2", "arch-ppc-radix"]),
    ("mmu-predict", &["mmu-core"]),
    (
        "mmusim",
        &[
            "mmu-core",
            "arch-x86-ept",
            "arch-arm64-s2",
            "arch-ppc-radix",
            "mmu-trace",
            "mmu-vectors",
            "mmu-explore",
            "mmu-predict",
            "mmu-sim",
        ],
    ),
    ("mmu-sweep", &[]),
    ("mmu-report", &[]),
    ("mmusim-cli", &["mmusim", "mmu-report", "mmu-sweep"]),
    (
        "mmu-fuzz-targets",
        &[
            "mmu-core",
            "arch-x86-ept",
            "arch-arm64-s2",
            "arch-ppc-radix",
            "mmu-trace",
            "mmu-vectors",
            "mmu-explore",
            "mmu-predict",
            "mmu-report",
            "mmu-sim",
            "mmu-sweep",
        ],
    ),
];

/// Files that may hold `unsafe`, each with its reason.
const UNSAFE: [(&str, &str); 1] = [(
    "tools/hostbench/src/sys.rs",
    "mmap, mprotect and madvise, the timer and single instructions whose cost is the measurement; no library of the simulator links it",
)];
/// Lines of it in each such file: a new one is a decision.
const UNSAFE_LINES: [usize; UNSAFE.len()] = [31];

/// Source files that may be longer than [`MOST_LINES`], each with its reason.
const LONG: [(&str, &str); 0] = [];
const MOST_LINES: usize = 600;

/// Words that bring hidden state into results, and what to use instead.
const HIDDEN_STATE: [(&str, &str); 6] = [
    ("HashMap", "iteration order differs from run to run: use BTreeMap"),
    ("HashSet", "iteration order differs from run to run: use BTreeSet"),
    ("std::time", "simulated time is a parameter: use Cycles"),
    ("SystemTime", "simulated time is a parameter: use Cycles"),
    ("thread_rng", "the seed is everything: use mmu_sim::rng"),
    ("std::env", "results depend on arguments and seed alone: take a parameter"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn parse(path: &Path) -> toml::Table {
    read(path).parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let listed = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut paths: Vec<_> = listed.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// Every member's manifest: its path from the root, and its contents.
fn manifests() -> Vec<(String, toml::Table)> {
    let crates = entries(&root().join("crates")).into_iter().map(|directory| directory.join("Cargo.toml"));
    let all = std::iter::once(root().join("Cargo.toml")).chain(crates.filter(|path| path.exists()));
    all.map(|path| (relative(&path), parse(&path))).collect()
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// Every `.rs` file below a directory: its path from the root, and its text.
fn sources(directory: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for path in entries(directory) {
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push((relative(&path), read(&path)));
        }
    }
    found
}

/// The sources of every crate, and of the facade.
fn all_sources() -> Vec<(String, String)> {
    let crates = entries(&root().join("crates")).into_iter().map(|directory| directory.join("src"));
    crates.filter(|path| path.exists()).chain([root().join("src")]).flat_map(|path| sources(&path)).collect()
}

fn name(manifest: &toml::Table) -> &str {
    manifest["package"]["name"].as_str().expect("a package has a name")
}

fn assert_none(defects: &[String], rule: &str) {
    assert!(defects.is_empty(), "{rule}:\n  {}", defects.join("\n  "));
}

/// A line without its comment and without what stands in double quotes, which may name what code must not use.
fn code(line: &str) -> String {
    let mut quoted = false;
    let mut kept = String::new();
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\\' if quoted => drop(characters.next()),
            '"' => quoted = !quoted,
            '/' if !quoted && characters.peek() == Some(&'/') => break,
            _ if !quoted => kept.push(character),
            _ => {}
        }
    }
    kept
}

#[test]
fn an_arrow_never_runs_upward() {
    let allowed: BTreeMap<_, _> = IMPORTS.into_iter().collect();
    let mut defects = Vec::new();
    for (path, manifest) in manifests() {
        let Some(allowed_here) = allowed.get(name(&manifest)) else {
            defects.push(format!(
                "{path}: add `{}` to IMPORTS in tests/architecture.rs, and to ARCHITECTURE.md",
                name(&manifest)
            ));
            continue;
        };
        for table in ["dependencies", "build-dependencies"] {
            let Some(dependencies) = manifest.get(table).and_then(toml::Value::as_table) else { continue };
            for ours in dependencies.keys().filter(|key| allowed.contains_key(key.as_str())) {
                if !allowed_here.contains(&ours.as_str()) {
                    defects.push(format!(
                        "{path}: [{table}] imports {ours}; move what is shared down to mmu-core, or make it a dev-dependency \
                         if only tests need it"
                    ));
                }
            }
        }
    }
    assert_none(&defects, "who may import whom (ARCHITECTURE.md)");
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace() {
    let inherits = |manifest: &toml::Table| {
        manifest.get("lints").and_then(|lints| lints.get("workspace")).and_then(toml::Value::as_bool) == Some(true)
    };
    let defects: Vec<_> = manifests()
        .iter()
        .filter(|(_, manifest)| !inherits(manifest))
        .map(|(path, _)| format!("{path}: add `[lints]` with `workspace = true`"))
        .collect();
    assert_none(&defects, "lints");
}

#[test]
fn every_dependency_has_a_reason() {
    let text = read(&root().join("Cargo.toml"));
    let mut section = "";
    let mut defects = Vec::new();
    for line in text.lines() {
        if line.starts_with('[') {
            section = line.trim();
        }
        let listed = section.ends_with("dependencies]") && line.contains('=') && !line.starts_with(['#', '[']);
        let ours_or_shared = line.contains("path = ") || line.contains(".workspace = true");
        let reason = line.split_once('#').map_or("", |(_, reason)| reason.trim());
        if listed && !ours_or_shared && reason.len() < 8 {
            defects.push(format!("Cargo.toml: `{line}`: say after `#` what it is for"));
        }
    }
    assert_none(&defects, "dependencies");
}

#[test]
fn crates_take_versions_from_the_workspace() {
    let mut defects = Vec::new();
    for (path, manifest) in manifests().into_iter().filter(|(path, _)| path != "Cargo.toml") {
        for table in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(dependencies) = manifest.get(table).and_then(toml::Value::as_table) else { continue };
            let own =
                dependencies.iter().filter(|(_, what)| what.get("workspace").is_none() && what.get("path").is_none());
            defects.extend(own.map(|(key, _)| {
                format!("{path}: write `{key}.workspace = true`; versions and reasons stand in the root's Cargo.toml")
            }));
        }
    }
    assert_none(&defects, "versions");
}

#[test]
fn no_unsafe() {
    let is_unsafe =
        |line: &str| code(line).split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe");
    let mut defects = Vec::new();
    for (path, text) in all_sources().into_iter().chain(sources(&root().join("tools"))) {
        let lines: Vec<usize> = (0..).zip(text.lines()).filter(|(_, line)| is_unsafe(line)).map(|(n, _)| n).collect();
        let Some(listed) = UNSAFE.iter().position(|(allowed, _)| *allowed == path) else {
            let defect =
                |n: &usize| format!("{path}:{}: write it safely, or add the file to UNSAFE with its reason", n + 1);
            defects.extend(lines.iter().map(defect));
            continue;
        };
        if lines.len() != UNSAFE_LINES[listed] {
            let allowed = UNSAFE_LINES[listed];
            defects.push(format!(
                "{path}: {} lines of unsafe where UNSAFE_LINES has {allowed}: a new one is a decision",
                lines.len()
            ));
        }
        let text: Vec<&str> = text.lines().collect();
        // Attributes may stand between a block and its argument, and the head of a closure.
        let bare =
            lines.iter().filter(|&&n| !text[n.saturating_sub(5)..=n].iter().any(|line| line.contains("SAFETY:")));
        defects.extend(bare.map(|n| format!("{path}:{}: say why it is safe: // SAFETY: ..", n + 1)));
    }
    for (path, _) in UNSAFE {
        if !root().join(path).exists() {
            defects.push(format!("{path} is gone: take it out of UNSAFE"));
        }
    }
    assert_none(&defects, "no-unsafe");
}

#[test]
fn no_hidden_state() {
    let mut defects = Vec::new();
    let model = [
        "crates/mmu-core/src",
        "crates/sim/src",
        "crates/arch-x86-ept/src",
        "crates/arch-arm64-s2/src",
        "crates/arch-ppc-radix/src",
    ];
    for (path, text) in model.into_iter().flat_map(|directory| sources(&root().join(directory))) {
        for (n, line) in (1..).zip(text.lines()) {
            let line = code(line);
            let found = HIDDEN_STATE.iter().filter(|(word, _)| line.contains(word));
            defects.extend(found.map(|(word, remedy)| format!("{path}:{n}: `{word}`: {remedy}")));
        }
    }
    assert_none(&defects, "no-hidden-state");
}

#[test]
fn files_are_small() {
    let mut defects = Vec::new();
    for (path, text) in all_sources() {
        let (lines, allowed) = (text.lines().count(), LONG.iter().any(|(allowed, _)| *allowed == path));
        if lines > MOST_LINES && !allowed {
            defects.push(format!(
                "{path}: {lines} lines; split it, move tests to tests/, or add it to LONG with its reason"
            ));
        }
        if lines <= MOST_LINES && allowed {
            defects.push(format!("{path}: {lines} lines; take it out of LONG"));
        }
    }
    for (path, _) in LONG {
        if !root().join(path).exists() {
            defects.push(format!("{path}: no such file; take it out of LONG"));
        }
    }
    assert_none(&defects, "small");
}

#[test]
fn nothing_is_left_for_later() {
    // Spelt so that this file does not find itself.
    let words = [concat!("to", "do!("), concat!("unim", "plemented!("), concat!("FIX", "ME"), concat!("TO", "DO")];
    let mut defects = Vec::new();
    for (path, text) in all_sources() {
        for (n, line) in (1..).zip(text.lines()) {
            if words.iter().any(|word| line.contains(word)) {
                defects.push(format!("{path}:{n}: finish it, or write an entry in docs/roadmap.md"));
            }
        }
    }
    assert_none(&defects, "complete");
}

#[test]
fn comments_and_strings_are_not_code() {
    assert_eq!(code(r#"let a = "HashMap // \" unsafe"; // HashMap"#), "let a = ; ");
}

/// What the doc of a protocol's file must speak of, by a word for each.
const PROTOCOL_DOC: [(&str, &[&str]); 4] = [
    ("the kernel commit, version or thread that it models", &["Linux", "Models", "models", "thread", "series", "KVM"]),
    ("its locking", &["ock"]),
    ("the flush that it owes", &["lush"]),
    ("what it frees when", &["ree"]),
];

#[test]
fn protocols_say_what_they_model_lock_flush_and_free() {
    let mut files = vec![root().join("crates/sim/src/protocols")];
    let mut seen = 0;
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        if !text.contains("pub async fn") && !text.contains("pub(super) async fn") {
            continue;
        }
        seen += 1;
        let doc: String = text.lines().take_while(|line| line.starts_with("//!")).collect();
        for (what, words) in PROTOCOL_DOC {
            assert!(
                words.iter().any(|word| doc.contains(word)),
                "{}: the module's doc does not say {what}",
                path.display()
            );
        }
    }
    assert!(seen > 30, "only {seen} files with protocols were found");
}
