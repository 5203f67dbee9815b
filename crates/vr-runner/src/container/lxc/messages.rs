//! What `lxc-start` tells whoever monitors its container: messages of a fixed size in a named pipe (`struct lxc_msg`
//! of LXC). They are written whole.

use super::super::ExitStatus;

/// The size of one message: a kind, a name of 256 bytes, and a value.
pub(super) const SIZE: usize = 4 + NAME + 4;
const NAME: usize = 256;

/// What a message says, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    /// The program runs.
    Runs,
    /// The program ended.
    Ended(ExitStatus),
    /// Something else.
    Other,
}

/// Reads one message.
pub(super) fn read(message: &[u8; SIZE]) -> News {
    const STATE: i32 = 0;
    const EXIT_STATUS: i32 = 2;
    const RUNNING: i32 = 2;
    let number = |at: usize| {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&message[at..at + 4]);
        i32::from_ne_bytes(bytes)
    };
    match (number(0), number(4 + NAME)) {
        (STATE, RUNNING) => News::Runs,
        // As `wait` returns it.
        (EXIT_STATUS, status) => News::Ended(match status & 0x7f {
            0 => ExitStatus::Code(((status >> 8) & 0xff) as u8),
            signal => ExitStatus::Signal(signal),
        }),
        _ => News::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: i32, value: i32) -> [u8; SIZE] {
        let mut message = [0; SIZE];
        message[..4].copy_from_slice(&kind.to_ne_bytes());
        message[4..8].copy_from_slice(b"demo");
        message[260..].copy_from_slice(&value.to_ne_bytes());
        message
    }

    #[test]
    fn ends_are_told_apart() {
        for (value, end) in [
            (0, ExitStatus::Code(0)),
            (7 << 8, ExitStatus::Code(7)),
            (137 << 8, ExitStatus::Code(137)),
            (9, ExitStatus::Signal(9)),
            (34, ExitStatus::Signal(34)),
            (0x80 | 11, ExitStatus::Signal(11)),
        ] {
            assert_eq!(read(&message(2, value)), News::Ended(end));
        }
        assert_eq!(read(&message(0, 2)), News::Runs);
        assert_eq!(read(&message(0, 3)), News::Other);
        assert_eq!(read(&message(1, 2)), News::Other);
    }
}
