//! Telling clients at once that the broker they knew is gone.
//!
//! A broker that was killed says no goodbye. One that comes back on the same address gets packets
//! of connections it knows nothing of, and may answer each with a stateless reset (RFC 9000,
//! section 10.3), which ends the connection at the client: it connects anew within a round trip
//! instead of waiting for silence to be long enough. For that the new process must make the same
//! tokens as the old one, so their key comes from what outlives both, the TLS private key; and it
//! must not take the old one's connection ids for garbage, so ids are random and nothing else.
//!
//! Whoever shares a private key between brokers and lets packets of one reach the other allows
//! resets of connections that live: every broker should have a key of its own.

use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::{CryptoError, HmacKey};
use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig};
use rustls::crypto::tls13::{Hkdf, OkmBlock};
use rustls::crypto::{SecureRandom, aws_lc_rs};

/// What sets this use of the private key apart from every other.
const LABEL: &[u8] = b"millstream stateless reset 1";
/// Length of SHA-256's output in bytes.
const TAG_BYTES: usize = 32;
/// Length of a connection id in bytes: what tells connections apart, not what protects them.
const CONNECTION_ID_BYTES: usize = 8;

/// The key of the tokens, made from `secret`. It does not give the secret away.
pub(crate) struct ResetKey {
    hkdf: &'static dyn Hkdf,
    key: OkmBlock,
}

impl ResetKey {
    /// The key that belongs to a private key, given in DER.
    pub(crate) fn derive(secret: &[u8]) -> Self {
        let suite = aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256.tls13();
        let hkdf = suite.expect("the suite is one of TLS 1.3").hkdf_provider;
        let key = hkdf
            .extract_from_secret(None, secret)
            .expand_block(&[LABEL]);
        Self { hkdf, key }
    }

    /// Makes an endpoint end the connections of its predecessor.
    pub(crate) fn install(self, config: &mut EndpointConfig) {
        config.reset_key(Arc::new(self));
        config.cid_generator(|| Box::new(RandomIds(aws_lc_rs::default_provider().secure_random)));
    }
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(self.hkdf.hmac_sign(&self.key, data).as_ref());
    }

    fn signature_len(&self) -> usize {
        TAG_BYTES
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let tag = self.hkdf.hmac_sign(&self.key, data);
        let tag = tag.as_ref();
        // Looks at every byte, however early they differ.
        let differ = tag
            .iter()
            .zip(signature)
            .fold(0, |sum, (a, b)| sum | (a ^ b));
        if signature.len() == tag.len() && differ == 0 {
            Ok(())
        } else {
            Err(CryptoError)
        }
    }
}

/// Connection ids without a mark of the process that made them.
struct RandomIds(&'static dyn SecureRandom);

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; CONNECTION_ID_BYTES];
        // Without randomness no handshake would have come this far.
        self.0.fill(&mut id).expect("the system gives random bytes");
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(key: &ResetKey, data: &[u8]) -> Vec<u8> {
        let mut signature = vec![0; key.signature_len()];
        key.sign(data, &mut signature);
        signature
    }

    #[test]
    fn a_successor_makes_the_same_tokens_and_nobody_else_does() {
        let (first, second) = (ResetKey::derive(b"key"), ResetKey::derive(b"key"));
        let token = signed(&first, b"connection");
        assert_eq!(token, signed(&second, b"connection"));
        assert_ne!(token, signed(&second, b"another"));
        assert_ne!(
            token,
            signed(&ResetKey::derive(b"other key"), b"connection")
        );
        assert!(second.verify(b"connection", &token).is_ok());
        assert!(second.verify(b"another", &token).is_err());
        assert!(second.verify(b"connection", &token[..16]).is_err());
    }

    #[test]
    fn connection_ids_differ_and_those_of_a_predecessor_are_valid() {
        let ids = || RandomIds(aws_lc_rs::default_provider().secure_random);
        let (mut before, after) = (ids(), ids());
        let (one, other) = (before.generate_cid(), before.generate_cid());
        assert_ne!(one, other);
        assert_eq!(one.len(), after.cid_len());
        assert!(after.validate(&one).is_ok());
    }
}
