//! The switch becomes another one while it runs.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;

use thiserror::Error;
use topology::model::Topology;

use super::{Sockets, StartError, View, connect, new_port, open};
use crate::attributes::Attributes;
use crate::clock::Time;
use crate::inventory::{External, Inventory, Link, Node};
use crate::link::Streams;
use crate::port::{Policy, Port};
use crate::rewiring::{Rewiring, Slots};
use crate::shard::{Gone, Rewire};

/// What changes of the switch start from.
#[derive(Debug)]
pub(super) struct Changes {
    pub(super) topology: Topology,
    pub(super) streams: Streams,
    pub(super) slots: Vec<Slots>,
    /// When schedules and traces began.
    pub(super) origin: Time,
    pub(super) sockets: Sockets,
    /// Those that were made for the sockets of ports.
    pub(super) folders: Vec<PathBuf>,
    pub(super) policy: Policy,
    /// The control threads of the ports.
    pub(super) threads: HashMap<String, JoinHandle<()>>,
}

/// A port whose control thread waits to be let go; if it is not, nobody can connect.
pub(super) struct Waiting {
    port: Arc<Port>,
    thread: Option<JoinHandle<()>>,
    go: Option<Sender<()>>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.go.is_some() {
            self.port.close();
        }
    }
}

/// Why the switch cannot be made another one while it runs. Nothing has changed then.
#[derive(Debug, Error)]
pub enum RewireError {
    /// What is new cannot be had.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The switch is about to end.
    #[error(transparent)]
    Ending(#[from] Gone),
}

impl View {
    /// Makes the switch one that runs `topology`, while traffic runs: what there is in both stays as it is, with everything that is inside
    /// it. Returns when it is done. Name, seed and timing stay those of the start.
    pub fn rewire(&self, topology: &Topology) -> Result<(), RewireError> {
        let mut changes = self.changes();
        let changes = changes.as_mut().ok_or(Gone)?;
        let now = Time::now();
        let old = self.inventory();
        let mut streams = changes.streams.clone();
        let rewiring = Rewiring::new(
            &changes.topology,
            &old.present(),
            topology,
            &mut streams,
            &changes.slots,
            now.since(changes.origin),
        );
        let rewiring = rewiring.map_err(StartError::from)?;
        let mut new = Inventory::default();
        let (mut waiting, mut offers) = (Vec::new(), Vec::new());
        for plan in rewiring.present.ports {
            let known = old.ports.iter().find(|port| port.plan().is(&plan));
            if let Some(port) = known {
                offers.push((Arc::clone(port), plan.offloads));
                new.ports.push(Arc::clone(port));
                continue;
            }
            let port = new_port(plan, &changes.sockets, &mut changes.folders)?;
            let thread = self.spawn(&port, changes.policy);
            waiting.push(thread.map_err(StartError::from)?);
            new.ports.push(port);
        }
        let mut devices = Vec::new();
        for plan in rewiring.present.externals {
            let known = old.externals.iter();
            let known = known.clone().find(|external| {
                let before = &external.plan;
                (before.shard, before.index) == (plan.shard, plan.index)
            });
            let is_open = known.is_some_and(|known| known.plan.external == plan.external);
            let external = match known {
                Some(known) => External {
                    plan,
                    status: Arc::clone(&known.status),
                },
                None => External::new(plan),
            };
            if !is_open {
                devices.push((external.clone(), open(&external)?));
            }
            new.externals.push(external);
        }
        for plan in rewiring.present.nodes {
            let known = old
                .nodes
                .iter()
                .find(|node| (node.plan.shard, node.plan.index) == (plan.shard, plan.index));
            new.nodes.push(match known {
                Some(known) => Node {
                    plan,
                    status: Arc::clone(&known.status),
                },
                None => Node::new(plan),
            });
        }
        let links = rewiring.present.links.into_iter().zip(&topology.links);
        for ((plan, link), known) in links.zip(&rewiring.kept_links) {
            let attributes = match known {
                Some(known) => Arc::clone(&old.links[*known].attributes),
                None => Arc::new(Attributes::new(link, changes.origin)),
            };
            new.links.push(Link { plan, attributes });
        }
        let shards = rewiring.shards.into_iter();
        let shards: Vec<_> = shards.map(|s| Rewire::new(s, changes.origin)).collect();

        // From here on nothing can fail but by the end of the switch.
        for (port, offloads) in offers {
            port.offer_offloads(offloads);
        }
        for port in &old.ports {
            if !new.ports.iter().any(|stays| Arc::ptr_eq(stays, port)) {
                port.close();
                if let Some(thread) = changes.threads.remove(&port.plan().name) {
                    // A panic has been reported by the thread itself.
                    let _ = thread.join();
                }
            }
        }
        let new = Arc::new(new);
        // Before there can be news of what is new.
        *self
            .inventory
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::clone(&new);
        for (handle, rewire) in self.handles.iter().zip(shards) {
            handle.rewire(rewire)?;
        }
        for (number, link) in topology.links.iter().enumerate() {
            if rewiring.kept_links[number].is_some() {
                let set = rewiring.set.get(&number);
                let set = set.cloned().unwrap_or_default();
                new.links[number]
                    .attributes
                    .renew(link, &set, now, changes.origin);
            }
        }
        for (external, device) in devices {
            connect(&external, device, &self.handles[external.plan.shard]);
        }
        changes.let_go(waiting);
        changes.topology = topology.clone();
        changes.streams = streams;
        changes.slots = rewiring.slots;
        Ok(())
    }

    /// Starts the control thread of a port, which waits to be let go.
    pub(super) fn spawn(&self, port: &Arc<Port>, policy: Policy) -> io::Result<Waiting> {
        let (go, wait) = mpsc::channel();
        let shard = self.handles[port.plan().shard].clone();
        Ok(Waiting {
            thread: Some(port.spawn(shard, policy, self.filters.port.clone(), wait)?),
            port: Arc::clone(port),
            go: Some(go),
        })
    }
}

impl Changes {
    /// Lets front-ends connect.
    pub(super) fn let_go(&mut self, waiting: Vec<Waiting>) {
        for mut waiting in waiting {
            let name = waiting.port.plan().name.clone();
            self.threads
                .extend(waiting.thread.take().map(|thread| (name, thread)));
            // It waits for nothing else.
            let _ = waiting.go.take().map(|go| go.send(()));
        }
    }
}
