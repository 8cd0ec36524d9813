//! VLANs of the ports of a switch (IEEE 802.1Q).

use topology::model::PortVlan;

use super::Head;

const WORDS: usize = 4096 / 64;

/// A set of VLANs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Vlans(Box<[u64; WORDS]>);

impl Vlans {
    fn contains(&self, vlan: u16) -> bool {
        let word = self.0.get(usize::from(vlan / 64));
        word.is_some_and(|word| word & 1 << (vlan % 64) != 0)
    }
}

/// How a port takes part in VLANs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// The VLAN of frames without a tag.
    untagged: Option<u16>,
    /// The VLANs whose frames have one.
    tagged: Vlans,
}

impl From<&PortVlan> for Membership {
    fn from(port: &PortVlan) -> Self {
        let mut words = Box::new([0; WORDS]);
        for vlan in 0..4096u16 {
            if port.is_tagged(vlan) {
                words[usize::from(vlan / 64)] |= 1 << (vlan % 64);
            }
        }
        Self {
            untagged: port.untagged(),
            tagged: Vlans(words),
        }
    }
}

impl Membership {
    /// The VLAN of a frame that comes in; `None` if the port does not take it.
    pub fn classify(&self, head: &Head) -> Option<u16> {
        match head.vid() {
            // A tag with VLAN 0 only says a priority.
            None | Some(0) => self.untagged,
            Some(vlan) => Some(vlan).filter(|vlan| self.tagged.contains(*vlan)),
        }
    }

    /// How a frame of `vlan` goes out; `None` if it does not.
    pub fn leave(&self, vlan: u16, head: Head) -> Option<Head> {
        if self.untagged == Some(vlan) {
            Some(head.untagged())
        } else {
            self.tagged.contains(vlan).then(|| head.tagged(vlan))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(tag: Option<[u8; 4]>) -> Head {
        let mut frame = vec![0; 12];
        frame.extend(tag.unwrap_or([8, 0, 0, 0]));
        Head::read(&frame).unwrap()
    }

    fn vid(n: u8) -> Head {
        head(Some([0x81, 0, 0x40, n]))
    }

    #[test]
    fn access() {
        let port = Membership::from(&PortVlan::Access(10));
        assert_eq!(port.classify(&head(None)), Some(10));
        assert_eq!(port.classify(&vid(0)), Some(10));
        assert_eq!(port.classify(&vid(10)), None, "its frames have no tag");
        assert_eq!(port.classify(&vid(20)), None);
        let service = head(Some([0x88, 0xa8, 0, 20]));
        assert_eq!(port.classify(&service), Some(10), "payload");
        assert_eq!(port.leave(10, vid(0)).unwrap().tag, None);
        assert_eq!(port.leave(20, vid(20)), None);
    }

    #[test]
    fn trunk() {
        let trunk = |native| {
            Membership::from(&PortVlan::Trunk {
                allowed: vec![10..=10, 64..=200],
                native,
            })
        };
        let port = trunk(Some(5));
        assert_eq!(port.classify(&head(None)), Some(5));
        assert_eq!(port.classify(&vid(0)), Some(5));
        assert_eq!(port.classify(&vid(5)), None);
        assert_eq!(port.classify(&vid(10)), Some(10));
        assert_eq!(port.classify(&vid(63)), None);
        assert_eq!(port.classify(&vid(64)), Some(64));
        assert_eq!(port.leave(5, vid(10)).unwrap().tag, None);
        let leaves = port.leave(64, vid(0)).unwrap();
        assert_eq!(leaves.tag, Some([0x81, 0, 0x40, 64]), "the priority stays");
        assert_eq!(port.leave(11, head(None)), None);
        assert_eq!(trunk(None).classify(&head(None)), None);
        assert_eq!(trunk(None).classify(&vid(0)), None);
        let native = trunk(Some(10));
        assert_eq!(native.classify(&vid(10)), None);
        assert_eq!(native.leave(10, vid(64)).unwrap().tag, None);
    }
}
