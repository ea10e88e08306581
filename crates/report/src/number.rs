//! Figures with their units, in as many digits as one reads.

/// Four significant digits and a suffix: `812.3k`, `37.12M`; exact below ten thousand.
pub(crate) fn compact(number: f64) -> String {
    const SUFFIXES: [&str; 6] = ["k", "M", "G", "T", "P", "E"];
    if number.abs() < 10_000.0 {
        return figure(number);
    }
    let (mut scaled, mut suffix) = (number, "");
    for next in SUFFIXES {
        // 999.95 and above would print as 1000.0.
        if scaled.abs() < 999.95 {
            break;
        }
        scaled /= 1000.0;
        suffix = next;
    }
    let decimals = match scaled.abs() {
        100.0.. => 1,
        10.0.. => 2,
        _ => 3,
    };
    format!("{scaled:.decimals$}{suffix}")
}

/// Whole numbers exactly, others with four significant digits.
pub(crate) fn figure(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1e15 {
        return format!("{value:.0}");
    }
    match value.abs() {
        1e5.. => format!("{value:.0}"),
        1000.0.. => format!("{value:.1}"),
        100.0.. => format!("{value:.1}"),
        10.0.. => format!("{value:.2}"),
        1.0.. => format!("{value:.3}"),
        0.001.. => format!("{value:.4}"),
        _ => format!("{value:.2e}"),
    }
}

/// A whole number with thin groups of thousands, for titles: `18 163 042`.
pub(crate) fn exact(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    grouped
}

/// A time with the unit that suits it.
pub(crate) fn seconds(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        1.0.. => (value, "s"),
        1e-3.. => (value * 1e3, "ms"),
        1e-6.. => (value * 1e6, "µs"),
        0.0 => return "0 s".to_owned(),
        _ => (value * 1e9, "ns"),
    };
    // Three digits: these stand beside exact cycles.
    let decimals = match scaled.abs() {
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    format!("{scaled:.decimals$} {unit}")
}

/// A size as the command line has it: `64MiB`, `4K` is `4KiB`.
pub(crate) fn bytes(number: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    let mut scaled = number;
    while scaled >= 1024 && scaled.is_multiple_of(1024) {
        scaled /= 1024;
        unit += 1;
    }
    format!("{scaled} {}", UNITS[unit])
}

/// A share with its sign.
pub(crate) fn signed_percent(share: f64) -> String {
    format!("{:+.1} %", 100.0 * share)
}

/// A share.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// A field's name as words: `longest_rcu` is `longest rcu`.
pub(crate) fn words(name: &str) -> String {
    name.replace('_', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_the_digits_that_one_reads() {
        assert_eq!([9999.0, 10_000.0, 812_345.0, 37_123_456.0].map(compact), ["9999", "10.00k", "812.3k", "37.12M"]);
        assert_eq!(compact(999_960.0), "1.000M");
        assert_eq!([0.0, 104.56, 3.7, 0.00824, 0.00001].map(figure), ["0", "104.6", "3.700", "0.0082", "1.00e-5"]);
        assert_eq!([7, 1234, 18_163_042].map(exact), ["7", "1 234", "18 163 042"]);
    }

    #[test]
    fn units_suit_the_size() {
        assert_eq!([2.5, 0.0046, 12e-6, 3e-9, 0.0].map(seconds), ["2.50 s", "4.60 ms", "12.0 µs", "3.00 ns", "0 s"]);
        assert_eq!([0, 4096, 64 << 20, 1500, 1 << 63].map(bytes), ["0 B", "4 KiB", "64 MiB", "1500 B", "8 EiB"]);
        assert_eq!((signed_percent(0.123), percent(0.5)), ("+12.3 %".to_owned(), "50.0 %".to_owned()));
    }
}
