//! The loop without a machine around it: this program starts itself as the agent's side.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

use agent::{Server, Signals};
use agent_protocol::{
    ExitStatus, INITIAL_WINDOW, Incoming, Kind, MAX_PAYLOAD, ToAgent, ToHost, WindowSize,
};
use libtest_mimic::Trial;

use crate::client::Client;
use crate::trial;

const SOCKET: &str = "HOPYARD_TEST_AGENT_SOCKET";

pub fn is_server() -> bool {
    std::env::var_os(SOCKET).is_some()
}

/// Serves whoever is to be found at the socket, as PID 1 serves its port.
pub fn server() -> ExitCode {
    let path = std::env::var_os(SOCKET).unwrap();
    let open = move || {
        UnixStream::connect(&path).ok().map(|socket| {
            socket.set_nonblocking(true).unwrap();
            OwnedFd::from(socket)
        })
    };
    let mut server = Server::new(
        Signals::new().unwrap(),
        Box::new(open),
        vec!["half a root".into()],
    );
    ExitCode::from(if server.run() { 10 } else { 11 })
}

struct Agent {
    process: Child,
    listener: UnixListener,
    _folder: tempfile::TempDir,
}

impl Agent {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let process = Command::new(std::env::current_exe().unwrap())
            .env(SOCKET, path)
            .spawn()
            .unwrap();
        Self {
            process,
            listener,
            _folder: folder,
        }
    }

    fn accept(&self) -> Client {
        Client::new(self.listener.accept().unwrap().0)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An agent and a host that have greeted each other.
fn greeted() -> (Agent, Client) {
    let agent = Agent::start();
    let mut client = agent.accept();
    assert!(!client.hello().1);
    assert_eq!(
        client.control(),
        ToHost::Warning {
            message: "half a root".into()
        }
    );
    (agent, client)
}

pub fn trials() -> Vec<Trial> {
    vec![
        trial("serve::exit_codes_and_output", exit_codes_and_output),
        trial("serve::what_cannot_be_started", what_cannot_be_started),
        trial("serve::signals_and_groups", signals_and_groups),
        trial("serve::input_to_its_end", input_to_its_end),
        trial(
            "serve::nobody_sends_more_than_was_granted",
            nobody_sends_more_than_was_granted,
        ),
        trial("serve::much_in_both_directions", much_in_both_directions),
        trial("serve::terminal", terminal),
        trial(
            "serve::background_processes_do_not_hold_up_the_end",
            background_processes_do_not_hold_up_the_end,
        ),
        trial("serve::many_at_once", many_at_once),
        trial(
            "serve::a_host_that_goes_ends_its_commands",
            a_host_that_goes_ends_its_commands,
        ),
        trial(
            "serve::garbage_ends_the_connection",
            garbage_ends_the_connection,
        ),
        trial(
            "serve::another_version_is_told_so",
            another_version_is_told_so,
        ),
        trial("serve::shutdown", shutdown),
    ]
}

fn exit_codes_and_output() {
    let (_agent, mut client) = greeted();
    let output = client.shell("echo out; echo err >&2; exit 7");
    assert_eq!(output.text(), "out\n");
    assert_eq!(output.stderr, b"err\n");
    assert_eq!(output.status, ExitStatus::Code(7));
    // The stream is free again.
    assert_eq!(client.run(&["true"]).status, ExitStatus::Code(0));
    client.send(&ToAgent::Exec {
        stream: 5,
        argv: vec!["sh".into(), "-c".into(), "echo $X $HOME; pwd".into()],
        env: vec![("X".into(), "y".into())],
        cwd: Some("/usr".into()),
        tty: None,
    });
    let lines = client.output(5).text();
    assert!(
        lines.starts_with("y /") && lines.ends_with("\n/usr\n"),
        "{lines}"
    );
    client.send(&ToAgent::Ping);
    assert_eq!(client.control(), ToHost::Pong);
}

fn what_cannot_be_started() {
    let (_agent, mut client) = greeted();
    let mut attempt = |stream: u32, argv: &[&str], cwd: Option<&str>| {
        client.send(&ToAgent::Exec {
            stream,
            argv: argv.iter().map(|&a| a.into()).collect(),
            env: Vec::new(),
            cwd: cwd.map(Into::into),
            tty: None,
        });
        match client.control() {
            ToHost::ExecFailed {
                stream: answered,
                message,
                status,
            } => {
                assert_eq!(answered, stream);
                (status, message)
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        attempt(1, &["no-such-program"], None),
        (127, "no program \"no-such-program\" in the node".into())
    );
    assert_eq!(
        attempt(1, &["true"], Some("/nowhere")),
        (127, "no folder /nowhere in the node".into())
    );
    assert_eq!(attempt(1, &["/"], None).0, 126);
    assert_eq!(attempt(1, &[], None).0, 126);
    assert_eq!(
        attempt(0, &["true"], None),
        (126, "there is no such stream".into())
    );
    client.exec(3, &["cat"]);
    client.exec(3, &["true"]);
    assert!(matches!(
        client.control(),
        ToHost::ExecFailed {
            stream: 3,
            status: 126,
            ..
        }
    ));
}

fn signals_and_groups() {
    let (_agent, mut client) = greeted();
    client.exec(2, &["sh", "-c", "echo up; sleep 100; echo not reached"]);
    assert!(matches!(client.next(), Some(Incoming::Data { bytes, .. }) if bytes == b"up\n"));
    client.send(&ToAgent::Signal {
        stream: 2,
        signal: 15,
    });
    let output = client.output(2);
    assert_eq!(output.status, ExitStatus::Signal(15));
    assert_eq!(output.text(), "");
    // Signals for what is over or was never there are not an error.
    client.send(&ToAgent::Signal {
        stream: 2,
        signal: 9,
    });
    assert_eq!(client.run(&["true"]).status, ExitStatus::Code(0));
}

fn input_to_its_end() {
    let (_agent, mut client) = greeted();
    client.exec(1, &["wc", "-c"]);
    client.stdin(1, b"12345");
    client.stdin(1, b"67");
    client.stdin(1, b"");
    assert_eq!(client.output(1).text(), "7\n");
    // One that does not read.
    client.exec(1, &["true"]);
    client.stdin(1, &[b'x'; 1000]);
    client.stdin(1, b"");
    assert_eq!(client.output(1).status, ExitStatus::Code(0));
}

fn nobody_sends_more_than_was_granted() {
    let (_agent, mut client) = greeted();
    client.exec(1, &["sh", "-c", "head -c 1000000 /dev/zero"]);
    client.limit = Duration::from_millis(500);
    let mut got = 0;
    while let Some(message) = client.next() {
        match message {
            Incoming::Data { bytes, .. } => got += bytes.len(),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(got, INITIAL_WINDOW as usize);
    client.limit = Duration::from_mins(1);
    // Another command is not held up.
    assert_eq!(client_run(&mut client, 2, &["echo", "hi"]), "hi\n");
    client.credit(1, 1_000_000);
    let mut rest = 0;
    loop {
        match client.next().unwrap() {
            Incoming::Data { bytes, .. } => rest += bytes.len(),
            Incoming::Control(ToHost::Exited {
                stream: 1,
                status: ExitStatus::Code(0),
            }) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(got + rest, 1_000_000);
    // The other direction: a host that sends too much loses the command.
    client.exec(1, &["sleep", "100"]);
    for _ in 0..=INITIAL_WINDOW as usize / MAX_PAYLOAD {
        client.stdin(1, &vec![0; MAX_PAYLOAD]);
    }
    client.stdin(1, &vec![0; MAX_PAYLOAD]);
    let status = loop {
        match client.next().unwrap() {
            Incoming::Control(ToHost::Exited { stream: 1, status }) => break status,
            Incoming::Credit { .. } => {}
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(status, ExitStatus::Signal(1 | 9)), "{status:?}");
}

fn client_run(client: &mut Client, stream: u32, argv: &[&str]) -> String {
    client.exec(stream, argv);
    client.output(stream).text()
}

fn much_in_both_directions() {
    let (_agent, mut client) = greeted();
    let input: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    client.exec(1, &["cat"]);
    let mut window = INITIAL_WINDOW as usize;
    let (mut sent, mut output) = (0, Vec::new());
    let mut ended = false;
    loop {
        let part = window.min(input.len() - sent).min(MAX_PAYLOAD);
        if part > 0 {
            client.stdin(1, &input[sent..sent + part]);
            (sent, window) = (sent + part, window - part);
            continue;
        }
        if sent == input.len() && !ended {
            client.stdin(1, b"");
            ended = true;
        }
        match client.next().unwrap() {
            Incoming::Credit { bytes, .. } => window += bytes as usize,
            Incoming::Data {
                kind: Kind::Stdout,
                bytes,
                ..
            } => {
                client.credit(1, bytes.len() as u32);
                output.extend(bytes);
            }
            Incoming::Control(ToHost::Exited { .. }) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(
        output == input,
        "{} of {} bytes came back as they were",
        output.len(),
        input.len()
    );
}

fn terminal() {
    let (_agent, mut client) = greeted();
    client.send(&ToAgent::Exec {
        stream: 9,
        argv: vec!["sh".into()],
        env: vec![("PS1".into(), "> ".into()), ("ENV".into(), String::new())],
        cwd: None,
        tty: Some(WindowSize { rows: 33, cols: 77 }),
    });
    let mut seen = String::new();
    expect(&mut client, &mut seen, "> ");
    client.stdin(9, b"stty size; tty; echo $TERM\n");
    expect(&mut client, &mut seen, "33 77\r\n/dev/pts/");
    expect(&mut client, &mut seen, "xterm-256color");
    client.send(&ToAgent::Resize {
        stream: 9,
        size: WindowSize { rows: 10, cols: 20 },
    });
    client.stdin(9, b"stty size\n");
    expect(&mut client, &mut seen, "10 20\r\n");
    // Ctrl-C reaches the foreground job, not the shell.
    client.stdin(9, b"sleep 100\n");
    expect(&mut client, &mut seen, "sleep 100\r\n");
    std::thread::sleep(Duration::from_millis(300));
    client.stdin(9, b"\x03");
    client.stdin(9, b"echo again=$?\n");
    expect(&mut client, &mut seen, "again=130");
    client.stdin(9, b"");
    assert!(matches!(client.output(9).status, ExitStatus::Code(_)));
}

fn expect(client: &mut Client, seen: &mut String, wanted: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !seen.contains(wanted) {
        assert!(Instant::now() < deadline, "no {wanted:?} in {seen:?}");
        match client.next() {
            Some(Incoming::Data { bytes, .. }) => seen.push_str(&String::from_utf8_lossy(&bytes)),
            other => panic!("no {wanted:?} in {seen:?}, but {other:?}"),
        }
    }
    let end = seen.find(wanted).unwrap() + wanted.len();
    seen.drain(..end);
}

fn background_processes_do_not_hold_up_the_end() {
    let (_agent, mut client) = greeted();
    let begun = Instant::now();
    let output = client.shell("echo hi; sleep 30 &");
    assert_eq!(output.text(), "hi\n");
    assert!(begun.elapsed() < Duration::from_secs(10));
}

fn many_at_once() {
    let (_agent, mut client) = greeted();
    for stream in 1..=200 {
        client.exec(stream, &["sh", "-c", &format!("echo {stream}")]);
    }
    let (mut ended, mut text) = (0, String::new());
    while ended < 200 {
        match client.next().unwrap() {
            Incoming::Data { bytes, stream, .. } => {
                assert_eq!(String::from_utf8_lossy(&bytes), format!("{stream}\n"));
                text.push_str(&String::from_utf8_lossy(&bytes));
            }
            Incoming::Control(ToHost::Exited {
                status: ExitStatus::Code(0),
                ..
            }) => ended += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(text.lines().count(), 200);
}

fn a_host_that_goes_ends_its_commands() {
    let (agent, mut client) = greeted();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    client.exec(
        1,
        &[
            "sh",
            "-c",
            &format!("echo $$ > {}; exec sleep 1000", file.display()),
        ],
    );
    let pid = until(|| {
        std::fs::read_to_string(&file)
            .ok()?
            .trim()
            .parse::<u32>()
            .ok()
    });
    drop(client);
    until(|| (!std::path::Path::new(&format!("/proc/{pid}")).exists()).then_some(()));
    let mut client = agent.accept();
    client.hello();
    assert_eq!(client.run(&["echo", "back"]).text(), "back\n");
}

fn until<T>(mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited for too long");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn garbage_ends_the_connection() {
    let (agent, mut client) = greeted();
    client.raw(&[0xff; 64]);
    let mut client = agent.accept();
    client.hello();
    assert_eq!(client.run(&["echo", "back"]).text(), "back\n");
}

fn another_version_is_told_so() {
    let agent = Agent::start();
    let mut client = agent.accept();
    client.send(&ToAgent::Hello { version: 99 });
    assert!(matches!(client.control(), ToHost::Hello { version: 1, .. }));
    client.exec(1, &["true"]);
    client.limit = Duration::from_millis(300);
    assert_eq!(client.next(), None);
    // And it may think again.
    client.limit = Duration::from_secs(20);
    client.hello();
}

fn shutdown() {
    for (reboot, status) in [(false, 11), (true, 10)] {
        let (mut agent, mut client) = greeted();
        client.send(&ToAgent::Shutdown { reboot });
        assert_eq!(client.control(), ToHost::Ending { reboot });
        assert_eq!(agent.process.wait().unwrap().code(), Some(status));
    }
    // A signal, as from `reboot` in a shell, does the same.
    let (agent, mut client) = greeted();
    let pid = rustix::process::Pid::from_child(&agent.process);
    rustix::process::kill_process(pid, rustix::process::Signal::USR2).unwrap();
    assert_eq!(client.control(), ToHost::Ending { reboot: true });
}
