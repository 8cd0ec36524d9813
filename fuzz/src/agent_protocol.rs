//! What a hostile guest sends over the agent's port: bytes that the lab takes apart, in pieces of any size, and flow control that it may not
//! cheat. However it is cut, a stream says the same.

use std::collections::HashMap;

use agent_protocol::{
    INITIAL_WINDOW, Incoming, Kind, MAX_PAYLOAD, ReceiveWindow, Receiver, SendWindow, ToHost,
    encode_control,
};

/// Runs one input: how long pieces are, and the stream.
pub fn run(bytes: &[u8]) {
    let Some((size, stream)) = bytes.split_first() else {
        return;
    };
    let whole = take(stream, stream.len().max(1));
    let cut = take(stream, usize::from(*size).max(1));
    assert_eq!(whole, cut, "it depends on how the stream is cut");
}

/// All that a stream says, up to the first thing that is wrong, which is told as its last.
fn take(stream: &[u8], size: usize) -> Vec<String> {
    let mut receiver = Receiver::<ToHost>::new();
    let mut said = Vec::new();
    let mut windows: HashMap<u32, (SendWindow, ReceiveWindow)> = HashMap::new();
    for piece in stream.chunks(size) {
        receiver.push(piece);
        loop {
            let incoming = match receiver.next() {
                Ok(Some(incoming)) => incoming,
                Ok(None) => break,
                Err(error) => {
                    said.push(format!("error: {error}"));
                    return said;
                }
            };
            said.push(match incoming {
                Incoming::Control(message) => {
                    again(&message);
                    format!("{message:?}")
                }
                Incoming::Data {
                    kind,
                    stream,
                    bytes,
                } => {
                    assert!(bytes.len() <= MAX_PAYLOAD && stream != 0);
                    assert!(matches!(kind, Kind::Stdin | Kind::Stdout | Kind::Stderr));
                    let (_, window) = windows.entry(stream).or_default();
                    let taken = window.received(bytes.len());
                    // Half of it is consumed at once, the other half never.
                    let credit = taken.is_ok().then(|| window.consumed(bytes.len() / 2));
                    assert!(
                        credit
                            .flatten()
                            .is_none_or(|credit| credit <= INITIAL_WINDOW)
                    );
                    format!("{kind:?} {stream} {bytes:?} {taken:?} {credit:?}")
                }
                Incoming::Credit { stream, bytes } => {
                    let (window, _) = windows.entry(stream).or_default();
                    let before = window.available();
                    let granted = window.granted(bytes);
                    if granted.is_ok() {
                        assert_eq!(window.available(), before + bytes as usize);
                    } else {
                        assert_eq!(window.available(), before, "no more than before");
                    }
                    format!("credit {stream} {bytes} {granted:?}")
                }
            });
        }
    }
    said
}

/// A message that was understood can be said again, and is understood as the same.
fn again(message: &ToHost) {
    let mut bytes = Vec::new();
    if encode_control(&mut bytes, message).is_err() {
        return;
    }
    let mut receiver = Receiver::<ToHost>::new();
    receiver.push(&bytes);
    match receiver.next() {
        Ok(Some(Incoming::Control(same))) => {
            assert_eq!(format!("{same:?}"), format!("{message:?}"));
        }
        other => panic!("{message:?} became {other:?}"),
    }
}
