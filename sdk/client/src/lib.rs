//! The Millstream client: producers, consumers, administration
