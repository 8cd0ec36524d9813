//! The agent as PID 1.

use std::time::{Duration, Instant};

use agent_protocol::{
    ExitStatus, FileDescription, FrrDescription, Incoming, InterfaceDescription, NodeDescription,
    ReadyDescription, RouteDescription, ToAgent, ToHost, WindowSize,
};
use libtest_mimic::Trial;

use crate::client::Client;
use crate::qemu::Machine;
use crate::trial;

const MACS: [&str; 2] = ["02:00:00:00:00:01", "02:00:00:00:00:02"];

pub fn trials() -> Vec<Trial> {
    vec![
        trial("node::a_configured_node", a_configured_node),
        trial("node::routing_daemons", routing_daemons),
        trial("node::what_cannot_be_configured", what_cannot_be_configured),
    ]
}

fn boot(macs: &[&str]) -> (Machine, Client) {
    let begun = Instant::now();
    let machine = Machine::start(macs);
    let mut client = machine.connect();
    let (kernel, configured) = client.hello();
    assert!(kernel.contains("hopyard"), "{kernel}");
    assert!(!configured);
    println!("from QEMU's start to Hello: {:?}", begun.elapsed());
    (machine, client)
}

fn interface(name: &str, mac: &str, addresses: &[&str]) -> InterfaceDescription {
    InterfaceDescription {
        name: name.into(),
        mac: mac.into(),
        mtu: 1400,
        addresses: addresses.iter().map(|&address| address.into()).collect(),
    }
}

fn a_configured_node() {
    let (mut machine, mut client) = boot(&MACS);
    // The names are the other way round than the kernel gives them.
    client.send(&ToAgent::Configure(Box::new(NodeDescription {
        hostname: "pc1".into(),
        interfaces: vec![
            interface("eth0", MACS[1], &["10.0.1.1/24", "fd00:1::1/64"]),
            interface("eth1", MACS[0], &["10.0.2.1/24"]),
        ],
        routes: vec![RouteDescription {
            to: "0.0.0.0/0".into(),
            via: Some("10.0.1.254".into()),
            dev: None,
            metric: Some(7),
        }],
        sysctls: vec![
            ("net.ipv4.ip_forward".into(), "1".into()),
            ("net.ipv6.conf.eth1.hop_limit".into(), "9".into()),
        ],
        hosts: vec![("10.0.1.1".into(), "pc1".into())],
        files: vec![FileDescription {
            path: "/opt/deep/file".into(),
            content: "text".into(),
            mode: 0o700,
        }],
        frr: None,
        commands: vec![
            "echo started; sleep 0.2; touch /tmp/done".into(),
            "echo oops; exit 3".into(),
        ],
        ready: Some(ReadyDescription {
            exec: "test -e /tmp/done".into(),
            timeout_ms: 20_000,
        }),
    })));
    assert_eq!(client.control(), ToHost::Configured);
    let ToHost::Warning { message } = client.control() else {
        panic!("no warning")
    };
    assert_eq!(
        message,
        "the command `echo oops; exit 3` ended with status 3; the end of /var/log/command-2.log in the node:\n  oops"
    );
    assert_eq!(client.control(), ToHost::Ready);

    // What blocks the agent's signals must not block those of commands: Ctrl-C has to work.
    let blocked = client.run(&["grep", "SigBlk", "/proc/self/status"]);
    assert_eq!(blocked.text(), "SigBlk:\t0000000000000000\n");
    let addresses: serde_json::Value =
        serde_json::from_slice(&client.run(&["ip", "-j", "addr"]).stdout).unwrap();
    let find = |name: &str| {
        addresses
            .as_array()
            .unwrap()
            .iter()
            .find(|i| i["ifname"] == name)
            .unwrap()
    };
    assert_eq!(find("lo")["addr_info"][0]["local"], "127.0.0.1");
    assert_eq!(find("eth0")["address"], MACS[1]);
    assert_eq!(find("eth0")["mtu"], 1400);
    assert_eq!(find("eth0")["operstate"], "UP");
    assert_eq!(find("eth0")["addr_info"][0]["local"], "10.0.1.1");
    let v6 = &find("eth0")["addr_info"][1];
    assert_eq!(v6["local"], "fd00:1::1");
    assert!(v6.get("tentative").is_none(), "{v6}");
    assert_eq!(find("eth1")["address"], MACS[0]);

    assert_eq!(
        client.shell("ip route show default").text().trim(),
        "default via 10.0.1.254 dev eth0 metric 7"
    );
    assert_eq!(
        client
            .shell("cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/eth1/hop_limit")
            .text(),
        "1\n9\n"
    );
    assert_eq!(
        client
            .shell("hostname; cat /opt/deep/file; stat -c %a /opt/deep/file")
            .text(),
        "pc1\ntext700\n"
    );
    assert_eq!(
        client
            .shell("getent hosts pc1; cat /var/log/command-1.log")
            .text(),
        "10.0.1.1        pc1\nstarted\n"
    );
    assert_eq!(
        client
            .shell("ping -c1 -W1 10.0.1.1 >/dev/null && traceroute -n 10.0.1.1 >/dev/null")
            .status,
        ExitStatus::Code(0)
    );
    let missing = client.shell(
        "for p in awk nc vi nano less pager curl iperf3 tcpdump ethtool nft wg bridge tc socat mtr jq ss sysctl fping \
         tracepath arping conntrack vtysh traceroute6 killall top; do command -v $p >/dev/null || echo $p; done",
    );
    assert_eq!(missing.text(), "");
    assert_eq!(
        client
            .shell("awk 'BEGIN { print 6*7 }'; LC_ALL= locale charmap 2>/dev/null || echo $LANG")
            .text()
            .lines()
            .next(),
        Some("42")
    );
    // Orphans do not stay behind.
    client.shell("(sleep 0.1 &) ; sleep 0.5");
    assert_eq!(client.shell("ps -eo stat= | grep -c '^Z'").text(), "0\n");
    // A file capability or a set-user-id bit lets anyone ping.
    assert_eq!(
        client
            .shell("setpriv --reuid 65534 --clear-groups ping -c1 -W1 127.0.0.1 >/dev/null")
            .status,
        ExitStatus::Code(0)
    );
    assert_eq!(client.shell("tcpdump -i lo -c1 -w /dev/null 2>/dev/null & sleep 1; ping -c1 127.0.0.1 >/dev/null; wait $!").status, ExitStatus::Code(0));

    much_output(&mut client);
    login_shell(&mut client);

    // The host goes and comes back.
    drop(client);
    let mut client = machine.connect();
    assert!(client.hello().1);
    assert_eq!(client.control(), ToHost::Configured);
    assert_eq!(client.control(), ToHost::Ready);

    client.exec(1, &["poweroff"]);
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        assert!(Instant::now() < deadline);
        if let Some(Incoming::Control(ToHost::Ending { reboot })) = client.next() {
            assert!(!reboot);
            break;
        }
    }
    machine.wait(Duration::from_secs(20));
    assert!(
        !machine.console().contains("panic"),
        "{}",
        machine.console()
    );
}

fn much_output(client: &mut Client) {
    let begun = Instant::now();
    let output = client.shell("head -c 20000000 /dev/zero");
    assert_eq!(output.stdout.len(), 20_000_000);
    println!("20 MB of output in {:?}", begun.elapsed());
}

fn login_shell(client: &mut Client) {
    client.send(&ToAgent::Exec {
        stream: 4,
        argv: vec!["bash".into(), "-l".into()],
        env: Vec::new(),
        cwd: None,
        tty: Some(WindowSize { rows: 24, cols: 80 }),
    });
    let mut seen = String::new();
    while !seen.contains("root@pc1:~# ") {
        match client.next() {
            Some(Incoming::Data { bytes, .. }) => seen.push_str(&String::from_utf8_lossy(&bytes)),
            other => panic!("{seen:?}, then {other:?}"),
        }
    }
    assert!(!seen.contains("no job control"), "{seen}");
    client.stdin(4, b"exit 5\n");
    assert_eq!(client.output(4).status, ExitStatus::Code(5));
}

fn routing_daemons() {
    let (mut machine, mut client) = boot(&MACS[..1]);
    let begun = Instant::now();
    client.send(&ToAgent::Configure(Box::new(NodeDescription {
        hostname: "r1".into(),
        interfaces: vec![interface("eth0", MACS[0], &["10.0.1.1/24"])],
        sysctls: vec![("net.ipv4.ip_forward".into(), "1".into())],
        frr: Some(FrrDescription {
            daemons: ["zebra", "ospfd", "staticd"].map(String::from).into(),
            config: "hostname r1\nip route 10.99.0.0/16 10.0.1.2\nrouter ospf\n ospf router-id 1.1.1.1\n network 10.0.1.0/24 area 0\n".into(),
        }),
        ready: Some(ReadyDescription { exec: "ip route | grep -q 10.99.0.0/16".into(), timeout_ms: 20_000 }),
        ..NodeDescription::default()
    })));
    assert_eq!(client.control(), ToHost::Configured);
    println!(
        "from Configure to Configured with three daemons: {:?}",
        begun.elapsed()
    );
    assert_eq!(client.control(), ToHost::Ready);
    let ospf = client
        .run(&["vtysh", "-c", "show ip ospf interface eth0"])
        .text();
    assert!(
        ospf.contains("Router ID 1.1.1.1") && ospf.contains("Area 0.0.0.0"),
        "{ospf}"
    );
    println!(
        "memory: {}",
        client.shell("free -m | sed -n 2p").text().trim()
    );

    // A daemon that dies comes back with its configuration.
    client.shell("kill -9 $(cat /run/frr/ospfd.pid)");
    let ToHost::Warning { message } = client.control() else {
        panic!("no warning")
    };
    assert!(
        message.starts_with(
            "the routing daemon ospfd was ended by signal 9; it is started again in 1 s"
        ),
        "{message}"
    );
    let deadline = Instant::now() + Duration::from_secs(20);
    while !client
        .run(&["vtysh", "-c", "show ip ospf interface eth0"])
        .text()
        .contains("Router ID 1.1.1.1")
    {
        assert!(Instant::now() < deadline, "ospfd has not come back");
        std::thread::sleep(Duration::from_millis(100));
    }
    client.send(&ToAgent::Shutdown { reboot: true });
    assert_eq!(client.control(), ToHost::Ending { reboot: true });
    machine.wait(Duration::from_secs(20));
}

fn what_cannot_be_configured() {
    let fails = |node: NodeDescription, expected: &str| {
        let (_machine, mut client) = boot(&MACS[..1]);
        client.send(&ToAgent::Configure(Box::new(node)));
        let message = loop {
            match client.control() {
                ToHost::Configured => {}
                ToHost::Failed { message } => break message,
                other => panic!("instead of a failure: {other:?}"),
            }
        };
        assert!(message.contains(expected), "{message}");
        // The node can be looked at.
        assert_eq!(client.run(&["true"]).status, ExitStatus::Code(0));
    };
    let node = || NodeDescription {
        hostname: "r1".into(),
        interfaces: vec![interface("eth0", MACS[0], &["10.0.1.1/24"])],
        ..NodeDescription::default()
    };
    fails(
        NodeDescription {
            routes: vec![RouteDescription {
                to: "10.9.0.0/16".into(),
                via: Some("192.0.2.1".into()),
                dev: None,
                metric: None,
            }],
            ..node()
        },
        "`ip route add 10.9.0.0/16 via 192.0.2.1` failed: Error: Nexthop has invalid gateway.",
    );
    fails(
        NodeDescription {
            sysctls: vec![("net.ipv4.no_such".into(), "1".into())],
            ..node()
        },
        "the kernel setting net.ipv4.no_such does not exist",
    );
    fails(
        NodeDescription {
            sysctls: vec![("net.ipv4.ip_forward".into(), "x".into())],
            ..node()
        },
        "the kernel setting net.ipv4.ip_forward cannot be set to \"x\": Invalid argument",
    );
    fails(
        NodeDescription {
            interfaces: vec![interface("eth1", "02:00:00:00:00:99", &[])],
            ..node()
        },
        "there is no NIC with the address 02:00:00:00:00:99 for interface eth1; the NICs here: 02:00:00:00:00:01 (eth0)",
    );
    fails(
        NodeDescription {
            frr: Some(FrrDescription {
                daemons: vec!["ospfd".into()],
                config: "router ospf\n nonsense here\n".into(),
            }),
            ..node()
        },
        "nonsense here",
    );
    fails(
        NodeDescription {
            ready: Some(ReadyDescription {
                exec: "echo not yet; false".into(),
                timeout_ms: 300,
            }),
            ..node()
        },
        "not ready after 0.3 s: `echo not yet; false` still fails; the end of /var/log/ready.log in the node:\n  not yet",
    );
}
