//! Puts a kernel into guest memory and says how to enter it.
//!
//! An ELF `vmlinux` is entered by its PVH note (Xen's `docs/misc/pvh.pandoc`), a bzImage by the
//! Linux 64-bit boot protocol (`Documentation/arch/x86/boot.rst`).

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::Path;

use linux_loader::cmdline::Cmdline;
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::bzimage::BzImage;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_start_info};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{KernelLoader, load_cmdline};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::error::Error;
use crate::layout::{
    BIOS, CMDLINE, CMDLINE_MAX, ECAM, KERNEL, LOW_RAM_END, PVH_MEMMAP, PVH_START_INFO, RESET_PORT,
    RESET_VALUE, RESET_VECTOR, ZERO_PAGE,
};
use crate::memory::GuestMemory;

/// The state in which the boot processor enters the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// 32-bit protected mode without paging, `rbx` = [`PVH_START_INFO`].
    Pvh(u64),
    /// Long mode, `rsi` = [`ZERO_PAGE`].
    Linux64(u64),
}

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
const XEN_HVM_START_MAGIC: u32 = 0x336e_c578;
/// `setup_header::xloadflags`: the kernel has the 64-bit entry point at offset 0x200.
const XLF_KERNEL_64: u16 = 1;
const KERNEL_64_ENTRY: u64 = 0x200;
/// `type_of_loader` for a boot loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;

/// Loads the kernel in `file`, which is at `path`, with its command line and memory map; the ACPI tables' root
/// pointer is at `rsdp`.
pub fn load(
    memory: &GuestMemory,
    mut file: &File,
    path: &Path,
    cmdline: &str,
    rsdp: u64,
) -> Result<Entry, Error> {
    let fail = |reason: String| Error::Kernel {
        path: path.to_owned(),
        reason,
    };
    write_reset_vector(memory).map_err(fail)?;
    let mut line = Cmdline::new(CMDLINE_MAX).map_err(|e| fail(e.to_string()))?;
    line.insert_str(cmdline)
        .map_err(|e| fail(format!("its command line: {e} (limit {CMDLINE_MAX} bytes)")))?;
    load_cmdline(memory, GuestAddress(CMDLINE), &line).map_err(|e| fail(e.to_string()))?;

    match Elf::load(memory, None, &mut file, Some(GuestAddress(KERNEL))) {
        Ok(elf) => {
            let PvhBootCapability::PvhEntryPresent(entry) = elf.pvh_boot_cap else {
                return Err(fail(
                    "it has no PVH entry point; build it with CONFIG_PVH=y, or name its bzImage"
                        .into(),
                ));
            };
            write_start_info(memory, rsdp).map_err(fail)?;
            Ok(Entry::Pvh(entry.0))
        }
        Err(elf_error) => {
            file.seek(SeekFrom::Start(0))
                .map_err(|e| fail(e.to_string()))?;
            let image = BzImage::load(memory, None, &mut file, Some(GuestAddress(KERNEL)))
                .map_err(|bz_error| {
                    fail(format!(
                        "as a vmlinux: {elf_error}; as a bzImage: {bz_error}"
                    ))
                })?;
            let header = image.setup_header.unwrap_or_default();
            if { header.xloadflags } & XLF_KERNEL_64 == 0 {
                return Err(fail("this bzImage has no 64-bit entry point".into()));
            }
            write_zero_page(memory, header, cmdline.len(), rsdp).map_err(fail)?;
            Ok(Entry::Linux64(image.kernel_load.0 + KERNEL_64_ENTRY))
        }
    }
}

/// Real-mode code at the reset vector that writes the ACPI reset register. Kernels of distributions jump there when
/// they restart "by the BIOS"; without it they would run through zeros for ever.
fn write_reset_vector(memory: &GuestMemory) -> Result<(), String> {
    let [low, high] = RESET_PORT.to_le_bytes();
    // mov al, RESET_VALUE; mov dx, RESET_PORT; out dx, al; hlt
    let code = [0xb0, RESET_VALUE, 0xba, low, high, 0xee, 0xf4];
    memory
        .write_slice(&code, GuestAddress(RESET_VECTOR))
        .map_err(|e| e.to_string())
}

/// `(start, length, e820 type)` of everything the kernel has to know about its physical memory.
///
/// ECAM has to be listed as reserved, or Linux does not believe the MCFG table.
fn memory_map(memory: &GuestMemory) -> Vec<(u64, u64, u32)> {
    let mut map = vec![
        (0, LOW_RAM_END, E820_RAM),
        (BIOS.start, BIOS.end - BIOS.start, E820_RESERVED),
        (ECAM.start, ECAM.end - ECAM.start, E820_RESERVED),
    ];
    for region in memory.iter() {
        let start = region.start_addr().0.max(KERNEL);
        let end = region.start_addr().0 + region.len();
        map.push((start, end - start, E820_RAM));
    }
    map.sort_unstable();
    map
}

fn write_start_info(memory: &GuestMemory, rsdp: u64) -> Result<(), String> {
    let memmap: Vec<_> = memory_map(memory)
        .into_iter()
        .map(|(addr, size, type_)| hvm_memmap_table_entry {
            addr,
            size,
            type_,
            reserved: 0,
        })
        .collect();
    let start_info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC,
        version: 1,
        cmdline_paddr: CMDLINE,
        rsdp_paddr: rsdp,
        memmap_paddr: PVH_MEMMAP,
        memmap_entries: memmap.len() as u32,
        ..Default::default()
    };
    let mut params = BootParams::new(&start_info, GuestAddress(PVH_START_INFO));
    params.set_sections(&memmap, GuestAddress(PVH_MEMMAP));
    PvhBootConfigurator::write_bootparams(&params, memory).map_err(|e| e.to_string())
}

fn write_zero_page(
    memory: &GuestMemory,
    header: setup_header,
    cmdline_len: usize,
    rsdp: u64,
) -> Result<(), String> {
    let mut params = boot_params {
        hdr: header,
        acpi_rsdp_addr: rsdp,
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.cmd_line_ptr = CMDLINE as u32;
    params.hdr.cmdline_size = cmdline_len as u32;
    let map = memory_map(memory);
    params.e820_entries = map.len() as u8;
    for (slot, (addr, size, kind)) in params.e820_table.iter_mut().zip(map) {
        *slot = boot_e820_entry {
            addr,
            size,
            r#type: kind,
        };
    }
    LinuxBootConfigurator::write_bootparams(
        &BootParams::new(&params, GuestAddress(ZERO_PAGE)),
        memory,
    )
    .map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::allocate;

    #[test]
    fn memory_map_leaves_no_gap_in_ram_and_reserves_ecam() {
        let memory = allocate(256 << 20).unwrap();
        assert_eq!(
            memory_map(&memory),
            vec![
                (0, 0x9_fc00, E820_RAM),
                (0xe_0000, 0x2_0000, E820_RESERVED),
                (0x10_0000, (256 << 20) - 0x10_0000, E820_RAM),
                (0xe000_0000, 0x10_0000, E820_RESERVED),
            ]
        );
    }

    #[test]
    fn what_is_no_kernel_is_refused_by_name() {
        let memory = allocate(64 << 20).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [0u8; 4096]).unwrap();
        let error = load(&memory, file.as_file(), file.path(), "", 0)
            .unwrap_err()
            .to_string();
        assert!(error.contains("cannot boot kernel"), "{error}");
        assert!(error.contains("bzImage"), "{error}");
    }
}
