//! What is left to do of an op after a fence.
