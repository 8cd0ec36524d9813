//! The Internet checksum (RFC 1071).

use std::ptr;

use crate::memory::Segment;

/// A ones' complement sum over bytes that come in pieces.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum {
    /// In the machine's byte order, which the sum does not mind; not folded. Has room for 2^32 words of 32 bits.
    words: u64,
    /// An odd number of bytes so far.
    odd: bool,
}

impl Sum {
    /// Adds private bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        if let Ok(len) = u32::try_from(bytes.len())
            && len > 0
        {
            let ptr = ptr::NonNull::from(bytes).cast();
            self.segment(Segment { ptr, len });
        }
    }

    /// Adds bytes that a guest may change at the same time; the sum is then that of some of them before, some after.
    #[inline]
    pub fn segment(&mut self, segment: Segment) {
        let at = segment.ptr.as_ptr().cast_const();
        let len = segment.len as usize;
        let mut sum = 0u64;
        for i in 0..len / 4 {
            // SAFETY: the word lies inside the segment, which is mapped (`Segment`'s contract); it may have any alignment.
            let word: u32 = unsafe { ptr::read_unaligned(at.wrapping_add(4 * i).cast()) };
            sum += u64::from(word);
        }
        let mut rest = [0u8; 4];
        let tail = len % 4;
        // SAFETY: the last `tail` bytes of the segment; `rest` is private and has four.
        unsafe {
            ptr::copy_nonoverlapping(at.wrapping_add(len - tail), rest.as_mut_ptr(), tail);
        };
        sum += u64::from(u32::from_ne_bytes(rest));
        // At an odd offset high and low bytes change places.
        let folded = fold(sum);
        self.words += u64::from(if self.odd {
            folded.swap_bytes()
        } else {
            folded
        });
        self.odd ^= len % 2 == 1;
    }

    /// Adds a number of 16 bits.
    pub fn number(&mut self, number: u16) {
        self.bytes(&number.to_be_bytes());
    }

    /// The sum.
    pub fn get(self) -> u16 {
        u16::from_be(fold(self.words))
    }

    /// The checksum: the complement. Both zeros mean the same, but UDP has another meaning for one of them, so this is the other.
    pub fn checksum(self) -> u16 {
        match !self.get() {
            0 => 0xffff,
            checksum => checksum,
        }
    }
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Byte by byte, as RFC 1071 defines it.
    fn plain(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn the_example_of_the_rfc() {
        let mut sum = Sum::default();
        sum.bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.get(), 0xddf2);
        assert_eq!(sum.checksum(), !0xddf2);
        let mut all = Sum::default();
        all.number(0xffff);
        assert_eq!(all.checksum(), 0xffff);
    }

    proptest! {
        #[test]
        fn pieces_of_any_length(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..20)) {
            let mut sum = Sum::default();
            for piece in &pieces {
                sum.bytes(piece);
            }
            let whole = pieces.concat();
            // 0 and 0xffff are the same number; the plain sum says 0 only if all is 0, and so does this.
            prop_assert_eq!(sum.get(), plain(&whole));
        }
    }
}
