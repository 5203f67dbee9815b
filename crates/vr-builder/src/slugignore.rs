//! `.slugignore`: what an app wants left out of its build.
//!
//! One pattern a line, relative to the app's folder whether or not it begins with `/`; `*`, `?`, `[…]` and `{…}` stay
//! within one name, `**` stands for any folders. As in a shell, a wildcard does not match a leading dot. What matches
//! is removed, folders with all that is in them. Nothing outside the app's folder can be meant: `..` is refused,
//! and symbolic links are removed but never followed.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};
use vr_common::archive::remove_tree;

/// The most patterns that are looked for; each one is a walk through the app.
const MOST_PATTERNS: usize = 1000;

/// The patterns of one app.
#[derive(Debug, Default)]
pub struct Slugignore {
    patterns: Vec<Vec<Part>>,
    /// The lines that are no patterns, each with the reason, for people.
    pub refused: Vec<String>,
}

/// One name in a pattern.
#[derive(Debug)]
enum Part {
    /// `**`: any number of folders.
    AnyFolders,
    /// One name.
    Name { glob: GlobMatcher, dot: bool },
}

impl Part {
    fn matches(&self, name: &OsStr) -> bool {
        let hidden = name.as_encoded_bytes().starts_with(b".");
        match self {
            Self::AnyFolders => !hidden,
            Self::Name { glob, dot } => (*dot || !hidden) && glob.is_match(Path::new(name)),
        }
    }
}

impl Slugignore {
    /// Reads the file's text.
    pub fn parse(text: &str) -> Self {
        let mut parsed = Self::default();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            match parse_pattern(line) {
                Ok(_) if parsed.patterns.len() >= MOST_PATTERNS => {
                    parsed
                        .refused
                        .push(format!("{line:?} and what follows are too many: more than {MOST_PATTERNS}"));
                    break;
                }
                Ok(pattern) => parsed.patterns.push(pattern),
                Err(reason) => parsed.refused.push(format!("{line:?} {reason}")),
            }
        }
        parsed
    }

    /// Removes what matches in the folder `app`, in which nobody else may be at work. Gives the paths that were
    /// removed, relative to `app` and sorted.
    pub fn apply(&self, app: &Path) -> io::Result<Vec<PathBuf>> {
        let mut removed = Vec::new();
        for pattern in &self.patterns {
            let mut found = Vec::new();
            expand(app, Path::new(""), pattern, &mut HashSet::new(), &mut found)?;
            for path in found {
                remove_tree(&app.join(&path))?;
                removed.push(path);
            }
        }
        removed.sort();
        removed.dedup();
        Ok(removed)
    }
}

fn parse_pattern(line: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    for name in line.split('/').filter(|name| !name.is_empty() && *name != ".") {
        match name {
            ".." => return Err("leads out of the app's folder".to_owned()),
            // Two in a row mean the same as one, and would only take longer.
            "**" if matches!(parts.last(), Some(Part::AnyFolders)) => {}
            "**" => parts.push(Part::AnyFolders),
            name => {
                let glob = GlobBuilder::new(name)
                    .literal_separator(true)
                    .backslash_escape(true)
                    .build()
                    .map_err(|error| format!("is not a pattern: {}", error.kind()))?;
                parts.push(Part::Name { glob: glob.compile_matcher(), dot: name.starts_with('.') });
            }
        }
    }
    if parts.is_empty() {
        return Err("means the whole app".to_owned());
    }
    Ok(parts)
}

/// Finds what matches `parts`, the rest of a pattern, in the folder `app/inside`. `seen` has the folders in which as many
/// parts were looked for before: with several `**` there are many ways to the same place.
fn expand(
    app: &Path,
    inside: &Path,
    parts: &[Part],
    seen: &mut HashSet<(PathBuf, usize)>,
    found: &mut Vec<PathBuf>,
) -> io::Result<()> {
    let Some((part, rest)) = parts.split_first() else { return Ok(()) };
    if !seen.insert((inside.to_owned(), parts.len())) {
        return Ok(());
    }
    if matches!(part, Part::AnyFolders) && !rest.is_empty() {
        expand(app, inside, rest, seen, found)?;
    }
    for (name, is_folder) in entries(&app.join(inside))? {
        if !part.matches(&name) {
            continue;
        }
        let path = inside.join(&name);
        if rest.is_empty() {
            found.push(path);
        } else if is_folder {
            let parts = if matches!(part, Part::AnyFolders) { parts } else { rest };
            expand(app, &path, parts, seen, found)?;
        }
    }
    Ok(())
}

/// The names in a folder, and whether each is a folder itself. A symbolic link never is.
fn entries(folder: &Path) -> io::Result<Vec<(OsString, bool)>> {
    fs::read_dir(folder)?
        .map(|entry| {
            let entry = entry?;
            Ok((entry.file_name(), entry.file_type()?.is_dir()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A folder with an app in it and things beside the app that must never go.
    fn app() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let app = dir.path().join("app");
        for path in
            ["docs/a/b.md", "src/x.py", "src/docs/y.md", "src/deep/er/z.psd", "top.psd", ".profile.d/x.sh"]
        {
            fs::create_dir_all(app.join(path).parent().unwrap()).unwrap();
            fs::write(app.join(path), path).unwrap();
        }
        fs::create_dir(dir.path().join("beside")).unwrap();
        fs::write(dir.path().join("beside/precious.psd"), "x").unwrap();
        symlink("../beside", app.join("link")).unwrap();
        symlink(dir.path().join("beside"), app.join("src/link")).unwrap();
        (dir, app)
    }

    fn removed(text: &str) -> Vec<String> {
        let (dir, app) = app();
        let removed = Slugignore::parse(text).apply(&app).unwrap();
        assert!(dir.path().join("beside/precious.psd").exists(), "{text}");
        for path in &removed {
            assert!(fs::symlink_metadata(app.join(path)).is_err(), "{} is still there", path.display());
        }
        removed.into_iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn patterns_are_relative_to_the_app() {
        assert_eq!(removed("docs"), ["docs"]);
        assert_eq!(removed("# a comment\n\n  /docs/  \n"), ["docs"]);
        assert_eq!(removed("*.psd"), ["top.psd"]);
        assert_eq!(removed("**/*.psd"), ["src/deep/er/z.psd", "top.psd"]);
        assert_eq!(removed("src/*/*.md\nsrc/d*/er"), ["src/deep/er", "src/docs/y.md"]);
        assert_eq!(removed("nothing/like/it"), Vec::<String>::new());
        assert_eq!(removed("src\nsrc/x.py"), ["src"]);
    }

    #[test]
    fn many_ways_to_the_same_place_take_no_longer_than_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut deep = dir.path().to_owned();
        for _ in 0..60 {
            deep.push("a");
        }
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("zz"), "x").unwrap();
        let pattern = "**/a/".repeat(12) + "**/zz";
        let removed = Slugignore::parse(&pattern).apply(dir.path()).unwrap();
        assert_eq!(removed, [deep.strip_prefix(dir.path()).unwrap().join("zz")]);
        let parsed = Slugignore::parse(&"x\n".repeat(MOST_PATTERNS + 5));
        assert_eq!((parsed.patterns.len(), parsed.refused.len()), (MOST_PATTERNS, 1));
    }

    #[test]
    fn wildcards_leave_hidden_names_alone() {
        assert_eq!(removed("*"), ["docs", "link", "src", "top.psd"]);
        assert_eq!(removed(".profile.d/*"), [".profile.d/x.sh"]);
        assert_eq!(removed(".*"), [".profile.d"]);
    }

    #[test]
    fn nothing_outside_is_ever_meant() {
        assert_eq!(removed("link/precious.psd\nlink/*\nsrc/link/*\n**/precious.psd"), Vec::<String>::new());
        assert_eq!(removed("link\nsrc/link"), ["link", "src/link"]);
        assert_eq!(removed("../beside\n../../*\ndocs/../../beside/*\n/etc/passwd"), Vec::<String>::new());
        let parsed = Slugignore::parse("../../x\n/\n.\na[\n./ok");
        let refused = parsed.refused.join("\n");
        assert_eq!(parsed.refused.len(), 4, "{refused}");
        assert!(
            refused.starts_with("\"../../x\" leads out of the app's folder\n\"/\" means the whole app\n")
        );
        assert!(refused.contains("\"a[\" is not a pattern: "), "{refused}");
    }
}
