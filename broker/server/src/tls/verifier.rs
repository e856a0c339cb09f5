//! Verifies clients during the handshake: their chain, its use, and that it says who they are.

use std::fmt;
use std::sync::Arc;

use millstream_proto::{ErrorCode, Principal, WireError};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::identity::{Identity, NoIdentity};

/// What every client certificate must pass, during the handshake and as long as it is used.
#[derive(Debug)]
pub(crate) struct Verifier {
    chain: Arc<dyn ClientCertVerifier>,
    identity: Identity,
}

impl Verifier {
    pub(super) fn new(chain: Arc<dyn ClientCertVerifier>, identity: Identity) -> Self {
        Self { chain, identity }
    }

    /// Who holds `certificates`, the leaf first, if they are valid at `now`.
    ///
    /// # Errors
    /// What TLS would refuse them with.
    pub(crate) fn verify(
        &self,
        certificates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Principal, Error> {
        let Some((leaf, rest)) = certificates.split_first() else {
            return Err(Error::NoCertificatesPresented);
        };
        self.chain.verify_client_cert(leaf, rest, now)?;
        let (_, leaf) =
            X509Certificate::from_der(leaf).map_err(|_| CertificateError::BadEncoding)?;
        // A certificate without the extension counts as one for every use where it is looked for
        // by the library. Here, what is not said is not allowed.
        let uses = leaf.extended_key_usage();
        let uses = uses.map_err(|_| CertificateError::BadEncoding)?;
        if !uses.is_some_and(|uses| uses.value.client_auth) {
            return Err(CertificateError::InvalidPurpose.into());
        }
        self.identity.of(&leaf).map_err(|e| Said::error(&e))
    }
}

/// An error whose text reaches the client, in the reason of QUIC's closing frame. The library
/// writes errors of others by their `Debug`.
#[derive(PartialEq)]
struct Said(String);

impl Said {
    fn error(e: &NoIdentity) -> Error {
        let said = WireError::from(e.clone());
        let text = format!("{}{}", mark(said.code), said.message);
        CertificateError::Other(OtherError(Arc::new(Self(text)))).into()
    }
}

/// What precedes the words of such an error, and lets a client tell it from the library's.
fn mark(code: ErrorCode) -> String {
    format!("[{code}] ")
}

impl fmt::Debug for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Said {}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let chain: Vec<CertificateDer<'_>> = std::iter::once(end_entity)
            .chain(intermediates)
            .map(|certificate| CertificateDer::from(certificate.as_ref()))
            .collect();
        self.verify(&chain, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
