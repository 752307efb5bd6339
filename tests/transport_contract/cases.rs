//! The cases: one function each, over any world.

use std::collections::VecDeque;
use std::sync::mpsc;

use phalanx::core::ids::MemberId;
use phalanx::core::units::SLOT_BYTES;
use phalanx::device::Block;
use phalanx::transport::LinkEvent;

use crate::mesh::{Mesh, Message, PATIENCE, Random, Seat, World, offer, receive};

const SIZES: [usize; 9] = [0, 1, 63, 64, 65, 4096, 65_536, SLOT_BYTES - 1, SLOT_BYTES];

fn message(tag: u32, bytes: usize) -> Message {
    Message { epoch: 1, tag, bytes }
}

pub fn order_is_kept_for_all_sizes(world: &impl World) {
    let mut mesh = Mesh::new(world, 2);
    // Every size after every other, by both ways of sending, and in both directions.
    let mut tag = 0;
    for first in SIZES {
        for second in SIZES {
            for bytes in [first, second, second] {
                tag += 1;
                mesh.send(0, 1, &message(tag, bytes));
                assert_eq!(mesh.take(1, 0), message(tag, bytes));
            }
        }
        mesh.send(1, 0, &message(tag, first));
        assert_eq!(mesh.take(0, 1), message(tag, first));
    }
    assert_eq!(mesh.try_take(1, 0), None, "nothing is handed out twice");
    assert_eq!(mesh.events, vec![vec![]; 2]);
}

/// Sends by `reserve` and `commit` until the link stays full; gives what was sent. (`post` may refuse earlier: it need
/// not copy into a slot what it could send from the caller's memory later.)
fn fill(mesh: &mut Mesh, from: usize, to: usize, bytes: usize) -> VecDeque<Message> {
    let mut sent = VecDeque::new();
    let mut refusals = 0;
    while refusals < 200 {
        let next = message(2 * sent.len() as u32, bytes);
        if mesh.try_send(from, to, &next) {
            sent.push_back(next);
            refusals = 0;
        } else {
            refusals += 1;
        }
        assert!(sent.len() * bytes < 1 << 30, "a link takes in without bound");
        mesh.turn();
    }
    sent
}

pub fn a_full_link_refuses_and_recovers(world: &impl World) {
    let mut mesh = Mesh::new(world, 2);
    mesh.send(0, 1, &message(0, 8));
    mesh.take(1, 0);
    for bytes in [SLOT_BYTES, 40_000] {
        let mut sent = fill(&mut mesh, 0, 1, bytes);
        assert!(sent.len() >= 2, "a link holds more than one message");
        let to = mesh.member(1);
        assert!(mesh.at(0).reserve(to, bytes).is_none(), "no slot is left");
        while let Some(expected) = sent.pop_front() {
            assert_eq!(mesh.take(1, 0), expected);
        }
        assert_eq!(mesh.try_take(1, 0), None);
        let first = mesh.until("a free slot", |mesh| mesh.at(0).reserve(to, 64));
        let second = mesh.at(0).reserve(to, 64).expect("the same slot again");
        assert_eq!(first.start(), second.start(), "reserve without commit gives the same slot");
        mesh.send(0, 1, &message(2, 64));
        assert_eq!(mesh.take(1, 0), message(2, 64));
        mesh.settle(0, 1);
        assert!(mesh.at(0).flushed(to));
    }
}

pub fn memory_posted_is_free_on_return(world: &impl World) {
    let mut mesh = Mesh::new(world, 2);
    let to = mesh.member(1);
    let mut block = Block::zeroed(SLOT_BYTES);
    let (mut sent, mut taken) = (0u32, 0);
    // The receiver takes only when the link is full, so that posts end in every state of it.
    while taken < 400 {
        let header = Message { epoch: 1, tag: sent, bytes: SLOT_BYTES }.header();
        block.span().write(&vec![sent as u8; SLOT_BYTES]);
        if sent < 400 && mesh.at(0).post(to, &header, block.span()) {
            sent += 1;
            continue;
        }
        mesh.turn();
        let from = mesh.member(0);
        let Some(arrival) = mesh.at(1).peek(from) else { continue };
        let mut payload = vec![0; arrival.payload.len()];
        arrival.payload.read(&mut payload);
        assert_eq!(arrival.header.chunk.0, taken);
        assert!(payload == vec![taken as u8; SLOT_BYTES], "payload {taken} as it was when posted");
        mesh.at(1).consume(from);
        taken += 1;
    }
}

pub fn an_old_epoch_is_dropped_and_counted(world: &impl World) {
    let mut mesh = Mesh::new(world, 2);
    mesh.send(0, 1, &message(1, 100));
    assert_eq!(mesh.take(1, 0), message(1, 100));
    for (tag, bytes) in [(2, 3000), (3, 0), (4, SLOT_BYTES)] {
        mesh.send(0, 1, &message(tag, bytes));
    }
    // One is in sight already when the view changes, another comes when it has.
    let from = mesh.member(0);
    mesh.until("the first", |mesh| mesh.at(1).peek(from));
    mesh.open(1, 2);
    mesh.send(0, 1, &message(5, 10));
    mesh.open(0, 2);
    let new = Message { epoch: 2, tag: 6, bytes: 77 };
    mesh.send(0, 1, &new);
    assert_eq!(mesh.take(1, 0), new);
    assert_eq!(mesh.at(1).stale(), 4);
    assert_eq!(mesh.events, vec![vec![]; 2], "an old message is no fault");
}

pub fn a_new_epoch_is_held_back_until_opened(world: &impl World) {
    let mut mesh = Mesh::new(world, 2);
    mesh.send(0, 1, &message(1, 5000));
    mesh.open(0, 2);
    let ahead = [(2, 10), (3, SLOT_BYTES), (4, 0)].map(|(tag, bytes)| Message { epoch: 2, tag, bytes });
    ahead.iter().for_each(|one| mesh.send(0, 1, one));
    mesh.settle(0, 1);
    assert_eq!(mesh.take(1, 0), message(1, 5000), "what is of this epoch passes");
    for _ in 0..100 {
        mesh.turn();
        assert_eq!(mesh.try_take(1, 0), None, "the epoch to come is not handed out");
    }
    mesh.open(1, 2);
    ahead.iter().for_each(|one| assert_eq!(mesh.take(1, 0), *one));
    assert_eq!(mesh.at(1).stale(), 0);
}

pub fn consume_after_open_takes_nothing_of_the_new_epoch(world: &impl World) {
    let mut mesh = Mesh::new(world, 2);
    mesh.send(0, 1, &message(1, 10));
    let from = mesh.member(0);
    mesh.until("the old one", |mesh| mesh.at(1).peek(from));
    mesh.open(0, 2);
    mesh.open(1, 2);
    let new = Message { epoch: 2, tag: 2, bytes: 10 };
    mesh.send(0, 1, &new);
    mesh.settle(0, 1);
    mesh.at(1).consume(from);
    assert_eq!(mesh.take(1, 0), new);
}

pub fn nothing_of_a_revoked_member_is_handed_out(world: &impl World) {
    let mut mesh = Mesh::new(world, 3);
    for (from, to) in [(0, 1), (1, 0), (2, 1)] {
        mesh.send(from, to, &message(1, 64));
    }
    assert_eq!(mesh.take(1, 0), message(1, 64));
    assert_eq!(mesh.take(0, 1), message(1, 64));
    mesh.send(0, 1, &message(2, 64));
    mesh.settle(0, 1);
    let dead = mesh.member(0);
    mesh.at(1).revoke(&[dead]);
    // It lives on, and goes on sending: in the old epoch, in the new one, on the old link and on new ones.
    for epoch in [1, 2, 3] {
        mesh.open(0, epoch);
        // Even a table that names it does not bring it back.
        mesh.open(1, epoch);
        for tag in 0..50 {
            mesh.try_send(0, 1, &Message { epoch, tag, bytes: 64 });
            mesh.turn();
            assert!(mesh.at(1).peek(dead).is_none(), "a byte of the dead in {epoch}");
            assert!(mesh.at(1).reserve(dead, 8).is_none(), "nothing goes to the dead");
        }
    }
    assert_eq!(mesh.events[1], vec![], "what is decided is no news");
    mesh.open(2, 3);
    let alive = Message { epoch: 3, tag: 9, bytes: 64 };
    mesh.send(2, 1, &alive);
    assert_eq!(mesh.take(1, 2), alive, "the living are heard");
}

pub fn a_member_outside_the_table_is_heard_when_it_is_named(world: &impl World) {
    let mut mesh = Mesh::of([1, 2].map(|m| world.seat(MemberId(m))).into());
    mesh.open_with(1, 1, &[]);
    // The newcomer has the new view already, its peer has not.
    mesh.open(0, 2);
    for _ in 0..200 {
        mesh.try_send(0, 1, &Message { epoch: 2, tag: 0, bytes: 8 });
        mesh.turn();
        assert_eq!(mesh.try_take(1, 0), None, "who is not in the table is not heard");
    }
    mesh.open(1, 2);
    let last = Message { epoch: 2, tag: 1, bytes: 9 };
    // A link may have taken in what came before its end was named, up to its last slot.
    let mut is_sent = false;
    mesh.until("the last message", |mesh| {
        is_sent = is_sent || mesh.try_send(0, 1, &last);
        (mesh.try_take(1, 0) == Some(last)).then_some(())
    });
    assert_eq!(mesh.events, vec![vec![]; 2]);
}

pub fn links_of_survivors_outlive_a_view(world: &impl World) {
    let mut mesh = Mesh::new(world, 3);
    for (from, to) in [(0, 1), (1, 0), (2, 0)] {
        mesh.send(from, to, &message(1, 64));
        assert_eq!(mesh.take(to, from), message(1, 64));
    }
    mesh.send(2, 0, &message(2, 64));
    mesh.settle(2, 0);
    let survivors = mesh.peers[..2].to_vec();
    for i in [0, 1] {
        mesh.open_with(i, 2, &survivors);
    }
    let gone = mesh.member(2);
    for tag in 0..20 {
        for (from, to) in [(0, 1), (1, 0)] {
            let next = Message { epoch: 2, tag, bytes: SIZES[tag as usize % SIZES.len()] };
            mesh.send(from, to, &next);
            assert_eq!(mesh.take(to, from), next);
        }
        assert!(mesh.at(0).peek(gone).is_none() && mesh.at(0).reserve(gone, 1).is_none());
    }
    assert_eq!(mesh.events[..2], vec![vec![]; 2], "a change of view is no fault");
}

pub fn a_death_is_one_fault_and_hurts_nobody_else(world: &impl World) {
    if let Err(why) = world.notices_death() {
        eprintln!("skipped because {why}");
        return;
    }
    let mut mesh = Mesh::new(world, 3);
    for (from, to) in [(0, 1), (1, 0), (2, 0), (0, 2)] {
        mesh.send(from, to, &message(1, 64));
        assert_eq!(mesh.take(to, from), message(1, 64));
    }
    mesh.send(1, 0, &message(2, 100));
    mesh.settle(1, 0);
    // The last member is the one that dies, so that the others keep their places.
    let (dead, other) = (mesh.member(1), mesh.member(2));
    drop(mesh.seats.remove(1));
    mesh.events.remove(1);
    assert_eq!(receive_from(&mut mesh, dead), message(2, 100), "what came whole before the death counts");
    mesh.until("a fault", |mesh| (!mesh.events[0].is_empty()).then_some(()));
    for tag in 0..100 {
        let _ = offer(mesh.at(0), dead, &message(tag, 8));
        assert!(mesh.at(0).peek(dead).is_none());
        mesh.turn();
        if tag % 10 == 0 {
            assert!(offer(mesh.at(0), other, &message(tag, 8)));
            mesh.until("traffic of the living", |mesh| {
                let from = mesh.member(0);
                receive(mesh.at(1), from)
            });
        }
    }
    assert_eq!(mesh.events[0].len(), 1, "one death, one fault: {:?}", mesh.events[0]);
    assert!(
        matches!(&mesh.events[0][0], LinkEvent::Fault { member, cause } if *member == dead && !cause.is_empty())
    );
}

fn receive_from(mesh: &mut Mesh, from: MemberId) -> Message {
    mesh.until("a message", |mesh| receive(mesh.at(0), from))
}

pub fn another_key_gets_nowhere(world: &impl World) {
    let stranger = match world.impostor(MemberId(2)) {
        Ok(stranger) => stranger,
        Err(why) => {
            eprintln!("skipped because {why}");
            return;
        }
    };
    let honest = [1, 3].map(|m| world.seat(MemberId(m)));
    let mut mesh = Mesh::of(honest.into_iter().chain([stranger]).collect());
    (0..3).for_each(|i| mesh.open(i, 1));
    for tag in 0..200 {
        for (from, to) in [(2, 0), (0, 2)] {
            mesh.try_send(from, to, &message(tag, 8));
            mesh.turn();
            assert_eq!(mesh.try_take(to, from), None, "a link without the key");
        }
    }
    mesh.until("faults on both sides", |mesh| {
        (!mesh.events[0].is_empty() && !mesh.events[2].is_empty()).then_some(())
    });
    mesh.send(0, 1, &message(1, 8));
    assert_eq!(mesh.take(1, 0), message(1, 8), "those who hold it are not disturbed");
    assert_eq!(mesh.events[1], vec![]);
}

pub fn a_mesh_under_random_traffic_mixes_nothing_up(world: &impl World) {
    const SEATS: usize = 4;
    const MESSAGES: usize = 10_000;
    let mut mesh = Mesh::new(world, SEATS);
    let mut random = Random(0x7ea_5eed);
    let mut expected = vec![VecDeque::new(); SEATS * SEATS];
    let (mut sent, mut taken) = (0, 0);
    let mut turns = 0u64;
    while taken < MESSAGES {
        let (from, to) = (random.below(SEATS), random.below(SEATS));
        if from == to {
            continue;
        }
        let largest = [64, 300, 5000, 70_000, SLOT_BYTES][random.below(5) * random.below(2)];
        let next = message(sent as u32, random.below(largest + 1));
        if sent < MESSAGES && mesh.try_send(from, to, &next) {
            expected[from * SEATS + to].push_back(next);
            sent += 1;
        }
        let (at, whose) = (random.below(SEATS), random.below(SEATS));
        if at != whose {
            for _ in 0..random.below(4) {
                let Some(message) = mesh.try_take(at, whose) else { break };
                assert_eq!(Some(message), expected[whose * SEATS + at].pop_front());
                taken += 1;
            }
        }
        if random.below(3) == 0 {
            mesh.turn();
        }
        turns += 1;
        assert!(turns < 10_000_000, "{taken} of {sent} messages arrived");
    }
    assert!(expected.iter().all(VecDeque::is_empty));
    assert_eq!(mesh.events, vec![vec![]; SEATS]);
}

/// Drives one member as a driver does: try everything, make progress, arm, park. Says before each parking what for.
fn drive<T>(
    seat: &mut dyn Seat,
    tag: u32,
    armed: &mpsc::Sender<u32>,
    mut attempt: impl FnMut(&mut dyn Seat) -> Option<T>,
) -> T {
    let mut events = Vec::new();
    loop {
        if let Some(value) = attempt(seat) {
            return value;
        }
        seat.transport().progress(&mut events);
        if seat.transport().arm() {
            // Nobody may be listening any more.
            let _ = armed.send(tag);
            assert!(seat.park(PATIENCE), "slept through what it waited for");
            seat.transport().disarm();
        }
        assert_eq!(events, vec![]);
    }
}

fn drive_until_flushed(seat: &mut dyn Seat, to: MemberId) {
    drive(seat, 0, &mpsc::channel().0, |seat| seat.transport().flushed(to).then_some(()));
}

pub fn a_parked_receiver_is_woken_by_an_arrival(world: &impl World) {
    const MESSAGES: u32 = 400;
    // Growing sizes: a look that takes in the beginning of a message must not leave its end unnoticed.
    let one = |tag: u32| message(tag, tag as usize % 8 * 32_000 + tag as usize);
    let mut mesh = Mesh::new(world, 2);
    let (from, to) = (mesh.member(0), mesh.member(1));
    let mut receiver = mesh.seats.pop().unwrap();
    let mut sender = mesh.seats.pop().unwrap();
    let (armed, is_armed) = mpsc::channel();
    let (taken, is_taken) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        for tag in 0..MESSAGES {
            let next = drive(&mut *receiver, tag, &armed, |seat| receive(seat.transport(), from));
            assert_eq!(next, one(tag));
            taken.send(()).unwrap();
        }
    });
    for tag in 0..MESSAGES {
        // Three of four come when the receiver has armed for it, so that only the arrival can wake it; the fourth
        // comes while it may be anywhere between its last look and its parking.
        while tag % 4 != 3 && is_armed.recv_timeout(PATIENCE).expect("an idle receiver arms") != tag {}
        let sent = |seat: &mut dyn Seat| offer(seat.transport(), to, &one(tag)).then_some(());
        drive(&mut *sender, tag, &mpsc::channel().0, sent);
        drive_until_flushed(&mut *sender, to);
        is_taken.recv_timeout(PATIENCE).expect("the receiver takes it");
    }
    thread.join().unwrap();
}

pub fn a_parked_sender_is_woken_by_room(world: &impl World) {
    let mut mesh = Mesh::new(world, 2);
    let (from, to) = (mesh.member(0), mesh.member(1));
    let sent = fill(&mut mesh, 0, 1, SLOT_BYTES);
    let more: Vec<Message> = (1..=100).map(|tag| message(1000 + tag, SLOT_BYTES)).collect();
    let expected: Vec<Message> = sent.iter().chain(&more).copied().collect();
    let mut receiver = mesh.seats.pop().unwrap();
    let mut sender = mesh.seats.pop().unwrap();
    let (armed, is_armed) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        for next in more {
            drive(&mut *sender, next.tag, &armed, |seat| offer(seat.transport(), to, &next).then_some(()));
        }
        drive_until_flushed(&mut *sender, to);
        sender
    });
    is_armed.recv_timeout(PATIENCE).expect("a sender without room arms");
    for one in expected {
        let next = drive(&mut *receiver, 0, &mpsc::channel().0, |seat| receive(seat.transport(), from));
        assert_eq!(next, one);
    }
    // The sender lives until all has arrived: its death would be an event.
    drop(thread.join().unwrap());
}

pub fn an_unseen_arrival_forbids_parking_and_an_unwanted_one_does_not(world: &impl World) {
    let mut mesh = Mesh::new(world, 2);
    let from = mesh.member(0);
    mesh.send(0, 1, &message(1, 64));
    assert_eq!(mesh.take(1, 0), message(1, 64));
    mesh.until("an idle receiver", |mesh| mesh.at(1).arm().then_some(()));
    mesh.at(1).disarm();
    mesh.send(0, 1, &message(2, 64));
    let to = mesh.member(1);
    mesh.until("a flushed link", |mesh| mesh.at(0).flushed(to).then_some(()));
    // It is there and nobody has looked: whether by arm or by the wake-up, the driver learns of it.
    let told = !mesh.at(1).arm() || mesh.seats[1].park(PATIENCE);
    assert!(told, "slept through an arrival");
    mesh.at(1).disarm();
    // Seen, but not wanted yet: nothing new will come, so the driver may park in the end.
    assert!(mesh.at(1).peek(from).is_some());
    let may_park = (0..10).any(|_| mesh.at(1).arm());
    assert!(may_park, "an unwanted message keeps the driver awake for ever");
    mesh.at(1).disarm();
    assert_eq!(mesh.take(1, 0), message(2, 64));
    assert_eq!(mesh.at(1).stale(), 0);
}
