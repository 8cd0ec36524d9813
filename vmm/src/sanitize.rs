//! Text from a guest, made fit for a terminal: escape sequences and control characters could move the cursor,
//! change the window or type on the person's behalf.

use vte::{Parser, Perform};

/// Removes them from a stream that comes in pieces.
#[derive(Default)]
pub struct Sanitizer {
    parser: Parser,
    clean: Clean,
}

#[derive(Default)]
struct Clean {
    text: String,
    /// The cursor may move within its line.
    within_line: bool,
}

impl Perform for Clean {
    fn print(&mut self, character: char) {
        if !character.is_control() {
            self.text.push(character);
        }
    }

    fn execute(&mut self, byte: u8) {
        let moves = self.within_line && matches!(byte, b'\r' | 8);
        if matches!(byte, b'\n' | b'\t') || moves {
            self.text.push(char::from(byte));
        }
    }
}

impl Sanitizer {
    /// For a terminal on which somebody types: carriage returns and backspaces are let through, as line editing needs them.
    pub fn for_typing() -> Self {
        Self {
            clean: Clean {
                within_line: true,
                ..Clean::default()
            },
            ..Self::default()
        }
    }

    /// The text of the next piece.
    pub fn clean(&mut self, bytes: &[u8]) -> String {
        self.parser.advance(&mut self.clean, bytes);
        std::mem::take(&mut self.clean.text)
    }
}

/// The text of a message that is whole.
pub fn text(message: &str) -> String {
    lossy(message.as_bytes())
}

/// The text of bytes that are whole.
pub fn lossy(bytes: &[u8]) -> String {
    Sanitizer::default().clean(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_are_removed_even_when_cut() {
        let mut sanitizer = Sanitizer::default();
        let pieces: [&[u8]; 4] = [
            b"a\x1b[3",
            b"1mred\x1b]0;title\x07",
            b"\xc3",
            b"\xa4\tb\r\n",
        ];
        let text: String = pieces.iter().map(|piece| sanitizer.clean(piece)).collect();
        assert_eq!(text, "aredä\tb\n");
    }

    #[test]
    fn a_line_can_be_edited() {
        let mut sanitizer = Sanitizer::for_typing();
        let said = sanitizer.clean(b"ab\x08 \x08\r\n\x1b[2J\x07#");
        assert_eq!(said, "ab\u{8} \u{8}\r\n#");
    }

    #[test]
    fn control_characters_are_removed() {
        assert_eq!(text("a\x07\x08\u{9b}2Jb\x7f"), "a2Jb");
    }
}
