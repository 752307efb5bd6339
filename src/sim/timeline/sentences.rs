//! An entry as a short sentence, whose subject is its place.

use std::fmt;

use phalanx_core::coordinator::WorldEvent;
use phalanx_core::ids::Epoch;
use phalanx_core::wire::message::{
    CommReport, Decision, Downward, FailCause, Holding, Loss, Milestone, OpReport, Report, Upward, Verdict,
};

use super::{Entry, Place, What, ms};

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from = self.link.map(|l| l.from);
        let sentence = sentence(&self.what, from);
        match self.link {
            Some(link) => write!(f, "{sentence} (sent {})", ms(link.sent_us)),
            None => write!(f, "{sentence}"),
        }
    }
}

fn sentence(what: &What, from: Option<Place>) -> String {
    let from = from.map_or_else(String::new, |p| p.to_string());
    match what {
        What::Starts(Some(rank)) => format!("starts, and asks for seat {rank}"),
        What::Starts(None) => "starts as a spare".to_owned(),
        What::Up(message) => heard_from(message, &from),
        What::Down(message) => told(message),
        What::Lost => format!("never hears what {from} sent: the connection is gone"),
        What::Stored(epoch, None) => format!("has {epoch}"),
        What::Stored(epoch, Some(decided)) => format!("has {epoch} and the decision of {decided}"),
        What::Tells(event) => event_in_words(event),
        What::Strikes(fault) => format!("fault: {}", fault.in_words(false)),
        What::Springs(trap) => format!("springs a trap: {}", trap.in_words()),
        What::Dies => "dies".to_owned(),
        What::Stops => "stops".to_owned(),
        What::GoesOn => "goes on".to_owned(),
        What::IsCut => "loses its control connection".to_owned(),
        What::IsConnected => "has its control connection again".to_owned(),
        What::IsBack => "is there again, with what its store has".to_owned(),
        What::Enters(epoch, Some(rank)) => format!("takes seat {rank} in {epoch}"),
        What::Enters(epoch, None) => format!("goes on in {epoch}"),
        What::Calls(op, spec) => format!("calls {op}: {spec}"),
        What::Has(op, chunks) => {
            format!("has its chunks of {op}, which has {chunks}, and waits to be confirmed")
        }
        What::Returns(op, Ok(1)) => format!("returns from {op} over itself alone"),
        What::Returns(op, Ok(ranks)) => format!("returns from {op} over {ranks} ranks"),
        What::Returns(op, Err(cause)) => format!("returns from {op} with an error: {cause}"),
        What::Commits(steps) => format!("has committed step {steps}"),
        What::IsWhole => "all that was in flight at the loss is complete".to_owned(),
        What::Breaks(text) => format!("VIOLATION {text}"),
    }
}

fn heard_from(message: &Upward, from: &str) -> String {
    match message {
        Upward::Join { epoch: Epoch(0), .. } => format!("hears {from} ask to join"),
        Upward::Join { epoch, .. } => format!("hears {from} ask to come back, in {epoch}"),
        Upward::Beat { epoch, .. } => format!("hears a beat of {from} in {epoch}"),
        Upward::Suspect { member, cause, .. } => {
            format!("hears from {from} that {member} looks gone: {cause}")
        }
        Upward::Ledger { report } => format!("has the ledger of {from} for {}", ledger(report)),
        Upward::Expired { op, .. } => format!("hears from {from} that {op} is overdue"),
        Upward::Mismatch { op, peer, .. } => {
            format!("hears from {from} that {op} of {peer} is not what it called")
        }
        Upward::Milestone { what: Milestone::StateHeld {}, .. } => format!("hears that {from} has the state"),
        Upward::Milestone { what: Milestone::Replayed {}, .. } => format!("hears that {from} has caught up"),
        Upward::Milestone { what: Milestone::Resumed {}, .. } => {
            format!("hears that {from} has what was in flight")
        }
        Upward::Leave {} => format!("hears {from} say good-bye"),
    }
}

fn ledger(report: &Report) -> String {
    let step = if report.step.open { "in step" } else { "before step" };
    let ops: Vec<String> = report.comms.iter().flat_map(rows).collect();
    let ops = if ops.is_empty() { "no op".to_owned() } else { ops.join(", ") };
    let state = if report.step.state_held.is_some() { ", waiting for its state" } else { "" };
    format!("{}: {step} {}{state}, {ops}", report.epoch, report.step.committed + 1)
}

fn rows(comm: &CommReport) -> impl Iterator<Item = String> + '_ {
    comm.ops.iter().map(|o| format!("{}.{} {}", comm.comm, o.seq, progress(o)))
}

fn progress(op: &OpReport) -> String {
    let stage = match (&op.failed, op.released, op.done) {
        (Some(_), ..) => return "failed".to_owned(),
        (None, true, _) => "released",
        (None, false, true) => "done",
        (None, false, false) => "open",
    };
    let lost = match &op.lost {
        Holding::Nothing {} => "",
        Holding::Everything {} | Holding::Some { .. } | Holding::Satisfied {} => ", lost some",
    };
    format!("{stage} (holds {}{lost})", holding(&op.held))
}

fn holding(held: &Holding) -> String {
    match held {
        Holding::Nothing {} | Holding::Satisfied {} => "nothing".to_owned(),
        Holding::Everything {} => "all".to_owned(),
        Holding::Some { chunks } => format!("{} of {}", chunks.count(), chunks.len()),
    }
}

fn told(message: &Downward) -> String {
    match message {
        Downward::Welcome { .. } => "is let in".to_owned(),
        Downward::BeatSeen { .. } => "hears that its beat was seen".to_owned(),
        Downward::Fence { epoch, losses } => format!("stops at the fence of {epoch}{}", out(losses)),
        Downward::Decide { decision } => format!("hears the decision of {}", decision.view.epoch),
        Downward::Evicted { cause, .. } => format!("is put out: {cause}"),
        Downward::Finished {} => "hears that the run is over".to_owned(),
        Downward::Refused { reason } => format!("is refused: {reason}"),
    }
}

fn out(losses: &[Loss]) -> String {
    let who: Vec<String> = losses.iter().map(|l| format!("{} ({})", l.rank, l.member)).collect();
    if who.is_empty() { ", nobody is out".to_owned() } else { format!(", {} out", who.join(", ")) }
}

fn event_in_words(event: &WorldEvent) -> String {
    match event {
        WorldEvent::Formed => "every seat is taken".to_owned(),
        WorldEvent::Lost(l) => format!("declares {} ({}) lost: {}", l.rank, l.member, l.cause),
        WorldEvent::Fenced(epoch) => format!("has every answer to the fence of {epoch}"),
        WorldEvent::Decided(decision) => decided(decision),
        WorldEvent::Reached(rank, epoch, what) => format!("{rank} has come to {what:?} in {epoch}"),
        WorldEvent::SpareMissing(seats) => format!("waits for a spare; vacant seats: {seats}"),
        WorldEvent::Finished => "ends the run: every rank has said good-bye".to_owned(),
        WorldEvent::Unrecoverable(why) => format!("gives up: {why}"),
        WorldEvent::SpareReady(member) => format!("has {member} as a spare"),
    }
}

fn decided(d: &Decision) -> String {
    let mut parts = vec![format!("decides {}", d.view.epoch)];
    for rank in &d.newcomers {
        let who = d.view.occupant(*rank).map_or_else(|| "nobody".to_owned(), |m| m.to_string());
        parts.push(format!("{rank} is {who}, new"));
    }
    let vacant = d.view.seats.iter().filter(|s| s.is_none()).count();
    if vacant > 0 {
        parts.push(format!("vacant seats: {vacant}"));
    }
    for op in &d.ops {
        let verdict = match &op.verdict {
            Verdict::Keep {} => "keep".to_owned(),
            Verdict::Repair {} => "repair".to_owned(),
            Verdict::Shrink {} => format!("again over {} ranks", op.group.len()),
            Verdict::Fail { cause } => format!("fail ({})", fail(cause)),
        };
        parts.push(format!("{} {verdict}", op.id));
    }
    if d.view.epoch > Epoch(1) {
        parts.push(format!("steps committed: {}", d.committed));
    }
    parts.join("; ")
}

fn fail(cause: &FailCause) -> String {
    match cause {
        FailCause::RankLost { losses } => format!("rank lost{}", out(losses)),
        FailCause::Unrecoverable { why, .. } => format!("unrecoverable: {why}"),
        FailCause::Mismatch { one, one_spec, two, two_spec } => {
            format!("mismatch: {one} calls {one_spec}, {two} {two_spec}")
        }
        FailCause::Expired { missing } => format!("expired, {} ranks had not called it", missing.len()),
        FailCause::ShapeChanged { .. } => "its shape needs the dead".to_owned(),
    }
}
