//! A lab's links made by the host's kernel: bridges, virtual Ethernet pairs, TAP devices and queue disciplines, as other emulators make
//! them. For comparison with [`Switch`](crate::switch::Switch), whose control socket this serves.
//!
//! All devices are in a network namespace of this process, so that none has the name of one of the host's, the host's packet filters do
//! not see what is on them, and they go when this process does, however it ends.

mod counters;
mod qdisc;
mod tools;
mod wiring;

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write;
use std::fs;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use rustix::thread::UnshareFlags;
use thiserror::Error;
use topology::model::{Direction, Link, NodeKind, Patch, Topology};
use tracing::warn;

use crate::attributes::Attributes;
use crate::capture;
use crate::clock::Time;
use crate::control::Fabric;
use crate::event::{self, Event};
use crate::stats::{LinkStats, NodeStats, PortStats, Stats};
use counters::{Counts, Queued};
use qdisc::{Qdiscs, Unsupported};
use tools::{Refused, Tool};
use wiring::{Wiring, device, end_name, mtu};

/// The programs of iproute2.
const IP: Tool = Tool("ip");
const TC: Tool = Tool("tc");
const BRIDGE: Tool = Tool("bridge");
/// Handles that the queue disciplines of a device take at most.
const LAYERS: u16 = 4;
/// Devices come and go in groups.
const SETTLE: Duration = Duration::from_millis(5);
/// RTMGRP_LINK of rtnetlink(7): somebody tells what happens to devices.
const LINK_GROUP: u32 = 1;

/// Why the kernel does not make what it is asked for.
#[expect(missing_docs, reason = "the messages say it")]
#[derive(Debug, Error)]
pub enum KernelError {
    #[error("cannot have a network namespace of its own: {0}; run the lab as root")]
    Namespace(io::Error),
    #[error("cannot run {0}: {1}; install iproute2")]
    Start(&'static str, io::Error),
    #[error("node {node}: {what}; leave out `\"fabric\": \"kernel\"`")]
    Node { node: String, what: String },
    #[error("link {link}: {error}; or leave out `\"fabric\": \"kernel\"`")]
    Link {
        link: String,
        #[source]
        error: Unsupported,
    },
    #[error(
        "link {0}: the kernel takes both directions of a link down or none: set `up` without `forward` and `backward`"
    )]
    OneWay(String),
    #[error(
        "link {link}: this kernel does not take `tc {line}`: {said}; load its module sch_{kind} if it has one, or leave out `\"fabric\": \"kernel\"`"
    )]
    Qdisc {
        link: String,
        line: String,
        kind: String,
        said: String,
    },
    #[error("`{command}`: {said}")]
    Tool { command: String, said: String },
    #[error("there is no link `{0}`; `vswitch stats` lists them")]
    NoSuchLink(String),
    #[error("cannot be told what happens to devices: {0}")]
    Watch(io::Error),
}

/// What the kernel was made to do for a lab.
#[derive(Debug)]
pub struct Kernel {
    state: Mutex<State>,
    /// Something about schedules is different.
    changed: Condvar,
    origin: Time,
}

#[derive(Debug)]
struct State {
    topology: Topology,
    wiring: Wiring,
    links: Vec<Running>,
    /// The next handle that no queue discipline has had for long.
    handle: u16,
}

/// A link as it is.
#[derive(Debug)]
struct Running {
    link: Link,
    /// As the switch names them.
    ends: [String; 2],
    devices: [String; 2],
    mtus: [u16; 2],
    attributes: Attributes,
    /// What its devices are set to, if they are there: behind its second end is what the first direction leads to.
    set: [Option<Set>; 2],
}

/// What the end of a link was told.
#[derive(Debug, Clone, PartialEq)]
struct Set {
    qdiscs: Qdiscs,
    handle: u16,
    up: bool,
}

impl Running {
    fn new(topology: &Topology, link: &Link, origin: Time) -> Result<Self, KernelError> {
        check(topology, link)?;
        Ok(Self {
            ends: link.ends.each_ref().map(|end| end_name(topology, end)),
            devices: link.ends.each_ref().map(|end| device(topology, end)),
            mtus: link.ends.each_ref().map(|end| mtu(topology, end)),
            attributes: Attributes::new(link, origin),
            link: link.clone(),
            set: [None, None],
        })
    }
}

/// Refuses a link that is to do what the kernel cannot, now or at any time.
fn check(topology: &Topology, link: &Link) -> Result<(), KernelError> {
    let mut directions = link.directions.clone();
    let mtus = link.ends.each_ref().map(|end| mtu(topology, end));
    possible(&link.name, &directions, mtus)?;
    for change in &link.schedule {
        for (direction, patch) in directions.iter_mut().zip(&change.set) {
            patch.apply(direction);
        }
        possible(&link.name, &directions, mtus)?;
    }
    Ok(())
}

/// Those of both directions: first of that from the first end to the second, which are at the second.
fn possible(
    link: &str,
    directions: &[Direction; 2],
    mtus: [u16; 2],
) -> Result<[Qdiscs; 2], KernelError> {
    let [there, back] = directions;
    if there.up != back.up {
        return Err(KernelError::OneWay(link.to_owned()));
    }
    let mtu = mtus[0].max(mtus[1]).into();
    let of = |direction| {
        Qdiscs::of(direction, mtu).map_err(|error| KernelError::Link {
            link: link.to_owned(),
            error,
        })
    };
    Ok([of(there)?, of(back)?])
}

impl Kernel {
    /// Has the kernel make the links of `topology`, whose schedules began `elapsed` ago; in a network namespace that this thread, and those that it
    /// starts from now on, are in.
    pub fn start(topology: &Topology, elapsed: Duration) -> Result<Arc<Self>, KernelError> {
        let origin = Time::now() - elapsed;
        // SAFETY: a network namespace changes nothing about memory, descriptors or threads of this process.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
            .map_err(|error| KernelError::Namespace(error.into()))?;
        // Bridges would send neighbour discovery of their own into the lab.
        for group in ["all", "default"] {
            // A kernel without IPv6 has nothing to turn off.
            let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{group}/disable_ipv6"), "1");
        }
        let kernel = Arc::new(Self {
            state: Mutex::new(State {
                topology: Topology {
                    nodes: Vec::new(),
                    links: Vec::new(),
                    ..topology.clone()
                },
                wiring: Wiring::default(),
                links: Vec::new(),
                handle: 1,
            }),
            changed: Condvar::new(),
            origin,
        });
        let watch = watch()?;
        kernel.become_what(topology)?;
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name.to_owned());
            // They end with the process.
            thread.spawn(work).map(drop).map_err(KernelError::Watch)
        };
        let (attendant, clock) = (Arc::clone(&kernel), Arc::clone(&kernel));
        spawn("devices", Box::new(move || attendant.attend(&watch)))?;
        spawn("schedule", Box::new(move || clock.keep_schedules()))?;
        Ok(kernel)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has everything be what `topology` says; nothing is different if that is refused.
    fn become_what(&self, topology: &Topology) -> Result<(), KernelError> {
        let mut state = self.state();
        let wiring = Wiring::of(topology)?;
        let now = Time::now();
        let mut links = Vec::new();
        for link in &topology.links {
            links.push(Running::new(topology, link, self.origin)?);
        }
        let old_wiring = state.wiring.clone();
        // What stays has been set already, by the topology, by its schedule or by hand.
        for new in &mut links {
            let is_it = |old: &&Running| old.devices == new.devices;
            if let Some(old) = state.links.iter().find(is_it) {
                let between =
                    |n: usize| Patch::between(&old.link.directions[n], &new.link.directions[n]);
                let set = [between(0), between(1)];
                let mut directions = old.attributes.at(now);
                for (direction, patch) in directions.iter_mut().zip(&set) {
                    patch.apply(direction);
                }
                possible(&new.link.name, &directions, new.mtus)?;
                new.attributes = Attributes::of(&old.link, directions);
                new.attributes.renew(&new.link, &set, now, self.origin);
                for (n, device) in new.devices.iter().enumerate() {
                    if wiring.is_kept(&old_wiring, device) {
                        new.set[n].clone_from(&old.set[n]);
                    }
                }
            }
        }
        rewire(&wiring, &old_wiring)?;
        let old_links = std::mem::replace(&mut state.links, links);
        state.wiring = wiring.clone();
        if let Err(error) = state.set_all(now) {
            state.links = old_links;
            state.wiring.clone_from(&old_wiring);
            // It has been possible before.
            if let Err(error) = rewire(&old_wiring, &wiring).and_then(|()| {
                for link in &mut state.links {
                    link.set = [None, None];
                }
                state.set_all(now)
            }) {
                warn!("cannot go back to what was before: {error}");
            }
            return Err(error);
        }
        state.topology = topology.clone();
        self.changed.notify_all();
        Ok(())
    }

    /// Makes devices again that have gone with the network namespace of a node.
    fn attend(&self, watch: &OwnedFd) {
        // What does not fit is not read anyway.
        let mut message = [0; 256];
        loop {
            // What it says does not matter: what there is is looked up.
            let heard = rustix::net::recv(watch, &mut message[..], RecvFlags::empty());
            if let Err(error) = heard
                && error != rustix::io::Errno::INTR
                && error != rustix::io::Errno::NOBUFS
            {
                warn!("nothing is heard of devices any more: {error}");
                return;
            }
            std::thread::sleep(SETTLE);
            while rustix::net::recv(watch, &mut message[..], RecvFlags::DONTWAIT).is_ok() {}
            if let Err(error) = self.state().make_lost() {
                warn!("cannot make the devices of a node again: {error}");
            }
        }
    }

    /// Changes links when their time has come.
    fn keep_schedules(&self) {
        let mut state = self.state();
        let mut done = Time::now();
        loop {
            let times = state
                .links
                .iter()
                .flat_map(|running| &running.link.schedule);
            let coming = times.map(|change| self.origin + change.at);
            let next = coming.filter(|at| *at > done).min();
            let now = Time::now();
            let Some(next) = next else {
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            if next > now {
                let waited = self.changed.wait_timeout(state, next.since(now));
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            done = now;
            if let Err(error) = state.set_all(now) {
                warn!("a schedule is not kept: {error}");
            }
        }
    }
}

/// Has the kernel make `new` of `old`.
fn rewire(new: &Wiring, old: &Wiring) -> Result<(), KernelError> {
    let (ip, bridge) = new.replace(old, &[]);
    let done = IP.batch(&ip).and_then(|()| BRIDGE.batch(&bridge));
    if done.is_err() {
        // Whatever there is of both goes, and what there was is made anew.
        for name in new.ends.keys().chain(new.bridges.keys()) {
            let _ = IP.batch(&format!("link del dev {name}\n"));
        }
        let (ip, bridge) = old.replace(&Wiring::default(), &[]);
        let again = IP.batch(&ip).and_then(|()| BRIDGE.batch(&bridge));
        if let Err(error) = again {
            warn!("cannot go back to what was before: {error}");
        }
    }
    done
}

/// A socket that is told what happens to devices.
fn watch() -> Result<OwnedFd, KernelError> {
    let open = || {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // NETLINK_ROUTE.
            None,
        )?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, LINK_GROUP))?;
        Ok(socket)
    };
    open().map_err(|error: rustix::io::Errno| KernelError::Watch(error.into()))
}

impl State {
    /// Has every link be what it is to be at `now`.
    fn set_all(&mut self, now: Time) -> Result<(), KernelError> {
        let all = 0..self.links.len();
        self.set(all.collect(), now)
    }

    /// Has some links be what they are to be at `now`.
    fn set(&mut self, links: Vec<usize>, now: Time) -> Result<(), KernelError> {
        let (mut tc, mut ip) = (String::new(), String::new());
        // Which link a line of `tc` is about.
        let mut about = Vec::new();
        let mut wanted = Vec::new();
        for number in links {
            let running = &self.links[number];
            let directions = running.attributes.at(now);
            let qdiscs = possible(&running.link.name, &directions, running.mtus)?;
            for (direction, qdiscs) in qdiscs.into_iter().enumerate() {
                let end = 1 - direction;
                let device = &running.devices[end];
                let is_new = running.set[end].is_none();
                let old = running.set[end].clone().unwrap_or_else(|| Set {
                    qdiscs: Qdiscs::default(),
                    handle: 0,
                    up: false,
                });
                let up = directions[direction].up;
                let lines = qdiscs.replace(&old.qdiscs, device, self.handle, old.handle);
                about.extend(lines.lines().map(|_| number));
                let kept = lines.is_empty() || lines.starts_with("qdisc change");
                tc.push_str(&lines);
                if is_new || old.up != up {
                    let state = if up { "up" } else { "down" };
                    let _ = writeln!(ip, "link set dev {device} {state}");
                }
                let handle = if kept { old.handle } else { self.handle };
                // 0 and ffff: are not for everybody.
                self.handle = (self.handle + LAYERS) % 0xfff0 + 1;
                wanted.push((number, end, Set { qdiscs, handle, up }));
            }
        }
        if let Err(Refused { line, said }) = TC.lines(&tc)? {
            let line = line.unwrap_or_default();
            let text = tc.lines().nth(line).unwrap_or_default();
            let mut words = text
                .split_whitespace()
                .skip_while(|word| !word.ends_with(':'));
            let kind = words.nth(1);
            return Err(KernelError::Qdisc {
                link: about
                    .get(line)
                    .map_or_else(String::new, |link| self.links[*link].link.name.clone()),
                line: text.to_owned(),
                kind: kind.unwrap_or_default().to_owned(),
                said,
            });
        }
        IP.batch(&ip)?;
        for (number, end, set) in wanted {
            let running = &mut self.links[number];
            let was = running.set[end].as_ref().is_none_or(|old| old.up);
            if was != set.up {
                event::tell(&Event::Carrier {
                    link: &running.link.name,
                    direction: 1 - end,
                    up: set.up,
                });
            }
            running.set[end] = Some(set);
        }
        Ok(())
    }

    /// Makes devices again that have gone, and has them be what they were.
    fn make_lost(&mut self) -> Result<(), KernelError> {
        let there = counters::devices();
        let lost: Vec<_> = self
            .wiring
            .ends
            .keys()
            .filter(|name| !there.contains_key(*name))
            .cloned()
            .collect();
        if lost.is_empty() {
            return Ok(());
        }
        let (ip, bridge) = self.wiring.replace(&self.wiring, &lost);
        IP.batch(&ip)?;
        BRIDGE.batch(&bridge)?;
        let mut links = BTreeSet::new();
        for (number, running) in self.links.iter_mut().enumerate() {
            for end in 0..2 {
                if lost.contains(&running.devices[end]) {
                    running.set[end] = None;
                    links.insert(number);
                }
            }
        }
        self.set(links.into_iter().collect(), Time::now())
    }

    fn find(&self, name: &str) -> Result<usize, KernelError> {
        let is_it = |running: &Running| running.link.name == name;
        let found = self.links.iter().position(is_it);
        found.ok_or_else(|| KernelError::NoSuchLink(name.to_owned()))
    }

    /// Sets attributes of a link; they are what they were if that is refused.
    fn change(&mut self, name: &str, set: &[Patch; 2]) -> Result<(), KernelError> {
        let number = self.find(name)?;
        let now = Time::now();
        let running = &self.links[number];
        let before = running.attributes.at(now);
        let mut after = before.clone();
        for (direction, patch) in after.iter_mut().zip(set) {
            patch.apply(direction);
        }
        possible(name, &after, running.mtus)?;
        let noted = |patches: &[Patch; 2]| {
            let noted = running
                .attributes
                .set(patches, now, || Ok::<_, KernelError>(()));
            debug_assert!(noted.is_ok());
        };
        noted(set);
        let back = before.each_ref().map(Patch::whole);
        let done = self.set(vec![number], now);
        if done.is_err() {
            let running = &self.links[number];
            let _ = running
                .attributes
                .set(&back, now, || Ok::<_, KernelError>(()));
            // A part of it may have been done.
            if let Err(error) = self.anew(number, now) {
                warn!("cannot go back to what was before: {error}");
            }
        }
        done
    }

    /// Has a link be what it is to be, whatever its devices have been told.
    fn anew(&mut self, number: usize, now: Time) -> Result<(), KernelError> {
        let devices = self.links[number].devices.clone();
        for device in devices {
            // There may be none.
            let _ = TC.lines(&format!("qdisc del dev {device} root\n"))?;
        }
        for set in self.links[number].set.iter_mut().flatten() {
            set.qdiscs = Qdiscs::default();
        }
        self.set(vec![number], now)
    }

    fn stats(&self, qdiscs: &HashMap<String, Queued>) -> Stats {
        let devices = counters::devices();
        let counts = |device: &String| devices.get(device).copied().unwrap_or_default();
        let queued = |device: &String| qdiscs.get(device).copied().unwrap_or_default();
        let now = Time::now();
        let link = |running: &Running| {
            let [a, b] = &running.ends;
            let [to_a, to_b] = &running.devices;
            let there = counters::direction([a, b], counts(to_a), counts(to_b), queued(to_b));
            let back = counters::direction([b, a], counts(to_b), counts(to_a), queued(to_a));
            LinkStats {
                name: running.link.name.clone(),
                attributes: running
                    .attributes
                    .at(now)
                    .each_ref()
                    .map(Direction::written),
                directions: [there, back],
            }
        };
        let port = |name: String, device: &String| {
            let there = devices.contains_key(device);
            PortStats {
                name,
                connected: there,
                connections: there.into(),
                features: Vec::new(),
                receiving: there,
                sending: there,
                malformed: 0,
                unlinked: 0,
                violations: 0,
                last_error: None,
            }
        };
        let ends = self.links.iter().flat_map(|running| {
            running
                .ends
                .iter()
                .zip(&running.devices)
                .zip(&running.link.ends)
        });
        let ports = ends.filter(|(_, end)| self.topology.nodes[end.node].machine().is_some());
        Stats {
            name: self.topology.name.clone(),
            ports: ports
                .map(|((name, device), _)| port(name.clone(), device))
                .collect(),
            externals: Vec::new(),
            links: self.links.iter().map(link).collect(),
            nodes: self.node_stats(&devices),
            shards: Vec::new(),
            captures: 0,
        }
    }

    /// Of switches and hubs the kernel counts what came in.
    fn node_stats(&self, devices: &HashMap<String, Counts>) -> Vec<NodeStats> {
        let nodes = self.topology.nodes.iter().enumerate();
        nodes
            .filter_map(|(number, node)| {
                let kind = match node.kind {
                    NodeKind::Switch(_) => "switch",
                    NodeKind::Hub => "hub",
                    NodeKind::Machine(_) | NodeKind::External(_) => return None,
                };
                let ends = self.links.iter().flat_map(|running| {
                    let ends = running.link.ends.iter().zip(&running.devices);
                    ends.filter(|(end, _)| end.node == number)
                });
                let frames = ends.filter_map(|(_, device)| Some(devices.get(device)?.tx_frames));
                Some(NodeStats {
                    name: node.name.clone(),
                    kind: kind.to_owned(),
                    frames: frames.sum(),
                    flooded: 0,
                    filtered: 0,
                    wrong_vlan: 0,
                    storm: 0,
                    moved: 0,
                    looped: 0,
                    learnt: 0,
                    last_error: None,
                })
            })
            .collect()
    }
}

impl Fabric for Kernel {
    fn stats(&self) -> Stats {
        let qdiscs = counters::qdiscs();
        self.state().stats(&qdiscs)
    }

    fn brief(&self) -> Stats {
        self.state().stats(&HashMap::new())
    }

    fn change(&self, link: &str, set: &[Patch; 2]) -> Result<(), String> {
        self.state().change(link, set).map_err(|e| e.to_string())
    }

    fn reset(&self, link: &str) -> Result<(), String> {
        let mut state = self.state();
        let number = state.find(link).map_err(|e| e.to_string())?;
        let set = state.links[number].attributes.at_start();
        state.change(link, &set).map_err(|e| e.to_string())
    }

    fn rewire(&self, topology: &Topology) -> Result<(), String> {
        self.become_what(topology).map_err(|e| e.to_string())
    }

    fn capture(self: &Arc<Self>, _: &capture::Request) -> Result<capture::Session, String> {
        Err(
            "links of the kernel's fabric are not captured: run tcpdump in a node, as in `vmm exec a -- tcpdump -i eth0`"
                .to_owned(),
        )
    }
}
