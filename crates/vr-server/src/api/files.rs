//! `/files/`: builds and logs, which hosts fetch by their unguessable names.
//!
//! Only files that lie below the root themselves are served: no folders, no hidden files, no symbolic links.

use std::path::{Component, Path as FsPath, PathBuf};

use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use tower::ServiceExt;
use tower_http::services::ServeFile;

use super::Api;
use super::error::Failure;

pub(super) async fn serve(State(api): State<Api>, Path(path): Path<String>, request: Request) -> Response {
    let Some(file) = locate(&api.files, &path).await else {
        return Failure::not_found(format!("there is no file {path}")).into_response();
    };
    match ServeFile::new(file).oneshot(request).await {
        Ok(response) => response.map(axum::body::Body::new).into_response(),
        Err(never) => match never {},
    }
}

/// The plain file at a path below the root.
async fn locate(root: &FsPath, path: &str) -> Option<PathBuf> {
    let mut file = root.to_owned();
    let mut metadata = None;
    for component in FsPath::new(path).components() {
        let Component::Normal(name) = component else { return None };
        if name.to_str()?.starts_with('.') {
            return None;
        }
        file.push(name);
        let found = tokio::fs::symlink_metadata(&file).await.ok()?;
        if found.is_symlink() {
            return None;
        }
        metadata = Some(found);
    }
    metadata.filter(std::fs::Metadata::is_file).map(|_| file)
}
