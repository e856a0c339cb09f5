//! What a plugin tells its owner: log lines and counters.

/// How much a log line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Every step.
    Trace,
    /// What helps to find a mistake.
    Debug,
    /// What an owner may like to know.
    Info,
    /// What an owner should look at.
    Warn,
    /// What went wrong.
    Error,
}

/// Keeps one line for the owner of the plugin. The broker cuts long lines and thins floods.
///
/// Natively, in a plugin's own tests, the line goes to standard error.
pub fn log(level: Level, line: &str) {
    #[cfg(target_arch = "wasm32")]
    {
        use crate::bindings::millstream::plugin::logging;
        let level = match level {
            Level::Trace => logging::Level::Trace,
            Level::Debug => logging::Level::Debug,
            Level::Info => logging::Level::Info,
            Level::Warn => logging::Level::Warn,
            Level::Error => logging::Level::Error,
        };
        logging::log(level, line);
    }
    #[cfg(not(target_arch = "wasm32"))]
    #[allow(
        clippy::print_stderr,
        reason = "natively the terminal is the owner's log"
    )]
    {
        eprintln!("{level:?}: {line}");
    }
}

/// Adds to a counter of this plugin. The broker limits the number of different names.
///
/// Natively, in a plugin's own tests, it does nothing.
pub fn count(name: &str, by: u64) {
    #[cfg(target_arch = "wasm32")]
    crate::bindings::millstream::plugin::metrics::count(name, by);
    #[cfg(not(target_arch = "wasm32"))]
    let _ = (name, by);
}

/// Logs a line at [`Level::Debug`], with the arguments of [`format!`].
#[macro_export]
macro_rules! debug {
    ($($argument:tt)+) => { $crate::log($crate::Level::Debug, &::std::format!($($argument)+)) };
}

/// Logs a line at [`Level::Info`], with the arguments of [`format!`].
#[macro_export]
macro_rules! info {
    ($($argument:tt)+) => { $crate::log($crate::Level::Info, &::std::format!($($argument)+)) };
}

/// Logs a line at [`Level::Warn`], with the arguments of [`format!`].
#[macro_export]
macro_rules! warn {
    ($($argument:tt)+) => { $crate::log($crate::Level::Warn, &::std::format!($($argument)+)) };
}

/// Logs a line at [`Level::Error`], with the arguments of [`format!`].
#[macro_export]
macro_rules! error {
    ($($argument:tt)+) => { $crate::log($crate::Level::Error, &::std::format!($($argument)+)) };
}
