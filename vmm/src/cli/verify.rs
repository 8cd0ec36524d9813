//! `vmm verify`: whether the checks of a topology hold in the running lab.

use std::io::{IsTerminal, stderr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use topology::model::{Check, Topology};

use super::table::table;
use super::{Json, LabChoice, block_on, print, print_json};
use crate::client::Client;
use crate::failure::{Code, Failure, nearest};
use crate::lab::EndSignals;
use crate::lab::run_folder::RunRoot;
use crate::verify::{self, Outcome, Result as Checked};

/// Arguments of `vmm verify`.
#[derive(Debug, Args)]
#[command(
    after_help = "The status is 0 if every check holds, 1 if one does not. docs/topology.md has the checks.\n\n\
Examples:\n  vmm verify\n  vmm verify lab.json --junit results.xml\n  vmm verify --check 'ping pc1 server' --json"
)]
pub struct VerifyArgs {
    /// A topology file whose checks to take instead of those the lab was launched with
    file: Option<PathBuf>,
    /// Only checks with this name; may be repeated
    #[arg(short, long, value_name = "NAME")]
    check: Vec<String>,
    /// Write the results as JUnit XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    #[command(flatten)]
    lab: LabChoice,
    #[command(flatten)]
    pub json: Json,
}

pub fn run(args: &VerifyArgs) -> Result<ExitCode, Failure> {
    // Not after minutes of measuring.
    if let Some(file) = &args.junit
        && let Some(folder) = file.parent()
        && !folder.as_os_str().is_empty()
        && !folder.is_dir()
    {
        let missing = format!("cannot write {}: there is no such folder", file.display());
        return Err(Failure::new(Code::General, missing));
    }
    let from_file = args.file.as_deref().map(load).transpose()?;
    let lab = match &from_file {
        // The lab of that file, if it runs under its own name.
        Some(topology) if args.lab.lab.is_none() => {
            let running = RunRoot::from_env()?.labs();
            Some(topology.name.clone()).filter(|name| running.contains(name))
        }
        _ => args.lab.lab.clone(),
    };
    let client = Client::choose(lab.as_deref())?;
    block_on(async {
        let checks = match from_file {
            Some(topology) => topology.checks,
            None => client.checks().await?,
        };
        let checks = choose(checks, &args.check)?;
        let mut signals = EndSignals::listen()?;
        let results = tokio::select! {
            results = run_all(&client, &checks) => results?,
            () = signals.come() => return Err(Failure::new(Code::Interrupted, "interrupted")),
        };
        if let Some(file) = &args.junit {
            write_junit(file, client.name(), &results)?;
        }
        if args.json.json {
            print_json(&results)?;
        } else {
            print(&shown(&results))?;
        }
        let all = results
            .iter()
            .all(|result| result.outcome == Outcome::Passed);
        Ok(ExitCode::from(if all { 0 } else { Code::General as u8 }))
    })
}

fn load(file: &Path) -> Result<Topology, Failure> {
    match Topology::load(file) {
        Ok(loaded) => Ok(loaded.topology),
        Err(report) => {
            let first = report.findings().into_iter().next();
            let message = first.map_or_else(String::new, |first| first.message);
            Err(
                Failure::new(Code::Topology, format!("{}: {message}", file.display()))
                    .help(format!("`vmm check {}` says all", file.display())),
            )
        }
    }
}

/// Those with these names; all if there are none.
fn choose(checks: Vec<Check>, names: &[String]) -> Result<Vec<Check>, Failure> {
    if checks.is_empty() {
        return Err(Failure::new(Code::NotFound, "the topology has no checks")
            .help("docs/topology.md has what `checks` can be"));
    }
    let known = |name: &&String| checks.iter().any(|check| check.name == **name);
    if let Some(unknown) = names.iter().find(|name| !known(name)) {
        let missing = Failure::new(
            Code::NotFound,
            format!("there is no check called {unknown}"),
        );
        let names = || checks.iter().map(|check| check.name.as_str());
        return Err(match nearest(unknown, names()) {
            Some(near) => missing.help(format!("did you mean {near}?")),
            None => missing.help(format!(
                "there are: {}",
                names().collect::<Vec<_>>().join(", ")
            )),
        });
    }
    let mut checks = checks;
    checks.retain(|check| names.is_empty() || names.contains(&check.name));
    Ok(checks)
}

/// One after the other: each may load the links that the next one measures.
async fn run_all(client: &Client, checks: &[Check]) -> Result<Vec<Checked>, Failure> {
    let nodes = client.lab().await?.nodes;
    let terminal = stderr().is_terminal();
    let progress = if terminal {
        let bar = ProgressBar::new(checks.len() as u64);
        bar.enable_steady_tick(Duration::from_millis(100));
        let style = ProgressStyle::with_template("{spinner} [{pos}/{len}] {msg} {elapsed}");
        bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    } else {
        ProgressBar::hidden()
    };
    let mut results = Vec::new();
    for (number, check) in checks.iter().enumerate() {
        if terminal {
            progress.set_message(check.name.clone());
        } else {
            eprintln!("[{}/{}] {}", number + 1, checks.len(), check.name);
        }
        results.push(verify::run(client, check, &nodes).await);
        progress.inc(1);
    }
    progress.finish_and_clear();
    Ok(results)
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Passed => "passed",
        Outcome::Failed => "FAILED",
        Outcome::Error => "ERROR",
    }
}

fn shown(results: &[Checked]) -> String {
    let rows: Vec<_> = results
        .iter()
        .map(|result| {
            let tries = if result.tries > 1 {
                format!(" (try {})", result.tries)
            } else {
                String::new()
            };
            vec![
                result.name.clone(),
                word(result.outcome).to_owned(),
                format!("{:.1} s", result.seconds),
                format!("{}{tries}", result.detail),
            ]
        })
        .collect();
    let mut text = table(&["CHECK", "RESULT", "TIME", "MEASURED"], &rows);
    for result in results {
        text.push_str(&matrix(result));
    }
    let passed = results
        .iter()
        .filter(|result| result.outcome == Outcome::Passed);
    let count = format!("{} of {} checks hold\n", passed.count(), results.len());
    text + &count
}

/// Who reaches whom, if that was the check: rows reach columns. Empty otherwise.
fn matrix(result: &Checked) -> String {
    let list = |name: &str| result.measured.get(name).and_then(|value| value.as_array());
    let (Some(nodes), Some(rows), Some(except)) = (list("nodes"), list("reaches"), list("except"))
    else {
        return String::new();
    };
    let names: Vec<_> = nodes
        .iter()
        .map(|node| node.as_str().unwrap_or_default())
        .collect();
    let headings = [&["from \\ to"], names.as_slice()].concat();
    let rows: Vec<_> = rows
        .iter()
        .enumerate()
        .map(|(from, row)| {
            let cell = |to: usize| {
                let reaches = row[to].as_bool() == Some(true);
                let excepted = except.iter().any(|pair| pair[0] == from && pair[1] == to);
                match (reaches, reaches != excepted) {
                    _ if from == to => "",
                    (true, true) => "yes",
                    (false, true) => "no",
                    (true, false) => "YES, wrong",
                    (false, false) => "NO, wrong",
                }
            };
            let cells = (0..names.len()).map(|to| cell(to).to_owned());
            std::iter::once(names[from].to_owned())
                .chain(cells)
                .collect()
        })
        .collect();
    format!("\n{}:\n{}\n", result.name, table(&headings, &rows))
}

fn write_junit(file: &Path, lab: &str, results: &[Checked]) -> Result<(), Failure> {
    let cannot = |error: &dyn std::fmt::Display| {
        Failure::new(
            Code::General,
            format!("cannot write {}: {error}", file.display()),
        )
    };
    let text = junit(lab, results).map_err(|error| cannot(&error))?;
    std::fs::write(file, text).map_err(|error| cannot(&error))
}

fn junit(lab: &str, results: &[Checked]) -> Result<String, quick_junit::SerializeError> {
    let mut suite = TestSuite::new(lab);
    let time = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or_default();
    for result in results {
        let mut status = match result.outcome {
            Outcome::Passed => TestCaseStatus::success(),
            Outcome::Failed => TestCaseStatus::non_success(NonSuccessKind::Failure),
            Outcome::Error => TestCaseStatus::non_success(NonSuccessKind::Error),
        };
        if result.outcome != Outcome::Passed {
            status.set_message(result.detail.as_str());
        }
        let mut case = TestCase::new(result.name.as_str(), status);
        case.set_classname(lab).set_time(time(result.seconds));
        case.set_system_out(result.detail.as_str());
        suite.add_test_case(case);
    }
    suite.set_time(time(results.iter().map(|result| result.seconds).sum()));
    let mut report = Report::new("vmm verify");
    report.add_test_suite(suite);
    report.to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn results() -> Vec<Checked> {
        let result = |name: &str, outcome, detail: &str, measured: serde_json::Value| Checked {
            name: name.into(),
            outcome,
            detail: detail.into(),
            measured: measured.as_object().unwrap().clone(),
            tries: 1,
            seconds: 1.25,
        };
        let reaches = json!({"nodes": ["a", "b"], "reaches": [[false, true], [false, false]], "except": [[0, 1]]});
        vec![
            result("ping a b", Outcome::Passed, "3 of 3 answered", json!({})),
            result("who", Outcome::Failed, "a <reaches> b", reaches),
            result("path", Outcome::Error, "no such node", json!({})),
        ]
    }

    #[test]
    fn the_table_shows_each_check_and_the_matrix() {
        let expected = "\
CHECK     RESULT  TIME   MEASURED
ping a b  passed  1.2 s  3 of 3 answered
who       FAILED  1.2 s  a <reaches> b
path      ERROR   1.2 s  no such node

who:
from \\ to  a          b
a                     YES, wrong
b          NO, wrong

1 of 3 checks hold
";
        assert_eq!(shown(&results()), expected);
    }

    #[test]
    fn junit_tells_failures_from_errors() {
        let text = junit("lab", &results()).unwrap();
        assert!(
            text.contains(r#"<testsuite name="lab" tests="3" skipped="0" errors="1" failures="1""#),
            "{text}"
        );
        assert!(
            text.contains(r#"<failure message="a &lt;reaches&gt; b""#),
            "{text}"
        );
        assert!(text.contains(r#"<error message="no such node""#), "{text}");
        assert!(text.contains(r#"time="1.250""#), "{text}");
    }
}
