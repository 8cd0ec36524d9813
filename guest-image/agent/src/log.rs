//! Messages to the kernel's log, and by it, if they are errors, to the serial console.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::Write;

/// Something went wrong. Shown on the console also when the kernel was told to be quiet.
pub fn error(message: impl Display) {
    write(3, message);
}

/// Something happened.
pub fn info(message: impl Display) {
    write(6, message);
}

fn write(level: u8, message: impl Display) {
    // One write is one record. Where there is no log (no /dev yet) there is nobody to tell either.
    let mut record = format!("<{level}>hopyard-agent: {message}");
    record.truncate(record.floor_char_boundary(900));
    if let Ok(mut log) = OpenOptions::new().write(true).open("/dev/kmsg") {
        let _ = log.write_all(record.as_bytes());
    }
}
