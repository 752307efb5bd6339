//! The network: 64-128-64-10, relu, softmax and cross-entropy, trained by gradient descent with momentum.
//!
//! Parameters, gradients and velocity are flat vectors, ready for an all-reduce and for a state transfer. Only `+`,
//! `-`, `*`, `/` and `sqrt` touch them, in a fixed order; IEEE 754 rounds all of these exactly, so the bits are the
//! same in every build and on every machine.

use phalanx_core::fnv::fnv1a;

use crate::demo::digits::{CLASSES, Image, PIXELS};
use crate::demo::random::Random;

const HIDDEN_FIRST: usize = 128;
const HIDDEN_SECOND: usize = 64;

/// Inputs and outputs of each layer.
const LAYERS: [(usize, usize); 3] =
    [(PIXELS, HIDDEN_FIRST), (HIDDEN_FIRST, HIDDEN_SECOND), (HIDDEN_SECOND, CLASSES)];

/// Parameters of the network. Per layer: a row of output weights for each input, then the biases.
pub const PARAMS: usize = layer_params(0) + layer_params(1) + layer_params(2);

/// Step width of the descent.
pub const LEARNING_RATE: f32 = 0.05;
/// Part of the velocity that a step keeps.
pub const MOMENTUM: f32 = 0.9;

const fn layer_params(layer: usize) -> usize {
    (LAYERS[layer].0 + 1) * LAYERS[layer].1
}

/// One rank's copy of the network. `params` and `velocity` are the whole training state; `grads` is scratch of a step.
#[derive(Clone, PartialEq, Debug)]
pub struct Network {
    /// What is learned; [`PARAMS`] values, the same on every rank after each step.
    pub params: Vec<f32>,
    /// The running direction of the descent; [`PARAMS`] values, the same on every rank after each step.
    pub velocity: Vec<f32>,
    /// The mean gradient over this rank's shard after [`Network::learn`]; all-reduce it with `avg` before
    /// [`Network::descend`].
    pub grads: Vec<f32>,
}

impl Network {
    /// A fresh network: weights uniform in `±sqrt(6 / inputs)` (He et al., ICCV 2015), biases zero.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut network = Self::zeroed();
        // The sampling uses the streams from 0 up, one per pass.
        let mut random = Random::new(seed, u64::MAX);
        let mut rest = network.params.as_mut_slice();
        for (inputs, outputs) in LAYERS {
            let (layer, after) = rest.split_at_mut((inputs + 1) * outputs);
            let bound = (6.0 / inputs as f32).sqrt();
            layer[..inputs * outputs].fill_with(|| random.signed_unit() * bound);
            rest = after;
        }
        network
    }

    /// A network of zeros: what a newcomer holds before the state of its seat arrives. It cannot learn by itself.
    #[must_use]
    pub fn zeroed() -> Self {
        Self { params: vec![0.0; PARAMS], velocity: vec![0.0; PARAMS], grads: vec![0.0; PARAMS] }
    }

    /// Puts the mean gradient over `shard` (indices into `images`) into `grads` and returns the mean loss there.
    ///
    /// # Panics
    /// When the shard is empty or an index is outside.
    pub fn learn(&mut self, images: &[Image], shard: &[usize]) -> f32 {
        assert!(!shard.is_empty(), "an empty shard has no mean");
        self.grads.fill(0.0);
        let share = 1.0 / shard.len() as f32;
        let mut loss = 0.0;
        for &index in shard {
            loss += back(&self.params, &images[index], share, &mut self.grads);
        }
        loss * share
    }

    /// One step of the descent along `grads`, which by now is the mean over all ranks.
    pub fn descend(&mut self) {
        for ((param, velocity), grad) in self.params.iter_mut().zip(&mut self.velocity).zip(&self.grads) {
            *velocity = MOMENTUM * *velocity + grad;
            *param -= LEARNING_RATE * *velocity;
        }
    }
}

/// Part of `images`, in `[0, 1]`, whose digit the network finds most likely; 0 for no images.
///
/// # Panics
/// When there are not [`PARAMS`] parameters.
#[must_use]
pub fn accuracy(params: &[f32], images: &[Image]) -> f64 {
    assert_eq!(params.len(), PARAMS, "parameters of another network");
    let right = images.iter().filter(|image| most_likely(params, image) == usize::from(image.digit)).count();
    right as f64 / images.len().max(1) as f64
}

fn most_likely(params: &[f32], image: &Image) -> usize {
    let chances = forward(params, &image.pixels).chances;
    (1..CLASSES).fold(0, |best, digit| if chances[digit] > chances[best] { digit } else { best })
}

/// 64 bits that tell two parameter vectors apart: FNV-1a over their bytes, little-endian. Prints as 16 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ParamsHash(pub u64);

impl ParamsHash {
    /// The hash of `params`; different bits (`0.0` and `-0.0`, say) give different hashes but for chance.
    #[must_use]
    pub fn of(params: &[f32]) -> Self {
        Self(fnv1a(params.iter().flat_map(|param| param.to_bits().to_le_bytes())))
    }
}

impl std::str::FromStr for ParamsHash {
    type Err = std::num::ParseIntError;

    /// Reads what `Display` prints, and shorter or upper-case spellings of it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

impl std::fmt::Display for ParamsHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What each layer gave for one image.
struct Activations {
    first: [f32; HIDDEN_FIRST],
    second: [f32; HIDDEN_SECOND],
    /// Softmax of the last layer.
    chances: [f32; CLASSES],
}

fn forward(params: &[f32], pixels: &[f32; PIXELS]) -> Activations {
    let [one, two, three] = layers(params);
    let mut seen = Activations { first: [0.0; _], second: [0.0; _], chances: [0.0; _] };
    dense(one, pixels, &mut seen.first);
    relu(&mut seen.first);
    dense(two, &seen.first, &mut seen.second);
    relu(&mut seen.second);
    dense(three, &seen.second, &mut seen.chances);
    softmax(&mut seen.chances);
    seen
}

/// Adds `share` times the gradient of one image's loss to `grads`; returns the loss.
fn back(params: &[f32], image: &Image, share: f32, grads: &mut [f32]) -> f32 {
    let seen = forward(params, &image.pixels);
    let [_, two, three] = layers(params);
    let (one_grads, rest) = grads.split_at_mut(layer_params(0));
    let (two_grads, three_grads) = rest.split_at_mut(layer_params(1));
    let digit = usize::from(image.digit);

    let mut delta = seen.chances.map(|chance| chance * share);
    delta[digit] -= share;
    dense_grads(three_grads, &seen.second, &delta);
    let mut second_delta = [0.0; HIDDEN_SECOND];
    dense_back(three, &delta, &seen.second, &mut second_delta);
    dense_grads(two_grads, &seen.first, &second_delta);
    let mut first_delta = [0.0; HIDDEN_FIRST];
    dense_back(two, &second_delta, &seen.first, &mut first_delta);
    dense_grads(one_grads, &image.pixels, &first_delta);

    // The loss is only shown. Nothing that is learned depends on it, so the library's logarithm may differ in the
    // last bit between machines. The floor keeps a hopeless image from printing infinity.
    -seen.chances[digit].max(f32::MIN_POSITIVE).ln()
}

fn layers(params: &[f32]) -> [&[f32]; 3] {
    let (one, rest) = params.split_at(layer_params(0));
    let (two, three) = rest.split_at(layer_params(1));
    [one, two, three]
}

/// `output = biases + input * weights`. The inner loop runs over outputs: each is one sum in input order, and the
/// compiler may still compute several outputs at once.
fn dense(layer: &[f32], input: &[f32], output: &mut [f32]) {
    let (weights, biases) = layer.split_at(input.len() * output.len());
    output.copy_from_slice(biases);
    for (row, &value) in weights.chunks_exact(output.len()).zip(input) {
        for (sum, &weight) in output.iter_mut().zip(row) {
            *sum += value * weight;
        }
    }
}

/// Adds to a layer's gradients what an image with this `input` and this `delta` at the output gives.
fn dense_grads(grads: &mut [f32], input: &[f32], delta: &[f32]) {
    let (weights, biases) = grads.split_at_mut(input.len() * delta.len());
    for (row, &value) in weights.chunks_exact_mut(delta.len()).zip(input) {
        for (grad, &step) in row.iter_mut().zip(delta) {
            *grad += value * step;
        }
    }
    for (grad, &step) in biases.iter_mut().zip(delta) {
        *grad += step;
    }
}

/// Carries `delta` from the output of a layer back to its input, where a relu gave `input`.
fn dense_back(layer: &[f32], delta: &[f32], input: &[f32], input_delta: &mut [f32]) {
    for ((row, &value), target) in layer.chunks_exact(delta.len()).zip(input).zip(input_delta) {
        *target = if value > 0.0 { dot(row, delta) } else { 0.0 };
    }
}

/// Eight running sums, added up in a fixed order: fast without leaving the order to the compiler.
fn dot(left: &[f32], right: &[f32]) -> f32 {
    let (left, left_rest) = left.as_chunks::<8>();
    let (right, right_rest) = right.as_chunks::<8>();
    let mut sums = [0.0_f32; 8];
    for (a, b) in left.iter().zip(right) {
        for (sum, (x, y)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += x * y;
        }
    }
    let [a, b, c, d, e, f, g, h] = sums;
    let whole = ((a + b) + (c + d)) + ((e + f) + (g + h));
    left_rest.iter().zip(right_rest).fold(whole, |sum, (x, y)| sum + x * y)
}

fn relu(values: &mut [f32]) {
    for value in values {
        *value = if *value > 0.0 { *value } else { 0.0 };
    }
}

fn softmax(values: &mut [f32; CLASSES]) {
    let highest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for value in values.iter_mut() {
        *value = exp_below_one(*value - highest);
        sum += *value;
    }
    for value in values {
        *value /= sum;
    }
}

/// `e^x` for `x <= 0` within 2 units in the last place; 0 below -87. NaN stays NaN.
///
/// Own, because the library's differs in the last bit between platforms, and these bits reach the parameters.
fn exp_below_one(x: f32) -> f32 {
    // ln 2 in two parts: the high one has few bits, so that `halvings * LN_2_HIGH` is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    if x < -87.0 {
        return 0.0;
    }
    // x = -halvings * ln 2 + rest with |rest| <= ln 2 / 2; the cast turns NaN into 0, and `rest` keeps it.
    let halvings = (0.5 - x * std::f32::consts::LOG2_E) as i32;
    let rest = x + halvings as f32 * LN_2_HIGH + halvings as f32 * LN_2_LOW;
    // The Taylor series, Horner's way; the first term left out is below 2^-27.
    let mut series = 1.0 / 5_040.0;
    for term in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = series * rest + term;
    }
    series * f32::from_bits(((127 - halvings) as u32) << 23)
}

#[cfg(test)]
mod tests;
