//! Debian's `supervisorctl`: the same session with the agent and with the real supervisord has to look the same.

use std::fs;
use std::path::{Path, PathBuf};

use vr_common::supervisor::SupervisorClient;
use vr_testing::ended;

use crate::harness::Vrun;
use crate::parts::{PASSWORD, RpcHost, Supervisord, USER, proc_yaml, supervisorctl, supervisorctl_as, wait};

/// Talks, also about the signals it gets.
const WEB: &str = "demo-v1-prod-abcd1234-web-5001";
/// Says nothing.
const WORKER: &str = "demo-v1-prod-abcd1234-worker-5002";
/// Cannot run: it ends long before it counts as started, however busy the machine is.
const BROKEN: &str = "demo-v1-prod-abcd1234-broken-5003";
/// Comes later.
const LATER: &str = "demo-v1-prod-abcd1234-later-5004";

const TALK: &str = "trap 'echo got HUP' HUP\ntrap 'echo got USR1' USR1\ntrap 'exit 0' TERM\necho hello\n\
                    while :; do sleep 0.05; done\n";

/// What happens in a session. `web`, `worker`, `broken` and `later` stand for the long names.
enum Step {
    /// A command is given.
    Ctl(&'static str),
    /// A process gets into a state.
    State(&'static str, &'static str),
    /// A process's log is this and nothing else.
    Log(&'static str, &'static str),
    /// A program is configured, configured otherwise, or no longer.
    Configure(&'static str, Configuration),
}

#[derive(Clone, Copy)]
enum Configuration {
    New,
    Other,
    None,
}

use Step::{Configure, Ctl, Log, State};

fn session() -> Vec<Step> {
    vec![
        Ctl("status"),
        Ctl("status web"),
        Ctl("status worker web"),
        Ctl("status web:*"),
        Ctl("status web:web"),
        Ctl("status nope"),
        Ctl("status nope:*"),
        Ctl("status web nope"),
        Ctl("pid web"),
        Ctl("pid all"),
        Ctl("pid broken"),
        Ctl("pid nope"),
        Ctl("avail"),
        // One after the other.
        Ctl("stop worker"),
        Ctl("status worker"),
        Ctl("pid worker"),
        Ctl("stop worker"),
        Ctl("fg worker"),
        Ctl("signal HUP worker"),
        Ctl("start worker"),
        Ctl("status worker"),
        Ctl("start worker"),
        Ctl("start worker web"),
        Ctl("start nope"),
        Ctl("start nope:*"),
        Ctl("start web:nope"),
        Ctl("stop nope"),
        Ctl("stop nope:*"),
        Ctl("restart nope"),
        Ctl("fg nope"),
        Ctl("restart worker"),
        Ctl("start web:*"),
        // On a busy machine it can be RUNNING before it has said anything.
        Log("web", "hello\n"),
        Ctl("stop web:*"),
        Ctl("stop web:*"),
        Ctl("status web:*"),
        Ctl("start web:*"),
        Log("web", "hello\nhello\n"),
        Ctl("restart web:*"),
        // What cannot run.
        Ctl("start broken"),
        State("broken", "FATAL"),
        Ctl("status broken"),
        Ctl("stop broken"),
        Ctl("start broken:*"),
        State("broken", "FATAL"),
        // Logs and signals.
        Log("web", "hello\nhello\nhello\n"),
        Ctl("tail web"),
        Ctl("tail -8 web"),
        Ctl("tail web stdout"),
        Ctl("tail web stderr"),
        Ctl("tail web nothing"),
        Ctl("tail nope"),
        Ctl("tail -f nope"),
        Ctl("tail -f web stderr"),
        Ctl("clear web"),
        Ctl("tail web"),
        Ctl("clear nope"),
        Ctl("signal USR1 web"),
        Log("web", "got USR1\n"),
        Ctl("signal sighup web"),
        Log("web", "got USR1\ngot HUP\n"),
        Ctl("signal 10 web:*"),
        Log("web", "got USR1\ngot HUP\ngot USR1\n"),
        Ctl("tail web"),
        Ctl("signal NOSUCH web"),
        Ctl("signal NOSUCH web:*"),
        Ctl("signal HUP nope"),
        Ctl("signal HUP nope:*"),
        Ctl("signal CONT all"),
        Ctl("clear all"),
        Ctl("tail web"),
        // What is configured and what is supervised.
        Ctl("reread"),
        Ctl("update"),
        Ctl("update nope"),
        Ctl("add web"),
        Ctl("add nope"),
        Ctl("remove web"),
        Ctl("remove nope"),
        Ctl("stop worker"),
        Ctl("remove worker"),
        Ctl("status worker"),
        Ctl("status"),
        Ctl("avail"),
        Ctl("reread"),
        Ctl("add worker"),
        State("worker", "RUNNING"),
        Ctl("status worker"),
        Configure("later", Configuration::New),
        Ctl("reread"),
        Ctl("status later"),
        Ctl("avail"),
        Ctl("update"),
        State("later", "RUNNING"),
        Ctl("status"),
        Configure("later", Configuration::Other),
        Ctl("reread"),
        Ctl("update later"),
        State("later", "RUNNING"),
        Configure("later", Configuration::None),
        Ctl("reread"),
        Ctl("update"),
        Ctl("status later"),
        Ctl("reread"),
        // All at once.
        Ctl("stop all"),
        Ctl("stop all"),
        Ctl("status all"),
        Ctl("start web worker"),
        Ctl("restart web worker"),
        Ctl("restart all"),
        State("broken", "FATAL"),
        Ctl("status"),
        Ctl("nonsense"),
    ]
}

type Configurer = Box<dyn Fn(&str, Configuration) + Send + Sync>;

/// One of the two that are compared.
struct Side {
    url: String,
    client: SupervisorClient,
    /// Writes a program's configuration, or removes it.
    configure: Configurer,
}

impl Side {
    /// Goes through the session, and gives what was shown and how it ended.
    fn go(&self, session: &[Step]) -> Vec<String> {
        let mut shown = Vec::new();
        for step in session {
            match step {
                Ctl(words) => shown.push(self.ctl(words)),
                State(name, state) => wait(state, || {
                    let info = self.client.process_info(&long(name)).ok()?;
                    (info.statename == *state).then_some(())
                }),
                Log(name, expected) => wait(expected, || {
                    let read = self
                        .client
                        .call("supervisor.readProcessLog", &[long(name).into(), 0.into(), 0.into()]);
                    (read.ok()?.into_json() == *expected).then_some(())
                }),
                Configure(name, configuration) => (self.configure)(&long(name), *configuration),
            }
        }
        shown
    }

    fn ctl(&self, words: &str) -> String {
        let said = ended(supervisorctl(&self.url).args(words.split(' ').map(long)));
        let mut lines: Vec<String> = said.stdout.lines().map(comparable).collect();
        if words.contains("all") {
            // Supervisor tells of each when it is done.
            lines.sort();
        }
        let stderr = said.stderr.replace(&self.url, "URL");
        format!("$ {words}\n{}\n{stderr}exit code {:?}", lines.join("\n"), said.code)
    }
}

/// Goes through a session with both at the same time, and gives what was shown by either.
fn both(real: &Side, agent: &Side, session: impl Fn() -> Vec<Step> + Sync) -> (Vec<String>, Vec<String>) {
    std::thread::scope(|scope| {
        let expected = scope.spawn(|| real.go(&session()));
        let ours = agent.go(&session());
        (expected.join().unwrap(), ours)
    })
}

/// The name that a short one stands for.
fn long(word: &str) -> String {
    let name = |short| match short {
        "web" => WEB,
        "worker" => WORKER,
        "broken" => BROKEN,
        "later" => LATER,
        other => other,
    };
    match word.split_once(':') {
        Some((group, process)) => format!("{}:{}", name(group), name(process)),
        None => name(word).to_owned(),
    }
}

/// A line without what differs from one moment to the next: processes, times, and reasons.
fn comparable(line: &str) -> String {
    if !line.is_empty() && line.chars().all(|c| c.is_ascii_digit()) {
        return if line == "0" { line.to_owned() } else { "PID".to_owned() };
    }
    for (state, description) in [("RUNNING", "pid N, uptime"), ("STOPPED", "when"), ("FATAL", "why")] {
        if let Some((name, rest)) = line.split_once(&format!(" {state} ")) {
            assert_eq!(rest.contains("pid "), state == "RUNNING", "{line}");
            return format!("{name} {state} {description}");
        }
    }
    line.to_owned()
}

fn write_talk(dir: &Path) -> PathBuf {
    let talk = dir.join("talk.sh");
    fs::write(&talk, TALK).unwrap();
    talk
}

/// The agent, with all programs.
async fn agent(host: &RpcHost, url: String) -> Side {
    let talk = write_talk(&host.host.path(""));
    host.deploy(WEB, &format!("cmd: sh {}", talk.display())).await.unwrap();
    host.deploy(WORKER, "cmd: sleep 98765").await.unwrap();
    host.deploy(BROKEN, "cmd: \"false\"\nstartretries: 0\nstartsecs: 30").await.unwrap_err();
    let procs = host.host.path("root/procs");
    let configure = move |name: &str, configuration: Configuration| {
        let file = procs.join(name).join("proc.yaml");
        let write = |more| {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, proc_yaml(name, more)).unwrap();
        };
        match configuration {
            Configuration::New => write("cmd: sleep 98765"),
            Configuration::Other => write("cmd: sleep 98766"),
            Configuration::None => fs::remove_file(&file).unwrap(),
        }
    };
    Side { url, client: host.client(), configure: Box::new(configure) }
}

/// The real one, with the same programs.
fn supervisord() -> (Supervisord, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let talk = write_talk(dir.path());
    let section = |name: &str, command: &str, more: &str| {
        let log = dir.path().join(format!("{name}.log"));
        format!(
            "[program:{name}]\ncommand={command}\nredirect_stderr=true\nstdout_logfile={}\n{more}\n",
            log.display()
        )
    };
    let programs = [
        (WEB, section(WEB, &format!("sh {}", talk.display()), "")),
        (WORKER, section(WORKER, "sleep 98765", "")),
        (BROKEN, section(BROKEN, "false", "startretries=0\nstartsecs=30")),
    ];
    (Supervisord::start(&programs), dir)
}

fn real(supervisord: &Supervisord, url: String) -> Side {
    let procs = supervisord.dir.path().join("procs");
    let configure = move |name: &str, configuration: Configuration| {
        let file = procs.join(format!("{name}.conf"));
        let write = |seconds| {
            let section = format!("[program:{name}]\ncommand=sleep {seconds}\nredirect_stderr=true\n");
            fs::write(&file, section).unwrap();
        };
        match configuration {
            Configuration::New => write("98765"),
            Configuration::Other => write("98766"),
            Configuration::None => fs::remove_file(&file).unwrap(),
        }
    };
    let client = supervisord.client();
    for (name, state) in [(WEB, "RUNNING"), (WORKER, "RUNNING"), (BROKEN, "FATAL")] {
        wait(state, || (client.process_info(name).ok()?.statename == state).then_some(()));
    }
    Side { url, client, configure: Box::new(configure) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_looks_as_with_supervisord() {
    let host = RpcHost::start(Vrun::StandIn).await;
    let agent = agent(&host, host.url()).await;
    let (expected, ours) = tokio::task::block_in_place(|| {
        let (supervisord, _logs) = supervisord();
        let real = real(&supervisord, supervisord.url());
        both(&real, &agent, session)
    });
    let different: Vec<_> = expected.iter().zip(&ours).filter(|(expected, ours)| expected != ours).collect();
    for (expected, ours) in &different {
        eprintln!("supervisord:\n{expected}\nvr-agent:\n{ours}\n");
    }
    assert!(different.is_empty(), "{} of {} commands look different", different.len(), ours.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_a_unix_socket_it_looks_the_same() {
    let host = RpcHost::start(Vrun::StandIn).await;
    let agent = agent(&host, host.socket()).await;
    let session = || {
        vec![
            Ctl("status"),
            Ctl("stop worker"),
            Ctl("start worker"),
            Ctl("tail web"),
            Ctl("tail -f nope"),
            Ctl("pid all"),
        ]
    };
    let (expected, ours) = tokio::task::block_in_place(|| {
        let (supervisord, _logs) = supervisord();
        let real = real(&supervisord, supervisord.socket());
        both(&real, &agent, session)
    });
    assert_eq!(ours, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_passwords_are_refused_as_by_supervisord() {
    let host = RpcHost::start(Vrun::StandIn).await;
    tokio::task::block_in_place(|| {
        let supervisord = Supervisord::start(&[("sleeper", "[program:sleeper]\ncommand=sleep 98765".into())]);
        let sum = "{SHA}82ab876d1387bfafe46cc1c8a2ef074eae50cb1d";
        let wrong = [(USER, "wrong"), ("you", PASSWORD), (USER, sum), ("", "")];
        for (user, password) in wrong {
            let [real, ours] = [supervisord.url(), host.url()].map(|url| {
                let ended = ended(supervisorctl_as(&url, user, password).arg("status"));
                (ended.code, ended.stdout, ended.stderr)
            });
            assert_eq!(ours, real, "{user} {password}");
            assert_ne!(ours.0, Some(0));
            assert!(ours.1.contains("Server requires authentication"), "{ours:?}");
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_tells_what_it_is_and_is_not_ended() {
    let host = RpcHost::start(Vrun::StandIn).await;
    let ctl = |words: &str| {
        let said = tokio::task::block_in_place(|| ended(host.ctl().args(words.split(' '))));
        (said.code.unwrap(), said.stdout)
    };
    assert_eq!(ctl("version"), (0, format!("4.2.5+vr-agent.{}\n", env!("CARGO_PKG_VERSION"))));
    assert_eq!(ctl("pid"), (0, format!("{}\n", host.host.agent_pid())));
    assert_eq!(ctl("status"), (0, String::new()));
    assert_eq!(ctl("maintail"), (1, "supervisord: ERROR (no log file)\n".to_owned()));
    for words in ["shutdown", "reload"] {
        let (code, said) = ctl(words);
        assert!(
            code == 1 && said.contains("vr-agent is ended and restarted by whoever started it"),
            "{said}"
        );
    }
    assert_eq!(ctl("pid").0, 0, "it is still there");
}
