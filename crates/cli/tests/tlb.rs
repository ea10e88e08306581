//! `mmusim tlb` from outside.

mod common;

use common::{Scratch, data, fails};
use mmusim::trace::formats::packed;
use mmusim::trace::synthetic;
use serde_json::{Value, json};

/// The first records of S1 as a packed file.
fn s1(scratch: &Scratch, records: u64) -> String {
    let file = scratch.path(&format!("s1-{records}.packed"));
    let words = synthetic::s1(records).flat_map(|access| packed::pack(access).unwrap().to_le_bytes());
    std::fs::write(&file, words.collect::<Vec<_>>()).unwrap();
    file
}

fn counted(args: &[&str]) -> Value {
    let args = [&["tlb", "--json"], args].concat();
    serde_json::from_str(&data(&args)).unwrap()
}

#[test]
fn s1_gives_the_published_counts() {
    let scratch = Scratch::new("tlb");
    let file = s1(&scratch, 10_000);
    let geometry = ["--l1", "64x4:lru", "--l2", "1536x12:lru"];
    let got = counted(&[&["--trace", &file, "--format", "packed", "--psc", "4x8,2x4,1x4"], &geometry[..]].concat());
    assert_eq!(got["l1"], json!({ "hits": 5_065, "misses": 4_935 }));
    assert_eq!(got["l2"], json!({ "hits": 1_315, "misses": 3_620 }));
    assert_eq!((&got["walks"], &got["pte_reads"]), (&json!(3_620), &json!(3_936)));
    assert_eq!(got["psc"], json!({ "none": 1, "deepest": [3_307, 311, 1] }));
    assert_eq!((&got["references"], &got["l1_fetch"]), (&json!(10_000), &Value::Null));

    let champsim = ["--psc", "4x8,2x4,1x4,1x2", "--levels", "5", "--walker", "champsim"];
    let got = counted(&[&["--trace", &file], &champsim[..]].concat());
    assert_eq!(got["pte_reads"], 7_556);

    let got = counted(&["--trace", &file, "--take", "1000", "--l1", "64xfull", "--l2", "256sx8"]);
    assert_eq!(got["l1"], json!({ "hits": 508, "misses": 492 }));
    assert_eq!(got["l2"], json!({ "hits": 47, "misses": 445 }));
    let got = counted(&["--trace", &file, "--skip", "9999", "--take", "7", "--l2", "none"]);
    assert_eq!((&got["records"], &got["l2"], &got["walks"]), (&json!(1), &Value::Null, &json!(1)));
}

#[test]
fn kinds_and_crossings_are_counted_as_asked() {
    let scratch = Scratch::new("tlbkinds");
    let file = scratch.path("few.lackey");
    // A fetch and a store of one page, a modify, and a load across two pages.
    std::fs::write(&file, "I  00001000,4\n S 00001008,8\n M 00002000,4\n L 00003ffc,8\n").unwrap();
    let lookups = |args: &[&str]| {
        let got = counted(&[&["--trace", &file, "--format", "lackey"], args].concat());
        let l1 = ["l1", "l1_data"].map(|level| (got[level]["hits"].clone(), got[level]["misses"].clone()));
        (got["references"].clone(), l1[0].clone(), l1[1].clone(), got["walks"].clone())
    };
    let of = |hits: u64, misses: u64| (json!(hits), json!(misses));
    assert_eq!(lookups(&[]), (json!(4), of(1, 3), of(1, 3), json!(3)));
    assert_eq!(lookups(&["--split"]), (json!(4), of(1, 4), of(1, 4), json!(4)));
    // The store finds the page that the fetch walked for in the second level.
    assert_eq!(lookups(&["--fetches"]), (json!(5), of(1, 4), of(1, 3), json!(3)));
    assert_eq!(lookups(&["--page-size", "64K"]), (json!(4), of(3, 1), of(3, 1), json!(1)));
}

#[test]
fn the_table_names_every_level() {
    let scratch = Scratch::new("tlbtable");
    let file = s1(&scratch, 1_000);
    let text = data(&["tlb", "--trace", &file, "--fetches"]);
    for words in
        ["1000 records", "pages of 4K", "L1 data", "L1 fetch", "1536ex12:lru", "446 walks, 1784 page-table reads"]
    {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn bad_geometries_and_files_are_bad_input() {
    let scratch = Scratch::new("tlbbad");
    let file = s1(&scratch, 10);
    let trace = ["tlb", "--trace", &file];
    for (args, words) in [
        (["--l1", "64y4"], ["--l1", "64xfull"]),
        (["--l1", "64x5"], ["64 entries", "ways = 4"]),
        (["--l2", "64x4:plru"], ["tree-plru", "or none"]),
        (["--psc", "4x8,2"], ["--psc", "`2`"]),
        (["--psc", "4x8,2x4,1x4,1x2"], ["--psc", "at most 3"]),
        (["--page-size", "1K"], ["--page-size 1K", "4K"]),
        (["--page-size", "512G"], ["--page-size", "up to 1G"]),
        (["--levels", "3"], ["--levels", "4..=5"]),
    ] {
        fails(&[&trace[..], &args].concat(), 2, &words);
    }
    fails(&["tlb"], 2, &["--trace"]);
    fails(&["tlb", "--trace", "gone.packed"], 2, &["gone.packed"]);
    fails(&["tlb", "--trace", &file, "--format", "mmut"], 2, &["s1-10.packed"]);
}
