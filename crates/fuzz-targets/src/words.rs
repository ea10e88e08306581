//! Any word at any level.

use mmu_core::{BreakRule, Entry, Format, Level};

use crate::bytes::Bytes;
use crate::formats::{WithFormat, one_format};

/// First byte: the configuration; then words of eight bytes, each tried at every level.
pub(crate) fn decode_word(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let choice = bytes.u8();
    let mut words = Vec::new();
    while !bytes.is_empty() && words.len() < 64 {
        words.push(bytes.u64());
    }
    one_format(choice, Words(words));
}

struct Words(Vec<u64>);

impl WithFormat for Words {
    fn with<F: Format>(self, format: F) {
        for level in (0..format.geometry().levels() as u8).map(Level::new) {
            for &raw in &self.0 {
                check(&format, level, raw);
            }
        }
    }
}

fn check<F: Format>(format: &F, level: Level, raw: u64) {
    let name = F::NAME;
    let entry = format.decode(level, raw);
    let present = raw & format.present_mask() != 0;
    assert_eq!(present, !matches!(entry, Entry::NotPresent(_)), "{name} {level} {raw:#x}: {entry:?}");
    assert_eq!(format.break_rule(level, raw, raw), BreakRule::NotNeeded, "{name} {level} {raw:#x} by itself");
    match entry {
        Entry::Leaf(leaf) => {
            let size = format.geometry().page_size(level);
            assert!(format.geometry().has_leaves_at(level) && leaf.output.is_aligned(size), "{name} {level} {raw:#x}");
            assert!(format.is_leaf(level, raw) && format.output(level, raw) == leaf.output, "{name} {level} {raw:#x}");
            if let Ok(word) = format.encode_leaf(level, &leaf) {
                assert_eq!(format.decode(level, word), entry, "{name} {level} {raw:#x} -> {word:#x}");
            }
            transitions(format, level, raw);
        }
        Entry::Table(table) => {
            assert!(level > Level::LAST && !format.is_leaf(level, raw), "{name} {level} {raw:#x}");
            assert_eq!(format.next_table(level, raw), table.base, "{name} {level} {raw:#x}");
        }
        Entry::NotPresent(what) => {
            if let Ok(word) = format.encode_not_present(what) {
                assert_eq!(word, raw, "{name} {level} {what:?}");
            }
        }
        Entry::Malformed(_) => {}
    }
}

/// Software's changes of a leaf keep what it maps.
fn transitions<F: Format>(format: &F, level: Level, raw: u64) {
    let name = F::NAME;
    let output = format.output(level, raw);
    let protected = format.write_protect(raw);
    assert!(!format.is_writable(protected), "{name} {level} {raw:#x}: {protected:#x} is still writable");
    assert_eq!(format.output(level, protected), output, "{name} {level} {raw:#x}: write protection moves the page");
    assert_eq!(format.write_protect(protected), protected, "{name} {level} {raw:#x}: write protection twice");
    let old = format.mark_old(raw);
    assert!(format.is_mapped(old) || !format.is_mapped(raw), "{name} {level} {raw:#x}: an old mapping is a mapping");
    if let Some(young) = format.mark_young(old) {
        assert_eq!(format.output(level, young), output, "{name} {level} {raw:#x}: ageing moves the page");
    }
}
