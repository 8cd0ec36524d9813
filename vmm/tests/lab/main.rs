//! Labs without virtual machines: the lab process, its API and its command line against test doubles of QEMU, its
//! guests and the switch.

mod change;
mod exec;
mod faults;
mod harness;
mod kills;
mod launch;
mod operate;
