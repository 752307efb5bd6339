//! What a program may do with the public types across threads. A field that takes such a promise back is a breaking
//! change: here it fails to compile.

use phalanx::config::{Config, ConfigError};
use phalanx::core::error::{CallError, OpError};
use phalanx::launch::{LaunchError, World, WorldSpec};
use phalanx::{
    Buffer, Builder, Communicator, Error, Failure, Rank, RawWork, ReduceOp, Regions, RegionsMut, Step, Work,
};

fn sends<T: Send>() {}
fn shares<T: Sync>() {}
fn lasts<T: 'static>() {}

/// A communicator is moved to the thread that calls it, together with its buffers and its open ops.
#[test]
fn what_a_program_holds_goes_to_another_thread() {
    sends::<Communicator>();
    sends::<Buffer<f32>>();
    sends::<Work<Buffer<f32>>>();
    sends::<Step<'_>>();
    sends::<Regions<'_>>();
    sends::<RegionsMut<'_>>();
    sends::<RawWork>();
    sends::<Builder>();
    sends::<Config>();
    sends::<WorldSpec>();
    sends::<World>();
}

/// Another thread may look on: every change needs the one `&mut`.
#[test]
fn what_a_program_holds_is_shared_to_look_at() {
    shares::<Communicator>();
    shares::<Buffer<f32>>();
    shares::<Work<Buffer<f32>>>();
    shares::<Step<'_>>();
    shares::<Regions<'_>>();
    shares::<RegionsMut<'_>>();
    shares::<RawWork>();
    shares::<Builder>();
    shares::<Config>();
    shares::<WorldSpec>();
}

/// Errors go up through threads and boxes, as callers of `?` expect.
#[test]
fn errors_go_anywhere() {
    fn is_error<E: std::error::Error + Send + Sync + 'static>() {}
    is_error::<Error>();
    is_error::<Failure<Buffer<f32>>>();
    is_error::<OpError>();
    is_error::<CallError>();
    is_error::<ConfigError>();
    is_error::<LaunchError>();
    lasts::<Communicator>();
}

#[test]
fn names_are_plain_values() {
    fn is_plain<T: Copy + Send + Sync + Eq + std::hash::Hash + std::fmt::Debug + 'static>() {}
    is_plain::<Rank>();
    is_plain::<ReduceOp>();
}
