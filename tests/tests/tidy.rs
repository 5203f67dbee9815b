//! The tree keeps its shape: the top level, a header in every module, nothing unfinished.

use std::fs;
use std::path::{Path, PathBuf};

fn workspace() -> PathBuf {
    fs::canonicalize(Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).expect("the workspace")
}

/// All Rust files below a folder.
fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() && entry.file_name() != "target" {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn the_top_level_holds_what_it_should_and_nothing_else() {
    let known = [
        ".cargo",
        ".ci",
        ".git",
        ".gitignore",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "README.md",
        "clippy.toml",
        "crates",
        "docs",
        "examples",
        "rustfmt.toml",
        "target",
        "tests",
        "xtask",
    ];
    for entry in fs::read_dir(workspace()).expect("the workspace").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        assert!(known.contains(&name.as_str()), "{name} does not belong to the top level");
    }
}

#[test]
fn every_module_says_what_it_owns_and_nothing_is_left_unfinished() {
    let mut files = Vec::new();
    for dir in ["crates", "tests", "xtask"] {
        sources(&workspace().join(dir), &mut files);
    }
    assert!(files.len() > 100, "found only {} files", files.len());
    // Written in two parts, so that this file does not find itself.
    let unfinished = [
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("db", "g!("),
        concat!("#[ig", "nore"),
    ];
    for file in files {
        let text = fs::read_to_string(&file).expect("a source file");
        assert!(text.starts_with("//! "), "{} has no header", file.display());
        for word in unfinished {
            assert!(!text.contains(word), "{} holds {word}", file.display());
        }
    }
}

#[test]
fn links_between_the_pages_lead_somewhere() {
    let docs = workspace().join("docs");
    let mut pages = vec![workspace().join("README.md"), workspace().join("CONTRIBUTING.md")];
    pages.extend(fs::read_dir(&docs).expect("docs").flatten().map(|entry| entry.path()));
    let mut links = 0;
    for page in pages.iter().filter(|page| page.extension().is_some_and(|extension| extension == "md")) {
        let text = fs::read_to_string(page).expect("a page");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap_or_default();
            if path.is_empty() || path.contains("://") {
                continue;
            }
            links += 1;
            let target = page.parent().expect("a folder").join(path);
            assert!(target.exists(), "{} links to {link}, which is not there", page.display());
        }
    }
    assert!(links > 5, "found only {links} links");
}
