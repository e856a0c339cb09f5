//! From the command line to a connected client, and from the client's errors to ours.

use std::path::Path;
use std::time::Duration;

use millstream::{Client, ClientConfig, Context, ContextError, Contexts, Identity};
use millstream::{ConnectError, ConsumeError, ProduceError, RequestError, UploadError};
use millstream_proto::{ErrorClass, ErrorCode, WireError};

use crate::args::Global;
use crate::error::{CliError, Exit, Outcome};

/// Where a broker listens unless said otherwise.
pub(crate) const DEFAULT_ADDR: &str = "127.0.0.1:7440";

/// Time for a goodbye to be sent. A broker that misses it notices the silence.
const GOODBYE: Duration = Duration::from_millis(20);
/// How long a command tries to reach the broker. Somebody waits for it.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Connects as the command line, the environment and the context say.
pub(crate) async fn connect(global: &Global) -> Outcome<Client> {
    let config = client_config(global)?;
    connect_with(config.connect_deadline(CONNECT_DEADLINE)).await
}

/// Connects, does `work` and takes leave, so that the broker does not wait for a process that has
/// ended.
pub(crate) async fn with<T, E: Into<CliError>>(
    global: &Global,
    work: impl AsyncFnOnce(&Client) -> Result<T, E>,
) -> Outcome<T> {
    let client = connect(global).await?;
    let outcome = work(&client).await;
    leave(&client).await;
    outcome.map_err(Into::into)
}

/// Says goodbye. What was done is acknowledged by now, so the answer is not waited for.
pub(crate) async fn leave(client: &Client) {
    let _ = tokio::time::timeout(GOODBYE, client.close()).await;
}

/// Connects with a configuration at hand.
pub(crate) async fn connect_with(config: ClientConfig) -> Outcome<Client> {
    let software = concat!("millstream-cli/", env!("CARGO_PKG_VERSION"));
    Ok(Client::connect(config.software(software)).await?)
}

/// What `--addr`, `--ca`, `--cert` and `--key` say, and the context for what they do not say.
fn client_config(global: &Global) -> Outcome<ClientConfig> {
    let Global {
        context,
        addr,
        server_name,
        ca,
        cert,
        key,
        ..
    } = global;
    if let (Some(addr), Some(ca), Some(cert), Some(key)) = (addr, ca, cert, key) {
        let identity = Identity::new(ca.as_path(), cert.as_path(), key.as_path());
        return Ok(named(
            ClientConfig::new(addr, identity),
            server_name.as_deref(),
        ));
    }
    let file = Contexts::default_path()?;
    let contexts = Contexts::load(&file)?;
    let (_, found) = contexts.choose(context.as_deref())?;
    Ok(overridden(found, global).client_config(&file))
}

fn named(config: ClientConfig, server_name: Option<&str>) -> ClientConfig {
    match server_name {
        Some(name) => config.server_name(name),
        None => config,
    }
}

/// A context with what the command line says in place of its own. Paths on the command line count
/// from the current directory, those in the context file from that file's.
fn overridden(context: &Context, global: &Global) -> Context {
    let here = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let path = |given: &Option<std::path::PathBuf>, own: &Path| {
        given.as_deref().map_or_else(|| own.to_owned(), here)
    };
    Context {
        addr: global.addr.clone().unwrap_or_else(|| context.addr.clone()),
        server_name: global
            .server_name
            .clone()
            .or_else(|| context.server_name.clone()),
        ca: path(&global.ca, &context.ca),
        cert: path(&global.cert, &context.cert),
        key: path(&global.key, &context.key),
    }
}

/// The exit code of what a broker said.
fn wire_exit(wire: &WireError) -> Exit {
    match wire.code {
        ErrorCode::NotAuthorized | ErrorCode::NoIdentity | ErrorCode::CertificateRejected => {
            Exit::Refused
        }
        ErrorCode::UnknownTopic
        | ErrorCode::UnknownPartition
        | ErrorCode::UnknownPlugin
        | ErrorCode::UnknownPipeline => Exit::NotFound,
        ErrorCode::InvalidConfig
        | ErrorCode::InvalidName
        | ErrorCode::InvalidPipeline
        | ErrorCode::AttachInvalid
        | ErrorCode::UploadRejected
        | ErrorCode::OffsetOutOfRange
        | ErrorCode::RecordTooLarge
        | ErrorCode::BatchTooLarge
        | ErrorCode::UnknownCodec => Exit::Usage,
        code if code.class() == ErrorClass::Retry => Exit::Unavailable,
        _ => Exit::Failure,
    }
}

/// A next step, where the broker's own words do not have to say it.
fn wire_next(wire: &WireError) -> Option<String> {
    let next = match wire.code {
        ErrorCode::NotAuthorized => "ask for the right: see `millstream acl grant --help`",
        ErrorCode::NoIdentity => {
            "use a certificate with an identity: see `millstream pki issue --help`"
        }
        ErrorCode::CertificateRejected => {
            "have a new one issued: see `millstream pki issue --help`"
        }
        ErrorCode::UnknownTopic => "see `millstream topic list`",
        ErrorCode::UnknownPartition => "see `millstream topic describe`",
        ErrorCode::UnknownPlugin => "see `millstream plugin list`",
        ErrorCode::UnknownPipeline => "see `millstream pipeline list`",
        ErrorCode::TopicExists => "change it with `millstream topic alter`, or choose another name",
        ErrorCode::PluginFailed => {
            "see `millstream plugin logs`, mend it, and attach or resume again"
        }
        ErrorCode::PluginInUse => "detach it, or delete the pipelines that use it, first",
        ErrorCode::StorageStopped => "see `millstream status`, and the broker's log for the cause",
        ErrorCode::ShuttingDown | ErrorCode::Overloaded | ErrorCode::PluginRetry => {
            "try again later"
        }
        _ => return None,
    };
    Some(next.to_owned())
}

fn from_wire(message: String, wire: &WireError) -> CliError {
    CliError {
        next: wire_next(wire),
        ..CliError::new(wire_exit(wire), message)
    }
}

/// The error of an operation: what the broker said counts first, then the connection, then
/// whether trying again can help.
fn from_parts(
    message: String,
    wire: Option<&WireError>,
    connect: Option<&ConnectError>,
    class: ErrorClass,
) -> CliError {
    match (wire, connect, class) {
        (Some(wire), _, _) => from_wire(message, wire),
        (None, Some(error), _) => from_connect(message, error),
        (None, None, ErrorClass::Retry) => {
            CliError::new(Exit::Unavailable, message).next("try again")
        }
        (None, None, ErrorClass::Fix) => CliError::usage(message),
        (None, None, ErrorClass::Fatal) => CliError::failure(message),
    }
}

fn from_connect(message: String, error: &ConnectError) -> CliError {
    let (exit, next) = match error {
        ConnectError::Refused(wire) => return from_wire(message, wire),
        ConnectError::Config(_) => (Exit::Usage, "see `millstream context show`"),
        ConnectError::CertificateRequired { .. }
        | ConnectError::UnknownAuthority { .. }
        | ConnectError::CertificateExpired { .. }
        | ConnectError::CertificateRevoked { .. }
        | ConnectError::BadCertificate { .. } => (
            Exit::Refused,
            "issue a certificate with `millstream pki issue`, see `millstream context show`",
        ),
        ConnectError::BrokerUntrusted { .. }
        | ConnectError::BrokerCertificateExpired { .. }
        | ConnectError::BrokerNameMismatch { .. } => (
            Exit::Refused,
            "check --addr, --server-name and --ca, see `millstream context show`",
        ),
        ConnectError::Tls { .. } | ConnectError::NoCommonProtocol { .. } => (
            Exit::Refused,
            "check that a Millstream broker of this version runs at the address",
        ),
        ConnectError::Resolve { .. } => (
            Exit::Unavailable,
            "check --addr, see `millstream context show`",
        ),
        ConnectError::Unreachable { .. } | ConnectError::Lost { .. } => (
            Exit::Unavailable,
            "check that the broker runs (`millstream serve`), and the address: `millstream context show`",
        ),
        _ => return CliError::failure(message),
    };
    CliError::new(exit, message).next(next)
}

impl From<ConnectError> for CliError {
    fn from(error: ConnectError) -> Self {
        from_connect(error.to_string(), &error)
    }
}

impl From<RequestError> for CliError {
    fn from(error: RequestError) -> Self {
        let connect = match &error {
            RequestError::Connect(e) => Some(e),
            _ => None,
        };
        from_parts(error.to_string(), error.wire(), connect, error.class())
    }
}

impl From<UploadError> for CliError {
    fn from(error: UploadError) -> Self {
        let connect = match &error {
            UploadError::Connect(e) => Some(e),
            _ => None,
        };
        from_parts(error.to_string(), error.wire(), connect, error.class())
    }
}

impl From<ProduceError> for CliError {
    fn from(error: ProduceError) -> Self {
        let connect = match &error {
            ProduceError::Connect { error, .. } => Some(error),
            _ => None,
        };
        from_parts(error.to_string(), error.wire(), connect, error.class())
    }
}

impl From<ConsumeError> for CliError {
    fn from(error: ConsumeError) -> Self {
        let connect = match &error {
            ConsumeError::Connect { error, .. } => Some(error),
            _ => None,
        };
        from_parts(error.to_string(), error.wire(), connect, error.class())
    }
}

impl From<ContextError> for CliError {
    fn from(error: ContextError) -> Self {
        let add = "`millstream context add local --pki <dir> --tenant <tenant> --name <name>`";
        match &error {
            ContextError::Unknown { .. } => {
                CliError::new(Exit::NotFound, error).next("see `millstream context list`")
            }
            ContextError::NoCurrent { known } if known == "none" => {
                CliError::usage("it is not known which broker to talk to: there is no context yet")
                    .next(format!(
                        "add one with {add}, or give --addr, --ca, --cert and --key"
                    ))
            }
            ContextError::NoCurrent { .. } => {
                CliError::usage(error).next("choose one with `millstream context use <name>`")
            }
            ContextError::Parse { .. } => {
                CliError::usage(error).next("mend the file, or move it away and add contexts anew")
            }
            _ => CliError::failure(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit_of(code: ErrorCode) -> Exit {
        let wire = WireError::new(code, "why");
        CliError::from(RequestError::Refused(wire)).exit
    }

    #[test]
    fn scripts_can_tell_what_to_do_by_the_exit_code() {
        assert_eq!(exit_of(ErrorCode::NotAuthorized), Exit::Refused);
        assert_eq!(exit_of(ErrorCode::UnknownTopic), Exit::NotFound);
        assert_eq!(exit_of(ErrorCode::InvalidPipeline), Exit::Usage);
        assert_eq!(exit_of(ErrorCode::Overloaded), Exit::Unavailable);
        assert_eq!(exit_of(ErrorCode::TopicExists), Exit::Failure);
        let lost = ConnectError::Lost {
            addr: "a:1".to_owned(),
            why: "gone".to_owned(),
        };
        assert_eq!(
            CliError::from(RequestError::Connect(lost)).exit,
            Exit::Unavailable
        );
        let expired = ConnectError::CertificateExpired {
            addr: "a:1".to_owned(),
        };
        assert_eq!(CliError::from(expired).exit, Exit::Refused);
    }

    #[test]
    fn a_refusal_keeps_the_brokers_words_and_adds_a_step() {
        let wire = WireError::new(ErrorCode::UnknownTopic, "there is no acme/quakes");
        let error = CliError::from(RequestError::Refused(wire));
        assert!(error.message.contains("there is no acme/quakes"));
        assert!(error.next.is_some_and(|next| next.contains("topic list")));
    }

    #[test]
    fn the_command_line_beats_the_context() {
        let context = Context {
            addr: "a:1".to_owned(),
            server_name: Some("a".to_owned()),
            ca: "ca".into(),
            cert: "cert".into(),
            key: "key".into(),
        };
        let global = Global {
            context: None,
            addr: Some("b:2".to_owned()),
            server_name: None,
            ca: None,
            cert: None,
            key: Some("/k".into()),
            json: false,
            quiet: false,
        };
        let both = overridden(&context, &global);
        assert_eq!(both.addr, "b:2");
        assert_eq!(both.server_name.as_deref(), Some("a"));
        assert_eq!(
            (both.cert.as_path(), both.key.as_path()),
            (Path::new("cert"), Path::new("/k"))
        );
    }
}
