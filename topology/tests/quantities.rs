//! Quantities: exact, and the same after being printed.

use std::time::Duration;

use proptest::prelude::*;
use topology::quantity::{Probability, QueueLimit, Rate, Size, Time};

#[test]
fn exact_values() {
    let rate = |text: &str| text.parse::<Rate>().unwrap().0;
    assert_eq!(rate("155.52Mbit"), 155_520_000);
    assert_eq!(rate("100Mbit"), 100_000_000);
    assert_eq!(rate("0.064Mbit"), 64_000);
    assert_eq!(rate("1bit"), 1);
    assert_eq!(rate("1.000000000001Tbit"), 1_000_000_000_001);
    assert_eq!(rate("18446744.073709551615Tbit"), u64::MAX);
    let time = |text: &str| text.parse::<Time>().unwrap().0;
    assert_eq!(time("0.1ms"), Duration::from_micros(100));
    assert_eq!(time("1.5us"), Duration::from_nanos(1500));
    assert_eq!(time("0.5min"), Duration::from_secs(30));
    let size = |text: &str| text.parse::<Size>().unwrap().0;
    assert_eq!(size("64MiB"), 64 << 20);
    assert_eq!(size("64MB"), 64_000_000);
    assert_eq!(size("0.5KiB"), 512);
    let probability = |text: &str| text.parse::<Probability>().unwrap().0;
    // Not 0.1 / 100, which is another f64 than 0.001 is in some cases: the nearest to the text.
    for (text, value) in [
        ("0.1%", 0.001),
        ("29%", 0.29),
        ("57%", 0.57),
        ("100%", 1.0),
        ("0%", 0.0),
    ] {
        assert_eq!(probability(text).to_bits(), f64::to_bits(value), "{text}");
    }
    let limit = |text: &str| text.parse::<QueueLimit>().unwrap();
    assert_eq!(limit("50packets"), QueueLimit::Packets(50));
    assert_eq!(limit("1packet"), QueueLimit::Packets(1));
    assert_eq!(limit("64KiB"), QueueLimit::Size(Size(65536)));
}

#[test]
fn refused() {
    for text in [
        "",
        "Mbit",
        "100",
        "1.Mbit",
        ".5Mbit",
        "1.2.3Mbit",
        "1e3bit",
        "+1bit",
        "-1bit",
        "1 Mbit",
        "1Mbit ",
        "1mbit",
        "1MBit",
        "0x10bit",
        "½Mbit",
        "1,5Mbit",
        "0.1bit",
        "18446744073709551616bit",
        "99999999999999999999999999999999bit",
        "1Mbit/s",
        "١bit",
    ] {
        assert!(text.parse::<Rate>().is_err(), "{text:?} was taken");
    }
    for text in ["1.5packets", "0.5B", "5"] {
        assert!(text.parse::<QueueLimit>().is_err(), "{text:?} was taken");
    }
    assert!("100.1%".parse::<Probability>().is_err());
    assert!("0.1".parse::<Probability>().is_err());
}

#[test]
fn printed_as_a_person_would() {
    assert_eq!(Rate(155_520_000).to_string(), "155.52Mbit");
    assert_eq!(Rate(1_000_000_000).to_string(), "1Gbit");
    assert_eq!(Rate(0).to_string(), "0bit");
    assert_eq!(Time(Duration::from_micros(1500)).to_string(), "1.5ms");
    assert_eq!(Time(Duration::from_secs(90)).to_string(), "90s");
    assert_eq!(Size(128 << 20).to_string(), "128MiB");
    assert_eq!(Size(1500).to_string(), "1500B");
    assert_eq!(Size(0).to_string(), "0B");
    assert_eq!(Probability(0.001).to_string(), "0.1%");
    assert_eq!(Probability(1.0).to_string(), "100%");
    assert_eq!(Probability(0.0).to_string(), "0%");
    assert_eq!(Probability(0.1).to_string(), "10%");
}

proptest! {
    #[test]
    fn rate_prints_and_parses(value: u64) {
        prop_assert_eq!(Rate(value).to_string().parse(), Ok(Rate(value)));
    }

    #[test]
    fn time_prints_and_parses(ns: u64) {
        let time = Time::from_nanos(ns);
        prop_assert_eq!(time.to_string().parse(), Ok(time));
    }

    #[test]
    fn size_prints_and_parses(value: u64) {
        prop_assert_eq!(Size(value).to_string().parse(), Ok(Size(value)));
    }

    #[test]
    fn limit_prints_and_parses(value: u64, packets: bool) {
        let limit = if packets { QueueLimit::Packets(value) } else { QueueLimit::Size(Size(value)) };
        prop_assert_eq!(limit.to_string().parse(), Ok(limit));
    }

    #[test]
    fn probability_prints_and_parses(value in 0.000_000_1..=1.0f64) {
        prop_assert_eq!(Probability(value).to_string().parse(), Ok(Probability(value)));
    }

    #[test]
    fn decimals_are_exact(whole in 0..1_000_000u64, millionths in 0..1_000_000u64) {
        let text = format!("{whole}.{millionths:06}Mbit");
        prop_assert_eq!(text.parse(), Ok(Rate(whole * 1_000_000 + millionths)));
    }

    #[test]
    fn no_text_panics(text in "\\PC*") {
        let _ = text.parse::<Rate>();
        let _ = text.parse::<Probability>();
        let _ = text.parse::<QueueLimit>();
    }

    #[test]
    fn no_number_panics(text in "[0-9.]{0,40}(packets|B|GiB|%|Tbit|min)") {
        let _ = text.parse::<Rate>();
        let _ = text.parse::<Time>();
        let _ = text.parse::<Probability>();
        let _ = text.parse::<QueueLimit>();
    }
}
