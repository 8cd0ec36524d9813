//! Results as pictures: one for each quantity.

use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::results::{Place, Quantity, Results, Scale};
use super::stats::{Summary, digits};
use super::subject::Subject;
use super::table::heading_of;
use crate::failure::{Code, Failure};

/// Pixels.
const SIZE: (u32, u32) = (760, 420);
/// Of the title and the legend above the axes.
const HEAD: u32 = 64;
const FONT: &str = "sans-serif";
/// Told apart by people who do not see all colours (Okabe and Ito), in the order of [`Subject::ALL`].
const COLOURS: [RGBColor; 5] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
];
/// Beyond this ratio of the largest to the least an axis is logarithmic.
const LOGARITHMIC: f64 = 30.0;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Problem = DrawingAreaErrorKind<std::io::Error>;

/// What is drawn of a subject: where, and the least, the median and the most.
#[derive(Debug)]
struct Series {
    subject: Subject,
    points: Vec<(f64, [f64; 3])>,
}

/// A quantity's picture.
#[derive(Debug)]
struct Picture {
    title: String,
    series: Vec<Series>,
    /// Names of places, if they have no numbers.
    names: Option<Vec<String>>,
    axis: String,
    /// Something was asked for, and a line at zero is where it was delivered.
    error: bool,
    logarithmic: bool,
}

/// The name of each quantity, and its picture as SVG.
pub fn all(results: &Results) -> Result<Vec<(String, String)>, Failure> {
    let there = results
        .quantities
        .iter()
        .filter(|quantity| !results.places(&quantity.name).is_empty());
    let draw = |quantity: &Quantity| {
        let mut svg = String::new();
        picture(results, quantity).draw(&mut svg).map_err(|error| {
            let message = format!("cannot draw {}: {error}", quantity.name);
            Failure::new(Code::General, message)
        })?;
        Ok((quantity.name.clone(), svg))
    };
    there.map(draw).collect()
}

/// A name as part of a file's.
pub fn slug(name: &str) -> String {
    let letters = name
        .to_lowercase()
        .replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let words: Vec<_> = letters.split('-').filter(|word| !word.is_empty()).collect();
    words.join("-")
}

fn picture(results: &Results, quantity: &Quantity) -> Picture {
    let places = results.places(&quantity.name);
    let subjects = results.subjects();
    let error = places.iter().all(|place| place.asked.is_some());
    let numbers = places.iter().all(|place| place.number.is_some());
    let values = |place: &Place, summary: &Summary| {
        let value = |value: f64| match place.asked {
            Some(asked) if error => (value / asked - 1.0) * 100.0,
            _ => value,
        };
        [summary.least, summary.median, summary.most].map(value)
    };
    let count = subjects.len() as f64;
    let series = subjects.iter().enumerate().map(|(n, subject)| {
        let points = places.iter().enumerate().filter_map(|(index, place)| {
            let summary = results.summary(&quantity.name, place, *subject)?;
            // Side by side, where places are names.
            let beside = (n as f64 - (count - 1.0) / 2.0) * 0.6 / count;
            let x = place
                .number
                .filter(|_| numbers)
                .unwrap_or(index as f64 + beside);
            Some((x, values(place, &summary)))
        });
        Series {
            subject: *subject,
            points: points.collect(),
        }
    });
    let series: Vec<_> = series.filter(|series| !series.points.is_empty()).collect();
    let (least, most) = bounds(series.iter().flat_map(|s| &s.points).flat_map(|p| p.1));
    let (title, logarithmic) = if error {
        (format!("{}: measured less asked, %", quantity.name), false)
    } else {
        let far = least > 0.0 && most / least > LOGARITHMIC;
        (heading_of(quantity), quantity.scale == Scale::Ratio && far)
    };
    Picture {
        title,
        series,
        names: (!numbers).then(|| places.iter().map(|place| place.label.clone()).collect()),
        axis: results.axis.clone(),
        error,
        logarithmic,
    }
}

fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold(
        (f64::INFINITY, f64::NEG_INFINITY),
        |(least, most), value| (least.min(value), most.max(value)),
    )
}

fn colour(subject: Subject) -> RGBColor {
    let place = Subject::ALL.iter().position(|other| *other == subject);
    place.map_or(BLACK, |place| COLOURS[place % COLOURS.len()])
}

impl Picture {
    fn draw(&self, svg: &mut String) -> Result<(), Problem> {
        let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let (head, body) = area.split_vertically(HEAD);
        self.head(&head)?;
        let values = || self.series.iter().flat_map(|series| &series.points);
        let (low, high) = bounds(values().flat_map(|point| point.1));
        let (left, right) = bounds(values().map(|point| point.0));
        let room = (high - low).max(high.abs() * 0.1).max(1e-3) * 0.08;
        let y = if self.error {
            low.min(0.0) - room..high.max(0.0) + room
        } else {
            low.min(0.0)..high + room
        };
        let numbers = right / left > 20.0;
        match (&self.names, self.logarithmic) {
            (Some(names), true) => {
                self.body(&body, edges(names), (low / 1.3..high * 1.3).log_scale())
            }
            (Some(names), false) => self.body(&body, edges(names), y),
            (None, true) if numbers => self.body(
                &body,
                (left / 1.2..right * 1.2).log_scale(),
                (low / 1.3..high * 1.3).log_scale(),
            ),
            (None, true) => self.body(
                &body,
                0.0..right * 1.05,
                (low / 1.3..high * 1.3).log_scale(),
            ),
            (None, false) if numbers => self.body(&body, (left / 1.2..right * 1.2).log_scale(), y),
            (None, false) => self.body(&body, 0.0..right * 1.05, y),
        }?;
        area.present()
    }

    /// The title, and below it which colour is which.
    fn head(&self, area: &Area<'_>) -> Result<(), Problem> {
        let style = (FONT, 18).into_font().color(&BLACK);
        area.draw(&Text::new(self.title.clone(), (16, 12), style))?;
        let middle = Pos::new(HPos::Left, VPos::Center);
        let mut x = 20;
        for series in &self.series {
            let colour = colour(series.subject);
            area.draw(&Circle::new((x, 48), 5, colour.filled()))?;
            let style = (FONT, 14).into_font().color(&BLACK).pos(middle);
            let name = series.subject.name();
            area.draw(&Text::new(name, (x + 10, 48), style))?;
            // Fonts differ from browser to browser; this is wide enough for a letter of any.
            x += 34 + 9 * i32::try_from(name.len()).unwrap_or_default();
        }
        Ok(())
    }

    fn body<X, Y>(&self, area: &Area<'_>, x: X, y: Y) -> Result<(), Problem>
    where
        X: AsRangedCoord<Value = f64>,
        X::CoordDescType: ValueFormatter<f64>,
        Y: AsRangedCoord<Value = f64>,
        Y::CoordDescType: ValueFormatter<f64>,
    {
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .margin_right(24)
            .x_label_area_size(44)
            .y_label_area_size(70)
            .build_cartesian_2d(x, y)?;
        let name = |x: &f64| match &self.names {
            None => tidy(*x),
            Some(names) => {
                let near = (x - x.round()).abs() < 1e-6 && *x >= 0.0;
                let name = names.get(x.round() as usize).filter(|_| near);
                name.cloned().unwrap_or_default()
            }
        };
        let mut mesh = chart.configure_mesh();
        mesh.light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.12))
            .axis_style(BLACK.mix(0.6))
            .x_desc(self.axis.as_str())
            .label_style((FONT, 13))
            .axis_desc_style((FONT, 14))
            .x_labels(self.names.as_ref().map_or(12, |names| names.len() + 2))
            .x_label_formatter(&name)
            .y_labels(8)
            .y_label_formatter(&|y| tidy(*y));
        if self.names.is_some() {
            mesh.disable_x_mesh();
        }
        mesh.draw()?;
        for series in &self.series {
            let colour = colour(series.subject);
            if self.names.is_none() {
                let line = series
                    .points
                    .iter()
                    .map(|(x, [_, median, _])| (*x, *median));
                chart.draw_series(LineSeries::new(line, colour.stroke_width(2)))?;
            }
            let whisker = |(x, [least, _, most]): &(f64, [f64; 3])| {
                PathElement::new([(*x, *least), (*x, *most)], colour.mix(0.6).stroke_width(2))
            };
            chart.draw_series(series.points.iter().map(whisker))?;
            let dot = |(x, [_, median, _]): &(f64, [f64; 3])| {
                Circle::new((*x, *median), 4, colour.filled())
            };
            chart.draw_series(series.points.iter().map(dot))?;
        }
        if self.error {
            let across = self.series.iter().flat_map(|series| &series.points);
            let (left, right) = bounds(across.map(|point| point.0));
            chart.draw_series(std::iter::once(PathElement::new(
                [(left, 0.0), (right, 0.0)],
                BLACK.stroke_width(1),
            )))?;
        }
        Ok(())
    }
}

/// A number of an axis: no zeros that say nothing.
fn tidy(number: f64) -> String {
    let text = digits(number);
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// Of an axis of names, which are at 0, 1 and so on.
fn edges(names: &[String]) -> std::ops::Range<f64> {
    -0.5..names.len() as f64 - 0.5
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::subject::Column;

    fn results(places: &[Place]) -> Results {
        let subjects = [Subject::Qemu, Subject::Container];
        let columns = subjects.map(|subject| Column {
            subject,
            missing: None,
        });
        let texts = ["b", "B", "About.", "to"];
        let quantity = [("TCP, MTU 1500", "Mbit/s", Scale::Ratio)];
        let mut results = Results::new(texts, columns.to_vec(), &quantity).unwrap();
        for (n, place) in (1..).zip(places) {
            for (m, subject) in (1..).zip(subjects) {
                for value in [1.0, 1.1] {
                    let value = value * f64::from(n) * 10f64.powi(m);
                    results.take("TCP, MTU 1500", place, subject, value);
                }
            }
        }
        results
    }

    #[test]
    fn axes_are_tidy() {
        assert_eq!(
            [0.1, 1.0, 2.5, 100.0, 0.0].map(tidy),
            ["0.1", "1", "2.5", "100", "0"]
        );
    }

    #[test]
    fn every_kind_of_axis_is_drawn() {
        let asked = |number: f64| Place {
            label: format!("{number}ms"),
            number: Some(number),
            asked: Some(number),
        };
        for places in [
            vec![Place::named("direct"), Place::named("1 hop")],
            vec![Place::at(1), Place::at(30)],
            vec![Place::at(7)],
            vec![asked(1.0), asked(100.0)],
        ] {
            let pictures = all(&results(&places)).unwrap();
            let [(name, svg)] = &pictures[..] else {
                panic!("{pictures:?}")
            };
            assert_eq!(slug(name), "tcp-mtu-1500");
            assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
            // A dot for each place and subject, and one for each subject in the legend.
            assert_eq!(
                svg.matches("<circle").count(),
                2 * places.len() + 2,
                "{svg}"
            );
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }
}
