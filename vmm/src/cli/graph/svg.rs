//! A lab as a picture.

use std::fmt::Write;

use super::layout::{Point, Wire, place};
use super::{Edge, Graph, Vertex};
use crate::api::types::Kind;

/// Pixels of a character: those of a sans-serif are narrower on average, a little room does no harm.
const WIDE: f64 = 7.0;
const SMALL_WIDE: f64 = 6.0;
const LINE: f64 = 16.0;
const SMALL_LINE: f64 = 13.0;
/// Around everything.
const MARGIN: f64 = 24.0;
/// Room for the title.
const HEAD: f64 = 28.0;
/// Between two links of the same nodes.
const BESIDE: f64 = 46.0;

/// A box by its centre.
#[derive(Debug, Clone, Copy)]
struct Area {
    centre: Point,
    size: Point,
}

impl Area {
    fn overlaps(&self, other: &Self) -> bool {
        [0, 1].iter().all(|&axis| {
            (self.centre[axis] - other.centre[axis]).abs()
                < f64::midpoint(self.size[axis], other.size[axis])
        })
    }
}

/// The picture.
pub fn draw(graph: &Graph) -> String {
    let sizes: Vec<_> = graph.nodes.iter().map(size_of).collect();
    let wires: Vec<_> = graph
        .links
        .iter()
        .map(|link| Wire {
            nodes: link.nodes,
            length: length_of(link, &sizes),
        })
        .collect();
    let areas: Vec<_> = place(&sizes, &wires)
        .into_iter()
        .zip(&sizes)
        .map(|([x, y], &size)| Area {
            centre: [x + MARGIN, y + MARGIN + HEAD],
            size,
        })
        .collect();
    let mut taken = areas.clone();
    let mut lines = String::new();
    let mut labels = String::new();
    for (index, link) in graph.links.iter().enumerate() {
        let same = graph.links[..index].iter().filter(|other| {
            other.nodes == link.nodes || other.nodes == [link.nodes[1], link.nodes[0]]
        });
        let beside = same.count();
        draw_link(link, beside, &areas, &mut taken, &mut lines, &mut labels);
    }
    let mut boxes = String::new();
    for (node, area) in graph.nodes.iter().zip(&areas) {
        draw_node(node, area, &mut boxes);
    }
    // Labels may reach beyond the nodes, on any side.
    let edge = |axis: usize, sign: f64| {
        let edges = taken
            .iter()
            .map(|area| sign * area.centre[axis] + area.size[axis] / 2.0);
        edges.fold(0.0, f64::max) + MARGIN
    };
    let [left, top] = [edge(0, -1.0) - MARGIN, edge(1, -1.0) - MARGIN];
    let [width, height] = [edge(0, 1.0) + left, edge(1, 1.0) + top];
    let width = width.max(graph.title.chars().count() as f64 * 9.0 + 2.0 * MARGIN);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" viewBox=\"{:.0} {:.0} {width:.0} {height:.0}\" \
         font-family=\"DejaVu Sans, Verdana, sans-serif\" font-size=\"12\">\n\
         <title>{title}</title>\n<rect x=\"{:.0}\" y=\"{:.0}\" width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"{MARGIN}\" y=\"{MARGIN}\" font-size=\"15\" font-weight=\"bold\" fill=\"#1f2933\">{title}</text>\n{lines}{boxes}{labels}</svg>\n",
        0.0 - left,
        0.0 - top,
        0.0 - left,
        0.0 - top,
        title = escape(&graph.title),
    )
}

fn size_of(node: &Vertex) -> Point {
    let title = node.title().chars().count() as f64 * (WIDE + 1.0);
    let lines = node
        .lines
        .iter()
        .map(|line| line.chars().count() as f64 * SMALL_WIDE);
    let width = lines.fold(title, f64::max) + 20.0;
    [
        width.max(64.0),
        14.0 + LINE + node.lines.len() as f64 * SMALL_LINE,
    ]
}

/// Long enough for what is written on it.
fn length_of(link: &Edge, sizes: &[Point]) -> f64 {
    let reach = |node: usize| sizes[node][0].max(sizes[node][1]) / 2.0;
    let words = link
        .lines
        .iter()
        .map(|line| line.chars().count())
        .max()
        .unwrap_or_default();
    let ends = link
        .ends
        .iter()
        .map(|end| end.chars().count())
        .sum::<usize>();
    let written = (words + ends) as f64 * SMALL_WIDE;
    link.nodes.iter().map(|&node| reach(node)).sum::<f64>() + written.max(70.0) + 40.0
}

fn draw_link(
    link: &Edge,
    beside: usize,
    areas: &[Area],
    taken: &mut Vec<Area>,
    lines: &mut String,
    labels: &mut String,
) {
    let [from, to] = link.nodes.map(|node| areas[node]);
    let (a, b) = (from.centre, to.centre);
    let way = [b[0] - a[0], b[1] - a[1]];
    let length = way[0].hypot(way[1]).max(1.0);
    // Links beside each other bend, alternately to each side.
    let side = if beside.is_multiple_of(2) { 1.0 } else { -1.0 };
    let bend = side * beside.div_ceil(2) as f64 * BESIDE * 2.0;
    let middle = [
        f64::midpoint(a[0], b[0]) - way[1] / length * bend,
        f64::midpoint(a[1], b[1]) + way[0] / length * bend,
    ];
    let (colour, dash) = if link.up {
        ("#52606d", "")
    } else {
        ("#c81e1e", " stroke-dasharray=\"6 4\"")
    };
    let _ = writeln!(
        lines,
        "<path d=\"M{:.1} {:.1} Q{:.1} {:.1} {:.1} {:.1}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\"{dash}/>",
        a[0], a[1], middle[0], middle[1], b[0], b[1]
    );
    let at = |t: f64| {
        let s = 1.0 - t;
        [0, 1].map(|axis| s * s * a[axis] + 2.0 * s * t * middle[axis] + t * t * b[axis])
    };
    for (area, end, back) in [(from, &link.ends[0], false), (to, &link.ends[1], true)] {
        // Just outside of the node's box.
        let steps = (1..50).map(|step| f64::from(step) / 100.0);
        let size = [end.chars().count() as f64 * SMALL_WIDE + 4.0, SMALL_LINE];
        let spot = steps
            .map(|t| at(if back { 1.0 - t } else { t }))
            .map(|centre| Area { centre, size });
        if let Some(spot) = spot
            .into_iter()
            .find(|spot| !spot.overlaps(&area))
            .filter(|_| !end.is_empty())
        {
            taken.push(spot);
            write_label(std::slice::from_ref(end), &spot, "#7b8794", labels);
        }
    }
    if link.lines.is_empty() {
        return;
    }
    let wide = link
        .lines
        .iter()
        .map(|line| line.chars().count())
        .max()
        .unwrap_or_default() as f64;
    let size = [
        wide * SMALL_WIDE + 6.0,
        link.lines.len() as f64 * SMALL_LINE + 2.0,
    ];
    let spots = [0.5, 0.45, 0.55, 0.4, 0.6, 0.35, 0.65, 0.3, 0.7].map(|t| Area {
        centre: at(t),
        size,
    });
    // Beside the line, where there is no room on it.
    let across = [-way[1] / length, way[0] / length];
    let reach = across[0].abs() * size[0] / 2.0 + across[1].abs() * size[1] / 2.0 + 8.0;
    let aside = [1.0, -1.0, 2.0, -2.0].map(|times| {
        let spot = at(0.5);
        let centre = [0, 1].map(|axis| spot[axis] + across[axis] * reach * times);
        Area { centre, size }
    });
    let free = |spot: &&Area| !taken.iter().any(|other| other.overlaps(spot));
    let spot = *spots.iter().chain(&aside).find(free).unwrap_or(&spots[0]);
    taken.push(spot);
    let colour = if link.up { "#1d4ed8" } else { "#c81e1e" };
    write_label(&link.lines, &spot, colour, labels);
}

fn write_label(words: &[String], area: &Area, colour: &str, labels: &mut String) {
    let [x, y] = [0, 1].map(|axis| area.centre[axis] - area.size[axis] / 2.0);
    let _ = writeln!(
        labels,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"#ffffff\"/>",
        area.size[0], area.size[1]
    );
    for (index, line) in words.iter().enumerate() {
        let baseline = y + (index as f64 + 0.8) * SMALL_LINE;
        let _ = writeln!(
            labels,
            "<text x=\"{:.1}\" y=\"{baseline:.1}\" font-size=\"10\" text-anchor=\"middle\" fill=\"{colour}\">{}</text>",
            area.centre[0],
            escape(line)
        );
    }
}

fn draw_node(node: &Vertex, area: &Area, boxes: &mut String) {
    let (fill, stroke, round) = match node.kind {
        Kind::Host => ("#e3f2fd", "#1565c0", 4.0),
        Kind::Router => ("#fff3e0", "#e65100", area.size[1] / 2.5),
        Kind::Switch | Kind::Hub => ("#e8f5e9", "#2e7d32", 0.0),
        Kind::External => ("#f3e5f5", "#6a1b9a", 10.0),
    };
    let stroke = if node.trouble.is_some() {
        "#c81e1e"
    } else {
        stroke
    };
    let dash = if node.kind == Kind::External {
        " stroke-dasharray=\"4 3\""
    } else {
        ""
    };
    let [x, y] = [0, 1].map(|axis| area.centre[axis] - area.size[axis] / 2.0);
    let _ = writeln!(
        boxes,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"{round:.0}\" fill=\"{fill}\" stroke=\"{stroke}\" stroke-width=\"1.6\"{dash}/>",
        area.size[0], area.size[1]
    );
    let mut write = |baseline: f64, style: &str, words: &str| {
        let _ = writeln!(
            boxes,
            "<text x=\"{:.1}\" y=\"{baseline:.1}\" text-anchor=\"middle\" {style}>{}</text>",
            area.centre[0],
            escape(words)
        );
    };
    write(
        y + 20.0,
        "font-weight=\"bold\" fill=\"#1f2933\"",
        &node.title(),
    );
    for (index, line) in node.lines.iter().enumerate() {
        let baseline = y + 20.0 + (index as f64 + 1.0) * SMALL_LINE;
        write(baseline, "font-size=\"10\" fill=\"#3e4c59\"", line);
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
