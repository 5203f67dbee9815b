//! `image.yaml`: an OS image to be made from a base image and a provisioning script.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_yaml::{Mapping, Value};

use crate::proc_data::{Network, Scalar, is_file_name, is_md5, is_variable_name, prefer_texts};
use crate::yaml::{self, YamlError};

/// The contents of `image.yaml`. URLs may be http(s), `file://` or local paths.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageData {
    /// The base tarball.
    pub base_image_url: String,
    /// The base's folder name.
    pub base_image_name: String,
    /// The new image's name, and the stem of the output files.
    pub new_image_name: String,
    /// The script to run as root in the container.
    pub script_url: String,
    /// The base's md5 sum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_image_md5: Option<String>,
    /// The new tarball's md5 sum, written by a build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_image_md5: Option<String>,
    /// The script's environment, beside PATH, HOME and TERM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, Scalar>>,
    /// The network that the script sees.
    #[serde(default, skip_serializing_if = "Network::is_host")]
    pub network: Network,
    /// Every key that is not named above.
    #[serde(skip)]
    pub unknown: Mapping,
}

const KNOWN: &[&str] = &[
    "base_image_url",
    "base_image_name",
    "new_image_name",
    "script_url",
    "base_image_md5",
    "new_image_md5",
    "env",
    "network",
];

impl ImageData {
    /// Reads a file.
    pub fn load(path: &Path) -> Result<Self, YamlError> {
        Self::parse(&path.display().to_string(), &yaml::read_file(path)?)
    }

    /// Parses and checks a text; `name` begins every error.
    pub fn parse(name: &str, text: &str) -> Result<Self, YamlError> {
        let mapping = yaml::parse_mapping(name, text)?;
        let mut data: Self = yaml::parse(name, text)?;
        if let (Some(env), Some(Value::Mapping(mapping))) = (&mut data.env, mapping.get("env")) {
            prefer_texts(env, mapping);
        }
        data.unknown = mapping
            .into_iter()
            .filter(|(key, _)| !key.as_str().is_some_and(|key| KNOWN.contains(&key)))
            .collect();
        let invalid = |message: String| Err(YamlError::Invalid { name: name.to_owned(), message });
        for (key, value) in
            [("base_image_name", &data.base_image_name), ("new_image_name", &data.new_image_name)]
        {
            if !is_file_name(value) {
                return invalid(format!("{key}: {value:?} is not a plain file name"));
            }
        }
        if let Some(md5) = data.base_image_md5.as_ref().filter(|md5| !is_md5(md5)) {
            return invalid(format!("base_image_md5: expected 32 hexadecimal digits, found {md5:?}"));
        }
        for key in data.env.iter().flat_map(BTreeMap::keys) {
            if !is_variable_name(key) {
                return invalid(format!("env: {key:?} is not a variable name"));
            }
        }
        Ok(data)
    }

    /// The file's text; known keys first, then the unknown ones.
    pub fn to_yaml(&self) -> Result<String, YamlError> {
        let mut mapping = match serde_yaml::to_value(self) {
            Ok(Value::Mapping(mapping)) => mapping,
            Ok(_) => Mapping::new(),
            Err(e) => {
                return Err(YamlError::Invalid { name: "image.yaml".into(), message: e.to_string() });
            }
        };
        mapping.extend(self.unknown.clone());
        yaml::to_string(&mapping)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manuals_example_is_read() {
        let data = ImageData::parse(
            "my_image.yaml",
            "base_image_url: http://example.com/ubuntu_trusty_pamfix.tar.gz
base_image_name: ubuntu_trusty_pamfix
new_image_name: my_awesome_image_20141031
script_url: /path/to/my_provisioning_script.sh
env:
  PATH: /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
  POWER: 1e3
  MODE: 0755
",
        )
        .unwrap();
        let env = data.env.unwrap();
        assert_eq!((env["POWER"].0.as_str(), env["MODE"].0.as_str()), ("1e3", "0755"));
        assert_eq!(data.new_image_name, "my_awesome_image_20141031");
        let bad = "base_image_url: x\nbase_image_name: ../x\nnew_image_name: y\nscript_url: z\n";
        let message = ImageData::parse("i", bad).unwrap_err().to_string();
        assert_eq!(message, "i: base_image_name: \"../x\" is not a plain file name");
    }
    #[test]
    fn everything_survives_a_round_trip() {
        let text =
            "base_image_url: /b.tar\nbase_image_name: b\nnew_image_name: n\nscript_url: /s\nnetwork: none
env: {A: 1e3, B: 0755}\nbase_image_md5: 0123456789abcdef0123456789abcdef\nowner: {name: us}\n7: seven\n";
        let mut data = ImageData::parse("i", text).unwrap();
        assert_eq!(data.network, Network::None);
        assert_eq!(data.unknown.len(), 2);
        data.new_image_md5 = data.base_image_md5.clone();
        assert_eq!(ImageData::parse("again", &data.to_yaml().unwrap()).unwrap(), data);
        for (from, to, expected) in [
            ("network: none", "network: bridge", "network: expected host or none, found \"bridge\""),
            ("network: none", "network: yes", "network: expected host or none, found"),
            ("script_url: /s", "script: /s", "missing field `script_url`"),
            ("base_image_md5: 0", "base_image_md5: x", "base_image_md5: expected 32 hexadecimal digits"),
        ] {
            let message = ImageData::parse("i", &text.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(message.starts_with("i: ") && message.contains(expected), "{to}: {message}");
        }
    }
}
