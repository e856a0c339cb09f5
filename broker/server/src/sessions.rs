//! Who is connected, and until when the certificates that they came with are good.
//!
//! A handshake looks at a certificate once. What ends it later (its time, a revocation, an authority
//! that is not trusted any more) must end the connections too that were opened with it: so they are
//! all kept here, in the order in which they have to be looked at again.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use millstream_proto::{ErrorCode, Principal, WireError};
use quinn::Connection;
use rustls::CertificateError;
use rustls::pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::listen::close;
use crate::tls::Verifier;

/// Certificates as a client has shown them, its own first.
pub(crate) type Chain = Arc<[CertificateDer<'static>]>;

/// A connection, and what was shown when it was opened.
#[derive(Clone)]
pub(crate) struct Open {
    number: u64,
    connection: Connection,
    pub(crate) chain: Chain,
    pub(crate) principal: Principal,
}

/// All connections with a principal.
#[derive(Default)]
pub struct Sessions {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    next: u64,
    open: HashMap<u64, (Open, Option<u64>)>,
    /// When a certificate runs out, in seconds since the Unix epoch, and whose.
    due: BTreeSet<(u64, u64)>,
}

/// As long as it lives, its connection is known.
pub(crate) struct Known {
    sessions: Arc<Sessions>,
    pub(crate) open: Open,
}

impl Drop for Known {
    fn drop(&mut self) {
        let mut inner = self.sessions.lock();
        if let Some((_, Some(at))) = inner.open.remove(&self.open.number) {
            inner.due.remove(&(at, self.open.number));
        }
    }
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Valid after every statement.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().open.len()
    }

    /// Adds a connection unless there are `most` already.
    pub(crate) fn enter(
        self: &Arc<Self>,
        connection: Connection,
        chain: Chain,
        principal: Principal,
        most: usize,
    ) -> Option<Known> {
        let due = first_look(&chain);
        let mut inner = self.lock();
        if inner.open.len() >= most {
            return None;
        }
        let number = inner.next;
        inner.next += 1;
        let open = Open {
            number,
            connection,
            chain,
            principal,
        };
        inner.open.insert(number, (open.clone(), due));
        inner.due.extend(due.map(|at| (at, number)));
        drop(inner);
        Some(Known {
            sessions: Arc::clone(self),
            open,
        })
    }

    /// Everybody.
    pub(crate) fn all(&self) -> Vec<Open> {
        let inner = self.lock();
        inner.open.values().map(|(open, _)| open.clone()).collect()
    }

    /// Those of whose certificates one has run out by `now`; each is handed out once for each
    /// certificate of its chain.
    pub(crate) fn due(&self, now: UnixTime) -> Vec<Open> {
        let mut inner = self.lock();
        let mut due = Vec::new();
        while let Some(&(at, number)) = inner.due.first()
            && at <= now.as_secs()
        {
            inner.due.pop_first();
            let Some((open, again)) = inner.open.get_mut(&number) else {
                continue;
            };
            *again = runs_out(&open.chain, now);
            due.push(open.clone());
            let again = again.map(|at| (at, number));
            inner.due.extend(again);
        }
        due
    }
}

/// Ends those connections whose certificates do not pass any more: how many. Blocking: the
/// signatures of as many chains are verified as there are different ones.
pub(crate) fn expel(sessions: &[Open], verifier: &Verifier, now: UnixTime) -> u64 {
    let mut verdicts: HashMap<&[CertificateDer<'_>], Result<Principal, WireError>> = HashMap::new();
    let mut expelled = 0;
    for open in sessions {
        let verdict = verdicts
            .entry(&open.chain)
            .or_insert_with(|| verifier.verify(&open.chain, now).map_err(|e| lost(&e)));
        if open.expel_unless(verdict) {
            expelled += 1;
        }
    }
    expelled
}

impl Open {
    /// Ends the connection unless it may go on: whether it was ended.
    pub(crate) fn expel_unless(&self, verdict: &Result<Principal, WireError>) -> bool {
        let changed;
        let error = match verdict {
            Ok(principal) if *principal == self.principal => return false,
            Ok(principal) => {
                let text = format!(
                    "the broker's configuration was changed: the client certificate stands for \
                     {principal} now; connect again"
                );
                changed = WireError::new(ErrorCode::CertificateRejected, text);
                &changed
            }
            Err(error) => error,
        };
        let from = self.connection.remote_address();
        tracing::warn!(principal = %self.principal, %from, "connection ended: {error}");
        close(&self.connection, error);
        true
    }
}

/// What a client hears whose certificate was good when it connected.
pub(crate) fn lost(e: &rustls::Error) -> WireError {
    let text = match e {
        rustls::Error::InvalidCertificate(e) => match e {
            CertificateError::Revoked => {
                "the client certificate has been revoked: issue a new one".to_owned()
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the client certificate has expired: issue a new one".to_owned()
            }
            // The second: another authority has the same name now.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "the authority of the client certificate is not trusted any more: have it issued \
                 by one that is"
                    .to_owned()
            }
            other => format!("the client certificate is not accepted any more: {other}"),
        },
        other => format!("the client certificate is not accepted any more: {other}"),
    };
    WireError::new(ErrorCode::CertificateRejected, text)
}

/// When the certificates of a new connection are looked at again for the first time. That may be
/// over: a client can show its certificate and put off the end of the handshake until it has run out.
fn first_look(chain: &[CertificateDer<'_>]) -> Option<u64> {
    runs_out(chain, UnixTime::since_unix_epoch(Duration::ZERO))
}

/// The first second after `now` at which a certificate of the chain is not good any more.
fn runs_out(chain: &[CertificateDer<'_>], now: UnixTime) -> Option<u64> {
    let ends = chain.iter().filter_map(|certificate| {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let last = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
        Some(last.saturating_add(1))
    });
    ends.filter(|end| *end > now.as_secs()).min()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn until(year: i32) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    #[test]
    fn a_chain_is_looked_at_again_as_each_of_its_certificates_runs_out() {
        let chain = [until(2050), until(2030), until(2010)];
        let at = |year| date_time_ymd(year, 1, 1).unix_timestamp() as u64;
        let now = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        assert_eq!(runs_out(&chain, now(at(2020))), Some(at(2030) + 1));
        assert_eq!(runs_out(&chain, now(at(2030))), Some(at(2030) + 1));
        assert_eq!(runs_out(&chain, now(at(2030) + 1)), Some(at(2050) + 1));
        assert_eq!(runs_out(&chain, now(at(2060))), None);
        assert_eq!(runs_out(&[CertificateDer::from(vec![1, 2])], now(0)), None);
        // What ran out during the handshake is looked at too.
        assert_eq!(first_look(&chain), Some(at(2010) + 1));
    }

    #[test]
    fn what_ends_a_connection_has_words_of_its_own() {
        let of = |e: CertificateError| lost(&e.into());
        let all = [
            of(CertificateError::Revoked),
            of(CertificateError::Expired),
            of(CertificateError::UnknownIssuer),
            of(CertificateError::InvalidPurpose),
        ];
        for (i, one) in all.iter().enumerate() {
            assert_eq!(one.code, ErrorCode::CertificateRejected);
            assert!(all[..i].iter().all(|other| other.message != one.message));
        }
        assert!(all[0].message.contains("revoked") && all[1].message.contains("expired"));
    }
}
