//! A broker for the crash tests: `crash-broker <certificates> <data> <address> [small | full]`.
//!
//! With the last word its hot file is so small that records are always being sealed, removed ones
//! unlinked and segments rewritten; `full` has a switch that fills the disk, see
//! [`millstream_crash::full`].
//!
//! Writes the address that was bound to its output once it serves. It ends when its input does,
//! so it does not outlive a test that dies; tests kill it long before.

use std::error::Error;
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use millstream_broker::config::{BackupConfig, TlsFiles};
use millstream_broker::{Broker, Clock, Config};
use millstream_crash::full::FullFiles;
use millstream_crash::rig::ADMIN;
use millstream_store::{RedbConfig, RedbStore};
use redb::backends::FileBackend;
use tracing_subscriber::EnvFilter;

/// How fast it backs up: slowly, so that it can be killed in the middle.
const BACKUP_BYTES_PER_SECOND: u64 = 32 << 20;

/// Records kept in memory: fewer than a drill makes.
const TAIL_BYTES: usize = 1 << 20;

/// A small hot file: records are sealed from 256 KiB on, and appends wait from 768 KiB on.
const SMALL_HOT_BYTES: u64 = 1 << 20;

/// Segments to go with it.
const SMALL_SEGMENT_BYTES: u64 = 128 << 10;

/// Where brokers have their store, and its segments.
const SHARD_FILE: &str = "shard-0.redb";
const SEGMENT_DIR: &str = "shard-0.segments";

/// Opens the store as the last argument has it; a broker does it for itself if there is none.
fn open_store(data: &Path, how: &str) -> Result<RedbStore, Box<dyn Error>> {
    let small = RedbConfig {
        hot_bytes: SMALL_HOT_BYTES,
        segment_bytes: SMALL_SEGMENT_BYTES,
        ..RedbConfig::default()
    };
    std::fs::create_dir_all(data)?;
    let path = data.join(SHARD_FILE);
    match how {
        "small" => Ok(RedbStore::open(path, &small)?),
        "full" => {
            let mut file = File::options();
            let file = file.read(true).write(true).create(true).truncate(false);
            let backend = FileBackend::new(file.open(&path)?)?;
            let files = Arc::new(FullFiles::open(data, &data.join(SEGMENT_DIR))?);
            Ok(RedbStore::open_with(backend, files, path, &small)?)
        }
        other => Err(format!("{other:?} is neither small nor full").into()),
    }
}

fn configuration(args: Vec<OsString>) -> Result<Config, Box<dyn Error>> {
    let Ok([pki, data, listen]) = <[OsString; 3]>::try_from(args) else {
        return Err("usage: crash-broker <certificates> <data> <address> [small | full]".into());
    };
    let listen: SocketAddr = listen.to_string_lossy().parse()?;
    let file = |name: &str| PathBuf::from(&pki).join(name);
    let tls = TlsFiles::new(file("server.pem"), file("server.key"), file("ca.pem"));
    let backups = PathBuf::from(&data).with_file_name("backups");
    let mut config = Config::new(listen, data, tls);
    let mut backup = BackupConfig::new(backups.display().to_string());
    backup.bytes_per_second = BACKUP_BYTES_PER_SECOND;
    config.backup = Some(backup);
    config.admins = vec![ADMIN.parse()?];
    // So that readers need the disk too.
    config.storage.tail_bytes = TAIL_BYTES;
    Ok(config)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new("info"))
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    let mut args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let how = (args.len() > 3).then(|| args.pop()).flatten();
    let config = configuration(args)?;
    let clock = Clock::system();
    let running = match how {
        None => Broker::start(config, clock).await?,
        Some(how) => {
            let store = open_store(&config.data_dir, &how.to_string_lossy())?;
            Broker::start_with_store(config, clock, Arc::new(store)).await?
        }
    };
    let mut output = std::io::stdout();
    writeln!(output, "{}", running.local_addr())?;
    output.flush()?;
    let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    ended.await??;
    running.shutdown().await;
    Ok(())
}
