//! A driver for a virtio NIC that breaks the rules: `hostile-driver INTERFACE SECONDS SEED`, in the guest whose interface it is.
//!
//! It takes the device from the kernel's driver and, until the time is over, sets it up and does to it what no driver should: descriptors
//! and indices are rewritten while the switch reads them, doorbells rung without end, the device reset in the middle, registers of its
//! configuration, the PCI configuration space and the MSI-X table written at random. Then the kernel's driver gets the device back. What
//! was tried, and how often, is one line on standard output: `TRIES name=count …`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous};

const PAGE: usize = 4096;
/// Pages of memory for rings and buffers.
const PAGES: usize = 64;
/// Entries of each ring.
const SIZE: u16 = 256;

/// Capabilities in PCI configuration space.
const VENDOR: u8 = 9;
const MSIX: u8 = 0x11;
/// Structures of a virtio device (virtio 1.2 §4.1.4).
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;

/// Registers of the common configuration (virtio 1.2 §4.1.4.3).
mod register {
    pub const DEVICE_FEATURE_SELECT: usize = 0;
    pub const DEVICE_FEATURE: usize = 4;
    pub const DRIVER_FEATURE_SELECT: usize = 8;
    pub const DRIVER_FEATURE: usize = 12;
    pub const STATUS: usize = 20;
    pub const QUEUE_SELECT: usize = 22;
    pub const QUEUE_SIZE: usize = 24;
    pub const QUEUE_ENABLE: usize = 28;
    pub const QUEUE_NOTIFY_OFF: usize = 30;
    pub const QUEUE_DESC: usize = 32;
    pub const QUEUE_DRIVER: usize = 40;
    pub const QUEUE_DEVICE: usize = 48;
    pub const LENGTH: u64 = 56;
}

/// Features that make a difference to rings (virtio 1.2 §5.1.3 and §6): checksum, TSO and mergeable buffers; indirect descriptors and
/// event indices; version 1.
const WANTED: u64 = 1 | 1 << 11 | 1 << 12 | 1 << 15 | 1 << 28 | 1 << 29;
const VERSION_1: u64 = 1 << 32;

/// Numbers that look random and are the same for the same seed (xorshift64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }
}

/// Memory of the device or for it.
#[derive(Clone, Copy)]
struct Memory {
    start: NonNull<u8>,
    len: usize,
}

impl Memory {
    /// Writes `value` at `at`, if that is inside.
    fn write<T>(self, at: usize, value: T) {
        let aligned = at.is_multiple_of(align_of::<T>());
        if aligned && at + size_of::<T>() <= self.len {
            // SAFETY: the place is aligned and inside the mapping, which is never undone. What the device does there meanwhile is
            // nobody's but this program's own risk.
            unsafe { self.place::<T>(at).write_volatile(value) }
        }
    }

    /// Reads what is at `at`; 0 if that is outside.
    fn read<T: Default + Copy>(self, at: usize) -> T {
        let aligned = at.is_multiple_of(align_of::<T>());
        if aligned && at + size_of::<T>() <= self.len {
            // SAFETY: as in `write`; any bytes are a value of the integers this is used for.
            unsafe { self.place::<T>(at).read_volatile() }
        } else {
            T::default()
        }
    }

    fn place<T>(self, at: usize) -> *mut T {
        self.start.as_ptr().wrapping_add(at).cast()
    }

    fn part(self, at: usize, len: usize) -> Result<Self> {
        ensure!(at + len <= self.len, "a structure beyond its BAR");
        Ok(Self {
            // SAFETY: inside the mapping, as was just checked.
            start: unsafe { self.start.add(at) },
            len,
        })
    }
}

/// A PCI device that no driver has.
struct Pci {
    folder: PathBuf,
    config: File,
    /// The configuration space as it was.
    saved: Vec<u8>,
}

impl Pci {
    /// Takes the device of an interface from its driver.
    fn take(interface: &str) -> Result<Self> {
        let virtio = fs::canonicalize(format!("/sys/class/net/{interface}/device"))?;
        let folder = virtio.parent().context("a virtio device is on a bus")?;
        let name = folder.file_name().context("it has an address")?;
        fs::write(folder.join("driver/unbind"), name.as_encoded_bytes())?;
        fs::write(folder.join("enable"), "1")?;
        let config = OpenOptions::new()
            .read(true)
            .write(true)
            .open(folder.join("config"))?;
        // Memory, and access to the guest's.
        config.write_all_at(&0x0006_u16.to_le_bytes(), 4)?;
        let mut saved = vec![0; 256];
        config.read_exact_at(&mut saved, 0)?;
        Ok(Self {
            folder: folder.to_owned(),
            config,
            saved,
        })
    }

    /// Where in which BAR what the capabilities say lies: what the kind says, and at which offset its capability is.
    fn capabilities(&self) -> Vec<(u8, usize)> {
        let mut all = Vec::new();
        let mut at = usize::from(self.saved[0x34]);
        while at >= 0x40 && at + 1 < self.saved.len() && all.len() < 48 {
            all.push((self.saved[at], at));
            at = usize::from(self.saved[at + 1]);
        }
        all
    }

    fn u32_at(&self, at: usize) -> usize {
        let bytes = self.saved.get(at..at + 4);
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u32::from_le_bytes) as usize
    }

    fn bar(&self, number: u8) -> Result<Memory> {
        let path = self.folder.join(format!("resource{number}"));
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let len = usize::try_from(file.metadata()?.len())?;
        map(&file, len).with_context(|| format!("cannot map {}", path.display()))
    }

    /// A structure of the virtio device, and the multiplier of notification addresses.
    fn structure(&self, kind: u8) -> Result<(Memory, usize)> {
        let of_kind = |&(id, at): &(u8, usize)| id == VENDOR && self.saved[at + 3] == kind;
        let found = self.capabilities().into_iter().find(of_kind);
        let (_, at) = found.with_context(|| format!("no structure of kind {kind}"))?;
        let bar = self.bar(self.saved[at + 4])?;
        let part = bar.part(self.u32_at(at + 8), self.u32_at(at + 12))?;
        Ok((part, self.u32_at(at + 16)))
    }

    /// `None` of a device that has no MSI-X.
    fn msix_table(&self) -> Result<Option<Memory>> {
        let found = self.capabilities().into_iter().find(|(id, _)| *id == MSIX);
        let Some((_, at)) = found else {
            return Ok(None);
        };
        let entries =
            (usize::from(self.saved[at + 2]) | usize::from(self.saved[at + 3]) << 8) & 0x7ff;
        let place = self.u32_at(at + 4);
        self.bar((place & 7) as u8)?
            .part(place & !7, 16 * (entries + 1))
            .map(Some)
    }

    fn restore(&self) {
        // Some of it is read-only.
        for at in (0..self.saved.len()).step_by(4) {
            let _ = self.config.write_all_at(&self.saved[at..at + 4], at as u64);
        }
    }

    /// Gives the device back to the kernel's driver.
    fn give_back(&self) -> Result<()> {
        self.restore();
        let name = self.folder.file_name().context("it has an address")?;
        let probe = Path::new("/sys/bus/pci/drivers_probe");
        fs::write(probe, name.as_encoded_bytes()).context("the kernel's driver does not take it")
    }
}

fn map(file: &File, len: usize) -> io::Result<Memory> {
    let rights = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping where there was none.
    let start =
        unsafe { mmap(std::ptr::null_mut(), len, rights, MapFlags::SHARED, file, 0) }?.cast();
    NonNull::new(start)
        .map(|start| Memory { start, len })
        .ok_or_else(|| io::Error::other("mapped at 0"))
}

/// Pages that stay where they are, and their addresses as devices see them.
fn pages() -> Result<(Memory, Vec<u64>)> {
    let len = PAGES * PAGE;
    let rights = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::PRIVATE | MapFlags::POPULATE | MapFlags::LOCKED;
    // SAFETY: a new mapping where there was none.
    let start = unsafe { mmap_anonymous(std::ptr::null_mut(), len, rights, flags) }?.cast();
    let start = NonNull::new(start).context("mapped at 0")?;
    let memory = Memory { start, len };
    let pagemap = File::open("/proc/self/pagemap")?;
    let address = |n: usize| -> Result<u64> {
        memory.write(n * PAGE, 0_u8);
        let mut entry = [0; 8];
        let page = start.as_ptr() as usize / PAGE + n;
        pagemap.read_exact_at(&mut entry, 8 * page as u64)?;
        // Bits 0 to 54 are the frame's number (Documentation/admin-guide/mm/pagemap.rst).
        Ok((u64::from_le_bytes(entry) & ((1 << 55) - 1)) * PAGE as u64)
    };
    Ok((memory, (0..PAGES).map(address).collect::<Result<_>>()?))
}

/// What was tried, and how often.
#[derive(Default)]
struct Tries {
    setups: u64,
    resets: u64,
    descriptors: u64,
    indices: u64,
    doorbells: u64,
    registers: u64,
    configuration: u64,
    vectors: u64,
}

struct Attacker {
    random: Random,
    pci: Pci,
    common: Memory,
    notify: (Memory, usize),
    vectors: Option<Memory>,
    memory: Memory,
    addresses: Vec<u64>,
    tries: Tries,
}

impl Attacker {
    /// The page of a ring's part: 0 its descriptors, 1 what the driver and 2 what the device writes.
    fn ring_page(queue: usize, part: usize) -> usize {
        3 * queue + part
    }

    fn reset(&mut self) {
        self.tries.resets += 1;
        self.common.write(register::STATUS, 0_u8);
        let start = Instant::now();
        while self.common.read::<u8>(register::STATUS) != 0
            && start.elapsed() < Duration::from_millis(500)
        {
            std::thread::yield_now();
        }
    }

    /// Sets the device up as a driver should, so that it works.
    fn set_up(&mut self) {
        self.tries.setups += 1;
        self.reset();
        let common = self.common;
        for status in [1_u8, 3] {
            common.write(register::STATUS, status);
        }
        let mut offered = 0;
        for half in [0, 1] {
            common.write(register::DEVICE_FEATURE_SELECT, half);
            offered |= u64::from(common.read::<u32>(register::DEVICE_FEATURE)) << (32 * half);
        }
        let taken = VERSION_1 | (offered & WANTED & self.random.next());
        for half in [0_u32, 1] {
            common.write(register::DRIVER_FEATURE_SELECT, half);
            common.write(register::DRIVER_FEATURE, (taken >> (32 * half)) as u32);
        }
        common.write(register::STATUS, 11_u8);
        for queue in [0, 1] {
            for part in 0..3 {
                self.clear(Self::ring_page(queue, part));
            }
            common.write(register::QUEUE_SELECT, queue as u16);
            common.write(register::QUEUE_SIZE, SIZE);
            for (register, part) in [
                (register::QUEUE_DESC, 0),
                (register::QUEUE_DRIVER, 1),
                (register::QUEUE_DEVICE, 2),
            ] {
                let address = self.addresses[Self::ring_page(queue, part)];
                common.write(register, address as u32);
                common.write(register + 4, (address >> 32) as u32);
            }
            common.write(register::QUEUE_ENABLE, 1_u16);
        }
        common.write(register::STATUS, 15_u8);
        // Buffers to receive into.
        for n in 0..SIZE / 2 {
            let page = 8 + usize::from(n) % (PAGES - 8);
            self.describe(0, n, self.addresses[page], PAGE as u32, 2, 0);
            self.offer(0, n, n);
        }
        self.set_index(0, SIZE / 2);
    }

    fn clear(&self, page: usize) {
        for at in (0..PAGE).step_by(8) {
            self.memory.write(page * PAGE + at, 0_u64);
        }
    }

    fn describe(&self, queue: usize, n: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = Self::ring_page(queue, 0) * PAGE + 16 * usize::from(n % SIZE);
        self.memory.write(at, address);
        self.memory.write(at + 8, len);
        self.memory.write(at + 12, flags);
        self.memory.write(at + 14, next);
    }

    fn offer(&self, queue: usize, position: u16, head: u16) {
        let at = Self::ring_page(queue, 1) * PAGE;
        self.memory
            .write(at + 4 + 2 * usize::from(position % SIZE), head);
    }

    fn index(&self, queue: usize) -> u16 {
        self.memory.read(Self::ring_page(queue, 1) * PAGE + 2)
    }

    fn set_index(&self, queue: usize, index: u16) {
        self.memory
            .write(Self::ring_page(queue, 1) * PAGE + 2, index);
    }

    fn ring(&mut self, queue: usize) {
        self.tries.doorbells += 1;
        self.common.write(register::QUEUE_SELECT, queue as u16);
        let offset: u16 = self.common.read(register::QUEUE_NOTIFY_OFF);
        let (notify, multiplier) = self.notify;
        notify.write(usize::from(offset) * multiplier, queue as u16);
    }

    /// Of the guest's own, of nobody's, wrapping around.
    fn any_address(&mut self) -> u64 {
        match self.random.below(8) {
            0 => self.random.next(),
            1 => u64::MAX - self.random.below(4096),
            2 => self.random.below(1 << 40),
            _ => {
                let page = self.random.below(PAGES as u64) as usize;
                self.addresses[page] + self.random.below(PAGE as u64)
            }
        }
    }

    /// A few frames as they should be, so that what is broken meets a ring that is in use.
    fn send(&mut self) {
        let index = self.index(1);
        for n in 0..8_u16 {
            let head = (index + n) % SIZE;
            let page = 8 + usize::from(head) % (PAGES - 8);
            self.describe(
                1,
                head,
                self.addresses[page],
                12 + 60 + u32::from(n) * 100,
                0,
                0,
            );
            self.offer(1, index + n, head);
        }
        self.set_index(1, index + 8);
        self.ring(1);
    }

    fn break_descriptors(&mut self) {
        let queue = self.random.below(2) as usize;
        for _ in 0..64 {
            self.tries.descriptors += 1;
            let address = self.any_address();
            let len = match self.random.below(4) {
                0 => self.random.next() as u32,
                1 => 0,
                _ => self.random.below(70_000) as u32,
            };
            let (n, flags, next) = (
                self.random.next() as u16,
                self.random.below(8) as u16,
                self.random.next() as u16,
            );
            self.describe(queue, n, address, len, flags, next);
            let index = self.index(queue);
            self.offer(queue, index, n);
            self.set_index(queue, index + 1);
        }
        self.ring(queue);
    }

    /// While the switch reads: the same descriptor is now right and now wrong.
    fn race(&mut self) {
        let index = self.index(1);
        let address = self.addresses[8];
        self.offer(1, index, 0);
        self.describe(1, 0, address, 100, 0, 0);
        self.set_index(1, index + 1);
        self.ring(1);
        for n in 0..2000_u64 {
            self.tries.descriptors += 2;
            let wrong = if n % 2 == 0 { u64::MAX - 50 } else { 1 << 50 };
            self.describe(1, 0, wrong, u32::MAX, 5, 0);
            self.describe(1, 0, address, 100, 0, 0);
        }
    }

    fn break_indices(&mut self) {
        let queue = self.random.below(2) as usize;
        for _ in 0..64 {
            self.tries.indices += 1;
            let value = self.random.next();
            let part = 1 + self.random.below(2) as usize;
            let at = Self::ring_page(queue, part) * PAGE + 2 * (value as usize >> 16) % (PAGE / 4);
            self.memory.write(at, value as u16);
            if self.random.below(4) == 0 {
                self.set_index(queue, value as u16);
            }
        }
        self.ring(queue);
    }

    fn ring_without_end(&mut self) {
        for _ in 0..2000 {
            let queue = self.random.below(2) as usize;
            self.ring(queue);
        }
    }

    fn break_registers(&mut self) {
        for _ in 0..64 {
            self.tries.registers += 1;
            let value = self.random.next();
            let at = self.random.below(register::LENGTH) as usize;
            match self.random.below(3) {
                0 => self.common.write(at, value as u8),
                1 => self.common.write(at & !1, value as u16),
                _ => self.common.write(at & !3, value as u32),
            }
            let _: u32 = self.common.read(at & !3);
        }
    }

    fn break_configuration(&mut self) {
        for _ in 0..64 {
            self.tries.configuration += 1;
            let value = self.random.next().to_le_bytes();
            let len = 1 << self.random.below(3);
            let at = self.random.below(256) & !(len - 1);
            let _ = self.pci.config.write_all_at(&value[..len as usize], at);
            // Where BARs have gone nothing of this device may be left there when others are used.
            if (0x10..0x34).contains(&at) {
                self.pci.restore();
            }
        }
        self.pci.restore();
    }

    fn break_vectors(&mut self) {
        let Some(table) = self.vectors else {
            return;
        };
        for _ in 0..64 {
            self.tries.vectors += 1;
            let entry = 16 * (self.random.below(table.len as u64 / 16) as usize);
            // A fixed interrupt: others (INIT, NMI) would end the guest, and this program with it.
            let vector = 0x30 + self.random.below(0xb0) as u32;
            let address = match self.random.below(3) {
                0 => self.random.next() as u32,
                _ => 0xfee0_0000,
            };
            table.write(entry, address & !3);
            table.write(entry + 4, self.random.below(2) as u32);
            table.write(entry + 8, vector);
            table.write(entry + 12, self.random.below(2) as u32);
        }
    }

    fn round(&mut self) {
        self.set_up();
        for _ in 0..20 {
            self.send();
            match self.random.below(8) {
                0 => self.break_descriptors(),
                1 => self.race(),
                2 => self.break_indices(),
                3 => self.ring_without_end(),
                4 => self.break_registers(),
                5 => self.break_configuration(),
                6 => self.break_vectors(),
                _ => {
                    for _ in 0..20 {
                        self.reset();
                    }
                }
            }
        }
    }
}

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [interface, seconds, seed] = &arguments[..] else {
        anyhow::bail!("usage: hostile-driver INTERFACE SECONDS SEED");
    };
    let time = Duration::from_secs(seconds.parse()?);
    let pci = Pci::take(interface)?;
    let (memory, addresses) = pages()?;
    let (common, _) = pci.structure(COMMON)?;
    let mut attacker = Attacker {
        random: Random(seed.parse::<u64>()? | 1),
        common,
        notify: pci.structure(NOTIFY)?,
        vectors: pci.msix_table()?,
        pci,
        memory,
        addresses,
        tries: Tries::default(),
    };
    let start = Instant::now();
    while start.elapsed() < time {
        attacker.round();
    }
    attacker.reset();
    attacker.pci.give_back()?;
    let Tries {
        setups,
        resets,
        descriptors,
        indices,
        doorbells,
        registers,
        configuration,
        vectors,
    } = attacker.tries;
    println!(
        "TRIES setups={setups} resets={resets} descriptors={descriptors} indices={indices} doorbells={doorbells} registers={registers} configuration={configuration} vectors={vectors}"
    );
    Ok(())
}
