//! Who a program in a container runs as: names are looked up in the container's own `etc/passwd` and `etc/group`,
//! and then in the host's.

use std::path::Path;

use thiserror::Error;

use crate::container::{ContainerError, Credentials, read_beneath};

/// The group of a user that is a bare number without an entry of its own: `nogroup`.
const NO_GROUP: u32 = 65534;
/// The largest `passwd` or `group` that is read, in bytes.
const LONGEST: u64 = 8 << 20;

/// Why a user or group is not known.
#[derive(Debug, Error)]
pub enum UserError {
    /// No `passwd` has it.
    #[error("there is no user {0:?}, neither in the container nor on the host")]
    UnknownUser(String),
    /// No `group` has it.
    #[error("there is no group {0:?}, neither in the container nor on the host")]
    UnknownGroup(String),
    /// The files cannot be read.
    #[error(transparent)]
    Read(#[from] ContainerError),
}

/// Finds a user, given by name or number, with its groups. The first of `roots` that knows a name decides, the host is
/// the last. `group`, by name or number, replaces the user's own.
pub fn find(roots: &[&Path], user: &str, group: Option<&str>) -> Result<Credentials, UserError> {
    find_in(roots, Path::new("/"), user, group)
}

fn find_in(roots: &[&Path], host: &Path, user: &str, group: Option<&str>) -> Result<Credentials, UserError> {
    let mut all: Vec<&Path> = roots.to_vec();
    all.push(host);
    let id = parse_id(user);
    let is_wanted = |entry: &Entry| id.map_or(entry.name == user, |uid| entry.uid == uid);
    let look = |root: &Path| Ok(passwd(root)?.into_iter().find(is_wanted));
    let of_container = first(roots, look)?;
    let is_of_container = of_container.is_some();
    let of_either = match of_container {
        Some(entry) => Some(entry),
        None => look(host)?,
    };
    let found = match (of_either, id) {
        (Some(entry), _) => entry,
        (None, Some(uid)) => Entry { name: String::new(), uid, gid: NO_GROUP },
        (None, None) => return Err(UserError::UnknownUser(user.to_owned())),
    };
    let gid = match group {
        None => found.gid,
        Some(group) => match parse_id(group) {
            Some(gid) => gid,
            None => {
                first(&all, |root| Ok(groups(root)?.into_iter().find(|entry| entry.name == group)))?
                    .ok_or_else(|| UserError::UnknownGroup(group.to_owned()))?
                    .gid
            }
        },
    };
    let further = |root: &Path| {
        let mine = |entry: &Group| !found.name.is_empty() && entry.members.contains(&found.name);
        let list: Vec<u32> = groups(root)?.into_iter().filter(mine).map(|entry| entry.gid).collect();
        Ok((!list.is_empty()).then_some(list))
    };
    // A user of the container is not the host's user who happens to have the same name.
    let mut further = first(if is_of_container { roots } else { &all }, further)?.unwrap_or_default();
    further.retain(|other| *other != gid);
    further.sort_unstable();
    further.dedup();
    Ok(Credentials { uid: found.uid, gid, groups: further })
}

fn first<T>(
    roots: &[&Path],
    look: impl Fn(&Path) -> Result<Option<T>, UserError>,
) -> Result<Option<T>, UserError> {
    for root in roots {
        if let Some(found) = look(root)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// A number that the kernel takes for a user or group; all ones means "leave it" there.
fn parse_id(text: &str) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|id| *id != u32::MAX)
}

struct Entry {
    name: String,
    uid: u32,
    gid: u32,
}

struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

fn lines(root: &Path, file: &str) -> Result<Vec<Vec<String>>, UserError> {
    let text = read_beneath(root, Path::new(file), LONGEST)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    Ok(text.lines().map(|line| line.split(':').map(str::to_owned).collect()).collect())
}

/// Lines that make no sense are passed over, as every C library does.
fn passwd(root: &Path) -> Result<Vec<Entry>, UserError> {
    let entry = |fields: Vec<String>| {
        let (uid, gid) = (parse_id(fields.get(2)?)?, parse_id(fields.get(3)?)?);
        Some(Entry { name: fields.into_iter().next()?, uid, gid })
    };
    Ok(lines(root, "etc/passwd")?.into_iter().filter_map(entry).collect())
}

fn groups(root: &Path) -> Result<Vec<Group>, UserError> {
    let entry = |fields: Vec<String>| {
        let members = fields.get(3).map(|list| list.split(',').map(str::to_owned).collect());
        Some(Group {
            gid: parse_id(fields.get(2)?)?,
            name: fields.into_iter().next()?,
            members: members.unwrap_or_default(),
        })
    };
    Ok(lines(root, "etc/group")?.into_iter().filter_map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(
            dir.path().join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nnonsense\nbad:x:y:1::/:\napp:x:1234:1235::/:/bin/sh\n",
        )
        .unwrap();
        std::fs::write(
            dir.path().join("etc/group"),
            "root:x:0:\nmedia:x:70:bin,app\napp:x:1235:app\nnew:x:71:\n",
        )
        .unwrap();
        dir
    }

    #[test]
    fn the_container_decides_before_the_host() {
        let image = image();
        let find = |user, group| find(&[image.path()], user, group);
        let app = Credentials { uid: 1234, gid: 1235, groups: vec![70] };
        assert_eq!(find("app", None).unwrap(), app);
        assert_eq!(find("1234", None).unwrap(), app);
        assert_eq!(
            find("app", Some("new")).unwrap(),
            Credentials { uid: 1234, gid: 71, groups: vec![70, 1235] }
        );
        assert_eq!(find("app", Some("99")).unwrap().gid, 99);
        assert_eq!(find("nobody", None).unwrap().uid, 65534);
        assert_eq!(
            find("54321", None).unwrap(),
            Credentials { uid: 54321, gid: NO_GROUP, groups: Vec::new() }
        );
    }

    #[test]
    fn a_user_of_the_container_gets_no_groups_of_the_hosts_user_of_that_name() {
        let host = image();
        let container = tempfile::tempdir().unwrap();
        std::fs::create_dir(container.path().join("etc")).unwrap();
        std::fs::write(container.path().join("etc/passwd"), "app:x:5:6::/:/bin/sh\n").unwrap();
        let found = find_in(&[container.path()], host.path(), "app", None).unwrap();
        assert_eq!(found, Credentials { uid: 5, gid: 6, groups: Vec::new() });
    }

    #[test]
    fn unknown_names_are_named() {
        let image = image();
        for (user, group, expected) in [
            ("nosuch", None, "there is no user \"nosuch\""),
            ("bad", None, "there is no user \"bad\""),
            ("", None, "there is no user \"\""),
            ("4294967295", None, "there is no user \"4294967295\""),
            ("-1", None, "there is no user \"-1\""),
            ("app", Some("nosuch"), "there is no group \"nosuch\""),
        ] {
            let error = find(&[image.path()], user, group).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
