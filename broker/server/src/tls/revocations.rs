//! Whether revocation lists can revoke anything: one that is of nobody's authority here would be
//! read, and never looked at. What they revoke is the TLS library's to find out.

use std::path::Path;

use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::error::X509Error;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::files::{TlsError, content};
use super::{CLIENT_CA, REVOCATIONS};

/// Checks that each of the `lists` in `file` is one of the `authorities` in `client_ca`, and signed
/// with its key.
///
/// # Errors
/// [`TlsError`], naming the files and whose list it says it is.
pub(super) fn check(
    lists: &[CertificateRevocationListDer<'_>],
    file: &Path,
    authorities: &[CertificateDer<'_>],
    client_ca: &Path,
) -> Result<(), TlsError> {
    let authorities = authorities
        .iter()
        .map(|der| X509Certificate::from_der(der).map(|(_, authority)| authority))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| content(CLIENT_CA, client_ca, &e))?;
    for list in lists {
        let (_, list) = CertificateRevocationList::from_der(list)
            .map_err(|e| content(REVOCATIONS, file, &e))?;
        // By their bytes, as the library compares them.
        let name = list.issuer().as_raw();
        let mut named = authorities
            .iter()
            .filter(|authority| authority.subject().as_raw() == name)
            .peekable();
        let (file, client_ca) = (file.to_owned(), client_ca.to_owned());
        let issuer = list.issuer().to_string();
        if named.peek().is_none() {
            return Err(TlsError::ListOfNobody {
                file,
                issuer,
                client_ca,
            });
        }
        // An authority that renews its key has two certificates for a while.
        if !named.any(|authority| may_have_signed(authority, &list)) {
            return Err(TlsError::ListNotSigned {
                file,
                issuer,
                client_ca,
            });
        }
    }
    Ok(())
}

/// What only the TLS library can verify is left to it: it refuses every client of that authority if
/// the signature is wrong.
fn may_have_signed(authority: &X509Certificate<'_>, list: &CertificateRevocationList<'_>) -> bool {
    let signed = list.verify_signature(authority.public_key());
    matches!(
        signed,
        Ok(()) | Err(X509Error::SignatureUnsupportedAlgorithm)
    )
}
