//! What people are shown of a lab and its nodes before anything has happened.

use std::collections::BTreeMap;
use std::time::SystemTime;

use topology::model::{self, NodeKind, Role};
use topology::zones::Zones;

use super::{Plan, ground};
use crate::api::types::{
    BootTimes, EngineName, Interface, IsolationLevel, Keep, Kind, Lab, Node, NodeState, Phase,
    Switch,
};

/// A lab that is about to start.
pub(super) fn lab(plan: &Plan, limits_missing: Option<String>) -> Lab {
    let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let isolation = plan.isolation.report();
    let terms = Terms {
        engine: plan.choice.engine.name(),
        isolation: isolation.level,
        group_missing: limits_missing.is_some(),
    };
    Lab {
        name: plan.name.clone(),
        description: plan.topology.description.clone(),
        file: plan.file.clone(),
        pid: std::process::id(),
        switch_pid: None,
        switches: Zones::of(&plan.topology)
            .names()
            .into_iter()
            .map(|zone| Switch { zone, pid: None })
            .collect(),
        switch_restarts: 0,
        engine: plan.choice.engine.name(),
        engine_reason: plan.choice.reason.clone(),
        revision: 0,
        started: started.unwrap_or_default().as_secs(),
        phase: Phase::Starting,
        ready_ms: None,
        failure: None,
        isolation,
        nodes: plan
            .topology
            .nodes
            .iter()
            .map(|node| self::node(node, terms))
            .collect(),
        limits_missing,
    }
}

/// What is worth keeping of a node.
pub fn keep(node: &model::Node) -> Keep {
    match &node.kind {
        NodeKind::Machine(machine) => Keep {
            routing: machine.frr.is_some(),
            paths: machine.save.clone(),
        },
        NodeKind::Switch(_) | NodeKind::Hub | NodeKind::External(_) => Keep::default(),
    }
}

/// On which terms the machines of a lab run.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// What runs those that ask for nothing.
    pub engine: EngineName,
    /// How their processes are jailed.
    pub isolation: IsolationLevel,
    /// No control group enforces limits.
    pub group_missing: bool,
}

/// A node as it is before it is started.
pub fn node(node: &model::Node, terms: Terms) -> Node {
    let (kind, interfaces) = match &node.kind {
        NodeKind::Switch(_) => (Kind::Switch, Vec::new()),
        NodeKind::Hub => (Kind::Hub, Vec::new()),
        NodeKind::External(_) => (Kind::External, Vec::new()),
        NodeKind::Machine(machine) => {
            let kind = match machine.role {
                Role::Host => Kind::Host,
                Role::Router => Kind::Router,
            };
            let interfaces = machine.interfaces.iter().map(|interface| Interface {
                name: interface.name.clone(),
                mac: interface.mac.to_string(),
                addresses: interface
                    .addresses
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
                mtu: interface.mtu,
            });
            (kind, interfaces.collect())
        }
    };
    let machine = match &node.kind {
        NodeKind::Machine(machine) => Some(machine),
        _ => None,
    };
    let engine = machine.map(|machine| machine.engine.map_or(terms.engine, EngineName::from));
    Node {
        name: node.name.clone(),
        kind,
        state: NodeState::Waiting,
        labels: match &node.kind {
            NodeKind::Machine(machine) => machine.labels.clone(),
            _ => BTreeMap::new(),
        },
        interfaces,
        external: match &node.kind {
            NodeKind::External(external) => Some(external.to_string()),
            _ => None,
        },
        memory: machine.map(|machine| machine.memory),
        vcpus: machine.map(|machine| machine.vcpus),
        pid: None,
        kernel: None,
        restarts: 0,
        boot: BootTimes::default(),
        message: None,
        last_end: None,
        engine,
        isolation: engine.map(|engine| match engine {
            EngineName::Container => IsolationLevel::None,
            EngineName::Kvm | EngineName::Qemu => terms.isolation,
        }),
        limits: machine.and_then(|machine| ground::limits(&machine.limits, terms.group_missing)),
        usage: None,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::api::types::IsolationReport;

    /// A lab that starts, without nodes.
    pub fn lab() -> Lab {
        Lab {
            name: "lab".into(),
            description: None,
            file: "/lab.json".into(),
            pid: 1,
            switch_pid: None,
            switches: Vec::new(),
            switch_restarts: 0,
            engine: EngineName::Kvm,
            engine_reason: String::new(),
            started: 0,
            phase: Phase::Starting,
            ready_ms: None,
            failure: None,
            revision: 0,
            isolation: IsolationReport {
                level: IsolationLevel::None,
                missing: Vec::new(),
                own_users: false,
            },
            limits_missing: None,
            nodes: Vec::new(),
        }
    }
}
