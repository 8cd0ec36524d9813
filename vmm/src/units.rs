//! Numbers as people read them.

/// A span of time with three digits: `850 ns`, `1.25 ms`.
pub fn nanoseconds(ns: u64) -> String {
    scaled(ns as f64, 1000.0, &["ns", "µs", "ms", "s"])
}

/// A rate with three digits: `9.87 Mbit/s`.
pub fn bits_per_second(rate: u64) -> String {
    scaled(
        rate as f64,
        1000.0,
        &["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"],
    )
}

/// A size with three digits: `113 MiB`.
pub fn bytes(size: u64) -> String {
    scaled(size as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB"])
}

/// A share with three digits: `0.98 %`.
pub fn percent(share: f64) -> String {
    format!("{} %", three_digits(share * 100.0))
}

fn scaled(value: f64, step: f64, units: &[&str]) -> String {
    let mut value = value;
    let mut units = units.iter().peekable();
    let mut unit = units.next().copied().unwrap_or_default();
    // What would be shown as 1000 is one of the next unit.
    while value >= step.min(999.5) && units.peek().is_some() {
        value /= step;
        unit = units.next().copied().unwrap_or_default();
    }
    format!("{} {unit}", three_digits(value))
}

fn three_digits(value: f64) -> String {
    let digits = match value {
        value if value >= 99.95 => 0,
        value if value >= 9.995 => 1,
        _ => 2,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_are_enough() {
        for (ns, shown) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1000, "1 µs"),
            (1250, "1.25 µs"),
            (999_999, "1 ms"),
            (123_456_789, "123 ms"),
            (9_999_999_999, "10 s"),
            (400_000_000_000, "400 s"),
        ] {
            assert_eq!(nanoseconds(ns), shown);
        }
        assert_eq!(bits_per_second(9_874_321), "9.87 Mbit/s");
        assert_eq!(bytes(1000), "0.98 KiB");
        assert_eq!(bytes(128 << 20), "128 MiB");
        assert_eq!(percent(0.0098), "0.98 %");
        assert_eq!(percent(1.0), "100 %");
    }
}
