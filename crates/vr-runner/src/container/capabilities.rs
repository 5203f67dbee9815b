//! Dropping privileges: the last thing a new process does before its program runs.

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use super::identities::Identities;
use super::mounts::{Step, explain};
use super::{Capabilities, ContainerSpec};

/// Not among them, and dropped because they reach beyond the container: mac_admin mac_override mknod setpcap
/// sys_admin sys_boot sys_module sys_nice sys_pacct sys_rawio sys_resource sys_time sys_tty_config, and also
/// dac_read_search (opens any file of the host by its handle), net_admin (the network is the host's) and
/// sys_ptrace.
pub(super) const USUAL: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::AUDIT_WRITE);

/// Becomes the user and gives every other privilege up for good.
pub(super) fn become_user(spec: &ContainerSpec, identities: &Identities) -> Step<()> {
    let (user, drop) = (&spec.user, spec.hardening.drop_capabilities);
    let kept = match spec.capabilities {
        Capabilities::Usual if user.uid == 0 => USUAL,
        Capabilities::Usual | Capabilities::None => CapabilitySet::empty(),
    };
    if drop {
        // While there still is the right to do so (setpcap): nothing run later can get more than this.
        limit_what_can_ever_be_had(kept)?;
    }
    if let Some(groups) = identities.groups(user) {
        let groups: Vec<_> = groups.into_iter().map(nix::unistd::Gid::from_raw).collect();
        nix::unistd::setgroups(&groups).map_err(explain("set the groups"))?;
    }
    let (uid, gid) = (nix::unistd::Uid::from_raw(user.uid), nix::unistd::Gid::from_raw(user.gid));
    nix::unistd::setresgid(gid, gid, gid).map_err(explain(format_args!("become group {gid}")))?;
    nix::unistd::setresuid(uid, uid, uid).map_err(explain(format_args!("become user {uid}")))?;
    if drop {
        keep_only(kept)?;
    }
    if spec.hardening.no_new_privileges {
        set_no_new_privs(true).map_err(explain("refuse new privileges"))?;
    }
    Ok(())
}

/// What the container's init needs once the root is built: to signal the program, whoever it runs as.
pub(super) fn keep_only_kill() -> Step<()> {
    keep_only(CapabilitySet::KILL)
}

fn limit_what_can_ever_be_had(kept: CapabilitySet) -> Step<()> {
    for bit in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if kept.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The kernel's last capability is behind us.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(explain(format_args!("drop capability {bit}"))(error)),
        }
    }
    Ok(())
}

fn keep_only(wanted: CapabilitySet) -> Step<()> {
    clear_ambient_capability_set().map_err(explain("clear the ambient capabilities"))?;
    let permitted = capabilities(None).map_err(explain("read the capabilities"))?.permitted;
    let kept = permitted.intersection(wanted);
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(explain("drop capabilities"))
}
