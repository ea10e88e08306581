//! `lackey`: the text that `valgrind --tool=lackey --trace-mem=yes --log-file=FILE PROGRAM` writes.
//!
//! One line per record: two characters of tag, a space, the address in hexadecimal without prefix, a comma, the size in
//! bytes in decimal. Tags are `I ` (fetch), ` L`, ` S` and ` M` (modify: load, then store). Lines that start with `==`
//! or `--` are Valgrind's own messages and skipped; every other line is an error, because skipping it would lose
//! accesses without a word. Valgrind ends every line with a line feed, so a last line without one has been cut.
//!
//! User mode of one process only, threads not told apart, virtual addresses only.

use std::io::Write;

use mmu_core::Gva;

use crate::source::Source;
use crate::{Access, AccessKind, Limits, Place, Problem, TraceError};

const REMEDY: &str =
    "record with `valgrind --tool=lackey --trace-mem=yes --log-file=FILE`, so that nothing else is mixed in";

/// Value of each hexadecimal digit, 255 for every other byte.
const HEX: [u8; 256] = {
    let mut table = [255; 256];
    let mut digit = 0;
    while digit < 16 {
        table[b"0123456789abcdef"[digit] as usize] = digit as u8;
        table[b"0123456789ABCDEF"[digit] as usize] = digit as u8;
        digit += 1;
    }
    table
};

/// Whether this is text, and the first line a record or a message. (All `packed` words hold a zero byte.)
pub(crate) fn looks_like(sample: &[u8]) -> bool {
    sample.is_ascii() && !sample.contains(&0) && (is_message(sample) || kind(sample).is_some())
}

fn is_message(line: &[u8]) -> bool {
    line.starts_with(b"==") || line.starts_with(b"--")
}

#[inline]
fn kind(line: &[u8]) -> Option<AccessKind> {
    match line {
        [b'I', b' ', b' ', ..] => Some(AccessKind::Fetch),
        [b' ', b'L', b' ', ..] => Some(AccessKind::Load),
        [b' ', b'S', b' ', ..] => Some(AccessKind::Store),
        [b' ', b'M', b' ', ..] => Some(AccessKind::Modify),
        _ => None,
    }
}

/// The record at the start of `text` and the length of its line, or `None` when the line is no record.
#[inline]
fn record(text: &[u8]) -> Option<(Access, usize)> {
    const ADDRESS: usize = 3;
    let kind = kind(text)?;
    let mut at = ADDRESS;
    let mut va = 0u64;
    loop {
        let digit = HEX[usize::from(*text.get(at)?)];
        if digit > 15 {
            break;
        }
        va = va << 4 | u64::from(digit);
        at += 1;
    }
    if !(1..=16).contains(&(at - ADDRESS)) || text[at] != b',' {
        return None;
    }
    let size_at = at + 1;
    at = size_at;
    let mut size = 0u64;
    loop {
        let digit = text.get(at)?.wrapping_sub(b'0');
        if digit > 9 {
            break;
        }
        size = size.wrapping_mul(10).wrapping_add(u64::from(digit));
        at += 1;
    }
    if !(1..=5).contains(&(at - size_at)) {
        return None;
    }
    if text[at] == b'\r' {
        at += 1;
    }
    if *text.get(at)? != b'\n' {
        return None;
    }
    Some((Access::new(kind, Gva::new(va), u16::try_from(size).ok()?), at + 1))
}

/// Why a line (without its line feed) is neither record nor message.
fn explain(line: &[u8]) -> Problem {
    let shown = line[..line.len().min(60)].escape_ascii();
    let wrong = |field, expected| Problem::field(field, expected, format_args!("`{shown}`"), REMEDY);
    if kind(line).is_none() {
        return wrong("tag", "`I  `, ` L `, ` S `, ` M ` or a line of Valgrind's own starting `==` or `--`");
    }
    let digits = line[3..].iter().take_while(|byte| HEX[usize::from(**byte)] < 16).count();
    if !(1..=16).contains(&digits) {
        return wrong("address", "1 to 16 hexadecimal digits");
    }
    if line.get(3 + digits) != Some(&b',') {
        return wrong("separator", "a comma after the address");
    }
    wrong("size", "a decimal number up to 65535, then the end of the line")
}

/// Keeps count of lines for the error messages.
#[derive(Debug)]
pub(crate) struct Decoder {
    line: u64,
    max_line: usize,
}

impl Decoder {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self { line: 0, max_line: limits.line_bytes }
    }

    pub(crate) fn decode(&mut self, source: &mut Source, out: &mut Vec<Access>, room: usize) -> Result<(), TraceError> {
        let start = out.len();
        // A window of nothing but messages gives no record, and that must not look like the end.
        while out.len() == start {
            let complete = self.whole_lines(source)?;
            if complete == 0 {
                return Ok(());
            }
            let mut used = 0;
            let result = self.lines(&source.bytes()[..complete], &mut used, out, start + room);
            source.consume(used);
            result?;
        }
        Ok(())
    }

    /// Length of the whole lines at hand, zero at the end of the input.
    fn whole_lines(&self, source: &mut Source) -> Result<usize, TraceError> {
        loop {
            if let Some(last) = source.bytes().iter().rposition(|byte| *byte == b'\n') {
                return Ok(last + 1);
            }
            let had = source.bytes().len();
            if had > self.max_line {
                return Err(self.too_long());
            }
            if source.want(had + 1) == had {
                source.over("last line, which has no line feed", had + 1)?;
                return Ok(0);
            }
        }
    }

    /// Parses whole lines until they or the room end; `used` says how far it came.
    fn lines(&mut self, text: &[u8], used: &mut usize, out: &mut Vec<Access>, full: usize) -> Result<(), TraceError> {
        let mut rest = text;
        while !rest.is_empty() && out.len() < full {
            self.line += 1;
            let length = if let Some((access, length)) = record(rest) {
                out.push(access);
                length
            } else {
                self.message(rest)?
            };
            rest = &rest[length..];
            *used += length;
        }
        Ok(())
    }

    /// Length of the message line at the start of `text`.
    #[cold]
    fn message(&self, text: &[u8]) -> Result<usize, TraceError> {
        let length = text.iter().position(|byte| *byte == b'\n').unwrap_or(text.len());
        if length > self.max_line {
            return Err(self.too_long());
        }
        if is_message(text) {
            return Ok((length + 1).min(text.len()));
        }
        Err(TraceError::new(Place::Line(self.line), explain(&text[..length])))
    }

    fn too_long(&self) -> TraceError {
        let limit = Problem::Limit { limit: "line_bytes", max: self.max_line as u64 };
        TraceError::new(Place::Line(self.line.max(1)), limit)
    }
}

/// Appends the lines of `accesses` to `bytes`, with addresses padded to eight digits as Lackey does.
pub(crate) fn encode(accesses: &[Access], bytes: &mut Vec<u8>) -> Result<(), TraceError> {
    for access in accesses {
        let tag = match access.kind {
            AccessKind::Fetch => "I ",
            AccessKind::Load => " L",
            AccessKind::Store => " S",
            AccessKind::Modify => " M",
        };
        writeln!(bytes, "{tag} {:08x},{}", access.va.raw(), access.size).map_err(|e| TraceError::io("write", &e))?;
    }
    Ok(())
}
