//! Certificates made on the spot.

use millstream::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;

use millstream::proto::version::ALPN;
use millstream::transport::crypto_provider;

/// An authority.
pub(crate) struct Pki {
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca_pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { ca_pem, issuer }
    }

    pub(crate) fn ca(&self) -> Vec<u8> {
        self.ca_pem.clone().into_bytes()
    }

    fn issue(&self, mut params: CertificateParams, use_for: ExtendedKeyUsagePurpose) -> Issued {
        params.extended_key_usages = vec![use_for];
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        Issued {
            cert: cert.pem().into_bytes(),
            key: key.serialize_pem().into_bytes(),
        }
    }

    pub(crate) fn client(&self) -> Issued {
        self.issue(client_params(), ExtendedKeyUsagePurpose::ClientAuth)
    }

    pub(crate) fn expired_client(&self) -> Issued {
        let mut params = client_params();
        params.not_before = date_time_ymd(2019, 1, 1);
        params.not_after = date_time_ymd(2020, 1, 1);
        self.issue(params, ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// A client of this authority that trusts it.
    pub(crate) fn identity(&self) -> Identity {
        let issued = self.client();
        Identity::new(self.ca(), issued.cert, issued.key)
    }

    /// A broker's TLS settings, for `localhost`.
    pub(crate) fn server(&self, alpn: &[u8]) -> quinn::ServerConfig {
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let issued = self.issue(params, ExtendedKeyUsagePurpose::ServerAuth);
        let mut roots = RootCertStore::empty();
        roots.add(certificate(&self.ca())).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), crypto_provider())
            .build()
            .unwrap();
        let mut tls = rustls::ServerConfig::builder_with_provider(crypto_provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![certificate(&issued.cert)],
                PrivateKeyDer::from_pem_slice(&issued.key).unwrap(),
            )
            .unwrap();
        tls.alpn_protocols = vec![alpn.to_vec()];
        let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
        quinn::ServerConfig::with_crypto(std::sync::Arc::new(crypto))
    }

    pub(crate) fn millstream_server(&self) -> quinn::ServerConfig {
        self.server(ALPN)
    }
}

pub(crate) struct Issued {
    pub(crate) cert: Vec<u8>,
    pub(crate) key: Vec<u8>,
}

fn client_params() -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    let uri = "spiffe://test/acme/client".try_into().unwrap();
    params.subject_alt_names = vec![SanType::URI(uri)];
    params
}

fn certificate(pem: &[u8]) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem).unwrap()
}
