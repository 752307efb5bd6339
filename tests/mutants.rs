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
    let work = || {
        loop {
            let Some(mutant) = left.lock().unwrap().pop() else { return };
            let name = format!("{mutant:?}");
            match hunt(mutant, 0..10_000).found {
                Some((seed, text)) => {
                    println!(
                        "{name:<16} {:>6} seeds  {}",
                        seed + 1,
                        text.chars().take(90).collect::<String>()
                    );
                }
                None => {
                    println!("{name:<16}  10000 seeds  NOT FOUND");
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
