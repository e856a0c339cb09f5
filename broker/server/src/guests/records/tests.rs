//! What a batch is after each kind of change.
