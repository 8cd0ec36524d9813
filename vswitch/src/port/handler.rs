//! The vhost-user requests of one connection.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use super::early::Enable;
use super::features::{
    self, EVENT_IDX, INDIRECT_DESC, MRG_RXBUF, OFFERED, OFFLOADS, PROTOCOL_FEATURES,
};
use super::status::Status;
use super::{Policy, Port};
use crate::memory::{MAX_REGIONS, Memory, Region, RegionSpec};
use crate::net_header::Layout;
use crate::ring::{EventFd, MAX_SIZE, RingError, RingLayout, RxRing, SplitRing, TxRing};
use crate::shard::{Handle, Message, Queue};

const QUEUES: [Queue; 2] = [Queue::Receive, Queue::Transmit];

/// A ring as the front-end has described it so far.
#[derive(Debug, Default)]
struct Ring {
    layout: RingLayout,
    addressed: bool,
    kick: Option<EventFd>,
    call: Option<EventFd>,
    enabled: bool,
    /// The shard has it.
    running: bool,
}

impl Ring {
    /// "Started" in the sense of the specification: a kick descriptor was passed and the ring not stopped since.
    fn is_ready(&self) -> bool {
        self.kick.is_some() && self.enabled && self.addressed && self.layout.size > 0
    }
}

/// The state of one connection. Its rings are taken from the shard when it is dropped.
#[derive(Debug)]
pub(super) struct Handler<'a> {
    port: usize,
    status: &'a Status,
    shard: Handle,
    policy: Policy,
    offered: u64,
    features: u64,
    protocol: u64,
    memory: Arc<Memory>,
    rings: [Ring; 2],
}

/// An answer for the front-end's log and ours: the connection ends.
fn refuse(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::ReqHandlerError(io::Error::other(reason))
}

fn not_offered<T>() -> Result<T> {
    Err(Error::InvalidOperation("not offered"))
}

impl<'a> Handler<'a> {
    pub(super) fn new(port: &'a Port, shard: Handle, policy: Policy) -> Self {
        Self {
            port: port.plan.index,
            status: &port.status,
            shard,
            policy,
            offered: if port.offloads.load(Ordering::Relaxed) {
                OFFERED
            } else {
                OFFERED & !OFFLOADS
            },
            features: 0,
            protocol: 0,
            memory: Arc::default(),
            rings: Default::default(),
        }
    }

    fn index(index: u32) -> Result<usize> {
        let index = usize::try_from(index).map_err(refuse)?;
        if index < QUEUES.len() {
            Ok(index)
        } else {
            Err(refuse(format!("there is no ring {index}")))
        }
    }

    /// A ring that may be changed.
    fn stopped(&mut self, index: u32) -> Result<&mut Ring> {
        let index = Self::index(index)?;
        if self.rings[index].running {
            return Err(refuse(format!(
                "ring {index} was changed while it was running"
            )));
        }
        Ok(&mut self.rings[index])
    }

    /// Gives a ring to the shard if it is ready and not there yet.
    fn start(&mut self, index: usize) -> Result<()> {
        let ring = &self.rings[index];
        if ring.running || !ring.is_ready() {
            return Ok(());
        }
        let layout = RingLayout {
            event_idx: self.features & EVENT_IDX != 0,
            indirect: self.features & INDIRECT_DESC != 0,
            ..ring.layout
        };
        let bad = |e: RingError| refuse(format!("ring {index} cannot be started: {e}"));
        let call = ring
            .call
            .as_ref()
            .map(EventFd::try_clone)
            .transpose()
            .map_err(refuse)?;
        let split = SplitRing::new(Arc::clone(&self.memory), layout, call).map_err(bad)?;
        let header = Layout::from_features(self.features);
        let port = self.port;
        let served = match QUEUES[index] {
            Queue::Receive => {
                let mergeable = self.features & MRG_RXBUF != 0;
                let ring = Box::new(RxRing::new(split, header, mergeable));
                self.shard.add_rx(port, ring)
            }
            Queue::Transmit => {
                let Some(kick) = &ring.kick else {
                    return Ok(());
                };
                let kick = kick.try_clone().map_err(refuse)?;
                let ring = Box::new(TxRing::new(split, header));
                self.shard.add_tx(port, ring, kick)
            }
        };
        served.map_err(refuse)?;
        self.set_running(index, true);
        Ok(())
    }

    /// Takes a ring back from the shard, which has let go of the guest's memory when this returns.
    fn stop(&mut self, index: usize) -> Result<()> {
        if self.rings[index].running {
            let returned = self
                .shard
                .remove(self.port, QUEUES[index])
                .map_err(refuse)?;
            if let Some(mut returned) = returned {
                self.rings[index].layout.base = returned.base();
            }
            self.set_running(index, false);
        }
        Ok(())
    }

    fn set_running(&mut self, index: usize, running: bool) {
        self.rings[index].running = running;
        self.status.update(|s| match QUEUES[index] {
            Queue::Receive => s.receiving = running,
            Queue::Transmit => s.sending = running,
        });
    }

    fn stop_all(&mut self) -> Result<()> {
        self.stop(0)?;
        self.stop(1)
    }

    /// Exchanges the guest's memory under running rings, which go on afterwards where they were.
    fn replace_memory(&mut self, memory: Memory) -> Result<()> {
        self.stop_all()?;
        self.memory = Arc::new(memory);
        if self.memory.is_empty() {
            return Ok(());
        }
        self.start(0)?;
        self.start(1)
    }

    /// Carries out a request to enable a ring that the vhost crate has refused because it came before the features.
    pub(super) fn enable_early(&mut self, request: Enable, stream: &UnixStream) -> Result<()> {
        self.set_vring_enable(request.index, request.on)?;
        if self.protocol & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0 {
            request.acknowledge(stream).map_err(Error::SocketError)?;
        }
        Ok(())
    }

    fn map(&self, spec: RegionSpec, file: File) -> Result<Region> {
        let RegionSpec { guest, size, .. } = spec;
        Region::map(spec, file, self.policy.allow_unsealed).map_err(|e| {
            refuse(format!(
                "the {size} bytes of guest memory at {guest:#x} cannot be used: {e}"
            ))
        })
    }

    fn event(index: u8, file: Option<File>, what: &str) -> Result<Option<EventFd>> {
        let bad = |e| {
            refuse(format!(
                "the {what} descriptor of ring {index} is not a usable eventfd: {e}"
            ))
        };
        file.map(|f| EventFd::new(f.into()).map_err(bad))
            .transpose()
    }
}

impl Drop for Handler<'_> {
    fn drop(&mut self) {
        // Fails only when the shard has ended, with all rings.
        let _ = self.stop_all();
    }
}

impl VhostUserBackendReqHandlerMut for Handler<'_> {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.stop_all()?;
        for ring in &mut self.rings {
            ring.enabled = false;
        }
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        let unknown = features & !self.offered;
        if unknown != 0 {
            return Err(refuse(format!(
                "it acknowledged feature bits {unknown:#x}, which were not offered"
            )));
        }
        if features != self.features && self.rings.iter().any(|r| r.running) {
            return Err(refuse("it changed the features while rings were running"));
        }
        self.features = features;
        self.status.update(|s| s.features = Some(features));
        // Without protocol features there is no request to enable a ring.
        if features & PROTOCOL_FEATURES == 0 {
            for index in 0..QUEUES.len() {
                self.rings[index].enabled = true;
                self.start(index)?;
            }
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let mut memory = Memory::default();
        for (r, file) in regions.iter().zip(files) {
            let spec = RegionSpec {
                guest: r.guest_phys_addr,
                size: r.memory_size,
                user: r.user_addr,
                offset: r.mmap_offset,
            };
            memory = memory.with(self.map(spec, file)?).map_err(refuse)?;
        }
        self.replace_memory(memory)?;
        Ok(None)
    }

    fn add_mem_region(
        &mut self,
        r: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        let spec = RegionSpec {
            guest: r.guest_phys_addr,
            size: r.memory_size,
            user: r.user_addr,
            offset: r.mmap_offset,
        };
        let memory = self.memory.with(self.map(spec, file)?).map_err(refuse)?;
        self.replace_memory(memory)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, r: &VhostUserSingleMemoryRegion) -> Result<()> {
        let memory = self
            .memory
            .without(r.guest_phys_addr, r.user_addr, r.memory_size)
            .map_err(refuse)?;
        self.replace_memory(memory)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let ring = self.stopped(index)?;
        let size = u16::try_from(num)
            .ok()
            .filter(|n| n.is_power_of_two() && *n <= MAX_SIZE);
        ring.layout.size =
            size.ok_or_else(|| refuse(format!("ring {index}: {}", RingError::Size(num))))?;
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let ring = self.stopped(index)?;
        ring.layout = RingLayout {
            descriptors,
            available,
            used,
            ..ring.layout
        };
        ring.addressed = true;
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let ring = self.stopped(index)?;
        ring.layout.base = u16::try_from(base)
            .map_err(|_| refuse(format!("ring {index}: base {base} has more than 16 bits")))?;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let i = Self::index(index)?;
        self.stop(i)?;
        let ring = &mut self.rings[i];
        ring.kick = None;
        ring.call = None;
        Ok(VhostUserVringState::new(index, ring.layout.base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let i = Self::index(index.into())?;
        let Some(kick) = Self::event(index, fd, "kick")? else {
            return Err(refuse(format!(
                "ring {index} was started without a kick descriptor"
            )));
        };
        self.stop(i)?;
        self.rings[i].kick = Some(kick);
        self.start(i)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let i = Self::index(index.into())?;
        let call = Self::event(index, fd, "call")?;
        if self.rings[i].running {
            let call = call
                .as_ref()
                .map(EventFd::try_clone)
                .transpose()
                .map_err(refuse)?;
            self.shard
                .send(Message::SetCall {
                    port: self.port,
                    queue: QUEUES[i],
                    call,
                })
                .map_err(refuse)?;
        }
        self.rings[i].call = call;
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, _fd: Option<File>) -> Result<()> {
        // Errors are told in the log and in the counters; no known front-end listens to this descriptor.
        Self::index(index.into()).map(|_| ())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let i = Self::index(index)?;
        self.rings[i].enabled = enable;
        if enable { self.start(i) } else { self.stop(i) }
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(features::protocol())
    }

    fn set_protocol_features(&mut self, bits: u64) -> Result<()> {
        let unknown = bits & !features::protocol().bits();
        if unknown != 0 {
            return Err(refuse(format!(
                "it acknowledged protocol feature bits {unknown:#x}, which were not offered"
            )));
        }
        self.protocol = bits;
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        not_offered()
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        not_offered()
    }

    fn get_config(
        &mut self,
        _offset: u32,
        _size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        not_offered()
    }

    fn set_config(
        &mut self,
        _offset: u32,
        _bytes: &[u8],
        _flags: VhostUserConfigFlags,
    ) -> Result<()> {
        not_offered()
    }

    fn set_gpu_socket(&mut self, _gpu: GpuBackend) -> Result<()> {
        not_offered()
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        not_offered()
    }

    fn get_inflight_fd(
        &mut self,
        _inflight: &VhostUserInflight,
    ) -> Result<(VhostUserInflight, File)> {
        not_offered()
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        not_offered()
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        not_offered()
    }

    fn check_device_state(&mut self) -> Result<()> {
        not_offered()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        not_offered()
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        not_offered()
    }
}
