//! Echo requests.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use topology::model::{Ping, Target};

use super::Measured;
use super::measure::{milliseconds, run, words};
use crate::client::Client;
use crate::sanitize;

/// Between two requests.
const INTERVAL: Duration = Duration::from_millis(200);

pub async fn measure(client: &Client, check: &Ping) -> Result<Measured, String> {
    let (from, to) = (&check.from, &check.to);
    let (answers, said) = ask(client, from, to, check.count, INTERVAL).await?;
    let mut measured = judge(check, &answers);
    if answers.is_empty() && !said.is_empty() {
        measured.detail = format!("{} ({said})", measured.detail);
    }
    Ok(measured)
}

/// Sends `count` echo requests; the round trip of each that was answered, in ms, and what ping complained of.
pub async fn ask(
    client: &Client,
    from: &str,
    to: &Target,
    count: u32,
    interval: Duration,
) -> Result<(Vec<f64>, String), String> {
    let (each, address) = (interval.as_secs_f64().to_string(), to.address.to_string());
    let number = count.to_string();
    let argv = [
        "ping", "-n", "-c", &number, "-i", &each, "-W", "2", &address,
    ];
    let out = run(client, from, &argv, interval * count).await?;
    Ok((answers(&sanitize::lossy(&out.stdout)), words(&out.stderr)))
}

/// The round trip of each request that was answered, in ms: of the first answer, if there are several.
fn answers(printed: &str) -> Vec<f64> {
    let mut answers = BTreeMap::new();
    for line in printed.lines() {
        let field = |name: &str| {
            let at = line.find(name)?;
            line[at + name.len()..].split_whitespace().next()
        };
        let number = field("icmp_seq=").and_then(|text| text.parse::<u32>().ok());
        let time = field("time=").and_then(|text| text.parse::<f64>().ok());
        if let (Some(number), Some(time)) = (number, time) {
            answers.entry(number).or_insert(time);
        }
    }
    answers.into_values().collect()
}

/// `None` if there are none.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len().checked_sub(1)? / 2;
    Some(f64::midpoint(sorted[middle], sorted[sorted.len() / 2]))
}

fn judge(check: &Ping, answers: &[f64]) -> Measured {
    let received = answers.len().min(check.count as usize);
    let loss = 1.0 - received as f64 / f64::from(check.count.max(1));
    let rtt = median(answers);
    let mut detail = format!("{received} of {} answered", check.count);
    if let Some(rtt) = rtt {
        detail = format!("{detail}, median {}", milliseconds(rtt));
    }
    let mut wrong = Vec::new();
    if check.reachable {
        if received == 0 || loss > check.loss + 1e-9 {
            wrong.push(format!(
                "{:.0}% lost, at most {}% may be",
                loss * 100.0,
                check.loss * 100.0
            ));
        }
        let ms = |bound: Duration| bound.as_secs_f64() * 1000.0;
        if let (Some(rtt), Some(min)) = (rtt, check.min_rtt)
            && rtt < ms(min)
        {
            wrong.push(format!("less than {}", milliseconds(ms(min))));
        }
        if let (Some(rtt), Some(max)) = (rtt, check.max_rtt)
            && rtt > ms(max)
        {
            wrong.push(format!("more than {}", milliseconds(ms(max))));
        }
    } else if received > 0 {
        wrong.push("none should be".to_owned());
    }
    if !wrong.is_empty() {
        detail = format!("{detail}: {}", wrong.join(", "));
    }
    let values = json!({"sent": check.count, "received": received, "median_rtt_ms": rtt});
    Measured::new(wrong.is_empty(), detail, values)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "PING 10.0.0.2 (10.0.0.2) 56(84) bytes of data.
64 bytes from 10.0.0.2: icmp_seq=1 ttl=64 time=40.1 ms
64 bytes from 10.0.0.2: icmp_seq=3 ttl=64 time=20.5 ms
64 bytes from 10.0.0.2: icmp_seq=3 ttl=64 time=99.0 ms (DUP!)
64 bytes from 10.0.0.2: icmp_seq=4 ttl=64 time=21 ms

--- 10.0.0.2 ping statistics ---
4 packets transmitted, 3 received, +1 duplicates, 25% packet loss, time 606ms
rtt min/avg/max/mdev = 20.500/27.200/40.100/9.123 ms
";

    fn check(loss: f64, rtt: Option<(u64, u64)>, reachable: bool) -> Ping {
        Ping {
            from: "a".into(),
            to: Target {
                name: "b".into(),
                address: "10.0.0.2".parse().unwrap(),
            },
            count: 4,
            loss,
            min_rtt: rtt.map(|(min, _)| Duration::from_millis(min)),
            max_rtt: rtt.map(|(_, max)| Duration::from_millis(max)),
            reachable,
        }
    }

    #[test]
    fn answers_are_counted_once() {
        assert_eq!(answers(PRINTED), [40.1, 20.5, 21.0]);
        assert_eq!(answers("icmp_seq=x time=1 ms\n\u{fffd} time="), [0.0; 0]);
    }

    #[test]
    fn bounds_are_those_of_the_check() {
        let judge = |loss, rtt, reachable| {
            let measured = judge(&check(loss, rtt, reachable), &answers(PRINTED));
            (measured.holds, measured.detail)
        };
        assert_eq!(
            judge(0.25, Some((20, 22)), true),
            (true, "3 of 4 answered, median 21.0 ms".into())
        );
        assert_eq!(
            judge(0.1, Some((22, 30)), true),
            (
                false,
                "3 of 4 answered, median 21.0 ms: 25% lost, at most 10% may be, less than 22.0 ms"
                    .into()
            )
        );
        assert!(!judge(1.0, Some((1, 20)), true).0);
        assert_eq!(
            judge(0.0, None, false),
            (
                false,
                "3 of 4 answered, median 21.0 ms: none should be".into()
            )
        );
    }

    #[test]
    fn silence_is_what_it_is() {
        let silent = |reachable| judge(&check(1.0, None, reachable), &[]);
        assert!(silent(false).holds);
        assert!(
            !silent(true).holds,
            "all lost is not reachable, whatever loss is allowed"
        );
        assert_eq!(median(&[1.0, 3.0, 2.0, 10.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }
}
