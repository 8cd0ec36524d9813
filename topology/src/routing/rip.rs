//! RIP version 2 for IPv4 and RIPng for IPv6.

use super::{Config, Lab, has_ipv4, has_ipv6};
use crate::model::{Endpoint, Interface, Machine};

pub fn write(lab: &Lab<'_>, node: usize, machine: &Machine, config: &mut Config) {
    let versions = ["router rip", "router ripng"];
    let addressed: [fn(&Interface) -> bool; 2] = [has_ipv4, has_ipv6];
    for (router, on) in versions.into_iter().zip(addressed) {
        let spoken = |end: Endpoint| {
            lab.speaker(end.node).is_some_and(|speaker| {
                let short = speaker.rip && lab.interface(end).is_some_and(on);
                short || speaker.inline_has(router)
            })
        };
        let mut lines = Vec::new();
        for (port, interface) in machine.interfaces.iter().enumerate() {
            if !on(interface) {
                continue;
            }
            lines.push(format!("network {}", interface.name));
            if !lab.neighbours(Endpoint { node, port }).any(spoken) {
                lines.push(format!("passive-interface {}", interface.name));
            }
        }
        if !lines.is_empty() {
            config.router(router, lines);
        }
    }
}
