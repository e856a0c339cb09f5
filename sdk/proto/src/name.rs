//! Names, parsed once at the door.
//!
//! A name is lower-case ASCII letters, digits, `.`, `_` and `-`, beginning with a
//! letter or digit. Topics, plugins and pipelines belong to a tenant and are
//! written `tenant/name` everywhere. Serde goes through the same parser, so a
//! name that came over the wire is as good as one that was typed in.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::limits::{MAX_NAME_BYTES, MAX_PRINCIPAL_BYTES, MAX_TENANT_BYTES};

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing before or after the slash.
    #[error("the {what} in {given:?} is empty")]
    Empty {
        /// Which part.
        what: &'static str,
        /// The whole text.
        given: String,
    },
    /// Longer than the limit.
    #[error("the {what} in {given:?} has {len} bytes; at most {max} are allowed")]
    TooLong {
        /// Which part.
        what: &'static str,
        /// The start of the text.
        given: String,
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// A character outside the alphabet.
    #[error(
        "{what} {given:?} has the character {found:?}; use a-z, 0-9, '.', '_' and '-', beginning with a letter or digit"
    )]
    BadCharacter {
        /// Which part.
        what: &'static str,
        /// The whole text.
        given: String,
        /// The offending character.
        found: char,
    },
    /// `tenant/name` without exactly one slash.
    #[error("{given:?} is not of the form tenant/{what}")]
    NotScoped {
        /// What was expected after the slash.
        what: &'static str,
        /// The whole text.
        given: String,
    },
    /// Not `spiffe://<trust domain>/<tenant>/<name>`.
    #[error("{given:?} is not a principal of the form spiffe://<trust domain>/<tenant>/<name>")]
    NotPrincipal {
        /// The whole text.
        given: String,
    },
}

/// Shortens foreign text for an error message.
fn excerpt(text: &str) -> String {
    const SHOWN: usize = 80;
    if text.chars().count() <= SHOWN {
        text.to_owned()
    } else {
        text.chars().take(SHOWN).chain("...".chars()).collect()
    }
}

fn check(what: &'static str, part: &str, max: usize, given: &str) -> Result<(), NameError> {
    if part.is_empty() {
        return Err(NameError::Empty {
            what,
            given: excerpt(given),
        });
    }
    if part.len() > max {
        return Err(NameError::TooLong {
            what,
            given: excerpt(given),
            len: part.len(),
            max,
        });
    }
    let inner =
        |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
    let bad = part
        .char_indices()
        .find(|&(i, c)| !inner(c) || (i == 0 && !c.is_ascii_alphanumeric()))
        .map(|(_, c)| c);
    match bad {
        Some(found) => Err(NameError::BadCharacter {
            what,
            given: excerpt(given),
            found,
        }),
        None => Ok(()),
    }
}

macro_rules! text_serde {
    ($name:ident $(<$k:ident: $bound:ident>)?) => {
        impl$(<$k: $bound>)? Serialize for $name$(<$k>)? {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(self.as_str())
            }
        }
        impl<'de $(, $k: $bound)?> Deserialize<'de> for $name$(<$k>)? {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(de::Error::custom)
            }
        }
        impl$(<$k: $bound>)? fmt::Display for $name$(<$k>)? {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
        impl$(<$k: $bound>)? fmt::Debug for $name$(<$k>)? {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self.as_str(), f)
            }
        }
    };
}

/// A tenant: the owner of topics, plugins and pipelines.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tenant(Arc<str>);

impl Tenant {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tenant {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        check("tenant", s, MAX_TENANT_BYTES, s)?;
        Ok(Self(s.into()))
    }
}
text_serde!(Tenant);

/// The name under which a consumer commits its offsets.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConsumerName(Arc<str>);

impl ConsumerName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ConsumerName {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        check("consumer name", s, MAX_NAME_BYTES, s)?;
        Ok(Self(s.into()))
    }
}
text_serde!(ConsumerName);

/// What a [`Scoped`] name names; closed to this module's kinds.
pub trait Kind: private::Sealed + 'static {
    /// The noun used in error messages.
    const WHAT: &'static str;
}

mod private {
    pub trait Sealed {}
}

macro_rules! kind {
    ($(#[$doc:meta])* $kind:ident, $what:literal, $(#[$adoc:meta])* $alias:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub enum $kind {}
        impl private::Sealed for $kind {}
        impl Kind for $kind {
            const WHAT: &'static str = $what;
        }
        $(#[$adoc])*
        pub type $alias = Scoped<$kind>;
    };
}

kind!(/** Marks topic names. */ TopicKind, "topic", /** `tenant/topic`. */ TopicName);
kind!(/** Marks plugin names. */ PluginKind, "plugin", /** `tenant/plugin`. */ PluginName);
kind!(/** Marks pipeline names. */ PipelineKind, "pipeline", /** `tenant/pipeline`. */ PipelineName);

/// A name that belongs to a tenant, written `tenant/name`. Cheap to clone.
pub struct Scoped<K> {
    text: Arc<str>,
    slash: u8,
    kind: PhantomData<fn() -> K>,
}

impl<K: Kind> Scoped<K> {
    /// Joins a tenant and a name.
    ///
    /// # Errors
    /// When `name` is empty, too long or has a character outside the alphabet.
    pub fn new(tenant: &Tenant, name: &str) -> Result<Self, NameError> {
        format!("{tenant}/{name}").parse()
    }

    /// The whole name, `tenant/name`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The owner.
    #[must_use]
    pub fn tenant(&self) -> Tenant {
        Tenant(self.text[..usize::from(self.slash)].into())
    }

    /// The owner as text.
    #[must_use]
    pub fn tenant_str(&self) -> &str {
        &self.text[..usize::from(self.slash)]
    }

    /// The name without its tenant.
    #[must_use]
    pub fn local(&self) -> &str {
        &self.text[usize::from(self.slash) + 1..]
    }
}

impl<K: Kind> FromStr for Scoped<K> {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        let not_scoped = || NameError::NotScoped {
            what: K::WHAT,
            given: excerpt(s),
        };
        let (tenant, name) = s.split_once('/').ok_or_else(not_scoped)?;
        check("tenant", tenant, MAX_TENANT_BYTES, s)?;
        check(K::WHAT, name, MAX_NAME_BYTES, s)?;
        let slash = u8::try_from(tenant.len()).map_err(|_| not_scoped())?;
        Ok(Self {
            text: s.into(),
            slash,
            kind: PhantomData,
        })
    }
}

text_serde!(Scoped<K: Kind>);

impl<K> Clone for Scoped<K> {
    fn clone(&self) -> Self {
        Self {
            text: Arc::clone(&self.text),
            slash: self.slash,
            kind: PhantomData,
        }
    }
}
impl<K> PartialEq for Scoped<K> {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}
impl<K> Eq for Scoped<K> {}
impl<K> PartialOrd for Scoped<K> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<K> Ord for Scoped<K> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.text.cmp(&other.text)
    }
}
impl<K> Hash for Scoped<K> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

/// Who is at the other end: `spiffe://<trust domain>/<tenant>/<name>`, from the
/// client certificate's SAN URI.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Principal {
    text: Arc<str>,
    tenant: Tenant,
}

impl Principal {
    /// The principal as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The tenant that the principal belongs to.
    #[must_use]
    pub fn tenant(&self) -> &Tenant {
        &self.tenant
    }
}

impl FromStr for Principal {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        let bad = || NameError::NotPrincipal { given: excerpt(s) };
        if s.len() > MAX_PRINCIPAL_BYTES {
            let (given, len) = (excerpt(s), s.len());
            return Err(NameError::TooLong {
                what: "principal",
                given,
                len,
                max: MAX_PRINCIPAL_BYTES,
            });
        }
        let mut parts = s.strip_prefix("spiffe://").ok_or_else(bad)?.split('/');
        let (Some(domain), Some(tenant), Some(name), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(bad());
        };
        check("trust domain", domain, MAX_NAME_BYTES, s)?;
        check("principal name", name, MAX_NAME_BYTES, s)?;
        check("tenant", tenant, MAX_TENANT_BYTES, s)?;
        Ok(Self {
            text: s.into(),
            tenant: Tenant(tenant.into()),
        })
    }
}
text_serde!(Principal);

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_scoped_name_has_a_tenant_and_a_local_part() {
        let name: TopicName = "acme/quakes.raw".parse().unwrap();
        assert_eq!(name.tenant().as_str(), "acme");
        assert_eq!(name.local(), "quakes.raw");
        assert_eq!(name.to_string(), "acme/quakes.raw");
    }

    #[test]
    fn names_outside_the_alphabet_are_refused() {
        for bad in [
            "", "acme", "acme/", "/x", "acme/a/b", "Acme/x", "acme/-x", "acme/x y", "acme/ü",
        ] {
            assert!(bad.parse::<TopicName>().is_err(), "{bad:?}");
        }
        assert!(
            format!("acme/{}", "x".repeat(128))
                .parse::<TopicName>()
                .is_err()
        );
    }

    #[test]
    fn a_principal_is_a_spiffe_uri_with_two_parts() {
        let p: Principal = "spiffe://example.org/acme/ingest-1".parse().unwrap();
        assert_eq!(p.tenant().as_str(), "acme");
        for bad in [
            "acme/x",
            "spiffe://d/acme",
            "spiffe://d/acme/x/y",
            "spiffe:///acme/x",
            "http://d/a/b",
        ] {
            assert!(bad.parse::<Principal>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn serde_refuses_what_the_parser_refuses() {
        let bytes = postcard::to_allocvec("acme/UPPER").unwrap();
        assert!(postcard::from_bytes::<TopicName>(&bytes).is_err());
    }

    proptest! {
        #[test]
        fn any_text_parses_or_errs_and_what_parses_prints_the_same(s in "\\PC{0,200}") {
            if let Ok(name) = s.parse::<TopicName>() {
                prop_assert_eq!(name.as_str(), s.as_str());
            }
            let _ = s.parse::<Principal>();
        }
    }
}
