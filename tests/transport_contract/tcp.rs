//! The world of TCP links over the loopback interface.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use phalanx::auth::JobKey;
use phalanx::core::ids::MemberId;
use phalanx::transport::tcp::{TcpConfig, TcpTransport};
use phalanx::transport::{Peer, Transport};

use crate::mesh::{Seat, World};

pub const KEY: JobKey = JobKey::from_bytes([42; 32]);

pub struct TcpSeat {
    pub transport: TcpTransport,
    poll: mio::Poll,
    member: MemberId,
    start: Instant,
}

impl TcpSeat {
    pub fn new(member: MemberId, key: JobKey, bind: IpAddr) -> Self {
        let poll = mio::Poll::new().unwrap();
        let config = TcpConfig { me: member, key, bind, ports: 0..=0, interface: None };
        let transport = TcpTransport::new(config, poll.registry(), 7).unwrap();
        Self { transport, poll, member, start: Instant::now() }
    }
}

impl Seat for TcpSeat {
    fn transport(&mut self) -> &mut dyn Transport {
        self.transport.set_now(u64::try_from(self.start.elapsed().as_micros()).unwrap());
        &mut self.transport
    }

    fn peer(&self) -> Peer {
        Peer { member: self.member, host: 0, tcp: Some(self.transport.address()), shm: None }
    }

    fn park(&mut self, timeout: Duration) -> bool {
        let mut events = mio::Events::with_capacity(4);
        self.poll.poll(&mut events, Some(timeout)).unwrap();
        events.iter().all(|event| event.token() == mio::Token(7)) && !events.is_empty()
    }
}

#[derive(Default)]
pub struct TcpWorld;

impl World for TcpWorld {
    fn seat(&self, member: MemberId) -> Box<dyn Seat> {
        Box::new(TcpSeat::new(member, KEY, IpAddr::V4(Ipv4Addr::LOCALHOST)))
    }

    fn impostor(&self, member: MemberId) -> Result<Box<dyn Seat>, &'static str> {
        Ok(Box::new(TcpSeat::new(member, JobKey::from_bytes([43; 32]), IpAddr::V4(Ipv4Addr::LOCALHOST))))
    }
}

#[derive(Default)]
pub struct TcpV6World;

impl World for TcpV6World {
    fn missing(&self) -> Option<String> {
        let bound = std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0));
        bound.err().map(|cause| format!("this machine has no IPv6: ::1 cannot be bound, {cause}"))
    }

    fn seat(&self, member: MemberId) -> Box<dyn Seat> {
        Box::new(TcpSeat::new(member, KEY, IpAddr::V6(Ipv6Addr::LOCALHOST)))
    }

    fn impostor(&self, member: MemberId) -> Result<Box<dyn Seat>, &'static str> {
        Ok(Box::new(TcpSeat::new(member, JobKey::from_bytes([43; 32]), IpAddr::V6(Ipv6Addr::LOCALHOST))))
    }
}
