//! `uptest`: the scripts of `/app/uptests/<proc_name>/`, each in a container like the proc's own.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use vr_common::host_api::UptestResult;
use vr_common::log::DOING;

use super::layer::HeldLayer;
use super::record::Record;
use super::root::{View, root};
use super::{Proc, ProcError};
use crate::container::{Container, ContainerError, Streams, open_beneath};

/// The longest output of one test that is kept, in bytes.
const LONGEST_OUTPUT: usize = 1 << 20;

/// Runs a proc's uptests in name order; none when the app has no folder of them. A test that takes longer than
/// `limit` is stopped and did not pass.
pub fn uptest(proc: &Proc, limit: Duration) -> Result<Vec<UptestResult>, ProcError> {
    let record = proc.record()?;
    let Some(proc_name) = &proc.data.proc_name else {
        return Err(ProcError::NoProcName { name: proc.name.clone() });
    };
    let folder = format!("uptests/{proc_name}");
    // Without it there would seem to be no tests. Held for all of them, so that none finds it gone.
    let _layer = match &record.layer {
        Some(key) => Some(
            HeldLayer::find(&proc.root, key)?
                .ok_or_else(|| ProcError::NotSetUp { name: proc.name.clone() })?,
        ),
        None => None,
    };
    let mut results = Vec::new();
    for test in tests(proc, &record, &folder)? {
        tracing::info!(target: DOING, "running the uptest {}", test.name.display());
        results.push(run_one(proc, &record, &folder, &test, limit)?);
    }
    Ok(results)
}

struct Test {
    name: OsString,
    /// Why it cannot be started, if that is known.
    unusable: Option<&'static str>,
}

fn tests(proc: &Proc, record: &Record, folder: &str) -> Result<Vec<Test>, ProcError> {
    let (root, folder) = proc.in_app(record.layer.as_deref(), folder);
    let opened = match open_beneath(&root, &folder) {
        Ok(opened) => opened,
        Err(ContainerError::Open { source, .. })
            if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error.into()),
    };
    let error = |source| ProcError::Io { step: "list", path: root.join(&folder), source };
    if !opened.metadata().map_err(error)?.is_dir() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/self/fd/{}", opened.as_raw_fd())).map_err(error)? {
        let entry = entry.map_err(error)?;
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let unusable = match open_beneath(&root, &folder.join(&name)).map(|file| file.metadata()) {
            Ok(Ok(metadata)) if !metadata.is_file() => continue,
            Ok(Ok(metadata)) if metadata.permissions().mode() & 0o111 == 0 => {
                Some("it is not executable (chmod +x)")
            }
            // A link into the image, for one; the container will tell.
            _ => None,
        };
        found.push(Test { name, unusable });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn run_one(
    proc: &Proc,
    record: &Record,
    folder: &str,
    test: &Test,
    limit: Duration,
) -> Result<UptestResult, ProcError> {
    let name = test.name.to_string_lossy().into_owned();
    if let Some(reason) = test.unusable {
        return Ok(UptestResult { name, output: format!("cannot start: {reason}"), passed: false });
    }
    let host = proc.data.host.as_deref().unwrap_or("localhost");
    let port = proc.data.port.unwrap_or(0).to_string();
    let (root, mut held) = root(proc, record, View::Pristine)?;
    let mut spec = proc.container("-uptest", root, record, &[])?;
    let mut file = OsString::from(format!("/app/{folder}/"));
    file.push(&test.name);
    spec.program.arguments.extend([file, host.into(), port.into()]);
    spec.streams = Streams::Captured;
    let mut output = Output::default();
    let mut running = Container::start(spec)?;
    held.renew()?;
    let (end, timed_out) = running.wait_with_output(Some(limit), &mut |bytes| output.add(bytes))?;
    let mut output = output.into_text();
    if let Some(words) = running.out_of_memory() {
        output.push_str(&format!("\n[{words}]"));
    }
    drop((running, held));
    if timed_out {
        output.push_str(&format!("\n[stopped: it took longer than {} s]", limit.as_secs()));
    }
    Ok(UptestResult { name, output, passed: end.success() && !timed_out })
}

/// The beginning of a test's output.
#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    dropped: usize,
}

impl Output {
    fn add(&mut self, bytes: &[u8]) {
        let room = LONGEST_OUTPUT.saturating_sub(self.bytes.len()).min(bytes.len());
        self.bytes.extend_from_slice(&bytes[..room]);
        self.dropped += bytes.len() - room;
    }

    fn into_text(self) -> String {
        let mut text = String::from_utf8_lossy(&self.bytes).into_owned();
        if self.dropped > 0 {
            text.push_str(&format!("\n[cut: {} more bytes]", self.dropped));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endless_output_is_cut_and_says_so() {
        let mut output = Output::default();
        for _ in 0..LONGEST_OUTPUT / 1000 + 2 {
            output.add(&[b'x'; 1000]);
        }
        let text = output.into_text();
        assert!(text.len() < LONGEST_OUTPUT + 50);
        assert!(text.ends_with("xxx\n[cut: 1424 more bytes]"), "{}", &text[LONGEST_OUTPUT..]);
    }
}
