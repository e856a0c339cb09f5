//! `millstream:plugin/logging`: lines for the plugin's owner.

use crate::bindings::millstream::plugin::logging::{Host, Level};
use crate::host::HostState;
use crate::logbook::LogLevel;

impl Host for HostState {
    fn log(&mut self, level: Level, message: String) {
        let level = match level {
            Level::Trace => LogLevel::Trace,
            Level::Debug => LogLevel::Debug,
            Level::Info => LogLevel::Info,
            Level::Warn => LogLevel::Warn,
            Level::Error => LogLevel::Error,
        };
        self.around.log.write(level, &self.around.label, &message);
    }
}
