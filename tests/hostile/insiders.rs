//! Who holds the key and means no good: damaged, cut, replayed, outdated and endless frames on proven control
//! connections. None of them is the coordinator's end, or any rank's.

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};

use phalanx::auth::Purpose;
use phalanx::control::COORDINATOR;
use phalanx::core::ids::{CommId, DomainId, Epoch, MemberId, OpId, OpSeq, Rank};
use phalanx::core::view::MemberInfo;
use phalanx::core::wire::Wire;
use phalanx::core::wire::message::{Downward, FRAME_BYTES_MAX, Milestone, Report, Upward, VERSION};
use phalanx::sim::random::Random;

use crate::frames;
use crate::line::{framed, heard_to_the_end, hello, last_words, prove, throw};
use crate::toll::Toll;
use crate::world::KEY;

/// No view of the world will ever have this number.
pub const NEVER: u64 = 1 << 40;
/// Frames of a burst.
const BURST: usize = 512;

/// A proven control connection in the name of `member`.
#[track_caller]
pub fn member(to: SocketAddr, member: MemberId) -> TcpStream {
    let proven = prove(to, &KEY, hello(Purpose::Control, member, COORDINATOR));
    proven.expect("who holds the key is let in").0
}

#[track_caller]
fn launcher(to: SocketAddr) -> TcpStream {
    let proven = prove(to, &KEY, hello(Purpose::Launcher, COORDINATOR, COORDINATOR));
    proven.expect("who holds the key is let in").0
}

/// One frame that ends its connection, or should do nothing, from a member that nobody knows or from a launcher.
pub fn damaged(to: SocketAddr, random: &mut Random, toll: &mut Toll) {
    // From a fixed set: what the coordinator remembers of members it has heard of is one line each.
    let ghost = MemberId(NEVER + random.below(64));
    let (mut stream, corpus) = match random.below(4) {
        0 => (launcher(to), vec![vec![0, 1, 0], ended(ghost, "signal 9"), vec![2; 9]]),
        _ => (member(to, ghost), frames::corpus()),
    };
    let mut frame = corpus[random.below(corpus.len() as u64) as usize].clone();
    let (kind, bytes) = match random.below(5) {
        0 => {
            let cut = random.below(frame.len() as u64 + 4) as usize;
            ("insider: a frame cut short", framed(&frame)[..cut].to_vec())
        }
        1 => {
            let bytes = random.between(FRAME_BYTES_MAX as u64 + 1, u64::from(u32::MAX)) as u32;
            let announced = [&bytes.to_le_bytes()[..], &frame].concat();
            ("insider: a frame that announces too much", announced)
        }
        2 => {
            frame = (0..random.below(300)).map(|_| random.bits() as u8).collect();
            ("insider: a frame of random bytes", framed(&frame))
        }
        _ => {
            frames::damage(&mut frame, random);
            ("insider: a damaged control frame", framed(&frame))
        }
    };
    throw(&mut stream, &bytes);
    toll.add(kind, 1);
    let is_over = kind == "insider: a frame that announces too much";
    let heard = if is_over { heard_to_the_end(&mut stream) } else { last_words(stream) };
    // Every word to it is a whole message: a refusal, the rules, the end.
    assert!(heard.len() < 4096, "{} bytes for an insider that nobody knows", heard.len());
}

/// A few frames that are as long as a frame may be.
pub fn longest(to: SocketAddr, toll: &mut Toll) {
    for filler in [0, 1, 0xff] {
        let mut stream = member(to, MemberId(NEVER + 70));
        let mut frame = framed(&vec![filler; FRAME_BYTES_MAX]);
        frame[4] = 1;
        throw(&mut stream, &frame);
        toll.add("insider: a frame of 16 MiB that is none", 1);
        heard_to_the_end(&mut stream);
    }
}

fn ended(member: MemberId, cause: &str) -> Vec<u8> {
    let mut frame = vec![1];
    member.put(&mut frame);
    cause.to_owned().put(&mut frame);
    frame
}

/// What is of another epoch, or about nothing: a frame that the coordinator takes and forgets.
fn outdated(random: &mut Random) -> Vec<u8> {
    let epoch = Epoch(if random.chance(50) { 0 } else { NEVER + random.below(1000) });
    let op = OpId { comm: CommId(random.bits() as u32), seq: OpSeq(random.bits()) };
    let anybody = MemberId(random.bits());
    let message = match random.below(6) {
        0 => Upward::Suspect { member: anybody, epoch, cause: "it is a liar".into() },
        1 => {
            let (comms, step) = (Vec::new(), frames::report().step);
            Upward::Ledger { report: Report { epoch, comms, step } }
        }
        2 => Upward::Ledger { report: Report { epoch, ..frames::report() } },
        3 => Upward::Expired { op, epoch },
        4 => Upward::Mismatch { op, peer: Rank(random.bits() as u32), epoch },
        _ => Upward::Milestone { epoch, what: Milestone::Replayed {} },
    };
    framed(&message.to_frame())
}

/// A spare that joins as it should and then sends, at any rate, what no spare sends.
pub struct BadSpare {
    stream: TcpStream,
    member: MemberId,
    heard: Vec<u8>,
    heard_bytes: u64,
    answers: u64,
}

impl BadSpare {
    pub fn join(to: SocketAddr, id: MemberId) -> Self {
        let stream = member(to, id);
        let mut spare = Self { stream, member: id, heard: Vec::new(), heard_bytes: 0, answers: 0 };
        spare.say(&framed(&spare.join_frame()));
        spare
    }

    fn join_frame(&self) -> Vec<u8> {
        let info = MemberInfo {
            member: self.member,
            host: 1,
            domain: DomainId(1),
            tcp: None,
            shm: None,
            pid: u32::MAX,
            wants: None,
        };
        Upward::Join { version: VERSION, info, epoch: Epoch(0) }.to_frame()
    }

    #[track_caller]
    fn say(&mut self, bytes: &[u8]) {
        assert!(throw(&mut self.stream, bytes), "a member that sends whole messages was cut off");
    }

    /// Outdated frames, the same ones again, joins again, and beats about communicators that nobody has.
    pub fn burst(&mut self, random: &mut Random, toll: &mut Toll) {
        let mut bytes = Vec::new();
        let mut last = outdated(random);
        for _ in 0..BURST {
            let kind = match random.below(32) {
                0 => {
                    let done_below = (0..8).map(|_| (CommId(random.bits() as u32), OpSeq(random.bits())));
                    let beat = Upward::Beat { epoch: Epoch(NEVER), done_below: done_below.collect() };
                    bytes.extend(framed(&beat.to_frame()));
                    "insider: a beat of communicators that nobody has"
                }
                1 => {
                    bytes.extend(framed(&self.join_frame()));
                    "insider: a join again"
                }
                2..8 => {
                    bytes.extend(&last);
                    "insider: a control frame replayed"
                }
                _ => {
                    last = outdated(random);
                    bytes.extend(&last);
                    "insider: a control frame of another epoch"
                }
            };
            toll.add(kind, 1);
        }
        self.say(&bytes);
        self.listen();
    }

    /// Takes what has come: whole messages to this member, of the kinds that a spare is sent.
    #[track_caller]
    fn listen(&mut self) {
        self.stream.set_nonblocking(true).unwrap();
        let mut bytes = [0; 65536];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => panic!("a spare that sends whole messages was cut off"),
                Ok(got) => {
                    self.heard.extend_from_slice(&bytes[..got]);
                    self.heard_bytes += got as u64;
                }
                Err(cause) if cause.kind() == ErrorKind::WouldBlock => break,
                Err(cause) => panic!("{cause}"),
            }
        }
        self.stream.set_nonblocking(false).unwrap();
        let mut at = 0;
        while let Some(length) = self.heard[at..].first_chunk() {
            let end = at + 4 + u32::from_le_bytes(*length) as usize;
            let Some(frame) = self.heard.get(at + 4..end) else { break };
            match Downward::from_frame(frame).unwrap() {
                Downward::Welcome { .. } | Downward::BeatSeen { .. } => self.answers += 1,
                other @ (Downward::Fence { .. }
                | Downward::Decide { .. }
                | Downward::Evicted { .. }
                | Downward::Finished {}
                | Downward::Refused { .. }) => panic!("a spare is told {other:?}"),
            }
            at = end;
        }
        self.heard.drain(..at);
    }

    pub fn leave(mut self) {
        self.listen();
        self.say(&framed(&Upward::Leave {}.to_frame()));
        assert!(self.answers > 0);
        println!("{} answers of {} bytes to a bad spare", self.answers, self.heard_bytes);
        last_words(self.stream);
    }
}

/// Launchers that nobody has, and the ends of children that never were.
pub fn launchers(to: SocketAddr, bursts: u64, random: &mut Random, toll: &mut Toll) {
    let mut stream = launcher(to);
    for _ in 0..bursts {
        let mut bytes = Vec::new();
        for _ in 0..BURST {
            bytes.extend(framed(&ended(MemberId(random.bits() | NEVER), "signal 9")));
        }
        assert!(throw(&mut stream, &bytes), "a launcher that sends whole messages was cut off");
        toll.add("insider: a launcher, the end of nobody", BURST as u64);
    }
    last_words(stream);
}

/// Takes the line of a rank that lives, and says outdated things in its name. The rank dials again.
pub fn usurp(to: SocketAddr, rank: MemberId, random: &mut Random, toll: &mut Toll) {
    let mut stream = member(to, rank);
    for _ in 0..32 {
        if !throw(&mut stream, &outdated(random)) {
            break;
        }
        toll.add("insider: in the name of a seated rank, another epoch", 1);
    }
    heard_to_the_end(&mut stream);
}
