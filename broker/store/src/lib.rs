//! Millstream's ordered key-value seam and the redb engine behind it
