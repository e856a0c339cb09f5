//! What the broker counts as it goes along, for whoever asks how it is doing.
//!
//! Counting is an atomic addition to something that whoever counts holds already: no lock and no
//! search by name on the way of a batch. What can be read elsewhere when it is asked for (the
//! store's figures, what plugins used, how far pipelines are) is not counted a second time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use millstream_proto::{ErrorCode, Tenant};

use crate::limits::MAX_COUNTED_TENANTS;

/// Why somebody was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There are as many connections as there may be.
    Connections,
    /// More handshakes begin in a second than may.
    Handshakes,
    /// More of them begin from one address than may.
    Address,
    /// The handshake was half open when others needed its turn.
    Pushed,
    /// The handshake took too long.
    Timeout,
    /// The client gave up the handshake, or did not like the broker.
    Abandoned,
    /// It speaks another protocol.
    Protocol,
    /// It has shown no certificate.
    NoCertificate,
    /// Its certificate is from an authority that is not trusted.
    Authority,
    /// Its certificate has expired or is not valid yet.
    Expired,
    /// Its certificate was revoked.
    Revoked,
    /// Its certificate is not for clients.
    Purpose,
    /// Its certificate is wrong in another way.
    Certificate,
    /// The certificate is good and says nobody's name.
    Identity,
    /// TLS, or QUIC, failed otherwise.
    Handshake,
}

impl Refusal {
    /// Every one.
    pub const ALL: [Self; 15] = [
        Self::Connections,
        Self::Handshakes,
        Self::Address,
        Self::Pushed,
        Self::Timeout,
        Self::Abandoned,
        Self::Protocol,
        Self::NoCertificate,
        Self::Authority,
        Self::Expired,
        Self::Revoked,
        Self::Purpose,
        Self::Certificate,
        Self::Identity,
        Self::Handshake,
    ];

    /// In a word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Handshakes => "handshakes",
            Self::Address => "address",
            Self::Pushed => "pushed_out",
            Self::Timeout => "timeout",
            Self::Abandoned => "abandoned",
            Self::Protocol => "protocol",
            Self::NoCertificate => "no_certificate",
            Self::Authority => "unknown_authority",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Purpose => "wrong_purpose",
            Self::Certificate => "bad_certificate",
            Self::Identity => "no_identity",
            Self::Handshake => "handshake",
        }
    }
}

/// Kinds of streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// Requests and answers.
    Control,
    /// Batches in.
    Producer,
    /// Batches out.
    Subscription,
    /// A plugin that is uploaded.
    Upload,
}

impl StreamKind {
    /// Every one.
    pub const ALL: [Self; 4] = [
        Self::Control,
        Self::Producer,
        Self::Subscription,
        Self::Upload,
    ];

    /// In a word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Producer => "producer",
            Self::Subscription => "subscription",
            Self::Upload => "upload",
        }
    }
}

/// Records and the bytes of their batches, as they are on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Records.
    pub records: u64,
    /// Bytes.
    pub bytes: u64,
}

#[derive(Debug, Default)]
struct Flow {
    records: AtomicU64,
    bytes: AtomicU64,
}

impl Flow {
    fn add(&self, amount: Amount) {
        self.records.fetch_add(amount.records, Ordering::Relaxed);
        self.bytes.fetch_add(amount.bytes, Ordering::Relaxed);
    }

    fn read(&self) -> Amount {
        Amount {
            records: self.records.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}

/// What went through the topics of one tenant since the broker was started.
#[derive(Debug, Default)]
pub struct Traffic {
    produced: Flow,
    consumed: Flow,
}

impl Traffic {
    /// A batch of a producer is stored.
    pub fn produce(&self, amount: Amount) {
        self.produced.add(amount);
    }

    /// Batches are handed over for a consumer.
    pub fn consume(&self, amount: Amount) {
        self.consumed.add(amount);
    }

    /// What producers have stored, as they sent it. What comes twice counts once.
    #[must_use]
    pub fn produced(&self) -> Amount {
        self.produced.read()
    }

    /// What was sent to consumers.
    #[must_use]
    pub fn consumed(&self) -> Amount {
        self.consumed.read()
    }
}

/// One for each code. Arrays as long as this have no default of their own.
#[derive(Debug)]
struct Errors([AtomicU64; ErrorCode::ALL.len()]);

impl Default for Errors {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

/// What a broker counts. Nothing in it ever goes back but what says how many there are now.
#[derive(Debug, Default)]
pub struct Counters {
    tenants: RwLock<BTreeMap<Tenant, Arc<Traffic>>>,
    /// Of the tenants for which there was no room.
    others: Arc<Traffic>,
    sessions: AtomicU64,
    sessions_now: AtomicU64,
    streams_now: [AtomicU64; StreamKind::ALL.len()],
    refusals: [AtomicU64; Refusal::ALL.len()],
    errors: Errors,
}

/// As long as it lives, something counts as being there.
#[derive(Debug)]
pub(crate) struct Present<'a>(&'a AtomicU64);

impl<'a> Present<'a> {
    fn new(counter: &'a AtomicU64) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter)
    }
}

impl Drop for Present<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Counters {
    /// The traffic of a tenant's topics: to be asked for once by who will count often.
    #[must_use]
    pub fn tenant(&self, tenant: &Tenant) -> Arc<Traffic> {
        // Valid after every statement.
        let known = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(traffic) = known.get(tenant) {
            return Arc::clone(traffic);
        }
        drop(known);
        let mut known = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_COUNTED_TENANTS && !known.contains_key(tenant) {
            return Arc::clone(&self.others);
        }
        Arc::clone(known.entry(tenant.clone()).or_default())
    }

    /// The traffic of every tenant so far, in order; at the end, without a name, that of the
    /// tenants for which there was no room.
    #[must_use]
    pub fn tenants(&self) -> Vec<(Option<Tenant>, Arc<Traffic>)> {
        let known = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = known
            .iter()
            .map(|(tenant, traffic)| (Some(tenant.clone()), Arc::clone(traffic)))
            .collect();
        if known.len() >= MAX_COUNTED_TENANTS {
            all.push((None, Arc::clone(&self.others)));
        }
        all
    }

    /// Somebody was let in, and is there until this is dropped.
    pub(crate) fn session(&self) -> Present<'_> {
        self.sessions.fetch_add(1, Ordering::Relaxed);
        Present::new(&self.sessions_now)
    }

    /// How many were let in, and how many of them are there.
    #[must_use]
    pub fn sessions(&self) -> (u64, u64) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (read(&self.sessions), read(&self.sessions_now))
    }

    /// A stream was opened, and is there until this is dropped.
    pub(crate) fn stream(&self, kind: StreamKind) -> Present<'_> {
        Present::new(&self.streams_now[kind as usize])
    }

    /// How many streams of a kind there are.
    #[must_use]
    pub fn streams(&self, kind: StreamKind) -> u64 {
        self.streams_now[kind as usize].load(Ordering::Relaxed)
    }

    /// Somebody was not let in.
    pub fn refuse(&self, why: Refusal) {
        self.refusals[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many were not let in for that reason.
    #[must_use]
    pub fn refused(&self, why: Refusal) -> u64 {
        self.refusals[why as usize].load(Ordering::Relaxed)
    }

    /// A client is answered with an error, about a request, a batch or a whole stream.
    pub fn error(&self, code: ErrorCode) {
        // A broker makes no errors with codes that it does not know.
        if let Some(at) = ErrorCode::ALL.iter().position(|known| *known == code) {
            self.errors.0[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many errors of each code clients were answered with.
    pub fn errors(&self) -> impl Iterator<Item = (ErrorCode, u64)> {
        let counts = self.errors.0.iter().map(|n| n.load(Ordering::Relaxed));
        ErrorCode::ALL.iter().copied().zip(counts)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use super::*;

    fn tenant(number: usize) -> Tenant {
        format!("t{number}").parse().unwrap()
    }

    const ONE: Amount = Amount {
        records: 1,
        bytes: 10,
    };

    #[test]
    fn tenants_count_apart_up_to_a_limit_and_then_together() {
        let counters = Counters::default();
        for number in 0..MAX_COUNTED_TENANTS + 3 {
            counters.tenant(&tenant(number)).produce(ONE);
        }
        counters.tenant(&tenant(0)).consume(ONE);
        let all = counters.tenants();
        assert_eq!(all.len(), MAX_COUNTED_TENANTS + 1);
        let (name, others) = all.last().unwrap();
        assert_eq!((name, others.produced().records), (&None, 3));
        let first = counters.tenant(&tenant(0));
        assert_eq!((first.produced(), first.consumed()), (ONE, ONE));
    }

    #[test]
    fn who_has_left_is_not_there_but_was() {
        let counters = Counters::default();
        let (one, two) = (counters.session(), counters.session());
        let stream = counters.stream(StreamKind::Upload);
        drop(one);
        assert_eq!(counters.sessions(), (2, 1));
        assert_eq!(counters.streams(StreamKind::Upload), 1);
        assert_eq!(counters.streams(StreamKind::Control), 0);
        drop((two, stream));
        assert_eq!(counters.sessions(), (2, 0));
        assert_eq!(counters.streams(StreamKind::Upload), 0);
    }

    #[test]
    fn every_kind_has_a_counter_and_a_name_of_its_own() {
        let counters = Counters::default();
        for (at, why) in Refusal::ALL.into_iter().enumerate() {
            assert_eq!(why as usize, at);
            counters.refuse(why);
            assert_eq!(counters.refused(why), 1, "{why:?}");
        }
        for (at, kind) in StreamKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, at);
        }
        let names: std::collections::BTreeSet<_> = Refusal::ALL.iter().map(|r| r.name()).collect();
        assert_eq!(names.len(), Refusal::ALL.len());
        counters.error(ErrorCode::NotAuthorized);
        counters.error(ErrorCode::Unknown(9));
        let counted: Vec<_> = counters.errors().filter(|(_, n)| *n > 0).collect();
        assert_eq!(counted, [(ErrorCode::NotAuthorized, 1)]);
    }
}
