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

/// The longest file that is read or written, in bytes: a journal of very many pools.
const LONGEST: usize = 32 << 20;

/// Prints a line `F NAME MTIME BASE64` for a file and `N NAME` for none. `$longest` is set before.
const SHOW: &str = r#"
set -u
skip_long=
complain() { echo "$1" >&2; exit 3; }
show() {
    if [ ! -f "$1" ] || ! meta=$(stat -L -c '%s %.6Y' -- "$1"); then
        printf 'N %s\n' "$1"
    elif [ "${meta%% *}" -le "$longest" ]; then
        content=$(base64 -w 0 -- "$1") || complain "cannot read $PWD/$1"
        printf 'F %s %s %s\n' "$1" "${meta#* }" "$content"
    else
        [ "$skip_long" = yes ] || complain "$PWD/$1 is longer than $longest bytes"
    fi
}
[ -d "$1" ] || complain "there is no folder $1"
cd -- "$1" || complain "cannot enter the folder $1"
"#;

const READ: &str = r#"shift; for name; do show "$name"; done"#;

/// Names with other characters are nobody's pools, and neither are files that are longer than what we write.
const LIST: &str = r#"
dir=$1 prefix=$2 suffix=$3 skip_long=yes
for name in "$prefix"*"$suffix"; do
    case $name in *[!A-Za-z0-9_.-]*) continue ;; esac
    [ ! -f "$name" ] || show "$name"
done
skip_long=
shift 3
for name; do show "$name"; done
"#;

/// Reads `W NAME UMASK LENGTH` lines, each with so many bytes behind it, and `D NAME` lines, and a last one `END`. Input
/// that is cut somewhere has no such last line. `dd` takes its bytes and no more; `head` need not.
///
/// A file that is a link stays one (`sites-enabled` has such), and what it points to is written.
const APPLY: &str = r#"
set -eu
complain() { echo "$1" >&2; exit 3; }
dir=$1 tmpdir=$2
[ -d "$dir" ] || complain "there is no folder $dir"
[ -d "$tmpdir" ] || complain "there is no folder $tmpdir for temporary files"
cd -- "$dir"
umask 077
mkdir -p -- .velociraptor
rm -f -- .velociraptor/new.*
new=
trap 'rm -rf -- "$new"' EXIT
new=$(mktemp -d -- "$tmpdir/velociraptor.XXXXXXXX")
moves= number=0 complete=
while read -r what name mask length; do
    case $what in
    W)
        number=$((number + 1))
        (
            umask "$mask"
            : >"$new/new.$number"
            [ "$length" = 0 ] || dd bs="$length" count=1 iflag=fullblock status=none >"$new/new.$number"
        )
        moves="$moves$what $name $number
"
        ;;
    D) moves="$moves$what $name -
" ;;
    END) complete=yes ;;
    esac
done
[ "$complete" = yes ] || complain "the new files did not arrive whole"
if [ "$number" != 0 ]; then
    [ "$(id -u)" != 0 ] || chown 0:0 -- "$new"/new.*
    mv -f -- "$new"/new.* .velociraptor
    if command -v restorecon >/dev/null 2>&1; then restorecon .velociraptor/new.* || true; fi
    sync -- .velociraptor/new.*
fi
printf %s "$moves" | while read -r what name number; do
    case $what in
    W)
        to=$name
        [ ! -L "$name" ] || to=$(readlink -f -- "$name")
        mv -fT -- ".velociraptor/new.$number" "$to"
        ;;
    D) rm -f -- "$name" ;;
    esac
done
sync -- .
"#;

/// The arguments after the folder are names and times in turn.
const SET_MODIFIED: &str =
    r#"cd -- "$1" && shift && while [ $# -gt 1 ]; do touch -c -d "@$2" -- "$1"; shift 2; done"#;

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
        self.show(READ, &[&[folder], names].concat(), |_| false).await
    }

    /// Reads all files of a folder whose names begin and end so, and these others. Of the former, those are left out that
    /// nobody can read as text of a reasonable length: they are no pools of ours, whatever their names.
    pub async fn read_all(
        &self,
        folder: &str,
        prefix: &str,
        suffix: &str,
        others: &[&str],
    ) -> Result<Vec<FileOnSite>, SiteError> {
        let may_be_odd = |name: &str| !others.contains(&name);
        let mut files = self.show(LIST, &[&[folder, prefix, suffix], others].concat(), may_be_odd).await?;
        files.dedup_by(|a, b| a.name == b.name);
        Ok(files)
    }

    /// Runs a script that shows files of the folder that is its first argument.
    async fn show(
        &self,
        which: &str,
        arguments: &[&str],
        may_be_odd: impl Fn(&str) -> bool,
    ) -> Result<Vec<FileOnSite>, SiteError> {
        let script = format!("longest={LONGEST}\n{SHOW}{which}");
        let title = format!("reading {}", arguments.first().unwrap_or(&""));
        let command = Command::script(&title, &script, arguments.iter().copied());
        let output = self.succeed(&command).await?;
        let bad = |reason: String| SiteError::BadAnswer { command: title.clone(), reason };
        if output.cut {
            return Err(bad("it is too long".to_owned()));
        }
        let mut files = Vec::new();
        for line in output.text().lines() {
            let mut words = line.splitn(4, ' ');
            match (words.next(), words.next(), words.next(), words.next()) {
                (Some("F"), Some(name), Some(modified), Some(content)) => {
                    let bytes = STANDARD.decode(content).map_err(|error| bad(format!("{name}: {error}")))?;
                    let text = match String::from_utf8(bytes) {
                        Ok(text) => text,
                        Err(_) if may_be_odd(name) => continue,
                        Err(_) => return Err(bad(format!("{name} is not UTF-8"))),
                    };
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
        let mut input = Vec::new();
        for FileText { name, text } in files {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "_.-/".contains(c);
            if name.is_empty()
                || name.contains("..")
                || name.starts_with(['/', '-'])
                || !name.chars().all(is_plain)
            {
                return Err(SiteError::Script(format!("{name:?} cannot be the name of a file here")));
            }
            let mask = if name.starts_with(STATE_FOLDER) { "077" } else { "022" };
            match text.as_ref().map(String::as_bytes) {
                // It could never be read again.
                Some(text) if text.len() > LONGEST => {
                    let reason = format!("{folder}/{name} would be longer than {LONGEST} bytes");
                    return Err(SiteError::Script(reason));
                }
                Some(text) => {
                    input.extend(format!("W {name} {mask} {}\n", text.len()).into_bytes());
                    input.extend_from_slice(text);
                }
                None => input.extend(format!("D {name}\n").into_bytes()),
            }
        }
        input.extend_from_slice(b"END\n");
        let title = format!("writing {folder}");
        let command = Command::script(&title, APPLY, [folder, self.tmpdir.as_str()]);
        self.succeed(&command.stdin(input)).await.map(drop)
    }
}

impl Site {
    /// What time it is by the site's clock, in seconds since 1970.
    pub async fn now(&self) -> Result<f64, SiteError> {
        let command = Command::new(["date", "+%s.%6N"]);
        let output = self.succeed(&command).await?;
        let bad = |_| SiteError::BadAnswer { command: command.title().to_owned(), reason: output.text() };
        output.text().trim().parse().map_err(bad)
    }

    /// Sets when files of a folder were changed last, in seconds since 1970 by the site's clock.
    pub async fn set_modified(&self, folder: &str, times: &[(&str, f64)]) -> Result<(), SiteError> {
        if times.is_empty() {
            return Ok(());
        }
        let times: Vec<(&str, String)> =
            times.iter().map(|(name, time)| (*name, format!("{time:.6}"))).collect();
        let arguments = times.iter().flat_map(|(name, time)| [*name, time.as_str()]);
        let command =
            Command::script("setting times", SET_MODIFIED, std::iter::once(folder).chain(arguments));
        self.succeed(&command).await.map(drop)
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
            Command::script("writing files", APPLY, [path, "/tmp"]).stdin(b"W a.conf 022 1\nx".to_vec());
        let error = site.succeed(&cut).await.unwrap_err();
        assert_eq!(error.to_string(), "the new files did not arrive whole");
        assert!(!dir.path().join("a.conf").exists());
        // As long as it says, but the bytes are those of the last line.
        let cut = Command::script("writing files", APPLY, [path, "/tmp"]);
        let cut = cut.stdin(b"W a.conf 022 8\nxEND\n".to_vec());
        site.succeed(&cut).await.unwrap_err();
        assert!(!dir.path().join("a.conf").exists());

        for name in ["../x", "/etc/x", "a b", "", "-x", "a\nb"] {
            assert!(site.write(path, &[text(name, Some(""))]).await.is_err(), "{name:?}");
        }
        let error = site.read("/nonexistent", &["x"]).await.unwrap_err();
        assert_eq!(error.to_string(), "there is no folder /nonexistent");
        fs::write(dir.path().join("a.conf"), [0xff, 0xfe]).unwrap();
        let error = site.read(path, &["a.conf"]).await.unwrap_err().to_string();
        assert_eq!(error, format!("reading {path} gave an answer that cannot be read: a.conf is not UTF-8"));
        // One of the operator's own keeps nobody from seeing the others.
        fs::write(dir.path().join("b.conf"), "b").unwrap();
        let seen = site.read_all(path, "", ".conf", &[".velociraptor/j"]).await.unwrap();
        assert_eq!(seen.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), ["b.conf"]);
    }
    #[tokio::test]
    async fn a_link_stays_one() {
        let dir = tempfile::tempdir().unwrap();
        let (enabled, available) = (dir.path().join("enabled"), dir.path().join("available"));
        fs::create_dir(&enabled).unwrap();
        fs::create_dir(&available).unwrap();
        fs::write(available.join("a.conf"), "old").unwrap();
        std::os::unix::fs::symlink("../available/a.conf", enabled.join("a.conf")).unwrap();
        let site = Site::local("localhost", false);
        let path = enabled.to_str().unwrap();
        site.write(path, &[text("a.conf", Some("new"))]).await.unwrap();
        assert_eq!(fs::read_to_string(available.join("a.conf")).unwrap(), "new");
        assert!(fs::symlink_metadata(enabled.join("a.conf")).unwrap().is_symlink());
        assert_eq!(site.read_all(path, "", ".conf", &[]).await.unwrap()[0].text, "new");
        site.write(path, &[text("a.conf", None)]).await.unwrap();
        assert!(!enabled.join("a.conf").exists() && available.join("a.conf").exists());
    }

    #[tokio::test]
    async fn very_many_and_very_long_files_are_written_and_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        let site = Site::local("localhost", false);
        let content = "  server host7.my-squad.somewhere.com:5011;\n".repeat(300);
        let mut files: Vec<_> = (0..500).map(|n| text(&format!("p{n}.conf"), Some(&content))).collect();
        let journal = "x".repeat(2 << 20);
        files.insert(0, text(".velociraptor/journal", Some(&journal)));
        site.write(path, &files).await.unwrap();
        // What is too long to be ours is no hindrance.
        fs::File::create(dir.path().join("geo.conf")).unwrap().set_len(LONGEST as u64 + 1).unwrap();
        let seen = site.read_all(path, "", ".conf", &[".velociraptor/journal"]).await.unwrap();
        assert_eq!(seen.len(), 501);
        assert!(seen.iter().all(|file| file.text == content || file.text == journal));
        let error = site.read(path, &["geo.conf"]).await.unwrap_err().to_string();
        assert!(error.contains("geo.conf is longer than"), "{error}");
        let long = text("a.conf", Some(&"x".repeat(LONGEST + 1)));
        let error = site.write(path, &[long]).await.unwrap_err().to_string();
        assert!(error.contains("/a.conf would be longer than"), "{error}");
    }
}
