//! One algorithm a file: a pure function from a spec to a rank's plan.

use crate::ids::Rank;
use crate::plan::{Plan, PlanError};
use crate::spec::Spec;

/// Builds the plan of `rank`.
///
/// # Errors
/// When the algorithm cannot run the collective.
pub fn build(spec: &Spec, _world_size: u32, _rank: Rank, _chunk_bytes_max: usize) -> Result<Plan, PlanError> {
    Err(PlanError::NotAble { algorithm: spec.algorithm, collective: spec.collective, able: String::new() })
}
