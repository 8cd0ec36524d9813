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
struct Clean(String);

impl Perform for Clean {
    fn print(&mut self, character: char) {
        if !character.is_control() {
            self.0.push(character);
        }
    }

    fn execute(&mut self, byte: u8) {
        if matches!(byte, b'\n' | b'\t') {
            self.0.push(char::from(byte));
        }
    }
}

impl Sanitizer {
    /// The text of the next piece.
    pub fn clean(&mut self, bytes: &[u8]) -> String {
        self.parser.advance(&mut self.clean, bytes);
        std::mem::take(&mut self.clean.0)
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
    fn control_characters_are_removed() {
        assert_eq!(text("a\x07\x08\u{9b}2Jb\x7f"), "a2Jb");
    }
}
