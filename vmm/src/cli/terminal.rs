//! The person's terminal.

use std::os::fd::AsFd;

use agent_protocol::WindowSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// The terminal in raw mode: every key goes to the node. Dropping it restores the terminal.
#[derive(Debug)]
pub struct RawMode(Termios);

impl RawMode {
    /// Switches the terminal on standard input to raw mode.
    pub fn enter() -> rustix::io::Result<Self> {
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Output that is under way was meant for raw mode: let it drain first.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, &self.0);
    }
}

/// The size of the terminal on standard input.
pub fn size() -> Option<WindowSize> {
    let size = tcgetwinsize(std::io::stdin().as_fd()).ok()?;
    Some(WindowSize {
        rows: size.ws_row,
        cols: size.ws_col,
    })
}

/// Finds the escape that leaves a terminal whose node no longer answers: `~.` at the start of a line, as in ssh.
#[derive(Debug)]
pub struct Escape {
    line_start: bool,
    tilde: bool,
}

impl Escape {
    /// At the start of a line.
    pub fn new() -> Self {
        Self {
            line_start: true,
            tilde: false,
        }
    }

    /// What of `typed` is for the node, or `None` if it is to be left. A tilde is held back until it is known
    /// what follows; `~~` is one tilde.
    pub fn filter(&mut self, typed: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(typed.len() + 1);
        for &byte in typed {
            if std::mem::take(&mut self.tilde) {
                match byte {
                    b'.' => return None,
                    b'~' => {}
                    _ => out.push(b'~'),
                }
                out.push(byte);
                self.line_start = byte == b'\r';
            } else if byte == b'~' && self.line_start {
                self.tilde = true;
                self.line_start = false;
            } else {
                out.push(byte);
                self.line_start = matches!(byte, b'\r' | b'\n');
            }
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(pieces: &[&[u8]]) -> Option<Vec<u8>> {
        let mut escape = Escape::new();
        let mut out = Vec::new();
        for piece in pieces {
            out.extend(escape.filter(piece)?);
        }
        Some(out)
    }

    #[test]
    fn tilde_dot_leaves_only_at_the_start_of_a_line() {
        assert_eq!(typed(&[b"~."]), None);
        assert_eq!(typed(&[b"ls\r", b"~", b"."]), None);
        assert_eq!(typed(&[b"a~."]), Some(b"a~.".to_vec()));
        assert_eq!(typed(&[b"~/bin\r"]), Some(b"~/bin\r".to_vec()));
        assert_eq!(typed(&[b"~~."]), Some(b"~.".to_vec()));
    }
}
