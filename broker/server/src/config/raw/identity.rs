//! `[identity]`: which field of a client's certificate says who the client is.

use millstream_proto::Principal;
use serde::Deserialize;

use super::{ConfigError, value};
use crate::tls::{Identity, NamedField};

/// The table as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    #[serde(default)]
    field: Field,
    trust_domain: Option<String>,
    suffix: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Field {
    #[default]
    Uri,
    Dns,
    Email,
    Cn,
}

impl Raw {
    pub(super) fn check(self) -> Result<Identity, ConfigError> {
        let Self {
            field,
            trust_domain,
            suffix,
        } = self;
        if let Some(domain) = &trust_domain {
            check_domain("identity.trust_domain", domain)?;
        }
        let field = match field {
            Field::Uri => {
                return match suffix {
                    None => Ok(Identity::Uri { trust_domain }),
                    Some(suffix) => Err(value(
                        "identity.suffix",
                        &suffix,
                        "it is for the fields dns, email and cn; leave it out",
                    )),
                };
            }
            Field::Dns => NamedField::Dns,
            Field::Email => NamedField::Email,
            Field::Cn => NamedField::CommonName,
        };
        let suffix = suffix.ok_or_else(|| missing("identity.suffix", "clients.example.org"))?;
        check_domain("identity.suffix", &suffix)?;
        Ok(Identity::Named {
            field,
            suffix,
            trust_domain: trust_domain
                .ok_or_else(|| missing("identity.trust_domain", "example.org"))?,
        })
    }
}

/// Whatever can stand in a principal as its trust domain.
fn check_domain(key: &'static str, domain: &str) -> Result<(), ConfigError> {
    let end = |c: char| c.is_ascii_alphanumeric();
    let principal = format!("spiffe://{domain}/t/n").parse::<Principal>();
    if principal.is_ok() && domain.ends_with(end) {
        return Ok(());
    }
    let expected = "it must be a domain such as example.org, in lower case";
    Err(value(key, domain, expected))
}

fn missing(key: &'static str, example: &str) -> ConfigError {
    let expected = format!("with this field it must be given, as {example:?}");
    value(key, "", &expected)
}
