//! Nodes and links put into the text of a topology file, and taken out of it.

use std::path::Path;

use serde_json::{Map, Value};
use thiserror::Error;

use crate::model::{Endpoint, NodeKind, Topology};
use crate::report::Report;

/// Why nothing is put in or taken out.
#[derive(Debug, Error)]
pub enum EditError {
    /// The text of the lab has errors.
    #[error("{0}")]
    Topology(Report),
    /// What is to be added cannot be read; the place is in the message.
    #[error("what is to be added is no JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// It has another form.
    #[error(
        "what is to be added is `{{\"nodes\": {{…}}, \"links\": […]}}`, nodes and links as in a topology file; {0}"
    )]
    Form(String),
    /// There is one already.
    #[error("there is a node called {0} already; `vmm apply` changes it")]
    NodeThere(String),
    /// There is none.
    #[error("there is no node called {0}")]
    NoNode(String),
    /// There is none.
    #[error("there is no link called {0}")]
    NoLink(String),
}

/// Adds the nodes and links of `addition`, which has the form of a topology file with nothing else in it, to the topology file
/// `text`. Machines get the interfaces that links name. The result is not checked.
///
/// # Errors
/// See [`EditError`].
pub fn add(text: &str, addition: &str) -> Result<String, EditError> {
    let mut lab: Map<String, Value> = serde_json::from_str(text)?;
    let addition: Map<String, Value> = serde_json::from_str(addition)?;
    for (field, value) in addition {
        match (field.as_str(), value) {
            ("nodes", Value::Object(nodes)) => {
                for (name, node) in nodes {
                    if object(&mut lab, "nodes").contains_key(&name) {
                        return Err(EditError::NodeThere(name));
                    }
                    object(&mut lab, "nodes").insert(name, node);
                }
            }
            ("links", Value::Array(links)) => {
                for link in &links {
                    add_interfaces(&mut lab, link);
                }
                let there = lab
                    .entry("links")
                    .or_insert_with(|| Value::Array(Vec::new()));
                if let Value::Array(there) = there {
                    there.extend(links);
                }
            }
            ("nodes", _) => return Err(EditError::Form("`nodes` is an object".into())),
            ("links", _) => return Err(EditError::Form("`links` is an array".into())),
            ("$schema", _) => {}
            (other, _) => {
                let form = format!("`{other}` is neither `nodes` nor `links`");
                return Err(EditError::Form(form));
            }
        }
    }
    Ok(written(&lab))
}

/// Takes the nodes called `nodes`, with their links, and the links called `links` out of the topology file `text`. Machines at the other
/// ends keep their interfaces. `file` is what relative paths in the text are relative to. The result is not checked.
///
/// # Errors
/// See [`EditError`].
pub fn remove(
    text: &str,
    file: &Path,
    nodes: &[String],
    links: &[String],
) -> Result<String, EditError> {
    let loaded = Topology::parse(text, file).map_err(EditError::Topology)?;
    let topology = loaded.topology;
    let mut lab: Map<String, Value> = serde_json::from_str(text)?;
    let node = |name: &String| {
        let found = topology.nodes.iter().position(|node| node.name == *name);
        found.ok_or_else(|| EditError::NoNode(name.clone()))
    };
    let nodes = nodes.iter().map(node).collect::<Result<Vec<_>, _>>()?;
    let link = |name: &String| {
        let found = topology.links.iter().position(|link| link.name == *name);
        found.ok_or_else(|| EditError::NoLink(name.clone()))
    };
    let mut gone = links.iter().map(link).collect::<Result<Vec<_>, _>>()?;
    for (number, link) in topology.links.iter().enumerate() {
        if link.ends.iter().any(|end| nodes.contains(&end.node)) && !gone.contains(&number) {
            gone.push(number);
        }
    }
    for number in &gone {
        let [first, second] = topology.links[*number].ends;
        for (end, other) in [(first, second), (second, first)] {
            detach(&mut lab, &topology, end, other, *number);
        }
    }
    if let Some(Value::Array(links)) = lab.get_mut("links") {
        let mut number = 0..;
        links.retain(|_| number.next().is_some_and(|number| !gone.contains(&number)));
    }
    for node in nodes {
        object(&mut lab, "nodes").shift_remove(&topology.nodes[node].name);
    }
    Ok(written(&lab))
}

/// Leaves a machine its interfaces when a link goes, and a switch no port of a link that goes.
fn detach(
    lab: &mut Map<String, Value>,
    topology: &Topology,
    end: Endpoint,
    other: Endpoint,
    link: usize,
) {
    let node = &topology.nodes[end.node];
    let Some(Value::Object(written)) = object(lab, "nodes").get_mut(&node.name) else {
        return;
    };
    match &node.kind {
        NodeKind::Machine(machine) => {
            if !written.contains_key("interfaces") {
                let names = machine.interfaces.iter().map(|i| i.name.clone());
                let interfaces = names.map(|name| (name, Value::Object(Map::new())));
                written.insert("interfaces".into(), Value::Object(interfaces.collect()));
            }
        }
        NodeKind::Switch(_) => {
            let other_node = &topology.nodes[other.node];
            let far = match other_node.machine() {
                Some(machine) => {
                    format!(
                        "{}:{}",
                        other_node.name, machine.interfaces[other.port].name
                    )
                }
                None => other_node.name.clone(),
            };
            if let Some(Value::Object(ports)) = written.get_mut("ports") {
                ports.shift_remove(&topology.links[link].name);
                ports.shift_remove(&far);
            }
        }
        NodeKind::Hub | NodeKind::External(_) => {}
    }
}

/// Gives machines whose interfaces are listed those that `link` names.
fn add_interfaces(lab: &mut Map<String, Value>, link: &Value) {
    let ends = link["endpoints"].as_array().into_iter().flatten();
    for (node, interface) in ends.filter_map(|end| end.as_str()?.split_once(':')) {
        let node = object(lab, "nodes").get_mut(node);
        let interfaces = node.and_then(|node| node.get_mut("interfaces")?.as_object_mut());
        if let Some(interfaces) = interfaces {
            let empty = || Value::Object(Map::new());
            interfaces.entry(interface).or_insert_with(empty);
        }
    }
}

fn object<'a>(lab: &'a mut Map<String, Value>, field: &str) -> &'a mut Map<String, Value> {
    let value = lab
        .entry(field)
        .or_insert_with(|| Value::Object(Map::new()));
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(object) => object,
        _ => unreachable!("it has just been made one"),
    }
}

fn written(lab: &Map<String, Value>) -> String {
    // Maps of strings and values can always be written.
    let mut text = serde_json::to_string_pretty(lab).unwrap_or_default();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::difference::{Difference, LinkChange, NodeChange};

    const LAB: &str = r#"{
        "name": "lab",
        "nodes": {
            "b": {"kind": "host"},
            "a": {"kind": "host", "interfaces": {"eth0": {"addresses": ["10.0.0.1/24"]}}},
            "s": {"kind": "switch", "ports": {"a:eth0": {"access": 10}, "b:eth0": {"access": 10}}}
        },
        "links": [{"endpoints": ["a:eth0", "s"], "ber": 1e-6}, {"endpoints": ["b:eth0", "s"]}]
    }"#;

    fn parse(text: &str) -> Topology {
        let loaded = Topology::parse(text, Path::new("lab.json"));
        loaded.unwrap_or_else(|report| panic!("{report}")).topology
    }

    fn without(nodes: &[&str], links: &[&str]) -> Result<String, EditError> {
        let own = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        remove(LAB, Path::new("lab.json"), &own(nodes), &own(links))
    }

    #[test]
    fn what_is_added_is_all_that_differs() {
        let new = r#"{"nodes": {"c": {"kind": "hub"}}, "links": [{"endpoints": ["a:eth1", "c"]}, {"endpoints": ["b:eth1", "c"]}]}"#;
        let (old, new) = (parse(LAB), parse(&add(LAB, new).unwrap()));
        let difference = Difference::between(&old, &new);
        let changed: Vec<_> = difference
            .nodes
            .iter()
            .map(std::mem::discriminant)
            .collect();
        let changed_node = NodeChange::Changed {
            old: 0,
            new: 0,
            aspects: Vec::new(),
        };
        let kinds = [&changed_node, &changed_node, &NodeChange::Added(0)];
        assert_eq!(changed, kinds.map(std::mem::discriminant));
        assert_eq!(
            difference.links,
            [LinkChange::Added(2), LinkChange::Added(3)]
        );
        assert_eq!(new.nodes[0].name, "b", "the order stays");
        assert!((new.links[0].directions[0].ber - 1e-6).abs() < 1e-18);
    }

    #[test]
    fn a_link_goes_and_interfaces_stay() {
        let (old, new) = (parse(LAB), parse(&without(&[], &["b:eth0--s:1"]).unwrap()));
        let difference = Difference::between(&old, &new);
        assert_eq!(difference.links, [LinkChange::Removed(1)]);
        let [NodeChange::Changed { aspects, .. }] = difference.nodes.as_slice() else {
            panic!("{:?}", difference.nodes);
        };
        assert_eq!(aspects[0].field, "ports", "of the switch");
    }

    #[test]
    fn a_node_goes_with_its_links() {
        let new = parse(&without(&["s"], &[]).unwrap());
        assert_eq!((new.nodes.len(), new.links.len()), (2, 0));
        let new = parse(&without(&["a"], &["b:eth0--s:1"]).unwrap());
        assert_eq!((new.nodes.len(), new.links.len()), (2, 0));
        assert_eq!(new.nodes[0].machine().unwrap().interfaces.len(), 1);
    }

    #[test]
    fn what_cannot_be() {
        let said = |addition: &str| add(LAB, addition).unwrap_err().to_string();
        assert!(said("{").contains("line 1 column 1"), "{}", said("{"));
        assert!(said(r#"{"node": {}}"#).contains("`node` is neither"));
        assert!(said(r#"{"links": {}}"#).contains("`links` is an array"));
        assert!(said(r#"{"nodes": {"a": {}}}"#).contains("a node called a already"));
        let said = |nodes, links| without(nodes, links).unwrap_err().to_string();
        assert_eq!(said(&["x"], &[]), "there is no node called x");
        assert_eq!(said(&[], &["x"]), "there is no link called x");
    }
}
