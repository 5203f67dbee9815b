//! Trees of files that are always the same and that halve when they are compressed.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};

/// How many files of which size.
#[derive(Debug, Clone, Copy)]
pub struct Tree {
    /// Small files, …
    pub small: usize,
    /// … their size in bytes, on average: from nearly nothing to twice that, as real ones differ …
    pub small_size: usize,
    /// … and how many of them are in one folder.
    pub in_a_folder: usize,
    /// Large files …
    pub large: usize,
    /// … and their size in bytes.
    pub large_size: usize,
}

/// 200 MB, as in a folder of JavaScript packages: very many small files and a few large ones.
pub const LARGE: Tree =
    Tree { small: 12_000, small_size: 8 << 10, in_a_folder: 12, large: 13, large_size: 8 << 20 };

impl Tree {
    /// How many files there are.
    pub fn files(&self) -> usize {
        self.small + self.large
    }

    /// Writes all of them below a folder; gives their size in bytes.
    pub fn make(&self, folder: &Path) -> Result<u64> {
        let mut content = Content { state: 0x2545_f491_4f6c_dd1d };
        let mut size = 0;
        for number in 0..self.small {
            let package = number / self.in_a_folder;
            let path = folder.join(format!("node_modules/package-{package}/lib/module-{number}.js"));
            size += content.write(&path, self.small_size * (1 + number % 31) / 16)?;
        }
        for number in 0..self.large {
            size += content.write(&folder.join(format!("assets/bundle-{number}.bin")), self.large_size)?;
        }
        Ok(size)
    }
}

/// Half noise, half text.
struct Content {
    state: u64,
}

impl Content {
    fn write(&mut self, path: &Path, size: usize) -> Result<u64> {
        const TEXT: &[u8; 32] = b"module.exports = require('./x');";
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut file = BufWriter::new(file);
        let mut written = 0;
        while written < size {
            for _ in 0..4 {
                file.write_all(&self.next().to_ne_bytes())?;
            }
            file.write_all(TEXT)?;
            written += 64;
        }
        file.flush()?;
        Ok(written as u64)
    }

    /// Marsaglia's xorshift: the same numbers each time.
    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_files_are_made_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree { small: 31, small_size: 1024, in_a_folder: 8, large: 2, large_size: 4096 };
        let [one, other] = ["one", "other"].map(|name| dir.path().join(name));
        let size = tree.make(&one).unwrap();
        assert_eq!(tree.make(&other).unwrap(), size);
        assert_eq!(size, 31 * 1024 + 2 * 4096);
        let read = |folder: &Path| fs::read(folder.join("node_modules/package-3/lib/module-30.js")).unwrap();
        assert_eq!(read(&one), read(&other));
        assert_eq!(fs::read_dir(one.join("node_modules")).unwrap().count(), 4);
        assert_eq!(fs::read_dir(one.join("assets")).unwrap().count(), 2);
    }
}
