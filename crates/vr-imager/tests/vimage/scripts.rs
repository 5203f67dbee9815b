//! Scripts: where they come from, what runs them, and what is said when nothing can.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::support::{Answer, Server, World, ended, names};

#[test]
fn a_script_that_nothing_can_read_is_refused_by_name() {
    let world = World::new();
    for (script, expected, hint) in [
        (
            "#!/usr/bin/python9\nprint()\n",
            "the script is for /usr/bin/python9, which the image tiny_base does not have",
            "hint: the base has to have it before the script runs",
        ),
        (
            "#!/bin/sh\r\necho\r\n",
            "the script is for /bin/sh\\r, which the image tiny_base does not have",
            "hint: the lines of the script end in CR LF",
        ),
    ] {
        let ended = world.build(&world.yaml(script, "")).expect(2);
        assert_eq!(ended.error(), expected);
        assert!(ended.stderr.contains(hint), "{}", ended.stderr);
        world.assert_left(&[]);
    }
    let yaml = world.yaml("", "");
    let ended = world.build(&yaml).expect(2);
    assert_eq!(ended.error(), format!("script_url: {} is empty", world.path("provision.sh").display()));
    world.assert_left(&[]);
}

#[test]
fn a_base_without_a_shell_is_named_with_what_it_lacks() {
    let world = World::with(|root| {
        fs::remove_file(root.join("bin/sh")).unwrap();
        fs::remove_file(root.join("bin/bash")).unwrap();
    });
    for script in ["#!/bin/sh\necho\n", "echo\n"] {
        let ended = world.build(&world.yaml(script, "")).expect(2);
        assert_eq!(ended.error(), "the script is for /bin/sh, which the image tiny_base does not have");
        world.assert_left(&[]);
    }
    let shell = ended(&mut world.vimage(&["shell"], &world.yaml("#!/bin/sh\necho\n", ""))).expect(2);
    assert_eq!(shell.error(), "the image tiny_base has neither /bin/bash nor /bin/sh");
    world.assert_left(&[]);
}

#[test]
fn a_base_whose_shell_lacks_its_loader_is_to_blame() {
    let world = World::with(|root| {
        for folder in ["lib", "lib64"] {
            for name in names(&root.join(folder)).iter().filter(|name| name.starts_with("ld-")) {
                fs::remove_file(root.join(folder).join(name)).unwrap();
            }
        }
    });
    let hint = "hint: the image has to have its loader and libraries, too, and for this kind of machine\n";
    for (script, program) in [("#!/bin/bash\n", "/bin/bash"), ("echo\n", "/bin/sh")] {
        let ended = world.build(&world.yaml(script, "")).expect(2);
        let expected = format!(
            "the script is for {program}, which does not run in the image tiny_base: container image-new_1-"
        );
        assert!(ended.error().starts_with(&expected), "{}", ended.error());
        assert!(ended.error().contains(": cannot run /"), "{}", ended.error());
        assert!(ended.stderr.ends_with(&format!("  in the step script\n{hint}")), "{}", ended.stderr);
        world.assert_left(&[]);
    }
    let shell = ended(&mut world.vimage(&["shell"], &world.path("image.yaml"))).expect(2);
    assert!(
        shell.error().starts_with("the shell of the image tiny_base does not run: "),
        "{}",
        shell.error()
    );
    assert!(shell.stderr.ends_with(hint), "{}", shell.stderr);
    world.assert_left(&[]);
}

#[test]
fn a_base_with_something_else_in_the_place_of_a_folder_is_to_blame() {
    for (name, make) in [
        ("run", (|path| fs::write(path, "a file").unwrap()) as fn(&Path)),
        ("proc", |path| symlink("/nowhere", path).unwrap()),
    ] {
        let world = World::with(|root| make(&root.join(name)));
        let yaml = world.yaml("#!/bin/sh\n", "");
        for command in ["build", "shell"] {
            let ended = ended(&mut world.vimage(&[command], &yaml)).expect(1);
            let expected = "no container can be made of the image tiny_base: container image-new_1-";
            assert!(ended.error().starts_with(expected), "{}", ended.error());
            assert!(ended.error().contains(&format!(" /{name}: ")), "{}", ended.error());
            assert!(ended.stderr.contains("\nhint: dev, etc, proc, run, sys and tmp "), "{}", ended.stderr);
            assert!(!ended.stderr.contains("its output"), "{}", ended.stderr);
            world.assert_left(&[]);
        }
    }
}

#[test]
fn a_program_is_run_as_it_is_and_one_for_another_machine_is_refused() {
    let world = World::new();
    // Nothing but the right to be read.
    let script = world.path("a-program");
    fs::copy("/bin/touch", &script).unwrap();
    fs::set_permissions(&script, Permissions::from_mode(0o600)).unwrap();
    let yaml = world.yaml_of(&script.display().to_string(), "");
    // Without an operand, touch fails with code 1.
    assert_eq!(world.build(&yaml).expect(4).error(), "the script ended with exit code 1");
    assert!(world.log().contains("missing file operand"), "{}", world.log());

    let mut bytes = fs::read(&script).unwrap();
    // e_machine of the ELF header: EM_68K.
    bytes[18..20].copy_from_slice(&4_u16.to_ne_bytes());
    fs::write(&script, bytes).unwrap();
    let ended = world.build(&yaml).expect(2);
    assert!(
        ended.error().starts_with("the script is a program that does not run here: "),
        "{}",
        ended.error()
    );
    assert!(ended.stderr.contains("hint: it has to be for this kind of machine"), "{}", ended.stderr);
    world.assert_left(&[]);
}

#[test]
fn a_script_that_may_not_be_executed_and_has_no_last_newline_runs() {
    let world = World::new();
    let yaml = world.yaml("#!/bin/sh\necho it runs", "");
    fs::set_permissions(world.path("provision.sh"), Permissions::from_mode(0o400)).unwrap();
    assert_eq!(world.build(&yaml).expect(0).stdout, "it runs\n");
}

#[test]
fn a_script_that_is_too_large_is_refused() {
    let world = World::new();
    File::create(world.path("large")).unwrap().set_len((16 << 20) + 1).unwrap();
    let ended = world.build(&world.yaml_of(&world.path("large").display().to_string(), "")).expect(2);
    assert_eq!(
        ended.error(),
        format!(
            "script_url: {} is larger than 16777216 bytes, the most that is accepted",
            world.path("large").display()
        )
    );
    world.assert_left(&[]);
}

#[test]
fn a_script_comes_over_http_whole_or_not_at_all() {
    let world = World::new();
    let server = Server::start(|path| match path {
        "/whole.sh" => Answer::Body(b"#!/bin/sh\necho fetched\n".to_vec()),
        "/short.sh" => Answer::Short(b"#!/bin/sh\n".to_vec(), 1000),
        _ => Answer::Status("404 Not Found"),
    });
    let with_password = server.url("/nosuch.sh").replace("//", "//user:hunter2@");
    for (url, expected) in [
        (server.url("/nosuch.sh"), "/nosuch.sh: the server answered 404 Not Found"),
        (with_password, "/nosuch.sh: the server answered 404 Not Found"),
        (server.url("/short.sh"), "the connection ended after 10 of 1000 bytes"),
    ] {
        let ended = world.build(&world.yaml_of(&url, "")).expect(1);
        assert!(ended.error().starts_with("script_url: cannot fetch http://"), "{}", ended.error());
        assert!(ended.error().ends_with(expected), "{}", ended.error());
        assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
        world.assert_left(&[]);
    }
    assert_eq!(world.build(&world.yaml_of(&server.url("/whole.sh"), "")).expect(0).stdout, "fetched\n");
}

#[test]
fn what_the_file_says_of_the_environment_wins() {
    let world = World::new();
    let script = "#!/bin/sh\necho \"$PATH:$HOME:$TERM\"\n";
    let printed = |more: &str| world.build(&world.yaml(script, more)).expect(0).stdout;
    assert_eq!(
        printed(""),
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/root:test-terminal\n"
    );
    assert_eq!(printed("env: {PATH: /bin, HOME: /srv, TERM: dumb}"), "/bin:/srv:dumb\n");
}

#[test]
fn the_network_is_the_hosts_unless_it_is_not_wanted() {
    let world = World::new();
    let script = "#!/bin/bash\nwhile read -r name rest; do echo \"$name\"; done < /proc/net/dev\n";
    let interfaces = |options: &[&str], more: &str| {
        let mut vimage = world.vimage(&[&["build"], options].concat(), &world.yaml(script, more));
        let stdout = ended(&mut vimage).expect(0).stdout;
        stdout.lines().filter_map(|line| line.strip_suffix(':').map(str::to_owned)).collect::<Vec<_>>()
    };
    let host = fs::read_to_string("/proc/net/dev").unwrap();
    let of_host = interfaces(&[], "");
    assert_eq!(of_host.len(), host.lines().count() - 2, "{of_host:?}");
    assert_eq!(interfaces(&[], "network: none"), ["lo"]);
    let written = fs::read_to_string(world.out("new_1.yaml")).unwrap();
    assert!(written.contains("\nnetwork: none\n"), "{written}");
    assert_eq!(interfaces(&["--network", "none"], ""), ["lo"]);
    assert_eq!(interfaces(&["--network", "host"], "network: none"), of_host);
}

/// The manual's chapter *Stacks*: its file as it stands, but for the name of the server and the script's folder.
#[test]
fn the_manuals_example_runs_as_written() {
    let world = World::new();
    let base = fs::read(&world.base).unwrap();
    let server = Server::start(move |path| match path {
        "/build/ubuntu_trusty_pamfix.tar.gz" => Answer::Body(base.clone()),
        _ => Answer::Status("404 Not Found"),
    });
    let script = world.path("my_provisioning_script.sh");
    fs::write(&script, "#!/bin/sh\nset -ex\necho provisioned > /etc/provisioned\n").unwrap();
    let file = world.out("my_image.yaml");
    let text = "base_image_url: http://cdn.yougov.com/build/ubuntu_trusty_pamfix.tar.gz
base_image_name: ubuntu_trusty_pamfix
new_image_name: my_awesome_image_20141031
script_url: /path/to/my_provisioning_script.sh
env:
  PATH: /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
";
    let reachable = text
        .replace("http://cdn.yougov.com", &server.url(""))
        .replace("/path/to/my_provisioning_script.sh", &script.display().to_string());
    fs::write(&file, &reachable).unwrap();
    // In the folder of the file, as people do it.
    let ended_with = |command: &str| ended(&mut world.vimage(&[command], Path::new("my_image.yaml")));
    let build = ended_with("build").expect(0);
    assert_eq!(build.stdout, "+ echo provisioned\n");
    world.assert_left(&[
        "my_awesome_image_20141031.log",
        "my_awesome_image_20141031.tar.gz",
        "my_awesome_image_20141031.yaml",
        "my_image.yaml",
    ]);
    assert_eq!(fs::read_to_string(&file).unwrap(), reachable);
    assert!(world.path("root/images/ubuntu_trusty_pamfix/contents/bin/sh").exists());
    ended_with("shell").expect(0);
}
