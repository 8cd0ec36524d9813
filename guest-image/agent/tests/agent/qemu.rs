//! A node under QEMU, without KVM.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::client::Client;

/// A running machine.
pub struct Machine {
    qemu: Child,
    folder: tempfile::TempDir,
}

/// The image to test, or why there is none.
pub fn image() -> Result<PathBuf, String> {
    let cache = std::env::var_os("HOPYARD_CACHE")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("XDG_CACHE_HOME")?).join("hopyard")))
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/hopyard")));
    let image = std::env::var_os("HOPYARD_IMAGE")
        .map(PathBuf::from)
        .or_else(|| Some(cache?.join("current")));
    let image = image.filter(|image| image.join("vmlinux").exists());
    let Some(image) = image else {
        return Err("there is no guest image; guest-image/build makes one".into());
    };
    match Command::new("qemu-system-x86_64")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
    {
        Ok(_) => Ok(image),
        Err(_) => Err("there is no qemu-system-x86_64".into()),
    }
}

impl Machine {
    /// Starts one whose NICs, in this order, have these addresses and lead nowhere.
    pub fn start(macs: &[&str]) -> Self {
        let image = image().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-machine", "q35,accel=tcg", "-cpu", "max", "-m", "256", "-nodefaults", "-no-user-config"])
            .args(["-display", "none", "-no-reboot"])
            .args(["-serial", &format!("file:{}", path("serial.log"))])
            .arg("-kernel")
            .arg(image.join("vmlinux"))
            .args(["-append", "console=ttyS0 root=/dev/vda ro rootfstype=erofs init=/sbin/hopyard-agent panic=-1 quiet"])
            .args(["-drive", &format!("file={},if=none,id=r,format=raw,readonly=on", image.join("rootfs.erofs").display())])
            .args(["-device", "virtio-blk-pci,drive=r", "-device", "virtio-rng-pci", "-device", "virtio-serial-pci"])
            .args(["-chardev", &format!("socket,id=agent,path={},server=on,wait=off", path("agent.sock"))])
            .args(["-device", "virtserialport,chardev=agent,name=hopyard.agent"]);
        for (number, mac) in macs.iter().enumerate() {
            command
                .args(["-netdev", &format!("hubport,id=n{number},hubid={number}")])
                .args([
                    "-device",
                    &format!("virtio-net-pci,netdev=n{number},mac={mac}"),
                ]);
        }
        Self {
            qemu: command.stdin(Stdio::null()).spawn().unwrap(),
            folder,
        }
    }

    /// Connects to the agent's port.
    pub fn connect(&self) -> Client {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            match UnixStream::connect(self.folder.path().join("agent.sock")) {
                Ok(socket) => return Client::new(socket),
                Err(error) if Instant::now() > deadline => {
                    panic!("QEMU does not open the port: {error}")
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// Waits for the machine to be gone.
    pub fn wait(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        while self.qemu.try_wait().unwrap().is_none() {
            assert!(
                Instant::now() < deadline,
                "the machine is still on; its console: {}",
                self.console()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What it has written to its serial port.
    pub fn console(&self) -> String {
        let text = fs::read(self.folder.path().join("serial.log")).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("console: {}", self.console());
        }
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}
