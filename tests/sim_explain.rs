//! The text of a run and its diagram: the same on every machine, and nothing of the run depends on them.

use phalanx::core::fnv::fnv1a;
use phalanx::sim::diagram::svg;
use phalanx::sim::replay::{Draw, Replay};
use phalanx::sim::run;

/// A draw, a seed, and the hashes of its text and of its diagram.
const KEPT: &[(Draw, u64, u64, u64)] = &[
    (Draw::Basic, 11, 0x4b373b488884638d, 0x4dc93242fa41592e),
    (Draw::Early, 42, 0x0eab4970225772ef, 0x63255339f82f7dd3),
    (Draw::Whole, 7, 0x84af3836b728442b, 0xaaf8a31e8bbb7e7c),
    (Draw::Whole, 28, 0x683930cff2f4d645, 0xbe3820dcfe32f357),
    (Draw::Whole, 100_000_010, 0x85480345f9654d95, 0x3e1c604df6c6f878),
    (Draw::Whole, 300_000_003, 0xedf99dd598d50c33, 0x35ea0659678799e8),
    (Draw::Breaks, 300_000_012, 0xe2d091f3af43db3e, 0xdd34accf6da625c0),
];

fn replay(draw: Draw, seed: u64) -> Replay {
    Replay { seed, draw, ..Replay::default() }
}

fn line(draw: Draw, seed: u64, text: u64, drawing: u64) -> String {
    format!("    (Draw::{draw:?}, {seed}, {text:#018x}, {drawing:#018x}),\n")
}

#[test]
fn the_text_and_the_diagram_of_a_seed_are_the_same_everywhere() {
    let mut now = String::new();
    for &(draw, seed, ..) in KEPT {
        let timeline = replay(draw, seed).outcome(true).timeline;
        let (text, drawing) = (fnv1a(timeline.text().bytes()), fnv1a(svg(&timeline).bytes()));
        now += &line(draw, seed, text, drawing);
    }
    let kept: String =
        KEPT.iter().map(|(draw, seed, text, drawing)| line(*draw, *seed, *text, *drawing)).collect();
    assert_eq!(
        now, kept,
        "what a run is told as has changed. If a change of the engine, of the draw or of the words was meant to do \
         that, read `phalanx sim --seed N --draw D --explain` of one of them, and put these lines into KEPT in \
         tests/sim_explain.rs:\n{now}"
    );
}

/// The diagram in docs/testing.md.
#[test]
fn the_diagram_in_the_documentation_is_of_a_run_of_today() {
    let without = "spares>1".parse().unwrap();
    let drawing = svg(&Replay { without, ..replay(Draw::Early, 87) }.outcome(true).timeline);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/replaced_rank.svg");
    let kept = std::fs::read_to_string(path).unwrap();
    assert!(kept.len() < 60_000, "{}", kept.len());
    assert!(
        kept == drawing,
        "run `phalanx sim --draw early --seed 87 --without \"spares>1\" --svg docs/replaced_rank.svg`, look at what it \
         shows, and see that docs/testing.md still says so"
    );
}

#[test]
fn a_run_is_the_same_whether_it_is_told_or_not() {
    for (draw, from) in [(Draw::Basic, 0), (Draw::Whole, 100_000_000), (Draw::Breaks, 300_000_000)] {
        for seed in from..from + 40 {
            let s = draw.scenario(seed);
            let (quiet, told) = (run(&s, false), run(&s, true));
            assert!(quiet.timeline.entries.is_empty() && quiet.timeline.data.is_empty());
            assert!(!told.timeline.entries.is_empty(), "seed {seed}");
            let without = phalanx::sim::Outcome { timeline: Default::default(), ..told };
            assert_eq!(quiet, without, "{} {seed}", draw.name());
        }
    }
}

#[test]
fn lines_are_aligned_in_order_and_short() {
    for seed in 300_000_000..300_000_040 {
        let timeline = replay(Draw::Whole, seed).outcome(true).timeline;
        let times: Vec<u64> = timeline.entries.iter().map(|e| e.time_us).collect();
        assert!(times.is_sorted(), "seed {seed}");
        for e in &timeline.entries {
            assert!(e.link.is_none_or(|l| l.sent_us <= e.time_us), "{e}: sent after it came");
            assert!(!e.to_string().contains(['\n', '{']), "{e}: no sentence");
        }
        for d in &timeline.data {
            assert!(d.sent_us <= d.arrives_us && d.taken_us.is_none_or(|t| t >= d.arrives_us), "{d:?}");
        }
        let text = timeline.text();
        for line in text.lines().skip(1).filter(|l| !l.starts_with("data messages")) {
            let (time, rest) = line.split_at(10);
            assert!(time.trim_start().split_once('.').is_some_and(|(_, us)| us.len() == 3), "{line}");
            assert!(
                rest.starts_with("  ") && !rest[2..].starts_with(' ') && rest[13..].starts_with("  "),
                "{line}"
            );
        }
    }
}
