//! `vmm top`: what nodes take and what links carry, on a screen, or printed once.

mod page;
mod screen;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::table::table;
use super::{Json, LabChoice, block_on, print, print_json};
use crate::api::types::{Lab, Link, Usage};
use crate::client::Client;
use crate::failure::{Code, Failure};
use page::{Page, Sort};

/// Arguments of `vmm top`.
#[derive(Debug, Args)]
#[command(
    after_help = "Keys: c m t d l sort by processor time, memory, traffic, drops, lateness; n is the order of the file; the arrows and \
page keys scroll, Tab goes to the other table; q leaves.\n\nExamples:\n  vmm top\n  vmm top --sort traffic --interval 2\n  vmm top --once"
)]
pub struct TopArgs {
    /// Print one page and end
    #[arg(long, visible_alias = "batch")]
    once: bool,
    /// Seconds between two looks, 0.2 to 60
    #[arg(short, long, value_name = "SECONDS", default_value = "1", value_parser = interval)]
    interval: Duration,
    /// What comes first
    #[arg(short, long, value_enum, default_value_t = Sort::File)]
    sort: Sort,
    #[command(flatten)]
    lab: LabChoice,
    /// Print one page as JSON, errors too
    #[command(flatten)]
    pub json: Json,
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds = text
        .parse::<f64>()
        .ok()
        .filter(|seconds| (0.2..=60.0).contains(seconds));
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "an interval is 0.2 to 60 seconds".to_owned())
}

/// One look at a lab.
#[derive(Debug, Clone, Serialize)]
struct Sample {
    lab: Lab,
    usage: Usage,
    links: Vec<Link>,
}

impl Sample {
    async fn take(client: &Client) -> Result<Self, Failure> {
        // A lab whose switch does not run has nodes all the same.
        let links = client.links().await.unwrap_or_default();
        let lab = client.lab().await?;
        let usage = client.usage().await?;
        Ok(Self { lab, usage, links })
    }
}

pub fn run(args: &TopArgs) -> Result<ExitCode, Failure> {
    let client = Client::choose(args.lab.lab.as_deref())?;
    let once = args.once || args.json.json;
    let terminal = std::io::stdout().is_terminal() && std::io::stdin().is_terminal();
    if !once && !terminal {
        return Err(
            Failure::new(Code::Usage, "this is no terminal, and the screen needs one")
                .help("`vmm top --once` prints one page"),
        );
    }
    block_on(async {
        if !once {
            return screen::show(&client, args.interval, args.sort).await;
        }
        let before = Sample::take(&client).await?;
        tokio::time::sleep(args.interval).await;
        let page = Page::of(Some(&before), &Sample::take(&client).await?, args.sort);
        if args.json.json {
            return print_json(&page);
        }
        let nodes = table(&page::NODES, &page.node_rows());
        let links = table(&page::LINKS, &page.link_rows());
        print(&format!("{}\n\n{nodes}\n{links}", page.head().join("\n")))
    })?;
    Ok(ExitCode::SUCCESS)
}
