//! `GET info`: what this host is.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use tokio::sync::Mutex;
use vr_common::host_api::HostInfo;
use vr_common::paths::VrRoot;
use vr_common::process;

use super::{Api, off_thread};
use crate::error::AgentError;
use crate::vrun;

/// How long vrun may take to say its version.
const VERSION_DEADLINE: Duration = Duration::from_secs(5);

/// vrun's version, which is asked for again only when the program was replaced.
#[derive(Debug, Default)]
pub(super) struct VrunVersion {
    known: Mutex<Option<(Stamp, String)>>,
}

/// Device, inode, size, and when it was written.
type Stamp = (u64, u64, u64, i64);

impl VrunVersion {
    async fn get(&self, root: &VrRoot) -> Option<String> {
        let mut known = self.known.lock().await;
        let found = fs::metadata(process::sibling("vrun")).ok()?;
        let stamp = (found.dev(), found.ino(), found.size(), found.mtime());
        if let Some((of, version)) = &*known
            && *of == stamp
        {
            return Some(version.clone());
        }
        let version = vrun::version(root, VERSION_DEADLINE).await.ok()?;
        *known = Some((stamp, version.clone()));
        Some(version)
    }
}

pub(super) async fn info(State(api): State<Api>) -> Result<Json<HostInfo>, AgentError> {
    let host = Arc::clone(&api.host);
    let mut info = off_thread("info", move || Ok(host.info())).await?;
    api.host.changes().epoch().clone_into(&mut info.epoch);
    info.vrun_version = api.vrun.get(api.host.root()).await;
    Ok(Json(info))
}
