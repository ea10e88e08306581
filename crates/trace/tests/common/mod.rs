//! Helpers of the integration tests.
#![allow(dead_code)] // each test binary uses some of them

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use mmu_core::Gva;
use mmu_trace::{
    Access, AccessKind, Compression, MmutHeader, ReadOptions, TraceError, TraceFormat, TraceReader, TraceWriter,
    WriteOptions,
};

pub fn access(kind: AccessKind, va: u64, size: u16) -> Access {
    Access::new(kind, Gva::new(va), size)
}

/// A few records of every kind, with escapes, jumps in both directions and the ends of the address space.
pub fn sample() -> Vec<Access> {
    use AccessKind::{Fetch, Load, Modify, Store};
    vec![
        access(Fetch, 0x0401_ab70, 3),
        access(Fetch, 0x0401_ab73, 5),
        access(Store, 0x1f_ff00_0768, 8),
        access(Fetch, 0x0401_ab60, 15),
        access(Load, 0x1f_ff00_0768, 8),
        access(Modify, 0x5500_0000_0ffe, 4),
        access(Load, 0xffff_ffff_ffff_fff8, 512),
        access(Load, 0, 1),
        access(Store, 0x1f_ff00_0760, 32),
        access(Modify, 0x8000_0000_0000_0000, 0),
    ]
}

/// Like [`sample`], but what 48 bits of address and 6 bits of size hold.
pub fn small_sample() -> Vec<Access> {
    sample().into_iter().filter(|access| access.va.raw() >> 48 == 0 && access.size < 64).collect()
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub fn encode_with(
    accesses: &[Access],
    compression: Compression,
    options: &WriteOptions,
) -> Result<Vec<u8>, TraceError> {
    let shared = Shared::default();
    let mut writer = TraceWriter::to_writer(Box::new(shared.clone()), "memory", compression, options)?;
    writer.write(accesses)?;
    writer.finish()?;
    let bytes = shared.0.lock().unwrap().clone();
    Ok(bytes)
}

pub fn encode(accesses: &[Access], format: TraceFormat, compression: Compression) -> Vec<u8> {
    let header = MmutHeader { source: "test".into(), ..MmutHeader::default() };
    encode_with(accesses, compression, &WriteOptions { format: Some(format), header }).unwrap()
}

/// Everything delivered, and the error if one came.
pub fn decode_named(bytes: &[u8], name: &str, options: &ReadOptions) -> (Vec<Access>, Option<TraceError>) {
    let input = std::io::Cursor::new(bytes.to_vec());
    let mut reader = match TraceReader::from_reader(input, name, options) {
        Ok(reader) => reader,
        Err(error) => return (Vec::new(), Some(error)),
    };
    let mut out = Vec::new();
    loop {
        match reader.fill(&mut out, 5000) {
            Ok(0) => return (out, None),
            Ok(_) => {}
            Err(error) => return (out, Some(error)),
        }
    }
}

pub fn decode(bytes: &[u8], format: Option<TraceFormat>) -> (Vec<Access>, Option<TraceError>) {
    decode_named(bytes, "test", &ReadOptions { format, ..ReadOptions::default() })
}

/// A directory of this test's own, removed at the end.
pub struct Dir(PathBuf);

impl Dir {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("mmu-trace-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub const COMPRESSIONS: [Compression; 4] = [Compression::Plain, Compression::Gz, Compression::Xz, Compression::Zst];
pub const WRITABLE: [TraceFormat; 3] = [TraceFormat::Lackey, TraceFormat::Packed, TraceFormat::Mmut];
