//! A broker for the crash tests: `crash-broker <certificates> <data> <address>`.
//!
//! Writes the address that was bound to its output once it serves. It ends when its input does,
//! so it does not outlive a test that dies; tests kill it long before.

use std::error::Error;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;

use millstream_broker::config::{BackupConfig, TlsFiles};
use millstream_broker::{Broker, Clock, Config};
use millstream_crash::rig::ADMIN;
use tracing_subscriber::EnvFilter;

/// How fast it backs up: slowly, so that it can be killed in the middle.
const BACKUP_BYTES_PER_SECOND: u64 = 32 << 20;

/// Records kept in memory: fewer than a drill makes.
const TAIL_BYTES: usize = 1 << 20;

fn configuration(args: Vec<OsString>) -> Result<Config, Box<dyn Error>> {
    let Ok([pki, data, listen]) = <[OsString; 3]>::try_from(args) else {
        return Err("usage: crash-broker <certificates> <data> <address>".into());
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
    let config = configuration(std::env::args_os().skip(1).collect())?;
    let running = Broker::start(config, Clock::system()).await?;
    let mut output = std::io::stdout();
    writeln!(output, "{}", running.local_addr())?;
    output.flush()?;
    let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    ended.await??;
    running.shutdown().await;
    Ok(())
}
