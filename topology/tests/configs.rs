//! What is in `configs/` is right.

use std::fs;
use std::path::{Path, PathBuf};

use topology::model::{NodeKind, Topology};

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs")
}

fn load(name: &str) -> Topology {
    let loaded = Topology::load(&configs().join(name)).unwrap_or_else(|report| panic!("{report}"));
    assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
    loaded.topology
}

#[test]
fn every_file_loads_without_a_warning() {
    let mut files = 0;
    for entry in fs::read_dir(configs()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if Path::new(&name)
            .extension()
            .is_some_and(|extension| extension == "json")
            && name != "topology.schema.json"
        {
            load(&name);
            files += 1;
        }
    }
    assert!(files >= 4, "found {files} files");
}

#[test]
fn the_schema_is_current() {
    let file = configs().join("topology.schema.json");
    let current = topology::json_schema();
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        fs::write(&file, &current).unwrap();
    }
    let written = fs::read_to_string(&file).unwrap_or_default();
    assert!(
        written == current,
        "{} is not what the types in topology/src/file.rs say; run\n  UPDATE_SCHEMA=1 cargo test -p topology --test configs",
        file.display()
    );
}

#[test]
fn figure_3_is_the_papers_network() {
    let lab = load("imunes-figure3.json");
    let addresses: Vec<(String, Vec<String>)> = lab
        .nodes
        .iter()
        .map(|node| {
            let NodeKind::Machine(machine) = &node.kind else {
                panic!("{} is no machine", node.name)
            };
            assert!(
                machine.routes.is_empty(),
                "{} has a static route",
                node.name
            );
            assert_eq!(machine.frr.as_ref().unwrap().daemons, ["zebra", "ospfd"]);
            let interfaces = machine.interfaces.iter();
            let addresses = interfaces.flat_map(|interface| &interface.addresses);
            (
                node.name.clone(),
                addresses.map(ToString::to_string).collect(),
            )
        })
        .collect();
    let expected = [
        ("pc2", vec!["10.0.3.2/24"]),
        ("r1", vec!["10.0.3.1/24", "10.0.2.2/24"]),
        ("r2", vec!["10.0.2.1/24", "10.0.1.2/24"]),
        ("r3", vec!["10.0.1.1/24", "10.0.4.1/24"]),
        ("server", vec!["10.0.4.2/24"]),
    ];
    for ((name, addresses), (expected_name, expected)) in addresses.iter().zip(&expected) {
        assert_eq!(name, expected_name);
        assert_eq!(addresses, expected);
    }
    assert_eq!(addresses.len(), expected.len());
    let rates: Vec<Option<u64>> = lab
        .links
        .iter()
        .map(|link| link.directions[0].rate)
        .collect();
    let (edge, core) = (Some(100_000_000), Some(155_520_000));
    assert_eq!(rates, [edge, core, core, edge]);
}
