//! Tiny guests on real KVM: a few bytes of machine code in a PVH ELF image, entered the way a kernel is.
//!
//! Needs `/dev/kvm`; any KVM will do, one that emulates ring 0 too.

use std::fs;
use std::fs::OpenOptions;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use monitor::{EndReason, NodeConfig, run};

const ENTRY: u32 = 0x10_0000;

/// An ELF file with `code` at 1 MiB and a note that names it as the PVH entry.
fn elf(code: &[u8]) -> Vec<u8> {
    const HEADER: usize = 64;
    const PROGRAM: usize = 56;
    let note_at = HEADER + 2 * PROGRAM;
    let mut note = Vec::new();
    for word in [4u32, 4, 18] {
        note.extend(word.to_le_bytes()); // name length, descriptor length, XEN_ELFNOTE_PHYS32_ENTRY
    }
    note.extend(b"Xen\0");
    note.extend(ENTRY.to_le_bytes());
    let code_at = note_at + note.len();

    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend(2u16.to_le_bytes()); // executable
    file.extend(62u16.to_le_bytes()); // x86-64
    file.extend(1u32.to_le_bytes());
    for word in [u64::from(ENTRY), HEADER as u64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [HEADER as u16, PROGRAM as u16, 2, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    for (kind, at, address, len) in [
        (1u32, code_at, u64::from(ENTRY), code.len()),
        (4u32, note_at, 0, note.len()),
    ] {
        file.extend(kind.to_le_bytes());
        file.extend(7u32.to_le_bytes());
        for word in [at as u64, address, address, len as u64, len as u64, 4] {
            file.extend(word.to_le_bytes());
        }
    }
    file.extend(note);
    file.extend(code);
    file
}

/// Runs `code` as a guest; returns how it ended and its serial log.
fn guest(code: &[u8]) -> (monitor::End, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("vmlinux"), elf(code)).unwrap();
    fs::write(path("root"), [0; 4096]).unwrap();
    let config = NodeConfig {
        name: "payload".into(),
        kernel: path("vmlinux"),
        rootfs: path("root"),
        memory: 32 << 20,
        vcpus: 1,
        nics: Vec::new(),
        agent_socket: path("agent.sock"),
        serial_log: path("serial.log"),
        cmdline: None,
    };
    let end = run(&config, std::io::empty()).unwrap();
    (end, fs::read(path("serial.log")).unwrap())
}

/// `mov dx, port; mov al, value; out dx, al`
fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

fn power_off() {
    let mut code: Vec<u8> = b"hello\n"
        .iter()
        .flat_map(|byte| out(0x3f8, *byte))
        .collect();
    code.extend(out(0x600, 5 << 2 | 1 << 5));
    let (end, log) = guest(&code);
    assert_eq!(end.reason, EndReason::PowerOff);
    assert_eq!(log, b"hello\n");
}

fn reboot() {
    let (end, _) = guest(&out(0x602, 1));
    assert_eq!(end.reason, EndReason::Reboot);
}

fn panic() {
    let text = b"Kernel panic - not syncing: no init found";
    let mut code: Vec<u8> = text.iter().flat_map(|byte| out(0x3f8, *byte)).collect();
    code.extend(out(0x505, 1));
    let (end, _) = guest(&code);
    assert_eq!(end.reason, EndReason::Panic);
    assert_eq!(end.detail, "no init found");
}

fn triple_fault() {
    // ud2 with an empty IDT
    let (end, _) = guest(&[0x0f, 0x0b]);
    assert_eq!(end.reason, EndReason::TripleFault);
}

fn pci_answers_through_ecam() {
    // mov eax, [0xe0008000]: vendor and device of slot 1; out to the serial port byte by byte
    let mut code = vec![0xa1, 0x00, 0x80, 0x00, 0xe0, 0x66, 0xba, 0xf8, 0x03];
    for _ in 0..4 {
        code.extend([0xee, 0xc1, 0xe8, 0x08]); // out dx, al; shr eax, 8
    }
    code.extend(out(0x600, 5 << 2 | 1 << 5));
    let (_, log) = guest(&code);
    assert_eq!(log, [0xf4, 0x1a, 0x42, 0x10], "a virtio disk");
}

/// With a harness of its own, because the standard one cannot count a test as skipped at run time.
fn main() -> ExitCode {
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    if let Err(error) = &kvm {
        eprintln!("SKIP: /dev/kvm: {error}");
    }
    let cases: [(&str, fn()); 5] = [
        ("power_off", power_off),
        ("reboot", reboot),
        ("panic", panic),
        ("triple_fault", triple_fault),
        ("pci_answers_through_ecam", pci_answers_through_ecam),
    ];
    let trials = cases
        .into_iter()
        .map(|(name, case)| {
            let run = move || {
                case();
                Ok(())
            };
            Trial::test(name, run).with_ignored_flag(kvm.is_err())
        })
        .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
