//! That no program is forgotten, and that everything is written.

use std::collections::BTreeSet;

use serde_json::Value;
use vr_common::process::command;

/// Programs of the workspace that nobody installs.
const OWN: [&str; 2] = ["vr-dist", "xtask"];

#[test]
fn every_program_of_the_workspace_has_its_pages() {
    let cargo = option_env!("CARGO").unwrap_or("cargo");
    let metadata = command(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let metadata: Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let targets = packages.iter().flat_map(|package| package["targets"].as_array().unwrap());
    let programs: BTreeSet<_> = targets
        .filter(|target| target["kind"][0] == "bin")
        .map(|target| target["name"].as_str().unwrap())
        .filter(|name| !OWN.contains(name))
        .collect();
    assert_eq!(programs, vr_dist::PROGRAMS.iter().map(|program| program.name).collect());

    let out = tempfile::tempdir().unwrap();
    let written = vr_dist::write(out.path()).unwrap();
    for name in programs {
        for file in [
            format!("share/man/man1/{name}.1"),
            format!("share/bash-completion/completions/{name}"),
            format!("share/zsh/site-functions/_{name}"),
            format!("share/fish/vendor_completions.d/{name}.fish"),
        ] {
            assert!(written.iter().any(|path| path.as_os_str() == file.as_str()), "{file}");
        }
    }
    for file in written {
        assert!(out.path().join(&file).metadata().unwrap().len() > 0, "{}", file.display());
    }
}
