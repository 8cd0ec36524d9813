//! A function's configuration space with a type 0 header (PCI local bus specification 3.0 §6.1).

/// Bytes with a meaning; the rest of the 4 KiB of ECAM reads as zero, which says "no extended capabilities".
const SIZE: usize = 256;
const VENDOR: usize = 0x00;
const DEVICE: usize = 0x02;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const CLASS: usize = 0x09;
const HEADER_TYPE: usize = 0x0e;
const BAR0: usize = 0x10;
const SUBSYSTEM_VENDOR: usize = 0x2c;
const SUBSYSTEM: usize = 0x2e;
const CAPABILITIES: usize = 0x34;
const FIRST_CAPABILITY: usize = 0x40;

/// Memory space, bus master, interrupt disable: what a driver may switch.
const COMMAND_WRITABLE: u16 = 0x0406;
const STATUS_HAS_CAPABILITIES: u16 = 1 << 4;
const MULTI_FUNCTION: u8 = 0x80;

/// The registers, and which of their bits a guest may change.
#[derive(Debug)]
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    /// Where the next capability goes.
    next: usize,
    /// Where the pointer to it is.
    link: usize,
}

impl ConfigSpace {
    /// A function without BARs or capabilities. `class` is class, subclass and interface in 24 bits.
    pub fn new(vendor: u16, device: u16, class: u32) -> Self {
        let mut space = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            next: FIRST_CAPABILITY,
            link: CAPABILITIES,
        };
        space.set(VENDOR, &vendor.to_le_bytes());
        space.set(DEVICE, &device.to_le_bytes());
        space.set(CLASS, &class.to_le_bytes()[..3]);
        space.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        space
    }

    /// Sets the identification that a virtio driver reads.
    pub fn identify(&mut self, revision: u8, subsystem_vendor: u16, subsystem: u16) {
        self.set(REVISION, &[revision]);
        self.set(SUBSYSTEM_VENDOR, &subsystem_vendor.to_le_bytes());
        self.set(SUBSYSTEM, &subsystem.to_le_bytes());
        // Function 0 says this for its whole slot; on the others it has no meaning.
        self.set(HEADER_TYPE, &[MULTI_FUNCTION]);
    }

    /// Gives the function a 32-bit memory BAR of `size` bytes, a power of two.
    ///
    /// Only the bits above the size can be written, so the sizing protocol (write all ones, read back)
    /// needs no code of its own.
    pub fn add_bar0(&mut self, address: u32, size: u32) {
        debug_assert!(size.is_power_of_two() && address.is_multiple_of(size));
        self.set(BAR0, &address.to_le_bytes());
        self.allow(BAR0, &(!(size - 1)).to_le_bytes());
    }

    /// Appends a capability: `body` follows the id and the link. Returns where it stands.
    ///
    /// `writable` masks, byte by byte, what a guest may change in the body.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.next;
        self.set(STATUS, &STATUS_HAS_CAPABILITIES.to_le_bytes());
        self.set(self.link, &[at as u8]);
        self.set(at, &[id, 0]);
        self.set(at + 2, body);
        self.allow(at + 2, writable);
        self.link = at + 1;
        self.next = (at + 2 + body.len()).next_multiple_of(4);
        debug_assert!(self.next <= SIZE);
        at
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }

    /// The 16-bit register at `at`, for this program's own use.
    pub fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    /// The 32-bit register at `at`, for this program's own use.
    pub fn u32(&self, at: usize) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }

    /// A guest's load.
    pub fn read(&self, at: usize, data: &mut [u8]) {
        for (offset, byte) in data.iter_mut().enumerate() {
            *byte = self.bytes.get(at + offset).copied().unwrap_or(0);
        }
    }

    /// A guest's store.
    pub fn write(&mut self, at: usize, data: &[u8]) {
        for (offset, new) in data.iter().enumerate() {
            if let Some(byte) = self.bytes.get_mut(at + offset) {
                let mask = self.writable[at + offset];
                *byte = (*byte & !mask) | (new & mask);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(space: &ConfigSpace, at: usize) -> u32 {
        let mut data = [0; 4];
        space.read(at, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn bar_answers_the_sizing_protocol() {
        let mut space = ConfigSpace::new(0x1af4, 0x1041, 0x02_0000);
        space.add_bar0(0xc000_8000, 0x8000);
        assert_eq!(word(&space, BAR0), 0xc000_8000);
        space.write(BAR0, &u32::MAX.to_le_bytes());
        assert_eq!(word(&space, BAR0), 0xffff_8000);
        space.write(BAR0, &0xc000_8000u32.to_le_bytes());
        assert_eq!(word(&space, BAR0), 0xc000_8000);
    }

    #[test]
    fn capabilities_form_a_list() {
        let mut space = ConfigSpace::new(0x1af4, 0x1041, 0x02_0000);
        let first = space.add_capability(9, &[1, 2, 3], &[0; 3]);
        let second = space.add_capability(0x11, &[0xaa, 0], &[0xf0, 0]);
        assert_eq!(word(&space, 0x34) & 0xff, first as u32);
        assert_eq!(word(&space, first) & 0xffff, (second as u32) << 8 | 9);
        assert_eq!(word(&space, second) & 0xffff, 0x11);
        space.write(second + 2, &[0xff]);
        assert_eq!(
            word(&space, second) >> 16 & 0xff,
            0xfa,
            "only the allowed bits change"
        );
    }

    #[test]
    fn accesses_past_the_end_are_harmless() {
        let mut space = ConfigSpace::new(0x1af4, 0x1041, 0x02_0000);
        space.write(0xfe, &[0xff; 8]);
        assert_eq!(word(&space, 0x100), 0);
        assert_eq!(word(&space, 0xffc), 0);
    }
}
