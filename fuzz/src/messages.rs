//! A front-end that sends any bytes and any descriptors, and a guest behind it that writes anything into the memory it shares.

use std::io::{IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::SealFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vswitch::port::features::OFFERED;

use crate::all;
use crate::common::driver::{memfd, sealed};
use crate::common::lab::{Running, pair};

/// Bytes of the memory that is shared.
const SIZE: u64 = 64 << 10;
/// Its first address, as guest and as front-end see it.
const GUEST: u64 = 0x10_0000;
const USER: u64 = 0x7000_0000;
/// More than a front-end sends at once.
const PARTS: usize = 64;

#[derive(Debug, Arbitrary)]
struct Input {
    greeting: bool,
    #[arbitrary(default)]
    parts: Vec<Part>,
}

#[derive(Debug, Arbitrary)]
enum Part {
    /// Bytes without a frame around them.
    Raw(Vec<u8>),
    /// A message of right length.
    Message {
        request: u8,
        need_reply: bool,
        body: Body,
        descriptors: Vec<Kind>,
    },
    /// All that starts a ring.
    Start {
        ring: bool,
        log2_size: u8,
        base: u16,
    },
    /// The guest writes.
    Memory(u16, Vec<u8>),
    /// The guest kicks.
    Kick,
}

#[derive(Debug, Arbitrary)]
enum Body {
    Bytes(Vec<u8>),
    Number(u64),
    State(u32, u32),
    Address { ring: u8, flags: u8, at: [u16; 3] },
    Regions(Vec<Region>),
    Region(Region),
}

#[derive(Debug, Arbitrary)]
struct Region {
    guest: u16,
    size: u16,
    user: u16,
    offset: u16,
    wild: Option<u64>,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Kind {
    Memory,
    Kick,
    Event,
    FullBlockingEvent,
    Unsealed,
    ReadOnly,
    Pipe,
    Folder,
    Zero,
    Socket,
}

struct World {
    lab: Running,
    memory: std::fs::File,
    kick: OwnedFd,
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| World {
        lab: pair().run(),
        memory: memfd(SIZE, sealed()),
        kick: eventfd(0, EventfdFlags::NONBLOCK).expect("an eventfd"),
    })
}

/// Runs one input.
pub fn run(bytes: &[u8]) {
    let mut bytes = Unstructured::new(bytes);
    if let Ok(mut input) = Input::arbitrary(&mut bytes) {
        input.parts = all(&mut bytes);
        play(&input);
    }
}

fn play(input: &Input) {
    let world = world();
    let mut stream = UnixStream::connect(world.lab.socket("a.eth0")).expect("the switch listens");
    let patience = Some(Duration::from_mins(1));
    stream.set_read_timeout(patience).expect("a time");
    // Whatever fails from here on fails because the switch has ended the connection.
    if input.greeting {
        send(&stream, 3, false, &[], &[]);
        send(&stream, 2, false, &OFFERED.to_le_bytes(), &[]);
        send(&stream, 16, false, &0x8008u64.to_le_bytes(), &[]);
    }
    for part in input.parts.iter().take(PARTS) {
        act(world, &mut stream, part);
    }
    let _ = stream.shutdown(Shutdown::Write);
    let mut answers = [0; 4096];
    loop {
        match stream.read(&mut answers) {
            Ok(0) => return,
            Ok(_) => {}
            // A reset, when the switch left something unread.
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return,
            // By the fuzzer's alarm.
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => panic!("the port does not end the connection: {e}"),
        }
    }
}

fn act(world: &World, stream: &mut UnixStream, part: &Part) {
    match part {
        Part::Raw(bytes) => {
            let _ = stream.write_all(bytes);
        }
        Part::Message {
            request,
            need_reply,
            body,
            descriptors,
        } => {
            let fds: Vec<_> = descriptors
                .iter()
                .take(40)
                .filter_map(|kind| open(world, *kind))
                .collect();
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            send(stream, (*request).into(), *need_reply, &encode(body), &fds);
        }
        Part::Start {
            ring,
            log2_size,
            base,
        } => {
            let region = Region {
                guest: 0,
                size: 0,
                user: 0,
                offset: 0,
                wild: None,
            };
            let index = u32::from(*ring);
            let state = |n: u32| encode(&Body::State(index, n));
            let memory = encode(&Body::Regions(vec![region]));
            let at = if *ring {
                [0x1000, 0x2000, 0x3000]
            } else {
                [0x5000, 0x6000, 0x7000]
            };
            let address = encode(&Body::Address {
                ring: index as u8,
                flags: 0,
                at,
            });
            send(stream, 5, false, &memory, &[world.memory.as_fd()]);
            send(stream, 8, false, &state(1 << (log2_size % 8)), &[]);
            send(stream, 10, false, &state((*base).into()), &[]);
            send(stream, 9, false, &address, &[]);
            let kick = u64::from(index).to_le_bytes();
            send(stream, 13, false, &kick, &[world.kick.as_fd()]);
            send(stream, 12, false, &kick, &[world.kick.as_fd()]);
            send(stream, 18, true, &state(1), &[]);
        }
        Part::Memory(at, bytes) => {
            let n = bytes.len().min((SIZE - u64::from(*at)) as usize);
            world
                .memory
                .write_all_at(&bytes[..n], (*at).into())
                .expect("memory can be written");
        }
        Part::Kick => {
            let _ = rustix::io::write(&world.kick, &1u64.to_ne_bytes());
        }
    }
}

fn send(stream: &UnixStream, request: u32, need_reply: bool, body: &[u8], fds: &[BorrowedFd<'_>]) {
    let flags = if need_reply { 9u32 } else { 1 };
    let mut bytes: Vec<u8> = [request, flags, body.len() as u32]
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    bytes.extend_from_slice(body);
    let mut space = vec![std::mem::MaybeUninit::uninit(); 1024];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    let _ = sendmsg(
        stream,
        &[IoSlice::new(&bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    );
}

fn encode(body: &Body) -> Vec<u8> {
    let words = |words: &[u64]| words.iter().flat_map(|w| w.to_le_bytes()).collect();
    match body {
        Body::Bytes(bytes) => bytes.clone(),
        Body::Number(n) => words(&[*n]),
        Body::State(a, b) => [a, b].iter().flat_map(|w| w.to_le_bytes()).collect(),
        Body::Address { ring, flags, at } => {
            let first = u64::from(*ring) | u64::from(*flags) << 32;
            let [descriptors, used, available] = at.map(|at| USER + u64::from(at));
            words(&[first, descriptors, used, available, 0])
        }
        Body::Regions(regions) => {
            let mut all: Vec<u8> = words(&[regions.len() as u64]);
            for region in regions.iter().take(40) {
                all.extend_from_slice(&words_of(region));
            }
            all
        }
        Body::Region(region) => {
            let mut all: Vec<u8> = words(&[0]);
            all.extend_from_slice(&words_of(region));
            all
        }
    }
}

fn words_of(region: &Region) -> Vec<u8> {
    // Whole pages, most of them where memory is.
    let page = |n: u16| u64::from(n % 16) << 12;
    let size = region.wild.unwrap_or_else(|| SIZE - page(region.size));
    [
        GUEST + page(region.guest),
        size,
        USER + page(region.user),
        page(region.offset),
    ]
    .iter()
    .flat_map(|w| w.to_le_bytes())
    .collect()
}

fn open(world: &World, kind: Kind) -> Option<OwnedFd> {
    let event = |flags| eventfd(0, flags).ok();
    match kind {
        Kind::Memory => world.memory.try_clone().ok().map(Into::into),
        Kind::Kick => world.kick.try_clone().ok(),
        Kind::Event => event(EventfdFlags::NONBLOCK),
        Kind::FullBlockingEvent => event(EventfdFlags::empty()).inspect(|e| {
            let _ = rustix::io::write(e, &(u64::MAX - 1).to_ne_bytes());
        }),
        Kind::Unsealed => Some(memfd(SIZE, SealFlags::empty()).into()),
        Kind::ReadOnly => Some(memfd(SIZE, sealed() | SealFlags::WRITE).into()),
        Kind::Pipe => std::io::pipe().ok().map(|(read, _)| read.into()),
        Kind::Folder => std::fs::File::open("/").ok().map(Into::into),
        Kind::Zero => std::fs::File::open("/dev/zero").ok().map(Into::into),
        Kind::Socket => UnixStream::pair().ok().map(|(s, _)| s.into()),
    }
}
