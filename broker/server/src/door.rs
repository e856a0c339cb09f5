//! Who may begin a handshake: the decisions, without the network.
//!
//! A handshake costs the broker a signature and some memory, and whoever asks for one has proved
//! nothing yet, maybe not even his address. So handshakes are bounded in number, over all and for
//! each address in a second, and when they get scarce only those begin who have answered from their
//! address (QUIC's Retry). When all turns are taken, a new one takes the place of the oldest of the
//! address that has the most: half-open handshakes push out each other, and somebody who answers
//! within a round trip is through before it is his turn to go.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::config::TransportConfig;
use crate::limits::{
    HANDSHAKES_PER_SECOND, MAX_DOOR_ADDRESSES, MAX_HANDSHAKES, UNPROVED_HANDSHAKES_PER_SECOND,
};
use crate::metrics::Refusal;

/// What an operator may choose about the door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DoorLimits {
    /// Most connections.
    pub(crate) connections: usize,
    /// Most handshakes that begin in a second from one address.
    pub(crate) per_address: u32,
}

impl DoorLimits {
    pub(crate) fn of(config: &TransportConfig) -> Self {
        Self {
            connections: config.max_connections as usize,
            per_address: config.handshakes_per_address,
        }
    }
}

/// What is to be done about somebody who wants to begin a handshake.
pub(crate) enum Answer {
    /// Let him begin.
    Begin(Turn),
    /// Let him prove his address first.
    Prove,
    /// Send him away.
    Refuse(Refusal),
}

/// Those who are at it, and those who were.
#[derive(Default)]
pub(crate) struct Door {
    state: Mutex<State>,
}

/// As long as it lives, a handshake counts.
pub(crate) struct Turn {
    door: Arc<Door>,
    number: u64,
    over: oneshot::Receiver<()>,
}

impl Turn {
    /// Resolves when somebody else needs the turn.
    pub(crate) async fn taken(&mut self) {
        // The other end says nothing, it goes.
        let _ = (&mut self.over).await;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.door.lock().turns.remove(&self.number);
    }
}

impl Door {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Valid after every statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody knocks. `proved` says whether it is known that he is where he says.
    pub(crate) fn knock(
        self: &Arc<Self>,
        from: IpAddr,
        proved: bool,
        limits: &DoorLimits,
        now: Instant,
    ) -> Answer {
        match self.lock().knock(network(from), proved, limits, now) {
            Decision::Begin(number, over) => Answer::Begin(Turn {
                door: Arc::clone(self),
                number,
                over,
            }),
            Decision::Prove => Answer::Prove,
            Decision::Refuse(why) => Answer::Refuse(why),
        }
    }

    /// How many are at it.
    pub(crate) fn busy(&self) -> usize {
        self.lock().turns.len()
    }
}

enum Decision {
    Begin(u64, oneshot::Receiver<()>),
    Prove,
    Refuse(Refusal),
}

#[derive(Default)]
struct State {
    next: u64,
    /// The oldest first. Who has to go finds out by the sender's end.
    turns: BTreeMap<u64, (IpAddr, oneshot::Sender<()>)>,
    addresses: HashMap<IpAddr, Bucket>,
    unproved: Bucket,
    all: Bucket,
}

impl State {
    fn knock(&mut self, from: IpAddr, proved: bool, limits: &DoorLimits, now: Instant) -> Decision {
        // Who has proved nothing is not counted by an address that may be made up: he could use up
        // somebody else's share.
        if !proved {
            let scarce = self.turns.len() >= MAX_HANDSHAKES / 2;
            if scarce || !self.unproved.take(UNPROVED_HANDSHAKES_PER_SECOND, 2, now) {
                return Decision::Prove;
            }
        } else if !self
            .bucket(from, limits.per_address, now)
            .take(limits.per_address, 2, now)
        {
            return Decision::Refuse(Refusal::Address);
        }
        if !self.all.take(HANDSHAKES_PER_SECOND, 1, now) {
            return Decision::Refuse(Refusal::Handshakes);
        }
        if self.turns.len() >= MAX_HANDSHAKES {
            self.make_room();
        }
        let (stay, over) = oneshot::channel();
        let number = self.next;
        self.next += 1;
        self.turns.insert(number, (from, stay));
        Decision::Begin(number, over)
    }

    /// Ends the oldest turn of the address that has the most.
    fn make_room(&mut self) {
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        for (from, _) in self.turns.values() {
            *counts.entry(*from).or_default() += 1;
        }
        let most = counts.values().copied().max().unwrap_or(0);
        let oldest = self
            .turns
            .iter()
            .find(|(_, (from, _))| counts.get(from) == Some(&most))
            .map(|(number, _)| *number);
        if let Some(number) = oldest {
            self.turns.remove(&number);
        }
    }

    /// What an address has left. The table is bounded: what is full again says nothing, and if
    /// that is not enough, whoever was there last the longest ago is forgotten.
    fn bucket(&mut self, from: IpAddr, per_second: u32, now: Instant) -> &mut Bucket {
        if self.addresses.len() >= MAX_DOOR_ADDRESSES && !self.addresses.contains_key(&from) {
            self.addresses.retain(|_, b| !b.is_full(per_second, now));
            if self.addresses.len() >= MAX_DOOR_ADDRESSES {
                let oldest = self.addresses.iter().min_by_key(|(_, b)| b.at);
                if let Some(oldest) = oldest.map(|(from, _)| *from) {
                    self.addresses.remove(&oldest);
                }
            }
        }
        self.addresses.entry(from).or_default()
    }
}

/// So many in a second, and what was saved up for some.
#[derive(Default)]
struct Bucket {
    /// What was used at `at`; it comes back with time.
    used: f64,
    at: Option<Instant>,
}

impl Bucket {
    fn used(&self, per_second: u32, now: Instant) -> f64 {
        let since = self
            .at
            .map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64());
        (self.used - since * f64::from(per_second)).max(0.0)
    }

    /// One more, if there is one; what comes back in `seconds` can be had at once.
    fn take(&mut self, per_second: u32, seconds: u32, now: Instant) -> bool {
        let used = self.used(per_second, now) + 1.0;
        if used > f64::from(seconds) * f64::from(per_second) {
            return false;
        }
        self.used = used;
        self.at = Some(now);
        true
    }

    fn is_full(&self, per_second: u32, now: Instant) -> bool {
        self.used(per_second, now) <= 0.0
    }
}

/// What counts as one address: whoever has a network of IPv6 has all the addresses in it.
pub(crate) fn network(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => {
            let prefix = u128::from(v6) & (u128::MAX << 64);
            IpAddr::V6(Ipv6Addr::from(prefix))
        }
    }
}

#[cfg(test)]
mod tests;
