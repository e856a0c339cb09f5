//! Golden bytes and any bytes.
