//! Keys and certificates, without files.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use millstream_proto::{NameError, Principal};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PKCS_ED25519, RevocationReason, RevokedCertParams, SanType,
    SerialNumber,
};
use rustls::crypto::aws_lc_rs;
use time::{Duration, OffsetDateTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::parse_x509_pem;

use super::index::{Entry, Kind, Reason};
use crate::clock;

/// Clocks of other machines may be behind by so much.
const CLOCK_SKEW: Duration = Duration::minutes(10);
/// Bytes of a serial number: nobody can foresee it, and no two are the same.
const SERIAL_BYTES: usize = 16;
/// Days until a list of revoked certificates should be replaced. Brokers go by it after that too:
/// what was revoked stays revoked.
const LIST_DAYS: i64 = 3650;

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
    /// Others than its owner may read a key.
    #[error("the private key {} can be read by others (mode {mode:03o})", path.display())]
    OpenKey {
        /// Which.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The index of issued certificates makes no sense.
    #[error("{} cannot be used: {why}", path.display())]
    Index {
        /// The index, or a certificate that should be in it.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Nothing of that name or number was issued.
    #[error("{what} was issued no certificate that can still be used")]
    NotIssued {
        /// A principal or a serial number.
        what: String,
    },
    /// A tenant, name or domain outside the alphabet.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A host name that cannot stand in a certificate.
    #[error("{0:?} is neither a host name nor an IP address")]
    Host(String),
    /// Something that does not happen.
    #[error("cannot make the certificate: {0}")]
    Unexpected(String),
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

/// A kind of keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum KeyKind {
    /// ECDSA on P-256, which every TLS 1.3 stack can verify.
    #[default]
    P256,
    /// Ed25519.
    Ed25519,
}

impl KeyKind {
    fn generate(self) -> Result<KeyPair, PkiError> {
        let algorithm = match self {
            Self::P256 => &PKCS_ECDSA_P256_SHA256,
            Self::Ed25519 => &PKCS_ED25519,
        };
        Ok(KeyPair::generate_for(algorithm)?)
    }
}

/// A certificate with its key, both PEM.
#[derive(Debug)]
pub(crate) struct Issued {
    pub(crate) certificate: String,
    pub(crate) key: String,
    /// What the index says of it, but for where it is.
    pub(crate) entry: Entry,
}

/// An authority that can issue.
pub(crate) struct Authority {
    domain: String,
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new authority for a trust domain.
    pub(crate) fn create(domain: &str, days: u32, kind: KeyKind) -> Result<Self, PkiError> {
        let mut params = valid_for(days);
        params.distinguished_name = subject(&format!("Millstream CA {domain}"));
        params.subject_alt_names = vec![uri(&format!("spiffe://{domain}"))?];
        // It signs end entities only.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = kind.generate()?;
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

    /// The kind of its key.
    pub(crate) fn key_kind(&self) -> KeyKind {
        match self.issuer.key().is_compatible(&PKCS_ED25519) {
            true => KeyKind::Ed25519,
            false => KeyKind::P256,
        }
    }

    /// A new key and a certificate for it.
    pub(crate) fn issue(
        &self,
        identity: &Identity,
        days: u32,
        kind: KeyKind,
    ) -> Result<Issued, PkiError> {
        let mut params = valid_for(days);
        params.serial_number = Some(serial()?);
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
        let key = kind.generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        let entry = describe(&certificate).map_err(PkiError::Unexpected)?;
        Ok(Issued {
            certificate,
            key: key.serialize_pem(),
            entry,
        })
    }

    /// The list of those that were revoked, PEM.
    pub(crate) fn list(&self, number: u64, entries: &[Entry]) -> Result<String, PkiError> {
        let now = clock::now();
        let revoked = entries.iter().filter_map(|entry| {
            let revoked = entry.revoked.as_ref()?;
            Some(RevokedCertParams {
                serial_number: SerialNumber::from(bytes(&entry.serial)),
                revocation_time: date(revoked.at_ms),
                reason_code: match revoked.reason {
                    Reason::Unspecified => None,
                    Reason::KeyCompromise => Some(RevocationReason::KeyCompromise),
                    Reason::Superseded => Some(RevocationReason::Superseded),
                    Reason::Cessation => Some(RevocationReason::CessationOfOperation),
                },
                invalidity_date: None,
            })
        });
        let list = CertificateRevocationListParams {
            this_update: now - CLOCK_SKEW,
            next_update: now + Duration::days(LIST_DAYS),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(list.signed_by(&self.issuer)?.pem()?)
    }
}

fn serial() -> Result<SerialNumber, PkiError> {
    let mut bytes = [0; SERIAL_BYTES];
    let random = aws_lc_rs::default_provider().secure_random;
    random
        .fill(&mut bytes)
        .map_err(|_| PkiError::Unexpected("the system gives no random bytes".to_owned()))?;
    // A positive number that begins with a byte other than zero is written as it is.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from(bytes.to_vec()))
}

/// A number of bytes, in hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes that hexadecimal digits mean, as far as they mean any.
fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex
        .chars()
        .filter_map(|c| c.to_digit(16))
        .filter_map(|digit| u8::try_from(digit).ok())
        .collect();
    digits
        .chunks(2)
        .map(|pair| pair.iter().fold(0, |n, d| n << 4 | d))
        .collect()
}

fn date(ms: i64) -> OffsetDateTime {
    let date = OffsetDateTime::from_unix_timestamp(ms.div_euclid(1000));
    date.unwrap_or(OffsetDateTime::UNIX_EPOCH)
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

/// What the index says of a certificate of an authority's, but for where it is.
pub(crate) fn describe(certificate: &str) -> Result<Entry, String> {
    with(certificate, |parsed| {
        let (kind, subject) = match names(parsed)?.as_slice() {
            [uri] if uri.starts_with("spiffe://") => (Kind::Client, uri.clone()),
            hosts => (Kind::Server, hosts.join(" ")),
        };
        let validity = parsed.validity();
        Ok(Entry {
            serial: hex(parsed.raw_serial()),
            kind,
            subject,
            not_before_ms: validity.not_before.timestamp().saturating_mul(1000),
            not_after_ms: validity.not_after.timestamp().saturating_mul(1000),
            file: PathBuf::new(),
            revoked: None,
        })
    })
}

/// The names in a certificate: principals, hosts and addresses.
pub(crate) fn names(parsed: &X509Certificate<'_>) -> Result<Vec<String>, String> {
    let names = parsed
        .subject_alternative_name()
        .map_err(|e| e.to_string())?;
    let names = names.map_or(&[][..], |names| &names.value.general_names[..]);
    let show = |name: &GeneralName<'_>| match name {
        GeneralName::URI(text) | GeneralName::DNSName(text) | GeneralName::RFC822Name(text) => {
            (*text).to_owned()
        }
        GeneralName::IPAddress(octets) => match **octets {
            [a, b, c, d] => IpAddr::from([a, b, c, d]).to_string(),
            _ => <[u8; 16]>::try_from(*octets)
                .map_or_else(|_| hex(octets), |octets| IpAddr::from(octets).to_string()),
        },
        other => other.to_string(),
    };
    Ok(names.iter().map(show).collect())
}

/// Looks into a certificate, PEM.
pub(crate) fn with<T>(
    certificate: &str,
    look: impl FnOnce(&X509Certificate<'_>) -> Result<T, String>,
) -> Result<T, String> {
    let (_, pem) = parse_x509_pem(certificate.as_bytes()).map_err(|e| e.to_string())?;
    look(&pem.parse_x509().map_err(|e| e.to_string())?)
}
