//! Where a plugin finds itself, and its configuration.

use std::fmt::Display;
use std::str::FromStr;

/// What a plugin is told once, before any batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Init {
    tenant: String,
    module: String,
    partition: Option<u32>,
    inputs: Vec<String>,
    outputs: Vec<String>,
    config: Vec<(String, String)>,
}

/// One of the outputs of a transform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Output(pub(crate) u32);

impl Init {
    /// What a test tells a plugin: a module of this name, without inputs, outputs or
    /// configuration.
    #[must_use]
    pub fn new(module: &str) -> Self {
        Self {
            tenant: "test".to_owned(),
            module: module.to_owned(),
            ..Self::default()
        }
    }

    /// Adds a configuration value.
    #[must_use]
    pub fn config(mut self, key: &str, value: &str) -> Self {
        self.config.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Adds an output.
    #[must_use]
    pub fn with_output(mut self, name: &str) -> Self {
        self.outputs.push(name.to_owned());
        self
    }

    /// What the host said. For the export macros; tests use [`Init::new`].
    #[doc(hidden)]
    #[must_use]
    pub fn from_host(
        (tenant, module): (String, String),
        partition: Option<u32>,
        inputs: Vec<String>,
        outputs: Vec<String>,
        config: Vec<(String, String)>,
    ) -> Self {
        Self {
            tenant,
            module,
            partition,
            inputs,
            outputs,
            config,
        }
    }

    /// The tenant on whose behalf the plugin runs.
    #[must_use]
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// The name under which it is attached.
    #[must_use]
    pub fn module(&self) -> &str {
        &self.module
    }

    /// The input partition, for kinds that run one instance for each.
    #[must_use]
    pub fn partition(&self) -> Option<u32> {
        self.partition
    }

    /// The input topics, `tenant/topic`.
    #[must_use]
    pub fn inputs(&self) -> &[String] {
        &self.inputs
    }

    /// The outputs.
    #[must_use]
    pub fn outputs(&self) -> &[String] {
        &self.outputs
    }

    /// The output of this name.
    ///
    /// # Errors
    /// If the definition does not give the plugin such an output; the text says which it gives.
    pub fn output(&self, name: &str) -> Result<Output, String> {
        let index = self.outputs.iter().position(|output| output == name);
        let index = index.and_then(|index| u32::try_from(index).ok());
        index.map(Output).ok_or_else(|| {
            let given = if self.outputs.is_empty() {
                "none"
            } else {
                &self.outputs.join(", ")
            };
            format!("this plugin writes to an output named {name:?}; given: {given}")
        })
    }

    /// The first output: the only one, for most transforms.
    ///
    /// # Errors
    /// If there is no output at all.
    pub fn first_output(&self) -> Result<Output, String> {
        if self.outputs.is_empty() {
            return Err("this plugin writes records, but has no output".to_owned());
        }
        Ok(Output(0))
    }

    /// The text of a configuration key, if it was given.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.config
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }

    /// The configuration keys that were given, in order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.config.iter().map(|(key, _)| key.as_str())
    }

    /// A configuration value, parsed; none if the key was not given.
    ///
    /// # Errors
    /// If the text cannot be parsed; the error names the key, the text and what is wrong.
    pub fn parse<T>(&self, key: &str) -> Result<Option<T>, String>
    where
        T: FromStr<Err: Display>,
    {
        let Some(text) = self.get(key) else {
            return Ok(None);
        };
        let parsed = text
            .parse()
            .map_err(|error| format!("{key} = {text:?}: {error}"))?;
        Ok(Some(parsed))
    }

    /// A configuration value that must be given, parsed.
    ///
    /// # Errors
    /// If the key was not given, or if its text cannot be parsed.
    pub fn require<T>(&self, key: &str) -> Result<T, String>
    where
        T: FromStr<Err: Display>,
    {
        self.parse(key)?
            .ok_or_else(|| format!("{key} is missing: add it to the configuration"))
    }

    /// A configuration value, parsed, or `default` if the key was not given.
    ///
    /// # Errors
    /// If the text cannot be parsed.
    pub fn parse_or<T>(&self, key: &str, default: T) -> Result<T, String>
    where
        T: FromStr<Err: Display>,
    {
        Ok(self.parse(key)?.unwrap_or(default))
    }

    /// The parts of a configuration value between commas, without the spaces around them; none
    /// if the key was not given. Empty parts are left out.
    pub fn list(&self, key: &str) -> impl Iterator<Item = &str> {
        let text = self.get(key).unwrap_or_default();
        text.split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
    }

    /// Refuses keys other than these, so that a misspelt one is not silently without effect.
    ///
    /// # Errors
    /// If another key was given; the text names it and lists the known ones.
    pub fn config_only(&self, known: &[&str]) -> Result<(), String> {
        let unknown = self
            .config
            .iter()
            .find(|(key, _)| !known.contains(&key.as_str()));
        unknown.map_or(Ok(()), |(key, _)| {
            Err(format!(
                "unknown key {key:?}; this plugin knows: {}",
                known.join(", ")
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn init() -> Init {
        Init::new("m")
            .config("n", "12")
            .config("bad", "x1")
            .config("names", " a, ,b ,c")
    }

    #[test]
    fn values_are_parsed_and_errors_name_key_and_text() {
        assert_eq!(init().require::<u32>("n"), Ok(12));
        assert_eq!(init().parse::<u32>("absent"), Ok(None));
        assert_eq!(init().parse_or("absent", 3u8), Ok(3));
        let error = init().require::<u32>("bad").unwrap_err();
        assert!(error.starts_with("bad = \"x1\": "), "{error}");
        assert!(
            init()
                .require::<u32>("absent")
                .unwrap_err()
                .contains("absent is missing")
        );
    }

    #[test]
    fn lists_are_split_at_commas() {
        assert_eq!(init().list("names").collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(init().list("absent").count(), 0);
    }

    #[test]
    fn unknown_keys_are_refused() {
        assert_eq!(init().config_only(&["n", "bad", "names"]), Ok(()));
        let error = init().config_only(&["n", "names"]).unwrap_err();
        assert!(
            error.contains("\"bad\"") && error.contains("n, names"),
            "{error}"
        );
    }

    #[test]
    fn outputs_are_found_by_name() {
        let init = Init::new("m").with_output("log").with_output("alerts");
        assert_eq!(init.output("alerts"), Ok(Output(1)));
        assert!(init.output("x").unwrap_err().contains("log, alerts"));
        assert!(Init::new("m").output("x").unwrap_err().contains("none"));
        assert!(Init::new("m").first_output().is_err());
    }
}
