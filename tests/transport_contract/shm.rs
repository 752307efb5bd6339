//! The world of shared memory within one host.

use std::time::Duration;

use phalanx::auth::JobKey;
use phalanx::core::ids::MemberId;
use phalanx::transport::shm::{ShmTransport, TOKENS, prove_key};
use phalanx::transport::{Peer, Transport};

use crate::mesh::{Seat, World};

const HOST: u64 = 1;
const FIRST_TOKEN: usize = 7;

struct ShmSeat {
    transport: ShmTransport,
    poll: mio::Poll,
    member: MemberId,
}

impl ShmSeat {
    fn new(member: MemberId, key: u8) -> Self {
        let poll = mio::Poll::new().unwrap();
        let registry = poll.registry().try_clone().unwrap();
        let prove = prove_key(JobKey::from_bytes([key; 32]), member);
        let transport = ShmTransport::new(member, HOST, prove, registry, FIRST_TOKEN).unwrap();
        Self { transport, poll, member }
    }
}

impl Seat for ShmSeat {
    fn transport(&mut self) -> &mut dyn Transport {
        &mut self.transport
    }

    fn peer(&self) -> Peer {
        Peer { member: self.member, host: HOST, tcp: None, shm: Some(self.transport.address()) }
    }

    fn park(&mut self, timeout: Duration) -> bool {
        let mut events = mio::Events::with_capacity(4);
        self.poll.poll(&mut events, Some(timeout)).unwrap();
        let own = FIRST_TOKEN..FIRST_TOKEN + TOKENS;
        events.iter().all(|event| own.contains(&event.token().0)) && !events.is_empty()
    }
}

#[derive(Default)]
pub struct ShmWorld;

impl World for ShmWorld {
    fn seat(&self, member: MemberId) -> Box<dyn Seat> {
        Box::new(ShmSeat::new(member, 42))
    }

    fn impostor(&self, member: MemberId) -> Result<Box<dyn Seat>, &'static str> {
        Ok(Box::new(ShmSeat::new(member, 43)))
    }
}
