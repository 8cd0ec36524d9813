//! Ports and links from the command line.
//!
//! They are written down as a topology file and read like one, so names, units, defaults and checks are those of every
//! other configuration.

use std::path::Path;

use serde_json::{Map, Value, json};
use thiserror::Error;
use topology::Report;
use topology::assignment::{self, AssignmentError};
use topology::model::Topology;

use crate::port::Plug;

/// The interface that is meant where none is named.
const INTERFACE: &str = "eth0";

/// What the command line says.
#[derive(Debug, Default, clap::Args)]
#[group(id = "wiring")]
pub(super) struct Wiring {
    /// A port: the socket PATH, on which a vhost-user front-end can plug in as interface NAME; `r1` is short for `r1:eth0`. Attributes
    /// are those of interfaces: mtu, mac. With connect=true the front-end listens on PATH, and the switch connects to it, again if
    /// either is restarted.
    #[arg(long, value_name = "NAME=PATH[,ATTRIBUTE=VALUE]...")]
    port: Vec<String>,
    /// A link between two ports, switches or hubs. Attributes are those of links in a topology file: rate, delay, jitter, loss,
    /// queue, ... for both directions, forward.ATTRIBUTE and backward.ATTRIBUTE for one; queue.kind, loss.every, ... where there is an
    /// object.
    #[arg(long, value_name = "END,END[,ATTRIBUTE=VALUE]...")]
    link: Vec<String>,
    /// A learning switch. Attributes: ageing, table-limit.
    #[arg(long, value_name = "NAME[,ATTRIBUTE=VALUE]...")]
    switch: Vec<String>,
    /// A hub, which repeats every frame to every other end.
    #[arg(long, value_name = "NAME")]
    hub: Vec<String>,
}

/// Why ports and links are refused before they become a topology.
#[derive(Debug, Error)]
pub(super) enum WiringError {
    #[error("--port {0}: give a name and a socket, NAME=PATH")]
    Port(String),
    #[error("--link {0}: give the two ends first, END,END[,ATTRIBUTE=VALUE]...")]
    Link(String),
    #[error("{0}: {1}")]
    Attribute(String, AssignmentError),
    #[error(
        "--port {0}: connect is true or false: whether the front-end listens on the socket, and not the switch"
    )]
    Connect(String),
    #[error("{0}: there are two of that name")]
    SameName(String),
    #[error("the options are no configuration:\n{0}")]
    Topology(Report),
}

/// A topology, and where the socket of each port is: `node.interface`.
#[derive(Debug)]
pub(super) struct Wired {
    pub(super) topology: Topology,
    pub(super) sockets: Vec<(String, Plug)>,
    pub(super) warnings: String,
}

impl Wiring {
    /// Whether nobody could plug in.
    pub(super) fn has_no_ports(&self) -> bool {
        self.port.is_empty()
    }

    /// Reads everything.
    pub(super) fn read(&self) -> Result<Wired, WiringError> {
        let mut nodes = Map::new();
        let mut sockets = Vec::new();
        for written in &self.port {
            let bad = || WiringError::Port(written.clone());
            let (name, rest) = written.split_once('=').ok_or_else(bad)?;
            let (path, attributes) = split(rest);
            let (node, interface) = name.split_once(':').unwrap_or((name, INTERFACE));
            if [node, interface, path].contains(&"") {
                return Err(bad());
            }
            let entry = nodes.entry(node);
            let machine = entry.or_insert_with(|| json!({ "kind": "host", "interfaces": {} }));
            let mut attributes = object(&format!("--port {name}"), attributes)?;
            // No interface has this attribute: it is about the socket.
            let connect = attributes.as_object_mut().and_then(|a| a.remove("connect"));
            let plug = match connect {
                None | Some(Value::Bool(false)) => Plug::Listen(path.into()),
                Some(Value::Bool(true)) => Plug::Connect(path.into()),
                Some(_) => return Err(WiringError::Connect(name.to_owned())),
            };
            let old = machine["interfaces"]
                .as_object_mut()
                .and_then(|interfaces| interfaces.insert(interface.to_owned(), attributes));
            if old.is_some() {
                return Err(WiringError::SameName(format!("--port {name}")));
            }
            sockets.push((format!("{node}.{interface}"), plug));
        }
        let switches = self.switch.iter().map(|written| ("switch", written));
        let hubs = self.hub.iter().map(|written| ("hub", written));
        for (kind, written) in switches.chain(hubs) {
            let (name, attributes) = split(written);
            let option = format!("--{kind} {name}");
            let mut node = object(&option, attributes)?;
            node["kind"] = kind.into();
            if nodes.insert(name.to_owned(), node).is_some() {
                return Err(WiringError::SameName(option));
            }
        }
        let links: Result<Vec<_>, _> = self.link.iter().map(|l| link(l, &nodes)).collect();
        let text = render(&nodes, &links?);
        // Relative paths in attributes start in the folder the switch runs in.
        let loaded = Topology::parse(&text, Path::new("command line"));
        let loaded = loaded.map_err(WiringError::Topology)?;
        Ok(Wired {
            topology: loaded.topology,
            sockets,
            warnings: loaded.warnings.to_string(),
        })
    }
}

/// What stands before the first comma, and the rest.
fn split(text: &str) -> (&str, &str) {
    text.split_once(',').unwrap_or((text, ""))
}

/// A link as the file format has it.
fn link(written: &str, nodes: &Map<String, Value>) -> Result<Value, WiringError> {
    let (first, rest) = split(written);
    let (second, attributes) = split(rest);
    if [first, second]
        .iter()
        .any(|end| end.is_empty() || end.contains('='))
    {
        return Err(WiringError::Link(written.to_owned()));
    }
    let end = |name: &str| {
        let inside = nodes.get(name).is_some_and(|node| node["kind"] != "host");
        if inside || name.contains(':') {
            name.to_owned()
        } else {
            format!("{name}:{INTERFACE}")
        }
    };
    let mut link = object(&format!("--link {first},{second}"), attributes)?;
    link["endpoints"] = json!([end(first), end(second)]);
    Ok(link)
}

/// `a=1,b.c=2` as an object.
fn object(option: &str, attributes: &str) -> Result<Value, WiringError> {
    let words = attributes.split(',').filter(|a| !a.is_empty());
    let object = assignment::object(words);
    let refused = |error| WiringError::Attribute(option.to_owned(), error);
    Ok(Value::Object(object.map_err(refused)?))
}

/// The topology file, with a line for each option, for the messages that point at it.
fn render(nodes: &Map<String, Value>, links: &[Value]) -> String {
    let nodes: Vec<_> = nodes
        .iter()
        .map(|(name, node)| format!("    {}: {node}", Value::from(name.as_str())))
        .collect();
    let links: Vec<_> = links.iter().map(|link| format!("    {link}")).collect();
    format!(
        "{{\n  \"name\": \"vswitch\",\n  \"nodes\": {{\n{}\n  }},\n  \"links\": [\n{}\n  ]\n}}\n",
        nodes.join(",\n"),
        links.join(",\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use topology::model::{Completion, Discipline, Loss, NodeKind};

    fn wiring(ports: &[&str], links: &[&str], switches: &[&str], hubs: &[&str]) -> Wiring {
        let own = |all: &[&str]| all.iter().map(|s| (*s).to_owned()).collect();
        Wiring {
            port: own(ports),
            link: own(links),
            switch: own(switches),
            hub: own(hubs),
        }
    }

    fn read(ports: &[&str], links: &[&str]) -> Result<Wired, WiringError> {
        wiring(ports, links, &[], &[]).read()
    }

    #[test]
    fn attributes_have_the_names_and_units_of_the_file() {
        let wired = read(
            &["a=/run/x/a.sock", "b=b.sock,mtu=9000,connect=true"],
            &["a,b,rate=100Mbit,delay=5ms,completion=nic,name=uplink,ber=1e-6,up=false,queue.kind=codel,queue.limit=50packets,\
               loss.gilbert-elliott.p=1%,loss.gilbert-elliott.r=50%,forward.delay=7ms,backward.loss.every=100"],
        )
        .unwrap();
        let sockets = [
            ("a.eth0", Plug::Listen("/run/x/a.sock".into())),
            ("b.eth0", Plug::Connect("b.sock".into())),
        ];
        assert_eq!(wired.sockets, sockets.map(|(n, p)| (n.to_owned(), p)));
        assert!(
            wired.warnings.contains("an MTU of 9000"),
            "{}",
            wired.warnings
        );
        let link = &wired.topology.links[0];
        assert_eq!(
            (link.name.as_str(), link.completion),
            ("uplink", Completion::Nic)
        );
        let [there, back] = &link.directions;
        assert_eq!((there.rate, there.up), (Some(100_000_000), false));
        assert!((there.ber - 1e-6).abs() < 1e-12);
        assert_eq!(
            [there, back].map(|d| d.delay),
            [7, 5].map(Duration::from_millis)
        );
        assert!(matches!(there.queue.discipline, Discipline::Codel(_)));
        assert!(matches!(there.loss, Loss::GilbertElliott(_)));
        assert_eq!(back.loss, Loss::Every(100));
        let NodeKind::Machine(b) = &wired.topology.nodes[1].kind else {
            panic!()
        };
        assert_eq!(b.interfaces[0].mtu, 9000);
    }

    #[test]
    fn several_interfaces_switches_and_hubs() {
        let wired = wiring(
            &["r=r0", "r:eth1=r1", "a=a", "b=b"],
            &["a,s", "r,s,delay=1ms", "r:eth1,h", "h,b:eth0"],
            &["s,ageing=10s,table-limit=5"],
            &["h"],
        )
        .read()
        .unwrap();
        let names: Vec<_> = wired
            .topology
            .links
            .iter()
            .map(|l| l.name.as_str())
            .collect();
        assert_eq!(
            names,
            ["a:eth0--s:0", "r:eth0--s:1", "r:eth1--h:0", "h:1--b:eth0"]
        );
        let names: Vec<_> = wired
            .sockets
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(names, ["r.eth0", "r.eth1", "a.eth0", "b.eth0"]);
    }

    #[test]
    fn mistakes_are_explained() {
        let ab = &["a=a.sock", "b=b.sock"];
        for (ports, links, why) in [
            (&["a"][..], &[][..], "give a name and a socket"),
            (&["=a.sock"], &[], "give a name and a socket"),
            (&["a="], &[], "give a name and a socket"),
            (&["a=x", "a=y"], &[], "two of that name"),
            (&["a=x,connect=often"], &[], "connect is true or false"),
            (ab, &["a"], "two ends first"),
            (ab, &["a,rate=1Mbit"], "two ends first"),
            (ab, &["a,b,fast"], "`fast` sets nothing"),
            (ab, &["a,b,rate=1Mbit,rate=2Mbit"], "`rate` is set twice"),
            (
                ab,
                &["a,b,loss=1%,loss.every=3"],
                "`loss.every` is set twice",
            ),
            (ab, &["a,b,loss.every=3,loss=1%"], "`loss` is set twice"),
            (ab, &["a,b,dely=5ms"], "did you mean `delay`?"),
            (ab, &["a,b,delay=5"], "delay"),
            (ab, &["a,b,rate=5Mbits"], "5Mbit"),
            (
                &["alpha=a", "beta=b"],
                &["alpha,bta"],
                "did you mean \"beta:eth0\"?",
            ),
            (ab, &["a,b:eth1"], "eth0"),
            (&["no such name=x"], &[], "no such name"),
        ] {
            let told = read(ports, links).unwrap_err().to_string();
            assert!(told.contains(why), "{ports:?} {links:?}: {told}");
        }
    }
}
