//! `vmm report`: what links were asked for and what they have delivered, and whether a measurement in this lab means anything.

use std::process::ExitCode;

use clap::Args;

use super::link::drops;
use super::table::table;
use super::{Json, LabChoice, block_on, print, print_json};
use crate::api::types::{LinkReport, Report, Verdict};
use crate::client::Client;
use crate::failure::Failure;
use crate::units::{bits_per_second, nanoseconds, percent};

/// Arguments of `vmm report`.
#[derive(Debug, Args)]
#[command(
    after_help = "A run is valid if the machine kept up: 99 % of the frames of each link came no later than 1 ms, 5 % of the link's \
delay or the time one full frame takes, receivers had room, and no process waited long for a processor. docs/observing.md \
says more.\n\nExamples:\n  vmm report\n  vmm report --strict && echo the measurement counts\n  vmm report --json | jq .verdict"
)]
pub struct ReportArgs {
    /// Exit with status 1 unless the run is valid
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    lab: LabChoice,
    #[command(flatten)]
    pub json: Json,
}

pub fn run(args: &ReportArgs) -> Result<ExitCode, Failure> {
    let client = Client::choose(args.lab.lab.as_deref())?;
    let report = block_on(client.report())?;
    if args.json.json {
        print_json(&report)?;
    } else {
        print(&text(&report))?;
    }
    Ok(if args.strict && report.verdict != Verdict::Valid {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn text(report: &Report) -> String {
    let rows: Vec<_> = report.links.iter().map(row).collect();
    let headings = [
        "FROM", "TO", "RATE", "PEAK", "DELAY", "p50", "p99", "LOSS", "LOST", "FRAMES", "DROPS",
        "LATE p99", "MAX", "",
    ];
    let verdict = match report.verdict {
        Verdict::Valid => "valid: the links have delivered what they were asked for",
        Verdict::Overloaded => "not valid: this machine was overloaded",
        Verdict::Deviates => "not valid: a link does not do what it was asked for",
        Verdict::Idle => "nothing to judge: there was no traffic",
    };
    let mut text = format!(
        "{}\n{} s after launch, {verdict}\n",
        table(&headings, &rows),
        report.at_ms / 1000
    );
    for reason in &report.reasons {
        text.extend(["  - ", reason, "\n"]);
    }
    for note in &report.notes {
        text.extend(["note: ", note, "\n"]);
    }
    text
}

fn row(link: &LinkReport) -> Vec<String> {
    let (asked, delivered) = (&link.asked, &link.delivered);
    let idle = link.verdict == Verdict::Idle;
    let unless_idle = |text: String| if idle { "-".to_owned() } else { text };
    vec![
        link.from.clone(),
        link.to.clone(),
        asked.rate.map_or("-".to_owned(), bits_per_second),
        unless_idle(bits_per_second(delivered.peak_rate)),
        nanoseconds(asked.delay_ns),
        unless_idle(nanoseconds(delivered.delay_p50_ns)),
        unless_idle(nanoseconds(delivered.delay_p99_ns)),
        percent(asked.loss),
        unless_idle(percent(delivered.loss)),
        delivered.frames.to_string(),
        drops(&delivered.drops),
        unless_idle(nanoseconds(link.lateness.p99)),
        unless_idle(nanoseconds(link.lateness.max)),
        match link.verdict {
            Verdict::Valid => "ok",
            Verdict::Overloaded => "overloaded",
            Verdict::Deviates => "deviates",
            Verdict::Idle => "idle",
        }
        .to_owned(),
    ]
}
