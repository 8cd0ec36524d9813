//! A running lab becomes another one.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinSet;
use topology::difference::{Difference, LinkChange, NodeChange};
use topology::model::{Check, Node, Topology};
use topology::zones::{COMMON, Zones};
use topology::{Loaded, Sources};

use super::agent::{Agent, ExecEvent};
use super::faults::{self, Fault, Faults};
use super::links::{LinkError, Links, Wiring};
use super::machines::{check_socket_paths, devices, spec};
use super::node::{Begin, Machine, Spec};
use super::orders::{Orders, Roster, Task};
use super::run_folder::LabPaths;
use super::state::State;
use super::view::{self, Terms, keep};
use super::{describe, ground, plan};
use crate::api::types::{
    ChangePlan, IsolationLevel, Keep, NodeState, Phase, Step, TopologyRequest, TopologyText,
};
use crate::engine::{self, Engine, Engines};
use crate::failure::{Code, Failure};
use crate::image::Image;

/// How long a node may take to learn the names of others.
const HOSTS_PATIENCE: Duration = Duration::from_secs(10);

/// Changes a lab, one change at a time.
#[derive(Debug)]
pub struct Changes {
    current: Mutex<Current>,
    /// The topology again, for those who do not wait for a change that is being made.
    shown: RwLock<Arc<Topology>>,
    /// The lab's name in the file, from which addresses are made.
    name: String,
    image: Option<Image>,
    paths: LabPaths,
    links: Arc<Links>,
    roster: Roster,
    state: State,
    engine: Engine,
    isolation: IsolationLevel,
    grouped: bool,
    /// To the one who runs machines.
    machines: mpsc::UnboundedSender<Machine>,
    /// To the one who has things happen to them.
    faults: watch::Sender<Vec<Fault>>,
}

/// What the lab is.
#[derive(Debug)]
struct Current {
    topology: Arc<Topology>,
    file: PathBuf,
    text: String,
    revision: u64,
}

/// What a lab consists of that can change.
#[derive(Debug)]
pub struct Parts {
    /// What it is at first.
    pub topology: Topology,
    /// The file that says so; absolute.
    pub file: PathBuf,
    /// What stands in it.
    pub text: String,
    /// How often it has become another one.
    pub revision: u64,
    /// For machines that name no kernel or root of their own.
    pub image: Option<Image>,
    /// Where its files are.
    pub paths: LabPaths,
    /// Its links.
    pub links: Arc<Links>,
    /// Who gives orders to which machine.
    pub roster: Roster,
    /// How it stands.
    pub state: State,
    /// What runs machines that ask for nothing.
    pub engine: Engine,
    /// How its processes are jailed.
    pub isolation: IsolationLevel,
    /// Whether it has a control group, without which limits are not enforced.
    pub grouped: bool,
}

/// Why a lab is not changed. It is then what it was.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The topology has errors.
    #[error("the topology has errors:\n{0}")]
    Broken(String),
    /// It is another lab's.
    #[error("the file describes the lab {theirs}, and this is {ours}")]
    OtherLab {
        /// The name in the file.
        theirs: String,
        /// The name of the topology that runs.
        ours: String,
    },
    /// Somebody was faster.
    #[error("somebody else has changed the lab meanwhile (revision {now}, not {expected})")]
    Stale {
        /// What it was to be.
        expected: u64,
        /// What it is.
        now: u64,
    },
    /// It is no lab that runs.
    #[error("the lab is {0}")]
    NotRunning(&'static str),
    /// A node would be elsewhere.
    #[error(
        "node {node} would be in {zone}: zones of a running lab stay what they are; stop it and launch it again"
    )]
    Zone {
        /// The node.
        node: String,
        /// Its new zone.
        zone: String,
    },
    /// This machine lacks something.
    #[error("{0}")]
    Host(Failure),
    /// The switch does not do it.
    #[error(transparent)]
    Switch(#[from] LinkError),
}

/// A change that can be made.
struct Checked {
    /// The file; its name is that of the lab, so that a file of another name describes the same lab.
    file: PathBuf,
    loaded: Loaded,
    difference: Difference,
    plan: ChangePlan,
    drifted: Vec<String>,
    wiring: Wiring,
    /// Of each machine.
    specs: HashMap<String, Spec>,
}

impl Changes {
    /// Of a lab of `parts`; machines that come are sent to the receiver.
    pub fn new(parts: Parts) -> (Self, mpsc::UnboundedReceiver<Machine>) {
        let (machines, newcomers) = mpsc::unbounded_channel();
        let topology = Arc::new(parts.topology);
        let changes = Self {
            name: topology.name.clone(),
            faults: watch::Sender::new(faults::of(&topology)),
            shown: RwLock::new(topology.clone()),
            current: Mutex::new(Current {
                topology,
                file: parts.file,
                text: parts.text,
                revision: parts.revision,
            }),
            image: parts.image,
            paths: parts.paths,
            links: parts.links,
            roster: parts.roster,
            state: parts.state,
            engine: parts.engine,
            isolation: parts.isolation,
            grouped: parts.grouped,
            machines,
        };
        (changes, newcomers)
    }

    /// What happens to its machines.
    pub fn faults(&self) -> Faults {
        self.faults.subscribe()
    }

    /// What should hold while the lab runs.
    pub fn checks(&self) -> Vec<Check> {
        self.shown().checks.clone()
    }

    /// What is worth keeping of a node.
    pub fn keep(&self, name: &str) -> Keep {
        let topology = self.shown();
        let node = topology.nodes.iter().find(|node| node.name == name);
        node.map(keep).unwrap_or_default()
    }

    fn shown(&self) -> Arc<Topology> {
        let shown = self.shown.read();
        Arc::clone(&shown.unwrap_or_else(PoisonError::into_inner))
    }

    /// What the lab is.
    pub async fn topology(&self) -> TopologyText {
        let current = self.current.lock().await;
        TopologyText {
            file: current.file.clone(),
            text: current.text.clone(),
            revision: current.revision,
        }
    }

    /// What `apply` would do.
    pub async fn plan(&self, request: &TopologyRequest) -> Result<ChangePlan, ChangeError> {
        let current = self.current.lock().await;
        Ok(self.check(&current, request)?.plan)
    }

    /// Makes the lab what is asked for, and says what that took. Links are then as they are to be, machines that boot have begun to.
    pub async fn apply(&self, request: TopologyRequest) -> Result<ChangePlan, ChangeError> {
        let mut current = self.current.lock().await;
        let Checked {
            file,
            loaded,
            difference,
            mut plan,
            drifted,
            wiring,
            mut specs,
        } = self.check(&current, &request)?;
        let topology = &loaded.topology;
        let added = |change: &NodeChange| match change {
            NodeChange::Added(index) => Some(topology.nodes[*index].clone()),
            _ => None,
        };
        let added: Vec<Node> = difference.nodes.iter().filter_map(added).collect();
        let removed = |change: &NodeChange| match change {
            NodeChange::Removed(index) => Some(current.topology.nodes[*index].clone()),
            _ => None,
        };
        let removed: Vec<Node> = difference.nodes.iter().filter_map(removed).collect();
        let renamed = renamed(&current.topology, topology, &difference);
        let zones = Zones::of(topology);
        let zone_of = |name: &str| {
            let index = topology.nodes.iter().position(|node| node.name == name);
            index.map_or(COMMON, |index| zones.zone(index))
        };
        if let Err(error) = added
            .iter()
            .try_for_each(|node| self.paths.create_node(zone_of(&node.name), &node.name))
        {
            self.clear(&added);
            let message = format!("cannot write {}: {error}", self.paths.folder().display());
            return Err(ChangeError::Host(Failure::new(Code::Host, message)));
        }
        let sources = Sources {
            file,
            text: request.text.clone(),
            files: loaded.files.clone(),
            devices: devices(&loaded.topology),
            zone: None,
        };
        if let Err(error) = self.links.apply(&sources, wiring, &renamed).await {
            self.clear(&added);
            return Err(error.into());
        }

        // The switch is what it is to be, and what follows cannot be refused.
        for zone in self.links.zones() {
            let part = self.links.part(zone, &sources);
            let Err(error) = self.paths.write_sources(zone, &part) else {
                continue;
            };
            let path = self.paths.sources(zone);
            self.state.notice(None, format!("cannot write {}: {error}; a switch that had to be started again would not know of this change", path.display()));
        }
        self.remove(removed).await;
        self.renew(&current.topology, topology, &difference, &mut specs)
            .await;
        self.add(&added, &mut specs);
        for link in drifted {
            if let Err(error) = self.links.reset(&link).await {
                self.state.notice(None, format!("link {link}: {error}"));
            }
        }
        self.tell_names(&current.topology, topology, &difference)
            .await;
        self.faults.send_if_modified(|faults| {
            let new = faults::of(topology);
            let differs = *faults != new;
            *faults = new;
            differs
        });
        let topology = Arc::new(loaded.topology);
        *self.shown.write().unwrap_or_else(PoisonError::into_inner) = topology.clone();
        *current = Current {
            topology,
            file: request.file,
            text: request.text,
            revision: current.revision + 1,
        };
        let names: Vec<_> = current
            .topology
            .nodes
            .iter()
            .map(|n| n.name.as_str())
            .collect();
        let (revision, file) = (current.revision, current.file.clone());
        let description = current.topology.description.clone();
        self.state.renewed(revision, file, description, &names);
        plan.revision = revision;
        Ok(plan)
    }

    fn check(&self, current: &Current, request: &TopologyRequest) -> Result<Checked, ChangeError> {
        match self.state.lab().phase {
            Phase::Running => {}
            Phase::Starting => return Err(ChangeError::NotRunning("still starting")),
            Phase::Ending | Phase::Ended | Phase::Orphaned => {
                return Err(ChangeError::NotRunning("ending"));
            }
        }
        if let Some(expected) = request.revision.filter(|r| *r != current.revision) {
            let now = current.revision;
            return Err(ChangeError::Stale { expected, now });
        }
        let file = request.file.with_file_name(format!("{}.json", self.name));
        let loaded = Topology::parse(&request.text, &file);
        let mut loaded = loaded.map_err(|report| ChangeError::Broken(report.to_string()))?;
        // Whatever the file says: it is asked for when a lab is launched.
        loaded.topology.fabric = current.topology.fabric;
        let engines =
            Engines::find(self.engine.clone(), &loaded.topology).map_err(ChangeError::Host)?;
        engine::devices::assign(&mut loaded.topology, self.engine.name(), &self.paths);
        let topology = &loaded.topology;
        if topology.name != self.name {
            return Err(ChangeError::OtherLab {
                theirs: topology.name.clone(),
                ours: self.name.clone(),
            });
        }
        let old = &current.topology;
        self.check_zones(old, topology)?;
        let difference = Difference::between(old, topology);
        let touched = if request.keep_links {
            BTreeSet::default()
        } else {
            self.links.touched()
        };
        let steps: Vec<Step> = plan::steps(old, topology, &difference, &touched);
        let kept = difference.kept_links.iter();
        let drifted = kept
            .filter(|(from, _)| touched.contains(&old.links[*from].name))
            .map(|(_, to)| topology.links[*to].name.clone());
        let wiring = self.links.rewired(topology);
        let specs = self.specs(topology, &wiring, &engines)?;
        check_socket_paths(topology, &self.paths).map_err(ChangeError::Host)?;
        ground::check_processors(topology).map_err(ChangeError::Host)?;
        let mut notes = plan::notes(old, topology);
        if !self.grouped && ground::need_group(topology) {
            notes.push("`cpu` and `host-memory` are not enforced until the lab is launched again with this file".into());
        }
        Ok(Checked {
            wiring,
            specs,
            file,
            drifted: drifted.collect(),
            plan: ChangePlan {
                revision: current.revision,
                steps,
                notes,
            },
            difference,
            loaded,
        })
    }

    /// Each switch was started for a zone, and what it has stays there.
    fn check_zones(&self, old: &Topology, new: &Topology) -> Result<(), ChangeError> {
        let (before, after) = (Zones::of(old), Zones::of(new));
        for (index, node) in new.nodes.iter().enumerate() {
            let zone = after.zone(index);
            let place = old.nodes.iter().position(|other| other.name == node.name);
            let was = place.map(|place| before.zone(place));
            let has_switch = self.links.zones().any(|known| known == zone);
            if !has_switch || was.is_some_and(|was| was != zone) {
                return Err(ChangeError::Zone {
                    node: node.name.clone(),
                    zone: if zone == COMMON {
                        "no zone".to_owned()
                    } else {
                        format!("zone {zone}")
                    },
                });
            }
        }
        Ok(())
    }

    /// What the machines of `topology` are.
    fn specs(
        &self,
        topology: &Topology,
        wiring: &Wiring,
        engines: &Engines,
    ) -> Result<HashMap<String, Spec>, ChangeError> {
        let mut specs = HashMap::new();
        for node in &topology.nodes {
            let image = self.image.as_ref();
            let spec = spec(topology, node, image, &self.paths, wiring, engines);
            if let Some(spec) = spec.map_err(ChangeError::Host)? {
                specs.insert(node.name.clone(), spec);
            }
        }
        Ok(specs)
    }

    fn terms(&self) -> Terms {
        Terms {
            engine: self.engine.name(),
            isolation: self.isolation,
            group_missing: !self.grouped,
        }
    }

    /// Ends nodes that are gone.
    async fn remove(&self, nodes: Vec<Node>) {
        let mut leaving = JoinSet::new();
        for node in &nodes {
            if let Some(orders) = self.roster.find(&node.name) {
                leaving.spawn(async move { orders.ask(Task::Leave).await });
            }
        }
        while leaving.join_next().await.is_some() {}
        for Node { name, .. } in &nodes {
            self.roster.strike(name);
            self.state.remove(name);
        }
        self.clear(&nodes);
    }

    /// Removes the folders of nodes; what is left of them goes with the lab.
    fn clear(&self, nodes: &[Node]) {
        for Node { name, .. } in nodes {
            let _ = std::fs::remove_dir_all(self.paths.node(name));
            for zone in self.links.zones() {
                let _ = std::fs::remove_dir_all(self.paths.node_ports(zone, name));
            }
        }
    }

    /// Has the nodes that stay be what they are now.
    async fn renew(
        &self,
        old: &Topology,
        new: &Topology,
        difference: &Difference,
        specs: &mut HashMap<String, Spec>,
    ) {
        let mut restarts = Vec::new();
        for change in &difference.nodes {
            if let NodeChange::Changed {
                new: index,
                aspects,
                ..
            } = change
            {
                let node = &new.nodes[*index];
                let view = view::node(node, self.terms());
                self.state.update(&node.name, |known| {
                    known.kind = view.kind;
                    known.labels = view.labels;
                    known.interfaces = view.interfaces;
                    known.external = view.external;
                    known.memory = view.memory;
                    known.vcpus = view.vcpus;
                    known.limits = view.limits;
                });
                if plan::restarts(new, *index, aspects) {
                    restarts.push(*index);
                }
            }
        }
        let mut restarting = JoinSet::new();
        for (from, to) in &difference.kept_nodes {
            let name = &new.nodes[*to].name;
            let (Some(orders), Some(spec)) = (self.roster.find(name), specs.remove(name)) else {
                continue;
            };
            let restart = restarts.contains(to);
            let is_same = old.nodes[*from] == new.nodes[*to]
                && describe::hosts_file(old, name) == describe::hosts_file(new, name);
            if is_same {
                continue;
            }
            let spec = Box::new(spec);
            let become_it = async move { orders.ask(Task::Become { spec, restart }).await };
            if restart {
                restarting.spawn(become_it);
            } else {
                // It counts from the next boot on.
                tokio::spawn(become_it);
            }
        }
        while restarting.join_next().await.is_some() {}
    }

    /// Brings nodes into the lab.
    fn add(&self, nodes: &[Node], specs: &mut HashMap<String, Spec>) {
        // All are there before the first boots: it may have to wait for another.
        for node in nodes {
            let mut view = view::node(node, self.terms());
            if !specs.contains_key(&node.name) {
                view.state = NodeState::Ready;
            }
            self.state.add(view);
        }
        for node in nodes {
            let Some(spec) = specs.remove(&node.name) else {
                continue;
            };
            let (orders, receiver) = Orders::new();
            self.roster.enter(&node.name, orders);
            // Nobody takes it when the lab ends.
            let _ = self.machines.send(Machine {
                spec,
                orders: receiver,
                optional: true,
                begin: Begin::Boot,
            });
        }
    }

    /// Tells machines that go on running the names of others, as far as they are not what they were.
    async fn tell_names(&self, old: &Topology, new: &Topology, difference: &Difference) {
        let mut told = JoinSet::new();
        for (_, to) in &difference.kept_nodes {
            let name = &new.nodes[*to].name;
            let hosts = describe::hosts_file(new, name);
            let is_told = hosts == describe::hosts_file(old, name);
            let (false, Some(agent)) = (is_told, self.state.agent(name)) else {
                continue;
            };
            let paused = self.state.node(name).map(|node| node.state) == Some(NodeState::Paused);
            let (state, name) = (self.state.clone(), name.clone());
            told.spawn(async move {
                let work = tokio::time::timeout(HOSTS_PATIENCE, write_hosts(agent, hosts));
                if paused || work.await != Ok(true) {
                    let message = "does not know the names of all nodes; restart it";
                    state.notice(Some(&name), message);
                }
            });
        }
        while told.join_next().await.is_some() {}
    }
}

/// Replaces `/etc/hosts` of a running node; whether that was done.
async fn write_hosts(agent: Agent, hosts: String) -> bool {
    let script = "printf %s \"$1\" > /etc/hosts";
    let argv = ["/bin/sh", "-c", script, "hosts", &hosts].map(str::to_owned);
    let Some((_exec, mut events)) = agent.exec(argv.into(), Vec::new(), None, None).await else {
        return false;
    };
    while let Some(event) = events.recv().await {
        match event {
            ExecEvent::Exited(status) => return status == agent_protocol::ExitStatus::Code(0),
            ExecEvent::Failed { .. } => return false,
            ExecEvent::Stdout(_) | ExecEvent::Stderr(_) | ExecEvent::Credit(_) => {}
        }
    }
    false
}

/// Links with other names than before; those that are gone have none.
fn renamed(
    old: &Topology,
    new: &Topology,
    difference: &Difference,
) -> HashMap<String, Option<String>> {
    let changes = difference.links.iter();
    let renamed = changes.filter_map(|change| match change {
        LinkChange::Removed(index) => Some((old.links[*index].name.clone(), None)),
        LinkChange::Changed {
            old: from, new: to, ..
        } => {
            let name = new.links[*to].name.clone();
            Some((old.links[*from].name.clone(), Some(name)))
        }
        LinkChange::Added(_) => None,
    });
    renamed.collect()
}
