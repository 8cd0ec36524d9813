//! The API of a lab without processes: what requests of any content reach.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use topology::model::Topology;

use crate::api::types::{IsolationLevel, Lab, NodeState, Phase};
use crate::api::{self, Api, Captures};
use crate::engine::{Console, Engine};
use crate::image::Image;
use crate::lab::agent::Agent;
use crate::lab::change::{Changes, Parts};
use crate::lab::links::Links;
use crate::lab::orders::{Orders, Roster};
use crate::lab::run_folder::LabPaths;
use crate::lab::state::State;

/// A machine with an agent, one without, a switch, a link.
const TOPOLOGY: &str = r#"{"nodes": {"a": {"kind": "host"}, "b": {"kind": "router"}, "s": {"kind": "switch"}},
    "links": [{"endpoints": ["a:eth0", "b:eth0"]}, {"endpoints": ["b:eth1", "s"]}]}"#;
/// The lab that shows.
const LAB: &str = r#"{"name": "lab", "file": "/lab.json", "pid": 1, "switches": [], "switch_restarts": 0, "engine": "kvm",
    "engine_reason": "", "started": 0, "phase": "running", "revision": 0, "isolation": {"level": "none"}, "nodes": [
    {"name": "a", "kind": "host", "state": "ready", "interfaces": [], "restarts": 0, "boot": {}, "engine": "kvm"},
    {"name": "b", "kind": "router", "state": "ready", "interfaces": [], "restarts": 0, "boot": {}, "engine": "kvm"},
    {"name": "s", "kind": "switch", "state": "ready", "interfaces": [], "restarts": 0, "boot": {}}]}"#;
/// Bytes that are on the way.
const BUFFER: usize = 64 << 10;
/// How long a client waits for more. Time stands still while there is something to do, so this takes none.
const SILENCE: Duration = Duration::from_millis(100);
/// How long the lab may take with a client that has gone.
const PATIENCE: Duration = Duration::from_secs(20);

/// Says `bytes` to the API of a lab and hangs up when no more is answered; returns the answer. The lab goes with it.
///
/// # Panics
/// If the API does, or does not come to an end.
pub fn answer(bytes: &[u8]) -> Vec<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build();
    let runtime = runtime.expect("an event loop");
    runtime.block_on(async {
        let (client, server) = duplex(BUFFER);
        let served = tokio::spawn(api::converse(lab(), server));
        let answer = talk(client, bytes).await;
        let served = tokio::time::timeout(PATIENCE, served).await;
        let served = served.expect("an end of the conversation");
        assert!(served.is_ok(), "{served:?}");
        answer
    })
}

async fn talk(client: DuplexStream, bytes: &[u8]) -> Vec<u8> {
    let (mut from, mut to) = tokio::io::split(client);
    let mut answer = Vec::new();
    let say = async {
        // Who has heard enough closes.
        let _ = to.write_all(bytes).await;
        std::future::pending::<()>().await;
    };
    let hear = async {
        let mut piece = vec![0; BUFFER];
        while let Ok(Ok(length @ 1..)) = tokio::time::timeout(SILENCE, from.read(&mut piece)).await
        {
            answer.extend_from_slice(&piece[..length]);
        }
    };
    tokio::select! {
        () = say => {}
        () = hear => {}
    }
    answer
}

/// A lab in which orders are obeyed and commands are never heard of again.
fn lab() -> Api {
    let folder = PathBuf::from("/proc/nonexistent");
    let (paths, file) = (LabPaths::at(folder), Path::new("/lab.json"));
    let topology = Topology::parse(TOPOLOGY, file)
        .expect("a topology")
        .topology;
    let state = State::new(serde_json::from_str::<Lab>(LAB).expect("a lab"));
    debug_assert!(state.lab().phase == Phase::Running);
    let links = Arc::new(Links::new(&topology, &paths));
    let roster = Roster::default();
    let (orders, mut requests) = Orders::new();
    roster.enter("a", orders);
    tokio::spawn(async move {
        while let Some(request) = requests.recv().await {
            request.done();
        }
    });
    if let Ok((host, guest)) = UnixStream::pair() {
        let (sender, control) = mpsc::channel(1);
        let (agent, connection) = Agent::open(host, sender);
        state.set_agent("a", Some(agent));
        tokio::spawn(async move {
            let _control = control;
            connection.await
        });
        tokio::spawn(async move {
            let (mut from, _to) = guest.into_split();
            let mut heard = [0; 4096];
            while from.read(&mut heard).await.is_ok_and(|length| length > 0) {}
        });
    }
    let (console, mut typed) = Console::new();
    state.set_console("a", Some(console));
    tokio::spawn(async move { while typed.recv().await.is_some() {} });
    let (changes, mut newcomers) = Changes::new(Parts {
        topology,
        file: file.to_owned(),
        text: TOPOLOGY.to_owned(),
        revision: 0,
        image: Some(Image {
            kernel: paths.folder().join("vmlinux"),
            rootfs: paths.folder().join("rootfs.erofs"),
        }),
        paths: paths.clone(),
        links: links.clone(),
        roster: roster.clone(),
        state: state.clone(),
        engine: Engine::Kvm,
        isolation: IsolationLevel::None,
        grouped: false,
    });
    tokio::spawn(async move { while newcomers.recv().await.is_some() {} });
    state.update("b", |node| node.state = NodeState::Stopped);
    Api {
        state,
        paths,
        links,
        captures: Captures::default(),
        roster,
        changes: Arc::new(changes),
        record: Arc::default(),
    }
}
