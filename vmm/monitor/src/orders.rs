//! What the lab asks of a monitor while its guest runs.

use std::io::{BufRead, Read};
use std::sync::Arc;

use crate::config::Order;
use crate::error::Error;
use crate::pci::Bus;
use crate::pio::Ports;
use crate::virtio::net::Carrier;
use crate::warn::warn;
use jail::filter::Confine;

/// The most bytes an order may have.
const MAX_ORDER: u64 = 1024;

/// Does what `orders` says, a line each, on a thread of its own until they end. What is typed is for the serial port among the `ports`. The NICs' carriers are in order, the first
/// is at place `first_nic` of the bus.
pub fn obey(
    mut orders: impl BufRead + Send + 'static,
    carriers: Vec<Carrier>,
    first_nic: usize,
    bus: Arc<Bus>,
    ports: Arc<Ports>,
    confine: Confine,
) -> Result<(), Error> {
    let work = move || {
        confine.this_thread();
        let mut line = Vec::new();
        loop {
            line.clear();
            match orders.by_ref().take(MAX_ORDER).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            match serde_json::from_slice(&line) {
                Ok(Order::Carrier { nic, up }) => match carriers.get(nic) {
                    Some(carrier) if carrier.set(up) => bus.config_changed(first_nic + nic),
                    Some(_) => {}
                    None => warn(format_args!(
                        "there is no NIC {nic} whose carrier could change"
                    )),
                },
                Ok(Order::Serial { bytes }) => ports.input(&bytes),
                Err(error) => warn(format_args!("not an order: {error}")),
            }
        }
    };
    std::thread::Builder::new()
        .name("orders".into())
        .spawn(work)
        .map(drop)
        .map_err(Error::system("start the thread that takes orders"))
}
