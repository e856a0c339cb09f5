//! What needs a broker: upload, list, delete, attach, detach and logs.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use millstream::Client;
use millstream_proto::limits::MAX_PLUGIN_BYTES;
use millstream_proto::message::LogLine;
use millstream_proto::pipeline::ErrorPolicy;
use millstream_proto::{PluginName, Tenant, TopicName};

use crate::args::Global;
use crate::clock::rfc3339;
use crate::error::{CliError, Outcome};
use crate::link;
use crate::output::Output;
use crate::plugin_use::{PluginRef, plugin_use, policy, show_policy, show_ref};
use crate::quantity::{pair, show_bytes};
use crate::table::Table;
use crate::view::{LogView, VersionView};

/// How often `--follow` asks for new lines.
const FOLLOW_EVERY: Duration = Duration::from_millis(500);

/// Arguments of `plugin upload`.
#[derive(Debug, Args)]
#[command(after_help = "\
The broker checks and compiles the component before it answers. Each upload of other bytes is the
next version; places where the plugin is attached keep the version they have.

Example:
  millstream plugin upload acme/drop-debug target/wasm32-wasip2/release/drop_debug.wasm")]
pub(crate) struct UploadArgs {
    /// tenant/plugin.
    plugin: PluginName,
    /// The component.
    file: PathBuf,
}

/// Arguments of `plugin attach`.
#[derive(Debug, Args)]
#[command(after_help = "\
A partitioner takes the partitioner's place. A plugin that is attached already is replaced where it
stands; any other goes to the end of the topic's chain. No restart is needed.

Examples:
  millstream plugin attach acme/quakes acme/route-by-region
  millstream plugin attach acme/quakes acme/filter-json@2 --config field=mag --config op='>=' \\
      --config value=4.5 --on-error dead-letter=acme/dead")]
pub(crate) struct AttachArgs {
    /// tenant/topic.
    topic: TopicName,
    /// tenant/plugin, or tenant/plugin@version; the newest version unless given.
    plugin: PluginRef,
    /// What the plugin reads as its configuration; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    config: Vec<(String, String)>,
    /// What happens when it fails: stop, skip or dead-letter=tenant/topic.
    #[arg(long, value_name = "POLICY", value_parser = policy, default_value = "stop")]
    on_error: ErrorPolicy,
}

/// Arguments of `plugin logs`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  millstream plugin logs acme/drop-debug --follow")]
pub(crate) struct LogsArgs {
    /// tenant/plugin.
    plugin: PluginName,
    /// Wait for further lines until interrupted.
    #[arg(long, short)]
    follow: bool,
    /// From this line number on.
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    from: u64,
}

/// Uploads a component.
pub(super) async fn upload(global: &Global, args: UploadArgs) -> Outcome {
    let path = &args.file;
    let size = fs::metadata(path)
        .map_err(|e| CliError::file("read", path, &e))?
        .len();
    if size > MAX_PLUGIN_BYTES as u64 {
        let shown = path.display();
        return Err(CliError::usage(format!(
            "{shown} has {size} bytes; a plugin has at most {MAX_PLUGIN_BYTES}"
        ))
        .next("build it with `millstream plugin build`, which strips it"));
    }
    let component = Bytes::from(fs::read(path).map_err(|e| CliError::file("read", path, &e))?);
    let out = global.output();
    let bar = out.progress("uploading", Some(size));
    let seen = bar.clone();
    let progress = move |bytes| {
        seen.set_position(bytes);
        if bytes >= size {
            seen.set_message("compiling");
        }
    };
    let upload =
        async |client: &Client| client.upload_plugin(args.plugin, component, progress).await;
    let uploaded = link::with(global, upload).await;
    bar.finish_and_clear();
    let version = uploaded?;
    let sentence = format!(
        "uploaded {} version {}, a {} of {} (sha256 {})",
        version.plugin,
        version.version,
        version.kind,
        show_bytes(version.size),
        version.digest
    );
    out.done(&sentence, &VersionView::new(&version))
}

/// Lists versions.
pub(super) async fn list(global: &Global, tenant: Option<Tenant>) -> Outcome {
    let versions = link::with(global, async |client| {
        client.list_plugins(tenant.as_ref()).await
    })
    .await?;
    let mut table = Table::new(&["PLUGIN", "VERSION#", "KIND", "SIZE#", "UPLOADED", "SHA256"]);
    for version in &versions {
        let digest = version.digest.to_string();
        table.row([
            version.plugin.to_string(),
            version.version.to_string(),
            version.kind.to_string(),
            show_bytes(version.size),
            rfc3339(version.uploaded_ms),
            digest.chars().take(12).collect(),
        ]);
    }
    let views: Vec<VersionView<'_>> = versions.iter().map(VersionView::new).collect();
    global.output().table(&table, &views)
}

/// Deletes one version or all.
pub(super) async fn delete(global: &Global, plugin: PluginRef, all: bool) -> Outcome {
    let PluginRef { plugin, version } = plugin;
    if version.is_some() && all {
        return Err(CliError::usage(
            "--all deletes every version; name one of them or none",
        ));
    }
    if version.is_none() && !all {
        return Err(
            CliError::usage(format!("which version of {plugin}?")).next(format!(
                "millstream plugin delete {plugin}@<version>, or --all for all of them"
            )),
        );
    }
    link::with(global, async |client| {
        client.delete_plugin(plugin.clone(), version).await
    })
    .await?;
    let which = version.map_or("all versions".to_owned(), |v| format!("version {v}"));
    let document = serde_json::json!({ "deleted": plugin, "version": version });
    global
        .output()
        .done(&format!("deleted {which} of {plugin}"), &document)
}

/// Puts a plugin on a topic.
pub(super) async fn attach(global: &Global, args: AttachArgs) -> Outcome {
    let wanted = plugin_use(&args.plugin, &args.config, args.on_error).map_err(CliError::usage)?;
    let name = wanted.plugin.clone();
    let info = link::with(global, async |client| {
        client.attach(args.topic, wanted).await
    })
    .await?;
    // The broker has filled in the version.
    let used = info.chain.iter().find(|used| used.plugin == name);
    let shown = used.map_or_else(|| name.to_string(), show_ref);
    let on_error = used
        .map(|used| show_policy(&used.on_error))
        .unwrap_or_default();
    let sentence = format!("{shown} is on {} now; on error: {on_error}", info.topic);
    global.output().done(&sentence, &info)
}

/// Takes a plugin off a topic.
pub(super) async fn detach(global: &Global, topic: TopicName, plugin: PluginName) -> Outcome {
    let info = link::with(global, async |client| {
        client.detach(topic, plugin.clone()).await
    })
    .await?;
    global
        .output()
        .done(&format!("{plugin} is off {}", info.topic), &info)
}

/// Shows what a plugin wrote.
pub(super) async fn logs(global: &Global, args: LogsArgs) -> Outcome {
    let out = global.output();
    link::with(global, async |client| {
        let mut from = print_from(out, client, &args.plugin, args.from).await?;
        if !args.follow {
            return Ok(());
        }
        let follow = async {
            loop {
                tokio::time::sleep(FOLLOW_EVERY).await;
                from = print_from(out, client, &args.plugin, from).await?;
            }
        };
        tokio::select! {
            followed = follow => followed,
            interrupted = tokio::signal::ctrl_c() => interrupted.map_err(CliError::failure),
        }
    })
    .await
}

/// Prints the lines from `from` on and returns the number of the next one.
async fn print_from(out: Output, client: &Client, plugin: &PluginName, from: u64) -> Outcome<u64> {
    let lines: Vec<LogLine> = client.plugin_log(plugin.clone(), from).await?;
    for line in &lines {
        if out.json {
            out.document(&LogView::new(line))?;
        } else {
            out.line(&shown(line))?;
        }
    }
    Ok(lines
        .last()
        .map_or(from, |line| line.sequence.saturating_add(1)))
}

/// A plugin's text cannot drive the terminal of who reads it.
fn shown(line: &LogLine) -> String {
    let LogLine {
        time_ms,
        level,
        place,
        version,
        message,
        ..
    } = line;
    let text = format!(
        "{} {level:<5} v{version} {place}: {message}",
        rfc3339(*time_ms)
    );
    text.chars()
        .map(|c| {
            if c.is_control() && c != '\t' {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_line_cannot_drive_the_terminal() {
        let line = LogLine {
            sequence: 0,
            time_ms: 0,
            level: "info".to_owned(),
            place: "topic acme/t".to_owned(),
            version: 2,
            message: "a\u{1b}]0;owned\u{7}\nb".to_owned(),
        };
        let text = shown(&line);
        assert!(!text.chars().any(char::is_control), "{text:?}");
        assert!(text.starts_with("1970-01-01T00:00:00Z info  v2 topic acme/t: a"));
    }
}
