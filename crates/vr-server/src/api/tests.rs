//! The API over a real store and simulated hosts, request by request.

mod hosts;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use tower::ServiceExt as _;
use vr_balancer::{Balancer, DummyBalancer};
use vr_common::host_api::ProcState;
use vr_common::secret::Secret;

use super::*;
use crate::events::News;
use crate::hosts::simulated::SimulatedHost;
use crate::hosts::{Action, HostDriver};
use crate::store::{BuildOutcome, State as DispatchState};

struct Bench {
    _dir: TempDir,
    state: ApiState,
    router: Router,
    hosts: HashMap<String, SimulatedHost>,
}

const PASSWORD: &str = "tr0ub4dor: & 3";

struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

use http::HeaderMap;

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {:?}", self.text))
    }

    #[track_caller]
    fn must(&self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        if self.text.is_empty() { Value::Null } else { self.json() }
    }
}

fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
}

impl Bench {
    /// A server with the user admin, the squad default and the hosts h1 and h2 in it.
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store.db")).await.unwrap();
        let hash = hash_password(&Secret::new(PASSWORD)).await.unwrap();
        store.set_password("admin", &hash).await.unwrap();
        let mut hosts = HashMap::new();
        for name in ["h1", "h2"] {
            store.ensure_host(name, "default", "http://127.0.0.1:9").await.unwrap();
            hosts.insert(name.to_owned(), SimulatedHost::new(name));
        }
        let simulated = hosts.clone();
        let fleet = Fleet::new(store.clone(), EventLog::new(store.clone()), move |host| {
            let host = simulated.get(&host.name).cloned();
            Arc::new(host.unwrap_or_else(|| SimulatedHost::new("unknown"))) as Arc<dyn HostDriver>
        });
        let balancer: Arc<dyn Balancer> = Arc::new(DummyBalancer::new("local"));
        let files = dir.path().join("files");
        std::fs::create_dir(&files).unwrap();
        let state = ApiState {
            events: EventLog::new(store.clone()),
            fleet,
            balancers: Arc::new(BTreeMap::from([("local".to_owned(), balancer)])),
            wake: Arc::default(),
            files,
            auth: Auth::new(store.clone()),
            stop: CancellationToken::new(),
            store,
        };
        Self { router: router(state.clone()), _dir: dir, state, hosts }
    }

    /// That, with the app hello and a swarm of it without a version.
    async fn with_swarm() -> Self {
        let bench = Self::new().await;
        bench.post("apps/", json!({"name": "hello", "repo_url": "/srv/hello"})).await.must(201);
        let swarm = json!({
            "app": "/api/v1/apps/hello/", "config_name": "prod", "proc_name": "web",
            "squad": "/api/v1/squads/default/",
        });
        bench.post("swarms/", swarm).await.must(201);
        bench
    }

    async fn send(&self, request: http::Request<Body>) -> Reply {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        Reply { status: parts.status, headers: parts.headers, text }
    }

    fn request(method: Method, path: &str, body: Option<Value>) -> http::Request<Body> {
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/api/v1/{path}") };
        http::Request::builder()
            .method(method)
            .uri(path)
            .header("host", "deploy.example.com")
            .header("authorization", basic("admin", PASSWORD))
            .header("content-type", "application/json")
            .body(body.map_or_else(Body::empty, |body| Body::from(body.to_string())))
            .unwrap()
    }

    async fn get(&self, path: &str) -> Reply {
        self.send(Self::request(Method::GET, path, None)).await
    }

    async fn post(&self, path: &str, body: Value) -> Reply {
        self.send(Self::request(Method::POST, path, Some(body))).await
    }

    async fn put(&self, path: &str, body: Value) -> Reply {
        self.send(Self::request(Method::PUT, path, Some(body))).await
    }

    async fn patch(&self, path: &str, body: Value) -> Reply {
        self.send(Self::request(Method::PATCH, path, Some(body))).await
    }

    async fn delete(&self, path: &str) -> Reply {
        self.send(Self::request(Method::DELETE, path, None)).await
    }

    /// What a list gives of one field.
    async fn listed(&self, path: &str, field: &str) -> Vec<Value> {
        let page = self.get(path).await.must(200);
        page["objects"].as_array().unwrap().iter().map(|object| object[field].clone()).collect()
    }
}

fn filled(path: &str) -> String {
    let path = path.replace("{key}", "1").replace("{proc}", "p").replace("{id}", "1");
    path.replace("{*path}", "x")
}

const METHODS: [Method; 5] = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];

#[tokio::test]
async fn every_route_but_the_open_ones_needs_a_user() {
    let bench = Bench::new().await;
    let paths: Vec<String> = routes().iter().map(|route| filled(&route.path)).collect();
    assert!(paths.len() > 30, "{paths:?}");
    for path in paths.iter().flat_map(|path| [path.as_str(), path.trim_end_matches('/')]) {
        let path = if path.is_empty() { "/" } else { path };
        for method in METHODS {
            for credentials in [None, Some("Basic !"), Some("Bearer x"), Some("Basic YWRtaW4=")] {
                let mut request = http::Request::builder().method(method.clone()).uri(path);
                if let Some(credentials) = credentials {
                    request = request.header("authorization", credentials);
                }
                let reply = bench.send(request.body(Body::empty()).unwrap()).await;
                assert_eq!(
                    reply.must(401),
                    json!({"status": 401, "msg": "Basic auth required"}),
                    "{method} {path}"
                );
                assert!(reply.headers["www-authenticate"].to_str().unwrap().starts_with("Basic realm="));
            }
        }
    }
    // Nor does a path that is not there tell strangers so.
    let request = http::Request::get("/api/v1/nothing/").body(Body::empty()).unwrap();
    bench.send(request).await.must(401);
}

#[tokio::test]
async fn the_open_routes_are_two() {
    let bench = Bench::new().await;
    let open: Vec<String> = open_routes().iter().map(|route| route.path.clone()).collect();
    assert_eq!(open, ["/files/{*path}", "/healthz"]);
    let ask = |method: Method, path: &str| {
        http::Request::builder().method(method).uri(path).body(Body::empty()).unwrap()
    };
    let healthy = bench.send(ask(Method::GET, "/healthz")).await;
    assert_eq!((healthy.status.as_u16(), healthy.text.as_str()), (200, "ok\n"));
    bench.send(ask(Method::GET, "/files/x")).await.must(404);
    for method in [Method::POST, Method::PUT, Method::DELETE] {
        bench.send(ask(method, "/files/x")).await.must(405);
    }
}

#[tokio::test]
async fn passwords_count_as_long_as_they_are_the_users() {
    let bench = Bench::new().await;
    let ask = |username: &str, password: &str| {
        let mut request = Bench::request(Method::GET, "apps/", None);
        request.headers_mut().insert("authorization", basic(username, password).parse().unwrap());
        bench.send(request)
    };
    ask("admin", PASSWORD).await.must(200);
    ask("admin", PASSWORD).await.must(200);
    ask("admin", "wrong").await.must(401);
    ask("nobody", PASSWORD).await.must(401);
    ask("", "").await.must(401);
    let hash = hash_password(&Secret::new("another")).await.unwrap();
    bench.state.store.set_password("admin", &hash).await.unwrap();
    ask("admin", PASSWORD).await.must(401);
    ask("admin", "another").await.must(200);
}

#[tokio::test]
async fn pages_of_other_sites_cannot_write() {
    let bench = Bench::new().await;
    for (header, value, status) in [
        ("sec-fetch-site", "cross-site", 403),
        ("sec-fetch-site", "same-site", 403),
        ("sec-fetch-site", "same-origin", 201),
        ("sec-fetch-site", "none", 201),
        ("origin", "https://evil.example.com", 403),
        ("origin", "https://deploy.example.com:8443", 403),
        ("origin", "null", 403),
        ("origin", "https://deploy.example.com", 201),
    ] {
        let name = format!("s{}", value.len() * 100 + header.len());
        let mut request = Bench::request(Method::POST, "squads/", Some(json!({"name": name})));
        request.headers_mut().insert(header, value.parse().unwrap());
        let reply = bench.send(request).await;
        assert_eq!(reply.status.as_u16(), status, "{header}: {value}: {}", reply.text);
    }
    let mut request = Bench::request(Method::GET, "squads/", None);
    request.headers_mut().insert("sec-fetch-site", "cross-site".parse().unwrap());
    bench.send(request).await.must(200);
}

#[tokio::test]
async fn an_app_from_birth_to_death() {
    let bench = Bench::new().await;
    let pack = bench.post("buildpacks/", json!({"repo_url": "/srv/pack", "order": 3})).await.must(201);
    assert_eq!(pack["resource_uri"], "/api/v1/buildpacks/1/");
    let app = json!({"name": "hello", "repo_url": "/srv/hello", "buildpack": "/api/v1/buildpacks/1/"});
    let made = bench.post("apps", app).await;
    assert_eq!(made.headers["location"], "/api/v1/apps/hello/");
    let expected = json!({
        "id": 1, "resource_uri": "/api/v1/apps/hello/", "name": "hello", "repo_url": "/srv/hello",
        "repo_type": "git", "buildpack": "/api/v1/buildpacks/1/", "stack": null, "resolved_url": "/srv/hello",
    });
    assert_eq!(made.must(201), expected);
    for path in ["apps/hello/", "apps/hello", "apps/1/", "apps/1"] {
        assert_eq!(bench.get(path).await.must(200), expected, "{path}");
    }
    let patched = bench.patch("apps/hello/", json!({"repo_type": "hg", "buildpack": null})).await.must(200);
    assert_eq!((&patched["repo_type"], &patched["buildpack"]), (&json!("hg"), &Value::Null));
    // The published client puts back whatever it got.
    let mut whole = patched.clone();
    whole["repo_url"] = json!("/srv/other");
    let put = bench.put("apps/hello/", whole).await.must(200);
    assert_eq!(
        (&put["repo_url"], &put["repo_type"], &put["resolved_url"]),
        (&json!("/srv/other"), &json!("hg"), &json!("/srv/other"))
    );
    // What a PUT does not mention gets its default; what it must mention it must.
    let reset = bench.put("apps/hello/", json!({"name": "hello", "repo_url": "/srv/other"})).await.must(200);
    assert_eq!(reset["repo_type"], "git");
    assert_eq!(bench.put("apps/hello/", json!({"name": "hello"})).await.must(400)["field"], "repo_url");

    let versions = bench.get("apps/hello/versions/").await.must(200);
    let actions: Vec<_> =
        versions["objects"].as_array().unwrap().iter().map(|v| v["action"].clone()).collect();
    assert_eq!(actions, ["update", "update", "update", "create"]);
    let first = &versions["objects"][3];
    assert_eq!(
        (&first["user"], &first["old"], &first["new"]["name"]),
        (&json!("admin"), &Value::Null, &json!("hello"))
    );
    let second = &versions["objects"][2];
    assert_eq!((&second["old"]["repo_type"], &second["new"]["repo_type"]), (&json!("git"), &json!("hg")));
    // What changes nothing is no change.
    bench.patch("apps/hello/", json!({"repo_type": "git"})).await.must(200);
    assert_eq!(bench.get("apps/hello/versions").await.must(200)["meta"]["total_count"], 4);

    let gone = bench.delete("apps/hello/").await;
    assert_eq!((gone.status.as_u16(), gone.text.as_str()), (204, ""));
    let missing = bench.get("apps/hello/").await.must(404);
    assert_eq!(missing["error"], "there is no app hello");
    bench.delete("apps/hello/").await.must(404);
    let changes = bench.state.store.changes(Resource::Apps, 1, 0, 1).await.unwrap();
    assert_eq!((changes[0].action.as_str(), &changes[0].new), ("delete", &Value::Null));
}

#[tokio::test]
async fn bad_writes_are_refused_with_a_sentence_about_the_field() {
    let bench = Bench::with_swarm().await;
    let long = "x".repeat(65);
    for (path, body, field, sentence) in [
        ("apps/", json!({"name": "a-b", "repo_url": "/x"}), "name", "no dashes"),
        ("apps/", json!({"name": long, "repo_url": "/x"}), "name", "longer than 64 bytes"),
        ("apps/", json!({"name": "", "repo_url": "/x"}), "name", "empty"),
        ("apps/", json!({"name": 5, "repo_url": "/x"}), "name", "expected a text, found the number 5"),
        ("apps/", json!({"name": "b"}), "repo_url", "repo_url is required"),
        ("apps/", json!({"name": "b", "repo_url": "--upload-pack=x"}), "repo_url", "may begin with \"-\""),
        ("apps/", json!({"name": "b", "repo_url": "ext::sh -c x"}), "repo_url", "remote helper"),
        (
            "apps/",
            json!({"name": "b", "repo_url": "/x", "repo_type": "svn"}),
            "repo_type",
            "expected git or hg",
        ),
        (
            "apps/",
            json!({"name": "b", "repo_url": "/x", "colour": 1}),
            "colour",
            "apps have no field \"colour\"",
        ),
        (
            "apps/",
            json!({"name": "b", "repo_url": "/x", "stack": "/api/v1/stacks/x/"}),
            "stack",
            "not supported yet",
        ),
        (
            "apps/",
            json!({"name": "b", "repo_url": "/x", "buildpack": "/api/v1/buildpacks/9/"}),
            "buildpack",
            "no buildpack 9",
        ),
        (
            "apps/",
            json!({"name": "b", "repo_url": "/x", "buildpack": "/api/v1/apps/hello/"}),
            "buildpack",
            "not a URI such as /api/v1/buildpacks/1/",
        ),
        ("apps/", json!({"name": "hello", "repo_url": "/x"}), "name", "already"),
        ("squads/", json!({"name": "default"}), "name", "already"),
        ("squads/", json!({"name": "s", "hosts": ["/api/v1/hosts/h9/"]}), "hosts", "no host h9"),
        ("hosts/", json!({"name": "h:80"}), "name", "without a port"),
        ("hosts/", json!({"name": "h3", "active": "yes"}), "active", "expected true or false"),
        ("ingredients/", json!({"name": "i", "config_yaml": "[1]"}), "config_yaml", "expected a mapping"),
        ("ingredients/", json!({"name": "i", "config_yaml": "a: 3000000000"}), "config_yaml", "XML-RPC"),
        ("ingredients/", json!({"name": "i", "config_yaml": "a: {1: x}"}), "config_yaml", "XML-RPC"),
        ("ingredients/", json!({"name": "i", "config_yaml": "a: [b"}), "config_yaml", "line"),
        ("ingredients/", json!({"name": "i", "env_yaml": {"a b": 1}}), "env_yaml", "variable name"),
        ("builds/", json!({"app": "/api/v1/apps/hello/", "tag": "-x"}), "tag", "dash"),
        ("builds/", json!({"app": "/api/v1/apps/hello/", "tag": "a/b"}), "tag", "no '/'"),
        ("builds/", json!({"app": 1, "tag": "v1"}), "app", "expected a URI"),
        ("builds/", json!({"tag": "v1"}), "app", "required"),
        ("ingredients/", json!({"name": "i", "config_yaml": "on: 1"}), "config_yaml", "the boolean true"),
        ("releases/", json!({"config_yaml": ""}), "build", "required"),
    ] {
        let reply = bench.post(path, body.clone()).await.must(400);
        assert_eq!(reply["field"], field, "{body}: {reply}");
        assert!(reply["error"].as_str().unwrap().contains(sentence), "{body}: {reply}");
    }
    for (body, field, sentence) in [
        (json!({"size": -1}), "size", "from 0 to 1000"),
        (json!({"size": 1001}), "size", "from 0 to 1000"),
        (json!({"size": "many"}), "size", "found a text"),
        (json!({"pool": "web"}), "balancer", "must name a balancer"),
        (
            json!({"pool": "web", "balancer": "f5"}),
            "balancer",
            "no balancer \"f5\"; the settings name: local",
        ),
        (json!({"pool": "../x", "balancer": "local"}), "pool", "pool name"),
        (json!({"balancer": "f5"}), "balancer", "no balancer"),
        (json!({"volumes": [["/a"]]}), "volumes", "expected [host dir, mountpoint]"),
        (json!({"run_as": "-x"}), "run_as", "user's name"),
        (json!({"mem_limit": "lots"}), "mem_limit", "256M"),
        (
            json!({"mem_limit": "0M"}),
            "mem_limit",
            "mem_limit: \"0M\" is not an amount of memory: expected bytes",
        ),
        (json!({"mem_limit": 1}), "mem_limit", "mem_limit: \"1\" is not an amount of memory: expected bytes"),
        (json!({"memsw_limit": "9999999T"}), "memsw_limit", "\"9999999T\" is not an amount of memory"),
        (json!({"memsw_limit": " 1G"}), "memsw_limit", "has spaces around"),
        (
            json!({"mem_limit": "64M", "memsw_limit": "32M"}),
            "memsw_limit",
            "32M of memory and swap is less than mem_limit, 64M of memory alone",
        ),
        (json!({"config_name": "a-b"}), "config_name", "config name"),
        (json!({"version": "--x"}), "version", "dash"),
        (json!({"version": ["v1"]}), "version", "expected a text"),
        (json!({"release": "/api/v1/releases/9/"}), "release", "no release 9"),
        (json!({"config_ingredients": ["/api/v1/ingredients/9/"]}), "config_ingredients", "no ingredient 9"),
        (json!({"config_ingredients": "x"}), "config_ingredients", "expected a list"),
        (json!({"app_name": "other"}), "app_name", "cannot be changed"),
        (json!({"nonsense": 1}), "nonsense", "swarms have no field"),
    ] {
        let reply = bench.patch("swarms/1/", body.clone()).await.must(400);
        assert_eq!(reply["field"], field, "{body}: {reply}");
        assert!(reply["error"].as_str().unwrap().contains(sentence), "{body}: {reply}");
    }
    bench.patch("swarms/1/", json!({"mem_limit": "64M", "memsw_limit": "65536k"})).await.must(200);
    let reply = bench.patch("swarms/1/", json!({"mem_limit": "1G"})).await.must(400);
    assert!(
        reply["error"].as_str().unwrap().contains("65536k of memory and swap is less than mem_limit"),
        "{reply}"
    );
    let twice = bench.get("swarms/1/").await.must(200);
    assert!(bench.post("swarms/", twice).await.must(400)["error"].as_str().unwrap().contains("already"));
    for (body, sentence) in [("{\"a\": ", "not JSON: EOF"), ("[1]", "not a JSON object"), ("", "no body")] {
        let mut request = Bench::request(Method::POST, "apps/", None);
        *request.body_mut() = Body::from(body);
        let reply = bench.send(request).await.must(400);
        assert!(reply["error"].as_str().unwrap().contains(sentence), "{reply}");
    }
    let mut request = Bench::request(Method::POST, "apps/", None);
    *request.body_mut() = Body::from(vec![b' '; body::MAX_BODY + 1]);
    assert!(bench.send(request).await.must(413)["error"].is_string());
    let wrong = bench.post("apps/hello/", json!({})).await;
    assert!(wrong.must(405)["error"].as_str().unwrap().contains("does not take POST"));
    assert!(wrong.headers["allow"].to_str().unwrap().contains("PATCH"));
    bench.get("nothing/").await.must(404);
}

#[tokio::test]
async fn what_is_in_use_cannot_be_deleted() {
    let bench = Bench::with_swarm().await;
    bench.post("buildpacks/", json!({"repo_url": "/srv/pack"})).await.must(201);
    bench.post("ingredients/", json!({"name": "common"})).await.must(201);
    bench.patch("apps/hello/", json!({"buildpack": "/api/v1/buildpacks/1/"})).await.must(200);
    let changes = json!({"version": "v1", "config_ingredients": ["/api/v1/ingredients/1/"]});
    bench.patch("swarms/1/", changes).await.must(200);
    bench.send(Bench::request(Method::POST, "swarms/1/swarm/", None)).await.must(202);
    for (path, sentence) in [
        ("apps/hello/", "app hello cannot be deleted: it has 1 swarms"),
        ("buildpacks/1/", "buildpack 1 cannot be deleted: it has 1 apps"),
        ("squads/default/", "squad default cannot be deleted: it has 1 swarms"),
        ("ingredients/1/", "ingredient common cannot be deleted: it has 1 swarms"),
        ("builds/1/", "build 1 cannot be deleted: it has 1 releases"),
        ("releases/1/", "release 1 cannot be deleted: it has 1 swarms"),
        ("swarms/1/", "swarm 1 cannot be deleted: it has 1 dispatches under way"),
    ] {
        assert_eq!(bench.delete(path).await.must(400)["error"], sentence);
    }
    bench.delete("hosts/h2/").await.must(204);
}

#[tokio::test]
async fn lists_have_pages() {
    let bench = Bench::new().await;
    for n in 0..7 {
        bench.post("squads/", json!({"name": format!("s{n}")})).await.must(201);
    }
    let mut path = "squads/?limit=3&name__startswith=s&format=json".to_owned();
    let mut seen = Vec::new();
    loop {
        let page = bench.get(&path).await.must(200);
        assert_eq!((&page["meta"]["limit"], &page["meta"]["total_count"]), (&json!(3), &json!(7)));
        seen.extend(page["objects"].as_array().unwrap().iter().map(|squad| squad["name"].clone()));
        match page["meta"]["next"].as_str() {
            Some(next) => path = next.to_owned(),
            None => {
                assert_eq!(page["meta"]["previous"], "/api/v1/squads/?name__startswith=s&limit=3&offset=3");
                break;
            }
        }
    }
    assert_eq!(seen, ["s0", "s1", "s2", "s3", "s4", "s5", "s6"]);
    let first = bench.get("squads").await.must(200);
    let meta = json!({"limit": 100, "offset": 0, "total_count": 8, "next": null, "previous": null});
    assert_eq!(first["meta"], meta);
    for (asked, got) in [(0, 1000), (9999, 9999), (20_000, 10_000)] {
        let page = bench.get(&format!("squads/?limit={asked}")).await.must(200);
        assert_eq!(page["meta"]["limit"], got);
    }
    for bad in ["limit=-1", "limit=x", "offset=-1", "offset="] {
        bench.get(&format!("squads/?{bad}")).await.must(400);
    }
}

#[tokio::test]
async fn lists_are_filtered_by_fields_relations_and_lookups() {
    let bench = Bench::with_swarm().await;
    bench.post("apps/", json!({"name": "Hello_2", "repo_url": "/srv/100%_x"})).await.must(201);
    let swarm = json!({
        "app": "/api/v1/apps/2/", "config_name": "test", "proc_name": "worker", "squad": "/api/v1/squads/1/",
        "size": 5, "pool": "p", "balancer": "local", "version": "v9",
    });
    bench.post("swarms/", swarm).await.must(201);
    for (query, names) in [
        ("", vec!["hello", "Hello_2"]),
        ("app__name=hello", vec!["hello"]),
        ("app__name=hello&config_name=prod&proc_name=web", vec!["hello"]),
        ("app__name=hello&config_name=test", vec![]),
        // The published client sends this for "any app".
        ("app__name=", vec!["hello", "Hello_2"]),
        ("app__name__exact=HELLO", vec![]),
        ("app__name__iexact=HELLO", vec!["hello"]),
        ("app__name__contains=ello", vec!["hello", "Hello_2"]),
        ("app__name__contains=ELLO", vec![]),
        ("app__name__icontains=ELLO_", vec!["Hello_2"]),
        ("app__repo_url__contains=100%25_x", vec!["Hello_2"]),
        ("app__repo_url__contains=1__%25", vec![]),
        ("app__repo_url__icontains=%25", vec!["Hello_2"]),
        ("app__name__startswith=Hello", vec!["Hello_2"]),
        ("app__name__startswith=H%25", vec![]),
        ("app__name__in=hello,other", vec!["hello"]),
        ("size__gt=1", vec!["Hello_2"]),
        ("size__gte=1&size__lt=5", vec!["hello"]),
        ("size__lte=5", vec!["hello", "Hello_2"]),
        ("id__in=2,3", vec!["Hello_2"]),
        ("pool__isnull=true", vec!["hello"]),
        ("pool__isnull=false", vec!["Hello_2"]),
        ("release__isnull=True", vec!["hello"]),
        ("version=v9", vec!["Hello_2"]),
        ("release__build__tag=v9", vec!["Hello_2"]),
        ("squad__name=default", vec!["hello", "Hello_2"]),
        ("squad=/api/v1/squads/default/", vec!["hello", "Hello_2"]),
        ("squad=none", vec![]),
        ("app=2", vec!["Hello_2"]),
        ("app=hello", vec!["hello"]),
        ("app=/api/v1/apps/hello/", vec!["hello"]),
        ("app__in=/api/v1/apps/hello/,2", vec!["hello", "Hello_2"]),
        ("app__name=x'%20OR%20'1'='1", vec![]),
    ] {
        let found = bench.listed(&format!("swarms/?{query}"), "app_name").await;
        assert_eq!(found, names, "{query}");
    }
    assert_eq!(bench.listed("hosts/?active=true&squad__name=default", "name").await, ["h1", "h2"]);
    assert!(bench.listed("hosts/?active=0", "name").await.is_empty());
    assert_eq!(bench.listed("builds/?start_time__isnull=true", "tag").await, ["v9"]);
    assert!(bench.listed("builds/?start_time__gt=2020-01-01T00:00:00Z", "tag").await.is_empty());
    let many = vec!["size=1"; 101].join("&");
    assert_eq!(bench.get(&format!("swarms/?{many}")).await.must(400)["error"], "more than 100 filters");
    for (query, parameter) in [
        ("colour=red", "colour"),
        ("app__colour=red", "app__colour"),
        ("app__name__regex=x", "app__name__regex"),
        ("config_yaml=x", "config_yaml"),
        ("config_yaml__contains=x", "config_yaml__contains"),
        ("config_ingredients=1", "config_ingredients"),
        ("size=big", "size"),
        ("size__contains=1", "size__contains"),
        ("pool__isnull=perhaps", "pool__isnull"),
        ("a.name=x", "a.name"),
        ("id;DROP=1", "id;DROP"),
    ] {
        let reply = bench.get(&format!("swarms/?{query}")).await.must(400);
        assert_eq!(reply["field"], parameter, "{query}");
        assert!(reply["error"].as_str().unwrap().contains(parameter), "{reply}");
    }
}

#[tokio::test]
async fn a_swarm_shows_its_config_its_procs_and_where_it_is() {
    let bench = Bench::with_swarm().await;
    let common = json!({"name": "common", "config_yaml": "a: 1\nb: 1\n", "env_yaml": {"A": "common"}});
    bench.post("ingredients/", common).await.must(201);
    bench.post("ingredients/", json!({"name": "more", "config_yaml": {"b": 2}})).await.must(201);
    let changes = json!({
        "config_ingredients": ["/api/v1/ingredients/2/", "/api/v1/ingredients/1/"],
        "config_yaml": {"c": [1.5, null]}, "env_yaml": "B: own\n", "version": "v1", "size": 2,
        "pool": "hello", "balancer": "local", "volumes": "- [/srv/data, /data]", "mem_limit": "64M",
    });
    let swarm = bench.patch("swarms/1/", changes).await.must(200);
    for (field, expected) in [
        ("compiled_config", json!({"a": 1, "b": 1, "c": [1.5, null]})),
        ("compiled_env", json!({"A": "common", "B": "own"})),
        ("config_ingredients", json!(["/api/v1/ingredients/2/", "/api/v1/ingredients/1/"])),
        ("config_yaml", json!("c:\n- 1.5\n- null\n")),
        ("version", json!("v1")),
        ("release", json!("/api/v1/releases/1/")),
        ("shortname", json!("hello-v1-prod-web")),
        ("app", json!("/api/v1/apps/hello/")),
        ("squad", json!("/api/v1/squads/default/")),
        ("squad_name", json!("default")),
        ("volumes", json!([["/srv/data", "/data"]])),
        ("run_as", json!("nobody")),
        ("procs_uri", json!("/api/v1/swarms/1/procs/")),
        ("procs", json!([])),
    ] {
        assert_eq!(swarm[field], expected, "{field}");
    }
    assert_eq!(bench.get("ingredients/1/").await.must(200)["swarms"], json!(["/api/v1/swarms/1/"]));
    let release = bench.get("releases/1/").await.must(200);
    assert_eq!((&release["build"], &release["hash"]), (&json!("/api/v1/builds/1/"), &Value::Null));
    assert_eq!(release["compiled_name"], "hello-v1-UNKNOWN");
    assert_eq!(release["config_yaml"], "a: 1\nb: 1\nc:\n- 1.5\n- null\n");
    assert_eq!(bench.get("builds/1/").await.must(200)["status"], "pending");

    for (host, proc) in [
        ("h1", "hello-v1-prod-0123abcd-web-5000"),
        ("h2", "hello-v0-prod-aaaaaaaa-web-5001"),
        ("h2", "hello-v1-prod-0123abcd-worker-0"),
        ("h2", "other-v1-prod-0123abcd-web-5002"),
    ] {
        bench.hosts[host].deploy(proc, "").await.unwrap();
    }
    bench.state.fleet.look_at_all().await;
    let names = ["hello-v1-prod-0123abcd-web-5000", "hello-v0-prod-aaaaaaaa-web-5001"];
    assert_eq!(bench.listed("swarms/1/procs/", "name").await, names);
    let procs = bench.get("swarms/1/").await.must(200)["procs"].clone();
    assert_eq!(
        (&procs[0]["host"], &procs[0]["port"], &procs[0]["statename"]),
        (&json!("h1"), &json!(5000), &json!("RUNNING"))
    );

    // The whole object comes back from clients that save what they loaded.
    let mut whole = bench.get("swarms/1/").await.must(200);
    whole["size"] = json!(3);
    let saved = bench.put("swarms/1/", whole.clone()).await.must(200);
    assert_eq!(saved, whole);

    // A version finds its release again; a release moves the swarm as well.
    let v2 = bench.patch("swarms/1/", json!({"version": "v2"})).await.must(200);
    assert_eq!((&v2["version"], &v2["release"]), (&json!("v2"), &json!("/api/v1/releases/2/")));
    let v1 = bench.patch("swarms/1/", json!({"version": "v1"})).await.must(200);
    assert_eq!(v1["release"], "/api/v1/releases/1/");
    let v2 = bench.patch("swarms/1/", json!({"release": "/api/v1/releases/2/"})).await.must(200);
    assert_eq!(v2["version"], "v2");
    let both = json!({"release": "/api/v1/releases/1/", "version": "v3"});
    assert_eq!(bench.patch("swarms/1/", both).await.must(400)["field"], "version");
    let latest = bench.get("swarms/1/versions/?limit=1").await.must(200)["objects"][0].clone();
    assert_eq!((&latest["old"]["version"], &latest["new"]["version"]), (&json!("v1"), &json!("v2")));
}

#[tokio::test]
async fn releases_are_hashed_and_are_not_made_twice() {
    let bench = Bench::with_swarm().await;
    bench.post("builds/", json!({"app": "/api/v1/apps/hello/", "tag": "v1"})).await.must(201);
    let queued = bench.send(Bench::request(Method::POST, "builds/1/build/", None)).await.must(202);
    assert_eq!(queued["resource_uri"], "/api/v1/builds/1/");
    let leased = bench.state.store.lease_build("w", Duration::from_secs(60)).await.unwrap();
    let (build, lease) = leased.expect("the build was not queued");
    let outcome = BuildOutcome::Success {
        file: "builds/x.tar.gz".into(),
        file_md5: "0".repeat(32),
        compile_log: None,
        hash: "f".repeat(32),
        env_yaml: "PATH: /app/bin\n".into(),
        buildpack_url: None,
        buildpack_version: None,
    };
    bench.state.store.finish_build(build.id, &lease, &outcome).await.unwrap();
    let release = json!({"build": "/api/v1/builds/1/", "config_yaml": {"a": 1}, "run_as": "nobody"});
    let made = bench.post("releases/", release.clone()).await;
    assert_eq!(made.headers["location"], "/api/v1/releases/1/");
    let made = made.must(201);
    assert_eq!((&made["config_yaml"], &made["env_yaml"]), (&json!("a: 1\n"), &json!("{}\n")));
    let hash = made["hash"].as_str().unwrap();
    assert_eq!(hash.len(), 8);
    assert_eq!(made["compiled_name"], format!("hello-v1-{hash}"));
    assert!(bench.post("releases/", release).await.must(400)["error"].as_str().unwrap().contains("already"));
    let changed = bench.patch("releases/1/", json!({"config_yaml": "a: 2"})).await.must(200);
    assert_ne!(changed["hash"], made["hash"]);
    let restored = bench.patch("releases/1/", json!({"config_yaml": "a: 1"})).await.must(200);
    assert_eq!(restored["hash"], made["hash"]);
    // The swarm's own release of the same parts is the same one.
    let own = json!({"config_yaml": "a: 1", "version": "v1"});
    let swarm = bench.patch("swarms/1/", own).await.must(200);
    assert_eq!(swarm["compiled_env"], json!({"PATH": "/app/bin"}));
    let releases = bench.listed("releases/", "hash").await;
    assert_eq!(releases.len(), 2, "the build's environment makes it another release");
}

#[tokio::test]
async fn squads_have_the_hosts_that_are_put_there() {
    let bench = Bench::new().await;
    let made = bench.post("squads/", json!({"name": "eu", "hosts": ["/api/v1/hosts/h2/"]})).await.must(201);
    assert_eq!(made["hosts"][0]["name"], "h2");
    assert_eq!(made["hosts"][0]["squad"], "/api/v1/squads/eu/");
    let default = bench.get("squads/default/").await.must(200);
    assert_eq!(default["hosts"].as_array().unwrap().len(), 1);
    let saved = bench.put("squads/eu/", made.clone()).await.must(200);
    assert_eq!(saved, made);
    bench.patch("hosts/h2/", json!({"squad": null, "active": false})).await.must(200);
    let host = bench.get("hosts/h2").await.must(200);
    assert_eq!((&host["squad"], &host["active"]), (&Value::Null, &json!(false)));
    assert_eq!(bench.get("squads/eu/").await.must(200)["hosts"], json!([]));
}

#[tokio::test]
async fn a_dispatch_is_queued_and_can_be_followed() {
    let bench = Bench::with_swarm().await;
    let trigger = || bench.send(Bench::request(Method::POST, "swarms/1/swarm/", None));
    let refused = trigger().await.must(400);
    assert!(refused["error"].as_str().unwrap().contains("hello-prod-web has no version"), "{refused}");
    bench.patch("swarms/1/", json!({"version": "v1"})).await.must(200);
    let wake = Arc::clone(&bench.state.wake);
    let id = trigger().await.must(202)["swarm_id"].as_str().unwrap().to_owned();
    tokio::time::timeout(Duration::from_secs(5), wake.notified()).await.expect("the conductor was not woken");
    let dispatch = bench.get(&format!("dispatches/{id}")).await.must(200);
    for (field, expected) in [
        ("id", json!(id)),
        ("resource_uri", json!(format!("/api/v1/dispatches/{id}/"))),
        ("swarm", json!("/api/v1/swarms/1/")),
        ("swarm_name", json!("hello-prod-web")),
        ("version", json!("v1")),
        ("state", json!("queued")),
        ("user", json!("admin")),
        ("error", Value::Null),
        ("finished", Value::Null),
    ] {
        assert_eq!(dispatch[field], expected, "{field}");
    }
    assert_eq!(dispatch["transitions"][0]["to"], "queued");
    let second = trigger().await.must(202)["swarm_id"].clone();
    assert_eq!(bench.listed("dispatches/?swarm=1&limit=5", "state").await, ["queued", "cancelled"]);
    assert_eq!(bench.listed("dispatches/?swarm=/api/v1/swarms/1/", "id").await[0], second);
    bench.get("dispatches/?swarm=9").await.must(400);
    bench.get("dispatches/?state=done").await.must(400);
    bench.get("dispatches/nothing/").await.must(404);
    bench.send(Bench::request(Method::POST, "swarms/9/swarm/", None)).await.must(404);
    let event = bench.get("events/?limit=1").await.must(200)["objects"][0].clone();
    assert_eq!((&event["tags"], &event["swarm_id"]), (&json!(["user", "swarm"]), &second));
    assert_eq!(event["message"], "admin asked for hello-prod-web at version v1, 1 procs");
    let state = bench.state.store.dispatch(&id).await.unwrap().state;
    assert_eq!(state, DispatchState::Cancelled);
}

#[tokio::test]
async fn procs_are_acted_on_through_their_host() {
    let bench = Bench::new().await;
    let proc = "hello-v1-prod-0123abcd-web-5000";
    let host = &bench.hosts["h1"];
    host.deploy(proc, "").await.unwrap();
    let path = format!("hosts/h1/procs/{proc}/");
    // Nobody has looked at the host since; it is asked.
    assert_eq!(bench.get(&path).await.must(200)["statename"], "RUNNING");
    let stopped = bench.post(&path, json!({"action": "stop"})).await.must(200);
    assert_eq!((&stopped["statename"], &stopped["host"]), (&json!("STOPPED"), &json!("h1")));
    assert_eq!(bench.listed("hosts/h1/procs/", "state").await, [json!(ProcState::Stopped.code())]);
    bench.post(&path, json!({"action": "start"})).await.must(200);
    for body in [json!({"action": "explode"}), json!({}), json!({"action": 1})] {
        assert_eq!(bench.post(&path, body).await.must(400)["field"], "action");
    }
    host.fail("act", Some("no such user"));
    assert_eq!(
        bench.post(&path, json!({"action": "restart"})).await.must(500),
        json!({"fault": "host h1: no such user"})
    );
    host.fail("act", None);
    host.act(proc, Action::Restart).await.unwrap();
    assert_eq!(bench.delete(&path).await.must(200), json!({"name": proc, "deleted": true}));
    assert!(host.names().is_empty());
    bench.delete(&path).await.must(404);
    bench.post("hosts/h1/procs/none/", json!({"action": "stop"})).await.must(404);
    bench.get("hosts/h9/procs/").await.must(404);
    // A host that is gone: what was last seen, and since when.
    host.cut_off(true);
    bench.state.fleet.look_at_all().await;
    assert!(bench.get("hosts/h1/").await.must(200)["unreachable_since"].is_string());
    let fault = bench.get(&path).await.must(500)["fault"].clone();
    assert_eq!(fault, "host h1 does not answer: cut off");
}

#[tokio::test]
async fn files_are_served_without_following_anything() {
    let bench = Bench::new().await;
    let root = &bench.state.files;
    std::fs::create_dir(root.join("builds")).unwrap();
    std::fs::write(root.join("builds/a.tar.gz"), "0123456789").unwrap();
    std::fs::write(root.join("builds/.a.unfinished"), "half").unwrap();
    std::fs::write(root.parent().unwrap().join("secret"), "secret").unwrap();
    std::os::unix::fs::symlink("../../secret", root.join("builds/link")).unwrap();
    std::os::unix::fs::symlink("/", root.join("root")).unwrap();
    let get = |path: &str| bench.send(http::Request::get(path).body(Body::empty()).unwrap());
    let whole = get("/files/builds/a.tar.gz").await;
    assert_eq!((whole.status.as_u16(), whole.text.as_str()), (200, "0123456789"));
    assert_eq!(whole.headers["x-content-type-options"], "nosniff");
    let part = http::Request::get("/files/builds/a.tar.gz")
        .header("range", "bytes=3-5")
        .body(Body::empty())
        .unwrap();
    let part = bench.send(part).await;
    assert_eq!((part.status.as_u16(), part.text.as_str()), (206, "345"));
    let head = http::Request::head("/files/builds/a.tar.gz").body(Body::empty()).unwrap();
    let head = bench.send(head).await;
    assert_eq!((head.status.as_u16(), head.text.as_str()), (200, ""));
    assert_eq!(head.headers["content-length"], "10");
    for path in [
        "/files/builds",
        "/files/builds/",
        "/files/builds/none",
        "/files/builds/link",
        "/files/root/etc/hostname",
        "/files/builds/.a.unfinished",
        "/files/../secret",
        "/files/%2e%2e/secret",
        "/files/builds/..%2f..%2fsecret",
        "/files//etc/hostname",
        "/files/%2Fetc/hostname",
        "/files/builds/a.tar.gz%00",
    ] {
        let reply = get(path).await;
        // A path that leaves `/files/` is another path, and those need a user.
        assert!(matches!(reply.status.as_u16(), 401 | 404), "{path}: {}", reply.status);
        assert!(reply.json().is_object(), "{path}");
    }
}

#[tokio::test]
async fn the_stream_gives_each_event_once_and_in_order() {
    let bench = Bench::new().await;
    let tell = |n: usize| bench.state.events.tell(News::new(format!("event {n}"), "", &["debug"]));
    for n in 1..=3 {
        tell(n).await;
    }
    let mut request = Bench::request(Method::GET, "/api/streams/events/", None);
    request.headers_mut().insert("last-event-id", "1".parse().unwrap());
    let response = bench.router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    assert_eq!(response.version(), http::Version::HTTP_10, "the published client cannot read chunks");
    let mut body = response.into_body();
    // More than the live channel holds, while nobody reads.
    const LAST: usize = 1300;
    for n in 4..=LAST {
        tell(n).await;
    }
    let mut reader = vr_common::events::SseReader::default();
    let mut seen = Vec::new();
    while seen.len() < LAST - 1 {
        let frame =
            tokio::time::timeout(Duration::from_secs(20), body.frame()).await.expect("the stream is silent");
        let data = frame.unwrap().unwrap().into_data().unwrap();
        for line in std::str::from_utf8(&data).unwrap().lines() {
            if let Some(envelope) = reader.line(line) {
                let event: Value = serde_json::from_str(&envelope.data).unwrap();
                assert_eq!(event["title"], format!("event {}", envelope.id));
                seen.push(envelope.id.parse::<usize>().unwrap());
            }
        }
    }
    assert_eq!(seen, (2..=LAST).collect::<Vec<_>>());
    bench.state.stop.cancel();
    let end = tokio::time::timeout(Duration::from_secs(20), body.frame()).await.expect("the stream goes on");
    assert!(end.is_none());

    let pages = bench.get("events/?limit=2&offset=1").await.must(200);
    assert_eq!(pages["meta"]["total_count"], LAST);
    assert_eq!(
        (&pages["objects"][0]["id"], &pages["objects"][0]["title"]),
        (&json!(LAST - 1), &json!(format!("event {}", LAST - 1)))
    );
}

#[tokio::test]
async fn a_stream_without_a_known_last_event_begins_with_the_latest() {
    let bench = Bench::new().await;
    for n in 1..=120 {
        bench.state.events.tell(News::new(format!("event {n}"), "", &[])).await;
    }
    bench.state.stop.cancel();
    for last_id in [None, Some("5000"), Some("abc")] {
        let mut request = Bench::request(Method::GET, "/api/streams/events", None);
        if let Some(id) = last_id {
            request.headers_mut().insert("last-event-id", id.parse().unwrap());
        }
        let text = bench.send(request).await.text;
        assert!(text.starts_with("id: 21\ndata: {"), "{}", &text[..60]);
        assert_eq!(text.matches("\n\n").count(), 100);
    }
}

#[tokio::test]
async fn the_page_shows_swarms_hosts_and_events_and_runs_nothing() {
    let bench = Bench::with_swarm().await;
    bench.patch("swarms/1/", json!({"version": "v1", "size": 2})).await.must(200);
    bench.send(Bench::request(Method::POST, "swarms/1/swarm/", None)).await.must(202);
    bench.hosts["h1"].deploy("hello-v1-prod-0123abcd-web-5000", "").await.unwrap();
    bench.hosts["h2"].cut_off(true);
    bench.state.fleet.look_at_all().await;
    bench.state.events.tell(News::new("<script>alert(1)</script>", "a & b", &["debug"])).await;
    let page = bench.get("/").await;
    assert_eq!(page.status, StatusCode::OK);
    for part in [
        "hello-prod-web",
        "Version v1, 2 procs wanted on squad default",
        "<strong>queued</strong>",
        "hello-v1-prod-0123abcd-web-5000",
        "RUNNING",
        "unreachable since 20",
        "&#60;script&#62;alert(1)&#60;/script&#62;",
        "a &#38; b",
        env!("CARGO_PKG_VERSION"),
    ] {
        assert!(page.text.contains(part), "{part:?} is not in {}", page.text);
    }
    assert!(!page.text.contains("<script"));
    let policy = page.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'; style-src 'unsafe-inline'"), "{policy}");
    for (header, value) in [
        ("x-frame-options", "DENY"),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
    ] {
        assert_eq!(page.headers[header], value);
    }
    assert!(page.headers["content-type"].to_str().unwrap().starts_with("text/html"));
}
