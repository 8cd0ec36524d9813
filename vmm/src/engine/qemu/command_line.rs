//! QEMU's command line for a machine.

use std::path::Path;

use monitor::{NicConfig, NodeConfig};

/// First PCI slot of the NICs; those before hold the host bridge, the disk, the agent's port, rng and pvpanic.
const FIRST_NIC_SLOT: usize = 5;
/// Slots from there to the last before the ICH9's own (0x1f).
const NIC_SLOTS: usize = 0x1f - FIRST_NIC_SLOT;

/// QEMU's largest receive queue, and with a vhost-user back-end its largest transmit queue as well.
const QUEUE_MAX: u16 = 1024;
/// QEMU's largest transmit queue with a TAP device behind it.
const TAP_TRANSMIT_MAX: u16 = 256;
/// QEMU's smallest receive and transmit queue.
const QUEUE_MIN: u16 = 256;

/// The queue size that QEMU grants for the one that was asked for.
pub fn queue_size(asked: u16) -> u16 {
    asked.clamp(QUEUE_MIN, QUEUE_MAX)
}

/// What QEMU has of its host. Numbers are those of descriptors that it inherits.
#[derive(Debug, Clone, Copy)]
pub struct Host {
    /// KVM runs the guest; else it is emulated.
    pub kvm: bool,
    /// The listening socket for its monitor protocol.
    pub qmp: u8,
    /// The listening socket for the guest's agent.
    pub agent: u8,
    /// TAP devices behind its NICs, instead of the switch.
    pub taps: Option<Taps>,
}

/// The TAP devices of all NICs, one after the other.
#[derive(Debug, Clone, Copy)]
pub struct Taps {
    /// The first.
    pub first: usize,
    /// Each is followed by one of vhost-net.
    pub vhost: bool,
}

/// QEMU's arguments. The serial port is its standard input and output.
pub fn build(config: &NodeConfig, host: &Host) -> Vec<String> {
    let mib = config.memory >> 20;
    let mut args = Args::default();
    args.flag("-nodefaults");
    args.flag("-no-user-config");
    args.pair("-display", "none");
    args.pair("-name", &format!("guest={}", escape(&config.name)));
    args.pair(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    );
    // A restart is a new process: the lab decides on it. The log tells a triple fault from a reboot.
    args.pair(
        "-action",
        "reboot=shutdown,shutdown=poweroff,panic=shutdown",
    );
    args.pair("-d", "cpu_reset");
    if host.kvm {
        args.pair("-accel", "kvm");
    } else {
        // TCG's cache of translated code defaults to a gigabyte of address space, most of which a small guest fills.
        let threads = if config.vcpus > 1 { "multi" } else { "single" };
        args.pair("-accel", &format!("tcg,thread={threads},tb-size=64"));
    }
    args.pair(
        "-machine",
        "q35,memory-backend=ram,hpet=off,vmport=off,usb=off,sata=off,smbus=off",
    );
    args.pair("-cpu", "max");
    args.pair("-smp", &config.vcpus.to_string());
    args.pair("-m", &format!("{mib}M"));
    args.pair(
        "-object",
        &format!("memory-backend-memfd,id=ram,size={mib}M,share=on,seal=on"),
    );
    args.pair("-kernel", &path(&config.kernel));
    args.pair("-append", &kernel_command_line(config.cmdline.as_deref()));
    args.pair(
        "-chardev",
        &format!("socket,id=qmp,fd={},server=on,wait=off", host.qmp),
    );
    args.pair("-mon", "chardev=qmp,mode=control");
    args.pair("-chardev", "stdio,id=serial,signal=off");
    args.pair("-serial", "chardev:serial");
    args.pair(
        "-blockdev",
        &format!(
            "driver=file,node-name=rootfile,filename={},read-only=on,locking=off",
            path(&config.rootfs)
        ),
    );
    args.pair(
        "-blockdev",
        "driver=raw,node-name=root,file=rootfile,read-only=on",
    );
    args.pair(
        "-device",
        "virtio-blk-pci,drive=root,addr=1,romfile=,disable-legacy=on",
    );
    args.pair(
        "-chardev",
        &format!("socket,id=agent,fd={},server=on,wait=off", host.agent),
    );
    args.pair(
        "-device",
        "virtio-serial-pci,addr=2,disable-legacy=on,max_ports=2",
    );
    args.pair(
        "-device",
        &format!(
            "virtserialport,chardev=agent,name={}",
            agent_protocol::PORT_NAME
        ),
    );
    args.pair("-object", "rng-random,id=rng,filename=/dev/urandom");
    args.pair("-device", "virtio-rng-pci,rng=rng,addr=3,disable-legacy=on");
    args.pair("-device", "pvpanic-pci,addr=4");
    for (index, nic) in config.nics.iter().enumerate() {
        let (slot, function) = (FIRST_NIC_SLOT + index % NIC_SLOTS, index / NIC_SLOTS);
        let multifunction = config.nics.len() > NIC_SLOTS;
        let address = format!("{slot:#x}.{function}");
        args.nic(index, nic, host, &address, multifunction);
    }
    args.0
}

/// The guest kernel's own command line.
fn kernel_command_line(more: Option<&str>) -> String {
    // The last: an emulated processor that had to wait for this machine's makes the kernel believe that its timer is broken, and panic.
    let line = "console=ttyS0 root=/dev/vda rootfstype=erofs ro init=/sbin/hopyard-agent panic=-1 quiet \
        no_timer_check";
    [line, more.unwrap_or_default()]
        .join(" ")
        .trim_end()
        .to_owned()
}

#[derive(Default)]
struct Args(Vec<String>);

impl Args {
    fn flag(&mut self, name: &str) {
        self.0.push(name.to_owned());
    }

    fn pair(&mut self, name: &str, value: &str) {
        self.0.extend([name.to_owned(), value.to_owned()]);
    }

    fn nic(
        &mut self,
        index: usize,
        nic: &NicConfig,
        host: &Host,
        address: &str,
        multifunction: bool,
    ) {
        let queue = queue_size(nic.queue_size);
        let multifunction = if multifunction {
            ",multifunction=on"
        } else {
            ""
        };
        let netdev = netdev(index);
        let transmit = if let Some(Taps { first, vhost }) = host.taps {
            let each = if vhost { 2 } else { 1 };
            let tap = first + each * index;
            let vhost = if vhost {
                format!(",vhost=on,vhostfd={}", tap + 1)
            } else {
                String::new()
            };
            self.pair("-netdev", &format!("tap,id={netdev},fd={tap}{vhost}"));
            queue.min(TAP_TRANSMIT_MAX)
        } else {
            self.pair(
                "-chardev",
                // A switch that is started again is tried for every second; QEMU has nothing finer before 9.2.
                &format!(
                    "socket,id=port{index},path={},reconnect=1",
                    path(&nic.socket)
                ),
            );
            self.pair(
                "-netdev",
                &format!("vhost-user,id={netdev},chardev=port{index}"),
            );
            queue
        };
        // With MSI-X, QEMU 7.2 under TCG crashes when a vhost-user queue starts.
        let vectors = if host.kvm || host.taps.is_some() {
            ""
        } else {
            ",vectors=0"
        };
        self.pair(
            "-device",
            &format!(
                "virtio-net-pci,netdev={netdev},mac={},addr={address}{multifunction}{vectors},romfile=,\
                 disable-legacy=on,host_mtu={},rx_queue_size={queue},tx_queue_size={transmit}",
                nic.mac, nic.mtu
            ),
        );
    }
}

/// QEMU's name of the back-end of a node's `index`-th NIC.
pub fn netdev(index: usize) -> String {
    format!("net{index}")
}

fn path(path: &Path) -> String {
    escape(&path.to_string_lossy())
}

/// A comma ends a value unless it is doubled.
fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn config(nics: usize) -> NodeConfig {
        NodeConfig {
            name: "r1".into(),
            kernel: "/image/vmlinux".into(),
            rootfs: "/image/root,fs.erofs".into(),
            memory: 256 << 20,
            vcpus: 1,
            nics: (0..nics)
                .map(|n| NicConfig {
                    socket: format!("/run/lab/ports/r1.eth{n}.sock").into(),
                    mac: format!("02:00:00:00:00:{n:02x}"),
                    mtu: 1500,
                    queue_size: 1024,
                    carrier: true,
                })
                .collect(),
            agent_socket: "/run/lab/nodes/r1/agent.sock".into(),
            serial_log: "/run/lab/nodes/r1/serial.log".into(),
            cmdline: None,
        }
    }

    fn line(nics: usize) -> Vec<String> {
        build(&config(nics), &EMULATED)
    }

    const EMULATED: Host = Host {
        kvm: false,
        qmp: 3,
        agent: 4,
        taps: None,
    };

    #[test]
    fn taps_are_inherited_in_the_order_of_the_nics() {
        let taps = |vhost| {
            let host = Host {
                kvm: true,
                taps: Some(Taps { first: 5, vhost }),
                ..EMULATED
            };
            let line = build(&config(2), &host);
            let taps = line.iter().filter(|arg| arg.starts_with("tap,"));
            taps.cloned().collect::<Vec<_>>()
        };
        assert_eq!(taps(false), ["tap,id=net0,fd=5", "tap,id=net1,fd=6"]);
        assert_eq!(
            taps(true),
            [
                "tap,id=net0,fd=5,vhost=on,vhostfd=6",
                "tap,id=net1,fd=7,vhost=on,vhostfd=8"
            ]
        );
    }

    fn value_of<'a>(line: &'a [String], start: &str) -> &'a str {
        line.iter().find(|arg| arg.starts_with(start)).unwrap()
    }

    #[test]
    fn memory_is_shared_and_sealed() {
        let line = line(1);
        let memory = value_of(&line, "memory-backend-memfd");
        assert!(
            memory.contains("share=on")
                && memory.contains("seal=on")
                && memory.contains("size=256M")
        );
        assert!(value_of(&line, "q35").contains("memory-backend=ram"));
    }

    #[test]
    fn nics_use_no_msix_and_keep_the_order_of_the_file() {
        let line = line(2);
        let nics: Vec<_> = line
            .iter()
            .filter(|arg| arg.starts_with("virtio-net-pci"))
            .collect();
        assert_eq!(nics.len(), 2);
        assert!(nics.iter().all(|nic| nic.contains(",vectors=0,")));
        assert!(nics[0].contains("mac=02:00:00:00:00:00,addr=0x5.0,"));
        assert!(nics[1].contains("mac=02:00:00:00:00:01,addr=0x6.0,"));
        assert!(line.contains(&"vhost-user,id=net1,chardev=port1".to_owned()));
    }

    #[test]
    fn many_nics_fit_the_bus_without_a_clash() {
        for count in [24, 26, 27, 100, 200] {
            let line = line(count);
            let addresses: HashSet<_> = line
                .iter()
                .filter(|arg| arg.starts_with("virtio-net-pci"))
                .map(|arg| {
                    arg.split("addr=")
                        .nth(1)
                        .unwrap()
                        .split(',')
                        .next()
                        .unwrap()
                })
                .collect();
            assert_eq!(addresses.len(), count);
            assert!(addresses.iter().all(|address| {
                let (slot, function) = address.split_once('.').unwrap();
                let slot = u8::from_str_radix(slot.trim_start_matches("0x"), 16).unwrap();
                (5..0x1f).contains(&slot) && function.parse::<u8>().unwrap() < 8
            }));
            let multifunction = line.iter().any(|arg| arg.contains("multifunction=on"));
            assert_eq!(multifunction, count > NIC_SLOTS);
        }
    }

    #[test]
    fn commas_in_paths_do_not_end_values() {
        assert!(value_of(&line(0), "driver=file").contains("/image/root,,fs.erofs,read-only=on"));
    }

    #[test]
    fn queue_sizes_are_those_qemu_takes() {
        assert_eq!(
            [64, 256, 512, 1024, 32768].map(queue_size),
            [256, 256, 512, 1024, 1024]
        );
    }
}
