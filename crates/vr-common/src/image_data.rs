//! `image.yaml`: an OS image to be made from a base image and a provisioning script.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_yaml::Value;

use crate::proc_data::{Scalar, is_file_name, is_md5, is_variable_name, prefer_texts};
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
}

impl ImageData {
    /// Reads a file.
    pub fn load(path: &Path) -> Result<Self, YamlError> {
        Self::parse(&path.display().to_string(), &yaml::read_file(path)?)
    }

    /// Parses and checks a text; `name` begins every error.
    pub fn parse(name: &str, text: &str) -> Result<Self, YamlError> {
        let mut data: Self = yaml::parse(name, text)?;
        if let (Some(env), Some(Value::Mapping(mapping))) =
            (&mut data.env, yaml::parse_mapping(name, text)?.get("env"))
        {
            prefer_texts(env, mapping);
        }
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
}
