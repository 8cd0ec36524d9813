//! Interfaces that are locked: a node that takes another's name is heard by nobody.

use anyhow::{Context, Result, ensure};
use tests::{Lab, World};

/// `a` is locked to its addresses, `c`, a container, to its MAC address.
const LAB: &str = r#"{
    "name": "guard",
    "nodes": {
        "a": {"kind": "host", "interfaces": {"eth0": {"addresses": ["10.0.0.1/24", "fd00::1/64"], "lock": "address"}}},
        "b": {"kind": "host", "interfaces": {"eth0": {"addresses": ["10.0.0.2/24", "fd00::2/64"]}}},
        "c": {"kind": "host", "engine": "container", "interfaces": {"eth0": {"addresses": ["10.0.0.3/24"], "lock": "mac"}}},
        "s": {"kind": "switch"}
    },
    "links": [{"endpoints": ["a:eth0", "s"]}, {"endpoints": ["b:eth0", "s"]}, {"endpoints": ["c:eth0", "s"]}]
}"#;

fn answered(lab: &Lab<'_>, node: &str, ping: &str) -> Result<bool> {
    let ping = format!("ping -c 2 -i 0.2 -W 1 {ping}");
    Ok(lab.exec(node, &["sh", "-c", &ping])?.code() == 0)
}

/// Frames that the node's link has not let in, by reason.
fn refused(lab: &Lab<'_>, node: &str, reason: &str) -> Result<u64> {
    let link = lab.link(&format!("{node}:eth0"))?;
    let count = link["forward"]["counters"]["drops"][reason].as_u64();
    count.with_context(|| format!("{reason} of {link}"))
}

pub fn names(world: &World) -> Result<()> {
    let lab = world.launch(&world.file("guard.json", LAB)?)?;
    for to in ["10.0.0.2", "10.0.0.3", "fd00::2"] {
        ensure!(answered(&lab, "a", to)?, "{to}");
    }
    lab.sh("b", "iperf3 -s -D")?;
    // Superframes too.
    lab.sh("a", "iperf3 -n 5M -c 10.0.0.2 && iperf3 -n 5M -c fd00::2")?;
    ensure!(
        refused(&lab, "a", "lock")? == 0,
        "what is in its own name passes"
    );

    lab.sh("a", "ip address add 10.0.0.99/24 dev eth0")?;
    ensure!(!answered(&lab, "a", "-I 10.0.0.99 10.0.0.2")?);
    let of_addresses = refused(&lab, "a", "lock")?;
    ensure!(of_addresses >= 2, "{of_addresses}");
    let other = |node| {
        lab.sh(
            node,
            "ip link set eth0 down && ip link set eth0 address 02:00:00:00:00:99 && ip link set eth0 up",
        )
    };
    other("a")?;
    ensure!(!answered(&lab, "a", "10.0.0.2")?);
    ensure!(refused(&lab, "a", "lock")? > of_addresses);

    // Only the MAC address counts. Before it was configured the device had another.
    let before = refused(&lab, "c", "lock")?;
    lab.sh("c", "ip address add 10.0.0.98/24 dev eth0")?;
    ensure!(answered(&lab, "c", "-I 10.0.0.98 10.0.0.2")?);
    ensure!(refused(&lab, "c", "lock")? == before);
    // Its device is its own, and so takes any MTU.
    lab.sh("c", "ip link set eth0 mtu 4000")?;
    ensure!(answered(&lab, "c", "-M do -s 1472 10.0.0.2")?);
    ensure!(!answered(&lab, "c", "-M do -s 3000 10.0.0.2")?);
    ensure!(refused(&lab, "c", "mtu")? == 2);
    other("c")?;
    ensure!(!answered(&lab, "c", "10.0.0.2")?);
    ensure!(refused(&lab, "c", "lock")? > before);
    lab.stop()
}
