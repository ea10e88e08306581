//! `packed`: one little-endian 64-bit word per record, no header.
//!
//! | bits | field |
//! | --- | --- |
//! | 63:62 | kind: 0 fetch, 1 load, 2 store, 3 modify |
//! | 61:56 | size in bytes; 63 stands for 63 and more |
//! | 55:48 | zero |
//! | 47:0 | virtual address |
//!
//! The simplest thing that other simulators read, and the fastest here. It cannot hold addresses above 2^48, and a
//! file cut between two words cannot be told from a whole one; `mmut` has neither weakness.

use mmu_core::Gva;

use crate::source::Source;
use crate::{Access, AccessKind, Place, Problem, TraceError, TraceFormat};

const WORD: usize = 8;
const ADDRESS: u64 = (1 << 48) - 1;
const RESERVED: u64 = 0xff << 48;
const MAX_SIZE: u16 = 63;

/// The word of a record, or `None` when the address does not fit 48 bits. Sizes above 63 become 63.
///
/// ```
/// use mmu_core::Gva;
/// use mmu_trace::{Access, AccessKind, formats::packed};
/// let store = Access::new(AccessKind::Store, Gva::new(0x5500_0000_0dd0), 8);
/// assert_eq!(packed::pack(store), Some(0x8800_5500_0000_0dd0));
/// ```
pub const fn pack(access: Access) -> Option<u64> {
    let va = access.va.raw();
    if va > ADDRESS {
        return None;
    }
    let size = if access.size > MAX_SIZE { MAX_SIZE } else { access.size };
    Some((access.kind.code() as u64) << 62 | (size as u64) << 56 | va)
}

/// The record of a word, or `None` when bits 55:48 are not zero.
#[inline]
pub const fn unpack(word: u64) -> Option<Access> {
    if word & RESERVED != 0 {
        return None;
    }
    Some(unpack_checked(word))
}

#[inline]
const fn unpack_checked(word: u64) -> Access {
    Access::new(AccessKind::from_code((word >> 62) as u8), Gva::new(word & ADDRESS), (word >> 56 & 63) as u16)
}

/// Whether these could be packed words: clean reserved bits, and sizes that are not zero.
pub(crate) fn looks_like(sample: &[u8]) -> bool {
    let (words, rest) = sample.as_chunks::<WORD>();
    !words.is_empty()
        && rest.is_empty()
        && words.iter().all(|word| {
            let word = u64::from_le_bytes(*word);
            unpack(word).is_some_and(|access| access.size > 0)
        })
}

pub(crate) fn decode(source: &mut Source, out: &mut Vec<Access>, room: usize) -> Result<(), TraceError> {
    let at_hand = source.want(WORD);
    let count = (at_hand / WORD).min(room);
    if count == 0 {
        return source.over("packed word", WORD);
    }
    let (words, _) = source.bytes()[..count * WORD].as_chunks::<WORD>();
    // PERF: the reserved bits are judged for the batch, so that the loop has no exit and vectorizes.
    let mut union = 0;
    let start = out.len();
    out.extend(words.iter().map(|word| {
        let word = u64::from_le_bytes(*word);
        union |= word;
        unpack_checked(word)
    }));
    if union & RESERVED != 0 {
        return Err(reserved_bits(source, words_before(source, count), start, out));
    }
    source.consume(count * WORD);
    Ok(())
}

/// How many words at the front of the batch are sound.
fn words_before(source: &Source, count: usize) -> usize {
    let (words, _) = source.bytes()[..count * WORD].as_chunks::<WORD>();
    words.iter().take_while(|word| u64::from_le_bytes(**word) & RESERVED == 0).count()
}

fn reserved_bits(source: &mut Source, sound: usize, start: usize, out: &mut Vec<Access>) -> TraceError {
    out.truncate(start + sound);
    source.consume(sound * WORD);
    let (words, _) = source.bytes().as_chunks::<WORD>();
    let word = words.first().map_or(0, |word| u64::from_le_bytes(*word));
    TraceError::new(
        Place::Byte(source.offset()),
        Problem::field(
            "bits 55:48 of the packed word",
            "zero",
            format_args!("{:#x} in {word:#018x}", word >> 48 & 0xff),
            "the file is of another format: name it",
        ),
    )
}

/// Appends the words of `accesses` to `bytes`.
pub(crate) fn encode(accesses: &[Access], bytes: &mut Vec<u8>) -> Result<(), TraceError> {
    for &access in accesses {
        let word = pack(access)
            .ok_or_else(|| TraceError::new(Place::File, Problem::DoesNotFit { format: TraceFormat::Packed, access }))?;
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    Ok(())
}
