//! From a loss to a written decision.

use super::{Coordinator, Downward, Evidence, Loss, MemberId, Phase, Record, Report, WorldEvent, recovery};
use crate::ids::Rank;
use crate::recovery::{Overdue, Undecided};
use crate::wire::message::Decision;

/// Bytes of a cause that are kept: it goes to every rank with every decision, and a frame has an end.
const CAUSE_BYTES_MAX: usize = 1000;

/// The beginning of a cause that is too long to hand on.
pub(super) fn brief(cause: &str) -> &str {
    &cause[..cause.floor_char_boundary(CAUSE_BYTES_MAX)]
}

impl Coordinator {
    pub(super) fn declare_lost(&mut self, member: MemberId, cause: &str, now_ms: u64) {
        // Who goes after the end has left, however it does.
        if self.phase == Phase::Finished || self.out.contains_key(&member) {
            return;
        }
        let Some(_) = self.known.remove(&member) else { return };
        let cause = brief(cause);
        self.out.insert(member, cause.to_owned());
        self.messages.push_back((member, Downward::Evicted { epoch: self.epoch, cause: cause.to_owned() }));
        let about_to_sit = self.pending.as_ref().and_then(|d| d.view.rank_of(member));
        let seat = self.view.rank_of(member).or(about_to_sit);
        if self.phase == Phase::Forming || seat.is_none() {
            if !crate::planted!(SeatDeadSpare) {
                self.forget_spare(member);
            }
            return;
        }
        let Some(rank) = seat else { return };
        self.forget_spare(member);
        let loss = Loss { rank, member, cause: cause.to_owned() };
        self.losses.push(loss.clone());
        self.former.insert(member);
        self.events.push_back(WorldEvent::Lost(loss));
        match self.phase {
            Phase::Vacant { .. } if !self.reports.contains_key(&rank) => self.try_decide(now_ms),
            Phase::Forming | Phase::Finished => {}
            // Also where a decision is on its way to the store: it will be written, bind as the last one, and be
            // followed by this fence before anybody hears of it.
            Phase::Steady | Phase::Declaring | Phase::Fencing | Phase::Vacant { .. } | Phase::Deciding => {
                self.begin_fence();
            }
        }
    }

    /// Writes the next epoch; the survivors are told once it is durable.
    pub(super) fn begin_fence(&mut self) {
        if self.is_everybody_done() {
            self.finish();
            return;
        }
        self.epoch = self.epoch.next();
        if !crate::planted!(StaleLedger) {
            self.reports.clear();
        }
        self.phase = Phase::Declaring;
        self.write();
    }

    fn write(&mut self) {
        let decision = self.pending.clone().or_else(|| self.last.clone());
        let former = self.former.iter().copied().collect();
        self.writes.push_back(Record { epoch: self.epoch, decision, losses: self.losses.clone(), former });
    }

    /// The record up to `epoch` is durable.
    pub fn handle_stored(&mut self, record: &Record, now_ms: u64) {
        if let Some(decision) = &record.decision
            && self.pending.as_ref() == Some(decision)
        {
            self.adopt();
        }
        if record.epoch != self.epoch {
            return; // A later one is on its way.
        }
        match self.phase {
            Phase::Declaring => {
                self.phase = Phase::Fencing;
                let fence = Downward::Fence { epoch: self.epoch, losses: self.losses.clone() };
                for &member in self.view.seats.iter().flatten() {
                    if self.known.contains_key(&member) {
                        self.messages.push_back((member, fence.clone()));
                    }
                }
                self.try_decide(now_ms);
            }
            Phase::Deciding => {
                self.phase = Phase::Steady;
                if let Some(decision) = self.last.clone() {
                    for &member in decision.view.seats.iter().flatten() {
                        self.messages.push_back((member, Downward::Decide { decision: decision.clone() }));
                    }
                }
                self.finish_if_done();
            }
            Phase::Forming | Phase::Steady | Phase::Fencing | Phase::Vacant { .. } | Phase::Finished => {}
        }
    }

    /// A written decision binds from here on, whether or not anybody acts on it.
    fn adopt(&mut self) {
        let Some(decision) = self.pending.take() else { return };
        self.view = decision.view.clone();
        let seated = |m: &MemberId| decision.view.rank_of(*m).is_some();
        self.spares.retain(|s| !seated(s));
        // Losses that this decision does not know of stay for the next fence.
        self.losses.retain(|l| !decision.losses.contains(l));
        self.expired.clear();
        let new = decision.newcomers.iter().filter_map(|rank| decision.view.occupant(*rank));
        self.catching_up = new.collect();
        self.events.push_back(WorldEvent::Decided(Box::new(decision.clone())));
        self.last = Some(decision);
        self.links_are_whole();
    }

    pub(super) fn handle_report(&mut self, from: MemberId, report: Report, now_ms: u64) {
        if report.epoch != self.epoch || self.phase != Phase::Fencing {
            return; // An answer to an earlier fence: never carried over.
        }
        if let Some(rank) = self.view.rank_of(from) {
            if let Some(flaw) = recovery::flaw(&report, &self.rules) {
                let cause = format!("its ledger makes no sense: {flaw}; is every rank the same version?");
                self.declare_lost(from, &cause, now_ms);
                return;
            }
            self.reports.insert(rank, report);
            self.try_decide(now_ms);
        }
    }

    fn awaited(&self) -> impl Iterator<Item = Rank> + '_ {
        let live = |m: &Option<MemberId>| m.is_some_and(|m| self.known.contains_key(&m));
        let seats = self.view.seats.iter().enumerate().filter(move |(_, m)| live(m));
        seats.map(|(i, _)| Rank(i as u32)).filter(|r| !self.reports.contains_key(r))
    }

    pub(super) fn try_decide(&mut self, now_ms: u64) {
        let waits = matches!(self.phase, Phase::Fencing | Phase::Vacant { .. });
        if !waits || self.awaited().next().is_some() {
            return;
        }
        if self.phase == Phase::Fencing {
            self.events.push_back(WorldEvent::Fenced(self.epoch));
        }
        let fall_back = match self.phase {
            Phase::Vacant { since_ms } => now_ms.saturating_sub(since_ms) >= self.rules.replace_within_ms,
            Phase::Forming
            | Phase::Steady
            | Phase::Declaring
            | Phase::Fencing
            | Phase::Deciding
            | Phase::Finished => self.rules.replace_within_ms == 0,
        };
        let members: Vec<_> = self.known.values().map(|k| k.info.clone()).collect();
        let left = self.known.iter().filter(|(_, k)| k.left).map(|(member, _)| *member).collect();
        let evidence = Evidence {
            view: &self.view,
            epoch: self.epoch,
            losses: &self.losses,
            reports: &self.reports,
            spares: &self.spares,
            members: &members,
            last: self.last.as_ref(),
            expired: &self.expired,
            left: &left,
            rules: &self.rules,
            fall_back,
        };
        match recovery::decide(&evidence) {
            Ok(decision) => self.write_decision(decision),
            Err(Undecided::SpareMissing { seats }) => {
                if !matches!(self.phase, Phase::Vacant { .. }) {
                    self.phase = Phase::Vacant { since_ms: now_ms };
                    self.events.push_back(WorldEvent::SpareMissing(seats));
                }
            }
            Err(Undecided::Overdue(overdue)) => self.put_out(&overdue, now_ms),
            Err(Undecided::NobodyLeft) => self.give_up(),
        }
    }

    /// Others have an op's result and go on; whoever has not even called it in its time is taken for dead.
    fn put_out(&mut self, Overdue { op, ranks }: &Overdue, now_ms: u64) {
        let limit = self.rules.op_timeout_ms;
        let cause =
            format!("it did not call {op} within {limit} ms, and others have gone on with its result");
        for rank in ranks {
            if let Some(member) = self.view.occupant(*rank) {
                self.declare_lost(member, &cause, now_ms);
            }
        }
    }

    /// More was lost than anything can be made of: whoever is there is told to begin again from outside.
    fn give_up(&mut self) {
        let why = "every rank that had the state of the step is lost; start again from a checkpoint";
        self.phase = Phase::Finished;
        self.given_up = Some(why.to_owned());
        self.events.push_back(WorldEvent::Unrecoverable(why.to_owned()));
        for &member in self.known.keys() {
            self.messages.push_back((member, Downward::Evicted { epoch: self.epoch, cause: why.to_owned() }));
        }
    }

    pub(super) fn write_decision(&mut self, decision: Decision) {
        self.phase = Phase::Deciding;
        self.pending = Some(decision);
        self.write();
    }
}
