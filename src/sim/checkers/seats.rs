//! I7: one member per rank per epoch, epochs only grow, one decision per epoch, a lost member never sits again.

use std::collections::BTreeSet;

use phalanx_core::ids::{Epoch, MemberId};
use phalanx_core::wire::message::Decision;

/// Remembers the last epoch and everybody lost.
#[derive(Debug, Default)]
pub struct Seats {
    last: Epoch,
    lost: BTreeSet<MemberId>,
}

impl Seats {
    pub(super) fn decided(&mut self, decision: &Decision, violations: &mut Vec<String>) {
        let view = &decision.view;
        if view.epoch <= self.last {
            violations.push(format!("I7 seats: {} is decided after {}", view.epoch, self.last));
        }
        self.last = view.epoch;
        self.lost.extend(decision.losses.iter().map(|l| l.member));
        let mut seated = BTreeSet::new();
        for member in view.seats.iter().flatten() {
            if !seated.insert(*member) {
                violations.push(format!("I7 seats: {member} sits twice in {}", view.epoch));
            }
            if self.lost.contains(member) {
                violations.push(format!("I7 seats: {member} was lost and sits again in {}", view.epoch));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use phalanx_core::view::View;

    #[test]
    fn it_fires_on_an_old_epoch_and_on_a_member_twice() {
        let decision = |epoch, seats: &[u64]| Decision {
            view: View {
                epoch: Epoch(epoch),
                seats: seats.iter().map(|m| Some(MemberId(*m))).collect(),
                members: Vec::new(),
            },
            losses: Vec::new(),
            newcomers: Vec::new(),
            comms: Vec::new(),
            ops: Vec::new(),
            committed: 0,
            state: None,
        };
        let (mut seats, mut found) = (Seats::default(), Vec::new());
        seats.decided(&decision(2, &[1, 2]), &mut found);
        assert!(found.is_empty());
        seats.decided(&decision(2, &[1, 1]), &mut found);
        assert_eq!(found.len(), 2, "{found:?}");
    }
}
