//! Who is who: the TLS settings of the listener, and the principal in a client's certificate.
//!
//! TLS 1.3 only, a certificate from both sides, one ALPN. What is absent on purpose: session
//! resumption, tickets and 0-RTT. A resumed session would carry a client's certificate over
//! without verifying it again, so that neither expiry nor revocation would end it. The files are
//! read once, at the start.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use millstream_proto::version::ALPN;
use millstream_proto::{ErrorCode, NameError, Principal, WireError};
use quinn::crypto::rustls::QuicServerConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{CipherSuite, RootCertStore, SupportedCipherSuite};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::TlsFiles;
use crate::reset::ResetKey;

/// Largest PEM file that is read, in bytes.
const MAX_PEM_BYTES: u64 = 8 << 20;

/// Why the listener's TLS cannot be set up. Each names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read the {what} {}: {source}", file.display())]
    Read {
        /// What the file should hold.
        what: &'static str,
        /// The file.
        file: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} does not hold a usable {what}: {why}", file.display())]
    Content {
        /// What it should hold.
        what: &'static str,
        /// The file.
        file: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The private key can be read by others than its owner.
    #[error(
        "the private key {} can be read by others (mode {mode:03o}); run: chmod 600 {}",
        file.display(), file.display()
    )]
    OpenKey {
        /// The file.
        file: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Certificate and key do not belong together, or the cryptography refuses them.
    #[error("{} and {} cannot be used together: {why}", cert.display(), key.display())]
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong.
        why: String,
    },
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
    /// Not exactly one SAN URI.
    #[error(
        "the client certificate has {found} SAN URIs; expected exactly one, of the form \
         spiffe://<trust domain>/<tenant>/<name>. Issue one with `millstream pki issue`"
    )]
    NotOneUri {
        /// How many it has.
        found: usize,
    },
    /// The SAN URI is not a principal.
    #[error("the client certificate's SAN URI names nobody: {0}")]
    NotPrincipal(#[from] NameError),
}

impl From<NoIdentity> for WireError {
    fn from(e: NoIdentity) -> Self {
        Self::new(ErrorCode::NoIdentity, e.to_string())
    }
}

/// The TLS side of the QUIC listener. Blocking: reads the files.
///
/// # Errors
/// [`TlsError`], naming the file.
pub fn quic_server_config(files: &TlsFiles) -> Result<QuicServerConfig, TlsError> {
    let config = Arc::new(server_config(files)?);
    let aes = config.crypto_provider().cipher_suites.first().copied();
    let initial = aes
        .and_then(|suite| suite.tls13().and_then(|suite| suite.quic_suite()))
        .expect("the provider's first suite is AES-128-GCM, which QUIC can use");
    Ok(QuicServerConfig::with_initial(config, initial)
        .expect("the suite is the one that QUIC prescribes for its first packets"))
}

/// The TLS settings, from the files that the configuration names. Blocking.
///
/// # Errors
/// [`TlsError`], naming the file.
pub fn server_config(files: &TlsFiles) -> Result<rustls::ServerConfig, TlsError> {
    let provider = Arc::new(provider());
    let mut roots = RootCertStore::empty();
    for ca in certificates("client CA certificate", &files.client_ca)? {
        roots
            .add(ca)
            .map_err(|e| content("client CA certificate", &files.client_ca, &e))?;
    }
    let roots = Arc::new(roots);
    let mut verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
    if !files.revocation_lists.is_empty() {
        // Authorities that publish no list stay usable; a list that has run out still revokes.
        verifier = verifier.allow_unknown_revocation_status();
    }
    for file in &files.revocation_lists {
        let lists = sections::<CertificateRevocationListDer<'_>>(REVOCATIONS, file)?;
        verifier = verifier.with_crls(lists);
    }
    let verifier = verifier.build().map_err(|e| {
        // Only lists can still be wrong: the roots were checked one by one.
        let file = files.revocation_lists.first().unwrap_or(&files.client_ca);
        content(REVOCATIONS, file, &e)
    })?;
    let cert = certificates("server certificate", &files.cert)?;
    let key = private_key(&files.key)?;
    let pair = |e: rustls::Error| TlsError::Pair {
        cert: files.cert.clone(),
        key: files.key.clone(),
        why: e.to_string(),
    };
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(pair)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(cert, key)
        .map_err(pair)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.ignore_client_order = true;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// The key of stateless resets, which the next broker with these files makes too. Blocking.
///
/// # Errors
/// [`TlsError`], naming the file.
pub(crate) fn reset_key(files: &TlsFiles) -> Result<ResetKey, TlsError> {
    Ok(ResetKey::derive(private_key(&files.key)?.secret_der()))
}

const REVOCATIONS: &str = "certificate revocation list";

/// AES-128-GCM first: with the instructions that nearly every processor has it is the fastest,
/// and the broker's order decides.
fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider
        .cipher_suites
        .retain(|suite| matches!(suite, SupportedCipherSuite::Tls13(_)));
    provider
        .cipher_suites
        .sort_by_key(|s| s.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}

fn content(what: &'static str, file: &Path, why: &dyn std::fmt::Display) -> TlsError {
    TlsError::Content {
        what,
        file: file.to_owned(),
        why: why.to_string(),
    }
}

fn read(what: &'static str, file: &Path, mut open: File) -> Result<Vec<u8>, TlsError> {
    let mut bytes = Vec::new();
    let got = open
        .by_ref()
        .take(MAX_PEM_BYTES + 1)
        .read_to_end(&mut bytes);
    got.map_err(|source| TlsError::Read {
        what,
        file: file.to_owned(),
        source,
    })?;
    if bytes.len() as u64 > MAX_PEM_BYTES {
        return Err(content(
            what,
            file,
            &format!("it has more than {MAX_PEM_BYTES} bytes"),
        ));
    }
    Ok(bytes)
}

fn open(what: &'static str, file: &Path) -> Result<File, TlsError> {
    File::open(file).map_err(|source| TlsError::Read {
        what,
        file: file.to_owned(),
        source,
    })
}

/// Every PEM section of a kind; at least one.
fn sections<T: PemObject>(what: &'static str, file: &Path) -> Result<Vec<T>, TlsError> {
    let bytes = read(what, file, open(what, file)?)?;
    let sections: Result<Vec<T>, _> = T::pem_slice_iter(&bytes).collect();
    let sections = sections.map_err(|e| content(what, file, &e))?;
    if sections.is_empty() {
        return Err(content(what, file, &"it has no PEM section of that kind"));
    }
    Ok(sections)
}

fn certificates(what: &'static str, file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    sections(what, file)
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    const WHAT: &str = "private key";
    let handle = open(WHAT, file)?;
    // Of the open file, not of the path: what is checked is what is read.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let meta = handle.metadata();
        let meta = meta.map_err(|source| TlsError::Read {
            what: WHAT,
            file: file.to_owned(),
            source,
        })?;
        let mode = meta.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(TlsError::OpenKey {
                file: file.to_owned(),
                mode,
            });
        }
    }
    let bytes = read(WHAT, file, handle)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|e| content(WHAT, file, &e))
}

/// Who holds the certificate that begins `chain`: what its one SAN URI says. That the
/// certificate is valid was verified by TLS.
///
/// # Errors
/// [`NoIdentity`] when there is not exactly one SAN URI of the form
/// `spiffe://<trust domain>/<tenant>/<name>`.
pub fn principal(chain: &[CertificateDer<'_>]) -> Result<Principal, NoIdentity> {
    let leaf = chain.first().ok_or(NoIdentity::NoCertificate)?;
    let unreadable = |e: &dyn std::fmt::Display| NoIdentity::Unreadable(e.to_string());
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|e| unreadable(&e))?;
    let names = leaf
        .subject_alternative_name()
        .map_err(|e| unreadable(&e))?;
    let names = names.map_or(&[][..], |names| &names.value.general_names[..]);
    let uris: Vec<&str> = names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    match uris.as_slice() {
        [uri] => Ok(uri.parse()?),
        _ => Err(NoIdentity::NotOneUri { found: uris.len() }),
    }
}

#[cfg(test)]
pub(crate) mod tests;
