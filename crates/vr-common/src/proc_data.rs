//! `proc.yaml`: all that a runner needs to set up and run one proc.
//!
//! Keys that we do not know belong to somebody else (an older server, an operator's note) and survive a
//! round trip. Format: the host formats page; the manual's chapter *Runners*.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_yaml::{Mapping, Value};
use thiserror::Error;

use crate::names::{
    AppName, ConfigName, ContainerHostName, ContainerName, NameError, ProcName, ReleaseHash, Version,
};
use crate::yaml::{self, YamlError};

pub mod rules;

use rules::{AutoRestart, ExitCodes, StopSignal};

/// A folder of the host that an app sees: `[host_dir, mountpoint]` or `[host_dir, mountpoint, ro]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Volume {
    /// An absolute path on the host.
    pub host_dir: PathBuf,
    /// An absolute path in the container.
    pub mountpoint: PathBuf,
    /// Whether the app may only read it.
    pub read_only: bool,
}

impl TryFrom<Vec<String>> for Volume {
    type Error = String;

    fn try_from(parts: Vec<String>) -> Result<Self, String> {
        let expected = "expected [host dir, mountpoint] or [host dir, mountpoint, ro], both absolute paths";
        let (host_dir, mountpoint, read_only) = match parts.as_slice() {
            [host, inside] => (host, inside, false),
            [host, inside, mode] if mode == "ro" || mode == "rw" => (host, inside, mode == "ro"),
            _ => return Err(format!("{parts:?} is not a volume: {expected}")),
        };
        let clean =
            |p: &str| p.starts_with('/') && !p.contains('\0') && !p.split('/').any(|part| part == "..");
        if !clean(host_dir) || !clean(mountpoint) || mountpoint.trim_matches('/').is_empty() {
            return Err(format!("{parts:?} is not a volume: {expected}, without '..'"));
        }
        Ok(Self { host_dir: host_dir.into(), mountpoint: mountpoint.into(), read_only })
    }
}

impl From<Volume> for Vec<String> {
    fn from(volume: Volume) -> Self {
        let text = |p: &Path| p.display().to_string();
        let mut parts = vec![text(&volume.host_dir), text(&volume.mountpoint)];
        if volume.read_only {
            parts.push("ro".into());
        }
        parts
    }
}

/// A text that may also be written as a bare number or boolean (`env: {WORKERS: 4, DEBUG: true}`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(transparent)]
pub struct Scalar(pub String);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        match Value::deserialize(deserializer)? {
            Value::Null => Ok(Self(String::new())),
            Value::Bool(b) => Ok(Self(b.to_string())),
            Value::Number(n) => Ok(Self(n.to_string())),
            Value::String(s) => Ok(Self(s)),
            other => Err(D::Error::custom(format!("expected a text, found {}", yaml::kind(&other)))),
        }
    }
}

/// Processor time in thousandths of a processor; written as a number of processors (`0.5`, `2`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuLimit {
    /// At least 10.
    pub thousandths: u32,
}

/// A text that is no number of processors.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is not a number of processors: expected one such as 0.5 or 2, at least 0.01")]
pub struct BadCpuLimit(String);

impl FromStr for CpuLimit {
    type Err = BadCpuLimit;

    fn from_str(text: &str) -> Result<Self, BadCpuLimit> {
        let plain =
            !text.is_empty() && text.len() <= 20 && text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let cores = text.parse::<f64>().ok().filter(|cores| plain && (0.01..=10_000.0).contains(cores));
        match cores {
            Some(cores) => Ok(Self { thousandths: (cores * 1000.0).round() as u32 }),
            None => Err(BadCpuLimit(text.chars().take(60).collect())),
        }
    }
}

impl<'de> Deserialize<'de> for CpuLimit {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let text = Scalar::deserialize(deserializer)?.0;
        text.parse().map_err(|error| D::Error::custom(format!("cpu_limit: {error}")))
    }
}

impl Serialize for CpuLimit {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.thousandths % 1000 {
            0 => serializer.serialize_u32(self.thousandths / 1000),
            _ => serializer.serialize_f64(f64::from(self.thousandths) / 1000.0),
        }
    }
}

/// How many processes and threads there may be; from 1 to 4194303, the most that the kernel takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct PidsLimit(pub u32);

impl<'de> Deserialize<'de> for PidsLimit {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        const MOST: u32 = (1 << 22) - 1;
        let text = Scalar::deserialize(deserializer)?.0;
        let number = Some(&text).filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
        match number.and_then(|text| text.parse().ok()).filter(|number| (1..=MOST).contains(number)) {
            Some(number) => Ok(Self(number)),
            None => Err(D::Error::custom(format!(
                "pids_limit: {text:?} is not a number of processes: expected one from 1 to {MOST}"
            ))),
        }
    }
}

/// The longest `grace_period`, in seconds: a day.
pub const LONGEST_GRACE_PERIOD: u32 = 86_400;

fn grace_period<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    rules::whole("grace_period", "seconds", LONGEST_GRACE_PERIOD, deserializer)
}

/// The network that a proc sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// The host's.
    #[default]
    Host,
    /// Nothing but a loopback interface of its own.
    None,
}

impl Network {
    pub(crate) fn is_host(&self) -> bool {
        *self == Self::Host
    }
}

/// A text that names no network.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("expected host or none, found {0:?}")]
pub struct BadNetwork(String);

impl FromStr for Network {
    type Err = BadNetwork;

    fn from_str(text: &str) -> Result<Self, BadNetwork> {
        match text {
            "host" => Ok(Self::Host),
            "none" => Ok(Self::None),
            text => Err(BadNetwork(text.to_owned())),
        }
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        // Also an empty value is refused: it could be meant either way.
        match Value::deserialize(deserializer)? {
            Value::String(text) => {
                text.parse().map_err(|error| D::Error::custom(format!("network: {error}")))
            }
            other => {
                let found = yaml::kind(&other);
                Err(D::Error::custom(format!("network: expected host or none, found {found}")))
            }
        }
    }
}

fn hostname<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<ContainerHostName>, D::Error> {
    use serde::de::Error;
    let name = Option::<String>::deserialize(deserializer)?.map(|text| text.parse()).transpose();
    name.map_err(|error: NameError| D::Error::custom(format!("hostname: {error}")))
}

/// A boolean, also in the words of YAML 1.1.
fn truth<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    use serde::de::Error;
    let value = Value::deserialize(deserializer)?;
    let truth = match &value {
        Value::String(text) => yaml::bare_word(text).and_then(|value| value.as_bool()),
        value => value.as_bool(),
    };
    truth.ok_or_else(|| {
        D::Error::custom(format!("read_only: expected true or false, found {}", yaml::kind(&value)))
    })
}

fn is_false(truth: &bool) -> bool {
    !truth
}

/// The contents of `proc.yaml`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcData {
    /// The app.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_name: Option<AppName>,
    /// Where its code came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_repo_url: Option<String>,
    /// `git` or `hg`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_repo_type: Option<String>,
    /// The buildpack that compiled it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub buildpack_url: Option<String>,
    /// The buildpack's revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub buildpack_version: Option<String>,
    /// The deployment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_name: Option<ConfigName>,
    /// The environment; a value that is exactly `$NAME` is the host's variable NAME.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, Scalar>>,
    /// The host that runs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The port it listens on; 0 or none when it listens on none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The revision of the code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// The release.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release_hash: Option<ReleaseHash>,
    /// Written to `settings.yaml`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settings: Option<Value>,
    /// The user it runs as; a name or a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<Scalar>,
    /// The group of its files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<Scalar>,
    /// The Procfile's entry; `proc` in old files.
    #[serde(alias = "proc", skip_serializing_if = "Option::is_none")]
    pub proc_name: Option<ProcName>,
    /// The command, instead of the Procfile's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd: Option<String>,
    /// A folder of the host to use as `/app` instead of a build.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_folder: Option<PathBuf>,
    /// The build's tarball: http(s), `file://` or a path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_url: Option<String>,
    /// Its md5 sum.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_md5: Option<String>,
    /// The OS image's tarball.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_url: Option<String>,
    /// The OS image's folder name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_name: Option<String>,
    /// Its md5 sum.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_md5: Option<String>,
    /// Folders of the host that the app sees.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volumes: Option<Vec<Volume>>,
    /// RAM, such as `256M`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_limit: Option<Scalar>,
    /// RAM and swap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memsw_limit: Option<Scalar>,
    /// Processor time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_limit: Option<CpuLimit>,
    /// Processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids_limit: Option<PidsLimit>,
    /// Seconds between the stop signal and KILL; at most [`LONGEST_GRACE_PERIOD`].
    #[serde(deserialize_with = "grace_period", skip_serializing_if = "Option::is_none")]
    pub grace_period: Option<u32>,
    /// Seconds that it has to stay up before it counts as started; 1 if there are none.
    #[serde(deserialize_with = "rules::startsecs", skip_serializing_if = "Option::is_none")]
    pub startsecs: Option<u32>,
    /// How many more times it is tried when it ends before that; 3 if there are none.
    #[serde(deserialize_with = "rules::startretries", skip_serializing_if = "Option::is_none")]
    pub startretries: Option<u32>,
    /// Whether it is started again when it ends by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autorestart: Option<AutoRestart>,
    /// The exit statuses that [`AutoRestart::Unexpected`] takes for expected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exitcodes: Option<ExitCodes>,
    /// What it is asked to end with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopsignal: Option<StopSignal>,
    /// The network that it sees.
    #[serde(skip_serializing_if = "Network::is_host")]
    pub network: Network,
    /// Whether nothing of its root can be written but volumes and small temporary folders.
    #[serde(deserialize_with = "truth", skip_serializing_if = "is_false")]
    pub read_only: bool,
    /// The container's host name; the container's own name when there is none.
    #[serde(deserialize_with = "hostname", skip_serializing_if = "Option::is_none")]
    pub hostname: Option<ContainerHostName>,
    /// Every key that is not named above, in the file's order.
    #[serde(skip)]
    pub unknown: Mapping,
}

const KNOWN: &[&str] = &[
    "app_name",
    "app_repo_url",
    "app_repo_type",
    "buildpack_url",
    "buildpack_version",
    "config_name",
    "env",
    "host",
    "port",
    "version",
    "release_hash",
    "settings",
    "user",
    "group",
    "proc_name",
    "proc",
    "cmd",
    "app_folder",
    "build_url",
    "build_md5",
    "image_url",
    "image_name",
    "image_md5",
    "volumes",
    "mem_limit",
    "memsw_limit",
    "cpu_limit",
    "pids_limit",
    "grace_period",
    "startsecs",
    "startretries",
    "autorestart",
    "exitcodes",
    "stopsignal",
    "network",
    "read_only",
    "hostname",
];

impl ProcData {
    /// Reads a file.
    pub fn load(path: &Path) -> Result<Self, YamlError> {
        Self::parse(&path.display().to_string(), &yaml::read_file(path)?)
    }

    /// Parses and checks a text; `name` begins every error.
    pub fn parse(name: &str, text: &str) -> Result<Self, YamlError> {
        let mapping = yaml::parse_mapping(name, text)?;
        let mut data: Self = yaml::parse(name, text)?;
        // What has no type of ours means what it means to the apps and servers that wrote and read it.
        data.settings = data.settings.and_then(|_| mapping.get("settings").cloned());
        if let (Some(env), Some(Value::Mapping(mapping))) = (&mut data.env, mapping.get("env")) {
            prefer_texts(env, mapping);
        }
        data.unknown = mapping
            .into_iter()
            .filter(|(key, _)| !key.as_str().is_some_and(|key| KNOWN.contains(&key)))
            .collect();
        let invalid = |message: String| Err(YamlError::Invalid { name: name.to_owned(), message });
        if data.proc_name.is_none() && data.cmd.is_none() {
            return invalid("needs one of the keys proc_name and cmd".into());
        }
        if let Some(settings) = &data.settings
            && !matches!(settings, Value::Mapping(_) | Value::Null)
        {
            return invalid(format!("settings: expected a mapping, found {}", yaml::kind(settings)));
        }
        for key in data.env.iter().flat_map(BTreeMap::keys) {
            if !is_variable_name(key) {
                return invalid(format!(
                    "env: {key:?} is not a variable name (letters, digits and '_', not beginning with a digit)"
                ));
            }
        }
        for (key, value) in [("build_md5", &data.build_md5), ("image_md5", &data.image_md5)] {
            if let Some(md5) = value.as_ref().filter(|md5| !is_md5(md5)) {
                return invalid(format!("{key}: expected 32 hexadecimal digits, found {md5:?}"));
            }
        }
        if let Some(image) = data.image_name.as_ref().filter(|name| !is_file_name(name)) {
            return invalid(format!("image_name: {image:?} is not a plain file name"));
        }
        if data.image_url.is_some() && data.image_name.is_none() {
            return invalid("image_url needs image_name beside it".into());
        }
        Ok(data)
    }

    /// The file's text; known keys first, then the unknown ones.
    pub fn to_yaml(&self) -> Result<String, YamlError> {
        let mut mapping = match serde_yaml::to_value(self) {
            Ok(Value::Mapping(mapping)) => mapping,
            Ok(_) => Mapping::new(),
            Err(e) => {
                return Err(YamlError::Invalid { name: "proc.yaml".into(), message: e.to_string() });
            }
        };
        mapping.extend(self.unknown.clone());
        yaml::to_string(&mapping)
    }

    /// The container's name, when every field that it is made of is there.
    pub fn container_name(&self) -> Option<ContainerName> {
        Some(ContainerName {
            app: self.app_name.clone()?,
            version: self.version.clone()?,
            config: self.config_name.clone()?,
            hash: self.release_hash.clone()?,
            proc_name: self.proc_name.clone()?,
            port: self.port.unwrap_or(0),
        })
    }
}

/// A variable whose value is a text to either YAML 1.1 or 1.2 has that text: bare `1e3` (a text that PyYAML wrote) and
/// bare `0755`, `12:30` and `yes` (somebody wrote what the variable is to be) stay as they are.
pub(crate) fn prefer_texts(env: &mut BTreeMap<String, Scalar>, mapping: &Mapping) {
    for (name, value) in env {
        if let Some(text) = mapping.get(name.as_str()).and_then(Value::as_str) {
            *value = Scalar(text.to_owned());
        }
    }
}

/// Whether a shell takes the text as a variable's name.
pub fn is_variable_name(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Whether the text is 32 hexadecimal digits.
pub fn is_md5(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether the text names a file in a folder, and nothing above or below it.
pub fn is_file_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= 255 && !text.starts_with(['.', '-']) && !text.contains(['/', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "
app_name: demo
version: 'v1'
config_name: prod
release_hash: abcd1234
proc: web
port: 5001
user: nobody
env: {A: 1, B: $HOME, C: 'yes', D: null}
settings: {quote: \"@How's it going?\", n: 1.5}
volumes: [[/var/data, /data], [/srv, /srv, ro]]
mem_limit: 256M
cpu_limit: 0.5
pids_limit: '100'
grace_period: 0
network: none
read_only: yes
hostname: web-1.example
x_note: {kept: [1, 2]}
";

    #[test]
    fn unknown_keys_survive_a_round_trip() {
        let data = ProcData::parse("proc.yaml", SAMPLE).unwrap();
        assert_eq!(data.container_name().unwrap().to_string(), "demo-v1-prod-abcd1234-web-5001");
        assert_eq!(data.env.as_ref().unwrap()["A"].0, "1");
        assert!(data.volumes.as_ref().unwrap()[1].read_only);
        let text = data.to_yaml().unwrap();
        let again = ProcData::parse("again", &text).unwrap();
        assert_eq!(again, data);
        assert_eq!(again.cpu_limit, Some(CpuLimit { thousandths: 500 }));
        assert_eq!(again.pids_limit, Some(PidsLimit(100)));
        assert_eq!((again.network, again.read_only, again.grace_period), (Network::None, true, Some(0)));
        assert_eq!(again.hostname.as_ref().map(AsRef::as_ref), Some("web-1.example"));
        assert!(text.contains("network: none\nread_only: true\nhostname: web-1.example\n"), "{text}");
        assert!(text.contains("cpu_limit: 0.5\n") && text.contains("pids_limit: 100\n"), "{text}");
        assert_eq!(again.unknown["x_note"]["kept"][1].as_i64(), Some(2));
        assert_eq!(again.settings.unwrap()["quote"].as_str(), Some("@How's it going?"));
    }

    #[test]
    fn every_key_that_is_written_counts_as_known() {
        let mut data = ProcData::parse("proc.yaml", SAMPLE).unwrap();
        data.unknown.clear();
        let text = data.to_yaml().unwrap();
        assert!(ProcData::parse("again", &text).unwrap().unknown.is_empty());
    }

    #[test]
    fn the_defaults_are_not_written() {
        let data = ProcData::parse("p", "cmd: x\nnetwork: host\nread_only: off\n").unwrap();
        assert_eq!((data.network, data.read_only, data.hostname.clone()), (Network::Host, false, None));
        assert_eq!(data.to_yaml().unwrap(), "cmd: x\n");
        assert_eq!(ProcData::parse("p", "cmd: x\ngrace_period: '86400'").unwrap().grace_period, Some(86_400));
        assert_eq!(ProcData::parse("p", "cmd: x\ngrace_period:").unwrap().grace_period, None);
    }

    #[test]
    fn settings_and_variables_mean_what_they_mean_to_python() {
        let text = "cmd: x
version: 7e123456
settings: {mode: 0755, on: yes, text: 'yes', power: 1e3, <<: {time: 12:30:00}}
env: {A: 1e3, B: 0755, C: yes, D: '1_0', E: 12:30, F: 0o17, G: 1.5, H: true}
later: {debug: no}
";
        let data = ProcData::parse("proc.yaml", text).unwrap();
        assert_eq!(data.version.as_ref().unwrap().as_str(), "7e123456");
        let env: Vec<_> = data.env.as_ref().unwrap().values().map(|value| value.0.as_str()).collect();
        assert_eq!(env, ["1e3", "0755", "yes", "1_0", "12:30", "0o17", "1.5", "true"]);
        let written = data.to_yaml().unwrap();
        let settings = "settings:\n  time: 45000\n  mode: 493\n  true: true\n  text: 'yes'\n  power: '1e3'\n";
        assert!(written.contains(settings) && written.contains("version: '7e123456'\n"), "{written}");
        assert!(written.ends_with("later:\n  debug: false\n"), "{written}");
        assert_eq!(ProcData::parse("again", &written).unwrap(), data);
    }

    #[test]
    fn bad_values_are_named() {
        for (text, expected) in [
            ("port: 1", "p: needs one of the keys proc_name and cmd"),
            ("cmd: x\nport: 70000", "p: port: "),
            ("cmd: x\nsettings: [1]", "p: settings: expected a mapping, found a list"),
            ("cmd: x\nenv: {A-B: 1}", "p: env: \"A-B\" is not a variable name"),
            ("cmd: x\nenv: {A: [1]}", "expected a text, found a list"),
            ("cmd: x\ncpu_limit: fast", "p: cpu_limit: \"fast\" is not a number of processors"),
            ("cmd: x\ncpu_limit: -1", "p: cpu_limit: \"-1\""),
            ("cmd: x\ncpu_limit: 0.001", "at least 0.01"),
            ("cmd: x\ncpu_limit: [1]", "expected a text, found a list"),
            ("cmd: x\npids_limit: 0", "p: pids_limit: \"0\" is not a number of processes"),
            ("cmd: x\npids_limit: 1.5", "p: pids_limit: \"1.5\""),
            ("cmd: x\npids_limit: 9999999", "from 1 to 4194303"),
            ("cmd: x\ngrace_period: -1", "p: grace_period: \"-1\" is not a number of seconds"),
            ("cmd: x\ngrace_period: 1.5", "p: grace_period: \"1.5\""),
            ("cmd: x\ngrace_period: 86401", "expected one from 0 to 86400"),
            ("cmd: x\ngrace_period: 99999999999", "expected one from 0 to 86400"),
            ("cmd: x\nnetwork: bridge", "p: network: expected host or none, found \"bridge\""),
            ("cmd: x\nnetwork:", "p: network: expected host or none, found nothing"),
            ("cmd: x\nnetwork: false", "p: network: expected host or none, found the boolean false"),
            ("cmd: x\nread_only: maybe", "p: read_only: expected true or false, found a text"),
            ("cmd: x\nread_only: 1", "p: read_only: expected true or false, found the number 1"),
            ("cmd: x\nread_only:", "p: read_only: expected true or false, found nothing"),
            ("cmd: x\nhostname: a_b", "p: hostname: \"a_b\" is not a valid host name: use only letters"),
            ("cmd: x\nhostname: ''", "is not a valid host name: it is empty"),
            ("cmd: x\nhostname: -a", "begins and ends with a letter or a digit"),
            ("cmd: x\nhostname: a..b", "begins and ends with a letter or a digit"),
            ("cmd: x\nhostname: [a]", "hostname: "),
            (
                "cmd: x\nhostname: a1234567890123456789012345678901234567890123456789012345678901234",
                "it is longer than 64 bytes",
            ),
            ("cmd: x\nbuild_md5: zz", "p: build_md5: expected 32 hexadecimal digits"),
            ("cmd: x\nvolumes: [[/a]]", "is not a volume"),
            ("cmd: x\nvolumes: [[/a, /../b]]", "without '..'"),
            ("cmd: x\nimage_url: /x\nimage_name: ../../etc", "is not a plain file name"),
            ("[]", "p: expected a mapping (key: value), found a list"),
        ] {
            let message = ProcData::parse("p", text).unwrap_err().to_string();
            assert!(message.contains(expected), "{text:?} gave {message:?}");
        }
    }
}
