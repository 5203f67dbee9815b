//! The system call filter of containers: which calls reach the kernel at all. It owns the program that the kernel runs
//! at each call of a container's processes, and must not know who they are; [`calls`] says what it lets through.
//!
//! Three answers beside "yes":
//!
//! - EPERM: the call, or what it asks for, is not for containers.
//! - ENOSYS, as from a kernel without the call: for `clone3`, whose flags are in memory, where no filter can look, so
//!   that C libraries fall back to `clone`; and for whatever is younger than the lists, so that programs which try a
//!   new call first fall back, too.
//! - The end of the process (SIGSYS), for a call in the manner of another machine, where numbers mean something else:
//!   in 32-bit programs, and in 64-bit ones that try `int 0x80`.
//!
//! It is one program. Two, each with one answer to what it refuses, would both see every call, and of two error
//! numbers the kernel takes that of the filter installed last. So it is with an app's own filters: they are younger,
//! so theirs is the error number where both refuse, and nothing that is refused here can they allow.

mod calls;
mod policy;

use std::io;

use nix::libc::{self, c_int, c_long};
use seccompiler::{BackendError, BpfProgram, SeccompAction, apply_filter, sock_filter};

use super::mounts::Step;

pub(super) use policy::policy;

/// A filter, ready to be installed.
#[derive(Debug, Clone)]
pub(super) struct Filter(BpfProgram);

impl Filter {
    /// The filter of every container. It takes memory, so the parent makes it, before the container exists.
    pub fn usual() -> Result<Self, BackendError> {
        let mut program = Backwards::default();
        program.search(&ranges(), calls::NEWEST as u32);
        let search = program.put(statement(LOAD, OFFSET_OF_NUMBER));
        let kill = program.put(statement(RETURN, SeccompAction::KillProcess.into()));
        program.choose(JUMP_IF_EQUAL, THIS_MACHINE, search, kill);
        program.put(statement(LOAD, OFFSET_OF_MACHINE));
        let program = program.turned();
        // To the kernel, `apply_filter` would give what is left of a longer length in 16 bits.
        if program.len() > MOST_INSTRUCTIONS {
            return Err(BackendError::FilterTooLarge(program.len()));
        }
        Ok(Self(program))
    }

    /// Installs the filter for this thread, all it starts and all it becomes, for good. No new privileges can be had
    /// after that, either. The caller has to have done all that the filter refuses.
    pub fn apply(&self) -> Step<()> {
        apply_filter(&self.0).map_err(|error| {
            let error = match error {
                seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => error,
                other => io::Error::other(other),
            };
            let hint = match error.raw_os_error() {
                Some(libc::EINVAL | libc::ENOSYS) => " (does the kernel have CONFIG_SECCOMP_FILTER?)",
                _ => "",
            };
            format!("cannot install the system call filter: {error}{hint}")
        })
    }
}

/// What becomes of a call.
///
/// Of arguments, which are counted from 0, only the low halves are compared. In the calls that have conditions, the
/// kernel looks at no more than that, so to compare the upper halves too would leave a way past them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Allow,
    Refuse(c_int),
    /// EPERM, unless this argument is one of these values.
    AllowOneOf(u32, &'static [u32]),
    /// EPERM if this argument is one of these values.
    AllowAllBut(u32, &'static [u32]),
    /// EPERM if this argument has any of these bits.
    AllowWithoutBits(u32, u32),
}

const REFUSE: Answer = Answer::Refuse(libc::EPERM);

const CONDITIONS: [(c_long, Answer); 5] = [
    (libc::SYS_socket, Answer::AllowOneOf(0, &calls::SOCKET_FAMILIES)),
    (libc::SYS_socketpair, Answer::AllowOneOf(0, &calls::SOCKET_FAMILIES)),
    (libc::SYS_personality, Answer::AllowOneOf(0, &calls::PERSONALITIES)),
    (libc::SYS_clone, Answer::AllowWithoutBits(0, calls::NAMESPACE_FLAGS)),
    (libc::SYS_ioctl, Answer::AllowAllBut(1, &calls::TERMINAL_INPUT)),
];

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_IF_ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const JUMP_IF_NOT_LESS: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;

// Where the kernel puts what the filter looks at (`struct seccomp_data`).
const OFFSET_OF_NUMBER: u32 = 0;
const OFFSET_OF_MACHINE: u32 = 4;
const OFFSET_OF_ARGUMENTS: u32 = 16;

/// The longest program that the kernel takes (`BPF_MAXINSNS`).
const MOST_INSTRUCTIONS: usize = 4096;

/// The kernel's name for this kind of machine: its ELF number, 64 bits, little-endian.
#[cfg(target_arch = "x86_64")]
const THIS_MACHINE: u32 = 0xc000_0000 | libc::EM_X86_64 as u32;
#[cfg(target_arch = "aarch64")]
const THIS_MACHINE: u32 = 0xc000_0000 | libc::EM_AARCH64 as u32;

fn statement(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

/// Loads the low half.
fn load_argument(argument: u32) -> sock_filter {
    statement(LOAD, OFFSET_OF_ARGUMENTS + 8 * argument)
}

/// An answer for all numbers from the first one on, up to the next range.
type Range = (u32, Answer);

/// The answers to all numbers there are, in order of the numbers.
fn ranges() -> Vec<Range> {
    const YOUNGER: usize = calls::NEWEST as usize + 1;
    let mut answers = [REFUSE; YOUNGER + 1];
    answers[YOUNGER] = Answer::Refuse(libc::ENOSYS);
    answers[libc::SYS_clone3 as usize] = Answer::Refuse(libc::ENOSYS);
    for call in calls::ALLOWED.iter().chain(calls::ALLOWED_HERE) {
        answers[*call as usize] = Answer::Allow;
    }
    for (call, answer) in CONDITIONS {
        answers[call as usize] = answer;
    }
    let mut ranges: Vec<Range> = (0..).zip(answers).collect();
    ranges.dedup_by_key(|(_, answer)| *answer);
    ranges
}

/// A program in the making, from its end to its beginning: jumps only go forward, so what is jumped to is always there
/// already, and each answer has to be there but once. Every instruction takes its time when the filter is installed.
///
/// A place in it is counted from the end.
#[derive(Debug, Default)]
struct Backwards {
    program: BpfProgram,
    answers: Vec<(Answer, usize)>,
}

impl Backwards {
    fn turned(mut self) -> BpfProgram {
        self.program.reverse();
        self.program
    }

    /// Puts an instruction before all others, and says where it is.
    fn put(&mut self, instruction: sock_filter) -> usize {
        self.program.push(instruction);
        self.program.len() - 1
    }

    /// How many instructions the one that is put next has to leave out to go on at a place.
    fn distance(&self, place: usize) -> usize {
        self.program.len() - 1 - place
    }

    /// Goes on at one place or the other, by a comparison of what is loaded with `value`.
    fn choose(&mut self, comparison: u16, value: u32, if_so: usize, if_not: usize) -> usize {
        let (if_so, if_not) = (self.near(if_so), self.near(if_not));
        let (jt, jf) = (self.distance(if_so) as u8, self.distance(if_not) as u8);
        self.put(sock_filter { code: comparison, jt, jf, k: value })
    }

    /// The place, or a jump to it if it is further away than conditional jumps go.
    fn near(&mut self, place: usize) -> usize {
        let distance = self.distance(place);
        // Not as far as 255, as a jump for the other place may come between.
        if distance < usize::from(u8::MAX) { place } else { self.put(statement(JUMP, distance as u32)) }
    }

    /// Finds the range of the loaded number, from the first of these ranges to `last`, by halving; and answers.
    ///
    /// `SeccompFilter` would compare with one number after the other, at five instructions each. The kernel runs a new
    /// filter for every number there is, to learn which calls are always allowed, so that takes ten times as long.
    fn search(&mut self, ranges: &[Range], last: u32) -> usize {
        let (lower, upper) = match ranges {
            [] => return self.answer(REFUSE),
            [(_, answer)] => return self.answer(*answer),
            [(first, _), others @ ..] => {
                let middle = first.midpoint(last);
                let before = others.partition_point(|(first, _)| *first <= middle);
                ranges.split_at(before.clamp(1, others.len()))
            }
        };
        let first_of_upper = upper[0].0;
        let upper = self.search(upper, last);
        let lower = self.search(lower, first_of_upper);
        self.choose(JUMP_IF_NOT_LESS, first_of_upper, upper, lower)
    }

    fn answer(&mut self, answer: Answer) -> usize {
        if let Some((_, place)) = self.answers.iter().find(|(known, _)| *known == answer) {
            return *place;
        }
        let place = match answer {
            Answer::Allow => self.put(statement(RETURN, SeccompAction::Allow.into())),
            Answer::Refuse(errno) => {
                self.put(statement(RETURN, SeccompAction::Errno(errno.cast_unsigned()).into()))
            }
            Answer::AllowOneOf(argument, values) => {
                let (allow, refuse) = (self.answer(Answer::Allow), self.answer(REFUSE));
                self.compare(argument, values, allow, refuse)
            }
            Answer::AllowAllBut(argument, values) => {
                let (allow, refuse) = (self.answer(Answer::Allow), self.answer(REFUSE));
                self.compare(argument, values, refuse, allow)
            }
            Answer::AllowWithoutBits(argument, bits) => {
                let (allow, refuse) = (self.answer(Answer::Allow), self.answer(REFUSE));
                self.choose(JUMP_IF_ANY_BIT, bits, refuse, allow);
                self.put(load_argument(argument))
            }
        };
        self.answers.push((answer, place));
        place
    }

    /// Goes on at `listed` if an argument is one of the values, of which there is one at least, and at `other` if not.
    fn compare(&mut self, argument: u32, values: &[u32], listed: usize, other: usize) -> usize {
        let mut next = other;
        for value in values.iter().rev() {
            next = self.choose(JUMP_IF_EQUAL, *value, listed, next);
        }
        self.put(load_argument(argument))
    }
}

#[cfg(test)]
mod tests;
