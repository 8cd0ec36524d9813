//! A lab as text that other programs draw.

use std::fmt::Write;

use super::{Edge, Graph};
use crate::api::types::Kind;

/// For Mermaid (`flowchart`).
pub fn mermaid(graph: &Graph) -> String {
    let mut text = format!("---\ntitle: \"{}\"\n---\nflowchart LR\n", graph.title);
    for (index, node) in graph.nodes.iter().enumerate() {
        let label = [vec![node.title()], node.lines.clone()].concat();
        let label = label
            .iter()
            .map(|line| entities(line))
            .collect::<Vec<_>>()
            .join("<br/>");
        let (open, close) = match node.kind {
            Kind::Host => ("[", "]"),
            Kind::Router => ("([", "])"),
            Kind::Switch | Kind::Hub => ("[[", "]]"),
            Kind::External => ("{{", "}}"),
        };
        let _ = writeln!(text, "  n{index}{open}\"{label}\"{close}");
    }
    for link in &graph.links {
        let [from, to] = link.nodes;
        let line = if link.up { "---" } else { "-.-" };
        let label = label(link, "<br/>", &entities);
        if label.is_empty() {
            let _ = writeln!(text, "  n{from} {line} n{to}");
        } else {
            let _ = writeln!(text, "  n{from} {line}|\"{label}\"| n{to}");
        }
    }
    text
}

/// For Graphviz.
pub fn dot(graph: &Graph) -> String {
    let mut text = format!(
        "graph \"{}\" {{\n  layout=neato; overlap=false; splines=true; sep=\"+30\";\n  node [fontname=\"sans-serif\", fontsize=11];\n  \
         edge [fontname=\"sans-serif\", fontsize=9];\n",
        quoted(&graph.title)
    );
    for (index, node) in graph.nodes.iter().enumerate() {
        let label = [vec![node.title()], node.lines.clone()].concat();
        let label = label
            .iter()
            .map(|line| quoted(line))
            .collect::<Vec<_>>()
            .join("\\n");
        let shape = match node.kind {
            Kind::Host => "box",
            Kind::Router => "ellipse",
            Kind::Switch | Kind::Hub => "box3d",
            Kind::External => "hexagon",
        };
        let _ = writeln!(text, "  n{index} [label=\"{label}\", shape={shape}];");
    }
    for link in &graph.links {
        let [from, to] = link.nodes;
        let [tail, head] = link.ends.each_ref().map(|end| quoted(end));
        let lines = link
            .lines
            .iter()
            .map(|line| quoted(line))
            .collect::<Vec<_>>()
            .join("\\n");
        let style = if link.up { "solid" } else { "dashed" };
        let _ = writeln!(
            text,
            "  n{from} -- n{to} [label=\"{lines}\", taillabel=\"{tail}\", headlabel=\"{head}\", style={style}];"
        );
    }
    text.push_str("}\n");
    text
}

fn label(link: &Edge, between: &str, escape: &dyn Fn(&str) -> String) -> String {
    link.lines
        .iter()
        .map(|line| escape(line))
        .collect::<Vec<_>>()
        .join(between)
}

fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

fn entities(text: &str) -> String {
    text.replace('&', "#amp;")
        .replace('"', "#quot;")
        .replace('<', "#lt;")
        .replace('>', "#gt;")
}
