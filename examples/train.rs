//! Data-parallel training that survives the death of a rank. The same loop serves rank and spare.
//!
//! ```text
//! cargo build --release --example train
//! cargo run --release -- run -n 4 --spares 1 -- target/release/examples/train
//! ```
//! Every rank prints the same parameter hash at the end, also if you `kill -9` one of them on the way.

use phalanx::demo::digits::Digits;
use phalanx::demo::network::{Network, ParamsHash};
use phalanx::demo::sampling::Sampling;
use phalanx::{Communicator, ReduceOp, Regions, RegionsMut, State};

const STEPS: u64 = 200;

/// What a step starts from. A newcomer gets exactly this, byte for byte.
struct Model(Network);

impl State for Model {
    fn regions(&self) -> Regions<'_> {
        Regions::new().with(&self.0.params).with(&self.0.velocity)
    }

    fn regions_mut(&mut self) -> RegionsMut<'_> {
        RegionsMut::new().with(&mut self.0.params).with(&mut self.0.velocity)
    }
}

fn main() -> Result<(), phalanx::Error> {
    let digits = Digits::load();
    let mut comm = Communicator::from_env()?;
    let mut model = Model(Network::new(1));

    while let Some(gradient) = comm.step(STEPS, &mut model, |step, model| {
        // A function of the state, the step's number and the rank: a newcomer computes the same.
        let rank = step.comm.rank().unwrap_or_default();
        let sampling =
            Sampling { seed: 1, images: digits.train.len(), world_size: step.comm.world_size(), batch: 256 };
        let shard = sampling.shard(phalanx::core::ids::StepId(step.index()), rank);
        let mut learner = model.0.clone();
        learner.learn(&digits.train, &shard);
        step.comm.all_reduce(&mut learner.grads, ReduceOp::Avg)?;
        Ok(learner.grads)
    })? {
        // Committed: only now the state may change.
        model.0.grads = gradient;
        model.0.descend();
    }

    if let Some(rank) = comm.rank() {
        println!("{rank}: parameters {}", ParamsHash::of(&model.0.params));
    }
    Ok(())
}
