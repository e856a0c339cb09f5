//! Storing, finding and deleting versions of plugins.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use millstream_proto::message::{Digest, PluginVersion};
use millstream_proto::pipeline::PluginKind;
use millstream_proto::{ErrorCode, PluginName, Principal, WireError};
use millstream_store::{Space, WriteBatch};
use tokio::sync::OwnedSemaphorePermit;

use super::row::{NextVersionRow, PluginRow, Row, blob_key};
use super::{Catalog, PluginError, Versions, View, read_error};
use crate::limits::{MAX_PLUGIN_VERSIONS, MAX_TOTAL_PLUGIN_VERSIONS};

/// A component that was found to be a plugin, about to become a version.
#[derive(Clone, Debug)]
pub struct NewPlugin {
    /// Under which name.
    pub plugin: PluginName,
    /// What it is.
    pub kind: PluginKind,
    /// SHA-256 of the component.
    pub digest: Digest,
    /// The component.
    pub wasm: Bytes,
    /// Who uploads it.
    pub by: Principal,
    /// When, in milliseconds since the Unix epoch.
    pub now_ms: i64,
}

impl View {
    fn knows_digest(&self, digest: &Digest) -> bool {
        self.plugins
            .values()
            .flat_map(|v| v.all.values())
            .any(|v| v.digest == *digest)
    }

    fn check_room(&self, plugin: &PluginName) -> Result<(), PluginError> {
        let too_many = || PluginError::TooMany {
            plugin: plugin.clone(),
        };
        let total: usize = self.plugins.values().map(|v| v.all.len()).sum();
        let known = self.plugins.get(plugin);
        // Names count too: the number of a name's next version outlives its versions.
        let new_name = known.is_none() && self.plugins.len() >= MAX_TOTAL_PLUGIN_VERSIONS;
        if new_name || total >= MAX_TOTAL_PLUGIN_VERSIONS {
            return Err(too_many());
        }
        match known {
            Some(versions) if versions.all.len() >= MAX_PLUGIN_VERSIONS => Err(too_many()),
            _ => Ok(()),
        }
    }

    /// The topic in whose chain a version stands.
    fn attached_to(&self, plugin: &PluginName, version: u32) -> Option<String> {
        let uses = |entry: &&super::Entry| {
            entry
                .row
                .chain
                .iter()
                .any(|u| u.plugin == *plugin && u.version == Some(version))
        };
        self.topics
            .values()
            .find(uses)
            .map(|entry| format!("topic {}", entry.row.name))
    }

    /// What removes these versions, and the bytes that no other version needs.
    fn removal(&self, going: &[PluginVersion]) -> WriteBatch {
        let mut batch = WriteBatch::new();
        let all = || self.plugins.values().flat_map(|v| v.all.values());
        for version in going {
            PluginRow(version.clone()).delete(&mut batch);
            if !all().any(|v| v.digest == version.digest && !going.contains(v)) {
                batch.delete(Space::Blobs, blob_key(&version.digest));
            }
        }
        batch
    }

    fn find(&self, name: &PluginName, version: Option<u32>) -> Result<&PluginVersion, PluginError> {
        let unknown = || PluginError::Unknown(name.clone());
        let all = &self.plugins.get(name).ok_or_else(unknown)?.all;
        let (_, newest) = all.last_key_value().ok_or_else(unknown)?;
        let Some(version) = version else {
            return Ok(newest);
        };
        all.get(&version)
            .ok_or_else(|| PluginError::UnknownVersion {
                plugin: name.clone(),
                version,
                have: listed(all.keys()),
            })
    }
}

/// Version numbers for people; only the newest few of many.
fn listed<'a>(versions: impl DoubleEndedIterator<Item = &'a u32> + ExactSizeIterator) -> String {
    const SHOWN: usize = 10;
    let more = versions.len().saturating_sub(SHOWN);
    let newest: Vec<String> = versions.rev().take(SHOWN).map(u32::to_string).collect();
    match more {
        0 => newest.join(", "),
        more => format!("{} and {more} older ones", newest.join(", ")),
    }
}

impl Catalog {
    /// A turn to upload, for as long as it is held; `None` while as many as may be are under way.
    pub(crate) fn upload_turn(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.uploads).try_acquire_owned().ok()
    }

    /// A version of a plugin; `None` is the newest.
    #[must_use]
    pub fn plugin(&self, name: &PluginName, version: Option<u32>) -> Option<PluginVersion> {
        self.find_plugin(name, version).ok()
    }

    /// As [`Catalog::plugin`], with an error that says what there is instead.
    ///
    /// # Errors
    /// [`PluginError::Unknown`] or [`PluginError::UnknownVersion`].
    pub fn find_plugin(
        &self,
        name: &PluginName,
        version: Option<u32>,
    ) -> Result<PluginVersion, PluginError> {
        self.view().find(name, version).cloned()
    }

    /// Versions of plugins behind `after` that `wanted` accepts, in order: all versions of as
    /// many plugins as there are within `count` versions, at least one plugin.
    #[must_use]
    pub fn plugin_versions(
        &self,
        after: Option<&PluginName>,
        count: usize,
        wanted: impl Fn(&PluginName) -> bool,
    ) -> Vec<PluginVersion> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let view = self.view();
        let mut page: Vec<PluginVersion> = Vec::new();
        for (name, versions) in view
            .plugins
            .range::<PluginName, _>((from, Bound::Unbounded))
        {
            if versions.all.is_empty() || !wanted(name) {
                continue;
            }
            if !page.is_empty() && page.len() + versions.all.len() > count {
                break;
            }
            page.extend(versions.all.values().cloned());
        }
        page
    }

    /// The bytes of a component. Blocking.
    ///
    /// # Errors
    /// When the store cannot be read, or has lost it.
    pub fn plugin_bytes(&self, digest: Digest) -> Result<Bytes, WireError> {
        let snapshot = self.store.snapshot().map_err(|e| read_error(&e))?;
        let found = snapshot
            .get(Space::Blobs, &blob_key(&digest))
            .map_err(|e| read_error(&e))?;
        found.ok_or_else(|| {
            let text = format!("the component {digest:?} is not in the store; upload it again");
            WireError::new(ErrorCode::UnknownPlugin, text)
        })
    }

    /// Stores a component as the next version of a plugin. A component that is a version of it
    /// already stays what it is.
    ///
    /// # Errors
    /// [`PluginError::TooMany`] or [`PluginError::Storage`].
    pub async fn add_plugin(&self, new: NewPlugin) -> Result<PluginVersion, PluginError> {
        let _turn = self.changing.lock().await;
        let NewPlugin {
            plugin,
            kind,
            digest,
            wasm,
            by,
            now_ms,
        } = new;
        let mut batch = WriteBatch::new();
        let next = {
            let view = self.view();
            let known = view.plugins.get(&plugin);
            let same = known.and_then(|v| v.all.values().find(|v| v.digest == digest));
            if let Some(same) = same {
                return Ok(same.clone());
            }
            view.check_room(&plugin)?;
            if !view.knows_digest(&digest) {
                batch.put(Space::Blobs, blob_key(&digest), wasm.clone());
            }
            known.map_or(1, |versions| versions.next.max(1))
        };
        let version = PluginVersion {
            plugin: plugin.clone(),
            version: next,
            kind,
            digest,
            size: wasm.len() as u64,
            uploaded_ms: now_ms,
            uploaded_by: by,
        };
        // Four thousand million uploads of one plugin are further away than the limits above.
        let after = next.saturating_add(1);
        NextVersionRow {
            plugin: plugin.clone(),
            next: after,
        }
        .put(&mut batch);
        PluginRow(version.clone()).put(&mut batch);
        self.commit_plugin(&plugin, batch).await?;
        tracing::info!(%plugin, version = next, %kind, by = %version.uploaded_by, "stored");
        let mut view = self.show();
        let versions = view.plugins.entry(plugin).or_default();
        versions.next = after;
        versions.all.insert(next, version.clone());
        Ok(version)
    }

    async fn commit_plugin(
        &self,
        plugin: &PluginName,
        batch: WriteBatch,
    ) -> Result<(), PluginError> {
        let committed = self.store.commit(batch).await;
        let storage = |source| PluginError::Storage {
            plugin: plugin.clone(),
            source,
        };
        committed.map(drop).map_err(storage)
    }

    /// Deletes one version of a plugin, or all. `used_elsewhere` says what else runs a version,
    /// for people. Subscriptions that run it now keep it until they end.
    ///
    /// # Errors
    /// [`PluginError`]; nothing was deleted then, unless the storage failed midway.
    pub async fn delete_plugin(
        &self,
        name: &PluginName,
        version: Option<u32>,
        used_elsewhere: impl Fn(&PluginName, u32) -> Option<String>,
    ) -> Result<(), PluginError> {
        let _turn = self.changing.lock().await;
        let going: Vec<PluginVersion> = {
            let view = self.view();
            let found = view.find(name, version)?;
            match version {
                Some(_) => vec![found.clone()],
                None => view.plugins[name].all.values().cloned().collect(),
            }
        };
        for PluginVersion { version, .. } in &going {
            // The view is let go of first: others are asked, who may look at it themselves.
            let attached = self.view().attached_to(name, *version);
            if let Some(by) = attached.or_else(|| used_elsewhere(name, *version)) {
                return Err(PluginError::InUse {
                    plugin: name.clone(),
                    version: *version,
                    by,
                });
            }
        }
        let batch = self.view().removal(&going);
        let going: Vec<u32> = going.iter().map(|version| version.version).collect();
        self.commit_plugin(name, batch).await?;
        tracing::info!(plugin = %name, versions = ?going, "deleted");
        let mut view = self.show();
        if let Some(Versions { all, .. }) = view.plugins.get_mut(name) {
            all.retain(|number, _| !going.contains(number));
        }
        Ok(())
    }
}
