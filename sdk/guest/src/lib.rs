//! What a Millstream plugin is written with
