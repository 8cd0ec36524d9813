//! What a right file becomes.
#![allow(clippy::needless_raw_string_hashes, reason = "expect-test writes them")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use expect_test::{Expect, expect};
use topology::model::*;
use topology::net::MacAddr;
use topology::quantity::{Rate, StormLimit};
use topology::segment::segments;

fn full() -> Topology {
    let text = include_str!("full.json");
    let loaded = Topology::parse(text, Path::new("/lab/full.json"));
    loaded.unwrap_or_else(|report| panic!("{report}")).topology
}

fn machine<'a>(lab: &'a Topology, name: &str) -> &'a Machine {
    let node = lab.nodes.iter().find(|node| node.name == name);
    match node.map(|node| &node.kind) {
        Some(NodeKind::Machine(machine)) => machine,
        other => panic!("{name} is {other:?}"),
    }
}

#[test]
fn own_values_before_defaults() {
    let lab = full();
    assert_eq!(
        (lab.name.as_str(), lab.seed, lab.timing),
        ("full", 7, Timing::Exact)
    );
    let h1 = machine(&lab, "h1");
    assert_eq!((h1.memory, h1.vcpus, h1.role), (64 << 20, 1, Role::Host));
    assert_eq!(h1.kernel, Some(PathBuf::from("/boot/vmlinux")));
    let idle = machine(&lab, "idle");
    assert_eq!((idle.memory, idle.vcpus), (96 << 20, 2));
    assert_eq!(idle.kernel, Some(PathBuf::from("/lab/img/vmlinux")));
    let net0 = &idle.interfaces[0];
    assert_eq!(
        (net0.name.as_str(), net0.mtu, net0.queue_size),
        ("net0", 1400, 512)
    );
    assert_eq!(
        h1.on,
        EndPolicy {
            power_off: EndAction::Restart,
            reboot: EndAction::End,
            panic: EndAction::EndLab,
            triple_fault: EndAction::EndLab,
            crash: EndAction::Restart,
        }
    );
    let limits = |cpu, processors: &[u16]| Limits {
        cpu,
        weight: Some(50),
        processors: processors.to_vec(),
        memory: Some(16 << 20),
    };
    assert_eq!(h1.limits, limits(Some(1500), &[0, 2]));
    assert_eq!(idle.limits, limits(None, &[1]));
    let ready = h1.ready.as_ref().unwrap();
    assert_eq!(ready.timeout, Duration::from_secs(90));
    let modes: Vec<u32> = h1.files.iter().map(|file| file.mode).collect();
    assert_eq!(modes, [0o644, 0o755]);
    let routes: Vec<String> = h1.routes.iter().map(|route| route.to.to_string()).collect();
    assert_eq!(routes, ["10.9.0.0/16", "::/0"]);
}

#[test]
fn the_least_file() {
    let text = r#"{"nodes": {"a": {"kind": "host"}, "b": {"kind": "router"}}, "links": [{"endpoints": ["a:eth0", "b:eth0"]}]}"#;
    let lab = Topology::parse(text, Path::new("least.json"))
        .unwrap()
        .topology;
    assert_eq!(lab.name, "least");
    let a = machine(&lab, "a");
    assert_eq!((a.memory, a.vcpus, a.sysctls.len()), (128 << 20, 1, 0));
    assert_eq!(a.limits, Limits::default());
    assert_eq!(
        (a.interfaces[0].mtu, a.interfaces[0].queue_size),
        (1500, 1024)
    );
    let b = machine(&lab, "b");
    let forwarding = [
        ("net.ipv4.ip_forward", "1"),
        ("net.ipv6.conf.all.forwarding", "1"),
    ];
    let forwarding = forwarding.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(b.sysctls, forwarding);
    assert_eq!(lab.links[0].name, "a:eth0--b:eth0");
    assert_eq!(
        lab.links[0].directions,
        [Direction::default(), Direction::default()]
    );
}

#[test]
fn each_direction_has_its_own() {
    let lab = full();
    let access = &lab.links[0];
    let both = Direction {
        rate: Some(10_000_000),
        overhead: 38,
        delay: Duration::from_millis(5),
        loss: Loss::Random(0.001),
        queue: Queue {
            limit: Limit::Packets(50),
            ..Queue::default()
        },
        ..Direction::default()
    };
    let forward = Direction {
        rate: Some(1_000_000),
        queue: Queue {
            limit: Limit::Bytes(65536),
            ..Queue::default()
        },
        ..both.clone()
    };
    let backward = Direction {
        delay: Duration::from_millis(20),
        loss: Loss::Random(0.0),
        up: false,
        ..both.clone()
    };
    assert_eq!(access.directions, [forward, backward]);
    assert_eq!(
        (access.name.as_str(), access.completion),
        ("access", Completion::Nic)
    );
    assert_eq!(lab.links[1].completion, Completion::Network);
    assert_eq!(lab.links[1].directions, [both.clone(), both]);
}

#[test]
fn ports_of_switches_count_up() {
    let lab = full();
    let names: Vec<&str> = lab.links.iter().map(|link| link.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "access",
            "r1:eth1--sw:0",
            "sw:1--r2:eth0",
            "r2:eth1--r3:eth0",
            "r3:eth1--hub:0",
            "hub:1--h2:eth0",
            "hub:2--idle:net0",
            "r2:eth2--h2:eth1",
        ]
    );
}

#[test]
fn segments_join_through_switches_and_hubs() {
    let found = segments(&full());
    let links: Vec<Vec<usize>> = found.iter().map(|segment| segment.links.clone()).collect();
    assert_eq!(
        links,
        [vec![0], vec![1, 2], vec![3], vec![4, 5, 6], vec![7]]
    );
    let sizes: Vec<usize> = found
        .iter()
        .map(|segment| segment.interfaces.len())
        .collect();
    assert_eq!(sizes, [2, 2, 2, 3, 2]);
    let direct: Vec<bool> = found
        .iter()
        .map(topology::segment::Segment::is_point_to_point)
        .collect();
    assert_eq!(direct, [true, false, true, false, true]);
}

/// Chains of switches that a later link joins become one.
#[test]
fn segments_merge_late() {
    let text = r#"{"nodes": {"a": {"kind": "host"}, "b": {"kind": "host"}, "s": {"kind": "switch"}, "t": {"kind": "hub"}, "u": {"kind": "switch"}},
      "links": [{"endpoints": ["a:e", "s"]}, {"endpoints": ["a:f", "b:f"]}, {"endpoints": ["b:e", "u"]}, {"endpoints": ["t", "u"]}, {"endpoints": ["s", "t"]}]}"#;
    let lab = Topology::parse(text, Path::new("late.json")).unwrap();
    assert!(lab.warnings.is_empty(), "{}", lab.warnings);
    let found = segments(&lab.topology);
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].interfaces.len(), 2);
    assert_eq!(found[0].bridges.len(), 3);
    assert!(!found[0].has_loop());
}

/// A change of these would give every lab new addresses.
#[test]
fn mac_addresses_stay() {
    let lab = full();
    let macs: Vec<String> = ["h1", "r1", "idle"]
        .iter()
        .flat_map(|name| &machine(&lab, name).interfaces)
        .map(|interface| interface.mac.to_string())
        .collect();
    expect![[r#"
        [
            "02:00:00:00:00:01",
            "02:86:b4:1e:92:20",
            "02:db:e4:0e:80:53",
            "02:d9:fc:b5:7b:52",
        ]
    "#]]
    .assert_debug_eq(&macs);
}

#[test]
fn mac_addresses_are_local_and_differ() {
    let ends: Vec<String> = (0..28)
        .map(|n| format!("{{\"endpoints\": [\"a:e{n}\", \"b:e{n}\"]}}"))
        .collect();
    let text = format!(
        "{{\"nodes\": {{\"a\": {{\"kind\": \"router\"}}, \"b\": {{\"kind\": \"router\"}}}}, \"links\": [{}]}}",
        ends.join(",")
    );
    let lab = Topology::parse(&text, Path::new("many.json"))
        .unwrap()
        .topology;
    let mut macs: Vec<MacAddr> = ["a", "b"]
        .iter()
        .flat_map(|name| &machine(&lab, name).interfaces)
        .map(|interface| interface.mac)
        .collect();
    assert!(macs.iter().all(|mac| mac.0[0] == 0x02));
    macs.sort_unstable();
    macs.dedup();
    assert_eq!(macs.len(), 56);
}

#[allow(clippy::needless_pass_by_value, reason = "reads better at the call")]
fn check_frr(name: &str, daemons: &[&str], config: Expect) {
    let lab = full();
    let frr = machine(&lab, name).frr.as_ref().unwrap();
    assert_eq!(frr.daemons, daemons);
    config.assert_eq(&frr.config);
}

#[test]
fn frr_of_a_rip_host() {
    check_frr(
        "h1",
        &["zebra", "ripd", "ripngd"],
        expect![[r#"
        frr defaults traditional
        hostname h1
        !
        router rip
         network eth0
        exit
        !
        router ripng
         network eth0
        exit
        !
    "#]],
    );
}

#[test]
fn frr_of_rip_and_bgp_with_inline_text() {
    check_frr(
        "r1",
        &["zebra", "ripd", "ripngd", "bgpd", "staticd"],
        expect![[r#"
            frr defaults traditional
            hostname r1
            !
            router rip
             network eth0
             network eth1
             passive-interface eth1
            exit
            !
            router ripng
             network eth0
             network eth1
             passive-interface eth1
            exit
            !
            router bgp 65001
             bgp router-id 10.1.0.1
             no bgp ebgp-requires-policy
             no bgp default ipv4-unicast
             neighbor 10.2.0.2 remote-as 65002
             neighbor 10.2.0.2 timers 3 9
             neighbor 10.2.0.2 timers connect 5
             neighbor fd00:2::2 remote-as 65002
             neighbor fd00:2::2 timers 3 9
             neighbor fd00:2::2 timers connect 5
             address-family ipv4 unicast
              redistribute connected
              neighbor 10.2.0.2 activate
             exit-address-family
             address-family ipv6 unicast
              redistribute connected
              neighbor fd00:2::2 activate
             exit-address-family
            exit
            !
            router rip
             redistribute bgp
            exit
            ip route 10.8.0.0/16 Null0
        "#]],
    );
}

#[test]
fn frr_of_bgp_isis_and_ospf() {
    check_frr(
        "r2",
        &["zebra", "ospfd", "ospf6d", "bgpd", "isisd"],
        expect![[r#"
            frr defaults traditional
            hostname r2
            !
            interface eth0
             ip ospf area 0.0.0.1
             ip ospf passive
             ipv6 ospf6 area 0.0.0.1
             ipv6 ospf6 passive
             ip router isis lab
             ipv6 router isis lab
             isis passive
            exit
            !
            interface eth1
             ip ospf area 0.0.0.1
             ip ospf network point-to-point
             ip ospf hello-interval 2
             ip ospf dead-interval 10
             ip ospf retransmit-interval 1
             ipv6 ospf6 area 0.0.0.1
             ipv6 ospf6 network point-to-point
             ipv6 ospf6 hello-interval 2
             ipv6 ospf6 dead-interval 10
             ipv6 ospf6 retransmit-interval 1
             ip router isis lab
             ipv6 router isis lab
             isis network point-to-point
             isis hello-interval 2
             isis hello-multiplier 4
            exit
            !
            interface eth2
             ip ospf area 0.0.0.1
             ip ospf network point-to-point
             ip ospf hello-interval 2
             ip ospf dead-interval 10
             ip ospf retransmit-interval 1
             ip router isis lab
             isis network point-to-point
             isis hello-interval 2
             isis hello-multiplier 4
            exit
            !
            router ospf
             ospf router-id 10.2.0.2
            exit
            !
            router ospf6
             ospf6 router-id 10.2.0.2
            exit
            !
            router bgp 65002
             bgp router-id 10.2.0.2
             no bgp ebgp-requires-policy
             no bgp default ipv4-unicast
             neighbor 10.2.0.1 remote-as 65001
             neighbor 10.2.0.1 timers 3 9
             neighbor 10.2.0.1 timers connect 5
             neighbor fd00:2::1 remote-as 65001
             neighbor fd00:2::1 timers 3 9
             neighbor fd00:2::1 timers connect 5
             address-family ipv4 unicast
              redistribute connected
              neighbor 10.2.0.1 activate
             exit-address-family
             address-family ipv6 unicast
              redistribute connected
              neighbor fd00:2::1 activate
             exit-address-family
            exit
            !
            router isis lab
             is-type level-2-only
             net 49.0002.0100.0200.0002.00
             lsp-mtu 1397
            exit
            !
        "#]],
    );
}

/// It has two interfaces but does not forward, so nobody may be led through it.
#[test]
fn frr_of_a_host_with_two_interfaces() {
    check_frr(
        "h2",
        &["zebra", "ospfd", "ospf6d", "isisd"],
        expect![[r#"
        frr defaults traditional
        hostname h2
        !
        interface eth0
         ip ospf area 0.0.0.1
         ip ospf hello-interval 2
         ip ospf dead-interval 10
         ip ospf retransmit-interval 1
         ipv6 ospf6 area 0.0.0.1
         ipv6 ospf6 hello-interval 2
         ipv6 ospf6 dead-interval 10
         ipv6 ospf6 retransmit-interval 1
         ip router isis lab
         ipv6 router isis lab
         isis hello-interval 1
         isis hello-multiplier 4
        exit
        !
        interface eth1
         ip ospf area 0.0.0.1
         ip ospf network point-to-point
         ip ospf hello-interval 2
         ip ospf dead-interval 10
         ip ospf retransmit-interval 1
         ip router isis lab
         isis network point-to-point
         isis hello-interval 1
         isis hello-multiplier 4
        exit
        !
        router ospf
         ospf router-id 10.4.0.2
         max-metric router-lsa administrative
        exit
        !
        router ospf6
         ospf6 router-id 10.4.0.2
        exit
        !
        router isis lab
         is-type level-2-only
         net 49.0001.0100.0400.0002.00
         lsp-mtu 1397
         set-overload-bit
        exit
        !
    "#]],
    );
}

#[test]
fn frr_of_inline_text_alone() {
    let text = r#"{"nodes": {
      "a": {"kind": "router", "routing": {"frr": "router ospf\n network 10.0.0.0/8 area 0\n"}},
      "b": {"kind": "host", "interfaces": {"eth0": {"addresses": ["10.0.0.2/24"]}}, "routing": {"ospf": true, "bgp": {"as": 1}}},
      "c": {"kind": "router", "interfaces": {"eth0": {"addresses": ["10.0.0.3/24"]}}, "routing": {"bgp": {"as": 1, "neighbors": ["10.0.0.2"]}}},
      "d": {"kind": "host", "routing": {}},
      "sw": {"kind": "switch"}},
      "links": [{"endpoints": ["a:eth0", "sw"]}, {"endpoints": ["b:eth0", "sw"]}, {"endpoints": ["c:eth0", "sw"]}]}"#;
    let loaded = Topology::parse(text, Path::new("inline.json")).unwrap();
    assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
    let lab = loaded.topology;
    let frr = |name: &str| machine(&lab, name).frr.clone();
    assert_eq!(frr("a").unwrap().daemons, ["zebra", "ospfd"]);
    assert_eq!(frr("d"), None);
    // b is not passive: a speaks OSPF, in its own words.
    expect![[r#"
        frr defaults traditional
        hostname b
        !
        interface eth0
         ip ospf area 0
         ip ospf hello-interval 1
         ip ospf dead-interval 4
         ip ospf retransmit-interval 1
        exit
        !
        router ospf
         ospf router-id 10.0.0.2
        exit
        !
        router bgp 1
         bgp router-id 10.0.0.2
         no bgp ebgp-requires-policy
         no bgp default ipv4-unicast
         neighbor 10.0.0.3 remote-as 1
         neighbor 10.0.0.3 timers 3 9
         neighbor 10.0.0.3 timers connect 5
         address-family ipv4 unicast
          redistribute connected
          neighbor 10.0.0.3 activate
          neighbor 10.0.0.3 next-hop-self
         exit-address-family
         address-family ipv6 unicast
          redistribute connected
         exit-address-family
        exit
        !
    "#]]
    .assert_eq(&frr("b").unwrap().config);
    expect![[r#"
        frr defaults traditional
        hostname c
        !
        router bgp 1
         bgp router-id 10.0.0.3
         no bgp ebgp-requires-policy
         no bgp default ipv4-unicast
         neighbor 10.0.0.2 remote-as 1
         neighbor 10.0.0.2 timers 3 9
         neighbor 10.0.0.2 timers connect 5
         address-family ipv4 unicast
          redistribute connected
          neighbor 10.0.0.2 activate
          neighbor 10.0.0.2 next-hop-self
         exit-address-family
         address-family ipv6 unicast
          redistribute connected
         exit-address-family
        exit
        !
    "#]]
    .assert_eq(&frr("c").unwrap().config);
}

#[test]
fn files_are_copied_from_beside_the_topology() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("motd"), "hello\n").unwrap();
    std::fs::write(folder.path().join("frr.conf"), "router rip\n").unwrap();
    let file = folder.path().join("lab.json");
    let text = r#"{"nodes": {"a": {"kind": "host", "files": {"/etc/motd": {"from": "motd"}}, "routing": {"frr": {"from": "frr.conf"}}}}}"#;
    std::fs::write(&file, text).unwrap();
    let lab = Topology::load(&file).unwrap().topology;
    let a = machine(&lab, "a");
    assert_eq!(a.files[0].content, "hello\n");
    assert_eq!(a.frr.as_ref().unwrap().daemons, ["zebra", "ripd"]);
}

/// The directions of the one link of a lab whose files are in a folder of the test.
fn shaped(link: &str, files: &[(&str, &str)]) -> Link {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    let text = format!(
        r#"{{"nodes": {{"a": {{"kind": "host"}}, "b": {{"kind": "host"}}}},
            "links": [{{"endpoints": ["a:eth0", "b:eth0"], {link}}}]}}"#
    );
    let loaded = Topology::parse(&text, &folder.path().join("lab.json"));
    loaded
        .unwrap_or_else(|report| panic!("{report}"))
        .topology
        .links
        .remove(0)
}

#[test]
fn every_attribute() {
    let link = shaped(
        r#""delay": "10ms", "jitter": {"spread": "1ms", "distribution": "pareto"},
           "reorder": {"probability": "25%", "gap": 5}, "ber": 1e-6, "duplicate": "1%", "corrupt": "2%",
           "loss": {"gilbert-elliott": {"p": "1%", "r": "10%", "1-k": "0.5%"}},
           "forward": {"trace": "cell.trace", "jitter": {"spread": "2ms", "table": "d.dist"}, "loss": {"every": 100}},
           "backward": {"rate": "unlimited", "reorder": false, "jitter": "3us"}"#,
        &[
            ("cell.trace", "0\n5\n5\n10\n"),
            ("d.dist", "# made by hand\n-8192 0\n8192\n"),
        ],
    );
    let both = Direction {
        delay: Duration::from_millis(10),
        reorder: Some(Reorder {
            probability: 0.25,
            gap: 5,
        }),
        loss: Loss::GilbertElliott(GilbertElliott {
            p: 0.01,
            r: 0.1,
            loss_bad: 1.0,
            loss_good: 0.005,
        }),
        ber: 1e-6,
        duplicate: 0.01,
        corrupt: 0.02,
        ..Direction::default()
    };
    let opportunities = [0, 5, 5, 10].map(Duration::from_millis).to_vec();
    let forward = Direction {
        trace: Some(std::sync::Arc::new(Trace { opportunities })),
        jitter: Jitter {
            spread: Duration::from_millis(2),
            distribution: Distribution::Table([-8192, 0, 8192].into()),
        },
        loss: Loss::Every(100),
        ..both.clone()
    };
    let backward = Direction {
        jitter: Jitter {
            spread: Duration::from_micros(3),
            distribution: Distribution::Uniform,
        },
        reorder: None,
        ..both
    };
    assert_eq!(link.directions, [forward, backward]);
}

#[test]
fn every_discipline() {
    let queue = |text: &str| {
        let [forward, backward] = shaped(&format!(r#""queue": {text}"#), &[]).directions;
        assert_eq!(forward, backward);
        (forward.queue.limit, forward.queue.discipline)
    };
    let packets = Limit::Packets;
    let fifo = Discipline::Fifo(DropFrom::Tail);
    assert_eq!(queue("{}"), (packets(1000), fifo));
    assert_eq!(
        queue(r#"{"limit": "64KiB", "drop": "head", "kind": "fifo"}"#),
        (Limit::Bytes(65536), Discipline::Fifo(DropFrom::Head))
    );
    assert_eq!(
        queue(r#"{"kind": "drr", "flows": 64, "quantum": "300B"}"#),
        (
            packets(1000),
            Discipline::Drr {
                drop: DropFrom::Tail,
                flows: 64,
                quantum: 300
            }
        )
    );
    assert_eq!(
        queue(r#"{"kind": "wfq", "drop": "head"}"#),
        (
            packets(1000),
            Discipline::Wfq {
                drop: DropFrom::Head,
                flows: 1024
            }
        )
    );
    assert_eq!(
        queue(r#"{"kind": "wf2q+", "flows": 2}"#),
        (
            packets(1000),
            Discipline::Wf2q {
                drop: DropFrom::Tail,
                flows: 2
            }
        )
    );
    assert_eq!(
        queue(r#"{"kind": "red", "min-th": "30kB", "max-p": "2%", "gentle": false, "ecn": true}"#),
        (
            packets(1000),
            Discipline::Red(Red {
                min_th: Limit::Bytes(30_000),
                max_th: Limit::Bytes(90_000),
                max_p: 0.02,
                w_q: 0.002,
                gentle: false,
                ecn: true
            })
        )
    );
    assert_eq!(
        queue(r#"{"kind": "codel", "target": "1ms"}"#),
        (
            packets(1000),
            Discipline::Codel(Codel {
                target: Duration::from_millis(1),
                ..Codel::default()
            })
        )
    );
    assert_eq!(
        queue(r#"{"kind": "fq_codel"}"#),
        (packets(10_240), Discipline::FqCodel(FqCodel::default()))
    );
    assert_eq!(
        queue(r#"{"kind": "pie", "alpha": 1, "max-ecnth": "50%"}"#),
        (
            packets(1000),
            Discipline::Pie(Pie {
                alpha: 1.0,
                max_ecnth: 0.5,
                ..Pie::default()
            })
        )
    );
}

#[test]
fn schedules_and_changes() {
    let link = shaped(
        r#""rate": "10Mbit", "schedule": [
            {"at": "10s", "set": {"rate": "1Mbit", "backward": {"delay": "5ms"}}},
            {"at": "20s", "set": {"forward": {"up": false}}}]"#,
        &[],
    );
    let rate = Patch {
        rate: Some(Some(1_000_000)),
        ..Patch::default()
    };
    let delay = Patch {
        delay: Some(Duration::from_millis(5)),
        ..rate.clone()
    };
    let down = Patch {
        up: Some(false),
        ..Patch::default()
    };
    assert_eq!(
        link.schedule,
        [
            Change {
                at: Duration::from_secs(10),
                set: [rate.clone(), delay.clone()]
            },
            Change {
                at: Duration::from_secs(20),
                set: [down, Patch::default()]
            }
        ]
    );
    let text = r#"{"rate": "1Mbit", "backward": {"delay": "5ms"}}"#;
    assert_eq!(
        Patch::parse(text, Path::new("request")).unwrap(),
        [rate, delay]
    );
    let [mut forward, _] = link.directions;
    let lifted = Patch::parse(r#"{"rate": "unlimited"}"#, Path::new("request")).unwrap();
    lifted[0].apply(&mut forward);
    assert_eq!(forward.rate, None);
    let refused = Patch::parse(r#"{"rat": "1Mbit"}"#, Path::new("request")).unwrap_err();
    assert!(
        refused.to_string().contains("did you mean `rate`?"),
        "{refused}"
    );
}

const VLANS: &str = r#"{"nodes": {
  "a": {"kind": "host", "interfaces": {"eth0": {"addresses": ["10.0.0.1/24"]}}},
  "b": {"kind": "host", "interfaces": {"eth0": {"addresses": ["10.0.0.1/24"]}}},
  "c": {"kind": "host", "interfaces": {"eth0": {"addresses": ["10.0.0.2/24"]}}},
  "d": {"kind": "host", "interfaces": {"eth0": {"addresses": ["10.0.0.2/24"]}}},
  "s": {"kind": "switch", "reserved": "forward", "storm": "100packets", "ports": {
    "a:eth0": {"access": 10}, "t": {"trunk": [10, "20-29"], "native": 5, "storm": "1Mbit"}}},
  "t": {"kind": "switch", "ports": {
    "c:eth0": {"access": 10}, "d:eth0": {"access": 5}, "to-s": {"trunk": "all", "native": 5}}},
  "up": {"kind": "external", "vxlan": {"vni": 7, "remote": "2001:db8::1"}}},
 "links": [
  {"endpoints": ["a:eth0", "s"]}, {"endpoints": ["s", "b:eth0"]}, {"endpoints": ["c:eth0", "t"]},
  {"endpoints": ["d:eth0", "t"]}, {"endpoints": ["s", "t"], "name": "to-s"}, {"endpoints": ["up", "t"]}]}"#;

/// Ports get their attributes by the other end of their link or by its name; the rest is in VLAN 1.
#[test]
fn ports_of_switches() {
    let lab = Topology::parse(VLANS, Path::new("lab.json")).unwrap();
    assert!(lab.warnings.is_empty(), "{}", lab.warnings);
    let lab = lab.topology;
    let switch = |name: &str| {
        let node = lab.nodes.iter().find(|node| node.name == name).unwrap();
        let NodeKind::Switch(switch) = &node.kind else {
            panic!("{name} is no switch")
        };
        switch
    };
    let s = switch("s");
    assert!(s.forward_reserved && !switch("t").forward_reserved);
    let vlans: Vec<PortVlan> = s.ports.iter().map(|p| p.vlan.clone().unwrap()).collect();
    let trunk = PortVlan::Trunk {
        allowed: vec![10..=10, 20..=29],
        native: Some(5),
    };
    assert!(trunk.is_tagged(10) && trunk.is_tagged(25) && !trunk.is_tagged(30));
    assert!(!trunk.is_tagged(5));
    assert_eq!(vlans, [PortVlan::Access(10), PortVlan::Access(1), trunk]);
    let packets = Some(StormLimit::Packets(100));
    let rate = Some(StormLimit::Rate(Rate(1_000_000)));
    let storm: Vec<_> = s.ports.iter().map(|p| p.storm).collect();
    assert_eq!(storm, [packets, packets, rate]);
    assert_eq!(
        switch("t").ports[3].vlan,
        Some(PortVlan::Access(1)),
        "the external node's port"
    );
}

/// VLANs are broadcast domains of their own: no duplicate addresses are found between them.
#[test]
fn segments_of_vlans() {
    let lab = Topology::parse(VLANS, Path::new("lab.json"))
        .unwrap()
        .topology;
    let name = |end: &Endpoint| lab.nodes[end.node].name.clone();
    let found: Vec<(Vec<String>, usize, bool)> = segments(&lab)
        .iter()
        .map(|s| {
            let names = s.interfaces.iter().map(name).collect();
            (names, s.externals.len(), s.has_loop())
        })
        .collect();
    let names = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        found,
        [
            (names(&["a", "c"]), 0, false),
            (names(&["b"]), 0, false),
            (names(&["d"]), 0, false),
            (names(&[]), 1, false),
        ]
    );
}

#[test]
fn external_nodes() {
    let text = r#"{"nodes": {"up": {"kind": "external", "tap": "hop0"}, "lan": {"kind": "external", "interface": "eth1"},
      "far": {"kind": "external", "vxlan": {"vni": 9, "remote": "192.0.2.1", "port": 8472}},
      "near": {"kind": "external", "vxlan": {"vni": 9, "remote": "192.0.2.1", "local": "192.0.2.2"}}},
     "links": [{"endpoints": ["up", "lan"]}, {"endpoints": ["far", "near"]}]}"#;
    let lab = Topology::parse(text, Path::new("lab.json")).unwrap();
    assert!(lab.warnings.is_empty(), "{}", lab.warnings);
    let lab = lab.topology;
    assert_eq!(lab.links[0].name, "up--lan");
    let kinds: Vec<_> = lab.nodes.iter().map(|node| node.kind.clone()).collect();
    let tap = External::Tap {
        name: "hop0".into(),
        mtu: 1500,
    };
    let interface = External::Interface {
        name: "eth1".into(),
    };
    let vxlan = |local: &str, port| External::Vxlan {
        vni: 9,
        remote: SocketAddr::new("192.0.2.1".parse().unwrap(), port),
        local: SocketAddr::new(local.parse().unwrap(), port),
    };
    assert_eq!(
        vxlan("0.0.0.0", 8472).to_string(),
        "vxlan 9 to 192.0.2.1:8472"
    );
    let expected = [
        tap,
        interface,
        vxlan("0.0.0.0", 8472),
        vxlan("192.0.2.2", 4789),
    ];
    assert_eq!(kinds, expected.map(NodeKind::External));
}

fn parsed(text: &str) -> Topology {
    let loaded = Topology::parse(text, Path::new("/lab/lab.json"));
    loaded.unwrap_or_else(|report| panic!("{report}")).topology
}

#[test]
fn start_order_and_readiness() {
    let lab = parsed(
        r#"{"nodes": {
            "web": {"kind": "host", "after": ["r", "db"], "ready": {"tcp": "[2001:db8::1]:80"}},
            "r": {"kind": "router", "routing": {"ospf": true}, "ready": {"ospf-neighbors": 2, "timeout": "5s"},
                "interfaces": {"eth0": {"addresses": ["10.0.0.1/24"]}}},
            "r6": {"kind": "router", "routing": {"ospf": true}, "ready": {"ospf-neighbors": 1},
                "interfaces": {"eth0": {"addresses": ["2001:db8::2/64"]}}},
            "db": {"kind": "host", "ready": {"tcp": 5432}, "labels": {"role": "data"}, "save": ["/var/lib/db"]}},
          "links": [{"endpoints": ["r:eth0", "r6:eth0"]}]}"#,
    );
    assert_eq!(machine(&lab, "web").after, [1, 3]);
    let exec = |name| &machine(&lab, name).ready.as_ref().unwrap().exec;
    assert!(
        exec("web").contains("/dev/tcp/2001:db8::1/80"),
        "{}",
        exec("web")
    );
    assert!(exec("db").contains("/dev/tcp/127.0.0.1/5432"));
    assert!(exec("r").contains("show ip ospf neighbor") && exec("r").contains("-ge 2"));
    assert!(exec("r6").contains("show ipv6 ospf6 neighbor"));
    let db = machine(&lab, "db");
    assert_eq!(db.labels["role"], "data");
    assert_eq!(db.save, ["/var/lib/db"]);
}

#[test]
fn checks_know_addresses() {
    let lab = parsed(
        r#"{"nodes": {
            "a": {"kind": "host", "interfaces": {"eth0": {"addresses": ["2001:db8::1/64", "10.0.0.1/24"]}}},
            "r": {"kind": "router", "interfaces": {
                "eth0": {"addresses": ["10.0.0.2/24", "2001:db8::2/64"]}, "eth1": {"addresses": ["10.0.1.2/24"]}}},
            "b": {"kind": "host", "interfaces": {"eth0": {"addresses": ["10.0.1.1/24"]}}},
            "idle": {"kind": "host"}},
          "links": [{"endpoints": ["a:eth0", "r:eth0"]}, {"endpoints": ["r:eth1", "b:eth0"]}],
          "checks": [
            {"kind": "ping", "from": "a", "to": "r", "within": "2s"},
            {"kind": "ping", "from": "a", "to": "r", "expect": "unreachable"},
            {"kind": "ping", "from": "a", "to": "r"},
            {"kind": "path", "from": "a", "to": "b", "via": ["r"]},
            {"kind": "throughput", "from": "a", "to": "r:eth1", "min": "1kbit"},
            {"kind": "reachability", "except": [["b", "a"]]}]}"#,
    );
    let names: Vec<_> = lab.checks.iter().map(|check| check.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "ping a r",
            "no ping a r",
            "ping a r (2)",
            "path a b",
            "throughput a r:eth1",
            "reachability"
        ]
    );
    assert_eq!(lab.checks[0].within, Duration::from_secs(2));
    let CheckKind::Ping(ping) = &lab.checks[0].kind else {
        panic!("{:?}", lab.checks[0]);
    };
    assert_eq!(ping.to.address.to_string(), "10.0.0.2", "IPv4 before IPv6");
    let CheckKind::Path(way) = &lab.checks[3].kind else {
        panic!("{:?}", lab.checks[3]);
    };
    assert_eq!(way.via[0].addresses.len(), 3);
    let CheckKind::Throughput(throughput) = &lab.checks[4].kind else {
        panic!("{:?}", lab.checks[4]);
    };
    assert_eq!(throughput.to.address.to_string(), "10.0.1.2");
    assert_eq!((throughput.min, throughput.max), (Some(1000), None));
    let CheckKind::Reachability(reachability) = &lab.checks[5].kind else {
        panic!("{:?}", lab.checks[5]);
    };
    let nodes: Vec<_> = reachability
        .nodes
        .iter()
        .map(|node| node.node.as_str())
        .collect();
    assert_eq!(nodes, ["a", "r", "b"], "those with addresses");
    assert_eq!(reachability.except, [[2, 0]]);
}

#[test]
fn checks_travel_as_json() {
    let lab = full();
    for check in &lab.checks {
        let text = serde_json::to_string(check).unwrap();
        assert_eq!(
            serde_json::from_str::<Check>(&text).unwrap(),
            *check,
            "{text}"
        );
    }
    let kinds = lab
        .checks
        .iter()
        .map(|check| std::mem::discriminant(&check.kind));
    let kinds: std::collections::HashSet<_> = kinds.collect();
    assert_eq!(
        kinds.len(),
        4,
        "every kind is among the checks of full.json"
    );
}
