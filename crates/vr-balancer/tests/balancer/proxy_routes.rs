//! Many pools on one address, by the host that is asked for.

use rustix::process::Signal;
use vr_balancer::Balancer;
use vr_balancer::proxy::StateFile;
use vr_balancer::proxy::options::HostPattern;

use crate::proxy_support::{configured, curl, free_address, signal, write_configuration};
use crate::support::{HttpNode, Place, eventually, node, pool};

/// Status and body of what a host answers.
async fn ask(address: impl std::fmt::Display, host: &str) -> (u16, String) {
    let host = format!("Host: {host}");
    let said = curl(&["-H", &host, "-w", "\n%{http_code}", &format!("http://{address}/")]).await;
    let (body, code) = said.rsplit_once('\n').unwrap();
    (code.parse().unwrap(), body.to_owned())
}

async fn control(place: &Place, arguments: &[&str]) -> String {
    let socket = place.socket().display().to_string();
    let path = arguments.last().unwrap();
    let url = format!("http://localhost{path}");
    let rest = &arguments[..arguments.len() - 1];
    curl(&[&["--unix-socket", &socket], rest, &[&url]].concat()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routes_lead_from_hosts_to_pools_on_a_shared_address() {
    let shared = free_address();
    let place = Place::new().with(&[
        "--listen",
        &shared.to_string(),
        "--route",
        "shop.example=shop",
        "--route",
        "*.example=web",
    ]);
    let mut process = place.start().await;
    let balancer = place.balancer();
    assert_eq!(ask(shared, "shop.example").await.0, 503, "the route is there before its pool");
    let (shop, web) = (HttpNode::start("shop").await, HttpNode::start("web").await);
    balancer.add_nodes(&pool("shop"), &[shop.node()]).await.unwrap();
    balancer.add_nodes(&pool("web"), &[web.node()]).await.unwrap();
    assert_eq!(ask(shared, "SHOP.example:8080").await, (200, "shop".to_owned()));
    assert_eq!(ask(shared, "a.b.example").await, (200, "web".to_owned()));
    assert_eq!(ask(shared, "example").await.0, 404);
    let (code, page) = ask(shared, "other.org").await;
    assert!(code == 404 && page.contains("Unknown host"), "{code} {page}");
    // By port, every pool is still there for every host.
    let own = balancer.pool_address(&pool("shop")).await.unwrap().unwrap();
    assert_eq!(ask(&own, "other.org").await, (200, "shop".to_owned()));

    // A pool that is deleted and made anew is behind its route again.
    balancer.delete_pool(&pool("shop")).await.unwrap();
    assert_eq!(ask(shared, "shop.example").await.0, 503);
    assert_eq!(balancer.list_pools().await.unwrap(), [pool("web")]);
    balancer.add_nodes(&pool("shop"), &[web.node()]).await.unwrap();
    assert_eq!(ask(shared, "shop.example").await, (200, "web".to_owned()));
    process.terminate();
    assert_eq!(process.ended().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routes_are_made_through_the_control_socket_and_survive_a_kill() {
    let shared = free_address();
    let place = Place::new().with(&["--listen", &shared.to_string(), "--route", "fixed.example=web"]);
    let process = place.start().await;
    let balancer = place.balancer();
    let app = HttpNode::start("app").await;
    balancer.add_nodes(&pool("web"), &[app.node()]).await.unwrap();
    let put = ["-X", "PUT", "-d", "{\"pool\": \"web\"}"];
    let listed = control(&place, &[&put[..], &["/v1/routes/New.example"]].concat()).await;
    assert_eq!(
        listed,
        "{\"routes\":[{\"host\":\"fixed.example\",\"pool\":\"web\",\"configured\":true},\
         {\"host\":\"new.example\",\"pool\":\"web\",\"configured\":false}]}"
    );
    assert_eq!(ask(shared, "new.example").await, (200, "app".to_owned()));
    let refused = control(&place, &[&put[..], &["/v1/routes/fixed.example"]].concat()).await;
    assert!(refused.contains("stands in the proxy's configuration"), "{refused}");
    assert!(control(&place, &["-g", "-X", "DELETE", "/v1/routes/a%20b"]).await.contains("is not a host"));

    // The library's way to say the same.
    let [address, star] = ["[::1]", "*"].map(|host| host.parse::<HostPattern>().unwrap());
    for host in [&address, &star] {
        balancer.set_route(host, &pool("web")).await.unwrap();
    }
    assert_eq!(ask(shared, "[::1]:80").await.0, 200);
    balancer.delete_route(&star).await.unwrap();
    assert_eq!(ask(shared, "other.example").await.0, 404);
    balancer.delete_route(&address).await.unwrap();
    assert_eq!(balancer.routes().await.unwrap().len(), 2);

    process.kill();
    let _process = place.start().await;
    assert_eq!(ask(shared, "new.example").await, (200, "app".to_owned()));
    control(&place, &["-X", "DELETE", "/v1/routes/new.example"]).await;
    assert_eq!(ask(shared, "new.example").await.0, 404);
    assert_eq!(ask(shared, "fixed.example").await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hang_up_reads_routes_and_options_again_and_a_bad_file_changes_nothing() {
    let shared = free_address();
    let listeners = format!("listeners: [{{address: '{shared}'}}]\n");
    let place = configured(&format!("{listeners}routes: {{a.example: web}}\n"));
    let process = place.start().await;
    let app = HttpNode::start("app").await;
    place.balancer().add_nodes(&pool("web"), &[app.node()]).await.unwrap();
    assert_eq!(ask(shared, "a.example").await.0, 200);
    write_configuration(&place, &format!("{listeners}routes: {{b.example: web}}\n"));
    signal(&process, Signal::HUP);
    eventually("it is read", || place.log().contains("the configuration was read again")).await;
    assert_eq!(ask(shared, "b.example").await, (200, "app".to_owned()));
    assert_eq!(ask(shared, "a.example").await.0, 404);

    write_configuration(&place, "listeners: [{adress: 1}]");
    signal(&process, Signal::HUP);
    eventually("it is refused", || place.log().contains("the configuration cannot be used")).await;
    assert_eq!(ask(shared, "b.example").await.0, 200);
    write_configuration(&place, "routes: {b.example: web}\n");
    signal(&process, Signal::HUP);
    eventually("it is said", || place.log().contains("which needs a restart")).await;
    assert_eq!(ask(shared, "b.example").await.0, 200, "listeners stay until then");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_http_is_sent_to_https_except_for_proofs_of_ownership() {
    let shared = free_address();
    let place = configured(&format!(
        "listeners: [{{address: '{shared}', redirect_to_https: 8443}}]\nroutes: {{'*': web}}\n"
    ));
    let _process = place.start().await;
    let app = HttpNode::start("app").await;
    place.balancer().add_nodes(&pool("web"), &[app.node()]).await.unwrap();
    let told = |method: &'static str, path: &'static str| async move {
        let url = format!("http://{shared}{path}");
        let write = "%{http_code} %{redirect_url}";
        curl(&["-H", "Host: a.example:80", "-X", method, "-o", "/dev/null", "-w", write, &url]).await
    };
    assert_eq!(told("GET", "/x?y=1").await, "301 https://a.example:8443/x?y=1");
    assert_eq!(told("POST", "/").await, "308 https://a.example:8443/");
    assert_eq!(told("GET", "/.well-known/acme-challenge/token").await, "200 ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pools_may_have_no_addresses_of_their_own() {
    let shared = free_address();
    let mut place = Place::new().with(&["--listen", &shared.to_string(), "--route", "*=web"]);
    let range = place.arguments.iter().position(|argument| argument == "--ports").unwrap() + 1;
    let ports = std::mem::replace(&mut place.arguments[range], "none".to_owned());
    let process = place.start().await;
    let balancer = place.balancer();
    let app = HttpNode::start("app").await;
    balancer.add_nodes(&pool("web"), &[app.node()]).await.unwrap();
    assert_eq!(balancer.pool_address(&pool("web")).await.unwrap(), None);
    assert_eq!(balancer.pool_problem(&pool("web")).await.unwrap(), None);
    assert_eq!(ask(shared, "x").await, (200, "app".to_owned()));
    process.kill();
    assert_eq!(StateFile::load(&place.state_dir()).unwrap().pools[&pool("web")].address, None);
    // With ports again, it has none until it is made anew.
    place.arguments[range] = ports;
    let _process = place.start().await;
    assert_eq!(ask(shared, "x").await, (200, "app".to_owned()));
    balancer.add_nodes(&pool("web"), &[node("127.0.0.1:1")]).await.unwrap();
    assert_eq!(balancer.pool_address(&pool("web")).await.unwrap(), None);
    balancer.delete_pool(&pool("web")).await.unwrap();
    balancer.add_nodes(&pool("web"), &[app.node()]).await.unwrap();
    let own = balancer.pool_address(&pool("web")).await.unwrap().unwrap();
    assert_eq!(ask(&own, "x").await, (200, "app".to_owned()));
    assert_eq!(ask(shared, "x").await, (200, "app".to_owned()));
}
