//! An address space changed page by page: mapped where pages happen to be, write-protected, looked at, unmapped.
//!
//! A `Mapper` has the tables to itself while it does so. Run it with `cargo run --release --example page_by_page`.

use mmusim::core::image::RamRange;
use mmusim::core::mapper::{Mapper, PageKind};
use mmusim::core::memory::{Stretch, TableMemory};
use mmusim::core::walk::walk;
use mmusim::x86::{Ept, EptConfig};
use mmusim::{Access, ByteUnits, Format, Gpa, Hpa, Level, Perms};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let ept = EptConfig::new().build()?;
    let pool = RamRange { start: Hpa::new(1.GiB()), bytes: 64.MiB() };
    let mut mapper = Mapper::empty(ept, TableMemory::new(pool, ept.present_mask())?)?;

    // What all pages have in common is encoded once, for each size.
    let leaf = mmusim::core::Leaf {
        output: Hpa::new(0),
        perms: Perms::RWX.with(Perms::DIRTY),
        accessed: true,
        attrs: Default::default(),
    };
    let small = PageKind::new(&ept, Level::LAST, leaf)?;
    let large = PageKind::new(&ept, Level::new(1), leaf)?;
    let pages: Vec<(u64, Hpa)> = (0..1000).map(|i| ((i * 37 % 4096) << 12, Hpa::new((i * i % 9973) << 12))).collect();
    for &(gpa, host) in &pages {
        mapper.map(gpa, host, &small)?;
    }
    mapper.map(1.GiB(), Hpa::new(2.GiB()), &large)?;
    println!("mapped       {:>5} pages of 4K and one of 2M", pages.len());

    // The old word says what a processor may still hold: whoever runs guests on these tables flushes it.
    for &(gpa, _) in &pages {
        mapper.change(gpa, Ept::write_protect)?;
    }
    let mut writable = 0;
    mapper.each_leaf(0..2.GiB(), |_, _, stretch| {
        writable += match stretch {
            Stretch::Words(words) => words.iter().filter(|&&word| ept.is_mapped(word) && ept.is_writable(word)).count(),
            Stretch::Run(run) if ept.is_writable(run.first) => run.len as usize,
            Stretch::Run(_) => 0,
        };
    });
    println!("writable     {writable:>5} after write protection");
    let denied = pages.iter().filter(|&&(gpa, _)| mapper.walk(gpa, Access::WRITE).is_err()).count();
    println!("denied       {denied:>5} of as many stores");
    for &(gpa, _) in &pages[..500] {
        mapper.unmap(gpa)?;
    }

    // Everything else is table memory's: its counts are true again, and anybody may walk.
    let (root, memory) = (mapper.root(), mapper.memory());
    let reached = pages.iter().filter(|&&(gpa, _)| walk(&ept, root, gpa, Access::READ, memory).is_ok()).count();
    println!("still mapped {reached:>5} pages, in {} tables of {} bytes", memory.frames(), memory.footprint());
    assert_eq!((writable, denied, reached), (1, 1000, 500));
    assert!(walk(&ept, root, Gpa::new(1.GiB()).raw(), Access::WRITE, memory).is_ok());
    Ok(())
}
