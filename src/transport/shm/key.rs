//! The proof of the job key as a connection of this transport steps it.

use phalanx_core::ids::MemberId;

use super::{Prove, ProveFactory, Side};
use crate::auth::{Handshake, Hello, JobKey, Purpose};

/// Makes proofs that the member `me` holds `key`, and believes whoever proves the same.
#[must_use]
pub fn prove_key(key: JobKey, me: MemberId) -> ProveFactory {
    Box::new(move |side| {
        let hello = |receiver| Hello { purpose: Purpose::DataShm, member: me, receiver };
        let begun = match side {
            Side::Connect(to) => Handshake::connect(&key, hello(to)),
            Side::Accept => Handshake::accept(&key, hello(me)),
        };
        begun.map(|shake| Box::new(KeyProof(shake)) as Box<dyn Prove>).map_err(|e| e.to_string())
    })
}

struct KeyProof(Handshake);

impl Prove for KeyProof {
    fn handle_bytes(&mut self, bytes: &[u8]) -> Result<(), String> {
        match self.0.handle_bytes(bytes) {
            Ok(taken) if taken == bytes.len() => Ok(()),
            Ok(_) => Err("the packet goes on after the proof".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn poll_bytes(&mut self) -> Option<Vec<u8>> {
        self.0.poll_bytes()
    }

    fn peer(&self) -> Option<MemberId> {
        self.0.peer().map(|hello| hello.member)
    }
}
