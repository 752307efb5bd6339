//! A timeline as a space-time diagram: a vertical line a process, time going down, messages as arrows.
//!
//! Time is not to scale: between two moments at which something happens lies a distance that grows with the logarithm
//! of the time between them, so that a wait of a second takes no more room than it tells.

use std::collections::{BTreeMap, BTreeSet};

use phalanx_core::ids::{MemberId, Rank};
use phalanx_core::wire::Kind;
use phalanx_core::wire::message::{Downward, Upward};

use super::timeline::{Data, Entry, Place, Timeline, What, ms};

mod marks;

use marks::{LEGEND, Mark};

/// Left of it are the times.
const WORLD_X: u32 = 64;
const COORDINATOR_X: u32 = 270;
const STORE_X: u32 = 370;
const MEMBER_X: u32 = 450;
const COLUMN: u32 = 96;
/// Labels of one column are so far from each other.
const ROW: u32 = 11;
/// A label has at most so many characters; the whole sentence is in the tooltip.
const LABEL_CHARS_MAX: usize = 40;
/// With more messages than this between members none is drawn.
const DATA_MAX: usize = 4_000;

const STYLE: &str = "text{font:9px sans-serif;fill:#222;stroke:#fff;stroke-width:2;paint-order:stroke}\
    .t{fill:#777;text-anchor:end}.v{fill:#c22}.h{font-weight:bold;text-anchor:middle}\
    .life{stroke:#999;stroke-width:1.5}.off{stroke:#bbb;stroke-dasharray:2 3}\
    .c{stroke:#444;stroke-width:.8;fill:none}.d{stroke-width:.5;fill:none;opacity:.75}.k{stroke-dasharray:3 2}\
    .red{fill:#c22;stroke:#c22}.amber{fill:#e90;stroke:#e90}.green{fill:#2a3;stroke:#2a3}.blue{fill:#26c;stroke:#26c}\
    .grey{fill:#777;stroke:#777}.ring{fill:#fff;stroke:#2a3}.violet{fill:#84c;stroke:#84c}";

/// Heads of arrows: of control messages and of data.
const HEADS: &str = "<marker id=\"a\" viewBox=\"0 0 6 6\" refX=\"6\" refY=\"3\" markerWidth=\"6\" markerHeight=\"6\" \
    orient=\"auto\"><path d=\"M0 0L6 3L0 6z\" fill=\"#444\"/></marker>\
    <marker id=\"b\" viewBox=\"0 0 6 6\" refX=\"6\" refY=\"3\" markerWidth=\"7\" markerHeight=\"7\" orient=\"auto\">\
    <path d=\"M0 1L6 3L0 5\" fill=\"none\" stroke=\"#888\"/></marker>";

/// Colours of the messages of an op, by its number.
const OPS: [&str; 6] = ["#26c", "#2a3", "#c50", "#84c", "#088", "#a36"];

/// The diagram as SVG.
#[must_use]
pub fn svg(timeline: &Timeline) -> String {
    let sheet = Sheet::new(timeline);
    let mut body = String::new();
    body += &sheet.lives();
    body += &sheet.messages();
    body += &sheet.marks();
    let (width, top, bottom) = (sheet.width, sheet.top, sheet.bottom);
    let violation = |e: &'_ Entry| if let What::Breaks(text) = &e.what { Some(text.clone()) } else { None };
    let violations = timeline.entries.iter().filter_map(violation);
    let below: Vec<String> = violations.flat_map(|text| wrapped(&text, width)).collect();
    let height = bottom + 24 + ROW * below.len() as u32;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\">\n<style>{STYLE}</style>\n<defs>{HEADS}</defs>\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    for (line, text) in wrapped(&timeline.title, width).iter().enumerate() {
        out += &text_at(8, 14 + ROW * line as u32, "", text);
    }
    out += &legend(top - 40);
    out += &body;
    for (line, text) in below.iter().enumerate() {
        out += &text_at(8, bottom + 18 + ROW * line as u32, "v", text);
    }
    out + "</svg>\n"
}

/// Where everything is.
struct Sheet<'a> {
    timeline: &'a Timeline,
    /// Members in the order of their columns, with what stands above.
    members: Vec<(MemberId, String)>,
    x: BTreeMap<MemberId, u32>,
    /// The height of a moment, and of the first mark of it.
    y: BTreeMap<u64, u32>,
    width: u32,
    top: u32,
    bottom: u32,
    draws_data: bool,
}

impl<'a> Sheet<'a> {
    fn new(timeline: &'a Timeline) -> Self {
        let members = columns(timeline);
        let column =
            |(index, (member, _)): (usize, &(MemberId, String))| (*member, MEMBER_X + COLUMN * index as u32);
        let x = members.iter().enumerate().map(column).collect();
        let width = MEMBER_X + COLUMN * members.len().max(1) as u32;
        let top = 14 + ROW * wrapped(&timeline.title, width).len() as u32 + 52;
        let draws_data = timeline.data.len() <= DATA_MAX;
        let mut sheet =
            Self { timeline, members, x, y: BTreeMap::new(), width, top, bottom: top, draws_data };
        sheet.place_moments();
        sheet
    }

    fn x(&self, place: Place) -> u32 {
        match place {
            Place::World => WORLD_X + 4,
            Place::Coordinator => COORDINATOR_X,
            Place::Store => STORE_X,
            Place::Member(member, _) => self.x.get(&member).copied().unwrap_or(MEMBER_X),
        }
    }

    fn y(&self, time_us: u64) -> u32 {
        self.y.get(&time_us).copied().unwrap_or(self.top)
    }

    /// Gives every moment its height: later is lower, and no two labels of a column overlap.
    fn place_moments(&mut self) {
        let entries = &self.timeline.entries;
        let mut labels: BTreeMap<u64, BTreeMap<u32, u32>> = BTreeMap::new();
        for e in entries {
            labels.entry(e.time_us).or_default();
            if let Some(link) = e.link {
                labels.entry(link.sent_us).or_default();
            }
            if Mark::of(e).is_some() {
                *labels.entry(e.time_us).or_default().entry(self.x(e.place)).or_default() += 1;
            }
        }
        for d in self.data() {
            labels.entry(d.sent_us).or_default();
            labels.entry(d.arrives_us).or_default();
        }
        let (mut y, mut before) = (self.top + 14, 0);
        // By column, below which its next label may stand.
        let mut free: BTreeMap<u32, u32> = BTreeMap::new();
        for (time_us, of_columns) in labels {
            y += if time_us > before { 2 + (time_us - before).ilog2() } else { 0 };
            for x in of_columns.keys() {
                y = y.max(free.get(x).copied().unwrap_or(0));
            }
            for (x, count) in of_columns {
                free.insert(x, y + ROW * count);
            }
            self.y.insert(time_us, y);
            before = time_us;
        }
        self.bottom = free.values().copied().max().unwrap_or(y).max(y) + 6;
    }

    fn data(&self) -> impl Iterator<Item = &'a Data> {
        let shown = if self.draws_data { self.timeline.data.len() } else { 0 };
        self.timeline.data.iter().take(shown)
    }

    /// The vertical lines, each from its start to its end, thin where its process is not there or stopped.
    fn lives(&self) -> String {
        let mut out = text_at(WORLD_X + 4, self.top, "", "faults");
        let fixed = [(Place::Coordinator, "coordinator"), (Place::Store, "store")];
        let of_members = self.members.iter().map(|(m, head)| (Place::Member(*m, None), head.as_str()));
        for (place, head) in fixed.into_iter().chain(of_members) {
            let x = self.x(place);
            out += &text_at(x, self.top, "h", head);
            let mut from = Some(self.top + 6).filter(|_| !matches!(place, Place::Member(..)));
            let mut last = from.unwrap_or(self.top + 6);
            let line = |class: &str, a: u32, b: u32| {
                format!("<line class=\"{class}\" x1=\"{x}\" y1=\"{a}\" x2=\"{x}\" y2=\"{b}\"/>\n")
            };
            for e in self.timeline.entries.iter().filter(|e| self.x(e.place) == x && e.place != Place::World)
            {
                let y = self.y(e.time_us);
                if matches!(e.what, What::Starts(_)) {
                    from = Some(y);
                } else if matches!(e.what, What::IsBack | What::GoesOn) && from.is_none() {
                    out += &line("off", last, y);
                    from = Some(y);
                } else if let (What::Dies | What::Stops, Some(start)) = (&e.what, from) {
                    out += &line("life", start, y);
                    (from, last) = (None, y);
                }
            }
            if let Some(start) = from {
                out += &line("life", start, self.bottom);
            }
        }
        out
    }

    fn messages(&self) -> String {
        let mut out = String::new();
        for d in self.data() {
            let colour = OPS[d.header.op.seq.0 as usize % OPS.len()];
            let note = if d.header.kind == Kind::Final || d.header.kind == Kind::Partial { "" } else { " k" };
            let (x1, x2) = (self.x(Place::Member(d.from, None)), self.x(Place::Member(d.to, None)));
            let (y1, y2) = (self.y(d.sent_us), self.y(d.arrives_us));
            // What nobody took ends half way.
            let is_taken = d.taken_us.is_some() && !d.stale;
            let (x2, y2) = if is_taken { (x2, y2) } else { (x1.midpoint(x2), y1.midpoint(y2)) };
            let head = if is_taken { " marker-end=\"url(#b)\"" } else { "" };
            out +=
                &format!("<path class=\"d{note}\"{head} stroke=\"{colour}\" d=\"M{x1} {y1}L{x2} {y2}\"/>\n");
        }
        for e in &self.timeline.entries {
            let Some(link) = e.link.filter(|_| is_drawn(e)) else { continue };
            let (x1, y1) = (self.x(link.from), self.y(link.sent_us));
            let (x2, y2) = (self.x(e.place), self.y(e.time_us));
            let is_lost = e.what == What::Lost;
            let (x2, y2) = if is_lost { (x1.midpoint(x2), y1.midpoint(y2)) } else { (x2, y2) };
            let class = if is_lost { "c k" } else { "c" };
            let tip = escaped(&format!("{} {}: {e}", ms(e.time_us), e.place));
            out += &format!(
                "<path class=\"{class}\" marker-end=\"url(#a)\" d=\"M{x1} {y1}L{x2} {y2}\">\
                 <title>{tip}</title></path>\n"
            );
        }
        out
    }

    fn marks(&self) -> String {
        let mut out = String::new();
        let mut row: BTreeMap<(u64, u32), u32> = BTreeMap::new();
        let (mut last_time, mut last_y) = (None, 0);
        for e in &self.timeline.entries {
            let Some(mark) = Mark::of(e) else { continue };
            let x = self.x(e.place);
            let row = row.entry((e.time_us, x)).or_default();
            let y = self.y(e.time_us) + ROW * *row;
            *row += 1;
            if y >= last_y + ROW && last_time != Some(e.time_us) {
                out += &text_at(WORLD_X - 6, y + 3, "t", &ms(e.time_us));
                (last_time, last_y) = (Some(e.time_us), y);
            }
            let tip = escaped(&format!("{} {}: {e}", ms(e.time_us), e.place));
            out += &format!("<g>{}<title>{tip}</title>", mark.shape(x, y));
            out += text_at(x + 6, y + 3, "", &shortened(&mark.label)).trim_end();
            out += "</g>\n";
        }
        out
    }
}

/// Joins and what answers them would hide the rest; a fault of the control connection is shown.
fn is_drawn(e: &Entry) -> bool {
    if let What::Up(message) = &e.what {
        return !matches!(**message, Upward::Beat { .. } | Upward::Join { .. });
    }
    if let What::Down(message) = &e.what {
        return !matches!(**message, Downward::BeatSeen { .. } | Downward::Welcome { .. });
    }
    e.link.is_some()
}

/// Ranks of the first hour by rank, then spares in their order; with the seats each had.
fn columns(timeline: &Timeline) -> Vec<(MemberId, String)> {
    let mut seats: BTreeMap<MemberId, BTreeSet<Rank>> = BTreeMap::new();
    let mut started: Vec<(Option<Rank>, MemberId)> = Vec::new();
    for e in &timeline.entries {
        let Place::Member(member, rank) = e.place else { continue };
        if let What::Starts(wants) = e.what {
            started.push((wants, member));
        }
        seats.entry(member).or_default().extend(rank);
    }
    started.sort_by_key(|(wants, member)| (wants.is_none(), *wants, *member));
    let head = |member: MemberId| {
        let seats: Vec<String> = seats.get(&member).into_iter().flatten().map(Rank::to_string).collect();
        if seats.is_empty() { format!("{member}, spare") } else { format!("{} ({member})", seats.join(" ")) }
    };
    started.into_iter().map(|(_, member)| (member, head(member))).collect()
}

fn legend(y: u32) -> String {
    let mut out = String::new();
    let mut x = 12;
    for (mark, text) in LEGEND {
        out += &mark.shape(x, y);
        out += &text_at(x + 7, y + 3, "", text);
        x += 22 + 5 * text.len() as u32;
    }
    out + &text_at(
        12,
        y + 14,
        "",
        "black: control; coloured: data, dashed: confirmations; half a line: nobody took it",
    )
}

/// Lines that fit the width.
fn wrapped(text: &str, width: u32) -> Vec<String> {
    let columns = (width / 5) as usize;
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.len() - 1;
        if lines[last].chars().count() + word.chars().count() > columns {
            lines.push(word.to_owned());
        } else {
            let space = if lines[last].is_empty() { "" } else { " " };
            lines[last] += &format!("{space}{word}");
        }
    }
    lines
}

fn shortened(text: &str) -> String {
    if text.chars().count() <= LABEL_CHARS_MAX {
        return text.to_owned();
    }
    text.chars().take(LABEL_CHARS_MAX - 1).chain(['…']).collect()
}

fn text_at(x: u32, y: u32, class: &str, text: &str) -> String {
    let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
    format!("<text{class} x=\"{x}\" y=\"{y}\">{}</text>\n", escaped(text))
}

fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{Scenario, run};

    #[test]
    fn text_is_escaped_and_cut() {
        assert_eq!(escaped("a<b>&\"'\n"), "a&lt;b&gt;&amp;&quot;&#39; ");
        assert_eq!(shortened(&"x".repeat(50)).chars().count(), LABEL_CHARS_MAX);
        let lines = wrapped("one two three", 40);
        assert_eq!(lines, ["one two", "three"]);
    }

    #[test]
    fn every_member_has_a_line_and_every_death_a_cross() {
        let mut deaths = 0;
        for seed in 0..30 {
            let outcome = run(&Scenario::draw(seed), true);
            let drawing = svg(&outcome.timeline);
            let count =
                |what: fn(&What) -> bool| outcome.timeline.entries.iter().filter(|e| what(&e.what)).count();
            let members = count(|w| matches!(w, What::Starts(_)));
            assert_eq!(drawing.matches("class=\"h\"").count(), members + 2, "seed {seed}");
            let died = count(|w| *w == What::Dies);
            // One more is in the legend.
            assert_eq!(drawing.matches("class=\"red cross\"").count(), died + 1, "seed {seed}");
            deaths += died;
            assert_eq!(drawing.matches("<g>").count(), drawing.matches("</g>").count());
            assert!(drawing.ends_with("</svg>\n"));
        }
        assert!(deaths > 5, "{deaths}");
    }

    #[test]
    fn later_is_lower_and_no_two_labels_of_a_column_overlap() {
        let outcome = run(&Scenario::draw(7), true);
        let sheet = Sheet::new(&outcome.timeline);
        assert!(sheet.y.values().is_sorted(), "{:?}", sheet.y);
        let mut of_column: BTreeMap<u32, BTreeMap<u64, u32>> = BTreeMap::new();
        for e in outcome.timeline.entries.iter().filter(|e| Mark::of(e).is_some()) {
            *of_column.entry(sheet.x(e.place)).or_default().entry(e.time_us).or_default() += 1;
        }
        for moments in of_column.values() {
            let heights: Vec<(u32, u32)> = moments.iter().map(|(t, n)| (sheet.y(*t), *n)).collect();
            assert!(heights.windows(2).all(|w| w[0].0 + ROW * w[0].1 <= w[1].0), "{heights:?}");
        }
    }
}
