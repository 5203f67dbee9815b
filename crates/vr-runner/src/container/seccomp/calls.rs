//! The lists that the filter is made of: which system calls a container needs, by number, and which values of the
//! arguments that the filter looks at. What the numbers become is not its business.
//!
//! The measure is the list that other container engines use for a process without further privileges: nothing is
//! here that is not there.

#![allow(non_upper_case_globals, reason = "calls have the names that they have in C")]

use nix::libc::*;

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("the system call filter of containers has numbers for x86_64 and aarch64 only");

// Calls that the libc crate has no name for. Since 424, a call has one number everywhere.
const SYS_cachestat: c_long = 451;
const SYS_fchmodat2: c_long = 452;
const SYS_map_shadow_stack: c_long = 453;
const SYS_futex_wake: c_long = 454;
const SYS_futex_wait: c_long = 455;
const SYS_futex_requeue: c_long = 456;
const SYS_statmount: c_long = 457;
const SYS_listmount: c_long = 458;
const SYS_setxattrat: c_long = 463;
const SYS_getxattrat: c_long = 464;
const SYS_listxattrat: c_long = 465;
const SYS_removexattrat: c_long = 466;
#[cfg(target_arch = "x86_64")]
const SYS_io_pgetevents: c_long = 333;
#[cfg(target_arch = "x86_64")]
const SYS_uretprobe: c_long = 335;
#[cfg(target_arch = "aarch64")]
const SYS_renameat: c_long = 38;
#[cfg(target_arch = "aarch64")]
const SYS_sync_file_range: c_long = 84;
#[cfg(target_arch = "aarch64")]
const SYS_getrlimit: c_long = 163;
#[cfg(target_arch = "aarch64")]
const SYS_setrlimit: c_long = 164;
#[cfg(target_arch = "aarch64")]
const SYS_io_pgetevents: c_long = 292;

/// The youngest call that these lists have an opinion on.
pub(super) const NEWEST: c_long = SYS_removexattrat;

macro_rules! calls {
    ($(#[$about:meta])* $numbers:ident, $names:ident = [$($name:ident)*]) => {
        $(#[$about])*
        pub(super) const $numbers: &[c_long] = &[$($name),*];
        /// The names of the same calls, with `SYS_` before each.
        $(#[$about])*
        pub(super) const $names: &[&str] = &[$(stringify!($name)),*];
    };
}

calls! {
    /// Allowed whatever the arguments are.
    ALLOWED, ALLOWED_NAMES = [
    // Open files: read, write, wait.
    SYS_close SYS_close_range SYS_copy_file_range SYS_dup SYS_dup3 SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait
    SYS_epoll_pwait2 SYS_eventfd2 SYS_fadvise64 SYS_fallocate SYS_fcntl SYS_fdatasync SYS_flock SYS_fsync
    SYS_ftruncate SYS_getdents64 SYS_io_cancel SYS_io_destroy SYS_io_getevents SYS_io_pgetevents SYS_io_setup
    SYS_io_submit SYS_lseek SYS_pipe2 SYS_ppoll SYS_pread64 SYS_preadv SYS_preadv2 SYS_pselect6 SYS_pwrite64
    SYS_pwritev SYS_pwritev2 SYS_read SYS_readahead SYS_readv SYS_sendfile SYS_splice SYS_sync SYS_sync_file_range
    SYS_syncfs SYS_tee SYS_write SYS_writev
    // Names and attributes of files. What needs a capability, such as a device node, the kernel refuses by itself.
    SYS_chdir SYS_chroot SYS_faccessat SYS_faccessat2 SYS_fchdir SYS_fchmod SYS_fchmodat SYS_fchmodat2 SYS_fchown
    SYS_fchownat SYS_fgetxattr SYS_flistxattr SYS_fremovexattr SYS_fsetxattr SYS_fstat SYS_fstatfs SYS_getcwd
    SYS_getxattr SYS_getxattrat SYS_inotify_add_watch SYS_inotify_init1 SYS_inotify_rm_watch SYS_lgetxattr
    SYS_linkat SYS_listxattr SYS_listxattrat SYS_llistxattr SYS_lremovexattr SYS_lsetxattr SYS_mkdirat SYS_mknodat
    SYS_name_to_handle_at SYS_newfstatat SYS_openat SYS_openat2 SYS_readlinkat SYS_removexattr SYS_removexattrat
    SYS_renameat SYS_renameat2 SYS_setxattr SYS_setxattrat SYS_statfs SYS_statx SYS_symlinkat SYS_truncate
    SYS_umask SYS_unlinkat SYS_utimensat
    // What the container's own mounts are, as in its /proc/self/mountinfo.
    SYS_listmount SYS_statmount
    // Memory.
    SYS_brk SYS_cachestat SYS_madvise SYS_map_shadow_stack SYS_memfd_create SYS_memfd_secret SYS_mincore SYS_mlock
    SYS_mlock2 SYS_mlockall SYS_mmap SYS_mprotect SYS_mremap SYS_mseal SYS_msync SYS_munlock SYS_munlockall
    SYS_munmap SYS_pkey_alloc SYS_pkey_free SYS_pkey_mprotect SYS_remap_file_pages
    // Processes and threads; clone has conditions of its own.
    SYS_execve SYS_execveat SYS_exit SYS_exit_group SYS_futex SYS_futex_requeue SYS_futex_wait SYS_futex_waitv
    SYS_futex_wake SYS_get_robust_list SYS_getpgid SYS_getpid SYS_getppid SYS_getpriority SYS_getrlimit
    SYS_getrusage SYS_getsid SYS_gettid SYS_ioprio_get SYS_ioprio_set SYS_membarrier SYS_pidfd_open SYS_prctl
    SYS_prlimit64 SYS_process_mrelease SYS_rseq SYS_sched_get_priority_max SYS_sched_get_priority_min
    SYS_sched_getaffinity SYS_sched_getattr SYS_sched_getparam SYS_sched_getscheduler SYS_sched_rr_get_interval
    SYS_sched_setaffinity SYS_sched_setattr SYS_sched_setparam SYS_sched_setscheduler SYS_sched_yield
    SYS_set_robust_list SYS_set_tid_address SYS_setpgid SYS_setpriority SYS_setrlimit SYS_setsid SYS_wait4
    SYS_waitid
    // Debuggers. These reach only what the same user runs in the same container.
    SYS_process_vm_readv SYS_process_vm_writev SYS_ptrace
    // Signals.
    SYS_kill SYS_pidfd_send_signal SYS_restart_syscall SYS_rt_sigaction SYS_rt_sigpending SYS_rt_sigprocmask
    SYS_rt_sigqueueinfo SYS_rt_sigreturn SYS_rt_sigsuspend SYS_rt_sigtimedwait SYS_rt_tgsigqueueinfo
    SYS_sigaltstack SYS_signalfd4 SYS_tgkill SYS_tkill
    // Users, and giving up more rights.
    SYS_capget SYS_capset SYS_getegid SYS_geteuid SYS_getgid SYS_getgroups SYS_getresgid SYS_getresuid SYS_getuid
    SYS_landlock_add_rule SYS_landlock_create_ruleset SYS_landlock_restrict_self SYS_seccomp SYS_setfsgid
    SYS_setfsuid SYS_setgid SYS_setgroups SYS_setregid SYS_setresgid SYS_setresuid SYS_setreuid SYS_setuid
    // Time. Without its capability, adjtimex and clock_adjtime can only read.
    SYS_adjtimex SYS_clock_adjtime SYS_clock_getres SYS_clock_gettime SYS_clock_nanosleep SYS_getitimer
    SYS_gettimeofday SYS_nanosleep SYS_setitimer SYS_timer_create SYS_timer_delete SYS_timer_getoverrun
    SYS_timer_gettime SYS_timer_settime SYS_timerfd_create SYS_timerfd_gettime SYS_timerfd_settime SYS_times
    // Sockets; socket and socketpair have conditions of their own.
    SYS_accept SYS_accept4 SYS_bind SYS_connect SYS_getpeername SYS_getsockname SYS_getsockopt SYS_listen
    SYS_recvfrom SYS_recvmmsg SYS_recvmsg SYS_sendmmsg SYS_sendmsg SYS_sendto SYS_setsockopt SYS_shutdown
    // System V IPC and message queues, of which the container has its own.
    SYS_mq_getsetattr SYS_mq_notify SYS_mq_open SYS_mq_timedreceive SYS_mq_timedsend SYS_mq_unlink SYS_msgctl
    SYS_msgget SYS_msgrcv SYS_msgsnd SYS_semctl SYS_semget SYS_semop SYS_semtimedop SYS_shmat SYS_shmctl SYS_shmdt
    SYS_shmget
    // The machine.
    SYS_getcpu SYS_getrandom SYS_sysinfo SYS_uname
]}

calls! {
/// The same, for calls that not every machine has: mostly those that something newer above stands for elsewhere.
#[cfg(target_arch = "x86_64")]
ALLOWED_HERE, ALLOWED_HERE_NAMES = [
    SYS_access SYS_alarm SYS_arch_prctl SYS_chmod SYS_chown SYS_creat SYS_dup2 SYS_epoll_create SYS_epoll_wait
    SYS_eventfd SYS_fork SYS_futimesat SYS_get_thread_area SYS_getdents SYS_getpgrp SYS_inotify_init SYS_lchown
    SYS_link SYS_lstat SYS_mkdir SYS_mknod SYS_modify_ldt SYS_open SYS_pause SYS_pipe SYS_poll SYS_readlink
    SYS_rename SYS_rmdir SYS_select SYS_set_thread_area SYS_signalfd SYS_stat SYS_symlink SYS_time SYS_unlink
    SYS_utime SYS_utimes SYS_vfork
    // Made by the kernel in the program's name, when an administrator traces it from the host.
    SYS_uretprobe
]}

/// The same, for calls that not every machine has.
#[cfg(not(target_arch = "x86_64"))]
pub(super) const ALLOWED_HERE: &[c_long] = &[];
/// Their names.
#[cfg(not(target_arch = "x86_64"))]
pub(super) const ALLOWED_HERE_NAMES: &[&str] = &[];

/// What `socket` and `socketpair` may be asked for. Each further family is a kernel module that anybody could have
/// loaded by asking; VSOCK leads to the machine that this one is a guest of, past any network; and PACKET reads whatever
/// goes over a network that is the host's own.
pub(super) const SOCKET_FAMILIES: [u32; 4] =
    [AF_UNIX as u32, AF_INET as u32, AF_INET6 as u32, AF_NETLINK as u32];

/// What `personality` may be asked for: to be the usual one, to call the machine a 32-bit one, to call the kernel 2.6,
/// both, and to tell which one it is. The other bits switch protections of memory off.
pub(super) const PERSONALITIES: [u32; 5] = [0, LINUX32, UNAME26 as u32, LINUX32 | UNAME26 as u32, u32::MAX];
const LINUX32: u32 = 8;

/// The flags that `clone` may not be given: each makes a namespace, in which its maker has powers over parts of the
/// kernel that it has nowhere else. (A time namespace cannot be asked for in this way.)
pub(super) const NAMESPACE_FLAGS: u32 = (CLONE_NEWNS
    | CLONE_NEWCGROUP
    | CLONE_NEWUTS
    | CLONE_NEWIPC
    | CLONE_NEWUSER
    | CLONE_NEWPID
    | CLONE_NEWNET) as u32;

/// The requests that `ioctl` may not make: both put input into a terminal, for somebody else to read.
pub(super) const TERMINAL_INPUT: [u32; 2] = [TIOCSTI as u32, TIOCLINUX as u32];
