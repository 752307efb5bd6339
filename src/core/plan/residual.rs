//! What is left to do of an op after a fence.
use crate::bitmap::Bitmap;
use crate::ids::{DomainId, Rank};
use crate::plan::Plan;
/// stub
pub fn residual(_p: &Plan, _h: &[Bitmap], _s: &[bool], _v: &[bool]) -> Result<Plan, String> { Err(String::new()) }
/// stub
pub fn release_set(_p: &Plan, _r: Rank, _d: &[DomainId], _v: &[bool], _m: u32) -> Vec<Rank> { Vec::new() }
