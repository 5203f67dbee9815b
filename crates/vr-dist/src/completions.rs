//! Completions for shells.

use std::path::PathBuf;

use clap_complete::{Shell, generate};

use crate::Program;

/// The shells, and where they look for a program's completions.
const SHELLS: [(Shell, &str, &str, &str); 3] = [
    (Shell::Bash, "share/bash-completion/completions", "", ""),
    (Shell::Zsh, "share/zsh/site-functions", "_", ""),
    (Shell::Fish, "share/fish/vendor_completions.d", "", ".fish"),
];

/// A program's completions: their paths below a prefix, and what they hold.
pub fn scripts(program: &Program) -> Vec<(PathBuf, Vec<u8>)> {
    let script = |(shell, folder, before, after): (Shell, &str, &str, &str)| {
        let mut text = Vec::new();
        generate(shell, &mut (program.command)(), program.name, &mut text);
        (PathBuf::from(format!("{folder}/{before}{}{after}", program.name)), text)
    };
    SHELLS.into_iter().map(script).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PROGRAMS;

    #[test]
    fn each_shell_knows_every_subcommand() {
        for program in &PROGRAMS {
            let scripts = scripts(program);
            assert_eq!(scripts.len(), 3);
            for (path, text) in scripts {
                let text = String::from_utf8(text).unwrap();
                assert!(text.contains(program.name), "{}", path.display());
                let command = (program.command)();
                for subcommand in command.get_subcommands().filter(|command| !command.is_hide_set()) {
                    let name = subcommand.get_name();
                    assert!(text.contains(name), "{} lacks {name}", path.display());
                }
            }
        }
    }

    #[test]
    fn bash_can_read_its_completions() {
        let folder = tempfile::tempdir().unwrap();
        for program in &PROGRAMS {
            let script = folder.path().join(program.name);
            std::fs::write(&script, &scripts(program)[0].1).unwrap();
            let checked = vr_common::process::command("bash").arg("-n").arg(&script).output().unwrap();
            assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
        }
    }
}
