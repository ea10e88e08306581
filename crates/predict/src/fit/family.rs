//! Families of measured points: what is left out of a fit together.

use crate::curve::{Curve, Form};
use crate::score::Measured;

/// The family of a row: curves that touch the same things, one chase and several apart; shootdowns by who is concerned. `None` for events
/// that are a figure of their own, which nothing but themselves can say.
pub fn family(row: &Measured) -> Option<String> {
    match row.variant.parse::<Curve>() {
        Ok(curve) => Some(of_curve(&curve)),
        Err(_) => of_event(row).map(str::to_owned),
    }
}

fn of_curve(curve: &Curve) -> String {
    let form = match curve.form {
        Form::Packed { stride } => format!("lines {stride} bytes apart"),
        Form::Dense => "pages".to_owned(),
        Form::Zero => "one frame".to_owned(),
        Form::Regions { region_shift, .. } => format!("regions of {} MiB", 1u64 << region_shift.saturating_sub(20)),
        Form::Jumps { stride: 64 } => "jumps side by side".to_owned(),
        Form::Jumps { stride } => format!("jumps {stride} bytes apart"),
    };
    let host = curve.host_page.map_or_else(String::new, |page| format!(" over {page}"));
    let several = if curve.chains > 1 { ", several chases" } else { "" };
    format!("{form}, {}{host}{several}", curve.page)
}

fn of_event(row: &Measured) -> Option<&'static str> {
    let name = row.variant.as_str();
    if !matches!(row.bench.as_str(), "shoot" | "membarrier") || name.starts_with("global_rcu") {
        return None;
    }
    if name.contains("victim_lost") {
        return Some("shootdowns, victim");
    }
    let call = name.rsplit_once('_').filter(|(_, threads)| threads.ends_with('t') && threads.len() > 1);
    match call {
        Some(("private_expedited", _)) => Some("barriers"),
        Some((call, _)) if call.starts_with("reload") => None,
        Some((_, "1t")) => Some(if row.n > 33 { "shootdowns, all at once" } else { "shootdowns, page by page" }),
        Some(_) => Some("shootdowns, another thread"),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bench: &str, variant: &str, n: u64) -> Option<String> {
        let (bench, variant, unit) = (bench.to_owned(), variant.to_owned(), String::new());
        family(&Measured { bench, variant, n, unit, ns_median: 1.0, core_cycles_median: 1.0 })
    }

    #[test]
    fn one_chase_of_a_series_goes_with_its_curve() {
        assert_eq!(of("mlp", "zero4k_k1", 64), of("chase", "zero4k", 8));
        assert_ne!(of("mlp", "zero4k_k2", 64), of("chase", "zero4k", 8));
        assert_ne!(of("mlp", "thp_data_k1", 64), of("chase", "dense4k", 8));
        assert_eq!(of("psc", "pde_2M_T4096", 8), of("psc", "pde_2M_T16384", 32));
        assert_eq!(of("chase", "dense4k_over_2m", 8).as_deref(), Some("pages, 4K over 2M"));
    }

    #[test]
    fn shootdowns_are_apart_from_what_says_nothing_about_others() {
        assert_eq!(of("shoot", "munmap_1t", 33).as_deref(), Some("shootdowns, page by page"));
        assert_eq!(of("shoot", "munmap_1t", 34).as_deref(), Some("shootdowns, all at once"));
        assert_eq!(of("shoot", "dontneed_2t", 1).as_deref(), Some("shootdowns, another thread"));
        assert_eq!(of("shoot", "dontneed_victim_lost", 1).as_deref(), Some("shootdowns, victim"));
        assert_eq!(of("membarrier", "private_expedited_2t", 1).as_deref(), Some("barriers"));
        for alone in ["reload64_warm_1t", "dontneed_victim_gaps_x1000"] {
            assert_eq!(of("shoot", alone, 1), None, "{alone}");
        }
        assert_eq!(of("membarrier", "global_rcu_gp_1t", 1), None);
        assert_eq!(of("clear", "repstosb_2m", 1), None);
    }
}
