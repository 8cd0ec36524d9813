//! Where the processes of machines run: their jail, their control group, their processors.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity};
use topology::model::{self, Fabric, Topology};

use super::machines::each_machine;
use super::{Context, Plan, node};
use crate::api::types::NodeLimits;
use crate::cgroup::LabGroup;
use crate::engine::Ground;
use crate::failure::{Code, Failure};

/// The lab's control group, if its machines have limits that take one; or why there is none.
pub fn make_group(plan: &Plan) -> (Option<LabGroup>, Option<String>) {
    if !need_group(&plan.topology) {
        return (None, None);
    }
    match LabGroup::create(&plan.name) {
        Ok(group) => (Some(group), None),
        Err(why) => (None, Some(why)),
    }
}

/// Lets this process have as many descriptors as it may: a node takes five to eight, and what is common, 1024, is for programs that
/// select(2). An error leaves it at those it has.
pub fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let _ = setrlimit(Resource::Nofile, most);
}

/// Whether machines of it have limits that take a control group.
pub fn need_group(topology: &Topology) -> bool {
    each_machine(topology).any(|(_, machine)| machine.limits.need_group())
}

/// Refuses a machine that is bound to a processor this machine does not have, or does not give to this process.
pub fn check_processors(topology: &Topology) -> Result<(), Failure> {
    let Ok(ours) = sched_getaffinity(None) else {
        return Ok(());
    };
    for (node, machine) in each_machine(topology) {
        let missing = machine
            .limits
            .processors
            .iter()
            .find(|&&number| !ours.is_set(number.into()));
        if let Some(number) = missing {
            let usable: Vec<_> = (0..CpuSet::MAX_CPU)
                .filter(|&number| ours.is_set(number))
                .map(|number| number.to_string())
                .collect();
            let message = format!(
                "node {}: there is no processor {number} to pin it to",
                node.name
            );
            return Err(Failure::new(Code::Host, message).help(format!(
                "processors that can be used: {}",
                usable.join(", ")
            )));
        }
    }
    Ok(())
}

/// What people are told of a machine's limits.
pub fn limits(limits: &model::Limits, group_missing: bool) -> Option<NodeLimits> {
    (*limits != model::Limits::default()).then(|| NodeLimits {
        cpu: limits
            .cpu
            .map(|thousandths| f64::from(thousandths) / 1000.0),
        cpu_weight: limits.weight,
        processors: limits.processors.clone(),
        memory: limits.memory,
        enforced: !(limits.need_group() && group_missing),
    })
}

/// The process in whose network namespace the devices of machines are, on the kernel's fabric.
pub fn fabric(lab: &Context) -> Option<u32> {
    match lab.fabric {
        Fabric::Vswitch => None,
        Fabric::Kernel => lab.state.lab().switch_pid,
    }
}

/// The ground of a machine's next process.
pub fn of(lab: &Context, machine: &node::Spec) -> io::Result<Ground> {
    let limits = &machine.limits;
    let name = &machine.config.name;
    let group = match &lab.group {
        Some(group) if limits.need_group() => {
            Some(group.node(name, limits, machine.config.memory)?)
        }
        _ => None,
    };
    let processors = (!limits.processors.is_empty()).then(|| {
        let mut set = CpuSet::new();
        for number in &limits.processors {
            set.set(usize::from(*number));
        }
        set
    });
    Ok(Ground {
        isolation: lab.isolation.clone(),
        ports: machine.ports.clone(),
        group,
        processors,
        fabric: fabric(lab),
        janitor: lab.janitor.clone(),
    })
}
