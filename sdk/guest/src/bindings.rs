//! What the host offers to every plugin, as `wit_bindgen` makes it, and nothing else.
//!
//! Absent: the exports of each world. They are made in the plugin's own crate, by the macros that
//! the build script writes.

wit_bindgen::generate!({
    path: "../../wit",
    inline: "
        package millstream:guest;
        world host {
            import millstream:plugin/config@0.1.0;
            import millstream:plugin/logging@0.1.0;
            import millstream:plugin/metrics@0.1.0;
        }
    ",
    world: "millstream:guest/host",
    generate_all,
});
