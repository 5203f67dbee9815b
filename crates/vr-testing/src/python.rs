//! The published Python client of hosts, `vr.common`, as pip installs it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use vr_common::lock::FileLock;
use vr_common::process::command;

/// What is installed: the client, and the library by which it reads the cache.
const PACKAGES: [&str; 2] = ["vr.common==6.1.1", "redis==8.1.0"];

/// A Python with the published client, such as `import vr.common.models`. It is made once, by whichever test comes first, and
/// stays in the build folder.
///
/// # Panics
/// When it cannot be made; the first time needs Python's `venv` module and PyPI or a mirror of it.
pub fn published_python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let target =
            Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("a workspace").join("target");
        made(&target.join("python-client"), &PACKAGES)
    })
}

fn made(folder: &Path, packages: &[&str]) -> PathBuf {
    fs::create_dir_all(folder).expect("a folder for Python's packages");
    let lock = folder.join("lock");
    let _lock = FileLock::wait(&lock, || eprintln!("waiting for another test to install {packages:?}"))
        .expect("a lock");
    let (environment, note) = (folder.join("venv"), folder.join("installed"));
    let python = environment.join("bin/python");
    let wanted = packages.join("\n");
    // The note is written last: without it, an install was cut short.
    if fs::read_to_string(&note).is_ok_and(|installed| installed == wanted) && answers(&python) {
        return python;
    }
    done(command("python3").args(["-m", "venv", "--clear"]).arg(&environment));
    done(
        command(&python)
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
            .args(packages),
    );
    fs::write(&note, wanted).expect("a note of what is installed");
    python
}

/// Whether it still runs: the Python it was made from may have gone since.
fn answers(python: &Path) -> bool {
    command(python).args(["-c", ""]).status().is_ok_and(|status| status.success())
}

fn done(program: &mut Command) {
    let output = program.output().unwrap_or_else(|e| panic!("cannot start {program:?}: {e}"));
    assert!(output.status.success(), "{program:?}:\n{}", String::from_utf8_lossy(&output.stderr));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_is_there() {
        let script = "import redis, vr.common.models as models; print(models.Host('h', 1).cache_key)";
        let output = command(published_python()).args(["-c", script]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "host_procs:h\n", "{output:?}");
    }
}
