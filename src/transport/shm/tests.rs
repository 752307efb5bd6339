//! The contract of the transport, between transports of one process.

use super::*;
use phalanx_core::ids::{Attempt, ChunkId, CommId, OpId, OpSeq};
use phalanx_core::units::{LINK_SLOTS, SLOT_BYTES};
use phalanx_core::wire::Kind;

use crate::device::Block;

const HOST: u64 = 77;
/// Long enough for any machine; a test that waits so long has failed.
const DEADLINE: Duration = Duration::from_secs(30);

/// Each side says who it is, and is believed. The accepting end speaks first.
struct Claim {
    unsaid: Option<MemberId>,
    may_speak: bool,
    peer: Option<MemberId>,
}

impl Prove for Claim {
    fn handle_bytes(&mut self, bytes: &[u8]) -> Result<(), String> {
        let id: [u8; 8] = bytes.try_into().map_err(|_| format!("{} bytes are no claim", bytes.len()))?;
        (self.peer, self.may_speak) = (Some(MemberId(u64::from_le_bytes(id))), true);
        Ok(())
    }

    fn poll_bytes(&mut self) -> Option<Vec<u8>> {
        if self.may_speak { self.unsaid.take().map(|me| me.0.to_le_bytes().to_vec()) } else { None }
    }

    fn peer(&self) -> Option<MemberId> {
        self.peer.filter(|_| self.unsaid.is_none())
    }
}

fn claims(me: MemberId) -> ProveFactory {
    Box::new(move |side| match side {
        Side::Connect(MemberId(666)) => Err("no entropy".to_owned()),
        Side::Connect(_) => Ok(Box::new(Claim { unsaid: Some(me), may_speak: false, peer: None })),
        Side::Accept => Ok(Box::new(Claim { unsaid: Some(me), may_speak: true, peer: None })),
    })
}

/// A transport and the poll its driver would park in.
struct End {
    transport: ShmTransport,
    poll: mio::Poll,
    seen: Vec<LinkEvent>,
}

impl End {
    fn new(id: u64) -> Self {
        let poll = mio::Poll::new().unwrap();
        let registry = poll.registry().try_clone().unwrap();
        let transport = ShmTransport::new(MemberId(id), HOST, claims(MemberId(id)), registry, 10).unwrap();
        Self { transport, poll, seen: Vec::new() }
    }

    fn me(&self) -> MemberId {
        self.transport.me
    }

    fn peer(&self) -> Peer {
        Peer { member: self.me(), host: HOST, tcp: None, shm: Some(self.transport.address()) }
    }

    fn turn(&mut self) {
        self.transport.progress(&mut self.seen);
    }

    fn send(&mut self, to: MemberId, header: &Header, fill: u8) -> bool {
        let mut payload = Block::zeroed(header.payload_bytes as usize);
        payload.span().write(&vec![fill; header.payload_bytes as usize]);
        self.transport.post(to, header, payload.span())
    }

    /// The next message: its chunk and its bytes.
    fn take(&mut self, from: MemberId) -> Option<(u32, Vec<u8>)> {
        let arrival = self.transport.peek(from)?;
        let mut bytes = vec![0; arrival.payload.len()];
        arrival.payload.read(&mut bytes);
        self.transport.consume(from);
        Some((arrival.header.chunk.0, bytes))
    }

    /// Sleeps as a driver does; true: did not sleep or was woken.
    fn park(&mut self) -> bool {
        if !self.transport.arm() {
            return true;
        }
        let mut events = mio::Events::with_capacity(8);
        self.poll.poll(&mut events, Some(DEADLINE)).unwrap();
        self.transport.disarm();
        !events.is_empty()
    }
}

fn header(epoch: u64, chunk: u32, bytes: usize) -> Header {
    Header {
        kind: Kind::Partial,
        op: OpId { comm: CommId(0), seq: OpSeq(1) },
        attempt: Attempt(0),
        epoch: Epoch(epoch),
        chunk: ChunkId(chunk),
        signature: 9,
        payload_bytes: bytes as u32,
        stable: OpSeq(0),
        checksum: 0,
    }
}

/// Turns both until `done`.
fn turn_until(ends: &mut [&mut End], mut done: impl FnMut(&mut [&mut End]) -> bool) {
    let start = std::time::Instant::now();
    while !done(ends) {
        assert!(start.elapsed() < DEADLINE, "nothing happened");
        ends.iter_mut().for_each(|end| end.turn());
    }
}

/// Two members in epoch 1 with a link from the first to the second that stands and is empty.
fn linked() -> (End, End) {
    let (mut a, mut b) = (End::new(1), End::new(2));
    a.transport.open(Epoch(1), &[b.peer()]);
    b.transport.open(Epoch(1), &[a.peer()]);
    link(&mut a, &mut b, 1);
    (a, b)
}

/// Sends one message from `a` to `b` and takes it.
fn link(a: &mut End, b: &mut End, epoch: u64) {
    let (from, to) = (a.me(), b.me());
    let mut sent = false;
    turn_until(&mut [a, b], |ends| {
        sent = sent || ends[0].send(to, &header(epoch, 0, 0), 0);
        ends[1].take(from).is_some()
    });
}

fn is_fault_of(event: &LinkEvent, id: u64) -> bool {
    let LinkEvent::Fault { member, .. } = event;
    *member == MemberId(id)
}

#[test]
fn all_sizes_arrive_whole_and_in_order() {
    let (mut a, mut b) = linked();
    for round in 0..40u32 {
        for (n, bytes) in [0, 1, 63, 64, 65, 1024, 1025, 4096, SLOT_BYTES].into_iter().enumerate() {
            let (chunk, fill) = (round * 100 + n as u32, (round + n as u32) as u8);
            assert!(a.send(MemberId(2), &header(1, chunk, bytes), fill));
            assert!(a.transport.flushed(MemberId(2)));
            assert_eq!(b.take(MemberId(1)), Some((chunk, vec![fill; bytes])));
        }
    }
    assert_eq!(b.take(MemberId(1)), None);
    assert_eq!((a.seen, b.seen), (vec![], vec![]));
}

#[test]
fn both_directions_and_several_members_do_not_mix() {
    let (mut a, mut b, mut c) = (End::new(1), End::new(2), End::new(3));
    let peers = [a.peer(), b.peer(), c.peer()];
    for end in [&mut a, &mut b, &mut c] {
        // Its own entry in the table is no link.
        end.transport.open(Epoch(1), &peers);
    }
    assert!(a.transport.reserve(MemberId(1), 0).is_none());
    link(&mut a, &mut b, 1);
    link(&mut b, &mut a, 1);
    link(&mut c, &mut b, 1);
    assert!(a.send(MemberId(2), &header(1, 5, 3), 5) && c.send(MemberId(2), &header(1, 6, 4), 6));
    assert!(b.send(MemberId(1), &header(1, 7, 5), 7));
    assert_eq!(b.take(MemberId(3)), Some((6, vec![6; 4])));
    assert_eq!(b.take(MemberId(1)), Some((5, vec![5; 3])));
    assert_eq!(a.take(MemberId(2)), Some((7, vec![7; 5])));
    assert_eq!(a.take(MemberId(3)), None);
}

#[test]
fn a_full_link_refuses_and_recovers() {
    let (mut a, mut b) = linked();
    let sent = (0..).take_while(|chunk| a.send(MemberId(2), &header(1, *chunk, SLOT_BYTES), *chunk as u8));
    assert_eq!(sent.count(), LINK_SLOTS);
    assert!(a.transport.reserve(MemberId(2), SLOT_BYTES).is_none());
    assert_eq!(b.take(MemberId(1)), Some((0, vec![0; SLOT_BYTES])));
    let slot = a.transport.reserve(MemberId(2), SLOT_BYTES).unwrap();
    let again = a.transport.reserve(MemberId(2), SLOT_BYTES).unwrap();
    assert_eq!(slot.start(), again.start());
    slot.write(&vec![9; SLOT_BYTES]);
    a.transport.commit(MemberId(2), &header(1, 9, SLOT_BYTES));
    for chunk in [1, 2, 3, 9] {
        assert_eq!(b.take(MemberId(1)), Some((chunk, vec![chunk as u8; SLOT_BYTES])));
    }
}

#[test]
fn peek_repeats_and_consume_without_peek_takes_nothing() {
    let (mut a, mut b) = linked();
    assert!(a.send(MemberId(2), &header(1, 3, 8), 1) && a.send(MemberId(2), &header(1, 4, 8), 2));
    b.transport.consume(MemberId(1));
    let first = b.transport.peek(MemberId(1)).unwrap();
    assert_eq!(b.transport.peek(MemberId(1)).unwrap().payload.start(), first.payload.start());
    assert_eq!(b.take(MemberId(1)).unwrap().0, 3);
    assert_eq!(b.take(MemberId(1)).unwrap().0, 4);
}

#[test]
fn old_epochs_are_dropped_and_counted_and_new_ones_wait() {
    let (mut a, mut b) = linked();
    assert!(a.send(MemberId(2), &header(1, 1, 8), 1) && a.send(MemberId(2), &header(1, 2, SLOT_BYTES), 2));
    a.transport.open(Epoch(2), &[b.peer()]);
    assert!(a.send(MemberId(2), &header(2, 3, 8), 3));
    // The receiver still is in epoch 1 and may take one of the two.
    assert_eq!(b.take(MemberId(1)).unwrap().0, 1);
    b.transport.open(Epoch(2), &[a.peer()]);
    assert_eq!(b.take(MemberId(1)), Some((3, vec![3; 8])));
    assert_eq!(b.transport.stale(), 1);
    assert!(a.send(MemberId(2), &header(3, 4, 8), 4));
    assert_eq!(b.take(MemberId(1)), None);
    assert!(b.transport.arm(), "a message of the future is no reason to stay awake");
    b.transport.disarm();
    b.transport.open(Epoch(3), &[a.peer()]);
    assert!(!b.transport.arm());
    assert_eq!(b.take(MemberId(1)).unwrap().0, 4);
    assert_eq!(b.transport.stale(), 1);
}

#[test]
fn a_newcomer_may_connect_before_it_is_listed() {
    let (mut a, mut b) = (End::new(1), End::new(2));
    a.transport.open(Epoch(5), &[b.peer()]);
    let mut sent = false;
    turn_until(&mut [&mut a, &mut b], |ends| {
        sent = sent || ends[0].send(MemberId(2), &header(5, 8, 8), 8);
        sent
    });
    assert_eq!(b.take(MemberId(1)), None);
    b.transport.open(Epoch(5), &[a.peer()]);
    assert_eq!(b.take(MemberId(1)), Some((8, vec![8; 8])));
}

#[test]
fn the_revoked_are_never_heard_again() {
    let (mut a, mut b) = linked();
    assert!(a.send(MemberId(2), &header(1, 1, 8), 1));
    b.transport.revoke(&[MemberId(1)]);
    assert_eq!(b.take(MemberId(1)), None);
    assert!(b.transport.reserve(MemberId(1), 8).is_none());
    // It goes on writing into the abandoned segment, hears that it is out, and tries again.
    assert!(a.send(MemberId(2), &header(1, 2, 8), 2));
    turn_until(&mut [&mut a, &mut b], |ends| ends[0].seen.iter().any(|event| is_fault_of(event, 2)));
    a.seen.clear();
    a.transport.open(Epoch(2), &[b.peer()]);
    b.transport.open(Epoch(2), &[a.peer()]);
    assert!(!a.send(MemberId(2), &header(2, 3, 8), 3));
    turn_until(&mut [&mut a, &mut b], |ends| ends[0].seen.iter().any(|event| is_fault_of(event, 2)));
    assert_eq!(b.take(MemberId(1)), None);
    assert!(b.seen.is_empty() && b.transport.connections.is_empty() && b.transport.links.is_empty());
}

#[test]
fn who_leaves_the_table_is_revoked() {
    let (mut a, mut b) = linked();
    assert!(a.send(MemberId(2), &header(1, 1, 8), 1));
    b.transport.open(Epoch(2), &[]);
    b.transport.open(Epoch(3), &[a.peer()]);
    assert_eq!(b.take(MemberId(1)), None);
    turn_until(&mut [&mut a, &mut b], |ends| ends[0].seen.iter().any(|event| is_fault_of(event, 2)));
    assert!(b.seen.is_empty());
}

#[test]
fn a_member_that_ends_is_a_fault_and_its_last_words_are_kept() {
    let (mut a, mut b) = linked();
    link(&mut b, &mut a, 1);
    assert!(a.send(MemberId(2), &header(1, 1, SLOT_BYTES), 1));
    drop(a);
    turn_until(&mut [&mut b], |ends| !ends[0].seen.is_empty());
    assert!(b.seen.len() == 1 && is_fault_of(&b.seen[0], 1), "{:?}", b.seen);
    assert_eq!(b.take(MemberId(1)), Some((1, vec![1; SLOT_BYTES])));
    assert!(b.transport.reserve(MemberId(1), 8).is_none());
}

#[test]
fn a_broken_link_is_made_anew_in_the_next_epoch() {
    let (mut a, mut b) = linked();
    let id = *b.transport.connections.keys().next().unwrap();
    b.transport.lose(id, "test".to_owned());
    turn_until(&mut [&mut a, &mut b], |ends| ends.iter().all(|end| !end.seen.is_empty()));
    assert!(!a.send(MemberId(2), &header(1, 1, 8), 1));
    a.transport.open(Epoch(2), &[b.peer()]);
    b.transport.open(Epoch(2), &[a.peer()]);
    link(&mut a, &mut b, 2);
    assert_eq!((a.seen.len(), b.seen.len()), (1, 1));
}

#[test]
fn an_address_without_listener_or_with_another_member_is_a_fault() {
    let (mut a, mut b) = (End::new(1), End::new(2));
    let gone = End::new(3).peer();
    let wrong = Peer { member: MemberId(4), ..b.peer() };
    let far = Peer { member: MemberId(5), host: HOST + 1, ..b.peer() };
    let unprovable = Peer { member: MemberId(666), ..b.peer() };
    a.transport.open(Epoch(1), &[gone, wrong, far, unprovable]);
    let all = [3, 4, 5, 666];
    for to in all {
        assert!(a.transport.reserve(MemberId(to), 8).is_none());
    }
    turn_until(&mut [&mut a, &mut b], |ends| ends[0].seen.len() == all.len());
    assert!(all.iter().all(|&id| a.seen.iter().any(|event| is_fault_of(event, id))), "{:?}", a.seen);
}

#[test]
fn strangers_get_nowhere() {
    let mut b = End::new(2);
    b.transport.open(Epoch(1), &[]);
    let say = |packets: &[&[u8]]| {
        let socket = socket::dial(&b.transport.address).unwrap();
        for packet in packets {
            socket::send(socket.as_fd(), packet, &[socket.as_fd()]).unwrap();
        }
        socket
    };
    let silent: Vec<OwnedFd> = (0..UNPROVEN_MAX + 10).map(|_| say(&[])).collect();
    let talkers = [
        say(&[b"nonsense that is no claim"]),
        say(&[&1u64.to_le_bytes(), b"no offer"]),
        say(&[&2u64.to_le_bytes()]),
    ];
    let is_ended = |socket: &OwnedFd| loop {
        match socket::receive(socket.as_fd()).unwrap() {
            socket::Heard::Closed => break true,
            socket::Heard::Nothing => break false,
            socket::Heard::Packet(..) => {}
        }
    };
    turn_until(&mut [&mut b], |_| talkers.iter().all(is_ended));
    assert!(b.transport.connections.len() <= UNPROVEN_MAX);
    assert!(is_ended(&silent[0]) && !is_ended(&silent[UNPROVEN_MAX + 9]));
    assert!(b.seen.is_empty() && b.transport.links.is_empty());
}

#[test]
fn nonsense_in_the_segment_is_a_fault_of_its_sender() {
    let (mut a, mut b) = linked();
    assert!(a.send(MemberId(2), &header(1, 1, 8), 1));
    let up = b.transport.links.get_mut(&MemberId(1)).unwrap().incoming.as_mut().unwrap();
    // The header of the second message; the first was taken by `linked`.
    up.ring.everything().part(4096 + 64 + INLINE_BYTES, 4).write(b"what");
    assert!(!b.transport.arm());
    assert_eq!(b.take(MemberId(1)), None);
    turn_until(&mut [&mut a, &mut b], |ends| ends.iter().all(|end| end.seen.len() == 1));
    assert!(is_fault_of(&b.seen[0], 1) && is_fault_of(&a.seen[0], 2), "{:?} {:?}", a.seen, b.seen);
}

#[test]
fn an_impossible_count_in_the_segment_is_a_fault_of_its_receiver() {
    let (mut a, mut b) = linked();
    let up = b.transport.links.get_mut(&MemberId(1)).unwrap().incoming.as_mut().unwrap();
    up.ring.everything().part(0, 8).write(&u64::MAX.to_ne_bytes());
    while a.send(MemberId(2), &header(1, 1, 8), 1) {}
    turn_until(&mut [&mut a, &mut b], |ends| !ends[0].seen.is_empty());
    assert!(is_fault_of(&a.seen[0], 2));
}

#[test]
fn nothing_wakes_the_driver_of_a_transport_that_is_gone() {
    let (mut a, b) = linked();
    let End { transport, mut poll, .. } = b;
    let address = transport.address();
    drop(transport);
    // The sender holds its own copy of the bell.
    let Outgoing::Up(up) = &a.transport.links.get(&MemberId(2)).unwrap().outgoing else {
        panic!("the link stands until its end is heard of");
    };
    up.bell.ring();
    let mut events = mio::Events::with_capacity(8);
    poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
    assert!(events.is_empty());
    assert_eq!(socket::dial(&address).unwrap_err(), Errno::CONNREFUSED);
    turn_until(&mut [&mut a], |ends| ends[0].seen.iter().any(|event| is_fault_of(event, 2)));
}

#[test]
fn a_shown_message_does_not_keep_the_driver_awake() {
    let (mut a, mut b) = linked();
    assert!(b.transport.arm());
    b.transport.disarm();
    assert!(a.send(MemberId(2), &header(1, 1, 8), 1));
    assert!(!b.transport.arm());
    assert!(b.transport.peek(MemberId(1)).is_some());
    assert!(b.transport.arm());
    b.transport.disarm();
    assert_eq!(b.take(MemberId(1)).unwrap().0, 1);
}

/// Each end sleeps before every message that is not there yet, so a lost wake-up stops the test.
#[test]
fn parked_ends_wake_each_other() {
    const ROUNDS: u32 = 5_000;
    let (mut a, mut b) = (End::new(1), End::new(2));
    a.transport.open(Epoch(1), &[b.peer()]);
    b.transport.open(Epoch(1), &[a.peer()]);
    let play = &|end: &mut End, to: MemberId, serves: bool| {
        let act = |end: &mut End, step: &mut dyn FnMut(&mut End) -> bool| {
            while !step(end) {
                end.turn();
                assert!(end.park(), "{} slept through a message", end.me());
            }
        };
        for round in 0..ROUNDS {
            let bytes = (round as usize * 37) % 2048;
            for sends in [serves, !serves] {
                if sends {
                    act(end, &mut |end| end.send(to, &header(1, round, bytes), round as u8));
                } else {
                    act(end, &mut |end| match end.take(to) {
                        None => false,
                        Some(got) => {
                            assert_eq!(got, (round, vec![round as u8; bytes]));
                            true
                        }
                    });
                }
            }
        }
        assert!(end.seen.is_empty(), "{:?}", end.seen);
    };
    std::thread::scope(|scope| {
        // Borrowed, not moved: both stay until both are done, as an end that leaves is a fault.
        let (first, second) = (&mut a, &mut b);
        scope.spawn(move || play(first, MemberId(2), true));
        scope.spawn(move || play(second, MemberId(1), false));
    });
}

#[test]
fn a_parked_sender_wakes_when_a_slot_is_free() {
    const MESSAGES: u32 = 500;
    let (mut a, mut b) = linked();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for chunk in 0..MESSAGES {
                while !a.send(MemberId(2), &header(1, chunk, SLOT_BYTES), chunk as u8) {
                    a.turn();
                    assert!(a.park(), "slept through a free slot");
                }
            }
        });
        for chunk in 0..MESSAGES {
            let got = loop {
                if let Some(got) = b.take(MemberId(1)) {
                    break got;
                }
                b.turn();
                assert!(b.park(), "slept through a message");
            };
            assert_eq!(got, (chunk, vec![chunk as u8; SLOT_BYTES]));
        }
    });
}
