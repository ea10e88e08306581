//! Writing `.mmut`; the layout is in the parent module.

use super::{
    BLOCK, BLOCK_RECORDS, DELTA_BYTES, END, MAGIC, MAX_SOURCE, MmutHeader, Predictor, SIZE_FOLLOWS, SIZES, UNKNOWN,
    VERSION, crc,
};
use crate::{Access, Place, Problem, TraceCounts, TraceError};

/// Collects records into blocks and appends finished bytes to a buffer.
#[derive(Debug)]
pub(crate) struct Encoder {
    declared: Option<u64>,
    payload: Vec<u8>,
    records: u32,
    /// Index in the file of the open block's first record.
    first: u64,
    predictor: Predictor,
    counts: TraceCounts,
    blocks: u32,
}

impl Encoder {
    /// Appends the header to `bytes`.
    pub(crate) fn new(header: &MmutHeader, bytes: &mut Vec<u8>) -> Self {
        let start = bytes.len();
        let source = shortened(&header.source);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.push(header.page_size.map_or(0, |size| size.shift() as u8));
        bytes.push(0);
        bytes.extend_from_slice(&header.references.unwrap_or(UNKNOWN).to_le_bytes());
        bytes.extend_from_slice(&(source.len() as u16).to_le_bytes());
        bytes.extend_from_slice(source.as_bytes());
        let sum = crc([&bytes[start..], &[]]);
        bytes.extend_from_slice(&sum.to_le_bytes());
        Self {
            declared: header.references,
            payload: Vec::new(),
            records: 0,
            first: 0,
            predictor: Predictor::default(),
            counts: TraceCounts::default(),
            blocks: 0,
        }
    }

    pub(crate) fn encode(&mut self, accesses: &[Access], bytes: &mut Vec<u8>) {
        for access in accesses {
            self.record(access);
            if self.records == BLOCK_RECORDS {
                self.block(bytes);
            }
        }
        self.counts += TraceCounts::of(accesses);
    }

    /// Appends the last block and the end marker.
    pub(crate) fn finish(&mut self, bytes: &mut Vec<u8>) -> Result<(), TraceError> {
        let references = self.counts.references();
        if let Some(declared) = self.declared.filter(|declared| *declared != references) {
            let problem = Problem::field(
                "references declared in the header",
                &references.to_string(),
                declared,
                "declare none, or the exact number",
            );
            return Err(TraceError::new(Place::File, problem));
        }
        self.block(bytes);
        let start = bytes.len();
        bytes.extend_from_slice(&END);
        bytes.extend_from_slice(&self.blocks.to_le_bytes());
        bytes.extend_from_slice(&self.counts.records().to_le_bytes());
        bytes.extend_from_slice(&references.to_le_bytes());
        let sum = crc([&bytes[start..], &[]]);
        bytes.extend_from_slice(&sum.to_le_bytes());
        Ok(())
    }

    fn record(&mut self, access: &Access) {
        let (kind, va) = (access.kind, access.va.raw());
        let delta = zigzag(va.wrapping_sub(self.predictor.get(kind)));
        let length = length_code(delta);
        let sizes = &SIZES[usize::from(kind.code())][..usize::from(SIZE_FOLLOWS)];
        let size = sizes.iter().position(|size| *size == access.size).map_or(SIZE_FOLLOWS, |code| code as u8);
        self.payload.push(kind.code() | size << 2 | length << 5);
        let count = usize::from(DELTA_BYTES[usize::from(length)]);
        self.payload.extend_from_slice(&delta.to_le_bytes()[..count]);
        if size == SIZE_FOLLOWS {
            self.payload.extend_from_slice(&access.size.to_le_bytes());
        }
        self.predictor.set(kind, va, access.size);
        self.records += 1;
    }

    fn block(&mut self, bytes: &mut Vec<u8>) {
        if self.records == 0 {
            return;
        }
        let start = bytes.len();
        bytes.extend_from_slice(&BLOCK);
        bytes.extend_from_slice(&self.records.to_le_bytes());
        bytes.extend_from_slice(&self.first.to_le_bytes());
        bytes.extend_from_slice(&(self.payload.len() as u32).to_le_bytes());
        let sum = crc([&bytes[start..], &self.payload]);
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes.extend_from_slice(&self.payload);
        self.first += u64::from(self.records);
        self.blocks = self.blocks.wrapping_add(1);
        self.records = 0;
        self.payload.clear();
        self.predictor = Predictor::default();
    }
}

/// The text, cut at a character's boundary to what the header holds.
fn shortened(source: &str) -> &str {
    let end = (0..=MAX_SOURCE.min(source.len())).rev().find(|end| source.is_char_boundary(*end));
    &source[..end.unwrap_or(0)]
}

fn zigzag(delta: u64) -> u64 {
    delta << 1 ^ ((delta as i64) >> 63) as u64
}

fn length_code(delta: u64) -> u8 {
    let bytes = (u64::BITS - delta.leading_zeros()).div_ceil(8);
    bytes.min(7) as u8
}
