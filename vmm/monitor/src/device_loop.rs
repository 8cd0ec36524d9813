//! The thread that serves the in-process devices: disk, console, random numbers.

use std::io;
use std::sync::{Arc, Mutex};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};

use crate::error::Error;
use crate::warn::warn;
use jail::filter::Confine;

/// A device as the loop sees it.
pub type Subscriber = Arc<Mutex<dyn MutEventSubscriber + Send>>;

/// Serves `devices` for as long as the process lives.
pub fn spawn(devices: Vec<Subscriber>, confine: Confine) -> Result<(), Error> {
    let fail = |what| {
        move |e: event_manager::Error| Error::System {
            what,
            source: io::Error::other(e.to_string()),
        }
    };
    let mut manager = EventManager::<Subscriber>::new().map_err(fail("create the device loop"))?;
    for device in devices {
        manager.add_subscriber(device);
    }
    std::thread::Builder::new()
        .name("devices".into())
        .spawn(move || {
            confine.this_thread();
            loop {
                if let Err(error) = manager.run() {
                    warn(format_args!("the device loop failed: {error}"));
                }
            }
        })
        .map(drop)
        .map_err(Error::system("start the device thread"))
}
