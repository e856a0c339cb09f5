//! Faults at every operation on a directory of backups: one that fails and does nothing, one that
//! is done and fails all the same, and one that is half done and leaves what a write leaves that
//! does not come to its end.

use std::fs;
use std::sync::Mutex;

use futures_util::StreamExt;
use object_store::UploadPart;
use object_store::local::LocalFileSystem;

use super::*;

/// What happens to the operation that is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// Nothing is done.
    Before,
    /// It is done, and nobody is told.
    After,
    /// It is half done, if it writes; else nothing is.
    Torn,
}

const EVERY_WAY: [How; 3] = [How::Before, How::After, How::Torn];

#[derive(Debug, Default)]
struct Switch {
    /// Operations until the fault, and what it is.
    fault: Option<(usize, How)>,
    struck: bool,
}

/// A directory of backups that fails.
#[derive(Clone, Debug)]
struct Breaking {
    inner: Arc<LocalFileSystem>,
    dir: std::path::PathBuf,
    switch: Arc<Mutex<Switch>>,
}

fn broken() -> Error {
    Error::Generic {
        store: "breaking",
        source: "injected fault".into(),
    }
}

impl Breaking {
    fn new(dir: &FilePath) -> Self {
        let inner = LocalFileSystem::new_with_prefix(dir).unwrap();
        Self {
            inner: Arc::new(inner.with_fsync(true)),
            dir: dir.to_owned(),
            switch: Arc::default(),
        }
    }

    fn break_at(&self, operation: usize, how: How) {
        *self.switch.lock().unwrap() = Switch {
            fault: Some((operation, how)),
            struck: false,
        };
    }

    /// Takes back what has not come. Whether it has.
    fn mend(&self) -> bool {
        std::mem::take(&mut *self.switch.lock().unwrap()).struck
    }

    /// Counts an operation; if the fault strikes, says how.
    fn begin(&self) -> Option<How> {
        let mut switch = self.switch.lock().unwrap();
        let (left, how) = switch.fault?;
        switch.fault = left.checked_sub(1).map(|left| (left, how));
        switch.struck |= left == 0;
        (left == 0).then_some(how)
    }

    /// Does an operation, or what the fault leaves of it.
    async fn operate<T>(&self, work: impl Future<Output = StoreResult<T>>) -> StoreResult<T> {
        match self.begin() {
            None => work.await,
            Some(How::After) => {
                work.await?;
                Err(broken())
            }
            Some(_) => Err(broken()),
        }
    }

    /// Leaves half of an object under the name that it has until it is complete.
    fn tear(&self, location: &Path, payload: &PutPayload) {
        let file = self.dir.join(format!("{location}#1"));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        let bytes = payload.iter().flatten().copied();
        let half: Vec<u8> = bytes.take(payload.content_length() / 2).collect();
        fs::write(file, half).unwrap();
    }
}

impl fmt::Display for Breaking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("breaking")
    }
}

#[async_trait]
impl ObjectStore for Breaking {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> StoreResult<PutResult> {
        match self.begin() {
            Some(How::Before) => Err(broken()),
            Some(How::Torn) => {
                self.tear(location, &payload);
                Err(broken())
            }
            after => {
                let put = self.inner.put_opts(location, payload, opts).await?;
                after.map_or(Ok(put), |_| Err(broken()))
            }
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        let begun = self.inner.put_multipart_opts(location, opts);
        let inner = self.operate(begun).await?;
        let breaking = self.clone();
        Ok(Box::new(BreakingUpload { inner, breaking }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> StoreResult<GetResult> {
        self.operate(self.inner.get_opts(location, options)).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, StoreResult<Path>>,
    ) -> BoxStream<'static, StoreResult<Path>> {
        let this = self.clone();
        let delete = move |location: StoreResult<Path>| {
            let this = this.clone();
            async move {
                let location = location?;
                let one = futures_util::stream::once(async { Ok(location) }).boxed();
                let mut deleted = this.inner.delete_stream(one);
                let deleted = async { deleted.next().await.unwrap() };
                this.operate(deleted).await
            }
        };
        locations.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        match self.begin() {
            None => self.inner.list(prefix),
            Some(_) => futures_util::stream::once(async { Err(broken()) }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StoreResult<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[derive(Debug)]
struct BreakingUpload {
    inner: Box<dyn MultipartUpload>,
    breaking: Breaking,
}

#[async_trait]
impl MultipartUpload for BreakingUpload {
    fn put_part(&mut self, payload: PutPayload) -> UploadPart {
        let (put, breaking) = (self.inner.put_part(payload), self.breaking.clone());
        Box::pin(async move { breaking.operate(put).await })
    }

    async fn complete(&mut self) -> StoreResult<PutResult> {
        let breaking = self.breaking.clone();
        breaking.operate(self.inner.complete()).await
    }

    async fn abort(&mut self) -> StoreResult<()> {
        self.inner.abort().await
    }
}

fn copy_dir(from: &FilePath, to: &FilePath) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

impl World {
    /// Goes on with a copy of the directory `backups`.
    fn attempt(&mut self, name: &str) -> Breaking {
        let (from, to) = (self.dir("backups"), self.dir(name));
        copy_dir(&from, &to);
        let breaking = Breaking::new(&to);
        self.target = Target::of_directory(Arc::new(breaking.clone()), &to);
        breaking
    }

    /// That all that is listed is whole.
    async fn ids_if_whole(&self, context: &str) -> Vec<BackupId> {
        assert_eq!(self.verify().await.findings, [], "{context}");
        self.target.ids().await.unwrap()
    }
}

/// Runs `work` with a fault at one operation after the other, each time on a copy of the directory,
/// until none comes; then `check`s what is left. Returns how many there were.
async fn sweep(
    world: &mut World,
    mut work: impl AsyncFnMut(&mut World) -> Result<(), String>,
    check: impl AsyncFn(&mut World, &str, Result<(), String>),
) -> usize {
    let mut operations = 0;
    for how in EVERY_WAY {
        for nth in 0.. {
            let context = format!("{how:?} at operation {nth}");
            let breaking = world.attempt(&format!("{how:?}-{nth}"));
            breaking.break_at(nth, how);
            let done = work(world).await;
            if !breaking.mend() {
                done.unwrap();
                break;
            }
            operations += 1;
            check(world, &context, done).await;
            fs::remove_dir_all(&breaking.dir).unwrap();
        }
    }
    operations
}

/// A world with `count` backups in its directory `backups`.
async fn with_backups(count: u64) -> (World, Vec<BackupId>) {
    let mut world = World::new().await;
    let dir = world.dir("backups");
    world.target = Target::open_or_create(dir.to_str().unwrap()).unwrap();
    let mut ids = Vec::new();
    for round in 0..count {
        world.fill(100 + round * 20..120 + round * 20).await;
        ids.push(world.back_up().await.unwrap().id);
    }
    (world, ids)
}

#[tokio::test]
async fn a_backup_that_fails_anywhere_is_whole_or_not_listed() {
    let (mut world, ids) = with_backups(1).await;
    world.fill(200..240).await;
    let mut large = WriteBatch::new();
    // So that something goes in pieces.
    large.put(Space::Blobs, [1; 32], vec![7; 9 << 20]);
    world.store.commit(large).await.unwrap();
    let work = async |world: &mut World| {
        let made = world.back_up().await;
        made.map(drop).map_err(|error| error.to_string())
    };
    let check = async |world: &mut World, context: &str, done: Result<(), String>| {
        let listed = world.ids_if_whole(context).await;
        assert_eq!(listed[0], ids[0], "{context}");
        // The last write may have been done though it was not told.
        let as_told = listed.len() == 1 + usize::from(done.is_ok());
        assert!(
            as_told || context.starts_with("After"),
            "{context}: {done:?}"
        );
        if let Err(error) = done {
            assert!(error.contains("injected fault"), "{context}: {error}");
        }
        let made = world.back_up().await.unwrap();
        let listed = world.ids_if_whole(context).await;
        assert_eq!(listed.last(), Some(&made.id), "{context}");
    };
    let operations = sweep(&mut world, work, check).await;
    assert!(operations > 30, "{operations}");
    world.no_leavings();
}

#[tokio::test]
async fn pruning_that_fails_anywhere_leaves_whole_backups_and_can_be_done_again() {
    let (mut world, ids) = with_backups(4).await;
    let work = async |world: &mut World| {
        let pruned = prune(&world.target, 2, &[]).await;
        pruned.map(drop).map_err(|error| error.to_string())
    };
    let check = async |world: &mut World, context: &str, done: Result<(), String>| {
        let listed = world.ids_if_whole(context).await;
        assert!(listed.ends_with(&ids[2..]), "{context}: {done:?}");
        let again = prune(&world.target, 2, &[]).await;
        assert_eq!(again.unwrap().kept, ids[2..], "{context}");
        assert_eq!(world.ids_if_whole(context).await, ids[2..], "{context}");
        let named = world.verify().await.objects;
        assert_eq!(world.objects().await.len() as u64, named, "{context}");
    };
    let operations = sweep(&mut world, work, check).await;
    assert!(operations > 20, "{operations}");
}

#[tokio::test]
async fn a_restore_that_cannot_read_leaves_nothing() {
    let (mut world, _) = with_backups(2).await;
    let expected = rows(&world.store);
    let work = async |world: &mut World| {
        let done = world.restore(Which::Latest, "copy", &Selection::All).await;
        done.map(drop).map_err(|error| error.to_string())
    };
    let check = async |world: &mut World, context: &str, done: Result<(), String>| {
        let error = done.unwrap_err();
        assert!(error.contains("injected fault"), "{context}: {error}");
        assert!(!world.dir("copy").exists(), "{context}");
        world.no_leavings();
        let again = world.restore(Which::Latest, "copy", &Selection::All).await;
        again.unwrap();
        assert!(restored(&world.dir("copy")) == expected, "{context}");
        fs::remove_dir_all(world.dir("copy")).unwrap();
    };
    let work = async |world: &mut World| {
        let done = work(world).await;
        if done.is_ok() {
            fs::remove_dir_all(world.dir("copy")).unwrap();
        }
        done
    };
    let operations = sweep(&mut world, work, check).await;
    assert!(operations > 10, "{operations}");
}
