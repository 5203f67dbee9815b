//! Runs the compiled program as the kernel would, for calls that nobody makes; and once lets the kernel do it.

use std::collections::HashSet;
use std::fs;
use std::thread;

use nix::errno::Errno;
use nix::libc::*;
use nix::sched::{CloneFlags, unshare};
use seccompiler::sock_filter;

use super::{Answer, Backwards, Filter, LOAD, OFFSET_OF_NUMBER, THIS_MACHINE, calls, statement};

const ALLOWED: u32 = 0x7fff_0000;
const NOT_PERMITTED: u32 = 0x0005_0000 | EPERM as u32;
const NO_SUCH_CALL: u32 = 0x0005_0000 | ENOSYS as u32;
const KILLED: u32 = 0x8000_0000;

/// What the kernel would make of a call: the value that the program returns.
fn run(program: &[sock_filter], machine: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let mut seen = [number.to_le_bytes(), machine.to_le_bytes()].concat();
    seen.extend([0; 8]);
    seen.extend(arguments.iter().flat_map(|argument| argument.to_le_bytes()));
    let mut next = 0;
    let mut register: u32 = 0;
    loop {
        let sock_filter { code, jt, jf, k } = program[next];
        next += 1;
        let branch = |holds: bool| usize::from(if holds { jt } else { jf });
        match code {
            0x06 => return k,
            0x20 => {
                let at = k as usize;
                register = u32::from_le_bytes(seen[at..at + 4].try_into().unwrap());
            }
            0x05 => next += k as usize,
            0x15 => next += branch(register == k),
            0x45 => next += branch(register & k != 0),
            0x35 => next += branch(register >= k),
            other => panic!("instruction {other:#x} at {}", next - 1),
        }
    }
}

fn answer(number: c_long, arguments: &[u64]) -> u32 {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    run(&Filter::usual().unwrap().0, THIS_MACHINE, u32::try_from(number).unwrap(), all)
}

#[test]
fn what_programs_live_on_is_allowed() {
    let mut needed = vec![
        SYS_read,
        SYS_write,
        SYS_openat,
        SYS_openat2,
        SYS_close,
        SYS_close_range,
        SYS_newfstatat,
        SYS_statx,
        SYS_faccessat2,
        SYS_lseek,
        SYS_mmap,
        SYS_mprotect,
        SYS_munmap,
        SYS_brk,
        SYS_madvise,
        SYS_membarrier,
        SYS_memfd_create,
        SYS_rt_sigaction,
        SYS_rt_sigprocmask,
        SYS_rt_sigreturn,
        SYS_sigaltstack,
        SYS_execve,
        SYS_exit_group,
        SYS_wait4,
        SYS_waitid,
        SYS_kill,
        SYS_tgkill,
        SYS_futex,
        SYS_futex_waitv,
        SYS_set_robust_list,
        SYS_rseq,
        SYS_prctl,
        SYS_prlimit64,
        SYS_getrandom,
        SYS_clock_gettime,
        SYS_clock_nanosleep,
        SYS_epoll_pwait,
        SYS_epoll_pwait2,
        SYS_ppoll,
        SYS_accept4,
        SYS_connect,
        SYS_sendmsg,
        SYS_recvmsg,
        SYS_copy_file_range,
        SYS_fsync,
        SYS_getdents64,
        SYS_renameat2,
        SYS_io_setup,
        SYS_pidfd_open,
        SYS_pidfd_send_signal,
        SYS_shmget,
        SYS_semtimedop,
        SYS_inotify_init1,
        SYS_timerfd_create,
        SYS_landlock_create_ruleset,
        SYS_process_mrelease,
        SYS_mseal,
        SYS_seccomp,
        // Debuggers.
        SYS_ptrace,
        SYS_process_vm_readv,
        SYS_process_vm_writev,
        // Root.
        SYS_fchownat,
        SYS_fchmod,
        SYS_mknodat,
        SYS_chroot,
        SYS_setuid,
        SYS_setresgid,
        SYS_setgroups,
        SYS_capset,
        SYS_lsetxattr,
        // cachestat, fchmodat2, map_shadow_stack and the three futex calls; xattrs at a place.
        451,
        452,
        453,
        454,
        455,
        456,
        463,
        466,
    ];
    #[cfg(target_arch = "x86_64")]
    needed.extend([
        SYS_open,
        SYS_stat,
        SYS_access,
        SYS_poll,
        SYS_select,
        SYS_pipe,
        SYS_fork,
        SYS_vfork,
        SYS_arch_prctl,
        SYS_time,
    ]);
    for call in needed {
        assert_eq!(answer(call, &[]), ALLOWED, "call {call}");
    }
}

#[test]
fn what_leads_out_of_a_container_is_refused() {
    let mut refused = vec![
        SYS_mount,
        SYS_umount2,
        SYS_pivot_root,
        SYS_fsopen,
        SYS_fsconfig,
        SYS_fsmount,
        SYS_fspick,
        SYS_move_mount,
        SYS_open_tree,
        SYS_mount_setattr,
        SYS_unshare,
        SYS_setns,
        SYS_open_by_handle_at,
        SYS_bpf,
        SYS_perf_event_open,
        SYS_userfaultfd,
        SYS_keyctl,
        SYS_add_key,
        SYS_request_key,
        SYS_io_uring_setup,
        SYS_io_uring_enter,
        SYS_io_uring_register,
        SYS_kexec_load,
        SYS_kexec_file_load,
        SYS_init_module,
        SYS_finit_module,
        SYS_delete_module,
        SYS_syslog,
        SYS_acct,
        SYS_swapon,
        SYS_swapoff,
        SYS_reboot,
        SYS_settimeofday,
        SYS_clock_settime,
        SYS_sethostname,
        SYS_setdomainname,
        SYS_lookup_dcookie,
        SYS_quotactl,
        SYS_quotactl_fd,
        SYS_vhangup,
        SYS_kcmp,
        SYS_pidfd_getfd,
        SYS_process_madvise,
        SYS_vmsplice,
        SYS_fanotify_init,
        SYS_fanotify_mark,
        SYS_mbind,
        SYS_get_mempolicy,
        SYS_set_mempolicy,
        SYS_set_mempolicy_home_node,
        SYS_migrate_pages,
        SYS_move_pages,
        SYS_nfsservctl,
        // lsm_get_self_attr, lsm_set_self_attr, lsm_list_modules.
        459,
        460,
        461,
    ];
    #[cfg(target_arch = "x86_64")]
    refused.extend([
        SYS_iopl,
        SYS_ioperm,
        SYS_uselib,
        SYS_ustat,
        SYS_sysfs,
        SYS__sysctl,
        // create_module, get_kernel_syms, query_module.
        174,
        177,
        178,
    ]);
    for call in refused {
        assert_eq!(answer(call, &[]), NOT_PERMITTED, "call {call}");
        // There is no argument that makes it better.
        assert_eq!(answer(call, &[u64::MAX; 6]), NOT_PERMITTED, "call {call}");
    }
}

#[test]
fn calls_beyond_the_lists_do_not_exist() {
    assert_eq!(answer(SYS_clone3, &[]), NO_SUCH_CALL);
    // open_tree_attr is the first of them, and -1 the last.
    for call in [467, 468, 469, 1000, 0x3fff_ffff, 0x4000_0000, c_long::from(u32::MAX)] {
        assert_eq!(answer(call, &[]), NO_SUCH_CALL, "call {call}");
    }
    // The x32 manner: the same machine, other meanings of some numbers.
    assert_eq!(answer(0x4000_0000 | SYS_read, &[]), NO_SUCH_CALL);
    assert_eq!(answer(0x4000_0000 | SYS_mount, &[]), NO_SUCH_CALL);
}

#[test]
fn calls_in_the_manner_of_another_machine_kill() {
    let program = Filter::usual().unwrap().0;
    // i386, ARM, and a machine that is neither of ours.
    for machine in [0x4000_0003, 0x4000_0028, 0xc000_00f3, 0] {
        assert_eq!(run(&program, machine, SYS_read as u32, [0; 6]), KILLED, "machine {machine:#x}");
    }
}

#[test]
fn namespaces_cannot_be_cloned() {
    let namespaces =
        [CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET];
    for flag in namespaces.map(|flag| flag as u64) {
        for flags in [flag, flag | SIGCHLD as u64, flag | CLONE_VM as u64, flag | 0xffff_ffff_0000_0000] {
            assert_eq!(answer(SYS_clone, &[flags]), NOT_PERMITTED, "flags {flags:#x}");
        }
    }
    let thread = CLONE_VM
        | CLONE_FS
        | CLONE_FILES
        | CLONE_SIGHAND
        | CLONE_THREAD
        | CLONE_SYSVSEM
        | CLONE_SETTLS
        | CLONE_PARENT_SETTID
        | CLONE_CHILD_CLEARTID;
    let child = CLONE_CHILD_CLEARTID | CLONE_CHILD_SETTID | SIGCHLD;
    let spawned = CLONE_VM | CLONE_VFORK | CLONE_PIDFD | SIGCHLD;
    for flags in [thread, child, spawned, SIGCHLD, 0] {
        // Whatever is in the other arguments, such as addresses.
        let arguments = [flags as u64, u64::MAX, u64::MAX, u64::MAX, u64::MAX];
        assert_eq!(answer(SYS_clone, &arguments), ALLOWED, "flags {flags:#x}");
    }
    // With `CLONE_IO`, the sign bit of the flags.
    assert_eq!(answer(SYS_clone, &[0x8000_0000 | CLONE_VM as u64]), ALLOWED);
}

#[test]
fn nothing_can_be_typed_into_a_terminal() {
    let upper = [0, 1 << 32, 0x8000_0000_0000_0000, 0xffff_ffff_0000_0000];
    for request in [0x5412, 0x541c] {
        for upper in upper {
            for descriptor in [0, 5] {
                let arguments = [descriptor, upper | request, 0];
                assert_eq!(answer(SYS_ioctl, &arguments), NOT_PERMITTED, "request {:#x}", upper | request);
            }
        }
    }
    for request in
        [TCGETS, TCSETS, TIOCGWINSZ, TIOCSCTTY, TIOCNOTTY, FIONREAD, FIONBIO, FIOCLEX, 0x5411, 0x541d, 0]
    {
        assert_eq!(answer(SYS_ioctl, &[0x5412, request, 0x5412]), ALLOWED, "request {request:#x}");
    }
}

#[test]
fn only_ordinary_sockets_can_be_made() {
    for call in [SYS_socket, SYS_socketpair] {
        for family in [AF_UNIX, AF_INET, AF_INET6, AF_NETLINK] {
            for upper in [0, 1 << 32] {
                assert_eq!(answer(call, &[family as u64 | upper, 1, 0]), ALLOWED, "family {family}");
            }
        }
        for family in [
            AF_PACKET,
            AF_VSOCK,
            AF_ALG,
            AF_TIPC,
            AF_RDS,
            AF_KEY,
            AF_CAN,
            AF_BLUETOOTH,
            AF_RXRPC,
            AF_XDP,
            0,
            -1,
        ] {
            assert_eq!(answer(call, &[family as u64, 1, 0]), NOT_PERMITTED, "family {family}");
            // The kernel takes an `int`.
            assert_eq!(answer(call, &[family as u64 | 1 << 40, 1, 0]), NOT_PERMITTED, "family {family}");
        }
    }
}

#[test]
fn personalities_are_harmless_ones() {
    for personality in [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff, u64::MAX] {
        assert_eq!(answer(SYS_personality, &[personality]), ALLOWED, "personality {personality:#x}");
    }
    // Among them: no address randomisation, everything readable executable, a mapping at 0, and PER_SVR4.
    for personality in [1, 0x4_0000, 0x40_0000, 0x10_0000, 0x4_0008, 0x1_0000_0000 | 0x4_0000, 0xffff_fffe] {
        assert_eq!(answer(SYS_personality, &[personality]), NOT_PERMITTED, "personality {personality:#x}");
    }
}

/// The jumps lead where they should, for each number there is.
#[test]
fn the_program_says_what_the_lists_say() {
    let program = Filter::usual().unwrap().0;
    let allowed: HashSet<c_long> = calls::ALLOWED.iter().chain(calls::ALLOWED_HERE).copied().collect();
    let conditional = [SYS_socket, SYS_socketpair, SYS_personality, SYS_clone, SYS_ioctl];
    assert_eq!(allowed.len(), calls::ALLOWED.len() + calls::ALLOWED_HERE.len(), "a call is listed twice");
    assert!(
        conditional.iter().all(|call| !allowed.contains(call)),
        "a call with conditions is listed without"
    );
    for call in (0..1024).filter(|call| !conditional.contains(call)) {
        let expected = match call {
            _ if allowed.contains(&call) => ALLOWED,
            _ if call == SYS_clone3 || call > calls::NEWEST => NO_SUCH_CALL,
            _ => NOT_PERMITTED,
        };
        assert_eq!(run(&program, THIS_MACHINE, call as u32, [u64::MAX; 6]), expected, "call {call}");
    }
}

/// Conditional jumps leave out 255 instructions at most. Here some go just as far, some have to go further: to answers
/// of their own, which are in between, and to common ones at the end.
#[test]
fn long_programs_find_every_number() {
    for count in (1..8).chain(240..=290).chain([1000]) {
        for kinds in [count, 2] {
            let answer = |place: u32| (place % kinds).cast_signed();
            let ranges: Vec<_> = (0..count).map(|place| (place * 3, Answer::Refuse(answer(place)))).collect();
            let mut program = Backwards::default();
            program.search(&ranges, count * 3 - 1);
            program.put(statement(LOAD, OFFSET_OF_NUMBER));
            let program = program.turned();
            for number in (0..count * 3).chain([5000, u32::MAX]) {
                let expected = 0x0005_0000 | answer((number / 3).min(count - 1)).cast_unsigned();
                let found = run(&program, THIS_MACHINE, number, [0; 6]);
                assert_eq!(found, expected, "number {number} of {count} ranges with {kinds} answers");
            }
        }
    }
}

/// A filter belongs to a thread, so this one is gone with its thread.
#[test]
fn the_kernel_takes_the_filter() {
    let filtered = thread::spawn(|| {
        // Asks for nothing, so it works for everybody, unless it is filtered.
        let before = unshare(CloneFlags::empty());
        let filter = Filter::usual().unwrap();
        filter.apply().unwrap();
        let after = unshare(CloneFlags::empty());
        (before, after, fs::read_to_string("/proc/thread-self/status").unwrap())
    });
    let (before, after, status) = filtered.join().unwrap();
    assert_eq!((before, after), (Ok(()), Err(Errno::EPERM)));
    assert!(status.contains("\nSeccomp:\t2\n") && status.contains("\nNoNewPrivs:\t1\n"), "{status}");
    assert_eq!(unshare(CloneFlags::empty()), Ok(()));
}
