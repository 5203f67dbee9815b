//! Whether a folder can be the upper one of an overlay: the kernel's overlays cannot write to every file system. Some have
//! to know before the first container tells.

use std::io;
use std::path::Path;

/// What is to be expected of a folder as the upper one of an overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upper {
    /// It works.
    Possible,
    /// Some file systems of this name can, most cannot.
    Doubtful(&'static str),
    /// File systems of this name cannot.
    Impossible(&'static str),
}

/// What is to be expected of a folder, which need not be there yet.
pub fn can_be_upper(folder: &Path) -> io::Result<Upper> {
    for there in folder.ancestors().filter(|there| !there.as_os_str().is_empty()) {
        match rustix::fs::statfs(there).map_err(io::Error::from) {
            // The field has another type on each machine; the numbers have 32 bits.
            Ok(found) => return Ok(of_type(found.f_type as u32)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Upper::Possible)
}

/// By the kernel's number for a file system (`linux/magic.h`).
fn of_type(number: u32) -> Upper {
    match number {
        0x794c_7630 => Upper::Impossible("an overlay file system"),
        0x6969 => Upper::Impossible("NFS"),
        0xff53_4d42 | 0xfe53_4d42 | 0x517b => Upper::Impossible("SMB"),
        0x0102_1997 => Upper::Impossible("a 9p file system"),
        0xf15f => Upper::Impossible("eCryptfs"),
        0x4d44 => Upper::Impossible("a FAT file system"),
        0x6573_5546 => Upper::Doubtful("FUSE"),
        _ => Upper::Possible,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_missing_is_judged_by_the_one_that_it_will_be_in() {
        // The kernel's own, for the number of which nothing is known here.
        assert_eq!(can_be_upper(Path::new("/proc/self/no/such/folder")).unwrap(), Upper::Possible);
        assert_eq!(of_type(0xef53), Upper::Possible);
        assert_eq!(of_type(0x6969), Upper::Impossible("NFS"));
        assert_eq!(of_type(0x6573_5546), Upper::Doubtful("FUSE"));
    }
}
