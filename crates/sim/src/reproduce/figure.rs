//! Figures as they were published: some are bounds.

use std::fmt;

use serde::{Serialize, Serializer};

/// A published figure, or a ratio of two.
#[derive(Clone, Copy, PartialEq, PartialOrd, Debug)]
pub enum Figure {
    /// This much.
    Is(f64),
    /// Less than this; how much less nobody said.
    Below(f64),
    /// More than this.
    Above(f64),
}

impl Figure {
    /// The number in it.
    pub fn number(self) -> f64 {
        match self {
            Figure::Is(number) | Figure::Below(number) | Figure::Above(number) => number,
        }
    }

    /// This over another: a bound where either is one, nothing where two bounds leave everything open.
    pub fn over(self, other: Figure) -> Option<Figure> {
        let ratio = self.number() / other.number();
        match (self, other) {
            (Figure::Is(_), Figure::Is(_)) => Some(Figure::Is(ratio)),
            (Figure::Is(_) | Figure::Above(_), Figure::Below(_)) | (Figure::Above(_), Figure::Is(_)) => {
                Some(Figure::Above(ratio))
            }
            (Figure::Is(_) | Figure::Below(_), Figure::Above(_)) | (Figure::Below(_), Figure::Is(_)) => {
                Some(Figure::Below(ratio))
            }
            (Figure::Below(_), Figure::Below(_)) | (Figure::Above(_), Figure::Above(_)) => None,
        }
    }

    /// A simulated figure over this one, less one; nothing is amiss on the right side of a bound.
    pub fn error(self, simulated: f64) -> f64 {
        let error = simulated / self.number() - 1.0;
        match self {
            Figure::Is(_) => error,
            Figure::Below(_) => error.max(0.0),
            Figure::Above(_) => error.min(0.0),
        }
    }

    /// Whether a simulated figure agrees: within a quarter, or on the right side of a bound.
    pub fn agrees(self, simulated: f64) -> bool {
        let share = simulated / self.number();
        match self {
            Figure::Is(_) => (0.75..=1.25).contains(&share),
            Figure::Below(_) => share <= 1.0,
            Figure::Above(_) => share >= 1.0,
        }
    }

    /// How it is written, with `digits` writing the number.
    pub fn text(self, digits: impl Fn(f64) -> String) -> String {
        let number = digits(self.number());
        match self {
            Figure::Is(_) => number,
            Figure::Below(_) => format!("< {number}"),
            Figure::Above(_) => format!("> {number}"),
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text(|number| number.to_string()))
    }
}

/// A number, or an object that says on which side of it: `{"below": 0.1}`.
impl Serialize for Figure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Figure::Is(number) => serializer.serialize_f64(*number),
            Figure::Below(number) => serializer.collect_map([("below", number)]),
            Figure::Above(number) => serializer.collect_map([("above", number)]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Figure::{Above, Below, Is};

    #[test]
    fn a_ratio_with_a_bound_is_a_bound() {
        assert_eq!(Is(7.0).over(Is(2.0)), Some(Is(3.5)));
        assert_eq!(Is(7.0).over(Below(0.1)), Some(Above(7.0 / 0.1)));
        assert_eq!(Below(7.0).over(Is(2.0)), Some(Below(3.5)));
        assert_eq!(Above(7.0).over(Below(2.0)), Some(Above(3.5)));
        assert_eq!(Is(7.0).over(Above(2.0)), Some(Below(3.5)));
        assert_eq!(Below(7.0).over(Below(2.0)), None);
    }

    #[test]
    fn a_bound_is_met_or_missed_by_so_much() {
        assert!(Above(70.0).agrees(514.0) && Above(70.0).agrees(70.0) && !Above(70.0).agrees(69.0));
        assert!(Below(2.0).agrees(1.0) && !Below(2.0).agrees(2.5));
        assert!(Is(2.0).agrees(2.5) && Is(2.0).agrees(1.5) && !Is(2.0).agrees(2.6));
        let errors = [Above(70.0).error(514.0), Above(70.0).error(35.0), Below(2.0).error(1.0), Below(2.0).error(3.0)];
        assert_eq!(errors.map(|error| format!("{error:.2}")), ["0.00", "-0.50", "0.00", "0.50"]);
        assert_eq!(format!("{:.2}", Is(2.0).error(1.0)), "-0.50");
        assert_eq!([Is(0.5), Below(0.1), Above(70.0)].map(|figure| figure.to_string()), ["0.5", "< 0.1", "> 70"]);
    }
}
