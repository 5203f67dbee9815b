//! The published Python client, `vr.common.models.Host`, as pip installs it.

use serde_json::Value as Json;
use vr_common::process::command;
use vr_testing::ended;

use crate::harness::Vrun;
use crate::parts::{PASSWORD, RpcHost, USER};

const WEB: &str = "demo-v1-prod-abcd1234-web-5001";
const WORKER: &str = "demo-v1-prod-abcd1234-worker-5002";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_published_client_works_as_with_supervisor() {
    let host = RpcHost::start(Vrun::StandIn).await;
    host.deploy(WEB, "cmd: sleep 98765\nenv: {COLOUR: blue}\nsettings: {deep: [1, null]}").await.unwrap();
    host.deploy(WORKER, "cmd: sleep 98765").await.unwrap();
    let (_, port) = host.address.split_once(':').unwrap();
    let said = tokio::task::block_in_place(|| {
        ended(
            command(vr_testing::published_python())
                .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/rpc/client.py"))
                .args([port, USER, PASSWORD, WEB, WORKER]),
        )
    });
    let said = said.expect(0);
    let said: Json = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(said["names"], serde_json::json!([WEB, WORKER]));
    let seen = host.client().process_info(WORKER).unwrap();
    assert_eq!((seen.statename.as_str(), &said["last pid"]), ("RUNNING", &Json::from(seen.pid)));
    let web = &said["web"];
    assert_eq!(
        (&web["app_name"], &web["version"], &web["config_name"]),
        (&"demo".into(), &"v1".into(), &"prod".into())
    );
    assert_eq!(
        (&web["hash"], &web["proc_name"], &web["port"]),
        (&"abcd1234".into(), &"web".into(), &5001.into())
    );
    assert_eq!((&web["statename"], &web["stop_time"]), (&"RUNNING".into(), &Json::Null));
    assert_eq!(web["logfile"], host.proc_dir(WEB).join("log").display().to_string());
    assert_eq!(said["settings"]["env"], serde_json::json!({"COLOUR": "blue"}));
    assert_eq!(said["settings"]["settings"], serde_json::json!({"deep": [1, null]}));
}
