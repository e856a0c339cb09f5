//! Keys and certificates, without files.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use millstream_proto::{NameError, Principal};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use time::Duration;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::parse_x509_pem;

use crate::clock;

/// Clocks of other machines may be behind by so much.
const CLOCK_SKEW: Duration = Duration::minutes(10);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PkiError {
    /// A file or directory could not be used.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// Create, read or write.
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nothing is overwritten.
    #[error("{} exists already and is not overwritten", .0.display())]
    Exists(PathBuf),
    /// Somebody else could replace what is in it.
    #[error("others may write to the directory {}", .0.display())]
    Writable(PathBuf),
    /// The certificate or key of the authority cannot be used.
    #[error("{} is not an authority made by `millstream pki init`: {why}", path.display())]
    NotAuthority {
        /// The certificate.
        path: PathBuf,
        /// What is missing.
        why: String,
    },
    /// A tenant, name or domain outside the alphabet.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A host name that cannot stand in a certificate.
    #[error("{0:?} is neither a host name nor an IP address")]
    Host(String),
    /// The cryptographic library refused.
    #[error("cannot make the certificate: {0}")]
    Crypto(#[from] rcgen::Error),
}

/// Whom a certificate is for.
#[derive(Clone, Debug)]
pub(crate) enum Identity {
    /// A broker with these host names and addresses.
    Server(Vec<String>),
    /// A client.
    Client(Principal),
}

/// A certificate with its key, both PEM.
#[derive(Debug)]
pub(crate) struct Issued {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// An authority that can issue.
pub(crate) struct Authority {
    domain: String,
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new authority for a trust domain.
    pub(crate) fn create(domain: &str, days: u32) -> Result<Self, PkiError> {
        let mut params = valid_for(days);
        params.distinguished_name = subject(&format!("Millstream CA {domain}"));
        params.subject_alt_names = vec![uri(&format!("spiffe://{domain}"))?];
        // It signs end entities only.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self {
            domain: domain.to_owned(),
            certificate,
            issuer: Issuer::new(params, key),
        })
    }

    /// An authority from its files.
    pub(crate) fn from_pem(certificate: &str, key: &str) -> Result<Self, String> {
        let domain = domain_of(certificate)?;
        let key = KeyPair::from_pem(key).map_err(|e| format!("its key cannot be read: {e}"))?;
        let issuer = Issuer::from_ca_cert_pem(certificate, key).map_err(|e| e.to_string())?;
        Ok(Self {
            domain,
            certificate: certificate.to_owned(),
            issuer,
        })
    }

    /// The trust domain.
    pub(crate) fn domain(&self) -> &str {
        &self.domain
    }

    /// The certificate, PEM.
    pub(crate) fn certificate_pem(&self) -> String {
        self.certificate.clone()
    }

    /// The key, PEM.
    pub(crate) fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A new key and a certificate for it.
    pub(crate) fn issue(&self, identity: &Identity, days: u32) -> Result<Issued, PkiError> {
        let mut params = valid_for(days);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        match identity {
            Identity::Server(hosts) => {
                params.distinguished_name = subject(&format!("Millstream broker {}", self.domain));
                params.subject_alt_names =
                    hosts.iter().map(|h| host(h)).collect::<Result<_, _>>()?;
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            }
            Identity::Client(principal) => {
                params.distinguished_name = subject(principal.as_str());
                params.subject_alt_names = vec![uri(principal.as_str())?];
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            }
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }
}

fn valid_for(days: u32) -> CertificateParams {
    let now = clock::now();
    let mut params = CertificateParams::default();
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + Duration::days(i64::from(days));
    params
}

fn subject(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

fn uri(text: &str) -> Result<SanType, PkiError> {
    Ok(SanType::URI(text.try_into()?))
}

fn host(text: &str) -> Result<SanType, PkiError> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let in_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '*');
    if text.is_empty() || text.len() > 253 || !text.chars().all(in_name) {
        return Err(PkiError::Host(text.to_owned()));
    }
    Ok(SanType::DnsName(text.try_into()?))
}

/// The trust domain in an authority's certificate.
pub(crate) fn domain_of(certificate: &str) -> Result<String, String> {
    let (_, pem) = parse_x509_pem(certificate.as_bytes()).map_err(|e| e.to_string())?;
    let parsed = pem.parse_x509().map_err(|e| e.to_string())?;
    if !parsed.is_ca() {
        return Err("it is not allowed to issue certificates".to_owned());
    }
    let names = parsed
        .subject_alternative_name()
        .map_err(|e| e.to_string())?;
    names
        .into_iter()
        .flat_map(|extension| &extension.value.general_names)
        .find_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix("spiffe://").map(str::to_owned),
            _ => None,
        })
        .filter(|domain| !domain.is_empty() && !domain.contains('/'))
        .ok_or_else(|| "it names no trust domain (SAN URI spiffe://<domain>)".to_owned())
}
