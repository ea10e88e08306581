//! Round trips, detection, the text of Lackey, ChampSim records, conversion and summaries.

mod common;

use common::{COMPRESSIONS, Dir, WRITABLE, access, decode, encode, encode_with, sample, small_sample};
use mmu_core::{Gva, PageSize};
use mmu_trace::{
    Access, AccessKind, Compression, ConvertOptions, MmutHeader, Place, Problem, ReadOptions, Selection, TraceFormat,
    TraceReader, WriteOptions, convert, info, synthetic,
};
use proptest::prelude::*;

fn any_access(max_va: u64, max_size: u16) -> impl Strategy<Value = Access> {
    (0u8..4, 0..=max_va, 0u32..64, 0..=max_size)
        .prop_map(|(kind, va, shift, size)| access(AccessKind::from_code(kind), va >> shift, size))
}

proptest! {
    #[test]
    fn mmut_round_trip(all in prop::collection::vec(any_access(u64::MAX, u16::MAX), 0..200)) {
        let bytes = encode(&all, TraceFormat::Mmut, Compression::Plain);
        prop_assert_eq!(decode(&bytes, None), (all, None));
    }

    #[test]
    fn lackey_round_trip(all in prop::collection::vec(any_access(u64::MAX, u16::MAX), 1..200)) {
        let bytes = encode(&all, TraceFormat::Lackey, Compression::Plain);
        prop_assert_eq!(decode(&bytes, None), (all, None));
    }

    #[test]
    fn packed_round_trip(all in prop::collection::vec(any_access((1 << 48) - 1, 63), 0..200)) {
        let bytes = encode(&all, TraceFormat::Packed, Compression::Plain);
        prop_assert_eq!(decode(&bytes, Some(TraceFormat::Packed)), (all, None));
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Batches of any size give the same records as the iterator.
    #[test]
    fn batch_size_does_not_matter(sizes in prop::collection::vec(1usize..9000, 1..4)) {
        let all: Vec<_> = synthetic::s1(40_000).collect();
        for format in WRITABLE {
            let bytes = encode(&all, format, Compression::Plain);
            let input = std::io::Cursor::new(bytes);
            let options = ReadOptions { format: Some(format), ..ReadOptions::default() };
            let mut reader = TraceReader::from_reader(input, "x", &options).unwrap();
            let mut got = Vec::new();
            for size in &sizes {
                let before = got.len();
                let count = reader.fill(&mut got, *size).unwrap();
                prop_assert_eq!(count, got.len() - before);
                prop_assert_eq!(count, (*size).min(all.len() - before));
            }
            got.extend(reader.map(Result::unwrap));
            prop_assert!(got == all);
        }
    }
}

#[test]
fn every_format_in_every_compression_across_blocks() {
    let all: Vec<_> = synthetic::s1(140_000).collect();
    for format in WRITABLE {
        for compression in COMPRESSIONS {
            let bytes = encode(&all, format, compression);
            assert_eq!(Compression::detect(&bytes), compression);
            let (records, error) = decode(&bytes, None);
            assert_eq!(error, None, "{format} {compression}");
            assert!(records == all, "{format} {compression}");
        }
    }
}

#[test]
fn lackey_text_as_valgrind_writes_it() {
    let text = "==1== Lackey, an example Valgrind tool\n--1-- note\nI  04016b80,3\n S 1ffeffe7e8,8\n\
                 \x20L 1FFEFFE7E8,16\r\n M 1ffeffe7e0,4\n==1== \n";
    let expected = [
        access(AccessKind::Fetch, 0x04016b80, 3),
        access(AccessKind::Store, 0x1ffeffe7e8, 8),
        access(AccessKind::Load, 0x1ffeffe7e8, 16),
        access(AccessKind::Modify, 0x1ffeffe7e0, 4),
    ];
    assert_eq!(decode(text.as_bytes(), None), (expected.to_vec(), None));
}

#[test]
fn lackey_errors_name_line_and_field() {
    for (line, field) in [
        ("hello", "tag"),
        ("", "tag"),
        ("SB 04016b80", "tag"),
        ("I  ,3", "address"),
        ("I  12345678901234567,3", "address"),
        ("I  4x,3", "separator"),
        ("I  40,", "size"),
        ("I  40,65536", "size"),
        ("I  40,000001", "size"),
        ("I  40,3 ", "size"),
    ] {
        let text = format!("==1==\nI  40,3\n{line}\nI  43,3\n");
        let (records, error) = decode(text.as_bytes(), None);
        let error = error.unwrap_or_else(|| panic!("`{line}` was accepted"));
        assert_eq!(records.len(), 1);
        assert_eq!(error.place(), Place::Line(3));
        assert!(matches!(error.problem(), Problem::Field { field: found, .. } if *found == field), "{line}: {error}");
    }
    let (_, error) = decode(b"==1==\nI  40,x\n", None);
    assert_eq!(
        error.unwrap().to_string(),
        "test: line 2: size: expected a decimal number up to 65535, then the end of the line, found `I  40,x`; record with \
         `valgrind --tool=lackey --trace-mem=yes --log-file=FILE`, so that nothing else is mixed in"
    );
}

/// Puts little-endian words at offsets of a record.
fn champsim(bytes: usize, words: &[(usize, u64)]) -> Vec<u8> {
    let mut record = vec![0; bytes];
    for (at, word) in words {
        record[*at..at + 8].copy_from_slice(&word.to_le_bytes());
    }
    record
}

#[test]
fn champsim_records_of_both_layouts() {
    use AccessKind::{Fetch, Load, Store};
    let standard = champsim(64, &[(0, 0x400ffe), (16, 0x7000), (24, 0x8ffc), (32, 0x1000), (56, 0x4000)]);
    let cloudsuite = champsim(96, &[(0, 0x400ffe), (24, 0x7000), (48, 0x8ffc), (56, 0x1000), (80, 0x4000)]);
    let expected = [
        access(Fetch, 0x400ffe, 2), // cut at the page's end
        access(Load, 0x1000, 8),
        access(Load, 0x4000, 8),
        access(Store, 0x7000, 8),
        access(Store, 0x8ffc, 4),
    ];
    for (record, format) in [(standard, TraceFormat::Champsim), (cloudsuite, TraceFormat::ChampsimCloudsuite)] {
        let expected = [&expected[..], &[access(Fetch, 0x400010, 4)]].concat();
        let without_memory = champsim(record.len(), &[(0, 0x400010)]);
        let file = [record, without_memory].concat().repeat(1000);
        assert_eq!(decode(&file, Some(format)), (expected.repeat(1000), None));
        let input = std::io::Cursor::new(file);
        let detected = TraceReader::from_reader(input, "x", &ReadOptions::default()).unwrap().format();
        assert_eq!(detected, format);
    }
    // The wrong layout is noticed by the flags: here the second half of the record lies where they should be.
    let words: Vec<_> = (0..12).map(|word| (word * 8, 0x7fff_1234_5678)).collect();
    let mut record = champsim(96, &words);
    record[8..10].fill(1);
    let (_, error) = decode(&record.repeat(3), Some(TraceFormat::Champsim));
    let error = error.unwrap().to_string();
    assert!(error.contains("is_branch: expected 0 or 1") && error.contains("try champsim-cloudsuite"), "{error}");
}

#[test]
fn champsim_with_every_operand_at_any_batch_size() {
    let words: Vec<_> = (0..8).filter(|word| *word != 1).map(|word| (word * 8, 0x7000 + word as u64)).collect();
    let file = champsim(64, &words).repeat(3000);
    let (all, error) = decode(&file, Some(TraceFormat::Champsim));
    assert_eq!((all.len(), error), (7 * 3000, None));
    let options = ReadOptions { format: Some(TraceFormat::Champsim), ..ReadOptions::default() };
    let mut reader = TraceReader::from_reader(std::io::Cursor::new(file), "x", &options).unwrap();
    let mut got = Vec::new();
    while reader.fill(&mut got, 5).unwrap() > 0 {}
    assert_eq!(got, all);
}

#[test]
fn detection_by_content_then_by_name_then_refusal() {
    let format = |bytes: &[u8], name| {
        let input = std::io::Cursor::new(bytes.to_vec());
        TraceReader::from_reader(input, name, &ReadOptions::default()).map(|reader| reader.format())
    };
    let packed = encode(&small_sample(), TraceFormat::Packed, Compression::Plain);
    assert_eq!(format(&packed, "a/b.packed.xz"), Ok(TraceFormat::Packed));
    assert_eq!(format(b"I  40,3\n", "renamed"), Ok(TraceFormat::Lackey));
    assert_eq!(format(&encode(&[], TraceFormat::Mmut, Compression::Plain), "a.packed"), Ok(TraceFormat::Mmut));
    for bytes in [&b""[..], b"garbage", &[0; 640]] {
        assert_eq!(*format(bytes, "x").unwrap_err().problem(), Problem::UnknownFormat);
    }
}

#[test]
fn what_packed_cannot_hold_is_an_error() {
    let options = WriteOptions { format: Some(TraceFormat::Packed), ..WriteOptions::default() };
    let kernel = access(AccessKind::Load, 0xffff_8000_0000_0000, 8);
    let error = encode_with(&[kernel], Compression::Plain, &options).unwrap_err();
    assert_eq!(*error.problem(), Problem::DoesNotFit { format: TraceFormat::Packed, access: kernel });
    let options = WriteOptions { format: Some(TraceFormat::Champsim), ..options };
    let error = encode_with(&[], Compression::Plain, &options).unwrap_err();
    assert_eq!(*error.problem(), Problem::ReadOnly { format: TraceFormat::Champsim });
    let (_, error) = decode(&(1u64 << 48).to_le_bytes(), Some(TraceFormat::Packed));
    assert!(error.unwrap().to_string().contains("bits 55:48"));
}

#[test]
fn headers_survive_and_declared_references_are_checked() {
    let references = Some(sample().iter().map(|access| access.kind.references()).sum());
    let header = MmutHeader { source: "ls -l".into(), references, page_size: Some(PageSize::SIZE_2M) };
    let mut options = WriteOptions { format: Some(TraceFormat::Mmut), header: header.clone() };
    let bytes = encode_with(&sample(), Compression::Plain, &options).unwrap();
    let input = std::io::Cursor::new(bytes);
    let reader = TraceReader::from_reader(input, "x", &ReadOptions::default()).unwrap();
    assert_eq!(reader.header(), Some(&header));
    options.header.references = Some(1);
    assert!(encode_with(&sample(), Compression::Plain, &options).is_err());
    options.header = MmutHeader { source: "é".repeat(5000), ..MmutHeader::default() };
    let bytes = encode_with(&sample(), Compression::Plain, &options).unwrap();
    assert_eq!(decode(&bytes, None), (sample(), None));
}

#[test]
fn the_iterator_ends_after_its_error() {
    let mut reader = TraceReader::from_reader(&b"I  40,3\nbad\n"[..], "x", &ReadOptions::default()).unwrap();
    assert!(reader.next().unwrap().is_ok());
    assert!(reader.next().unwrap().is_err());
    assert!(reader.next().is_none() && reader.next().is_none());
    assert!(reader.fill(&mut Vec::new(), 1).is_err());
    assert_eq!(reader.fill(&mut Vec::new(), 0), Ok(0));
}

#[test]
fn info_of_a_hand_counted_trace() {
    let dir = Dir::new("info");
    let path = dir.file("a.lackey.gz");
    std::fs::write(&path, encode(&sample(), TraceFormat::Lackey, Compression::Gz)).unwrap();
    let info = info(&path, &ReadOptions::default()).unwrap();
    assert_eq!((info.format, info.compression), (TraceFormat::Lackey, Compression::Gz));
    let counts = info.counts;
    assert_eq!([counts.fetches, counts.loads, counts.stores, counts.modifies], [3, 3, 2, 2]);
    assert_eq!((counts.records(), counts.references()), (10, 12));
    // 401a; 1fff000; 550000000 and the page after it; the last page; page 0; 8000000000000.
    assert_eq!((info.pages_4k, info.page_splits), (7, 1));
    assert_eq!((info.lowest, info.highest), (Some(Gva::new(0)), Some(Gva::new(u64::MAX))));
    assert!(info.to_string().contains("references   12"));

    let mut options = ReadOptions::default();
    options.limits.pages = 6;
    let error = mmu_trace::info(&path, &options).unwrap_err();
    assert_eq!(*error.problem(), Problem::Limit { limit: "pages", max: 6 });
    assert_eq!(error.input(), path.display().to_string());
}

#[test]
fn convert_a_window_and_a_selection() {
    let dir = Dir::new("convert");
    let (input, output) = (dir.file("in.mmut.zst"), dir.file("out.lackey.xz"));
    let all: Vec<_> = synthetic::s1(50_000).chain(sample()).collect();
    std::fs::write(&input, encode(&all, TraceFormat::Mmut, Compression::Zst)).unwrap();
    let options = ConvertOptions { skip: 49_000, take: Some(1004), select: Selection::Data, ..Default::default() };
    let counts = convert(&input, &output, &options).unwrap();
    let expected: Vec<_> = all[49_000..50_004].iter().copied().filter(|access| access.kind.is_data()).collect();
    assert_eq!(counts.records(), 1001);
    assert_eq!(decode(&std::fs::read(&output).unwrap(), None), (expected, None));

    // In place, and untouched by a failure.
    convert(&input, &input, &ConvertOptions { take: Some(10), ..Default::default() }).unwrap();
    assert_eq!(decode(&std::fs::read(&input).unwrap(), None), (all[..10].to_vec(), None));
    let before = std::fs::read(&output).unwrap();
    std::fs::write(&input, "I  40,3\nbad\n").unwrap();
    let error = convert(&input, &output, &ConvertOptions::default()).unwrap_err();
    assert_eq!(error.place(), Place::Line(2));
    assert_eq!(std::fs::read(&output).unwrap(), before);
    assert_eq!(std::fs::read_dir(dir.file("")).unwrap().count(), 2);
}

/// The counts that several independent simulators agree on, by a move-to-front reference model.
#[test]
fn s1_gives_the_agreed_tlb_counts() {
    struct Lru(Vec<Vec<u64>>, usize);
    impl Lru {
        fn hit(&mut self, page: u64) -> bool {
            let sets = self.0.len() as u64;
            let set = &mut self.0[(page % sets) as usize];
            let found = set.iter().position(|held| *held == page);
            match found {
                Some(at) => drop(set.remove(at)),
                None if set.len() == self.1 => drop(set.pop()),
                None => {}
            }
            set.insert(0, page);
            found.is_some()
        }
    }
    let (mut first, mut second) = (Lru(vec![Vec::new(); 16], 4), Lru(vec![Vec::new(); 128], 12));
    let (mut hits, mut second_hits) = (0, 0);
    for access in synthetic::s1(10_000) {
        let page = access.va.frame(12).index();
        if first.hit(page) {
            hits += 1;
        } else if second.hit(page) {
            second_hits += 1;
        }
    }
    assert_eq!((hits, second_hits), (5065, 1315));
}

/// The figures in `traces/README.md`.
#[test]
fn the_shipped_trace_is_what_its_readme_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../traces/sqlite3.mmut.zst");
    let info = info(path, &ReadOptions::default()).unwrap();
    let counts = info.counts;
    assert_eq!(
        [counts.fetches, counts.loads, counts.stores, counts.modifies],
        [6_134_508, 1_389_463, 1_905_856, 35_195]
    );
    assert_eq!((counts.references(), info.pages_4k, info.page_splits), (9_500_217, 718, 3_749));
    assert_eq!((info.lowest, info.highest), (Some(Gva::new(0x108040)), Some(Gva::new(0x1fff000fee))));
    assert_eq!(info.header.unwrap().references, Some(9_500_217));
}
