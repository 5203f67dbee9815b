//! `build.yaml` and `build_result.yaml`: what vbuild is asked for and what came out.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_yaml::{Mapping, Value};

use crate::names::{AppName, Version};
use crate::proc_data::{Network, Scalar, is_file_name, is_md5, is_variable_name, prefer_texts};
use crate::vcs::RepoType;
use crate::yaml::{self, YamlError};

/// The contents of `build.yaml`; `build_result.yaml` is the same with more keys set and can be fed back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BuildData {
    /// The app.
    pub app_name: AppName,
    /// Where its code is.
    pub app_repo_url: String,
    /// `git` or `hg`.
    pub app_repo_type: RepoType,
    /// A tag, branch or hash. Must be a text: `version: 9.0` needs quotes.
    pub version: Version,
    /// The buildpack to use, without asking its `bin/detect`; `#fragment` is its revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buildpack_url: Option<String>,
    /// Buildpacks to try in order; ignored when `buildpack_url` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buildpack_urls: Option<Vec<String>>,
    /// Buildpacks that build the app one after the other; wins over both keys above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buildpacks: Option<Vec<String>>,
    /// The buildpack's full revision hash, written by a build. Of several, the last one's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buildpack_version: Option<String>,
    /// The OS image to build in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_url: Option<String>,
    /// Its folder name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_name: Option<String>,
    /// Its md5 sum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_md5: Option<String>,
    /// md5 of `build.tar.gz`, written by a build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_md5: Option<String>,
    /// What `bin/release` printed, written by a build; its `config_vars` are the build's environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release_data: Option<Value>,
    /// The user that runs the build; `nobody` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Scalar>,
    /// What buildpacks are told as `STACK`; the image's name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack: Option<String>,
    /// The app's settings for the build, which buildpacks find as files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, Scalar>>,
    /// The network that the build sees.
    #[serde(default, skip_serializing_if = "Network::is_host")]
    pub network: Network,
    /// Every key that is not named above.
    #[serde(skip)]
    pub unknown: Mapping,
}

const KNOWN: &[&str] = &[
    "app_name",
    "app_repo_url",
    "app_repo_type",
    "version",
    "buildpack_url",
    "buildpack_urls",
    "buildpacks",
    "buildpack_version",
    "image_url",
    "image_name",
    "image_md5",
    "build_md5",
    "release_data",
    "user",
    "stack",
    "env",
    "network",
];

impl BuildData {
    /// Reads a file.
    pub fn load(path: &Path) -> Result<Self, YamlError> {
        Self::parse(&path.display().to_string(), &yaml::read_file(path)?)
    }

    /// Parses and checks a text; `name` begins every error.
    pub fn parse(name: &str, text: &str) -> Result<Self, YamlError> {
        let mapping = yaml::parse_mapping(name, text)?;
        let invalid = |message: String| YamlError::Invalid { name: name.to_owned(), message };
        if let Some(version) = mapping.get("version").filter(|v| !v.is_string()) {
            return Err(invalid(format!(
                "version: expected a text, found {} (put it in quotes)",
                yaml::kind(version)
            )));
        }
        let mut data: Self = yaml::parse(name, text)?;
        // It has no type of ours, so it means what it means to the buildpack that wrote it.
        data.release_data = data.release_data.and_then(|_| mapping.get("release_data").cloned());
        if let (Some(env), Some(Value::Mapping(mapping))) = (&mut data.env, mapping.get("env")) {
            prefer_texts(env, mapping);
        }
        data.unknown = mapping
            .into_iter()
            .filter(|(key, _)| !key.as_str().is_some_and(|key| KNOWN.contains(&key)))
            .collect();
        let is_empty = |urls: &Option<Vec<String>>| urls.as_ref().is_none_or(Vec::is_empty);
        if data.buildpack_url.is_none() && is_empty(&data.buildpack_urls) && is_empty(&data.buildpacks) {
            return Err(invalid("needs one of the keys buildpack_url, buildpack_urls and buildpacks".into()));
        }
        if let Some(key) = data.env.iter().flat_map(BTreeMap::keys).find(|key| !is_variable_name(key)) {
            return Err(invalid(format!("env: {key:?} is not a variable name")));
        }
        if let Some(stack) = data.stack.as_ref().filter(|stack| !is_file_name(stack)) {
            return Err(invalid(format!("stack: {stack:?} is not a plain name")));
        }
        if let Some(md5) = data.image_md5.as_ref().filter(|md5| !is_md5(md5)) {
            return Err(invalid(format!("image_md5: expected 32 hexadecimal digits, found {md5:?}")));
        }
        if let Some(image) = data.image_name.as_ref().filter(|name| !is_file_name(name)) {
            return Err(invalid(format!("image_name: {image:?} is not a plain file name")));
        }
        if data.image_url.is_some() && data.image_name.is_none() {
            return Err(invalid("image_url needs image_name beside it".into()));
        }
        Ok(data)
    }

    /// The file's text; known keys first, then the unknown ones.
    pub fn to_yaml(&self) -> Result<String, YamlError> {
        let mut mapping = match serde_yaml::to_value(self) {
            Ok(Value::Mapping(mapping)) => mapping,
            Ok(_) => Mapping::new(),
            Err(e) => {
                return Err(YamlError::Invalid { name: "build.yaml".into(), message: e.to_string() });
            }
        };
        mapping.extend(self.unknown.clone());
        yaml::to_string(&mapping)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The manual's first example, but for its hosts.
    const SAMPLE: &str = "
app_name: vr_python_example
app_repo_type: hg
app_repo_url: https://example.com/btubbs/vr_python_example
buildpack_urls:
- https://example.com/heroku/heroku-buildpack-nodejs.git
- https://example.com/yougov/yg-buildpack-python2.git
version: v3
extra: 1
";

    #[test]
    fn the_manuals_example_survives_a_round_trip() {
        let data = BuildData::parse("app.yaml", SAMPLE).unwrap();
        assert_eq!(data.app_repo_type, RepoType::Hg);
        assert_eq!(data.unknown["extra"].as_i64(), Some(1));
        assert_eq!(BuildData::parse("again", &data.to_yaml().unwrap()).unwrap(), data);
    }

    #[test]
    fn what_a_buildpack_wrote_means_what_it_means_to_older_servers() {
        let text =
            format!("{SAMPLE}release_data: {{config_vars: {{A: 'yes', B: on, C: 1e3}}}}\nmode: 0755\n");
        let data = BuildData::parse("b", &text).unwrap();
        let written = data.to_yaml().unwrap();
        assert!(written.contains("  config_vars:\n    A: 'yes'\n    B: true\n    C: '1e3'\n"), "{written}");
        assert!(written.ends_with("extra: 1\nmode: 493\n"), "{written}");
        assert_eq!(BuildData::parse("again", &written).unwrap(), data);
    }

    #[test]
    fn what_a_build_is_told_survives_a_round_trip() {
        let text = format!(
            "{SAMPLE}buildpacks: [a, b]\nstack: heroku-24\nenv: {{A: 1e3, B: 0755}}\nnetwork: none\n"
        );
        let data = BuildData::parse("b", &text).unwrap();
        assert_eq!(data.env.as_ref().unwrap()["A"].0, "1e3");
        assert_eq!((data.network, data.buildpacks.as_ref().unwrap().len()), (Network::None, 2));
        assert_eq!(BuildData::parse("again", &data.to_yaml().unwrap()).unwrap(), data);
    }

    #[test]
    fn bad_values_are_named() {
        for (from, to, expected) in [
            ("version: v3", "version: 9.0", "expected a text, found the number 9.0 (put it in quotes)"),
            ("version: v3", "version: -x", "begins with a dash"),
            ("app_name: vr_", "app_name: vr-", "is not a valid app name"),
            ("type: hg", "type: svn", "svn"),
            ("buildpack_urls", "other", "needs one of the keys buildpack_url, buildpack_urls and buildpacks"),
            ("app_repo_url", "url", "missing field `app_repo_url`"),
            ("extra: 1", "env: {a-b: 1}", "env: \"a-b\" is not a variable name"),
            ("extra: 1", "network: bridge", "network: expected host or none, found \"bridge\""),
            ("extra: 1", "stack: a/b", "stack: \"a/b\" is not a plain name"),
        ] {
            let message = BuildData::parse("b", &SAMPLE.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(message.starts_with("b: ") && message.contains(expected), "{to}: {message}");
        }
    }
}
