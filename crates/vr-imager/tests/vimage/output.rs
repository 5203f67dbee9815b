//! What people and programs get: the output as it comes, the log, the YAML file and JSON.

use std::fs;
use std::os::unix::fs::MetadataExt;

use serde_json::Value;
use vr_common::image_data::ImageData;

use crate::support::{World, ended};

#[test]
fn output_is_kept_byte_by_byte_whatever_it_is() {
    let world = World::new();
    let script = "#!/bin/bash\nprintf 'caf\\xe9 \\x00\\x1b[31mred'\n";
    world.build(&world.yaml(script, "")).expect(0);
    assert_eq!(fs::read(world.out("new_1.log")).unwrap(), b"caf\xe9 \x00\x1b[31mred");
    let ended = world.build(&world.yaml(&format!("{script}exit 3\n"), "")).expect(4);
    assert!(ended.stderr.contains("\n  | caf\u{fffd} red\nhint: "), "{}", ended.stderr);
    // Not even with nothing in it is there no log; but there is nothing to be seen in it.
    world.build(&world.yaml("#!/bin/sh\n", "")).expect(0);
    assert_eq!(world.log(), "");
    let silent = world.build(&world.yaml("#!/bin/sh\nexit 3\n", "")).expect(4);
    assert!(!silent.stderr.contains("its output"), "{}", silent.stderr);
    assert_eq!(world.log(), "");
}

#[test]
fn a_log_has_an_end_and_the_script_goes_on() {
    let world = World::new();
    let script = "#!/bin/bash\nprintf -v line '%1000000s' x\nfor ((i = 0; i < 70; i++)); do echo \"$line\"; done\necho done > /done\n";
    ended(&mut world.vimage(&["build", "-q"], &world.yaml(script, ""))).expect(0);
    let size = fs::metadata(world.out("new_1.log")).unwrap().size();
    let most = 64 << 20;
    assert!((most..most + 100_000).contains(&size), "{size}");
    let log = fs::read(world.out("new_1.log")).unwrap();
    let text = String::from_utf8_lossy(&log);
    assert!(text.contains("\n[of what came after 64 MiB, only the end is kept]\n"));
    assert!(world.listed("new_1.tar.gz").contains(&"-rw-r--r-- 0/0 done".to_owned()));
}

#[test]
fn a_failure_is_data_with_json() {
    let world = World::new();
    let yaml = world.yaml("#!/bin/sh\necho noise\nexit 127\n", "");
    let ended = ended(&mut world.vimage(&["build", "--json"], &yaml)).expect(4);
    let line = ended.stdout.strip_prefix("noise\n").unwrap();
    let value: Value = serde_json::from_str(line).unwrap();
    assert_eq!(
        (&value["ok"], &value["exit_code"], &value["step"]),
        (&false.into(), &4.into(), &"script".into())
    );
    assert_eq!(value["error"], "the script ended with exit code 127");
    assert_eq!(value["log"], world.out("new_1.log").canonicalize().unwrap().to_str().unwrap());
    assert_eq!(value["last_lines"], serde_json::json!(["noise"]));
    assert_eq!(value["hint"], "exit code 127 is what shells say when there is no such program");

    let early =
        crate::support::ended(&mut world.vimage(&["build", "--json"], &world.path("nosuch.yaml"))).expect(2);
    let value: Value = serde_json::from_str(&early.stdout).unwrap();
    assert_eq!((&value["ok"], &value["exit_code"], &value["step"]), (&false.into(), &2.into(), &Value::Null));
}

#[test]
fn the_new_file_is_the_old_one_with_the_sum_and_can_be_fed_back() {
    let world = World::new();
    let good = "#!/bin/sh\necho fine\n";
    world.build(&world.yaml(good, "owner: {name: us}\nenv: {NUMBER: 0755}")).expect(0);
    let file = world.out("new_1.yaml");
    let first = ImageData::load(&file).unwrap();
    assert_eq!(first.unknown["owner"]["name"].as_str(), Some("us"));
    assert_eq!(first.env.as_ref().unwrap()["NUMBER"].0, "0755");
    world.build(&file).expect(0);
    let second = ImageData::load(&file).unwrap();
    assert_eq!(ImageData { new_image_md5: None, ..first }, ImageData { new_image_md5: None, ..second });

    // What a run was told with stays when it fails; what an earlier one told of its image does not.
    world.yaml("#!/bin/sh\nexit 1\n", "");
    world.build(&file).expect(4);
    world.assert_left(&["new_1.log", "new_1.yaml"]);
    world.build(&world.path("image.yaml")).expect(4);
    world.assert_left(&["new_1.log"]);
}
