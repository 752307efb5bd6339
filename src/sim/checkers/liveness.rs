//! I8: every run ends. Once nothing goes wrong any more, all have ended within a stated time.

use phalanx_core::policy::Rules;

/// Virtual time after which a run of an early draw that has not ended hangs.
const EARLY_DEADLINE_US: u64 = 60_000_000;
/// Events at one instant after which nothing but the same will come.
const STILL_MAX: u64 = 100_000;
/// A broken link has its grace and its repairs, a program its computing.
const BESIDES_MS: u64 = 10_000;

/// When all must have ended; `trouble_us` is the end of the last trouble, if the draw knows it. By then every call has
/// had its deadline, twice where a repaired op begins anew, every vacant seat its time to be filled, every lease its
/// end.
#[must_use]
pub fn deadline_us(rules: &Rules, trouble_us: Option<u64>) -> u64 {
    let Some(trouble_us) = trouble_us else { return EARLY_DEADLINE_US };
    let ms = 2 * rules.op_timeout_ms + rules.replace_within_ms + 50 * rules.lease_ms + BESIDES_MS;
    trouble_us + ms * 1_000
}

/// What is wrong with the time, if anything is.
#[must_use]
pub fn hang(now_us: u64, deadline_us: u64, events_at_this_instant: u64) -> Option<String> {
    if events_at_this_instant > STILL_MAX {
        return Some(format!("I8 liveness: time stands still at {now_us} us"));
    }
    (now_us > deadline_us).then(|| format!("I8 liveness: no end after {deadline_us} us"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_core::policy::Policy;

    #[test]
    fn it_fires_when_time_stands_still_and_after_the_stated_time() {
        let rules = Rules { op_timeout_ms: 5_000, lease_ms: 100, ..Rules::new(2, Policy::Abort) };
        let deadline = deadline_us(&Rules { replace_within_ms: 400, ..rules }, Some(7_000));
        assert_eq!(deadline, 7_000 + (10_000 + 400 + 5_000 + 10_000) * 1_000);
        assert_eq!(hang(deadline, deadline, 3), None);
        assert!(hang(deadline + 1, deadline, 3).is_some_and(|text| text.contains("no end")));
        assert!(hang(0, deadline, STILL_MAX + 1).is_some_and(|text| text.contains("stands still")));
    }
}
