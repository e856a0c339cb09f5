//! What a handshake failed of, for the counters: the client hears the same as an alert.

use quinn::ConnectionError;

use crate::metrics::Refusal;

/// QUIC's number of the alert 0: see RFC 9001, section 4.8.
const CRYPTO_ERROR: u64 = 0x100;

/// Why there is no connection.
pub(crate) fn of(e: &ConnectionError) -> Refusal {
    match e {
        ConnectionError::TransportError(own) => {
            let alert = u64::from(own.code).checked_sub(CRYPTO_ERROR);
            alert.map_or(Refusal::Handshake, of_alert)
        }
        ConnectionError::TimedOut => Refusal::Timeout,
        ConnectionError::VersionMismatch => Refusal::Protocol,
        // The other side gave up, and knows why.
        ConnectionError::ConnectionClosed(_) | ConnectionError::ApplicationClosed(_) => {
            Refusal::Abandoned
        }
        ConnectionError::Reset
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => Refusal::Handshake,
    }
}

/// What the alert that the broker sent says of the client (RFC 8446, section 6.2).
fn of_alert(alert: u64) -> Refusal {
    match alert {
        116 => Refusal::NoCertificate,
        // 51: another authority of the same name has signed it.
        48 | 51 => Refusal::Authority,
        45 => Refusal::Expired,
        44 => Refusal::Revoked,
        43 => Refusal::Purpose,
        // The library has another alert for everything else that can be wrong.
        46 => Refusal::Identity,
        42 => Refusal::Certificate,
        120 => Refusal::Protocol,
        _ => Refusal::Handshake,
    }
}
