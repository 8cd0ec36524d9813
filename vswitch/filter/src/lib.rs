//! Filters of captures: expressions of pcap-filter(7), compiled by tcpdump to programs of classic BPF.
//!
//! Whoever asks for a capture compiles its filter; the switch checks the program and runs it.
#![warn(missing_docs)]

use std::io;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// An instruction as `pcap_compile` and `tcpdump -ddd` give it: opcode, jump if true, jump if false, operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instruction(pub u16, pub u8, pub u8, pub u32);

/// Why there is no program for a filter expression.
#[derive(Debug, Error)]
pub enum CompileError {
    /// There is no compiler.
    #[error(
        "filters are compiled by tcpdump, which is not installed; install it (Debian: apt-get install tcpdump)"
    )]
    NoTcpdump,
    /// It cannot be run.
    #[error("cannot run tcpdump to compile the filter: {0}")]
    Run(#[from] io::Error),
    /// It refuses the expression.
    #[error("the filter `{0}` is refused: {1}; its syntax is in pcap-filter(7)")]
    Refused(String, String),
    /// It says something that is no program.
    #[error("tcpdump does not print a filter program for `{0}`")]
    NoProgram(String),
}

/// Compiles an expression of pcap-filter(7) for Ethernet frames.
///
/// This runs `tcpdump -ddd`, so that libpcap, its parser and its name lookups stay out of the switch.
pub fn compile(expression: &str) -> Result<Vec<Instruction>, CompileError> {
    let compiler = Command::new("tcpdump")
        .args(["-y", "EN10MB", "-ddd", "--", expression])
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output();
    let output = match compiler {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(CompileError::NoTcpdump),
        done => done?,
    };
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr);
        let reason = told.lines().last().unwrap_or("no reason given").trim();
        let reason = reason.trim_start_matches("tcpdump: ").to_owned();
        return Err(CompileError::Refused(expression.to_owned(), reason));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    parse(&text).ok_or_else(|| CompileError::NoProgram(expression.to_owned()))
}

/// The number of instructions, then one on each line.
fn parse(text: &str) -> Option<Vec<Instruction>> {
    let mut lines = text.lines();
    let count: usize = lines.next()?.trim().parse().ok()?;
    let instruction = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let code = words.next()?.parse().ok()?;
        let jt = words.next()?.parse().ok()?;
        let jf = words.next()?.parse().ok()?;
        let k = words.next()?.parse().ok()?;
        Some(Instruction(code, jt, jf, k))
    };
    let code: Vec<_> = lines.map(instruction).collect::<Option<_>>()?;
    (code.len() == count).then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tcpdump_prints() {
        let code = parse("2\n40 0 0 12\n6 0 0 262144\n").unwrap();
        assert_eq!(
            code,
            [Instruction(40, 0, 0, 12), Instruction(6, 0, 0, 262_144)]
        );
        for bad in ["", "2\n6 0 0 0\n", "1\n6 0 0\n", "1\n6 0 999 0\n", "x\n"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
