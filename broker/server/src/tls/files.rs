//! PEM files: read whole, within a limit, and keys only when nobody else can read them.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

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
    /// A revocation list is of an authority that vouches for nobody here.
    #[error(
        "the certificate revocation list {} is one of {issuer:?}, which is none of the authorities in \
         {}: it would revoke nothing; name a list of those, or add the certificate of this authority \
         there, as an intermediate one needs it too",
        file.display(), client_ca.display()
    )]
    ListOfNobody {
        /// The list's file.
        file: PathBuf,
        /// Whose list it says it is.
        issuer: String,
        /// The file of the authorities.
        client_ca: PathBuf,
    },
    /// A revocation list names an authority that has not signed it.
    #[error(
        "the certificate revocation list {} says that it is one of {issuer:?}, and no key of that \
         authority in {} has signed it: fetch the list again, or the authority's certificate if its \
         key is a new one",
        file.display(), client_ca.display()
    )]
    ListNotSigned {
        /// The list's file.
        file: PathBuf,
        /// Whose list it says it is.
        issuer: String,
        /// The file of the authorities.
        client_ca: PathBuf,
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

pub(super) fn content(what: &'static str, file: &Path, why: &dyn std::fmt::Display) -> TlsError {
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
pub(super) fn sections<T: PemObject>(what: &'static str, file: &Path) -> Result<Vec<T>, TlsError> {
    let bytes = read(what, file, open(what, file)?)?;
    let sections: Result<Vec<T>, _> = T::pem_slice_iter(&bytes).collect();
    let sections = sections.map_err(|e| content(what, file, &e))?;
    if sections.is_empty() {
        return Err(content(what, file, &"it has no PEM section of that kind"));
    }
    Ok(sections)
}

pub(super) fn certificates(
    what: &'static str,
    file: &Path,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    sections(what, file)
}

pub(super) fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
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
