//! Requests of any kind to a disk. What comes back is never more than there was room for, and a read that succeeds has read the disk.

use arbitrary::{Arbitrary, Unstructured};
use monitor::fuzzing::Bench;

use crate::all;
use crate::machine::{self, BUFFERS, Descriptor, Queue, SECTORS};

/// The disk is the first device.
const DISK: u8 = 0;
const SIZE: u16 = 16;
const READ: u32 = 0;

#[derive(Debug, Arbitrary)]
struct Request {
    kind: u8,
    sector: u64,
    near: bool,
    /// Buffers between header and status, where they should be, or anywhere.
    data: [Option<Descriptor>; 3],
    writable: u8,
    /// How many descriptors the driver writes over before the device has seen the chain.
    spoilt: Option<(u8, Descriptor)>,
    header_len: Option<u8>,
}

/// Runs one input.
pub fn run(bytes: &[u8]) {
    let mut bench = Bench::new(machine::disk());
    machine::set_up(&bench, DISK, 0, SIZE);
    for request in all::<Request>(&mut Unstructured::new(bytes)) {
        ask(&mut bench, &request);
    }
}

fn ask(bench: &mut Bench, request: &Request) {
    let queue = Queue::new(DISK, 0);
    let sector = if request.near {
        request.sector % (SECTORS + 2)
    } else {
        request.sector
    };
    let mut header = [0; 16];
    header[0] = request.kind;
    header[8..].copy_from_slice(&sector.to_le_bytes());
    machine::store(bench, BUFFERS, &header);
    let header_len = request.header_len.unwrap_or(16);
    let mut chain = vec![Descriptor::buffer(0, header_len.into())];
    chain.extend(request.data.iter().flatten().cloned());
    let status = 0x1_0000;
    chain.push(Descriptor::buffer(status, 1));
    machine::store(bench, BUFFERS + u64::from(status) * 16, &[0xff]);
    let writable = match request.writable % 8 {
        all @ 0..=5 => usize::from(all),
        // As it should be.
        _ => chain.len() - 1,
    };
    queue.write_chain(bench, &chain, writable);
    if let Some((n, descriptor)) = &request.spoilt {
        queue.write(bench, n % 5, descriptor);
    }
    let (before, _) = queue.used(bench, SIZE);
    queue.offer(bench, 0, SIZE);
    queue.notify(bench);
    bench.serve();
    let (after, len) = queue.used(bench, SIZE);
    if request.spoilt.is_some() || after != before.wrapping_add(1) {
        return;
    }
    let room: u64 = chain
        .iter()
        .skip(chain.len() - writable.min(chain.len()))
        .map(|d| u64::from(d.room()))
        .sum();
    assert!(u64::from(len) <= room, "{len} bytes into {room}");
    let data: u64 = chain[1..chain.len() - 1]
        .iter()
        .map(|d| u64::from(d.room()))
        .sum();
    let [said] = machine::load(bench, BUFFERS + u64::from(status) * 16);
    if u32::from(request.kind) == READ && said == 0 && u64::from(len) == data + 1 {
        let end = sector
            .checked_mul(512)
            .and_then(|start| start.checked_add(data));
        assert!(
            end.is_some_and(|end| end <= SECTORS * 512),
            "{data} bytes from sector {sector}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Otherwise nothing of the above would be found to be wrong.
    #[test]
    fn the_disk_answers() {
        let mut bench = Bench::new(machine::disk());
        machine::set_up(&bench, DISK, 0, SIZE);
        let request = Request {
            kind: READ as u8,
            sector: 3,
            near: true,
            data: [Some(Descriptor::buffer(0x100, 512)), None, None],
            writable: 7,
            spoilt: None,
            header_len: None,
        };
        for answered in 1..=40 {
            ask(&mut bench, &request);
            assert_eq!(Queue::new(DISK, 0).used(&bench, SIZE), (answered, 513));
        }
        assert_eq!(machine::load(&bench, BUFFERS + 0x1000), [4; 8]);
    }
}
