//! Entropy device (virtio 1.2 §5.4).

use std::io;

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::Bytes;
use vmm_sys_util::eventfd::EventFd;

use super::{Activation, ActiveQueue, VirtioDevice, kicks};
use crate::memory::GuestMemory;

const QUEUE_SIZE: u16 = 16;
/// Bytes a request is given at most; the guest asks again if it wants more.
const REQUEST: usize = 256;
const CLASS_OTHER: u32 = 0xff_0000;

/// A source of random bytes: the host's.
#[derive(Debug)]
pub struct Rng {
    kicks: Vec<EventFd>,
    active: Option<(GuestMemory, ActiveQueue)>,
}

impl Rng {
    /// The device, and the eventfds for its transport.
    pub fn new() -> io::Result<(Self, Vec<EventFd>)> {
        let kicks = kicks(1)?;
        let ours = vec![kicks[0].try_clone()?];
        Ok((
            Self {
                kicks: ours,
                active: None,
            },
            kicks,
        ))
    }

    fn serve(&mut self) {
        let Some((memory, active)) = &mut self.active else {
            return;
        };
        let mut used = false;
        for _ in 0..active.queue.size() {
            let Some(chain) = active.queue.iter(&*memory).ok().and_then(|mut i| i.next()) else {
                break;
            };
            let head = chain.head_index();
            let mut bytes = [0; REQUEST];
            let len = chain
                .take(1)
                .find(virtio_queue::desc::split::Descriptor::is_write_only)
                .and_then(|buffer| {
                    let len = REQUEST.min(buffer.len() as usize);
                    let filled = rustix::rand::getrandom(
                        &mut bytes[..len],
                        rustix::rand::GetRandomFlags::empty(),
                    )
                    .ok()?;
                    memory.write_slice(&bytes[..filled], buffer.addr()).ok()?;
                    Some(filled as u32)
                })
                .unwrap_or(0);
            active.add_used(memory, head, len);
            used = true;
        }
        if used {
            active.notify();
        }
    }
}

impl VirtioDevice for Rng {
    fn id(&self) -> u16 {
        VIRTIO_ID_RNG as u16
    }

    fn class(&self) -> u32 {
        CLASS_OTHER
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), String> {
        let [Some(queue)] = <[_; 1]>::try_from(activation.queues).map_err(|_| "queues")? else {
            return Err("the request queue is not enabled".into());
        };
        self.active = Some((activation.memory, queue));
        Ok(())
    }

    fn reset(&mut self) -> bool {
        self.active = None;
        true
    }
}

impl MutEventSubscriber for Rng {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        let _ = self.kicks[0].read();
        self.serve();
    }

    fn init(&mut self, ops: &mut EventOps) {
        super::watch(ops, &self.kicks);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Driver;
    use super::*;
    use crate::memory::allocate;
    use vm_memory::GuestAddress;

    #[test]
    fn gives_random_bytes_and_no_more_than_fit() {
        let memory = allocate(64 << 20).unwrap();
        let (mut rng, _kicks) = Rng::new().unwrap();
        let (mut driver, queue) = Driver::new(&memory, 0x10_0000);
        rng.active = Some((memory.clone(), queue));
        for (chain, expected) in [
            ((0x20_0000, 64, true), 64),
            ((0x20_0000, 1 << 30, true), REQUEST as u32),
            ((0x20_0000, 64, false), 0),
            ((u64::MAX - 3, 64, true), 0),
        ] {
            driver.add(&[chain]);
            rng.serve();
            assert_eq!(driver.used(), Some(expected), "{chain:?}");
        }
        let bytes: [u8; 32] = memory.read_obj(GuestAddress(0x20_0000)).unwrap();
        assert_ne!(bytes, [0; 32]);
    }
}
