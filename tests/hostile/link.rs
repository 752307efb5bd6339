//! Two members with a live TCP link, on a thread that turns them, and a third one that sends what is no message.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use phalanx::core::ids::{Epoch, MemberId};
use phalanx::sim::random::Random;
use phalanx::transport::{LinkEvent, Peer, Transport};

use crate::data::BadLink;
use crate::line::heard_to_the_end;
use crate::mesh::{Message, PATIENCE, Seat, offer, receive};
use crate::tcp::{KEY, TcpSeat};
use crate::toll::Toll;

const GUEST: MemberId = MemberId(9);
const EPOCH: Epoch = Epoch(3);

#[derive(Default)]
struct Shared {
    is_over: AtomicBool,
    /// Faults of the guest's link, as its receiver told them.
    faults: AtomicU64,
    exchanged: AtomicU64,
}

pub struct Pair {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

impl Pair {
    pub fn start() -> Self {
        let shared = Arc::new(Shared::default());
        let (tell, told) = mpsc::channel();
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || exchange(&tell, &theirs));
        Self { address: told.recv().unwrap(), shared, thread }
    }

    /// Links of the guest, each of which ends by what is no message. Each is one fault, and the messages of the others
    /// go on meanwhile.
    pub fn attack(&self, links: u64, random: &mut Random, toll: &mut Toll) {
        for _ in 0..links {
            let before = self.shared.faults.load(Ordering::SeqCst);
            let mut link = BadLink::open(self.address, &KEY, (GUEST, MemberId(2)));
            match random.below(4) {
                0 => link.cut(random, toll),
                others => {
                    if others == 1 {
                        link.outdated(random, toll);
                    }
                    link.damaged(random, toll);
                    let heard = heard_to_the_end(&mut link.stream);
                    assert!(heard.is_empty(), "something came back on a data link: {heard:?}");
                }
            }
            self.until("the fault to be told", |s| s.faults.load(Ordering::SeqCst) > before);
            assert_eq!(self.shared.faults.load(Ordering::SeqCst), before + 1, "one cause, one fault");
        }
        let before = self.shared.exchanged.load(Ordering::SeqCst);
        self.until("another message", |s| s.exchanged.load(Ordering::SeqCst) > before + 2);
    }

    #[track_caller]
    fn until(&self, what: &str, done: impl Fn(&Shared) -> bool) {
        let begun = Instant::now();
        while !done(&self.shared) {
            assert!(begun.elapsed() < PATIENCE, "no end of waiting for {what}");
            assert!(!self.thread.is_finished(), "the members have ended");
            std::thread::yield_now();
        }
    }

    pub fn end(self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
    }
}

/// Sends message after message from one member to the other, and compares each.
fn exchange(tell: &mpsc::Sender<SocketAddr>, shared: &Shared) {
    let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let [mut a, mut b] = [1, 2].map(|member| TcpSeat::new(MemberId(member), KEY, here));
    let guest = Peer { member: GUEST, host: 0, tcp: None, shm: None };
    let (of_a, of_b) = (a.peer(), b.peer());
    a.transport.open(EPOCH, &[of_b, guest.clone()]);
    b.transport.open(EPOCH, &[of_a, guest]);
    tell.send(b.transport.address()).unwrap();
    let mut events = Vec::new();
    let (mut tag, mut is_sent) = (0u32, false);
    while !shared.is_over.load(Ordering::SeqCst) {
        let next = Message { epoch: EPOCH.0, tag, bytes: tag as usize % 5000 };
        is_sent = is_sent || offer(a.transport(), MemberId(2), &next);
        a.transport().progress(&mut events);
        b.transport().progress(&mut events);
        // As a driver that is about to sleep: what nobody waits for is read then.
        b.transport().arm();
        b.transport().disarm();
        if let Some(got) = receive(b.transport(), MemberId(1)) {
            assert_eq!(got, next);
            (tag, is_sent) = (tag.wrapping_add(1), false);
            shared.exchanged.fetch_add(1, Ordering::SeqCst);
        }
        for event in events.drain(..) {
            let LinkEvent::Fault { member, cause } = event else { panic!("{event:?}") };
            assert_eq!(member, GUEST, "{cause}");
            shared.faults.fetch_add(1, Ordering::SeqCst);
        }
    }
}
