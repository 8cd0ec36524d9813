//! Each kind of bad input, and exactly what a person reads about it.
//!
//! After a wanted change of a message: `UPDATE_EXPECT=1 cargo test -p topology`.
#![allow(clippy::needless_raw_string_hashes, reason = "expect-test writes them")]

use std::path::Path;

use expect_test::{Expect, expect};
use topology::Severity;
use topology::model::Topology;

/// All that is said about a text, errors or warnings.
fn said(text: &str) -> String {
    match Topology::parse(text, Path::new("lab.json")) {
        Ok(loaded) => loaded.warnings.render(false),
        Err(report) => report.render(false),
    }
}

#[allow(clippy::needless_pass_by_value, reason = "reads better at the call")]
fn check(text: &str, expected: Expect) {
    expected.assert_eq(&said(text));
}

/// Two hosts with their link, and what a test adds to the first, to its interface and to the link.
fn two(node: &str, interface: &str, link: &str) -> String {
    format!(
        r#"{{ "nodes": {{
"a": {{ "kind": "host"{node},
  "interfaces": {{ "eth0": {{ "addresses": ["10.0.0.1/24"]{interface} }} }} }},
"b": {{ "kind": "host", "interfaces": {{ "eth0": {{ "addresses": ["10.0.0.2/24"] }} }} }} }},
"links": [ {{ "endpoints": ["a:eth0", "b:eth0"]{link} }} ] }}"#
    )
}

#[allow(clippy::needless_pass_by_value, reason = "reads better at the call")]
fn check_node(node: &str, expected: Expect) {
    expected.assert_eq(&said(&two(&format!(",\n{node}"), "", "")));
}

#[allow(clippy::needless_pass_by_value, reason = "reads better at the call")]
fn check_interface(interface: &str, expected: Expect) {
    expected.assert_eq(&said(&two("", &format!(",\n{interface}"), "")));
}

#[allow(clippy::needless_pass_by_value, reason = "reads better at the call")]
fn check_link(link: &str, expected: Expect) {
    expected.assert_eq(&said(&two("", "", &format!(",\n{link}"))));
}

#[test]
fn what_the_tests_start_from_is_right() {
    check(&two("", "", ""), expect![[""]]);
    check(
        r#"{"nodes": {"a": {"kind": "host"}, "b": {"kind": "host"}}, "links": [{"endpoints": ["a:eth0", "b:eth0"]}]}"#,
        expect![[""]],
    );
}

#[test]
fn syntax() {
    check(
        "",
        expect![[r#"
        error: the file is empty
         --> lab.json:1:1
          |
        1 |
          | ^
          |
          = help: the least there is: {"nodes": {"a": {"kind": "host"}}}
    "#]],
    );
    check(
        "{\n  \"nodes\": {\n    \"a\": {\"kind\": \"host\"},\n  }\n}",
        expect![[r#"
            error: not valid JSON: trailing commas are not allowed
             --> lab.json:3:26
              |
            3 |     "a": {"kind": "host"},
              |                          ^
              |
              = help: remove the comma
        "#]],
    );
    check(
        "{ \"nodes\": {} ",
        expect![[r#"
            error: not valid JSON: unterminated object
             --> lab.json:1:1
              |
            1 | { "nodes": {} 
              | ^^^^^^^^^^^^^^
              |
              = help: it starts here, and its `}` is missing
        "#]],
    );
    check(
        "{ \"nodes\" {} }",
        expect![[r#"
        error: not valid JSON: expected colon after the string or word in object property
         --> lab.json:1:11
          |
        1 | { "nodes" {} }
          |           ^
    "#]],
    );
    check(
        "{ \"nodes\": {} } // two",
        expect![[r#"
            error: not valid JSON: comments are not allowed
             --> lab.json:1:17
              |
            1 | { "nodes": {} } // two
              |                 ^^^^^^
              |
              = help: remove the comment; `description` is for people
        "#]],
    );
    check(
        "{ nodes: {} }",
        expect![[r#"
            error: not valid JSON: expected string for object property
             --> lab.json:1:3
              |
            1 | { nodes: {} }
              |   ^^^^^
              |
              = help: write the name in double quotes
        "#]],
    );
    check(
        "[]",
        expect![[r#"
        error: found an array, expected an object
         --> lab.json:1:1
          |
        1 | []
          | ^
    "#]],
    );
    check(
        "{\"nodes\": [1, 2]}",
        expect![[r#"
        error: found an array, expected an object
         --> lab.json:1:2
          |
        1 | {"nodes": [1, 2]}
          |  ^^^^^^^
    "#]],
    );
    check(
        &"[".repeat(100_000),
        expect![[r#"
        error: not valid JSON: maximum nesting depth exceeded
         --> lab.json:1:513
          |
        1 | ...[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[...
          |                                                                    ^^
    "#]],
    );
}

#[test]
fn shape() {
    check(
        "{}",
        expect![[r#"
        error: `nodes` is missing
         --> lab.json:1:1
          |
        1 | {}
          | ^
    "#]],
    );
    check(
        "{\"nodes\": {}}",
        expect![[r#"
        error: the lab has no nodes
         --> lab.json:1:2
          |
        1 | {"nodes": {}}
          |  ^^^^^^^
          |
          = help: the least there is: {"a": {"kind": "host"}}
    "#]],
    );
    check(
        "{\"nodes\": {\"a\": {}}}",
        expect![[r#"
            error: `kind` is missing
             --> lab.json:1:12
              |
            1 | {"nodes": {"a": {}}}
              |            ^^^
              |
              = help: one of: host, router, switch, hub, external
        "#]],
    );
    check(
        "{\"nodes\": {\"a\": \"host\"}}",
        expect![[r#"
            error: found a string, expected an object
             --> lab.json:1:17
              |
            1 | {"nodes": {"a": "host"}}
              |                 ^^^^^^
              |
              = help: write {"kind": "host"}
        "#]],
    );
    check(
        "{\"nodes\": {\"a\": {\"kind\": \"rooter\"}}}",
        expect![[r#"
            error: unknown value `rooter`
             --> lab.json:1:26
              |
            1 | {"nodes": {"a": {"kind": "rooter"}}}
              |                          ^^^^^^^^
              |
              = help: did you mean `router`?
        "#]],
    );
    check(
        "{\"nodes\": {\"a\": {\"kind\": \"firewall\"}}}",
        expect![[r#"
            error: unknown value `firewall`
             --> lab.json:1:26
              |
            1 | {"nodes": {"a": {"kind": "firewall"}}}
              |                          ^^^^^^^^^^
              |
              = help: values: host, router, switch, hub, external
        "#]],
    );
    check(
        "{\"nodes\": {\"sw\": {\"kind\": \"switch\", \"memory\": \"64MiB\"}}}",
        expect![[r#"
            error: unknown field `memory` of kind `switch`
             --> lab.json:1:37
              |
            1 | {"nodes": {"sw": {"kind": "switch", "memory": "64MiB"}}}
              |                                     ^^^^^^^^
              |
              = help: fields: ageing, table-limit, reserved, storm, ports
        "#]],
    );
    check(
        "{\"nodes\": {\"h\": {\"kind\": \"hub\", \"ageing\": \"1s\"}}}",
        expect![[r#"
            error: unknown field `ageing` of kind `hub`
             --> lab.json:1:33
              |
            1 | {"nodes": {"h": {"kind": "hub", "ageing": "1s"}}}
              |                                 ^^^^^^^^
              |
              = help: there are no fields here
        "#]],
    );
    check_node(
        "\"memroy\": \"128MiB\"",
        expect![[r#"
        error: unknown field `memroy` of kind `host`
         --> lab.json:3:1
          |
        3 | "memroy": "128MiB",
          | ^^^^^^^^
          |
          = help: did you mean `memory`?
    "#]],
    );
    check_node(
        "\"colour\": \"red\"",
        expect![[r#"
            error: unknown field `colour` of kind `host`
             --> lab.json:3:1
              |
            3 | "colour": "red",
              | ^^^^^^^^
              |
              = help: fields: memory, vcpus, engine, zone, kernel, rootfs, interfaces, routes, sysctls, files, commands, routing, ready, after, on, labels, save, cpu, host-memory
        "#]],
    );
    check_node(
        "\"vcpus\": \"two\"",
        expect![[r#"
        error: found the string "two", expected a whole number, 0 or greater
         --> lab.json:3:10
          |
        3 | "vcpus": "two",
          |          ^^^^^
    "#]],
    );
    check_node(
        "\"vcpus\": null",
        expect![[r#"
        error: found `null`, expected a whole number, 0 or greater
         --> lab.json:3:10
          |
        3 | "vcpus": null,
          |          ^^^^
    "#]],
    );
    check_node(
        "\"commands\": \"iperf3 -s\"",
        expect![[r#"
        error: found the string "iperf3 -s", expected an array
         --> lab.json:3:13
          |
        3 | "commands": "iperf3 -s",
          |             ^^^^^^^^^^^
    "#]],
    );
    check_node(
        "\"vcpus\": 1, \"vcpus\": 2",
        expect![[r#"
        error: `vcpus` occurs twice in the same object
         --> lab.json:3:13
          |
        3 | "vcpus": 1, "vcpus": 2,
          |             ^^^^^^^
          |
          = help: rename or remove one of them
    "#]],
    );
    check_link(
        "\"endpoints\": [\"a:eth0\"]",
        expect![[r#"
        error: `endpoints` occurs twice in the same object
         --> lab.json:6:1
          |
        6 | "endpoints": ["a:eth0"] } ] }
          | ^^^^^^^^^^^
          |
          = help: rename or remove one of them
    "#]],
    );
    check(
        "{\"nodes\": {\"a\": {\"kind\": \"host\"}}, \"links\": [{\"endpoints\": [\"a:eth0\"]}]}",
        expect![[r#"
            error: found 1 element, expected 2
             --> lab.json:1:47
              |
            1 | {"nodes": {"a": {"kind": "host"}}, "links": [{"endpoints": ["a:eth0"]}]}
              |                                               ^^^^^^^^^^^
        "#]],
    );
    check(
        "{\"nodes\": {\"a\": {\"kind\": \"host\"}}, \"links\": [{\"rate\": \"1Mbit\"}]}",
        expect![[r#"
            error: `endpoints` is missing
             --> lab.json:1:46
              |
            1 | {"nodes": {"a": {"kind": "host"}}, "links": [{"rate": "1Mbit"}]}
              |                                              ^
        "#]],
    );
    check_link(
        "\"completion\": \"wire\"",
        expect![[r#"
        error: unknown value `wire`
         --> lab.json:6:15
          |
        6 | "completion": "wire" } ] }
          |               ^^^^^^
          |
          = help: values: network, nic
    "#]],
    );
}

#[test]
fn quantities() {
    check_link(
        "\"rate\": 100",
        expect![[r#"
        error: a rate needs a unit, and `100` has none
         --> lab.json:6:9
          |
        6 | "rate": 100 } ] }
          |         ^^^
          |
          = help: write "100kbit", "100Mbit" or "100Gbit"
    "#]],
    );
    check_link(
        "\"rate\": \"100\"",
        expect![[r#"
        error: a rate needs a unit, and `100` has none
         --> lab.json:6:9
          |
        6 | "rate": "100" } ] }
          |         ^^^^^
          |
          = help: write "100kbit", "100Mbit" or "100Gbit"
    "#]],
    );
    check_link(
        "\"rate\": \"100Mbps\"",
        expect![[r#"
        error: `Mbps` is not a unit of rate
         --> lab.json:6:9
          |
        6 | "rate": "100Mbps" } ] }
          |         ^^^^^^^^^
          |
          = help: did you mean "100Mbit"? units of rate: bit, kbit, Mbit, Gbit, Tbit
    "#]],
    );
    check_link(
        "\"rate\": \"10MB/s\"",
        expect![[r#"
        error: `MB/s` is not a unit of rate
         --> lab.json:6:9
          |
        6 | "rate": "10MB/s" } ] }
          |         ^^^^^^^^
          |
          = help: units of rate: bit, kbit, Mbit, Gbit, Tbit
    "#]],
    );
    check_link(
        "\"rate\": \"0bit\"",
        expect![[r#"
        error: `rate` is 0bit, out of range
         --> lab.json:6:9
          |
        6 | "rate": "0bit" } ] }
          |         ^^^^^^
          |
          = help: it must be from 100bit to 1Tbit
    "#]],
    );
    check_link(
        "\"rate\": \"0.0001kbit\"",
        expect![[r#"
        error: `0.0001kbit` is not a whole number of bit/s
         --> lab.json:6:9
          |
        6 | "rate": "0.0001kbit" } ] }
          |         ^^^^^^^^^^^^
          |
          = help: write it with fewer decimals
    "#]],
    );
    check_link(
        "\"rate\": \"fast\"",
        expect![[r#"
        error: `fast` is not a rate
         --> lab.json:6:9
          |
        6 | "rate": "fast" } ] }
          |         ^^^^^^
          |
          = help: write a decimal number and a unit, as in "10kbit"
    "#]],
    );
    check_link(
        "\"delay\": 10",
        expect![[r#"
        error: a time needs a unit, and `10` has none
         --> lab.json:6:10
          |
        6 | "delay": 10 } ] }
          |          ^^
          |
          = help: write "10us", "10ms" or "10s"
    "#]],
    );
    check_link(
        "\"delay\": \"-1ms\"",
        expect![[r#"
        error: a time cannot be negative
         --> lab.json:6:10
          |
        6 | "delay": "-1ms" } ] }
          |          ^^^^^^
          |
          = help: write a decimal number and a unit, as in "10us"
    "#]],
    );
    check_link(
        "\"delay\": \"2000min\"",
        expect![[r#"
        error: `delay` is 120000s, out of range
         --> lab.json:6:10
          |
        6 | "delay": "2000min" } ] }
          |          ^^^^^^^^^
          |
          = help: it must be from 0ns to 3600s
    "#]],
    );
    check_link(
        "\"loss\": 0.1",
        expect![[r#"
        error: a probability needs a unit, and `0.1` has none
         --> lab.json:6:9
          |
        6 | "loss": 0.1 } ] }
          |         ^^^
          |
          = help: write "0.1%"
    "#]],
    );
    check_link(
        "\"loss\": \"101%\"",
        expect![[r#"
        error: `101%` is out of range
         --> lab.json:6:9
          |
        6 | "loss": "101%" } ] }
          |         ^^^^^^
          |
          = help: a probability is "0%" to "100%"
    "#]],
    );
    check_link(
        "\"overhead\": \"2KiB\"",
        expect![[r#"
        error: `overhead` is 2KiB, out of range
         --> lab.json:6:13
          |
        6 | "overhead": "2KiB" } ] }
          |             ^^^^^^
          |
          = help: it must be from 0B to 1KiB
    "#]],
    );
    check_link(
        "\"queue\": {\"limit\": 50}",
        expect![[r#"
        error: a queue limit needs a unit, and `50` has none
         --> lab.json:6:20
          |
        6 | "queue": {"limit": 50} } ] }
          |                    ^^
          |
          = help: write "50packets" or "50KiB"
    "#]],
    );
    check_link(
        "\"queue\": {\"limit\": \"0packets\"}",
        expect![[r#"
        error: `limit` is 0packets, out of range
         --> lab.json:6:20
          |
        6 | "queue": {"limit": "0packets"} } ] }
          |                    ^^^^^^^^^^
          |
          = help: it must be from 1packet to 1000000packets
    "#]],
    );
    check_link(
        "\"queue\": {\"limit\": \"2GiB\"}",
        expect![[r#"
        error: `limit` is 2GiB, out of range
         --> lab.json:6:20
          |
        6 | "queue": {"limit": "2GiB"} } ] }
          |                    ^^^^^^
          |
          = help: it must be from 64B to 1GiB
    "#]],
    );
    check_node(
        "\"memory\": \"128M\"",
        expect![[r#"
        error: `M` is not a unit of size
         --> lab.json:3:11
          |
        3 | "memory": "128M",
          |           ^^^^^^
          |
          = help: units of size: B, kB, KiB, MB, MiB, GB, GiB
    "#]],
    );
    check_node(
        "\"memory\": \"33MiB\"",
        expect![[r#"
        error: `memory` is 33MiB, not a multiple of 2MiB
         --> lab.json:3:11
          |
        3 | "memory": "33MiB",
          |           ^^^^^^^
          |
          = help: write "34MiB"
    "#]],
    );
    check_node(
        "\"memory\": \"16MiB\"",
        expect![[r#"
        error: `memory` is 16MiB, out of range
         --> lab.json:3:11
          |
        3 | "memory": "16MiB",
          |           ^^^^^^^
          |
          = help: it must be from 32MiB to 1024GiB
    "#]],
    );
    check_node(
        "\"vcpus\": 33",
        expect![[r#"
        error: `vcpus` is 33, out of range
         --> lab.json:3:10
          |
        3 | "vcpus": 33,
          |          ^^
          |
          = help: it must be from 1 to 32
    "#]],
    );
}

#[test]
fn names() {
    check(
        "{\"name\": \"My Lab\", \"nodes\": {\"a\": {\"kind\": \"host\"}}}",
        expect![[r#"
            error: `My Lab` cannot be the name of a lab
             --> lab.json:1:10
              |
            1 | {"name": "My Lab", "nodes": {"a": {"kind": "host"}}}
              |          ^^^^^^^^
              |
              = help: a lab's name has 1 to 32 characters of `a-z`, `0-9` and `-`, the first not a `-`
        "#]],
    );
    check(
        "{\"nodes\": {\"a_b\": {\"kind\": \"host\"}}}",
        expect![[r#"
            error: `a_b` cannot be the name of a node
             --> lab.json:1:12
              |
            1 | {"nodes": {"a_b": {"kind": "host"}}}
              |            ^^^^^
              |
              = help: a node's name is a host name: 1 to 32 letters, digits and `-`, the first and last not a `-`
        "#]],
    );
    check(
        "{\"nodes\": {\"a2345678901234567890123456789012x\": {\"kind\": \"host\"}}}",
        expect![[r#"
            error: `a2345678901234567890123456789012x` cannot be the name of a node
             --> lab.json:1:12
              |
            1 | {"nodes": {"a2345678901234567890123456789012x": {"kind": "host"}}}
              |            ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
              |
              = help: a node's name is a host name: 1 to 32 letters, digits and `-`, the first and last not a `-`
        "#]],
    );
    check(
        "{\"nodes\": {\"pc\": {\"kind\": \"host\"}, \"PC\": {\"kind\": \"host\"}}}",
        expect![[r#"
            error: `PC` and `pc` are the same host name
             --> lab.json:1:36
              |
            1 | {"nodes": {"pc": {"kind": "host"}, "PC": {"kind": "host"}}}
              |                                    ^^^^
              |
              = help: names must differ in more than upper and lower case
        "#]],
    );
    check(
        "{\"nodes\": {\"a\": {\"kind\": \"host\"}, \"a\": {\"kind\": \"host\"}}}",
        expect![[r#"
            error: `a` occurs twice in the same object
             --> lab.json:1:35
              |
            1 | {"nodes": {"a": {"kind": "host"}, "a": {"kind": "host"}}}
              |                                   ^^^
              |
              = help: rename or remove one of them
        "#]],
    );
    check(
        "{\"nodes\": {\"a\": {\"kind\": \"host\", \"interfaces\": {\"lo\": {}, \"eth0/1\": {}, \"sixteencharacter\": {}}}}}",
        expect![[r#"
            error: `lo` is reserved by the kernel
             --> lab.json:1:49
              |
            1 | {"nodes": {"a": {"kind": "host", "interfaces": {"lo": {}, "eth0/1": {}, "sixteencharacter": {}}}}}
              |                                                 ^^^^
              |
              = help: name the interface for example `eth0`

            error: `eth0/1` cannot be the name of an interface
             --> lab.json:1:59
              |
            1 | {"nodes": {"a": {"kind": "host", "interfaces": {"lo": {}, "eth0/1": {}, "sixteencharacter": {}}}}}
              |                                                           ^^^^^^^^
              |
              = help: 1 to 15 letters, digits, `-` and `_`

            error: `sixteencharacter` cannot be the name of an interface
             --> lab.json:1:73
              |
            1 | {"nodes": {"a": {"kind": "host", "interfaces": {"lo": {}, "eth0/1": {}, "sixteencharacter": {}}}}}
              |                                                                         ^^^^^^^^^^^^^^^^^^
              |
              = help: 1 to 15 letters, digits, `-` and `_`
        "#]],
    );
    check_link(
        "\"name\": \"a b\"",
        expect![[r#"
        error: `a b` cannot be the name of a link
         --> lab.json:6:9
          |
        6 | "name": "a b" } ] }
          |         ^^^^^
          |
          = help: 1 to 64 letters, digits, `-`, `_`, `.` and `:`, the first not a `-`
    "#]],
    );
    let report = Topology::parse(
        "{\"nodes\": {\"a\": {\"kind\": \"host\"}}}",
        Path::new("My Lab.json"),
    );
    expect![[r#"
        error: the lab has no name of its own, and its file's, `My Lab`, cannot be one
         --> My Lab.json:1:1
          |
        1 | {"nodes": {"a": {"kind": "host"}}}
          | ^
          |
          = help: add "name": …; a lab's name has 1 to 32 characters of `a-z`, `0-9` and `-`, the first not a `-`
    "#]].assert_eq(&report.unwrap_err().render(false));
}

#[test]
fn addresses() {
    check_interface(
        "\"mac\": \"01:00:5e:00:00:01\"",
        expect![[r#"
        error: `01:00:5e:00:00:01` is a multicast address: the lowest bit of its first byte is set
         --> lab.json:4:8
          |
        4 | "mac": "01:00:5e:00:00:01" } } },
          |        ^^^^^^^^^^^^^^^^^^^
          |
          = help: write six pairs of hexadecimal digits, as in "02:00:00:00:00:01"
    "#]],
    );
    check_interface(
        "\"mac\": \"02:00:00:00:01\"",
        expect![[r#"
        error: `02:00:00:00:01` is not a MAC address
         --> lab.json:4:8
          |
        4 | "mac": "02:00:00:00:01" } } },
          |        ^^^^^^^^^^^^^^^^
          |
          = help: write six pairs of hexadecimal digits, as in "02:00:00:00:00:01"
    "#]],
    );
    check(
        r#"{ "nodes": {
"a": { "kind": "host", "interfaces": { "eth0": { "mac": "02:00:00:00:00:01" } } },
"b": { "kind": "host", "interfaces": { "eth0": { "mac": "02:00:00:00:00:01" } } } },
"links": [ { "endpoints": ["a:eth0", "b:eth0"] } ] }"#,
        expect![[r#"
            error: `02:00:00:00:00:01` is the MAC address of a:eth0 already
             --> lab.json:3:57
              |
            3 | "b": { "kind": "host", "interfaces": { "eth0": { "mac": "02:00:00:00:00:01" } } } },
              |                                                         ^^^^^^^^^^^^^^^^^^^
              |
              = help: leave `mac` out: each interface gets one of its own
        "#]],
    );
    for (address, expected) in [
        (
            "10.0.0.9",
            expect![[r#"
            error: `10.0.0.9` has no prefix length
             --> lab.json:4:1
              |
            4 | "10.0.0.9"] } } },
              | ^^^^^^^^^^
              |
              = help: write for example "10.0.0.9/24"
        "#]],
        ),
        (
            "10.0.0.9/33",
            expect![[r#"
            error: `33` is not a prefix length
             --> lab.json:4:1
              |
            4 | "10.0.0.9/33"] } } },
              | ^^^^^^^^^^^^^
              |
              = help: it is 0 to 32, as in "10.0.0.9/24"
        "#]],
        ),
        (
            "10.0.0.300/24",
            expect![[r#"
            error: `10.0.0.300/24` is not an IP address with a prefix length
             --> lab.json:4:1
              |
            4 | "10.0.0.300/24"] } } },
              | ^^^^^^^^^^^^^^^
              |
              = help: write it as in "10.0.0.1/24" or "2001:db8::1/64"
        "#]],
        ),
        (
            "10.1.0.0/24",
            expect![[r#"
            error: `10.1.0.0/24` is the address of the network itself
             --> lab.json:4:1
              |
            4 | "10.1.0.0/24"] } } },
              | ^^^^^^^^^^^^^
              |
              = help: give the interface an address of its own
        "#]],
        ),
        (
            "10.1.0.255/24",
            expect![[r#"
            error: `10.1.0.255/24` is the broadcast address of its network
             --> lab.json:4:1
              |
            4 | "10.1.0.255/24"] } } },
              | ^^^^^^^^^^^^^^^
              |
              = help: give the interface an address of its own
        "#]],
        ),
        (
            "224.0.0.5/24",
            expect![[r#"
            error: `224.0.0.5/24` is a multicast address
             --> lab.json:4:1
              |
            4 | "224.0.0.5/24"] } } },
              | ^^^^^^^^^^^^^^
              |
              = help: give the interface an address of its own
        "#]],
        ),
        (
            "127.0.0.2/8",
            expect![[r#"
            error: `127.0.0.2/8` is a loopback address
             --> lab.json:4:1
              |
            4 | "127.0.0.2/8"] } } },
              | ^^^^^^^^^^^^^
              |
              = help: give the interface an address of its own
        "#]],
        ),
        (
            "0.0.0.0/0",
            expect![[r#"
            error: `0.0.0.0/0` is the unspecified address
             --> lab.json:4:1
              |
            4 | "0.0.0.0/0"] } } },
              | ^^^^^^^^^^^
              |
              = help: give the interface an address of its own
        "#]],
        ),
        (
            "2001:db8::/64",
            expect![[r#"
            error: `2001:db8::/64` is the address of all routers of its network (RFC 4291 §2.6.1)
             --> lab.json:4:1
              |
            4 | "2001:db8::/64"] } } },
              | ^^^^^^^^^^^^^^^
              |
              = help: give the interface an address of its own
        "#]],
        ),
        (
            "ff02::1/64",
            expect![[r#"
            error: `ff02::1/64` is a multicast address
             --> lab.json:4:1
              |
            4 | "ff02::1/64"] } } },
              | ^^^^^^^^^^^^
              |
              = help: give the interface an address of its own
        "#]],
        ),
        (
            "10.0.0.1/24",
            expect![[r#"
            error: `10.0.0.1` is the address of a:eth0 already
             --> lab.json:4:1
              |
            4 | "10.0.0.1/24"] } } },
              | ^^^^^^^^^^^^^
              |
              = help: remove one of them
        "#]],
        ),
        (
            "10.0.0.2/24",
            expect![[r#"
            error: `10.0.0.2` is the address of a:eth0 already, on the same link or switch
             --> lab.json:5:64
              |
            5 | "b": { "kind": "host", "interfaces": { "eth0": { "addresses": ["10.0.0.2/24"] } } } },
              |                                                                ^^^^^^^^^^^^^
              |
              = help: give each interface an address of its own
        "#]],
        ),
        // The last address of a /31 and a /32 are addresses like any other.
        ("10.0.0.8/31", expect![[""]]),
        ("10.0.0.7/32", expect![[""]]),
    ] {
        let text = two("", "", "").replace(
            "[\"10.0.0.1/24\"]",
            &format!("[\"10.0.0.1/24\",\n\"{address}\"]"),
        );
        expected.assert_eq(&said(&text));
    }
    check_interface(
        "\"mtu\": 67",
        expect![[r#"
        error: `mtu` is 67, out of range
         --> lab.json:4:8
          |
        4 | "mtu": 67 } } },
          |        ^^
          |
          = help: it must be from 68 to 65535
    "#]],
    );
    check_interface(
        "\"queue-size\": 1000",
        expect![[r#"
        error: `queue-size` is 1000, not a power of two
         --> lab.json:4:15
          |
        4 | "queue-size": 1000 } } },
          |               ^^^^
          |
          = help: write 1024
    "#]],
    );
    let text = two("", ", \"mtu\": 1000", "").replace("10.0.0.1/24", "2001:db8::1/64");
    check(
        &text,
        expect![[r#"
        error: IPv6 does not work with an MTU of 1000
         --> lab.json:3:69
          |
        3 |   "interfaces": { "eth0": { "addresses": ["2001:db8::1/64"], "mtu": 1000 } } },
          |                                                                     ^^^^
          |
          = help: take at least 1280, or remove the IPv6 addresses
    "#]],
    );
}

#[test]
fn limits() {
    for (written, message) in [
        (
            "\"cpu\": {\"limit\": \"0.5%\"}",
            expect![[r#"
                error: `limit` is out of range
                 --> lab.json:2:18
                  |
                2 | "cpu": {"limit": "0.5%"} } } }
                  |                  ^^^^^^
                  |
                  = help: it must be from 1% to 102400% of a processor
            "#]],
        ),
        (
            "\"cpu\": {\"limit\": 1025}",
            expect![[r#"
            error: `limit` is out of range
             --> lab.json:2:18
              |
            2 | "cpu": {"limit": 1025} } } }
              |                  ^^^^
              |
              = help: it must be from 1% to 102400% of a processor
        "#]],
        ),
        (
            "\"cpu\": {\"limit\": \"half\"}",
            expect![[r#"
            error: `limit` is no amount of processor time
             --> lab.json:2:18
              |
            2 | "cpu": {"limit": "half"} } } }
              |                  ^^^^^^
              |
              = help: write processors as in 2 or "1.5", or percent of one as in "50%"
        "#]],
        ),
        (
            "\"cpu\": {\"weight\": 0}",
            expect![[r#"
            error: `weight` is 0, out of range
             --> lab.json:2:19
              |
            2 | "cpu": {"weight": 0} } } }
              |                   ^
              |
              = help: it must be from 1 to 10000
        "#]],
        ),
        (
            "\"cpu\": {\"pin\": []}",
            expect![[r#"
            error: `pin` names no processor
             --> lab.json:2:9
              |
            2 | "cpu": {"pin": []} } } }
              |         ^^^^^
              |
              = help: name at least one, as in [0], or leave it out
        "#]],
        ),
        (
            "\"cpu\": {\"pin\": [0, 1024]}",
            expect![[r#"
            error: `it` is 1024, out of range
             --> lab.json:2:20
              |
            2 | "cpu": {"pin": [0, 1024]} } } }
              |                    ^^^^
              |
              = help: it must be from 0 to 1023
        "#]],
        ),
        (
            "\"cpu\": {\"cores\": 2}",
            expect![[r#"
            error: unknown field `cores`
             --> lab.json:2:9
              |
            2 | "cpu": {"cores": 2} } } }
              |         ^^^^^^^
              |
              = help: fields: limit, weight, pin
        "#]],
        ),
        (
            "\"host-memory\": \"1MiB\"",
            expect![[r#"
            error: `host-memory` is 1MiB, out of range
             --> lab.json:2:16
              |
            2 | "host-memory": "1MiB" } } }
              |                ^^^^^^
              |
              = help: it must be from 4MiB to 1024GiB
        "#]],
        ),
    ] {
        let text = format!("{{ \"nodes\": {{ \"a\": {{ \"kind\": \"host\",\n{written} }} }} }}");
        check(&text, message);
    }
}

#[test]
fn addresses_on_one_switch() {
    let text = r#"{ "nodes": {
"a": { "kind": "host", "interfaces": { "eth0": { "addresses": ["10.0.0.1/24"] } } },
"b": { "kind": "host", "interfaces": { "eth0": { "addresses": ["10.0.0.1/24"] } } },
"sw": { "kind": "switch" }, "hub": { "kind": "hub" } },
"links": [ { "endpoints": ["a:eth0", "sw"] }, { "endpoints": ["sw", "hub"] }, { "endpoints": ["hub", "b:eth0"] } ] }"#;
    check(
        text,
        expect![[r#"
        error: `10.0.0.1` is the address of a:eth0 already, on the same link or switch
         --> lab.json:3:64
          |
        3 | "b": { "kind": "host", "interfaces": { "eth0": { "addresses": ["10.0.0.1/24"] } } },
          |                                                                ^^^^^^^^^^^^^
          |
          = help: give each interface an address of its own
    "#]],
    );
    // Two links that do not meet may use the same addresses.
    let apart = text.replace(", { \"endpoints\": [\"sw\", \"hub\"] }", "");
    check(&apart, expect![[""]]);
}

#[test]
fn links() {
    let link = |link: &str| two("", "", &format!(" }},\n{{ {link}"));
    check(
        &link("\"endpoints\": [\"a:eth0\", \"b:eth0\"]"),
        expect![[r#"
            error: `a:eth0` has a link already: links[0]
             --> lab.json:6:17
              |
            6 | { "endpoints": ["a:eth0", "b:eth0"] } ] }
              |                 ^^^^^^^^
              |
              = help: an interface has one link; add an interface, or put a switch between

            error: `b:eth0` has a link already: links[0]
             --> lab.json:6:27
              |
            6 | { "endpoints": ["a:eth0", "b:eth0"] } ] }
              |                           ^^^^^^^^
              |
              = help: an interface has one link; add an interface, or put a switch between
        "#]],
    );
    check(
        &link("\"endpoints\": [\"a:eth1\", \"c:eth0\"]"),
        expect![[r#"
            error: `a` has no interface `eth1`
             --> lab.json:6:17
              |
            6 | { "endpoints": ["a:eth1", "c:eth0"] } ] }
              |                 ^^^^^^^^
              |
              = help: did you mean "a:eth0"?

            error: there is no node `c`
             --> lab.json:6:27
              |
            6 | { "endpoints": ["a:eth1", "c:eth0"] } ] }
              |                           ^^^^^^^^
              |
              = help: there are: a, b
        "#]],
    );
    check(
        &link("\"endpoints\": [\"a\", \"bb:eth0\"]"),
        expect![[r#"
        error: `a` is a machine: the link must name one of its interfaces
         --> lab.json:6:17
          |
        6 | { "endpoints": ["a", "bb:eth0"] } ] }
          |                 ^^^
          |
          = help: write for example "a:eth0"

        error: there is no node `bb`
         --> lab.json:6:22
          |
        6 | { "endpoints": ["a", "bb:eth0"] } ] }
          |                      ^^^^^^^^^
          |
          = help: did you mean "b:eth0"?
    "#]],
    );
    check(
        &link("\"endpoints\": [\"a:eth0\", \"a:eth0\"]"),
        expect![[r#"
            error: the link joins `a:eth0` to itself
             --> lab.json:6:27
              |
            6 | { "endpoints": ["a:eth0", "a:eth0"] } ] }
              |                           ^^^^^^^^
              |
              = help: the two ends must differ
        "#]],
    );
    check(
        "{\"nodes\": {\"sw\": {\"kind\": \"switch\"}}, \"links\": [\n{\"endpoints\": [\"sw\", \"sw:1\"]}]}",
        expect![[r#"
            error: `sw` is a switch or hub: its ports have no names
             --> lab.json:2:22
              |
            2 | {"endpoints": ["sw", "sw:1"]}]}
              |                      ^^^^^^
              |
              = help: write "sw"
        "#]],
    );
    check(
        r#"{ "nodes": { "a": { "kind": "host" }, "s1": { "kind": "switch" }, "s2": { "kind": "switch" } },
"links": [ { "name": "x", "endpoints": ["a:eth0", "s1"] },
{ "name": "x", "endpoints": ["s1", "s2"] } ] }"#,
        expect![[r#"
            error: links[0] is called `x` as well
             --> lab.json:3:11
              |
            3 | { "name": "x", "endpoints": ["s1", "s2"] } ] }
              |           ^^^
              |
              = help: give each link a name of its own, or none
        "#]],
    );
    check(
        r#"{ "nodes": { "a": { "kind": "host" }, "s1": { "kind": "switch" }, "s2": { "kind": "switch" } },
"links": [ { "endpoints": ["a:eth0", "s1"] },
{ "endpoints": ["s1", "s2"] },
{ "endpoints": ["s1", "s2"] } ] }"#,
        expect![[r#"
            warning: the links between s1, s2 form a loop
             --> lab.json:4:3
              |
            4 | { "endpoints": ["s1", "s2"] } ] }
              |   ^^^^^^^^^^^
              |
              = help: a broadcast will circle in it for ever: switches here have no spanning tree
        "#]],
    );
    let links: Vec<String> = (0..29)
        .map(|n| format!("{{\"endpoints\": [\"a:eth{n}\", \"sw\"]}}"))
        .collect();
    check(
        &format!(
            "{{\"nodes\": {{\"a\": {{\"kind\": \"host\"}}, \"sw\": {{\"kind\": \"switch\"}}}},\n\"links\": [{}]}}",
            links.join(",\n")
        ),
        expect![[r#"
            error: `a` has 29 interfaces
             --> lab.json:1:12
              |
            1 | {"nodes": {"a": {"kind": "host"}, "sw": {"kind": "switch"}},
              |            ^^^
              |
              = help: a machine has room for 28
        "#]],
    );
}

#[test]
fn warnings() {
    check(
        &two("", "", "").replace("10.0.0.2/24", "10.0.1.2/24"),
        expect![[r#"
            warning: `10.0.1.2/24` of b:eth0 shares no network with the other end: 10.0.0.1/24 of a:eth0
             --> lab.json:4:64
              |
            4 | "b": { "kind": "host", "interfaces": { "eth0": { "addresses": ["10.0.1.2/24"] } } } },
              |                                                                ^^^^^^^^^^^^^
              |
              = help: interfaces that should reach each other need the same network and prefix length
        "#]],
    );
    check(
        &two("", "", "").replace("10.0.0.2/24", "10.0.0.2/25"),
        expect![[r#"
            warning: `10.0.0.2/25` of b:eth0 shares no network with the other end: 10.0.0.1/24 of a:eth0
             --> lab.json:4:64
              |
            4 | "b": { "kind": "host", "interfaces": { "eth0": { "addresses": ["10.0.0.2/25"] } } } },
              |                                                                ^^^^^^^^^^^^^
              |
              = help: interfaces that should reach each other need the same network and prefix length
        "#]],
    );
    check(
        &two("", "", "").replace("} } },\n\"b\"", "}, \"eth1\": {} } },\n\"b\""),
        expect![[r#"
            warning: no link ends at `a:eth1`
             --> lab.json:3:61
              |
            3 |   "interfaces": { "eth0": { "addresses": ["10.0.0.1/24"] }, "eth1": {} } },
              |                                                             ^^^^^^
              |
              = help: its carrier will be down; remove it, or add a link
        "#]],
    );
    check_interface(
        "\"mtu\": 9000",
        expect![[r#"
        warning: b:eth0 has an MTU of 1500, a:eth0 on the same link or switch one of 9000
         --> lab.json:5:40
          |
        5 | "b": { "kind": "host", "interfaces": { "eth0": { "addresses": ["10.0.0.2/24"] } } } },
          |                                        ^^^^^^
          |
          = help: larger packets will be lost on the way to the smaller one
    "#]],
    );
    check_node(
        "\"routes\": [ { \"to\": \"default\", \"via\": \"10.9.0.1\" } ]",
        expect![[r#"
            warning: `10.9.0.1` is in no network that `a` is in
             --> lab.json:3:39
              |
            3 | "routes": [ { "to": "default", "via": "10.9.0.1" } ],
              |                                       ^^^^^^^^^^
              |
              = help: the next hop must be directly reachable, or the kernel refuses the route
        "#]],
    );
    check_node(
        "\"routes\": [ { \"to\": \"default\", \"via\": \"10.0.0.3\" } ]",
        expect![[r#"
            warning: nobody on the link of a:eth0 has the address `10.0.0.3`
             --> lab.json:3:39
              |
            3 | "routes": [ { "to": "default", "via": "10.0.0.3" } ],
              |                                       ^^^^^^^^^^
              |
              = help: name an address of a neighbouring node
        "#]],
    );
    check_node(
        "\"routes\": [ { \"to\": \"default\", \"via\": \"10.0.0.2\" } ]",
        expect![[""]],
    );
    check(
        r#"{ "nodes": {
"a": { "kind": "host", "interfaces": { "eth0": { "addresses": ["10.0.0.1/24"] } }, "routing": { "ospf": true } },
"b": { "kind": "host", "interfaces": { "eth0": { "addresses": ["10.0.0.2/24"] } }, "routing": { "ospf": { "area": "1" } } } },
"links": [ { "endpoints": ["a:eth0", "b:eth0"] } ] }"#,
        expect![[r#"
            warning: `b` and `a` are on one link, but their OSPF settings differ
             --> lab.json:3:97
              |
            3 | "b": { "kind": "host", "interfaces": { "eth0": { "addresses": ["10.0.0.2/24"] } }, "routing": { "ospf": { "area": "1" } } } },
              |                                                                                                 ^^^^^^
              |
              = help: `area`, `hello` and `dead` must agree, or they do not become neighbours
        "#]],
    );
}

#[test]
fn machines() {
    check_node(
        "\"routes\": [ { \"to\": \"10.0.3.1/24\", \"dev\": \"eth0\" } ]",
        expect![[r#"
            error: `10.0.3.1/24` is an address in a network, not a network
             --> lab.json:3:21
              |
            3 | "routes": [ { "to": "10.0.3.1/24", "dev": "eth0" } ],
              |                     ^^^^^^^^^^^^^
              |
              = help: write "10.0.3.0/24"
        "#]],
    );
    check_node(
        "\"routes\": [ { \"to\": \"10.0.3.0/24\" } ]",
        expect![[r#"
        error: the route leads nowhere
         --> lab.json:3:13
          |
        3 | "routes": [ { "to": "10.0.3.0/24" } ],
          |             ^
          |
          = help: give it `via` (the next hop), `dev` (the interface) or both
    "#]],
    );
    check_node(
        "\"routes\": [ { \"to\": \"10.0.3.0/24\", \"via\": \"fe80::1\" } ]",
        expect![[r#"
            error: destination and next hop are of different IP versions
             --> lab.json:3:43
              |
            3 | "routes": [ { "to": "10.0.3.0/24", "via": "fe80::1" } ],
              |                                           ^^^^^^^^^
              |
              = help: write both as IPv4 or both as IPv6
        "#]],
    );
    check_node(
        "\"routes\": [ { \"to\": \"default\", \"dev\": \"eth1\" } ]",
        expect![[r#"
            error: `a` has no interface `eth1`
             --> lab.json:3:39
              |
            3 | "routes": [ { "to": "default", "dev": "eth1" } ],
              |                                       ^^^^^^
              |
              = help: there are: eth0
        "#]],
    );
    check_node(
        "\"files\": { \"etc/motd\": \"hello\" }",
        expect![[r#"
        error: `etc/motd` is not the absolute path of a file
         --> lab.json:3:12
          |
        3 | "files": { "etc/motd": "hello" },
          |            ^^^^^^^^^^
          |
          = help: write for example "/etc/motd"
    "#]],
    );
    check_node(
        "\"files\": { \"/etc/motd\": {} }",
        expect![[r#"
        error: the file needs exactly one of `content` and `from`
         --> lab.json:3:12
          |
        3 | "files": { "/etc/motd": {} },
          |            ^^^^^^^^^^^
          |
          = help: `content` is its text, `from` the file of the host to copy
    "#]],
    );
    check_node(
        "\"files\": { \"/etc/motd\": { \"from\": \"/not/there\" } }",
        expect![[r#"
            error: cannot read /not/there: No such file or directory (os error 2)
             --> lab.json:3:35
              |
            3 | "files": { "/etc/motd": { "from": "/not/there" } },
              |                                   ^^^^^^^^^^^^
              |
              = help: a UTF-8 text file; its path is relative to the topology file
        "#]],
    );
    check_node(
        "\"files\": { \"/etc/motd\": { \"content\": \"\", \"mode\": \"rw\" } }",
        expect![[r#"
            error: `rw` is not a file mode
             --> lab.json:3:50
              |
            3 | "files": { "/etc/motd": { "content": "", "mode": "rw" } },
              |                                                  ^^^^
              |
              = help: write it in octal, as in "0644"
        "#]],
    );
    check_node(
        "\"sysctls\": { \"ip_forward\": 1 }",
        expect![[r#"
        error: `ip_forward` is not the name of a kernel setting
         --> lab.json:3:14
          |
        3 | "sysctls": { "ip_forward": 1 },
          |              ^^^^^^^^^^^^
          |
          = help: write it with dots, as in `net.ipv4.tcp_congestion_control`
    "#]],
    );
    check_node(
        "\"sysctls\": { \"net.ipv4.ip_forward\": true }",
        expect![[r#"
            error: found `true`, expected a string or a whole number
             --> lab.json:3:37
              |
            3 | "sysctls": { "net.ipv4.ip_forward": true },
              |                                     ^^^^
        "#]],
    );
    check_node(
        "\"commands\": [ \" \" ]",
        expect![[r#"
        error: the command is empty
         --> lab.json:3:15
          |
        3 | "commands": [ " " ],
          |               ^^^
          |
          = help: write a shell command
    "#]],
    );
    check_node(
        "\"ready\": { \"timeout\": \"0s\" }",
        expect![[r#"
            error: `ready` needs exactly one of `exec`, `tcp` and `ospf-neighbors`
             --> lab.json:3:1
              |
            3 | "ready": { "timeout": "0s" },
              | ^^^^^^^
              |
              = help: several conditions go into one `exec`, with `&&` between them

            error: `timeout` is 0ns, out of range
             --> lab.json:3:23
              |
            3 | "ready": { "timeout": "0s" },
              |                       ^^^^
              |
              = help: it must be from 1s to 86400s
        "#]],
    );
    check_node(
        "\"on\": { \"panic\": \"end_lab\", \"poweroff\": \"end\" }",
        expect![[r#"
            error: unknown value `end_lab`
             --> lab.json:3:18
              |
            3 | "on": { "panic": "end_lab", "poweroff": "end" },
              |                  ^^^^^^^^^
              |
              = help: did you mean `end-lab`?

            error: unknown field `poweroff`
             --> lab.json:3:29
              |
            3 | "on": { "panic": "end_lab", "poweroff": "end" },
              |                             ^^^^^^^^^^
              |
              = help: did you mean `power-off`?
        "#]],
    );
    check_node(
        "\"kernel\": \"\"",
        expect![[r#"
        error: the path is empty
         --> lab.json:3:11
          |
        3 | "kernel": "",
          |           ^^
          |
          = help: name a file
    "#]],
    );
}

#[test]
fn routing() {
    check_node(
        "\"routing\": { \"ospf\": 1 }",
        expect![[r#"
        error: found the number 1, expected true, false or an object
         --> lab.json:3:22
          |
        3 | "routing": { "ospf": 1 },
          |                      ^
    "#]],
    );
    check_node(
        "\"routing\": { \"ospf\": { \"area\": \"x\", \"hello\": \"1500ms\", \"dead\": \"1s\" } }",
        expect![[r#"
            error: `x` is not an area
             --> lab.json:3:32
              |
            3 | "routing": { "ospf": { "area": "x", "hello": "1500ms", "dead": "1s" } },
              |                                ^^^
              |
              = help: write a number as in "0", or dotted as in "0.0.0.1"

            error: 1.5s is not a whole number of seconds
             --> lab.json:3:46
              |
            3 | "routing": { "ospf": { "area": "x", "hello": "1500ms", "dead": "1s" } },
              |                                              ^^^^^^^^
              |
              = help: write for example "1s"

            error: `dead` is 1s, not longer than `hello`, 1s
             --> lab.json:3:64
              |
            3 | "routing": { "ospf": { "area": "x", "hello": "1500ms", "dead": "1s" } },
              |                                                                ^^^^
              |
              = help: write for example "4s"
        "#]],
    );
    check_node(
        "\"routing\": { \"isis\": { \"area\": \"49.1\", \"hello\": \"601s\" } }",
        expect![[r#"
            error: `49.1` is not an IS-IS area
             --> lab.json:3:32
              |
            3 | "routing": { "isis": { "area": "49.1", "hello": "601s" } },
              |                                ^^^^^^
              |
              = help: write two hexadecimal digits and up to six groups of four, as in "49.0001"

            error: `hello` is 601s, out of range
             --> lab.json:3:49
              |
            3 | "routing": { "isis": { "area": "49.1", "hello": "601s" } },
              |                                                 ^^^^^^
              |
              = help: it must be from 1s to 600s
        "#]],
    );
    check_node(
        "\"routing\": { \"bgp\": {} }",
        expect![[r#"
        error: `as` is missing
         --> lab.json:3:14
          |
        3 | "routing": { "bgp": {} },
          |              ^^^^^
    "#]],
    );
    check_node(
        "\"routing\": { \"bgp\": { \"as\": 0 } }",
        expect![[r#"
        error: `as` is 0, out of range
         --> lab.json:3:29
          |
        3 | "routing": { "bgp": { "as": 0 } },
          |                             ^
          |
          = help: it must be from 1 to 4294967294
    "#]],
    );
    check_node(
        "\"routing\": { \"bgp\": { \"as\": 1, \"neighbors\": [\"bb\", \"b\", \"10.0.0.7\"] } }",
        expect![[r#"
            error: there is no node `bb`
             --> lab.json:3:46
              |
            3 | "routing": { "bgp": { "as": 1, "neighbors": ["bb", "b", "10.0.0.7"] } },
              |                                              ^^^^
              |
              = help: did you mean "b"?

            error: `b` has no `routing.bgp`
             --> lab.json:3:52
              |
            3 | "routing": { "bgp": { "as": 1, "neighbors": ["bb", "b", "10.0.0.7"] } },
              |                                                    ^^^
              |
              = help: give it one, or write this session as inline `frr` text

            error: no node on a link of `a` has the address `10.0.0.7`
             --> lab.json:3:57
              |
            3 | "routing": { "bgp": { "as": 1, "neighbors": ["bb", "b", "10.0.0.7"] } },
              |                                                         ^^^^^^^^^^
              |
              = help: name the neighbor, or its address on the common link
        "#]],
    );
    check_node(
        "\"routing\": { \"frr\": [1] }",
        expect![[r#"
        error: found the number 1, expected a string
         --> lab.json:3:22
          |
        3 | "routing": { "frr": [1] },
          |                      ^
    "#]],
    );
}

#[test]
fn everything_at_once_and_nothing_twice() {
    check(
        r#"{
  "nodes": {
    "a": { "kind": "host", "memory": 128, "interfaces": { "eth0": { "adresses": ["10.0.0.1"] } } },
    "b": { "kind": "host", "interfaces": { "eth0": 5 } },
    "c": { "kind": 5 }
  },
  "links": [
    { "endpoints": ["a:eth0", "b:eth0"], "rate": "100Mb" },
    { "endpoints": ["b:eth0", "c:eth0"], "rate": true },
    { "endpoints": ["a:eth0", 7] },
    { "endpoints": ["a:eth0", "d:eth0"] }
  ]
}"#,
        expect![[r#"
            error: a size needs a unit, and `128` has none
             --> lab.json:3:38
              |
            3 |     "a": { "kind": "host", "memory": 128, "interfaces": { "eth0": { "adresses": ["10.0.0.1"] } } },
              |                                      ^^^
              |
              = help: write "128B", "128KiB" or "128MiB"

            error: unknown field `adresses`
             --> lab.json:3:69
              |
            3 |     "a": { "kind": "host", "memory": 128, "interfaces": { "eth0": { "adresses": ["10.0.0.1"] } } },
              |                                                                     ^^^^^^^^^^
              |
              = help: did you mean `addresses`?

            error: `10.0.0.1` has no prefix length
             --> lab.json:3:82
              |
            3 |     "a": { "kind": "host", "memory": 128, "interfaces": { "eth0": { "adresses": ["10.0.0.1"] } } },
              |                                                                                  ^^^^^^^^^^
              |
              = help: write for example "10.0.0.1/24"

            error: found the number 5, expected an object
             --> lab.json:4:52
              |
            4 |     "b": { "kind": "host", "interfaces": { "eth0": 5 } },
              |                                                    ^

            error: found the number 5, expected a string
             --> lab.json:5:20
              |
            5 |     "c": { "kind": 5 }
              |                    ^

            error: `Mb` is not a unit of rate
             --> lab.json:8:50
              |
            8 |     { "endpoints": ["a:eth0", "b:eth0"], "rate": "100Mb" },
              |                                                  ^^^^^^^
              |
              = help: units of rate: bit, kbit, Mbit, Gbit, Tbit

            error: found `true`, expected a rate such as "10Mbit"
             --> lab.json:9:50
              |
            9 |     { "endpoints": ["b:eth0", "c:eth0"], "rate": true },
              |                                                  ^^^^

            error: found the number 7, expected a string
              --> lab.json:10:31
               |
            10 |     { "endpoints": ["a:eth0", 7] },
               |                               ^

            error: there is no node `d`
              --> lab.json:11:31
               |
            11 |     { "endpoints": ["a:eth0", "d:eth0"] }
               |                               ^^^^^^^^
               |
               = help: there are: a, b
        "#]],
    );
}

#[test]
fn as_json() {
    let report = Topology::parse(
        "{\"nodes\": {},\n \"seed\": \"é\", \"lniks\": []}",
        Path::new("lab.json"),
    )
    .unwrap_err();
    assert_eq!(report.count(Severity::Error), 3);
    expect![[r#"
        {
          "file": "lab.json",
          "findings": [
            {
              "severity": "error",
              "line": 1,
              "column": 2,
              "path": "nodes",
              "message": "the lab has no nodes",
              "help": "the least there is: {\"a\": {\"kind\": \"host\"}}"
            },
            {
              "severity": "error",
              "line": 2,
              "column": 10,
              "path": "seed",
              "message": "found the string \"é\", expected a whole number, 0 or greater",
              "help": null
            },
            {
              "severity": "error",
              "line": 2,
              "column": 15,
              "path": "lniks",
              "message": "unknown field `lniks`",
              "help": "did you mean `links`?"
            }
          ]
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&report).unwrap());
}

#[test]
fn files_that_cannot_be_read() {
    let report = Topology::load(Path::new("/no/such/topology.json")).unwrap_err();
    expect![[r#"
        error: cannot read /no/such/topology.json: No such file or directory (os error 2)
         |
         = help: name a topology file, as in configs/two-hosts.json
    "#]]
    .assert_eq(&report.render(false));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("latin1.json");
    std::fs::write(&file, b"{\n  \"description\": \"caf\xe9\"\n}").unwrap();
    let said = Topology::load(&file).unwrap_err().render(false);
    let said = said.replace(&*folder.path().to_string_lossy(), "");
    expect![[r#"
        error: the file is not UTF-8 text
         --> /latin1.json:2:22
          |
        2 |   "description": "caf�
          |                      ^
          |
          = help: save it as UTF-8
    "#]]
    .assert_eq(&said);
}

#[test]
fn control_characters_of_the_file_do_not_reach_the_terminal() {
    let text = "{\"nodes\": {\"a\\u001b[31m\": {\"kind\": \"host\"}}, \"\u{1b}\": 1}";
    let said = said(text);
    assert!(!said.contains('\u{1b}'), "{said:?}");
    let report = Topology::parse("{}", Path::new("lab.json")).unwrap_err();
    assert!(report.render(true).contains('\u{1b}'));
}

#[test]
fn shaping() {
    check_link(
        r#""queue": { "kind": "fiffo" }"#,
        expect![[r#"
        error: unknown value `fiffo`
         --> lab.json:6:20
          |
        6 | "queue": { "kind": "fiffo" } } ] }
          |                    ^^^^^^^
          |
          = help: did you mean `fifo`?
    "#]],
    );
    check_link(
        r#""queue": { "kind": "sfq", "flows": 3 }"#,
        expect![[r#"
        error: unknown value `sfq`
         --> lab.json:6:20
          |
        6 | "queue": { "kind": "sfq", "flows": 3 } } ] }
          |                    ^^^^^
          |
          = help: did you mean `wfq`?
    "#]],
    );
    check_link(
        r#""queue": { "target": "5ms" }"#,
        expect![[r#"
        error: unknown field `target` of kind `fifo`
         --> lab.json:6:12
          |
        6 | "queue": { "target": "5ms" } } ] }
          |            ^^^^^^^^
          |
          = help: fields: limit, drop
    "#]],
    );
    check_link(
        r#""queue": { "kind": "codel", "quantum": "1514B" }"#,
        expect![[r#"
            error: unknown field `quantum` of kind `codel`
             --> lab.json:6:29
              |
            6 | "queue": { "kind": "codel", "quantum": "1514B" } } ] }
              |                             ^^^^^^^^^
              |
              = help: fields: limit, target, interval, ecn
        "#]],
    );
    check_link(
        r#""queue": "red""#,
        expect![[r#"
        error: found a string, expected an object
         --> lab.json:6:10
          |
        6 | "queue": "red" } ] }
          |          ^^^^^
          |
          = help: write {"kind": "red"}
    "#]],
    );
    check_link(
        r#""queue": { "kind": "red", "min-th": "10packets", "max-th": "20kB" }"#,
        expect![[r#"
            error: `max-th` is not greater than `min-th`
             --> lab.json:6:60
              |
            6 | "queue": { "kind": "red", "min-th": "10packets", "max-th": "20kB" } } ] }
              |                                                            ^^^^^^
              |
              = help: write both in packets or both as sizes, `max-th` about three times `min-th`
        "#]],
    );
    check_link(
        r#""queue": { "kind": "red", "min-th": "10packets", "max-th": "5packets", "w-q": 2 }"#,
        expect![[r#"
            error: `max-th` is not greater than `min-th`
             --> lab.json:6:60
              |
            6 | "queue": { "kind": "red", "min-th": "10packets", "max-th": "5packets", "w-q": 2 } } ] }
              |                                                            ^^^^^^^^^^
              |
              = help: write both in packets or both as sizes, `max-th` about three times `min-th`

            error: `w-q` is 2, out of range
             --> lab.json:6:79
              |
            6 | "queue": { "kind": "red", "min-th": "10packets", "max-th": "5packets", "w-q": 2 } } ] }
              |                                                                               ^
              |
              = help: it must be from 0.000000001 to 1
        "#]],
    );
    check_link(
        r#""queue": { "kind": "fq_codel", "flows": 0, "quantum": 1514, "target": "2min" }"#,
        expect![[r#"
            error: `flows` is 0, out of range
             --> lab.json:6:41
              |
            6 | "queue": { "kind": "fq_codel", "flows": 0, "quantum": 1514, "target": "2min" } } ] }
              |                                         ^
              |
              = help: it must be from 1 to 65536

            error: a size needs a unit, and `1514` has none
             --> lab.json:6:55
              |
            6 | "queue": { "kind": "fq_codel", "flows": 0, "quantum": 1514, "target": "2min" } } ] }
              |                                                       ^^^^
              |
              = help: write "1514B", "1514KiB" or "1514MiB"

            error: `target` is 120s, out of range
             --> lab.json:6:71
              |
            6 | "queue": { "kind": "fq_codel", "flows": 0, "quantum": 1514, "target": "2min" } } ] }
              |                                                                       ^^^^^^
              |
              = help: it must be from 1ns to 60s
        "#]],
    );
    check_link(
        r#""queue": { "kind": "pie", "alpha": "0.1" }"#,
        expect![[r#"
            error: found the string "0.1", expected a number
             --> lab.json:6:36
              |
            6 | "queue": { "kind": "pie", "alpha": "0.1" } } ] }
              |                                    ^^^^^
        "#]],
    );
    check_link(
        r#""loss": 0.01"#,
        expect![[r#"
        error: a probability needs a unit, and `0.01` has none
         --> lab.json:6:9
          |
        6 | "loss": 0.01 } ] }
          |         ^^^^
          |
          = help: write "0.01%"
    "#]],
    );
    check_link(
        r#""loss": { "gilbert-elliott": { "p": "1%" } }"#,
        expect![[r#"
            error: `r` is missing
             --> lab.json:6:11
              |
            6 | "loss": { "gilbert-elliott": { "p": "1%" } } } ] }
              |           ^^^^^^^^^^^^^^^^^
        "#]],
    );
    check_link(
        r#""loss": { "every": 0 }"#,
        expect![[r#"
        error: `every` is 0, out of range
         --> lab.json:6:20
          |
        6 | "loss": { "every": 0 } } ] }
          |                    ^
          |
          = help: it must be from 1 to 4294967295
    "#]],
    );
    check_link(
        r#""loss": {}"#,
        expect![[r#"
        error: exactly one of `gilbert-elliott` and `every` is needed
         --> lab.json:6:1
          |
        6 | "loss": {} } ] }
          | ^^^^^^
          |
          = help: for independent losses write a probability, as in "1%"
    "#]],
    );
    check_link(
        r#""loss": { "every": 3, "gilbert-elliott": { "p": "1%", "r": "1%" } }"#,
        expect![[r#"
            error: exactly one of `gilbert-elliott` and `every` is needed
             --> lab.json:6:1
              |
            6 | "loss": { "every": 3, "gilbert-elliott": { "p": "1%", "r": "1%" } } } ] }
              | ^^^^^^
              |
              = help: for independent losses write a probability, as in "1%"
        "#]],
    );
    check_link(
        r#""ber": 2"#,
        expect![[r#"
        error: `ber` is 2, out of range
         --> lab.json:6:8
          |
        6 | "ber": 2 } ] }
          |        ^
          |
          = help: it must be from 0 to 1
    "#]],
    );
    check_link(
        r#""ber": "1e-6""#,
        expect![[r#"
        error: found the string "1e-6", expected a number
         --> lab.json:6:8
          |
        6 | "ber": "1e-6" } ] }
          |        ^^^^^^
    "#]],
    );
    check_link(
        r#""jitter": 5"#,
        expect![[r#"
        error: a time needs a unit, and `5` has none
         --> lab.json:6:11
          |
        6 | "jitter": 5 } ] }
          |           ^
          |
          = help: write "5us", "5ms" or "5s"
    "#]],
    );
    check_link(
        r#""jitter": { "spread": "1ms", "distribution": "gauss" }"#,
        expect![[r#"
            error: unknown value `gauss`
             --> lab.json:6:46
              |
            6 | "jitter": { "spread": "1ms", "distribution": "gauss" } } ] }
              |                                              ^^^^^^^
              |
              = help: values: uniform, normal, pareto, table
        "#]],
    );
    check_link(
        r#""jitter": { "spread": "1ms", "distribution": "table" }"#,
        expect![[r#"
            error: `table` is missing
             --> lab.json:6:1
              |
            6 | "jitter": { "spread": "1ms", "distribution": "table" } } ] }
              | ^^^^^^^^
              |
              = help: name a file of numbers
        "#]],
    );
    check_link(
        r#""jitter": { "spread": "1ms", "distribution": "normal", "table": "x" }"#,
        expect![[r#"
            error: only the distribution `table` has a table
             --> lab.json:6:65
              |
            6 | "jitter": { "spread": "1ms", "distribution": "normal", "table": "x" } } ] }
              |                                                                 ^^^
              |
              = help: remove `table` or `distribution`
        "#]],
    );
    check_link(
        r#""reorder": "5%""#,
        expect![[r#"
        error: found the string "5%", expected true, false or an object
         --> lab.json:6:12
          |
        6 | "reorder": "5%" } ] }
          |            ^^^^
    "#]],
    );
    check_link(
        r#""reorder": { "probability": "5%", "gap": 0 }"#,
        expect![[r#"
            error: `gap` is 0, out of range
             --> lab.json:6:42
              |
            6 | "reorder": { "probability": "5%", "gap": 0 } } ] }
              |                                          ^
              |
              = help: it must be from 1 to 1000000
        "#]],
    );
    check_link(
        r#""rate": "1Mbit", "trace": "/nowhere/cell.trace""#,
        expect![[r#"
            error: a link has either a `rate` or a `trace`
             --> lab.json:6:27
              |
            6 | "rate": "1Mbit", "trace": "/nowhere/cell.trace" } ] }
              |                           ^^^^^^^^^^^^^^^^^^^^^
              |
              = help: remove one of them

            error: cannot read /nowhere/cell.trace: No such file or directory (os error 2)
             --> lab.json:6:27
              |
            6 | "rate": "1Mbit", "trace": "/nowhere/cell.trace" } ] }
              |                           ^^^^^^^^^^^^^^^^^^^^^
              |
              = help: a UTF-8 text file; its path is relative to the topology file
        "#]],
    );
    check_link(
        r#""schedule": [ { "at": "2s", "set": { "rate": "1Mbit" } }, { "at": "1s", "set": {} } ]"#,
        expect![[r#"
            error: `at` is 1s, before that of the change above it
             --> lab.json:6:67
              |
            6 | "schedule": [ { "at": "2s", "set": { "rate": "1Mbit" } }, { "at": "1s", "set": {} } ] } ] }
              |                                                                   ^^^^
              |
              = help: write the changes in the order of time

            error: nothing is set
             --> lab.json:6:73
              |
            6 | "schedule": [ { "at": "2s", "set": { "rate": "1Mbit" } }, { "at": "1s", "set": {} } ] } ] }
              |                                                                         ^^^^^
              |
              = help: name an attribute of the link, as in {"rate": "10Mbit"}
        "#]],
    );
    check_link(
        r#""schedule": [ { "at": "1s", "set": { "delay": "90min" } } ]"#,
        expect![[r#"
            error: `delay` is 5400s, out of range
             --> lab.json:6:47
              |
            6 | "schedule": [ { "at": "1s", "set": { "delay": "90min" } } ] } ] }
              |                                               ^^^^^^^
              |
              = help: it must be from 0ns to 3600s
        "#]],
    );
    check_link(
        r#""schedule": [ { "at": 5, "set": { "rate": 3 } } ]"#,
        expect![[r#"
            error: a time needs a unit, and `5` has none
             --> lab.json:6:23
              |
            6 | "schedule": [ { "at": 5, "set": { "rate": 3 } } ] } ] }
              |                       ^
              |
              = help: write "5us", "5ms" or "5s"

            error: a rate needs a unit, and `3` has none
             --> lab.json:6:43
              |
            6 | "schedule": [ { "at": 5, "set": { "rate": 3 } } ] } ] }
              |                                           ^
              |
              = help: write "3kbit", "3Mbit" or "3Gbit"
        "#]],
    );
}

/// A lab with an external node `up`, with these fields.
fn external(fields: &str) -> String {
    format!(
        r#"{{"nodes": {{"a": {{"kind": "host"}},
"up": {{"kind": "external"{fields}}}}}, "links": [{{"endpoints": ["a:eth0", "up"]}}]}}"#
    )
}

#[test]
fn external_nodes() {
    check(
        &external(""),
        expect![[r#"
        error: nothing says where the node leads to
         --> lab.json:2:1
          |
        2 | "up": {"kind": "external"}}, "links": [{"endpoints": ["a:eth0", "up"]}]}
          | ^^^^
          |
          = help: exactly one of: "tap": "hop0", "interface": "eth1", "vxlan": {"vni": 42, "remote": "192.0.2.1"}
    "#]],
    );
    check(
        &external(r#", "tapp": "x0""#),
        expect![[r#"
        error: unknown field `tapp` of kind `external`
         --> lab.json:2:28
          |
        2 | "up": {"kind": "external", "tapp": "x0"}}, "links": [{"endpoints": ["a:eth0", "up"]}]}
          |                            ^^^^^^
          |
          = help: did you mean `tap`?
    "#]],
    );
    check(
        &external(r#", "tap": "x0", "interface": "eth0""#),
        expect![[r#"
        error: the node leads to several places
         --> lab.json:2:1
          |
        2 | "up": {"kind": "external", "tap": "x0", "interface": "eth0"}}, "links": [{"endpoints": ["a:eth0", "up"]}]}
          | ^^^^
          |
          = help: exactly one of: "tap": "hop0", "interface": "eth1", "vxlan": {"vni": 42, "remote": "192.0.2.1"}
    "#]],
    );
    check(
        &external(r#", "tap": "a name/with": 1"#),
        expect![[r#"
        error: not valid JSON: unexpected token in object
         --> lab.json:2:48
          |
        2 | "up": {"kind": "external", "tap": "a name/with": 1}}, "links": [{"endpoints": ["a:eth0", "up"]}]}
          |                                                ^
    "#]],
    );
    check(
        &external(r#", "tap": "much-too-long-for-it""#),
        expect![[r#"
        error: `much-too-long-for-it` cannot be the name of an interface of the host
         --> lab.json:2:35
          |
        2 | "up": {"kind": "external", "tap": "much-too-long-for-it"}}, "links": [{"endpoints": ["a:eth0", "up"]}]}
          |                                   ^^^^^^^^^^^^^^^^^^^^^^
          |
          = help: 1 to 15 characters without spaces, `/`, `:` and `%`; `ip link` lists those there are
    "#]],
    );
    check(
        &external(r#", "tap": "x0", "mtu": 70000"#),
        expect![[r#"
        error: `mtu` is 70000, out of range
         --> lab.json:2:48
          |
        2 | "up": {"kind": "external", "tap": "x0", "mtu": 70000}}, "links": [{"endpoints": ["a:eth0", "up"]}]}
          |                                                ^^^^^
          |
          = help: it must be from 68 to 65521
    "#]],
    );
    check(
        &external(r#", "interface": "eth1", "mtu": 1500"#),
        expect![[r#"
        error: `mtu` is for a `tap`
         --> lab.json:2:56
          |
        2 | "up": {"kind": "external", "interface": "eth1", "mtu": 1500}}, "links": [{"endpoints": ["a:eth0", "up"]}]}
          |                                                        ^^^^
          |
          = help: the host decides on the MTU of anything else; remove it
    "#]],
    );
    check(
        &external(r#", "vxlan": {"remote": "192.0.2.1"}"#),
        expect![[r#"
        error: `vni` is missing
         --> lab.json:2:28
          |
        2 | "up": {"kind": "external", "vxlan": {"remote": "192.0.2.1"}}}, "links": [{"endpoints": ["a:eth0", "up"]}]}
          |                            ^^^^^^^
    "#]],
    );
    check(
        &external(r#", "vxlan": {"vni": 16777216, "remote": "192.0.2.1:4789"}"#),
        expect![[r#"
            error: `vni` is 16777216, out of range
             --> lab.json:2:45
              |
            2 | "up": {"kind": "external", "vxlan": {"vni": 16777216, "remote": "192.0.2.1:4789"}}}, "links": [{"endpoints": ["a:eth0", "up"]}]}
              |                                             ^^^^^^^^
              |
              = help: it must be from 0 to 16777215

            error: `192.0.2.1:4789` is not an IP address
             --> lab.json:2:65
              |
            2 | "up": {"kind": "external", "vxlan": {"vni": 16777216, "remote": "192.0.2.1:4789"}}}, "links": [{"endpoints": ["a:eth0", "up"]}]}
              |                                                                 ^^^^^^^^^^^^^^^^
              |
              = help: write it as in "192.0.2.1" or "2001:db8::1", without prefix length and port
        "#]],
    );
    check(
        &external(r#", "vxlan": {"vni": 1, "remote": "239.1.1.1", "port": 0}"#),
        expect![[r#"
            error: `239.1.1.1` is not the address of one other end
             --> lab.json:2:58
              |
            2 | "up": {"kind": "external", "vxlan": {"vni": 1, "remote": "239.1.1.1", "port": 0}}}, "links": [{"endpoints": ["a:eth0", "up"]}]}
              |                                                          ^^^^^^^^^^^
              |
              = help: name a unicast address: a tunnel leads to one other end

            error: `port` is 0, out of range
             --> lab.json:2:79
              |
            2 | "up": {"kind": "external", "vxlan": {"vni": 1, "remote": "239.1.1.1", "port": 0}}}, "links": [{"endpoints": ["a:eth0", "up"]}]}
              |                                                                               ^
              |
              = help: it must be from 1 to 65535
        "#]],
    );
    check(
        &external(r#", "vxlan": {"vni": 1, "remote": "192.0.2.1", "local": "2001:db8::1"}"#),
        expect![[r#"
            error: `2001:db8::1` and `192.0.2.1` are not of the same IP version
             --> lab.json:2:80
              |
            2 | "up": {"kind": "external", "vxlan": {"vni": 1, "remote": "192.0.2.1", "local": "2001:db8::1"}}}, "links": [{"endpoints": ["a:eth0", "...
              |                                                                                ^^^^^^^^^^^^^
              |
              = help: both ends of a tunnel have IPv4 addresses, or both IPv6
        "#]],
    );
}

#[test]
fn external_nodes_and_their_links() {
    check(
        &external(r#", "tap": "x0""#).replace("\"up\"]}", "\"up:eth0\"]}"),
        expect![[r#"
            error: `up` is an external node: it has no interfaces
             --> lab.json:2:78
              |
            2 | "up": {"kind": "external", "tap": "x0"}}, "links": [{"endpoints": ["a:eth0", "up:eth0"]}]}
              |                                                                              ^^^^^^^^^
              |
              = help: write "up"
        "#]],
    );
    check(
        &external(r#", "tap": "x0""#).replace(
            "\"links\": [",
            "\"links\": [{\"endpoints\": [\"a:eth1\", \"up\"]},\n",
        ),
        expect![[r#"
            error: `up` has a link already: links[0]
             --> lab.json:3:26
              |
            3 | {"endpoints": ["a:eth0", "up"]}]}
              |                          ^^^^
              |
              = help: an external node has one link; put a switch between
        "#]],
    );
    check(
        r#"{"nodes": {"up": {"kind": "external", "tap": "x0"}, "down": {"kind": "external", "interface": "x0"},
"v": {"kind": "external", "vxlan": {"vni": 1, "remote": "192.0.2.1"}},
"w": {"kind": "external", "vxlan": {"vni": 2, "remote": "192.0.2.2", "local": "192.0.2.9"}}},
"links": [{"endpoints": ["up", "down"]}, {"endpoints": ["v", "w"]}]}"#,
        expect![[r#"
            error: `up` leads to x0 already
             --> lab.json:1:95
              |
            1 | {"nodes": {"up": {"kind": "external", "tap": "x0"}, "down": {"kind": "external", "interface": "x0"},
              |                                                                                               ^^^^
              |
              = help: a device belongs to one node; put a switch behind that

            error: `v` listens on UDP port 4789 already
             --> lab.json:3:27
              |
            3 | "w": {"kind": "external", "vxlan": {"vni": 2, "remote": "192.0.2.2", "local": "192.0.2.9"}}},
              |                           ^^^^^^^
              |
              = help: give the tunnels different `local` addresses or different `port`s
        "#]],
    );
    check(
        r#"{"nodes": {"up": {"kind": "external", "tap": "x0"}}}"#,
        expect![[r#"
        warning: no link ends at `up`
         --> lab.json:1:12
          |
        1 | {"nodes": {"up": {"kind": "external", "tap": "x0"}}}
          |            ^^^^
          |
          = help: nothing will come out of it; remove it, or add a link
    "#]],
    );
}

#[test]
fn ports_of_switches() {
    let switch = |fields: &str, ports: &str| {
        format!(
            r#"{{"nodes": {{"a": {{"kind": "host"}}, "t": {{"kind": "hub"}}, "s": {{"kind": "switch"{fields},
"ports": {{ {ports} }} }} }},
"links": [{{"endpoints": ["a:eth0", "s"]}}, {{"endpoints": ["s", "t"]}}, {{"endpoints": ["s", "t"], "name": "second", "up": false}}]}}"#
        )
    };
    check(
        &switch("", r#""a:eth1": {"access": 1}"#),
        expect![[r#"
        error: no link leads from this switch to `a:eth1`, and none is called so
         --> lab.json:2:12
          |
        2 | "ports": { "a:eth1": {"access": 1} } } },
          |            ^^^^^^^^
          |
          = help: did you mean "a:eth0"?
    "#]],
    );
    check(
        &switch("", r#""t": {"access": 1}"#),
        expect![[r#"
        error: `t` can be 2 ports
         --> lab.json:2:12
          |
        2 | "ports": { "t": {"access": 1} } } },
          |            ^^^
          |
          = help: name the link instead: s:1--t:0, second
    "#]],
    );
    check(
        &switch(
            "",
            r#""a:eth0": {"access": 1}, "a:eth0--s:0": {"access": 2}"#,
        ),
        expect![[r#"
            error: `a:eth0--s:0` and `a:eth0` are the same port
             --> lab.json:2:37
              |
            2 | "ports": { "a:eth0": {"access": 1}, "a:eth0--s:0": {"access": 2} } } },
              |                                     ^^^^^^^^^^^^^
              |
              = help: write one of them
        "#]],
    );
    check(
        &switch(
            "",
            r#""a:eth0": {"access": 4095}, "second": {"access": 1, "trunk": "all"}"#,
        ),
        expect![[r#"
            error: 4095 is not a VLAN
             --> lab.json:2:33
              |
            2 | "ports": { "a:eth0": {"access": 4095}, "second": {"access": 1, "trunk": "all"} } } },
              |                                 ^^^^
              |
              = help: a VLAN is a number from 1 to 4094

            error: a port is either an `access` port or a `trunk`
             --> lab.json:2:73
              |
            2 | "ports": { "a:eth0": {"access": 4095}, "second": {"access": 1, "trunk": "all"} } } },
              |                                                                         ^^^^^
              |
              = help: remove one of them; the VLAN without tags of a trunk is its `native`
        "#]],
    );
    check(
        &switch(
            "",
            r#""a:eth0": {"native": 2}, "second": {"trunk": [0, "9-3", "x"]}"#,
        ),
        expect![[r#"
            error: `native` is for a `trunk`
             --> lab.json:2:33
              |
            2 | "ports": { "a:eth0": {"native": 2}, "second": {"trunk": [0, "9-3", "x"]} } } },
              |                                 ^
              |
              = help: of an access port `access` is the VLAN without tags

            error: 0 is not a VLAN
             --> lab.json:2:58
              |
            2 | "ports": { "a:eth0": {"native": 2}, "second": {"trunk": [0, "9-3", "x"]} } } },
              |                                                          ^
              |
              = help: a VLAN is a number from 1 to 4094

            error: `9-3` is not a range of VLANs
             --> lab.json:2:61
              |
            2 | "ports": { "a:eth0": {"native": 2}, "second": {"trunk": [0, "9-3", "x"]} } } },
              |                                                             ^^^^^
              |
              = help: write two numbers from 1 to 4094, the smaller one first, as in "100-199"; a single VLAN as a number

            error: `x` is not a range of VLANs
             --> lab.json:2:68
              |
            2 | "ports": { "a:eth0": {"native": 2}, "second": {"trunk": [0, "9-3", "x"]} } } },
              |                                                                    ^^^
              |
              = help: write two numbers from 1 to 4094, the smaller one first, as in "100-199"; a single VLAN as a number
        "#]],
    );
    check(
        &switch(
            "",
            r#""a:eth0": {"trunk": []}, "second": {"trunk": "some"}"#,
        ),
        expect![[r#"
        error: the trunk carries no VLAN
         --> lab.json:2:23
          |
        2 | "ports": { "a:eth0": {"trunk": []}, "second": {"trunk": "some"} } } },
          |                       ^^^^^^^
          |
          = help: write "all", or an array such as [10, 20, "100-199"]

        error: `some` is neither "all" nor a list of VLANs
         --> lab.json:2:57
          |
        2 | "ports": { "a:eth0": {"trunk": []}, "second": {"trunk": "some"} } } },
          |                                                         ^^^^^^
          |
          = help: write "all", or an array such as [10, 20, "100-199"]
    "#]],
    );
    check(
        &switch("", r#""a:eth0": {"acces": 3}"#),
        expect![[r#"
        error: unknown field `acces`
         --> lab.json:2:23
          |
        2 | "ports": { "a:eth0": {"acces": 3} } } },
          |                       ^^^^^^^
          |
          = help: did you mean `access`?
    "#]],
    );
    check(
        &switch(r#", "storm": "10""#, ""),
        expect![[r#"
        error: a storm limit needs a unit, and `10` has none
         --> lab.json:1:90
          |
        1 | {"nodes": {"a": {"kind": "host"}, "t": {"kind": "hub"}, "s": {"kind": "switch", "storm": "10",
          |                                                                                          ^^^^
          |
          = help: write "10packets" or "10Mbit"
    "#]],
    );
    check(
        &switch(r#", "storm": "10kB""#, ""),
        expect![[r#"
        error: `kB` is not a unit of storm limit
         --> lab.json:1:90
          |
        1 | {"nodes": {"a": {"kind": "host"}, "t": {"kind": "hub"}, "s": {"kind": "switch", "storm": "10kB",
          |                                                                                          ^^^^^^
          |
          = help: units of storm limit: packets, packet, bit, kbit, Mbit, Gbit, Tbit
    "#]],
    );
    check(
        &switch(r#", "storm": "100bit", "reserved": "keep""#, ""),
        expect![[r#"
        error: `storm` is 100bit, out of range
         --> lab.json:1:90
          |
        1 | {"nodes": {"a": {"kind": "host"}, "t": {"kind": "hub"}, "s": {"kind": "switch", "storm": "100bit", "reserved": "keep",
          |                                                                                          ^^^^^^^^
          |
          = help: it must be from 1kbit to 1Tbit

        error: unknown value `keep`
         --> lab.json:1:112
          |
        1 | {"nodes": {"a": {"kind": "host"}, "t": {"kind": "hub"}, "s": {"kind": "switch", "storm": "100bit", "reserved": "keep",
          |                                                                                                                ^^^^^^
          |
          = help: values: drop, forward
    "#]],
    );
}

#[test]
fn readiness() {
    check_node(
        r#""ready": {}"#,
        expect![[r#"
        error: `ready` needs exactly one of `exec`, `tcp` and `ospf-neighbors`
         --> lab.json:3:1
          |
        3 | "ready": {},
          | ^^^^^^^
          |
          = help: several conditions go into one `exec`, with `&&` between them
    "#]],
    );
    check_node(
        r#""ready": {"exec": "true", "tcp": 80}"#,
        expect![[r#"
        error: `ready` needs exactly one of `exec`, `tcp` and `ospf-neighbors`
         --> lab.json:3:1
          |
        3 | "ready": {"exec": "true", "tcp": 80},
          | ^^^^^^^
          |
          = help: several conditions go into one `exec`, with `&&` between them
    "#]],
    );
    check_node(
        r#""ready": {"tcp": 0}"#,
        expect![[r#"
        error: `0` is no place to connect to
         --> lab.json:3:18
          |
        3 | "ready": {"tcp": 0},
          |                  ^
          |
          = help: write a port of the node, 1 to 65535, or an address and a port as in "10.0.0.2:80" or "[2001:db8::2]:80"
    "#]],
    );
    check_node(
        r#""ready": {"tcp": "b:80"}"#,
        expect![[r#"
        error: `b:80` is no place to connect to
         --> lab.json:3:18
          |
        3 | "ready": {"tcp": "b:80"},
          |                  ^^^^^^
          |
          = help: write a port of the node, 1 to 65535, or an address and a port as in "10.0.0.2:80" or "[2001:db8::2]:80"
    "#]],
    );
    check_node(
        r#""ready": {"ospf-neighbors": 1}"#,
        expect![[r#"
        error: the node does not run OSPF
         --> lab.json:3:11
          |
        3 | "ready": {"ospf-neighbors": 1},
          |           ^^^^^^^^^^^^^^^^
          |
          = help: add "routing": {"ospf": true}
    "#]],
    );
    check_node(
        r#""ready": {"ospf-neighbors": 0}, "routing": {"ospf": true}"#,
        expect![[r#"
            error: `ospf-neighbors` is 0, out of range
             --> lab.json:3:29
              |
            3 | "ready": {"ospf-neighbors": 0}, "routing": {"ospf": true},
              |                             ^
              |
              = help: it must be from 1 to 10000
        "#]],
    );
}

/// Three hosts, and what a test adds to each.
fn three(a: &str, b: &str, c: &str) -> String {
    format!(
        "{{ \"nodes\": {{\n\"a\": {{ \"kind\": \"host\"{a} }},\n\"b\": {{ \"kind\": \"host\"{b} }},\n\"c\": {{ \"kind\": \"host\"{c} }},\n\
         \"sw\": {{ \"kind\": \"switch\" }} }} }}"
    )
}

#[test]
fn start_order() {
    check(
        &three(r#", "after": ["b"]"#, r#", "after": ["c"]"#, ""),
        expect![[""]],
    );
    check(
        &three(r#", "after": ["a"]"#, "", ""),
        expect![[r#"
        error: `a` would wait for itself: a → a
         --> lab.json:2:34
          |
        2 | "a": { "kind": "host", "after": ["a"] },
          |                                  ^^^
          |
          = help: leave one of these out
    "#]],
    );
    check(
        &three(
            r#", "after": ["b"]"#,
            r#", "after": ["c"]"#,
            r#", "after": ["a"]"#,
        ),
        expect![[r#"
            error: `c` would wait for itself: c → a → b → c
             --> lab.json:4:34
              |
            4 | "c": { "kind": "host", "after": ["a"] },
              |                                  ^^^
              |
              = help: leave one of these out
        "#]],
    );
    check(
        &three(r#", "after": ["sw", "bb", "c", "c"]"#, "", ""),
        expect![[r#"
            error: `sw` has no kernel of its own
             --> lab.json:2:34
              |
            2 | "a": { "kind": "host", "after": ["sw", "bb", "c", "c"] },
              |                                  ^^^^
              |
              = help: name a host or a router

            error: there is no node `bb`
             --> lab.json:2:40
              |
            2 | "a": { "kind": "host", "after": ["sw", "bb", "c", "c"] },
              |                                        ^^^^
              |
              = help: did you mean "b"?

            error: `c` is named twice
             --> lab.json:2:51
              |
            2 | "a": { "kind": "host", "after": ["sw", "bb", "c", "c"] },
              |                                                   ^^^
              |
              = help: once is enough
        "#]],
    );
}

#[test]
fn labels() {
    check_node(
        r#""labels": {"role": "core", "example.org/rack": "7"}"#,
        expect![[""]],
    );
    check_node(
        r#""labels": {"a=b": "c", "": "", "x": "1\n2"}"#,
        expect![[r#"
            error: `a=b` cannot be a label
             --> lab.json:3:12
              |
            3 | "labels": {"a=b": "c", "": "", "x": "1\n2"},
              |            ^^^^^
              |
              = help: 1 to 63 letters, digits, `-`, `_`, `.` and `/`, the first not a `-`

            error: `` cannot be a label
             --> lab.json:3:24
              |
            3 | "labels": {"a=b": "c", "": "", "x": "1\n2"},
              |                        ^^
              |
              = help: 1 to 63 letters, digits, `-`, `_`, `.` and `/`, the first not a `-`

            error: the value of `x` cannot be that of a label
             --> lab.json:3:37
              |
            3 | "labels": {"a=b": "c", "": "", "x": "1\n2"},
              |                                     ^^^^^^
              |
              = help: at most 200 characters on one line
        "#]],
    );
}

#[test]
fn what_to_save() {
    check_node(
        r#""save": ["/etc/frr", "var/log", "/var/../etc", "/etc/frr", "/tmp/"]"#,
        expect![[r#"
            error: `var/log` is not the absolute path of a file or folder
             --> lab.json:3:22
              |
            3 | "save": ["/etc/frr", "var/log", "/var/../etc", "/etc/frr", "/tmp/"],
              |                      ^^^^^^^^^
              |
              = help: write it from `/` on, without `.` and `..`

            error: `/var/../etc` is not the absolute path of a file or folder
             --> lab.json:3:33
              |
            3 | "save": ["/etc/frr", "var/log", "/var/../etc", "/etc/frr", "/tmp/"],
              |                                 ^^^^^^^^^^^^^
              |
              = help: write it from `/` on, without `.` and `..`

            error: `/etc/frr` is named twice
             --> lab.json:3:48
              |
            3 | "save": ["/etc/frr", "var/log", "/var/../etc", "/etc/frr", "/tmp/"],
              |                                                ^^^^^^^^^^
              |
              = help: once is enough

            error: `/tmp/` is not the absolute path of a file or folder
             --> lab.json:3:60
              |
            3 | "save": ["/etc/frr", "var/log", "/var/../etc", "/etc/frr", "/tmp/"],
              |                                                            ^^^^^^^
              |
              = help: write it from `/` on, without `.` and `..`
        "#]],
    );
}

#[allow(clippy::needless_pass_by_value, reason = "reads better at the call")]
fn check_checks(checks: &str, expected: Expect) {
    let text = two("", "", "");
    let text = text.strip_suffix('}').unwrap();
    expected.assert_eq(&said(&format!("{text},\n\"checks\": [\n{checks}\n] }}")));
}

#[test]
fn checks_that_are_right() {
    check_checks(
        r#"{"kind": "ping", "from": "a", "to": "b"},
{"kind": "ping", "from": "a", "to": "b", "count": 10, "loss": "10%", "min-rtt": "1ms", "max-rtt": "2ms", "within": "30s"},
{"kind": "ping", "from": "a", "to": "10.9.9.9", "expect": "unreachable", "name": "there is no way out"},
{"kind": "path", "from": "a", "to": "b:eth0", "via": []},
{"kind": "throughput", "from": "a", "to": "b", "min": "1Mbit", "max": "1Gbit", "time": "2s"},
{"kind": "reachability"},
{"kind": "reachability", "nodes": ["a", "b"], "except": [["a", "b"]]}"#,
        expect![[""]],
    );
}

#[test]
fn checks_of_nodes_that_are_not_there() {
    check_checks(
        r#"{"kind": "ping", "from": "aa", "to": "b"},
{"kind": "ping", "from": "a", "to": "b:eth1"},
{"kind": "path", "from": "a", "to": "b", "via": ["r"]},
{"kind": "throughput", "from": "a", "to": "10.0.0.2", "min": "1Mbit"},
{"kind": "reachability", "nodes": ["a", "c"], "except": [["a", "b"]]}"#,
        expect![[r#"
            error: there is no node `aa`
             --> lab.json:7:26
              |
            7 | {"kind": "ping", "from": "aa", "to": "b"},
              |                          ^^^^
              |
              = help: did you mean "a"?

            error: `b` has no interface `eth1`
             --> lab.json:8:37
              |
            8 | {"kind": "ping", "from": "a", "to": "b:eth1"},
              |                                     ^^^^^^^^
              |
              = help: did you mean "b:eth0"?

            error: there is no node `r`
             --> lab.json:9:50
              |
            9 | {"kind": "path", "from": "a", "to": "b", "via": ["r"]},
              |                                                  ^^^
              |
              = help: there are: a, b

            error: `10.0.0.2` is an address
              --> lab.json:10:43
               |
            10 | {"kind": "throughput", "from": "a", "to": "10.0.0.2", "min": "1Mbit"},
               |                                           ^^^^^^^^^^
               |
               = help: name the node that receives, or one of its interfaces: iperf3 is started there

            error: there are no two nodes that could reach each other
              --> lab.json:11:26
               |
            11 | {"kind": "reachability", "nodes": ["a", "c"], "except": [["a", "b"]]}
               |                          ^^^^^^^
               |
               = help: a reachability needs two hosts or routers with addresses

            error: there is no node `c`
              --> lab.json:11:41
               |
            11 | {"kind": "reachability", "nodes": ["a", "c"], "except": [["a", "b"]]}
               |                                         ^^^
               |
               = help: there are: a, b

            error: `b` is not among the nodes of this check
              --> lab.json:11:64
               |
            11 | {"kind": "reachability", "nodes": ["a", "c"], "except": [["a", "b"]]}
               |                                                                ^^^
               |
               = help: add it to `nodes`, or leave the pair out
        "#]],
    );
    check(
        r#"{"nodes": {"a": {"kind": "host"}, "sw": {"kind": "switch"}},
"checks": [{"kind": "ping", "from": "sw", "to": "a"}, {"kind": "reachability"}]}"#,
        expect![[r#"
            error: `sw` has no kernel of its own
             --> lab.json:2:37
              |
            2 | "checks": [{"kind": "ping", "from": "sw", "to": "a"}, {"kind": "reachability"}]}
              |                                     ^^^^
              |
              = help: name a host or a router

            error: `a` has no address
             --> lab.json:2:49
              |
            2 | "checks": [{"kind": "ping", "from": "sw", "to": "a"}, {"kind": "reachability"}]}
              |                                                 ^^^
              |
              = help: give one of its interfaces `addresses`

            error: there are no two nodes that could reach each other
             --> lab.json:2:55
              |
            2 | "checks": [{"kind": "ping", "from": "sw", "to": "a"}, {"kind": "reachability"}]}
              |                                                       ^
              |
              = help: a reachability needs two hosts or routers with addresses
        "#]],
    );
}

#[test]
fn checks_that_cannot_be() {
    check_checks(
        r#"{"kind": "pong", "from": "a", "to": "b"},
{"kind": "ping", "from": "a"},
{"kind": "ping", "from": "a", "to": "b", "count": 0, "within": "2000min"},
{"kind": "ping", "from": "a", "to": "b", "min-rtt": "2ms", "max-rtt": "1ms"},
{"kind": "ping", "from": "a", "to": "b", "expect": "unreachable", "loss": "1%"},
{"kind": "throughput", "from": "a", "to": "b"},
{"kind": "throughput", "from": "a", "to": "b", "min": "2Mbit", "max": "1Mbit", "time": "1500ms"},
{"kind": "reachability", "nodes": ["a", "a"]}"#,
        expect![[r#"
            error: unknown value `pong`
             --> lab.json:7:10
              |
            7 | {"kind": "pong", "from": "a", "to": "b"},
              |          ^^^^^^
              |
              = help: did you mean `ping`?

            error: `to` is missing
             --> lab.json:8:1
              |
            8 | {"kind": "ping", "from": "a"},
              | ^

            error: `count` is 0, out of range
             --> lab.json:9:51
              |
            9 | {"kind": "ping", "from": "a", "to": "b", "count": 0, "within": "2000min"},
              |                                                   ^
              |
              = help: it must be from 1 to 1000

            error: `within` is 120000s, out of range
             --> lab.json:9:64
              |
            9 | {"kind": "ping", "from": "a", "to": "b", "count": 0, "within": "2000min"},
              |                                                                ^^^^^^^^^
              |
              = help: it must be from 0ns to 3600s

            error: `max-rtt` is less than `min-rtt`
              --> lab.json:10:71
               |
            10 | {"kind": "ping", "from": "a", "to": "b", "min-rtt": "2ms", "max-rtt": "1ms"},
               |                                                                       ^^^^^
               |
               = help: no round trip is between them

            error: `loss` says nothing where no answer is expected
              --> lab.json:11:67
               |
            11 | {"kind": "ping", "from": "a", "to": "b", "expect": "unreachable", "loss": "1%"},
               |                                                                   ^^^^^^
               |
               = help: leave it out, or expect `reachable`

            error: a throughput needs `min`, `max` or both
              --> lab.json:12:1
               |
            12 | {"kind": "throughput", "from": "a", "to": "b"},
               | ^
               |
               = help: write for example "min": "90Mbit"

            error: `max` is less than `min`
              --> lab.json:13:71
               |
            13 | {"kind": "throughput", "from": "a", "to": "b", "min": "2Mbit", "max": "1Mbit", "time": "1500ms"},
               |                                                                       ^^^^^^^
               |
               = help: no throughput is between them

            error: `time` is not a whole number of seconds
              --> lab.json:13:88
               |
            13 | {"kind": "throughput", "from": "a", "to": "b", "min": "2Mbit", "max": "1Mbit", "time": "1500ms"},
               |                                                                                        ^^^^^^^^
               |
               = help: write for example "5s"

            error: there are no two nodes that could reach each other
              --> lab.json:14:26
               |
            14 | {"kind": "reachability", "nodes": ["a", "a"]}
               |                          ^^^^^^^
               |
               = help: a reachability needs two hosts or routers with addresses

            error: `a` is named twice
              --> lab.json:14:41
               |
            14 | {"kind": "reachability", "nodes": ["a", "a"]}
               |                                         ^^^
               |
               = help: once is enough
        "#]],
    );
    check_checks(
        r#"{"kind": "reachability", "name": "one"},
{"kind": "reachability", "name": "one"},
{"kind": "reachability", "name": ""}"#,
        expect![[r#"
            error: another check is called `one` as well
             --> lab.json:8:34
              |
            8 | {"kind": "reachability", "name": "one"},
              |                                  ^^^^^
              |
              = help: give each check a name of its own, or none

            error: `` cannot be the name of a check
             --> lab.json:9:34
              |
            9 | {"kind": "reachability", "name": ""}
              |                                  ^^
              |
              = help: 1 to 100 characters on one line
        "#]],
    );
}
