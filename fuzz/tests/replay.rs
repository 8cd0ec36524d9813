//! The kept corpora, and random inputs beside them, through all fuzz targets.

use std::path::Path;

use fuzz::TARGETS;
use proptest::prelude::*;

#[test]
fn corpora() {
    for (name, run) in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("corpus")
            .join(name);
        let files =
            std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let mut count = 0;
        for file in files {
            run(&std::fs::read(file.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "{} is empty", folder.display());
    }
}

fn replays(cases: u32) -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases)
    }
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..2000)
}

proptest! {
    #![proptest_config(replays(1000))]

    #[test]
    fn ring(input in bytes()) {
        fuzz::ring::run(&input);
    }

    #[test]
    fn chain(input in bytes()) {
        fuzz::chain::run(&input);
    }

    #[test]
    fn messages(input in bytes()) {
        fuzz::messages::run(&input);
    }

    #[test]
    fn requests(input in bytes()) {
        fuzz::requests::run(&input);
    }

    #[test]
    fn pci(input in bytes()) {
        fuzz::pci::run(&input);
    }

    #[test]
    fn virtio_blk(input in bytes()) {
        fuzz::virtio_blk::run(&input);
    }

    #[test]
    fn agent_protocol(input in bytes()) {
        fuzz::agent_protocol::run(&input);
    }

    #[test]
    fn topology_file(input in "[ -~]{0,200}") {
        fuzz::topology_file::run(input.as_bytes());
    }
}
