//! What a benchmark has found.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::machine::Machine;
use super::stats::Summary;
use super::subject::{Column, Subject};
use crate::failure::{Code, Failure};

/// What figures are about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quantity {
    /// As a heading.
    pub name: String,
    /// Of its figures.
    pub unit: String,
    /// Whether figures are compared by their ratio; otherwise by their difference.
    pub scale: Scale,
}

/// How figures spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scale {
    /// By orders of magnitude, all above zero.
    Ratio,
    /// From about zero on.
    Linear,
}

/// Where on its axis a figure is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Place {
    /// For people.
    pub label: String,
    /// If the axis is one of numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<f64>,
    /// What the figure should be, where something was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<f64>,
}

impl Place {
    /// By name.
    pub fn named(label: &str) -> Self {
        Self {
            label: label.to_owned(),
            number: None,
            asked: None,
        }
    }

    /// By number.
    pub fn at(number: u32) -> Self {
        Self {
            label: number.to_string(),
            number: Some(number.into()),
            asked: None,
        }
    }
}

/// A figure: which, and what the repetitions said.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Figure {
    /// The name of its quantity.
    pub quantity: String,
    /// Where.
    #[serde(flatten)]
    pub place: Place,
    /// Of what.
    pub subject: Subject,
    /// One for each repetition.
    pub values: Vec<f64>,
}

impl Figure {
    /// `None` if nothing was measured.
    pub fn summary(&self) -> Option<Summary> {
        Summary::of(&self.values)
    }
}

/// Figures of others that stand beside those of this machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reference {
    /// Heading of their column.
    pub name: String,
    /// Quantity, place and figure.
    pub figures: Vec<(String, String, f64)>,
}

/// What a benchmark has found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Results {
    /// Its name on the command line.
    pub bench: String,
    /// A heading.
    pub title: String,
    /// What was done, in a paragraph.
    pub about: String,
    /// What the places of figures are.
    pub axis: String,
    /// What they were taken on.
    pub machine: Machine,
    /// What was compared.
    pub columns: Vec<Column>,
    /// In the order of tables.
    pub quantities: Vec<Quantity>,
    /// In the order in which they were taken.
    pub figures: Vec<Figure>,
    /// Of others.
    pub references: Vec<Reference>,
    /// What a reader should know besides.
    pub notes: Vec<String>,
}

impl Results {
    /// None yet. `texts` are the name of the benchmark, its title, what it does, and what its axis is; `quantities` are name, unit and scale.
    pub fn new(
        texts: [&str; 4],
        columns: Vec<Column>,
        quantities: &[(&str, &str, Scale)],
    ) -> Result<Self, Failure> {
        if columns.iter().all(|column| column.missing.is_some()) {
            let why: Vec<_> = columns
                .iter()
                .filter_map(|column| {
                    Some(format!(
                        "{}: {}",
                        column.subject.name(),
                        column.missing.as_ref()?
                    ))
                })
                .collect();
            let message = format!("there is nothing to measure here: {}", why.join("; "));
            return Err(Failure::new(Code::Host, message));
        }
        let [bench, title, about, axis] = texts.map(str::to_owned);
        let quantity = |&(name, unit, scale): &(&str, &str, Scale)| Quantity {
            name: name.to_owned(),
            unit: unit.to_owned(),
            scale,
        };
        Ok(Self {
            bench,
            title,
            about,
            axis,
            machine: Machine::here(),
            columns,
            quantities: quantities.iter().map(quantity).collect(),
            figures: Vec::new(),
            references: Vec::new(),
            notes: Vec::new(),
        })
    }

    /// Those that are measured, in the order of columns.
    pub fn subjects(&self) -> Vec<Subject> {
        let there = self
            .columns
            .iter()
            .filter(|column| column.missing.is_none());
        there.map(|column| column.subject).collect()
    }

    /// A subject turns out not to be had here.
    pub fn give_up(&mut self, subject: Subject, why: &str) {
        for column in &mut self.columns {
            if column.subject == subject {
                column.missing = Some(why.to_owned());
            }
        }
    }

    /// A repetition has said `value`.
    pub fn take(&mut self, quantity: &str, place: &Place, subject: Subject, value: f64) {
        let is_it = |figure: &&mut Figure| {
            figure.quantity == quantity && figure.place == *place && figure.subject == subject
        };
        if let Some(figure) = self.figures.iter_mut().find(is_it) {
            figure.values.push(value);
            return;
        }
        self.figures.push(Figure {
            quantity: quantity.to_owned(),
            place: place.clone(),
            subject,
            values: vec![value],
        });
    }

    /// A remark that is made once.
    pub fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// The places at which a quantity was measured: by number, or in the order in which they came.
    pub fn places(&self, quantity: &str) -> Vec<Place> {
        let mut places: Vec<Place> = Vec::new();
        for figure in &self.figures {
            if figure.quantity == quantity && !places.contains(&figure.place) {
                places.push(figure.place.clone());
            }
        }
        places.sort_by(|a, b| match (a.number, b.number) {
            (Some(a), Some(b)) => a.total_cmp(&b),
            _ => std::cmp::Ordering::Equal,
        });
        places
    }

    /// What was found there.
    pub fn summary(&self, quantity: &str, place: &Place, subject: Subject) -> Option<Summary> {
        let is_it = |figure: &&Figure| {
            figure.quantity == quantity && figure.place == *place && figure.subject == subject
        };
        self.figures.iter().find(is_it)?.summary()
    }

    /// Of one of the references.
    pub fn reference(reference: &Reference, quantity: &str, place: &Place) -> Option<f64> {
        let is_it = |(q, p, _): &&(String, String, f64)| q == quantity && *p == place.label;
        reference.figures.iter().find(is_it).map(|found| found.2)
    }

    /// All that were written into a folder, by name.
    pub fn all(folder: &Path) -> Result<Vec<Self>, Failure> {
        let cannot = |error: std::io::Error| {
            let message = format!("cannot read {}: {error}", folder.display());
            Failure::new(Code::General, message)
        };
        let mut all = Vec::new();
        for entry in fs::read_dir(folder).map_err(cannot)?.flatten() {
            if entry.path().extension().is_none_or(|end| end != "json") {
                continue;
            }
            // Other programs' files may be there too.
            let text = fs::read(entry.path()).unwrap_or_default();
            all.extend(serde_json::from_slice::<Self>(&text));
        }
        all.sort_by(|a, b| a.bench.cmp(&b.bench));
        Ok(all)
    }
}
