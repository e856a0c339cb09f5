//! `millstream:plugin/metrics`: numbers for the plugin's owner.

use crate::bindings::millstream::plugin::metrics::Host;
use crate::host::HostState;

impl Host for HostState {
    fn count(&mut self, name: String, by: u64) {
        self.around.counters.add(&name, by);
    }
}
