//! `millstream pipeline`: topic -> plugins -> topics, exactly once.

use std::fs;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use millstream_proto::pipeline::{PipelineInfo, PipelineState};
use millstream_proto::{PipelineName, Tenant};

use crate::args::Global;
use crate::error::{CliError, Outcome};
use crate::link;
use crate::output::Output;
use crate::pipeline_file;
use crate::plugin_use::{show_config, show_policy, show_ref};
use crate::quantity::show_count;
use crate::table::Table;
use crate::view::{PipelineView, behind, state_word};

/// Largest file of a pipeline, in bytes; what it says must fit one request anyway.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Subcommands of `pipeline`.
#[derive(Debug, Subcommand)]
pub(crate) enum PipelineCommand {
    /// Create a pipeline from a file, or replace its definition; its position stays.
    Apply(ApplyArgs),
    /// List the pipelines that you may describe.
    List {
        /// Only of this tenant.
        #[arg(long)]
        tenant: Option<Tenant>,
    },
    /// Show a pipeline's definition, state and progress.
    Show {
        /// tenant/pipeline.
        pipeline: PipelineName,
    },
    /// Pause a pipeline; its position stays.
    Pause {
        /// tenant/pipeline.
        pipeline: PipelineName,
    },
    /// Run again after a pause or an error.
    Resume {
        /// tenant/pipeline.
        pipeline: PipelineName,
    },
    /// Delete a pipeline and its position; its topics stay.
    Delete {
        /// tenant/pipeline.
        pipeline: PipelineName,
        /// Yes, the position too.
        #[arg(long)]
        yes: bool,
    },
}

/// Arguments of `pipeline apply`.
#[derive(Debug, Args)]
#[command(after_help = "\
A file looks like this; unknown keys are refused:

  name = \"acme/alerts\"
  input = \"acme/quakes\"
  start = \"earliest\"             # or \"latest\"; counts when it runs for the first time

  [[step]]                       # none, one or many, in order: filters and transforms
  plugin = \"acme/split-alerts\"
  version = 1                    # the newest unless given
  on_error = \"dead-letter\"       # or \"stop\", which it is unless given, or \"skip\"
  dead_letter = \"acme/dead\"
  [step.config]
  threshold = 4.5

  [[output]]                     # one for each output of the last transform, in its order
  name = \"alerts\"
  topic = \"acme/alerts\"

Example:
  millstream pipeline apply alerts.toml")]
pub(crate) struct ApplyArgs {
    /// TOML file.
    file: PathBuf,
}

/// Runs a subcommand.
pub(crate) async fn run(global: &Global, command: PipelineCommand) -> Outcome {
    let out = global.output();
    match command {
        PipelineCommand::Apply(args) => apply(global, &args).await,
        PipelineCommand::List { tenant } => {
            let pipelines = link::with(global, async |client| {
                client.list_pipelines(tenant.as_ref()).await
            })
            .await?;
            list(out, &pipelines)
        }
        PipelineCommand::Show { pipeline } => show(
            out,
            &link::with(global, async |client| client.show_pipeline(pipeline).await).await?,
        ),
        PipelineCommand::Pause { pipeline } => {
            let info =
                link::with(global, async |client| client.pause_pipeline(pipeline).await).await?;
            out.done(
                &format!("paused {}", info.spec.name),
                &PipelineView::new(&info),
            )
        }
        PipelineCommand::Resume { pipeline } => {
            let info = link::with(global, async |client| {
                client.resume_pipeline(pipeline).await
            })
            .await?;
            let sentence = format!("{} is {} again", info.spec.name, state_word(&info.state));
            told(out, &info, &sentence)
        }
        PipelineCommand::Delete {
            pipeline,
            yes: false,
        } => {
            let warning = format!("deleting {pipeline} forgets what it has read already");
            Err(CliError::usage(warning).next(format!(
                "say so: millstream pipeline delete {pipeline} --yes"
            )))
        }
        PipelineCommand::Delete {
            pipeline,
            yes: true,
        } => {
            link::with(global, async |client| {
                client.delete_pipeline(pipeline.clone()).await
            })
            .await?;
            out.done(
                &format!("deleted {pipeline}"),
                &serde_json::json!({ "deleted": pipeline }),
            )
        }
    }
}

async fn apply(global: &Global, args: &ApplyArgs) -> Outcome {
    let path = &args.file;
    let size = fs::metadata(path)
        .map_err(|e| CliError::file("read", path, &e))?
        .len();
    if size > MAX_FILE_BYTES {
        let shown = path.display();
        return Err(CliError::usage(format!(
            "{shown} has {size} bytes; at most {MAX_FILE_BYTES} are read"
        )));
    }
    let text = fs::read_to_string(path).map_err(|e| CliError::file("read", path, &e))?;
    let spec = pipeline_file::parse(&text).map_err(|why| {
        CliError::usage(format!("{}: {why}", path.display()))
            .next("see `millstream pipeline apply --help` for the format")
    })?;
    let info = link::with(global, async |client| client.apply_pipeline(spec).await).await?;
    let name = &info.spec.name;
    let sentence = format!(
        "applied {name}, which is {}\nnext: millstream pipeline show {name}",
        state_word(&info.state)
    );
    told(global.output(), &info, &sentence)
}

/// Tells what was done, if it was: a pipeline that is applied and does not run is an error.
fn told(out: Output, info: &PipelineInfo, sentence: &str) -> Outcome {
    let PipelineState::Failed(why) = &info.state else {
        return out.done(sentence, &PipelineView::new(info));
    };
    if out.json {
        out.document(&PipelineView::new(info))?;
    }
    let name = &info.spec.name;
    Err(
        CliError::failure(format!("{name} does not run: {why}")).next(format!(
            "mend that, then: millstream pipeline resume {name}"
        )),
    )
}

fn list(out: Output, pipelines: &[PipelineInfo]) -> Outcome {
    let mut table = Table::new(&[
        "PIPELINE", "STATE", "INPUT", "OUTPUTS", "IN#", "OUT#", "BEHIND#",
    ]);
    for info in pipelines {
        let outputs: Vec<&str> = info.spec.outputs.iter().map(|(_, t)| t.as_str()).collect();
        table.row([
            info.spec.name.to_string(),
            state_word(&info.state).to_owned(),
            info.spec.input.to_string(),
            outputs.join(","),
            show_count(info.records_in),
            show_count(info.records_out),
            show_count(behind(info)),
        ]);
    }
    let views: Vec<PipelineView<'_>> = pipelines.iter().map(PipelineView::new).collect();
    out.table(&table, &views)
}

fn show(out: Output, info: &PipelineInfo) -> Outcome {
    if out.json {
        return out.document(&PipelineView::new(info));
    }
    let spec = &info.spec;
    let mut table = Table::new(&["PIPELINE", "VALUE"]);
    table.row(["name", spec.name.as_str()]);
    table.row(["state", state_word(&info.state)]);
    if let PipelineState::Failed(why) = &info.state {
        table.row(["why", why]);
    }
    table.row(["runs as", info.owner.as_str()]);
    table.row(["input", spec.input.as_str()]);
    for (name, topic) in &spec.outputs {
        table.row(["output", &format!("{name} -> {topic}")]);
    }
    table.row(["records in", &show_count(info.records_in)]);
    table.row(["records out", &show_count(info.records_out)]);
    table.row(["dead letters", &show_count(info.dead_letters)]);
    table.row(["skipped", &show_count(info.skipped)]);
    out.line(&table.to_string())?;
    if !spec.steps.is_empty() {
        let mut table = Table::new(&["STEP#", "PLUGIN", "ON ERROR", "CONFIG"]);
        for (i, step) in spec.steps.iter().enumerate() {
            let (policy, config) = (show_policy(&step.on_error), show_config(&step.config));
            table.row([(i + 1).to_string(), show_ref(step), policy, config]);
        }
        out.line(&format!("\n{table}"))?;
    }
    let mut table = Table::new(&["PARTITION#", "POSITION#", "END#", "BEHIND#"]);
    for p in &info.progress {
        let (position, end) = (p.position.get(), p.end.get());
        let numbers = [position, end, end.saturating_sub(position)].map(show_count);
        let [position, end, behind] = numbers;
        table.row([p.partition.to_string(), position, end, behind]);
    }
    out.line(&format!("\n{table}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use millstream_proto::pipeline::PipelineSpec;

    use super::*;
    use crate::error::Exit;

    fn info(state: PipelineState) -> PipelineInfo {
        PipelineInfo {
            spec: PipelineSpec {
                name: "acme/p".parse().unwrap(),
                input: "acme/in".parse().unwrap(),
                from_latest: false,
                steps: Vec::new(),
                outputs: Vec::new(),
            },
            owner: "spiffe://d/acme/me".parse().unwrap(),
            state,
            progress: Vec::new(),
            records_in: 0,
            records_out: 0,
            dead_letters: 0,
            skipped: 0,
        }
    }

    #[test]
    fn a_pipeline_that_does_not_run_is_an_error_that_says_why() {
        let out = Output {
            json: false,
            quiet: true,
        };
        let why = "topic acme/out was deleted".to_owned();
        let failed = told(out, &info(PipelineState::Failed(why)), "applied").unwrap_err();
        assert_eq!(failed.exit, Exit::Failure);
        assert!(
            failed
                .message
                .contains("acme/p does not run: topic acme/out")
        );
        assert!(failed.next.is_some());
        for state in [PipelineState::Running, PipelineState::Paused] {
            assert!(told(out, &info(state), "applied").is_ok());
        }
    }
}
