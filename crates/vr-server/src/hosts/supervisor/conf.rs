//! `proc.conf`: a proc as a program of Supervisor.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

/// How big Supervisor lets a log become before it begins another, in bytes.
const LOG_BYTES: u32 = 10_000_000;
/// How much longer Supervisor waits than vrun does before it kills: the container has to be taken down, too.
const MARGIN: Duration = Duration::from_secs(10);

/// What a program's section is made of.
#[derive(Debug)]
pub(super) struct Program<'a> {
    /// The container's name.
    pub name: &'a str,
    /// The runner.
    pub vrun: &'a str,
    /// The host's files, and whether the runner has to be told where they are.
    pub root: &'a Path,
    /// How long the app may take to end.
    pub grace: Duration,
    /// Supervisor's own keys that the proc.yaml has, such as `startsecs`.
    pub rules: &'a [(&'static str, String)],
}

/// Whether Supervisor can have a program of this name.
///
/// # Errors
/// One sentence.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    // Supervisor refuses the first three; a section's header ends at the first bracket, `;` and `#` begin comments,
    // and the others mean something in the words of a command.
    match name
        .chars()
        .find(|c| ":/[];#\"'\\%$".contains(*c) || c.is_whitespace() || c.is_control() || !c.is_ascii())
    {
        None => Ok(()),
        Some(found) => Err(format!(
            "{name:?} cannot be a program of Supervisor, as it contains {found:?}: expected letters, digits and any of \
             - _ . + @ , = ~ ! & ( ) * < > ? ^ ` {{ | }}"
        )),
    }
}

/// A value as Supervisor reads it back: `%` begins an expression, and a text after white space may be a comment.
fn value(text: &str) -> Result<String, String> {
    if text.chars().any(|c| c.is_control()) {
        return Err(format!(
            "{text:?} has a line end or another control character, which no ini file can hold"
        ));
    }
    if text.contains(" ;") || text.contains(" #") {
        return Err(format!("{text:?} would end in a comment where Supervisor reads it"));
    }
    Ok(text.replace('%', "%%"))
}

/// A word of a command, which Supervisor takes apart as a shell would.
fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./+@,=~:".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\"'\"'"))
}

impl Program<'_> {
    /// The text of `proc.conf`.
    ///
    /// # Errors
    /// One sentence that says what cannot be written.
    pub fn text(&self) -> Result<String, String> {
        check_name(self.name)?;
        let dir = self.root.join("procs").join(self.name);
        let path = |file: &str| dir.join(file).display().to_string();
        let command = format!("{} run {}", word(self.vrun), word(&path("proc.yaml")));
        let stop_wait = (self.grace + MARGIN).as_secs();
        let mut lines = vec![
            ("command", value(&command)?),
            ("autostart", "true".to_owned()),
            ("autorestart", "true".to_owned()),
            ("stdout_logfile", value(&path("log"))?),
            ("stdout_logfile_maxbytes", LOG_BYTES.to_string()),
            ("stdout_logfile_backups", "1".to_owned()),
            ("user", "root".to_owned()),
            ("redirect_stderr", "true".to_owned()),
            ("stopwaitsecs", stop_wait.to_string()),
        ];
        if self.root != Path::new("/apps") {
            let root = value(&self.root.display().to_string())?;
            if root.contains(['"', '\\']) {
                return Err(format!("{root:?} cannot be written into an ini file"));
            }
            lines.push(("environment", format!("VR_ROOT=\"{root}\"")));
        }
        for (key, rule) in self.rules {
            let rule = value(rule)?;
            match lines.iter_mut().find(|(known, _)| known == key) {
                Some((_, known)) => *known = rule,
                None => lines.push((key, rule)),
            }
        }
        let mut text = format!("[program:{}]\n", self.name);
        for (key, value) in lines {
            // Writing to a text cannot fail.
            let _ = writeln!(text, "{key}={value}");
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "app-v1-prod-aaaaaaaa-web-5000";

    fn program(vrun: &str, root: &str) -> Result<String, String> {
        let program = Program {
            name: NAME,
            vrun,
            root: Path::new(root),
            grace: Duration::from_secs(10),
            rules: &[("startsecs", "3".to_owned()), ("autorestart", "unexpected".to_owned())],
        };
        program.text()
    }

    #[test]
    fn a_section_is_as_the_format_says() {
        let expected = format!(
            "[program:{NAME}]\ncommand=/usr/bin/vrun run /apps/procs/{NAME}/proc.yaml\nautostart=true\n\
             autorestart=unexpected\nstdout_logfile=/apps/procs/{NAME}/log\nstdout_logfile_maxbytes=10000000\n\
             stdout_logfile_backups=1\nuser=root\nredirect_stderr=true\nstopwaitsecs=20\nstartsecs=3\n"
        );
        assert_eq!(program("/usr/bin/vrun", "/apps").unwrap(), expected);
    }

    #[test]
    fn what_means_something_in_an_ini_file_is_written_so_that_it_does_not() {
        let text = program("/opt/my tools/vrun", "/srv/100%").unwrap();
        assert!(text.contains("command='/opt/my tools/vrun' run '/srv/100%%/procs/"), "{text}");
        assert!(text.contains("environment=VR_ROOT=\"/srv/100%%\"\n"), "{text}");
        for (vrun, root) in
            [("a\nb", "/apps"), ("vrun", "/a\nuser=evil"), ("vrun ;x", "/apps"), ("vrun", "/a\"b")]
        {
            assert!(program(vrun, root).is_err(), "{vrun:?} {root:?}");
        }
        for odd in ["a:b", "a]b", "a;b", "a b", "a%b", "é", "a'b", "a#b"] {
            assert!(check_name(odd).is_err(), "{odd}");
        }
        assert!(check_name("app-v1.0+x@y~1-prod-aaaaaaaa-web-5000").is_ok());
    }
}
