//! Labs without virtual machines: the lab process, its API and its command line against test doubles of QEMU, its
//! guests and the switch.

mod adopt;
mod api;
mod capture;
mod change;
mod console;
mod cp;
mod exec;
mod faults;
mod harness;
mod kills;
mod launch;
mod look;
mod operate;
mod verify;
mod zones;
