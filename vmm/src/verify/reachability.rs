//! Who reaches whom.

use std::net::IpAddr;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::json;
use topology::model::Reachability;

use super::Measured;
use super::measure::run;
use crate::client::Client;
use crate::sanitize;

/// Nodes that ping at the same time.
const AT_ONCE: usize = 8;
/// Pairs that are named.
const NAMED: usize = 5;
/// How long three requests may take.
const TIME: Duration = Duration::from_secs(5);

/// Pings each address it is given, all at once, and prints those that answer.
const SCRIPT: &str = r#"for to; do { ping -n -q -c 3 -i 0.2 -W 2 "$to" >/dev/null 2>&1 && echo "$to"; } & done; wait"#;

pub async fn measure(client: &Client, check: &Reachability) -> Result<Measured, String> {
    let sources = 0..check.nodes.len();
    let rows = stream::iter(sources.map(|from| reached(client, check, from)));
    let matrix: Vec<Vec<bool>> = rows.buffered(AT_ONCE).try_collect().await?;
    Ok(judge(check, &matrix))
}

/// Which nodes one of them reaches.
async fn reached(client: &Client, check: &Reachability, from: usize) -> Result<Vec<bool>, String> {
    let addresses: Vec<Option<String>> = (0..check.nodes.len())
        .map(|to| Some(address(check, from, to)?.to_string()).filter(|_| to != from))
        .collect();
    let mut argv = vec!["sh", "-c", SCRIPT, "sh"];
    argv.extend(addresses.iter().flatten().map(String::as_str));
    let out = run(client, &check.nodes[from].node, &argv, TIME).await?;
    let printed = sanitize::lossy(&out.stdout);
    let answered: Vec<_> = printed.lines().map(str::trim).collect();
    let reaches = |address: &Option<String>| {
        address
            .as_ref()
            .is_some_and(|address| answered.contains(&address.as_str()))
    };
    Ok(addresses.iter().map(reaches).collect())
}

/// The address of `to` of a version that both have; IPv4 if they have both.
fn address(check: &Reachability, from: usize, to: usize) -> Option<IpAddr> {
    let own = &check.nodes[from].addresses;
    let mut others = check.nodes[to].addresses.iter();
    others
        .find(|other| own.iter().any(|own| own.is_ipv4() == other.is_ipv4()))
        .copied()
}

fn judge(check: &Reachability, matrix: &[Vec<bool>]) -> Measured {
    let names: Vec<_> = check.nodes.iter().map(|node| node.node.as_str()).collect();
    let mut wrong = Vec::new();
    let mut pairs = 0;
    for (from, row) in matrix.iter().enumerate() {
        for (to, reaches) in row.iter().enumerate().filter(|(to, _)| *to != from) {
            pairs += 1;
            let wanted = !check.except.contains(&[from, to]);
            if *reaches != wanted {
                let verb = if *reaches {
                    "reaches"
                } else {
                    "does not reach"
                };
                wrong.push(format!("{} {verb} {}", names[from], names[to]));
            }
        }
    }
    let mut detail = format!("{} of {pairs} pairs as they should be", pairs - wrong.len());
    if !wrong.is_empty() {
        let more = wrong.len().saturating_sub(NAMED);
        let named: Vec<_> = wrong.iter().take(NAMED).map(String::as_str).collect();
        detail = format!("{detail}: {}", named.join(", "));
        if more > 0 {
            detail = format!("{detail} and {more} more");
        }
    }
    let values = json!({"nodes": names, "reaches": matrix, "except": check.except});
    Measured::new(wrong.is_empty(), detail, values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use topology::model::Reachable;

    fn check(except: Vec<[usize; 2]>) -> Reachability {
        let node = |node: &str, addresses: &[&str]| Reachable {
            node: node.into(),
            addresses: addresses
                .iter()
                .map(|address| address.parse().unwrap())
                .collect(),
        };
        Reachability {
            nodes: vec![
                node("a", &["10.0.0.1", "2001:db8::1"]),
                node("b", &["10.0.0.2"]),
                node("c", &["2001:db8::3"]),
            ],
            except,
        }
    }

    #[test]
    fn each_pair_has_to_be_as_it_should() {
        let all = |row: usize| (0..3).map(|to| to != row).collect::<Vec<_>>();
        let mut matrix = vec![all(0), all(1), all(2)];
        let measured = judge(&check(vec![]), &matrix);
        assert_eq!(
            (measured.holds, measured.detail.as_str()),
            (true, "6 of 6 pairs as they should be")
        );
        let measured = judge(&check(vec![[0, 1]]), &matrix);
        assert_eq!(
            (measured.holds, measured.detail.as_str()),
            (false, "5 of 6 pairs as they should be: a reaches b")
        );
        matrix[2][0] = false;
        assert!(judge(&check(vec![[2, 0]]), &matrix).holds);
        assert!(
            judge(&check(vec![]), &matrix)
                .detail
                .ends_with("c does not reach a")
        );
    }

    #[test]
    fn addresses_are_of_a_version_both_have() {
        let check = check(vec![]);
        let address = |from, to| address(&check, from, to).map(|address| address.to_string());
        assert_eq!(address(1, 0).as_deref(), Some("10.0.0.1"));
        assert_eq!(address(2, 0).as_deref(), Some("2001:db8::1"));
        assert_eq!(address(1, 2), None, "which is then not reached");
    }
}
