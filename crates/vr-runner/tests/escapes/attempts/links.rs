//! Links of the app's, met while the container is made.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;

pub const ATTEMPTS: &[Attempt] = &[
    Attempt {
        name: "lead_tmp_out_of_the_root",
        at_start: true,
        cases: &[root(&[LinksStayInside])],
        arrange: |scene| hostile_link(scene, "tmp", ""),
        ..PLAIN
    },
    Attempt {
        name: "lead_var_out_of_the_root",
        at_start: true,
        cases: &[root(&[LinksStayInside])],
        arrange: |scene| hostile_link(scene, "var", ""),
        ..PLAIN
    },
    Attempt {
        name: "lead_etc_out_of_the_root",
        at_start: true,
        cases: &[root(&[LinksStayInside])],
        arrange: |scene| {
            own_system(scene);
            hostile_link(scene, "etc", "")
        },
        ..PLAIN
    },
    Attempt {
        name: "lead_the_place_of_a_volume_out_of_the_root",
        at_start: true,
        cases: &[root(&[LinksStayInside])],
        arrange: |scene| {
            fs::create_dir(scene.path("volume")).unwrap();
            scene.volume("volume", "/data/deep/place", false);
            hostile_link(scene, "data", "")
        },
        ..PLAIN
    },
    Attempt {
        name: "lead_the_place_of_a_volume_out_by_dots",
        at_start: true,
        cases: &[root(&[LinksStayInside])],
        arrange: |scene| {
            fs::create_dir(scene.path("volume")).unwrap();
            scene.volume("volume", "/data/place", false);
            symlink("../victim", scene.path("root/data")).unwrap();
            changes(scene, "victim")
        },
        ..PLAIN
    },
    Attempt {
        name: "lead_the_place_of_a_volume_out_of_another_volume",
        at_start: true,
        cases: &[root(&[LinksStayInside])],
        arrange: |scene| {
            fs::create_dir(scene.path("volume")).unwrap();
            fs::create_dir(scene.path("inner")).unwrap();
            symlink(scene.path("victim"), scene.path("volume/link")).unwrap();
            scene.volume("volume", "/data", false);
            scene.volume("inner", "/data/link/place", false);
            changes(scene, "victim")
        },
        ..PLAIN
    },
    Attempt {
        name: "lead_the_source_of_a_volume_out_of_another_volume",
        at_start: true,
        cases: &[root(&[LinksStayInside]), user(&[LinksStayInside]), rootless(&[LinksStayInside])],
        arrange: |scene| {
            // The app sees the folder that holds the other volume's, and may put what it likes in its place.
            fs::create_dir(scene.path("volume")).unwrap();
            symlink(scene.path("victim"), scene.path("volume/inner")).unwrap();
            scene.volume("volume", "/data", false);
            scene.volume("volume/inner", "/inner", false);
            says_secret()
        },
        script: r#"print file("/inner/secret");"#,
        ..PLAIN
    },
    Attempt {
        name: "lead_a_folder_above_the_source_of_a_volume_out_of_another_volume",
        at_start: true,
        cases: &[root(&[LinksStayInside]), rootless(&[LinksStayInside])],
        arrange: |scene| {
            fs::create_dir(scene.path("volume")).unwrap();
            symlink(scene.dir.path(), scene.path("volume/way")).unwrap();
            scene.volume("volume", "/data", false);
            scene.volume("volume/way/victim", "/inner", false);
            says_secret()
        },
        script: r#"print file("/inner/secret");"#,
        ..PLAIN
    },
    Attempt {
        name: "lead_the_source_of_a_volume_with_two_names_out",
        at_start: true,
        cases: &[root(&[LinksStayInside]), rootless(&[LinksStayInside])],
        arrange: |scene| {
            // The same folder by the name that the administrator's link gives it.
            fs::create_dir(scene.path("volume")).unwrap();
            symlink("volume", scene.path("alias")).unwrap();
            symlink("../victim", scene.path("volume/inner")).unwrap();
            scene.volume("alias/inner", "/inner", true);
            scene.volume("volume", "/data", false);
            says_secret()
        },
        script: r#"print file("/inner/secret");"#,
        ..PLAIN
    },
];

/// A link of the app's that leads to the victims.
fn hostile_link(scene: &mut Scene, name: &str, below: &str) -> Evidence {
    let link = scene.path("root").join(name);
    fs::create_dir_all(link.parent().unwrap()).unwrap();
    symlink(scene.path("victim").join(below), link).unwrap();
    changes(scene, "victim")
}
