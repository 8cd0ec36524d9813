//! What changes in the lab, as server-sent events.

use std::convert::Infallible;

use axum::extract::State as Shared;
use axum::response::sse::{self, KeepAlive, Sse};
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::Api;
use super::types::{Change, Event, Phase};

/// Follow what changes
///
/// Server-sent events, an `Event` in the data of each: a snapshot, then every change until the lab has ended. A reader that
/// is too slow misses records, and is told how many.
#[utoipa::path(
    get, path = "/v1/events", tag = "lab",
    responses((status = 200, description = "The stream", body = Event, content_type = "text/event-stream")),
)]
pub async fn events(
    Shared(api): Shared<Api>,
) -> Sse<impl Stream<Item = Result<sse::Event, Infallible>>> {
    let (snapshot, changes) = api.state.subscribe();
    let events = stream::once(async { snapshot }).chain(follow(changes));
    Sse::new(events.map(|event| Ok(encode(&event)))).keep_alive(KeepAlive::default())
}

fn follow(changes: Receiver<Event>) -> impl Stream<Item = Event> {
    stream::unfold(Some(changes), async |changes| {
        let mut changes = changes?;
        match changes.recv().await {
            Ok(event) => {
                let last = matches!(
                    event.change,
                    Change::Lab {
                        phase: Phase::Ended,
                        ..
                    }
                );
                Some((event, (!last).then_some(changes)))
            }
            Err(RecvError::Lagged(count)) => {
                let change = Change::Lost { count };
                Some((Event { at_ms: 0, change }, Some(changes)))
            }
            Err(RecvError::Closed) => None,
        }
    })
}

fn encode(event: &Event) -> sse::Event {
    // JSON of these types cannot fail; an empty event would be skipped by every reader.
    sse::Event::default().json_data(event).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use tokio::sync::broadcast;

    use super::*;

    fn notice(at_ms: u64) -> Event {
        let change = Change::Notice {
            node: None,
            message: String::new(),
        };
        Event { at_ms, change }
    }

    #[tokio::test]
    async fn a_slow_reader_is_told_how_many_it_missed_and_holds_nobody_up() {
        let (sender, receiver) = broadcast::channel(2);
        for at_ms in 1..=7 {
            sender.send(notice(at_ms)).unwrap();
        }
        let ended = Change::Lab {
            phase: Phase::Ended,
            failure: None,
        };
        let change = ended.clone();
        sender.send(Event { at_ms: 8, change }).unwrap();
        let read: Vec<_> = follow(receiver).collect().await;
        let lost = Change::Lost { count: 6 };
        assert_eq!(
            read,
            [
                Event {
                    at_ms: 0,
                    change: lost
                },
                notice(7),
                Event {
                    at_ms: 8,
                    change: ended
                },
            ]
        );
    }
}
