//! A plugin at a place, as it is typed: `tenant/name@version`, `--config key=value`,
//! `--on-error policy`.

use std::collections::BTreeMap;
use std::str::FromStr;

use millstream_proto::PluginName;
use millstream_proto::pipeline::{ErrorPolicy, PluginUse};

/// `tenant/name` or `tenant/name@version`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PluginRef {
    /// Which plugin.
    pub(crate) plugin: PluginName,
    /// Which version; the newest unless said.
    pub(crate) version: Option<u32>,
}

impl FromStr for PluginRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, version) = match text.split_once('@') {
            None => (text, None),
            Some((name, version)) => {
                let number = version.parse().ok().filter(|&v| v > 0).ok_or_else(|| {
                    format!("{version:?} is not a version: a number from 1, as in acme/filter@2")
                })?;
                (name, Some(number))
            }
        };
        let plugin = name.parse::<PluginName>().map_err(|e| e.to_string())?;
        Ok(Self { plugin, version })
    }
}

/// `stop`, `skip` or `dead-letter=tenant/topic`.
pub(crate) fn policy(text: &str) -> Result<ErrorPolicy, String> {
    match text.split_once('=') {
        None if text == "stop" => Ok(ErrorPolicy::Stop),
        None if text == "skip" => Ok(ErrorPolicy::Skip),
        Some(("dead-letter", topic)) => topic
            .parse()
            .map(ErrorPolicy::DeadLetter)
            .map_err(|e| format!("{e}")),
        _ => Err(format!(
            "{text:?} is not a policy: stop, skip or dead-letter=tenant/topic"
        )),
    }
}

/// The policy as it is typed.
pub(crate) fn show_policy(policy: &ErrorPolicy) -> String {
    match policy {
        ErrorPolicy::Stop => "stop".to_owned(),
        ErrorPolicy::Skip => "skip".to_owned(),
        ErrorPolicy::DeadLetter(topic) => format!("dead-letter={topic}"),
    }
}

/// The plugin with its version, as it is typed.
pub(crate) fn show_ref(plugin: &PluginUse) -> String {
    match plugin.version {
        Some(version) => format!("{}@{version}", plugin.plugin),
        None => plugin.plugin.to_string(),
    }
}

/// The configuration as it is typed.
pub(crate) fn show_config(config: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = config
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    pairs.join(" ")
}

/// Puts the parts together.
///
/// # Errors
/// When a key is given twice, which one of them should hold would be a guess; or when a limit on
/// configuration is passed.
pub(crate) fn plugin_use(
    plugin: &PluginRef,
    pairs: &[(String, String)],
    on_error: ErrorPolicy,
) -> Result<PluginUse, String> {
    let mut config = BTreeMap::new();
    for (key, value) in pairs {
        if config.insert(key.clone(), value.clone()).is_some() {
            return Err(format!("--config {key} is given twice"));
        }
    }
    let (plugin, version) = (plugin.plugin.clone(), plugin.version);
    let complete = PluginUse {
        plugin,
        version,
        config,
        on_error,
    };
    complete.check()?;
    Ok(complete)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_a_number_from_1() {
        let plain: PluginRef = "acme/f".parse().unwrap();
        assert_eq!((plain.plugin.as_str(), plain.version), ("acme/f", None));
        let versioned: PluginRef = "acme/f@12".parse().unwrap();
        assert_eq!(versioned.version, Some(12));
        for bad in ["f", "acme/f@", "acme/f@0", "acme/f@latest", "acme/F@1"] {
            assert!(bad.parse::<PluginRef>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_policy_goes_both_ways() {
        for text in ["stop", "skip", "dead-letter=acme/dead"] {
            assert_eq!(show_policy(&policy(text).unwrap()), text);
        }
        for bad in ["", "dead-letter", "dead-letter=dead", "skip=1"] {
            assert!(policy(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_given_twice_is_refused() {
        let plugin: PluginRef = "acme/f".parse().unwrap();
        let pair = |key: &str| (key.to_owned(), "v".to_owned());
        let good = plugin_use(&plugin, &[pair("a"), pair("b")], ErrorPolicy::Stop).unwrap();
        assert_eq!(show_config(&good.config), "a=v b=v");
        assert!(plugin_use(&plugin, &[pair("a"), pair("a")], ErrorPolicy::Stop).is_err());
    }
}
