//! IS-IS, level 2, for IPv4 and IPv6.

use std::net::Ipv4Addr;

use super::ospf::seconds;
use super::{Config, Lab, has_ipv4, has_ipv6};
use crate::document::Path;
use crate::file;
use crate::model::{Endpoint, Machine, Role};
use crate::resolve::Findings;
use crate::segment::Segment;

/// The name of the instance; it has no meaning outside the node.
const TAG: &str = "lab";
/// The size of FRR's link state PDUs, which an interface must be able to carry beside 3 bytes of LLC.
const LSP_MTU: u16 = 1497;
const LLC: u16 = 3;

/// IS-IS on one node.
#[derive(Debug)]
pub struct Settings {
    area: String,
    /// Seconds.
    hello: u64,
}

impl Settings {
    pub fn new(written: Option<&file::Isis>, path: &Path, findings: &mut Findings<'_>) -> Self {
        let area = written
            .and_then(|written| written.area.as_deref())
            .unwrap_or("49.0001");
        // ISO 10589 §7.1: 1 to 13 bytes, of which the first is written alone.
        let digits: Vec<&str> = area.split('.').collect();
        let hex = |part: &str, length: usize| {
            part.len() == length && part.chars().all(|c| c.is_ascii_hexdigit())
        };
        let (first, rest) = (digits[0], &digits[1..]);
        if !hex(first, 2) || rest.len() > 6 || !rest.iter().all(|part| hex(part, 4)) {
            findings.error(
                &path.at("area"),
                format!("`{area}` is not an IS-IS area"),
                "write two hexadecimal digits and up to six groups of four, as in \"49.0001\"",
            );
        }
        let hello = written.and_then(|written| written.hello);
        Self {
            area: area.to_owned(),
            hello: hello.map_or(1, |time| seconds(time, 600, &path.at("hello"), findings)),
        }
    }
}

pub fn write(
    lab: &Lab<'_>,
    node: usize,
    machine: &Machine,
    settings: &Settings,
    id: Ipv4Addr,
    config: &mut Config,
) {
    let mut least_mtu = u16::MAX;
    let mut interfaces = 0;
    for (port, interface) in machine.interfaces.iter().enumerate() {
        let (ipv4, ipv6) = (has_ipv4(interface), has_ipv6(interface));
        if !ipv4 && !ipv6 {
            continue;
        }
        interfaces += 1;
        least_mtu = least_mtu.min(interface.mtu);
        let end = Endpoint { node, port };
        let lines = &mut config.interfaces[port];
        if ipv4 {
            lines.push(format!("ip router isis {TAG}"));
        }
        if ipv6 {
            lines.push(format!("ipv6 router isis {TAG}"));
        }
        let spoken = |end: Endpoint| {
            lab.speaker(end.node)
                .is_some_and(|other| other.isis.is_some() || other.inline_has("router isis"))
        };
        if !lab.neighbours(end).any(spoken) {
            lines.push("isis passive".to_owned());
            continue;
        }
        if lab.segment(end).is_some_and(Segment::is_point_to_point) {
            lines.push("isis network point-to-point".to_owned());
        }
        lines.push(format!("isis hello-interval {}", settings.hello));
        lines.push("isis hello-multiplier 4".to_owned());
    }
    let mut lines = vec![
        "is-type level-2-only".to_owned(),
        format!("net {}.{}.00", settings.area, system_id(id)),
    ];
    if least_mtu < LSP_MTU + LLC {
        lines.push(format!("lsp-mtu {}", least_mtu.saturating_sub(LLC)));
    }
    if machine.role == Role::Host && interfaces > 1 {
        // It does not forward: nobody may route through it.
        lines.push("set-overload-bit".to_owned());
    }
    config.router(&format!("router isis {TAG}"), lines);
}

/// The usual notation: the twelve decimal digits of the router id, in groups of four.
fn system_id(id: Ipv4Addr) -> String {
    let [a, b, c, d] = id.octets();
    let digits = format!("{a:03}{b:03}{c:03}{d:03}");
    format!("{}.{}.{}", &digits[..4], &digits[4..8], &digits[8..])
}
