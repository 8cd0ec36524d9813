//! A test double for `qemu-system-x86_64`: takes its command line, speaks QMP and is its guest's agent at once. Commands
//! run on this machine. An example only because those are built for tests and not installed.
//!
//! `FAKE` says what is wrong with which node, as in `b=silent c=panic`; see [`Fault`].

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, mpsc};

use agent_protocol::{
    ExitStatus, Incoming, Kind, ReceiveWindow, Receiver, SendWindow, ToAgent, ToHost, VERSION,
    encode_control, encode_credit, encode_data,
};
use rustix::process::{Pid, Signal, kill_process_group};

/// What can be wrong with a node.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    /// Never answers its agent's port.
    Silent,
    /// Ends at once, for want of memory.
    Die,
    /// Its agent is of another version.
    Old,
    /// Its network cannot be configured.
    Fail,
    /// Its agent sends nonsense once it is ready.
    Babble,
    /// Its kernel panics before the agent starts.
    Panic,
    /// It reboots once, as soon as it is ready.
    RebootOnce,
    /// It reboots before it is ready, every time.
    RebootLoop,
    /// Its agent takes the first greeting of a further host for the former one's.
    Forget,
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let find = |start: &str| {
        let arg = args
            .iter()
            .find_map(|arg| arg.strip_prefix(start))
            .unwrap_or_else(|| panic!("no {start}"));
        arg.split(',').next().unwrap().to_owned()
    };
    let name = find("guest=");
    let fault = fault_of(&name);
    if fault == Fault::Die {
        eprintln!("qemu: cannot set up guest memory: Cannot allocate memory");
        std::process::exit(1);
    }
    let qmp = Qmp::listen(inherited(&find("socket,id=qmp,fd=")));
    let listener = inherited(&find("socket,id=agent,fd="));
    let address = listener.local_addr().unwrap();
    let agent_socket = address.as_pathname().unwrap();
    let boot = count_boot(agent_socket);
    println!("Linux version 6.12 of {name}\x1b[31m\r\nbooting {boot}");
    std::thread::spawn(serve_console);
    if fault == Fault::Panic {
        println!("Kernel panic - not syncing: VFS: unable to mount root");
        qmp.end("guest-panic");
    }
    let (socket, _) = listener.accept().unwrap();
    if fault == Fault::Silent {
        println!("waiting for entropy");
        loop {
            std::thread::park();
        }
    }
    let hosts = agent_socket.with_file_name("hosts");
    Agent::new(socket, qmp, fault, boot, hosts).run(&listener);
}

/// A listening socket that the lab has opened.
fn inherited(number: &str) -> UnixListener {
    // SAFETY: the lab hands over these descriptors for good, and each is asked for once.
    unsafe { UnixListener::from_raw_fd(number.parse().unwrap()) }
}

/// Its serial port: a prompt, and an echo of each line. Ends with the terminal, not the guest.
fn serve_console() {
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        print!("{line}\x1b[31m\r\n# ");
        std::io::stdout().flush().unwrap();
    }
}

fn fault_of(node: &str) -> Fault {
    let faults = std::env::var("FAKE").unwrap_or_default();
    let word = faults
        .split_whitespace()
        .find_map(|fault| fault.strip_prefix(node)?.strip_prefix('='))
        .unwrap_or("none");
    match word {
        "none" => Fault::None,
        "silent" => Fault::Silent,
        "die" => Fault::Die,
        "old" => Fault::Old,
        "fail" => Fault::Fail,
        "babble" => Fault::Babble,
        "panic" => Fault::Panic,
        "reboot-once" => Fault::RebootOnce,
        "reboot-loop" => Fault::RebootLoop,
        "forget" => Fault::Forget,
        other => panic!("no such fault: {other}"),
    }
}

/// Counts this boot among those of its node.
fn count_boot(agent_socket: &Path) -> usize {
    let counter = agent_socket.with_file_name("boots");
    let boot =
        std::fs::read_to_string(&counter).map_or(1, |text| text.parse::<usize>().unwrap() + 1);
    std::fs::write(counter, boot.to_string()).unwrap();
    boot
}

struct Qmp(Arc<(Mutex<Option<UnixStream>>, Condvar)>);

impl Qmp {
    fn listen(listener: UnixListener) -> Self {
        let shared = Arc::new((Mutex::new(None), Condvar::new()));
        let connected = Arc::clone(&shared);
        std::thread::spawn(move || {
            // One lab process after the other.
            loop {
                let (mut socket, _) = listener.accept().unwrap();
                socket
                    .write_all(b"{\"QMP\":{\"version\":{},\"capabilities\":[]}}\n")
                    .unwrap();
                let mut lines = BufReader::new(socket.try_clone().unwrap()).lines();
                let line = lines.next().unwrap().unwrap();
                assert!(line.contains("qmp_capabilities"));
                socket.write_all(b"{\"return\":{}}\n").unwrap();
                *connected.0.lock().unwrap() = Some(socket);
                connected.1.notify_all();
                for line in lines {
                    assert!(line.unwrap().contains("set_link"));
                }
            }
        });
        Self(shared)
    }

    /// Says how the guest ended, and ends.
    fn end(&self, reason: &str) -> ! {
        let mut socket = self
            .0
            .1
            .wait_while(self.0.0.lock().unwrap(), |socket| socket.is_none())
            .unwrap();
        let event = format!(
            "{{\"event\":\"SHUTDOWN\",\"data\":{{\"guest\":true,\"reason\":\"{reason}\"}}}}\n"
        );
        socket
            .as_mut()
            .unwrap()
            .write_all(event.as_bytes())
            .unwrap();
        std::process::exit(0);
    }
}

struct Agent {
    socket: UnixStream,
    out: Arc<Mutex<UnixStream>>,
    commands: Arc<Mutex<HashMap<u32, Running>>>,
    qmp: Qmp,
    fault: Fault,
    boot: usize,
    /// What the lab says of other nodes.
    hosts: PathBuf,
    /// What has become of its configuration.
    progress: Vec<ToHost>,
    /// It does not hear the next greeting.
    forgets: bool,
}

struct Running {
    pid: u32,
    /// To the thread that writes standard input.
    stdin: Option<mpsc::Sender<Vec<u8>>>,
    received: Arc<Mutex<ReceiveWindow>>,
    window: Arc<(Mutex<SendWindow>, Condvar)>,
}

impl Agent {
    fn new(socket: UnixStream, qmp: Qmp, fault: Fault, boot: usize, hosts: PathBuf) -> Self {
        Self {
            out: Arc::new(Mutex::new(socket.try_clone().unwrap())),
            socket,
            commands: Arc::default(),
            qmp,
            fault,
            boot,
            hosts,
            progress: Vec::new(),
            forgets: false,
        }
    }

    fn run(mut self, listener: &UnixListener) {
        let mut receiver = Receiver::new();
        let mut buffer = [0; 4096];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) | Err(_) => {
                    // Its lab process is gone. With it go its commands; the guest waits for the next.
                    for (_, running) in self.commands.lock().unwrap().drain() {
                        let pid = Pid::from_raw(running.pid as i32).unwrap();
                        let _ = kill_process_group(pid, Signal::KILL);
                    }
                    self.socket = listener.accept().unwrap().0;
                    *self.out.lock().unwrap() = self.socket.try_clone().unwrap();
                    receiver = Receiver::new();
                    self.forgets = self.fault == Fault::Forget;
                }
                Ok(length) => receiver.push(&buffer[..length]),
            }
            while let Some(message) = receiver.next().unwrap() {
                self.take(message);
            }
        }
    }

    fn take(&mut self, message: Incoming<ToAgent>) {
        match message {
            Incoming::Control(ToAgent::Hello { .. }) if self.forgets => self.forgets = false,
            Incoming::Control(ToAgent::Hello { .. }) => {
                let version = if self.fault == Fault::Old {
                    VERSION + 1
                } else {
                    VERSION
                };
                let kernel = "6.12.0-fake".to_owned();
                self.say(&ToHost::Hello {
                    version,
                    kernel,
                    configured: !self.progress.is_empty(),
                });
                for message in &self.progress {
                    self.say(message);
                }
            }
            Incoming::Control(ToAgent::Configure(description)) => {
                if self.fault == Fault::Fail {
                    let message = "eth0: no such\x1b[2J interface".to_owned();
                    self.progress = vec![ToHost::Failed { message }];
                    return self.say(&self.progress[0]);
                }
                if self.fault == Fault::RebootLoop {
                    self.qmp.end("guest-reset");
                }
                self.progress = vec![ToHost::Configured, ToHost::Ready];
                self.say(&ToHost::Configured);
                assert!(
                    description
                        .hosts
                        .iter()
                        .any(|(_, name)| name == "localhost")
                );
                self.say(&ToHost::Ready);
                if self.fault == Fault::RebootOnce && self.boot == 1 {
                    self.qmp.end("guest-reset");
                }
                if self.fault == Fault::Babble {
                    self.out.lock().unwrap().write_all(&[0xff; 64]).unwrap();
                }
            }
            Incoming::Control(ToAgent::Exec {
                stream, argv, env, ..
            }) => self.exec(stream, &argv, env),
            Incoming::Control(ToAgent::Signal { stream, signal }) => {
                let commands = self.commands.lock().unwrap();
                if let Some(pid) = commands.get(&stream).map(|running| running.pid) {
                    let signal = Signal::from_named_raw(signal).unwrap();
                    let _ = kill_process_group(Pid::from_raw(pid as i32).unwrap(), signal);
                }
            }
            Incoming::Control(other) => panic!("not expected: {other:?}"),
            Incoming::Data { stream, bytes, .. } => self.stdin(stream, bytes),
            Incoming::Credit { stream, bytes } => {
                if let Some(running) = self.commands.lock().unwrap().get(&stream) {
                    running.window.0.lock().unwrap().granted(bytes).unwrap();
                    running.window.1.notify_all();
                }
            }
        }
    }

    fn say(&self, message: &ToHost) {
        say(&self.out, message);
    }

    fn exec(&mut self, stream: u32, argv: &[String], env: Vec<(String, String)>) {
        match argv[0].as_str() {
            "poweroff" => self.qmp.end("guest-shutdown"),
            "reboot" => self.qmp.end("guest-reset"),
            "panic" => self.qmp.end("guest-panic"),
            _ => {}
        }
        // The lab tells the names of other nodes, which this machine is not to learn.
        let is_hosts = |argv: &[String]| argv.iter().any(|word| word.contains("/etc/hosts"));
        if is_hosts(argv) {
            std::fs::write(&self.hosts, &argv[4]).unwrap();
            let status = ExitStatus::Code(0);
            return self.say(&ToHost::Exited { stream, status });
        }
        // The agent's own program, which only a guest has.
        let program = match argv[0].as_str() {
            "/sbin/hopyard-agent" => "agent-program",
            program => program,
        };
        let mut command = Command::new(program);
        command.args(&argv[1..]).envs(env).process_group(0);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                let (message, status) = (error.to_string(), 127);
                return self.say(&ToHost::ExecFailed {
                    stream,
                    message,
                    status,
                });
            }
        };
        let window = Arc::new((Mutex::new(SendWindow::default()), Condvar::new()));
        let outputs = [
            pump(
                child.stdout.take().unwrap(),
                Kind::Stdout,
                stream,
                &self.out,
                &window,
            ),
            pump(
                child.stderr.take().unwrap(),
                Kind::Stderr,
                stream,
                &self.out,
                &window,
            ),
        ];
        let received = Arc::default();
        let running = Running {
            pid: child.id(),
            stdin: Some(self.feed(stream, &mut child, &received)),
            received,
            window,
        };
        self.commands.lock().unwrap().insert(stream, running);
        let (out, commands) = (Arc::clone(&self.out), Arc::clone(&self.commands));
        std::thread::spawn(move || {
            let status = child.wait().unwrap();
            for output in outputs {
                output.join().unwrap();
            }
            commands.lock().unwrap().remove(&stream);
            let status = status.code().map_or_else(
                || ExitStatus::Signal(status.signal().unwrap()),
                ExitStatus::Code,
            );
            say(&out, &ToHost::Exited { stream, status });
        });
    }

    fn stdin(&self, stream: u32, bytes: Vec<u8>) {
        let mut commands = self.commands.lock().unwrap();
        let Some(running) = commands.get_mut(&stream) else {
            return;
        };
        let received = running.received.lock().unwrap().received(bytes.len());
        received.expect("the host keeps to the window");
        if bytes.is_empty() {
            running.stdin = None;
        } else if let Some(stdin) = &running.stdin {
            let _ = stdin.send(bytes);
        }
    }

    /// Writes standard input, and grants what was written.
    fn feed(
        &self,
        stream: u32,
        child: &mut Child,
        received: &Arc<Mutex<ReceiveWindow>>,
    ) -> mpsc::Sender<Vec<u8>> {
        let (sender, chunks) = mpsc::channel::<Vec<u8>>();
        let mut stdin = child.stdin.take().unwrap();
        let (out, received) = (Arc::clone(&self.out), Arc::clone(received));
        std::thread::spawn(move || {
            for chunk in chunks {
                let _ = stdin.write_all(&chunk);
                let credit = received.lock().unwrap().consumed(chunk.len());
                if let Some(bytes) = credit {
                    let mut frame = Vec::new();
                    encode_credit(&mut frame, stream, bytes);
                    let _ = out.lock().unwrap().write_all(&frame);
                }
            }
        });
        sender
    }
}

fn say(out: &Mutex<UnixStream>, message: &ToHost) {
    let mut frames = Vec::new();
    encode_control(&mut frames, message).unwrap();
    let _ = out.lock().unwrap().write_all(&frames);
}

/// Passes output on, within the window.
fn pump(
    mut from: impl Read + Send + 'static,
    kind: Kind,
    stream: u32,
    out: &Arc<Mutex<UnixStream>>,
    window: &Arc<(Mutex<SendWindow>, Condvar)>,
) -> std::thread::JoinHandle<()> {
    let (out, window) = (Arc::clone(out), Arc::clone(window));
    std::thread::spawn(move || {
        let mut buffer = [0; 8192];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let mut rest = &buffer[..length];
            while !rest.is_empty() {
                let mut open = window
                    .1
                    .wait_while(window.0.lock().unwrap(), |window| window.available() == 0)
                    .unwrap();
                let (now, later) = rest.split_at(rest.len().min(open.available()));
                open.sent(now.len());
                drop(open);
                let mut frames = Vec::new();
                encode_data(&mut frames, kind, stream, now);
                let _ = out.lock().unwrap().write_all(&frames);
                rest = later;
            }
        }
    })
}
