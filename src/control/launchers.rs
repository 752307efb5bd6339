//! The coordinator's side of launchers on other hosts: each is told who sits where, who is lost, and how it ends.

use std::collections::BTreeMap;

use phalanx_core::coordinator::WorldEvent;
use phalanx_core::policy::Rules;
use phalanx_core::view::View;
use phalanx_core::wire::codec::Wire;
use phalanx_core::wire::message::VERSION;

use super::launcher::ToLauncher;
use super::owner::Line;

/// Launchers that are connected, and what a new one must hear first.
#[derive(Default)]
pub(super) struct Launchers {
    /// By number of the connection; those that have not introduced themselves are told nothing.
    lines: BTreeMap<u64, (Line, bool)>,
    seats: View,
    end: Option<ToLauncher>,
}

impl Launchers {
    pub(super) fn connect(&mut self, line: Line) {
        self.lines.insert(line.number, (line, false));
    }

    pub(super) fn disconnect(&mut self, number: u64) {
        if let Some((line, _)) = self.lines.remove(&number) {
            line.task.abort();
        }
    }

    /// A launcher has introduced itself.
    pub(super) fn welcome(&mut self, number: u64, version: u16, rules: &Rules) {
        if version != VERSION {
            let reason = format!(
                "it speaks version {version} of the control messages, the coordinator {VERSION}; run the same \
                 release everywhere"
            );
            self.say(number, &ToLauncher::Refused { reason });
            return;
        }
        let Some((_, is_known)) = self.lines.get_mut(&number) else { return };
        *is_known = true;
        self.say(number, &ToLauncher::Welcome { rules: rules.clone() });
        self.say(number, &ToLauncher::Seats { view: self.seats.clone() });
        if let Some(end) = self.end.clone() {
            self.say(number, &end);
        }
    }

    pub(super) fn answer(&mut self, line: u64, number: u64) {
        self.say(line, &ToLauncher::BeatSeen { number });
    }

    /// Tells all of a view that they do not know yet.
    pub(super) fn follow(&mut self, view: &View) {
        if self.seats != *view {
            self.seats = view.clone();
            self.say_all(&ToLauncher::Seats { view: view.clone() });
        }
    }

    pub(super) fn handle_event(&mut self, event: &WorldEvent) {
        match event {
            WorldEvent::Lost(loss) => self.say_all(&ToLauncher::Lost { loss: loss.clone() }),
            WorldEvent::Decided(decision) => self.follow(&decision.view),
            WorldEvent::Finished => self.finish(ToLauncher::Finished {}),
            WorldEvent::Unrecoverable(why) => self.finish(ToLauncher::GivenUp { why: why.clone() }),
            WorldEvent::Formed
            | WorldEvent::Fenced(_)
            | WorldEvent::Reached(..)
            | WorldEvent::SpareMissing(_)
            | WorldEvent::SpareReady(_) => {}
        }
    }

    fn finish(&mut self, end: ToLauncher) {
        self.say_all(&end);
        self.end = Some(end);
    }

    fn say_all(&mut self, message: &ToLauncher) {
        let known = self.lines.iter().filter(|(_, (_, is_known))| *is_known);
        for number in known.map(|(number, _)| *number).collect::<Vec<_>>() {
            self.say(number, message);
        }
    }

    fn say(&mut self, number: u64, message: &ToLauncher) {
        let Some((line, _)) = self.lines.get(&number) else { return };
        if !line.queue(message.to_frame()) {
            tracing::warn!("a launcher does not read its connection; connection dropped");
            self.disconnect(number);
        }
    }
}
