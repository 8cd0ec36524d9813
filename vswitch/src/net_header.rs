//! The virtio-net header in front of every frame (virtio 1.2 §5.1.6).
//!
//! The switch offers no offloads, so a frame it takes must ask for none and a frame it gives needs none. A header is
//! checked on a private copy and a new one is built for each receiver; one guest's header bytes never reach another.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE,
};

use crate::port::features::VERSION_1;

/// The longest header the switch works with.
pub const MAX_LEN: usize = 12;

const FLAGS: usize = 0;
const GSO_TYPE: usize = 1;
const NUM_BUFFERS: usize = 10;

/// The shape of the header a guest and the switch agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    len: u8,
}

/// A frame asked for an offload that was not agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotOffered;

impl Layout {
    /// The layout that follows from the acknowledged virtio feature bits: `num_buffers` is there with `VERSION_1` or
    /// `MRG_RXBUF`.
    pub fn from_features(features: u64) -> Self {
        let long = features & (VERSION_1 | 1 << VIRTIO_NET_F_MRG_RXBUF) != 0;
        Self {
            len: if long { 12 } else { 10 },
        }
    }

    /// Bytes before the frame.
    pub const fn bytes(self) -> usize {
        self.len as usize
    }

    /// Checks the private copy of the header of a frame a guest sends. `num_buffers` has no meaning in this direction.
    pub fn check_transmit(self, header: &[u8]) -> Result<(), NotOffered> {
        let needs_checksum = u32::from(header[FLAGS]) & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0;
        if needs_checksum || u32::from(header[GSO_TYPE]) != VIRTIO_NET_HDR_GSO_NONE {
            return Err(NotOffered);
        }
        Ok(())
    }

    /// The header for a receiver whose frame lies in `buffers` buffers; the first [`Layout::bytes`] bytes count.
    pub fn receive(self, buffers: u16) -> [u8; MAX_LEN] {
        let mut header = [0; MAX_LEN];
        header[NUM_BUFFERS..].copy_from_slice(&buffers.to_le_bytes());
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MRG: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;

    #[test]
    fn length_follows_features() {
        assert_eq!(Layout::from_features(0).bytes(), 10);
        assert_eq!(Layout::from_features(MRG).bytes(), 12);
        assert_eq!(Layout::from_features(VERSION_1).bytes(), 12);
    }

    #[test]
    fn offloads_are_refused() {
        let layout = Layout::from_features(VERSION_1);
        let mut header = [0u8; 12];
        assert_eq!(layout.check_transmit(&header), Ok(()));
        header[NUM_BUFFERS] = 9;
        assert_eq!(
            layout.check_transmit(&header),
            Ok(()),
            "num_buffers means nothing when sending"
        );
        header[FLAGS] = 1;
        assert_eq!(layout.check_transmit(&header), Err(NotOffered));
        header[FLAGS] = 0;
        for gso in [1u8, 3, 4, 5, 0x80] {
            header[GSO_TYPE] = gso;
            assert_eq!(
                layout.check_transmit(&header),
                Err(NotOffered),
                "gso_type {gso}"
            );
        }
    }

    #[test]
    fn receive_header_counts_buffers() {
        let h = Layout::from_features(VERSION_1).receive(0x0102);
        assert_eq!(h, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 1]);
    }
}
