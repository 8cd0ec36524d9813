//! I/O ports: serial port, power, reset and panic registers.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::acpi::SLEEP_TYPE_S5;
use crate::end::{End, EndReason};
use crate::layout::{
    KEYBOARD_PORT, KEYBOARD_RESET, PVPANIC_PORT, RESET_PORT, RESET_VALUE, SERIAL_PORT,
    SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT,
};
use crate::serial::SerialLog;

/// pvpanic's events: the guest panicked; the guest panicked and will deal with it itself (kdump).
const PANICKED: u8 = 1;
/// `SLP_EN` and `SLP_TYP` of the sleep control register.
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0b111;

/// Typed bytes that may wait for the guest to read them.
const TYPED: usize = 4096;

/// Raises the serial port's interrupt.
#[derive(Debug)]
pub struct SerialInterrupt(pub EventFd);

impl Trigger for SerialInterrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// All ports of the guest. Shared by its virtual processors.
#[derive(Debug)]
pub struct Ports {
    serial: Mutex<Uart>,
    log: Arc<Mutex<SerialLog>>,
}

/// The serial port.
#[derive(Debug)]
struct Uart {
    chip: Serial<SerialInterrupt, NoEvents, SharedLog>,
    /// What was typed and does not fit the chip's FIFO yet.
    typed: VecDeque<u8>,
}

impl Uart {
    /// Gives the chip what it has room for.
    fn feed(&mut self) {
        while !self.typed.is_empty() && self.chip.fifo_capacity() > 0 {
            let (next, _) = self.typed.as_slices();
            // Nothing is taken while the guest tests the chip; what it reads next asks again.
            match self.chip.enqueue_raw_bytes(next) {
                Ok(taken @ 1..) => drop(self.typed.drain(..taken)),
                Ok(0) | Err(_) => return,
            }
        }
    }
}

/// The log, which the UART writes and the panic report reads.
#[derive(Debug)]
struct SharedLog(Arc<Mutex<SerialLog>>);

impl io::Write for SharedLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Ports {
    /// Ports whose serial output goes to `log`.
    pub fn new(interrupt: SerialInterrupt, log: SerialLog) -> Self {
        let log = Arc::new(Mutex::new(log));
        Self {
            serial: Mutex::new(Uart {
                chip: Serial::new(interrupt, SharedLog(log.clone())),
                typed: VecDeque::new(),
            }),
            log,
        }
    }

    /// A person types. What a guest that reads nothing has no room for is lost, as on a wire.
    pub fn input(&self, bytes: &[u8]) {
        self.log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write_at_once();
        let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
        let room = TYPED.saturating_sub(serial.typed.len());
        serial.typed.extend(bytes.iter().take(room));
        serial.feed();
    }

    /// Writes out the last, unfinished line of the serial log.
    pub fn flush(&self) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = log.write_out();
    }

    /// A reset. A kernel without a pvpanic driver resets when it panics, and has said why on the serial port.
    fn reset(&self) -> End {
        match self.panic_message() {
            Some(detail) => End {
                reason: EndReason::Panic,
                detail,
            },
            None => End {
                reason: EndReason::Reboot,
                detail: String::new(),
            },
        }
    }

    fn panic_message(&self) -> Option<String> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.panic_message()
    }

    /// An `in` instruction.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        data.fill(match port {
            SERIAL_PORT..=0x3ff => {
                let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
                let value = serial.chip.read((port - SERIAL_PORT) as u8);
                serial.feed();
                value
            }
            PVPANIC_PORT => PANICKED,
            // A keyboard controller that is never busy: a guest would wait for it before the reset.
            SLEEP_CONTROL_PORT | SLEEP_STATUS_PORT | RESET_PORT | KEYBOARD_PORT => 0,
            _ => 0xff,
        });
    }

    /// An `out` instruction. Returns how the guest ended if that is what it means.
    pub fn write(&self, port: u16, data: &[u8]) -> Option<End> {
        let &[value, ..] = data else {
            return None;
        };
        let end = |reason, detail| Some(End { reason, detail });
        match port {
            SERIAL_PORT..=0x3ff => {
                let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
                // An interrupt that cannot be raised is the eventfd's counter overflowing: one is pending.
                let _ = serial.chip.write((port - SERIAL_PORT) as u8, value);
                None
            }
            PVPANIC_PORT if value & PANICKED != 0 => {
                end(EndReason::Panic, self.panic_message().unwrap_or_default())
            }
            SLEEP_CONTROL_PORT
                if value & SLEEP_ENABLE != 0
                    && value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK == SLEEP_TYPE_S5 =>
            {
                end(EndReason::PowerOff, String::new())
            }
            RESET_PORT if value == RESET_VALUE => Some(self.reset()),
            KEYBOARD_PORT if value == KEYBOARD_RESET => Some(self.reset()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports() -> (tempfile::TempDir, Ports) {
        let folder = tempfile::tempdir().unwrap();
        let log = SerialLog::open(&folder.path().join("serial.log")).unwrap();
        (
            folder,
            Ports::new(SerialInterrupt(EventFd::new(0).unwrap()), log),
        )
    }

    #[test]
    fn each_way_to_end_is_told_apart() {
        let (_folder, ports) = ports();
        let reason = |port, value| ports.write(port, &[value]).map(|end| end.reason);
        assert_eq!(
            reason(SLEEP_CONTROL_PORT, 5 << 2 | 1 << 5),
            Some(EndReason::PowerOff)
        );
        assert_eq!(
            reason(SLEEP_CONTROL_PORT, 5 << 2),
            None,
            "SLP_EN is not set"
        );
        assert_eq!(
            reason(SLEEP_CONTROL_PORT, 3 << 2 | 1 << 5),
            None,
            "S3 is not offered"
        );
        assert_eq!(reason(RESET_PORT, 1), Some(EndReason::Reboot));
        assert_eq!(reason(KEYBOARD_PORT, 0xfe), Some(EndReason::Reboot));
        assert_eq!(reason(PVPANIC_PORT, 1), Some(EndReason::Panic));
        assert_eq!(reason(0x80, 1), None);
    }

    #[test]
    fn panic_says_what_the_kernel_said() {
        let (_folder, ports) = ports();
        for byte in b"Kernel panic - not syncing: out of hops\r\n" {
            ports.write(SERIAL_PORT, &[*byte]);
        }
        assert_eq!(
            ports.write(PVPANIC_PORT, &[1]).unwrap().detail,
            "out of hops"
        );
    }

    #[test]
    fn what_is_typed_arrives_however_long_and_is_bounded() {
        let (_folder, ports) = ports();
        let typed: Vec<u8> = (0..1000_u32).map(|n| n as u8).collect();
        for part in typed.chunks(crate::SERIAL_INPUT) {
            ports.input(part);
        }
        let read = || {
            let mut data = [0];
            ports.read(SERIAL_PORT, &mut data);
            data[0]
        };
        // Line status: is there data?
        let waiting = || {
            let mut data = [0];
            ports.read(SERIAL_PORT + 5, &mut data);
            data[0] & 1 == 1
        };
        let mut arrived = Vec::new();
        while waiting() {
            arrived.push(read());
        }
        assert_eq!(arrived, typed);
        for _ in 0..100 {
            ports.input(&[b'x'; 200]);
        }
        let mut arrived = 0;
        while waiting() {
            read();
            arrived += 1;
        }
        assert!((TYPED..=TYPED + 64).contains(&arrived), "{arrived}");
    }

    #[test]
    fn a_prompt_is_seen_once_somebody_looks() {
        let (folder, ports) = ports();
        let log = || std::fs::read_to_string(folder.path().join("serial.log")).unwrap();
        ports.write(SERIAL_PORT, b"#");
        assert_eq!(log(), "", "a line at a time");
        ports.input(&[]);
        assert_eq!(log(), "#");
        ports.write(SERIAL_PORT, b" ");
        assert_eq!(log(), "# ");
    }

    #[test]
    fn unknown_ports_float() {
        let (_folder, ports) = ports();
        let mut data = [0; 4];
        ports.read(0xcf8, &mut data);
        assert_eq!(data, [0xff; 4]);
    }
}
