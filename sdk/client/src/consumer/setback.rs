//! What a consumer does where a partition cannot be read, or records are not there any more.

use std::collections::VecDeque;

use millstream_proto::message::Gap;

/// Most gaps that a consumer remembers until it is asked for them; of more, the oldest are
/// forgotten.
pub const MAX_GAPS: usize = 256;

/// What a consumer does about a setback that concerns one partition.
///
/// A partition is *shut* while what comes next in it cannot be read: its storage is damaged. That
/// is always an item, [`ConsumeError::Shut`](crate::ConsumeError::Shut), once for each time. A
/// *gap* is records that are not there: lost with damaged storage and given up, removed by
/// retention before they were read, or taken by a crash before they were durable
/// ([`GapCause`](crate::GapCause)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnSetback {
    /// Goes on with the other partitions, and behind gaps. Gaps are logged, and kept for
    /// [`Consumer::take_gaps`](crate::Consumer::take_gaps); what stands still is an item, behind
    /// which the consumer can be asked for more. The default: a consumer that would end before a
    /// gap would end there again whenever it is started.
    #[default]
    GoOn,
    /// The first setback is the consumer's last item, a gap as
    /// [`ConsumeError::Gap`](crate::ConsumeError::Gap): for whoever has to be asked first.
    Stop,
}

/// Gaps that nobody has asked for yet.
#[derive(Debug, Default)]
pub(super) struct Gaps(VecDeque<Gap>);

impl Gaps {
    pub(super) fn push(&mut self, gap: Gap) {
        if self.0.len() == MAX_GAPS {
            self.0.pop_front();
        }
        self.0.push_back(gap);
    }

    pub(super) fn take(&mut self) -> Vec<Gap> {
        std::mem::take(&mut self.0).into()
    }
}

#[cfg(test)]
mod tests {
    use millstream_proto::message::GapCause;
    use millstream_proto::{Offset, PartitionId};

    use super::*;

    #[test]
    fn the_newest_gaps_are_kept_until_they_are_taken() {
        let mut gaps = Gaps::default();
        for at in 0..MAX_GAPS as u64 + 2 {
            gaps.push(Gap {
                partition: PartitionId(0),
                from: Offset(at),
                to: Offset(at + 1),
                cause: GapCause::Lost,
            });
        }
        let taken = gaps.take();
        assert_eq!((taken.len(), taken[0].from), (MAX_GAPS, Offset(2)));
        assert_eq!(gaps.take(), []);
    }
}
