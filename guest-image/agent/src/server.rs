//! The loop: waits for the host, for commands and for children, and does what they ask.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use agent_protocol::{
    ExitStatus, Incoming, Kind, MAX_STREAM, NodeDescription, ToAgent, ToHost, VERSION, WindowError,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};

use crate::connection::{Connection, Lost};
use crate::console::Console;
use crate::exec::{Exec, Request, Source};
use crate::services::Services;
use crate::signals::{Event, Signals};
use crate::{configure, log};

/// While nobody is at the other end of the port, which the kernel does not announce.
const LOOK: Duration = Duration::from_millis(20);
/// How long the host may take to read the last message.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Warnings kept for a host that is not there.
const KEPT_WARNINGS: usize = 100;
/// Commands at a time.
const MAX_EXECS: usize = 1024;

type OpenPort = Box<dyn FnMut() -> Option<OwnedFd>>;

/// Serves one host after the other.
pub struct Server {
    signals: Signals,
    open: OpenPort,
    connection: Option<Connection>,
    execs: BTreeMap<u32, Exec>,
    services: Option<Services>,
    console: Option<Console>,
    /// What has become of the configuration, for a host that comes back.
    progress: Vec<ToHost>,
    /// Not told to anyone yet.
    warnings: Vec<ToHost>,
    ending: Option<bool>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("connection", &self.connection)
            .field("execs", &self.execs)
            .finish_non_exhaustive()
    }
}

/// What `poll` has found, by owner.
enum Ready {
    Signals,
    Port(PollFlags),
    Output(u32, Source),
    Input(u32),
    Command(usize),
    Console,
}

impl Server {
    /// `open` is called whenever there is no port; `problems` are told to the first host.
    pub fn new(signals: Signals, open: OpenPort, problems: Vec<String>) -> Self {
        Self {
            signals,
            open,
            connection: None,
            execs: BTreeMap::new(),
            services: None,
            console: None,
            progress: Vec::new(),
            warnings: problems
                .into_iter()
                .map(|message| ToHost::Warning { message })
                .collect(),
            ending: None,
        }
    }

    /// Has the server give a shell to whoever types at the serial port.
    #[must_use]
    pub fn with_console(mut self) -> Self {
        self.console = Console::open();
        self
    }

    /// Serves until the node is to end; returns whether it is to boot again.
    pub fn run(&mut self) -> bool {
        loop {
            self.turn();
            if let Some(reboot) = self.ending.take() {
                self.say_goodbye(reboot);
                return reboot;
            }
        }
    }

    /// Ends all commands of the host and forgets it.
    pub fn disconnect(&mut self) {
        for exec in self.execs.values() {
            exec.kill();
        }
        self.execs.clear();
        self.connection = None;
    }

    fn turn(&mut self) {
        if self.connection.is_none() {
            self.connection = (self.open)().map(Connection::new);
        }
        for ready in self.wait() {
            match ready {
                Ready::Signals => self.signalled(),
                Ready::Port(flags) => self.serve_port(flags),
                Ready::Output(stream, source) => {
                    let now = Instant::now();
                    if let (Some(exec), Some(connection)) =
                        (self.execs.get_mut(&stream), &mut self.connection)
                    {
                        exec.read(source, now, &mut connection.out);
                    }
                }
                Ready::Command(index) => {
                    if let Some(services) = &mut self.services {
                        services.read(index);
                    }
                }
                Ready::Console => {
                    let of_use = self.console.as_mut().is_none_or(Console::typed);
                    self.console = self.console.take().filter(|_| of_use);
                }
                Ready::Input(stream) => {
                    if let (Some(exec), Some(connection)) =
                        (self.execs.get_mut(&stream), &mut self.connection)
                    {
                        exec.write(&mut connection.out);
                    }
                }
            }
        }
        self.finish_execs();
        self.step_services();
        // Most answers fit: they need not wait for another turn.
        if let Some(connection) = &mut self.connection
            && connection.greeted
            && let Err(lost) = connection.write()
        {
            self.lose(&lost);
        }
    }

    /// Waits for something to happen or a deadline to pass.
    fn wait(&self) -> Vec<Ready> {
        let mut owners = vec![Ready::Signals];
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        let full = self.connection.as_ref().is_some_and(Connection::is_full);
        if let Some(connection) = &self.connection {
            let (port, flags) = connection.interest();
            owners.push(Ready::Port(PollFlags::empty()));
            fds.push(PollFd::from_borrowed_fd(port, flags));
        }
        for (index, fd) in self.services.iter().flat_map(Services::outputs) {
            owners.push(Ready::Command(index));
            fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
        }
        if let Some(terminal) = self.console.as_ref().and_then(Console::terminal) {
            owners.push(Ready::Console);
            fds.push(PollFd::from_borrowed_fd(terminal, PollFlags::IN));
        }
        for (&stream, exec) in &self.execs {
            if !full {
                for (source, fd) in exec.sources() {
                    owners.push(Ready::Output(stream, source));
                    fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
                }
            }
            if let Some(fd) = exec.sink() {
                owners.push(Ready::Input(stream));
                fds.push(PollFd::from_borrowed_fd(fd, PollFlags::OUT));
            }
        }
        if let Err(error) = poll(&mut fds, self.timeout().as_ref())
            && error != rustix::io::Errno::INTR
        {
            log::error(format_args!("poll: {error}"));
            std::thread::sleep(LOOK);
            return Vec::new();
        }
        owners
            .into_iter()
            .zip(&fds)
            .filter(|(_, fd)| !fd.revents().is_empty())
            .map(|(owner, fd)| match owner {
                Ready::Port(_) => Ready::Port(fd.revents()),
                other => other,
            })
            .collect()
    }

    fn timeout(&self) -> Option<Timespec> {
        let look = self.connection.is_none().then(|| Instant::now() + LOOK);
        let services = self.services.as_ref().and_then(Services::deadline);
        let full = self.connection.as_ref().is_some_and(Connection::is_full);
        let execs = self
            .execs
            .values()
            .filter_map(Exec::deadline)
            .filter(|_| !full)
            .min();
        let deadline = [look, services, execs].into_iter().flatten().min()?;
        Timespec::try_from(deadline.saturating_duration_since(Instant::now())).ok()
    }

    fn lose(&mut self, lost: &Lost) {
        let Some(connection) = self.connection.take() else {
            return;
        };
        if !connection.unused {
            log::info(format_args!("the connection is over: {lost}"));
        }
        self.disconnect();
        self.connection = connection.after(lost);
    }

    fn serve_port(&mut self, flags: PollFlags) {
        if let Err(lost) = self.try_serve_port(flags) {
            self.lose(&lost);
            // Nobody there shows as an end of file on every attempt.
            std::thread::sleep(LOOK);
        }
    }

    fn try_serve_port(&mut self, flags: PollFlags) -> Result<(), Lost> {
        let Some(connection) = &mut self.connection else {
            return Ok(());
        };
        if flags.contains(PollFlags::OUT) {
            connection.write()?;
        }
        if flags.contains(PollFlags::IN) {
            connection.read()?;
            while let Some(connection) = &mut self.connection {
                match connection.next()? {
                    Some(message) => self.handle(message),
                    None => return Ok(()),
                }
            }
        } else if flags.intersects(PollFlags::HUP | PollFlags::ERR) {
            return Err(Lost::Closed);
        }
        Ok(())
    }

    fn send(&mut self, message: &ToHost) {
        if let Some(connection) = &mut self.connection {
            connection.send(message);
        }
    }

    /// Sends, or keeps, what is not an answer.
    fn report(&mut self, message: ToHost) {
        if let ToHost::Warning { message } | ToHost::Failed { message } = &message {
            log::error(message);
        }
        if !matches!(message, ToHost::Warning { .. }) {
            self.progress.push(message.clone());
        }
        if self
            .connection
            .as_ref()
            .is_some_and(|connection| connection.greeted)
        {
            self.send(&message);
        } else if matches!(message, ToHost::Warning { .. }) && self.warnings.len() < KEPT_WARNINGS {
            self.warnings.push(message);
        }
    }

    fn handle(&mut self, message: Incoming<ToAgent>) {
        let greeted = self
            .connection
            .as_ref()
            .is_some_and(|connection| connection.greeted);
        match message {
            Incoming::Control(ToAgent::Hello { version }) => self.hello(version),
            // A host of another version was told so; it has nothing more to say.
            _ if !greeted => {}
            Incoming::Control(message) => self.control(message),
            Incoming::Data {
                kind: Kind::Stdin,
                stream,
                bytes,
            } => {
                self.with_exec(stream, |exec, out| exec.input(&bytes, out));
            }
            Incoming::Data { .. } => log::error("the host has sent output"),
            Incoming::Credit { stream, bytes } => {
                self.with_exec(stream, |exec, _| exec.granted(bytes, Instant::now()));
            }
        }
    }

    /// A host that breaks the rules of a stream loses that command, no more.
    fn with_exec(
        &mut self,
        stream: u32,
        act: impl FnOnce(&mut Exec, &mut Vec<u8>) -> Result<(), WindowError>,
    ) {
        if let (Some(exec), Some(connection)) = (self.execs.get_mut(&stream), &mut self.connection)
            && let Err(error) = act(exec, &mut connection.out)
        {
            log::error(format_args!(
                "the host breaks flow control on stream {stream}: {error}"
            ));
            exec.kill();
        }
    }

    fn hello(&mut self, version: u32) {
        // A second one on the same connection is a new host on the old port.
        for (_, exec) in std::mem::take(&mut self.execs) {
            exec.kill();
        }
        let kernel = rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned();
        let configured = self.services.is_some() || !self.progress.is_empty();
        self.send(&ToHost::Hello {
            version: VERSION,
            kernel,
            configured,
        });
        let Some(connection) = self.connection.as_mut() else {
            return;
        };
        connection.greeted = version == VERSION;
        if connection.greeted {
            for message in self.progress.iter().chain(&self.warnings) {
                connection.send(message);
            }
            self.warnings.clear();
        } else if let Err(lost) = connection.write() {
            self.lose(&lost);
        }
    }

    fn control(&mut self, message: ToAgent) {
        match message {
            ToAgent::Hello { version } => self.hello(version),
            ToAgent::Configure(node) => self.configure(*node),
            ToAgent::Exec {
                stream,
                argv,
                env,
                cwd,
                tty,
            } => {
                self.start(&Request {
                    stream,
                    argv,
                    env,
                    cwd,
                    tty,
                });
            }
            ToAgent::Signal { stream, signal } => match Signal::from_named_raw(signal) {
                Some(signal) => {
                    if let Some(exec) = self.execs.get(&stream) {
                        exec.signal(signal);
                    }
                }
                None => self.report(ToHost::Warning {
                    message: format!("there is no signal {signal}"),
                }),
            },
            ToAgent::Resize { stream, size } => {
                if let Some(exec) = self.execs.get(&stream) {
                    exec.resize(size);
                }
            }
            ToAgent::Ping => self.send(&ToHost::Pong),
            ToAgent::Shutdown { reboot } => self.ending = Some(reboot),
        }
    }

    fn configure(&mut self, mut node: NodeDescription) {
        if self.services.is_some() || !self.progress.is_empty() {
            self.report(ToHost::Warning {
                message: "this node is configured already; boot it again to configure it anew"
                    .into(),
            });
            return;
        }
        match configure::configure(&node) {
            Ok(()) => {
                self.services = Some(Services::new(&mut node, Instant::now()));
            }
            Err(error) => self.report(ToHost::Failed {
                message: error.to_string(),
            }),
        }
    }

    fn start(&mut self, request: &Request) {
        let stream = request.stream;
        let refusal = if !(1..=MAX_STREAM).contains(&stream) {
            Some("there is no such stream".to_owned())
        } else if self.execs.contains_key(&stream) {
            Some("the stream is in use".to_owned())
        } else if self.execs.len() >= MAX_EXECS {
            Some(format!("{MAX_EXECS} commands are running already"))
        } else {
            None
        };
        if let Some(message) = refusal {
            self.send(&ToHost::ExecFailed {
                stream,
                message,
                status: 126,
            });
            return;
        }
        match Exec::start(request) {
            Ok(exec) => {
                self.execs.insert(stream, exec);
            }
            Err(failed) => self.send(&failed),
        }
    }

    fn signalled(&mut self) {
        while let Some(event) = self.signals.next_event() {
            match event {
                Event::Child => self.reap(),
                Event::End { reboot } => self.ending = Some(reboot),
            }
        }
    }

    fn reap(&mut self) {
        // Children that others have left behind end here, too.
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if let Some(status) = exit_status(status) {
                self.exited(pid, status);
            }
        }
    }

    fn exited(&mut self, pid: Pid, status: ExitStatus) {
        let now = Instant::now();
        if let Some(exec) = self.execs.values_mut().find(|exec| exec.pid() == Some(pid)) {
            exec.exited(status, now);
            return;
        }
        if let Some(console) = &mut self.console
            && console.exited(pid)
        {
            return;
        }
        let mut events = Vec::new();
        if let Some(services) = &mut self.services {
            services.exited(pid, status, now, &mut events);
        }
        for event in events {
            self.report(event);
        }
    }

    fn finish_execs(&mut self) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        if connection.is_full() {
            return;
        }
        let now = Instant::now();
        self.execs
            .retain(|_, exec| !exec.finished(now, &mut connection.out));
    }

    fn step_services(&mut self) {
        let mut events = Vec::new();
        if let Some(services) = &mut self.services {
            services.step(Instant::now(), &mut events);
        }
        for event in events {
            self.report(event);
        }
    }

    fn say_goodbye(&mut self, reboot: bool) {
        self.send(&ToHost::Ending { reboot });
        let deadline = Instant::now() + LAST_WORDS;
        while let Some(connection) = &mut self.connection {
            let left = deadline.saturating_duration_since(Instant::now());
            if connection.write().is_err() || connection.is_empty() || left.is_zero() {
                return;
            }
            let (port, _) = connection.interest();
            let mut fds = [PollFd::from_borrowed_fd(port, PollFlags::OUT)];
            let _ = poll(&mut fds, Timespec::try_from(left).ok().as_ref());
        }
    }
}

fn exit_status(status: WaitStatus) -> Option<ExitStatus> {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Some(ExitStatus::Code(code)),
        (None, Some(signal)) => Some(ExitStatus::Signal(signal)),
        (None, None) => None,
    }
}
