//! Creating, altering and deleting topics.

use std::sync::Arc;

use millstream_proto::TopicName;
use millstream_proto::topic::{TopicChange, TopicConfig};
use millstream_store::WriteBatch;

use super::row::{DoomedRow, NextTopicRow, Row, TopicRow};
use super::{Catalog, Doomed, Entry, TopicError};
use crate::limits::{MAX_TOPICS, MAX_TOTAL_PARTITIONS};
use crate::log::Topic;

impl Catalog {
    /// Makes a topic.
    ///
    /// # Errors
    /// [`TopicError`]; nothing was made then, unless the storage failed midway.
    pub async fn create_topic(
        &self,
        name: &TopicName,
        config: TopicConfig,
    ) -> Result<Arc<Topic>, TopicError> {
        check(name, &config)?;
        let mut next = self.changing.lock().await;
        self.check_room(name, &config)?;
        let id = *next;
        let spent = || TopicError::TooMany(name.clone());
        let after = id.checked_add(1).ok_or_else(spent)?;
        // Opened before it is committed: what is committed can then always be shown.
        let opening = {
            let (name, config) = (name.clone(), config.clone());
            let (store, tails) = (Arc::clone(&self.store), self.tails.clone());
            tokio::task::spawn_blocking(move || Topic::open(id, name, config, store, tails))
        };
        let topic = opening
            .await
            .map_err(|_| TopicError::Closing(name.clone()))?
            .map_err(|source| TopicError::Read {
                name: name.clone(),
                source,
            })?;
        let chain = Vec::new();
        let row = TopicRow {
            id,
            name: name.clone(),
            config,
            chain,
            chain_owner: None,
        };
        let mut batch = WriteBatch::new();
        NextTopicRow { next: after }.put(&mut batch);
        row.put(&mut batch);
        // Used up even if the commit fails: it may have reached the disk all the same.
        *next = after;
        self.commit_topic(name, batch).await?;
        tracing::info!(topic = %name, partitions = row.config.partitions, "created");
        let entry = Entry {
            topic: Arc::clone(&topic),
            row,
        };
        self.show().topics.insert(name.clone(), entry);
        Ok(topic)
    }

    fn check_room(&self, name: &TopicName, config: &TopicConfig) -> Result<(), TopicError> {
        let view = self.view();
        if view.topics.contains_key(name) {
            return Err(TopicError::Exists(name.clone()));
        }
        if view.topics.len() >= MAX_TOPICS {
            return Err(TopicError::TooMany(name.clone()));
        }
        if view.partitions() + u64::from(config.partitions) > MAX_TOTAL_PARTITIONS {
            return Err(TopicError::TooManyPartitions(name.clone()));
        }
        Ok(())
    }

    pub(super) async fn commit_topic(
        &self,
        name: &TopicName,
        batch: WriteBatch,
    ) -> Result<(), TopicError> {
        let committed = self.store.commit(batch).await;
        committed.map(drop).map_err(|source| TopicError::Storage {
            name: name.clone(),
            source,
        })
    }

    /// Changes settings of a topic.
    ///
    /// # Errors
    /// [`TopicError`]; nothing was changed then, unless the storage failed midway.
    pub async fn alter_topic(
        &self,
        name: &TopicName,
        change: &TopicChange,
    ) -> Result<(), TopicError> {
        let _turn = self.changing.lock().await;
        let Entry { topic, mut row } = self.view().entry(name)?.clone();
        let have = row.config.partitions;
        row.config = changed(&row.config, change);
        check(name, &row.config)?;
        let wanted = row.config.partitions;
        if wanted < have {
            return Err(TopicError::Shrink {
                name: name.clone(),
                have,
                wanted,
            });
        }
        let more = u64::from(wanted - have);
        if self.view().partitions() + more > MAX_TOTAL_PARTITIONS {
            return Err(TopicError::TooManyPartitions(name.clone()));
        }
        let mut batch = WriteBatch::new();
        row.put(&mut batch);
        self.commit_topic(name, batch).await?;
        tracing::info!(topic = %name, "altered: {change:?}");
        topic.set_config(row.config.clone());
        self.show()
            .topics
            .insert(name.clone(), Entry { topic, row });
        Ok(())
    }

    /// Deletes a topic: at once for everybody, its records bit by bit afterwards.
    ///
    /// # Errors
    /// [`TopicError`]; nothing was deleted then, unless the storage failed midway.
    pub async fn delete_topic(&self, name: &TopicName) -> Result<(), TopicError> {
        let _turn = self.changing.lock().await;
        let Entry { topic, row } = self.view().entry(name)?.clone();
        let doomed = DoomedRow {
            id: row.id,
            name: name.clone(),
        };
        let mut batch = WriteBatch::new();
        row.delete(&mut batch);
        doomed.put(&mut batch);
        self.commit_topic(name, batch).await?;
        tracing::info!(topic = %name, "deleted");
        {
            let mut view = self.show();
            view.topics.remove(name);
            let topic = Arc::downgrade(&topic);
            view.doomed.insert(row.id, Doomed { row: doomed, topic });
        }
        topic.delete();
        self.doomed.notify_one();
        Ok(())
    }
}

fn check(name: &TopicName, config: &TopicConfig) -> Result<(), TopicError> {
    config.check().map_err(|why| TopicError::Setting {
        name: name.clone(),
        why,
    })
}

/// The settings with the change applied. Taken apart whole, so that a new setting cannot be
/// forgotten here.
fn changed(config: &TopicConfig, change: &TopicChange) -> TopicConfig {
    let TopicChange {
        partitions,
        retention_bytes,
        retention_ms,
        durability,
        spread,
        max_record_bytes,
        max_batch_bytes,
    } = change.clone();
    TopicConfig {
        partitions: partitions.unwrap_or(config.partitions),
        retention_bytes: retention_bytes.unwrap_or(config.retention_bytes),
        retention_ms: retention_ms.unwrap_or(config.retention_ms),
        durability: durability.unwrap_or(config.durability),
        spread: spread.unwrap_or(config.spread),
        max_record_bytes: max_record_bytes.unwrap_or(config.max_record_bytes),
        max_batch_bytes: max_batch_bytes.unwrap_or(config.max_batch_bytes),
    }
}
