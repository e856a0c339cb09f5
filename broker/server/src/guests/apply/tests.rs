//! Records gathered into batches: all of them, in order, where they belong.
