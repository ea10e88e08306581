//! Cut and damaged files: an error or an equal value, never something else, and sound records come first.

mod common;

use common::{COMPRESSIONS, decode, decode_named, encode, sample, small_sample};
use mmu_trace::{Access, AccessKind, Compression, Limits, Place, Problem, ReadOptions, TraceFormat};

fn mmut_blocks() -> Vec<u8> {
    encode(&sample(), TraceFormat::Mmut, Compression::Plain)
}

#[test]
fn every_truncation_of_mmut_is_an_error() {
    let bytes = mmut_blocks();
    let all = sample();
    for cut in 0..bytes.len() {
        let (records, error) = decode(&bytes[..cut], Some(TraceFormat::Mmut));
        let error = error.unwrap_or_else(|| panic!("cut at {cut} went unnoticed"));
        assert!(matches!(error.problem(), Problem::Truncated { .. }), "{cut}: {error}");
        assert!(all.starts_with(&records));
        assert_ne!(decode(&bytes[..cut], None).1, None, "cut at {cut}, format detected");
    }
}

#[test]
fn every_bit_flip_of_mmut_is_an_error() {
    let bytes = mmut_blocks();
    let all = sample();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        for format in [Some(TraceFormat::Mmut), None] {
            let (records, error) = decode(&flipped, format);
            assert!(error.is_some(), "bit {bit} went unnoticed");
            assert!(all.starts_with(&records), "bit {bit}");
        }
    }
}

#[test]
fn every_truncation_and_flip_of_compressed_mmut() {
    let all = sample();
    for compression in COMPRESSIONS {
        let bytes = encode(&all, TraceFormat::Mmut, compression);
        for cut in 0..bytes.len() {
            let (records, error) = decode(&bytes[..cut], None);
            assert!(error.is_some(), "{compression}: cut at {cut} of {} went unnoticed", bytes.len());
            assert!(all.starts_with(&records));
        }
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let (records, error) = decode(&flipped, None);
            assert!(all.starts_with(&records), "{compression}: bit {bit}");
            // Bits without meaning exist, such as the time in a gzip header: then everything was delivered.
            assert!(error.is_some() || records == all, "{compression}: bit {bit}");
        }
    }
}

/// Blocks lost, doubled or swapped have right checksums each.
#[test]
fn whole_blocks_lost_or_doubled_are_noticed() {
    let many: Vec<Access> = mmu_trace::synthetic::s1(200_000).collect();
    let bytes = encode(&many, TraceFormat::Mmut, Compression::Plain);
    let starts: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(b"BLCK")).collect();
    assert_eq!(starts.len(), 4);
    let (first, second, third) = (starts[0], starts[1], starts[2]);
    let lost = [&bytes[..second], &bytes[third..]].concat();
    let doubled = [&bytes[..second], &bytes[first..]].concat();
    let swapped = [&bytes[..first], &bytes[second..third], &bytes[first..second], &bytes[third..]].concat();
    for (damaged, sound) in [(lost, 65536), (doubled, 65536), (swapped, 0)] {
        let (records, error) = decode(&damaged, None);
        assert_eq!(records, many[..sound]);
        assert!(error.unwrap().to_string().contains("index of the first record"));
    }
}

#[test]
fn truncations_of_packed_show_unless_between_words() {
    let all = small_sample();
    let bytes = encode(&all, TraceFormat::Packed, Compression::Plain);
    for cut in 0..bytes.len() {
        let (records, error) = decode(&bytes[..cut], Some(TraceFormat::Packed));
        assert_eq!(records, all[..cut / 8]);
        assert_eq!(error.map(|error| error.place()), (cut % 8 > 0).then_some(Place::Byte(cut as u64 / 8 * 8)));
    }
}

#[test]
fn truncations_of_lackey_show_unless_between_lines() {
    let all = sample();
    let bytes = encode(&all, TraceFormat::Lackey, Compression::Plain);
    for cut in 0..bytes.len() {
        let (records, error) = decode(&bytes[..cut], Some(TraceFormat::Lackey));
        let lines = bytes[..cut].split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")).count();
        assert_eq!(records, all[..lines]);
        assert_eq!(error.is_some(), cut > 0 && bytes[cut - 1] != b'\n', "cut at {cut}");
    }
}

#[test]
fn truncations_of_champsim_show_unless_between_records() {
    for (format, unit) in [(TraceFormat::Champsim, 64), (TraceFormat::ChampsimCloudsuite, 96)] {
        let mut bytes = vec![0; unit * 3];
        bytes.iter_mut().step_by(unit).for_each(|ip| *ip = 0x40);
        for cut in 0..bytes.len() {
            let (records, error) = decode(&bytes[..cut], Some(format));
            assert_eq!(records.len(), cut / unit);
            assert!(records.iter().all(|access| access.kind == AccessKind::Fetch));
            let place = Place::Byte((cut / unit * unit) as u64);
            assert_eq!(error.map(|error| error.place()), (cut % unit > 0).then_some(place));
        }
    }
}

#[test]
fn a_cut_compressed_file_delivers_what_was_sound() {
    let many: Vec<Access> = mmu_trace::synthetic::s1(300_000).collect();
    for compression in [Compression::Gz, Compression::Xz, Compression::Zst] {
        let bytes = encode(&many, TraceFormat::Packed, compression);
        let (records, error) = decode(&bytes[..bytes.len() - 9], Some(TraceFormat::Packed));
        assert!(many.starts_with(&records));
        assert!(records.len() > 100_000, "{compression}: {}", records.len());
        let error = error.unwrap();
        assert!(matches!(error.problem(), Problem::Compressed { .. }), "{error}");
    }
}

#[test]
fn limits_are_named_and_exact() {
    let all = small_sample();
    let count = all.len() as u64;
    let read = |bytes: &[u8], limits: Limits| {
        decode_named(bytes, "x", &ReadOptions { format: Some(TraceFormat::Packed), limits })
    };
    let bytes = encode(&all, TraceFormat::Packed, Compression::Plain);
    assert_eq!(read(&bytes, Limits { records: count, ..Limits::default() }), (all.clone(), None));
    let (records, error) = read(&bytes, Limits { records: count - 2, ..Limits::default() });
    assert_eq!(records, all[..all.len() - 2]);
    assert_eq!(*error.unwrap().problem(), Problem::Limit { limit: "records", max: count - 2 });

    for compression in COMPRESSIONS {
        let bytes = encode(&all, TraceFormat::Packed, compression);
        let exactly = Limits { decompressed_bytes: count * 8, ..Limits::default() };
        assert_eq!(read(&bytes, exactly), (all.clone(), None));
        let (records, error) = read(&bytes, Limits { decompressed_bytes: 16, ..Limits::default() });
        assert_eq!(records, all[..2]);
        assert_eq!(*error.unwrap().problem(), Problem::Limit { limit: "decompressed_bytes", max: 16 });
    }

    let line = |text: &str| {
        let limits = Limits { line_bytes: 100, ..Limits::default() };
        let options = ReadOptions { format: Some(TraceFormat::Lackey), limits };
        decode_named(text.as_bytes(), "x", &options).1.map(|error| error.problem().clone())
    };
    let limit = Some(Problem::Limit { limit: "line_bytes", max: 100 });
    assert_eq!(line(&format!("=={}\n", "x".repeat(98))), None);
    assert_eq!(line(&format!("=={}\n", "x".repeat(99))), limit);
    assert_eq!(line(&"=".repeat(1_000_000)), limit);

    let xz = encode(&all, TraceFormat::Packed, Compression::Xz);
    let (_, error) = read(&xz, Limits { xz_memory_kib: 1000, ..Limits::default() });
    assert!(error.unwrap().to_string().contains("xz"));
}

#[test]
fn random_bytes_never_panic() {
    let mut state = 1u64;
    for round in 0..3000 {
        let bytes: Vec<u8> = (0..round % 700)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 56) as u8
            })
            .collect();
        let _ = decode(&bytes, None);
        for format in TraceFormat::ALL {
            let _ = decode(&bytes, Some(format));
        }
        for magic in [&[0x1f, 0x8b, 8][..], b"\xfd7zXZ\0", &[0x28, 0xb5, 0x2f, 0xfd]] {
            let _ = decode(&[magic, &bytes].concat(), Some(TraceFormat::Packed));
        }
    }
}
