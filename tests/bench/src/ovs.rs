//! Open vSwitch with its user-space datapath on DPDK, in a folder of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::process::{Process, command, run};

const PROGRAM: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

/// A running OVS with two vhost-user ports that forwards what comes on either to the other.
#[derive(Debug)]
pub struct Ovs {
    // Dropped in this order.
    daemon: Process,
    _database: Process,
    dir: TempDir,
}

impl Ovs {
    /// Starts it with one forwarding thread on processor `cpu`; its ports connect to [`Ovs::sockets`].
    pub fn start(cpu: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let path = |name: &str| dir.path().join(name);
        let tool = |program: &str| {
            let mut c = Command::new(program);
            c.env("OVS_RUNDIR", dir.path());
            c
        };
        run(tool("ovsdb-tool")
            .arg("create")
            .arg(path("conf.db"))
            .arg(SCHEMA))?;
        let remote = path("db.sock");
        let mut c = command(cpu, "ovsdb-server");
        c.env("OVS_RUNDIR", dir.path()).arg(path("conf.db"));
        c.arg(format!("--remote=punix:{}", remote.display()));
        let database = Process::start("ovsdb-server", &mut c)?;
        wait_for(&remote)?;
        let db = format!("unix:{}", remote.display());
        let set = |words: &[&str]| {
            let mut c = tool("ovs-vsctl");
            c.arg(format!("--db={db}"))
                .args(["--timeout=60", "--no-wait"]);
            run(c.args(words))
        };
        set(&["init"])?;
        let mask = 1u64
            << cpu
                .parse::<u32>()
                .context("not the number of a processor")?;
        let extra = format!(
            "--no-huge --legacy-mem -m 2560 --no-pci --file-prefix=hopyard-ovs-{}",
            std::process::id()
        );
        set(&[
            "set",
            "Open_vSwitch",
            ".",
            "other_config:dpdk-init=true",
            &format!("other_config:dpdk-extra=\"{extra}\""),
            &format!("other_config:pmd-cpu-mask={mask:#x}"),
        ])?;
        let mut c = command(cpu, PROGRAM);
        c.env("OVS_RUNDIR", dir.path());
        c.arg(&db)
            .arg("--pidfile")
            .arg("--unixctl")
            .arg(path("ctl.sock"));
        let mut daemon = Process::start("ovs-vswitchd", &mut c)?;
        daemon.wait_for("that DPDK works", Duration::from_mins(1), |l| {
            l.contains("DPDK Enabled - initialized").then_some(())
        })?;
        let mut words = vec!["add-br".to_owned(), "br0".into()];
        words.extend(
            "-- set bridge br0 datapath_type=netdev fail_mode=secure"
                .split(' ')
                .map(str::to_owned),
        );
        for n in 0..2 {
            let socket = path(&format!("p{n}.sock"));
            let text = format!(
                "-- add-port br0 p{n} -- set Interface p{n} type=dpdkvhostuserclient ofport_request={} options:vhost-server-path={}",
                n + 1,
                socket.display()
            );
            words.extend(text.split(' ').map(str::to_owned));
        }
        set(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
        let bridge = path("br0.mgmt");
        wait_for(&bridge)?;
        for (from, to) in [(1, 2), (2, 1)] {
            let mut c = tool("ovs-ofctl");
            c.arg("add-flow").arg(format!("unix:{}", bridge.display()));
            run(c.arg(format!("in_port={from},actions=output:{to}")))?;
        }
        Ok(Self {
            daemon,
            _database: database,
            dir,
        })
    }

    /// Where its ports connect.
    pub fn sockets(&self) -> [PathBuf; 2] {
        [0, 1].map(|n| self.dir.path().join(format!("p{n}.sock")))
    }

    /// Waits until both ports are connected.
    pub fn wait_for_links(&self) -> Result<()> {
        for _ in 0..200 {
            let mut c = Command::new("ovs-vsctl");
            let db = format!("--db=unix:{}", self.dir.path().join("db.sock").display());
            c.arg(db)
                .args(["--bare", "--columns=link_state", "find", "Interface"]);
            c.arg("type=dpdkvhostuserclient");
            if run(&mut c)?.lines().filter(|l| *l == "up").count() == 2 {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        anyhow::bail!("its ports do not connect")
    }

    /// The forwarding process.
    pub fn process(&self) -> &Process {
        &self.daemon
    }
}

fn wait_for(path: &Path) -> Result<()> {
    for _ in 0..600 {
        if path.exists() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    anyhow::bail!("{} did not appear", path.display())
}
