//! The phases of a member.
//!
//! | from        | trigger    | to          | what the engine does                                       |
//! |-------------|------------|-------------|------------------------------------------------------------|
//! | `Forming`   | `Seated`   | `Steady`    | opens its first epoch                                      |
//! | `Forming`   | `Invited`  | `Reseating` | a spare took a seat: takes the state, replays the step     |
//! | `Forming`   | `Fenced`   | `Fencing`   | a spare was seated by a decision it never saw: answers too |
//! | `Steady`    | `Fenced`   | `Fencing`   | stops posting, shuts out the dead                          |
//! | `Reseating` | `Fenced`   | `Fencing`   | the same; what it holds already counts                     |
//! | `Reseating` | `Caught`   | `Steady`    | state and replay are done                                  |
//! | `Fencing`   | `Revoked`  | `Deciding`  | reports its ledger                                         |
//! | `Fencing`   | `Fenced`   | `Fencing`   | a later fence with more dead                               |
//! | `Deciding`  | `Fenced`   | `Fencing`   | a later fence: reports again                               |
//! | `Deciding`  | `Seated`   | `Steady`    | opens the epoch, repairs, goes on                          |
//! | `Deciding`  | `Invited`  | `Reseating` | opens the epoch; takes state, replays                      |
//! | `Forming`   | `Halt`     | `Halted`    | every call ends with the error                             |
//! | `Steady`    | `Halt`     | `Halted`    | every call ends with the error                             |
//! | `Fencing`   | `Halt`     | `Halted`    | every call ends with the error                             |
//! | `Deciding`  | `Halt`     | `Halted`    | every call ends with the error                             |
//! | `Reseating` | `Halt`     | `Halted`    | every call ends with the error                             |

/// Where a member stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// No seat yet.
    Forming,
    /// Ops run.
    Steady,
    /// The dead are being shut out.
    Fencing,
    /// The ledger is reported, nothing changes.
    Deciding,
    /// A newcomer that takes state and replays; ops run.
    Reseating,
    /// Out.
    Halted,
}

/// What moves a member from phase to phase.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trigger {
    /// A decision gives it its seat, or confirms it.
    Seated,
    /// A decision makes it a newcomer.
    Invited,
    /// A fence.
    Fenced,
    /// Every transport has shut out the dead.
    Revoked,
    /// A newcomer has state and replay behind it.
    Caught,
    /// Evicted, or the run is over.
    Halt,
}

impl Phase {
    /// Every phase.
    pub const ALL: [Self; 6] =
        [Self::Forming, Self::Steady, Self::Fencing, Self::Deciding, Self::Reseating, Self::Halted];

    /// The phase after `trigger`; `None`: no such row, the trigger is ignored.
    #[must_use]
    pub fn after(self, trigger: Trigger) -> Option<Self> {
        use Phase::{Deciding, Fencing, Forming, Halted, Reseating, Steady};
        use Trigger::{Caught, Fenced, Halt, Invited, Revoked, Seated};
        match (self, trigger) {
            (Forming | Deciding, Seated) | (Reseating, Caught) => Some(Steady),
            (Forming | Deciding, Invited) => Some(Reseating),
            (Forming | Steady | Reseating | Fencing | Deciding, Fenced) => Some(Fencing),
            (Fencing, Revoked) => Some(Deciding),
            (Forming | Steady | Fencing | Deciding | Reseating, Halt) => Some(Halted),
            (Steady | Fencing | Reseating, Seated | Invited)
            | (Forming | Steady | Deciding | Reseating, Revoked)
            | (Forming | Steady | Fencing | Deciding, Caught)
            | (Halted, Seated | Invited | Fenced | Revoked | Caught | Halt) => None,
        }
    }

    /// Whether steps of ops may run.
    #[must_use]
    pub fn is_moving(self) -> bool {
        matches!(self, Self::Steady | Self::Reseating)
    }
}

impl Trigger {
    /// Every trigger.
    pub const ALL: [Self; 6] =
        [Self::Seated, Self::Invited, Self::Fenced, Self::Revoked, Self::Caught, Self::Halt];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_in_the_doc_is_the_table_in_the_code() {
        let rows: Vec<(String, String, String)> = include_str!("phase.rs")
            .lines()
            .filter_map(|l| l.strip_prefix("//! | `"))
            .map(|l| {
                let mut cells = l.split('|').map(|c| c.trim().trim_matches('`').to_owned());
                let mut next = || cells.next().unwrap_or_default();
                (next(), next(), next())
            })
            .collect();
        for phase in Phase::ALL {
            for trigger in Trigger::ALL {
                let row = rows.iter().find(|r| r.0 == format!("{phase:?}") && r.1 == format!("{trigger:?}"));
                let code = phase.after(trigger).map(|p| format!("{p:?}"));
                assert_eq!(code.as_ref(), row.map(|r| &r.2), "{phase:?} on {trigger:?}");
            }
        }
        assert_eq!(rows.len(), 16, "a row of the table is not read");
    }
}
