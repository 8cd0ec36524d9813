//! Frames: bytes to messages and back.

use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Kind, MAX_CONTROL, MAX_PAYLOAD, MAX_STREAM};

const HEADER: usize = 8;

/// What a [`Receiver`] has made of the bytes.
#[derive(Debug, Clone, PartialEq)]
pub enum Incoming<M> {
    /// A control message.
    Control(M),
    /// Bytes of a stream.
    Data {
        /// [`Kind::Stdin`], [`Kind::Stdout`] or [`Kind::Stderr`].
        kind: Kind,
        /// 1 to [`MAX_STREAM`].
        stream: u32,
        /// At most [`MAX_PAYLOAD`].
        bytes: Vec<u8>,
    },
    /// The other side will take more of a stream.
    Credit {
        /// 1 to [`MAX_STREAM`].
        stream: u32,
        /// Bytes.
        bytes: u32,
    },
}

/// What is wrong with the bytes. After one, nothing on this connection can be trusted: close it.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// A frame longer than [`MAX_PAYLOAD`].
    #[error("a frame of {0} bytes; at most {MAX_PAYLOAD} are allowed")]
    FrameTooLong(usize),
    /// A control message longer than [`MAX_CONTROL`].
    #[error("a control message of more than {MAX_CONTROL} bytes")]
    ControlTooLong,
    /// A kind of frame that does not exist.
    #[error("a frame of unknown kind {0}")]
    UnknownKind(u8),
    /// Control on a data stream, or data on stream 0.
    #[error("a frame of kind {kind:?} on stream {stream}")]
    WrongStream {
        /// What it carried.
        kind: Kind,
        /// Where.
        stream: u32,
    },
    /// A credit that is not four bytes.
    #[error("a credit of {0} bytes; four are right")]
    CreditLength(usize),
    /// JSON that is none, or not of a message.
    #[error("a control message that cannot be understood: {0}")]
    Control(#[from] serde_json::Error),
}

/// Takes a byte stream apart.
///
/// Memory is bounded by what is pushed between two calls of [`Receiver::next`] that return `None`,
/// [`MAX_PAYLOAD`] and [`MAX_CONTROL`].
#[derive(Debug)]
pub struct Receiver<M> {
    buffer: Vec<u8>,
    /// Bytes of `buffer` already taken.
    taken: usize,
    /// Parts of a control message that is not complete.
    control: Vec<u8>,
    message: PhantomData<M>,
}

impl<M> Default for Receiver<M> {
    fn default() -> Self {
        Self {
            buffer: Vec::new(),
            taken: 0,
            control: Vec::new(),
            message: PhantomData,
        }
    }
}

impl<M: DeserializeOwned> Receiver<M> {
    /// At the start of a connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes as they came. Call [`Receiver::next`] until it returns `None` before adding more.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next message, or `None` until more bytes have come.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator that can go on after None confuses"
    )]
    pub fn next(&mut self) -> Result<Option<Incoming<M>>, ProtocolError> {
        loop {
            let Some((header, rest)) = self.buffer[self.taken..].split_first_chunk::<HEADER>()
            else {
                return Ok(None);
            };
            let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
            let stream = u32::from_le_bytes([header[4], header[5], header[6], 0]);
            let kind = kind(header[7])?;
            if length > MAX_PAYLOAD {
                return Err(ProtocolError::FrameTooLong(length));
            }
            if matches!(kind, Kind::Control | Kind::ControlPart) != (stream == 0) {
                return Err(ProtocolError::WrongStream { kind, stream });
            }
            let Some(payload) = rest.get(..length) else {
                return Ok(None);
            };
            self.taken += HEADER + length;
            return Ok(Some(match kind {
                Kind::Control | Kind::ControlPart => {
                    if self.control.len() + length > MAX_CONTROL {
                        return Err(ProtocolError::ControlTooLong);
                    }
                    self.control.extend_from_slice(payload);
                    if kind == Kind::ControlPart {
                        continue;
                    }
                    let message = serde_json::from_slice(&self.control)?;
                    self.control = Vec::new();
                    Incoming::Control(message)
                }
                Kind::Stdin | Kind::Stdout | Kind::Stderr => Incoming::Data {
                    kind,
                    stream,
                    bytes: payload.to_vec(),
                },
                Kind::Credit => Incoming::Credit {
                    stream,
                    bytes: u32::from_le_bytes(
                        payload
                            .try_into()
                            .map_err(|_| ProtocolError::CreditLength(length))?,
                    ),
                },
            }));
        }
    }
}

fn kind(byte: u8) -> Result<Kind, ProtocolError> {
    Ok(match byte {
        0 => Kind::Control,
        1 => Kind::Stdin,
        2 => Kind::Stdout,
        3 => Kind::Stderr,
        4 => Kind::Credit,
        5 => Kind::ControlPart,
        other => return Err(ProtocolError::UnknownKind(other)),
    })
}

fn encode(out: &mut Vec<u8>, kind: Kind, stream: u32, payload: &[u8]) {
    let [a, b, c, _] = stream.to_le_bytes();
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&[a, b, c, kind as u8]);
    out.extend_from_slice(payload);
}

/// Appends a control message to `out`. Fails, with nothing appended, if it is longer than [`MAX_CONTROL`].
pub fn encode_control<M: Serialize>(out: &mut Vec<u8>, message: &M) -> Result<(), ProtocolError> {
    let json = serde_json::to_vec(message)?;
    if json.len() > MAX_CONTROL {
        return Err(ProtocolError::ControlTooLong);
    }
    let mut rest = json.as_slice();
    while let Some((part, more)) = rest
        .split_at_checked(MAX_PAYLOAD)
        .filter(|(_, m)| !m.is_empty())
    {
        encode(out, Kind::ControlPart, 0, part);
        rest = more;
    }
    encode(out, Kind::Control, 0, rest);
    Ok(())
}

/// Appends bytes of a stream to `out`, in as many frames as they take; none at all is one empty frame.
///
/// # Panics
///
/// If `kind` does not carry data, or `stream` is 0 or above [`MAX_STREAM`].
pub fn encode_data(out: &mut Vec<u8>, kind: Kind, stream: u32, bytes: &[u8]) {
    assert!(
        matches!(kind, Kind::Stdin | Kind::Stdout | Kind::Stderr),
        "{kind:?} carries no data"
    );
    assert!(
        (1..=MAX_STREAM).contains(&stream),
        "no such stream: {stream}"
    );
    if bytes.is_empty() {
        encode(out, kind, stream, bytes);
    }
    for part in bytes.chunks(MAX_PAYLOAD) {
        encode(out, kind, stream, part);
    }
}

/// Appends a credit to `out`.
///
/// # Panics
///
/// If `stream` is 0 or above [`MAX_STREAM`].
pub fn encode_credit(out: &mut Vec<u8>, stream: u32, bytes: u32) {
    assert!(
        (1..=MAX_STREAM).contains(&stream),
        "no such stream: {stream}"
    );
    encode(out, Kind::Credit, stream, &bytes.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{FileDescription, NodeDescription, ToAgent, ToHost};

    fn all<M: DeserializeOwned>(
        receiver: &mut Receiver<M>,
        bytes: &[u8],
    ) -> Result<Vec<Incoming<M>>, ProtocolError> {
        receiver.push(bytes);
        let mut messages = Vec::new();
        while let Some(message) = receiver.next()? {
            messages.push(message);
        }
        Ok(messages)
    }

    fn frame(length: u32, stream: u32, kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend_from_slice(&stream.to_le_bytes()[..3]);
        bytes.push(kind);
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn the_wire_format_is_what_the_documentation_says() {
        let mut bytes = Vec::new();
        encode_data(&mut bytes, Kind::Stdout, 0x0003_0201, b"hi");
        assert_eq!(bytes, [2, 0, 0, 0, 1, 2, 3, 2, b'h', b'i']);
        bytes.clear();
        encode_control(&mut bytes, &ToAgent::Ping).unwrap();
        assert_eq!(&bytes[..8], [15, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&bytes[8..], br#"{"type":"ping"}"#);
    }

    #[test]
    fn a_long_control_message_takes_several_frames() {
        let message = ToAgent::Configure(Box::new(NodeDescription {
            files: vec![FileDescription {
                path: "/a".into(),
                content: "x".repeat(3 * MAX_PAYLOAD),
                mode: 0o644,
            }],
            ..NodeDescription::default()
        }));
        let mut bytes = Vec::new();
        encode_control(&mut bytes, &message).unwrap();
        encode_control(&mut bytes, &ToAgent::Ping).unwrap();
        assert_eq!(
            all(&mut Receiver::new(), &bytes).unwrap(),
            [Incoming::Control(message), Incoming::Control(ToAgent::Ping)]
        );
    }

    #[test]
    fn control_of_exactly_one_payload_is_one_frame() {
        let overhead = serde_json::to_vec(&ToHost::Failed {
            message: String::new(),
        })
        .unwrap()
        .len();
        let message = ToHost::Failed {
            message: "x".repeat(MAX_PAYLOAD - overhead),
        };
        let mut bytes = Vec::new();
        encode_control(&mut bytes, &message).unwrap();
        assert_eq!(bytes.len(), HEADER + MAX_PAYLOAD);
        assert_eq!(
            all(&mut Receiver::new(), &bytes).unwrap(),
            [Incoming::Control(message)]
        );
    }

    #[test]
    fn endless_control_is_refused() {
        let part = frame(MAX_PAYLOAD as u32, 0, 5, &vec![b' '; MAX_PAYLOAD]);
        let mut receiver = Receiver::<ToHost>::new();
        let refused = (0..=MAX_CONTROL / MAX_PAYLOAD).find_map(|_| all(&mut receiver, &part).err());
        assert!(matches!(refused, Some(ProtocolError::ControlTooLong)));
    }

    #[test]
    fn bad_frames_are_refused() {
        let check = |bytes: &[u8]| all(&mut Receiver::<ToHost>::new(), bytes).unwrap_err();
        assert!(
            matches!(check(&frame(MAX_PAYLOAD as u32 + 1, 1, 2, &[])), ProtocolError::FrameTooLong(n) if n == MAX_PAYLOAD + 1)
        );
        assert!(matches!(
            check(&frame(0, 1, 9, &[])),
            ProtocolError::UnknownKind(9)
        ));
        assert!(matches!(
            check(&frame(0, 0, 2, &[])),
            ProtocolError::WrongStream {
                kind: Kind::Stdout,
                stream: 0
            }
        ));
        assert!(matches!(
            check(&frame(0, 7, 0, &[])),
            ProtocolError::WrongStream {
                kind: Kind::Control,
                stream: 7
            }
        ));
        assert!(matches!(
            check(&frame(3, 7, 4, &[0; 3])),
            ProtocolError::CreditLength(3)
        ));
        assert!(matches!(
            check(&frame(2, 0, 0, b"{}")),
            ProtocolError::Control(_)
        ));
    }

    fn some_messages() -> impl Strategy<Value = Vec<Incoming<ToHost>>> {
        let stream = 1..=MAX_STREAM;
        prop::collection::vec(
            prop_oneof![
                Just(Incoming::Control(ToHost::Pong)),
                ".{0,200}".prop_map(|message| Incoming::Control(ToHost::Failed { message })),
                (
                    stream.clone(),
                    prop::collection::vec(any::<u8>(), 0..300),
                    prop_oneof![Just(Kind::Stdout), Just(Kind::Stderr)]
                )
                    .prop_map(|(stream, bytes, kind)| Incoming::Data {
                        kind,
                        stream,
                        bytes
                    }),
                (stream, any::<u32>())
                    .prop_map(|(stream, bytes)| Incoming::Credit { stream, bytes }),
            ],
            0..20,
        )
    }

    proptest! {
        #[test]
        fn what_is_sent_arrives_however_it_is_cut(messages in some_messages(), cuts in prop::collection::vec(1usize..50, 1..40)) {
            let mut bytes = Vec::new();
            for message in &messages {
                match message {
                    Incoming::Control(message) => encode_control(&mut bytes, message).unwrap(),
                    Incoming::Data { kind, stream, bytes: data } => encode_data(&mut bytes, *kind, *stream, data),
                    Incoming::Credit { stream, bytes: n } => encode_credit(&mut bytes, *stream, *n),
                }
            }
            let mut receiver = Receiver::new();
            let mut arrived = Vec::new();
            let mut rest = bytes.as_slice();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                arrived.extend(all(&mut receiver, now).unwrap());
                rest = later;
            }
            prop_assert_eq!(arrived, messages);
        }

        #[test]
        fn any_bytes_give_messages_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let mut receiver = Receiver::<ToAgent>::new();
            let _ = all(&mut receiver, &bytes);
            prop_assert!(receiver.buffer.len() <= bytes.len());
        }
    }
}
