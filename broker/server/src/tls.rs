//! Who is who: the TLS settings of the listener, and the principal in a client's certificate.
//!
//! TLS 1.3 only, a certificate from both sides, one ALPN. What is absent on purpose: session
//! resumption, tickets and 0-RTT. A resumed session would carry a client's certificate over
//! without verifying it again, so that neither expiry nor revocation would end it. The files are
//! read at the start, and again when they change.

mod files;
mod identity;
mod revocations;
mod verifier;

use std::sync::Arc;

use millstream_proto::version::ALPN;
use quinn::crypto::rustls::QuicServerConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{CipherSuite, RootCertStore, SupportedCipherSuite};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::TlsFiles;
use crate::reset::ResetKey;

pub use files::TlsError;
use files::{certificates, content, private_key, sections};
pub use identity::{Identity, NamedField, NoIdentity};
pub(crate) use verifier::Verifier;

/// What was made of the files in one go.
pub(crate) struct Loaded {
    /// The TLS side of the QUIC listener.
    pub(crate) quic: QuicServerConfig,
    /// What clients must pass: in the handshake, and again when something has changed.
    pub(crate) verifier: Arc<Verifier>,
    /// Until when the broker's own certificate is good, in milliseconds since the Unix epoch.
    pub(crate) until_ms: Option<i64>,
}

/// Reads everything. Blocking.
///
/// # Errors
/// [`TlsError`], naming the file.
pub(crate) fn load(files: &TlsFiles) -> Result<Loaded, TlsError> {
    let provider = Arc::new(provider());
    let verifier = Arc::new(verifier(files, &provider)?);
    let cert = certificates(SERVER_CERTIFICATE, &files.cert)?;
    let until_ms = cert.first().and_then(|leaf| {
        let (_, leaf) = X509Certificate::from_der(leaf).ok()?;
        leaf.validity().not_after.timestamp().checked_mul(1000)
    });
    let config = server_config_with(files, cert, provider, Arc::clone(&verifier))?;
    Ok(Loaded {
        quic: for_quic(config),
        verifier,
        until_ms,
    })
}

/// The TLS side of the QUIC listener. Blocking: reads the files.
///
/// # Errors
/// [`TlsError`], naming the file.
pub fn quic_server_config(files: &TlsFiles) -> Result<QuicServerConfig, TlsError> {
    Ok(for_quic(server_config(files)?))
}

fn for_quic(config: rustls::ServerConfig) -> QuicServerConfig {
    let config = Arc::new(config);
    let aes = config.crypto_provider().cipher_suites.first().copied();
    let initial = aes
        .and_then(|suite| suite.tls13().and_then(|suite| suite.quic_suite()))
        .expect("the provider's first suite is AES-128-GCM, which QUIC can use");
    QuicServerConfig::with_initial(config, initial)
        .expect("the suite is the one that QUIC prescribes for its first packets")
}

/// The TLS settings, from the files that the configuration names. Blocking.
///
/// # Errors
/// [`TlsError`], naming the file.
pub fn server_config(files: &TlsFiles) -> Result<rustls::ServerConfig, TlsError> {
    let provider = Arc::new(provider());
    let verifier = Arc::new(verifier(files, &provider)?);
    let cert = certificates(SERVER_CERTIFICATE, &files.cert)?;
    server_config_with(files, cert, provider, verifier)
}

/// What clients' certificates must pass, from the files that the configuration names. Blocking.
///
/// # Errors
/// [`TlsError`], naming the file.
fn verifier(files: &TlsFiles, provider: &Arc<CryptoProvider>) -> Result<Verifier, TlsError> {
    let mut roots = RootCertStore::empty();
    let authorities = certificates(CLIENT_CA, &files.client_ca)?;
    for ca in &authorities {
        roots
            .add(ca.clone())
            .map_err(|e| content(CLIENT_CA, &files.client_ca, &e))?;
    }
    let roots = Arc::new(roots);
    let mut verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider));
    if !files.revocation_lists.is_empty() {
        // Authorities that publish no list stay usable; a list that has run out still revokes. One
        // of an authority that is not known would revoke nothing: below, it is refused.
        verifier = verifier.allow_unknown_revocation_status();
    }
    for file in &files.revocation_lists {
        let lists = sections::<CertificateRevocationListDer<'_>>(REVOCATIONS, file)?;
        revocations::check(&lists, file, &authorities, &files.client_ca)?;
        verifier = verifier.with_crls(lists);
    }
    let verifier = verifier.build().map_err(|e| {
        // Only lists can still be wrong: the roots were checked one by one.
        let file = files.revocation_lists.first().unwrap_or(&files.client_ca);
        content(REVOCATIONS, file, &e)
    })?;
    Ok(Verifier::new(verifier, files.identity.clone()))
}

/// TLS settings with a certificate and a verifier that were read already. Blocking.
///
/// # Errors
/// [`TlsError`], naming the file.
fn server_config_with(
    files: &TlsFiles,
    cert: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
    verifier: Arc<Verifier>,
) -> Result<rustls::ServerConfig, TlsError> {
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

const SERVER_CERTIFICATE: &str = "server certificate";
const CLIENT_CA: &str = "client CA certificate";
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

#[cfg(test)]
pub(crate) mod tests;
