//! Golden texts of the display.

use super::*;
use crate::demo::network::ParamsHash;
use crate::demo::summary::tests::example;

fn step(rank: u32, step: u64, loss: f32) -> DemoEvent {
    DemoEvent::Step { rank: Rank(rank), step: StepId(step), loss }
}

fn seated(rank: u32, member: u64, step: u64) -> DemoEvent {
    DemoEvent::Seated { rank: Rank(rank), member: MemberId(member), step: StepId(step) }
}

fn passed(milestone: Milestone, since_kill_ms: f64) -> DemoEvent {
    DemoEvent::Milestone { milestone, since_kill_ms }
}

/// A run of two ranks that loses rank 1 in step 51.
fn story() -> Vec<DemoEvent> {
    vec![
        seated(0, 0, 0),
        seated(1, 1, 0),
        step(0, 50, 0.5),
        step(1, 50, 0.25),
        step(0, 51, 0.125),
        DemoEvent::Killed { rank: Rank(1), step: StepId(52) },
        step(1, 51, 9.0),
        passed(Milestone::Detected, 0.9),
        passed(Milestone::Detected, 0.75),
        passed(Milestone::Fenced, 1.5),
        passed(Milestone::Fenced, 1.25),
        passed(Milestone::Decided, 4.0),
        passed(Milestone::Reseated, 20.0),
        seated(1, 2, 52),
        passed(Milestone::Transferred, 31.5),
        passed(Milestone::Replayed, 80.0),
        passed(Milestone::Resumed, 81.25),
        step(0, 52, 0.0625),
        step(1, 52, 0.0625),
        DemoEvent::Finished(example()),
    ]
}

/// How the story ends, whatever it is shown on.
const END: &str = "\
recovery              ms after kill
  detected                     0.75
  fenced                       1.50
  decided                      4.00
  reseated                    20.00
  state transferred           31.50
  replayed                    80.00
  resumed                     81.25

accuracy              96.38 % of held-out digits
errors at survivors   0
params hash           0000000000c0ffee
without a failure     0000000000c0ffee
bit for bit           EQUAL
";

fn render(display: &mut Display) -> String {
    let mut out = Vec::new();
    display.render(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// What a terminal shows after `text`: knows the sequences that the display uses, and panics at any other.
fn terminal(text: &str) -> Vec<String> {
    let (mut lines, mut at, mut column) = (vec![String::new()], 0, 0);
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            '\n' => {
                at += 1;
                column = 0;
                if at == lines.len() {
                    lines.push(String::new());
                }
            }
            '\r' => column = 0,
            '\x1b' => {
                assert_eq!(rest.next(), Some('['));
                let mut number = String::new();
                let end = loop {
                    match rest.next().unwrap() {
                        digit @ ('0'..='9' | ';') => number.push(digit),
                        end => break end,
                    }
                };
                match end {
                    'A' => at -= number.parse::<usize>().unwrap(),
                    'K' => lines[at].truncate(column),
                    'J' => {
                        lines[at].truncate(column);
                        lines.truncate(at + 1);
                    }
                    'm' => {}
                    other => panic!("unknown sequence {other}"),
                }
            }
            other => {
                assert!(other.is_ascii(), "columns are counted in bytes");
                if column < lines[at].len() {
                    lines[at].replace_range(column..=column, &other.to_string());
                } else {
                    lines[at].push(other);
                }
                column += 1;
            }
        }
    }
    assert!(lines.iter().all(|line| line.len() < 80), "{lines:#?}");
    assert_eq!((lines.pop().as_deref(), at), (Some(""), lines.len()), "the cursor ends below the picture");
    lines.iter().map(|line| line.trim_end().to_owned()).collect()
}

#[test]
fn the_log_is_written_once() {
    let mut display = Display::new(2, Screen::Log);
    let mut log = String::new();
    for event in story() {
        display.handle(&event);
        log += &render(&mut display);
    }
    let expected = "\
m0 sits in seat r0 at step 0
m1 sits in seat r1 at step 0
step 50 mean loss 0.3750
r1 killed in step 52
m2 takes seat r1 at step 52
r1 trains on at step 52

";
    assert_eq!(log, format!("{expected}{END}"));
    assert_eq!(render(&mut display), "");
}

#[test]
fn the_terminal_shows_one_picture() {
    let mut display = Display::new(2, Screen::Terminal);
    let mut written = String::new();
    let mut pictures = Vec::new();
    for event in story() {
        display.handle(&event);
        written += &render(&mut display);
        pictures.push(terminal(&written));
    }
    let expected = "\
rank  member  state        step      loss
r0    m0      training       52    0.0625
r1    m2      training       52    0.0625

";
    assert_eq!(pictures.last().unwrap().join("\n") + "\n", format!("{expected}{END}"));

    let rows: Vec<&str> = pictures.iter().map(|picture| picture[2].as_str()).collect();
    assert_eq!(rows[0], "r1    -       empty           -         -");
    assert_eq!(rows[3], "r1    m1      training       50    0.2500");
    assert_eq!(rows[5], "r1    m1      dead           52    0.2500");
    assert_eq!(rows[6], rows[5], "a late line of the dead changes nothing");
    assert_eq!(rows[13], "r1    m2      joined         52         -");
    assert_eq!(rows[14], "r1    m2      replaying      52         -");
    assert_eq!(pictures[4].len(), 3);
    assert_eq!(pictures[7][5], "  detected                     0.90");
    assert_eq!(pictures[7][6], "  fenced                          -");
}

#[test]
fn the_first_picture_is_these_bytes() {
    let mut display = Display::new(1, Screen::Terminal);
    display.handle(&DemoEvent::Killed { rank: Rank(0), step: StepId(3) });
    let first = render(&mut display);
    let head = "\rrank  member  state        step      loss\x1b[K\n\
                \rr0    -       \x1b[1;31mdead       \x1b[0m     3         -\x1b[K\n\
                \r\x1b[K\n";
    assert!(first.starts_with(head), "{first:?}");
    assert!(render(&mut display).starts_with("\x1b[11A\rrank"), "eleven lines up");
}

#[test]
fn a_shorter_picture_leaves_nothing_behind() {
    let mut display = Display::new(2, Screen::Terminal);
    for event in story() {
        display.handle(&event);
    }
    let written = render(&mut display);
    display.summary = None;
    let written = written + &render(&mut display);
    assert_eq!(terminal(&written).len(), 12);
}

#[test]
fn a_different_result_is_called_so() {
    let mut display = Display::new(1, Screen::Log);
    let summary = Summary { baseline_hash: ParamsHash(1), survivor_errors: 2, ..example() };
    display.handle(&DemoEvent::Finished(summary));
    let log = render(&mut display);
    assert!(log.contains("bit for bit           DIFFERENT\n"), "{log}");
    assert!(log.contains("errors at survivors   2\n"), "{log}");
    assert!(!log.contains("recovery"), "nobody was killed: {log}");
}

#[test]
fn strange_events_change_nothing() {
    for screen in [Screen::Log, Screen::Terminal] {
        let fresh = Display::new(2, screen);
        let mut display = fresh.clone();
        display.handle(&seated(2, 5, 0));
        display.handle(&step(7, 5, 0.5));
        display.handle(&DemoEvent::Killed { rank: Rank(2), step: StepId(3) });
        display.handle(&passed(Milestone::Fenced, 3.0));
        assert_eq!(display, fresh);
    }
}

#[test]
fn a_second_kill_begins_a_new_timeline() {
    let mut display = Display::new(2, Screen::Log);
    for event in story() {
        display.handle(&event);
    }
    assert_eq!(display.timeline().unwrap().at(Milestone::Resumed), Some(81.25));
    display.handle(&DemoEvent::Killed { rank: Rank(0), step: StepId(90) });
    assert_eq!(display.timeline(), Some(&Timeline::default()));
}
