//! A guest without a machine: memory in a memfd, a small virtio-net driver, and a vhost-user front-end.
#![allow(dead_code, reason = "each test program uses its own part of it")]

pub mod arena;
pub mod driver;
pub mod frontend;
pub mod lab;
pub mod virtual_lab;

use std::time::{Duration, Instant};

/// Waits for something that other threads bring about.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        let waited = start.elapsed();
        assert!(waited < Duration::from_secs(20), "waited in vain: {what}");
        if waited < Duration::from_millis(1) {
            std::thread::yield_now();
        } else {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A frame from one address to another, of `len` bytes, told apart by `tag`.
pub fn frame(to: [u8; 6], from: [u8; 6], len: usize, tag: u32) -> Vec<u8> {
    let mut f = Vec::with_capacity(len);
    f.extend_from_slice(&to);
    f.extend_from_slice(&from);
    f.extend_from_slice(&[0x88, 0xb5]);
    f.extend_from_slice(&tag.to_be_bytes());
    let mut x = tag.wrapping_mul(2_654_435_761).wrapping_add(1);
    while f.len() < len {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        f.push(x as u8);
    }
    f.truncate(len);
    f
}

/// A unicast address.
pub const fn mac(n: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, n]
}

/// The address of all.
pub const BROADCAST: [u8; 6] = [0xff; 6];
