//! Millstream's decisions: state machines without IO, clock or threads
