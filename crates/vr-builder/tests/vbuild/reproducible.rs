//! The same input gives the same tarball, wherever it is built.

use std::process::Command;

use crate::support::{World, ended, through};

#[test]
fn the_surroundings_do_not_matter() {
    let world = World::new();
    // More than one block of what is compressed on several processors, and files in an order that folders do not keep.
    let pack = world.pack(
        "pack",
        "cd $1; seq 200000 >numbers; for n in $(seq 40 -1 1); do mkdir -p d$n/e; echo $n >d$n/e/f; done
         ln -s numbers link; ln numbers twin; chmod 700 d1; chmod 4755 d2/e/f; touch -d 1999-01-01 d3; umask
         date +%N >/tmp/now; echo x >$2/kept",
    );
    let app = world.git("app", &[("Procfile", "web: x\n"), ("run", "#!/bin/sh\n"), ("ü/ä", "x\n")]);
    let yaml = world.yaml(&app, &format!("buildpack_url: {}", pack.display()));
    assert_eq!(world.build(&yaml).expect(0).stdout, "0022\n");
    let md5 = world.md5();
    let again = |what: &str, mut vbuild: Command| {
        std::fs::remove_file(world.out("build.tar.gz")).unwrap();
        let said = ended(&mut vbuild).expect(0);
        assert_eq!(said.stdout, "0022\n");
        assert_eq!(world.md5(), md5, "{what}");
    };
    let plain = || world.vbuild(&["build"], &yaml);
    again("a second time", plain());
    again("a strict umask", through(&["sh", "-c", "umask 077; exec \"$@\"", "sh"], &plain()));
    again("one processor", through(&["taskset", "--cpu-list", "0"], &plain()));
    let mut elsewhere = plain();
    elsewhere.env("HOME", world.path("home")).env("LANG", "tr_TR.UTF-8").env("LC_ALL", "C");
    elsewhere.env("TZ", "Pacific/Kiritimati").env("RAPTOR_HOME", world.path("another/builder"));
    again("another user's surroundings", elsewhere);
    world.assert_clean();
}
