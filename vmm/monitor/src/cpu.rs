//! The state of the virtual processors before their first instruction.

use kvm_bindings::{CpuId, Msrs, kvm_cpuid_entry2, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use vm_memory::{Bytes, GuestAddress};

use crate::boot::Entry;
use crate::error::Error;
use crate::layout::{BOOT_STACK, GDT, PAGE_TABLES, PVH_START_INFO, ZERO_PAGE};
use crate::memory::GuestMemory;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// The bit of RFLAGS that is always set.
const RFLAGS_RESERVED: u64 = 1 << 1;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, memory is write-back unless said otherwise.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// The processor features KVM supports, made consistent for processor `id` of `count`.
pub fn cpuid(kvm: &Kvm, supported: &CpuId, id: u8, count: u8) -> Result<CpuId, Error> {
    let deadline_timer = kvm.check_extension(Cap::TscDeadlineTimer);
    let mut entries: Vec<_> = supported
        .as_slice()
        .iter()
        // Topology leaves are written below; what the host's say is about the host.
        .filter(|entry| !matches!(entry.function, 0xb | 0x1f | 0x8000_0026))
        .copied()
        .collect();
    let id = u32::from(id);
    let count = u32::from(count);
    // Bits of the APIC id that number the processors of one package.
    let width = count.next_power_of_two().trailing_zeros();
    let mut vendor = [0; 12];
    for entry in &mut entries {
        match entry.function {
            0 => {
                vendor[..4].copy_from_slice(&entry.ebx.to_le_bytes());
                vendor[4..8].copy_from_slice(&entry.edx.to_le_bytes());
                vendor[8..].copy_from_slice(&entry.ecx.to_le_bytes());
            }
            1 => {
                entry.ebx = entry.ebx & 0xffff | count << 16 | id << 24;
                // Under a hypervisor; no VMX for a guest that has no need of it.
                entry.ecx = entry.ecx & !(1 << 5) | 1 << 31;
                // KVM emulates the deadline timer everywhere but leaves it to the monitor to say so.
                if deadline_timer {
                    entry.ecx |= 1 << 24;
                }
                // HTT says that the count above is valid.
                entry.edx = entry.edx & !(1 << 28) | u32::from(count > 1) << 28;
            }
            // Caches: private to a processor, and one package.
            4 => entry.eax = entry.eax & 0x3fff | (count - 1) << 26,
            0x8000_0001 => entry.ecx &= !(1 << 2), // no SVM
            0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | width << 12 | (count - 1),
            0x8000_001d => entry.eax &= 0x3fff,
            0x8000_001e => {
                entry.eax = id;
                entry.ebx = id; // one thread a core
                entry.ecx = 0;
            }
            _ => {}
        }
    }
    // Leaf 0xB: level 0 one thread a core, level 1 all cores of the package (Intel SDM vol. 2A, CPUID).
    let level = |index: u32, kind: u32, shift: u32, processors: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: kind << 8 | index,
        edx: id,
        ..Default::default()
    };
    entries.extend([
        level(0, 1, 0, 1),
        level(1, 2, width, count),
        level(2, 0, 0, 0),
    ]);
    CpuId::from_entries(&entries)
        .map_err(|_| Error::Config("KVM reports more CPUID leaves than it takes".into()))
}

/// Puts the boot processor into the state in which `entry` wants to be entered; the others wait for its SIPI.
pub fn enter(vcpu: &VcpuFd, memory: &GuestMemory, entry: Entry) -> Result<(), Error> {
    let flat_code = |long: u8| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: 8,
        type_: 0b1011,
        present: 1,
        dpl: 0,
        db: 1 - long,
        s: 1,
        l: long,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: 16,
        type_: 0b0011,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    let task = kvm_segment {
        base: 0,
        limit: 0x67,
        selector: 24,
        type_: 0b1011,
        present: 1,
        ..Default::default()
    };
    let mut sregs = vcpu
        .get_sregs()
        .map_err(Error::kvm("read system registers"))?;
    let long = u8::from(matches!(entry, Entry::Linux64(_)));
    sregs.cs = flat_code(long);
    for segment in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *segment = data;
    }
    sregs.tr = task;
    let descriptors = write_gdt(memory, long)?;
    sregs.gdt.base = GDT;
    sregs.gdt.limit = descriptors * 8 - 1;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;

    let mut regs = kvm_regs {
        rflags: RFLAGS_RESERVED,
        ..Default::default()
    };
    match entry {
        Entry::Pvh(rip) => {
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr4 = 0;
            sregs.efer = 0;
            regs.rip = rip;
            regs.rbx = PVH_START_INFO;
        }
        Entry::Linux64(rip) => {
            write_page_tables(memory)?;
            sregs.cr3 = PAGE_TABLES;
            sregs.cr4 = CR4_PAE;
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            sregs.efer = EFER_LME | EFER_LMA;
            regs.rip = rip;
            regs.rsi = ZERO_PAGE;
            regs.rsp = BOOT_STACK;
            regs.rbp = BOOT_STACK;
        }
    }
    vcpu.set_sregs(&sregs)
        .map_err(Error::kvm("set system registers"))?;
    vcpu.set_regs(&regs).map_err(Error::kvm("set registers"))?;
    vcpu.set_fpu(&kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    })
    .map_err(Error::kvm("set floating-point registers"))
}

/// The model-specific registers firmware would have set, on every processor.
pub fn set_msrs(vcpu: &VcpuFd) -> Result<(), Error> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    // One call each: KVM stops at the first register that this host does not have, and neither is vital.
    for msr in [
        entry(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        entry(MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK),
    ] {
        let msrs = Msrs::from_entries(&[msr]).map_err(|_| Error::Config("MSR list".into()))?;
        vcpu.set_msrs(&msrs)
            .map_err(Error::kvm("set model-specific registers"))?;
    }
    Ok(())
}

/// Null, code, data, task: what the segment registers above stand for. Returns their number.
fn write_gdt(memory: &GuestMemory, long: u8) -> Result<u16, Error> {
    let code = if long == 1 {
        0x00af_9b00_0000_ffff
    } else {
        0x00cf_9b00_0000_ffff
    };
    let table: [u64; 4] = [0, code, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067];
    for (index, descriptor) in table.iter().enumerate() {
        write_u64(memory, GDT + index as u64 * 8, *descriptor)?;
    }
    Ok(table.len() as u16)
}

/// Identity map of the first GiB in 2 MiB pages, as the 64-bit boot protocol asks for.
fn write_page_tables(memory: &GuestMemory) -> Result<(), Error> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    write_u64(
        memory,
        PAGE_TABLES,
        (PAGE_TABLES + 0x1000) | PRESENT_WRITABLE,
    )?;
    write_u64(
        memory,
        PAGE_TABLES + 0x1000,
        (PAGE_TABLES + 0x2000) | PRESENT_WRITABLE,
    )?;
    for page in 0..512 {
        write_u64(
            memory,
            PAGE_TABLES + 0x2000 + page * 8,
            page << 21 | LARGE | PRESENT_WRITABLE,
        )?;
    }
    Ok(())
}

fn write_u64(memory: &GuestMemory, address: u64, value: u64) -> Result<(), Error> {
    memory
        .write_obj(value, GuestAddress(address))
        .map_err(|e| Error::Config(format!("guest memory is too small to boot: {e}")))
}
