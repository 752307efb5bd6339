//! The network against a slow second implementation in f64, and the bits it must keep.

use super::*;
use crate::demo::digits::Digits;

/// The mean loss by the textbook formulas, in f64, sharing no code with the network.
fn textbook_loss(params: &[f64], images: &[&Image]) -> f64 {
    let mut loss = 0.0;
    for image in images {
        let mut values: Vec<f64> = image.pixels.iter().map(|&pixel| f64::from(pixel)).collect();
        let mut start = 0;
        for (layer, (inputs, outputs)) in [(64, 128), (128, 64), (64, 10)].into_iter().enumerate() {
            let biases = start + inputs * outputs;
            values = (0..outputs)
                .map(|o| {
                    let sum: f64 = (0..inputs).map(|i| values[i] * params[start + i * outputs + o]).sum();
                    let sum = sum + params[biases + o];
                    if layer < 2 { sum.max(0.0) } else { sum }
                })
                .collect();
            start = biases + outputs;
        }
        let total: f64 = values.iter().map(|value| value.exp()).sum();
        loss += total.ln() - values[usize::from(image.digit)];
    }
    loss / images.len() as f64
}

#[test]
fn gradients_are_the_slopes_of_the_textbook_loss() {
    let digits = Digits::load();
    let shard = [0, 7, 100, 731, 1_437];
    let images: Vec<&Image> = shard.iter().map(|&index| &digits.train[index]).collect();
    let mut network = Network::new(11);
    // Biases away from zero, so that an offset into the wrong vector cannot hide.
    let mut random = Random::new(5, 0);
    for param in &mut network.params {
        *param += 0.02 * random.signed_unit();
    }
    let mut params: Vec<f64> = network.params.iter().map(|&param| f64::from(param)).collect();
    let loss = network.learn(&digits.train, &shard);
    assert!((f64::from(loss) - textbook_loss(&params, &images)).abs() < 1e-5, "{loss}");

    let (first, second) = (layer_params(0), layer_params(0) + layer_params(1));
    let biases = (first - 5..first).chain(second - 5..second).chain(PARAMS - 10..PARAMS);
    let picked: Vec<usize> = biases.chain((0..300).map(|_| random.below(PARAMS))).collect();
    let mut moved = 0;
    for place in picked {
        const WIDTH: f64 = 1e-6;
        let here = params[place];
        params[place] = here + WIDTH;
        let above = textbook_loss(&params, &images);
        params[place] = here - WIDTH;
        let below = textbook_loss(&params, &images);
        params[place] = here;
        let slope = (above - below) / (2.0 * WIDTH);
        let grad = f64::from(network.grads[place]);
        assert!(
            (slope - grad).abs() < 1e-6 + 1e-4 * slope.abs(),
            "param {place}: slope {slope}, grad {grad}"
        );
        moved += usize::from(slope.abs() > 1e-4);
    }
    assert!(moved > 100, "only {moved} of the slopes say anything");
}

#[test]
fn own_exponential_is_exact_enough() {
    for step in 0..=87_000 {
        let x = -step as f32 / 1_000.0;
        let (own, exact) = (f64::from(exp_below_one(x)), f64::from(x).exp());
        assert!((own - exact).abs() <= exact * 2.0_f64.powi(-22), "e^{x} is {exact}, not {own}");
    }
    assert_eq!(exp_below_one(0.0), 1.0);
    assert_eq!(exp_below_one(-87.1), 0.0);
    assert_eq!(exp_below_one(f32::NEG_INFINITY), 0.0);
    assert!(exp_below_one(f32::NAN).is_nan());
}

#[test]
fn momentum_carries_the_descent_on() {
    let mut network = Network::zeroed();
    network.grads.fill(1.0);
    network.descend();
    assert_eq!(network.params[0], -0.05);
    network.grads.fill(0.0);
    network.descend();
    assert_eq!(network.velocity[PARAMS - 1], 0.9);
    assert!((network.params[PARAMS - 1] + 0.095).abs() < 1e-7, "{}", network.params[0]);
}

#[test]
fn seeds_and_only_seeds_change_a_fresh_network() {
    let hash = |seed| ParamsHash::of(&Network::new(seed).params);
    assert_eq!(hash(1), hash(1));
    assert_ne!(hash(1), hash(2));
    let network = Network::new(1);
    let (first, _) = network.params.split_at(layer_params(0));
    let bound = (6.0_f32 / 64.0).sqrt();
    assert!(first[..64 * 128].iter().all(|weight| weight.abs() <= bound));
    assert!(first[..64 * 128].iter().any(|weight| weight.abs() > 0.99 * bound));
    assert_eq!(first[64 * 128..], [0.0; 128]);
}

#[test]
fn hashes_tell_single_bits_apart() {
    assert_eq!(ParamsHash::of(&[]).to_string(), "cbf29ce484222325");
    // FNV-1a of "foob", one of the vectors its authors publish, read as an f32.
    let foob = f32::from_le_bytes(*b"foob");
    assert_eq!(ParamsHash::of(&[foob]).to_string(), "dd120e790c2512af");
    assert_ne!(ParamsHash::of(&[0.0]), ParamsHash::of(&[-0.0]));
    assert_ne!(ParamsHash::of(&[1.0, 2.0]), ParamsHash::of(&[2.0, 1.0]));
    assert_eq!(ParamsHash(0xab).to_string(), "00000000000000ab");
}

#[test]
fn accuracy_counts_the_likeliest_digit() {
    let digits = Digits::load();
    let mut params = vec![0.0; PARAMS];
    // Only the bias of the digit 3 is there: everything looks like a 3.
    params[PARAMS - CLASSES + 3] = 1.0;
    let threes = digits.held_out.iter().filter(|image| image.digit == 3).count();
    assert_eq!(accuracy(&params, &digits.held_out), threes as f64 / 359.0);
    assert_eq!(accuracy(&params, &[]), 0.0);
}
