//! The numbers of a lab for Prometheus, in its text format (version 0.0.4).

use std::fmt::{Display, Write};

use crate::api::types::{Lab, Lateness, Link, LinkDirection, Usage};

/// The media type of the format.
pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds of the buckets of lateness: nanoseconds, and as the format has them, in seconds.
const BOUNDS: [(u64, &str); 12] = [
    (10_000, "0.00001"),
    (20_000, "0.00002"),
    (50_000, "0.00005"),
    (100_000, "0.0001"),
    (200_000, "0.0002"),
    (500_000, "0.0005"),
    (1_000_000, "0.001"),
    (2_000_000, "0.002"),
    (5_000_000, "0.005"),
    (10_000_000, "0.01"),
    (100_000_000, "0.1"),
    (1_000_000_000, "1"),
];

/// Writes all metrics.
pub fn text(lab: &Lab, links: &[Link], usage: &Usage) -> String {
    let mut page = Page {
        text: String::new(),
        lab: &lab.name,
    };
    page.family(
        "hopyard_lab_info",
        "gauge",
        "1 for a lab, with what it is",
        |page, name| {
            let engine = word(&lab.engine);
            page.sample(
                name,
                &[("engine", &engine), ("version", env!("CARGO_PKG_VERSION"))],
                1,
            );
        },
    );
    page.family(
        "hopyard_lab_phase",
        "gauge",
        "1 for the phase that the lab is in",
        |page, name| {
            page.sample(name, &[("phase", &word(&lab.phase))], 1);
        },
    );
    page.family(
        "hopyard_lab_uptime_seconds",
        "gauge",
        "Time since launch",
        |page, name| {
            page.sample(name, &[], seconds(usage.at_ms));
        },
    );
    page.family(
        "hopyard_node_state",
        "gauge",
        "1 for the state that a node is in",
        |page, name| {
            for node in &lab.nodes {
                let labels = [
                    ("node", node.name.as_str()),
                    ("kind", &word(&node.kind)),
                    ("state", &word(&node.state)),
                ];
                page.sample(name, &labels, 1);
            }
        },
    );
    page.family(
        "hopyard_node_restarts_total",
        "counter",
        "Times a machine was started again",
        |page, name| {
            for node in lab.nodes.iter().filter(|node| node.vcpus.is_some()) {
                page.sample(name, &[("node", &node.name)], node.restarts);
            }
        },
    );
    processes(&mut page, usage);
    host(&mut page, usage);
    traffic(&mut page, links);
    page.text
}

fn processes(page: &mut Page<'_>, usage: &Usage) {
    // A node's process is named by its node, the others by what they are.
    let own = [("lab", &usage.lab), ("switch", &usage.switch)];
    let nodes = usage
        .nodes
        .iter()
        .map(|node| ("node", node.name.as_str(), &node.process));
    let all: Vec<_> = own
        .into_iter()
        .map(|(name, process)| (name, "", process))
        .chain(nodes)
        .collect();
    let each = |page: &mut Page<'_>,
                name: &str,
                value: &dyn Fn(&crate::api::types::ProcessUsage) -> Option<String>| {
        for (process, node, usage) in &all {
            if let Some(value) = usage.as_ref().and_then(value) {
                page.sample(name, &[("process", process), ("node", node)], value);
            }
        }
    };
    page.family(
        "hopyard_process_cpu_seconds_total",
        "counter",
        "Processor time of a process",
        |page, name| {
            each(page, name, &|usage| Some(seconds(usage.cpu_ms).to_string()));
        },
    );
    page.family(
        "hopyard_process_waiting_seconds_total",
        "counter",
        "Time in which threads of a process could have run and waited for a processor",
        |page, name| {
            each(page, name, &|usage| {
                Some(seconds(usage.waited_ms?).to_string())
            });
        },
    );
    page.family(
        "hopyard_process_resident_memory_bytes",
        "gauge",
        "Resident memory of a process",
        |page, name| {
            each(page, name, &|usage| Some(usage.memory.to_string()));
        },
    );
}

fn host(page: &mut Page<'_>, usage: &Usage) {
    let host = &usage.host;
    page.family(
        "hopyard_host_processors",
        "gauge",
        "Processors of the machine",
        |page, name| {
            page.sample(name, &[], host.processors);
        },
    );
    page.family(
        "hopyard_host_busy_seconds_total",
        "counter",
        "Time in which processors of the machine were busy",
        |page, name| {
            page.sample(name, &[], seconds(host.busy_ms));
        },
    );
    page.family(
        "hopyard_host_memory_available_bytes",
        "gauge",
        "Memory of the machine that can be had without swapping",
        |page, name| {
            page.sample(name, &[], host.memory_available);
        },
    );
}

fn traffic(page: &mut Page<'_>, links: &[Link]) {
    let directions: Vec<_> = links
        .iter()
        .flat_map(|link| {
            [
                (link.name.as_str(), &link.forward),
                (link.name.as_str(), &link.backward),
            ]
        })
        .collect();
    let mut each = |name: &str, kind: &str, help: &str, value: &dyn Fn(&LinkDirection) -> u64| {
        page.family(name, kind, help, |page, name| {
            for (link, direction) in &directions {
                page.sample(name, &of(link, direction), value(direction));
            }
        });
    };
    each(
        "hopyard_link_up",
        "gauge",
        "Whether a direction of a link has a carrier",
        &|direction| u64::from(direction.attributes.get("up").is_none_or(|up| up != false)),
    );
    each(
        "hopyard_link_in_frames_total",
        "counter",
        "Frames that entered a link",
        &|d| d.counters.in_frames,
    );
    each(
        "hopyard_link_in_bytes_total",
        "counter",
        "Bytes that entered a link, without overhead",
        &|d| d.counters.in_bytes,
    );
    each(
        "hopyard_link_out_frames_total",
        "counter",
        "Frames that left a link",
        &|d| d.counters.out_frames,
    );
    each(
        "hopyard_link_out_bytes_total",
        "counter",
        "Bytes that left a link, without overhead",
        &|d| d.counters.out_bytes,
    );
    each(
        "hopyard_link_duplicated_frames_total",
        "counter",
        "Copies that a link made",
        &|d| d.counters.duplicated,
    );
    each(
        "hopyard_link_corrupted_frames_total",
        "counter",
        "Frames in which a link flipped a bit",
        &|d| d.counters.corrupted,
    );
    each(
        "hopyard_link_marked_frames_total",
        "counter",
        "Frames that a link marked as having met congestion",
        &|d| d.counters.marked,
    );
    each(
        "hopyard_link_queued_frames",
        "gauge",
        "Frames that wait for the transmitter",
        &|d| d.counters.queued,
    );
    page.family(
        "hopyard_link_dropped_frames_total",
        "counter",
        "Frames that a link dropped, by reason",
        |page, name| {
            for (link, direction) in &directions {
                for (reason, count) in &direction.counters.drops {
                    let [a, b, c] = of(link, direction);
                    page.sample(name, &[a, b, c, ("reason", reason)], count);
                }
            }
        },
    );
    page.family(
        "hopyard_link_lateness_seconds",
        "histogram",
        "How much later than ideal frames were delivered by links that hold frames up",
        |page, name| {
            for (link, direction) in &directions {
                histogram(
                    page,
                    name,
                    of(link, direction),
                    &direction.counters.lateness,
                );
            }
        },
    );
}

fn of<'a>(link: &'a str, direction: &'a LinkDirection) -> [(&'static str, &'a str); 3] {
    [
        ("link", link),
        ("from", &direction.from),
        ("to", &direction.to),
    ]
}

fn histogram(page: &mut Page<'_>, name: &str, [a, b, c]: [(&str, &str); 3], lateness: &Lateness) {
    let buckets = &lateness.buckets;
    for (bound, written) in BOUNDS {
        // A bucket of the switch that reaches beyond the bound counts with the next: it is 1/32 wide.
        let within: u64 = buckets
            .iter()
            .filter(|(value, _)| *value <= bound)
            .map(|(_, count)| count)
            .sum();
        page.sample(
            &format!("{name}_bucket"),
            &[a, b, c, ("le", written)],
            within,
        );
    }
    let count: u64 = buckets.iter().map(|(_, count)| count).sum();
    let sum: f64 = buckets
        .iter()
        .map(|(value, count)| *value as f64 * *count as f64 / 1e9)
        .sum();
    page.sample(&format!("{name}_bucket"), &[a, b, c, ("le", "+Inf")], count);
    page.sample(&format!("{name}_sum"), &[a, b, c], sum);
    page.sample(&format!("{name}_count"), &[a, b, c], count);
}

struct Page<'a> {
    text: String,
    lab: &'a str,
}

impl Page<'_> {
    fn family(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        samples: impl FnOnce(&mut Self, &str),
    ) {
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        samples(self, name);
    }

    /// Labels without a value are left out, as the format means the same by that.
    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let _ = write!(self.text, "{name}{{lab=\"{}\"", escape(self.lab));
        for (label, value) in labels.iter().filter(|(_, value)| !value.is_empty()) {
            let _ = write!(self.text, ",{label}=\"{}\"", escape(value));
        }
        let _ = writeln!(self.text, "}} {value}");
    }
}

fn escape(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

/// The word that JSON has for a value.
fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}
