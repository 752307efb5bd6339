//! What anybody who can reach the listener may do to a TCP transport: nothing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[allow(dead_code, reason = "shared with the contract suite, which uses all of it")]
#[path = "transport_contract/mesh.rs"]
mod mesh;
#[allow(dead_code, reason = "shared with the contract suite, which uses all of it")]
#[path = "transport_contract/tcp.rs"]
mod tcp;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};

use phalanx::auth::{Handshake, Hello, JobKey, Purpose};
use phalanx::core::ids::{Epoch, MemberId};
use phalanx::core::units::SLOT_BYTES;
use phalanx::transport::tcp::PROVE_WITHIN_US;
use phalanx::transport::{LinkEvent, Peer, Transport};

use mesh::{Message, PATIENCE, Random, offer, receive};
use tcp::{KEY, TcpSeat};

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const GUEST: MemberId = MemberId(9);

/// Two members with a live link, and room in the table for a guest that the test plays by hand.
struct Scene {
    a: TcpSeat,
    b: TcpSeat,
    events: Vec<LinkEvent>,
    sent: u32,
}

impl Scene {
    fn new() -> Self {
        let [a, b] = [1, 2].map(|m| TcpSeat::new(MemberId(m), KEY, LOCAL));
        let mut scene = Self { a, b, events: Vec::new(), sent: 0 };
        let tcp = |seat: &TcpSeat| Some(seat.transport.address());
        let line = |member, tcp| Peer { member, host: 0, tcp, shm: None };
        let guest = line(GUEST, None);
        let (to_a, to_b) = (line(MemberId(1), tcp(&scene.a)), line(MemberId(2), tcp(&scene.b)));
        scene.a.transport.open(Epoch(1), &[to_b, guest.clone()]);
        scene.b.transport.open(Epoch(1), &[to_a, guest]);
        scene.exchange();
        scene
    }

    fn address(&self) -> SocketAddr {
        self.b.transport.address()
    }

    fn turn(&mut self) {
        self.a.transport.progress(&mut self.events);
        self.b.transport.progress(&mut self.events);
    }

    /// One message from a to b: the live link is alive.
    #[track_caller]
    fn exchange(&mut self) {
        self.sent += 1;
        let next = Message { epoch: 1, tag: self.sent, bytes: self.sent as usize % 5000 };
        self.until(|scene| offer(&mut scene.a.transport, MemberId(2), &next).then_some(()));
        let got = self.until(|scene| receive(&mut scene.b.transport, MemberId(1)));
        assert_eq!(got, next);
    }

    #[track_caller]
    fn until<T>(&mut self, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let start = std::time::Instant::now();
        loop {
            if let Some(value) = done(self) {
                return value;
            }
            assert!(start.elapsed() < PATIENCE, "no end of waiting; events {:?}", self.events);
            self.turn();
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address()).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// Everything that comes on a stream until it is closed.
    fn read_to_end(&mut self, stream: &mut TcpStream) -> Vec<u8> {
        let mut all = Vec::new();
        self.until(|_| {
            let mut bytes = [0; 64];
            match stream.read(&mut bytes) {
                Ok(0) => Some(()),
                Ok(got) => {
                    all.extend_from_slice(&bytes[..got]);
                    None
                }
                Err(error) => (error.kind() != std::io::ErrorKind::WouldBlock).then_some(()),
            }
        });
        all
    }

    /// The driver of b tries to sleep; who looks for a message of the guest is nobody.
    fn fault_before_sleep(&mut self) -> Option<()> {
        self.b.transport.arm();
        self.b.transport.disarm();
        (!self.events.is_empty()).then_some(())
    }

    /// A guest that has proven itself; also what it sent for that.
    fn guest(&mut self, key: &JobKey) -> (TcpStream, Vec<u8>) {
        let hello = Hello { purpose: Purpose::DataTcp, member: GUEST, receiver: MemberId(2) };
        let mut handshake = Handshake::connect(key, hello).unwrap();
        let mut stream = self.connect();
        let mut proof = Vec::new();
        self.until(|_| {
            let mut bytes = [0; 32];
            if let Ok(got) = stream.read(&mut bytes) {
                assert!(got > 0, "turned away");
                handshake.handle_bytes(&bytes[..got]).unwrap();
            }
            if let Some(own) = handshake.poll_bytes() {
                stream.write_all(&own).unwrap();
                proof = own;
            }
            handshake.peer().map(|_| ())
        });
        (stream, proof)
    }
}

#[test]
fn random_bytes_get_one_nonce_and_disturb_nothing() {
    let mut scene = Scene::new();
    let mut random = Random(0x5eed);
    for round in 0..200 {
        let mut stream = scene.connect();
        let mut bytes: Vec<u8> = (0..random.below(400)).map(|_| random.next() as u8).collect();
        if round % 2 == 0 {
            bytes.splice(0..0, *b"PHA\x01");
            bytes.resize(200, 7);
        }
        // A reset of the other side may come in between; that is one of its ways to refuse.
        let _ = stream.write_all(&bytes);
        scene.exchange();
        if bytes.len() < 85 {
            drop(stream);
        } else {
            assert!(scene.read_to_end(&mut stream).len() <= 32, "a stranger is told more than a nonce");
        }
    }
    scene.until(|scene| (scene.b.transport.refused() == 200).then_some(()));
    scene.exchange();
    assert_eq!(scene.events, vec![], "strangers are no news for the coordinator");
}

#[test]
fn silent_strangers_are_bounded_and_expire() {
    let mut scene = Scene::new();
    let mut silent: Vec<TcpStream> = Vec::new();
    for _ in 0..300 {
        silent.push(scene.connect());
        scene.turn();
    }
    scene.exchange();
    scene.until(|scene| (scene.b.transport.refused() == 300 - 256).then_some(()));
    assert_eq!(scene.read_to_end(&mut silent.remove(0)).len(), 32, "the oldest had to go");
    // Who holds the key gets in all the same.
    let (mut guest, _) = scene.guest(&KEY);
    scene.b.transport.set_now(PROVE_WITHIN_US + 1);
    let mut last = silent.pop().unwrap();
    assert_eq!(scene.read_to_end(&mut last).len(), 32, "and in time the rest go");
    assert_eq!(scene.b.transport.refused(), 300, "all of them, and nobody else");
    let one = Message { epoch: 1, tag: 2, bytes: 0 };
    guest.write_all(&one.header().to_wire()).unwrap();
    assert_eq!(scene.until(|scene| receive(&mut scene.b.transport, GUEST)), one);
    scene.exchange();
    assert_eq!(scene.events, vec![]);
}

#[test]
fn a_recorded_proof_opens_nothing() {
    let mut scene = Scene::new();
    let (_guest, proof) = scene.guest(&KEY);
    let mut replay = scene.connect();
    replay.write_all(&proof).unwrap();
    assert_eq!(scene.read_to_end(&mut replay).len(), 32);
    assert_eq!(scene.b.transport.refused(), 1);
    assert_eq!(scene.events, vec![]);
}

#[test]
fn a_member_that_sends_no_message_is_one_fault() {
    // Random bytes; a header of 4 GiB; a header one byte too long.
    let header = |payload_bytes: u32| {
        let mut header = Message { epoch: 1, tag: 1, bytes: 0 }.header();
        header.payload_bytes = payload_bytes;
        header.to_wire().to_vec()
    };
    let mut random = Random(1);
    let noise: Vec<u8> = (0..1000).map(|_| random.next() as u8).collect();
    for bytes in [noise, header(u32::MAX), header(SLOT_BYTES as u32 + 1)] {
        let mut scene = Scene::new();
        let (mut guest, _) = scene.guest(&KEY);
        let good = Message { epoch: 1, tag: 3, bytes: 0 };
        guest.write_all(&good.header().to_wire()).unwrap();
        guest.write_all(&bytes).unwrap();
        let got = scene.until(|scene| receive(&mut scene.b.transport, GUEST));
        assert_eq!(got, good, "what came before was whole");
        scene.read_to_end(&mut guest);
        scene.exchange();
        assert!(scene.b.transport.peek(GUEST).is_none());
        (0..10).for_each(|_| scene.turn());
        let [LinkEvent::Fault { member, cause }] = &scene.events[..] else { panic!("{:?}", scene.events) };
        assert!(*member == GUEST && cause.contains("data message"), "{cause}");
    }
}

#[test]
fn a_second_connection_replaces_the_first_and_its_half_message() {
    let mut scene = Scene::new();
    let (mut first, _) = scene.guest(&KEY);
    let whole = Message { epoch: 1, tag: 4, bytes: 0 };
    let half = Message { epoch: 1, tag: 5, bytes: 1000 };
    first.write_all(&whole.header().to_wire()).unwrap();
    first.write_all(&half.header().to_wire()).unwrap();
    first.write_all(&[0; 999]).unwrap();
    scene.until(|scene| scene.b.transport.peek(GUEST));
    // Its half message is read too before the second one comes.
    (0..50).for_each(|_| scene.turn());
    let (mut second, _) = scene.guest(&KEY);
    scene.read_to_end(&mut first);
    let last = Message { epoch: 1, tag: 6, bytes: 0 };
    second.write_all(&last.header().to_wire()).unwrap();
    for expected in [whole, last] {
        assert_eq!(scene.until(|scene| receive(&mut scene.b.transport, GUEST)), expected);
    }
    assert_eq!(scene.events, vec![]);
}

#[test]
fn a_link_that_breaks_between_the_living_comes_back() {
    let mut scene = Scene::new();
    let (mut guest, _) = scene.guest(&KEY);
    let one = |tag| Message { epoch: 1, tag, bytes: 0 };
    guest.write_all(&one(1).header().to_wire()).unwrap();
    drop(guest);
    assert_eq!(scene.until(|scene| receive(&mut scene.b.transport, GUEST)), one(1));
    scene.until(|scene| (scene.events.len() == 1).then_some(()));
    let (mut again, _) = scene.guest(&KEY);
    again.write_all(&one(2).header().to_wire()).unwrap();
    assert_eq!(scene.until(|scene| receive(&mut scene.b.transport, GUEST)), one(2));
    drop(again);
    scene.until(|scene| (scene.events.len() == 2).then_some(()));
}

/// Bytes and end come as one event, and nobody waits for the member: the short read of the bytes was taken for all
/// there was, and the end was seen only when somebody next looked for a message.
#[test]
fn a_link_that_ends_right_behind_its_last_bytes_is_a_fault() {
    let half = Message { epoch: 1, tag: 5, bytes: 1000 }.header().to_wire();
    for bytes in [&half[..10], &half[..], &[]] {
        let mut scene = Scene::new();
        let (mut guest, _) = scene.guest(&KEY);
        scene.exchange();
        // On this interface both are with the receiver before the next line runs.
        guest.write_all(bytes).unwrap();
        drop(guest);
        scene.until(Scene::fault_before_sleep);
        // The same where the end comes with the proof.
        scene.events.clear();
        let hello = Hello { purpose: Purpose::DataTcp, member: GUEST, receiver: MemberId(2) };
        let mut handshake = Handshake::connect(&KEY, hello).unwrap();
        let mut again = scene.connect();
        let mut nonce = [0; 32];
        scene.until(|_| again.read_exact(&mut nonce).ok());
        handshake.handle_bytes(&nonce).unwrap();
        again.write_all(&[&handshake.poll_bytes().unwrap()[..], bytes].concat()).unwrap();
        again.shutdown(std::net::Shutdown::Write).unwrap();
        scene.until(Scene::fault_before_sleep);
    }
}

#[test]
fn a_revoked_member_that_proves_itself_gets_no_answer() {
    let mut scene = Scene::new();
    let (mut first, _) = scene.guest(&KEY);
    scene.b.transport.revoke(&[GUEST]);
    assert!(scene.read_to_end(&mut first).is_empty());
    let hello = Hello { purpose: Purpose::DataTcp, member: GUEST, receiver: MemberId(2) };
    let mut handshake = Handshake::connect(&KEY, hello).unwrap();
    let mut again = scene.connect();
    let mut nonce = [0; 32];
    scene.until(|_| again.read_exact(&mut nonce).ok());
    handshake.handle_bytes(&nonce).unwrap();
    again.write_all(&handshake.poll_bytes().unwrap()).unwrap();
    assert!(scene.read_to_end(&mut again).is_empty(), "an answer to a revoked member");
    assert_eq!(scene.b.transport.refused(), 1);
    assert_eq!(scene.events, vec![]);
}

#[test]
fn a_message_read_in_part_is_not_slept_over() {
    let mut scene = Scene::new();
    let (mut guest, _) = scene.guest(&KEY);
    let wire = |bytes: usize| {
        let mut header = Message { epoch: 1, tag: 1, bytes: 0 }.header();
        header.payload_bytes = u32::try_from(bytes).unwrap();
        [&header.to_wire()[..], &vec![0; bytes]].concat()
    };
    // The last of these is the guess for the next; the others make the kernel's window wide enough for all of it.
    for bytes in [SLOT_BYTES; 64].into_iter().chain([140_000]) {
        let all = wire(bytes);
        let mut sent = 0;
        scene.until(|scene| {
            sent += guest.write(&all[sent..]).unwrap_or(0);
            scene.b.transport.peek(GUEST)
        });
        scene.b.transport.consume(GUEST);
    }
    while !scene.b.transport.arm() {}
    let all = wire(200_000);
    assert_eq!(guest.write(&all).unwrap(), all.len(), "the kernel takes it all");
    // One edge, consumed by one read, which ends where the guess ends.
    scene.b.transport.progress(&mut scene.events);
    assert!(!scene.b.transport.arm(), "the rest lies in the kernel and makes no edge");
    assert!(scene.b.transport.peek(GUEST).is_some());
}

#[test]
fn attempts_at_a_member_that_hangs_up_are_bounded_and_one_fault() {
    let mut scene = Scene::new();
    let listener = std::net::TcpListener::bind((LOCAL, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let line = Peer { member: GUEST, host: 0, tcp: Some(address), shm: None };
    for epoch in [2, 3] {
        scene.events.clear();
        let mut attempts = 0;
        scene.a.transport.open(Epoch(epoch), std::slice::from_ref(&line));
        for _ in 0..1000 {
            assert!(scene.a.transport.reserve(GUEST, 8).is_none());
            scene.a.transport.progress(&mut scene.events);
            attempts += usize::from(listener.accept().is_ok());
        }
        assert_eq!(attempts, 4, "attempts in one epoch");
        let [LinkEvent::Fault { member: GUEST, cause }] = &scene.events[..] else {
            panic!("{:?}", scene.events)
        };
        assert!(cause.contains("handshake") || cause.contains("reset"), "{cause}");
    }
}

#[test]
fn a_closed_port_is_one_fault() {
    let mut scene = Scene::new();
    let gone = TcpSeat::new(GUEST, KEY, LOCAL).transport.address();
    let line = Peer { member: GUEST, host: 0, tcp: Some(gone), shm: None };
    for epoch in [2, 3] {
        scene.events.clear();
        scene.a.transport.open(Epoch(epoch), std::slice::from_ref(&line));
        for _ in 0..300 {
            assert!(scene.a.transport.reserve(GUEST, 8).is_none());
            scene.a.transport.progress(&mut scene.events);
        }
        let [LinkEvent::Fault { member: GUEST, cause }] = &scene.events[..] else {
            panic!("{:?}", scene.events)
        };
        assert!(cause.contains("cannot connect"), "{cause}");
        let may_park = (0..2).any(|_| scene.a.transport.arm());
        assert!(may_park, "nothing goes on any more, once the opening has been told");
    }
}
