//! Where the nodes of a picture are: distances on the page are as those in the network, as far as two dimensions allow.
//!
//! Classical scaling gives the first positions, majorization of the stress (Gansner, Koren and North, "Graph Drawing by Stress
//! Majorization", 2004) improves them, and at last boxes that overlap are pushed apart. The same graph always gets the same
//! picture.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A point or a size, in pixels.
pub type Point = [f64; 2];

/// Steps of each method; more change nothing that is seen.
const STEPS: usize = 300;
/// Beyond so many nodes steps are saved.
const MANY: usize = 300;
/// Between boxes, and between parts of a network that are not connected.
const GAP: f64 = 30.0;

/// A link between two nodes, and how long it should be at least, in pixels.
#[derive(Debug, Clone, Copy)]
pub struct Wire {
    /// Places in the list of nodes.
    pub nodes: [usize; 2],
    /// Between the centres.
    pub length: f64,
}

/// The centre of each box; none is beyond the top or the left.
pub fn place(boxes: &[Point], wires: &[Wire]) -> Vec<Point> {
    let mut places = vec![[0.0; 2]; boxes.len()];
    let mut right: f64 = 0.0;
    for part in parts(boxes.len(), wires) {
        let own: Vec<_> = part.iter().map(|&node| boxes[node]).collect();
        let inside = |node: usize| part.binary_search(&node).ok();
        let wires: Vec<_> = wires
            .iter()
            .filter_map(|wire| {
                let nodes = [inside(wire.nodes[0])?, inside(wire.nodes[1])?];
                Some(Wire { nodes, ..*wire })
            })
            .collect();
        let mut inner = place_part(&own, &wires);
        separate(&mut inner, &own);
        let [left, top] = [0, 1].map(|axis| {
            let edges = inner
                .iter()
                .zip(&own)
                .map(|(place, size)| place[axis] - size[axis] / 2.0);
            edges.fold(f64::INFINITY, f64::min)
        });
        let mut end = right;
        for ((&node, place), size) in part.iter().zip(&inner).zip(&own) {
            places[node] = [place[0] - left + right, place[1] - top];
            end = end.max(places[node][0] + size[0] / 2.0);
        }
        right = end + GAP * 2.0;
    }
    places
}

/// The parts of the network that are not connected, each in ascending order.
fn parts(nodes: usize, wires: &[Wire]) -> Vec<Vec<usize>> {
    let mut part: Vec<_> = (0..nodes).collect();
    // Each node ends up with the lowest number in its part.
    loop {
        let mut changed = false;
        for wire in wires {
            let [a, b] = wire.nodes;
            let lowest = part[a].min(part[b]);
            changed |= part[a] != lowest || part[b] != lowest;
            part[a] = lowest;
            part[b] = lowest;
        }
        if !changed {
            break;
        }
    }
    let roots = (0..nodes).filter(|&node| part[node] == node);
    roots
        .map(|root| (0..nodes).filter(|&node| part[node] == root).collect())
        .collect()
}

fn place_part(boxes: &[Point], wires: &[Wire]) -> Vec<Point> {
    let distances = distances(boxes.len(), wires);
    let steps = if boxes.len() > MANY {
        STEPS / 10
    } else {
        STEPS
    };
    let mut places = scale(&distances, steps);
    for _ in 0..steps {
        places = majorize(&places, &distances);
    }
    places
}

/// The shortest way between any two nodes.
fn distances(nodes: usize, wires: &[Wire]) -> Vec<Vec<f64>> {
    let mut neighbours = vec![Vec::new(); nodes];
    for wire in wires {
        let [a, b] = wire.nodes;
        // Whole pixels can be compared.
        let length = wire.length.max(1.0).round() as u64;
        neighbours[a].push((b, length));
        neighbours[b].push((a, length));
    }
    let from = |start: usize| {
        let mut best = vec![u64::MAX; nodes];
        best[start] = 0;
        let mut heap = BinaryHeap::from([Reverse((0, start))]);
        while let Some(Reverse((distance, node))) = heap.pop() {
            if distance > best[node] {
                continue;
            }
            for &(next, length) in &neighbours[node] {
                if distance + length < best[next] {
                    best[next] = distance + length;
                    heap.push(Reverse((best[next], next)));
                }
            }
        }
        best.into_iter().map(|distance| distance as f64).collect()
    };
    (0..nodes).map(from).collect()
}

/// Classical scaling: the two strongest axes of the squared distances, centred.
fn scale(distances: &[Vec<f64>], steps: usize) -> Vec<Point> {
    let nodes = distances.len();
    let mean = |row: &[f64]| row.iter().map(|d| d * d).sum::<f64>() / nodes as f64;
    let means: Vec<_> = distances.iter().map(|row| mean(row)).collect();
    let all = means.iter().sum::<f64>() / nodes as f64;
    let centred: Vec<Vec<f64>> = (0..nodes)
        .map(|a| {
            (0..nodes)
                .map(|b| -0.5 * (distances[a][b].powi(2) - means[a] - means[b] + all))
                .collect()
        })
        .collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let times = |vector: &[f64]| {
        centred
            .iter()
            .map(|row| dot(row, vector))
            .collect::<Vec<_>>()
    };
    let mut axes: Vec<Vec<f64>> = Vec::new();
    for axis in 0..2 {
        // Any start does that is not at right angles with the result.
        let mut vector: Vec<_> = (0..nodes)
            .map(|node| ((node * (axis + 2) + 1) as f64 * 0.7).sin())
            .collect();
        for _ in 0..steps {
            vector = times(&vector);
            // Twice, because what is left of a network in a line is noise, which the first time does not turn enough.
            for first in axes.first().into_iter().cycle().take(2) {
                let along = dot(&vector, first);
                vector
                    .iter_mut()
                    .zip(first)
                    .for_each(|(a, b)| *a -= along * b);
            }
            let length = dot(&vector, &vector).sqrt().max(f64::MIN_POSITIVE);
            for x in &mut vector {
                *x /= length;
            }
        }
        axes.push(vector);
    }
    let strength = |vector: &[f64]| dot(&times(vector), vector).max(0.0).sqrt();
    let [mut x, y] = [strength(&axes[0]), strength(&axes[1])];
    // What comes first in the file is on the left.
    if axes[0].first() > axes[0].last() {
        x = -x;
    }
    // Nodes that have the same distances to all others, as those of a star, must not lie on each other.
    let apart = |node: usize| ((node + 1) as f64 * 2.4).sin_cos();
    (0..nodes)
        .map(|node| {
            [
                axes[0][node] * x + apart(node).0,
                axes[1][node] * y + apart(node).1,
            ]
        })
        .collect()
}

/// One step that makes the stress less.
fn majorize(places: &[Point], distances: &[Vec<f64>]) -> Vec<Point> {
    let mut next = Vec::with_capacity(places.len());
    for (a, at) in places.iter().enumerate() {
        let mut sum = [0.0; 2];
        let mut weights = 0.0;
        for (b, other) in places.iter().enumerate() {
            let wanted = distances[a][b];
            if a == b || wanted <= 0.0 {
                continue;
            }
            let weight = wanted.powi(-2);
            let way = [at[0] - other[0], at[1] - other[1]];
            let is = way[0].hypot(way[1]).max(1e-9);
            for axis in 0..2 {
                sum[axis] += weight * (other[axis] + wanted * way[axis] / is);
            }
            weights += weight;
        }
        next.push(if weights > 0.0 {
            sum.map(|sum| sum / weights)
        } else {
            *at
        });
    }
    next
}

/// Pushes boxes apart until none overlaps another.
fn separate(places: &mut [Point], boxes: &[Point]) {
    for _ in 0..STEPS {
        let mut moved = false;
        for a in 0..places.len() {
            for b in a + 1..places.len() {
                let over = [0, 1].map(|axis| {
                    let room = f64::midpoint(boxes[a][axis], boxes[b][axis]) + GAP;
                    room - (places[a][axis] - places[b][axis]).abs()
                });
                if over[0] <= 0.01 || over[1] <= 0.01 {
                    continue;
                }
                moved = true;
                let axis = usize::from(over[1] < over[0]);
                let way = if places[a][axis] < places[b][axis] {
                    -0.5
                } else {
                    0.5
                };
                places[a][axis] += way * over[axis];
                places[b][axis] -= way * over[axis];
            }
        }
        if !moved {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wires(pairs: &[[usize; 2]]) -> Vec<Wire> {
        pairs
            .iter()
            .map(|&nodes| Wire {
                nodes,
                length: 200.0,
            })
            .collect()
    }

    fn distance(a: Point, b: Point) -> f64 {
        (a[0] - b[0]).hypot(a[1] - b[1])
    }

    #[test]
    fn a_chain_is_a_line() {
        let places = place(
            &[[80.0, 40.0]; 6],
            &wires(&[[0, 1], [1, 2], [2, 3], [3, 4], [4, 5]]),
        );
        assert!(
            (distance(places[0], places[5]) - 1000.0).abs() < 20.0,
            "{places:?}"
        );
        assert!(
            places
                .iter()
                .all(|place| (place[1] - places[0][1]).abs() < 20.0),
            "{places:?}"
        );
    }

    #[test]
    fn no_box_lies_on_another() {
        let star: Vec<_> = (1..40).map(|leaf| [0, leaf]).collect();
        let boxes = [[120.0, 60.0]; 42];
        let places = place(&boxes, &wires(&star));
        for a in 0..boxes.len() {
            assert!(places[a][0] >= 60.0 && places[a][1] >= 30.0, "{places:?}");
            for b in a + 1..boxes.len() {
                let apart = [0, 1].map(|axis| (places[a][axis] - places[b][axis]).abs());
                assert!(
                    apart[0] >= 120.0 || apart[1] >= 60.0,
                    "{a} and {b}: {places:?}"
                );
            }
        }
    }

    #[test]
    fn parts_lie_beside_each_other() {
        assert_eq!(
            parts(5, &wires(&[[3, 0], [4, 3]])),
            [vec![0, 3, 4], vec![1], vec![2]]
        );
        assert!(place(&[], &[]).is_empty());
    }
}
