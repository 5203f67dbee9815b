//! Reading files of a site, and putting files in place.
//!
//! A folder's files are named relative to it. New content is written to the temporary folder, gets its mode and owner
//! there, goes into `.velociraptor` beside its place, and is renamed into place: nobody ever sees half a file. Nothing is
//! renamed before all of the input has arrived, so that a connection that breaks changes nothing.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{Command, Site, SiteError};

/// The folder for what we need to remember beside the balancer's own files. Its name begins with a dot, so that no
/// `include *` takes it for configuration.
pub const STATE_FOLDER: &str = ".velociraptor";
/// The exit code of a script that has said in its own words what is wrong.
pub(super) const OWN_WORDS: i32 = 3;

/// Prints a line `F NAME MTIME BASE64` for a file and `N NAME` for none.
const SHOW: &str = r#"
set -u
complain() { echo "$1" >&2; exit 3; }
show() {
    if [ -f "$1" ] && size=$(stat -L -c %s -- "$1") && time=$(stat -L -c %.6Y -- "$1"); then
        [ "$size" -le 1048576 ] || complain "$PWD/$1 is longer than 1048576 bytes"
        content=$(base64 -w 0 -- "$1") || complain "cannot read $PWD/$1"
        printf 'F %s %s %s\n' "$1" "$time" "$content"
    else
        printf 'N %s\n' "$1"
    fi
}
[ -d "$1" ] || complain "there is no folder $1"
cd -- "$1" || complain "cannot enter the folder $1"
"#;

const READ: &str = r#"shift; for name; do show "$name"; done"#;

/// Names with other characters are nobody's pools.
const LIST: &str = r#"
dir=$1 prefix=$2 suffix=$3
for name in "$prefix"*"$suffix"; do
    case $name in *[!A-Za-z0-9_.-]*) continue ;; esac
    [ ! -f "$name" ] || show "$name"
done
shift 3
for name; do show "$name"; done
"#;

/// Reads lines `W NAME MODE BASE64` and `D NAME`, and a last one `END`.
const APPLY: &str = r#"
set -eu
complain() { echo "$1" >&2; exit 3; }
dir=$1 tmpdir=$2
[ -d "$dir" ] || complain "there is no folder $dir"
[ -d "$tmpdir" ] || complain "there is no folder $tmpdir for temporary files"
cd -- "$dir"
umask 077
mkdir -p -- .velociraptor
new= user=$(id -u)
trap 'rm -f -- "$new"' EXIT
rm -f -- .velociraptor/new.*
moves= number=0 complete=
while read -r what name mode content; do
    case $what in
    W)
        number=$((number + 1))
        new=$(mktemp -- "$tmpdir/velociraptor.XXXXXXXX")
        printf %s "$content" | base64 -d >"$new"
        chmod "$mode" -- "$new"
        [ "$user" != 0 ] || chown 0:0 -- "$new"
        mv -f -- "$new" ".velociraptor/new.$number"
        new=
        if command -v restorecon >/dev/null 2>&1; then restorecon ".velociraptor/new.$number" || true; fi
        sync -- ".velociraptor/new.$number"
        moves="$moves$what $name $number
"
        ;;
    D) moves="$moves$what $name -
" ;;
    END) complete=yes ;;
    esac
done
[ "$complete" = yes ] || complain "the new files did not arrive whole"
printf %s "$moves" | while read -r what name number; do
    case $what in
    W) mv -fT -- ".velociraptor/new.$number" "$name" ;;
    D) rm -f -- "$name" ;;
    esac
done
sync -- .
"#;

/// A file as it is on a site.
#[derive(Debug, Clone, PartialEq)]
pub struct FileOnSite {
    /// Its name, relative to the folder that was asked for.
    pub name: String,
    /// When it was changed last, in seconds since 1970 by the site's clock.
    pub modified: f64,
    /// What is in it.
    pub text: String,
}

/// A file as it shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileText {
    /// Its name, relative to the folder that is written to: letters, digits, `_`, `.`, `-` and `/` only.
    pub name: String,
    /// What shall be in it; none to remove it.
    pub text: Option<String>,
}

impl Site {
    /// Reads these files of a folder; those that are missing are left out.
    pub async fn read(&self, folder: &str, names: &[&str]) -> Result<Vec<FileOnSite>, SiteError> {
        let script = [SHOW, READ].concat();
        self.show(&script, std::iter::once(folder).chain(names.iter().copied())).await
    }

    /// Reads all files of a folder whose names begin and end so, and these others.
    pub async fn read_all(
        &self,
        folder: &str,
        prefix: &str,
        suffix: &str,
        others: &[&str],
    ) -> Result<Vec<FileOnSite>, SiteError> {
        let script = [SHOW, LIST].concat();
        let mut files =
            self.show(&script, [folder, prefix, suffix].into_iter().chain(others.iter().copied())).await?;
        files.dedup_by(|a, b| a.name == b.name);
        Ok(files)
    }

    async fn show<'a>(
        &self,
        script: &'a str,
        arguments: impl Iterator<Item = &'a str>,
    ) -> Result<Vec<FileOnSite>, SiteError> {
        let command = Command::script("reading files", script, arguments);
        let output = self.succeed(&command).await?;
        let bad = |reason: String| SiteError::BadAnswer { command: "reading files".to_owned(), reason };
        if output.cut {
            return Err(bad("it is too long".to_owned()));
        }
        let mut files = Vec::new();
        for line in output.text().lines() {
            let mut words = line.splitn(4, ' ');
            match (words.next(), words.next(), words.next(), words.next()) {
                (Some("F"), Some(name), Some(modified), Some(content)) => {
                    let bytes = STANDARD.decode(content).map_err(|error| bad(format!("{name}: {error}")))?;
                    let text = String::from_utf8(bytes).map_err(|_| bad(format!("{name} is not UTF-8")))?;
                    // Some locales write decimals with a comma.
                    let modified = modified.replace(',', ".").parse().map_err(|_| bad(line.to_owned()))?;
                    files.push(FileOnSite { name: name.to_owned(), modified, text });
                }
                (Some("N"), Some(_), None, None) => {}
                _ => return Err(bad(line.chars().take(200).collect())),
            }
        }
        Ok(files)
    }

    /// Writes and removes files of a folder, in this order, each at once. They are root's and everybody may read them;
    /// those of the state folder are for their owner only.
    pub async fn write(&self, folder: &str, files: &[FileText]) -> Result<(), SiteError> {
        let mut lines = String::new();
        for FileText { name, text } in files {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "_.-/".contains(c);
            if name.is_empty()
                || name.contains("..")
                || name.starts_with(['/', '-'])
                || !name.chars().all(is_plain)
            {
                return Err(SiteError::Script(format!("{name:?} cannot be the name of a file here")));
            }
            let mode = if name.starts_with(STATE_FOLDER) { "0600" } else { "0644" };
            match text {
                Some(text) => lines += &format!("W {name} {mode} {}\n", STANDARD.encode(text)),
                None => lines += &format!("D {name}\n"),
            }
        }
        lines += "END\n";
        let command = Command::script("writing files", APPLY, [folder, self.tmpdir.as_str()]);
        self.succeed(&command.stdin(lines.into_bytes())).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    fn text(name: &str, text: Option<&str>) -> FileText {
        FileText { name: name.to_owned(), text: text.map(str::to_owned) }
    }

    #[tokio::test]
    async fn files_are_written_read_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("with ' and \" in it");
        fs::create_dir(&folder).unwrap();
        let path = folder.to_str().unwrap();
        let site = Site::local("localhost", false);
        let odd = "a \\n \\\\ 'b' \"c\" $HOME\n\n\u{e9}\n";
        let files = [text("a.conf", Some(odd)), text("b.conf", Some("")), text(".velociraptor/j", Some("x"))];
        site.write(path, &files).await.unwrap();
        let meta = fs::metadata(folder.join("a.conf")).unwrap();
        assert_eq!(
            (meta.permissions().mode() & 0o777, meta.uid()),
            (0o644, rustix::process::getuid().as_raw())
        );
        let state = |name: &str| fs::metadata(folder.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((state(".velociraptor"), state(".velociraptor/j")), (0o700, 0o600));

        fs::write(folder.join("it's other.conf"), "x").unwrap();
        let seen = site.read_all(path, "", ".conf", &[".velociraptor/j", "none"]).await.unwrap();
        let seen: Vec<_> = seen.iter().map(|file| (file.name.as_str(), file.text.as_str())).collect();
        assert_eq!(seen, [("a.conf", odd), ("b.conf", ""), (".velociraptor/j", "x")]);

        site.write(path, &[text("a.conf", None), text("a.conf", None), text("b.conf", Some("b"))])
            .await
            .unwrap();
        let seen = site.read(path, &["a.conf", "b.conf"]).await.unwrap();
        assert_eq!((seen.len(), seen[0].text.as_str()), (1, "b"));
        let left: Vec<_> = fs::read_dir(folder.join(".velociraptor")).unwrap().collect();
        assert_eq!(left.len(), 1, "no temporary file is left: {left:?}");
    }

    #[tokio::test]
    async fn half_an_input_changes_nothing_and_bad_places_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        let site = Site::local("localhost", false);
        let cut =
            Command::script("writing files", APPLY, [path, "/tmp"]).stdin(b"W a.conf 0644 eA==\n".to_vec());
        let error = site.succeed(&cut).await.unwrap_err();
        assert_eq!(error.to_string(), "the new files did not arrive whole");
        assert!(!dir.path().join("a.conf").exists());

        for name in ["../x", "/etc/x", "a b", "", "-x", "a\nb"] {
            assert!(site.write(path, &[text(name, Some(""))]).await.is_err(), "{name:?}");
        }
        let error = site.read("/nonexistent", &["x"]).await.unwrap_err();
        assert_eq!(error.to_string(), "there is no folder /nonexistent");
        fs::write(dir.path().join("a.conf"), [0xff, 0xfe]).unwrap();
        let error = site.read(path, &["a.conf"]).await.unwrap_err().to_string();
        assert!(error.contains("a.conf is not UTF-8"), "{error}");
    }
}
