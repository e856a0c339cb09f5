//! A broker with a client of it: what every run begins and ends with.

use std::time::Duration;

use millstream::Client;
use millstream_proto::storage::ShardStorage;

use super::stage::Stage;
use crate::child::{Broker, Place};
use crate::error::{CliError, Outcome};

/// How long the sealer may take until it has nothing to do.
const REST_DEADLINE: Duration = Duration::from_secs(120);
/// How often it is looked at.
const REST_LOOK: Duration = Duration::from_millis(50);

/// A broker in a process of its own, and a client that may do everything.
pub(super) struct Live {
    pub(super) place: Place,
    pub(super) broker: Broker,
    pub(super) client: Client,
}

impl Live {
    /// Starts a broker and connects to it.
    pub(super) async fn start(stage: &Stage, place: Place) -> Outcome<Self> {
        let broker = stage.broker(&place).await?;
        let client = stage.client(&broker).await?;
        Ok(Self {
            place,
            broker,
            client,
        })
    }

    /// The number of the broker's process.
    pub(super) fn pid(&self) -> u32 {
        self.broker.id().unwrap_or(0)
    }

    /// SIGKILL. What was stored stays.
    pub(super) async fn kill(self) -> Outcome<Place> {
        self.client.close().await;
        self.broker.kill().await.map_err(CliError::failure)?;
        Ok(self.place)
    }

    /// The same, and removes what was stored.
    pub(super) async fn end(self, stage: &Stage) -> Outcome {
        let place = self.kill().await?;
        stage.clear(&place)
    }

    /// How its storage stands.
    pub(super) async fn storage(&self) -> Outcome<ShardStorage> {
        let shards = self.client.storage().await?;
        let first = shards.into_iter().next();
        first.ok_or_else(|| CliError::failure("the broker has no storage"))
    }

    /// Waits until the sealer has caught up.
    pub(super) async fn rest(&self) -> Outcome<ShardStorage> {
        let resting = async {
            loop {
                let shard = self.storage().await?;
                if shard.seal_lag_bytes == 0 {
                    return Ok(shard);
                }
                tokio::time::sleep(REST_LOOK).await;
            }
        };
        let rested = tokio::time::timeout(REST_DEADLINE, resting).await;
        rested.map_err(|_| CliError::failure("the sealer did not catch up in two minutes"))?
    }
}
