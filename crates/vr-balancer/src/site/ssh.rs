//! Commands on another machine.

use std::path::Path;
use std::time::Duration;

use vr_ssh::{As, SshError, SshHost};

use super::{Command, OUTPUT_LIMIT, Output, SiteError, Status};

pub(super) async fn run(host: &SshHost, command: &Command) -> Result<Output, SiteError> {
    let Some((program, arguments)) = command.words.split_first() else {
        return Err(SiteError::Script("there is no command to run".to_owned()));
    };
    let over_ssh = vr_ssh::Command::new(program)
        .args(arguments)
        .named(&command.title)
        .input(command.stdin.clone())
        .timeout(command.deadline)
        .output_limit(OUTPUT_LIMIT)
        .as_root();
    let output = host.run(over_ssh).await?;
    let status = match output.status {
        vr_ssh::Status::Code(code) => Status::Code(i32::try_from(code).unwrap_or(i32::MAX)),
        signal => Status::Other(signal.to_string()),
    };
    Ok(Output { status, stdout: output.stdout, stderr: output.stderr.into_bytes(), cut: output.is_truncated })
}

/// Takes a lock; its folder is made first if it is missing.
pub(super) async fn lock(host: &SshHost, path: &str, wait: Duration) -> Result<vr_ssh::Lock, SiteError> {
    let note = format!("vr-balancer, process {}", std::process::id());
    let take = || host.lock(Path::new(path), &note, wait, As::Root);
    let mut taken = take().await;
    if let (Err(SshError::Failed { .. }), Some((folder, _))) = (&taken, path.rsplit_once('/')) {
        // The folder above has to be there: a wrong `include_dir` shall not come into being by this.
        let script = "[ -d \"${1%/*}\" ] || { echo \"there is no folder ${1%/*}\" >&2; exit 3; }; mkdir -m 700 -- \"$1\" || [ -d \"$1\" ]";
        let make =
            vr_ssh::Command::new("sh").args(["-c", script, "sh", folder]).named("making a folder").as_root();
        let made = host.run(make).await?;
        if !made.status.success() {
            return Err(SiteError::Script(made.stderr.trim().to_owned()));
        }
        taken = take().await;
    }
    match taken {
        Ok(lock) => Ok(lock),
        Err(SshError::Locked { .. }) => Err(SiteError::Locked { path: path.to_owned(), after: wait }),
        Err(error) => Err(error.into()),
    }
}
