//! The numbers as Markdown, with the marks to reach.

use std::fmt::{Result, Write as _};
use std::time::Duration;

use super::cached::{self, Cached};
use super::packing::{Packing, Row};
use super::small::Small;
use super::unpacking::Unpacking;
use super::vbuild::Builds;
use crate::bench::machine::Machine;
use crate::bench::markdown::{MARKS, mark, mb, ms};
use crate::bench::stats::Samples;

/// The marks: a whole build by a buildpack that does nothing, and what a large cache may add to one.
const AROUND_THE_BUILDPACK: Duration = Duration::from_millis(150);
const WITH_A_CACHE: Duration = Duration::from_millis(300);

/// Everything that was measured.
#[derive(Debug)]
pub struct Report {
    /// Where and when.
    pub machine: Machine,
    /// Builds of small apps.
    pub small: Small,
    /// A large tarball.
    pub packing: Packing,
    /// A large image.
    pub unpacking: Unpacking,
    /// A large cache.
    pub cached: Cached,
}

impl Report {
    /// All tables.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.machine.write(&mut text);
        let _ = self.write_marks(&mut text);
        let _ = self.write_small(&mut text);
        let _ = self.write_packing(&mut text);
        let _ = self.write_unpacking(&mut text);
        let _ = self.write_cached(&mut text);
        text
    }

    fn write_marks(&self, to: &mut String) -> Result {
        writeln!(to, "{MARKS}")?;
        let files = self.small.files;
        for app in self.small.apps.iter().filter(|app| app.name.starts_with("git")) {
            let (wall, limit) = (app.builds.wall.median(), AROUND_THE_BUILDPACK);
            let words = format!("a warm build of {files} files ({}) at most {}", app.name, ms(limit));
            mark(to, &words, &ms(wall), wall <= limit)?;
        }
        if let Some(pigz) = self.packing.peer("pigz") {
            let (ours, pigz) = (self.packing.vbuild.samples.median(), pigz.samples.median());
            let words = format!("a tarball of {} no slower than `tar \\| pigz`", mb(self.packing.size));
            mark(to, &words, &against(ours, pigz), ours <= pigz)?;
        }
        let (setup, tar) = (self.unpacking.setup.median(), self.unpacking.tar.median());
        let words = format!("an image of {} unpacked faster than by `tar xzf`", mb(self.packing.size));
        mark(to, &words, &against(setup, tar), setup < tar)?;
        let (full, empty) = (self.cached.full.wall.median(), self.cached.empty.wall.median());
        let words =
            format!("a build with a cache of {} at most {} longer", mb(cached::SIZE), ms(WITH_A_CACHE));
        let measured = format!("{} ({})", longer(full, empty), against(full, empty));
        mark(to, &words, &measured, full.saturating_sub(empty) <= WITH_A_CACHE)?;
        writeln!(to)
    }

    fn write_small(&self, to: &mut String) -> Result {
        let Small { files, size, rounds, apps, by_hand, left_out } = &self.small;
        writeln!(to, "### An app of {files} files, {}, and a buildpack that does nothing\n", mb(*size))?;
        writeln!(to, "{rounds} times each, in turn, after 2 builds that do not count.\n")?;
        writeln!(to, "| | median | p90 | first build |\n| --- | ---: | ---: | ---: |")?;
        for app in apps {
            let (wall, first) = (&app.builds.wall, app.first.median());
            writeln!(
                to,
                "| **`vbuild build`**, {} | {} | {} | {} |",
                app.name,
                ms(wall.median()),
                ms(wall.p90()),
                ms(first)
            )?;
        }
        for (name, samples) in by_hand {
            writeln!(to, "| {name} | {} | {} | |", ms(samples.median()), ms(samples.p90()))?;
        }
        writeln!(to)?;
        let columns: Vec<_> = apps.iter().map(|app| (app.name, &app.builds)).collect();
        write_steps(to, &columns)?;
        if !left_out.is_empty() {
            writeln!(to, "Left out: {}.\n", left_out.join("; "))?;
        }
        Ok(())
    }

    fn write_packing(&self, to: &mut String) -> Result {
        let Packing { files, size, rounds, vbuild, peers, left_out } = &self.packing;
        writeln!(to, "### A tarball of {files} files, {}\n", mb(*size))?;
        writeln!(to, "{rounds} times each, in turn.\n")?;
        writeln!(to, "| | median | p90 | until it is on the disk | tarball |")?;
        writeln!(to, "| --- | ---: | ---: | ---: | ---: |")?;
        let mut row = |name: &str, Row { samples, on_disk, bytes }: &Row| {
            let (median, p90) = (ms(samples.median()), ms(samples.p90()));
            writeln!(to, "| {name} | {median} | {p90} | {} | {} |", ms(on_disk.median()), mb(*bytes))
        };
        row("**`vbuild build`**, its step *pack*", vbuild)?;
        for (name, peer) in peers {
            row(&format!("`tar \\| {name}`"), peer)?;
        }
        writeln!(to)?;
        if !left_out.is_empty() {
            writeln!(to, "Left out: {}.\n", left_out.join("; "))?;
        }
        Ok(())
    }

    fn write_unpacking(&self, to: &mut String) -> Result {
        let Unpacking { packed, tar, tar_on_disk, setup, again } = &self.unpacking;
        writeln!(to, "### An image of {} in a tarball of {}\n", mb(self.packing.size), mb(*packed))?;
        writeln!(to, "{} times each, in turn.\n", tar.len())?;
        writeln!(to, "| | median | p90 |\n| --- | ---: | ---: |")?;
        let rows: [(&str, &Samples); 4] = [
            ("**`vrun setup`**, the image's tarball there", setup),
            ("the same with the image unpacked before", again),
            ("`tar xzf`", tar),
            ("`tar xzf` until all is on the disk, as setup sees to", tar_on_disk),
        ];
        for (name, samples) in rows {
            writeln!(to, "| {name} | {} | {} |", ms(samples.median()), ms(samples.p90()))?;
        }
        writeln!(to)
    }

    fn write_cached(&self, to: &mut String) -> Result {
        let Cached { rounds, empty, full } = &self.cached;
        writeln!(to, "### A cache of {} files, {}\n", cached::FILES, mb(cached::SIZE))?;
        writeln!(to, "{rounds} times each, in turn. The buildpack changes one of the files.\n")?;
        writeln!(to, "| | median | p90 |\n| --- | ---: | ---: |")?;
        for (name, builds) in [("with the cache", full), ("with an empty cache", empty)] {
            let wall = &builds.wall;
            writeln!(to, "| **`vbuild build`**, {name} | {} | {} |", ms(wall.median()), ms(wall.p90()))?;
        }
        writeln!(to)?;
        write_steps(to, &[("with the cache", full), ("with an empty cache", empty)])
    }
}

/// A table of all steps' medians, in whole milliseconds, as vbuild counts them.
fn write_steps(to: &mut String, columns: &[(&str, &Builds)]) -> Result {
    let mut names: Vec<&str> = Vec::new();
    for (_, builds) in columns {
        // A step that others lack comes after the one that it follows here.
        let mut place = 0;
        for (name, _) in &builds.steps {
            match names.iter().position(|known| known == name) {
                Some(known) => place = known + 1,
                None => {
                    names.insert(place, name);
                    place += 1;
                }
            }
        }
    }
    write!(to, "| step |")?;
    for (column, _) in columns {
        write!(to, " {column} |")?;
    }
    writeln!(to, "\n| --- |{}", " ---: |".repeat(columns.len()))?;
    let whole = |took: Duration| format!("{:.0} ms", took.as_secs_f64() * 1000.0);
    for name in names {
        write!(to, "| {name} |")?;
        for (_, builds) in columns {
            write!(to, " {} |", builds.step(name).map(whole).unwrap_or_default())?;
        }
        writeln!(to)?;
    }
    write!(to, "| in no step |")?;
    for (_, builds) in columns {
        write!(to, " {} |", whole(builds.rest.median()))?;
    }
    writeln!(to, "\n")
}

fn against(ours: Duration, theirs: Duration) -> String {
    format!("{} against {}", ms(ours), ms(theirs))
}

/// How much longer, which may be nothing or less.
fn longer(one: Duration, other: Duration) -> String {
    if one < other { format!("-{}", ms(other - one)) } else { ms(one - other) }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::bench::builder::vbuild::Built;

    #[test]
    fn steps_of_all_builds_are_in_the_order_in_which_they_are_done() {
        let builds = |names: &[&str]| {
            let steps = names.iter().map(|name| ((*name).to_owned(), Duration::from_millis(5))).collect();
            let mut builds = Builds::default();
            let wall = Duration::from_millis(100);
            builds.push(&Built { wall, steps, tarball: PathBuf::new(), said: String::new() });
            builds
        };
        let (one, other) =
            (builds(&["checkout", "compile", "pack"]), builds(&["image", "checkout", "restore"]));
        let mut text = String::new();
        write_steps(&mut text, &[("one", &one), ("other", &other)]).unwrap();
        assert_eq!(
            text,
            "| step | one | other |\n| --- | ---: | ---: |\n| image |  | 5 ms |\n| checkout | 5 ms | 5 ms |\n\
             | restore |  | 5 ms |\n| compile | 5 ms |  |\n| pack | 5 ms |  |\n| in no step | 85 ms | 85 ms |\n\n"
        );
    }

    #[test]
    fn a_build_may_take_less_long_than_the_other() {
        let [one, other] = [30, 20].map(Duration::from_millis);
        assert_eq!(longer(one, other), "10.00 ms");
        assert_eq!(longer(other, one), "-10.00 ms");
    }
}
