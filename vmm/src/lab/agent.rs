//! The connection to the agent of a node: control messages, and the streams of running commands.
//!
//! What arrives comes from a guest: a frame that breaks the protocol ends the connection.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent_protocol::{
    Incoming, Kind, MAX_STREAM, ProtocolError, ReceiveWindow, Receiver, ToAgent, ToHost,
    WindowError, WindowSize, encode_control, encode_credit, encode_data,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

/// Messages waiting for the guest to take them.
const OUTBOX: usize = 64;
/// Bytes taken from the socket at once.
const BUFFER: usize = 16 << 10;

/// The host's end; clones share the connection.
#[derive(Debug, Clone)]
pub struct Agent {
    outbox: mpsc::Sender<Vec<u8>>,
    streams: Arc<Mutex<Streams>>,
}

#[derive(Debug, Default)]
struct Streams {
    open: HashMap<u32, Stream>,
    last: u32,
    closed: bool,
}

#[derive(Debug)]
struct Stream {
    events: mpsc::UnboundedSender<ExecEvent>,
    /// Bounds what waits in `events`.
    window: ReceiveWindow,
}

/// What an agent says about a running command. The end of events without a last word means that the agent is gone.
#[derive(Debug, PartialEq)]
pub enum ExecEvent {
    /// Standard output, or the pty.
    Stdout(Vec<u8>),
    /// Standard error.
    Stderr(Vec<u8>),
    /// More bytes of standard input may be sent.
    Credit(u32),
    /// It could not be started.
    Failed {
        /// For people.
        message: String,
        /// As of a shell.
        status: i32,
    },
    /// It has ended.
    Exited(agent_protocol::ExitStatus),
}

/// How an agent broke the protocol.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The stream ended or could not be read.
    #[error("the connection to the agent broke: {0}")]
    Io(#[from] std::io::Error),
    /// What it sent made no sense.
    #[error("the agent broke the protocol: {0}")]
    Protocol(#[from] ProtocolError),
    /// It sent more than it was allowed to.
    #[error("the agent broke the protocol: {0}")]
    Window(#[from] WindowError),
}

/// A running command.
#[derive(Debug)]
pub struct Exec {
    stream: u32,
    agent: Agent,
}

impl Agent {
    /// Speaks over `socket`. Control messages of the agent go to `control`; the future that is returned runs the
    /// connection and ends with the reason for its end.
    pub fn open(
        socket: UnixStream,
        control: mpsc::Sender<ToHost>,
    ) -> (Self, impl Future<Output = AgentError>) {
        let (reader, writer) = socket.into_split();
        let (outbox, frames) = mpsc::channel(OUTBOX);
        let agent = Self {
            outbox,
            streams: Arc::default(),
        };
        let streams = Arc::clone(&agent.streams);
        let connection = async move {
            let error = tokio::select! {
                error = read(reader, &streams, &control) => error,
                error = write(writer, frames) => error,
            };
            let mut streams = lock(&streams);
            streams.closed = true;
            streams.open.clear();
            error
        };
        (agent, connection)
    }

    /// Sends a control message. It is lost if the connection ends, which its owner learns anyway.
    pub async fn send(&self, message: &ToAgent) {
        let mut frames = Vec::new();
        // Too long it cannot be: descriptions are checked when they are made, commands by the API.
        if encode_control(&mut frames, message).is_ok() {
            self.post(frames).await;
        }
    }

    async fn post(&self, frames: Vec<u8>) {
        let _ = self.outbox.send(frames).await;
    }

    /// Starts a command; `None` if the connection has ended.
    pub async fn exec(
        &self,
        argv: Vec<String>,
        env: Vec<(String, String)>,
        cwd: Option<String>,
        tty: Option<WindowSize>,
    ) -> Option<(Exec, mpsc::UnboundedReceiver<ExecEvent>)> {
        let (sender, events) = mpsc::unbounded_channel();
        let stream = lock(&self.streams).add(sender)?;
        let request = ToAgent::Exec {
            stream,
            argv,
            env,
            cwd,
            tty,
        };
        self.send(&request).await;
        let agent = self.clone();
        Some((Exec { stream, agent }, events))
    }
}

impl Exec {
    /// Bytes for its standard input, within the window; none are its end.
    pub async fn stdin(&self, data: &[u8]) {
        let mut frames = Vec::new();
        encode_data(&mut frames, Kind::Stdin, self.stream, data);
        self.agent.post(frames).await;
    }

    /// A signal for its process group.
    pub async fn signal(&self, signal: i32) {
        let stream = self.stream;
        self.agent.send(&ToAgent::Signal { stream, signal }).await;
    }

    /// A new size for its terminal.
    pub async fn resize(&self, size: WindowSize) {
        let stream = self.stream;
        self.agent.send(&ToAgent::Resize { stream, size }).await;
    }

    /// So many bytes of output have been passed on: the agent may send as many again.
    pub async fn grant(&self, bytes: usize) {
        let credit = lock(&self.agent.streams)
            .open
            .get_mut(&self.stream)
            .and_then(|stream| stream.window.consumed(bytes));
        if let Some(credit) = credit {
            let mut frame = Vec::new();
            encode_credit(&mut frame, self.stream, credit);
            self.agent.post(frame).await;
        }
    }
}

impl Streams {
    fn add(&mut self, events: mpsc::UnboundedSender<ExecEvent>) -> Option<u32> {
        if self.closed {
            return None;
        }
        loop {
            self.last = if self.last >= MAX_STREAM {
                1
            } else {
                self.last + 1
            };
            if !self.open.contains_key(&self.last) {
                let window = ReceiveWindow::default();
                self.open.insert(self.last, Stream { events, window });
                return Some(self.last);
            }
        }
    }

    fn take(&mut self, message: Incoming<ToHost>) -> Result<Option<ToHost>, AgentError> {
        match message {
            Incoming::Control(ToHost::ExecFailed {
                stream,
                message,
                status,
            }) => {
                self.finish(stream, ExecEvent::Failed { message, status });
            }
            Incoming::Control(ToHost::Exited { stream, status }) => {
                self.finish(stream, ExecEvent::Exited(status));
            }
            Incoming::Control(message) => return Ok(Some(message)),
            Incoming::Data {
                kind,
                stream,
                bytes,
            } => {
                if let Some(open) = self.open.get_mut(&stream) {
                    open.window.received(bytes.len())?;
                    let event = match kind {
                        Kind::Stderr => ExecEvent::Stderr(bytes),
                        _ => ExecEvent::Stdout(bytes),
                    };
                    // The command's client may be gone.
                    let _ = open.events.send(event);
                }
            }
            Incoming::Credit { stream, bytes } => {
                if let Some(open) = self.open.get(&stream) {
                    let _ = open.events.send(ExecEvent::Credit(bytes));
                }
            }
        }
        Ok(None)
    }

    fn finish(&mut self, stream: u32, last: ExecEvent) {
        if let Some(open) = self.open.remove(&stream) {
            let _ = open.events.send(last);
        }
    }
}

fn lock(streams: &Mutex<Streams>) -> MutexGuard<'_, Streams> {
    streams.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn write(mut to: impl AsyncWrite + Unpin, mut frames: mpsc::Receiver<Vec<u8>>) -> AgentError {
    while let Some(frame) = frames.recv().await {
        if let Err(error) = to.write_all(&frame).await {
            return error.into();
        }
    }
    std::io::Error::from(std::io::ErrorKind::NotConnected).into()
}

async fn read(
    from: impl AsyncRead + Unpin,
    streams: &Mutex<Streams>,
    control: &mpsc::Sender<ToHost>,
) -> AgentError {
    match read_all(from, streams, control).await {
        Ok(()) => std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into(),
        Err(error) => error,
    }
}

async fn read_all(
    mut from: impl AsyncRead + Unpin,
    streams: &Mutex<Streams>,
    control: &mpsc::Sender<ToHost>,
) -> Result<(), AgentError> {
    let mut receiver = Receiver::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        receiver.push(&buffer[..length]);
        while let Some(message) = receiver.next()? {
            let message = lock(streams).take(message)?;
            if let Some(message) = message {
                // The owner has closed its end only if it drops the connection too.
                let _ = control.send(message).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_protocol::{ExitStatus, INITIAL_WINDOW, MAX_PAYLOAD};

    struct Peer {
        socket: UnixStream,
        receiver: Receiver<ToAgent>,
        agent: Agent,
        control: mpsc::Receiver<ToHost>,
        ended: tokio::task::JoinHandle<AgentError>,
    }

    fn peer() -> Peer {
        let (host, socket) = UnixStream::pair().unwrap();
        let (sender, control) = mpsc::channel(4);
        let (agent, connection) = Agent::open(host, sender);
        let ended = tokio::spawn(connection);
        Peer {
            socket,
            receiver: Receiver::new(),
            agent,
            control,
            ended,
        }
    }

    impl Peer {
        async fn say(&mut self, kind: Kind, stream: u32, payload: &[u8]) {
            let mut frames = Vec::new();
            encode_data(&mut frames, kind, stream, payload);
            self.socket.write_all(&frames).await.unwrap();
        }

        async fn tell(&mut self, message: &ToHost) {
            let mut frames = Vec::new();
            encode_control(&mut frames, message).unwrap();
            self.socket.write_all(&frames).await.unwrap();
        }

        async fn hear(&mut self) -> Incoming<ToAgent> {
            let mut buffer = [0; 1024];
            loop {
                if let Some(message) = self.receiver.next().unwrap() {
                    return message;
                }
                let length = self.socket.read(&mut buffer).await.unwrap();
                self.receiver.push(&buffer[..length]);
            }
        }

        async fn exec(&mut self) -> (Exec, mpsc::UnboundedReceiver<ExecEvent>) {
            let exec = self
                .agent
                .exec(vec!["true".into()], vec![], None, None)
                .await
                .unwrap();
            assert!(matches!(
                self.hear().await,
                Incoming::Control(ToAgent::Exec { .. })
            ));
            exec
        }
    }

    #[tokio::test]
    async fn output_and_exit_status_arrive_in_order() {
        let mut peer = peer();
        let (exec, mut events) = peer.exec().await;
        peer.say(Kind::Stdout, exec.stream, b"out").await;
        peer.say(Kind::Stderr, exec.stream, b"err").await;
        let (stream, status) = (exec.stream, ExitStatus::Signal(9));
        peer.tell(&ToHost::Exited { stream, status }).await;
        assert_eq!(
            events.recv().await,
            Some(ExecEvent::Stdout(b"out".to_vec()))
        );
        assert_eq!(
            events.recv().await,
            Some(ExecEvent::Stderr(b"err".to_vec()))
        );
        assert_eq!(events.recv().await, Some(ExecEvent::Exited(status)));
        assert_eq!(events.recv().await, None);
    }

    #[tokio::test]
    async fn an_agent_may_send_again_what_was_passed_on_and_no_more() {
        let mut peer = peer();
        let (exec, mut events) = peer.exec().await;
        let window = vec![0; INITIAL_WINDOW as usize];
        peer.say(Kind::Stdout, exec.stream, &window).await;
        exec.grant(window.len() / 2).await;
        let Incoming::Credit { bytes, .. } = peer.hear().await else {
            panic!("no credit");
        };
        assert_eq!(bytes, INITIAL_WINDOW / 2);
        peer.say(Kind::Stderr, exec.stream, &window[..bytes as usize])
            .await;
        peer.say(Kind::Stdout, exec.stream, b"1").await;
        assert!(matches!(peer.ended.await.unwrap(), AgentError::Window(_)));
        let mut length = 0;
        while let Some(event) = events.recv().await {
            length += match event {
                ExecEvent::Stdout(data) | ExecEvent::Stderr(data) => data.len(),
                other => panic!("{other:?}"),
            };
        }
        assert_eq!(length, window.len() * 3 / 2);
        assert!(peer.agent.exec(vec![], vec![], None, None).await.is_none());
    }

    #[tokio::test]
    async fn nonsense_ends_the_connection() {
        let mut unheard_of = Vec::new();
        encode_control(&mut unheard_of, &serde_json::json!({"type": "unheard-of"})).unwrap();
        for nonsense in [unheard_of, vec![0xff; 8]] {
            let mut peer = peer();
            peer.socket.write_all(&nonsense).await.unwrap();
            assert!(matches!(peer.ended.await.unwrap(), AgentError::Protocol(_)));
        }
    }

    #[tokio::test]
    async fn what_crosses_the_end_of_a_command_is_ignored() {
        let mut peer = peer();
        peer.say(Kind::Stdout, 77, b"late").await;
        peer.tell(&ToHost::Configured).await;
        assert_eq!(peer.control.recv().await, Some(ToHost::Configured));
    }

    #[tokio::test]
    async fn standard_input_arrives_whole_and_ends() {
        let mut peer = peer();
        let (exec, _events) = peer.exec().await;
        let sent = vec![7; MAX_PAYLOAD + 1];
        let ((), heard) = tokio::join!(
            async {
                exec.stdin(&sent).await;
                exec.stdin(&[]).await;
            },
            async {
                let mut heard = Vec::new();
                loop {
                    match peer.hear().await {
                        Incoming::Data { bytes, .. } if bytes.is_empty() => return heard,
                        Incoming::Data { bytes, .. } => heard.extend(bytes),
                        other => panic!("{other:?}"),
                    }
                }
            }
        );
        assert_eq!(heard, sent);
    }

    #[tokio::test]
    async fn the_end_of_the_guest_ends_the_connection() {
        let peer = peer();
        drop(peer.socket);
        assert!(matches!(peer.ended.await.unwrap(), AgentError::Io(_)));
    }
}
