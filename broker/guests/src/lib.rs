//! The example plugins, compiled.
//!
//! The build script compiles `guest-examples` once; tests and the demo take the components from
//! here. Each is a constant, so whoever names one of them carries only that one.
//!
//! A plugin without a test is a mistake: [`for_each_guest!`] lets a test file fail to compile when
//! it has forgotten one.

/// What the hostile plugins can be told to do, by name.
pub use hostile_acts as acts;

/// A compiled plugin.
#[derive(Clone, Copy)]
pub struct Guest {
    /// The name of its crate, `filter-json`.
    pub name: &'static str,
    /// Where the component is on the machine that compiled it.
    pub path: &'static str,
    /// The component.
    pub wasm: &'static [u8],
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes = self.wasm.len();
        f.debug_struct("Guest")
            .field("name", &self.name)
            .field("bytes", &bytes)
            .finish()
    }
}

include!(concat!(env!("OUT_DIR"), "/guests.rs"));

/// A core module where a component is expected: valid WebAssembly that exports `filter`.
pub const CORE_MODULE: &[u8] = b"\0asm\x01\0\0\0\
    \x01\x04\x01\x60\0\0\
    \x03\x02\x01\0\
    \x07\x0a\x01\x06filter\0\0\
    \x0a\x04\x01\x02\0\x0b";

/// Uploads that are no components at all: what each is, and its bytes.
pub const NOT_COMPONENTS: [(&str, &[u8]); 5] = [
    ("empty", b""),
    (
        "garbage",
        b"this is not WebAssembly, however long one looks at it",
    ),
    ("core module", CORE_MODULE),
    ("header of a component and no more", b"\0asm\x0d\0\x01"),
    ("component of a version to come", b"\0asm\xff\0\x01\0"),
];

/// The first half of a component: what a broken upload leaves.
#[must_use]
pub fn truncated(guest: Guest) -> &'static [u8] {
    &guest.wasm[..guest.wasm.len() / 2]
}
