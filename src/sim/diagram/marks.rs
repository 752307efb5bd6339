//! What is drawn where something happens, and the legend.

use phalanx_core::coordinator::WorldEvent;
use phalanx_core::ids::{CommId, OpId};
use phalanx_core::wire::message::Downward;

use crate::sim::checkers::checker_of;
use crate::sim::timeline::{Entry, What};

/// The form of a mark.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    Cross,
    Bar,
    Square,
    Diamond,
    Dot,
}

/// A mark and what stands beside it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Mark {
    form: Form,
    colour: &'static str,
    pub(super) label: String,
}

/// Every mark, and what it means.
pub(super) const LEGEND: [(Mark, &str); 11] = [
    (Mark::plain(Form::Cross, "red"), "death"),
    (Mark::plain(Form::Bar, "grey"), "stop, cut, return"),
    (Mark::plain(Form::Bar, "amber"), "fence"),
    (Mark::plain(Form::Square, "amber"), "loss"),
    (Mark::plain(Form::Diamond, "blue"), "decision, epoch"),
    (Mark::plain(Form::Square, "green"), "seat taken"),
    (Mark::plain(Form::Square, "grey"), "written"),
    (Mark::plain(Form::Dot, "ring"), "call"),
    (Mark::plain(Form::Dot, "green"), "result"),
    (Mark::plain(Form::Dot, "red"), "error"),
    (Mark::plain(Form::Square, "violet"), "commit"),
];

impl Mark {
    const fn plain(form: Form, colour: &'static str) -> Self {
        Self { form, colour, label: String::new() }
    }

    fn new(form: Form, colour: &'static str, label: impl Into<String>) -> Self {
        Self { form, colour, label: label.into() }
    }

    /// The mark of an entry; `None`: its arrow tells it, or it is too small for the diagram.
    pub(super) fn of(e: &Entry) -> Option<Self> {
        Some(match &e.what {
            What::Starts(_) | What::Up(_) | What::Lost | What::Has(..) => return None,
            What::Down(message) => return Self::of_downward(message),
            What::Tells(event) => return Self::of_event(event),
            What::Stored(epoch, _) => Self::new(Form::Square, "grey", epoch.to_string()),
            What::Strikes(fault) => Self::new(Form::Bar, "red", fault.in_words(false)),
            What::Springs(_) => Self::new(Form::Bar, "red", "springs a trap"),
            What::Dies => Self::new(Form::Cross, "red", "dies"),
            What::Stops => Self::new(Form::Bar, "grey", "stops"),
            What::GoesOn => Self::new(Form::Bar, "grey", "goes on"),
            What::IsCut => Self::new(Form::Bar, "grey", "is cut off"),
            What::IsConnected => Self::new(Form::Bar, "grey", "is connected"),
            What::IsBack => Self::new(Form::Bar, "grey", "is back"),
            What::Enters(epoch, None) => Self::new(Form::Diamond, "blue", epoch.to_string()),
            What::Enters(epoch, Some(rank)) => Self::new(Form::Square, "green", format!("{rank} in {epoch}")),
            What::Calls(op, _) => Self::new(Form::Dot, "ring", short(*op)),
            What::Returns(op, Ok(_)) => Self::new(Form::Dot, "green", short(*op)),
            What::Returns(op, Err(_)) => Self::new(Form::Dot, "red", short(*op)),
            What::Commits(steps) => Self::new(Form::Square, "violet", format!("step {steps}")),
            What::IsWhole => Self::new(Form::Bar, "green", "whole again"),
            What::Breaks(text) => Self::new(Form::Bar, "red", format!("VIOLATION {}", checker_of(text))),
        })
    }

    fn of_downward(message: &Downward) -> Option<Self> {
        match message {
            Downward::Fence { .. } => Some(Self::new(Form::Bar, "amber", "fence")),
            Downward::Evicted { .. } => Some(Self::new(Form::Square, "amber", "put out")),
            Downward::Refused { .. } => Some(Self::new(Form::Square, "amber", "refused")),
            Downward::Welcome { .. }
            | Downward::BeatSeen { .. }
            | Downward::Decide { .. }
            | Downward::Finished {} => None,
        }
    }

    fn of_event(event: &WorldEvent) -> Option<Self> {
        match event {
            WorldEvent::Lost(l) => {
                Some(Self::new(Form::Square, "amber", format!("{} ({}) lost", l.rank, l.member)))
            }
            WorldEvent::Fenced(epoch) => Some(Self::new(Form::Bar, "amber", format!("{epoch} answered"))),
            WorldEvent::Decided(d) => {
                Some(Self::new(Form::Diamond, "blue", format!("decides {}", d.view.epoch)))
            }
            WorldEvent::SpareMissing(_) => Some(Self::new(Form::Bar, "amber", "no spare")),
            WorldEvent::Finished => Some(Self::new(Form::Bar, "green", "the end")),
            WorldEvent::Unrecoverable(_) => Some(Self::new(Form::Bar, "red", "gives up")),
            WorldEvent::Formed | WorldEvent::Reached(..) | WorldEvent::SpareReady(_) => None,
        }
    }

    /// The mark around a point.
    pub(super) fn shape(&self, x: u32, y: u32) -> String {
        let Self { form, colour, .. } = self;
        let (left, up, right, down) = (x - 3, y - 3, x + 3, y + 3);
        match form {
            Form::Cross => format!(
                "<path class=\"{colour} cross\" stroke-width=\"2\" \
                 d=\"M{left} {up}L{right} {down}M{left} {down}L{right} {up}\"/>"
            ),
            Form::Bar => {
                format!("<path class=\"{colour}\" stroke-width=\"3\" d=\"M{} {y}L{} {y}\"/>", x - 4, x + 4)
            }
            Form::Square => {
                format!("<rect class=\"{colour}\" x=\"{left}\" y=\"{up}\" width=\"6\" height=\"6\"/>")
            }
            Form::Diamond => format!(
                "<path class=\"{colour}\" d=\"M{x} {}L{} {y}L{x} {}L{} {y}z\"/>",
                y - 4,
                x + 4,
                y + 4,
                x - 4
            ),
            Form::Dot => format!("<circle class=\"{colour}\" cx=\"{x}\" cy=\"{y}\" r=\"2.5\"/>"),
        }
    }
}

/// The world's ops without their communicator.
fn short(op: OpId) -> String {
    if op.comm == CommId(0) { op.seq.to_string() } else { op.to_string() }
}
