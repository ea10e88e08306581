//! Reading `.mmut`; the layout is in the parent module.

use mmu_core::{Gva, PageSize};

use super::{
    BLOCK, BLOCK_HEADER, BLOCK_RECORDS, CRC, DELTA_BYTES, END, END_BYTES, HEADER, MAGIC, MAX_RECORD, MAX_SOURCE,
    MmutHeader, Predictor, SIZE_FOLLOWS, SIZES, UNKNOWN, VERSION, crc,
};
use crate::source::Source;
use crate::{Access, AccessKind, Place, Problem, TraceCounts, TraceError};

const DAMAGED: &str = "the file is damaged: make or fetch it again";

/// For each length code, the bits of the delta within the eight bytes after the tag.
const DELTA_MASK: [u64; 8] = [0, 0xff, 0xffff, 0xff_ffff, 0xffff_ffff, 0xff_ffff_ffff, 0xffff_ffff_ffff, u64::MAX];
/// Bytes looked at for one record, at least [`MAX_RECORD`]; the payload is padded by as many zeros.
const LOOK: usize = 16;

/// Header and the block being decoded.
#[derive(Debug)]
pub(crate) struct Decoder {
    header: MmutHeader,
    /// Payload of the current block, then [`LOOK`] zeros.
    block: Vec<u8>,
    /// Offset of the payload in the file.
    block_offset: u64,
    at: usize,
    left: usize,
    predictor: Predictor,
    counts: TraceCounts,
    blocks: u32,
    ended: bool,
}

impl Decoder {
    /// Reads and checks the header.
    pub(crate) fn new(source: &mut Source) -> Result<Self, TraceError> {
        let header = header(source)?;
        Ok(Self {
            header,
            block: Vec::new(),
            block_offset: 0,
            at: 0,
            left: 0,
            predictor: Predictor::default(),
            counts: TraceCounts::default(),
            blocks: 0,
            ended: false,
        })
    }

    pub(crate) fn header(&self) -> &MmutHeader {
        &self.header
    }

    pub(crate) fn decode(&mut self, source: &mut Source, out: &mut Vec<Access>, room: usize) -> Result<(), TraceError> {
        if self.left == 0 && !self.ended {
            self.next_block(source)?;
        }
        if self.left == 0 {
            return Ok(());
        }
        let start = out.len();
        let sound = self.records(out, room.min(self.left));
        self.left -= out.len() - start;
        self.counts += TraceCounts::of(&out[start..]);
        if !sound || (self.left == 0 && self.at != self.payload_len()) {
            let place = Place::Byte(self.block_offset + self.at as u64);
            let problem = Problem::field(
                "payload of the block",
                "records that end exactly with it",
                format_args!("{} more records at byte {} of {}", self.left, self.at, self.payload_len()),
                DAMAGED,
            );
            return Err(TraceError::new(place, problem));
        }
        Ok(())
    }

    fn payload_len(&self) -> usize {
        self.block.len().saturating_sub(LOOK)
    }

    /// Appends `count` records, or those up to a record that starts or ends outside the payload (then `false`).
    fn records(&mut self, out: &mut Vec<Access>, count: usize) -> bool {
        out.reserve(count);
        let end = self.payload_len();
        // PERF: state in locals; one bounds check a record, thanks to the padding.
        let (mut at, mut predictor) = (self.at, self.predictor);
        let mut sound = true;
        for _ in 0..count {
            let Some(bytes) = self.block.get(at..).and_then(|rest| rest.first_chunk::<LOOK>()) else {
                sound = false;
                break;
            };
            let (access, length) = record(bytes, &predictor);
            at += length;
            if at > end {
                sound = false;
                break;
            }
            predictor.set(access.kind, access.va.raw(), access.size);
            out.push(access);
        }
        (self.at, self.predictor) = (at, predictor);
        sound
    }

    /// Reads the next block, or the end marker.
    fn next_block(&mut self, source: &mut Source) -> Result<(), TraceError> {
        let found = source.want(BLOCK_HEADER);
        if found >= END.len() && source.bytes().starts_with(&END) {
            return self.end(source);
        }
        if found < BLOCK_HEADER {
            return Err(cut(source, "block header or end marker", BLOCK_HEADER));
        }
        let bytes = source.bytes();
        if !bytes.starts_with(&BLOCK) {
            return Err(damaged(source, "marker", "`BLCK` or `ENDT`", bytes[..4].escape_ascii()));
        }
        let records = u32_at(bytes, 4);
        if !(1..=BLOCK_RECORDS).contains(&records) {
            return Err(damaged(source, "records of the block", "1 to 65536", records));
        }
        let first = u64_at(bytes, 8);
        if first != self.counts.records() {
            return Err(damaged(source, "index of the first record", &self.counts.records().to_string(), first));
        }
        let length = u32_at(bytes, 16) as usize;
        let records = records as usize;
        if !(records..=records * MAX_RECORD).contains(&length) {
            return Err(damaged(source, "payload length", "1 to 11 bytes a record", length));
        }
        self.payload(source, records, length)
    }

    fn payload(&mut self, source: &mut Source, records: usize, length: usize) -> Result<(), TraceError> {
        let whole = BLOCK_HEADER + length;
        if source.want(whole) < whole {
            return Err(cut(source, "block", whole));
        }
        let (head, payload) = source.bytes()[..whole].split_at(BLOCK_HEADER);
        let sum = crc([&head[..20], payload]);
        if sum != u32_at(head, 20) {
            let found = format!("{sum:#010x}");
            return Err(damaged(source, "checksum of the block", &format!("{:#010x}", u32_at(head, 20)), found));
        }
        self.block.clear();
        self.block.extend_from_slice(payload);
        self.block.extend_from_slice(&[0; LOOK]);
        self.block_offset = source.offset() + BLOCK_HEADER as u64;
        self.at = 0;
        self.left = records;
        self.predictor = Predictor::default();
        self.blocks = self.blocks.wrapping_add(1);
        source.consume(whole);
        Ok(())
    }

    fn end(&mut self, source: &mut Source) -> Result<(), TraceError> {
        if source.want(END_BYTES) < END_BYTES {
            return Err(cut(source, "end marker", END_BYTES));
        }
        let bytes = source.bytes();
        let sum = crc([&bytes[..24], &[]]);
        if sum != u32_at(bytes, 24) {
            return Err(damaged(source, "checksum of the end marker", &format!("{:#010x}", u32_at(bytes, 24)), sum));
        }
        let totals = [u64::from(u32_at(bytes, 4)), u64_at(bytes, 8), u64_at(bytes, 16)];
        let counted = [u64::from(self.blocks), self.counts.records(), self.counts.references()];
        if totals != counted {
            let found = format!("{totals:?}");
            return Err(damaged(source, "blocks, records, references", &format!("{counted:?}"), found));
        }
        if let Some(declared) = self.header.references.filter(|declared| *declared != counted[2]) {
            return Err(damaged(source, "references in the header", &counted[2].to_string(), declared));
        }
        source.consume(END_BYTES);
        self.ended = true;
        match source.want(1) {
            // A failure of the decompressor may still come here, as a bad checksum of its own.
            0 => source.over("end", 1),
            _ => Err(damaged(source, "end of the file", "nothing after the end marker", "more bytes")),
        }
    }
}

/// Decodes the record at the start of `bytes`; also its length.
#[inline(always)]
fn record(bytes: &[u8; LOOK], predictor: &Predictor) -> (Access, usize) {
    let tag = bytes[0];
    let kind = AccessKind::from_code(tag);
    let code = usize::from(tag >> 5);
    let [_, b1, b2, b3, b4, b5, b6, b7, b8, ..] = *bytes;
    let zigzag = u64::from_le_bytes([b1, b2, b3, b4, b5, b6, b7, b8]) & DELTA_MASK[code];
    let delta = zigzag >> 1 ^ (zigzag & 1).wrapping_neg();
    let va = predictor.get(kind).wrapping_add(delta);
    let mut length = 1 + usize::from(DELTA_BYTES[code]);
    let size_code = tag >> 2 & 7;
    let mut size = SIZES[usize::from(kind.code())][usize::from(size_code)];
    if size_code == SIZE_FOLLOWS {
        size = u16::from_le_bytes([bytes[length], bytes[length + 1]]);
        length += 2;
    }
    (Access::new(kind, Gva::new(va), size), length)
}

fn header(source: &mut Source) -> Result<MmutHeader, TraceError> {
    const FIELD: &str = "header";
    if source.want(HEADER) < HEADER {
        return Err(cut(source, FIELD, HEADER));
    }
    let bytes = source.bytes();
    if !bytes.starts_with(&MAGIC) {
        return Err(damaged(source, "magic", "89 4d 4d 55 54 0d 0a 1a", bytes[..8].escape_ascii()));
    }
    let version = u16::from_le_bytes([bytes[8], bytes[9]]);
    if version != VERSION {
        let remedy = "the file was written by another version of this program, or is damaged";
        let problem = Problem::field("version", "1", version, remedy);
        return Err(TraceError::new(Place::Byte(8), problem));
    }
    let length = usize::from(u16::from_le_bytes([bytes[20], bytes[21]]));
    if length > MAX_SOURCE {
        return Err(damaged(source, "length of the source text", "at most 4096", length));
    }
    let whole = HEADER + length + CRC;
    if source.want(whole) < whole {
        return Err(cut(source, FIELD, whole));
    }
    let bytes = &source.bytes()[..whole];
    let sum = crc([&bytes[..whole - CRC], &[]]);
    if sum != u32_at(bytes, whole - CRC) {
        return Err(damaged(source, "checksum of the header", &format!("{sum:#010x}"), u32_at(bytes, whole - CRC)));
    }
    let parsed = fields(bytes, source)?;
    source.consume(whole);
    Ok(parsed)
}

/// The fields of a header whose checksum is right.
fn fields(bytes: &[u8], source: &Source) -> Result<MmutHeader, TraceError> {
    let page_size = match bytes[10] {
        0 => None,
        shift => Some(
            PageSize::from_shift(shift.into())
                .ok_or_else(|| damaged(source, "page size", "log2 of a page size", shift))?,
        ),
    };
    if bytes[11] != 0 {
        return Err(damaged(source, "flags", "0", bytes[11]));
    }
    let text = &bytes[HEADER..bytes.len() - CRC];
    let text = std::str::from_utf8(text).map_err(|error| damaged(source, "source text", "UTF-8", error))?;
    let references = u64_at(bytes, 12);
    Ok(MmutHeader { source: text.to_owned(), references: (references != UNKNOWN).then_some(references), page_size })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u32::from_le_bytes(*word))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u64::from_le_bytes(*word))
}

/// The input is over before the end marker: never a clean end, even between two blocks.
fn cut(source: &Source, field: &'static str, expected: usize) -> TraceError {
    let found = source.bytes().len() as u64;
    source.over(field, expected).err().unwrap_or_else(|| {
        TraceError::new(Place::Byte(source.offset()), Problem::Truncated { field, expected: expected as u64, found })
    })
}

fn damaged(source: &Source, field: &'static str, expected: &str, found: impl std::fmt::Display) -> TraceError {
    TraceError::new(Place::Byte(source.offset()), Problem::field(field, expected, found, DAMAGED))
}
