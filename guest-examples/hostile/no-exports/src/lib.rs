//! A component that exports nothing a broker calls: an upload must be refused, and what was
//! expected said.

#[allow(missing_docs, unsafe_code, clippy::all)]
mod bindings {
    wit_bindgen::generate!({
        inline: "
            package acme:greeter;
            world greeter {
                export greet: func(name: string) -> string;
            }
        ",
    });
}

struct Plugin;

impl bindings::Guest for Plugin {
    fn greet(name: String) -> String {
        format!("good morning, {name}")
    }
}

#[allow(unsafe_code)]
mod export {
    use super::{Plugin, bindings};

    bindings::export!(Plugin with_types_in bindings);
}
