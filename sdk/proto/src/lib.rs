//! Millstream's wire and batch formats: pure bytes and types
