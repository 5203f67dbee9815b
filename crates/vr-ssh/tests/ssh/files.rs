//! Files on the host.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use vr_ssh::{As, SshError, SshSettings};
use vr_testing::{Sshd, SshdOptions, SudoRule, names};

use crate::{host, settings};

#[tokio::test]
async fn files_with_odd_names_are_written_read_and_removed() {
    let sshd = Sshd::start(SshdOptions::default());
    let host = host(&sshd, settings(&sshd));
    let all: Vec<u8> = (0..2_000_000).map(|at| (at % 256) as u8).collect();
    let odd =
        ["plain", "it's", "a \"b\" $HOME `id`", "new\nline\n", "-rf", "*", "\u{e4}", " ", "a\\b", "x;y&z|#"];
    for name in odd {
        let path = sshd.home().join(name);
        assert!(!host.exists(&path, As::User).await.unwrap());
        assert_eq!(host.read_file(&path, 10, As::User).await.unwrap(), None);
        host.write_file(&path, all.clone(), 0o640, As::User).await.unwrap();
        let data = fs::metadata(&path).unwrap();
        assert_eq!((data.permissions().mode() & 0o7777, data.uid()), (0o640, sshd.uid()), "{name:?}");
        assert!(fs::read(&path).unwrap() == all);
        assert!(host.read_file(&path, all.len(), As::User).await.unwrap().unwrap() == all);
        assert!(host.exists(&path, As::User).await.unwrap());
        // Again, with nothing in it.
        host.write_file(&path, "", 0o600, As::User).await.unwrap();
        assert_eq!(host.read_file(&path, 0, As::User).await.unwrap(), Some(Vec::new()));
        assert_eq!(names(&sshd.home()), [name], "nothing else is there");
        host.remove(&path, As::User).await.unwrap();
        host.remove(&path, As::User).await.unwrap();
        assert!(!path.exists());
    }
}

#[tokio::test]
async fn what_cannot_be_done_is_said_and_leaves_nothing() {
    let sshd = Sshd::start(SshdOptions::default());
    let host = host(&sshd, settings(&sshd));
    let home = sshd.home();
    let absent = host.write_file(&home.join("no/file"), "x", 0o644, As::User).await.unwrap_err().to_string();
    assert!(
        absent.starts_with(&format!("writing {} on 127.0.0.1 failed", home.join("no/file").display())),
        "{absent}"
    );
    assert!(absent.contains("No such file"), "{absent}");
    let folder = host.write_file(&home, "x", 0o644, As::User).await.unwrap_err().to_string();
    assert!(folder.contains("is a folder"), "{folder}");
    fs::write(home.join("long"), "0123456789").unwrap();
    let long = host.read_file(&home.join("long"), 9, As::User).await.unwrap_err();
    assert!(matches!(long, SshError::TooLong { limit: 9, .. }));
    assert!(host.read_file(&home, 9, As::User).await.unwrap_err().to_string().contains("is no file"));
    assert!(matches!(host.exists("etc".as_ref(), As::User).await, Err(SshError::Invalid { .. })));
    // A folder that the user may not look into is not an absent file.
    let secret = sshd.dir().join("secret");
    fs::create_dir(&secret).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o700)).unwrap();
    let refused = host.exists(&secret.join("file"), As::User).await.unwrap_err().to_string();
    assert!(refused.contains("Permission denied"), "{refused}");
    host.read_file(&secret.join("file"), 9, As::User).await.unwrap_err();
    assert_eq!(names(&home), ["long"]);
}

#[tokio::test]
async fn a_link_is_replaced_and_not_followed() {
    let sshd = Sshd::start(SshdOptions::default());
    let host = host(&sshd, settings(&sshd));
    let (link, other) = (sshd.home().join("link"), sshd.home().join("other"));
    fs::write(&other, "other").unwrap();
    symlink(&other, &link).unwrap();
    host.write_file(&link, "own", 0o644, As::User).await.unwrap();
    assert_eq!(
        (fs::read_to_string(&link).unwrap(), fs::read_to_string(&other).unwrap()),
        ("own".into(), "other".into())
    );
    assert!(fs::symlink_metadata(&link).unwrap().is_file());
    symlink("/no/where", sshd.home().join("dangling")).unwrap();
    assert!(host.exists(&sshd.home().join("dangling"), As::User).await.unwrap());
}

#[tokio::test]
async fn roots_files() {
    let sshd = Sshd::start(SshdOptions { sudo: SudoRule::WithPassword, ..SshdOptions::default() });
    let sudo_password = Some(vr_common::secret::Secret::new(sshd.password()));
    let host = host(&sshd, SshSettings { sudo: Some(true), sudo_password, ..settings(&sshd) });
    let folder = sshd.dir().join("roots");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    let path = folder.join("proc's.conf");
    assert!(!host.exists(&path, As::Root).await.unwrap());
    host.write_file(&path, "[program]\n", 0o600, As::Root).await.unwrap();
    let data = fs::metadata(&path).unwrap();
    assert_eq!((data.uid(), data.mode() & 0o7777), (0, 0o600));
    assert_eq!(host.read_file(&path, 100, As::Root).await.unwrap().unwrap(), b"[program]\n");
    host.write_file(&path, "x", 0o600, As::User).await.unwrap_err();
    host.remove(&path, As::Root).await.unwrap();
    assert_eq!(names(&folder), [""; 0]);
}
