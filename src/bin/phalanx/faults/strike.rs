//! Does a fault to a running world, and waits until what must come of it has come.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::Duration;

use phalanx::Rank;
use phalanx::core::policy::Policy;
use phalanx::demo::random::Random;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};

use super::heard::Right;
use super::kind::Fault;
use super::network::{Network, Way};
use super::world::{Failure, World, signal};

/// A fault comes at any time within so many milliseconds of the moment at which every rank runs.
const AIM_MS: u64 = 30;
/// How long a link loses packets, or is slow.
const BAD_LINK: Duration = Duration::from_millis(300);
/// How long a coordinator or a launcher has no descriptors.
const STARVED: Duration = Duration::from_millis(300);

/// What a fault is done to, and by which seed.
pub struct Strike<'a, 'w> {
    pub fault: Fault,
    pub policy: Policy,
    pub world: &'a mut World<'w>,
    pub network: Option<&'a Network>,
    pub random: &'a mut Random,
    pub is_small: bool,
    /// Whether rank 0 is none of those that are lost.
    pub keeps_first: bool,
}

impl Strike<'_, '_> {
    /// Does it. What must come of it has come, or something else, which the caller judges.
    pub fn carry_out(&mut self) -> Result<Right, Failure> {
        self.pass_up_to(AIM_MS);
        match self.fault {
            Fault::Kill => {
                let right = self.lose_any();
                self.kill(&right)?;
                self.over(right)
            }
            Fault::Stop => self.stop(),
            Fault::Pause => {
                let pid = {
                    let rank = self.any();
                    self.world.pid_of(rank)?
                };
                signal(pid, Signal::STOP)?;
                self.pass_up_to(self.fault.lease_ms() / 4);
                signal(pid, Signal::CONT)?;
                self.world.heard.mark();
                self.over(self.right(&[], &[]))
            }
            Fault::CoordinatorRestart => self.restart(),
            Fault::DiskFull => self.fill_disk(),
            Fault::NoDescriptors => self.take_descriptors(),
            Fault::NoMemory => self.take_memory(),
            Fault::HostKill
            | Fault::LinkDown
            | Fault::LinkFlap
            | Fault::OneWay
            | Fault::Loss
            | Fault::Delay
            | Fault::Reorder => {
                let network = self.network.ok_or("no network".to_owned())?;
                self.hit_host(network)
            }
        }
    }

    fn any(&mut self) -> Rank {
        let from = usize::from(self.keeps_first);
        Rank((from + self.random.below(self.fault.ranks() as usize - from)) as u32)
    }

    /// Two ranks.
    fn pair(&mut self) -> (Rank, Rank) {
        let (one, by) = (self.any(), 1 + self.random.below(self.fault.ranks() as usize - 1) as u32);
        (one, Rank((one.0 + by) % self.fault.ranks()))
    }

    fn pass_up_to(&mut self, ms: u64) {
        let us = self.random.below(1 + ms as usize * 1000) as u64;
        self.world.pass(Duration::from_micros(us));
    }

    fn right(&self, must: &[Rank], may: &[Rank]) -> Right {
        Right {
            policy: self.policy,
            ranks: self.fault.ranks(),
            must: must.iter().copied().collect(),
            may: may.iter().copied().collect(),
            after_epoch: if must.is_empty() { 0 } else { self.world.heard.epoch() + 1 },
            is_small: self.is_small,
        }
    }

    fn lost(&self, must: &[Rank]) -> Right {
        self.right(must, &[])
    }

    /// One rank is lost.
    fn lose_any(&mut self) -> Right {
        let rank = self.any();
        self.lost(&[rank])
    }

    fn over(&mut self, right: Right) -> Result<Right, Failure> {
        self.world.wait_over(&right)?;
        Ok(right)
    }

    /// Kills all that must be lost.
    fn kill(&mut self, right: &Right) -> Result<(), Failure> {
        for rank in &right.must {
            signal(self.world.pid_of(*rank)?, Signal::KILL)?;
        }
        Ok(())
    }

    /// Waits until ranks that were lost and live have learned it. Under abort the coordinator may be gone by then.
    fn await_learned(&mut self, lost: &BTreeSet<Rank>) -> Result<(), Failure> {
        if self.policy == Policy::Abort {
            return Ok(());
        }
        let pids = lost.iter().map(|rank| self.world.pid_of(*rank)).collect::<Result<Vec<_>, _>>()?;
        let is_gone = |pid: u32| !std::path::Path::new(&format!("/proc/{pid}")).exists();
        self.world.wait("who was put out learns it", |world| {
            pids.iter().all(|pid| world.heard.ended(*pid).is_some() || is_gone(*pid))
        })
    }

    fn stop(&mut self) -> Result<Right, Failure> {
        let right = self.lose_any();
        let pids = right.must.iter().map(|rank| self.world.pid_of(*rank)).collect::<Result<Vec<_>, _>>()?;
        pids.iter().try_for_each(|pid| signal(*pid, Signal::STOP))?;
        self.world.wait_over(&right)?;
        // It was put out, so its launcher may have ended it meanwhile.
        pids.iter().for_each(|pid| drop(signal(*pid, Signal::CONT)));
        self.await_learned(&right.must)?;
        Ok(right)
    }

    /// Half of the time a rank dies while there is no coordinator.
    fn restart(&mut self) -> Result<Right, Failure> {
        let is_killed = self.random.below(2) == 1;
        let victim = self.any();
        let mut right = if is_killed { self.lost(&[victim]) } else { self.right(&[], &[]) };
        // A coordinator that comes back fences first.
        right.after_epoch = self.world.heard.epoch() + 1;
        self.world.kill_coordinator()?;
        self.kill(&right)?;
        self.pass_up_to(AIM_MS);
        self.world.restart_coordinator()?;
        self.world.heard.mark();
        self.over(right)
    }

    /// The coordinator cannot write down a death: it must not decide one, and stops. With room it goes on.
    fn fill_disk(&mut self) -> Result<Right, Failure> {
        let right = self.lose_any();
        let filler = self.world.state().join("filler");
        fill(&filler)?;
        self.kill(&right)?;
        let mut status = None;
        let until = std::time::Instant::now() + super::world::HANGS_AFTER;
        while status.is_none() && std::time::Instant::now() < until {
            self.world.pass(Duration::from_millis(5));
            status = self.world.coordinator_ended();
        }
        if status.is_none_or(|status| status.success()) {
            return Err(Failure::Hung(format!("the coordinator does not stop on a full disk: {status:?}")));
        }
        self.world.pass(Duration::from_millis(20));
        let why =
            |line: &String| line.starts_with("coordinator: phalanx: ") && line.contains("the store cannot");
        if !self.world.said.iter().any(why) {
            return Err(Failure::Hung("the coordinator does not say that its disk is full".to_owned()));
        }
        if self.world.heard.epoch() >= right.after_epoch {
            return Err(Failure::Hung("an epoch was acted on that was not written down".to_owned()));
        }
        std::fs::remove_file(&filler).map_err(|e| e.to_string())?;
        self.world.restart_coordinator()?;
        self.over(right)
    }

    /// A rank, the coordinator or a launcher can open nothing more, and a rank dies.
    fn take_descriptors(&mut self) -> Result<Right, Failure> {
        let (victim, starved) = self.pair();
        let right = |may: &[Rank]| self.right(&[victim], may);
        let (pid, right) = match self.random_of_three() {
            0 => (self.world.pid_of(starved)?, right(&[starved])),
            1 => (self.world.coordinator(), right(&[])),
            _ => (self.world.launchers[0].id(), right(&[])),
        };
        let before = limit(pid, Resource::Nofile, free_descriptor(pid))?;
        self.kill(&right)?;
        if right.may.is_empty() {
            self.world.pass(STARVED);
            limit(pid, Resource::Nofile, before)?;
        }
        self.over(right)
    }

    fn random_of_three(&self) -> usize {
        // A copy: what is drawn here must not move the draws behind it when a fault gets another choice.
        self.random.clone().below(3)
    }

    /// A rank gets no more memory, and another dies.
    fn take_memory(&mut self) -> Result<Right, Failure> {
        let (victim, starved) = self.pair();
        let right = self.right(&[victim], &[starved]);
        let pid = self.world.pid_of(starved)?;
        limit(pid, Resource::As, Some(address_space(pid)?))?;
        self.kill(&right)?;
        self.over(right)
    }

    fn hit_host(&mut self, network: &Network) -> Result<Right, Failure> {
        let host = self.random.below(self.fault.hosts());
        let ranks = [Rank(2 * host as u32), Rank(2 * host as u32 + 1)];
        let way = if self.random.below(2) == 0 { Way::Out } else { Way::In };
        let right = self.lost(&ranks);
        match self.fault {
            Fault::HostKill => {
                // Whole: launcher and ranks, in any order.
                let mut pids = vec![self.world.launchers[host].id()];
                for rank in ranks {
                    let at = self.random.below(pids.len() + 1);
                    pids.insert(at, self.world.pid_of(rank)?);
                }
                // One that is tied to its launcher may be gone before it is its turn.
                pids.into_iter().for_each(|pid| drop(signal(pid, Signal::KILL)));
                return self.over(right);
            }
            Fault::LinkDown => network.link(host, "down")?,
            Fault::OneWay => network.silence(host, way)?,
            Fault::LinkFlap => {
                network.link(host, "down")?;
                self.pass_up_to(self.fault.lease_ms() / 8);
                network.heal(host)?;
                return self.heals(&[]);
            }
            Fault::Loss | Fault::Delay | Fault::Reorder => {
                return self.hit_link(network, host, &ranks);
            }
            Fault::Kill
            | Fault::Stop
            | Fault::Pause
            | Fault::CoordinatorRestart
            | Fault::DiskFull
            | Fault::NoDescriptors
            | Fault::NoMemory => {}
        }
        self.world.wait_over(&right)?;
        network.heal(host)?;
        self.await_learned(&right.must)?;
        Ok(right)
    }

    fn hit_link(&mut self, network: &Network, host: usize, ranks: &[Rank]) -> Result<Right, Failure> {
        // Packets of beats that are lost again and again may outlast a lease.
        let mut may: &[Rank] = &[];
        let all: Vec<Rank> = (0..self.fault.ranks()).map(Rank).collect();
        if self.fault == Fault::Loss {
            network.lose(host)?;
            // Whoever sits there now, where others have been replaced before.
            may = if self.keeps_first { &all } else { ranks };
        } else if self.fault == Fault::Delay {
            network.delay(host)?;
        } else {
            network.reorder(host)?;
        }
        self.world.pass(BAD_LINK);
        let hit = network.packets_hit(host)?;
        network.heal(host)?;
        // In a world where ranks have moved, the host may have none left.
        if hit == 0 && !self.keeps_first {
            return Err(Failure::Setup(format!("no packet met the {} of host {host}", self.fault.name())));
        }
        self.heals(may)
    }

    /// What was done is undone.
    fn heals(&mut self, may: &[Rank]) -> Result<Right, Failure> {
        self.world.heard.mark();
        self.over(self.right(&[], may))
    }
}

/// Writes until there is no room left.
fn fill(path: &std::path::Path) -> Result<(), String> {
    let mut file = std::fs::File::create(path).map_err(|e| e.to_string())?;
    let block = [0u8; 1024];
    loop {
        match file.write_all(&block) {
            Ok(()) => {}
            Err(cause) if cause.kind() == std::io::ErrorKind::StorageFull => return Ok(()),
            Err(cause) => return Err(cause.to_string()),
        }
    }
}

/// Sets a limit of a running process, and says what it was.
fn limit(pid: u32, what: Resource, to: Option<u64>) -> Result<Option<u64>, String> {
    let target = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(format!("{pid} is no process"))?;
    let maximum = getrlimit(what).maximum;
    let before = prlimit(Some(target), what, Rlimit { current: to, maximum });
    before.map(|before| before.current).map_err(|e| format!("no limit for process {pid}: {e}"))
}

/// The number that the next descriptor of a process would have.
fn free_descriptor(pid: u32) -> Option<u64> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
    let open: BTreeSet<u64> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    (0..).find(|number| !open.contains(number))
}

/// Bytes of address space that a process has.
fn address_space(pid: u32) -> Result<u64, String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).map_err(|e| e.to_string())?;
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmSize:")?.split_whitespace().next()?.parse().ok());
    kib.map(|kib: u64| kib * 1024).ok_or_else(|| format!("process {pid} has no size"))
}
