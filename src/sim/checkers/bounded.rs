//! I9: what is kept for others is bounded while ops run, and nothing at rest.

use phalanx_core::ids::MemberId;
use phalanx_core::units::RETENTION_LOG_BYTES;

/// What one member keeps.
#[derive(Debug, Clone, Copy)]
pub struct Kept {
    /// The member.
    pub member: MemberId,
    /// Ops not forgotten.
    pub ops: usize,
    /// Bytes in its retention log.
    pub bytes: usize,
}

/// While ops run: `ops_max` is what two steps can have.
pub fn running(kept: Kept, ops_max: usize, violations: &mut Vec<String>) {
    let Kept { member, ops, bytes } = kept;
    if ops > ops_max || bytes > RETENTION_LOG_BYTES {
        violations.push(format!("I9 bound: {member} keeps {ops} ops and {bytes} bytes of results"));
    }
}

/// After the last commit.
pub fn at_rest(kept: Kept, violations: &mut Vec<String>) {
    let Kept { member, ops, bytes } = kept;
    if ops > 0 || bytes > 0 {
        violations.push(format!("I9 rest: {member} keeps {ops} ops and {bytes} bytes after the last commit"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_fires_on_too_many_ops_on_a_full_log_and_on_a_rest() {
        let kept = |ops, bytes| Kept { member: MemberId(1), ops, bytes };
        let mut found = Vec::new();
        running(kept(10, 100), 10, &mut found);
        at_rest(kept(0, 0), &mut found);
        assert!(found.is_empty());
        running(kept(11, 100), 10, &mut found);
        running(kept(1, RETENTION_LOG_BYTES + 1), 10, &mut found);
        at_rest(kept(0, 1), &mut found);
        assert_eq!(found.len(), 3, "{found:?}");
    }
}
