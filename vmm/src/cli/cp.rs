//! `vmm cp`: files and folders between this machine and a node.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;

use super::{Json, LabChoice, block_on};
use crate::client::Client;
use crate::copy;
use crate::failure::{Code, Failure};
use crate::lab::EndSignals;

/// Arguments of `vmm cp`.
#[derive(Debug, Args)]
#[command(
    after_help = "NODE:PATH is a place in a node, from /root if PATH is relative; a local name with a colon is written as ./a:b. Permissions are \
kept, but for set-user-ID and the like from a node. A file that is there already is replaced in one moment, when its copy is complete; \
into a folder that is there already its files are put one by one. Links in a folder are copied as links; from a node only those that stay inside.\n\n\
Examples:\n  vmm cp ./site pc1:/srv\n  vmm cp r1:/var/log/frr/ospfd.log .\n  vmm cp a.conf b.conf r1:/etc/frr/"
)]
pub struct CpArgs {
    /// What to copy, and to where
    #[arg(required = true, num_args = 2.., value_name = "SOURCE… TARGET")]
    places: Vec<String>,
    #[command(flatten)]
    lab: LabChoice,
    #[command(flatten)]
    pub json: Json,
}

/// A place as a person names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place<'a> {
    Here(&'a str),
    There { node: &'a str, path: &'a str },
}

impl<'a> Place<'a> {
    fn of(text: &'a str) -> Self {
        match text.split_once(':') {
            Some((node, path)) if !node.is_empty() && !node.contains('/') => Self::There {
                node,
                path: if path.is_empty() { "." } else { path },
            },
            _ => Self::Here(text),
        }
    }
}

pub fn run(args: &CpArgs) -> Result<ExitCode, Failure> {
    let usage = |message: &str, help: &str| Err(Failure::new(Code::Usage, message).help(help));
    let places: Vec<_> = args.places.iter().map(|place| Place::of(place)).collect();
    let Some((target, sources)) = places.split_last() else {
        return usage("there is nothing to copy", "`vmm cp SOURCE TARGET`");
    };
    if let (Place::Here(target), [_, _, ..]) = (target, sources)
        && !Path::new(target).is_dir()
    {
        return usage(
            "several things need a folder to go to",
            "name one that is there",
        );
    }
    block_on(async {
        let client = Client::choose(args.lab.lab.as_deref())?;
        let mut signals = EndSignals::listen()?;
        for source in sources {
            let warnings = tokio::select! {
                copied = copy_one(&client, *source, *target, sources.len() > 1) => copied?,
                () = signals.come() => {
                    return Err(Failure::new(Code::Interrupted, "interrupted; what was not complete is as it was"));
                }
            };
            for warning in warnings.lines() {
                eprintln!("warning: {warning}");
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn copy_one(
    client: &Client,
    source: Place<'_>,
    target: Place<'_>,
    several: bool,
) -> Result<copy::Warnings, Failure> {
    match (source, target) {
        (Place::Here(from), Place::There { node, path }) => {
            // Of several, each has to find a folder.
            let into = if several && !path.ends_with('/') {
                format!("{path}/")
            } else {
                path.to_owned()
            };
            copy::send(client, node, Path::new(from), &into).await
        }
        (Place::There { node, path }, Place::Here(to)) => {
            copy::receive(client, node, path, Path::new(to)).await
        }
        (Place::Here(_), Place::Here(_)) => {
            Err(Failure::new(Code::Usage, "both places are on this machine")
                .help("a place in a node is written as NODE:PATH"))
        }
        (Place::There { .. }, Place::There { .. }) => {
            Err(Failure::new(Code::Usage, "both places are in nodes")
                .help("copy by way of a file of this machine"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_tells_a_place_in_a_node() {
        let there = |node, path| Place::There { node, path };
        assert_eq!(Place::of("r1:/etc"), there("r1", "/etc"));
        assert_eq!(Place::of("r1:a:b"), there("r1", "a:b"));
        assert_eq!(Place::of("r1:"), there("r1", "."));
        assert_eq!(Place::of("./a:b"), Place::Here("./a:b"));
        assert_eq!(Place::of("/tmp/a:b"), Place::Here("/tmp/a:b"));
        assert_eq!(Place::of(":x"), Place::Here(":x"));
    }
}
