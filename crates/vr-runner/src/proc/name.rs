//! What a proc is called, which is also the name of its folder.

use std::fs;
use std::path::Path;

use serde::Deserialize;
use vr_common::hash::md5_hex;
use vr_common::names::{AppName, ConfigName, ContainerName, ProcName, ReleaseHash, Version};
use vr_common::proc_data::is_file_name;
use vr_common::yaml;

use super::ProcError;

/// The longest name, in bytes: a few endings have to fit into a file name as well.
const LONGEST: usize = 200;

/// The name of the proc in a file whose container's name is given, as far as the file says it.
pub(super) fn of(file: &Path, container: Option<ContainerName>) -> Result<String, ProcError> {
    let name = match container {
        Some(name) => name.to_string(),
        None => of_path(file)?,
    };
    match name.len() {
        ..=LONGEST => Ok(name),
        _ => Err(ProcError::LongName { file: file.to_owned(), name }),
    }
}

/// The keys that a name is made of.
#[derive(Deserialize)]
struct Parts {
    app_name: Option<AppName>,
    version: Option<Version>,
    config_name: Option<ConfigName>,
    release_hash: Option<ReleaseHash>,
    #[serde(alias = "proc")]
    proc_name: Option<ProcName>,
    port: Option<u16>,
}

/// The name of the proc in a file that may say nonsense about everything else.
pub(super) fn read(file: &Path) -> Result<String, ProcError> {
    let parts: Parts = yaml::parse_file(file)?;
    let container = (|| {
        Some(ContainerName {
            app: parts.app_name?,
            version: parts.version?,
            config: parts.config_name?,
            hash: parts.release_hash?,
            proc_name: parts.proc_name?,
            port: parts.port.unwrap_or(0),
        })
    })();
    of(file, container)
}

/// A name for a file that does not say all that a container's name is made of. Two files of the same name in two
/// folders are two procs, hence the sum of the path.
fn of_path(file: &Path) -> Result<String, ProcError> {
    let whole = fs::canonicalize(file).map_err(|source| ProcError::Io {
        step: "find",
        path: file.to_owned(),
        source,
    })?;
    let stem = whole.file_stem().unwrap_or_default().to_string_lossy();
    let word: String = stem
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c))
        .take(80)
        .skip_while(|c| !c.is_ascii_alphanumeric())
        .collect();
    let word = if is_file_name(&word) { word } else { "proc".to_owned() };
    let sum = md5_hex(whole.as_os_str().as_encoded_bytes());
    Ok(format!("{word}-{}", &sum[..8]))
}

#[cfg(test)]
mod tests {
    use vr_common::paths::VrRoot;

    use super::super::{Proc, Variant};
    use super::*;

    const WHOLE: &str =
        "app_name: a\nversion: v1\nconfig_name: c\nrelease_hash: abcd1234\nproc_name: web\nport: 80\n";

    #[test]
    fn files_without_a_whole_name_get_a_stable_one_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let load = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            let loaded = Proc::load(&path, VrRoot::new("/nowhere"), Variant::AsTheFileSays);
            let name = loaded.map(|proc| proc.name().to_owned());
            if let Ok(name) = &name {
                assert_eq!(*name, read(&path).unwrap());
            }
            name
        };
        let one = load("a/my proc.yaml", "cmd: x").unwrap();
        assert!(one.starts_with("myproc-"), "{one}");
        assert_eq!(one, load("a/my proc.yaml", "cmd: y").unwrap());
        assert_ne!(one, load("b/my proc.yaml", "cmd: x").unwrap());
        assert!(load("a/-..yaml", "cmd: x").unwrap().starts_with("proc-"));
        assert_eq!(load("x.yaml", WHOLE).unwrap(), "a-v1-c-abcd1234-web-80");
        assert_eq!(load("x.yaml", &WHOLE.replace("proc_name", "proc")).unwrap(), "a-v1-c-abcd1234-web-80");
        let long =
            WHOLE.replace("v1", &"v".repeat(64)).replace("name: a", &format!("name: {}", "a".repeat(64)));
        let long = long.replace("name: web", &format!("name: {}", "w".repeat(64)));
        assert!(matches!(load("x.yaml", &long), Err(ProcError::LongName { .. })));
        assert!(load("x.yaml", "cmd: x\napp_folder: /does/not/exist").is_err());
    }

    #[test]
    fn the_name_is_read_from_a_file_that_is_of_no_other_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("proc.yaml");
        for more in
            ["app_folder: /does/not/exist", "cpu_limit: lots", "env: {A-B: 1}", "volumes: 7", "settings: [1]"]
        {
            fs::write(&path, format!("{WHOLE}{more}\n")).unwrap();
            assert!(Proc::load(&path, VrRoot::new("/nowhere"), Variant::AsTheFileSays).is_err(), "{more}");
            assert_eq!(read(&path).unwrap(), "a-v1-c-abcd1234-web-80", "{more}");
        }
        fs::write(&path, WHOLE.replace("80", "eighty")).unwrap();
        assert!(matches!(read(&path), Err(ProcError::Yaml(_))));
    }
}
