//! Who holds a certificate: what exactly one value of the one configured field says.
//!
//! What is absent on purpose: a second field that is looked at when the first is missing, and a
//! first value that counts when there are several. Both would let whoever chooses a certificate's
//! other contents choose who he is.

use millstream_proto::{ErrorCode, NameError, Principal, WireError};
use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The field of client certificates that says who their holders are.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Identity {
    /// The SAN URI, which is the principal: `spiffe://<trust domain>/<tenant>/<name>`.
    Uri {
        /// The only trust domain that is taken; without it, every one that the authorities vouch
        /// for.
        trust_domain: Option<String>,
    },
    /// A name of another kind, which is turned into a principal.
    Named {
        /// Which field.
        field: NamedField,
        /// What every name ends in, behind a dot.
        suffix: String,
        /// The trust domain of the principals.
        trust_domain: String,
    },
}

/// A field that holds a name, not a principal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamedField {
    /// The SAN DNS name, `<name>.<tenant>.<suffix>`.
    Dns,
    /// The SAN e-mail address, `<name>@<tenant>.<suffix>`.
    Email,
    /// The subject's common name, `<name>.<tenant>.<suffix>`.
    CommonName,
}

impl Default for Identity {
    fn default() -> Self {
        Self::Uri { trust_domain: None }
    }
}

/// Why a certificate does not say who its holder is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoIdentity {
    /// There is no certificate. The TLS settings do not let this happen.
    #[error("the connection has no client certificate")]
    NoCertificate,
    /// The certificate cannot be taken apart.
    #[error("the client certificate cannot be read: {0}")]
    Unreadable(String),
    /// Not exactly one value of the field.
    #[error(
        "the client certificate has {found} {field}; this broker expects exactly one, of the form \
         {form}"
    )]
    NotOne {
        /// The field, in the plural.
        field: &'static str,
        /// How many it has.
        found: usize,
        /// What is expected.
        form: String,
    },
    /// The SAN URI is not a principal.
    #[error("the client certificate's SAN URI names nobody: {0}")]
    NotPrincipal(#[from] NameError),
    /// A principal of another trust domain, or a name with another suffix.
    #[error("the client certificate is for {given:?}; this broker expects the form {form}")]
    Elsewhere {
        /// What the certificate says.
        given: String,
        /// What is expected.
        form: String,
    },
}

impl From<NoIdentity> for WireError {
    fn from(e: NoIdentity) -> Self {
        Self::new(ErrorCode::NoIdentity, e.to_string())
    }
}

impl Identity {
    /// Who holds the certificate that begins `chain`. That it is valid is for TLS to verify.
    ///
    /// # Errors
    /// [`NoIdentity`] when there is not exactly one value of the configured field, or it is not of
    /// the form that is expected.
    pub fn principal(&self, chain: &[CertificateDer<'_>]) -> Result<Principal, NoIdentity> {
        let leaf = chain.first().ok_or(NoIdentity::NoCertificate)?;
        let (_, leaf) = X509Certificate::from_der(leaf).map_err(|e| unreadable(&e))?;
        self.of(&leaf)
    }

    /// As [`Identity::principal`], of a certificate that was taken apart already.
    pub(super) fn of(&self, leaf: &X509Certificate<'_>) -> Result<Principal, NoIdentity> {
        let values = self.values(leaf)?;
        let [value] = values.as_slice() else {
            return Err(NoIdentity::NotOne {
                field: self.field(),
                found: values.len(),
                form: self.form(),
            });
        };
        let elsewhere = || NoIdentity::Elsewhere {
            given: value.clone(),
            form: self.form(),
        };
        match self {
            Self::Uri { trust_domain } => {
                let who: Principal = value.parse()?;
                let prefix = trust_domain.as_ref().map(|d| format!("spiffe://{d}/"));
                match prefix.is_none_or(|prefix| who.as_str().starts_with(&prefix)) {
                    true => Ok(who),
                    false => Err(elsewhere()),
                }
            }
            Self::Named {
                field,
                suffix,
                trust_domain,
            } => {
                let (name, tenant) = field.split(value, suffix).ok_or_else(elsewhere)?;
                Ok(format!("spiffe://{trust_domain}/{tenant}/{name}").parse()?)
            }
        }
    }

    /// Every value of the field.
    fn values(&self, leaf: &X509Certificate<'_>) -> Result<Vec<String>, NoIdentity> {
        if let Self::Named {
            field: NamedField::CommonName,
            ..
        } = self
        {
            let names = leaf.subject().iter_common_name();
            let names = names.map(|name| name.as_str().map(str::to_owned));
            return names
                .collect::<Result<_, _>>()
                .map_err(|e| unreadable(&format!("its common name is not text: {e}")));
        }
        let names = leaf
            .subject_alternative_name()
            .map_err(|e| unreadable(&e))?;
        let names = names.map_or(&[][..], |names| &names.value.general_names[..]);
        let value = |name: &GeneralName<'_>| match (self, name) {
            (Self::Uri { .. }, GeneralName::URI(uri)) => Some((*uri).to_owned()),
            (Self::Named { field, .. }, GeneralName::DNSName(host))
                if *field == NamedField::Dns =>
            {
                Some((*host).to_owned())
            }
            (Self::Named { field, .. }, GeneralName::RFC822Name(address))
                if *field == NamedField::Email =>
            {
                Some((*address).to_owned())
            }
            _ => None,
        };
        Ok(names.iter().filter_map(value).collect())
    }

    fn field(&self) -> &'static str {
        match self {
            Self::Uri { .. } => "SAN URIs",
            Self::Named { field, .. } => match field {
                NamedField::Dns => "SAN DNS names",
                NamedField::Email => "SAN e-mail addresses",
                NamedField::CommonName => "common names",
            },
        }
    }

    /// What the field's value must look like.
    fn form(&self) -> String {
        match self {
            Self::Uri { trust_domain } => {
                let domain = trust_domain.as_deref().unwrap_or("<trust domain>");
                format!("spiffe://{domain}/<tenant>/<name>")
            }
            Self::Named { field, suffix, .. } => {
                let between = field.between();
                format!("<name>{between}<tenant>.{suffix}, without a dot in the tenant")
            }
        }
    }
}

impl NamedField {
    /// What stands between the name and the tenant.
    fn between(self) -> char {
        match self {
            Self::Email => '@',
            Self::Dns | Self::CommonName => '.',
        }
    }

    /// Name and tenant. The tenant has no dot, so there is one way to read a value.
    fn split<'v>(self, value: &'v str, suffix: &str) -> Option<(&'v str, &'v str)> {
        let rest = value.strip_suffix(suffix)?.strip_suffix('.')?;
        let (name, tenant) = rest.rsplit_once(self.between())?;
        (!tenant.contains('.')).then_some((name, tenant))
    }
}

fn unreadable(e: &dyn std::fmt::Display) -> NoIdentity {
    NoIdentity::Unreadable(e.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    /// A self-signed certificate with these names and common names.
    fn certificate(names: Vec<SanType>, common: &[&str]) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = names;
        params.distinguished_name = rcgen::DistinguishedName::new();
        // The library takes one value of each type, and does not know that these are the same.
        let types = [DnType::CommonName, DnType::CustomDnType(vec![2, 5, 4, 3])];
        for (kind, name) in types.into_iter().zip(common) {
            params.distinguished_name.push(kind, *name);
        }
        params
            .self_signed(&KeyPair::generate().unwrap())
            .unwrap()
            .der()
            .clone()
    }

    fn uris(uris: &[&str]) -> CertificateDer<'static> {
        let uris = uris
            .iter()
            .map(|uri| SanType::URI((*uri).try_into().unwrap()));
        let mut names = vec![SanType::DnsName("client".try_into().unwrap())];
        names.extend(uris);
        certificate(names, &["spiffe://d/acme/cn"])
    }

    fn named(field: NamedField) -> Identity {
        Identity::Named {
            field,
            suffix: "clients.example.org".into(),
            trust_domain: "example.org".into(),
        }
    }

    #[test]
    fn the_principal_is_the_one_spiffe_uri() {
        let of = |names: &[&str]| Identity::default().principal(&[uris(names)]);
        let who = of(&["spiffe://millstream.local/acme/ingest"]).unwrap();
        assert_eq!(who.as_str(), "spiffe://millstream.local/acme/ingest");
        let not_one = |found| NoIdentity::NotOne {
            field: "SAN URIs",
            found,
            form: "spiffe://<trust domain>/<tenant>/<name>".into(),
        };
        assert_eq!(of(&[]), Err(not_one(0)));
        let two = ["spiffe://d/acme/a", "spiffe://d/acme/b"];
        assert_eq!(of(&two), Err(not_one(2)));
        for strange in ["https://d/acme/a", "spiffe://d/acme", "spiffe://d/acme/A"] {
            assert!(matches!(of(&[strange]), Err(NoIdentity::NotPrincipal(_))));
        }
        let nobody = Identity::default().principal(&[]);
        assert_eq!(nobody, Err(NoIdentity::NoCertificate));
        let wire = WireError::from(of(&[]).unwrap_err());
        assert_eq!(wire.code, ErrorCode::NoIdentity);
    }

    #[test]
    fn another_trust_domain_is_refused_where_one_is_named() {
        let identity = Identity::Uri {
            trust_domain: Some("example.org".into()),
        };
        let of = |uri: &str| identity.principal(&[uris(&[uri])]);
        assert!(of("spiffe://example.org/acme/a").is_ok());
        for elsewhere in [
            "spiffe://example.or/acme/a",
            "spiffe://example.org.evil/acme/a",
        ] {
            let e = of(elsewhere).unwrap_err();
            assert!(matches!(e, NoIdentity::Elsewhere { .. }), "{e}");
            assert!(e.to_string().contains("spiffe://example.org/"), "{e}");
        }
    }

    /// What a certificate with these values in the field is taken for.
    fn taken(field: NamedField, values: &[&str]) -> Result<Principal, NoIdentity> {
        let text = |value: &&str| match field {
            NamedField::Dns => Some(SanType::DnsName((*value).try_into().unwrap())),
            NamedField::Email => Some(SanType::Rfc822Name((*value).try_into().unwrap())),
            NamedField::CommonName => None,
        };
        let names = values.iter().filter_map(text).collect();
        let common = match field {
            NamedField::CommonName => values,
            _ => &[],
        };
        named(field).principal(&[certificate(names, common)])
    }

    #[test]
    fn other_fields_are_turned_into_principals() {
        for (field, value) in [
            (NamedField::Dns, "ingest.eu.acme.clients.example.org"),
            (NamedField::Email, "ingest.eu@acme.clients.example.org"),
            (NamedField::CommonName, "ingest.eu.acme.clients.example.org"),
        ] {
            let who = taken(field, &[value]).unwrap();
            assert_eq!(who.as_str(), "spiffe://example.org/acme/ingest.eu");
            let none = taken(field, &[]).unwrap_err();
            assert!(matches!(none, NoIdentity::NotOne { found: 0, .. }));
        }
        let two = ["a.acme.clients.example.org", "b.acme.clients.example.org"];
        for field in [NamedField::Dns, NamedField::CommonName] {
            let e = taken(field, &two).unwrap_err();
            assert!(matches!(e, NoIdentity::NotOne { found: 2, .. }), "{e}");
        }
    }

    #[test]
    fn a_name_that_is_not_of_the_form_names_nobody() {
        for (field, value) in [
            (NamedField::Dns, "acme.clients.example.org"),
            (NamedField::Dns, "ingest.acme.clients.example.com"),
            (NamedField::Dns, "ingest.acmeclients.example.org"),
            (NamedField::Dns, "clients.example.org"),
            (NamedField::Dns, "*.acme.clients.example.org"),
            (NamedField::Dns, ".acme.clients.example.org"),
            (NamedField::Dns, "Ingest.acme.clients.example.org"),
            (NamedField::Email, "ingest@clients.example.org"),
            (NamedField::Email, "ingest@eu.acme.clients.example.org"),
            (NamedField::Email, "a@b@acme.clients.example.org"),
            (NamedField::Email, "a/b@acme.clients.example.org"),
            (NamedField::CommonName, "a/b.acme.clients.example.org"),
            (NamedField::CommonName, "spiffe://example.org/acme/a"),
        ] {
            let refused = taken(field, &[value]);
            assert!(refused.is_err(), "{value}: {refused:?}");
        }
    }

    #[test]
    fn a_field_that_is_not_the_configured_one_does_not_count() {
        let host = "a.acme.clients.example.org";
        let names = vec![SanType::DnsName(host.try_into().unwrap())];
        let certificate = [certificate(names, &[host])];
        assert!(named(NamedField::Dns).principal(&certificate).is_ok());
        assert!(
            named(NamedField::CommonName)
                .principal(&certificate)
                .is_ok()
        );
        assert!(named(NamedField::Email).principal(&certificate).is_err());
        assert!(Identity::default().principal(&certificate).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, cut in 0usize..400, flip: u8) {
            let fields = [NamedField::Dns, NamedField::Email, NamedField::CommonName];
            let mut identities: Vec<_> = fields.map(named).into();
            identities.push(Identity::default());
            let mut good = uris(&["spiffe://d/acme/a"]).to_vec();
            let at = cut % good.len();
            good[at] ^= flip;
            let chains = [[CertificateDer::from(bytes)], [CertificateDer::from(good)]];
            for identity in identities {
                for chain in &chains {
                    let _ = identity.principal(chain);
                }
            }
        }

        #[test]
        fn a_name_is_read_in_one_way_only(name in "[a-z.@]{0,12}", tenant in "[a-z.@]{0,8}") {
            for field in [NamedField::Dns, NamedField::Email] {
                let value = format!("{name}{}{tenant}.s", field.between());
                if let Some((n, t)) = field.split(&value, "s") {
                    prop_assert_eq!(format!("{n}{}{t}.s", field.between()), value.as_str());
                    prop_assert!(!t.contains('.'));
                }
            }
        }
    }
}
