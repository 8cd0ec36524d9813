//! Captured frames as pcapng (draft-ietf-opsawg-pcapng).

use std::borrow::Cow;
use std::io::{self, BufWriter, Write};
use std::time::Duration;

use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption, InterfaceTsResolution,
};
use pcap_file::pcapng::blocks::interface_statistics::{
    InterfaceStatisticsBlock, InterfaceStatisticsOption,
};
use pcap_file::pcapng::blocks::opt_common::CommonOption;
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::pcapng::{PcapNgBlock, PcapNgWriteError, PcapNgWriter};
use pcap_file::{DataLink, Endianness};

use super::tap::{InterfaceCounters, Record};
use crate::clock::Time;

/// Bytes gathered before they are written.
const BUFFER: usize = 256 << 10;

/// What is said of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) description: String,
}

/// A pcapng section.
pub(super) struct Stream<W: Write> {
    writer: PcapNgWriter<BufWriter<W>>,
    clock: Epoch,
    interfaces: usize,
}

impl<W: Write> Stream<W> {
    /// Begins a section with these interfaces.
    pub(super) fn begin(
        out: W,
        clock: Epoch,
        interfaces: &[Interface],
        snaplen: u32,
    ) -> io::Result<Self> {
        let version = concat!("vswitch ", env!("CARGO_PKG_VERSION"));
        let section = SectionHeaderBlock {
            endianness: Endianness::native(),
            options: vec![SectionHeaderOption::UserApplication(version.into())],
            ..SectionHeaderBlock::default()
        };
        let out = BufWriter::with_capacity(BUFFER, out);
        let mut stream = Self {
            writer: PcapNgWriter::with_section_header(out, section).map_err(to_io)?,
            clock,
            interfaces: interfaces.len(),
        };
        for interface in interfaces {
            stream.block(InterfaceDescriptionBlock {
                linktype: DataLink::ETHERNET,
                snaplen,
                options: vec![
                    InterfaceDescriptionOption::IfName(interface.name.as_str().into()),
                    InterfaceDescriptionOption::IfDescription(
                        interface.description.as_str().into(),
                    ),
                    InterfaceDescriptionOption::IfTsResol(InterfaceTsResolution::NANO),
                ],
            })?;
        }
        Ok(stream)
    }

    /// Writes a frame.
    pub(super) fn frame(&mut self, record: &Record, data: &[u8]) -> io::Result<()> {
        let mut options = Vec::new();
        if record.lost > 0 {
            options.push(EnhancedPacketOption::DropCount(record.lost.into()));
        }
        if let Some(reason) = record.reason {
            let reason = CommonOption::Comment(reason.name().into());
            options.push(EnhancedPacketOption::Common(reason));
        }
        self.block(EnhancedPacketBlock {
            interface_id: record.interface,
            timestamp: self.clock.date(record.at),
            original_len: record.len,
            data: Cow::Borrowed(data),
            options,
        })
    }

    /// Writes the statistics of every interface, which end the section.
    pub(super) fn end(&mut self, counters: &[InterfaceCounters], now: Time) -> io::Result<()> {
        for (number, counters) in counters.iter().take(self.interfaces).enumerate() {
            let lost = counters.lost.get();
            let accepted = counters.accepted.get();
            let mut options = vec![
                InterfaceStatisticsOption::IsbStartTime(self.clock.date(self.clock.begin)),
                InterfaceStatisticsOption::IsbEndTime(self.clock.date(now)),
                InterfaceStatisticsOption::IsbIfRecv(counters.seen.get()),
                InterfaceStatisticsOption::IsbIfDrop(lost),
                InterfaceStatisticsOption::IsbFilterAccept(accepted),
                InterfaceStatisticsOption::IsbUsrDeliv(accepted - lost.min(accepted)),
            ];
            if lost > 0 {
                let told = format!("{lost} frames are missing: the reader was too slow");
                let comment = CommonOption::Comment(told.into());
                options.push(InterfaceStatisticsOption::Common(comment));
            }
            self.block(InterfaceStatisticsBlock {
                interface_id: number as u32,
                timestamp: self.clock.date(now),
                options,
            })?;
        }
        self.flush()
    }

    /// Hands on what was written so far.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.writer.get_mut().flush()
    }

    fn block<'a>(&mut self, block: impl PcapNgBlock<'a>) -> io::Result<()> {
        self.writer.write_pcapng_block(block).map_err(to_io)?;
        Ok(())
    }
}

fn to_io(error: PcapNgWriteError) -> io::Error {
    match error {
        PcapNgWriteError::Io(error) => error,
        other => io::Error::other(other),
    }
}

/// How the clock of the shards is turned into dates: by one look at both clocks when the capture began. Later steps of the system's clock
/// do not tear the time stamps of a capture apart.
#[derive(Debug, Clone, Copy)]
pub(super) struct Epoch {
    begin: Time,
    date: Duration,
}

impl Epoch {
    /// `begin` was at `date`, counted from 1970.
    pub(super) fn new(begin: Time, date: Duration) -> Self {
        Self { begin, date }
    }

    /// Looks at both clocks.
    pub(super) fn now() -> Self {
        let before = Time::now();
        let date = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        let between = Time::now().since(before) / 2;
        Self::new(before + between, date)
    }

    fn date(&self, at: Time) -> Duration {
        let since = self.date + at.since(self.begin);
        since.saturating_sub(self.begin.since(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Drop;
    use pcap_file::pcapng::PcapNgReader;
    use pcap_file::pcapng::blocks::block_common::Block;

    #[test]
    fn nanoseconds_reasons_and_losses() {
        let interfaces = [
            Interface {
                name: "a > b (after)".into(),
                description: "link x".into(),
            },
            Interface {
                name: "a > b (drops)".into(),
                description: "link x".into(),
            },
        ];
        let clock = Epoch::new(Time::from_nanos(1000), Duration::new(1_700_000_000, 5));
        let mut bytes = Vec::new();
        let mut stream = Stream::begin(&mut bytes, clock, &interfaces, 96).unwrap();
        let record = Record {
            at: Time::from_nanos(1_000_000_123),
            interface: 1,
            len: 60,
            kept: 3,
            lost: 7,
            reason: Some(Drop::NoRxBuffer),
        };
        stream.frame(&record, &[1, 2, 3]).unwrap();
        let early = Record {
            at: Time::from_nanos(999),
            interface: 0,
            len: 2,
            kept: 2,
            lost: 0,
            reason: None,
        };
        stream.frame(&early, &[8, 9]).unwrap();
        let counters: [InterfaceCounters; 2] = Default::default();
        counters[1].seen.add(20);
        counters[1].accepted.add(9);
        counters[1].lost.add(8);
        stream
            .end(&counters, Time::from_nanos(2_000_001_000))
            .unwrap();
        drop(stream);

        let mut reader = PcapNgReader::new(bytes.as_slice()).unwrap();
        let mut packets = 0;
        let mut statistics = 0;
        while let Some(block) = reader.next_block() {
            match block.unwrap().0 {
                Block::InterfaceDescription(i) => {
                    assert_eq!((i.linktype, i.snaplen), (DataLink::ETHERNET, 96));
                    assert_eq!(i.ts_resolution(), InterfaceTsResolution::NANO);
                }
                Block::EnhancedPacket(p) if p.interface_id == 1 => {
                    packets += 1;
                    assert_eq!(p.timestamp, Duration::new(1_700_000_000, 999_999_128));
                    assert_eq!((p.original_len, &p.data[..]), (60, &[1, 2, 3][..]));
                    let comment = CommonOption::Comment("no_rx_buffer".into());
                    let options = [
                        EnhancedPacketOption::DropCount(7),
                        EnhancedPacketOption::Common(comment),
                    ];
                    assert_eq!(p.options, options);
                }
                Block::EnhancedPacket(p) => {
                    packets += 1;
                    assert_eq!(p.timestamp, Duration::new(1_700_000_000, 4));
                    assert!(p.options.is_empty());
                }
                Block::InterfaceStatistics(s) => {
                    statistics += 1;
                    let of_second = s.options.contains(&InterfaceStatisticsOption::IsbIfDrop(8))
                        && s.options
                            .contains(&InterfaceStatisticsOption::IsbUsrDeliv(1));
                    assert_eq!(of_second, s.interface_id == 1);
                    assert_eq!(s.timestamp, Duration::new(1_700_000_002, 5));
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((packets, statistics), (2, 2));
    }
}
