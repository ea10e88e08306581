//! The formats byte by byte, one module each: layout, detection, decoding, encoding.

pub mod champsim;
pub mod lackey;
pub mod mmut;
pub mod packed;

use crate::source::Source;
use crate::{Access, Limits, TraceError, TraceFormat};

/// Most records that one unit of input (a ChampSim instruction) turns into; callers leave at least this much room.
pub(crate) const UNIT: usize = champsim::MAX_ACCESSES;

/// One decoder, chosen once per file. `decode` appends at least one and at most `room` records, or none at the end of
/// the input; with an error, the records before the damage have been appended.
#[derive(Debug)]
pub(crate) enum Decoder {
    Lackey(lackey::Decoder),
    Champsim(champsim::Decoder),
    Packed,
    Mmut(Box<mmut::Decoder>),
}

impl Decoder {
    pub(crate) fn new(format: TraceFormat, source: &mut Source, limits: &Limits) -> Result<Self, TraceError> {
        Ok(match format {
            TraceFormat::Lackey => Self::Lackey(lackey::Decoder::new(limits)),
            TraceFormat::Champsim => Self::Champsim(champsim::Decoder::new(champsim::Layout::Standard)),
            TraceFormat::ChampsimCloudsuite => Self::Champsim(champsim::Decoder::new(champsim::Layout::CloudSuite)),
            TraceFormat::Packed => Self::Packed,
            TraceFormat::Mmut => Self::Mmut(Box::new(mmut::Decoder::new(source)?)),
        })
    }

    pub(crate) fn decode(&mut self, source: &mut Source, out: &mut Vec<Access>, room: usize) -> Result<(), TraceError> {
        match self {
            Self::Lackey(decoder) => decoder.decode(source, out, room),
            Self::Champsim(decoder) => decoder.decode(source, out, room),
            Self::Packed => packed::decode(source, out, room),
            Self::Mmut(decoder) => decoder.decode(source, out, room),
        }
    }
}
