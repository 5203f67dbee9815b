//! Builds by `vbuild`, started as its users do, and what it says of their steps.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use vr_common::process::command;

use super::repositories::Repo;
use crate::bench::programs::clocked;
use crate::bench::stats::Samples;
use crate::bench::tar::Tarball;
use crate::bench::world::World;

/// The vbuild to measure, and where.
#[derive(Debug)]
pub struct Vbuild<'a> {
    /// Where its folders are.
    pub world: &'a World,
    program: PathBuf,
}

/// What to build.
#[derive(Debug)]
pub struct App {
    file: PathBuf,
    output: PathBuf,
}

/// A build that succeeded.
#[derive(Debug)]
pub struct Built {
    /// From the start of vbuild to its end.
    pub wall: Duration,
    /// Its steps in order, as it measured them itself, in whole milliseconds.
    pub steps: Vec<(String, Duration)>,
    /// What came out.
    pub tarball: PathBuf,
    /// All of its standard output.
    pub said: String,
}

impl<'a> Vbuild<'a> {
    /// The given one in the given world.
    pub fn new(world: &'a World, program: PathBuf) -> Self {
        Self { world, program }
    }

    /// An app of that name: a repository, at its tag v1, and the buildpack that is asked whether it can build it.
    pub fn app(&self, name: &str, repo: &Repo, buildpack: &Repo, image: Option<&Tarball>) -> Result<App> {
        let file = self.world.path().join(format!("{name}.yaml"));
        let mut text = format!(
            "app_name: {name}\napp_repo_type: {}\napp_repo_url: {}\nversion: v1\nbuildpack_urls: [{}]\n",
            repo.kind,
            repo.path.display(),
            buildpack.path.display()
        );
        if let Some(image) = image {
            let (name, url) = (image.name(), image.path.display());
            text.push_str(&format!("image_name: {name}\nimage_url: {url}\n"));
        }
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(App { file, output: self.world.path().join(format!("{name}-output")) })
    }

    /// Builds with all that earlier builds left for it.
    pub fn build(&self, app: &App) -> Result<Built> {
        self.build_at(app, &self.world.root())
    }

    /// Builds on a machine that has built nothing yet; `number` is different each time.
    pub fn build_first(&self, app: &App, number: u32) -> Result<Built> {
        self.build_at(app, &self.world.path().join(format!("apps-{number}")))
    }

    fn build_at(&self, app: &App, root: &Path) -> Result<Built> {
        let mut vbuild = command(&self.program);
        // Nothing of the caller's settings.
        vbuild.env("VR_ROOT", root).env_remove("RAPTOR_HOME").env_remove("VBUILD_CACHE_MAX");
        vbuild.arg("build").arg(&app.file);
        let (wall, said) = clocked(vbuild.arg("--json").arg("--output").arg(&app.output))?;
        let line = said.lines().last().unwrap_or_default();
        let (steps, tarball) =
            parse(line).with_context(|| format!("the last line of vbuild is not as expected: {line}"))?;
        Ok(Built { wall, steps, tarball, said })
    }
}

/// The steps, and the tarball.
fn parse(line: &str) -> Option<(Vec<(String, Duration)>, PathBuf)> {
    let line: Value = serde_json::from_str(line).ok()?;
    let build = line.get("build")?;
    let steps = build.get("steps")?.as_array()?.iter().map(|step| {
        let seconds = Duration::try_from_secs_f64(step.get("seconds")?.as_f64()?).ok()?;
        Some((step.get("name")?.as_str()?.to_owned(), seconds))
    });
    Some((steps.collect::<Option<_>>()?, build.get("tarball")?.as_str()?.into()))
}

/// Many builds of one app.
#[derive(Debug, Default)]
pub struct Builds {
    /// From the start to the end.
    pub wall: Samples,
    /// The steps, in order.
    pub steps: Vec<(String, Samples)>,
    /// What is not in a step.
    pub rest: Samples,
}

impl Builds {
    /// Adds one.
    pub fn push(&mut self, built: &Built) {
        self.wall.push(built.wall);
        for (name, took) in &built.steps {
            let index = self.steps.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
                self.steps.push((name.clone(), Samples::default()));
                self.steps.len() - 1
            });
            self.steps[index].1.push(*took);
        }
        let in_steps = built.steps.iter().map(|(_, took)| *took).sum();
        self.rest.push(built.wall.saturating_sub(in_steps));
    }

    /// The median of a step; none when there is no such step.
    pub fn step(&self, name: &str) -> Option<Duration> {
        self.steps.iter().find(|(known, _)| known == name).map(|(_, samples)| samples.median())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_are_read_and_what_is_in_none_is_the_rest() {
        let line = r#"{"ok":true,"build":{"tarball":"/out/build.tar.gz","steps":[{"name":"checkout","seconds":0.02},
            {"name":"pack","seconds":0.1}],"seconds":0.13}}"#;
        let (steps, tarball) = parse(line).unwrap();
        assert_eq!(tarball, Path::new("/out/build.tar.gz"));
        let built = Built { wall: Duration::from_millis(150), steps, tarball, said: String::new() };
        let mut builds = Builds::default();
        builds.push(&built);
        assert_eq!(builds.step("pack"), Some(Duration::from_millis(100)));
        assert_eq!(builds.step("cache"), None);
        assert_eq!(builds.rest.median(), Duration::from_millis(30));
        assert!(parse(r#"{"ok":false,"exit_code":4}"#).is_none());
        assert!(parse("").is_none());
    }
}
