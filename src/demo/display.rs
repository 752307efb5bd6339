//! The demo's screen: a row per rank, the timeline of the recovery, the result.
//!
//! Pure: events come in, text goes out, and the times are in the events. A terminal gets one picture, drawn again in
//! place; a file or a pipe gets lines, each written once.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use crate::core::ids::{MemberId, Rank, StepId};
use crate::demo::protocol::Milestone;
use crate::demo::summary::Summary;

/// In the log, progress is a line every so many steps.
pub const LOG_STEPS: u64 = 50;

/// Where the display is written to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Screen {
    /// A terminal that understands ANSI sequences: redrawn in place, in colour.
    Terminal,
    /// Anything else: plain lines, appended.
    Log,
}

impl Screen {
    /// What standard output is.
    #[must_use]
    pub fn of_stdout() -> Self {
        if io::stdout().is_terminal() { Self::Terminal } else { Self::Log }
    }
}

/// Something the display shows.
#[derive(Clone, PartialEq, Debug)]
pub enum DemoEvent {
    /// A process took a seat: at the start, or as a newcomer in the seat of a dead one.
    Seated {
        /// The seat.
        rank: Rank,
        /// The process.
        member: MemberId,
        /// The step it computes next.
        step: StepId,
    },
    /// A rank has made a step.
    Step {
        /// The seat.
        rank: Rank,
        /// The step.
        step: StepId,
        /// Its mean loss.
        loss: f32,
    },
    /// The process in this seat was killed; the timeline begins, a former one is forgotten.
    Killed {
        /// The seat.
        rank: Rank,
        /// The last step it began.
        step: StepId,
    },
    /// A point of the recovery was passed at some rank.
    Milestone {
        /// The point.
        milestone: Milestone,
        /// When, in milliseconds since the kill.
        since_kill_ms: f64,
    },
    /// The run is over.
    Finished(Summary),
}

/// What the process in a seat does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum SeatState {
    /// Nobody has taken the seat yet.
    Empty,
    /// Makes steps.
    Training,
    /// Was killed; nobody has the seat.
    Dead,
    /// A newcomer has the seat and waits for its state.
    Joined,
    /// The newcomer repeats the step that was in flight.
    Replaying,
}

impl SeatState {
    const fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Training => "training",
            Self::Dead => "dead",
            Self::Joined => "joined",
            Self::Replaying => "replaying",
        }
    }

    /// The SGR sequence that begins the colour.
    const fn colour(self) -> &'static str {
        match self {
            Self::Empty => "\x1b[2m",
            Self::Training => "\x1b[32m",
            Self::Dead => "\x1b[1;31m",
            Self::Joined => "\x1b[36m",
            Self::Replaying => "\x1b[33m",
        }
    }
}

/// When each point of the latest recovery was passed.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Timeline([Option<f64>; Milestone::ALL.len()]);

impl Timeline {
    /// Takes in one rank's view of a point. Of `Detected` the earliest counts (one rank's evidence is enough), of all
    /// others the latest (the point is passed when every rank has passed it).
    pub fn note(&mut self, milestone: Milestone, since_kill_ms: f64) {
        let at = &mut self.0[milestone as usize];
        *at = Some(match (*at, milestone) {
            (None, _) => since_kill_ms,
            (Some(known), Milestone::Detected) => known.min(since_kill_ms),
            (
                Some(known),
                Milestone::Fenced
                | Milestone::Decided
                | Milestone::Reseated
                | Milestone::Transferred
                | Milestone::Replayed
                | Milestone::Resumed,
            ) => known.max(since_kill_ms),
        });
    }

    /// Milliseconds from the kill to the point; `None` before it.
    #[must_use]
    pub fn at(&self, milestone: Milestone) -> Option<f64> {
        self.0[milestone as usize]
    }
}

#[derive(Clone, PartialEq, Debug)]
struct Row {
    member: Option<MemberId>,
    state: SeatState,
    step: Option<StepId>,
    loss: Option<f32>,
}

/// The state of the picture. Feed it with [`Display::handle`], write it with [`Display::render`].
#[derive(Clone, PartialEq, Debug)]
pub struct Display {
    screen: Screen,
    rows: Vec<Row>,
    /// `None` until somebody is killed.
    timeline: Option<Timeline>,
    summary: Option<Summary>,
    /// Lines of the picture on the terminal: so far the cursor goes up before the next one.
    drawn_lines: usize,
    /// Lines of the log that are not written yet; each event adds a bounded number, each render takes all.
    log: Vec<String>,
    /// The step of the next progress line in the log.
    log_step: u64,
}

impl Display {
    /// A display of `ranks` empty seats.
    #[must_use]
    pub fn new(ranks: u32, screen: Screen) -> Self {
        let row = Row { member: None, state: SeatState::Empty, step: None, loss: None };
        Self {
            screen,
            rows: vec![row; ranks as usize],
            timeline: None,
            summary: None,
            drawn_lines: 0,
            log: Vec::new(),
            log_step: LOG_STEPS,
        }
    }

    /// When each point of the latest recovery was passed, as far as it has come; `None` before the first kill.
    #[must_use]
    pub fn timeline(&self) -> Option<&Timeline> {
        self.timeline.as_ref()
    }

    /// Takes in what happened. An event of a rank outside the table, or of a recovery without a kill, changes nothing.
    pub fn handle(&mut self, event: &DemoEvent) {
        match event {
            DemoEvent::Seated { rank, member, step } => self.seat(*rank, *member, *step),
            DemoEvent::Step { rank, step, loss } => self.step(*rank, *step, *loss),
            DemoEvent::Killed { rank, step } => {
                let Some(row) = self.rows.get_mut(rank.index()) else { return };
                row.state = SeatState::Dead;
                row.step = Some(*step);
                self.timeline = Some(Timeline::default());
                self.say(format!("{rank} killed in step {}", step.0));
            }
            DemoEvent::Milestone { milestone, since_kill_ms } => self.pass(*milestone, *since_kill_ms),
            DemoEvent::Finished(summary) => {
                self.summary = Some(summary.clone());
                let lines = self.timeline_lines().into_iter().chain(result_lines(summary));
                for line in lines.collect::<Vec<_>>() {
                    self.say(line);
                }
            }
        }
    }

    fn seat(&mut self, rank: Rank, member: MemberId, step: StepId) {
        let Some(row) = self.rows.get_mut(rank.index()) else { return };
        let (state, verb) = match row.state {
            SeatState::Empty | SeatState::Training => (SeatState::Training, "sits in"),
            SeatState::Dead | SeatState::Joined | SeatState::Replaying => (SeatState::Joined, "takes"),
        };
        *row = Row { member: Some(member), state, step: Some(step), loss: None };
        self.say(format!("{member} {verb} seat {rank} at step {}", step.0));
    }

    fn step(&mut self, rank: Rank, step: StepId, loss: f32) {
        let Some(row) = self.rows.get_mut(rank.index()) else { return };
        // A report may still come out of the pipe of a process that is dead by now.
        if row.state == SeatState::Dead {
            return;
        }
        let newcomer = matches!(row.state, SeatState::Joined | SeatState::Replaying);
        row.state = SeatState::Training;
        row.step = Some(step);
        row.loss = Some(loss);
        if newcomer {
            self.say(format!("{rank} trains on at step {}", step.0));
        }
        self.log_progress();
    }

    /// Says so in the log when every rank has made the next step of the log.
    fn log_progress(&mut self) {
        let Some(behind) = self.rows.iter().map(|row| row.step.map_or(0, |step| step.0)).min() else {
            return;
        };
        let all_train = self.rows.iter().all(|row| row.state == SeatState::Training && row.loss.is_some());
        if !all_train || behind < self.log_step {
            return;
        }
        let losses = self.rows.iter().filter_map(|row| row.loss).map(f64::from);
        let mean = losses.sum::<f64>() / self.rows.len() as f64;
        self.say(format!("step {behind} mean loss {mean:.4}"));
        self.log_step = (behind / LOG_STEPS + 1) * LOG_STEPS;
    }

    fn pass(&mut self, milestone: Milestone, since_kill_ms: f64) {
        let Some(timeline) = &mut self.timeline else { return };
        timeline.note(milestone, since_kill_ms);
        if milestone == Milestone::Transferred {
            for row in self.rows.iter_mut().filter(|row| row.state == SeatState::Joined) {
                row.state = SeatState::Replaying;
            }
        }
    }

    fn say(&mut self, line: String) {
        match self.screen {
            Screen::Terminal => {}
            Screen::Log => self.log.push(line),
        }
    }

    /// Writes what is new: on a terminal the whole picture over the last one, in a log the lines since the last call.
    ///
    /// # Errors
    /// Those of the writer. The lines of a log that were not written are gone.
    pub fn render(&mut self, out: &mut impl Write) -> io::Result<()> {
        match self.screen {
            Screen::Log => {
                for line in self.log.drain(..) {
                    writeln!(out, "{line}")?;
                }
            }
            Screen::Terminal => {
                let picture = self.picture();
                if self.drawn_lines > 0 {
                    write!(out, "\x1b[{}A", self.drawn_lines)?;
                }
                for line in &picture {
                    // `K` after the text: the rest of a longer line before goes, and nothing flickers.
                    writeln!(out, "\r{line}\x1b[K")?;
                }
                // Below, where a longer picture was.
                write!(out, "\x1b[J")?;
                self.drawn_lines = picture.len();
            }
        }
        out.flush()
    }

    /// All lines, each short enough for a terminal of 80 columns: a wrapped line would break the way up.
    fn picture(&self) -> Vec<String> {
        let mut lines =
            vec![format!("{:<6}{:<8}{:<11}{:>6}{:>10}", "rank", "member", "state", "step", "loss")];
        for (rank, row) in (0..).map(Rank).zip(&self.rows) {
            lines.push(format!(
                "{:<6}{:<8}{}{:<11}\x1b[0m{:>6}{:>10}",
                rank.to_string(),
                OrDash(row.member).to_string(),
                row.state.colour(),
                row.state.name(),
                OrDash(row.step.map(|step| step.0)).to_string(),
                OrDash(row.loss.map(|loss| format!("{loss:.4}"))).to_string(),
            ));
        }
        lines.extend(self.timeline_lines());
        lines.extend(self.summary.iter().flat_map(result_lines));
        lines
    }

    fn timeline_lines(&self) -> Vec<String> {
        let Some(timeline) = &self.timeline else { return Vec::new() };
        let mut lines = vec![String::new(), format!("{:<22}{:>13}", "recovery", "ms after kill")];
        for &milestone in Milestone::ALL {
            let at = OrDash(timeline.at(milestone).map(|at| format!("{at:.2}"))).to_string();
            lines.push(format!("  {:<20}{at:>13}", milestone.label()));
        }
        lines
    }
}

fn result_lines(summary: &Summary) -> Vec<String> {
    let verdict = if summary.bitwise_equal() { "EQUAL" } else { "DIFFERENT" };
    vec![
        String::new(),
        format!("{:<22}{:.2} % of held-out digits", "accuracy", summary.accuracy * 100.0),
        format!("{:<22}{}", "errors at survivors", summary.survivor_errors),
        format!("{:<22}{}", "params hash", summary.params_hash),
        format!("{:<22}{}", "without a failure", summary.baseline_hash),
        format!("{:<22}{verdict}", "bit for bit"),
    ]
}

/// The value, or a dash where there is none.
struct OrDash<T>(Option<T>);

impl<T: fmt::Display> fmt::Display for OrDash<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(value) => value.fmt(f),
            None => f.write_str("-"),
        }
    }
}

#[cfg(test)]
mod tests;
