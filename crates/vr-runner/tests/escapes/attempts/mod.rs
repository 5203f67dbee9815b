//! The attempts that are made from inside a container: what each tries, what stops it, and how the "host" can tell.

mod calls;
mod files;
mod kernel_files;
mod links;
mod processes;
mod rights;
mod surroundings;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use vr_runner::container::{BindMount, RootFs, System};

use super::defences::Defence::{self, *};
use super::scene::{Outcome, Scene, Who};

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Attempt> {
    let ideas = [
        files::ATTEMPTS,
        processes::ATTEMPTS,
        kernel_files::ATTEMPTS,
        calls::ATTEMPTS,
        surroundings::ATTEMPTS,
        rights::ATTEMPTS,
        links::ATTEMPTS,
    ];
    ideas.into_iter().flatten()
}

/// Tells from what the "host" has, or from a secret in what the attack said, whether it succeeded.
pub type Evidence = Box<dyn Fn(&Scene, &Outcome) -> bool>;

/// An attempt by one kind of attacker.
pub struct Case {
    pub who: Who,
    /// Without these, it succeeds. When there are none, the kernel itself stops it whatever we do.
    pub stopped_by: &'static [Defence],
    /// Each of these stops it without the others of `stopped_by`.
    pub alone: &'static [Defence],
}

/// Something that no container may do.
pub struct Attempt {
    pub name: &'static str,
    pub cases: &'static [Case],
    /// Switched off in every try, as they would stop it before it meets what it is about.
    pub beneath: &'static [Defence],
    /// What this machine lacks, if without it the attempt cannot succeed.
    pub lacks: fn() -> Option<&'static str>,
    /// It attacks while the container is made, which therefore need not start.
    pub at_start: bool,
    /// It attacks the program that makes containers, which has to be a copy of this one.
    pub in_copy: bool,
    /// Makes the victims and completes the container.
    pub arrange: fn(&mut Scene) -> Evidence,
    /// What runs inside; see [`super::scene`].
    pub script: &'static str,
}

const PLAIN: Attempt = Attempt {
    name: "",
    cases: &[],
    beneath: &[],
    lacks: || None,
    at_start: false,
    in_copy: false,
    arrange: |_| says_escaped(),
    script: "",
};

const fn case(who: Who, stopped_by: &'static [Defence]) -> Case {
    Case { who, stopped_by, alone: stopped_by }
}

const fn root(stopped_by: &'static [Defence]) -> Case {
    case(Who::Root, stopped_by)
}

const fn user(stopped_by: &'static [Defence]) -> Case {
    case(Who::User, stopped_by)
}

const fn rootless(stopped_by: &'static [Defence]) -> Case {
    case(Who::Rootless, stopped_by)
}

const fn together(who: Who, stopped_by: &'static [Defence], alone: &'static [Defence]) -> Case {
    Case { who, stopped_by, alone }
}

/// Root's attempt at what only root of the host may do.
const ROOT_OF_HOST: Case = root(&[UserNamespace, DropCapabilities, Seccomp]);
/// For calls that anybody may make.
const ANYBODYS_CALL: [Case; 3] = [root(&[Seccomp]), user(&[Seccomp]), rootless(&[Seccomp])];
/// Only root of the host may call it, and whoever is refused cannot tell by whom.
const ROOTS_CALL: [Case; 3] = [ROOT_OF_HOST, user(&[]), rootless(&[])];

fn missing(file: &'static str) -> Option<&'static str> {
    (!Path::new(file).exists()).then_some(file)
}

fn says_secret() -> Evidence {
    Box::new(|scene, outcome| outcome.output.contains(&scene.secret))
}

fn says_escaped() -> Evidence {
    Box::new(|_, outcome| outcome.output.contains("escaped"))
}

/// Everything about a folder and what is in it that an attacker might change.
pub fn look_at(path: &Path) -> String {
    let found = fs::symlink_metadata(path).unwrap();
    let content = if found.is_file() { fs::read(path).unwrap() } else { Vec::new() };
    let owner = (found.uid(), found.gid());
    let mut all =
        format!("{} {:o} {owner:?} {}\n", path.display(), found.mode(), String::from_utf8_lossy(&content));
    if found.is_dir() {
        let mut below: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
        below.sort();
        all.extend(below.iter().map(|path| look_at(path)));
    }
    all
}

/// The folder of the victims is another one afterwards.
fn changes(scene: &Scene, folder: &str) -> Evidence {
    let folder = scene.path(folder);
    let before = look_at(&folder);
    Box::new(move |_, _| look_at(&folder) != before)
}

/// A container that has its own system, as if it were of an image, made of the host's.
fn own_system(scene: &mut Scene) {
    let usr = BindMount { source: "/usr".into(), target: "/usr".into(), read_only: true };
    scene.spec.mounts.push(usr);
    scene.spec.system = System::Own;
    for name in ["bin", "lib", "lib64"] {
        symlink(format!("usr/{name}"), scene.path("root").join(name)).unwrap();
    }
}

fn disk(scene: &mut Scene) -> Evidence {
    scene.disk();
    says_secret()
}

/// What is in the root comes from a layer below it.
fn root_is_an_image(scene: &mut Scene) {
    for name in ["upper", "work"] {
        fs::create_dir(scene.path(name)).unwrap();
    }
    let (upper, work) = (scene.path("upper"), scene.path("work"));
    scene.spec.root = RootFs::Overlay { lowers: vec![scene.path("root")], upper, work };
}
