//! Who does not hold the key: bytes of any kind at every TCP listener. Nobody learns more than a nonce.

use std::net::{SocketAddr, TcpStream};

use phalanx::auth::{Hello, JobKey, Purpose};
use phalanx::core::ids::MemberId;
use phalanx::sim::random::Random;

use crate::line::{NONCE_BYTES, connect, heard_to_the_end, hello, last_words, prove, throw};
use crate::toll::Toll;

const WRONG_KEY: JobKey = JobKey::from_bytes([0xa5; 32]);
/// First bytes of a proof, which anybody can know.
const MARK: &[u8; 4] = b"PHA\x01";
const PROOF_BYTES: usize = 85;

/// A listener and what it expects.
#[derive(Clone, Copy)]
pub struct Door {
    pub address: SocketAddr,
    pub hello: Hello,
}

/// Connections that never say enough. More of them than a listener keeps.
#[derive(Default)]
pub struct Silent(Vec<(TcpStream, bool)>);

impl Silent {
    /// Opens some at every door; every third says one byte now and then.
    pub fn open(&mut self, doors: &[Door], each: usize, toll: &mut Toll) {
        for door in doors {
            for one in 0..each {
                self.0.push((connect(door.address), one % 3 == 0));
            }
            toll.add("stranger: silent or one byte at a time", each as u64);
        }
    }

    pub fn say_a_byte(&mut self) {
        for (stream, speaks) in &mut self.0 {
            *speaks = *speaks && throw(stream, &MARK[..1]);
        }
    }

    /// Whoever is still there was told one nonce.
    pub fn end(self) {
        for (stream, _) in self.0 {
            assert!(last_words(stream).len() <= NONCE_BYTES, "a silent stranger is told more than a nonce");
        }
    }
}

/// One stranger of a random kind. `recorded` is a proof that was good once.
pub fn attack(door: &Door, recorded: &[u8], random: &mut Random, toll: &mut Toll) {
    let noise =
        |random: &mut Random, bytes: u64| -> Vec<u8> { (0..bytes).map(|_| random.bits() as u8).collect() };
    let (kind, bytes) = match random.below(8) {
        0 => {
            let bytes = random.between(1, 600);
            ("stranger: random bytes", noise(random, bytes))
        }
        1 => {
            let rest = noise(random, PROOF_BYTES as u64 - 4);
            ("stranger: a proof of random bytes", [&MARK[..], &rest].concat())
        }
        2 => ("stranger: a recorded proof", recorded.to_vec()),
        3 => {
            let mut proof = recorded.to_vec();
            let at = random.below(proof.len() as u64) as usize;
            proof[at] ^= 1 << random.below(8);
            ("stranger: a recorded proof, one bit changed", proof)
        }
        4 => {
            let part = random.below(PROOF_BYTES as u64) as usize;
            ("stranger: part of a proof, then the end", recorded[..part.min(recorded.len())].to_vec())
        }
        5 => {
            let bytes = random.between(10_000, 200_000);
            ("stranger: far more than a proof", noise(random, bytes))
        }
        6 => {
            let frame = [&u32::MAX.to_le_bytes()[..], &noise(random, 200)].concat();
            ("stranger: a frame of 4 GiB, without a proof", frame)
        }
        _ => return wrong_key(door, random, toll),
    };
    let mut stream = connect(door.address);
    throw(&mut stream, &bytes);
    toll.add(kind, 1);
    match random.below(3) {
        // Without a good-bye: half of what was sent may never be read.
        0 => drop(stream),
        1 if bytes.len() >= PROOF_BYTES => assert_one_nonce(&heard_to_the_end(&mut stream)),
        _ => assert_one_nonce(&last_words(stream)),
    }
}

fn wrong_key(door: &Door, random: &mut Random, toll: &mut Toll) {
    // Another key, or the right words for another door.
    let claimed = match random.below(3) {
        0 => door.hello,
        1 => hello(Purpose::DataShm, door.hello.member, door.hello.receiver),
        _ => hello(door.hello.purpose, door.hello.member, MemberId(random.bits())),
    };
    let heard = prove(door.address, &WRONG_KEY, claimed).expect_err("who has another key is let in");
    assert_one_nonce(&heard);
    toll.add("stranger: another key", 1);
}

fn assert_one_nonce(heard: &[u8]) {
    assert!(heard.len() <= NONCE_BYTES, "a stranger is told {} bytes", heard.len());
}
