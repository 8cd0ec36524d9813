//! The guest's address map: guest-physical addresses and I/O ports.
//!
//! ```text
//! 0x0000_0000  low RAM ─ boot data in the first MiB, the kernel from 1 MiB
//! 0xC000_0000  PCI BARs ([`PCI_BARS`])
//! 0xE000_0000  PCI configuration space, ECAM, bus 0 only
//! 0xFEC0_0000  IOAPIC        0xFEE0_0000  local APICs
//! 0xFFFB_D000  KVM's TSS and identity map (Intel without unrestricted guest)
//! 0x1_0000_0000  high RAM
//! ```

use std::ops::Range;

/// GDT of the entry state.
pub const GDT: u64 = 0x500;
/// `hvm_start_info` of a PVH boot.
pub const PVH_START_INFO: u64 = 0x6000;
/// Memory map handed over with it.
pub const PVH_MEMMAP: u64 = 0x7000;
/// `boot_params` of a Linux 64-bit boot.
pub const ZERO_PAGE: u64 = 0x7000;
/// Top of the stack the Linux boot protocol asks for.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Identity page tables of a Linux 64-bit boot: PML4, PDPT and one page directory.
pub const PAGE_TABLES: u64 = 0x9000;
/// Kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Room for the command line; Linux x86 takes at most 2048 bytes.
pub const CMDLINE_MAX: usize = 2048;
/// Usable low memory ends here, as on a PC with an extended BIOS data area.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// What firmware leaves behind; reserved. ACPI tables fill it from below, where a guest also scans for the RSDP.
pub const BIOS: Range<u64> = 0xe_0000..0x10_0000;
/// Where a processor in real mode begins, and where a guest jumps whose last way to restart is the BIOS.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// The kernel.
pub const KERNEL: u64 = 0x10_0000;

/// Low RAM ends here at the latest; the rest continues at [`HIGH_RAM`].
pub const LOW_RAM_MAX: u64 = 0xc000_0000;
/// RAM above the 32-bit devices.
pub const HIGH_RAM: u64 = 0x1_0000_0000;
/// 32-bit window for PCI BARs.
pub const PCI_BARS: Range<u64> = 0xc000_0000..0xe000_0000;
/// PCI configuration space: 256 functions of bus 0, 4 KiB each (PCIe base specification §7.2.2).
pub const ECAM: Range<u64> = 0xe000_0000..0xe010_0000;
/// IOAPIC registers.
pub const IOAPIC: u32 = 0xfec0_0000;
/// Local APIC registers.
pub const LAPIC: u32 = 0xfee0_0000;
/// Three pages KVM needs on Intel processors.
pub const KVM_TSS: usize = 0xfffb_d000;

/// First serial port, eight registers.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Its interrupt.
pub const SERIAL_GSI: u32 = 4;
/// pvpanic (QEMU's `docs/specs/pvpanic.rst`).
pub const PVPANIC_PORT: u16 = 0x505;
/// ACPI sleep control register (ACPI 6.5 §4.8.3.7).
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// ACPI sleep status register.
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// ACPI reset register (ACPI 6.5 §4.8.3.6).
pub const RESET_PORT: u16 = 0x602;
/// The value that resets.
pub const RESET_VALUE: u8 = 1;
/// Keyboard controller command port; Linux pulses its reset line when ACPI did not help.
pub const KEYBOARD_PORT: u16 = 0x64;
/// The command that pulses it.
pub const KEYBOARD_RESET: u8 = 0xfe;
/// First interrupt that is not an IOAPIC pin, free for MSI routes.
pub const FIRST_MSI_GSI: u32 = 24;
