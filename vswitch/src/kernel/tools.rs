//! iproute2, which knows how to tell the kernel what devices there are to be.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use super::KernelError;

/// ip(8), tc(8) or bridge(8).
#[derive(Debug, Clone, Copy)]
pub struct Tool(pub &'static str);

/// A line that was refused, from 0, and why.
#[derive(Debug)]
pub struct Refused {
    pub line: Option<usize>,
    pub said: String,
}

impl Tool {
    /// Has it do each of `lines`, up to the first that fails.
    pub fn batch(self, lines: &str) -> Result<(), KernelError> {
        self.lines(lines)?.map_err(|Refused { line, said }| {
            let line = line.and_then(|line| lines.lines().nth(line));
            KernelError::Tool {
                command: format!("{} {}", self.0, line.unwrap_or("-batch -")),
                said,
            }
        })
    }

    /// The same; the line that was refused, if one was.
    pub fn lines(self, lines: &str) -> Result<Result<(), Refused>, KernelError> {
        if lines.is_empty() {
            return Ok(Ok(()));
        }
        let cannot = |error| KernelError::Start(self.0, error);
        let mut child = Command::new(self.0)
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(cannot)?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not read says why.
            let _ = stdin.write_all(lines.as_bytes());
        }
        let output = child.wait_with_output().map_err(cannot)?;
        if output.status.success() {
            return Ok(Ok(()));
        }
        let text = String::from_utf8_lossy(&output.stderr);
        // `Command failed -:3`, after what the kernel says.
        let number = text.lines().find_map(|line| {
            let number = line.strip_prefix("Command failed -:")?;
            number.trim().parse::<usize>().ok()
        });
        let said = text
            .lines()
            .filter(|line| {
                !line.starts_with("Command failed") && !line.starts_with("We have an error")
            })
            .collect::<Vec<_>>()
            .join("; ");
        Ok(Err(Refused {
            line: number.and_then(|number| number.checked_sub(1)),
            said,
        }))
    }

    /// What it prints.
    pub fn output(self, arguments: &[&str]) -> io::Result<Vec<u8>> {
        let output = Command::new(self.0)
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()?;
        Ok(output.stdout)
    }
}
