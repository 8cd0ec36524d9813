//! TCP's throughput, by iperf3 at both ends.

use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use topology::model::Throughput;
use topology::quantity::Rate;

use super::Measured;
use super::measure::{run, words};
use crate::client::Client;
use crate::session::{self, Said};

/// Another than iperf3's own, which a person may be using.
const PORT: &str = "47211";

pub async fn measure(client: &Client, check: &Throughput) -> Result<Measured, String> {
    let receiver = check.to.name.split(':').next().unwrap_or_default();
    // It serves once; when this is left, whatever happens, it is hung up on.
    let serve = session::command(&["iperf3", "-s", "-1", "-p", PORT, "--forceflush"]);
    let failed = |failure: crate::failure::Failure| failure.message;
    let (input, mut server) = session::start(client, receiver, &serve)
        .await
        .map_err(failed)?;
    input.end().await;
    let listening = async {
        let mut said = Vec::new();
        loop {
            match server.next().await.map_err(failed)? {
                Said::Stdout(data) | Said::Stderr(data) => said.extend_from_slice(&data),
                Said::Refused { message, .. } => return Err(format!("node {receiver}: {message}")),
                Said::Ended(_) => {
                    return Err(format!("iperf3 in node {receiver}: {}", words(&said)));
                }
            }
            if said.windows(9).any(|part| part == b"listening") || said.len() > 4096 {
                return Ok(());
            }
        }
    };
    tokio::time::timeout(Duration::from_mins(1), listening)
        .await
        .map_err(|_| format!("iperf3 in node {receiver} does not listen"))??;

    let (address, seconds) = (
        check.to.address.to_string(),
        check.time.as_secs().to_string(),
    );
    let argv = [
        "iperf3",
        "-J",
        "-c",
        &address,
        "-p",
        PORT,
        "-t",
        &seconds,
        "--connect-timeout",
        "10000",
    ];
    let out = run(client, &check.from, &argv, check.time).await?;
    judge(check, &out.stdout, &out.stderr)
}

/// What iperf3 reports.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Report {
    error: Option<String>,
    end: End,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct End {
    sum_received: Sum,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Sum {
    bits_per_second: f64,
}

fn judge(check: &Throughput, stdout: &[u8], stderr: &[u8]) -> Result<Measured, String> {
    let strange = |_| format!("iperf3 in node {}: {}", check.from, words(stderr));
    let report: Report = serde_json::from_slice(stdout).map_err(strange)?;
    if let Some(error) = report.error {
        let detail = words(error.as_bytes());
        return Ok(Measured::new(
            false,
            detail,
            json!({"bits_per_second": null}),
        ));
    }
    let rate = report.end.sum_received.bits_per_second.max(0.0);
    let mut detail = format!("{:.2} Mbit/s", rate / 1e6);
    let below = check.min.filter(|min| rate < *min as f64);
    let above = check.max.filter(|max| rate > *max as f64);
    if let Some(min) = below {
        detail = format!("{detail}: less than {}", Rate(min));
    }
    if let Some(max) = above {
        detail = format!("{detail}: more than {}", Rate(max));
    }
    let holds = below.is_none() && above.is_none();
    Ok(Measured::new(
        holds,
        detail,
        json!({"bits_per_second": rate}),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use topology::model::Target;

    #[test]
    fn what_arrived_is_compared_with_the_bounds() {
        let mut check = Throughput {
            from: "a".into(),
            to: Target {
                name: "b".into(),
                address: "10.0.0.2".parse().unwrap(),
            },
            min: Some(90_000_000),
            max: Some(100_000_000),
            time: Duration::from_secs(5),
        };
        let report = br#"{"start": {}, "end": {"sum_sent": {"bits_per_second": 2e9}, "sum_received": {"bits_per_second": 94100000.5}}}"#;
        let measured = judge(&check, report, b"").unwrap();
        assert_eq!(
            (measured.holds, measured.detail.as_str()),
            (true, "94.10 Mbit/s")
        );
        check.max = Some(94_000_000);
        let measured = judge(&check, report, b"").unwrap();
        assert_eq!(
            (measured.holds, measured.detail.as_str()),
            (false, "94.10 Mbit/s: more than 94Mbit")
        );
        check.min = Some(95_000_000);
        assert!(!judge(&check, report, b"").unwrap().holds);
        let refused = br#"{"error": "unable to connect to server: \u001b[2JConnection refused"}"#;
        let measured = judge(&check, refused, b"").unwrap();
        assert_eq!(
            measured.detail,
            "unable to connect to server: Connection refused"
        );
        assert_eq!(
            judge(&check, b"", b"killed\n").unwrap_err(),
            "iperf3 in node a: killed"
        );
    }
}
