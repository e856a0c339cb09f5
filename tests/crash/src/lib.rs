//! Kill and fault tests with the history checker
