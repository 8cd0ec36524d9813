//! Running labs that become others: `vmm apply`, `vmm add`, `vmm rm`.

use std::io::Write;
use std::process::Stdio;

use serde_json::Value;

use crate::harness::{Place, text};

const TWO: &str = r#"{"name": "two", "nodes": {"a": {"kind": "host"}, "b": {"kind": "host"}},
    "links": [{"endpoints": ["a:eth0", "b:eth0"], "delay": "10ms"}]}"#;

fn place() -> Place {
    let place = Place::with_real_switch();
    place.topology(TWO);
    place.launch();
    place
}

fn pid(place: &Place, name: &str) -> Value {
    let nodes = place.nodes();
    let mut nodes = nodes.as_array().unwrap().iter();
    let node = nodes.find(|node| node["name"] == name);
    node.map_or(Value::Null, |node| node["pid"].clone())
}

fn names(place: &Place) -> Vec<String> {
    let nodes = place.nodes();
    let nodes = nodes.as_array().unwrap().iter();
    nodes
        .map(|node| node["name"].as_str().unwrap().to_owned())
        .collect()
}

fn links(place: &Place) -> Vec<Value> {
    serde_json::from_str(&place.ok(&["link", "ls", "--json"])).unwrap()
}

/// `new` in a file of another name.
fn write(place: &Place, new: &str) {
    std::fs::write(place.path("new.json"), new).unwrap();
}

#[test]
fn a_lab_converges_to_a_file_and_shows_the_plan_first() {
    let place = place();
    let before = [pid(&place, "a"), pid(&place, "b")];
    write(
        &place,
        r#"{"name": "two", "nodes": {"c": {"kind": "host"}, "a": {"kind": "host"}, "s": {"kind": "switch"}, "b": {"kind": "host", "memory": "64MiB"}},
            "links": [{"endpoints": ["a:eth0", "b:eth0"], "delay": "20ms"}, {"endpoints": ["c:eth0", "s"]}]}"#,
    );
    let plan = "add     node c\nadd     node s\nrestart node b (memory 128MiB → 64MiB)\nadd     link c:eth0--s:0\n\
        change  link a:eth0--b:eth0 (delay 10ms → 20ms)\n";
    assert_eq!(place.ok(&["apply", "--dry-run", "new.json"]), plan);
    assert_eq!(
        (names(&place), links(&place).len()),
        (vec!["a".into(), "b".into()], 1)
    );

    assert_eq!(place.ok(&["apply", "new.json"]), plan);
    assert_eq!(names(&place), ["c", "a", "s", "b"], "as in the file");
    assert_eq!(pid(&place, "a"), before[0]);
    assert_ne!(pid(&place, "b"), before[1]);
    place.ok(&["exec", "c", "--", "true"]);
    let set = &links(&place)[0]["forward"];
    assert_eq!(set["attributes"]["delay"], "20ms");
    let nodes = place.run_folder().join("two/nodes");
    let hosts = std::fs::read_to_string(nodes.join("a/hosts"));
    // None has an address, so there is nothing new to tell.
    assert!(hosts.is_err(), "{hosts:?}");
    assert_eq!(place.ok(&["apply", "new.json"]), "nothing to do\n");

    place.topology(TWO);
    place.ok(&["apply", "lab.json"]);
    assert_eq!(names(&place), ["a", "b"]);
    assert!(!nodes.join("c").exists());
    assert!(
        !place
            .processes()
            .iter()
            .any(|(_, line)| line.contains("guest=c"))
    );
    place.ok(&["stop"]);
    place.assert_clean();
}

#[test]
fn nodes_and_links_are_added_and_removed() {
    let place = place();
    let before = [pid(&place, "a"), pid(&place, "b")];
    place.ok(&["link", "set", "a", "loss=5%"]);
    let json = r#"{"nodes": {"c": {"kind": "host", "interfaces": {"eth0": {"addresses": ["10.0.0.3/24"]}}}, "s": {"kind": "switch"}},
        "links": [{"endpoints": ["c:eth0", "s"]}]}"#;
    assert_eq!(
        place.ok(&["add", json]),
        "add     node c\nadd     node s\nadd     link c:eth0--s:0\n"
    );
    let hosts = place.run_folder().join("two/nodes/a/hosts");
    let hosts = std::fs::read_to_string(hosts).unwrap();
    assert!(hosts.contains("10.0.0.3\tc\n"), "{hosts}");
    // A new NIC takes a restart, which is said and, on a terminal, asked for.
    std::fs::write(
        place.path("more.json"),
        r#"{"links": [{"endpoints": ["c:eth1", "s"], "name": "second"}]}"#,
    )
    .unwrap();
    let plan = place.ok(&["add", "more.json"]);
    assert_eq!(
        plan,
        "restart node c (interfaces: eth1 is new)\nadd     link second\n"
    );
    assert_eq!(
        place.ok(&["rm", "link", "c:eth0"]),
        "remove  link c:eth0--s:0\n"
    );
    // It is there, without a link: the machine goes on.
    assert_eq!(
        place.ok(&["add", r#"{"links": [{"endpoints": ["c:eth0", "s"]}]}"#]),
        "add     link c:eth0--s:1\n"
    );
    let plan = place.ok(&["rm", "node", "c"]);
    assert_eq!(
        plan,
        "remove  link second\nremove  link c:eth0--s:1\nremove  node c\n"
    );
    assert_eq!([pid(&place, "a"), pid(&place, "b")], before);
    assert_eq!(
        links(&place)[0]["forward"]["attributes"]["loss"],
        "5%",
        "set by hand"
    );
    let plan = place.ok(&["apply", "lab.json"]);
    assert_eq!(
        plan,
        "remove  node s\nchange  link a:eth0--b:eth0 (what was set by hand is set back)\n"
    );
    assert_eq!(
        links(&place)[0]["forward"]["attributes"]["loss"],
        Value::Null
    );
    place.ok(&["stop"]);
    place.assert_clean();
}

#[test]
fn what_is_wrong_changes_nothing() {
    let place = place();
    let before = (place.nodes(), links(&place));
    write(
        &place,
        r#"{"name": "two", "nodes": {"a": {"kind": "host"}}, "links": [{"endpoints": ["a:eth0", "x:eth0"]}]}"#,
    );
    let said = place.fails(&["apply", "new.json"], 3);
    assert!(
        said.contains("new.json:1:") && said.contains("there is no node `x`"),
        "{said}"
    );
    write(
        &place,
        r#"{"name": "other", "nodes": {"a": {"kind": "host"}}}"#,
    );
    let said = place.fails(&["apply", "new.json"], 1);
    assert!(
        said.contains("describes the lab other, and this is two"),
        "{said}"
    );
    let kernel = r#"{"name": "two", "nodes": {"a": {"kind": "host", "kernel": "nowhere"}}}"#;
    write(&place, kernel);
    for args in [
        &["apply", "--dry-run", "new.json"][..],
        &["apply", "new.json"],
    ] {
        let said = place.fails(args, 1);
        assert!(said.contains("node a cannot use"), "{said}");
    }
    // The socket of the switch for the new interface is somebody else's.
    let folder = place.run_folder().join("two/ports/c");
    std::fs::create_dir(&folder).unwrap();
    let taken = std::os::unix::net::UnixListener::bind(folder.join("eth0.sock")).unwrap();
    let said = place.fails(
        &[
            "add",
            r#"{"nodes": {"c": {"kind": "host"}}, "links": [{"endpoints": ["c:eth0", "a:eth1"]}]}"#,
        ],
        1,
    );
    assert!(said.contains("in use"), "{said}");
    drop(taken);

    let said = place.fails(&["add", r#"{"nodes": {"a": {"kind": "host"}}}"#], 1);
    assert!(said.contains("there is a node called a already"), "{said}");
    let said = place.fails(&["add", r#"{"node": 1}"#], 3);
    assert!(said.contains("neither `nodes` nor `links`"), "{said}");
    let said = place.fails(&["add", "{"], 3);
    assert!(said.contains("line 1 column 1"), "{said}");
    let said = place.fails(
        &["add", r#"{"links": [{"endpoints": ["a:eth0", "b:eth1"]}]}"#],
        3,
    );
    assert!(said.contains("`a:eth0` has a link already"), "{said}");
    let said = place.fails(&["rm", "node", "bb"], 4);
    assert!(said.contains("did you mean b?"), "{said}");
    place.fails(&["rm", "link", "x"], 4);
    assert_eq!((place.nodes(), links(&place)), before);
    place.ok(&["stop"]);
    place.assert_clean();
}

#[test]
fn of_two_at_once_one_is_told() {
    let place = place();
    let json = |name: &str| format!(r#"{{"nodes": {{"{name}": {{"kind": "host"}}}}}}"#);
    let children: Vec<_> = ["c", "d", "e"]
        .map(|name| {
            let mut vmm = place.vmm(&["add", &json(name)]);
            vmm.stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .into();
    let outputs: Vec<_> = children
        .into_iter()
        .map(|c| c.wait_with_output().unwrap())
        .collect();
    let done = outputs
        .iter()
        .filter(|output| output.status.success())
        .count();
    for output in outputs.iter().filter(|output| !output.status.success()) {
        assert!(
            text(output).contains("somebody else has changed the lab meanwhile"),
            "{}",
            text(output)
        );
    }
    assert!(done >= 1);
    assert_eq!(names(&place).len(), 2 + done);
    place.ok(&["stop"]);
    place.assert_clean();
}

/// A machine that came later and cannot be had is no reason to end the lab.
#[test]
fn a_new_node_that_fails_does_not_end_the_lab() {
    let place = Place::with_faults("c=die d=panic");
    let real = Place::with_real_switch();
    std::fs::copy(real.path("vswitch"), place.path("vswitch")).unwrap();
    place.launch();
    let said = place.fails(
        &[
            "add",
            r#"{"nodes": {"c": {"kind": "host"}, "d": {"kind": "host"}}}"#,
        ],
        6,
    );
    assert!(said.contains("does not get ready"), "{said}");
    place.ok(&["exec", "a", "--", "true"]);
    assert_eq!(names(&place), ["a", "b", "c", "d"]);
    place.ok(&["rm", "node", "c", "d"]);
    assert_eq!(names(&place), ["a", "b"]);
    place.ok(&["stop"]);
    place.assert_clean();
}

#[test]
fn followers_see_nodes_come_and_go() {
    let place = Place::with_real_switch();
    let lab = place.stay(&[]);
    place.ok(&["add", r#"{"nodes": {"c": {"kind": "host"}}}"#]);
    place.ok(&["rm", "node", "c"]);
    place.ok(&["stop"]);
    let (status, said) = lab.end();
    assert_eq!(status, Some(0), "{said}");
    assert!(
        said.contains("c: ready") && said.contains("c: removed"),
        "{said}"
    );
    place.assert_clean();
}

/// A client that is gone in the middle leaves a whole change behind, or none.
#[test]
fn a_client_that_dies_leaves_the_lab_as_it_was_or_as_it_is_to_be() {
    let place = place();
    for round in 0..8 {
        let json = r#"{"nodes": {"c": {"kind": "host"}, "s": {"kind": "switch"}}, "links": [{"endpoints": ["c:eth0", "s"]}]}"#;
        let mut vmm = place
            .vmm(&["add", json])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(5 * round));
        let _ = vmm.kill();
        vmm.wait().unwrap();
        place.wait_until("a whole change", || {
            let nodes = place.nodes();
            let nodes = nodes.as_array().unwrap();
            let settled = nodes.iter().all(|node| node["state"] == "ready");
            settled && (nodes.len(), links(&place).len()) == (4, 2)
                || (nodes.len(), links(&place).len()) == (2, 1)
        });
        // What the one who died has asked for may only now be done.
        place.wait_until("the lab is what it was", || {
            place.ok(&["apply", "lab.json"]);
            names(&place) == ["a", "b"]
        });
    }
    place.ok(&["stop"]);
    place.assert_clean();
}

#[test]
fn json_for_programs() {
    let place = place();
    let told: Value =
        serde_json::from_str(&place.ok(&["add", "--json", r#"{"nodes": {"h": {"kind": "hub"}}}"#]))
            .unwrap();
    let step = serde_json::json!({"action": "add", "subject": "node", "name": "h"});
    assert_eq!(
        (&told["applied"], &told["revision"], &told["steps"][0]),
        (&true.into(), &1.into(), &step)
    );
    let mut file = std::fs::File::create(place.path("bad.json")).unwrap();
    file.write_all(b"{}").unwrap();
    let said = place.fails(&["apply", "--json", "bad.json"], 3);
    let error: Value = serde_json::from_str(&said).unwrap();
    assert!(error.to_string().contains("nothing was changed"), "{error}");
    place.ok(&["stop"]);
    place.assert_clean();
}
