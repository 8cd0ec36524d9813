//! ACPI tables of a hardware-reduced machine (ACPI 6.5 §4.1): RSDP, XSDT, FADT, MADT, MCFG, DSDT.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Name, PackageBuilder,
    Path, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};
use vm_memory::{Bytes, GuestAddress};

use crate::error::Error;
use crate::layout::{
    BIOS, ECAM, IOAPIC, LAPIC, PCI_BARS, PVPANIC_PORT, RESET_PORT, RESET_VALUE, RESET_VECTOR,
    SERIAL_GSI, SERIAL_PORT, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT,
};
use crate::memory::GuestMemory;

const OEM: [u8; 6] = *b"HOPYRD";
const TABLE: [u8; 8] = *b"HOPYARD ";
const REVISION: u32 = 1;
/// `SLP_TYP` of S5; the monitor takes any, the value only has to match the DSDT.
pub const SLEEP_TYPE_S5: u8 = 5;

/// Writes the tables for `vcpus` processors; returns the address of the RSDP.
pub fn write(memory: &GuestMemory, vcpus: u8) -> Result<u64, Error> {
    // The RSDP comes first, where a kernel entered without its address would look for it.
    let mut next = BIOS.start + Rsdp::len() as u64;
    let mut place = |table: &dyn Aml| -> Result<u64, Error> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        let address = next.next_multiple_of(16);
        next = address + bytes.len() as u64;
        if next > RESET_VECTOR {
            return Err(Error::Config("the ACPI tables do not fit".into()));
        }
        memory
            .write_slice(&bytes, GuestAddress(address))
            .map_err(|e| Error::Config(format!("the ACPI tables do not fit: {e}")))?;
        Ok(address)
    };

    let dsdt = place(&dsdt())?;
    let fadt = place(&fadt(dsdt))?;
    let madt = place(&madt(vcpus))?;
    let mut mcfg = MCFG::new(OEM, TABLE, REVISION);
    mcfg.add_ecam(ECAM.start, 0, 0, 0);
    let mcfg = place(&mcfg)?;
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    for table in [fadt, madt, mcfg] {
        xsdt.add_entry(table);
    }
    let xsdt = place(&xsdt)?;

    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    memory
        .write_slice(&rsdp, GuestAddress(BIOS.start))
        .map_err(|e| Error::Config(format!("the ACPI tables do not fit: {e}")))?;
    Ok(BIOS.start)
}

fn port(address: u16) -> GAS {
    GAS::new(
        GasSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        u64::from(address),
    )
}

fn fadt(dsdt: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.reset_reg = port(RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(SLEEP_STATUS_PORT);
    fadt.finalize()
}

fn madt(vcpus: u8) -> MADT {
    let mut madt = MADT::new(
        OEM,
        TABLE,
        REVISION,
        LocalInterruptController::Address(LAPIC),
    );
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    // With every local APIC id below it taken, the IOAPIC's own id is the next one.
    madt.add_structure(IoApic::new(vcpus, IOAPIC, 0));
    madt
}

fn dsdt() -> Sdt {
    let mut aml = Vec::new();
    Scope::new(
        Path::new("_SB_"),
        vec![
            &Device::new(
                Path::new("PCI0"),
                vec![
                    &Name::new(Path::new("_HID"), &EISAName::new("PNP0A08")),
                    &Name::new(Path::new("_CID"), &EISAName::new("PNP0A03")),
                    &Name::new(Path::new("_UID"), &aml::ZERO),
                    &Name::new(Path::new("_SEG"), &aml::ZERO),
                    &Name::new(Path::new("_BBN"), &aml::ZERO),
                    &Name::new(
                        Path::new("_CRS"),
                        &ResourceTemplate::new(vec![
                            &AddressSpace::new_bus_number(0u16, 0u16),
                            &AddressSpace::new_memory(
                                AddressSpaceCacheable::NotCacheable,
                                true,
                                PCI_BARS.start as u32,
                                (PCI_BARS.end - 1) as u32,
                                None,
                            ),
                        ]),
                    ),
                ],
            ),
            &Device::new(
                Path::new("COM1"),
                vec![
                    &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
                    &Name::new(Path::new("_UID"), &aml::ZERO),
                    &Name::new(
                        Path::new("_CRS"),
                        &ResourceTemplate::new(vec![
                            &Interrupt::new(true, true, false, false, SERIAL_GSI),
                            &IO::new(SERIAL_PORT, SERIAL_PORT, 0, 8),
                        ]),
                    ),
                ],
            ),
            &Device::new(
                Path::new("PEVT"),
                vec![
                    &Name::new(Path::new("_HID"), &"QEMU0001"),
                    &Name::new(Path::new("_STA"), &0x0fu8),
                    &Name::new(
                        Path::new("_CRS"),
                        &ResourceTemplate::new(vec![&IO::new(PVPANIC_PORT, PVPANIC_PORT, 1, 1)]),
                    ),
                ],
            ),
        ],
    )
    .to_aml_bytes(&mut aml);
    let mut s5 = PackageBuilder::new();
    s5.add_element(&SLEEP_TYPE_S5);
    Name::new(Path::new("_S5_"), &s5).to_aml_bytes(&mut aml);

    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM, TABLE, REVISION);
    dsdt.append_slice(&aml);
    dsdt
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::allocate;

    #[test]
    fn tables_are_found_from_the_root_and_their_checksums_hold() {
        let memory = allocate(64 << 20).unwrap();
        let rsdp = write(&memory, 3).unwrap();
        let read = |address: u64, len: usize| {
            let mut bytes = vec![0u8; len];
            memory
                .read_slice(&mut bytes, GuestAddress(address))
                .unwrap();
            bytes
        };
        let u32_at = |b: &[u8], at: usize| u32::from_le_bytes(b[at..at + 4].try_into().unwrap());
        let u64_at = |b: &[u8], at: usize| u64::from_le_bytes(b[at..at + 8].try_into().unwrap());
        let sum = |b: &[u8]| b.iter().fold(0u8, |s, x| s.wrapping_add(*x));

        let root = read(rsdp, 36);
        assert_eq!(&root[..8], b"RSD PTR ");
        assert_eq!(sum(&root), 0);
        let table = |address: u64| {
            let len = u32_at(&read(address, 8), 4) as usize;
            let bytes = read(address, len);
            assert_eq!(sum(&bytes), 0);
            bytes
        };
        let xsdt = table(u64_at(&root, 24));
        let tables: Vec<_> = (36..xsdt.len())
            .step_by(8)
            .map(|at| table(u64_at(&xsdt, at)))
            .collect();
        let names: Vec<_> = tables.iter().map(|t| &t[..4]).collect();
        assert_eq!(names, [b"FACP", b"APIC", b"MCFG"]);
        let dsdt = table(u64_at(&tables[0], 140));
        assert_eq!(&dsdt[..4], b"DSDT");
        let flags = u32_at(&tables[0], 112);
        assert_ne!(flags & (1 << 20), 0, "hardware-reduced");
        assert_ne!(flags & (1 << 10), 0, "reset register");
    }
}
