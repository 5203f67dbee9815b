//! The proxy's process: its end, its return, and what it keeps.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::process::Stdio;

use vr_balancer::Balancer;
use vr_balancer::proxy::StateFile;
use vr_common::names::Node;

use crate::support::{
    DEADLINE, HttpNode, Place, RawClient, STREAM_CHUNKS, blocking, eventually, in_time, mode, node, pool,
    ports, read_until, status,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_keeps_addresses_and_nodes() {
    let place = Place::new();
    let mut process = place.start().await;
    let balancer = place.balancer();
    let (one, two) = (HttpNode::start("one").await, HttpNode::start("two").await);
    // In this order, so that the second one's place in the range is not its place in the alphabet.
    balancer.add_nodes(&pool("zoo"), &[one.node()]).await.unwrap();
    balancer.add_nodes(&pool("app"), &[two.node(), one.node()]).await.unwrap();
    let before = balancer.pools().await.unwrap();
    assert_eq!(before.len(), 2);
    assert_eq!((mode(&place.socket()), mode(&StateFile::path(&place.state_dir()))), (0o600, 0o600));

    process.terminate();
    assert_eq!(process.ended().await, Some(0));
    assert!(!place.socket().exists(), "a graceful end takes the control socket away");
    let process = place.start().await;
    assert_eq!(balancer.pools().await.unwrap(), before);

    process.kill();
    assert!(place.socket().exists());
    let _process = place.start().await;
    assert_eq!(balancer.pools().await.unwrap(), before);
    let address = before[1].address.clone().unwrap();
    assert_eq!(blocking(move || RawClient::connect(&address).get("/").1).await, "one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_a_kill_at_any_moment() {
    let place = Place::new();
    let mut acknowledged: BTreeSet<Node> = BTreeSet::new();
    let web = pool("web");
    for round in 0..8u16 {
        let process = place.start().await;
        let writers: Vec<_> = (0..3u16)
            .map(|writer| {
                let (balancer, web) = (place.balancer(), web.clone());
                tokio::spawn(async move {
                    let mut done = Vec::new();
                    for number in 0..1000u16 {
                        let new = node(format!("h{round}-{writer}:{}", number + 1));
                        if balancer.add_nodes(&web, std::slice::from_ref(&new)).await.is_err() {
                            break;
                        }
                        done.push(new);
                    }
                    done
                })
            })
            .collect();
        let state_dir = place.state_dir();
        let known = acknowledged.len();
        eventually("some changes are made", || {
            let state = StateFile::load(&state_dir).expect("a whole file at every moment");
            state.pools.get(&web).is_some_and(|pool| pool.nodes.len() > known + 5 + usize::from(round))
        })
        .await;
        process.kill();
        for writer in writers {
            acknowledged.extend(in_time(writer).await.unwrap());
        }
        let state = StateFile::load(&place.state_dir()).unwrap();
        let kept: BTreeSet<Node> = state.pools[&web].nodes.iter().cloned().collect();
        assert!(acknowledged.is_subset(&kept), "{:?}", acknowledged.difference(&kept));
        // A change may have been written and not acknowledged.
        acknowledged = kept;
    }
    let _process = place.start().await;
    let nodes: BTreeSet<Node> = place.balancer().get_nodes(&web).await.unwrap().into_iter().collect();
    assert_eq!(nodes, acknowledged);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_lets_open_requests_end_and_the_next_process_begin() {
    let place = Place::new().with(&["--stop-timeout", "600"]);
    let mut old = place.start().await;
    let balancer = place.balancer();
    let app = HttpNode::start("app").await;
    balancer.add_nodes(&pool("web"), &[app.node()]).await.unwrap();
    let address = balancer.pool_address(&pool("web")).await.unwrap().unwrap();
    app.chunks.add_permits(1);
    let mut download = blocking({
        let address = address.clone();
        move || {
            let mut client = RawClient::connect(&address);
            client.send("GET /stream HTTP/1.1\r\nHost: app.example\r\n\r\n");
            assert_eq!(status(&client.head()), 200);
            assert!(read_until(&mut client.0, "chunk 0\n\r\n").is_some());
            client
        }
    })
    .await;

    old.terminate();
    let socket = place.socket();
    eventually("the control socket is gone", || !socket.exists()).await;
    let mut new = None;
    let end = std::time::Instant::now() + DEADLINE;
    while new.is_none() {
        // The folder's lock is given back a moment after the socket.
        let mut child = place.command().stderr(Stdio::null()).spawn().unwrap();
        let mut ready = false;
        eventually("it is ready or has ended", || {
            ready = std::os::unix::net::UnixStream::connect(&socket).is_ok();
            ready || child.try_wait().unwrap().is_some()
        })
        .await;
        let process = crate::support::Process(child);
        if ready {
            new = Some(process);
        }
        assert!(std::time::Instant::now() < end, "the folder was never free");
    }
    assert_eq!(blocking(move || RawClient::connect(&address).get("/").1).await, "app");
    assert!(old.0.try_wait().unwrap().is_none(), "the old process has a request to end");
    app.chunks.add_permits(STREAM_CHUNKS);
    blocking(move || assert!(read_until(&mut download.0, "chunk 4\n\r\n0\r\n\r\n").is_some())).await;
    assert_eq!(old.ended().await, Some(0));
    assert!(socket.exists(), "the old process leaves the new one's socket alone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fixed_address_answers_even_without_its_pool() {
    let (port, _) = ports();
    let fixed = format!("127.0.0.1:{port}");
    let place = Place::new().with(&["--pool", &format!("shop={fixed}")]);
    let process = place.start().await;
    let balancer = place.balancer();
    let ask = |address: String| blocking(move || RawClient::connect(&address).get("/"));
    assert_eq!(status(&ask(fixed.clone()).await.0), 503);
    assert!(balancer.list_pools().await.unwrap().is_empty());
    assert_eq!(balancer.pool_address(&pool("shop")).await.unwrap(), None);

    let app = HttpNode::start("app").await;
    balancer.add_nodes(&pool("shop"), &[app.node()]).await.unwrap();
    assert_eq!(balancer.pool_address(&pool("shop")).await.unwrap(), Some(fixed.clone()));
    assert_eq!(ask(fixed.clone()).await.1, "app");
    balancer.delete_pool(&pool("shop")).await.unwrap();
    assert_eq!(status(&ask(fixed.clone()).await.0), 503);

    // An address that was chosen outranks the one that was given out, and stays when it is not chosen any more.
    let given_out = |view: Option<String>| assert_ne!(view.unwrap(), fixed);
    process.kill();
    let mut place = place;
    place.arguments.truncate(place.arguments.len() - 2);
    let process = place.start().await;
    balancer.add_nodes(&pool("shop"), &[app.node()]).await.unwrap();
    given_out(balancer.pool_address(&pool("shop")).await.unwrap());
    process.kill();
    let place = place.with(&["--pool", &format!("shop={fixed}")]);
    place.start().await.kill();
    let mut place = place;
    place.arguments.truncate(place.arguments.len() - 2);
    let _process = place.start().await;
    assert_eq!(ask(fixed.clone()).await.1, "app");
    assert_eq!(balancer.get_nodes(&pool("shop")).await.unwrap(), [app.node()]);
}

/// What `serve` says on standard error, and its exit code.
async fn refusal(place: &Place) -> (Option<i32>, String) {
    let mut command = place.command();
    let output = blocking(move || command.output().unwrap()).await;
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_cannot_work_says_why() {
    let place = Place::new();
    let process = place.start().await;
    let (code, text) = refusal(&place).await;
    assert_eq!(code, Some(1));
    assert!(
        text.contains("another proxy may be using this state folder: ") && text.contains("lock is locked"),
        "{text}"
    );

    let other = Place::new().with(&["--control-socket", place.socket().to_str().unwrap()]);
    let (code, text) = refusal(&other).await;
    assert_eq!(code, Some(1));
    assert!(
        text.contains(&format!("another program serves the control socket {}", place.socket().display())),
        "{text}"
    );

    place.balancer().add_nodes(&pool("web"), &[]).await.unwrap();
    let address = place.balancer().pool_address(&pool("web")).await.unwrap().unwrap();
    process.kill();
    let thief = TcpListener::bind(&address).unwrap();
    let fixed = Place::new().with(&["--pool", &format!("shop={address}")]);
    let (code, text) = refusal(&fixed).await;
    assert_eq!(code, Some(1));
    assert!(text.contains(&format!("ERROR: pool shop: {address} is in use by another program")), "{text}");
    drop(thief);

    std::fs::write(StateFile::path(&place.state_dir()), "{\"format\": 1, \"pools\"").unwrap();
    let (code, text) = refusal(&place).await;
    assert_eq!(code, Some(1));
    assert!(text.contains("pools.json is damaged: "), "{text}");

    let twice = Place::new().with(&["--pool", &format!("a={address}"), "--pool", &format!("b={address}")]);
    let (code, text) = refusal(&twice).await;
    assert_eq!(code, Some(2));
    assert!(text.contains(&format!("pools a and b have the same address {address}")), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_remembered_address_that_is_taken_keeps_only_its_own_pool_down() {
    let place = Place::new();
    let process = place.start().await;
    let balancer = place.balancer();
    let (one, two) = (HttpNode::start("one").await, HttpNode::start("two").await);
    let (lost, well) = (pool("lost"), pool("well"));
    for name in [&lost, &well] {
        balancer.add_nodes(name, &[one.node()]).await.unwrap();
    }
    let before = balancer.pools().await.unwrap();
    let [lost_at, well_at] = [0, 1].map(|place: usize| before[place].address.clone().unwrap());
    let ask = |address: &str| {
        let address = address.to_owned();
        blocking(move || RawClient::connect(&address).get("/").1)
    };
    process.kill();
    let thief = TcpListener::bind(&lost_at).unwrap();
    let process = place.start().await;
    assert_eq!(ask(&well_at).await, "one");
    let view = balancer.pool(&lost).await.unwrap();
    assert_eq!((view.address.as_deref(), view.listening), (Some(lost_at.as_str()), false));
    assert!(balancer.pool(&well).await.unwrap().listening);
    assert_eq!(balancer.list_pools().await.unwrap(), [lost.clone(), well.clone()]);
    assert_eq!(balancer.pool_address(&lost).await.unwrap(), Some(lost_at.clone()));
    assert!(balancer.pool_problem(&lost).await.unwrap().unwrap().contains(&lost_at));
    assert_eq!(balancer.pool_problem(&well).await.unwrap(), None);
    let log = place.log();
    let error = log.lines().find(|line| line.contains("ERROR")).expect("it is said");
    assert!(error.contains("lost") && error.contains(&lost_at), "{error}");
    let socket = place.socket().display().to_string();
    let listed = blocking(move || crate::support::run(&["--control-socket", &socket, "list"])).await;
    assert!(String::from_utf8(listed.stderr).unwrap().starts_with("WARNING: pool lost is not served: "));

    // Changes are made and kept; a further pool does not get the address; and it is served when it can be.
    balancer.set_nodes(&lost, &[two.node()]).await.unwrap();
    balancer.add_nodes(&pool("new"), &[]).await.unwrap();
    assert_ne!(balancer.pool_address(&pool("new")).await.unwrap(), Some(lost_at.clone()));
    process.kill();
    let mut process = place.start().await;
    assert_eq!(balancer.get_nodes(&lost).await.unwrap(), [two.node()]);
    drop(thief);
    let end = std::time::Instant::now() + DEADLINE;
    while !balancer.pool(&lost).await.unwrap().listening {
        assert!(std::time::Instant::now() < end, "it never listens");
    }
    assert_eq!(ask(&lost_at).await, "two");
    assert_eq!(balancer.pool_problem(&lost).await.unwrap(), None);
    process.terminate();
    assert_eq!(process.ended().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_waits_for_its_address_can_be_deleted_and_made_anew() {
    let place = Place::new();
    let process = place.start().await;
    let balancer = place.balancer();
    let app = HttpNode::start("app").await;
    let web = pool("web");
    balancer.add_nodes(&web, &[app.node()]).await.unwrap();
    let old = balancer.pool_address(&web).await.unwrap().unwrap();
    process.kill();
    let _thief = TcpListener::bind(&old).unwrap();
    let mut process = place.start().await;
    balancer.delete_pool(&web).await.unwrap();
    assert_eq!(balancer.pool_address(&web).await.unwrap(), None);
    balancer.add_nodes(&web, &[app.node()]).await.unwrap();
    let new = balancer.pool_address(&web).await.unwrap().unwrap();
    assert_ne!(new, old);
    assert_eq!(blocking(move || RawClient::connect(&new).get("/").1).await, "app");
    process.terminate();
    assert_eq!(process.ended().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pools_take_the_first_free_port_until_there_is_none() {
    let (first, _) = ports();
    let taken = TcpListener::bind(("127.0.0.1", first)).unwrap();
    let mut place = Place::new();
    let range = place.arguments.iter().position(|argument| argument == "--ports").unwrap() + 1;
    place.arguments[range] = format!("{first}-{}", first + 2);
    let _process = place.start().await;
    let balancer = place.balancer();
    for (name, port) in [("a", first + 1), ("b", first + 2)] {
        balancer.add_nodes(&pool(name), &[]).await.unwrap();
        let address = balancer.pool_address(&pool(name)).await.unwrap();
        assert_eq!(address, Some(format!("127.0.0.1:{port}")));
    }
    let error = balancer.add_nodes(&pool("c"), &[]).await.unwrap_err().to_string();
    assert_eq!(
        error,
        format!("balancer front, pool c: no port from {first} to {} is free on 127.0.0.1", first + 2)
    );
    drop(taken);
    // Another test's child may hold the socket for a moment longer, until it runs its own program.
    let end = std::time::Instant::now() + DEADLINE;
    while let Err(error) = balancer.add_nodes(&pool("c"), &[]).await {
        assert!(std::time::Instant::now() < end, "{error}");
    }
    assert_eq!(balancer.pool_address(&pool("c")).await.unwrap(), Some(format!("127.0.0.1:{first}")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_cannot_be_written_is_not_made() {
    let place = Place::new();
    let _process = place.start().await;
    let balancer = place.balancer();
    let (old, new) = (HttpNode::start("old").await, HttpNode::start("new").await);
    balancer.add_nodes(&pool("web"), &[old.node()]).await.unwrap();
    // Even root cannot write to a folder as if it were a file.
    let obstacle = place.state_dir().join("pools.json.new");
    std::fs::create_dir(&obstacle).unwrap();
    let error = balancer.set_nodes(&pool("web"), &[new.node()]).await.unwrap_err();
    assert!(error.to_string().contains("the change was not made: cannot write "), "{error}");
    assert!(balancer.add_nodes(&pool("other"), &[]).await.is_err());
    assert_eq!(balancer.get_nodes(&pool("web")).await.unwrap(), [old.node()]);
    assert_eq!(balancer.list_pools().await.unwrap(), [pool("web")]);
    std::fs::remove_dir(&obstacle).unwrap();
    balancer.set_nodes(&pool("web"), &[new.node()]).await.unwrap();
    let address = balancer.pool_address(&pool("web")).await.unwrap().unwrap();
    assert_eq!(blocking(move || RawClient::connect(&address).get("/").1).await, "new");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hang_up_changes_nothing() {
    let place = Place::new();
    let mut process = place.start().await;
    let pid = rustix::process::Pid::from_child(&process.0);
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    place.balancer().add_nodes(&pool("web"), &[]).await.unwrap();
    assert!(process.0.try_wait().unwrap().is_none());
    process.terminate();
    assert_eq!(process.ended().await, Some(0));
}
