//! A guest that does anything to its PCI devices: configuration space, registers, MSI-X tables, rings, in any order.

use std::io::{Read, Write};

use arbitrary::{Arbitrary, Unstructured};
use monitor::fuzzing::Bench;

use crate::all;
use crate::machine::{self, Descriptor, Queue};

#[derive(Debug, Arbitrary)]
enum Step {
    Config {
        device: u8,
        register: u16,
        access: Access,
    },
    Register {
        device: u8,
        offset: u16,
        access: Access,
    },
    Anywhere {
        address: u32,
        access: Access,
    },
    SetUp {
        device: u8,
        features: u32,
        log2_size: u8,
    },
    Memory {
        at: u32,
        bytes: [u8; 8],
    },
    Descriptor {
        device: u8,
        queue: u8,
        n: u8,
        descriptor: Descriptor,
    },
    Chain {
        device: u8,
        queue: u8,
        chain: [Descriptor; 3],
        writable: u8,
    },
    Offer {
        device: u8,
        queue: u8,
        head: u16,
    },
    Index {
        device: u8,
        queue: u8,
        index: u16,
    },
    Notify {
        device: u8,
        queue: u8,
    },
    Serve,
    /// The lab writes to the agent and reads what it says.
    Host(u8),
}

/// A load or a store.
#[derive(Debug, Arbitrary)]
struct Access {
    log2_width: u8,
    store: Option<u64>,
}

impl Access {
    fn make(&self, bench: &Bench, address: u64) {
        let width = 1 << (self.log2_width % 4);
        match self.store {
            Some(value) => bench.write(address, &value.to_le_bytes()[..width]),
            None => bench.read(address, &mut [0; 8][..width]),
        }
    }
}

/// Runs one input.
pub fn run(bytes: &[u8]) {
    let mut bench = Bench::new(machine::disk());
    for step in all::<Step>(&mut Unstructured::new(bytes)) {
        take(&mut bench, &step);
    }
    bench.serve();
}

fn take(bench: &mut Bench, step: &Step) {
    const SIZE: u16 = 16;
    match step {
        Step::Config {
            device,
            register,
            access,
        } => access.make(bench, machine::config(*device, *register)),
        Step::Register {
            device,
            offset,
            access,
        } => access.make(bench, Bench::bar((device % 4).into()) + u64::from(*offset)),
        Step::Anywhere { address, access } => access.make(bench, (*address).into()),
        Step::SetUp {
            device,
            features,
            log2_size,
        } => machine::set_up(bench, *device, (*features).into(), 1 << (log2_size % 16)),
        Step::Memory { at, bytes } => machine::store(bench, (*at).into(), bytes),
        Step::Descriptor {
            device,
            queue,
            n,
            descriptor,
        } => Queue::new(*device, *queue).write(bench, *n, descriptor),
        Step::Chain {
            device,
            queue,
            chain,
            writable,
        } => {
            let queue = Queue::new(*device, *queue);
            queue.write_chain(bench, chain, usize::from(writable % 4));
            queue.offer(bench, 0, SIZE);
            queue.notify(bench);
        }
        Step::Offer {
            device,
            queue,
            head,
        } => Queue::new(*device, *queue).offer(bench, *head, SIZE),
        Step::Index {
            device,
            queue,
            index,
        } => Queue::new(*device, *queue).set_index(bench, *index),
        Step::Notify { device, queue } => Queue::new(*device, *queue).notify(bench),
        Step::Serve => bench.serve(),
        Step::Host(n) => {
            // Full, or gone: both are the guest's doing.
            let _ = bench.host.write(&vec![*n; usize::from(*n) * 16]);
            let _ = bench.host.read(&mut [0; 4096]);
        }
    }
}
