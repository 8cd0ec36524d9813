//! `vmm metrics`: the numbers of a lab for Prometheus, once or at an address it can ask.

use std::net::SocketAddr;
use std::process::ExitCode;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use clap::Args;
use tokio::net::TcpListener;

use super::{LabChoice, block_on, print};
use crate::client::Client;
use crate::failure::{Code, Failure};
use crate::lab::EndSignals;
use crate::lab::metrics::MEDIA_TYPE;

/// Arguments of `vmm metrics`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  vmm metrics | grep lateness\n  vmm metrics --listen 127.0.0.1:9464"
)]
pub struct MetricsArgs {
    /// Answer Prometheus at this address under /metrics, until Ctrl-C; whoever reaches it can read the numbers
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    #[command(flatten)]
    lab: LabChoice,
}

pub fn run(args: &MetricsArgs) -> Result<ExitCode, Failure> {
    let client = Client::choose(args.lab.lab.as_deref())?;
    block_on(async {
        match args.listen {
            Some(address) => serve(address, client).await,
            None => print(&client.metrics().await?),
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(address: SocketAddr, client: Client) -> Result<(), Failure> {
    let cannot = |error: std::io::Error| {
        Failure::new(Code::Host, format!("cannot listen on {address}: {error}"))
            .help("name another port, or end who listens there")
    };
    let mut signals = EndSignals::listen()?;
    let listener = TcpListener::bind(address).await.map_err(cannot)?;
    let address = listener.local_addr().map_err(cannot)?;
    eprintln!(
        "http://{address}/metrics has the numbers of lab {}; Ctrl-C ends this",
        client.name()
    );
    let router = Router::new().route("/metrics", get(async move || answer(&client).await));
    axum::serve(listener, router)
        .with_graceful_shutdown(async move { signals.come().await })
        .await
        .map_err(cannot)
}

async fn answer(client: &Client) -> Response {
    match client.metrics().await {
        Ok(text) => ([(header::CONTENT_TYPE, MEDIA_TYPE)], text).into_response(),
        // A target that Prometheus counts as down.
        Err(failure) => (StatusCode::SERVICE_UNAVAILABLE, failure.to_string()).into_response(),
    }
}
