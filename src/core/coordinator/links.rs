//! Data links that break between two members which both live: repaired in place, and one of the two put out where that
//! does not last. Why so is decision 0017.

use std::collections::BTreeMap;

use super::fencing::brief;
use super::{Coordinator, MemberId, Phase};
use crate::ids::Epoch;

/// A broken link may be the first sign of a death. So long the death has to be told by what sees deaths: longer than a
/// member whose control connection broke has to return.
pub(super) const GRACE_MS: u64 = 250;
/// A pair that was well for so long begins anew. Longer than a dial that nobody answers and the grace after it, so that
/// a pair that cannot reach each other at all is not repaired for ever.
const WELL_AFTER_MS: u64 = 30_000;
/// A pair whose link breaks once more is not repaired again.
pub(super) const REPAIRS_MAX: u32 = 3;

/// What is known of the links between two members. Both directions count as one: they break together.
#[derive(Debug, Default)]
pub(super) struct LinkFault {
    /// When something is done about the break that was told in this view.
    due_ms: Option<u64>,
    cause: String,
    breaks: u32,
    last_ms: u64,
}

/// Links by their two members, the lower id first.
pub(super) type LinkFaults = BTreeMap<(MemberId, MemberId), LinkFault>;

impl Coordinator {
    /// `from` says that its link with `suspect` broke. In an earlier view that is old news: the fence since then has
    /// repaired what was lost.
    pub(super) fn handle_suspect(
        &mut self,
        (from, suspect): (MemberId, MemberId),
        epoch: Epoch,
        cause: String,
        now_ms: u64,
    ) {
        let pair = (from.min(suspect), from.max(suspect));
        if epoch != self.view.epoch || from == suspect || !self.both_live(pair) {
            return;
        }
        let fault = self.link_faults.entry(pair).or_default();
        if fault.due_ms.is_some() {
            return; // The other end of the same break.
        }
        if now_ms.saturating_sub(fault.last_ms) >= WELL_AFTER_MS {
            fault.breaks = 0;
        }
        let breaks = fault.breaks + 1;
        *fault = LinkFault {
            due_ms: Some(now_ms + GRACE_MS),
            cause: brief(&cause).to_owned(),
            breaks,
            last_ms: now_ms,
        };
    }

    fn both_live(&self, (one, two): (MemberId, MemberId)) -> bool {
        [one, two].iter().all(|m| self.known.contains_key(m) && self.view.rank_of(*m).is_some())
    }

    /// When a break is to be acted on: in a steady view only, a fence that is under way repairs links by the way.
    pub(super) fn link_due(&self) -> Option<u64> {
        let dues = self.link_faults.values().filter_map(|fault| fault.due_ms);
        dues.min().filter(|_| self.phase == Phase::Steady)
    }

    /// Fences without a loss for links whose grace is over, or puts out the higher rank of a pair that was repaired too
    /// often.
    pub(super) fn repair_links(&mut self, now_ms: u64) {
        if self.link_due().is_none_or(|due| now_ms < due) {
            return;
        }
        let is_due = |fault: &LinkFault| fault.due_ms.is_some_and(|due| due <= now_ms);
        let due: Vec<_> = self.link_faults.iter().filter(|(_, f)| is_due(f)).map(|(pair, _)| *pair).collect();
        let mut is_repaired = false;
        for pair in due {
            let both_live = self.both_live(pair);
            let Some(fault) = self.link_faults.get_mut(&pair).filter(|_| both_live) else {
                self.link_faults.remove(&pair); // It was a death.
                continue;
            };
            fault.due_ms = None;
            if fault.breaks <= REPAIRS_MAX {
                is_repaired = true;
                continue;
            }
            let (one, two) = pair;
            let by_rank = [one, two].map(|m| (self.view.rank_of(m), m));
            let (lower, higher) = (by_rank[0].min(by_rank[1]), by_rank[0].max(by_rank[1]));
            let with = lower.0.unwrap_or_default();
            let cause =
                format!("its link with {with} broke again after {REPAIRS_MAX} repairs: {}", fault.cause);
            self.declare_lost(higher.1, &cause, now_ms);
        }
        if is_repaired && self.phase == Phase::Steady {
            self.begin_fence();
        }
    }

    /// A new view: what broke before it is repaired, and pairs of which one is gone are forgotten.
    pub(super) fn links_are_whole(&mut self) {
        let mut faults = std::mem::take(&mut self.link_faults);
        faults.retain(|pair, fault| {
            fault.due_ms = None;
            self.both_live(*pair)
        });
        self.link_faults = faults;
    }
}
