//! The samples that are shipped in `examples/` are what the formats say.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use vr_common::build_data::BuildData;
use vr_common::image_data::ImageData;
use vr_common::names::ProcName;
use vr_common::proc_data::ProcData;
use vr_common::yaml;

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples")
}

#[test]
fn the_yaml_files_are_read_and_hold_no_unknown_keys() {
    let build = BuildData::load(&examples().join("app.yaml")).unwrap();
    assert!(build.unknown.is_empty(), "{:?}", build.unknown);
    let proc = ProcData::load(&examples().join("proc.yaml")).unwrap();
    assert!(proc.unknown.is_empty(), "{:?}", proc.unknown);
    assert_eq!(proc.app_name.unwrap(), build.app_name);
    assert_eq!(proc.version.unwrap(), build.version);
    ImageData::load(&examples().join("image.yaml")).unwrap();
}

#[test]
fn the_apps_have_procfiles_and_uptests_for_their_own_procs() {
    for app in ["hello_perl", "counter_c"] {
        let folder = examples().join(app);
        let procfile: BTreeMap<ProcName, String> = yaml::parse_file(&folder.join("Procfile")).unwrap();
        assert!(procfile.contains_key(&"web".parse().unwrap()), "{app}");
        for entry in folder.join("uptests").read_dir().unwrap() {
            let name: ProcName = entry.unwrap().file_name().into_string().unwrap().parse().unwrap();
            assert!(procfile.contains_key(&name), "{app} has uptests for {name}");
        }
    }
}

#[test]
fn what_is_run_can_be_run() {
    let mut scripts = vec![examples().join("provision.sh")];
    for folder in
        ["hello_perl/uptests/web", "counter_c/uptests/web", "buildpacks/perl/bin", "buildpacks/make/bin"]
    {
        scripts.extend(examples().join(folder).read_dir().unwrap().map(|entry| entry.unwrap().path()));
    }
    assert!(scripts.len() >= 11, "{scripts:?}");
    for script in scripts {
        let mode = script.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o555, 0o555, "{} has mode {mode:o}", script.display());
        assert!(std::fs::read(&script).unwrap().starts_with(b"#!/"), "{}", script.display());
    }
}
