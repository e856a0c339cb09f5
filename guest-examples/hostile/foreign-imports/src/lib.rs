//! A filter that imports what no broker has: an upload must be refused, and the import named.

#[allow(missing_docs, unsafe_code, clippy::all)]
mod bindings {
    wit_bindgen::generate!({
        path: "../../../wit",
        inline: "
            package acme:vault@1.0.0;
            interface secrets {
                read: func(name: string) -> string;
            }
            world intruder {
                import secrets;
                include millstream:plugin/filter-module@0.1.0;
            }
        ",
        world: "acme:vault/intruder",
        generate_all,
    });
}

use bindings::acme::vault::secrets;
use bindings::exports::millstream::plugin::filter;
use bindings::exports::millstream::plugin::lifecycle::{self, InitContext, Needs};
use bindings::millstream::plugin::types::{Batch, Error};

struct Plugin;

impl lifecycle::Guest for Plugin {
    fn init(_: InitContext) -> Result<Needs, String> {
        Err(format!("the secret is {}", secrets::read("password")))
    }
}

impl filter::Guest for Plugin {
    fn filter(batch: Batch) -> Result<Vec<u8>, Error> {
        Ok(vec![1; batch.spans.len() / 6])
    }
}

#[allow(unsafe_code)]
mod export {
    use super::{Plugin, bindings};

    bindings::export!(Plugin with_types_in bindings);
}
