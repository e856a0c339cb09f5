//! The Millstream broker: listener, sessions, actors
