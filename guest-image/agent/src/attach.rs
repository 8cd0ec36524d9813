//! `hopyard-agent attach [N]`: prints what a start-up command has said and goes on with what it says, until it has ended. A process of
//! its own, so that a host that reads slowly holds up nothing else.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use crate::commands::{Place, STATES};

/// Between two looks for more.
const LOOK: Duration = Duration::from_millis(50);
/// The status if there is no such command; lower ones may be a command's.
const CANNOT: u8 = 125;

/// Follows the command that `arguments` name, or the only one; returns its status.
pub fn main(arguments: &[String]) -> u8 {
    let commands = commands(Path::new(STATES));
    let number = match (arguments, commands.as_slice()) {
        ([number], _) => number.parse().ok(),
        ([], [(number, _)]) => Some(*number),
        _ => None,
    };
    if let Some(number) = number.filter(|number| commands.iter().any(|(known, _)| known == number))
    {
        let followed = follow(&Place::of(number), &mut io::stdout(), &mut io::stderr());
        return followed.unwrap_or_else(|error| {
            eprintln!("the output of the command cannot be read: {error}");
            CANNOT
        });
    }
    match commands.as_slice() {
        [] => eprintln!("the node has no start-up commands"),
        commands => {
            eprintln!("which of the start-up commands? They are:");
            for (number, state) in commands {
                eprintln!("  {number}  {state}");
            }
        }
    }
    CANNOT
}

/// Number of each command and what it is about, in order.
fn commands(states: &Path) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(states).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix("command-")?.parse().ok());
        if let (Some(number), Ok(state)) = (number, fs::read_to_string(entry.path())) {
            found.push((number, state.trim_end().replacen('\n', ": ", 1)));
        }
    }
    found.sort();
    found
}

/// Prints all there is and all that comes; the command's status.
fn follow(place: &Place, out: &mut impl Write, err: &mut impl Write) -> io::Result<u8> {
    let mut current = open(&place.older).or_else(|_| open(&place.log))?;
    loop {
        // First, as what it said last is in the log before its end is told.
        let status = ended(place);
        io::copy(&mut current, out)?;
        out.flush()?;
        let this = current.metadata()?.ino();
        if inode(&place.log) == Some(this) {
            if let Some(status) = status {
                return Ok(status);
            }
            std::thread::sleep(LOOK);
            continue;
        }
        // It was put aside, and may have got its last bytes after they were looked for.
        io::copy(&mut current, out)?;
        current = if inode(&place.older) == Some(this) {
            open(&place.log)?
        } else {
            writeln!(err, "[some of the output is no longer kept]")?;
            open(&place.older)?
        };
    }
}

fn open(path: &Path) -> io::Result<File> {
    // Between two names for an instant.
    let mut tries = 0;
    loop {
        match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries < 3 => {
                tries += 1;
                std::thread::sleep(LOOK / 10);
            }
            opened => return opened,
        }
    }
}

fn inode(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|metadata| metadata.ino())
}

fn ended(place: &Place) -> Option<u8> {
    let mut state = String::new();
    File::open(&place.state)
        .ok()?
        .read_to_string(&mut state)
        .ok()?;
    let status: i32 = state.lines().next()?.strip_prefix("ended ")?.parse().ok()?;
    Some(status as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::tests::Fixture;
    use agent_protocol::ExitStatus;

    #[test]
    fn all_of_it_is_printed_and_the_status_passed_on() {
        let mut command = Fixture::start("echo one; sleep 0.3; echo two");
        let place = command.place();
        let follower = std::thread::spawn(move || {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let status = follow(&place, &mut out, &mut err).unwrap();
            (status, String::from_utf8(out).unwrap(), err)
        });
        command.read_all();
        command.end(ExitStatus::Code(7));
        let (status, out, err) = follower.join().unwrap();
        assert_eq!(
            (status, out.as_str(), err.as_slice()),
            (7, "one\ntwo\n", &b""[..])
        );
    }

    #[test]
    fn a_follower_that_keeps_up_sees_every_line_of_a_log_that_is_put_aside() {
        let mut command = Fixture::start("seq 1 150000");
        let place = command.place();
        command.read_all();
        command.end(ExitStatus::Code(0));
        let mut out = Vec::new();
        assert_eq!(follow(&place, &mut out, &mut Vec::new()).unwrap(), 0);
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.last(), Some(&"150000"));
        assert_eq!(lines.len(), 150_000, "all of it is still kept");
    }

    #[test]
    fn one_that_does_not_is_told() {
        /// Takes the first bytes and then waits for the command to go on.
        struct Slow<'a>(&'a mut dyn FnMut(), Vec<u8>);
        impl Write for Slow<'_> {
            fn write(&mut self, data: &[u8]) -> io::Result<usize> {
                if self.1.is_empty() {
                    (self.0)();
                }
                self.1.extend_from_slice(data);
                Ok(data.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut command = Fixture::start("echo first; sleep 0.2; seq 1 600000");
        let place = command.place();
        let waited = std::time::Instant::now();
        while fs::metadata(&place.log).map_or(0, |log| log.len()) == 0 {
            command.read_some();
            assert!(waited.elapsed() < Duration::from_secs(30));
        }
        let mut go_on = || {
            command.read_all();
            command.end(ExitStatus::Code(0));
        };
        let mut err = Vec::new();
        let mut slow = Slow(&mut go_on, Vec::new());
        assert_eq!(follow(&place, &mut slow, &mut err).unwrap(), 0);
        let text = String::from_utf8(slow.1).unwrap();
        assert!(text.starts_with("first\n") && text.ends_with("600000\n"));
        assert!(String::from_utf8(err).unwrap().contains("no longer kept"));
    }

    #[test]
    fn commands_are_listed_in_order() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("command-10", "running\nten\n"),
            ("command-2", "ended 1\ntwo\n"),
            ("command-2.new", ""),
            ("other", ""),
        ] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let expected = [
            (2, "ended 1: two".to_owned()),
            (10, "running: ten".to_owned()),
        ];
        assert_eq!(commands(folder.path()), expected);
    }
}
