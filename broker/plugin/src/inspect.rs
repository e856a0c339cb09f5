//! Looks at an upload before anything is compiled: is it a plugin, of which kind, and does it
//! ask only for what plugins may have?
//!
//! Only names and sizes are read here, with the parser that wasmtime itself uses. Whether the
//! code is valid and the types behind the names agree is found out when it is compiled and
//! linked, in `registry`.

use millstream_proto::limits::MAX_PLUGIN_BYTES;
use millstream_proto::message::Digest;
use millstream_proto::pipeline::PluginKind;
use sha2::{Digest as _, Sha256};
use wasmparser::{Chunk, ComponentExternalKind, ComponentTypeRef, Encoding, Parser, Payload};

use crate::error::tame;
use crate::host::{LINKED, VERSION as WASI_VERSION};
use crate::limits::{MAX_FUNCTION_BYTES, MAX_FUNCTIONS, MAX_NESTED};

/// The package that plugins are written against.
const PACKAGE: &str = "millstream:plugin";
/// The version of that package which this broker speaks; patch versions may differ.
const VERSION: &str = "0.1";
/// What a plugin may import of that package.
const HOST: &[&str] = &["config", "logging", "metrics", "outputs", "types"];

/// What an upload turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// SHA-256 of the upload.
    pub digest: Digest,
    /// Its kind.
    pub kind: PluginKind,
    /// What it imports, with versions, in order.
    pub imports: Vec<String>,
}

/// Why an upload is refused: what is wrong with it and what was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Too many bytes.
    #[error(
        "the upload has {size} bytes; at most {MAX_PLUGIN_BYTES} are allowed. Build with opt-level 3, lto and strip"
    )]
    TooLarge {
        /// Its size in bytes.
        size: usize,
    },
    /// Not WebAssembly.
    #[error(
        "the upload is not WebAssembly: it is {found}; expected a component, as built for wasm32-wasip2"
    )]
    NotWasm {
        /// What it looks like.
        found: String,
    },
    /// WebAssembly, but not a component.
    #[error(
        "the upload is a core WebAssembly module; expected a component. Build it for the target wasm32-wasip2"
    )]
    CoreModule,
    /// Broken.
    #[error("the upload is a damaged component: {why} (at byte {offset})")]
    Malformed {
        /// What the parser says.
        why: String,
        /// Where.
        offset: usize,
    },
    /// Imports that plugins cannot have.
    #[error("the plugin imports {}, which plugins cannot have; allowed are {}", .names.join(", "), allowed())]
    ForeignImports {
        /// Their names.
        names: Vec<String>,
    },
    /// No interface of a plugin is exported.
    #[error(
        "the component is not a plugin: it exports {}; expected {PACKAGE}/lifecycle and one of {PACKAGE}/partitioner, {PACKAGE}/filter, {PACKAGE}/transform",
        if .exports.is_empty() { "nothing".to_owned() } else { .exports.join(", ") }
    )]
    NoKind {
        /// What it exports.
        exports: Vec<String>,
    },
    /// More than one kind.
    #[error("the component is a {} at once; expected exactly one kind", .kinds.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and a "))]
    SeveralKinds {
        /// Which.
        kinds: Vec<PluginKind>,
    },
    /// A kind that is not run yet.
    #[error(
        "the component is a processor, and this broker does not run processors yet; expected a partitioner, a filter or a transform"
    )]
    ProcessorNotYet,
    /// No lifecycle.
    #[error(
        "the component does not export {PACKAGE}/lifecycle; use the export macros of millstream-guest"
    )]
    NoLifecycle,
    /// Another version of the interface.
    #[error(
        "the component was built for {interface}; this broker speaks {PACKAGE} {VERSION}.x. Build it again with a matching millstream-guest"
    )]
    Version {
        /// The interface with its version.
        interface: String,
    },
    /// More than the compiler should be given.
    #[error("the component has {found} {what}; at most {limit} are allowed")]
    TooComplex {
        /// Of what.
        what: &'static str,
        /// How many.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// Valid names, invalid contents: found when compiling and linking.
    #[error("the component cannot run here: {0}")]
    Unfit(String),
}

/// What plugins may import, for people.
fn allowed() -> String {
    let wasi = LINKED
        .iter()
        .map(|(package, names)| format!("{package}/{{{}}}", names.join(",")));
    let host = std::iter::once(format!("{PACKAGE}/{{{}}} {VERSION}.x", HOST.join(",")));
    host.chain(wasi.map(|wasi| format!("{wasi} {WASI_VERSION}.x")))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Looks at an upload without compiling it.
///
/// # Errors
/// The first reason for which it cannot be a plugin.
pub fn inspect(wasm: &[u8]) -> Result<Inspection, Refusal> {
    if wasm.len() > MAX_PLUGIN_BYTES {
        return Err(Refusal::TooLarge { size: wasm.len() });
    }
    let names = read_names(wasm)?;
    let kind = kind_of(&names)?;
    let foreign: Vec<_> = names
        .imports
        .iter()
        .filter(|name| !is_allowed(name))
        .map(|name| tame(name))
        .collect();
    if !foreign.is_empty() {
        return Err(Refusal::ForeignImports { names: foreign });
    }
    let digest = Digest(Sha256::digest(wasm).into());
    Ok(Inspection {
        digest,
        kind,
        imports: names.imports,
    })
}

/// What leading bytes give away, for people who uploaded the wrong file.
fn describe(bytes: &[u8]) -> String {
    let known: &[(&[u8], &str)] = &[
        (
            b"\x7fELF",
            "an ELF program or library, or a compiled artifact",
        ),
        (b"PK\x03\x04", "a zip archive"),
        (b"\x1f\x8b", "gzip-compressed; unpack it"),
        (b"!<arch>", "a static library"),
        (b"(module", "WebAssembly text; assemble it"),
        (b"(component", "WebAssembly text; assemble it"),
    ];
    if let Some((_, what)) = known.iter().find(|(start, _)| bytes.starts_with(start)) {
        return (*what).to_owned();
    }
    match bytes {
        [] => "empty".into(),
        _ if bytes
            .iter()
            .take(64)
            .all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace()) =>
        {
            "text".into()
        }
        _ => format!(
            "unknown data that begins with {:02x?}",
            &bytes[..bytes.len().min(4)]
        ),
    }
}

#[derive(Default)]
struct Names {
    imports: Vec<String>,
    /// Interfaces.
    exports: Vec<String>,
    /// Functions and what else there is, to say so.
    others: Vec<String>,
}

/// How much the compiler would have to do.
#[derive(Default)]
struct Complexity {
    nested: u32,
    functions: u32,
}

impl Complexity {
    fn nest(&mut self) -> Result<(), Refusal> {
        self.nested += 1;
        within(
            "nested modules and components",
            self.nested as usize,
            MAX_NESTED as usize,
        )
    }

    fn functions(&mut self, count: u32) -> Result<(), Refusal> {
        self.functions = self.functions.saturating_add(count);
        within("functions", self.functions as usize, MAX_FUNCTIONS as usize)
    }
}

fn within(what: &'static str, found: usize, limit: usize) -> Result<(), Refusal> {
    if found > limit {
        Err(Refusal::TooComplex { what, found, limit })
    } else {
        Ok(())
    }
}

fn malformed(error: wasmparser::BinaryReaderError) -> Refusal {
    Refusal::Malformed {
        why: tame(error.message()),
        offset: error.offset(),
    }
}

/// Reads the top level's imports and exports, and passes over everything nested.
fn read_names(wasm: &[u8]) -> Result<Names, Refusal> {
    if !wasm.starts_with(b"\0asm") {
        return Err(Refusal::NotWasm {
            found: describe(wasm),
        });
    }
    match Parser::new(0).parse(wasm, true).map_err(malformed)? {
        Chunk::Parsed {
            payload:
                Payload::Version {
                    encoding: Encoding::Module,
                    ..
                },
            ..
        } => {
            return Err(Refusal::CoreModule);
        }
        Chunk::Parsed { .. } | Chunk::NeedMoreData(_) => {}
    }
    let mut names = Names::default();
    let mut complexity = Complexity::default();
    let mut depth = 0u32;
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.map_err(malformed)? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => {
                complexity.nest()?;
                depth += 1;
            }
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::CodeSectionStart { count, .. } => complexity.functions(count)?,
            Payload::CodeSectionEntry(body) => {
                let range = body.range();
                let size = range.end.saturating_sub(range.start);
                within("bytes in one function", size, MAX_FUNCTION_BYTES)?;
            }
            Payload::ComponentImportSection(section) if depth == 0 => {
                for import in section {
                    let import = import.map_err(malformed)?;
                    // A type imported by itself is a bound, not something to be supplied.
                    if !matches!(import.ty, ComponentTypeRef::Type(_)) {
                        names.imports.push(import.name.name.to_owned());
                    }
                }
            }
            Payload::ComponentExportSection(section) if depth == 0 => {
                for export in section {
                    let export = export.map_err(malformed)?;
                    let of_its_kind = match export.kind {
                        ComponentExternalKind::Instance => &mut names.exports,
                        _ => &mut names.others,
                    };
                    of_its_kind.push(export.name.name.to_owned());
                }
            }
            _ => {}
        }
    }
    Ok(names)
}

/// Splits `package/interface@version`.
fn split(name: &str) -> Option<(&str, &str, &str)> {
    let (path, version) = name.split_once('@')?;
    let (package, interface) = path.split_once('/')?;
    Some((package, interface, version))
}

/// Whether `version` is a patch version of `series`, such as 0.1.3 of 0.1.
fn is_of_series(version: &str, series: &str) -> bool {
    let patch = version
        .strip_prefix(series)
        .and_then(|rest| rest.strip_prefix('.'));
    patch.is_some_and(|patch| patch.parse::<u32>().is_ok())
}

fn is_allowed(name: &str) -> bool {
    let Some((package, interface, version)) = split(name) else {
        return false;
    };
    if package == PACKAGE {
        return HOST.contains(&interface) && is_of_series(version, VERSION);
    }
    let linked = LINKED.iter().find(|(linked, _)| *linked == package);
    linked.is_some_and(|(_, names)| names.contains(&interface))
        && is_of_series(version, WASI_VERSION)
}

fn kind_of(names: &Names) -> Result<PluginKind, Refusal> {
    let mut kinds = Vec::new();
    let mut lifecycle = false;
    for name in &names.exports {
        let Some((PACKAGE, interface, version)) = split(name) else {
            continue;
        };
        match interface {
            "lifecycle" => lifecycle = true,
            "partitioner" => kinds.push(PluginKind::Partitioner),
            "filter" => kinds.push(PluginKind::Filter),
            "transform" => kinds.push(PluginKind::Transform),
            "processor" => kinds.push(PluginKind::Processor),
            _ => continue,
        }
        if !is_of_series(version, VERSION) {
            return Err(Refusal::Version {
                interface: tame(name),
            });
        }
    }
    match kinds.as_slice() {
        [] => {
            let all = names.exports.iter().chain(&names.others);
            let exports = all.take(10).map(|name| tame(name)).collect();
            Err(Refusal::NoKind { exports })
        }
        [PluginKind::Processor] => Err(Refusal::ProcessorNotYet),
        [_] if !lifecycle => Err(Refusal::NoLifecycle),
        &[kind] => Ok(kind),
        _ => Err(Refusal::SeveralKinds { kinds }),
    }
}

#[cfg(test)]
mod tests;
