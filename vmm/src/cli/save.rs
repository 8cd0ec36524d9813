//! `vmm save`: what nodes have become, in a folder.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use futures_util::{StreamExt, stream};
use serde::Serialize;

use super::exec::many::Choice;
use super::{Json, LabChoice, block_on, print, print_json};
use crate::client::Client;
use crate::copy;
use crate::failure::{Code, Failure};
use crate::session;

/// Nodes that are asked at the same time.
const AT_ONCE: usize = 8;
/// Largest routing configuration.
const CONFIGURATION: usize = 16 << 20;

/// Arguments of `vmm save`.
#[derive(Debug, Args)]
#[command(
    after_help = "Of each node that runs routing daemons, FOLDER/NODE/frr.conf gets their running configuration, fit for \"routing\": {\"frr\": {\"from\": …}} \
in a topology. What the topology names in `save` of a node goes below FOLDER/NODE under its own path.\n\n\
Examples:\n  vmm save\n  vmm save r1 r2 -o snapshot"
)]
pub struct SaveArgs {
    /// The nodes; default: all
    nodes: Vec<String>,
    /// The folder; default: LAB.saved
    #[arg(short, long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    #[command(flatten)]
    lab: LabChoice,
    #[command(flatten)]
    pub json: Json,
}

/// What was saved of a node.
#[derive(Debug, Default, Serialize)]
struct Saved {
    node: String,
    files: Vec<PathBuf>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub fn run(args: &SaveArgs) -> Result<ExitCode, Failure> {
    block_on(async {
        let client = Client::choose(args.lab.lab.as_deref())?;
        let choice = if args.nodes.is_empty() {
            Choice::All
        } else {
            Choice::Named(args.nodes.clone())
        };
        let nodes = choice.find(&client).await?;
        let folder = match &args.output {
            Some(folder) => folder.clone(),
            None => format!("{}.saved", client.name()).into(),
        };
        let saving = stream::iter(nodes.into_iter().map(|node| save(&client, node, &folder)));
        let saved: Vec<_> = saving.buffered(AT_ONCE).collect().await;
        let failed = saved.iter().any(|saved| saved.error.is_some());
        for saved in &saved {
            for warning in &saved.warnings {
                eprintln!("warning: {}: {warning}", saved.node);
            }
            if let Some(error) = saved.error.as_ref().filter(|_| !args.json.json) {
                eprintln!("error: {error}");
            }
        }
        if args.json.json {
            print_json(&saved)?;
        } else {
            let files = saved.iter().flat_map(|saved| &saved.files);
            let mut lines: Vec<_> = files.map(|file| file.display().to_string()).collect();
            if lines.is_empty() && !failed {
                lines.push("there was nothing to save".to_owned());
            }
            lines.push(String::new());
            print(lines.join("\n").trim_start())?;
        }
        Ok(ExitCode::from(if failed { Code::General as u8 } else { 0 }))
    })
}

/// Saves what there is of one node, as far as it goes.
async fn save(client: &Client, node: String, folder: &Path) -> Saved {
    let mut saved = Saved {
        node: node.clone(),
        ..Saved::default()
    };
    let done = save_into(client, &node, &folder.join(&node), &mut saved).await;
    saved.error = done.err().map(|failure| failure.message);
    saved
}

async fn save_into(
    client: &Client,
    node: &str,
    folder: &Path,
    saved: &mut Saved,
) -> Result<(), Failure> {
    let keep = client.keep(node).await?;
    let cannot = |path: &Path, error: &std::io::Error| {
        Failure::new(
            Code::General,
            format!("cannot write {}: {error}", path.display()),
        )
    };
    if keep.routing {
        let command = ["vtysh", "-c", "show running-config"];
        let shown = session::collect(client, node, &command, CONFIGURATION).await?;
        if shown.status != 0 {
            let said = crate::sanitize::lossy(&shown.stderr);
            let failed = format!(
                "node {node}: vtysh ended with status {}: {}",
                shown.status,
                said.trim()
            );
            return Err(Failure::new(Code::General, failed));
        }
        let file = folder.join("frr.conf");
        std::fs::create_dir_all(folder)
            .and_then(|()| replace(folder, &file, configuration(&shown.stdout)))
            .map_err(|error| cannot(&file, &error))?;
        saved.files.push(file);
    }
    for path in &keep.paths {
        // Its own path below the folder; the topology has only plain ones.
        let file = folder.join(path.trim_start_matches('/'));
        let parent = file.parent().unwrap_or(folder);
        std::fs::create_dir_all(parent).map_err(|error| cannot(parent, &error))?;
        let warnings = copy::receive(client, node, path, parent).await?;
        saved.warnings.extend(warnings.lines());
        saved.files.push(file);
    }
    Ok(())
}

/// Without what vtysh says to whoever watches.
fn configuration(shown: &[u8]) -> &[u8] {
    const TITLE: &[u8] = b"Current configuration:\n";
    let title = shown.windows(TITLE.len()).position(|part| part == TITLE);
    title.map_or(shown, |at| &shown[at + TITLE.len()..])
}

/// Replaces a file in one moment.
fn replace(folder: &Path, file: &Path, content: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mut new = tempfile::Builder::new()
        .prefix(".vmm-save.")
        .permissions(std::fs::Permissions::from_mode(0o644))
        .tempfile_in(folder)?;
    new.write_all(content)?;
    new.persist(file)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_what_frr_reads() {
        let shown = b"Building configuration...\n\nCurrent configuration:\n!\nrouter ospf\nend\n";
        assert_eq!(configuration(shown), b"!\nrouter ospf\nend\n");
        assert_eq!(configuration(b"!\n"), b"!\n");
    }
}
