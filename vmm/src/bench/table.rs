//! Results as tables: Markdown for people, CSV for programs.

use std::fmt::Write;

use super::results::{Place, Quantity, Results, Scale};
use super::stats::{Summary, digits};
use super::subject::Subject;

/// A table as rows of cells; the first is the heading.
pub type Rows = Vec<Vec<String>>;

/// How to read the first table.
pub const LEGEND: &str = "Medians; behind ± half of what the repetitions are apart. ≈ marks those whose repetitions overlap with those of the first column: which is the larger is not known.";
/// How to read the second.
pub const RATIO_LEGEND: &str =
    "The first column by each of the others, and between what the repetitions allow.";

/// All figures: a row for each place of each quantity.
pub fn figures(results: &Results) -> Rows {
    let subjects = results.subjects();
    let asked = results
        .figures
        .iter()
        .any(|figure| figure.place.asked.is_some());
    let mut heading = vec![String::new(), results.axis.clone()];
    heading.extend(asked.then(|| "asked".to_owned()));
    heading.extend(subjects.iter().map(|subject| subject.name().to_owned()));
    heading.extend(results.references.iter().map(|other| other.name.clone()));
    let mut rows = vec![heading];
    for quantity in &results.quantities {
        for place in results.places(&quantity.name) {
            let mut row = vec![heading_of(quantity), place.label.clone()];
            row.extend(asked.then(|| place.asked.map_or_else(|| "–".to_owned(), digits)));
            row.extend(cells(results, quantity, &place, &subjects));
            row.extend(results.references.iter().map(|other| {
                Results::reference(other, &quantity.name, &place)
                    .map_or_else(|| "–".to_owned(), |figure| figure.to_string())
            }));
            rows.push(row);
        }
    }
    rows
}

/// A quantity with its unit.
pub fn heading_of(quantity: &Quantity) -> String {
    if quantity.unit.is_empty() {
        quantity.name.clone()
    } else {
        format!("{}, {}", quantity.name, quantity.unit)
    }
}

fn cells(
    results: &Results,
    quantity: &Quantity,
    place: &Place,
    subjects: &[Subject],
) -> Vec<String> {
    let of = |subject: &Subject| results.summary(&quantity.name, place, *subject);
    let first = subjects.first().and_then(of);
    let cell = |(n, subject): (usize, &Subject)| {
        let Some(figure) = of(subject) else {
            return "–".to_owned();
        };
        let swamped = n > 0 && first.is_some_and(|first| first.overlaps(&figure));
        let mark = if swamped { "≈ " } else { "" };
        let half = (figure.most - figure.least) / 2.0;
        match quantity.scale {
            Scale::Ratio => format!(
                "{mark}{} ± {:.0} %",
                digits(figure.median),
                figure.spread() * 100.0
            ),
            // Of what may be zero there is no part.
            Scale::Linear => format!("{mark}{} ± {}", digits(figure.median), digits(half)),
        }
    };
    subjects.iter().enumerate().map(cell).collect()
}

/// The first column by the others; `None` if there are no others.
pub fn ratios(results: &Results) -> Option<Rows> {
    let subjects = results.subjects();
    let (first, others) = subjects.split_first()?;
    if others.is_empty() {
        return None;
    }
    let mut heading = vec![String::new(), results.axis.clone()];
    heading.extend(
        others
            .iter()
            .map(|other| format!("{} : {}", first.name(), other.name())),
    );
    let mut rows = vec![heading];
    for quantity in &results.quantities {
        if quantity.scale != Scale::Ratio {
            continue;
        }
        for place in results.places(&quantity.name) {
            let of = |subject: Subject| results.summary(&quantity.name, &place, subject);
            let Some(own) = of(*first) else {
                continue;
            };
            let mut row = vec![quantity.name.clone(), place.label.clone()];
            row.extend(others.iter().map(|other| {
                of(*other).map_or_else(|| "–".to_owned(), |other| ratio(&own, &other))
            }));
            rows.push(row);
        }
    }
    (rows.len() > 1).then_some(rows)
}

fn ratio(own: &Summary, other: &Summary) -> String {
    let by = |a: f64, b: f64| digits(a / b.max(f64::MIN_POSITIVE));
    format!(
        "{} ({} to {})",
        by(own.median, other.median),
        by(own.least, other.most),
        by(own.most, other.least)
    )
}

/// What was not measured, and other remarks.
pub fn remarks(results: &Results) -> Vec<String> {
    let missing = results.columns.iter().filter_map(|column| {
        let why = column.missing.as_ref()?;
        Some(format!("Not measured: {}: {why}.", column.subject.name()))
    });
    results.notes.iter().cloned().chain(missing).collect()
}

/// For people.
pub fn markdown(results: &Results) -> String {
    let mut text = format!(
        "# {}\n\n{}\n\nTaken on: {}.\n\n{LEGEND}\n\n",
        results.title,
        results.about,
        results.machine.describe()
    );
    append(&mut text, &figures(results));
    if let Some(ratios) = ratios(results) {
        let _ = write!(text, "\n{RATIO_LEGEND}\n\n");
        append(&mut text, &ratios);
    }
    for remark in remarks(results) {
        let _ = write!(text, "\n{remark}\n");
    }
    text
}

fn append(text: &mut String, rows: &Rows) {
    for (n, row) in rows.iter().enumerate() {
        let _ = writeln!(text, "| {} |", row.join(" | "));
        if n == 0 {
            let _ = writeln!(text, "|{}", "---|".repeat(row.len()));
        }
    }
}

/// For programs: a line for each repetition.
pub fn csv(results: &Results) -> String {
    let mut text = "quantity,unit,at,asked,subject,repetition,value\n".to_owned();
    for figure in &results.figures {
        let is_it = |quantity: &&Quantity| quantity.name == figure.quantity;
        let unit = results.quantities.iter().find(is_it);
        let unit = unit.map_or("", |quantity| &quantity.unit);
        let asked = figure.place.asked.map(|asked| asked.to_string());
        for (n, value) in figure.values.iter().enumerate() {
            let _ = writeln!(
                text,
                "\"{}\",{unit},\"{}\",{},{},{},{value}",
                figure.quantity,
                figure.place.label,
                asked.as_deref().unwrap_or_default(),
                figure.subject.name(),
                n + 1
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::subject::Column;

    #[test]
    fn a_table_names_what_is_missing_and_what_noise_swamps() {
        let column = |subject, missing: Option<&str>| Column {
            subject,
            missing: missing.map(str::to_owned),
        };
        let columns = vec![
            column(Subject::Kvm, Some("no /dev/kvm")),
            column(Subject::Qemu, None),
            column(Subject::Container, None),
        ];
        let quantities = [("ping", "µs", Scale::Ratio), ("busy", "", Scale::Linear)];
        let mut results = Results::new(["b", "B", "About.", "to"], columns, &quantities).unwrap();
        let place = Place::named("direct");
        for (subject, values) in [
            (Subject::Qemu, [400.0, 500.0, 450.0]),
            (Subject::Container, [410.0, 480.0, 420.0]),
        ] {
            for value in values {
                results.take("ping", &place, subject, value);
                results.take("busy", &place, subject, value / 500.0 - 0.9);
            }
        }
        let text = markdown(&results);
        assert!(
            text.contains("| ping, µs | direct | 450 ± 11 % | ≈ 420 ± 8 % |"),
            "{text}"
        );
        assert!(
            text.contains("| ping | direct | 1.07 (0.833 to 1.22) |"),
            "{text}"
        );
        assert!(text.contains("Not measured: kvm: no /dev/kvm."), "{text}");
        let csv = csv(&results);
        assert!(
            csv.contains("\"ping\",µs,\"direct\",,container,2,480\n"),
            "{csv}"
        );
    }

    #[test]
    fn nothing_to_measure_is_an_error_that_says_why() {
        let column = Column {
            subject: Subject::Kvm,
            missing: Some("no /dev/kvm".into()),
        };
        let failure = Results::new(["b", "B", "", "to"], vec![column], &[]).unwrap_err();
        assert!(failure.message.contains("kvm: no /dev/kvm"), "{failure:?}");
    }
}
