//! `millstream:plugin/config`: what the plugin's owner configured where it is attached.

use crate::bindings::millstream::plugin::config::Host;
use crate::host::HostState;

impl Host for HostState {
    fn get(&mut self, key: String) -> Option<String> {
        // At most MAX_CONFIG_ENTRIES of them, and guests read them in `init`: no map needed.
        let found = self.around.config.iter().find(|(name, _)| *name == key);
        found.map(|(_, value)| value.clone())
    }
}
