//! Prints one seed.
#[test]
fn explain() {
    let seed: u64 = std::env::var("SIM_SEED").ok().and_then(|v| v.parse().ok()).unwrap_or(0);
    let mut s = if std::env::var("SIM_BASIC").is_ok() {
        phalanx::sim::Scenario::basic(seed)
    } else if std::env::var("SIM_BREAKS").is_ok() {
        phalanx::sim::Scenario::with_breaks(seed)
    } else {
        phalanx::sim::Scenario::draw(seed)
    };
    if let Some(ms) = std::env::var("SIM_TIMEOUT").ok().and_then(|v| v.parse().ok()) {
        s.rules.op_timeout_ms = ms;
    }
    println!("{s:?}");
    let o = phalanx::sim::run(&s, std::env::var("SIM_LINES").is_ok());
    println!("{}", o.timeline.text());
    println!("{:#?}", o.violations);
}
