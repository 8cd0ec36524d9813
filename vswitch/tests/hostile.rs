//! Front-ends and guests that break the rules: each loses its own ring or connection, and nothing else happens.

mod common;

use std::io::{IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use common::arena::{ATTACKED, Arena};
use common::driver::{
    BASE, DriverRing, Guest, INDIRECT, NEXT, SIZE, Shape, WRITE, map, memfd, sealed,
};
use common::frontend::{Connection, addresses};
use common::lab::{Lab, Running};
use common::{eventually, frame, mac};
use jail::attempt::held;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vswitch::port::Policy;

// ---- guests ----

type RingAttack = fn(&mut DriverRing);

const NOWHERE: u64 = BASE + SIZE;
const TABLE: u64 = BASE + SIZE / 2;

fn offer(r: &mut DriverRing) {
    r.push(0);
    r.publish();
}

/// What a guest may do to its transmit ring, with a word of the reason that is given.
const TRANSMIT: &[(&str, RingAttack)] = &[
    ("jumped", |r| {
        r.set_index(5000);
        r.kick.write(1).unwrap();
    }),
    ("head", |r| {
        r.push(9999);
        r.publish();
    }),
    ("loops", |r| {
        r.descriptor(0, TABLE, 10, NEXT, 0);
        offer(r);
    }),
    ("descriptor table", |r| {
        r.descriptor(0, TABLE, 10, NEXT, 60_000);
        offer(r);
    }),
    ("outside the guest's memory", |r| {
        r.descriptor(0, NOWHERE, 100, 0, 0);
        offer(r);
    }),
    ("direction", |r| {
        r.descriptor(0, TABLE, 100, WRITE, 0);
        offer(r);
    }),
    ("header", |r| {
        r.descriptor(0, TABLE, 5, 0, 0);
        offer(r);
    }),
    ("indirect table inside", |r| {
        r.descriptor(0, TABLE, 16, INDIRECT | NEXT, 0);
        offer(r);
    }),
    ("16 bytes long", |r| {
        r.descriptor(0, TABLE, 15, INDIRECT, 0);
        offer(r);
    }),
    ("descriptor table", |r| {
        r.descriptor_in(TABLE, 0, TABLE, 1, NEXT, u16::MAX);
        r.descriptor(0, TABLE, 16 * 65_535, INDIRECT, 0);
        offer(r);
    }),
    ("direction", |r| {
        // The table of descriptors as the first buffer, the next descriptor writable.
        r.descriptor(0, r.descriptors, 100, NEXT, 1);
        r.descriptor(1, TABLE, 100, WRITE, 0);
        offer(r);
    }),
    ("outside the guest's memory", |r| {
        r.descriptor(0, u64::MAX - 99, 100, 0, 0);
        offer(r);
    }),
    ("outside the guest's memory", |r| {
        r.descriptor(0, TABLE, u32::MAX, 0, 0);
        offer(r);
    }),
    ("256 descriptors", |r| {
        for i in 0..4000 {
            r.descriptor_in(TABLE, i, TABLE, 1, NEXT, i + 1);
        }
        r.descriptor(0, TABLE, 16 * 4000, INDIRECT, 0);
        offer(r);
    }),
];

#[test]
fn a_guest_breaks_its_transmit_ring() {
    let mut arena = Arena::new();
    for (n, (reason, attack)) in TRANSMIT.iter().enumerate() {
        let mut guest = Guest::new(Shape::default());
        let connection = Connection::start(&arena.lab.socket(ATTACKED), &guest);
        attack(&mut guest.tx);
        eventually(reason, || {
            arena.lab.port(ATTACKED).violations == n as u64 + 1
        });
        eventually(reason, || {
            arena
                .lab
                .port(ATTACKED)
                .last_error
                .is_some_and(|e| e.contains(reason))
        });
        arena.others_pass_traffic(reason);
        // Only the one ring has stopped: the guest still receives.
        let f = arena.frame();
        arena.b.0.send(&f);
        eventually("receiving", || guest.receive() == Some(f.clone()));
        // Nothing more is taken, and a reset heals it.
        connection.stop_rings();
        guest.reset();
        let mut connection = connection;
        connection.start_rings(&guest, [0, 0]).unwrap();
        let f = arena.frame();
        guest.send(&f);
        eventually("sending again", || arena.b.0.receive() == Some(f.clone()));
        drop((connection, guest));
        arena.nothing_leaks(reason);
    }
    held(
        "a guest breaks its transmit ring: it loses the ring until it resets its device",
        TRANSMIT.len() as u64,
        None,
    );
}

const RECEIVE: &[(&str, RingAttack)] = &[
    ("jumped", |r| r.set_index(30_000)),
    ("direction", |r| {
        r.descriptor(0, TABLE, 2000, 0, 0);
        offer(r);
    }),
    ("outside the guest's memory", |r| {
        r.descriptor(0, NOWHERE - 4, 2000, WRITE, 0);
        offer(r);
    }),
    ("header", |r| {
        r.descriptor(0, TABLE, 5, WRITE, 0);
        offer(r);
    }),
    ("header", |r| {
        // The first holds a header, the second does not.
        r.descriptor(0, TABLE, 20, WRITE, 0);
        r.descriptor(1, TABLE, 11, WRITE, 0);
        r.push(0);
        r.push(1);
        r.publish();
    }),
    ("header", |r| {
        r.descriptor(0, TABLE, 0, WRITE, 0);
        offer(r);
    }),
    ("loops", |r| {
        r.descriptor(0, TABLE, 1, WRITE | NEXT, 1);
        r.descriptor(1, TABLE, 1, WRITE | NEXT, 0);
        offer(r);
    }),
    ("again before it was returned", |r| {
        r.descriptor(0, TABLE, 100, WRITE, 0);
        r.push(0);
        r.push(0);
        r.publish();
    }),
    ("indirect table inside", |r| {
        r.descriptor_in(TABLE, 0, TABLE, 16, INDIRECT, 0);
        r.descriptor(0, TABLE, 16, INDIRECT, 0);
        offer(r);
    }),
    ("head", |r| {
        r.push(u16::MAX);
        r.publish();
    }),
];

#[test]
fn a_guest_breaks_its_receive_ring() {
    let mut arena = Arena::new();
    for (n, (reason, attack)) in RECEIVE.iter().enumerate() {
        let mut guest = Guest::new(Shape::default());
        guest.rx.reset();
        let connection = Connection::start(&arena.lab.socket(ATTACKED), &guest);
        attack(&mut guest.rx);
        // It is noticed when somebody sends to it.
        let f = arena.frame();
        arena.b.0.send(&f);
        eventually(reason, || {
            arena.lab.port(ATTACKED).violations == n as u64 + 1
        });
        eventually(reason, || {
            arena
                .lab
                .port(ATTACKED)
                .last_error
                .is_some_and(|e| e.contains(reason))
        });
        arena.others_pass_traffic(reason);
        let f = arena.frame();
        guest.send(&f);
        eventually("sending", || arena.b.0.receive() == Some(f.clone()));
        drop((connection, guest));
        arena.nothing_leaks(reason);
    }
    held(
        "a guest breaks its receive ring: it loses the ring until it resets its device",
        RECEIVE.len() as u64,
        None,
    );
}

/// Frames that are no frames are counted and go nowhere; the ring goes on.
#[test]
fn malformed_frames() {
    let mut arena = Arena::new();
    let mut guest = Guest::new(Shape::default());
    let _connection = Connection::start(&arena.lab.socket(ATTACKED), &guest);
    for len in 0..14 {
        guest.send(&vec![1; len]);
    }
    eventually("the count", || arena.lab.port(ATTACKED).malformed == 14);
    // A frame of 200 KiB.
    for i in 0..100 {
        let last = i == 99;
        guest
            .tx
            .descriptor_in(TABLE, i, BASE, 2048, if last { 0 } else { NEXT }, i + 1);
    }
    guest.tx.descriptor(0, TABLE, 1600, INDIRECT, 0);
    guest.tx.push(0);
    guest.tx.publish();
    eventually("the count", || arena.lab.port(ATTACKED).malformed == 15);
    eventually("the buffers", || guest.tx.used_index() == 15);
    assert_eq!(arena.lab.port(ATTACKED).violations, 0);
    arena.others_pass_traffic("malformed frames");
    held("a guest sends what is no frame: it is counted", 15, None);
}

/// One that kicks without end and one that never refills do not take the others' share.
#[test]
fn kicks_without_end() {
    let mut arena = Arena::new();
    let guest = Guest::new(Shape::default());
    let _connection = Connection::start(&arena.lab.socket(ATTACKED), &guest);
    let end = std::time::Instant::now() + Duration::from_millis(200);
    while std::time::Instant::now() < end {
        for _ in 0..1000 {
            guest.tx.kick.write(1).unwrap();
            guest.rx.kick.write(1).unwrap();
        }
        arena.others_pass_traffic("kicks");
    }
}

// ---- front-ends ----

/// What a front-end may do; it is refused, with this in the reason.
type SocketAttack = fn(&Running) -> &'static str;

fn open(lab: &Running) -> (Guest, Connection) {
    let guest = Guest::new(Shape::default());
    let connection = Connection::open(&lab.socket(ATTACKED), &guest);
    (guest, connection)
}

fn shared(lab: &Running) -> (Guest, Connection) {
    let (guest, connection) = open(lab);
    connection.share(&guest.memory).unwrap();
    (guest, connection)
}

fn running(lab: &Running) -> (Guest, Connection) {
    let guest = Guest::new(Shape::default());
    let connection = Connection::start(&lab.socket(ATTACKED), &guest);
    (guest, connection)
}

/// Shares a file as memory.
fn share_file(lab: &Running, file: std::fs::File) {
    let (_, connection) = open(lab);
    assert!(connection.share(&map(file)).is_err());
}

/// Shares what `make` makes of a guest's memory in its place.
fn share_other(lab: &Running, make: fn(&std::fs::File) -> std::fs::File) {
    let (guest, connection) = open(lab);
    let mut r = region(&guest);
    let file = guest.memory.iter().next().unwrap().file_offset().unwrap();
    let file = make(file.file());
    r.mmap_handle = file.as_raw_fd();
    assert!(connection.frontend.set_mem_table(&[r]).is_err());
}

fn sealed_with(more: SealFlags) -> SealFlags {
    sealed() | more
}

fn region(guest: &Guest) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo::from_guest_region(guest.memory.iter().next().unwrap()).unwrap()
}

fn share_altered(lab: &Running, alter: fn(&mut VhostUserMemoryRegionInfo)) {
    let (guest, connection) = open(lab);
    let mut r = region(&guest);
    alter(&mut r);
    assert!(connection.frontend.set_mem_table(&[r]).is_err());
}

/// Starts the transmit ring at other addresses.
fn start_at(lab: &Running, alter: fn(&mut VringConfigData)) {
    let (guest, mut connection) = shared(lab);
    let mut at = addresses(&guest, &guest.tx);
    alter(&mut at);
    let f = &mut connection.frontend;
    f.set_vring_num(1, guest.tx.size).unwrap();
    f.set_vring_addr(1, &at).unwrap();
    f.set_vring_call(1, &guest.tx.call).unwrap();
    f.set_vring_kick(1, &guest.tx.kick).unwrap();
    assert!(f.set_vring_enable(1, true).is_err());
}

const REFUSED: &[(&str, SocketAttack)] = &[
    ("unsealed memory", |lab| {
        share_file(lab, memfd(SIZE, SealFlags::GROW));
        "not sealed"
    }),
    ("a regular file as memory", |lab| {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE).unwrap();
        share_file(lab, file);
        // On tmpfs a file has seals, but not this one.
        "sealed"
    }),
    ("memory that is read-only", |lab| {
        share_other(lab, |file| {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            std::fs::File::open(path).unwrap()
        });
        "cannot be mapped"
    }),
    ("memory sealed against writing", |lab| {
        share_other(lab, |_| memfd(SIZE, sealed_with(SealFlags::WRITE)));
        "cannot be mapped"
    }),
    ("memory sealed against future writing", |lab| {
        share_other(lab, |_| memfd(SIZE, sealed_with(SealFlags::FUTURE_WRITE)));
        "cannot be mapped"
    }),
    ("memory on huge pages", |lab| {
        share_other(lab, |_| {
            let flags = MemfdFlags::HUGETLB | MemfdFlags::ALLOW_SEALING;
            let fd = memfd_create("huge", flags).unwrap();
            ftruncate(&fd, SIZE).unwrap();
            fcntl_add_seals(&fd, sealed()).unwrap();
            std::fs::File::from(fd)
        });
        "hugetlbfs"
    }),
    ("a directory as memory", |lab| {
        share_other(lab, |_| std::fs::File::open("/proc").unwrap());
        "not a memfd"
    }),
    ("zeros without end as memory", |lab| {
        share_other(lab, |_| {
            let mut options = std::fs::File::options();
            options.read(true).write(true).open("/dev/zero").unwrap()
        });
        "not a memfd"
    }),
    ("a pipe as memory", |lab| {
        share_other(lab, |_| {
            std::fs::File::from(OwnedFd::from(std::io::pipe().unwrap().0))
        });
        "not a memfd"
    }),
    ("an eventfd as memory", |lab| {
        share_other(lab, |_| {
            let flags = rustix::event::EventfdFlags::empty();
            std::fs::File::from(rustix::event::eventfd(0, flags).unwrap())
        });
        "not a memfd"
    }),
    ("a region that wraps around as the guest sees it", |lab| {
        share_altered(lab, |r| r.guest_phys_addr = u64::MAX - 4095);
        "protocol"
    }),
    (
        "a region that wraps around as the front-end sees it",
        |lab| {
            share_altered(lab, |r| r.userspace_addr = u64::MAX - 4095);
            "protocol"
        },
    ),
    ("a region of all there is", |lab| {
        share_altered(lab, |r| r.memory_size = u64::MAX);
        "protocol"
    }),
    ("more memory than a front-end may have mapped", |lab| {
        share_altered(lab, |r| r.memory_size = 300 << 30);
        "more than 256 GiB"
    }),
    ("the same in two regions", |lab| {
        let (guest, connection) = open(lab);
        let file = memfd(300 << 30, sealed());
        let half = |n: u64| VhostUserMemoryRegionInfo {
            guest_phys_addr: n << 40,
            userspace_addr: n << 40,
            memory_size: 150 << 30,
            mmap_handle: file.as_raw_fd(),
            ..region(&guest)
        };
        let regions = [half(1), half(2)];
        assert!(connection.frontend.set_mem_table(&regions).is_err());
        "more than 256 GiB"
    }),
    ("33 regions one by one", |lab| {
        let (guest, mut c) = open(lab);
        let added = (0..40).take_while(|i| {
            let mut r = region(&guest);
            r.memory_size = 4096;
            r.guest_phys_addr = 4096 * i;
            r.userspace_addr = 4096 * (i + 1);
            c.frontend.add_mem_region(&r).is_ok()
        });
        assert_eq!(added.count(), vswitch::memory::MAX_REGIONS);
        "more than 32 regions"
    }),
    ("memory shorter than its region", |lab| {
        share_altered(lab, |r| r.memory_size += 4096);
        "bytes, but the region needs"
    }),
    ("memory offset past the end", |lab| {
        share_altered(lab, |r| r.mmap_offset = SIZE);
        "bytes, but the region needs"
    }),
    ("an offset inside a page", |lab| {
        share_altered(lab, |r| {
            r.mmap_offset = 1;
            r.memory_size -= 4096;
        });
        "cannot be mapped"
    }),
    ("overlapping regions", |lab| {
        let (guest, c) = open(lab);
        let mut other = region(&guest);
        other.userspace_addr += 1 << 40;
        other.guest_phys_addr += SIZE - 4096;
        assert!(c.frontend.set_mem_table(&[region(&guest), other]).is_err());
        "overlaps"
    }),
    ("adding memory that is there", |lab| {
        let (guest, mut c) = shared(lab);
        assert!(c.frontend.add_mem_region(&region(&guest)).is_err());
        "overlaps"
    }),
    ("removing memory that is not there", |lab| {
        let (guest, mut c) = shared(lab);
        let mut r = region(&guest);
        r.guest_phys_addr += 4096;
        assert!(c.frontend.remove_mem_region(&r).is_err());
        "no such region"
    }),
    ("removing memory under running rings", |lab| {
        let (guest, mut c) = running(lab);
        // This is allowed: the rings stop.
        c.frontend.remove_mem_region(&region(&guest)).unwrap();
        assert!(!lab.port(ATTACKED).sending);
        // Starting them again is not.
        c.frontend.set_vring_enable(1, false).unwrap();
        assert!(c.frontend.set_vring_enable(1, true).is_err());
        "does not lie inside"
    }),
    ("features that were not offered", |lab| {
        let mut c = Connection::bare(&lab.socket(ATTACKED));
        c.negotiate(vswitch::port::features::OFFERED).unwrap();
        assert!(
            c.frontend
                .set_features(vswitch::port::features::OFFERED | 4)
                .is_err()
        );
        "0x4, which were not offered"
    }),
    ("other features while rings run", |lab| {
        let (_guest, c) = running(lab);
        assert!(
            c.frontend
                .set_features(vswitch::port::features::PROTOCOL_FEATURES)
                .is_err()
        );
        "while rings were running"
    }),
    ("a ring size that is no power of two", |lab| {
        let (_guest, c) = shared(lab);
        assert!(c.frontend.set_vring_num(1, 100).is_err());
        "power of two"
    }),
    ("a ring size of 0", |lab| {
        let (_guest, c) = shared(lab);
        assert!(c.frontend.set_vring_num(0, 0).is_err());
        "power of two"
    }),
    ("a change of a running ring", |lab| {
        let (_guest, c) = running(lab);
        assert!(c.frontend.set_vring_num(1, 64).is_err());
        "while it was running"
    }),
    ("rings before memory", |lab| {
        let (guest, mut c) = open(lab);
        assert!(c.start_rings(&guest, [0, 0]).is_err());
        "does not lie inside"
    }),
    ("descriptors outside memory", |lab| {
        start_at(lab, |at| at.desc_table_addr = 4096);
        "descriptor table does not lie inside"
    }),
    ("a used ring that ends outside memory", |lab| {
        start_at(lab, |at| at.used_ring_addr += SIZE - 3 * 4096);
        "used ring does not lie inside"
    }),
    ("a ring that wraps around", |lab| {
        start_at(lab, |at| at.avail_ring_addr = u64::MAX - 1);
        "available ring does not lie inside"
    }),
    ("unaligned descriptors", |lab| {
        let (guest, c) = shared(lab);
        let mut at = addresses(&guest, &guest.tx);
        at.desc_table_addr += 8;
        assert!(c.frontend.set_vring_addr(1, &at).is_err());
        "protocol"
    }),
    ("memory at an odd address", |lab| {
        // The ring's address is aligned in the front-end's address space and odd in ours.
        let (guest, mut c) = open(lab);
        let mut r = region(&guest);
        r.userspace_addr -= 8;
        c.frontend.set_mem_table(&[r]).unwrap();
        assert!(c.start_ring(1, &guest, &guest.tx, 0).is_err());
        "descriptor table is not aligned"
    }),
];

#[test]
fn front_ends_are_refused_with_a_reason() {
    let mut arena = Arena::new();
    for (name, attack) in REFUSED {
        let reason = attack(&arena.lab);
        eventually(name, || !arena.lab.port(ATTACKED).connected);
        let told = arena.lab.port(ATTACKED).last_error.unwrap_or_default();
        assert!(told.contains(reason), "{name}: {told}");
        arena.others_pass_traffic(name);
        arena.port_serves_the_next(name);
        arena.nothing_leaks(name);
    }
    held(
        "a front-end breaks the vhost-user protocol: it loses its connection, with the reason",
        REFUSED.len() as u64,
        None,
    );
}

#[test]
fn unsealed_memory_is_taken_where_that_is_allowed() {
    let mut lab = Lab::default();
    let (a, b) = (lab.machine("a"), lab.machine("b"));
    lab.wire(a, b);
    let lab = lab.run_with(
        Policy {
            allow_unsealed: true,
        },
        1,
    );
    let mut a = Guest::on(map(memfd(SIZE, SealFlags::empty())), Shape::default());
    let mut b = Guest::new(Shape::default());
    let _a = Connection::start(&lab.socket("a.eth0"), &a);
    let _b = Connection::start(&lab.socket("b.eth0"), &b);
    let f = frame(mac(2), mac(1), 100, 1);
    a.send(&f);
    eventually("the frame", || b.receive() == Some(f.clone()));
}

/// What the seals are for.
#[test]
fn sealed_memory_cannot_be_shrunk() {
    let file = memfd(SIZE, sealed());
    assert_eq!(ftruncate(&file, 0), Err(rustix::io::Errno::PERM));
}

// ---- raw messages ----

const SET_VRING_KICK: u32 = 12;
const GET_FEATURES: u32 = 1;

/// The head of a message.
fn header(request: u32, flags: u32, size: u32) -> Vec<u8> {
    [request, flags, size]
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect()
}

fn message(request: u32, body: &[u8]) -> Vec<u8> {
    let mut m = header(request, 1, body.len() as u32);
    m.extend_from_slice(body);
    m
}

fn send_with(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = vec![std::mem::MaybeUninit::uninit(); 8192];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    sendmsg(
        stream,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .unwrap();
}

type RawAttack = fn(&mut UnixStream);

/// Byte strings that end the connection.
const RAW: &[(&str, RawAttack)] = &[
    ("noise", |s| {
        let _ = s.write_all(&[0xa5; 5000]);
    }),
    ("zeros", |s| {
        let _ = s.write_all(&[0; 5000]);
    }),
    ("an unknown request", |s| {
        s.write_all(&header(9999, 1, 0)).unwrap();
    }),
    ("another version", |s| {
        s.write_all(&header(GET_FEATURES, 2, 0)).unwrap();
    }),
    ("a reply", |s| {
        s.write_all(&header(GET_FEATURES, 5, 0)).unwrap();
    }),
    ("a huge message", |s| {
        s.write_all(&header(2, 1, u32::MAX)).unwrap();
    }),
    ("a body where none belongs", |s| {
        s.write_all(&message(GET_FEATURES, &[0; 8])).unwrap();
    }),
    ("a body that is too short", |s| {
        s.write_all(&message(2, &[0; 4])).unwrap();
    }),
    ("a ring that does not exist", |s| {
        s.write_all(&message(8, &[128, 0, 0, 0, 64, 0, 0, 0]))
            .unwrap();
    }),
    ("ring 65536", |s| {
        s.write_all(&message(8, &[0, 0, 1, 0, 64, 0, 0, 0]))
            .unwrap();
    }),
    ("a base of 17 bits", |s| {
        s.write_all(&message(10, &[1, 0, 0, 0, 0, 0, 1, 0]))
            .unwrap();
    }),
    ("33 regions without descriptors", |s| {
        s.write_all(&message(5, &[33; 8])).unwrap();
    }),
    ("a request that is not offered", |s| {
        s.write_all(&header(17, 1, 0)).unwrap();
    }),
    ("a kick without descriptor", |s| {
        s.write_all(&message(SET_VRING_KICK, &1u64.to_le_bytes()))
            .unwrap();
    }),
    ("polling instead of a kick", |s| {
        s.write_all(&message(SET_VRING_KICK, &0x101u64.to_le_bytes()))
            .unwrap();
    }),
    ("a pipe as kick", |s| {
        let (pipe, _write) = std::io::pipe().unwrap();
        send_with(
            s,
            &message(SET_VRING_KICK, &1u64.to_le_bytes()),
            &[pipe.as_fd()],
        );
    }),
    ("a file as kick", |s| {
        let file = tempfile::tempfile().unwrap();
        send_with(
            s,
            &message(SET_VRING_KICK, &1u64.to_le_bytes()),
            &[file.as_fd()],
        );
    }),
    ("the connection itself as call", |s| {
        send_with(s, &message(13, &1u64.to_le_bytes()), &[s.as_fd()]);
    }),
    ("an epoll as call", |s| {
        let epoll: OwnedFd =
            rustix::event::epoll::create(rustix::event::epoll::CreateFlags::empty()).unwrap();
        send_with(s, &message(13, &1u64.to_le_bytes()), &[epoll.as_fd()]);
    }),
    ("two descriptors for one ring", |s| {
        let (r, w) = std::io::pipe().unwrap();
        send_with(
            s,
            &message(SET_VRING_KICK, &1u64.to_le_bytes()),
            &[r.as_fd(), w.as_fd()],
        );
    }),
    ("descriptors where none belong", |s| {
        let (r, _w) = std::io::pipe().unwrap();
        send_with(s, &header(GET_FEATURES, 1, 0), &[r.as_fd()]);
    }),
    ("a directory as kick", |s| {
        let folder = std::fs::File::open("/").unwrap();
        send_with(
            s,
            &message(SET_VRING_KICK, &1u64.to_le_bytes()),
            &[folder.as_fd()],
        );
    }),
    ("/dev/null as call", |s| {
        let mut options = std::fs::File::options();
        let null = options.read(true).write(true).open("/dev/null").unwrap();
        send_with(s, &message(13, &1u64.to_le_bytes()), &[null.as_fd()]);
    }),
    ("a memfd as call", |s| {
        let memory = memfd(4096, SealFlags::SHRINK);
        send_with(s, &message(13, &1u64.to_le_bytes()), &[memory.as_fd()]);
    }),
    ("253 descriptors for one ring", |s| {
        let (r, _w) = std::io::pipe().unwrap();
        send_with(
            s,
            &message(SET_VRING_KICK, &1u64.to_le_bytes()),
            &[r.as_fd(); 253],
        );
        s.shutdown(std::net::Shutdown::Write).unwrap();
    }),
    ("descriptors with half a message, and the end", |s| {
        let (r, _w) = std::io::pipe().unwrap();
        let message = message(SET_VRING_KICK, &1u64.to_le_bytes());
        send_with(s, &message[..14], &[r.as_fd(); 3]);
        s.shutdown(std::net::Shutdown::Write).unwrap();
    }),
    ("a memory table with fewer descriptors than regions", |s| {
        let memory = memfd(4096, SealFlags::SHRINK);
        let mut body = 2u64.to_le_bytes().to_vec();
        body.extend_from_slice(&[0; 64]);
        send_with(s, &message(5, &body), &[memory.as_fd()]);
    }),
    ("a region without bytes", |s| {
        let memory = memfd(4096, SealFlags::SHRINK);
        let mut body = 1u64.to_le_bytes().to_vec();
        body.extend_from_slice(&[0; 32]);
        send_with(s, &message(5, &body), &[memory.as_fd()]);
    }),
    ("a memory table of no regions", |s| {
        s.write_all(&message(5, &[0; 8])).unwrap();
        // Ends only with the stream.
        s.shutdown(std::net::Shutdown::Write).unwrap();
    }),
    ("reserved flags", |s| {
        s.write_all(&header(GET_FEATURES, 0xffff_fff1, 0)).unwrap();
    }),
    ("request 0", |s| {
        s.write_all(&header(0, 1, 0)).unwrap();
    }),
    ("40 descriptors and the end", |s| {
        let (r, _w) = std::io::pipe().unwrap();
        send_with(s, &message(5, &[1; 8]), &[r.as_fd(); 40]);
        s.shutdown(std::net::Shutdown::Write).unwrap();
    }),
];

#[test]
fn raw_messages_end_the_connection_only() {
    let mut arena = Arena::new();
    for (name, attack) in RAW {
        let served = arena.lab.port(ATTACKED).connections;
        let mut stream = UnixStream::connect(arena.lab.socket(ATTACKED)).unwrap();
        eventually("the connection", || {
            arena.lab.port(ATTACKED).connections > served
        });
        attack(&mut stream);
        // The stream stays open on this side: the switch has to end it.
        eventually(name, || !arena.lab.port(ATTACKED).connected);
        arena.others_pass_traffic(name);
        drop(stream);
        arena.port_serves_the_next(name);
        arena.nothing_leaks(name);
    }
    held(
        "a front-end sends any bytes and descriptors: it loses its connection",
        RAW.len() as u64,
        None,
    );
}

/// A front-end's way through the protocol, with the descriptors that belong to each message.
fn conversation(guest: &Guest) -> Vec<(Vec<u8>, Vec<OwnedFd>)> {
    let file = guest.memory.iter().next().unwrap().file_offset().unwrap();
    let memory: OwnedFd = file.file().try_clone().unwrap().into();
    let words = |words: &[u64]| -> Vec<u8> { words.iter().flat_map(|w| w.to_le_bytes()).collect() };
    let state = |a: u32, b: u32| words(&[u64::from(a) | u64::from(b) << 32]);
    let ring = &guest.tx;
    let table = [1, BASE, SIZE, guest.user(BASE), 0];
    let at = [ring.descriptors, ring.used, ring.available].map(|a| guest.user(a));
    let event = |e: &vmm_sys_util::eventfd::EventFd| -> OwnedFd {
        let fd = e.try_clone().unwrap().into_raw_fd();
        // SAFETY: the clone owned it and has given it up.
        unsafe { OwnedFd::from_raw_fd(fd) }
    };
    vec![
        (header(3, 1, 0), vec![]),
        (
            message(2, &words(&[vswitch::port::features::OFFERED])),
            vec![],
        ),
        (message(16, &words(&[0x8008])), vec![]),
        (message(5, &words(&table)), vec![memory]),
        (message(8, &state(1, ring.size.into())), vec![]),
        (message(10, &state(1, 0)), vec![]),
        (message(9, &words(&[1, at[0], at[1], at[2], 0])), vec![]),
        (message(13, &words(&[1])), vec![event(&ring.call)]),
        (
            message(SET_VRING_KICK, &words(&[1])),
            vec![event(&ring.kick)],
        ),
        (message(18, &state(1, 1)), vec![]),
        (message(11, &state(1, 0)), vec![]),
    ]
}

fn say(stream: &UnixStream, bytes: &[u8], fds: &[OwnedFd]) {
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    send_with(stream, bytes, &fds);
}

/// A connection that ends after any byte of any message.
#[test]
fn cut_off_at_every_byte() {
    let mut arena = Arena::new();
    let guest = Guest::new(Shape::default());
    let conversation = conversation(&guest);
    for (n, (last, fds)) in conversation.iter().enumerate() {
        for cut in 1..last.len() {
            let stream = UnixStream::connect(arena.lab.socket(ATTACKED)).unwrap();
            for (message, fds) in &conversation[..n] {
                say(&stream, message, fds);
            }
            say(&stream, &last[..cut], fds);
        }
        arena.others_pass_traffic(&format!("message {n} cut off"));
    }
    arena.port_serves_the_next("messages cut off");
    let cuts: usize = conversation
        .iter()
        .map(|(message, _)| message.len() - 1)
        .sum();
    drop((conversation, guest));
    arena.nothing_leaks("messages cut off");
    held(
        "a front-end's message ends after any byte",
        cuts as u64,
        None,
    );
}

/// The same, whole, but headers a byte at a time and with others in between; a body comes in one piece or not at all.
#[test]
fn a_byte_at_a_time() {
    let mut arena = Arena::new();
    let mut guest = Guest::new(Shape::default());
    let conversation = conversation(&guest);
    let stream = UnixStream::connect(arena.lab.socket(ATTACKED)).unwrap();
    for (message, fds) in &conversation[..conversation.len() - 1] {
        let (header, body) = message.split_at(12);
        for (i, byte) in header.iter().enumerate() {
            say(&stream, &[*byte], if i == 0 { fds } else { &[] });
            std::thread::sleep(Duration::from_micros(200));
        }
        if !body.is_empty() {
            say(&stream, body, &[]);
        }
        arena.others_pass_traffic("a slow message");
    }
    let f = arena.frame();
    guest.send(&f);
    eventually("a frame of the slow one", || {
        arena.b.0.receive() == Some(f.clone())
    });
    say(&stream, &conversation[4].0[..15], &[]);
    eventually("the end", || !arena.lab.port(ATTACKED).connected);
    drop((stream, conversation, guest));
    arena.nothing_leaks("a slow front-end");
}

/// Half a message and then silence holds up nobody else.
#[test]
fn half_a_message() {
    let mut arena = Arena::new();
    for cut in [1, 11, 12, 15] {
        let before = arena.lab.port(ATTACKED).connections;
        let mut stream = UnixStream::connect(arena.lab.socket(ATTACKED)).unwrap();
        stream
            .write_all(&message(8, &[0, 0, 0, 0, 64, 0, 0, 0])[..cut])
            .unwrap();
        eventually("the connection", || {
            arena.lab.port(ATTACKED).connections > before
        });
        std::thread::sleep(Duration::from_millis(20));
        arena.others_pass_traffic("half a message");
        drop(stream);
        eventually("the end", || !arena.lab.port(ATTACKED).connected);
        arena.port_serves_the_next("half a message");
    }
}

/// Requests without end whose answers nobody reads.
#[test]
fn answers_nobody_reads() {
    let mut arena = Arena::new();
    let mut stream = UnixStream::connect(arena.lab.socket(ATTACKED)).unwrap();
    stream
        .set_write_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let flood = header(GET_FEATURES, 1, 0).repeat(1000);
    while stream.write_all(&flood).is_ok() {}
    arena.others_pass_traffic("a flood of requests");
    drop(stream);
    eventually("the end", || !arena.lab.port(ATTACKED).connected);
    arena.port_serves_the_next("a flood of requests");
}

/// A burst passes, then so many a second; whoever asks for more waits, and reconnecting is no way around it.
#[test]
fn requests_without_end() {
    const BURST: u64 = 1000;
    const A_SECOND: u64 = 500;
    let mut arena = Arena::new();
    let start = std::time::Instant::now();
    let mut answered = 0;
    while answered < BURST + A_SECOND {
        let (guest, mut connection) = running(&arena.lab);
        for _ in 0..200 {
            // Rings that are stopped and started disturb their shard most.
            connection.stop_rings();
            connection.start_rings(&guest, [0, 0]).unwrap();
            answered += 2;
        }
    }
    // Each of these is several requests.
    let most = BURST + A_SECOND * (start.elapsed().as_secs() + 1);
    assert!(answered <= most, "{answered} in {:?}", start.elapsed());
    let error = arena.lab.port(ATTACKED).last_error;
    assert!(
        error.as_ref().is_some_and(|e| e.contains("faster")),
        "{error:?}"
    );
    arena.others_pass_traffic("requests without end");
    arena.port_serves_the_next("requests without end");
    arena.nothing_leaks("requests without end");
    held(
        "a front-end makes requests without end: it waits",
        answered,
        None,
    );
}

/// A connection that ends after any step of the handshake.
#[test]
fn gone_at_every_step() {
    let mut arena = Arena::new();
    let steps: [fn(&mut Connection, &Guest); 7] = [
        |c, g| c.frontend.set_vring_num(1, g.tx.size).unwrap(),
        |c, g| c.frontend.set_vring_addr(1, &addresses(g, &g.tx)).unwrap(),
        |c, _| c.frontend.set_vring_base(1, 0).unwrap(),
        |c, g| c.frontend.set_vring_call(1, &g.tx.call).unwrap(),
        |c, g| c.frontend.set_vring_kick(1, &g.tx.kick).unwrap(),
        |c, _| c.frontend.set_vring_enable(1, true).unwrap(),
        |c, _| assert_eq!(c.stop_rings(), [0, 0]),
    ];
    for last in 0..steps.len() {
        let (guest, mut connection) = shared(&arena.lab);
        for step in &steps[..=last] {
            step(&mut connection, &guest);
        }
        drop(connection);
        eventually("the end", || !arena.lab.port(ATTACKED).connected);
    }
    for _ in 0..300 {
        drop(UnixStream::connect(arena.lab.socket(ATTACKED)).unwrap());
    }
    arena.others_pass_traffic("connects without end");
    arena.port_serves_the_next("connects without end");
    held(
        "a front-end goes at any step, or connects without end",
        steps.len() as u64 + 300,
        None,
    );
}
