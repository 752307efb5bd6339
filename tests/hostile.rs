//! Real listeners under attack, by strangers and by holders of the key, while the world they serve goes on: no panic in
//! any thread, no wrong element, nobody lost, no byte to a stranger but one nonce, and nothing in use at the end that
//! was not in use before.
//!
//! `SIM_HOSTILE` sets how many frames are sent (see docs/testing-hostile.md), `SIM_SEED` which.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "hostile/data.rs"]
mod data;
#[allow(dead_code, reason = "shared with the tests of the decoders, which use all of it")]
#[path = "wire/frames.rs"]
mod frames;
#[path = "hostile/insiders.rs"]
mod insiders;
#[path = "hostile/line.rs"]
mod line;
#[path = "hostile/link.rs"]
mod link;
#[allow(dead_code, reason = "shared with the contract suite, which uses all of it")]
#[path = "transport_contract/mesh.rs"]
mod mesh;
#[path = "hostile/packets.rs"]
mod packets;
#[path = "hostile/strangers.rs"]
mod strangers;
#[allow(dead_code, reason = "shared with the contract suite, which uses all of it")]
#[path = "transport_contract/tcp.rs"]
mod tcp;
#[path = "hostile/toll.rs"]
mod toll;
#[path = "hostile/world.rs"]
mod world;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use phalanx::auth::{Hello, Purpose};
use phalanx::config::TransportChoice;
use phalanx::control::COORDINATOR;
use phalanx::core::ids::MemberId;
use phalanx::sim::random::Random;

use data::BadLink;
use insiders::{BadSpare, NEVER};
use line::{hello, prove};
use strangers::{Door, Silent};
use toll::{InUse, Toll};
use world::{HONEST, KEY, World};

/// Frames of a run that nobody asked for more of.
const FRAMES: u64 = 2_000_000;

/// One attack at a time: what is in use is counted over the whole process.
static TURN: Mutex<()> = Mutex::new(());
/// Panics of any thread since the process began.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// The turn of one attack; with it the number of panics so far.
fn turn() -> (MutexGuard<'static, ()>, u64) {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::SeqCst);
        known(info);
    }));
    (turn, PANICS.load(Ordering::SeqCst))
}

fn frames_wanted() -> u64 {
    std::env::var("SIM_HOSTILE").ok().and_then(|text| text.parse().ok()).unwrap_or(FRAMES)
}

fn seeded(part: &str) -> Random {
    let chosen = std::env::var("SIM_SEED").ok().and_then(|text| text.parse().ok());
    let seed = chosen.unwrap_or_else(|| u64::from(std::process::id()));
    println!("{part}: SIM_SEED={seed} SIM_HOSTILE={}", frames_wanted());
    Random::new(seed)
}

fn doors(world: &World) -> Vec<Door> {
    let control = hello(Purpose::Control, MemberId(NEVER), COORDINATOR);
    let launcher = Hello { purpose: Purpose::Launcher, ..control };
    let mut doors = vec![
        Door { address: world.coordinator(), hello: control },
        Door { address: world.coordinator(), hello: launcher },
    ];
    for rank in 0..=HONEST {
        let info = world.info(rank);
        let hello = hello(Purpose::DataTcp, MemberId(NEVER), info.member);
        doors.push(Door { address: info.tcp.unwrap(), hello });
    }
    doors
}

/// A proof that opened the door once.
fn recorded(door: &Door) -> Vec<u8> {
    let (stream, said) = prove(door.address, &KEY, door.hello).expect("who holds the key is let in");
    drop(stream);
    said
}

/// An attacker of the world: everything that it keeps between two rounds.
struct Attacker<'a> {
    world: &'a World,
    doors: Vec<(Door, Vec<u8>)>,
    spare: BadSpare,
    links: Vec<BadLink>,
    random: Random,
    toll: Toll,
}

impl<'a> Attacker<'a> {
    fn new(world: &'a World, random: Random) -> Self {
        let doors = doors(world).into_iter().map(|door| (door, recorded(&door))).collect();
        let spare = BadSpare::join(world.coordinator(), MemberId(NEVER + 100));
        let mut attacker = Self { world, doors, spare, links: Vec::new(), random, toll: Toll::default() };
        let from = world.lent();
        // Whatever link the lent member had is cut by this: the coordinator repairs it by a fence without a loss.
        let epoch = world.epoch();
        for rank in 0..HONEST {
            let info = world.info(rank);
            attacker.links.push(BadLink::open(info.tcp.unwrap(), &KEY, (from, info.member)));
        }
        world.until("the repair of the lent member's link", |world| world.epoch() > epoch);
        attacker.world.assert_alive();
        attacker
    }

    /// Frames in bulk, which end no connection, and a few that do.
    fn round(&mut self) {
        let (random, toll) = (&mut self.random, &mut self.toll);
        let epoch = self.world.epoch();
        for link in &mut self.links {
            (0..6).for_each(|_| link.outdated(random, toll));
            link.replayed(random, toll);
            link.notes(epoch, random, toll);
        }
        (0..6).for_each(|_| self.spare.burst(random, toll));
        insiders::launchers(self.world.coordinator(), 1, random, toll);
        (0..10).for_each(|_| insiders::damaged(self.world.coordinator(), random, toll));
        for _ in 0..10 {
            let (door, recorded) = &self.doors[random.below(self.doors.len() as u64) as usize];
            strangers::attack(door, recorded, random, toll);
        }
    }

    /// What needs many connections, or much time, once in a while.
    fn siege(&mut self) {
        let (random, toll) = (&mut self.random, &mut self.toll);
        let doors: Vec<Door> = self.doors.iter().map(|(door, _)| *door).collect();
        let mut silent = Silent::default();
        silent.open(&doors, 70, toll);
        for _ in 0..10 {
            silent.say_a_byte();
            insiders::usurp(self.world.coordinator(), self.world.lent(), random, toll);
        }
        insiders::longest(self.world.coordinator(), toll);
        silent.end();
    }

    fn attack(&mut self, frames: u64) {
        let until = self.toll.total() + frames;
        self.siege();
        while self.toll.total() < until {
            self.round();
        }
        self.world.assert_alive();
    }
}

#[test]
fn a_world_over_tcp_goes_on_under_attack() {
    let (_turn, panics) = turn();
    let world = World::form(TransportChoice::Tcp);
    let mut attacker = Attacker::new(&world, seeded("a world over tcp"));
    let frames = frames_wanted();
    attacker.attack(frames / 10);
    let before = InUse::now();
    attacker.attack(frames - frames / 10);
    let after = InUse::now();
    attacker.toll.print();
    println!("{} exact rounds meanwhile", world.rounds());
    after.assert_flat(before);
    let Attacker { spare, links, .. } = attacker;
    spare.leave();
    // The lent member has its links back.
    drop(links);
    world.end();
    assert_eq!(PANICS.load(Ordering::SeqCst), panics, "a thread has panicked");
}

#[test]
fn a_world_over_shared_memory_goes_on_under_attack() {
    let (_turn, panics) = turn();
    let world = World::form(TransportChoice::Auto);
    let (mut random, mut toll) = (seeded("a world over shared memory"), Toll::default());
    let names: Vec<(MemberId, String)> = (0..=HONEST)
        .map(|rank| world.info(rank))
        .map(|info| (info.member, info.shm.expect("members of one host have a Unix socket")))
        .collect();
    let mut attack = |packets: u64| {
        for _ in 0..packets {
            let (member, name) = &names[random.below(names.len() as u64) as usize];
            packets::attack(name, *member, &mut random, &mut toll);
        }
        world.assert_alive();
    };
    let packets = (frames_wanted() / 1000).max(500);
    attack(packets / 5);
    let before = InUse::now();
    attack(packets);
    let after = InUse::now();
    toll.print();
    println!("{} exact rounds meanwhile", world.rounds());
    after.assert_flat(before);
    world.end();
    assert_eq!(PANICS.load(Ordering::SeqCst), panics, "a thread has panicked");
}

#[test]
fn a_link_that_sends_no_messages_is_one_fault_each_time_and_harms_no_other() {
    let (_turn, panics) = turn();
    let (mut random, mut toll) = (seeded("a link"), Toll::default());
    let pair = link::Pair::start();
    let rounds = (frames_wanted() / 2000).max(300);
    pair.attack(rounds / 5, &mut random, &mut toll);
    let before = InUse::now();
    pair.attack(rounds, &mut random, &mut toll);
    let after = InUse::now();
    toll.print();
    after.assert_flat(before);
    pair.end();
    assert_eq!(PANICS.load(Ordering::SeqCst), panics, "a thread has panicked");
}
