//! The host's side, as simple as it can be: one thread, blocking reads with a time limit.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use agent_protocol::{
    ExitStatus, Incoming, Kind, ReceiveWindow, Receiver, ToAgent, ToHost, VERSION, encode_control,
    encode_credit, encode_data,
};

/// One connection to an agent.
pub struct Client {
    socket: UnixStream,
    receiver: Receiver<ToHost>,
    kept: VecDeque<Incoming<ToHost>>,
    /// Warnings that came between a command's output.
    warnings: VecDeque<ToHost>,
    pub limit: Duration,
}

/// A command's whole output and how it ended.
#[derive(Debug)]
pub struct Output {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub status: ExitStatus,
}

impl Output {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

impl Client {
    pub fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            receiver: Receiver::new(),
            kept: VecDeque::new(),
            warnings: VecDeque::new(),
            limit: Duration::from_mins(1),
        }
    }

    /// Says hello; returns the kernel's release and whether the node is configured.
    pub fn hello(&mut self) -> (String, bool) {
        self.send(&ToAgent::Hello { version: VERSION });
        match self.control() {
            ToHost::Hello {
                version,
                kernel,
                configured,
            } => {
                assert_eq!(version, VERSION);
                (kernel, configured)
            }
            other => panic!("instead of Hello: {other:?}"),
        }
    }

    pub fn send(&mut self, message: &ToAgent) {
        let mut bytes = Vec::new();
        encode_control(&mut bytes, message).unwrap();
        self.raw(&bytes);
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    pub fn stdin(&mut self, stream: u32, input: &[u8]) {
        let mut bytes = Vec::new();
        encode_data(&mut bytes, Kind::Stdin, stream, input);
        self.raw(&bytes);
    }

    pub fn credit(&mut self, stream: u32, amount: u32) {
        let mut bytes = Vec::new();
        encode_credit(&mut bytes, stream, amount);
        self.raw(&bytes);
    }

    pub fn exec(&mut self, stream: u32, argv: &[&str]) {
        self.send(&ToAgent::Exec {
            stream,
            argv: argv.iter().map(|&argument| argument.into()).collect(),
            env: Vec::new(),
            cwd: None,
            tty: None,
        });
    }

    /// Runs a command to its end on stream 1.
    pub fn run(&mut self, argv: &[&str]) -> Output {
        self.exec(1, argv);
        self.output(1)
    }

    pub fn shell(&mut self, line: &str) -> Output {
        self.run(&["sh", "-c", line])
    }

    /// Reads a command's output to its end, granting what it takes.
    pub fn output(&mut self, wanted: u32) -> Output {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let mut window = ReceiveWindow::default();
        loop {
            match self.next().expect("the agent says nothing") {
                Incoming::Data {
                    kind,
                    stream,
                    bytes,
                } if stream == wanted => {
                    window.received(bytes.len()).unwrap();
                    if let Some(credit) = window.consumed(bytes.len()) {
                        self.credit(stream, credit);
                    }
                    if kind == Kind::Stdout {
                        &mut stdout
                    } else {
                        &mut stderr
                    }
                    .extend(bytes);
                }
                Incoming::Control(ToHost::Exited { stream, status }) if stream == wanted => {
                    return Output {
                        stdout,
                        stderr,
                        status,
                    };
                }
                Incoming::Credit { .. } => {}
                Incoming::Control(warning @ ToHost::Warning { .. }) => {
                    self.warnings.push_back(warning);
                }
                other => panic!("instead of output: {other:?}"),
            }
        }
    }

    /// The next control message.
    pub fn control(&mut self) -> ToHost {
        if let Some(warning) = self.warnings.pop_front() {
            return warning;
        }
        match self.next().expect("the agent says nothing") {
            Incoming::Control(message) => message,
            other => panic!("instead of a control message: {other:?}"),
        }
    }

    /// The next message, or `None` if the time limit passes first.
    pub fn next(&mut self) -> Option<Incoming<ToHost>> {
        let deadline = Instant::now() + self.limit;
        loop {
            if let Some(message) = self.kept.pop_front() {
                return Some(message);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            self.socket.set_read_timeout(Some(left)).unwrap();
            let mut buffer = [0; 16 * 1024];
            match self.socket.read(&mut buffer) {
                Ok(0) => panic!("the agent has closed the connection"),
                Ok(n) => self.receiver.push(&buffer[..n]),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    return None;
                }
                Err(error) => panic!("{error}"),
            }
            while let Some(message) = self.receiver.next().unwrap() {
                self.kept.push_back(message);
            }
        }
    }
}
