//! Which buildpacks build an app, and what they said about it.

use serde_yaml::{Mapping, Value};
use vr_common::build_data::BuildData;
use vr_common::vcs::{RepoUrl, VcsError};

/// The keys of release data whose entries are put together when several buildpacks have them.
const MERGED: [&str; 2] = ["config_vars", "default_process_types"];

/// Which buildpacks build an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// All, one after the other.
    All,
    /// The only one there is, without being asked.
    Given,
    /// The first whose `bin/detect` says yes.
    FirstThatMatches,
}

impl Choice {
    /// What `build.yaml` says, with the buildpacks.
    pub(crate) fn of(data: &BuildData) -> Result<(Self, Vec<RepoUrl>), VcsError> {
        let (choice, texts) = match (&data.buildpacks, &data.buildpack_url, &data.buildpack_urls) {
            (Some(urls), _, _) if !urls.is_empty() => (Self::All, urls.as_slice()),
            (_, Some(url), _) => (Self::Given, std::slice::from_ref(url)),
            (_, None, urls) => (Self::FirstThatMatches, urls.as_deref().unwrap_or_default()),
        };
        Ok((choice, texts.iter().map(|text| RepoUrl::parse(text)).collect::<Result<_, _>>()?))
    }

    /// The variable that tells the script.
    pub(crate) fn variable(self) -> &'static str {
        match self {
            Self::All => "BUILDPACK_CHAIN",
            Self::Given => "BUILDPACK_DIR",
            Self::FirstThatMatches => "BUILDPACK_DIRS",
        }
    }
}

/// The release data of several buildpacks, in their order, as one: the last one's, together with the config vars and
/// the processes of those before it that it does not have.
pub(crate) fn merge(releases: impl IntoIterator<Item = Mapping>) -> Mapping {
    let mut merged = Mapping::new();
    for mut release in releases {
        for key in MERGED {
            if let (Some(Value::Mapping(before)), Some(Value::Mapping(now))) =
                (merged.get(key), release.get_mut(key))
            {
                for (name, value) in before {
                    if !now.contains_key(name) {
                        now.insert(name.clone(), value.clone());
                    }
                }
            } else if let (Some(before), None) = (merged.get(key), release.get(key)) {
                release.insert(key.into(), before.clone());
            }
        }
        merged = release;
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(releases: &[&str]) -> String {
        let releases = releases.iter().map(|text| serde_yaml::from_str(text).unwrap());
        vr_common::yaml::to_string(&merge(releases)).unwrap()
    }

    #[test]
    fn later_buildpacks_win_and_earlier_ones_are_kept() {
        assert_eq!(merged(&[]), "{}\n");
        assert_eq!(merged(&["{a: 1, config_vars: {A: 1}}"]), "a: 1\nconfig_vars:\n  A: 1\n");
        assert_eq!(
            merged(&["{addons: [x], config_vars: {A: 1, B: 1}}", "{}", "{config_vars: {B: 2}}"]),
            "config_vars:\n  B: 2\n  A: 1\n"
        );
        assert_eq!(
            merged(&["{default_process_types: {web: a, worker: b}}", "{default_process_types: {web: c}}"]),
            "default_process_types:\n  web: c\n  worker: b\n"
        );
    }
}
