//! Fresh seeds of the simulator, and seeds that failed once.

use phalanx::sim::{Scenario, run};

#[test]
fn seeds() {
    let from: u64 = std::env::var("SIM_FROM").ok().and_then(|v| v.parse().ok()).unwrap_or(0);
    let count: u64 = std::env::var("SIM_COUNT").ok().and_then(|v| v.parse().ok()).unwrap_or(2000);
    let mut bad = 0;
    for seed in from..from + count {
        let s = Scenario::draw(seed);
        let result = std::panic::catch_unwind(|| run(&s, false));
        match result {
            Ok(o) if o.violations.is_empty() => {}
            Ok(o) => {
                bad += 1;
                println!(
                    "seed {seed}: {:?} {:?} n={}",
                    o.violations.first(),
                    s.rules.policy,
                    s.rules.world_size
                );
            }
            Err(_) => {
                bad += 1;
                println!("seed {seed}: panic {:?} n={}", s.rules.policy, s.rules.world_size);
            }
        }
        if bad > 15 {
            break;
        }
    }
    assert_eq!(bad, 0);
}
