//! `oracle --a SOCK --b SOCK`: the reference back-end as a program.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Connects two vhost-user front-ends by a plain wire; ends when killed
#[derive(Debug, Parser)]
struct Arguments {
    /// Listens here
    #[arg(long, value_name = "SOCKET")]
    a: PathBuf,
    /// And here
    #[arg(long, value_name = "SOCKET")]
    b: PathBuf,
}

fn main() -> ExitCode {
    let Arguments { a, b } = Arguments::parse();
    let error = match oracle::serve([a, b]) {
        Ok(threads) => {
            println!(r#"{{"event":"ready"}}"#);
            let ended = threads.map(std::thread::JoinHandle::join);
            ended.into_iter().find_map(Result::ok)
        }
        Err(e) => Some(e),
    };
    if let Some(error) = error {
        eprintln!("oracle: {error}");
    }
    ExitCode::FAILURE
}
