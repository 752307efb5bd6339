//! Links in simulated time: in order, with slots and delays; what a dead sender had in flight may be lost.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use phalanx_core::ids::{Epoch, MemberId, Rank};
use phalanx_core::view::View;
use phalanx_core::wire::Header;

use super::checkers::stale;
use super::random::{Random, mix};
use super::scenario::{Scenario, SlowLinks};
use super::timeline::Data;
use crate::device::{Block, Span};
use crate::transport::{Arrival, LinkEvent, Peer, Transport};

#[derive(Debug)]
struct Message {
    arrives_us: u64,
    header: Header,
    payload: Block,
    /// Its place in `Net::seen`.
    number: usize,
}

#[derive(Debug, Default)]
struct Link {
    queue: VecDeque<Message>,
    last_arrival_us: u64,
    cut: bool,
}

/// Links by sender and receiver. Members are numbered from 1 on.
#[derive(Debug, Default)]
struct Links(Vec<Vec<Option<Link>>>);

impl Links {
    fn get_mut(&mut self, from: MemberId, to: MemberId) -> Option<&mut Link> {
        self.0.get_mut(from.0 as usize)?.get_mut(to.0 as usize)?.as_mut()
    }

    fn open(&mut self, from: MemberId, to: MemberId) -> &mut Link {
        let (from, to) = (from.0 as usize, to.0 as usize);
        if self.0.len() <= from {
            self.0.resize_with(from + 1, Vec::new);
        }
        let row = &mut self.0[from];
        if row.len() <= to {
            row.resize_with(to + 1, || None);
        }
        row[to].get_or_insert_with(Link::default)
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = (MemberId, MemberId, &mut Link)> {
        let rows = self.0.iter_mut().enumerate();
        rows.flat_map(|(from, row)| {
            let links = row.iter_mut().enumerate();
            links.filter_map(move |(to, link)| {
                Some((MemberId(from as u64), MemberId(to as u64), link.as_mut()?))
            })
        })
    }

    fn iter(&self) -> impl Iterator<Item = (MemberId, MemberId, &Link)> {
        let rows = self.0.iter().enumerate();
        rows.flat_map(|(from, row)| {
            let links = row.iter().enumerate();
            links.filter_map(move |(to, link)| {
                Some((MemberId(from as u64), MemberId(to as u64), link.as_ref()?))
            })
        })
    }
}

/// All links of a world.
#[derive(Debug)]
pub struct Net {
    links: Links,
    random: Random,
    delay_us_max: u64,
    slow: SlowLinks,
    slow_seed: u64,
    is_one_sided: bool,
    slots: usize,
    /// What goes from one to the other stays under way until then.
    held: BTreeMap<(MemberId, MemberId), u64>,
    /// New connections break until then too.
    down: BTreeMap<(MemberId, MemberId), u64>,
    now_us: u64,
    /// Members whose next turn should come at a time, because something arrives then.
    wakes: Vec<(u64, MemberId)>,
    faults: BTreeMap<MemberId, Vec<(u64, LinkEvent)>>,
    violations: Vec<String>,
    /// Every message so far, where a timeline is written.
    seen: Option<Vec<Data>>,
}

/// The net, shared by the transports of one world.
pub type SharedNet = Rc<RefCell<Net>>;

impl Net {
    /// No links yet.
    #[must_use]
    pub fn new(seed: u64, scenario: &Scenario) -> SharedNet {
        Rc::new(RefCell::new(Self {
            links: Links::default(),
            random: Random::new(seed),
            delay_us_max: scenario.delay_us_max,
            slow: scenario.slow_links,
            slow_seed: seed,
            is_one_sided: scenario.is_one_sided,
            slots: scenario.link_slots,
            held: BTreeMap::new(),
            down: BTreeMap::new(),
            now_us: 0,
            wakes: Vec::new(),
            faults: BTreeMap::new(),
            violations: Vec::new(),
            seen: None,
        }))
    }

    /// Remembers every message from now on, for the timeline.
    pub fn watch(&mut self) {
        self.seen = Some(Vec::new());
    }

    /// Takes what was remembered.
    pub fn take_data(&mut self) -> Vec<Data> {
        self.seen.take().unwrap_or_default()
    }

    /// Sets the clock.
    pub fn set_now(&mut self, now_us: u64) {
        self.now_us = now_us;
    }

    fn longest_delay_us(&self, from: MemberId, to: MemberId) -> u64 {
        let is_slow = mix(&[self.slow_seed, from.0, to.0]) % 100 < self.slow.percent;
        self.delay_us_max * if is_slow { self.slow.factor } else { 1 }
    }

    /// Takes the turns that arrivals ask for.
    pub fn take_wakes(&mut self) -> Vec<(u64, MemberId)> {
        std::mem::take(&mut self.wakes)
    }

    /// Takes what broke a rule of the fence.
    pub fn take_violations(&mut self) -> Vec<String> {
        std::mem::take(&mut self.violations)
    }

    /// The links between two ranks break in both directions: what was in flight is lost from a random message on, both
    /// see it, sooner or later. What is sent then goes over a new connection. False: they had none.
    pub fn break_links(&mut self, view: &View, one: Rank, two: Rank) -> bool {
        let (Some(one), Some(two)) = (view.occupant(one), view.occupant(two)) else { return false };
        let mut is_hit = false;
        for (from, to) in [(one, two), (two, one)] {
            let Some(link) = self.links.get_mut(from, to).filter(|link| !link.cut) else { continue };
            is_hit = true;
            let keep = self.random.below(link.queue.len() as u64 + 1) as usize;
            link.queue.truncate(keep);
            self.tell_broken((from, to));
        }
        is_hit
    }

    /// Both ends see, sooner or later, that their connection broke.
    fn tell_broken(&mut self, (from, to): (MemberId, MemberId)) {
        for (at, other) in [(from, to), (to, from)] {
            let when = self.now_us + self.random.below(2_000);
            let event = LinkEvent::Fault { member: other, cause: "connection reset".to_owned() };
            self.faults.entry(at).or_default().push((when, event));
            self.wakes.push((when, at));
            self.wakes.push((self.now_us, at)); // There is room again.
        }
    }

    /// `at` takes its link with `other` for broken, without a reason.
    pub fn suspect(&mut self, at: MemberId, other: MemberId) {
        let event = LinkEvent::Fault { member: other, cause: "no answer".to_owned() };
        self.faults.entry(at).or_default().push((self.now_us, event));
        self.wakes.push((self.now_us, at));
    }

    /// Every connection between two members breaks until then.
    pub fn take_down(&mut self, one: MemberId, two: MemberId, until_us: u64) {
        self.down.insert((one, two), until_us);
        self.down.insert((two, one), until_us);
    }

    /// What one sends to the other stays under way until then.
    pub fn hold(&mut self, from: MemberId, to: MemberId, until_us: u64) {
        let until = self.held.entry((from, to)).or_default();
        *until = until_us.max(*until);
        let (until, now) = (*until, self.now_us);
        let Some(link) = self.links.get_mut(from, to) else { return };
        for message in link.queue.iter_mut().filter(|m| m.arrives_us > now) {
            message.arrives_us = message.arrives_us.max(until);
            link.last_arrival_us = link.last_arrival_us.max(until);
        }
        self.wakes.push((until, to));
    }

    /// What lies on the links and is not taken, for the report of a run that hangs.
    #[must_use]
    pub fn untaken(&self) -> Vec<String> {
        let heads = self.links.iter().filter_map(|(from, to, link)| {
            let head = link.queue.front()?.header;
            let rest = link.queue.len() - 1;
            Some(format!(
                "{from} -> {to}: {:?} {} of {} a{}, from {} us on, {rest} behind",
                head.kind,
                head.chunk,
                head.op,
                head.attempt.0,
                link.queue.front()?.arrives_us
            ))
        });
        heads.collect()
    }

    /// The process of `dead` is gone: what it had in flight is lost from a random message on, its peers see the
    /// connection break.
    pub fn kill(&mut self, dead: MemberId) {
        let mut peers = BTreeSet::new();
        for (from, to, link) in self.links.iter_mut() {
            if from == dead {
                // What was written into another's memory is there, or gets there without the writer.
                if !self.is_one_sided {
                    let keep = self.random.below(link.queue.len() as u64 + 1) as usize;
                    link.queue.truncate(keep);
                }
                peers.insert(to);
            } else if to == dead {
                link.queue.clear();
                peers.insert(from);
            }
            if from == dead || to == dead {
                link.cut = true;
            }
        }
        for peer in peers {
            let at = self.now_us + self.random.below(2_000);
            let event = LinkEvent::Fault { member: dead, cause: "connection reset".to_owned() };
            self.faults.entry(peer).or_default().push((at, event));
            self.wakes.push((at, peer));
        }
    }
}

/// A slot that is shut out: whoever read it now would see that it is not theirs.
fn scribble(mut slot: Block) {
    slot.span().write(&vec![0xEE; slot.bytes()]);
}

fn note_taken(seen: Option<&mut Vec<Data>>, number: usize, now_us: u64, stale: bool) {
    if let Some(data) = seen.and_then(|s| s.get_mut(number)) {
        (data.taken_us, data.stale) = (Some(now_us), stale);
    }
}

/// One member's view of the net.
#[derive(Debug)]
pub struct SimTransport {
    me: MemberId,
    net: SharedNet,
    epoch: Epoch,
    peers: BTreeSet<MemberId>,
    revoked: BTreeSet<MemberId>,
    /// The message last peeked, kept alive until it is consumed.
    heads: BTreeMap<MemberId, (Header, Block)>,
    staged: BTreeMap<MemberId, (usize, Block)>,
    stale: u64,
}

impl SimTransport {
    /// The transport of `me`.
    #[must_use]
    pub fn new(me: MemberId, net: SharedNet) -> Self {
        Self {
            me,
            net,
            epoch: Epoch(0),
            peers: BTreeSet::new(),
            revoked: BTreeSet::new(),
            heads: BTreeMap::new(),
            staged: BTreeMap::new(),
            stale: 0,
        }
    }
}

impl Transport for SimTransport {
    fn open(&mut self, epoch: Epoch, peers: &[Peer]) {
        self.epoch = epoch;
        self.peers = peers.iter().map(|p| p.member).collect();
        std::mem::take(&mut self.heads).into_values().for_each(|(_, slot)| scribble(slot));
        std::mem::take(&mut self.staged).into_values().for_each(|(_, slot)| scribble(slot));
    }

    fn revoke(&mut self, dead: &[MemberId]) {
        for member in dead {
            self.revoked.insert(*member);
            self.heads.remove(member).into_iter().for_each(|(_, slot)| scribble(slot));
            self.staged.remove(member).into_iter().for_each(|(_, slot)| scribble(slot));
        }
    }

    fn peek(&mut self, from: MemberId) -> Option<Arrival> {
        if self.revoked.contains(&from) || !self.peers.contains(&from) {
            return None;
        }
        if !self.heads.contains_key(&from) {
            let mut net = self.net.borrow_mut();
            let now = net.now_us;
            let Net { links, wakes, seen, .. } = &mut *net;
            let link = links.get_mut(from, self.me)?;
            loop {
                let first = link.queue.front().filter(|m| m.arrives_us <= now)?;
                if first.header.epoch < self.epoch && !phalanx_core::planted!(IgnoreEpoch) {
                    note_taken(seen.as_mut(), first.number, now, true);
                    link.queue.pop_front();
                    wakes.push((now, from));
                    self.stale += 1;
                    continue;
                }
                if first.header.epoch > self.epoch {
                    return None;
                }
                break;
            }
            let message = link.queue.pop_front()?;
            note_taken(seen.as_mut(), message.number, now, false);
            let is_revoked = self.revoked.contains(&from);
            net.violations.extend(stale(self.me, from, message.header.epoch, self.epoch, is_revoked));
            self.heads.insert(from, (message.header, message.payload));
        }
        let (header, payload) = self.heads.get_mut(&from)?;
        Some(Arrival { header: *header, payload: payload.span() })
    }

    fn consume(&mut self, from: MemberId) {
        self.heads.remove(&from);
        let mut net = self.net.borrow_mut();
        let now = net.now_us;
        net.wakes.push((now, from));
    }

    fn reserve(&mut self, to: MemberId, payload_bytes: usize) -> Option<Span> {
        if self.revoked.contains(&to) || !self.peers.contains(&to) {
            return None;
        }
        let mut net = self.net.borrow_mut();
        let slots = net.slots;
        let link = net.links.open(self.me, to);
        if link.queue.len() >= slots || link.cut {
            return None;
        }
        let staged = self.staged.entry(to).or_insert_with(|| (payload_bytes, Block::zeroed(payload_bytes)));
        if staged.0 != payload_bytes {
            *staged = (payload_bytes, Block::zeroed(payload_bytes));
        }
        Some(staged.1.span())
    }

    fn commit(&mut self, to: MemberId, header: &Header) {
        let Some((_, payload)) = self.staged.remove(&to) else { return };
        let mut net = self.net.borrow_mut();
        let max = net.longest_delay_us(self.me, to);
        let delay = net.random.below(max + 1);
        let now = net.now_us;
        if net.down.get(&(self.me, to)).is_some_and(|until| now < *until) {
            net.tell_broken((self.me, to));
            return;
        }
        let held_until = net.held.get(&(self.me, to)).copied().unwrap_or(0);
        let Net { links, seen, .. } = &mut *net;
        let link = links.open(self.me, to);
        let arrives_us = (now + delay).max(held_until).max(link.last_arrival_us);
        link.last_arrival_us = arrives_us;
        let data = Data {
            from: self.me,
            to,
            sent_us: now,
            arrives_us,
            taken_us: None,
            stale: false,
            header: *header,
        };
        let number = seen.as_ref().map_or(0, Vec::len);
        seen.iter_mut().for_each(|seen| seen.push(data));
        link.queue.push_back(Message { arrives_us, header: *header, payload, number });
        net.wakes.push((arrives_us, to));
    }

    fn progress(&mut self, events: &mut Vec<LinkEvent>) {
        let mut net = self.net.borrow_mut();
        let now = net.now_us;
        if let Some(faults) = net.faults.get_mut(&self.me) {
            let due = faults.iter().filter(|(at, _)| *at <= now).map(|(_, e)| e.clone());
            events.extend(due.filter(|LinkEvent::Fault { member, .. }| self.peers.contains(member)));
            faults.retain(|(at, _)| *at > now);
        }
    }

    fn arm(&mut self) -> bool {
        true
    }

    fn disarm(&mut self) {}

    fn stale(&self) -> u64 {
        self.stale
    }

    fn flushed(&mut self, _to: MemberId) -> bool {
        true
    }
}
