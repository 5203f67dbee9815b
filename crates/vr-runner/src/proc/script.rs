//! The texts that a container starts from: `proc.sh`, `env.sh` and `settings.yaml`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use vr_common::proc_data::{Scalar, is_variable_name};

/// The first program in a container.
pub(super) const FILE_NAME: &str = "proc.sh";
/// The variables of `proc.yaml`.
pub(super) const ENVIRONMENT: &str = "env.sh";
/// The settings of `proc.yaml`.
pub(super) const SETTINGS: &str = "settings.yaml";

/// `proc.sh`. The order is the contract: from the least specific to the most.
pub(super) fn proc_sh(command: &str, port: Option<u16>) -> String {
    let port = port.map_or(String::new(), |port| format!("export PORT={port}\n"));
    format!(
        r#"#!/bin/sh
# Written by `vrun setup`, which also writes over any change.
# A file of .profile.d may end the shell or take its arguments away. That must not look like a success.
ended() {{
    # Codes from 128 on are those of signals, which are nobody's mistake.
    [ "$1" -ge 128 ] || echo "/proc.sh: a file of /app/.profile.d ended the shell" >&2
    [ "$1" -ne 0 ] || exit 126
    exit "$1"
}}
trap 'ended $?' EXIT
_vr_first=$1
export TMPDIR=/tmp
export HOME=/app
for profile in /app/.profile.d/*; do
    if [ -f "$profile" ] && [ -r "$profile" ]; then
        . "$profile"
    fi
done
unset profile
. /{ENVIRONMENT}
export APP_SETTINGS_YAML=/{SETTINGS}
{port}trap - EXIT
unset -f ended
if [ "$_vr_first" = run ]; then
    unset _vr_first
    exec {command}
elif [ "$_vr_first" = "$1" ]; then
    unset _vr_first
    exec "$@"
fi
echo "/proc.sh: a file of /app/.profile.d changed the arguments" >&2
exit 126
"#
    )
}

/// Whether a command might mean something else to bash than to every other shell. Most do not: words, quotes, and
/// variables that `is_set` knows or that `proc.sh` sets.
pub(super) fn needs_bash(command: &str, is_set: impl Fn(&str) -> bool) -> bool {
    const SET: [&str; 5] = ["APP_SETTINGS_YAML", "HOME", "PATH", "PORT", "TMPDIR"];
    // Bash's own `exec` has options.
    let mut rest = match command.trim_start() {
        with_option if with_option.starts_with('-') => return true,
        rest => rest,
    };
    while let Some(next) = rest.chars().next() {
        rest = &rest[next.len_utf8()..];
        match next {
            '$' => {
                let inner = rest.strip_prefix('{').unwrap_or(rest);
                let end = inner.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(inner.len());
                let (name, after) = inner.split_at(end);
                if !is_variable_name(name) || !(SET.contains(&name) || is_set(name)) {
                    return true;
                }
                rest = match rest.starts_with('{') {
                    true => match after.strip_prefix('}') {
                        Some(after) => after,
                        None => return true,
                    },
                    false => after,
                };
            }
            c if c.is_ascii_alphanumeric() || " _./:=,+@%-'\"".contains(c) => {}
            _ => return true,
        }
    }
    false
}

/// `env.sh`. A value that is exactly `$NAME` is replaced by what `host` says of NAME, or by nothing.
pub(super) fn env_sh(env: &BTreeMap<String, Scalar>, host: impl Fn(&str) -> Option<String>) -> String {
    let mut text = String::from("# Written by `vrun setup`, which also writes over any change.\n");
    for (key, Scalar(value)) in env {
        let of_host = value.strip_prefix('$').filter(|name| is_variable_name(name));
        let value = of_host.map_or_else(|| value.clone(), |name| host(name).unwrap_or_default());
        // Writing to a string cannot fail.
        let _ = writeln!(text, "export {key}={}", quoted(&value));
    }
    text
}

/// A text as one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(script: &str) -> String {
        let out = vr_common::process::command("/bin/sh").arg("-c").arg(script).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    #[test]
    fn a_shell_reads_back_every_value() {
        for value in ["", "plain", "it's", "'", "$(id)", "`id`", "a\nb", "\\", "\"", "é", "$HOME x", "$1"] {
            let env = BTreeMap::from([("KEY".to_owned(), Scalar(value.to_owned()))]);
            let script = env_sh(&env, |_| None);
            assert_eq!(output(&format!("{script}printf %s \"$KEY\"")), value);
        }
    }

    #[test]
    fn only_a_value_that_is_a_variable_of_the_host_is_replaced() {
        let env: BTreeMap<_, _> = [("A", "$HOME"), ("B", "$NOSUCH"), ("C", "x$HOME"), ("D", "${HOME}")]
            .into_iter()
            .map(|(key, value)| (key.to_owned(), Scalar(value.to_owned())))
            .collect();
        let text = env_sh(&env, |name| (name == "HOME").then(|| "/of/the/host".to_owned()));
        for line in ["export A='/of/the/host'", "export B=''", "export C='x$HOME'", "export D='${HOME}'"] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn bash_is_only_for_what_it_alone_may_understand() {
        let is_set = |name: &str| name == "GREETING";
        for plain in ["/bin/true", "./serve one $PORT \"${GREETING}\" 'two words'", "a=b:c@d,e+f%g"] {
            assert!(!needs_bash(plain, is_set), "{plain}");
        }
        for more in [
            "-a name ./serve",
            "./serve $RANDOM",
            "./serve ${GREETING:-x}",
            "./serve ${GREETING",
            "./serve $'a\\tb'",
            "./serve $\"a\"",
            "./serve $(id)",
            "./serve `id`",
            "./serve {a,b}",
            "./serve *.conf",
            "./serve < in",
            "./serve; x",
            "./serve $",
            "~/serve",
            "é",
        ] {
            assert!(needs_bash(more, is_set), "{more}");
        }
    }

    #[test]
    fn the_order_is_from_least_to_most_specific() {
        let text = proc_sh("serve --port $PORT", Some(5001));
        let places: Vec<_> = [
            "TMPDIR=/tmp",
            "HOME=/app",
            ".profile.d/*",
            ". /env.sh",
            "APP_SETTINGS_YAML=",
            "PORT=5001",
            "exec serve --port $PORT",
            "exec \"$@\"",
        ]
        .iter()
        .map(|part| text.find(part).unwrap())
        .collect();
        assert!(places.is_sorted(), "{text}");
        assert!(!proc_sh("x", None).contains("PORT"));
    }
}
