//! The backend that is a program, with the program of docs/balancers.md and with some that do not do their work.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use vr_balancer::Balancer;
use vr_testing::{marker, sleeps};

use crate::fixtures::{Simple, balancer_of, nodes};
use crate::suite::run_all;
use crate::support::{blocking, eventually, in_time, node, pool, run};

/// The program in docs/balancers.md.
fn documented() -> String {
    let manual = include_str!("../../../../docs/balancers.md");
    let chapter = manual.split("## Writing a backend\n").nth(1).unwrap();
    chapter.split("```python\n").nth(1).unwrap().split("```\n").next().unwrap().to_owned()
}

/// A program in a folder of its own.
pub struct Program {
    pub dir: TempDir,
    pub block: String,
}

impl Program {
    pub fn new(text: &str) -> Self {
        Self::with(text, "")
    }

    /// The documented one, run by Debian's own Python if that is there: a `python3` in `$PATH` may be a slow script. It is
    /// started more than a thousand times, so it leaves out what it does not need (`-S`).
    pub fn documented() -> Self {
        let mut program = Self::new(&documented());
        let python = ["/usr/bin/python3", "python3"]
            .into_iter()
            .find(|path| !path.starts_with('/') || Path::new(path).exists());
        program.block = program.block.replace("command: ", &format!("command: {} -S ", python.unwrap()));
        program
    }

    pub fn with(text: &str, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("balancer");
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(dir.path().join("pools")).unwrap();
        let at = dir.path().display();
        let block = format!(
            "{{BACKEND: exec, command: {at}/balancer, lock_dir: {at}/locks, {more}config: {{folder: {at}/pools}}}}"
        );
        Self { dir, block }
    }

    pub fn balancer(&self) -> Arc<dyn Balancer> {
        balancer_of(&format!("front: {}", self.block))
    }

    fn settings(&self) -> PathBuf {
        let file = self.dir.path().join("settings.yaml");
        fs::write(&file, format!("BALANCERS: {{front: {}}}\n", self.block)).unwrap();
        file
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// A program that answers with what it is told, whatever it is asked.
fn saying(answer: &str) -> Program {
    Program::new(&format!("#!/bin/sh\ncat >/dev/null\n{answer}\n"))
}

async fn refusal(program: &Program) -> String {
    in_time(program.balancer().get_nodes(&pool("web"))).await.unwrap_err().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_program_does_what_every_backend_must_do() {
    let program = Program::documented();
    let (balancer, settings_file) = (program.balancer(), Some(program.settings()));
    run_all(&Simple { balancer, settings_file, most_pools: usize::MAX, _alive: program }).await;
}

/// The first change of one pool goes on until that of another was made meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_one_pool_never_overlap_and_those_of_others_may() {
    let script = r#"#!/bin/sh
request=$(cat)
case "$request" in
    *get_nodes*) echo '{"nodes": []}';;
    *'"pool":"web"'*)
        mkdir "$0.busy" || { echo '{"error": "somebody else is here"}'; exit; }
        while [ ! -e "$0.other" ]; do sleep 0.01; done
        rmdir "$0.busy"
        echo '{}';;
    *)  while [ ! -d "$0.busy" ]; do sleep 0.01; done
        touch "$0.other"
        echo '{}';;
esac
"#;
    let program = Program::new(script);
    // Separate values know nothing of each other, as separate processes do.
    let changes = (0..6).map(|_| {
        let balancer = program.balancer();
        tokio::spawn(async move { balancer.delete_pool(&pool("web")).await })
    });
    let changes: Vec<_> = changes.collect();
    in_time(program.balancer().delete_pool(&pool("other"))).await.unwrap();
    for change in changes {
        change.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_as_documented() {
    let script = r#"#!/bin/sh
cat >>"$0.log"
echo '{"nodes": ["127.0.0.1:1"], "pools": ["web", "not a name", "b"], "problems": ["it is Monday"], "more": 1}'
"#;
    let program = Program::new(script);
    let balancer = program.balancer();
    let web = pool("web");
    assert_eq!(balancer.list_pools().await.unwrap(), [pool("b"), web.clone()]);
    balancer.add_nodes(&web, &nodes(&[1, 1])).await.unwrap();
    let late = Some(Duration::from_millis(2500));
    let error = balancer.delete_nodes(&web, &nodes(&[1, 2]), late).await.unwrap_err().to_string();
    assert!(error.ends_with("delete_nodes was done, but then get_nodes still has 127.0.0.1:1"), "{error}");
    balancer.delete_pool(&web).await.unwrap();
    balancer.wait_drained(&web, &nodes(&[1, 2]), Duration::from_secs(3)).await.unwrap();
    assert_eq!(balancer.check().await.unwrap()[0].problems, ["it is Monday"]);
    let error = balancer.add_nodes(&web, &nodes(&[2])).await.unwrap_err().to_string();
    assert!(error.ends_with("add_nodes was done, but then get_nodes does not have 127.0.0.1:2"), "{error}");

    let log = fs::read_to_string(program.file("balancer.log")).unwrap();
    let said: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let config = json!({ "folder": program.file("pools") });
    let request = |action: &str, more: Value| {
        let mut request = json!({ "version": 1, "balancer": "front", "action": action, "config": config });
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        request
    };
    let get = request("get_nodes", json!({ "pool": "web" }));
    let expected = [
        request("list_pools", json!({})),
        request("add_nodes", json!({ "pool": "web", "nodes": ["127.0.0.1:1"] })),
        get.clone(),
        get.clone(),
        request("delete_nodes", json!({ "pool": "web", "nodes": ["127.0.0.1:1"], "seconds": 2.5 })),
        get.clone(),
        request("delete_pool", json!({ "pool": "web" })),
        get.clone(),
        request("wait_drained", json!({ "pool": "web", "nodes": ["127.0.0.1:2"], "seconds": 3.0 })),
        request("check", json!({})),
        request("add_nodes", json!({ "pool": "web", "nodes": ["127.0.0.1:2"] })),
        get,
    ];
    assert_eq!(said, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_an_answer_is_told() {
    for (answer, words) in [
        ("echo '{\"error\": \"the rope is wet\"}'", ": the rope is wet"),
        ("echo '{\"error\": \"the rope is wet\"}'; exit 4", ": the rope is wet"),
        ("echo '{\"nodes\": []}'; echo no rope >&2; exit 4", ": it ended with exit code 4; it said: no rope"),
        ("echo no rope >&2; kill -9 $$", "signal: 9 (SIGKILL); it said: no rope"),
        (
            "echo '{}'",
            ": its answer to get_nodes cannot be read: expected an object with \"nodes\" or \"error\"",
        ),
        ("echo '[]'", ": its answer to get_nodes cannot be read: "),
        ("echo hello", "; it said: hello"),
        ("echo '{\"nodes\": [\"h1\"]}'", "\"h1\" is not a valid node: expected host:port"),
        ("echo '{\"unsupported\": true}'", ": it does not support get_nodes"),
        ("head -c 2000000 /dev/zero | tr '\\0' ' '; echo '{}'", "it is longer than 1048576 bytes"),
        ("head -c 20000000 /dev/zero", "it is longer than 1048576 bytes"),
    ] {
        let program = saying(answer);
        let error = refusal(&program).await;
        let begin = format!("balancer front, pool web: {}: ", program.file("balancer").display());
        assert!(error.starts_with(&begin) && error.contains(words), "{answer}: {error}");
        assert!(error.len() < 3000, "{answer}");
    }
    let none = balancer_of("front: {BACKEND: exec, command: /nonexistent/x --flag, lock_dir: /tmp/none}");
    let error = none.get_nodes(&pool("web")).await.unwrap_err().to_string();
    assert!(error.contains("/nonexistent/x: cannot run /nonexistent/x: No such file"), "{error}");
    // A program that reads nothing at all, and a request that fills no pipe.
    let program = Program::new("#!/bin/sh\necho '{\"nodes\": [\"h:1\"]}'\n");
    assert_eq!(program.balancer().get_nodes(&pool("web")).await.unwrap(), [node("h:1")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_does_not_end_is_killed_with_what_it_started() {
    let mark = marker();
    let program = Program::with(&format!("#!/bin/sh\nsleep {mark} & sleep {mark}\n"), "timeout: 0.5, ");
    let error = in_time(program.balancer().add_nodes(&pool("web"), &nodes(&[1]))).await.unwrap_err();
    assert!(error.to_string().ends_with("balancer was not done within 0.5 s"), "{error}");
    eventually("nothing is left", || !sleeps(&mark)).await;
    // And the lock is free.
    fs::write(program.file("balancer"), "#!/bin/sh\necho '{\"nodes\": [\"127.0.0.1:1\"]}'\n").unwrap();
    in_time(program.balancer().add_nodes(&pool("web"), &nodes(&[1]))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_nobody_waits_for_any_more_ends_its_program() {
    let mark = marker();
    let program = Program::new(&format!("#!/bin/sh\nsleep {mark}\n"));
    let balancer = program.balancer();
    let change = tokio::spawn(async move { balancer.add_nodes(&pool("web"), &nodes(&[1])).await });
    eventually("it runs", || sleeps(&mark)).await;
    change.abort();
    eventually("nothing is left", || !sleeps(&mark)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_whose_starter_was_killed_is_ended_before_the_next_change() {
    let mark = marker();
    let program = Program::new(&format!("#!/bin/sh\nsleep {mark}\n"));
    let settings = program.settings();
    let mut starter = crate::support::program();
    starter.arg("--config").arg(&settings).args(["add", "web", "127.0.0.1:1"]);
    let mut starter = starter.spawn().unwrap();
    eventually("it runs", || sleeps(&mark)).await;
    starter.kill().unwrap();
    starter.wait().unwrap();
    assert!(sleeps(&mark), "it goes on");
    fs::write(program.file("balancer"), "#!/bin/sh\necho '{\"nodes\": [\"127.0.0.1:1\"]}'\n").unwrap();
    in_time(program.balancer().add_nodes(&pool("web"), &nodes(&[1]))).await.unwrap();
    eventually("nothing is left", || !sleeps(&mark)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_still_open_is_what_the_program_says_or_else_the_grace_period_is_waited_out() {
    let telling = saying("echo '{\"nodes\": [\"127.0.0.1:3\"], \"open\": {\"127.0.0.1:2\": 4}}'");
    let reports =
        telling.balancer().wait_drained(&pool("web"), &nodes(&[1, 2, 3]), Duration::ZERO).await.unwrap();
    let told: Vec<(u64, bool)> = reports.iter().map(|report| (report.open, report.in_pool)).collect();
    assert_eq!(told, [(0, false), (4, false), (0, true)]);

    let script = r#"#!/bin/sh
case "$(cat)" in *get_nodes*) echo '{"nodes": ["127.0.0.1:3"]}';; *) echo '{"unsupported": true}';; esac
"#;
    let silent = Program::new(script);
    let began = Instant::now();
    let grace = Duration::from_millis(700);
    let reports = silent.balancer().wait_drained(&pool("web"), &nodes(&[1]), grace).await.unwrap();
    assert!(began.elapsed() >= grace && reports[0].is_drained());
    // Nobody waits for what is in the pool.
    let week = Duration::from_secs(7 * 24 * 3600);
    in_time(silent.balancer().wait_drained(&pool("web"), &nodes(&[3]), week)).await.unwrap();
    // It can do nothing else, and says so.
    let problems = &silent.balancer().check().await.unwrap()[0].problems;
    assert!(problems.len() == 1 && problems[0].ends_with("it does not support list_pools"), "{problems:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_works_with_it() {
    let program = Program::documented();
    let settings = program.settings();
    let cli = |arguments: &'static [&'static str]| {
        let file = settings.display().to_string();
        blocking(move || {
            let mut all = vec!["--config", &file];
            all.extend(arguments);
            let output = run(&all);
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            (output.status.code(), text(&output.stdout), text(&output.stderr))
        })
    };
    let silence = (Some(0), String::new(), String::new());
    assert_eq!(cli(&["add", "web", "h1:1", "h2:2"]).await, silence);
    assert_eq!(cli(&["delete", "web", "h1:1", "--wait"]).await, silence);
    assert_eq!(cli(&["list"]).await.1, "web\t-\th2:2\n");
    let (_, diff, _) = cli(&["-n", "set", "web", "h3:3"]).await;
    assert!(diff.contains("-h2:2\n+h3:3\n"), "{diff}");
    assert_eq!(cli(&["check"]).await, (Some(0), "front\tok\n".to_owned(), String::new()));
    assert_eq!(fs::read_to_string(program.file("pools/web")).unwrap(), "h2:2\n");
    let locks = program.file("locks");
    assert!(Path::new(&locks).join("front-web.lock").exists());
    assert_eq!(fs::metadata(locks).unwrap().permissions().mode() & 0o777, 0o700);
}
