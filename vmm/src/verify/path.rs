//! The way packets take.

use std::net::IpAddr;
use std::time::Duration;

use serde_json::json;
use topology::model::Way;

use super::Measured;
use super::measure::{run, words};
use crate::api::types::Node;
use crate::client::Client;
use crate::sanitize;

/// Hops beyond those expected that are looked at.
const BEYOND: usize = 5;
/// How long an answer may take.
const WAIT: Duration = Duration::from_secs(2);

pub async fn measure(client: &Client, check: &Way, nodes: &[Node]) -> Result<Measured, String> {
    let most = check.via.len() + 1 + BEYOND;
    let (hops, address) = (most.to_string(), check.to.address.to_string());
    let argv = [
        "traceroute",
        "-n",
        "-q",
        "2",
        "-w",
        "2",
        "-m",
        &hops,
        &address,
    ];
    let out = run(client, &check.from, &argv, WAIT * 2 * most as u32).await?;
    let seen = hops_of(&sanitize::lossy(&out.stdout));
    if seen.is_empty() {
        return Ok(Measured::new(
            false,
            format!("no way at all ({})", words(&out.stderr)),
            json!({"hops": []}),
        ));
    }
    let name = |hop: &Option<IpAddr>| match hop {
        Some(address) => owner(nodes, *address).map_or_else(|| address.to_string(), str::to_owned),
        None => "?".to_owned(),
    };
    let names: Vec<_> = seen.iter().map(name).collect();
    let mut detail = names.join(" → ");
    let holds = holds(check, &seen);
    if !holds {
        let wanted = check.via.iter().map(|hop| hop.name.as_str());
        let wanted: Vec<_> = wanted.chain([check.to.name.as_str()]).collect();
        detail = format!("{detail}, not {}", wanted.join(" → "));
    }
    let hops: Vec<_> = seen
        .iter()
        .map(|hop| hop.map(|hop| hop.to_string()))
        .collect();
    Ok(Measured::new(
        holds,
        detail,
        json!({"hops": hops, "nodes": names}),
    ))
}

fn holds(check: &Way, seen: &[Option<IpAddr>]) -> bool {
    let Some((last, between)) = seen.split_last() else {
        return false;
    };
    *last == Some(check.to.address)
        && between.len() == check.via.len()
        && between
            .iter()
            .zip(&check.via)
            .all(|(hop, wanted)| hop.is_some_and(|hop| wanted.addresses.contains(&hop)))
}

/// Who answers at each hop; nobody at those at the end does not count.
fn hops_of(printed: &str) -> Vec<Option<IpAddr>> {
    let mut hops = Vec::new();
    for line in printed.lines() {
        let mut words = line.split_whitespace();
        // The heading begins with a word.
        let Some(Ok(number)) = words.next().map(str::parse::<usize>) else {
            continue;
        };
        if number != hops.len() + 1 {
            break;
        }
        hops.push(words.find_map(|word| word.parse().ok()));
    }
    while hops.last() == Some(&None) {
        hops.pop();
    }
    hops
}

/// The node that has this address.
fn owner(nodes: &[Node], address: IpAddr) -> Option<&str> {
    let has = |node: &&Node| {
        let mut addresses = node.interfaces.iter().flat_map(|i| &i.addresses);
        addresses.any(|cidr| {
            let cidr = cidr
                .split_once('/')
                .map_or(cidr.as_str(), |(address, _)| address);
            cidr.parse() == Ok(address)
        })
    };
    nodes.iter().find(has).map(|node| node.name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use topology::model::{Hop, Target};

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn hops_are_read_as_traceroute_prints_them() {
        let printed = "traceroute to 10.0.4.2 (10.0.4.2), 8 hops max, 60 byte packets
 1  10.0.3.1  2.391 ms  1.996 ms
 2  * 10.0.2.1  6.178 ms
 3  * *
 4  10.0.4.2  9.9 ms !H  10.1 ms
 5  * *
 6  * *
";
        let seen = hops_of(printed);
        let expected = [Some("10.0.3.1"), Some("10.0.2.1"), None, Some("10.0.4.2")];
        assert_eq!(seen, expected.map(|hop| hop.map(address)));
        assert_eq!(hops_of("connect: Network is unreachable\n"), []);
        assert_eq!(hops_of(" 1  10.0.0.1 1 ms\n 7  10.0.0.2 1 ms\n").len(), 1);
    }

    #[test]
    fn a_hop_may_answer_with_any_of_its_addresses() {
        let check = Way {
            from: "a".into(),
            to: Target {
                name: "b".into(),
                address: address("10.0.1.2"),
            },
            via: vec![Hop {
                name: "r".into(),
                addresses: vec![address("10.0.0.1"), address("10.0.1.1")],
            }],
        };
        let seen = |hops: &[&str]| -> Vec<_> { hops.iter().map(|hop| hop.parse().ok()).collect() };
        assert!(holds(&check, &seen(&["10.0.1.1", "10.0.1.2"])));
        assert!(!holds(&check, &seen(&["10.0.9.1", "10.0.1.2"])));
        assert!(!holds(&check, &seen(&["*", "10.0.1.2"])));
        assert!(!holds(&check, &seen(&["10.0.1.2"])));
        assert!(!holds(&check, &seen(&["10.0.0.1"])));
        assert!(!holds(&check, &seen(&["10.0.0.1", "10.0.0.1", "10.0.1.2"])));
    }
}
