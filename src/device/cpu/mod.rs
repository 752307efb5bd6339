//! Reductions on the CPU.
