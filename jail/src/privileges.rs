//! What the kernel would still allow a process with an empty root.

use std::fs;
use std::io;

use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Gid, Resource, Rlimit, Uid, getrlimit, parent_process_death_signal,
    set_dumpable_behavior, set_parent_process_death_signal, setrlimit,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

use crate::{Error, Plan};

/// How many users are mapped in the namespace that the system has started with.
const WHOLE_RANGE: &str = "4294967295";

/// The user of its own in its user namespace, and the group.
const OWN: u32 = 1;

fn fail(what: &'static str) -> impl FnOnce(Errno) -> Error {
    move |errno| Error::Privilege {
        what,
        source: io::Error::from(errno),
    }
}

/// Sets resource limits, which cannot be raised again.
pub fn limit(plan: &Plan) -> Result<(), Error> {
    let at_most = |resource, limit: u64| {
        let now = getrlimit(resource);
        let least = now.maximum.map_or(limit, |maximum| maximum.min(limit));
        let limits = Rlimit {
            current: Some(least),
            maximum: Some(least),
        };
        setrlimit(resource, limits).map_err(fail("set a resource limit"))
    };
    // A core file would hold the guest's memory.
    at_most(Resource::Core, 0)?;
    at_most(Resource::Fsize, plan.file_size)?;
    // Nothing here is real-time; a thread that spins at such a priority would own its processor.
    at_most(Resource::Rtprio, 0)?;
    if plan.descriptors > 0 {
        at_most(Resource::Nofile, plan.descriptors)?;
    }
    Ok(())
}

/// Forbids user namespaces below this process's own: in one it would have capabilities again, over what is in there, and with them a
/// larger part of the kernel to attack. Needs `/proc`, and the capabilities of its namespace.
pub fn forbid_user_namespaces() -> Result<(), Error> {
    let fail = |source| Error::Privilege {
        what: "forbid user namespaces",
        source,
    };
    // The limit is that of the namespace which the writer is in, and in the host's it would be everybody's.
    let map = fs::read_to_string("/proc/self/uid_map").map_err(fail)?;
    if map.split_ascii_whitespace().next_back() == Some(WHOLE_RANGE) {
        return Ok(());
    }
    fs::write("/proc/sys/user/max_user_namespaces", "0").map_err(fail)
}

/// Becomes user and group 1 of its user namespace, and a member of no other group.
fn become_own_user() -> Result<(), Error> {
    // setresuid(2) and the like clear it (prctl(2)).
    let dies_with = parent_process_death_signal().map_err(fail("read its parent-death signal"))?;
    let (user, group) = (Uid::from_raw(OWN), Gid::from_raw(OWN));
    set_thread_groups(&[]).map_err(fail("leave its groups"))?;
    set_thread_res_gid(group, group, group).map_err(fail("become a group of its own"))?;
    set_thread_res_uid(user, user, user).map_err(fail("become a user of its own"))?;
    set_parent_process_death_signal(dies_with).map_err(fail("set its parent-death signal"))
}

/// Gives up all capabilities, those over the network excepted if the plan says so, and every way to get one back.
pub fn drop_all(plan: &Plan) -> Result<(), Error> {
    let keep = if plan.network {
        CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW
    } else {
        CapabilitySet::empty()
    };
    // First, as it takes a capability itself. The kernel may know fewer of them than this program.
    for number in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if keep.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            // EPERM: an ordinary user in no namespace of its own. With no_new_privs the bounding set bounds nothing.
            Ok(()) | Err(Errno::PERM) => {}
            Err(Errno::INVAL) => break,
            Err(errno) => return Err(fail("empty the capability bounding set")(errno)),
        }
    }
    clear_ambient_capability_set().map_err(fail("clear the ambient capabilities"))?;
    if plan.own_user {
        become_own_user()?;
    }
    let permitted = rustix::thread::capabilities(None)
        .map_err(fail("read its capabilities"))?
        .permitted;
    let sets = CapabilitySets {
        effective: permitted & keep,
        permitted: permitted & keep,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).map_err(fail("give up its capabilities"))?;
    // No program that it executes, set-user-ID or with file capabilities, brings them back. Seccomp and Landlock need it too.
    set_no_new_privs(true).map_err(fail("renounce new privileges"))?;
    // Other users cannot read its memory, the guest's, through /proc; it leaves no core.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(fail("become undumpable"))
}
