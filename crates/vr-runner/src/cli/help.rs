//! What `--help` and the manual pages say beside the options: examples, what comes out, and the environment.

use clap::Command;

use crate::proc::Variant;

/// Stands for the program's name in the texts.
const NAME: &str = "{vrun}";

const ALL: &str = "\
Examples:
  {vrun} setup proc.yaml      get the build and the image, make the files
  {vrun} run proc.yaml        run the app in the foreground
  {vrun} uptest proc.yaml     run the app's uptests
  {vrun} shell proc.yaml      look around in a container like the app's
  {vrun} teardown proc.yaml   remove everything of the proc
  {vrun} cleanup              remove unpacked builds that no proc uses
  {vrun} check                find out whether procs can run here

Output: standard output belongs to the app (run, shell), to results (uptest, cleanup) and to --json. \
All talk is on standard error: at a terminal what is being done, in pipes only warnings and errors.

Environment:
  VR_ROOT      the folder that everything is kept in [default: /apps]
  VR_ENGINE    what makes the containers, unless --engine says it
  HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY
               the way to the servers of builds and images
  RUST_LOG     what to say on standard error, such as info; overrules -q and -v
  NO_COLOR     no colours, when it is set

Exit status: 0 done, 1 failed, 2 wrong usage or a bad file. run and shell end with their program's own \
(128 and the signal's number after a signal).";

/// The subcommands and what is said below their options.
const EACH: [(&str, &str); 7] = [
    (
        "setup",
        "\
Does only what is not done yet: repeat it after changing the file, or after it was interrupted. \
The proc must not be running.

Examples:
  {vrun} setup proc.yaml
  {vrun} setup proc.yaml --json | jq .fetched_bytes
  VR_ROOT=$HOME/apps {vrun} setup proc.yaml   as an ordinary user

Exit status: 0 done, 1 failed, 2 wrong usage or a bad file.",
    ),
    (
        "run",
        "\
SIGTERM and SIGINT ask the app to end. It is killed at the second one, or when grace_period (in the \
file, 10 seconds by default) is over. Other signals are passed on.

Examples:
  {vrun} run proc.yaml
  {vrun} run proc.yaml --log web.log --log-max-bytes 1000000 --log-backups 3
  {vrun} run proc.yaml --json | tail -n 1   how it ended

Exit status: the app's, or 128 and the signal's number; 1 and 2 also when it could not be started.",
    ),
    (
        "uptest",
        "\
Runs each program in the app's folder uptests/<proc_name>, in the order of their names, with the \
host and the port as arguments. The proc itself should be running. \
Prints [{\"Name\": ..., \"Output\": ..., \"Passed\": ...}, ...].

Examples:
  {vrun} uptest proc.yaml
  {vrun} uptest proc.yaml --test-timeout 5
  {vrun} uptest proc.yaml | jq -r '.[] | select(.Passed | not).Name'

Exit status: 0 when the tests ran, whether they passed or not; 1 failed, 2 wrong usage or a bad file.",
    ),
    (
        "shell",
        "\
The container has the proc's files, user, environment and limits. What is written in it is gone when \
the shell ends; the running app is not touched.

Examples:
  {vrun} shell proc.yaml
  echo 'ls /app' | {vrun} shell proc.yaml

Exit status: the shell's; 1 and 2 also when it could not be started.",
    ),
    (
        "teardown",
        "\
Only the keys of the file that the proc's name is made of have to make sense. Tarballs and images \
stay; unpacked builds that no proc has used for a day go. The proc must not be running.

Examples:
  {vrun} teardown proc.yaml

Exit status: 0 done, also when there was nothing to remove; 1 failed, 2 wrong usage or a bad file.",
    ),
    (
        "check",
        "\
Makes a few containers in a folder that is thrown away, and says what works, what is weaker than it \
could be, and what is missing. vr-agent check does the same and looks at more of the host.

Examples:
  {vrun} check
  {vrun} check --json | jq '.findings[] | select(.verdict != \"ok\")'

Exit status: 0 procs can run here, 1 something that they need is missing, 2 wrong usage.",
    ),
    (
        "cleanup",
        "\
Removes unpacked builds that no proc uses, images that others have replaced, and what killed \
commands left. What a proc or another command uses stays. Prints what it removed.

Examples:
  {vrun} cleanup
  {vrun} cleanup --unused-for 7d   keep the builds of the last week
  {vrun} cleanup --unused-for 0s   keep only those that a proc uses
  {vrun} cleanup --tarballs-unused-for 7d --dry-run   what would go if tarballs and images went, too

Exit status: 0 done, 1 when something could not be removed, 2 wrong usage.",
    ),
];

/// Adds the texts to the arguments of the program `name`.
pub(super) fn add(mut command: Command, name: &str, variant: Variant) -> Command {
    let text = |text: &str| text.replace(NAME, name);
    command = command.after_help(text(ALL)).about(match variant {
        Variant::AsTheFileSays => "Sets procs up, runs and tests them in containers, and takes them down",
        Variant::HostFolders => {
            "As vrun, but in the host's own system folders, whatever image a proc's file names"
        }
    });
    for (subcommand, help) in EACH {
        command = command.mut_subcommand(subcommand, |subcommand| subcommand.after_help(text(help)));
    }
    command
}
