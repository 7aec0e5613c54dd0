//! Ids, capabilities and limits of a process that is about to become a program in a container.

use rustix::fs::{Gid, Mode, Uid};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::fault::{Fault, Result};
use super::process_settings::{Capabilities, Process};

/// No user has this number: it means "leave as it is" to the kernel.
const NO_ID: u32 = u32::MAX;
/// Mode bits that new files lack where the container says nothing.
const DEFAULT_UMASK: u32 = 0o022;
/// The highest capability of a kernel that does not tell.
const LAST_CAPABILITY_KNOWN: u32 = 40;

/// Resource limits, within what this process may still set.
pub fn set_limits(process: &Process) -> Result<()> {
    for limit in &process.rlimits {
        let resource = resource(&limit.name)?;
        // Who is not privileged cannot raise a hard limit; the container's own first process could not either.
        let most = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
        let hard = limit.hard.min(most);
        let bound = |value: u64| (value != u64::MAX).then_some(value);
        let wanted = Rlimit { current: bound(limit.soft.min(hard)), maximum: bound(hard) };
        rustix::process::setrlimit(resource, wanted).map_err(Fault::io(format!("cannot set {}", limit.name)))?;
    }
    Ok(())
}

fn resource(name: &str) -> Result<Resource> {
    Ok(match name {
        "RLIMIT_CPU" => Resource::Cpu,
        "RLIMIT_FSIZE" => Resource::Fsize,
        "RLIMIT_DATA" => Resource::Data,
        "RLIMIT_STACK" => Resource::Stack,
        "RLIMIT_CORE" => Resource::Core,
        "RLIMIT_RSS" => Resource::Rss,
        "RLIMIT_NPROC" => Resource::Nproc,
        "RLIMIT_NOFILE" => Resource::Nofile,
        "RLIMIT_MEMLOCK" => Resource::Memlock,
        "RLIMIT_AS" => Resource::As,
        "RLIMIT_LOCKS" => Resource::Locks,
        "RLIMIT_SIGPENDING" => Resource::Sigpending,
        "RLIMIT_MSGQUEUE" => Resource::Msgqueue,
        "RLIMIT_NICE" => Resource::Nice,
        "RLIMIT_RTPRIO" => Resource::Rtprio,
        "RLIMIT_RTTIME" => Resource::Rttime,
        other => return Err(Fault::invalid(format!("{other:?} is not a resource limit"))),
    })
}

/// Groups, group, user; capabilities are kept over the change.
pub fn set_ids(process: &Process) -> Result<()> {
    let user = &process.user;
    if user.uid == NO_ID || user.gid == NO_ID {
        return Err(Fault::invalid("the container's user is no id"));
    }
    let groups: Vec<Gid> = user.additional_gids.iter().map(|&gid| Gid::from_raw(gid)).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::thread::set_keep_capabilities(true).map_err(Fault::io("cannot keep capabilities"))?;
    match rustix::thread::set_thread_groups(&groups) {
        // The user namespace denies it to everybody, so the daemon asks for no group.
        Err(rustix::io::Errno::PERM) if groups.is_empty() && may_set_groups()? => {}
        outcome => outcome.map_err(Fault::io("cannot set the supplementary groups"))?,
    }
    rustix::thread::set_thread_res_gid(gid, gid, gid)
        .map_err(Fault::io(format!("cannot become group {}", user.gid)))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(Fault::io(format!("cannot become user {}", user.uid)))?;
    rustix::process::umask(Mode::from_raw_mode(user.umask.unwrap_or(DEFAULT_UMASK)));
    Ok(())
}

fn may_set_groups() -> Result<bool> {
    let had = rustix::thread::capabilities(None).map_err(Fault::io("cannot read capabilities"))?;
    Ok(had.effective.contains(CapabilitySet::SETGID))
}

/// While there still is a capability to do it with.
pub fn narrow_bounding_set(wanted: &Capabilities, last: u32) -> Result<()> {
    let bounding = set_of(&wanted.bounding)?;
    for number in 0..=last {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if !bounding.contains(one) {
            rustix::thread::remove_capability_from_bounding_set(one)
                .map_err(Fault::io("cannot narrow the bounding set"))?;
        }
    }
    Ok(())
}

/// Leaves only what is `wanted` and what is `needed` to get there.
pub fn narrow_to(wanted: &Capabilities, needed: &[caps::Capability], last: u32) -> Result<()> {
    narrow_bounding_set(wanted, last)?;
    let needed =
        needed.iter().fold(CapabilitySet::empty(), |set, one| set | CapabilitySet::from_bits_retain(one.bitmask()));
    let had = rustix::thread::capabilities(None).map_err(Fault::io("cannot read capabilities"))?;
    let permitted = had.permitted & (set_of(&wanted.permitted)? | needed);
    let sets = CapabilitySets { effective: permitted, permitted, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).map_err(Fault::io("cannot set capabilities"))
}

/// To be called when the ids are set.
pub fn set_capabilities(wanted: &Capabilities) -> Result<()> {
    let permitted = set_of(&wanted.permitted)?;
    let effective = set_of(&wanted.effective)? & permitted;
    let ambient = set_of(&wanted.ambient)? & permitted;
    // What is inherited is only what is ambient, else nothing.
    let sets = CapabilitySets { effective, permitted, inheritable: ambient };
    rustix::thread::set_capabilities(None, sets).map_err(Fault::io("cannot set capabilities"))?;
    rustix::thread::clear_ambient_capability_set().map_err(Fault::io("cannot clear ambient capabilities"))?;
    for one in ambient.iter() {
        rustix::thread::configure_capability_in_ambient_set(one, true)
            .map_err(Fault::io("cannot set an ambient capability"))?;
    }
    rustix::thread::set_keep_capabilities(false).map_err(Fault::io("cannot reset capabilities"))
}

fn set_of(names: &[String]) -> Result<CapabilitySet> {
    let mut set = CapabilitySet::empty();
    for name in names {
        let known: caps::Capability = name.parse().map_err(|_| Fault::invalid(format!("{name:?} is no capability")))?;
        set |= CapabilitySet::from_bits_retain(known.bitmask());
    }
    Ok(set)
}

/// Number of the highest capability that the kernel knows.
pub fn last_capability() -> u32 {
    let text = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap_or_default();
    text.trim().parse().unwrap_or(LAST_CAPABILITY_KNOWN).min(63)
}
