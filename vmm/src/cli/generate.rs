//! What is generated from the definition of the command line: completions and the manual page; and the description of the API.

use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, print, print_json};
use crate::failure::{Code, Failure};

/// Arguments of `vmm completions`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  vmm completions bash > /etc/bash_completion.d/vmm")]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Arguments of `vmm man`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  vmm man | man -l -")]
pub struct ManArgs {}

/// Arguments of `vmm openapi`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  vmm openapi > openapi.json\n\ndocs/api.md says the same to people."
)]
pub struct OpenapiArgs {}

pub fn completions(args: &CompletionsArgs) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "vmm", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

pub fn openapi(_args: &OpenapiArgs) -> Result<ExitCode, Failure> {
    print_json(&crate::api::document())?;
    Ok(ExitCode::SUCCESS)
}

pub fn man(_args: &ManArgs) -> Result<ExitCode, Failure> {
    let mut command = Cli::command();
    command.build();
    let mut page = Vec::new();
    let cannot = |error| {
        Failure::new(
            Code::General,
            format!("cannot write the manual page: {error}"),
        )
    };
    clap_mangen::Man::new(command.clone())
        .render(&mut page)
        .map_err(cannot)?;
    for verb in command
        .get_subcommands()
        .filter(|verb| !verb.is_hide_set() && verb.get_name() != "help")
    {
        let man = clap_mangen::Man::new(verb.clone());
        let mut section = Vec::new();
        man.render_synopsis_section(&mut section)
            .and_then(|()| man.render_description_section(&mut section))
            .and_then(|()| man.render_options_section(&mut section))
            .and_then(|()| man.render_extra_section(&mut section))
            .map_err(cannot)?;
        page.extend_from_slice(
            format!(".SH \"VMM {}\"\n", verb.get_name().to_uppercase()).as_bytes(),
        );
        // One page: the sections of a verb become parts of the verb's own.
        page.extend_from_slice(
            String::from_utf8_lossy(&section)
                .replace(".SH ", ".SS ")
                .as_bytes(),
        );
    }
    print(&String::from_utf8_lossy(&page))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use clap::Command;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_every_verb_has_an_example() {
        let mut command = Cli::command();
        command.build();
        command.clone().debug_assert();
        expect_examples(&command);
    }

    fn expect_examples(command: &Command) {
        let help = command.clone().render_long_help().to_string();
        assert!(help.contains("Example"), "no example: {help}");
        for verb in command.get_subcommands() {
            if !verb.is_hide_set() && verb.get_name() != "help" {
                expect_examples(verb);
            }
        }
    }

    #[test]
    fn the_reference_is_current() {
        let mut command = Cli::command().term_width(100);
        command.build();
        let mut text = String::from(
            "# Command line\n\nThe help texts of `vmm`. Written by the test `the_reference_is_current` when run \
             with `UPDATE=1`.\n\n## vmm\n\n",
        );
        write!(text, "```text\n{}```\n", command.render_long_help()).unwrap();
        for verb in command
            .get_subcommands()
            .filter(|v| !v.is_hide_set() && v.get_name() != "help")
        {
            let help = verb.clone().term_width(100).render_long_help();
            write!(text, "\n## vmm {}\n\n```text\n{help}```\n", verb.get_name()).unwrap();
        }
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cli.md");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(file, &text).unwrap();
        }
        assert!(
            std::fs::read_to_string(file).unwrap() == text,
            "docs/cli.md is not current; run with UPDATE=1"
        );
    }
}
