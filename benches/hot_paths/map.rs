//! Mapping pages one by one into an empty tree, by stores to table memory and by a mapper.

use mmusim::core::mapper::{Mapper, PageKind};
use mmusim::{Gpa, Hpa, Level};

use super::rounds::Rounds;
use super::scatter::Scatter;
use super::tree::{Tree, leaf};

const PAGES: u64 = 1 << 16;

/// All cases of the group.
pub fn all(rounds: &mut Rounds) {
    let contiguous: Vec<(u64, u64)> = (0..PAGES).map(|page| (page << 12, page << 12)).collect();
    let mut scatter = Scatter(3);
    // Multiplying by an odd number is a permutation of the pages.
    let scattered: Vec<(u64, u64)> =
        (0..PAGES).map(|page| ((page * 40503 % PAGES) << 12, scatter.below(1 << 27) << 12)).collect();
    for (name, pages) in [("contiguous", &contiguous), ("scattered", &scattered)] {
        rounds.case_on("map", &format!("one page, {name}"), PAGES, Tree::new, |tree| {
            for &(gpa, host) in pages {
                tree.map(Gpa::new(gpa), Hpa::new(host));
            }
        });
        let mapper = || {
            let Tree { ept, memory, root } = Tree::new();
            Mapper::new(ept, memory, root)
        };
        rounds.case_on("map", &format!("one page, {name}, mapper, closed"), PAGES, mapper, |mapper| {
            let kind = PageKind::new(mapper.format(), Level::LAST, leaf(Hpa::new(0))).expect("a legal leaf");
            for &(gpa, host) in pages {
                mapper.map(gpa, Hpa::new(host), &kind).expect("not mapped before");
            }
            mapper.close();
        });
    }
}
