//! The proof of a plan over all ranks.
