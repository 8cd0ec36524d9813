//! The connection to the agent of a node: control messages, and the streams of running commands.
//!
//! What arrives comes from a guest: a frame that breaks the protocol ends the connection.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agent_protocol::{INITIAL_WINDOW, Kind, MAX_PAYLOAD, ToAgent, ToHost, WindowSize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

/// Frames waiting for the guest to take them.
const OUTBOX: usize = 64;

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
    /// Bytes of output the agent may still send; bounds what waits in `events`.
    window: u64,
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
    /// A frame made no sense.
    #[error("the agent broke the protocol: {0}")]
    Protocol(String),
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
        if let Ok(payload) = serde_json::to_vec(message) {
            self.frame(Kind::Control, 0, &payload).await;
        }
    }

    async fn frame(&self, kind: Kind, stream: u32, payload: &[u8]) {
        let _ = self.outbox.send(encode(kind, stream, payload)).await;
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
    /// Bytes for its standard input, within the window.
    pub async fn stdin(&self, data: &[u8]) {
        for chunk in data.chunks(MAX_PAYLOAD) {
            self.agent.frame(Kind::Stdin, self.stream, chunk).await;
        }
    }

    /// End of its standard input.
    pub async fn stdin_end(&self) {
        self.agent.frame(Kind::Stdin, self.stream, &[]).await;
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

    /// Output has been passed on: the agent may send as much again.
    pub async fn grant(&self, bytes: u32) {
        // Counted first: the agent may use the credit before this task runs again.
        if let Some(stream) = lock(&self.agent.streams).open.get_mut(&self.stream) {
            stream.window += u64::from(bytes);
        }
        self.agent
            .frame(Kind::Credit, self.stream, &bytes.to_le_bytes())
            .await;
    }
}

impl Streams {
    fn add(&mut self, events: mpsc::UnboundedSender<ExecEvent>) -> Option<u32> {
        if self.closed {
            return None;
        }
        loop {
            self.last = if self.last >= 0xff_ffff {
                1
            } else {
                self.last + 1
            };
            if !self.open.contains_key(&self.last) {
                let window = u64::from(INITIAL_WINDOW);
                self.open.insert(self.last, Stream { events, window });
                return Some(self.last);
            }
        }
    }

    fn output(&mut self, stream: u32, length: usize, event: ExecEvent) -> Result<(), AgentError> {
        let open = self.stream(stream)?;
        open.window = open.window.checked_sub(length as u64).ok_or_else(|| {
            AgentError::Protocol(format!(
                "stream {stream} has more output than its window allows"
            ))
        })?;
        // The command's client may be gone.
        let _ = open.events.send(event);
        Ok(())
    }

    fn stream(&mut self, stream: u32) -> Result<&mut Stream, AgentError> {
        self.open
            .get_mut(&stream)
            .ok_or_else(|| AgentError::Protocol(format!("there is no stream {stream}")))
    }

    fn finish(&mut self, stream: u32, last: ExecEvent) -> Result<(), AgentError> {
        let _ = self.stream(stream)?.events.send(last);
        self.open.remove(&stream);
        Ok(())
    }
}

fn lock(streams: &Mutex<Streams>) -> MutexGuard<'_, Streams> {
    streams.lock().unwrap_or_else(PoisonError::into_inner)
}

fn encode(kind: Kind, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(8 + payload.len());
    frame.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    frame.extend_from_slice(&(stream | (kind as u32) << 24).to_le_bytes());
    frame.extend_from_slice(payload);
    frame
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
    mut from: impl AsyncRead + Unpin,
    streams: &Mutex<Streams>,
    control: &mpsc::Sender<ToHost>,
) -> AgentError {
    loop {
        if let Err(error) = read_frame(&mut from, streams, control).await {
            return error;
        }
    }
}

async fn read_frame(
    from: &mut (impl AsyncRead + Unpin),
    streams: &Mutex<Streams>,
    control: &mpsc::Sender<ToHost>,
) -> Result<(), AgentError> {
    let length = from.read_u32_le().await? as usize;
    let word = from.read_u32_le().await?;
    let (stream, kind) = (word & 0xff_ffff, (word >> 24) as u8);
    if length > MAX_PAYLOAD {
        return Err(AgentError::Protocol(format!("a frame of {length} bytes")));
    }
    let mut payload = vec![0; length];
    from.read_exact(&mut payload).await?;
    if kind == Kind::Control as u8 {
        let message: ToHost = serde_json::from_slice(&payload)
            .map_err(|error| AgentError::Protocol(format!("a control message: {error}")))?;
        return match message {
            ToHost::ExecFailed {
                stream,
                message,
                status,
            } => lock(streams).finish(stream, ExecEvent::Failed { message, status }),
            ToHost::Exited { stream, status } => {
                lock(streams).finish(stream, ExecEvent::Exited(status))
            }
            other => {
                // The owner has closed its end only if it drops the connection too.
                let _ = control.send(other).await;
                Ok(())
            }
        };
    }
    if kind == Kind::Stdout as u8 {
        lock(streams).output(stream, length, ExecEvent::Stdout(payload))
    } else if kind == Kind::Stderr as u8 {
        lock(streams).output(stream, length, ExecEvent::Stderr(payload))
    } else if kind == Kind::Credit as u8 {
        let bytes = payload
            .try_into()
            .map(u32::from_le_bytes)
            .map_err(|_| AgentError::Protocol("a credit that is no number".to_owned()))?;
        // Credit may cross the end of its command.
        if let Some(open) = lock(streams).open.get(&stream) {
            let _ = open.events.send(ExecEvent::Credit(bytes));
        }
        Ok(())
    } else {
        Err(AgentError::Protocol(format!("a frame of kind {kind}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_protocol::ExitStatus;

    struct Peer {
        socket: UnixStream,
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
            agent,
            control,
            ended,
        }
    }

    impl Peer {
        async fn say(&mut self, kind: Kind, stream: u32, payload: &[u8]) {
            self.socket
                .write_all(&encode(kind, stream, payload))
                .await
                .unwrap();
        }

        async fn tell(&mut self, message: &ToHost) {
            let payload = serde_json::to_vec(message).unwrap();
            self.say(Kind::Control, 0, &payload).await;
        }

        async fn hear(&mut self) -> (u8, u32, Vec<u8>) {
            let length = self.socket.read_u32_le().await.unwrap();
            let word = self.socket.read_u32_le().await.unwrap();
            let mut payload = vec![0; length as usize];
            self.socket.read_exact(&mut payload).await.unwrap();
            ((word >> 24) as u8, word & 0xff_ffff, payload)
        }

        async fn exec(&mut self) -> (Exec, mpsc::UnboundedReceiver<ExecEvent>) {
            let exec = self
                .agent
                .exec(vec!["true".into()], vec![], None, None)
                .await
                .unwrap();
            assert_eq!(self.hear().await.0, Kind::Control as u8);
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
    async fn an_agent_that_exceeds_its_window_is_cut_off() {
        let mut peer = peer();
        let (exec, mut events) = peer.exec().await;
        let chunk = vec![0; MAX_PAYLOAD];
        let frames = INITIAL_WINDOW as usize / MAX_PAYLOAD;
        for _ in 0..frames {
            peer.say(Kind::Stdout, exec.stream, &chunk).await;
        }
        exec.grant(1).await;
        assert_eq!(
            peer.hear().await,
            (Kind::Credit as u8, exec.stream, vec![1, 0, 0, 0])
        );
        peer.say(Kind::Stdout, exec.stream, b"1").await;
        peer.say(Kind::Stdout, exec.stream, b"2").await;
        assert!(matches!(peer.ended.await.unwrap(), AgentError::Protocol(_)));
        for _ in 0..=frames {
            assert!(matches!(events.recv().await, Some(ExecEvent::Stdout(_))));
        }
        assert_eq!(events.recv().await, None);
        assert!(peer.agent.exec(vec![], vec![], None, None).await.is_none());
    }

    #[tokio::test]
    async fn nonsense_ends_the_connection() {
        for (kind, stream, payload) in [
            (0, 0, &b"{\"type\":\"unheard-of\"}"[..]),
            (9, 1, b""),
            (2, 7, b"x"),
        ] {
            let mut peer = peer();
            peer.socket
                .write_u32_le(payload.len() as u32)
                .await
                .unwrap();
            peer.socket.write_u32_le(stream | kind << 24).await.unwrap();
            peer.socket.write_all(payload).await.unwrap();
            assert!(
                matches!(peer.ended.await.unwrap(), AgentError::Protocol(_)),
                "{kind}"
            );
        }
        let mut peer = peer();
        peer.socket.write_u64_le(u64::from(u32::MAX)).await.unwrap();
        assert!(matches!(peer.ended.await.unwrap(), AgentError::Protocol(_)));
    }

    #[tokio::test]
    async fn standard_input_is_cut_into_frames_and_ended() {
        let mut peer = peer();
        let (exec, _events) = peer.exec().await;
        let data = vec![7; MAX_PAYLOAD + 1];
        let (_, heard) = tokio::join!(
            async {
                exec.stdin(&data).await;
                exec.stdin_end().await;
            },
            async {
                let mut lengths = Vec::new();
                for _ in 0..3 {
                    let (kind, _, payload) = peer.hear().await;
                    assert_eq!(kind, Kind::Stdin as u8);
                    lengths.push(payload.len());
                }
                lengths
            }
        );
        assert_eq!(heard, [MAX_PAYLOAD, 1, 0]);
    }

    #[tokio::test]
    async fn control_messages_reach_the_owner() {
        let mut peer = peer();
        peer.tell(&ToHost::Configured).await;
        assert_eq!(peer.control.recv().await, Some(ToHost::Configured));
        drop(peer.socket);
        assert!(matches!(peer.ended.await.unwrap(), AgentError::Io(_)));
    }
}
