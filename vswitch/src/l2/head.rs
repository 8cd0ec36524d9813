//! The start of a frame, as far as layer-2 nodes look at it and change it.

use super::Mac;

/// Destination and source address of a frame, in this order, as they are on the wire.
pub type Addresses = [u8; 12];
/// A tag from its EtherType on (IEEE 802.1Q-2018 §9.6).
pub type Tag = [u8; 4];

/// Bytes to read of a frame for [`Head::read`].
pub const HEAD_BYTES: usize = 16;
/// The EtherType of a customer VLAN tag.
const CUSTOMER: [u8; 2] = [0x81, 0x00];

/// The addresses of a frame and its outermost VLAN tag, read once.
///
/// Whoever copies the frame writes these and not what the guest may have put there since, so that a frame is delivered with the
/// addresses by which it was forwarded. A tag is added or removed by changing this alone: the bytes behind stay
/// where they are until they are copied to the receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Destination and source.
    pub addresses: Addresses,
    /// The outermost tag. Service tags (802.1ad) are payload here, as for every bridge of customer VLANs.
    pub tag: Option<Tag>,
    /// How many of the bytes that lie in memory these stand for.
    stored: u8,
}

impl Head {
    /// Of a frame that begins like this; [`HEAD_BYTES`] are enough, a shorter one has no tag.
    pub fn read(start: &[u8]) -> Option<Self> {
        let addresses = *start.first_chunk()?;
        let tag = start[12..].first_chunk::<4>().copied();
        let tag = tag.filter(|tag| tag[..2] == CUSTOMER);
        Some(Self {
            addresses,
            tag,
            stored: if tag.is_some() { 16 } else { 12 },
        })
    }

    /// Of a frame that lies in memory without its tag.
    pub fn with_tag_apart(start: &[u8], tag: Tag) -> Option<Self> {
        Some(Self {
            addresses: *start.first_chunk()?,
            tag: Some(tag),
            stored: 12,
        })
    }

    /// Bytes of the frame in memory that are replaced by [`Head::bytes`].
    pub fn stored(&self) -> usize {
        self.stored.into()
    }

    /// The same, of a frame that has been written with it.
    #[must_use]
    pub fn written(self) -> Self {
        Self {
            stored: self.len() as u8,
            ..self
        }
    }

    /// Bytes on the wire.
    pub fn len(&self) -> usize {
        if self.tag.is_some() { 16 } else { 12 }
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// What stands at the start of the frame; the first [`Head::len`] bytes count.
    pub fn bytes(&self) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        bytes[..12].copy_from_slice(&self.addresses);
        if let Some(tag) = self.tag {
            bytes[12..].copy_from_slice(&tag);
        }
        bytes
    }

    /// With one bit flipped, counted from the first on the wire.
    #[must_use]
    pub fn flip(mut self, bit: u32) -> Self {
        let (byte, mask) = (bit as usize / 8, 1 << (bit % 8));
        if let Some(byte) = self.addresses.get_mut(byte) {
            *byte ^= mask;
        } else if let Some(tag) = &mut self.tag
            && let Some(byte) = tag.get_mut(byte - 12)
        {
            *byte ^= mask;
        }
        self
    }

    /// The receiver.
    pub fn destination(&self) -> Mac {
        self.addresses.first_chunk().copied().unwrap_or_default()
    }

    /// The sender.
    pub fn source(&self) -> Mac {
        self.addresses.last_chunk().copied().unwrap_or_default()
    }

    /// The VLAN identifier of its tag; 0 of a tag that has only a priority.
    pub fn vid(&self) -> Option<u16> {
        let tag = self.tag.filter(|tag| tag[..2] == CUSTOMER)?;
        Some(u16::from_be_bytes([tag[2], tag[3]]) & 0xfff)
    }

    /// With a tag of `vlan`, which keeps the priority of the one there is.
    #[must_use]
    pub fn tagged(self, vlan: u16) -> Self {
        let priority = self.tag.map_or(0, |tag| tag[2] & 0xf0);
        let [high, low] = vlan.to_be_bytes();
        Self {
            tag: Some([CUSTOMER[0], CUSTOMER[1], priority | high, low]),
            ..self
        }
    }

    /// Without its tag.
    #[must_use]
    pub fn untagged(self) -> Self {
        Self { tag: None, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(behind: &[u8]) -> Vec<u8> {
        let mut frame: Vec<u8> = (0..12).collect();
        frame.extend_from_slice(behind);
        frame
    }

    #[test]
    fn reads_tags() {
        let head = Head::read(&frame(&[0x81, 0, 0x60, 5, 8, 0])).unwrap();
        assert_eq!((head.vid(), head.len(), head.stored()), (Some(5), 16, 16));
        assert_eq!(head.destination(), [0, 1, 2, 3, 4, 5]);
        assert_eq!(head.source(), [6, 7, 8, 9, 10, 11]);
        for other in [&[8, 0, 1, 2][..], &[0x88, 0xa8, 0, 5], &[0x81, 0], &[]] {
            let head = Head::read(&frame(other)).unwrap();
            assert_eq!((head.vid(), head.len(), head.stored()), (None, 12, 12));
        }
        assert_eq!(Head::read(&[0; 11]), None);
    }

    #[test]
    fn tags_come_and_go() {
        let head = Head::read(&frame(&[8, 0, 1, 2])).unwrap();
        let tagged = head.tagged(0x123);
        assert_eq!(tagged.bytes()[12..], [0x81, 0, 0x01, 0x23]);
        assert_eq!((tagged.len(), tagged.stored()), (16, 12));
        let priority = Head::read(&frame(&[0x81, 0, 0xe0, 0])).unwrap();
        assert_eq!(priority.vid(), Some(0));
        assert_eq!(priority.tagged(7).tag, Some([0x81, 0, 0xe0, 7]));
        let bare = priority.untagged();
        assert_eq!((bare.len(), bare.stored(), bare.vid()), (12, 16, None));
    }

    #[test]
    fn flips_on_the_wire() {
        let head = Head::read(&frame(&[0x81, 0, 0, 5])).unwrap();
        assert_eq!(head.flip(0).addresses[0], 1);
        assert_eq!(head.flip(15 * 8).vid(), Some(4));
        assert_eq!(head.flip(16 * 8), head);
    }
}
