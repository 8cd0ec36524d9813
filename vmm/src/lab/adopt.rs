//! `vmm adopt`: a lab whose process was killed goes on in another.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use topology::Loaded;
use topology::model::Fabric;
use topology::zones::Zones;

use super::janitor::{self, Found, Role, SharedJanitor, Takeover};
use super::links::Links;
use super::machines::machines;
use super::node::{Begin, Machine};
use super::run_folder::{LabPaths, RunFolder, RunRoot};
use super::saved::Saved;
use super::state::State;
use super::{Begun, LabParts, Plan, Prepared, ground, listen, switch, view, write_record};
use crate::api::types::{EngineName, Lab, Node, NodeState};
use crate::cgroup::LabGroup;
use crate::engine::auto::{self, Choice};
use crate::engine::{Engines, devices};
use crate::failure::{Code, Failure};
use crate::isolation::Isolation;
use crate::process::Process;

/// Takes over the lab called `name`; has to be called on the main thread.
pub async fn adopt(name: &str, root: &RunRoot) -> Result<Prepared, Failure> {
    let paths = root.lab(name);
    let unreadable = |error: io::Error| {
        let message = format!("cannot read what lab {name} has left: {error}");
        Failure::new(Code::General, message).help(format!("end it with `vmm stop {name}`"))
    };
    let saved = Saved::read(&paths).map_err(unreadable)?;
    let plan = plan(name, &saved, &paths, root).await?;
    let switch_program = switch::program()?;
    let links = Arc::new(Links::new(&plan.topology, &paths));
    let (mut machines, roster) = machines(&plan, &paths, &links.wiring())?;
    ground::raise_descriptors();
    // Up to here the lab was as it was.
    let takeover = janitor::take_over(&paths).map_err(|error| {
        Failure::new(
            Code::General,
            format!("cannot take over lab {name}: {error}"),
        )
    })?;
    let Takeover {
        janitor,
        lock,
        watched,
        mut found,
    } = takeover;
    let ended = || Failure::new(Code::General, format!("lab {name} has ended meanwhile"));
    let folder = RunFolder::inherit(paths.clone(), lock).ok_or_else(ended)?;
    let cannot = |error: io::Error| super::cannot_set_up(&paths, &error);
    let (janitor, keeper) = janitor::go_on(&folder, janitor, watched).map_err(cannot)?;
    let groups = paths.record().map(|record| record.groups);
    let group = LabGroup::of(groups.unwrap_or_default());
    write_record(&plan, &folder, group.as_ref()).map_err(cannot)?;
    // That of the process that was killed.
    let _ = std::fs::remove_file(paths.control());
    let listener = listen(&paths).map_err(cannot)?;

    // From here on processes end with their handles.
    let mut find = |role: Role| found.remove(&role).map(Found::attend).transpose();
    let mut lab = lab(&plan, &saved);
    for machine in &mut machines {
        let name = machine.spec.config.name.clone();
        let node = lab.nodes.iter_mut().find(|node| node.name == name);
        let process = find(Role::Node(name)).map_err(cannot)?;
        begin(machine, node, process, &janitor);
    }
    let mut switches = HashMap::new();
    for zone in Zones::of(&plan.topology).names() {
        if let Some(process) = find(Role::Switch(zone.clone())).map_err(cannot)? {
            switches.insert(zone, process);
        }
    }
    // Of nodes that were about to come or go.
    for process in found.into_values().filter_map(|found| found.attend().ok()) {
        janitor::lock(&janitor).forget(process.pid);
    }
    let parts = LabParts {
        state: State::since(lab, saved.launched.into()),
        links,
        machines,
        roster,
        group,
        begun: Some(Begun {
            origin: saved.origin.into(),
            switches,
            touches: saved.touches,
        }),
    };
    let kept = (janitor, tokio::spawn(keeper));
    Ok(Prepared::new(
        &plan,
        parts,
        folder,
        &switch_program,
        kept,
        listener,
    ))
}

/// How the lab stands, as far as that is not for its switches to say.
fn lab(plan: &Plan, saved: &Saved) -> Lab {
    let was = saved.lab.clone();
    let mut lab = view::lab(plan, was.limits_missing);
    for node in &mut lab.nodes {
        if let Some(was) = was.nodes.iter().find(|was| was.name == node.name) {
            node.clone_from(was);
        }
    }
    Lab {
        started: was.started,
        revision: was.revision,
        ready_ms: was.ready_ms,
        switch_restarts: was.switch_restarts,
        ..lab
    }
}

/// The plan of a lab that was launched.
async fn plan(
    name: &str,
    saved: &Saved,
    paths: &LabPaths,
    root: &RunRoot,
) -> Result<Plan, Failure> {
    let sources = saved.sources(paths).map_err(|error| {
        let message = format!("cannot read the topology of lab {name}: {error}");
        Failure::new(Code::General, message).help(format!("end it with `vmm stop {name}`"))
    })?;
    let (text, files) = (sources.text.clone(), sources.files.clone());
    let Loaded { mut topology, .. } = sources.load().map_err(|report| {
        let message = format!("this vmm does not take the topology of lab {name}:\n{report}");
        Failure::new(Code::Topology, message).help("take it over with the vmm that has launched it")
    })?;
    if saved.terms.kernel_fabric {
        topology.fabric = Fabric::Kernel;
    }
    let Choice { engine, .. } = match saved.lab.engine {
        EngineName::Kvm => auto::kvm()?,
        EngineName::Qemu => auto::qemu()?,
        EngineName::Container => auto::container()?,
    };
    let engines = Engines::find(engine.clone(), &topology)?;
    devices::assign(&mut topology, engine.name(), &root.lab(name));
    Ok(Plan {
        name: name.to_owned(),
        file: saved.lab.file.clone(),
        text,
        files,
        topology,
        choice: Choice {
            engine,
            reason: saved.lab.engine_reason.clone(),
        },
        engines,
        image: saved.terms.image.clone(),
        boot_timeout: saved.terms.boot_timeout,
        boots_at_once: saved.terms.boots_at_once,
        isolation: Isolation::find(saved.terms.isolation).await?,
    })
}

/// Says what a machine of the lab does first: it goes on, if it was told all it has to know; what was down stays so.
fn begin(
    machine: &mut Machine,
    node: Option<&mut Node>,
    process: Option<Process>,
    janitor: &SharedJanitor,
) {
    use NodeState::{Booting, Configured, Ended, Failed, Paused, Stopped, Waiting};
    machine.optional = true;
    let state = node.as_ref().map_or(Waiting, |node| node.state);
    machine.begin = match (process, state) {
        (None, Stopped | Ended | Failed) => Begin::Rest,
        (Some(process), Waiting | Booting) => {
            // It ends with its handle.
            janitor::lock(janitor).forget(process.pid);
            Begin::Boot
        }
        (None, _) => Begin::Boot,
        (Some(process), _) => Begin::GoOn(process),
    };
    match (&machine.begin, node) {
        (Begin::Boot, Some(node)) => (node.state, node.pid) = (Waiting, None),
        // Its agent, which is not heard while it is paused, tells again how its boot went.
        (Begin::GoOn(_), Some(node)) if node.state != Paused => node.state = Configured,
        _ => {}
    }
}
