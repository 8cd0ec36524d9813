//! Running a program to its end, with a time-out.

use std::fmt;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// What a program did.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Output {
    /// The exit status as a shell shows it.
    pub fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Fails unless the program exited with `code`.
    pub fn expect_code(self, code: i32) -> Result<Self> {
        if self.code() == code {
            Ok(self)
        } else {
            bail!("exit status {code} was expected\n{self}")
        }
    }

    /// Fails unless the program succeeded.
    pub fn success(self) -> Result<Self> {
        self.expect_code(0)
    }

    /// Fails unless the program said each of `words` on either stream.
    pub fn expect_words(self, words: &[&str]) -> Result<Self> {
        for word in words {
            if !self.stdout.contains(word) && !self.stderr.contains(word) {
                bail!("'{word}' was expected\n{self}");
            }
        }
        Ok(self)
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "$ {}\n{}", self.command, self.status)?;
        writeln!(f, "--- standard output\n{}", self.stdout)?;
        write!(f, "--- standard error\n{}", self.stderr)
    }
}

/// A program that runs, its output gathered.
#[derive(Debug)]
pub struct Running {
    command: String,
    child: Child,
    stdout: JoinHandle<String>,
    stderr: JoinHandle<String>,
}

/// Starts `command` with `input` on standard input.
pub fn start(mut command: Command, input: &[u8]) -> Result<Running> {
    let text = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {text}"))?;
    let stdout = gather(child.stdout.take());
    let stderr = gather(child.stderr.take());
    if let Some(mut stdin) = child.stdin.take() {
        let input = input.to_vec();
        // A program may end without reading all of it.
        thread::spawn(move || stdin.write_all(&input));
    }
    Ok(Running {
        command: text,
        child,
        stdout,
        stderr,
    })
}

fn gather(stream: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            // What was read before an error still counts.
            let _ = stream.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

impl Running {
    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits for its end; kills it after `timeout`.
    pub fn wait(mut self, timeout: Duration) -> Result<Output> {
        let deadline = Instant::now() + timeout;
        let mut late = false;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline && !late {
                late = true;
                self.child.kill()?;
            }
            thread::sleep(Duration::from_millis(10));
        };
        let output = Output {
            command: self.command,
            status,
            stdout: join(self.stdout),
            stderr: join(self.stderr),
        };
        if late {
            bail!("did not end within {timeout:?}\n{output}");
        }
        Ok(output)
    }
}

fn join(gatherer: JoinHandle<String>) -> String {
    gatherer.join().unwrap_or_default()
}

/// Runs `command` to its end.
pub fn run(command: Command, input: &[u8], timeout: Duration) -> Result<Output> {
    start(command, input)?.wait(timeout)
}

/// Asks `probe` again and again until it has an answer; fails with its last error after `timeout`.
pub fn eventually<T>(timeout: Duration, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        match probe() {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("after {timeout:?}")));
            }
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}
