//! Every planted fault is found by a checker within 10,000 seeds. Needs `--features mutants`.
#![cfg(feature = "mutants")]
#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use std::sync::Mutex;

use phalanx::core::mutants::Mutant;
use phalanx::sim::sweep::hunt;

#[test]
fn every_planted_fault_is_found() {
    std::panic::set_hook(Box::new(|_| {}));
    let left = Mutex::new(Mutant::ALL.to_vec());
    let missed = Mutex::new(Vec::new());
    // A smaller hunt for a quick look; the claim is about 10,000.
    let seeds = std::env::var("MUTANT_SEEDS").ok().and_then(|v| v.parse().ok()).unwrap_or(10_000);
    let work = || {
        loop {
            let Some(mutant) = left.lock().unwrap().pop() else { return };
            let name = format!("{mutant:?}");
            match hunt(mutant, 0..seeds).found {
                Some((seed, text)) => {
                    println!(
                        "{name:<16} {:>6} seeds  {}",
                        seed + 1,
                        text.chars().take(90).collect::<String>()
                    );
                }
                None => {
                    println!("{name:<16} {seeds:>6} seeds  NOT FOUND");
                    missed.lock().unwrap().push(name);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(work);
        }
    });
    let _ = std::panic::take_hook();
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "not found: {missed:?}");
}
