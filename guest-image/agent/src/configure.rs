//! Turns a node's description into its configuration: names, files, kernel settings, interfaces, routes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use agent_protocol::{FileDescription, InterfaceDescription, NodeDescription, RouteDescription};

use crate::environment;

/// Why a node cannot be what its description says; for people.
#[derive(Debug, thiserror::Error)]
pub enum ConfigureError {
    #[error("the host name {0:?} cannot be set: {1}")]
    Hostname(String, rustix::io::Errno),
    #[error("the file {path} cannot be written: {error}")]
    File { path: String, error: io::Error },
    #[error("{0:?} is not the name of a kernel setting")]
    SysctlName(String),
    #[error(
        "the kernel setting {name} does not exist in this kernel; `sysctl -a` in a node lists those that do"
    )]
    NoSysctl { name: String },
    #[error("the kernel setting {name} cannot be set to {value:?}: {error}")]
    Sysctl {
        name: String,
        value: String,
        error: io::Error,
    },
    #[error(
        "there is no NIC with the address {mac} for interface {name}; the NICs here: {present}"
    )]
    NoNic {
        name: String,
        mac: String,
        present: String,
    },
    #[error("the program `ip` cannot be run: {0}; is iproute2 in the root file system?")]
    NoIp(io::Error),
    #[error("`ip {line}` failed: {message}")]
    Ip { line: String, message: String },
}

/// Does all of it, in the order in which one thing needs another.
pub fn configure(node: &NodeDescription) -> Result<(), ConfigureError> {
    rustix::system::sethostname(node.hostname.as_bytes())
        .map_err(|error| ConfigureError::Hostname(node.hostname.clone(), error))?;
    write_file("/etc/hostname", &format!("{}\n", node.hostname), 0o644)?;
    write_file("/etc/hosts", &hosts(&node.hosts), 0o644)?;
    for FileDescription {
        path,
        content,
        mode,
    } in &node.files
    {
        write_file(path, content, *mode)?;
    }
    let present = nics(Path::new("/sys/class/net"));
    ip(&renames(&node.interfaces, &present)?)?;
    // Addresses are unique by construction: nothing is gained by waiting a second for their probes.
    for scope in ["all", "default"]
        .into_iter()
        .chain(node.interfaces.iter().map(|i| i.name.as_str()))
    {
        match set_sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), "0") {
            // A user's own kernel may have no IPv6.
            Ok(()) | Err(ConfigureError::NoSysctl { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    for (name, value) in &node.sysctls {
        set_sysctl(name, value)?;
    }
    ip(&network(&node.interfaces, &node.routes))
}

fn hosts(entries: &[(String, String)]) -> String {
    let mut text = String::from("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n");
    for (address, name) in entries {
        let _ = writeln!(text, "{address} {name}");
    }
    text
}

pub(crate) fn write_file(path: &str, content: &str, mode: u32) -> Result<(), ConfigureError> {
    let attempt = || {
        let path = Path::new(path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(path, content)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777))
    };
    attempt().map_err(|error| ConfigureError::File {
        path: path.into(),
        error,
    })
}

/// The path below `/proc/sys` of a setting in either notation of sysctl(8): the separator that comes first separates,
/// the other stands for a dot in a name (`net.ipv4.conf.eth0/100.forwarding`).
fn sysctl_path(name: &str) -> Result<String, ConfigureError> {
    let slashes_separate = name
        .find(['.', '/'])
        .is_some_and(|at| name[at..].starts_with('/'));
    let path: String = if slashes_separate {
        name.into()
    } else {
        name.chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect()
    };
    if path
        .split('/')
        .any(|part| part.is_empty() || part == "." || part == "..")
    {
        return Err(ConfigureError::SysctlName(name.into()));
    }
    Ok(path)
}

fn set_sysctl(name: &str, value: &str) -> Result<(), ConfigureError> {
    let path = Path::new("/proc/sys").join(sysctl_path(name)?);
    fs::write(path, value).map_err(|error| {
        let name = name.to_owned();
        if error.kind() == io::ErrorKind::NotFound {
            ConfigureError::NoSysctl { name }
        } else {
            ConfigureError::Sysctl {
                name,
                value: value.into(),
                error,
            }
        }
    })
}

/// NICs of this machine: address to name. What the kernel or a command built itself is not among them: tunnels have no Ethernet address,
/// a bridge or VLAN is on top of others and may carry the address of one of them.
fn nics(folder: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path: PathBuf = entry.path();
        if let Ok(address) = fs::read_to_string(path.join("address"))
            && is_ethernet(&path, &address)
            && !is_built_on_others(&path)
        {
            found.insert(
                address.trim().to_lowercase(),
                entry.file_name().to_string_lossy().into_owned(),
            );
        }
    }
    found
}

/// Tunnels of the Ethernet kind (`gretap0`, `erspan0`) that the kernel puts into every namespace have an address of zeros.
fn is_ethernet(interface: &Path, address: &str) -> bool {
    const ARPHRD_ETHER: &str = "1";
    fs::read_to_string(interface.join("type")).is_ok_and(|kind| kind.trim() == ARPHRD_ETHER)
        && address.contains(|c: char| !matches!(c, '0' | ':' | '\n'))
}

fn is_built_on_others(interface: &Path) -> bool {
    interface.join("bridge").exists()
        || fs::read_dir(interface)
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| entry.file_name().as_encoded_bytes().starts_with(b"lower_"))
}

/// `ip` lines that give the NICs their names. If a new name is still held by another NIC, all go by way of
/// temporary names.
fn renames(
    interfaces: &[InterfaceDescription],
    present: &BTreeMap<String, String>,
) -> Result<Vec<String>, ConfigureError> {
    let mut wanted = Vec::new();
    for interface in interfaces {
        let current =
            present
                .get(&interface.mac.to_lowercase())
                .ok_or_else(|| ConfigureError::NoNic {
                    name: interface.name.clone(),
                    mac: interface.mac.clone(),
                    present: if present.is_empty() {
                        "none".into()
                    } else {
                        present
                            .iter()
                            .map(|(mac, name)| format!("{mac} ({name})"))
                            .collect::<Vec<_>>()
                            .join(", ")
                    },
                })?;
        if *current != interface.name {
            wanted.push((current, &interface.name));
        }
    }
    let taken = wanted
        .iter()
        .any(|(_, new)| present.values().any(|old| old == *new));
    let mut lines = Vec::new();
    if taken {
        // A NIC that is not in the description may hold a name, too.
        for (number, old) in present.values().enumerate() {
            if wanted
                .iter()
                .any(|(current, new)| *current == old || *new == old)
            {
                lines.push(format!("link set dev {old} name hopyard{number}"));
            }
        }
        for (current, new) in &wanted {
            let number = present
                .values()
                .position(|old| old == *current)
                .unwrap_or_default();
            lines.push(format!("link set dev hopyard{number} name {new}"));
        }
    } else {
        lines.extend(
            wanted
                .iter()
                .map(|(current, new)| format!("link set dev {current} name {new}")),
        );
    }
    Ok(lines)
}

/// `ip` lines for everything above layer 1.
fn network(interfaces: &[InterfaceDescription], routes: &[RouteDescription]) -> Vec<String> {
    let mut lines = vec!["link set dev lo up".to_owned()];
    for InterfaceDescription {
        name,
        mtu,
        addresses,
        ..
    } in interfaces
    {
        lines.push(format!("link set dev {name} mtu {mtu} up"));
        for address in addresses {
            let extra = if address.contains(':') {
                "nodad"
            } else {
                "brd +"
            };
            lines.push(format!("addr add {address} {extra} dev {name}"));
        }
    }
    for RouteDescription {
        to,
        via,
        dev,
        metric,
    } in routes
    {
        let mut line = format!("route add {to}");
        if let Some(via) = via {
            let family = match via.parse() {
                Ok(IpAddr::V6(_)) if !to.contains(':') => "inet6 ",
                _ => "",
            };
            let _ = write!(line, " via {family}{via}");
        }
        if let Some(dev) = dev {
            let _ = write!(line, " dev {dev}");
        }
        if let Some(metric) = metric {
            let _ = write!(line, " metric {metric}");
        }
        lines.push(line);
    }
    lines
}

/// Runs `ip` once for all lines; it stops at the first that fails.
fn ip(lines: &[String]) -> Result<(), ConfigureError> {
    if lines.is_empty() {
        return Ok(());
    }
    let mut command = Command::new("ip");
    environment::apply(&mut command);
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(ConfigureError::NoIp)?;
    if let Some(mut stdin) = child.stdin.take() {
        // If `ip` ends early, its status says why.
        let _ = stdin.write_all((lines.join("\n") + "\n").as_bytes());
    }
    let output = child.wait_with_output().map_err(ConfigureError::NoIp)?;
    if output.status.success() {
        return Ok(());
    }
    Err(ip_error(lines, &String::from_utf8_lossy(&output.stderr)))
}

/// `ip` says `Command failed -:3` for the third line, after the reason.
fn ip_error(lines: &[String], stderr: &str) -> ConfigureError {
    let line = stderr
        .lines()
        .find_map(|line| {
            line.strip_prefix("Command failed -:")?
                .trim()
                .parse::<usize>()
                .ok()
        })
        .and_then(|number| lines.get(number.checked_sub(1)?))
        .map_or("-batch", String::as_str);
    let reasons: Vec<_> = stderr
        .lines()
        .filter(|line| !line.starts_with("Command failed"))
        .map(str::trim)
        .collect();
    ConfigureError::Ip {
        line: line.into(),
        message: reasons.join("; "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str, mac: &str) -> InterfaceDescription {
        InterfaceDescription {
            name: name.into(),
            mac: mac.into(),
            mtu: 1500,
            addresses: Vec::new(),
        }
    }

    fn present(nics: &[(&str, &str)]) -> BTreeMap<String, String> {
        nics.iter()
            .map(|(mac, name)| ((*mac).into(), (*name).into()))
            .collect()
    }

    #[test]
    fn names_that_are_right_stay() {
        let lines = renames(
            &[interface("eth0", "02:00:00:00:00:0A")],
            &present(&[("02:00:00:00:00:0a", "eth0")]),
        );
        assert!(lines.unwrap().is_empty());
    }

    #[test]
    fn swapped_names_go_by_way_of_others() {
        let lines = renames(
            &[
                interface("eth0", "b"),
                interface("eth1", "a"),
                interface("wan", "c"),
            ],
            &present(&[("a", "eth0"), ("b", "eth1"), ("c", "eth2")]),
        );
        assert_eq!(
            lines.unwrap(),
            [
                "link set dev eth0 name hopyard0",
                "link set dev eth1 name hopyard1",
                "link set dev eth2 name hopyard2",
                "link set dev hopyard1 name eth0",
                "link set dev hopyard0 name eth1",
                "link set dev hopyard2 name wan",
            ]
        );
    }

    #[test]
    fn a_name_held_by_a_nic_of_nobody_is_freed() {
        let lines = renames(
            &[interface("eth0", "b")],
            &present(&[("a", "eth0"), ("b", "eth1")]),
        );
        assert_eq!(
            lines.unwrap(),
            [
                "link set dev eth0 name hopyard0",
                "link set dev eth1 name hopyard1",
                "link set dev hopyard1 name eth0"
            ]
        );
    }

    #[test]
    fn a_missing_nic_is_named_with_those_that_are_there() {
        let error = renames(&[interface("eth1", "x")], &present(&[("a", "eth0")])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no NIC with the address x for interface eth1; the NICs here: a (eth0)"
        );
    }

    #[test]
    fn addresses_and_routes_become_lines() {
        let lines = network(
            &[InterfaceDescription {
                addresses: vec!["10.0.0.1/24".into(), "fd00::1/64".into()],
                ..interface("eth0", "a")
            }],
            &[
                RouteDescription {
                    to: "0.0.0.0/0".into(),
                    via: Some("10.0.0.2".into()),
                    dev: None,
                    metric: Some(5),
                },
                RouteDescription {
                    to: "10.9.0.0/16".into(),
                    via: Some("fd00::2".into()),
                    dev: Some("eth0".into()),
                    metric: None,
                },
            ],
        );
        assert_eq!(
            lines,
            [
                "link set dev lo up",
                "link set dev eth0 mtu 1500 up",
                "addr add 10.0.0.1/24 brd + dev eth0",
                "addr add fd00::1/64 nodad dev eth0",
                "route add 0.0.0.0/0 via 10.0.0.2 metric 5",
                "route add 10.9.0.0/16 via inet6 fd00::2 dev eth0",
            ]
        );
    }

    #[test]
    fn sysctl_names_in_both_notations() {
        let path = |name| sysctl_path(name).unwrap();
        assert_eq!(path("net.ipv4.ip_forward"), "net/ipv4/ip_forward");
        assert_eq!(
            path("net.ipv4.conf.eth0/100.forwarding"),
            "net/ipv4/conf/eth0.100/forwarding"
        );
        assert_eq!(
            path("net/ipv4/conf/eth0.100/forwarding"),
            "net/ipv4/conf/eth0.100/forwarding"
        );
        assert!(sysctl_path("net/../../etc/passwd").is_err());
        assert!(sysctl_path("net..x").is_err());
        assert!(sysctl_path("").is_err());
    }

    #[test]
    fn the_line_that_failed_is_quoted() {
        let lines = [
            "link set dev lo up".to_owned(),
            "addr add 10.0.0.1/24 dev nix".to_owned(),
        ];
        let error = ip_error(&lines, "Cannot find device \"nix\"\nCommand failed -:2\n");
        assert_eq!(
            error.to_string(),
            "`ip addr add 10.0.0.1/24 dev nix` failed: Cannot find device \"nix\""
        );
        let error = ip_error(&lines, "Object \"x\" is unknown\n");
        assert_eq!(
            error.to_string(),
            "`ip -batch` failed: Object \"x\" is unknown"
        );
    }

    #[test]
    fn hosts_begin_with_the_loopback() {
        let text = hosts(&[("10.0.0.1".into(), "pc1".into())]);
        assert_eq!(
            text,
            "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n10.0.0.1 pc1\n"
        );
    }
}
