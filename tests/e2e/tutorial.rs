//! `docs/tutorial.md`, typed as it stands.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::World;
use tests::process;
use tests::world::{bin_dir, workspace};

/// One thing the page has a person do.
#[derive(Debug, PartialEq)]
enum Step {
    /// Save a file.
    Save { name: String, text: String },
    /// Type a command, and see these lines among what it prints, in this order.
    Type { command: String, shown: Vec<String> },
}

/// Types every command of the page, in order, and compares what it shows.
pub fn typed(world: &World) -> Result<()> {
    check_the_reading_of_pages()?;
    let page = std::fs::read_to_string(workspace().join("docs/tutorial.md"))?;
    let steps = steps(&page);
    ensure!(steps.len() > 15, "the page is read: {steps:?}");
    for step in steps {
        match step {
            Step::Save { name, text } => {
                world.file(&name, &text)?;
            }
            Step::Type { command, shown } => {
                type_in(world, &command, &shown).with_context(|| format!("$ {command}"))?;
            }
        }
    }
    Ok(())
}

fn type_in(world: &World, command: &str, shown: &[String]) -> Result<()> {
    let mut shell: Command = world.program("vmm")?;
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", bin_dir()?.display());
    let mut bash = Command::new("bash");
    if let Some(folder) = shell.get_current_dir() {
        bash.current_dir(folder);
    }
    for (name, value) in shell.get_envs() {
        match value {
            Some(value) => bash.env(name, value),
            None => bash.env_remove(name),
        };
    }
    shell = bash;
    shell.args(["-c", command]).env("PATH", path);
    let output = process::run(shell, b"", Duration::from_mins(3))?.success()?;
    // A person sees both on the terminal.
    let seen = format!("{}{}", output.stderr, output.stdout);
    let mut lines = seen.lines();
    for wanted in shown {
        ensure!(
            lines.any(|line| fits(line, wanted)),
            "the page shows '{wanted}', which does not come (again) in\n{seen}"
        );
    }
    Ok(())
}

/// Whether a line is what the page shows; `…` stands for anything, and any space for as much as there is.
fn fits(line: &str, shown: &str) -> bool {
    let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (line, shown) = (squeeze(line), squeeze(shown));
    let parts: Vec<_> = shown.split('…').map(str::trim).collect();
    let [first, between @ .., last] = parts.as_slice() else {
        return line == shown;
    };
    let Some(mut rest) = line.strip_prefix(first) else {
        return false;
    };
    for part in between {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// What is in the page's fences: `json NAME` is a file, `console` are commands behind `$ ` and what they show.
fn steps(page: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(kind) = line.strip_prefix("```") else {
            continue;
        };
        let inside: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
        if let Some(name) = kind.strip_prefix("json ") {
            let (name, text) = (name.to_owned(), inside.join("\n"));
            steps.push(Step::Save { name, text });
        } else if kind == "console" {
            for line in inside {
                if let Some(command) = line.strip_prefix("$ ") {
                    let (command, shown) = (command.to_owned(), Vec::new());
                    steps.push(Step::Type { command, shown });
                } else if let Some(Step::Type { shown, .. }) = steps.last_mut() {
                    shown.push(line.to_owned());
                }
            }
        }
    }
    steps
}

/// A reading that finds nothing wrong would type nothing and compare nothing.
fn check_the_reading_of_pages() -> Result<()> {
    let page = "text\n```json a.json\n{}\n```\n```console\n$ one\nout …\n$ two\n```\n```text\n$ not\n```\n";
    let command = |command: &str, shown: &[&str]| Step::Type {
        command: command.to_owned(),
        shown: shown.iter().map(|&line| line.to_owned()).collect(),
    };
    let file = Step::Save {
        name: "a.json".to_owned(),
        text: "{}".to_owned(),
    };
    ensure!(steps(page) == [file, command("one", &["out …"]), command("two", &[])]);
    for (line, shown, expected) in [
        ("r1 is ready", "r1 is ready", true),
        ("r1 is ready now", "r1 is ready", false),
        ("time=203 ms", "time=2… ms", true),
        ("time=103 ms", "time=2… ms", false),
        ("a  b   c", "a b …", true),
        (
            "1 10.0.1.1 → 10.0.2.2 ICMP",
            "… 10.0.1.1 … 10.0.2.2 …",
            true,
        ),
        (
            "1 10.0.2.2 → 10.0.1.1 ICMP",
            "… 10.0.1.1 … 10.0.2.2 …",
            false,
        ),
        ("x passed 0.1 s  fine", "x  passed  … s  fine", true),
        ("x FAILED 0.1 s  fine", "x  passed  … s  fine", false),
    ] {
        ensure!(fits(line, shown) == expected, "'{line}' and '{shown}'");
    }
    Ok(())
}
