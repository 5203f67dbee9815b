//! Who the users of a container are to the host: the user namespace of a container, and what it maps to what.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sched::CloneFlags;
use rustix::fs::{Mode, OFlags};

use super::mounts::{Step, explain};
use super::{ContainerSpec, Credentials};

/// The range of numbers that is set aside for containers on systemd's machines, and that people's accounts are not in:
/// <https://systemd.io/UIDS-GIDS/>.
const FIRST_HOST_ID: u32 = 0x0008_0000;
/// How many numbers a container has, from 0 on.
const RANGE: u32 = 0x1_0000;
/// How many such ranges there are up to 0x6FFF_FFFF.
const RANGES: u32 = 0x6ff8;
/// Where the numbers begin that single users and groups above [`RANGE`] become, a few for each container.
const FIRST_HOST_EXTRA: u32 = 0x7000_0000;
const MOST_EXTRAS: u32 = 64;

/// What a number inside is outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Identities {
    /// The same, in the caller's own user namespace: root inside is root.
    OfHost,
    /// The same numbers in a namespace of its own: root inside owns root's files, and has no power over the host.
    SameNumbers,
    /// Others, which nobody on the host has; files are shown with their own numbers through idmapped mounts.
    Shifted(Shift),
    /// There is a single user inside, and outside it is the caller, who is not root.
    OneUser { inside: (u32, u32), outside: (u32, u32) },
}

/// A range of its own, and single numbers beyond it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shift {
    slot: u32,
    /// Users and groups above [`RANGE`], in one list for both.
    extras: Vec<u32>,
}

impl Shift {
    fn host(&self, id: u32) -> u32 {
        if id < RANGE {
            return FIRST_HOST_ID + self.slot * RANGE + id;
        }
        match self.extras.iter().position(|extra| *extra == id) {
            Some(index) => FIRST_HOST_EXTRA + self.slot * MOST_EXTRAS + index as u32,
            // Unknown to the container; the kernel's number for those.
            None => 65534,
        }
    }
}

impl Identities {
    /// The best that the caller can have for a container.
    pub fn preferred(spec: &ContainerSpec) -> Self {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        let user = &spec.user;
        if !uid.is_root() {
            let outside = (uid.as_raw(), gid.as_raw());
            return Self::OneUser { inside: (user.uid, user.gid), outside };
        }
        if !spec.hardening.user_namespace {
            return Self::OfHost;
        }
        let extras = extras(user);
        // No two living processes have the same number, so a container shares its range with another one at most on
        // machines that number more processes than there are ranges, and then by chance.
        let slot = free_slot(std::process::id() % RANGES, &ranges_of_users());
        Self::Shifted(Shift { slot, extras })
    }

    /// What to try when this cannot be had.
    pub fn next_best(&self) -> Option<Self> {
        match self {
            Self::Shifted(_) => Some(Self::SameNumbers),
            Self::SameNumbers => Some(Self::OfHost),
            Self::OfHost | Self::OneUser { .. } => None,
        }
    }

    /// The host's number for a user or group inside.
    pub fn outside(&self, id: u32) -> u32 {
        match self {
            Self::OfHost | Self::SameNumbers => id,
            Self::Shifted(shift) => shift.host(id),
            Self::OneUser { outside, .. } => outside.0,
        }
    }

    /// Whose numbers, of user and group, new files of the kernel's are to have so that they belong to root inside. In a
    /// namespace of one user, numbers are given as they are inside, and to the only one there is.
    pub fn root_outside(&self) -> (u32, u32) {
        match self {
            Self::OneUser { inside, .. } => *inside,
            other => (other.outside(0), other.outside(0)),
        }
    }

    /// As [`Self::root_outside`] for the group `tty`, which is 5 in every distribution, where there can be one.
    pub fn terminal_group_outside(&self) -> Option<u32> {
        (!self.is_one_user()).then(|| self.outside(5))
    }

    /// Whether the container is an ordinary user's.
    pub fn is_one_user(&self) -> bool {
        matches!(self, Self::OneUser { .. })
    }

    /// Whether the program needs a user namespace of its own, made by root.
    pub fn of_program(&self) -> bool {
        matches!(self, Self::SameNumbers | Self::Shifted(_))
    }

    /// Whether files have other owners outside than inside.
    pub fn is_shifted(&self) -> bool {
        matches!(self, Self::Shifted(_))
    }

    /// Further groups of the program's user, as far as they can be had; `None` when they cannot be set.
    pub fn groups(&self, user: &Credentials) -> Option<Vec<u32>> {
        match self {
            Self::OneUser { .. } => None,
            Self::Shifted(shift) => {
                let is_known = |id: &&u32| **id < RANGE || shift.extras.contains(id);
                Some(user.groups.iter().filter(is_known).copied().collect())
            }
            Self::OfHost | Self::SameNumbers => Some(user.groups.clone()),
        }
    }

    /// The contents of `uid_map` (and, with `group`, of `gid_map`). `own` is the caller's own map.
    fn map(&self, group: bool, own: &str) -> String {
        match self {
            Self::OfHost => String::new(),
            // All that the caller has, which may be less than there is.
            Self::SameNumbers => own
                .lines()
                .filter_map(|line| {
                    let mut fields = line.split_whitespace();
                    let (inside, count) = (fields.next()?, fields.nth(1)?);
                    Some(format!("{inside} {inside} {count}\n"))
                })
                .collect(),
            Self::Shifted(shift) => {
                let mut map = format!("0 {} {RANGE}\n", shift.host(0));
                for extra in &shift.extras {
                    map.push_str(&format!("{extra} {} 1\n", shift.host(*extra)));
                }
                map
            }
            Self::OneUser { inside, outside } if group => format!("{} {} 1\n", inside.1, outside.1),
            Self::OneUser { inside, outside } => format!("{} {} 1\n", inside.0, outside.0),
        }
    }

    /// Tells the kernel what the numbers of a process's new user namespace mean. `process` is its folder in a
    /// `/proc` that shows it. Gives a handle on the namespace.
    pub fn write(&self, process: &str) -> io::Result<OwnedFd> {
        if self.is_one_user() {
            // The price of a map that needs no privilege: the groups that the caller has stay.
            fs::write(format!("{process}/setgroups"), "deny")?;
        }
        for (file, group) in [("uid_map", false), ("gid_map", true)] {
            let own = match self {
                Self::SameNumbers => fs::read_to_string(format!("/proc/self/{file}"))?,
                _ => String::new(),
            };
            fs::write(format!("{process}/{file}"), self.map(group, &own))?;
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(format!("{process}/ns/user"), flags, Mode::empty())?)
    }

    /// Makes this process, root of the host, a creator of files that belong to root inside, with all its privileges.
    pub fn create_as_root_inside(&self) -> Step<()> {
        if !matches!(self, Self::Shifted(_)) {
            return Ok(());
        }
        // Without this, another user for files would cost the capabilities that concern files.
        let bits = rustix::thread::CapabilitiesSecureBits::NO_SETUID_FIXUP;
        rustix::thread::set_capabilities_secure_bits(bits).map_err(explain("keep the capabilities"))?;
        let root = self.outside(0);
        nix::unistd::setfsuid(nix::unistd::Uid::from_raw(root));
        nix::unistd::setfsgid(nix::unistd::Gid::from_raw(root));
        Ok(())
    }

    /// For the log.
    pub fn describe(&self) -> String {
        match self {
            Self::OfHost => "without a user namespace: root inside is root of the host".to_owned(),
            Self::SameNumbers => {
                "in a user namespace with the host's numbers: root inside is powerless, but owns root's files"
                    .to_owned()
            }
            Self::Shifted(shift) => {
                format!("in a user namespace with idmapped mounts: root inside is user {}", shift.host(0))
            }
            Self::OneUser { inside, outside } => {
                format!("in a user namespace of one user: {} inside is {} outside", inside.0, outside.0)
            }
        }
    }
}

/// The user's numbers from [`RANGE`] on, its own first.
fn extras(user: &Credentials) -> Vec<u32> {
    let mut extras = Vec::new();
    for id in [user.uid, user.gid].iter().chain(&user.groups).filter(|id| **id >= RANGE) {
        if !extras.contains(id) {
            extras.push(*id);
        }
    }
    if extras.len() > MOST_EXTRAS as usize {
        tracing::warn!(
            "the user is in more groups with numbers from {RANGE} on than a container can have: {} are left out",
            extras.len() - MOST_EXTRAS as usize
        );
        extras.truncate(MOST_EXTRAS as usize);
    }
    extras
}

/// The numbers that people may give to containers of their own, as first number and count: `/etc/subuid`, `/etc/subgid`.
fn ranges_of_users() -> Vec<(u32, u32)> {
    let mut ranges = Vec::new();
    for file in ["/etc/subuid", "/etc/subgid"] {
        let text = fs::read_to_string(file).unwrap_or_default();
        ranges.extend(text.lines().filter_map(|line| {
            let mut fields = line.split(':').skip(1).map(|field| field.trim().parse().ok());
            Some((fields.next()??, fields.next()??))
        }));
    }
    ranges
}

/// The first slot from `wanted` on that is apart from all of the ranges; `wanted` when there is none.
fn free_slot(wanted: u32, ranges: &[(u32, u32)]) -> u32 {
    let is_free = |slot: &u32| {
        let first = FIRST_HOST_ID + slot * RANGE;
        let is_apart = |(start, count): &(u32, u32)| {
            first >= start.saturating_add(*count) || *start >= first.saturating_add(RANGE)
        };
        ranges.iter().all(is_apart)
    };
    (wanted..RANGES).chain(0..wanted).find(is_free).unwrap_or(wanted)
}

/// The flags of the namespaces that are made together with a container's init.
pub(super) fn namespaces(spec: &ContainerSpec, identities: &Identities) -> CloneFlags {
    let mut flags = CloneFlags::CLONE_NEWNS;
    let hardening = &spec.hardening;
    flags.set(CloneFlags::CLONE_NEWPID, hardening.process_namespace);
    flags.set(CloneFlags::CLONE_NEWIPC, hardening.ipc_namespace);
    flags.set(CloneFlags::CLONE_NEWUTS, hardening.host_name_namespace);
    // A network of a program's own user namespace comes with that one.
    flags.set(CloneFlags::CLONE_NEWNET, spec.network == super::Network::None && !identities.of_program());
    flags.set(CloneFlags::CLONE_NEWUSER, identities.is_one_user());
    flags
}

/// The number of a process, behind a handle, in the `/proc` that is mounted.
pub(super) fn number_in_proc(handle: &OwnedFd) -> io::Result<u32> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", handle.as_raw_fd()))?;
    text.lines()
        .find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok())
        .ok_or_else(|| io::Error::other("the kernel does not say which process a handle is of"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_range_is_apart_from_every_other() {
        let shift = |slot, extras: &[u32]| Shift { slot, extras: extras.to_vec() };
        assert_eq!(shift(0, &[]).host(0), 0x80000);
        assert_eq!(shift(0, &[]).host(RANGE - 1) + 1, shift(1, &[]).host(0));
        assert_eq!(shift(RANGES - 1, &[]).host(RANGE - 1), 0x6fff_ffff);
        assert_eq!(shift(1, &[70_000, 80_000]).host(80_000), FIRST_HOST_EXTRA + MOST_EXTRAS + 1);
        assert!(shift(RANGES - 1, &[70_000]).host(70_000) < 0x7fff_0000);
        assert_eq!(shift(0, &[]).host(70_000), 65534);
    }

    #[test]
    fn a_range_that_people_may_have_is_passed_over() {
        assert_eq!(free_slot(3, &[(100_000, 65536), (165_536, 65536)]), 3);
        assert_eq!(free_slot(0, &[(493_216, 65536)]), 1);
        assert_eq!(free_slot(1, &[(FIRST_HOST_ID + 2 * RANGE - 1, 2)]), 3);
        assert_eq!(free_slot(RANGES - 1, &[(0x6fff_ffff, 1)]), 0);
        assert_eq!(free_slot(7, &[(0, u32::MAX)]), 7);
    }

    #[test]
    fn a_users_own_numbers_come_before_those_of_groups() {
        let user =
            Credentials { uid: 4_000_000, gid: 100_001, groups: (100_000..100_100).chain([5]).collect() };
        let shift = Shift { slot: 0, extras: extras(&user) };
        assert_eq!(shift.extras.len(), MOST_EXTRAS as usize);
        assert_eq!(&shift.extras[..3], &[4_000_000, 100_001, 100_000]);
        let groups = Identities::Shifted(shift).groups(&user).unwrap();
        assert_eq!((groups.len(), groups.last()), (64, Some(&5)));
    }

    #[test]
    fn maps_say_what_the_numbers_mean() {
        let shifted = Identities::Shifted(Shift { slot: 2, extras: vec![100_000] });
        assert_eq!(shifted.map(true, ""), "0 655360 65536\n100000 1879048320 1\n");
        assert_eq!(shifted.outside(65534), 655_360 + 65534);
        let one = Identities::OneUser { inside: (65534, 65533), outside: (1000, 1001) };
        assert_eq!(
            (one.map(false, ""), one.map(true, "")),
            ("65534 1000 1\n".into(), "65533 1001 1\n".into())
        );
        let own = "         0          0 4294967295\n";
        assert_eq!(Identities::SameNumbers.map(false, own), "0 0 4294967295\n");
        let own = "         0     100000      65536\n     65536       1000          1\n";
        assert_eq!(Identities::SameNumbers.map(true, own), "0 0 65536\n65536 65536 1\n");
        assert_eq!(shifted.next_best().and_then(|same| same.next_best()), Some(Identities::OfHost));
        assert_eq!(one.next_best(), None);
    }
}
